"""What ``lcc`` says without the packages of its extra."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

import lcc
from lcc.utils.extra import PACKAGES, naming_the_extra

PROJECT = Path(__file__).parents[3] / "pyproject.toml"
WITHOUT = "import sys; sys.modules |= dict.fromkeys(['peft', 'rich']); "


def test_the_packages_are_those_that_the_extra_installs():
    tomllib = pytest.importorskip("tomllib", reason="Python 3.10 reads no TOML")
    extra = tomllib.loads(PROJECT.read_text("utf-8"))["project"]["optional-dependencies"]["lcc"]
    assert {*PACKAGES} == {re.match(r"[\w-]+", requirement)[0] for requirement in extra}


def without(program):
    """What a program says where two packages are missing, and its exit code."""
    hide = "import importlib.util as u; find = u.find_spec; "
    hide += "u.find_spec = lambda name: None if name in ('peft', 'rich') else find(name); "
    command = [sys.executable, "-c", WITHOUT + hide + program]
    done = subprocess.run(command, capture_output=True, text=True, cwd=Path(lcc.__file__).parents[1], check=False)
    return done.returncode, done.stderr


def test_a_public_name_names_the_extra():
    code, said = without("import lcc; lcc.compile")
    assert code == 1
    assert said.endswith("ModuleNotFoundError: lcc needs peft, rich: pip install 'lcc-kernels[lcc]'\n")


def test_the_command_says_it_in_a_line():
    assert without("from lcc.cli import main; main()") == (
        1,
        "error: lcc needs peft, rich: pip install 'lcc-kernels[lcc]'\n",
    )


def test_other_imports_that_fail_are_left_alone():
    with pytest.raises(ModuleNotFoundError, match="No module named 'no_such_package'"), naming_the_extra():
        import no_such_package  # noqa: F401
