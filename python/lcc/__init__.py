"""Latent Context Compilation: compile a long text into a portable KV memory once, ask it many times."""

from __future__ import annotations

import sys
from importlib import import_module
from importlib.util import find_spec
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .ask import ask, prompt
    from .attach import attach, attach_paged
    from .checkpoint import remove_checkpoint
    from .compile import compile
    from .documents import compile_documents
    from .errors import DivergedError, InputError, LCCError, MemoryFileError, MismatchError, TargetError
    from .export import export
    from .fingerprint import fingerprint
    from .memory import Memory
    from .plan import Plan, plan
    from .queries import load_queries
    from .settings import CompileSettings

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
    "CompileSettings": "settings",
    "DivergedError": "errors",
    "InputError": "errors",
    "LCCError": "errors",
    "Memory": "memory",
    "MemoryFileError": "errors",
    "MismatchError": "errors",
    "Plan": "plan",
    "TargetError": "errors",
    "__version__": "version",
    "ask": "ask",
    "attach": "attach",
    "attach_paged": "attach",
    "compile": "compile",
    "compile_documents": "documents",
    "export": "export",
    "fingerprint": "fingerprint",
    "load_queries": "queries",
    "plan": "plan",
    "prompt": "ask",
    "remove_checkpoint": "checkpoint",
}


class _Package(ModuleType):
    """A package that imports a public name or a file, and torch with it, when the name is first used."""

    def __getattr__(self, name: str) -> Any:
        if name in _FILES:
            found = getattr(import_module(f".{_FILES[name]}", self.__name__), name)
            setattr(self, name, found)
            return found
        if not name.startswith("_") and find_spec(f"{self.__name__}.{name}"):
            return import_module(f".{name}", self.__name__)
        raise AttributeError(f"module {self.__name__!r} has no attribute {name!r}")

    def __setattr__(self, name: str, value: object) -> None:
        # The import system binds a file that it has imported to its package: a function keeps its name all the same.
        if not (name in _FILES and isinstance(value, ModuleType)):
            super().__setattr__(name, value)

    def __dir__(self) -> list[str]:
        return sorted({*super().__dir__(), *_FILES})


sys.modules[__name__].__class__ = _Package
