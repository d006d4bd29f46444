"""vLLM's own OpenAI server with the plugin: what every engine must do, and what vLLM alone might do wrong."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import httpx2 as httpx
import pytest

from benchmarks.serving.servers import vllm_server
from lcc.embedded_model import EMBEDDED
from lcc.utils.outputs import MEMORY_SUFFIX
from tests.support.chaos import ask_in_chaos
from tests.support.served import ENDPOINT, Endpoint, is_error
from tests.support.small_memories import small_memory
from tests.support.vllm_python import VLLM_PYTHON, needs_vllm

pytestmark = [needs_vllm, pytest.mark.slow]
ROOT = Path(__file__).parents[3]
CHAT = "/v1/chat/completions"


def test_vllm(shelf, planted, tmp_path):
    """One server for all: it takes a minute to start."""
    folder = shelf.copy(tmp_path / "memories")
    names = ("--served-model-name", "model", "alias")
    with vllm_server(VLLM_PYTHON, folder, str(EMBEDDED), 1, tmp_path / "vllm.log", names) as server:
        endpoint = Endpoint(f"{server.url}/v1", server.model, shelf.rows)
        every_engines_tests(endpoint.save(tmp_path / "endpoint.json"))
        with httpx.Client(base_url=server.url, timeout=60) as http:
            nothing_answers_without_its_memory(http, server.model, shelf)
            routes_of_vllm_are_left_alone(http, server.model)
            models_of_vllm_are_left_alone(http, shelf)
            files_that_change(http, server.model, shelf, folder)
        with httpx.Client(base_url=endpoint.url, timeout=60) as http:
            ask_in_chaos(http, server.model, folder, planted)


def every_engines_tests(endpoint: Path) -> None:
    """The tests of all engines, in a process that is told of this server."""
    ran = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "no:xdist",
         "tests/lcc/serving/test_every_engine.py"],
        cwd=ROOT, env=os.environ | {ENDPOINT: str(endpoint)}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert ran.returncode == 0, ran.stdout[-4000:]
    assert "skipped" not in ran.stdout


def chat(question: str, **more) -> dict:
    return {"messages": [{"role": "user", "content": question}], "temperature": 0, "max_tokens": 16} | more


def nothing_answers_without_its_memory(http, model: str, shelf) -> None:
    row = shelf.rows[0]
    for more in (
        {"prompt_logprobs": 0},
        {"prompt_logprobs": 2},
        {"use_beam_search": True, "n": 2},
        {"truncate_prompt_tokens": 8},
        {"chat_template": "{{ messages }}"},
        {"echo": True},
    ):
        refused = http.post(CHAT, json=chat(row.question, memory=row.memory, **more))
        assert (refused.status_code, refused.json()["error"]["param"]) == (400, next(iter(more)))
    body = {"model": model, "input": row.question, "memory": row.memory}
    for path in ("/v1/responses", "/v1/chat/completions/batch", "/v1/messages"):
        refused = http.post(path, json=body)
        assert (refused.status_code, refused.json()["error"]["param"]) == (400, "memory")
    # What a client says to the connector itself goes nowhere.
    forged = http.post(CHAT, json=chat(row.question, kv_transfer_params={"lcc": [["ada.lcc.safetensors", "x"]]}))
    assert forged.status_code == 400
    answered = http.post(CHAT, json=chat(row.question, memory=row.memory, cache_salt="mine")).json()
    assert answered["choices"][0]["message"]["content"].strip() == row.answer


def routes_of_vllm_are_left_alone(http, model: str) -> None:
    plain = http.post(CHAT, json=chat("Say: dog cat.", model=model, prompt_logprobs=1)).json()
    assert plain["prompt_logprobs"]
    assert "memory" not in plain
    assert http.get("/version").json()["version"]
    tokens = http.post("/tokenize", json={"model": model, "prompt": "dog cat"})
    assert tokens.status_code == 200


def models_of_vllm_are_left_alone(http, shelf) -> None:
    row = shelf.rows[0]
    said = http.post(CHAT, json=chat(row.question, model="alias", memory=row.memory)).json()
    assert said["choices"][0]["message"]["content"].strip() == row.answer
    assert http.post(CHAT, json=chat("Who?", model="alias")).status_code == 200
    # As a LoRA that vLLM does not know: it says so itself.
    unknown = http.post(CHAT, json=chat("Who?", model="a-lora"))
    assert (unknown.status_code, unknown.json()["error"]["param"]) == (404, "model")
    both = http.post(CHAT, json=chat("Who?", model="a-lora", memory=row.memory))
    assert (both.status_code, both.json()["error"]["param"]) == (400, "model")


def files_that_change(http, model: str, shelf, folder: Path) -> None:
    first, *_ = shelf.rows
    other = next(row for row in shelf.rows if row.memory != first.memory)
    path = folder / (first.memory + MEMORY_SUFFIX)
    whole, foreign = path.read_bytes(), (folder / (other.memory + MEMORY_SUFFIX)).read_bytes()

    def ask(row) -> httpx.Response:
        return http.post(CHAT, json=chat(row.question, memory=row.memory))

    def said(row) -> str:
        return ask(row).json()["choices"][0]["message"]["content"].strip()

    path.write_bytes(whole[:-50])
    refused = ask(first)
    assert is_error(refused.json(), 503)
    assert refused.headers["Retry-After"]
    assert said(other) == other.answer
    small_memory("of another model").save(path)
    assert is_error(ask(first).json(), 409)
    # Another memory under the same name: none of the first one's blocks is read.
    path.write_bytes(foreign)
    assert (
        http.post(CHAT, json=chat(other.question, memory=first.memory))
        .json()["choices"][0]["message"]["content"]
        .strip()
        == other.answer
    )
    path.write_bytes(whole)
    assert said(first) == first.answer
    listed = http.get("/v1/memories").json()["data"]
    assert {row["id"] for row in listed} == set(shelf.memories)
    added = http.post("/v1/memories", json={"id": "alias", "path": path.name})
    assert added.json()["digest"] == http.get(f"/v1/memories/{first.memory}").json()["digest"]
    assert http.post(CHAT, json=chat(first.question, memory="alias")).json()["memory"]["id"] == "alias"
    assert http.delete("/v1/memories/alias").status_code == 200
    assert is_error(http.post(CHAT, json=chat(first.question, memory="alias")).json(), 404)
