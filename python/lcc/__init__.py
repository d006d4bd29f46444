"""Latent Context Compilation: compile a long text into a portable KV memory once, ask it many times."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from .utils.extra import naming_the_extra

if TYPE_CHECKING:
    from .bank.bank import MemoryBank
    from .compilers.base import BaseCompiler, Compiled, Compiler, CompileTask, TrainedCompiler
    from .compilers.registry import register
    from .errors import DivergedError, InputError, LCCError, LeakError, MemoryFileError, MismatchError, TargetError
    from .evaluation.leak_report import LeakReport
    from .evaluation.leaks import leaks
    from .evaluation.quantization_cost import quantize
    from .evaluation.questions import read_questions
    from .inference.asking import ask, prompt
    from .inference.monitor import Monitor
    from .memory.attachment import attach, attach_paged
    from .memory.delta import Delta
    from .memory.exporters import export
    from .memory.memory import Memory
    from .memory.payload import KVPayload
    from .memory.signing import sign, verify_signature
    from .memory.words import strip
    from .modeling.fingerprint import fingerprint
    from .modeling.kv import KV
    from .pipeline.batch import compile_documents
    from .pipeline.compile import compile
    from .pipeline.plan import plan
    from .pipeline.plan_figures import Plan
    from .pipeline.settings import CompileSettings
    from .pipeline.update import update
    from .text.queries import load_queries
    from .training.trainable import TrainableMemory
    from .utils.progress import Reporter
    from .utils.resumable import remove_checkpoint
    from .utils.settings import SettingsGroup

    __version__: str

__all__ = [
    "KV",
    "BaseCompiler",
    "CompileSettings",
    "CompileTask",
    "Compiled",
    "Compiler",
    "Delta",
    "DivergedError",
    "InputError",
    "KVPayload",
    "LCCError",
    "LeakError",
    "LeakReport",
    "Memory",
    "MemoryBank",
    "MemoryFileError",
    "MismatchError",
    "Monitor",
    "Plan",
    "Reporter",
    "SettingsGroup",
    "TargetError",
    "TrainableMemory",
    "TrainedCompiler",
    "__version__",
    "ask",
    "attach",
    "attach_paged",
    "compile",
    "compile_documents",
    "export",
    "fingerprint",
    "leaks",
    "load_queries",
    "plan",
    "prompt",
    "quantize",
    "read_questions",
    "register",
    "remove_checkpoint",
    "sign",
    "strip",
    "update",
    "verify_signature",
]

# The file of each public name.
_FILES = {
    "BaseCompiler": "compilers.base",
    "CompileSettings": "pipeline.settings",
    "CompileTask": "compilers.base",
    "Compiled": "compilers.base",
    "Compiler": "compilers.base",
    "Delta": "memory.delta",
    "DivergedError": "errors",
    "InputError": "errors",
    "KV": "modeling.kv",
    "KVPayload": "memory.payload",
    "LCCError": "errors",
    "LeakError": "errors",
    "LeakReport": "evaluation.leak_report",
    "Memory": "memory.memory",
    "MemoryBank": "bank.bank",
    "MemoryFileError": "errors",
    "MismatchError": "errors",
    "Monitor": "inference.monitor",
    "Plan": "pipeline.plan_figures",
    "Reporter": "utils.progress",
    "SettingsGroup": "utils.settings",
    "TargetError": "errors",
    "TrainableMemory": "training.trainable",
    "TrainedCompiler": "compilers.base",
    "__version__": "utils.version",
    "ask": "inference.asking",
    "attach": "memory.attachment",
    "attach_paged": "memory.attachment",
    "compile": "pipeline.compile",
    "compile_documents": "pipeline.batch",
    "export": "memory.exporters",
    "fingerprint": "modeling.fingerprint",
    "leaks": "evaluation.leaks",
    "load_queries": "text.queries",
    "plan": "pipeline.plan",
    "prompt": "inference.asking",
    "quantize": "evaluation.quantization_cost",
    "read_questions": "evaluation.questions",
    "register": "compilers.registry",
    "remove_checkpoint": "utils.resumable",
    "sign": "memory.signing",
    "strip": "memory.words",
    "update": "pipeline.update",
    "verify_signature": "memory.signing",
}


def __getattr__(name: str) -> Any:
    """Import a public name, and torch with it, when it is first used."""
    if name not in _FILES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    with naming_the_extra():
        value = globals()[name] = getattr(import_module(f".{_FILES[name]}", __name__), name)
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_FILES})
