"""How well keys and values are remembered when writes are learned through, and when their gradient is a constant.

    python -m benchmarks.gradmem --out rows.json [--modes second first] [--writes 1 2] [--seeds 0] [--seconds 5400]
    python -m benchmarks.gradmem --smoke --out smoke.json

The paper trains for up to a million steps at a learning rate of 1e-4. This has a larger one, and begins with one pair.
A stage ends when ``PASSED`` of the contexts are answered, or its share of the arm's seconds is used up. Both kinds of
gradient get the same seconds, in which the cheaper one takes more steps. Seconds are those of the processor, so that
other work on the machine costs an arm nothing. Rows are written at each measurement; their seconds are the arm's.
A second call goes on where a killed one stopped.
"""

from __future__ import annotations

import argparse
import itertools
import json
import time
from dataclasses import asdict
from operator import itemgetter
from pathlib import Path

import torch

from benchmarks.common.environment import describe
from benchmarks.common.sweep import Sweep
from benchmarks.gradmem.learner import Arm, Learner

# Pairs of each stage, and the share of the seconds by whose end it ends at the latest.
STAGES = {1: 0.1, 2: 0.25, 4: 0.55, 8: 1.0}
PASSED = 0.97
KEY = itemgetter("grad_mode", "writes", "rate", "seed", "pairs")


def run(arm: Arm, stages: dict[int, float], seconds: float, every: int, samples: int, sweep: Sweep) -> None:
    """Train one arm through the stages, or on from where a killed run stopped."""
    learner, where = Learner(arm), describe()
    state = sweep.path.with_name(f"{sweep.path.name}.{arm.grad_mode}-{arm.writes}-{arm.seed}.unfinished")
    told = learner.load(state) if state.exists() else {"curve": [], "cpu_seconds": 0.0, "seconds": 0.0, "stage": 0}
    began, used = time.monotonic() - told["seconds"], time.process_time() - told["cpu_seconds"]
    while told["stage"] < len(stages):
        pairs = list(stages)[told["stage"]]
        losses = [learner.step(pairs) for _ in range(every)]
        exact = learner.exact(pairs, samples)
        told |= {"cpu_seconds": time.process_time() - used, "seconds": time.monotonic() - began}
        point = {"pairs": pairs, "step": learner.steps, "loss": sum(losses) / every, "exact": exact}
        told["curve"].append(point | {name: round(told[name], 1) for name in ("cpu_seconds", "seconds")})
        over = told["cpu_seconds"] >= stages[pairs] * seconds or (exact >= PASSED and pairs != max(stages))
        print(json.dumps({"grad_mode": arm.grad_mode, "writes": arm.writes} | told["curve"][-1]), flush=True)
        curve = [measured for measured in told["curve"] if measured["pairs"] == pairs]
        row = asdict(arm) | told["curve"][-1] | {"samples": samples, "steps": every * len(curve), "over": over}
        row |= {"curriculum": list(stages), "passed": PASSED, "threads": torch.get_num_threads()}
        sweep.add(row | {"curve": curve} | where)
        told["stage"] += over
        learner.save(state, told)
    state.unlink()


def main(given: list[str] | None = None) -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--modes", nargs="+", choices=("second", "first", "none"), default=["second", "first"])
    parser.add_argument("--writes", nargs="+", type=int, default=[1, 2])
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    parser.add_argument("--rate", type=float, default=Arm.rate, help="step size of a write")
    parser.add_argument("--learning-rate", type=float, default=Arm.learning_rate)
    parser.add_argument("--text-weight", type=float, default=Arm.text_weight)
    parser.add_argument("--seconds", type=float, default=5400, help="of the processor, for each arm")
    parser.add_argument("--every", type=int, default=100, help="steps between two measurements")
    parser.add_argument("--samples", type=int, default=512, help="contexts of a measurement")
    parser.add_argument("--smoke", action="store_true", help="a few steps of one and two pairs")
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args(given)
    stages = {1: 0.5, 2: 1.0} if arguments.smoke else STAGES
    every, samples, seconds = (2, 16, 1.0) if arguments.smoke else (
        arguments.every, arguments.samples, arguments.seconds
    )  # fmt: skip
    sweep = Sweep(arguments.out, KEY)
    done = {KEY(row) for row in sweep.rows if row["over"]}
    for writes, seed, mode in itertools.product(arguments.writes, arguments.seeds, arguments.modes):
        arm = Arm(mode, writes, seed, arguments.rate, arguments.text_weight, arguments.learning_rate)
        if KEY(asdict(arm) | {"pairs": max(stages)}) not in done:
            run(arm, stages, seconds, every, samples, sweep)


if __name__ == "__main__":
    main()
