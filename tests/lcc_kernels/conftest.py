"""Triton's interpreter as strict as a GPU."""

from __future__ import annotations

import numpy
import pytest

from lcc_kernels.dispatch import interpreting


@pytest.fixture(autouse=True)
def _a_gpu_drops_nan(monkeypatch):
    """max and min of a number and a NaN are the number, as PTX has it; the interpreter's are the NaN."""
    if interpreting():
        from triton.runtime.interpreter import InterpreterBuilder

        for name, function in (("create_maxnumf", numpy.fmax), ("create_minnumf", numpy.fmin)):
            operation = lambda self, lhs, rhs, function=function: self.binary_op(lhs, rhs, function)  # noqa: E731
            monkeypatch.setattr(InterpreterBuilder, name, operation)


@pytest.fixture(autouse=True)
def _a_gpu_rounds_once(monkeypatch):
    """A fused multiply-add rounds its sum alone; the interpreter's rounds the product too."""
    if interpreting():
        from triton.runtime.interpreter import InterpreterBuilder, TensorHandle

        def fma(self, x, y, z):
            exact = x.data.astype(numpy.float64) * y.data + z.data
            return TensorHandle(exact.astype(z.data.dtype), z.dtype.scalar)

        monkeypatch.setattr(InterpreterBuilder, "create_fma", fma)
