"""A real model's memory that takes a second text in: what is left of both texts, beside both compiled at once.

    python -m benchmarks.real.update --model DIR --out benchmarks/results/real/update.json

``growing`` begins with a memory of the first story at the ratio, and adds buffer tokens for the second one.
``constant`` begins with the first story in as many tokens as both get, and keeps that size. ``at once`` compiles both
stories as one text. All three end with about as many tokens. ``first`` is the first story's memory before it grew. A
row is a way and a story whose questions are asked; KL and equal first choices are against the model that reads both.
A second call measures only what is missing, and a memory whose compilation was killed goes on.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from operator import itemgetter
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel, PreTrainedTokenizerBase

import lcc
from benchmarks.common.environment import describe
from benchmarks.common.results_file import Row
from benchmarks.common.sweep import Sweep
from lcc.cli.loading import load_model
from lcc.cli.options import parse_settings
from lcc.evaluation.stories import Story, load_story
from lcc.inference.reader import Reader
from lcc.text.chat_format import ChatFormat
from lcc.utils.progress import Reporter

from .bench import CHOSEN, FULL_TEXT, NO_TEXT
from .measures import Exam

FIRST, WIDE, GROWING, CONSTANT, ONCE = "first", "first, wide", "growing", "constant", "at once"
WAYS = (FULL_TEXT, NO_TEXT, ONCE, FIRST, GROWING, CONSTANT)
COLUMNS = ("right", "kl", "same")


@dataclass(frozen=True)
class Updates:
    """Two stories, and the ways of holding them.

    Attributes:
        folder: where the memories of these two stories are kept.
        ratio: text tokens a buffer token in the end.
        settings: of every compilation.
    """

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    stories: tuple[Story, Story]
    folder: Path
    ratio: float
    settings: dict[str, Any]
    reporter: Reporter

    def rows(self, way: str) -> Iterator[Row]:
        """A row for each story's questions."""
        began = time.monotonic()
        reader = self._reader(way)
        seconds = round(time.monotonic() - began, 1)
        tokens = len(reader.visible) - len(self._chat.prefix_ids)
        for story, exam in zip(self.stories, self._exams, strict=True):
            yield {
                "way": way, "story": story.name, "ratio": self.ratio, "tokens": tokens, "seconds": seconds,
                **exam.measure(reader), **describe(),
            }  # fmt: skip

    @cached_property
    def _chat(self) -> ChatFormat:
        return ChatFormat.of(self.tokenizer)

    @cached_property
    def _both(self) -> str:
        return "\n\n".join(story.text for story in self.stories)

    @cached_property
    def _exams(self) -> list[Exam]:
        """Each story's, as the model answers that reads both."""
        reader = Reader.of_text(self.model, self._chat, self._both)
        return [Exam.of(story, reader) for story in self.stories]

    def _reader(self, way: str) -> Reader:
        if way in (FULL_TEXT, NO_TEXT):
            return Reader.of_text(self.model, self._chat, self._both if way == FULL_TEXT else "")
        return Reader.of_memory(self.model, self._chat, self._memory(way))

    def _memory(self, way: str) -> lcc.Memory:
        """The memory of a way, made now or by an earlier call."""
        path = self.folder / f"{way.replace(', ', '-').replace(' ', '-')}.lcc.safetensors"
        if not path.exists():
            self._make(way, path).save(path)
        return lcc.Memory.load(path)

    def _make(self, way: str, path: Path) -> lcc.Memory:
        first, second = (story.text for story in self.stories)
        options = self.settings | {
            "compiler": "direct_kv", "certify": False, "checkpoint": path.with_suffix(".checkpoint"),
            "checkpoint_every": 5, "progress": self.reporter, "surrogates": self.folder / "surrogates",
        }  # fmt: skip
        if way == ONCE:
            return lcc.compile(self.model, self.tokenizer, self._both, ratio=self.ratio, **options)
        if way in (FIRST, WIDE):
            ratio = self.ratio if way == FIRST else max(1.0, self.ratio * self._share)
            return lcc.compile(self.model, self.tokenizer, first, ratio=ratio, **options)
        before = self._memory(FIRST if way == GROWING else WIDE)
        return lcc.update(self.model, self.tokenizer, before, second, growing=way == GROWING, **options)

    @property
    def _share(self) -> float:
        """The first story's of both."""
        tokens = [len(self._chat.ids(story.text)) for story in self.stories]
        return tokens[0] / sum(tokens)


def summary(rows: list[Row]) -> str:
    """Markdown: a line a way, each story's figures behind one another."""
    stories = list(dict.fromkeys(row["story"] for row in rows))
    heads = [f"{column}, {story}" for story in stories for column in COLUMNS]
    lines = [f"| | tokens | seconds | {' | '.join(heads)} |", "|---" * (3 + len(heads)) + "|"]
    for way in dict.fromkeys(row["way"] for row in rows):
        own = {row["story"]: row for row in rows if row["way"] == way}
        cells = [f"{own[story][column]:.3f}" for story in stories if story in own for column in COLUMNS]
        one = next(iter(own.values()))
        lines.append(f"| {way} | {one['tokens']} | {one['seconds']:.0f} | {' | '.join(cells)} |")
    return "\n".join(lines)


def main(given: list[str] | None = None) -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", help="folder or GGUF file; the embedded model by default")
    parser.add_argument("--stories", nargs=2, default=["council_minutes", "beekeeper_letters"], metavar="NAME")
    parser.add_argument("--ways", nargs="+", choices=WAYS, metavar="WAY", default=list(WAYS))
    parser.add_argument("--ratio", type=float, default=8.0)
    parser.add_argument("--recipe", default="fast")
    parser.add_argument("--set", nargs="*", default=[], dest="settings", metavar="NAME=VALUE", help="for all ways")
    parser.add_argument("--folder", type=Path, default=Path("real-update"), help="where memories are kept")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/real/update.json"))
    arguments = parser.parse_args(given)
    arguments.folder.mkdir(parents=True, exist_ok=True)
    first, second = map(load_story, arguments.stories)
    settings = {"recipe": arguments.recipe, **CHOSEN["direct_kv"], **parse_settings(arguments.settings)}
    sweep = Sweep(arguments.out, itemgetter("way"))
    with Reporter() as reporter:
        updates = Updates(
            *load_model(arguments.model), (first, second), arguments.folder, arguments.ratio, settings, reporter
        )
        for way in sweep.missing(arguments.ways):
            sweep.replace(way, updates.rows(way))
    print(summary(sweep.rows))


if __name__ == "__main__":
    main()
