"""Running tests on a copy of the tree, with or without a mutant in it."""

from __future__ import annotations

import multiprocessing
import os
import shlex
import shutil
import sys
import tempfile
import time
from pathlib import Path

import hypothesis  # noqa: F401
import pytest
import torch  # noqa: F401, imported once for all tests, and Triton not, which then interprets or compiles for good

from tests.mutation.mutant import Mutant

ROOT = Path(__file__).parents[2]
COPIED = ("lcc_kernels", "csrc", "python", "tests", "benchmarks", "docs", "pyproject.toml", "setup.py", "README.md")
OPTIONS = ("-x", "-p", "no:cacheprovider", "-W", "ignore", "--confcutdir=tests/lcc_kernels")
LONGEST = 600.0  # seconds; a mutant may make a loop endless

Outcome = tuple[str, float]  # what became of the mutant, and seconds


def copy_of_the_tree(folder: Path) -> Path:
    """What tests need of the repository, copied into ``folder``."""
    for name in COPIED:
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__", "*.so"))
        else:
            shutil.copy(ROOT / name, folder / name)
    return folder


def try_out(tree: Path, mutant: Mutant) -> Outcome:
    """``run_tests`` of a mutant; the tree is afterwards as it was."""
    file, mutated = tree / mutant.file, mutant.applied(tree)
    original = file.read_text("utf-8")
    file.write_text(mutated, "utf-8")
    try:
        return run_tests(tree, mutant.tests, mutant.interpreted)
    finally:
        file.write_text(original, "utf-8")


def run_tests(tree: Path, tests: str, interpreted: bool) -> Outcome:
    """Run pytest in the copy until a test fails.

    Tests that fail, abort or never end have ``killed`` the mutant. Tests that cannot be collected have not. The process
    is forked, since to import torch takes longer than most of these tests.
    """
    with tempfile.NamedTemporaryFile("r+") as output:
        process = multiprocessing.get_context("fork").Process(
            target=_pytest, args=(tree, tests, interpreted, output.name)
        )
        start = time.perf_counter()
        process.start()
        process.join(LONGEST)
        seconds = time.perf_counter() - start
        if process.is_alive():
            process.kill()
            process.join()
        said = output.read()
    if process.exitcode == 0 and " passed" in said:
        return "survived", seconds
    if process.exitcode == 1 or (process.exitcode or 0) < 0:
        return "killed", seconds
    return "not run: " + said[-500:], seconds


def _pytest(tree: Path, tests: str, interpreted: bool, output: str) -> None:
    """The forked process: forget what was imported from the tree itself, and be pytest in its copy."""
    for name in [name for name in sys.modules if name.split(".")[0] in ("tests", "lcc", "lcc_kernels")]:
        del sys.modules[name]
    paths = [str(tree), str(tree / "python")]
    sys.path[:] = paths + [path for path in sys.path if Path(path).resolve() not in (ROOT, ROOT / "python")]
    os.environ.pop("TRITON_INTERPRET", None)
    os.environ |= {"PYTHONPATH": os.pathsep.join(paths)} | ({"TRITON_INTERPRET": "1"} if interpreted else {})
    os.chdir(tree)
    with open(output, "w") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    sys.exit(int(pytest.main([*OPTIONS, *shlex.split(tests)])))
