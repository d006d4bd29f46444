"""A server of memories in this process, and what it is asked."""

from __future__ import annotations

import json
import random
import shutil
import socket
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import openai
import pytest

import lcc
from lcc.memory.attachable import check_memory
from lcc.modeling.window import window_of
from lcc.serving.app import make_app
from lcc.serving.catalog import Catalog
from lcc.serving.front import Front
from lcc.serving.prompts import Prompts
from lcc.serving.running import Server
from lcc.serving.transformers_engine import TransformersEngine
from lcc.synthetic.people import Document, document
from lcc.utils.hashing import text_digest
from lcc.utils.outputs import MEMORY_SUFFIX
from tests.support.plain_memories import plain_memory

BASE = "embedded"
# Names the file of an ``Endpoint`` that is to be tested instead of those that the tests start.
ENDPOINT = "LCC_TEST_ENDPOINT"
NAMES = ("ada", "bo", "cy")


@dataclass(frozen=True)
class Row:
    """A question to a memory, with the answer that ``lcc.ask`` gives in float32."""

    memory: str
    question: str
    answer: str


@dataclass(frozen=True)
class Endpoint:
    """All that a client knows of a server, whatever its engine.

    Attributes:
        url: of the API.
        model: the base model's name.
        rows: what it is asked, and answers.
    """

    url: str
    model: str
    rows: tuple[Row, ...]

    def save(self, path: Path) -> Path:
        path.write_text(json.dumps(asdict(self)))
        return path

    @classmethod
    def load(cls, path: Path) -> Endpoint:
        content = json.loads(path.read_text())
        return cls(content["url"], content["model"], tuple(Row(**row) for row in content["rows"]))


@dataclass(frozen=True)
class Shelf:
    """A folder of memories, by id, with rows of questions; nothing in it is ever changed."""

    folder: Path
    memories: dict[str, lcc.Memory]
    rows: tuple[Row, ...]

    def file(self, name: str) -> Path:
        return self.folder / (name + MEMORY_SUFFIX)

    def copy(self, folder: Path) -> Path:
        """The memories in a folder of their own, which a test may change."""
        return Path(shutil.copytree(self.folder, folder))


def made_text(number: int) -> Document:
    """What the memory of a number was made of."""
    return document(random.Random(number), people=2, attributes=3)


def fill_shelf(model: Any, tokenizer: Any, folder: Path, questions: int = 4) -> Shelf:
    """Memories of three short documents, made without compiling."""
    memories, rows = {}, []
    for seed, name in enumerate(NAMES):
        told = made_text(seed)
        with pytest.MonkeyPatch.context() as monkeypatch:
            memory = plain_memory(model, tokenizer, told.text, monkeypatch)[0]
        memories[name] = replace(memory, source_sha256=text_digest(told.text))
        memories[name].save(folder / (name + MEMORY_SUFFIX))
        asked = [question.text for question in random.Random(seed).sample(told.questions(), questions)]
        answers = lcc.ask(model, tokenizer, memories[name], asked, max_new_tokens=24)
        rows += [Row(name, *both) for both in zip(asked, answers, strict=True)]
    return Shelf(folder, memories, tuple(rows))


def make_catalog(model: Any, tokenizer: Any, folder: Path, trusted: Sequence[Path] | None = None) -> Catalog:
    def check(memory: lcc.Memory) -> None:
        memory.verify(model, tokenizer)
        check_memory(model, memory)

    return Catalog(folder, check, trusted)


def make_front(model: Any, tokenizer: Any, folder: Path, base: str = BASE) -> Front:
    return Front(base, make_catalog(model, tokenizer, folder), Prompts(tokenizer, window_of(model)))


def make_engine(
    model: Any, tokenizer: Any, front: Front, rows: int = 8, waiting: int = 64, pool: int = 64 << 20
) -> TransformersEngine:
    return TransformersEngine(model, tokenizer, front.catalog, rows, waiting, pool)


class Running:
    """An application behind uvicorn, in a thread of its own.

    Attributes:
        url: of the API.
    """

    def __init__(self, app: Any, grace: int = 5):
        self.app = app
        self._socket = socket.create_server(("127.0.0.1", 0))
        self.root = f"http://127.0.0.1:{self._socket.getsockname()[1]}"
        self.url = f"{self.root}/v1"
        self._server = Server(app, grace)
        self._thread = threading.Thread(target=self._server.run, kwargs={"sockets": [self._socket]})
        self._thread.start()
        until(lambda: self._server.started)

    @property
    def engine(self) -> TransformersEngine:
        return self.app.state.engine

    def client(self, api_key: str = "none") -> openai.OpenAI:
        return openai.OpenAI(base_url=self.url, api_key=api_key, max_retries=0, timeout=30)

    def tell_to_stop(self) -> None:
        self._server.should_exit = True

    def stop(self) -> None:
        self.tell_to_stop()
        self._thread.join(30)
        self._socket.close()
        assert not self._thread.is_alive()


@contextmanager
def running(
    model: Any,
    tokenizer: Any,
    folder: Path,
    api_key: str | None = None,
    bank: Any = None,
    grace: int = 5,
    **options: int,
) -> Iterator[Running]:
    """A server of a folder; ``options`` are those of ``make_engine``."""
    front = make_front(model, tokenizer, folder)
    server = Running(make_app(front, make_engine(model, tokenizer, front, **options), api_key, bank), grace)
    try:
        yield server
    finally:
        server.stop()


def chat_body(question: str, memory: str | None = None, **more: Any) -> dict[str, Any]:
    """A chat of one question, in short."""
    said = {"model": BASE, "messages": [{"role": "user", "content": question}], "max_tokens": 24}
    return said | ({} if memory is None else {"memory": memory}) | more


def until(true: Any, seconds: float = 20) -> None:
    """Wait for something that must come."""
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, "it never came"
        time.sleep(0.005)


def is_error(body: Any, status: int) -> bool:
    """Whether a body is an error in OpenAI's shape."""
    error = body.get("error") if isinstance(body, dict) and set(body) == {"error"} else None
    return (
        isinstance(error, dict)
        and set(error) == {"message", "type", "param", "code"}
        and bool(error["message"])
        and error["type"].endswith("Error")
        and isinstance(error["param"], str | None)
        and error["code"] == status
    )
