"""Which backends an op has, whether each can run here, and which one runs."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec

import torch

from .gpu import gpu_missing, gpu_refusal
from .modes import without_autocast


class BackendUnavailableError(RuntimeError):
    """An explicitly requested backend cannot run; the message says why."""


@dataclass(frozen=True)
class Backend:
    """One way to run an op.

    ``run`` takes the op's arguments. ``missing`` returns why the backend cannot run on this machine, or None;
    ``refuses`` returns why it cannot run on these arguments, or None. ``automatic`` lets ``backend="auto"`` pick it.
    """

    run: Callable
    missing: Callable[[], str | None] = lambda: None
    refuses: Callable[..., str | None] = lambda *args, **kwargs: None
    automatic: bool = True


_OPS: dict[str, dict[str, Backend]] = {}


def register(op: str, backends: dict[str, Backend]) -> None:
    """Register ``op`` with its backends, the one that ``auto`` prefers first."""
    _OPS[op] = backends


def available_backends(op: str) -> dict[str, str | None]:
    """Map each backend of ``op`` to None, or to the reason why it cannot run on this machine.

    Raises:
        ValueError: ``op`` is not an op of this package.
    """
    return {name: backend.missing() for name, backend in _backends(op).items()}


def select(op: str, backend: str, *args: object, **kwargs: object) -> Callable:
    """Return the function that runs ``op`` on these arguments, outside autocast.

    Raises:
        ValueError: unknown op or backend.
        BackendUnavailableError: ``backend`` was asked for by name and cannot run, or none can.
    """
    backends = _backends(op)
    if backend == "auto":
        reasons = {}
        for name, candidate in backends.items():
            reasons[name] = _reason(candidate, args, kwargs)
            if candidate.automatic and reasons[name] is None:
                return without_autocast(candidate.run)
        raise BackendUnavailableError(f"no backend of {op} can run here: {reasons}")
    if backend not in backends:
        raise ValueError(f"{op} has no backend {backend!r}; it has {', '.join(backends)}")
    reason = _reason(backends[backend], args, kwargs)
    if reason is not None:
        raise BackendUnavailableError(f"{op}: backend {backend!r} cannot run: {reason}")
    return without_autocast(backends[backend].run)


def _backends(op: str) -> dict[str, Backend]:
    if op not in _OPS:
        raise ValueError(f"unknown op {op!r}; there are {', '.join(sorted(_OPS))}")
    return _OPS[op]


def _reason(backend: Backend, args: tuple, kwargs: dict) -> str | None:
    return backend.missing() or backend.refuses(*args, **kwargs)


def setting(name: str) -> str | None:
    """A variable of the environment, or None."""
    return os.environ.get(name)


def interpreting() -> bool:
    """Whether Triton runs in its interpreter (``TRITON_INTERPRET=1``), on the CPU."""
    return setting("TRITON_INTERPRET") == "1"


def triton_missing() -> str | None:
    """Why Triton kernels cannot run here, or None."""
    if not _installed("triton"):
        return "triton is not installed (pip install triton)"
    reason = None if interpreting() else gpu_missing()
    return reason and f"{reason} (TRITON_INTERPRET=1 runs kernels in Triton's interpreter)"


@cache
def _installed(package: str) -> bool:
    return find_spec(package) is not None


def on_triton_device(*tensors: torch.Tensor) -> str | None:
    """Why Triton kernels cannot take these tensors, or None."""
    if interpreting():
        return None
    if not all(tensor.is_cuda for tensor in tensors):
        return "its inputs must be CUDA tensors"
    return gpu_refusal(tensors[0].device.index)
