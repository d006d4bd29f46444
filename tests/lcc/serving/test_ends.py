"""How answers end that do not end well: the client goes, the engine fails, the server is told to stop."""

from __future__ import annotations

import gc
import json
import socket
import threading
from time import sleep

import httpx2 as httpx
import openai
import pytest

from lcc.modeling.row_cache import RowCache
from lcc.serving.answering import Order
from lcc.serving.batching import Job
from lcc.serving.drawing import Draws
from lcc.serving.openai_format import Choice
from tests.support.served import chat_body, is_error, running, until


@pytest.fixture
def endless(loaded, folder):
    """A server of two rows, whose answers end at max_tokens alone, and its client."""
    with running(*loaded, folder, rows=2, waiting=4) as server:
        server.engine._batch.ends = frozenset()
        with httpx.Client(base_url=server.url, timeout=30) as http:
            yield server, http


def idle(server) -> bool:
    return server.engine.stats() | {"attached_bytes": 0} == {"running": 0, "waiting": 0, "attached_bytes": 0}


def long_chat(**more) -> dict:
    return chat_body("Who?", "ada", **({"max_tokens": 4000} | more))


def post_and_go(server, body: dict, running: int, waiting: int) -> None:
    """Ask without waiting for the answer, and go once it is under way."""
    content = json.dumps(body).encode()
    host, port = server.root.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port))) as sock:
        head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: {host}\r\nContent-Type: application/json\r\n"
        sock.sendall(f"{head}Content-Length: {len(content)}\r\n\r\n".encode() + content)
        until(lambda: server.engine.stats().items() >= {"running": running, "waiting": waiting}.items())


def test_a_client_that_goes_in_the_middle_of_a_stream(endless):
    server, http = endless
    for choices in (1, 2, 4):
        with http.stream("POST", "/chat/completions", json=long_chat(stream=True, n=choices)) as response:
            lines = response.iter_lines()
            assert next(lines).startswith("data: ")
            assert not idle(server)
        until(lambda: idle(server))
    until(lambda: server.engine._batch._cache is None)


def test_a_client_that_goes_before_its_answer(endless):
    server, _ = endless
    post_and_go(server, long_chat(), 1, 0)
    until(lambda: idle(server))
    post_and_go(server, long_chat(n=3), 2, 1)
    until(lambda: idle(server))


def test_a_client_that_goes_while_it_waits_leaves_its_place(endless):
    server, http = endless
    with http.stream("POST", "/chat/completions", json=long_chat(stream=True, n=2)) as response:
        lines = response.iter_lines()
        next(lines)
        for _ in range(4):
            post_and_go(server, long_chat(n=3), 2, 3)
            until(lambda: server.engine.stats()["waiting"] == 0)
        refused = http.post("/chat/completions", json=long_chat(n=5))
        assert is_error(refused.json(), 429)
        assert refused.headers["retry-after"] == "1"
    until(lambda: idle(server))
    assert http.post("/chat/completions", json=long_chat(max_tokens=2)).status_code == 200


def test_a_failure_in_the_middle_of_a_stream_is_its_last_event(endless, monkeypatch):
    server, http = endless
    failing, real = threading.Event(), RowCache.step

    def step(*arguments):
        if failing.is_set():
            failing.clear()
            raise RuntimeError("the secret of the inside")
        return real(*arguments)

    monkeypatch.setattr(RowCache, "step", step)
    with http.stream("POST", "/chat/completions", json=long_chat(stream=True)) as response:
        lines = response.iter_lines()
        next(lines)
        failing.set()
        *_, error, done = [line.removeprefix("data: ") for line in lines if line]
    assert done == "[DONE]"
    assert is_error(json.loads(error), 500)
    assert "secret" not in error
    with server.client() as client:
        body = long_chat(stream=True)
        events = client.chat.completions.create(extra_body={"memory": body.pop("memory")}, **body)
        next(events)
        failing.set()
        with pytest.raises(openai.APIError, match="engine failed"):
            list(events)
    failing.set()
    failed = http.post("/chat/completions", json=long_chat())
    assert is_error(failed.json(), 500)
    assert http.post("/chat/completions", json=long_chat(max_tokens=2)).status_code == 200
    assert http.get(f"{server.root}/health").status_code == 200


