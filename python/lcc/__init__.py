"""Latent Context Compilation: compile a long text into a portable KV memory once, ask it many times."""

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
