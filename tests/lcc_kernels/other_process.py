"""Triton interprets or compiles for a whole process: tests of the other way run in a process of their own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def run_interpreted(*tests: str) -> None:
    """Run those of these tests, named from this folder, that are of Triton, in Triton's interpreter."""
    paths = [f"tests/lcc_kernels/{name}" for name in tests]
    options = ["-rp", "-p", "no:cacheprovider", "--confcutdir=tests/lcc_kernels", "-k", "triton"]
    command = [sys.executable, "-m", "pytest", *options, *paths]
    run = subprocess.run(
        command, env={**os.environ, "TRITON_INTERPRET": "1"}, cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert run.returncode == 0, run.stdout[-4000:]
    for path in paths:
        assert f"\nPASSED {path}" in run.stdout


def run_compiled(module: str, recorded: dict, configs: Sequence[str], cache: Path) -> dict[str, dict]:
    """What ``module``, an op's ``aot``, finds for these configurations with an empty Triton cache.

    It must be what is ``recorded`` if that was written by the same Triton.
    """
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    environment |= {"PYTHONPATH": str(ROOT), "TRITON_CACHE_DIR": str(cache)}
    command = [sys.executable, "-m", module, "--select", *configs]
    run = subprocess.run(command, env=environment, cwd=ROOT, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr[-4000:]
    found = json.loads(run.stdout)
    version = found.pop("triton")
    assert found.keys() == set(configs)
    if version == recorded["triton"]:
        for config, needs in found.items():
            assert needs == recorded[config], f"{config} changed: run python -m {module} --write"
    return found


def quick_and_rest(quick: list[str], rest: list[str], takes: str) -> pytest.MarkDecorator:
    """Parametrises ``configs``: those that every run compiles, and those that only CI does, as it ``takes`` long."""
    in_ci = pytest.mark.skipif("CI" not in os.environ, reason=f"{takes} of compilation: in CI")
    return pytest.mark.parametrize("configs", [quick, pytest.param(rest, marks=in_ci)], ids=["quick", "rest"])
