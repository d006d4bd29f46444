"""The rows of a run: one file, written after each case, and what of it is missing."""

from __future__ import annotations

import os
import traceback
from collections.abc import Iterable, Sequence
from operator import itemgetter
from pathlib import Path

import torch

from benchmarks.common.environment import describe
from benchmarks.common.results_file import Row
from benchmarks.common.sweep import Sweep
from lcc_kernels import BackendUnavailableError

from .case import Case, Refused, Scale
from .steps import Step

KIND, FILE = "gpu", "gpu.json"
UNFINISHED = "killed while it ran, or the process crashed"


def sweep(folder: Path) -> Sweep[tuple[str, str]]:
    """The rows of the run in ``folder``."""
    return Sweep(folder / FILE, itemgetter("step", "case"), kind=KIND)


def is_wrong(row: Row) -> bool:
    """Whether a case failed, or was measured and is not what it must be."""
    return "failed" in row or not row.get("passed", True)


def forget_failures(folder: Path, steps: Sequence[Step]) -> None:
    """Leave out the rows of cases of ``steps`` that failed, so that they are missing again."""
    rows, names = sweep(folder), {step.name for step in steps}
    for row in rows.rows:
        if "failed" in row and row["step"] in names:
            rows.replace(rows.key(row), [])


def measure_missing(step: Step, scale: Scale, folder: Path) -> bool:
    """Measure the cases of ``step`` that have no row, one after the other, as long as this process's parent lives.

    Returns:
        False where a case broke the process's GPU, in which nothing can run any more.
    """
    rows, cases = sweep(folder), {(step.name, case.name): case for case in step.cases(scale)}
    where, parent = describe(), os.getppid()
    for key in rows.missing(cases):
        if os.getppid() != parent:
            return True
        row = dict(zip(("step", "case"), key, strict=True))
        rows.add(row | {"failed": UNFINISHED} | where)
        figures = _figures(cases[key])
        rows.add(row | figures | where)
        print(f"{step.name}: {key[1]}: {summary(figures)}", flush=True)
        if not _alive(scale.device):
            return False
    return True


def _figures(case: Case) -> Row:
    try:
        return case.measure()
    except (Refused, BackendUnavailableError) as error:
        return {"refused": str(error)}
    except Exception as error:
        # A run of many cases goes on whatever one of them, often another library's, does.
        traceback.print_exc()
        return {"failed": f"{type(error).__name__}: {error}"[:500]}


def _alive(device: str) -> bool:
    """Whether the device still works: an illegal access breaks it for the rest of the process."""
    if device != "cuda":
        return True
    try:
        torch.cuda.synchronize()
        torch.cuda.empty_cache()
    except RuntimeError:
        return False
    return True


def say_wrong(rows: Iterable[Row]) -> None:
    """Print a line for each of ``rows``."""
    for row in rows:
        print(f"WRONG: {row['step']}: {row['case']}: {row.get('failed') or row}", flush=True)


def summary(row: Row) -> str:
    """The figures of a row in a line, without what is nested."""
    return ", ".join(
        f"{name} {value:.4g}" if isinstance(value, float) else f"{name} {value}"
        for name, value in row.items()
        if not isinstance(value, (dict, list))
    )
