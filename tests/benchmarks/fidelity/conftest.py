"""Fixtures of the fidelity study."""

from __future__ import annotations

import json

import pytest

from benchmarks.fidelity import __main__ as fidelity
from benchmarks.fidelity.methods import Workbench
from lcc.evaluation import Example
from lcc.pipeline.settings import make_settings
from lcc.text.context import build_context

SMALL = {"rank": 8, "alpha": 16.0}
QUICK = ["--smoke", "--methods", "first_tokens", "last_tokens"]


@pytest.fixture
def context(llama, tokenizer, text):
    return build_context(llama, tokenizer, text, ratio=8)


@pytest.fixture
def bench(llama, tokenizer, fast, tmp_path):
    given = {name: value for name, value in fast.items() if name != "progress"}
    return Workbench(llama, tokenizer, make_settings(**given | SMALL), tmp_path)


@pytest.fixture
def examples(text):
    return [Example(text, question, ("x",), max_new_tokens=4) for question in ("Where does Mara live?", "Who?")]


@pytest.fixture
def run(tmp_path):
    """Runs the smoke table into one folder and gives its rows."""

    def go(*more):
        out = tmp_path / "fidelity-smoke.json"
        kept = {"--work": tmp_path / "work", "--out": out, "--options": tmp_path / "chosen.json"}
        fidelity.main([*QUICK, *(str(part) for pair in kept.items() for part in pair), *more])
        return json.loads(out.read_text())["rows"]

    return go
