"""The boundary of the command line: what cannot be used becomes one line on stderr and an exit code."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import NoReturn

from ..errors import DivergedError, InputError, LCCError, LeakError, MemoryFileError, MismatchError, TargetError
from ..utils.terminal import Terminal, shown
from .exit_codes import INTERRUPTED, NOT_READ, UNUSABLE, UNWRITABLE

# Exit codes of errors; the others are in exit_codes.py.
EXIT_CODES = {
    InputError: UNUSABLE, MismatchError: 3, MemoryFileError: UNWRITABLE, DivergedError: 5, TargetError: 6, LeakError: 7,
}  # fmt: skip
LONGEST_MESSAGE = 2000
OUT_OF_MEMORY = (
    "out of memory: lcc compile --dry-run says what a text takes; of a compilation, lower --set batch, rank or "
    "encode_chunk"
)
TOO_DEEP = "the input is nested too deeply to be read: give one that is flatter"


@contextmanager
def boundary() -> Iterator[None]:
    """End the process with its exit code for every error that a user can do something about; others pass.

    Raises:
        SystemExit: with the code.
    """
    try:
        yield
        sys.stdout.flush()
    except LCCError as error:
        _fail(str(error), next((code for kind, code in EXIT_CODES.items() if isinstance(error, kind)), 1))
    except KeyboardInterrupt:
        _end("interrupted", INTERRUPTED)
    except BrokenPipeError:
        _end("", NOT_READ)
    except OSError as error:
        _fail(f"cannot read or write {error.filename or 'standard output'}: {error.strerror or error}", UNWRITABLE)
    except RecursionError:
        _fail(TOO_DEEP, UNUSABLE)
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        _fail(OUT_OF_MEMORY, UNUSABLE)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether memory has run out, of the machine or of a GPU."""
    return (
        isinstance(error, MemoryError)
        or type(error).__name__ == "OutOfMemoryError"
        or "can't allocate memory" in str(error)
    )


def _fail(message: str, code: int) -> NoReturn:
    short = message if len(message) <= LONGEST_MESSAGE else f"{message[:LONGEST_MESSAGE]}…"
    _end(f"[red]error:[/red] {shown(short)}", code)


def _end(message: str, code: int) -> NoReturn:
    with suppress(OSError):
        if message:
            Terminal(stderr=True).print(message, soft_wrap=True)
    _close_output()
    raise SystemExit(code)


def _close_output() -> None:
    """Flush stdout, or point it at nothing where it takes nothing: the interpreter flushes it once more."""
    try:
        sys.stdout.flush()
    except OSError:
        with suppress(OSError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
