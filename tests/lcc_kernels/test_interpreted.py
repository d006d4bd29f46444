"""Tests of the Triton kernels in Triton's interpreter, in processes of their own: Triton reads the switch at import."""

from __future__ import annotations

from importlib.util import find_spec

import pytest
import torch

from lcc_kernels.dispatch import interpreting
from tests.lcc_kernels.other_process import run_interpreted

pytest.importorskip("triton")

# The tests of these folders run on a GPU if there is one. A process takes five seconds to begin.
SLOW, QUICK = [["shared_prefix"], ["bottleneck"]], ["attach_kv"]
if torch.cuda.is_available():
    SLOW, QUICK = [], []
QUICK += ["linear_kl/test_linear_kl_triton.py", "test_far_apart.py", *["test_hub.py"] * bool(find_spec("kernels"))]


@pytest.mark.slow
@pytest.mark.skipif(interpreting(), reason="this is that process")
@pytest.mark.parametrize("tests", [*SLOW, QUICK], ids=" ".join)
def test_the_kernels_in_the_interpreter(tests):
    run_interpreted(*tests)
