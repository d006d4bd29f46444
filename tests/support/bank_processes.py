"""Processes that work on a bank, each a fork of this one, and are killed: ``python -m tests.support.bank_processes``.

It ends with an AssertionError where a bank comes out wrong. One process for all: torch takes seconds to be imported.
"""

from __future__ import annotations

import os
import random
import shutil
import signal
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from types import FrameType

from lcc.bank.bank import MemoryBank
from lcc.cli import bank_add
from lcc.cli.loading import load_model
from lcc.pipeline.batch import Outcome
from lcc.pipeline.options import CompileOptions
from lcc.synthetic.people import document
from lcc.utils.progress import Reporter
from tests.support.small_memories import small_memory

OLD, NEW, OTHER = "Mara lives in Oslo.", "Mara lives in Rome.", "Timo lives in Bonn."
# Kills of each kind of work, evenly over the calls into C that it makes.
KILLS = 8
# Memories that each of two writers adds.
EACH = 15


class Calls:
    """Calls into C, counted; the process is killed at the last one that it may make."""

    def __init__(self, last: int = 0):
        self.made, self._last = 0, last

    def __call__(self, frame: FrameType, event: str, function: object) -> None:
        self.made += event == "c_call"
        if event == "c_call" and self.made == self._last:
            os.kill(os.getpid(), signal.SIGKILL)


def forked(work: Callable[[], object], last_call: int = 0) -> int:
    """The id of a process that does ``work``, and is killed at a call into C unless ``last_call`` is 0."""
    process = os.fork()
    if process:
        return process
    try:
        sys.setprofile(Calls(last_call) if last_call else None)
        work()
        os._exit(0)
    finally:
        os._exit(1)


def calls_of(work: Callable[[], object]) -> int:
    """How often ``work`` calls into C."""
    calls = Calls()
    sys.setprofile(calls)
    work()
    sys.setprofile(None)
    return calls.made


def put(path: Path, key: str, text: str) -> None:
    with MemoryBank(path, create=True) as bank:
        bank.put(key, small_memory(text), text)


def put_timo(path: Path) -> None:
    put(path, "timo", OTHER)


def replace_mara(path: Path) -> None:
    put(path, "mara", NEW)


def remove_mara(path: Path) -> None:
    with MemoryBank(path) as bank:
        if "mara" in bank:
            bank.remove("mara")


def forget_mara(path: Path) -> None:
    with MemoryBank(path) as bank:
        bank.forget_text("mara")


def rebuild(path: Path) -> None:
    with MemoryBank(path) as bank:
        bank.rebuild()


def texts(path: Path) -> dict[str, str | None]:
    with MemoryBank(path) as bank:
        problems = [problem for problem in bank.verify() if problem.key]
        # A text is written before its memory, which may be the older one still.
        assert all("is of another text" in problem.what for problem in problems), problems
        for document in bank.documents():
            assert [hit.key for hit in bank.search(f"{document.key} lives", 1)] == [document.key] * document.has_text
        return {document.key: bank.text(document.key) for document in bank.documents()}


def check_kills(folder: Path, work: Callable[[Path], None], final: dict[str, str | None]) -> None:
    """Kill ``work`` at many moments: the bank is as it was, or as it is to be, and the same work ends it."""
    before, whole = folder / "before", folder / "whole"
    put(before, "mara", OLD)
    for path in (folder / "first", whole):  # What is imported and cached at first is no part of the work.
        shutil.copytree(before, path)
        total = calls_of(lambda path=path: work(path))
    assert texts(whole) == final
    for number in range(KILLS):
        path = folder / str(number)
        shutil.copytree(before, path)
        last = 1 + number * (total - 1) // (KILLS - 1)
        status = os.waitpid(forked(lambda path=path, last=last: work(path), last), 0)[1]
        assert status in (signal.SIGKILL, 0), status
        assert status or number > KILLS // 2, (number, total)
        assert texts(path) in ({"mara": OLD}, {"mara": None}, final), (work.__name__, number)
        work(path)
        assert texts(path) == final
        left = {str(file.relative_to(path)) for file in path.rglob("*") if file.suffix != ".lock"}
        assert left == {str(file.relative_to(whole)) for file in whole.rglob("*")}
        if work in (remove_mara, forget_mara):
            content = b"".join(file.read_bytes() for file in path.rglob("*") if file.is_file())
            assert b"oslo" not in content.lower(), (work.__name__, number)


def check_two_writers(path: Path) -> None:
    """Two processes add at the same time, while a third reads."""

    def add(name: str) -> None:
        for number in range(EACH):
            put(path, f"{name}{number}", f"{name} {number} lives here.")

    writers = [forked(lambda name=name: add(name)) for name in ("mara", "timo")]
    with MemoryBank(path, create=True) as bank:
        while writers:
            assert len(bank.search("mara timo", 100)) <= 2 * EACH
            done, status = os.waitpid(writers[0], os.WNOHANG)
            assert status == 0
            writers = writers[bool(done) :]
        assert len(bank.search("mara timo", 100)) == len(bank.documents()) == 2 * EACH
        assert bank.verify() == []
        assert bank.rebuilt is None


def check_killed_add(folder: Path) -> None:
    """What was compiled before the kill is skipped, what was begun and what was not is compiled."""
    sources = {f"d{number}": folder / f"d{number}.txt" for number in range(8)}
    for number, path in enumerate(sources.values()):
        path.write_text(document(random.Random(number), people=2, attributes=4).text)
    options = CompileOptions.of(compiler="flashmem", ratio=4, certify=False)
    model = load_model(None)
    bank_add.load_model = lambda name: model

    def add() -> list[Outcome]:
        with MemoryBank(folder / "bank", create=True) as bank:
            return bank_add.add_documents(bank, None, sources, options, Reporter(False))

    adding = forked(add)
    while len(list(folder.glob("bank/memories/*.safetensors"))) < 3:
        assert os.waitpid(adding, os.WNOHANG) == (0, 0)
    os.kill(adding, signal.SIGKILL)
    assert os.waitpid(adding, 0)[1] == signal.SIGKILL
    statuses = [outcome.status for outcome in add()]
    assert statuses == sorted(statuses, reverse=True), statuses
    assert set(statuses) == {"skipped", "compiled"}
    with MemoryBank(folder / "bank") as bank:
        assert bank.verify(*model) == []
        assert {key: bank.text(key) for key in sources} == {key: path.read_text() for key, path in sources.items()}


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        for work, final in (
            (put_timo, {"mara": OLD, "timo": OTHER}),
            (replace_mara, {"mara": NEW}),
            (remove_mara, {}),
            (forget_mara, {"mara": None}),
            (rebuild, {"mara": OLD}),
        ):
            check_kills(Path(folder, work.__name__), work, final)
        check_two_writers(Path(folder, "two"))
        check_killed_add(Path(folder))


if __name__ == "__main__":
    main()
