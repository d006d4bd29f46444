"""Where each figure was measured, in its ``extra_info``."""

from __future__ import annotations

import pytest

from benchmarks.common.environment import describe


@pytest.fixture(scope="session")
def _environment() -> dict[str, str]:
    return describe()


@pytest.fixture(autouse=True)
def _record_environment(benchmark, _environment: dict[str, str]):
    yield
    benchmark.extra_info.update(_environment)
