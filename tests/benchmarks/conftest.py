"""Fixtures of the benchmarks' tests."""

from __future__ import annotations

import pytest

from lcc.pipeline import distillation


@pytest.fixture
def syntheses(monkeypatch) -> list[str]:
    """The digest of each text whose distillation data is made, rather than found."""
    synthesize, digests = distillation.synthesize, []

    def counted(model, context, *arguments):
        digests.append(context.sha256)
        return synthesize(model, context, *arguments)

    monkeypatch.setattr(distillation, "synthesize", counted)
    return digests
