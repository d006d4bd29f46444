"""How near ``lcc.plan`` comes to what ``lcc.compile`` then takes, on the embedded model.

    python -m benchmarks.compile.plan_accuracy --people 2 5 --steps 40
        --out benchmarks/results/compile/plan-accuracy.json

Ratios of expected to measured seconds, one document a line; other load on the machine moves both.
"""

from __future__ import annotations

import argparse
import json
import random
import time
from pathlib import Path

import lcc
from benchmarks.common.environment import describe
from benchmarks.common.results_file import write_rows
from lcc.embedded_model import load_embedded
from lcc.synthetic.people import document


def measure(loaded, people: int, steps: int, seed: int) -> dict:
    text = document(random.Random(seed), people=people, attributes=7).text
    settings = {"ratio": 8, "steps": steps, "seed": seed}
    plan = lcc.plan(*loaded, text, **settings)
    began = time.monotonic()
    memory = lcc.compile(*loaded, text, progress=False, certify=False, **settings)
    seconds = time.monotonic() - began
    stepping = memory.curve[-1]["seconds"]
    return {
        "text_tokens": plan.text_tokens,
        "steps": steps,
        "expected_step_seconds": plan.step_seconds,
        "step_seconds": round(stepping / steps, 4),
        "step_ratio": round(plan.step_seconds * steps / stepping, 2),
        "expected_seconds": plan.total_seconds,
        "seconds": round(seconds, 1),
        "ratio": round(plan.total_seconds / seconds, 2),
        "step_bytes": plan.step_bytes,
        "measured_step_bytes": plan.measured_step_bytes,
        **describe(),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--people", type=int, nargs="+", default=[2, 5])
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    loaded = load_embedded()
    rows = [measure(loaded, people, arguments.steps, arguments.seed) for people in arguments.people]
    print(json.dumps({"rows": rows}, indent=1))
    if arguments.out:
        write_rows(arguments.out, rows)


if __name__ == "__main__":
    main()
