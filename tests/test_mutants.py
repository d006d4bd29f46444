"""The mutants of tests/mutation still fit the code; ``python -m tests.mutation`` tries them out."""

from __future__ import annotations

import ast
import shlex
from pathlib import Path

import pytest

from tests.mutation.mutants import MUTANTS

ROOT = Path(__file__).parents[1]


@pytest.mark.parametrize("mutant", MUTANTS, ids=[mutant.name for mutant in MUTANTS])
def test_a_mutant_applies(mutant):
    mutated = mutant.applied(ROOT)
    assert mutated != (ROOT / mutant.file).read_text("utf-8")
    if mutant.file.endswith(".py"):
        ast.parse(mutated)
    files = [word.split("::")[0] for word in shlex.split(mutant.tests) if word.startswith("tests/")]
    assert files
    assert all((ROOT / file).exists() for file in files)


def test_no_two_have_a_name():
    assert len({mutant.name for mutant in MUTANTS}) == len(MUTANTS)
