"""Context-agnostic queries: the package's own, or anybody's."""

from __future__ import annotations

import json
from collections.abc import Iterable
from importlib import resources
from pathlib import Path

from .errors import InputError


def load_queries(source: str | Path | Iterable[str] | None = None) -> list[str]:
    """Context-agnostic queries: the package's own, a JSONL file, a datasets name, or any strings.

    Rows of a JSONL file or a dataset give their query as ``query``, ``instruction``, ``prompt`` or ``text``.

    Raises:
        InputError: the source cannot be read or holds no query.
    """
    if source is None:
        rows = _read_jsonl((resources.files("lcc") / "data" / "queries.jsonl").read_text("utf-8"), "queries.jsonl")
    elif isinstance(source, (str, Path)):
        rows = _load_rows(str(source))
    else:
        rows = [{"query": query} for query in source]
    queries = [query for row in rows if (query := _query_of(row))]
    if not queries:
        raise InputError(f"no queries in {source}: give rows with query, instruction, prompt or text")
    return queries


def _load_rows(name: str) -> list[dict]:
    if Path(name).is_file():
        return _read_jsonl(Path(name).read_text("utf-8"), name)
    if name.endswith((".jsonl", ".json")):
        raise InputError(f"there is no file {name}")
    try:
        from datasets import load_dataset
    except ImportError:
        raise InputError(f"{name} is no file; to read it as a dataset, pip install datasets") from None
    return list(load_dataset(name, split="train"))


def _read_jsonl(content: str, name: str) -> list[dict]:
    rows = []
    for number, line in enumerate(content.splitlines(), 1):
        if line.strip():
            try:
                rows.append(json.loads(line))
            except json.JSONDecodeError as error:
                raise InputError(f"{name}, line {number} is not JSON: {error}") from None
    return rows


def _query_of(row: dict) -> str | None:
    for name in ("query", "instruction", "prompt", "text"):
        if isinstance(row.get(name), str) and row[name].strip():
            return row[name]
    return None
