"""The Triton kernels in Triton's interpreter: in a process of its own, since Triton reads the switch when imported."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from lcc_kernels.dispatch import interpreting

pytest.importorskip("triton")


@pytest.mark.slow
@pytest.mark.skipif(interpreting(), reason="this is that process")
def test_backends_in_the_interpreter():
    run = subprocess.run(
        [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", str(Path(__file__).parent), "-k", "triton"],
        env={**os.environ, "TRITON_INTERPRET": "1"},
        cwd=Path(__file__).parents[3],
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 0, run.stdout[-4000:]
    assert " passed" in run.stdout