def test_a_memory_that_is_gone_between_the_check_and_the_answer(own_server, monkeypatch):
    catalog, real = own_server.engine.catalog, own_server.engine.catalog.memory

    def memory(entry):
        (catalog.folder / "ada.lcc.safetensors").unlink()
        return real(entry)

    monkeypatch.setattr(catalog, "memory", memory)
    for stream in (False, True):
        with httpx.Client(base_url=own_server.url) as http:
            content = (catalog.folder / "ada.lcc.safetensors").read_bytes()
            response = http.post("/chat/completions", json=chat_body("Who?", "ada", stream=stream))
            assert is_error(response.json(), 503)
            assert response.headers["retry-after"] == "1"
            assert str(catalog.folder) not in response.text
            (catalog.folder / "ada.lcc.safetensors").write_bytes(content)


def test_an_engine_that_is_dead_is_not_healthy(endless):
    server, http = endless
    server.engine._batch.close()
    assert is_error(http.get(f"{server.root}/health").json(), 503)
    response = http.post("/chat/completions", json=long_chat())
    assert is_error(response.json(), 503)
    assert response.headers["retry-after"] == "5"


def test_a_server_that_stops_ends_what_is_under_way(loaded, folder, caplog):
    """Its threads are gone then, and nothing is said of a loop that was closed."""
    before = threading.active_count()
    with running(*loaded, folder) as server, httpx.Client(base_url=server.url, timeout=30) as http:
        assert http.post("/chat/completions", json=chat_body("Who?", max_tokens=2)).status_code == 200
        with http.stream("POST", "/chat/completions", json=chat_body("Who?", max_tokens=400, stream=True)) as response:
            lines = response.iter_lines()
            next(lines)
            server.tell_to_stop()
            *_, done = [line for line in lines if line]
        assert done == "data: [DONE]"
    until(lambda: threading.active_count() <= before)
    assert not caplog.records


def test_an_answer_that_lasts_longer_than_the_grace_ends_with_an_error(loaded, folder, monkeypatch, caplog):
    real = RowCache.step
    monkeypatch.setattr(RowCache, "step", lambda *arguments: sleep(0.02) or real(*arguments))
    ends = []
    with running(*loaded, folder, grace=0, rows=2) as server, httpx.Client(base_url=server.url, timeout=30) as http:
        server.engine._batch.ends = frozenset()
        threads = [
            threading.Thread(target=lambda: ends.append(http.post("/chat/completions", json=long_chat())))
            for _ in range(3)
        ]
        with http.stream("POST", "/chat/completions", json=long_chat(stream=True)) as response:
            lines = response.iter_lines()
            next(lines)
            for thread in threads:
                thread.start()
            until(lambda: server.engine.stats()["waiting"] == 2)
            server.tell_to_stop()
            *_, error, done = [line.removeprefix("data: ") for line in lines if line]
        for thread in threads:
            thread.join()
    assert done == "[DONE]"
    assert is_error(json.loads(error), 503)
    assert [is_error(response.json(), 503) for response in ends] == [True] * 3
    assert not caplog.records


def test_many_requests_leave_nothing_behind(server, http, shelf):
    bodies = [chat_body(row.question, row.memory, n=2, stop=["zz"]) for row in shelf.rows[::4]]
    bodies += [bodies[0] | {"stream": True}, chat_body("Who?", "nobody"), chat_body("Who?", n=0)]

    def left() -> int:
        until(lambda: idle(server))
        gc.collect()
        return sum(type(each) in (Job, Order, Choice, Draws) for each in gc.get_objects())

    for _ in range(3):
        for body in bodies:
            http.post("/chat/completions", json=body)
    before = left()
    for _ in range(10):
        for body in bodies:
            http.post("/chat/completions", json=body)
    assert left() <= before + 4
