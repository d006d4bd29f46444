"""How memories look in lists."""

from __future__ import annotations

from typing import Any

from .api_errors import ApiError
from .catalog import Entry
from .naming import model_name


def described(entry: Entry) -> dict[str, Any]:
    """A memory as ``/v1/memories`` shows it."""
    return {
        "id": entry.id,
        "object": "memory",
        "created": entry.stamp[0] // 10**9,
        "digest": entry.digest,
        "tokens": entry.tokens,
        **entry.facts,
    }


def refused(name: str, error: ApiError) -> dict[str, Any]:
    """A memory that cannot be served."""
    return {"id": name, "object": "memory", "error": error.body()["error"]}


def model_card(base: str, entry: Entry) -> dict[str, Any]:
    """A memory as ``/v1/models`` shows it, for clients that can choose a model alone."""
    return {
        "id": model_name(base, entry.id),
        "object": "model",
        "created": entry.stamp[0] // 10**9,
        "owned_by": "lcc",
        "parent": base,
        "root": entry.digest,
        "lcc": entry.facts,
    }
