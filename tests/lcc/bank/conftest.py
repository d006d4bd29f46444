"""A bank of two people."""

from __future__ import annotations

import pytest

import lcc
from tests.support.small_memories import small_memory

MARA = "Mara lives in Oslo. She knits."
TIMO = "Timo lives in Bonn. He swims."


@pytest.fixture
def bank(tmp_path):
    with lcc.MemoryBank(tmp_path / "bank", create=True) as bank:
        yield bank


@pytest.fixture
def people(bank):
    """``mara``, whose text is kept, and ``timo``."""
    bank.put("mara", small_memory(MARA, "Where does Mara live?", ("Hello!", "Yes?", "What does Mara do?")), MARA)
    bank.put("timo", small_memory(TIMO, "Where does Timo live?"))
    return bank
