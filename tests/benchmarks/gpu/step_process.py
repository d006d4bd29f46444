"""Steps whose cases do what a case may do to its process; and that process: ``python -m <this> FOLDER CASE...``."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path

from benchmarks.gpu.case import TINY, Case, Refused
from benchmarks.gpu.rows import measure_missing
from benchmarks.gpu.steps import Step

STEP = "made_up"


def crash() -> dict:
    os.kill(os.getpid(), signal.SIGSEGV)
    return {}


def refuse() -> dict:
    raise Refused("not here")


def fail() -> dict:
    raise ZeroDivisionError("a bug")


BEHAVIOURS: dict[str, Callable[[], dict]] = {"crash": crash, "refuse": refuse, "fail": fail}


class MadeUp(Step):
    """A step of the cases in ``about``, parted by spaces: one whose name is no behaviour is measured."""

    def cases(self, scale):
        return [Case(name, BEHAVIOURS.get(name, lambda: {"seconds": 1.0})) for name in self.about.split()]


def made_up(*cases: str, seconds: int = 600) -> MadeUp:
    return MadeUp(STEP, " ".join(cases), seconds)


if __name__ == "__main__":
    folder, *names = sys.argv[1:]
    measure_missing(made_up(*names), TINY, Path(folder))
