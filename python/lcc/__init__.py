"""Latent Context Compilation: compile a long text into a portable KV memory once, ask it many times."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .errors import DivergedError, InputError, LCCError, MemoryFileError, MismatchError, TargetError
    from .inference.asking import ask, prompt
    from .memory.attachment import attach, attach_paged
    from .memory.exporters import export
    from .memory.memory import Memory
    from .modeling.fingerprint import fingerprint
    from .pipeline.batch import compile_documents
    from .pipeline.compile import compile
    from .pipeline.plan import Plan, plan
    from .pipeline.settings import CompileSettings
    from .text.queries import load_queries
    from .training.checkpoint import remove_checkpoint

    __version__: str

__all__ = [
    "CompileSettings",
    "DivergedError",
    "InputError",
    "LCCError",
    "Memory",
    "MemoryFileError",
    "MismatchError",
    "Plan",
    "TargetError",
    "__version__",
    "ask",
    "attach",
    "attach_paged",
    "compile",
    "compile_documents",
    "export",
    "fingerprint",
    "load_queries",
    "plan",
    "prompt",
    "remove_checkpoint",
]

# The file of each public name.
_FILES = {
    "CompileSettings": "pipeline.settings",
    "DivergedError": "errors",
    "InputError": "errors",
    "LCCError": "errors",
    "Memory": "memory.memory",
    "MemoryFileError": "errors",
    "MismatchError": "errors",
    "Plan": "pipeline.plan",
    "TargetError": "errors",
    "__version__": "utils.version",
    "ask": "inference.asking",
    "attach": "memory.attachment",
    "attach_paged": "memory.attachment",
    "compile": "pipeline.compile",
    "compile_documents": "pipeline.batch",
    "export": "memory.exporters",
    "fingerprint": "modeling.fingerprint",
    "load_queries": "text.queries",
    "plan": "pipeline.plan",
    "prompt": "inference.asking",
    "remove_checkpoint": "training.checkpoint",
}


def __getattr__(name: str) -> Any:
    """Import a public name, and torch with it, when it is first used."""
    if name not in _FILES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = globals()[name] = getattr(import_module(f".{_FILES[name]}", __name__), name)
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_FILES})
