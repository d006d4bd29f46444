"""Fixtures of this room."""

from __future__ import annotations

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
