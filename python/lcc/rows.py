"""Rows of data: from a JSONL file, or through the datasets library from a folder or the hub."""

from __future__ import annotations

from pathlib import Path

from .errors import InputError
from .safe_json import JSONError, parse_json
from .terminal import first_line


def load_rows(source: str, split: str = "train", config: str | None = None) -> list[dict]:
    """The rows of a JSONL file, of a folder that ``Dataset.save_to_disk`` wrote, or of a datasets name on the hub.

    Args:
        split, config: of a dataset; a JSONL file has neither.

    Raises:
        InputError: no such file or dataset, not JSONL, or the datasets library is missing.
    """
    path = Path(source)
    if path.is_file():
        return read_jsonl(_read(path), source)
    if path.suffix in (".jsonl", ".json"):
        raise InputError(f"there is no file {source}")
    try:
        import datasets
    except ImportError:
        raise InputError(f"{source} is no file; to read it as a dataset, pip install datasets") from None
    try:
        if path.is_dir():
            found = datasets.load_from_disk(source)
        else:
            found = datasets.load_dataset(source, config, split=split, trust_remote_code=False)
        return list(found[split] if isinstance(found, datasets.DatasetDict) else found)
    except Exception as error:
        # The library raises errors of many kinds, its own and those of the formats that it reads.
        raise InputError(f"cannot read the {split} split of the dataset {source}: {first_line(error)}") from error


def read_jsonl(content: str, name: str) -> list[dict]:
    """One JSON object a line; empty lines are skipped.

    Raises:
        InputError: a line is not a JSON object; ``name`` says whose.
    """
    rows = []
    for number, line in enumerate(content.split("\n"), 1):
        if line.strip():
            try:
                row = parse_json(line)
            except JSONError as error:
                raise InputError(f"{name}, line {number} {error}") from None
            if not isinstance(row, dict):
                raise InputError(f"{name}, line {number} is no JSON object: write one object a line")
            rows.append(row)
    return rows


def _read(path: Path) -> str:
    try:
        return path.read_text("utf-8")
    except UnicodeDecodeError as error:
        raise InputError(f"{path} is not UTF-8 text: {error}") from None
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror}") from None
