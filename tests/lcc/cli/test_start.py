"""The package and the command line before torch is imported."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

import lcc
from lcc.utils.version import __version__

PYTHON = Path(lcc.__file__).parents[1]
HEAVY = ("torch", "transformers", "numpy", "safetensors", "peft")


def python(*arguments: str, **options: object) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, *arguments], capture_output=True, text=True, cwd=PYTHON, timeout=60, check=True, **options
    )


@pytest.mark.parametrize(
    "name", ["lcc", "lcc.cli", "lcc.cli.app", "lcc.pipeline.settings", "lcc.errors", "lcc.utils.version"]
)
def test_what_is_imported_without_torch(name):
    python("-c", f"import sys, {name}; assert not {{*{HEAVY}}} & {{*sys.modules}}")


@pytest.mark.parametrize(
    "command", [["--help"], ["--version"], ["compile", "--help"], ["eval", "--help"], ["bank", "add", "--help"]]
)
def test_help_needs_no_torch(command):
    program = f"import sys; from lcc.cli.app import run; sys.argv[1:] = {command}; run()"
    checked = f"import atexit, sys; atexit.register(lambda: print(sorted({{*{HEAVY}}} & {{*sys.modules}}))); {program}"
    shown = python("-c", checked).stdout
    assert shown.endswith("[]\n")
    assert ("Usage" if "--help" in command else f"lcc {__version__}") in shown


def test_public_names():
    assert set(lcc.__all__) <= set(dir(lcc))
    assert all(getattr(lcc, name).__name__ == name for name in lcc.__all__ if name != "__version__")
    for name in ("nothing", "_nothing", "__main__"):
        with pytest.raises(AttributeError, match=f"'lcc' has no attribute '{name}'"):
            getattr(lcc, name)


def test_the_version_of_a_tree_that_is_not_installed():
    program = "import sys; sys.path = [sys.argv[1], *(p for p in sys.path if 'site-packages' not in p)]; import lcc"
    shown = python("-S", "-c", f"{program}; print(lcc.__version__)", str(PYTHON)).stdout
    assert shown == "0+unknown\n"


INTERRUPTING = """
import signal, sys
# A job in the background is started without.
signal.signal(signal.SIGINT, signal.default_int_handler)
class Finder:
    def find_spec(name, *_):
        if name == NAME:
            signal.raise_signal(signal.SIGINT)
sys.meta_path.insert(0, Finder)
sys.argv[1:] = ["inspect", "absent"]
from lcc.cli import main
main()
"""


@pytest.mark.parametrize("name", ["lcc.cli.app", "typer", "rich.console", "torch", "transformers"])
def test_an_interrupt_while_a_package_is_imported(name):
    program = f"NAME = {name!r}\n" + INTERRUPTING
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, cwd=PYTHON, check=False)
    assert (done.returncode, done.stderr) == (130, "interrupted\n")
