"""Texts beyond the window, compiled in sections: what is kept beside sections that are compiled and asked alone.

    python -m benchmarks.compile.long_texts --windows 1 2 4

The embedded model is told that its window is short (``--window``), so that texts of several windows take minutes. A
text tells of people one after the other, each name once. Its questions are asked in all wordings, also in those in
which compile never asks. ``alone`` are some of the sections, each compiled as a text of its own with the same settings
and asked by itself. ``comparisons`` are of two people of different sections: ``full_text`` is the model that reads
these two. ``peak_bytes`` is what the process that compiles holds at most beyond what it holds before; each row has a
process of its own.
"""

from __future__ import annotations

import argparse
import multiprocessing
import random
import re
import resource
import time
from collections.abc import Sequence
from pathlib import Path

import torch

import lcc
from benchmarks.common.environment import describe
from benchmarks.common.models import load
from benchmarks.common.results_file import Row
from benchmarks.common.sweep import Sweep
from lcc.data.sections import joined, split_context
from lcc.inference.reader import Reader
from lcc.inference.requests import Request
from lcc.pipeline.settings import make_settings
from lcc.synthetic.exam import score
from lcc.synthetic.people import NAMES, Document, Question, document, people_for
from lcc.synthetic.reasoning import comparisons
from lcc.synthetic.seeds import CORPORA
from lcc.text.context import Context, build_context
from lcc.utils.random_state import sample_up_to

OUT = Path("benchmarks/results/compile/long-texts.json")
ATTRIBUTES, ASKED, COMPARED, ANSWER_TOKENS = 8, 240, 60, 24
# Sections that are compiled alone too, at most.
ALONE = 6
# Fewer and smaller steps than the recipe's, for sections of two hundred tokens.
SETTINGS = {
    "steps": 150,
    "batch": 32,
    "evaluate_every": 75,
    "general_queries": 256,
    "self_study_questions": 400,
    "max_response_tokens": 32,
}
Apart = list[tuple[Context, Question]]


def text_of(words: int, seed: int) -> Document:
    """People told one after the other, as many as make so many words."""
    rng = random.Random(CORPORA + seed)
    while True:
        doc = document(rng, people_for(words, ATTRIBUTES), ATTRIBUTES)
        changes = sum(one.name != other.name for one, other in zip(doc.facts, doc.facts[1:], strict=False))
        if changes == len(doc.names) - 1:
            return doc


def by_section(doc: Document, sections: Sequence[Context]) -> list[Document]:
    """The facts that each section states whole."""
    told = [_letters(section.chat.tokenizer.decode(section.context_ids)) for section in sections]
    return [Document(tuple(fact for fact in doc.facts if _letters(fact.sentence) in text)) for text in told]


def _letters(text: str) -> str:
    return "".join(re.findall(r"\w", text))


def apart(doc: Document, parts: Sequence[Document], sections: Sequence[Context], rng: random.Random) -> Apart:
    """Comparisons of two people whose ages stand in different sections, and the two as one text."""
    where = {fact.name: number for number, part in enumerate(parts) for fact in part.facts if fact.attribute == "age"}
    found = []
    for question in comparisons(doc):
        one, other = sorted({where[name] for name in re.findall(r"\w+", question.text) if name in NAMES} | {-1})[-2:]
        if one >= 0:
            found.append((joined(sections[one], sections[other]), question))
    return sample_up_to(rng, found, COMPARED)


def answers(model, tokenizer, memory: lcc.Memory, questions: Sequence[Question]) -> float:
    """Share of exact answers of a memory."""
    return score(
        lcc.ask(model, tokenizer, memory, [q.text for q in questions], max_new_tokens=ANSWER_TOKENS), questions
    )


def answers_of_sections(model, asked: Apart) -> float:
    """Share of exact answers of the model that reads the two sections of each question."""
    request = [Request((question.text,), max_new_tokens=ANSWER_TOKENS) for _, question in asked]
    said = [Reader.of_context(model, text).answer([one])[0] for (text, _), one in zip(asked, request, strict=True)]
    return score(said, [question for _, question in asked])


def measure(window: int, windows: float, seed: int) -> Row:
    """One row: a text of so many windows."""
    model, tokenizer = load()
    model.config.max_position_embeddings = window
    doc, rng = text_of(int(windows * window), seed), random.Random(seed)
    chosen = make_settings(seed=seed, **SETTINGS)
    context = build_context(model, tokenizer, doc.text, chosen.ratio)
    sections = split_context(model, context, chosen.ratio, chosen.data).parts
    parts = by_section(doc, sections)
    before, began = _peak(), time.process_time()
    memory = lcc.compile(model, tokenizer, doc.text, seed=seed, **SETTINGS)
    seconds, peak = time.process_time() - began, _peak() - before
    some = sorted(rng.sample(range(len(sections)), min(ALONE, len(sections))))
    asked = {number: sample_up_to(rng, parts[number].questions(), ASKED // len(some)) for number in some}
    compared = apart(doc, parts, sections, rng)
    row = {
        "windows": windows,
        "window": window,
        "seed": seed,
        "text_tokens": len(context.context_ids),
        "sections": len(sections),
        "buffer_tokens": memory.buffer_tokens,
        "processor_seconds": round(seconds, 1),
        "peak_bytes": peak,
        "questions": sum(map(len, asked.values())),
        "together": answers(model, tokenizer, memory, [q for some in asked.values() for q in some]),
        "alone": _alone(model, tokenizer, sections, asked, seed),
        "certificate": {
            "reconstruction": memory.certificate["reconstruction"],
            "held_out": memory.certificate["held_out"],
            "score": (memory.certificate["questions"] or {}).get("score"),
        },
        "settings": SETTINGS,
    }
    if compared:
        row |= {
            "comparisons": {
                "count": len(compared),
                "memory": answers(model, tokenizer, memory, [question for _, question in compared]),
                "full_text": answers_of_sections(model, compared),
            }
        }
    return row | describe()


def _alone(model, tokenizer, sections: Sequence[Context], asked: dict[int, list[Question]], seed: int) -> float:
    total = 0.0
    for number, questions in asked.items():
        text = tokenizer.decode(sections[number].context_ids)
        memory = lcc.compile(model, tokenizer, text, seed=seed, certify=False, **SETTINGS)
        total += answers(model, tokenizer, memory, questions) * len(questions)
    return total / sum(map(len, asked.values()))


def _peak() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--windows", type=float, nargs="+", default=[1, 2, 4])
    parser.add_argument("--window", type=int, default=768)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--out", type=Path, default=OUT)
    arguments = parser.parse_args()
    sweep = Sweep(arguments.out, lambda row: (row["window"], row["windows"], row["seed"]))
    keys = [(arguments.window, windows, seed) for windows in arguments.windows for seed in arguments.seeds]
    for key in sweep.missing(keys):
        with multiprocessing.get_context("spawn").Pool(1, torch.set_num_threads, (arguments.threads,)) as pool:
            sweep.add(pool.apply(measure, key))


if __name__ == "__main__":
    main()
