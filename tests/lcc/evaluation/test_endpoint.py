"""The judge's endpoint: every wait ends, and nobody but it is told the key."""

from __future__ import annotations

import gzip
import json
import logging
import os
import re
import signal
import socket
import sys
import threading
import time
from contextlib import suppress

import pytest

from lcc.errors import InputError
from lcc.evaluation import Example, Judge
from lcc.evaluation.chat_client import LONGEST_REPLY
from lcc.evaluation.endpoint import is_loopback

EXAMPLE = Example("Bolt built two silver wings.", "What did Bolt build?", ("two wings",))
# Seconds in which a busy machine does what takes less than one, and in which no server here is ever done.
PATIENT = 20
KEY = "sk-SECRET"
HEADERS = b"HTTP/1.1 200 OK\r\n"


def says(content: str) -> bytes:
    body = json.dumps({"choices": [{"message": {"content": content}}]}).encode()
    return HEADERS + b"Content-Length: %d\r\n\r\n" % len(body) + body


@pytest.fixture
def server():
    """Takes every request and answers with ``server.pieces``, each after ``server.pause`` seconds."""

    class Server:
        pieces, pause, seen = (), 0.0, b""

        def __init__(self):
            self.socket = socket.create_server(("127.0.0.1", 0))
            self.address = f"127.0.0.1:{self.socket.getsockname()[1]}"
            self.over = threading.Event()
            threading.Thread(target=self.accept, daemon=True).start()

        def accept(self):
            while not self.over.is_set():
                try:
                    connection, _ = self.socket.accept()
                except OSError:
                    return
                threading.Thread(target=self.answer, args=(connection,), daemon=True).start()

        def answer(self, connection):
            with connection, suppress(OSError):
                with connection.makefile("rb") as request:
                    headers = b"".join(iter(request.readline, b"\r\n"))
                    request.read(int(re.search(rb"Content-Length: (\d+)", headers)[1]))
                self.seen += headers
                for piece in self.pieces:
                    if self.over.wait(self.pause):
                        return
                    connection.sendall(piece)

    made = Server()
    yield made
    made.over.set()
    made.socket.close()


def judge(server, **options) -> Judge:
    return Judge(f"http://{server.address}/v1", "m", **{"patience": 0.0, "attempts": 2, "timeout": 0.4, **options})


def drip(content: bytes) -> list[bytes]:
    return [bytes([byte]) for byte in content] * 1000


@pytest.mark.parametrize(
    "pieces",
    [
        drip(b"H"), drip(HEADERS + b"X: "), [HEADERS + b"\r\n", *drip(b" ")], [HEADERS + b"\r\n"] + [b""] * 999,
        [b"HTTP/1.1 401 No\r\n\r\n", *drip(b" ")],
    ],
)  # fmt: skip
def test_a_reply_that_does_not_end(pieces, server):
    server.pieces, server.pause = pieces, 0.05
    began = time.monotonic()
    with pytest.raises(InputError, match=r"no score in 2 attempts: no (reply|connection)"):
        judge(server).verdict(EXAMPLE, "x")
    assert time.monotonic() - began < PATIENT


def test_all_attempts_together_end(server):
    server.pieces, server.pause = drip(b"H"), 0.05
    began = time.monotonic()
    with pytest.raises(InputError, match="gave no score in"):
        judge(server, attempts=100, longest=0.6).verdict(EXAMPLE, "x")
    with pytest.raises(InputError, match="gave no score in 1 attempts"):
        judge(server, attempts=100, longest=0.6, patience=60.0).verdict(EXAMPLE, "x")
    assert time.monotonic() - began < PATIENT


