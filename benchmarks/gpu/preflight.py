"""What can be known of a run without a GPU: kernels compile for sm_90, cases are built, and tiny ones run."""

from __future__ import annotations

import json
import os
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from .case import FULL
from .rows import is_wrong, say_wrong, sweep
from .runner import run_within
from .steps import SECONDS, Step

ROOT = Path(__file__).parents[2]
# An op's table of what its kernels need, beside the module ``aot`` that compiles them: its keys begin with the GPU's.
TABLES = "tests/lcc_kernels/*/resources.json"
ARCHITECTURE = "90"
LIMIT = 600  # seconds of a process


def preflight(steps: Sequence[Step], quick: bool) -> bool:
    """Say what would run, compile every kernel for sm_90, run every tiny case.

    Args:
        quick: compile each op's kernels in one configuration, and run no tiny cases of slow steps.

    Returns:
        Whether all that was tried went well.
    """
    show_plan(steps)
    print("", flush=True)
    sound = [compile_kernels(table, quick) for table in sorted(ROOT.glob(TABLES))]
    with tempfile.TemporaryDirectory() as folder:
        for interpreted in (True, False):
            chosen = [step.name for step in steps if step.interpreted == interpreted and not (quick and step.slow)]
            if chosen:
                sound.append(_run_tiny(chosen, interpreted, Path(folder)))
        rows = sweep(Path(folder)).rows
    wrong, refused = list(filter(is_wrong, rows)), sum("refused" in row for row in rows)
    print(f"\npreflight: {len(rows)} tiny cases, {refused} refused here, {len(wrong)} wrong", flush=True)
    say_wrong(wrong)
    return all(sound) and not wrong


def show_plan(steps: Sequence[Step]) -> None:
    """Print each step with its cases and the seconds that it may take on a GPU."""
    print(f"{len(steps)} steps, {SECONDS} s at most when all are run:")
    for step in steps:
        cases = step.cases(FULL)
        print(f"  {step.name:14} {step.seconds:4} s  {len(cases):3} cases: {step.about}")


def compile_kernels(table: Path, quick: bool) -> bool:
    """Compile an op's kernels for sm_90 ahead of time, in a process of its own."""
    configurations = [name for name in json.loads(table.read_text("utf-8")) if name.split(":")[0] == ARCHITECTURE]
    if quick:
        configurations = configurations[:1]
    module = ".".join([*table.parent.relative_to(ROOT).parts, "aot"])
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    with tempfile.TemporaryDirectory() as cache:
        environment |= {"TRITON_CACHE_DIR": cache}
        code = run_within([sys.executable, "-m", module, "--select", *configurations], LIMIT, environment)
    print(
        f"{module}: {len(configurations)} configurations of sm_{ARCHITECTURE}: {'compiled' if code == 0 else code}",
        flush=True,
    )
    return code == 0


def _run_tiny(names: Sequence[str], interpreted: bool, folder: Path) -> bool:
    environment = os.environ | {"CUDA_VISIBLE_DEVICES": "", "TRITON_INTERPRET": "1" if interpreted else "0"}
    command = [sys.executable, "-m", __package__, "--out", str(folder), "--tiny", "--measure", *names]
    return run_within(command, LIMIT, environment) == 0
