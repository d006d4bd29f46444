"""Fixtures of this room."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest

import lcc


@pytest.fixture
def sources(text, tmp_path):
    """Two documents, and one that is too short for any ratio."""
    paths = [tmp_path / f"{name}.txt" for name in ("first", "second", "short")]
    for path, content in zip(paths, (text, text + " " + text, "Mara"), strict=True):
        path.write_text(content)
    return paths


@pytest.fixture
def compile_all(llama, tokenizer, fast, sources, tmp_path):
    def run(**overrides):
        return lcc.compile_documents(llama, tokenizer, sources, tmp_path / "memories", **(fast | overrides))

    return run


@pytest.fixture(scope="module")
def _made() -> dict[str, Any]:
    return {}


@pytest.fixture
def once(_made) -> Callable[[str, Callable[[], Any]], Any]:
    """A copy of what a maker makes, which is called for the first of a module's tests that wants it."""

    def a_copy(name: str, make: Callable[[], Any]) -> Any:
        if name not in _made:
            _made[name] = make()
        return copy.deepcopy(_made[name])

    return a_copy
