"""Real texts: what memories and their peers keep of the suite ``stories`` with a real model.

    python -m benchmarks.real --model DIR --ratios 4 8 16 --out benchmarks/results/real/stories.json

One row a story, method and ratio. A second call measures only what is missing, and a memory whose compilation was
killed goes on. ``--stories held_out`` takes the six texts that no setting was chosen on; several names joined by ``+``
are one long text. The methods of kvpress run in
an environment of their own: see ``benchmarks/constraints-kvpress.txt``.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator, Sequence
from pathlib import Path

from benchmarks.common.environment import describe
from benchmarks.common.sweep import Sweep
from benchmarks.fidelity.methods import Options
from lcc.cli.loading import load_model
from lcc.cli.options import parse_settings
from lcc.evaluation.stories import HELD_OUT, NAMES, SEARCHED, Story, load_story
from lcc.utils.progress import Reporter

from .bench import FULL_TEXT, NO_TEXT, Bench, Row
from .measures import Exam
from .report import KIND

SETS = {"all": NAMES, "searched": SEARCHED, "held_out": HELD_OUT}
# In the order of the table; those of kvpress wait for their environment.
METHODS = (FULL_TEXT, NO_TEXT, "first_tokens", "lcc", "direct_kv", "attention_matching")
Key = tuple[str, str, float | None]


def key_of(row: Row) -> Key:
    """Tells a row from the others."""
    return row["story"], row["method"], row["ratio"]


def rows(bench: Bench, story: Story, keys: Sequence[Key]) -> Iterator[Row]:
    """A row for each key of the story."""
    exam = Exam.of(story, bench.full_text(story))
    for name, method, ratio in keys:
        with bench.holding(story, method, ratio) as (held, said):
            yield {
                "story": name, "kind": story.kind, "method": method, "ratio": ratio, "recipe": bench.recipe,
                "tokens": len(bench.chat.ids(story.text)), "bytes": held.nbytes, "seconds": round(held.seconds, 1),
                **exam.measure(held.reader), **said, **describe(),
            }  # fmt: skip


def story_of(name: str) -> Story:
    """One of the suite's; or several as one long text, their names joined by ``+``."""
    some = [load_story(one) for one in name.split("+")]
    if len(some) == 1:
        return some[0]
    text = "\n\n".join(one.text for one in some)
    return Story(name, "collection", text, tuple(question for one in some for question in one.questions))


def _own(given: Sequence[str]) -> dict[str, Options]:
    """``METHOD.NAME=JSON`` by method."""
    own: dict[str, Options] = {}
    for one in given:
        name, _, value = one.partition("=")
        method, _, option = name.partition(".")
        own.setdefault(method, {})[option] = json.loads(value)
    return own


def main(given: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", help="folder or GGUF file; the embedded model by default")
    parser.add_argument("--stories", nargs="+", default=["held_out"], help=f"names, or {', '.join(SETS)}")
    parser.add_argument("--methods", nargs="+", default=list(METHODS))
    parser.add_argument("--ratios", nargs="+", type=float, default=[8.0])
    parser.add_argument("--recipe", default="fast")
    parser.add_argument("--set", nargs="*", default=[], dest="settings", metavar="NAME=VALUE", help="for all methods")
    parser.add_argument("--own", nargs="*", default=[], metavar="METHOD.NAME=JSON", help="for one method")
    parser.add_argument("--folder", type=Path, default=Path("real"), help="where memories and their data are kept")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/real/stories.json"))
    arguments = parser.parse_args(given)
    names = [name for one in arguments.stories for name in SETS.get(one, (one,))]
    sweep = Sweep(arguments.out, key_of, kind=KIND)
    arguments.folder.mkdir(parents=True, exist_ok=True)
    with Reporter() as reporter:
        bench = Bench(
            *load_model(arguments.model), arguments.folder, arguments.recipe, parse_settings(arguments.settings),
            _own(arguments.own), reporter,
        )  # fmt: skip
        for name in names:
            keys = [
                (name, method, ratio)
                for method in arguments.methods
                for ratio in ([None] if method in (FULL_TEXT, NO_TEXT) else arguments.ratios)
            ]
            for row in rows(bench, story_of(name), sweep.missing(keys)):
                sweep.add(row)
                print(*(f"{row[column]}" for column in ("story", "method", "ratio", "right", "kl", "same")), flush=True)


if __name__ == "__main__":
    main()
