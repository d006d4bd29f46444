"""The ten-minute run on a GPU: is every kernel right, and how near is it to what the machine can do.

    PYTHONPATH=.:python python -m benchmarks.gpu --out DIR
    PYTHONPATH=.:python python -m benchmarks.report DIR -o PAGE

Each step runs in a process of its own, which is killed when its seconds are over. Rows are written to DIR/gpu.json
after every case. A second call measures what is missing, and what failed. Nothing has to be installed and no network
is needed. LCC_KERNELS_JIT=1 lets the first step build the CUDA library, where nvcc is; LCC_COMMIT names the commit of
a tree that came without its .git.

Without a GPU, and with --preflight, the kernels are compiled for sm_90 and every case is run at a tiny size on the CPU:
before a GPU is rented, and in CI. No time is taken there.
"""

from __future__ import annotations

import argparse
import signal
import sys
from collections.abc import Sequence
from pathlib import Path

import torch

from .case import FULL, TINY
from .preflight import preflight, show_plan
from .rows import FILE, forget_failures, is_wrong, measure_missing, say_wrong, sweep
from .runner import BROKEN, DONE, run_steps
from .steps import SECONDS, named


def parse(words: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.gpu", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", metavar="DIR", type=Path, default=Path("gpu-run"), help="where rows are, and go to")
    parser.add_argument("--steps", metavar="STEP", nargs="+", default=[], help="these alone")
    parser.add_argument("--seconds", type=float, default=SECONDS, help="for all steps together")
    parser.add_argument("--list", action="store_true", help="say what would run, and nothing else")
    parser.add_argument("--preflight", action="store_true", help="what can be tried without a GPU")
    parser.add_argument("--quick", action="store_true", help="compile each kernel in one configuration; for CI")
    parser.add_argument("--measure", metavar="STEP", nargs="+", help=argparse.SUPPRESS)  # what a step's process does
    parser.add_argument("--tiny", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args(words)
    try:
        options.chosen = named(options.measure or options.steps)
    except ValueError as error:
        parser.error(str(error))
    return options


def main(words: Sequence[str] | None = None) -> int:
    """The command line; its exit code."""
    options = parse(words)
    if options.measure:
        scale = TINY if options.tiny else FULL
        alive = all(measure_missing(step, scale, options.out) for step in options.chosen)
        return DONE if alive else BROKEN
    if options.list:
        show_plan(options.chosen)
        return 0
    if options.preflight or not torch.cuda.is_available():
        print("Nothing is measured: " + ("as asked" if options.preflight else "no CUDA GPU is here"))
        return 0 if preflight(options.chosen, options.quick) else 1
    forget_failures(options.out, options.chosen)
    run_steps(options.chosen, options.out, options.seconds)
    return _conclude(options.out)


def _conclude(folder: Path) -> int:
    """Say what is wrong; 1 if anything is."""
    rows = sweep(folder).rows
    wrong = list(filter(is_wrong, rows))
    say_wrong(wrong)
    print(f"{folder / FILE}: {len(rows)} rows, {len(wrong)} of them wrong")
    print(f"python -m benchmarks.report {folder} -o PAGE")
    return 1 if wrong else 0


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))  # so that a step's process ends as well
    sys.exit(main())
