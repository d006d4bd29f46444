"""Context-agnostic queries: the package's own, or anybody's."""

from __future__ import annotations

from collections.abc import Iterable
from importlib import resources
from pathlib import Path

from transformers import PreTrainedTokenizerBase

from ..errors import InputError
from ..utils.jsonl import load_rows, parse_jsonl
from ..utils.values import is_text
from .plain_text import has_words_for

# In place of queries: the model writes them itself.
SELF = "self"
# The package's own: instructions that people give, and those of the embedded model's lessons.
INSTRUCTIONS, LESSONS = "instructions.jsonl", "lessons.jsonl"


def load_queries(
    source: str | Path | Iterable[str] | None = None, tokenizer: PreTrainedTokenizerBase | None = None
) -> list[str]:
    """Context-agnostic queries: the package's own, a JSONL file, a datasets name, or any strings.

    Rows of a JSONL file or a dataset give their query as ``query``, ``instruction``, ``prompt`` or ``text``.

    Args:
        tokenizer: tells which queries of the package's own the model can read: 673 instructions, or those that the
            embedded model was taught where the vocabulary is too small for them. By default the embedded model's.

    Raises:
        InputError: the source cannot be read or holds no query.
    """
    if source is None:
        instructions = _own(INSTRUCTIONS)
        readable = tokenizer is not None and has_words_for(
            tokenizer, "\n".join(str(row["query"]) for row in instructions)
        )
        rows = instructions if readable else _own(LESSONS)
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


def named_queries(source: str | Path | Iterable[str] | None) -> list[str] | str | None:
    """What ``source`` names, before a tokenizer is known: ``load_queries`` of it; ``SELF``; None: the package's own.

    Raises:
        InputError: as ``load_queries``.
    """
    return source if source is None or source == SELF else load_queries(source)


def _own(name: str) -> list[dict]:
    return parse_jsonl((resources.files(__package__) / name).read_text("utf-8"), name)


def _query_of(row: dict) -> str | None:
    for name in ("query", "instruction", "prompt", "text"):
        if isinstance(row.get(name), str) and row[name].strip():
            return row[name]
    return None
