"""Fixtures of this room."""

from __future__ import annotations

import pytest

from lcc.modeling import architecture


@pytest.fixture
def no_verdicts(monkeypatch):
    """The test finds out for itself which models are accepted."""
    monkeypatch.setattr(architecture, "_verdicts", type(architecture._verdicts)())
