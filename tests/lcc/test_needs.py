"""What ``import lcc`` needs, and what it says without."""

from __future__ import annotations

import importlib.util
import re
import runpy
from pathlib import Path

import pytest

import lcc

PROJECT = Path(__file__).parents[2] / "pyproject.toml"


def test_lcc_looks_for_what_its_extra_installs():
    tomllib = pytest.importorskip("tomllib", reason="Python 3.10 reads no TOML")
    extra = tomllib.loads(PROJECT.read_text("utf-8"))["project"]["optional-dependencies"]["lcc"]
    assert {*lcc._NEEDED} == {re.match(r"[\w-]+", requirement)[0] for requirement in extra}


def test_without_them_the_error_names_the_extra(monkeypatch):
    real = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name in {"peft", "rich"} else real(name))
    with pytest.raises(ModuleNotFoundError, match=r"lcc needs peft, rich: pip install 'lcc-kernels\[lcc\]'"):
        runpy.run_path(lcc.__file__)