@pytest.fixture
def interruptible():
    """A job in the background is started with interrupts ignored."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.parametrize(
    "ask", [lambda judge: judge.verdict(EXAMPLE, "x"), lambda judge: [*judge.verdicts([(EXAMPLE, "x")] * 9)]]
)
def test_an_interrupt_is_heeded_while_the_judge_hangs(ask, server, interruptible):
    server.pieces, server.pause = [b""], 60.0
    before = set(threading.enumerate())
    interrupting = threading.Timer(0.3, os.kill, (os.getpid(), signal.SIGINT))
    interrupting.daemon = True
    interrupting.start()
    began = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        ask(judge(server, timeout=60.0))
    assert time.monotonic() - began < PATIENT
    # Nothing waits for those that are left: not this call, and not the end of the process.
    assert all(thread.daemon for thread in set(threading.enumerate()) - before)


def test_nothing_is_asked_after_the_end(server):
    server.pieces = [says('{"score": 1}')]
    verdicts = judge(server, workers=1, timeout=20.0).verdicts([(EXAMPLE, "x")] * 9)
    assert next(verdicts).score == 1
    verdicts.close()
    time.sleep(0.3)
    assert server.seen.count(b"POST") <= 2


@pytest.mark.parametrize("status", [b"200 OK", b"500 Oh", b"401 No"])
def test_a_reply_is_limited(status, server):
    server.pieces = [b"HTTP/1.1 " + status + b"\r\n\r\n", b" " * (LONGEST_REPLY + 1)]
    with pytest.raises(InputError, match="longer than 1048576 bytes"):
        judge(server, timeout=20.0).verdict(EXAMPLE, "x")


def test_a_reply_is_not_inflated(server):
    body = gzip.compress(says('{"score": 4}').partition(b"\r\n\r\n")[2])
    server.pieces = [HEADERS + b"Content-Encoding: gzip\r\n\r\n" + body]
    with pytest.raises(InputError, match="does not speak"):
        judge(server, timeout=20.0).verdict(EXAMPLE, "x")
    assert b"accept-encoding: identity" in server.seen.lower()


@pytest.mark.parametrize(
    "reply", ["[" * 100_000, '{"choices": [{"message": {"content": ' + "9" * 5000 + "}}]}", '"\\ud800"']
)
def test_a_reply_that_is_no_json_to_read(reply, server):
    server.pieces = [HEADERS + b"\r\n" + reply.encode()]
    with pytest.raises(InputError, match=r"does not speak OpenAI's chat protocol: its reply (is|holds)"):
        judge(server, timeout=20.0).verdict(EXAMPLE, "x")


@pytest.mark.parametrize("host", ["localhost", "127.0.0.1", "127.8.9.10", "[::1]", "[::ffff:127.0.0.1]", "LOCALHOST."])
def test_no_proxy_for_this_machine(host, server, monkeypatch):
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy"):
        monkeypatch.setenv(name, f"http://{server.address}")
    monkeypatch.delenv("no_proxy", raising=False)
    assert is_loopback(f"http://{host}:9/v1")
    with pytest.raises(InputError, match="no connection"):
        Judge(f"http://{host}:9/v1", "m", KEY, attempts=1).verdict(EXAMPLE, "x")
    assert server.seen == b""


def test_other_addresses_are_asked_over_the_proxy(server, monkeypatch):
    monkeypatch.setenv("http_proxy", f"http://{server.address}")
    monkeypatch.delenv("no_proxy", raising=False)
    monkeypatch.delenv("NO_PROXY", raising=False)
    server.pieces = [says('{"score": 1}')]
    assert Judge("http://judge.example/v1", "m").verdict(EXAMPLE, "x").score == 1
    assert server.seen.startswith(b"POST http://judge.example/v1/chat/completions ")


def test_a_proxy_that_cannot_be_used(monkeypatch):
    monkeypatch.setenv("http_proxy", "gopher://user:SECRET@proxy.example")
    with pytest.raises(InputError, match=r"the judge at http://judge\.example/v1 cannot be asked: ") as refusal:
        Judge("http://judge.example/v1", "m").verdict(EXAMPLE, "x")
    assert "SECRET" not in str(refusal.value)


ESCAPED = "".join(f"\\u{ord(letter):04x}" for letter in KEY)


@pytest.mark.parametrize(
    "pieces",
    [
        [b"HTTP/1.1 401 Unauthorized\r\n\r\n" + b"x" * 296 + KEY.encode()],
        [b"HTTP/1.1 500 Oh\r\n\r\nAuthorization: Bearer " + KEY.encode()],
        [b"Bearer " + KEY.encode() + b"\r\n\r\n"],
        [HEADERS + b"\r\nBearer " + KEY.encode()],
        [says(f"no score for {KEY}")],
    ],
)
def test_a_key_that_is_echoed_is_in_no_error(pieces, server):
    server.pieces = pieces
    with pytest.raises(InputError) as refusal:
        judge(server, key=KEY, timeout=20.0).verdict(EXAMPLE, "x")
    assert f"Bearer {KEY}".encode() in server.seen
    assert "sk-S" not in str(refusal.value)


@pytest.mark.parametrize("status", [b"200 OK", b"401 No", b"302 There"])
def test_a_key_is_in_no_log(status, server, caplog):
    caplog.set_level(logging.DEBUG)
    echo = b"Bearer " + KEY.encode()
    server.pieces = [b"HTTP/1.1 " + status + b"\r\n\r\n" + echo]
    with pytest.raises(InputError):
        judge(server, key=KEY, timeout=20.0).verdict(EXAMPLE, "x")
    assert echo in server.seen
    assert caplog.messages
    assert KEY not in caplog.text


@pytest.mark.parametrize("key", [KEY, None])
def test_no_credentials_are_sent_but_the_key(key, server, monkeypatch):
    for name in ("API_KEY", "ADMIN_KEY", "ORG_ID", "PROJECT_ID"):
        monkeypatch.setenv(f"OPENAI_{name}", "AMBIENT")
    monkeypatch.setenv("OPENAI_CUSTOM_HEADERS", "authorization: Bearer AMBIENT\nopenai-organization: AMBIENT")
    monkeypatch.setenv("OPENAI_BASE_URL", "http://127.0.0.1:9/v1")
    server.pieces = [says('{"score": 1}')]
    judge(server, key=key, timeout=20.0).verdict(EXAMPLE, "x")
    sent = re.findall(rb"(?im)^authorization: (.*)\r$", server.seen)
    assert sent == ([b"Bearer " + KEY.encode()] if key else [])
    assert b"AMBIENT" not in server.seen


def test_without_the_client(monkeypatch):
    monkeypatch.setitem(sys.modules, "openai", None)
    monkeypatch.delitem(sys.modules, "lcc.evaluation.chat_client")
    with pytest.raises(InputError, match=r"pip install 'lcc-kernels\[eval\]'"):
        Judge("https://judge.example/v1", "m")


@pytest.mark.parametrize("echo", [KEY, ESCAPED])
def test_a_key_that_is_echoed_is_in_no_verdict(echo, server):
    server.pieces = [says(f'{{"score": 4, "reason": "given {echo}"}}')]
    verdict = judge(server, key=KEY, timeout=20.0).verdict(EXAMPLE, "x")
    assert (verdict.score, verdict.reason) == (4, "given [the key]")
    assert KEY not in repr(judge(server, key=KEY))
