"""Triton's interpreter as strict as a GPU, and faster than it comes."""

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


@pytest.fixture(autouse=True)
def _a_launch_patches_once(monkeypatch):
    """The interpreter patches Triton's language for every call of a device function: once a launch is the same."""
    if interpreting():
        from triton.runtime import interpreter

        patch, launch, patched = interpreter._patch_lang, interpreter.GridExecutor.__call__, set()

        def patch_once(fn):
            if id(fn.__globals__) in patched:
                return interpreter._LangPatchScope()
            patched.add(id(fn.__globals__))
            return patch(fn)

        def launch_anew(self, *arguments, **options):
            patched.clear()
            return launch(self, *arguments, **options)

        monkeypatch.setattr(interpreter, "_patch_lang", patch_once)
        monkeypatch.setattr(interpreter.GridExecutor, "__call__", launch_anew)


@pytest.fixture(autouse=True)
def _sums_are_not_checked_in_vain(monkeypatch):
    """Whether integers overflow is computed at every step, for an assertion that the interpreter leaves out."""
    if interpreting():
        from triton.runtime.interpreter import InterpreterOptions, interpreter_builder

        assert not interpreter_builder.options.debug
        monkeypatch.setattr(interpreter_builder, "options", InterpreterOptions(sanitize_overflow=False))
