"""Where each figure was measured, in its ``extra_info``."""

from __future__ import annotations

import subprocess
from importlib.metadata import PackageNotFoundError, version

import pytest
import torch

from benchmarks.environment import describe


@pytest.fixture(scope="session")
def _environment() -> dict[str, str]:
    return {**describe(), "triton": _triton(), "driver": _driver()}


@pytest.fixture(autouse=True)
def _record_environment(benchmark, _environment: dict[str, str]):
    yield
    benchmark.extra_info.update(_environment)


def _triton() -> str:
    try:
        return version("triton")
    except PackageNotFoundError:
        return "none"


def _driver() -> str:
    if not torch.cuda.is_available():
        return "none"
    query = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        return subprocess.run(query, capture_output=True, text=True, check=True).stdout.splitlines()[0]
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
