"""Real texts: what memories keep of the suite ``stories`` with a real model, beside the full text and nothing.

    python -m benchmarks.real --model DIR --ratios 4 8 16 --out benchmarks/results/real/stories.json

One row a story, method and ratio. A second call measures only what is missing, and a memory whose compilation was
killed goes on. ``--stories held_out`` takes the six texts that no setting was chosen on.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

import lcc
from benchmarks.common.environment import describe
from benchmarks.common.sweep import Sweep
from lcc.cli.loading import load_model
from lcc.cli.options import parse_settings
from lcc.evaluation.stories import HELD_OUT, NAMES, SEARCHED, Story, load_story
from lcc.inference.reader import Reader
from lcc.modeling.prefill import prefill
from lcc.pipeline.compile_to import compile_to, memory_output
from lcc.pipeline.options import CompileOptions, Run
from lcc.text.chat_format import ChatFormat
from lcc.utils.progress import Reporter

from .measures import Exam

Row = dict[str, Any]
SETS = {"all": NAMES, "searched": SEARCHED, "held_out": HELD_OUT}
# Methods that need no compilation; every other one is a compiler.
FULL_TEXT, NO_TEXT, FIRST_TOKENS = "full_text", "no_text", "first_tokens"
UNTRAINED = (FULL_TEXT, NO_TEXT, FIRST_TOKENS)


class Bench:
    """The model, the settings of all compilations, and where memories and distillation data are kept."""

    def __init__(self, model: str | None, folder: Path, recipe: str, settings: dict[str, Any], reporter: Reporter):
        self.model, self.tokenizer = load_model(model)
        self.chat = ChatFormat.of(self.tokenizer)
        self.folder, self.recipe, self.settings, self.reporter = folder, recipe, settings, reporter
        folder.mkdir(parents=True, exist_ok=True)

    def reader(self, story: Story, method: str, ratio: float) -> tuple[Reader, Row]:
        """What answers in the method's place, and what it cost."""
        if method == FULL_TEXT:
            return Reader.of_text(self.model, self.chat, story.text), {}
        if method == NO_TEXT:
            return Reader.of_text(self.model, self.chat, ""), {}
        if method == FIRST_TOKENS:
            ids = self.chat.ids(story.text)
            with torch.no_grad():
                kept = [*self.chat.prefix_ids, *ids[: -(-len(ids) // int(ratio))]]
                return Reader(self.model, self.chat, prefill(self.model, kept)), {}
        memory, seconds = self.memory(story, method, ratio)
        cost = {"seconds": seconds, "curve": memory.curve, "asking": memory.asking, "settings": memory.settings}
        return Reader.of_memory(self.model, self.chat, memory), cost

    def memory(self, story: Story, compiler: str, ratio: float) -> tuple[lcc.Memory, float]:
        """The story's memory, compiled now or by an earlier call."""
        path = self.folder / f"{story.name}.{compiler}.{ratio:g}.lcc.safetensors"
        output, began = memory_output(path, story.text), time.monotonic()
        options = CompileOptions.of(recipe=self.recipe, compiler=compiler, ratio=ratio, certify=False, **self.settings)
        shared = self.folder / "surrogates"
        compile_to(
            self.model, self.tokenizer, story.text, output, options, Run(shared_data=shared),
            self.reporter,
        )  # fmt: skip
        return lcc.Memory.load(path), round(time.monotonic() - began, 1)

    def rows(self, story: Story, keys: list[tuple[str, str, float | None]]) -> Iterator[Row]:
        """A row for each key of the story."""
        exam = Exam(story, Reader.of_text(self.model, self.chat, story.text))
        for name, method, ratio in keys:
            reader, cost = self.reader(story, method, ratio or 1)
            yield {
                "story": name, "kind": story.kind, "method": method, "ratio": ratio, "recipe": self.recipe,
                "tokens": len(self.chat.ids(story.text)), "bytes": reader.visible.nbytes,
                **exam.measure(reader), **cost, **describe(),
            }  # fmt: skip


def key_of(row: Row) -> tuple[str, str, float | None]:
    return row["story"], row["method"], row["ratio"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", help="folder or GGUF file; the embedded model by default")
    parser.add_argument("--stories", nargs="+", default=["held_out"], help=f"names, or {', '.join(SETS)}")
    parser.add_argument("--methods", nargs="+", default=[*UNTRAINED, "lcc", "direct_kv"])
    parser.add_argument("--ratios", nargs="+", type=float, default=[8.0])
    parser.add_argument("--recipe", default="default")
    parser.add_argument("--set", nargs="*", default=[], dest="settings", metavar="NAME=VALUE")
    parser.add_argument("--folder", type=Path, default=Path("real"), help="where memories and their data are kept")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/real/stories.json"))
    arguments = parser.parse_args()
    names = [name for given in arguments.stories for name in SETS.get(given, (given,))]
    sweep = Sweep(arguments.out, key_of)
    with Reporter() as reporter:
        bench = Bench(arguments.model, arguments.folder, arguments.recipe, parse_settings(arguments.settings), reporter)
        for name in names:
            keys = [
                (name, method, ratio)
                for method in arguments.methods
                for ratio in ([None] if method in (FULL_TEXT, NO_TEXT) else arguments.ratios)
            ]
            for row in bench.rows(load_story(name), sweep.missing(keys)):
                sweep.add(row)
                print(*(f"{row[column]}" for column in ("story", "method", "ratio", "right", "kl", "same")), flush=True)


if __name__ == "__main__":
    main()
