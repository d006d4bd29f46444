"""``lcc serve`` as a process of its own."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import threading
from contextlib import contextmanager
from pathlib import Path

import httpx2 as httpx
import pytest
from typer.testing import CliRunner

import lcc
from lcc.cli import app as cli
from lcc.cli import serve
from lcc.memory.keys import write_key
from lcc.serving import running as process
from tests.support.served import BASE, chat_body, until

ROOTS = os.pathsep.join(map(str, (Path(lcc.__file__).parents[2], Path(lcc.__file__).parents[1])))


@contextmanager
def serving(folder, *options):
    """The process, and the address that it prints."""
    command = [sys.executable, "-m", "lcc", "serve", str(folder), *options]
    environment = os.environ | {"PYTHONPATH": ROOTS, "OMP_NUM_THREADS": "1"}
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment
    ) as server:
        try:
            told = re.fullmatch(r"serving on (http://\S+/v1)\n", server.stdout.readline())
            assert told, server.stderr.read()
            yield server, told[1]
        finally:
            server.kill()


def test_the_life_of_a_server(folder, shelf):
    (folder / "broken.lcc.safetensors").write_bytes(b"x")
    row = shelf.rows[0]
    ask = chat_body(row.question, row.memory)
    with serving(folder, "--port", "0") as (server, url), httpx.Client(base_url=url, timeout=30) as http:
        port = url.removesuffix("/v1").rsplit(":", 1)[1]
        assert http.post("/chat/completions", json=ask).json()["choices"][0]["message"]["content"] == row.answer
        assert http.get("/models").json()["data"][0]["id"] == BASE

        refused = subprocess.run(
            [sys.executable, "-m", "lcc", "serve", str(folder), "--port", port],
            capture_output=True, text=True, check=False, env=os.environ | {"PYTHONPATH": ROOTS},
        )  # fmt: skip
        assert refused.returncode == 2
        assert re.search(rf"error: cannot listen on 127.0.0.1, port {port}: .*--port", refused.stderr)
        assert "Traceback" not in refused.stderr

        body = chat_body("Who?", "ada", max_tokens=200, stream=True, n=4, temperature=2)
        with http.stream("POST", "/chat/completions", json=body) as response:
            lines = response.iter_lines()
            next(lines)
            server.send_signal(signal.SIGTERM)
            *_, done = [line for line in lines if line]
        assert done == "data: [DONE]"
        assert server.wait(20) in (0, -signal.SIGTERM)
        said = server.stderr.read()
        assert "3 memories of the model embedded" in said
        assert "not served: " in said
        assert not re.search("Traceback|never awaited", said), said

    with serving(folder, "--port", port) as (server, url), httpx.Client(base_url=url, timeout=30) as http:
        assert http.post("/chat/completions", json=ask).json()["choices"][0]["message"]["content"] == row.answer
        server.kill()
        server.wait(20)

    with serving(folder, "--port", port, "--rows", "1") as (server, url):
        assert stopped_in_the_middle(server, url) == [12]
        server.wait(20)


def stopped_in_the_middle(server, url) -> list[int]:
    """How many answers of one request come, most of which wait when the server is told to stop."""
    counts = []

    def ask():
        body = chat_body("Who?", "ada", max_tokens=100, temperature=2, n=12)
        counts.append(len(httpx.post(f"{url}/chat/completions", json=body, timeout=60).json()["choices"]))

    thread = threading.Thread(target=ask)
    thread.start()
    until(lambda: counts or "lcc_running 1.0" in httpx.get(url.replace("/v1", "/metrics")).text)
    server.send_signal(signal.SIGTERM)
    thread.join(60)
    return counts


def test_a_key_from_the_environment(folder, monkeypatch):
    monkeypatch.setenv("LCC_API_KEY", "secret")
    with serving(folder, "--port", "0", "--name", "a:b") as (server, url), httpx.Client(base_url=url) as http:
        assert http.get("/models").status_code == 401
        cards = http.get("/models", headers={"Authorization": "Bearer secret"}).json()["data"]
        assert cards[1]["id"] == "a:b:ada"
        server.send_signal(signal.SIGINT)
        assert server.wait(20) is not None
        said = server.stderr.read()
        assert "secret" not in said
        assert "Traceback" not in said


@pytest.fixture
def lcc_serve(embedded, monkeypatch):
    """``lcc serve`` with the embedded model: its exit code and what it printed; the server itself does not run."""
    monkeypatch.setattr("lcc.cli.loading.load_model", lambda name: embedded)
    served = []

    class Server:
        def __init__(self, app):
            served.append(app)

        def run(self, sockets):
            assert sockets[0].getsockname()[1]

    monkeypatch.setattr(process, "Server", Server)

    def run(*arguments):
        done = CliRunner().invoke(cli.app, ["serve", *map(str, arguments)])
        for app in served:
            app.state.engine._batch.close()
        return done

    return run


def test_starts(lcc_serve, folder, tmp_path):
    (tmp_path / "empty").mkdir()
    done = lcc_serve(tmp_path / "empty", "--port", 0)
    assert done.exit_code == 0
    assert "0 memories of the model embedded" in done.stderr
    assert re.match(r"serving on http://127.0.0.1:\d+/v1", done.stdout)
    (folder / "broken.lcc.safetensors").write_bytes(b"x")
    done = lcc_serve(folder, "--port", 0, "--host", "0.0.0.0")
    assert "3 memories" in done.stderr
    assert "broken" in done.stderr
    assert "--api-key" in done.stderr
    assert "--api-key" not in lcc_serve(folder, "--port", 0, "--host", "0.0.0.0", "--api-key", "x").stderr


def test_serves_what_a_key_signed_alone(lcc_serve, folder, tmp_path):
    private, public = write_key(tmp_path / "key")
    lcc.sign(folder / "ada.lcc.safetensors", private)
    said = lcc_serve(folder, "--port", 0, "--key", public).stderr
    assert "1 memories" in said
    assert "bo.lcc.safetensors is not signed" in " ".join(said.split())


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ([], "--bank"),
        (["{tmp}/missing"], "no folder"),
        (["{tmp}/file"], "no folder"),
        (["{tmp}", "--host", "256.256.256.256"], "cannot listen"),
        (["{tmp}", "--host", ""], "cannot listen"),
        (["{tmp}", "--host", "a" * 100], "cannot listen"),
        (["{tmp}", "--port", "65536"], "--port"),
        (["{tmp}", "--rows", "0"], "--rows"),
        (["{tmp}", "--pool", "0"], "--pool"),
        (["--bank", "{tmp}/missing"], "{tmp}"),
        (["--bank", "{tmp}", "--key", "{tmp}/key.pub"], "a bank keeps no signatures"),
        (["{tmp}", "--key", "{tmp}/missing"], "is no file"),
    ],
)
def test_starts_that_fail(lcc_serve, tmp_path, arguments, says):
    (tmp_path / "file").touch()
    done = lcc_serve(*[argument.format(tmp=tmp_path) for argument in arguments])
    assert done.exit_code == 2
    assert says.format(tmp=tmp_path) in done.stderr.replace("\n", "")
    assert done.exception is None or isinstance(done.exception, SystemExit)


def test_names_of_models(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for model, name in (
        (None, "embedded"),
        ("org/Llama-3.2-1.5B", "Llama-3.2-1.5B"),
        ("/models/Qwen2.5-0.5B/", "Qwen2.5-0.5B"),
        ("model.Q4_K_M.gguf", "model.Q4_K_M"),
        (".", tmp_path.name),
    ):
        assert serve._name_of(model) == name
