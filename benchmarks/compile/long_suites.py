"""The needle and list suites beyond the window: a memory of all sections beside the section that has the answer.

    python -m benchmarks.compile.long_suites --windows 2 4

Documents are those of ``lcc eval``'s suites, as long as so many windows of the embedded model, which is told that its
window is short. ``section`` is the model that reads the section which states the answer, or the most of its values.
"""

from __future__ import annotations

import argparse
import re
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean

import lcc
from benchmarks.common.environment import describe
from benchmarks.common.models import load
from benchmarks.common.results_file import Row
from benchmarks.common.sweep import Sweep
from benchmarks.compile import long_texts
from lcc.data.sections import split_context
from lcc.evaluation import METRICS, Example
from lcc.evaluation.suites import suite
from lcc.inference.reader import Reader
from lcc.pipeline.settings import make_settings
from lcc.text.context import Context, build_context

OUT = Path("benchmarks/results/compile/long-suites.json")
# A number, or what stands behind a pair, is told by one section.
SETTINGS = long_texts.SETTINGS | {"steps": 100, "self_study_questions": 200, "across_questions": 0}


def holding(example: Example, sections: Sequence[Context]) -> Context:
    """The section that is asked about: it has the longest run of the question's words, and the most of the answer's."""
    told = [f" {' '.join(_words(section.chat.tokenizer.decode(section.context_ids)))} " for section in sections]
    words = _words(example.question)
    runs = [words[start:stop] for start in range(len(words)) for stop in range(start + 1, len(words) + 1)]

    def fits(text: str) -> tuple[int, int]:
        longest = max((len(run) for run in runs if f" {' '.join(run)} " in text), default=0)
        return longest, sum(f" {answer} " in text for answer in example.answers)

    return sections[max(range(len(sections)), key=lambda number: fits(told[number]))]


def _words(text: str) -> list[str]:
    return re.findall(r"\w+", text)


def by_task(examples: Sequence[Example], answers: Sequence[str]) -> dict[str, float]:
    """Mean scores of each task."""
    scores = defaultdict(list)
    for example, answer in zip(examples, answers, strict=True):
        scores[example.task].append(METRICS[example.metric](answer, example.answers))
    return {task: fmean(some) for task, some in sorted(scores.items())}


def measure(name: str, window: int, windows: float, seed: int) -> Row:
    """One row: a document of so many windows."""
    model, tokenizer = load()
    model.config.max_position_embeddings = window
    examples = suite(name, 1, seed, (int(window * windows),))
    text, chosen = examples[0].context, make_settings(seed=seed, **SETTINGS)
    context = split_context(model, build_context(model, tokenizer, text, chosen.ratio), chosen.ratio, chosen.data)
    memory = lcc.compile(model, tokenizer, text, seed=seed, **SETTINGS)
    reader = Reader.of_memory(model, context.chat, memory)
    read = [Reader.of_context(model, holding(one, context.parts)).answer([one.request])[0] for one in examples]
    return {
        "suite": name,
        "window": window,
        "windows": windows,
        "seed": seed,
        "text_tokens": len(context.context_ids),
        "sections": len(context.parts),
        "buffer_tokens": memory.buffer_tokens,
        "questions": len(examples),
        "memory": by_task(examples, reader.answer([one.request for one in examples])),
        "section": by_task(examples, read),
        "settings": SETTINGS,
        **describe(),
    }


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--suites", nargs="+", default=["needle", "key_value"])
    parser.add_argument("--windows", type=float, nargs="+", default=[2, 4])
    parser.add_argument("--window", type=int, default=768)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--out", type=Path, default=OUT)
    arguments = parser.parse_args()
    sweep = Sweep(arguments.out, lambda row: (row["suite"], row["window"], row["windows"], row["seed"]))
    keys = [
        (name, arguments.window, windows, seed)
        for name in arguments.suites
        for windows in arguments.windows
        for seed in arguments.seeds
    ]
    for key in sweep.missing(keys):
        sweep.add(measure(*key))


if __name__ == "__main__":
    main()
