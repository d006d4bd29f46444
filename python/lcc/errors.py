"""The errors that callers can act on. Each message names the cause and the remedy."""

from __future__ import annotations

from typing import Any


class LCCError(Exception):
    """Base class of this package's errors."""


class InputError(LCCError, ValueError):
    """The text, model, tokenizer or a setting cannot be used."""


class MemoryFileError(LCCError):
    """A memory or checkpoint file is truncated, tampered with, foreign or cannot be written."""


class MismatchError(LCCError):
    """A memory or checkpoint belongs to another model, tokenizer, text or setting."""


class DivergedError(LCCError):
    """The loss became NaN or infinite; the last good checkpoint stands."""


class LeakError(LCCError):
    """More of a text can be got out of its memory than is allowed."""


class TargetError(LCCError):
    """No ratio that was tried keeps what was asked for; ``memory``, an ``lcc.Memory``, is the one that keeps most."""

    def __init__(self, message: str, memory: Any):
        super().__init__(message)
        self.memory = memory

    def __reduce__(self) -> tuple[type[TargetError], tuple[str, Any]]:
        """Sent from process to process with its memory."""
        return type(self), (str(self), self.memory)
