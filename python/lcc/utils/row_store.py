"""Rows on disk that a killed run goes on from."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from ..errors import MemoryFileError, MismatchError
from .outputs import is_file, os_errors
from .safe_json import parse_json
from .values import check


class RowStore:
    """A JSONL file whose first line says what its rows depend on, and which grows by whole lines.

    Args:
        identity: JSON-ready; the file is refused when it was written under another.
        columns: what every row has, and nothing else, with the type of each; see ``lcc.utils.values.check``.

    Raises:
        MismatchError: the file holds rows of another identity.
        MemoryFileError: the file cannot be read or written, or a line of it is damaged.
    """

    def __init__(self, path: Path, identity: dict[str, Any], columns: Mapping[str, Any]):
        self.path = path
        identity = json.loads(json.dumps(identity))
        self.rows: list[dict[str, Any]] = []
        with os_errors(f"cannot read {path}"):
            content = path.read_bytes() if is_file(path) else b""
        whole = content[: content.rfind(b"\n") + 1]
        if not whole:
            if not _line({"identity": identity}).startswith(content):
                raise MemoryFileError(f"{path} holds something else than rows: delete it or name another folder")
            self._write("wb", [{"identity": identity}])
            return
        try:
            header, *self.rows = map(parse_json, whole.splitlines())
            stored = dict(header["identity"])
            for number, row in enumerate(self.rows, 2):
                if dict(row).keys() != columns.keys():
                    raise ValueError(f"line {number} has not the columns {', '.join(columns)}")
                for name, kind in columns.items():
                    check(f"{name} of line {number}", row[name], kind)
        except (ValueError, KeyError, TypeError) as error:
            raise MemoryFileError(f"{path} is damaged ({error}): delete it or name another folder") from error
        differing = [name for name in sorted({*identity, *stored}) if identity.get(name) != stored.get(name)]
        if differing:
            raise MismatchError(
                f"{path} holds results that differ in {', '.join(differing)}: name another folder, or delete it"
            )
        if len(whole) < len(content):
            # A kill tore the last line.
            os.truncate(path, len(whole))

    def append(self, rows: Iterable[dict[str, Any]]) -> None:
        """Add rows to the file and to ``rows``."""
        added = list(rows)
        self._write("ab", added)
        self.rows += added

    def _write(self, mode: str, rows: list[dict[str, Any]]) -> None:
        is_file(self.path)
        with os_errors(f"cannot write {self.path}"), self.path.open(mode) as file:
            file.write(b"".join(map(_line, rows)))
            file.flush()
            os.fsync(file.fileno())


def _line(row: dict[str, Any]) -> bytes:
    return json.dumps(row).encode() + b"\n"
