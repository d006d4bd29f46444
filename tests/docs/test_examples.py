"""The examples of docs/ run as a reader runs them, and print what the pages say that they print."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
EXAMPLES = ROOT / "docs" / "examples"
# Lines that each example prints.
PRINTED = {
    "quickstart": ["184 tokens of text became 46 buffer tokens", "held-out KL: "],
    "chat": ["you:    What pet does Hugo have?", "memory: "],
    "batch": ["  first.txt: compiled", "  second.txt: skipped", "  empty.txt: failed the text is empty"],
    "my_compiler": ["ratio 1, 184 buffer tokens by even_tokens", "ratio 4, 46 buffer tokens by even_tokens"],
}


@pytest.mark.slow
@pytest.mark.parametrize("name", PRINTED)
def test_an_example_runs(name, tmp_path):
    paths = os.pathsep.join([str(ROOT / "python"), str(ROOT)])
    done = subprocess.run(
        [sys.executable, EXAMPLES / f"{name}.py"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": paths},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    for line in PRINTED[name]:
        assert line in done.stdout
    assert not list(tmp_path.iterdir())


def test_every_example_is_run():
    assert {path.stem for path in EXAMPLES.glob("*.py")} == set(PRINTED)


def test_the_compiler_of_a_users_own_is_short():
    source = (EXAMPLES / "my_compiler.py").read_text("utf-8")
    assert len(source[: source.index("def main")].strip().splitlines()) <= 40
