"""Context-agnostic queries: the package's own, or anybody's."""

from __future__ import annotations

from collections.abc import Iterable
from importlib import resources
from pathlib import Path

from ..errors import InputError
from ..utils.jsonl import load_rows, parse_jsonl
from ..utils.values import is_text


def load_queries(source: str | Path | Iterable[str] | None = None) -> list[str]:
    """Context-agnostic queries: the package's own, a JSONL file, a datasets name, or any strings.

    Rows of a JSONL file or a dataset give their query as ``query``, ``instruction``, ``prompt`` or ``text``.

    Raises:
        InputError: the source cannot be read or holds no query.
    """
    if source is None:
        rows = parse_jsonl((resources.files(__package__) / "queries.jsonl").read_text("utf-8"), "queries.jsonl")
    elif isinstance(source, (str, Path)):
        rows = load_rows(str(source))
    else:
        rows = [{"query": query} for query in source]
    queries = [query for row in rows if (query := _query_of(row))]
    if not all(map(is_text, queries)):
        raise InputError(f"a query of {source} holds half of a surrogate pair: give text that can be encoded")
    if not queries:
        raise InputError(f"no queries in {source}: give rows with query, instruction, prompt or text")
    return queries


def _query_of(row: dict) -> str | None:
    for name in ("query", "instruction", "prompt", "text"):
        if isinstance(row.get(name), str) and row[name].strip():
            return row[name]
    return None
