"""The ``lcc`` command."""

from __future__ import annotations

import os
import sys
from contextlib import suppress
from typing import NoReturn

from ..utils.extra import naming_the_extra
from .exit_codes import INTERRUPTED


def main() -> None:
    """Entry point. An interrupt ends it with one line, also while it is still being imported."""
    try:
        _run()
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        _leave()
    except SystemExit as end:
        if end.code == INTERRUPTED:
            _leave()
        raise


def _run() -> None:
    try:
        with naming_the_extra():
            from .app import run
    except ModuleNotFoundError as error:
        sys.exit(f"error: {error}")
    run()


def _leave() -> NoReturn:
    """End at once: all is written and unlocked, and torch takes seconds to be torn down."""
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError, ValueError):
            stream.flush()
    os._exit(INTERRUPTED)
