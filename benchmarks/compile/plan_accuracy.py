"""How near ``lcc.plan`` comes to what ``lcc.compile`` then takes.

    python -m benchmarks.compile.plan_accuracy --set ratio=8 steps=40
        --out benchmarks/results/compile/plan-accuracy.json
    python -m benchmarks.compile.plan_accuracy --model DIR --stories lighthouse --recipe fast --set ratio=8 steps=20
        --out benchmarks/results/compile/plan-accuracy-real.json

Ratios of expected to measured seconds, one text a line; other load on the machine moves both.
"""

from __future__ import annotations

import argparse
import json
import random
import time
from pathlib import Path
from typing import Any

import lcc
from benchmarks.common.environment import describe
from benchmarks.common.results_file import write_rows
from lcc.cli.loading import load_model
from lcc.cli.options import parse_settings
from lcc.evaluation.stories import load_story
from lcc.synthetic.people import document


def measure(loaded: tuple, name: str, text: str, recipe: str, settings: dict[str, Any]) -> dict[str, Any]:
    """One row."""
    began = time.monotonic()
    plan = lcc.plan(*loaded, text, recipe=recipe, **settings)
    planning = time.monotonic() - began
    began = time.monotonic()
    memory = lcc.compile(*loaded, text, recipe=recipe, certify=False, **settings)
    seconds = time.monotonic() - began
    stepping = memory.curve[-1]["seconds"]
    before = seconds - stepping
    return {
        "text": name,
        "text_tokens": plan.text_tokens,
        "recipe": recipe,
        "steps": plan.steps,
        "settings": settings,
        "planning_seconds": round(planning, 1),
        "expected_step_seconds": plan.step_seconds,
        "step_seconds": round(stepping / plan.steps, 4),
        "step_ratio": round(plan.step_seconds * plan.steps / stepping, 2),
        "expected_teacher_seconds": plan.teacher_seconds,
        "other_seconds": round(before, 1),
        "teacher_ratio": round(plan.teacher_seconds / before, 2),
        "expected_seconds": plan.total_seconds,
        "seconds": round(seconds, 1),
        "ratio": round(plan.total_seconds / seconds, 2),
        "step_bytes": plan.step_bytes,
        "measured_step_bytes": plan.measured_step_bytes,
        **describe(),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", help="folder or GGUF file; the embedded model by default")
    parser.add_argument(
        "--people",
        type=int,
        nargs="*",
        default=[],
        help="generated documents, so many people in each; 2 and 5 if no story is named",
    )
    parser.add_argument("--stories", nargs="*", default=[], help="of the suite stories")
    parser.add_argument("--recipe", default="default")
    parser.add_argument("--set", nargs="*", default=[], dest="settings", metavar="NAME=VALUE")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    people = arguments.people or ([] if arguments.stories else [2, 5])
    texts = {str(count): document(random.Random(arguments.seed), count, 7).text for count in people}
    texts |= {name: load_story(name).text for name in arguments.stories}
    loaded, settings = load_model(arguments.model), parse_settings(arguments.settings) | {"seed": arguments.seed}
    rows = [measure(loaded, name, text, arguments.recipe, settings) for name, text in texts.items()]
    print(json.dumps({"rows": rows}, indent=1))
    if arguments.out:
        write_rows(arguments.out, rows)


if __name__ == "__main__":
    main()
