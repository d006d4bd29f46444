"""The ``lcc`` command."""

from __future__ import annotations

import sys

INTERRUPTED = 130


def main() -> None:
    """Entry point. An interrupt ends it with one line, also while it is still being imported."""
    try:
        from .app import run

        run()
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        sys.exit(INTERRUPTED)
