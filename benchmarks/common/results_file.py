"""Results files: JSON with a list of rows, which later calls add to, and details of the run beside it."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

Row = dict[str, Any]


def load_rows(path: Path) -> list[Row]:
    """The rows of earlier calls, in the file's order; none if there is no file.

    Raises:
        ValueError: the file is not JSON.
        KeyError: it holds no rows.
    """
    return json.loads(path.read_text("utf-8"))["rows"] if path.exists() else []


def load_details(path: Path) -> dict[str, Any]:
    """What the file says beside the rows; nothing if there is no file.

    Raises:
        ValueError: the file is not JSON.
    """
    content = json.loads(path.read_text("utf-8")) if path.exists() else {}
    return {name: value for name, value in content.items() if name != "rows"}


def write_rows(path: Path, rows: Iterable[Row], **details: Any) -> None:
    """Put ``rows`` and ``details`` of the run in place of the file at once, its folder made if need be.

    A call that is killed meanwhile leaves the older file whole: hours of rows may be in it.

    Args:
        details: ``kind`` is what ``benchmarks.report`` knows a file by.

    Raises:
        OSError: the folder or the file cannot be written; the older file is left as it was.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        temporary.write_text(json.dumps({"rows": list(rows)} | details, indent=1) + "\n", "utf-8")
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
