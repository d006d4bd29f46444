"""Rows of data: from a JSONL file, or through the datasets library from a folder or the hub."""

from __future__ import annotations

import os
import stat
from pathlib import Path

from ..errors import InputError
from .safe_json import JSONError, parse_json
from .terminal import first_line
from .utf8 import MARK, STANDARD_INPUT, read_file


def load_rows(source: str, split: str = "train", config: str | None = None) -> list[dict]:
    """The rows of a JSONL file or pipe, of a folder of ``Dataset.save_to_disk``, or of a datasets name on the hub.

    Args:
        source: ``-`` is standard input.
        split, config: of a dataset; a JSONL file has neither.

    Raises:
        InputError: no such file or dataset, not JSONL, or the datasets library is missing.
    """
    path = Path(source)
    if source == STANDARD_INPUT or _is_file(source):
        return parse_jsonl(read_file(source), source)
    if path.suffix in (".jsonl", ".json"):
        raise InputError(f"there is no file {source}")
    try:
        import datasets
    except ImportError:
        raise InputError(f"{source} is no file; to read it as a dataset, pip install datasets") from None
    try:
        if path.is_dir():
            loaded = datasets.load_from_disk(source)
        else:
            loaded = datasets.load_dataset(source, config, split=split, trust_remote_code=False)
        return list(loaded[split] if isinstance(loaded, datasets.DatasetDict) else loaded)
    except Exception as error:
        # The library raises errors of many kinds, its own and those of the formats that it reads.
        raise InputError(f"cannot read the {split} split of the dataset {source}: {first_line(error)}") from error


def parse_jsonl(content: str, name: str) -> list[dict]:
    """One JSON object a line; empty lines are skipped.

    Raises:
        InputError: a line is not a JSON object; ``name`` says whose.
    """
    rows = []
    # Files with a byte order mark that were joined have one in the middle.
    lines = (line.removeprefix(MARK) for line in content.split("\n"))
    for number, line in enumerate(lines, 1):
        if line.strip():
            try:
                row = parse_json(line)
            except JSONError as error:
                raise InputError(f"{name}, line {number} {error}") from None
            if not isinstance(row, dict):
                raise InputError(f"{name}, line {number} is no JSON object: write one object a line")
            rows.append(row)
    return rows


def _is_file(source: str) -> bool:
    """Whether ``source`` names what can be read as a file: a pipe can."""
    try:
        return not stat.S_ISDIR(os.stat(source).st_mode)
    except (FileNotFoundError, NotADirectoryError):
        return False
    except (OSError, ValueError) as error:
        raise InputError(f"cannot read {source}: {getattr(error, 'strerror', None) or error}") from None
