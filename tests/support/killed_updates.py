"""``lcc update``, killed at random moments in forks of this process: ``python -m tests.support.killed_updates``.

It ends with an AssertionError where a kill leaves half a memory, or another one than an uninterrupted run.
"""

from __future__ import annotations

import os
import random
import shutil
import signal
import tempfile
from contextlib import redirect_stdout
from io import StringIO
from pathlib import Path

import torch

import lcc
from lcc.cli import app as cli
from lcc.cli import loading
from lcc.embedded_model.tokenizer import build_tokenizer
from lcc.memory.store import checkpoint_beside
from lcc.synthetic.people import document
from tests.lcc.pipeline.test_compile import same
from tests.support.bank_processes import calls_of, forked
from tests.support.tiny_models import FAST, tiny_model

KILLS = 20


def update(folder: Path, in_place: bool) -> None:
    """The command, in this process."""
    few = {name: value for name, value in FAST.items() if name not in ("progress", "ratio")}
    settings = [word for name, value in few.items() for word in ("--set", f"{name}={value}")]
    where = ["old", "--force"] if in_place else ["new"]
    sources = [str(folder / "old"), str(folder / "more"), "-o", str(folder / where[0]), *where[1:]]
    cli.app(["update", *sources, *settings, "--no-certify", "--json"], standalone_mode=False)


def check_kills(before: Path, folder: Path, in_place: bool, rng: random.Random) -> None:
    """Kill the command at ``KILLS`` moments. The old file stays as it was until the new one is there, whole."""
    name = "old" if in_place else "new"
    old = (before / "old").read_bytes()
    for whole in (folder / "first", folder / "whole"):  # What is imported and cached at first is no part of the work.
        shutil.copytree(before, whole)
        total = calls_of(lambda whole=whole: update(whole, in_place))
    wanted, stages = lcc.Memory.load(folder / "whole" / name), set()
    for number in range(KILLS):
        path = folder / str(number)
        shutil.copytree(before, path)
        last = rng.randrange(1, total)
        status = os.waitpid(forked(lambda path=path, last=last: update(path, in_place), last), 0)[1]
        assert status in (signal.SIGKILL, 0), status
        done = (path / name).exists() and (path / name).read_bytes() != old
        if done:
            assert same(lcc.Memory.load(path / name), wanted), number
        if not (in_place and done):
            assert (path / "old").read_bytes() == old, number
        stages.add((done, checkpoint_beside(path / name).exists()))
        update(path, in_place)
        assert same(lcc.Memory.load(path / name), wanted), number
        assert lcc.Memory.load(path / name).lineage == wanted.lineage, number
    assert (False, True) in stages, stages


def main() -> None:
    """Both ways, with a tiny model."""
    model, tokenizer = tiny_model("llama"), build_tokenizer()
    loading.load_model = lambda *_: (model, tokenizer)
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as temporary, redirect_stdout(StringIO()):
        before = Path(temporary, "before")
        before.mkdir()
        text, more = (document(random.Random(seed), people=2, attributes=4).text for seed in (7, 8))
        lcc.compile(model, tokenizer, text, certify=False, **FAST).save(before / "old")
        (before / "more").write_text(more)
        for in_place in (False, True):
            check_kills(before, Path(temporary, f"in place {in_place}"), in_place, random.Random(str(in_place)))


if __name__ == "__main__":
    main()
