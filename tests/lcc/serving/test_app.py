"""The server of lcc serve over HTTP, when all goes well or the request is wrong."""

from __future__ import annotations

import json
import shutil
from functools import partial

import httpx2 as httpx
import pytest

from lcc.serving.api_models import UNKNOWN
from tests.support.served import BASE, chat_body, is_error, running


def refused(response: httpx.Response, status: int, param: str | None = None) -> str:
    """The message of an error."""
    assert response.status_code == status, response.text[:300]
    assert is_error(response.json(), status), response.text[:300]
    assert response.json()["error"]["param"] == param, response.text[:300]
    return response.json()["error"]["message"]


@pytest.fixture
def ask(http):
    return lambda *arguments, **more: http.post("/chat/completions", json=chat_body(*arguments, **more))


@pytest.fixture
def complete(http):
    return lambda prompt, **more: http.post("/completions", json={"prompt": prompt, "max_tokens": 4} | more)


@pytest.mark.parametrize("name", UNKNOWN)
def test_what_would_change_the_answer_is_refused_unless_it_does_not(ask, name):
    given = {"response_format": {"type": "json_object"}, "logit_bias": {"5": 1}, "n": 2}.get(name, [{"a": 1}])
    refused(ask("Who?", **{name: given}), 400, name)
    for harmless in (None, *UNKNOWN[name]):
        assert ask("Who?", max_tokens=1, **{name: harmless}).status_code == 200


@pytest.mark.parametrize(
    ("more", "param"),
    [
        ({"max_tokens": 0}, "max_tokens"),
        ({"max_tokens": -1}, "max_tokens"),
        ({"max_tokens": 1.5}, "max_tokens"),
        ({"max_tokens": 5000}, "max_tokens"),
        ({"max_completion_tokens": 5000}, "max_tokens"),
        ({"max_completion_tokens": 0}, "max_completion_tokens"),
        ({"temperature": -0.1}, "temperature"),
        ({"temperature": 2.1}, "temperature"),
        ({"temperature": "hot"}, "temperature"),
        ({"top_p": 0}, "top_p"),
        ({"top_k": -2}, "top_k"),
        ({"n": 0}, "n"),
        ({"n": 17}, "n"),
        ({"seed": "x"}, "seed"),
        ({"stop": ""}, "stop"),
        ({"stop": ["a"] * 5}, "stop"),
        ({"stream": "maybe"}, "stream"),
        ({"messages": []}, "messages"),
        ({"messages": "Who?"}, "messages"),
        ({"messages": [{"role": "tool", "content": "x"}]}, "messages"),
        ({"messages": [{"role": "user"}]}, "messages"),
        ({"model": 5}, "model"),
        ({"memory": 5}, "memory"),
        ({"memories": []}, "memories"),
        ({"memories": ["ada", "ada"]}, "memories"),
        ({"cartridges": [{"id": "ada", "source": "wandb"}]}, "cartridges"),
    ],
)
def test_wrong_fields(ask, more, param):
    refused(ask("Who?", **more), 400, param)


def test_numbers_at_the_edges(ask, shelf):
    row = shelf.rows[0]
    for more in (
        {"seed": 10**30},
        {"seed": -(2**63)},
        {"top_k": 10**30},
        {"top_k": 0},
        {"top_k": -1},
        {"top_p": 5e-324},
        {"temperature": 5e-324},
        {"temperature": 1e-45},
        {"stop": ["\0", "x" * 10**5]},
    ):
        response = ask(row.question, row.memory, **({"temperature": 1, "top_k": 1} | more))
        assert response.status_code == 200, response.text
    longest = int("9" * 4300)
    refused(ask("Who?", max_tokens=longest), 400, "max_tokens")
    refused(ask("Who?", memory="ada", max_tokens=10**100), 400, "max_tokens")


def test_bodies_that_are_no_requests(http):
    send = partial(http.post, "/chat/completions", headers={"Content-Type": "application/json"})
    deep = '{"messages": ' + "[" * 10**5 + "]" * 10**5 + "}"
    for content in ("", "{", "nonsense", "[]", "null", "5", '""', b"\xff\xfe", '{"a": ' + "9" * 5000 + "}", deep):
        assert refused(send(content=content), 400)
    assert "JSON" in refused(http.post("/chat/completions", content="{}"), 400)
    for question in ("\\ud800", "\\udfff\\ud800"):
        content = json.dumps({"messages": [{"role": "user", "content": "?"}]}).replace("?", question)
        refused(send(content=content), 400, "messages")
        refused(http.post("/completions", content=f'{{"prompt": "{question}"}}', headers=send.keywords["headers"]), 400,
                "prompt")  # fmt: skip
    for extra in ("[" * 900 + "]" * 900, "NaN", "-Infinity", '"\\ud800"', "1e400"):
        content = json.dumps({"messages": [{"role": "user", "content": "Who?"}], "max_tokens": 1})[:-1]
        assert send(content=content + ', "extra": ' + extra + "}").status_code == 200
        refused(send(content=content + ', "memory": ' + extra + "}"), 400, "memory")


def test_an_error_says_little_of_what_is_long(http, ask):
    long = "x" * 10**6
    for response in (
        ask("Who?", memory=long),
        ask("Who?", model=long),
        ask(long),
        ask(long, "ada"),
        ask("Who?", logit_bias={long: 1}),
        http.post("/memories", json={"id": long, "path": "no", long: long}),
        http.post("/memories", json={"id": "x", "path": long}),
    ):
        assert 400 <= response.status_code < 500
        assert len(response.text) < 600


def test_routes_that_are_not_there(http, server):
    refused(http.get("/nothing"), 404)
    refused(httpx.get(f"{server.root}/v2/../etc/passwd"), 404)
    refused(http.get("/chat/completions"), 405)
    refused(http.put("/memories"), 405)
    refused(http.post("/models", json={}), 405)


def test_the_window_to_its_last_token(complete, shelf):
    refused(complete([5] * 4608, max_tokens=1), 400, "max_tokens")
    refused(complete([5] * 4605, max_tokens=4), 400, "max_tokens")
    memory = shelf.memories["ada"]
    past = len(memory.prefix_ids) + memory.buffer_tokens
    refused(complete([5] * (4608 - past), memory="ada", max_tokens=1), 400, "max_tokens")
    response = complete([5] * (4607 - past), memory="ada", max_tokens=None)
    assert response.json()["usage"]["completion_tokens"] == 1


def test_several_prompts_and_choices(complete, shelf):
    response = complete(["The", "For", "Who"], memory="ada", n=2, temperature=1, seed=5).json()
    assert [choice["index"] for choice in response["choices"]] == list(range(6))
    alone = complete("For", memory="ada", temperature=1, seed=6).json()
    assert response["choices"][3]["text"] == alone["choices"][0]["text"]
    details = response["usage"]["prompt_tokens_details"]
    assert details["cached_tokens"] == 3 * alone["usage"]["prompt_tokens_details"]["cached_tokens"]
    for prompt in ("", [], [""], ["a", []], None, 5, [1.5], [803], [-1]):
        refused(complete(prompt, memory="ada"), 400, "prompt")


def test_a_choice_is_drawn_as_if_it_were_alone(ask, shelf):
    row = shelf.rows[0]
    how = {"temperature": 1.5, "max_tokens": 6}
    several = ask(row.question, row.memory, n=3, seed=4, **how).json()["choices"]
    alone = [ask(row.question, row.memory, seed=4 + number, **how).json()["choices"][0] for number in range(3)]
    assert [choice["message"]["content"] for choice in several] == [each["message"]["content"] for each in alone]


@pytest.mark.parametrize("is_chat", [True, False])
def test_a_stream_in_all_its_parts(http, shelf, is_chat):
    row = shelf.rows[2]
    body = chat_body(row.question, row.memory, n=2, temperature=1, seed=3, stop=["e"])
    path = "/chat/completions"
    if not is_chat:
        path, body["prompt"] = "/completions", ["The", "For"]
    whole = http.post(path, json=body).json()
    streamed = http.post(path, json=body | {"stream": True, "stream_options": {"include_usage": True}})
    assert streamed.headers["content-type"].startswith("text/event-stream")
    *events, done = [line.removeprefix("data: ") for line in streamed.text.split("\n\n") if line]
    assert done == "[DONE]"
    *events, last = map(json.loads, events)
    assert (last["choices"], last["usage"]) == ([], whole["usage"])
    assert events[0]["memory"] == whole["memory"]
    assert len({event["id"] for event in events}) == 1
    for choice in whole["choices"]:
        mine = [delta for event in events for delta in event["choices"] if delta["index"] == choice["index"]]
        said = [delta["delta"]["content"] if is_chat else delta["text"] for delta in mine]
        assert "".join(said) == (choice["message"]["content"] if is_chat else choice["text"])
        assert [delta["finish_reason"] for delta in mine][-1] == choice["finish_reason"]
        assert {delta["finish_reason"] for delta in mine[:-1]} <= {None}
        if is_chat:
            assert ["role" in delta["delta"] for delta in mine] == [True] + [False] * (len(mine) - 1)


def test_the_api_key(loaded, shelf):
    with running(*loaded, shelf.folder, api_key="sé-cret") as server, httpx.Client(base_url=server.url) as http:
        given = "Bearer sé-cret".encode()
        for path in ("/models", "/memories", "/memories/ada", "/nothing"):
            for wrong in ({}, {"Authorization": "Bearer secret"}, {"Authorization": "Basic x"}, {"Authorization": ""}):
                refused(http.get(path, headers=wrong), 401)
            assert http.get(path, headers={"Authorization": given}).status_code == (404 if path == "/nothing" else 200)
        body = chat_body("Who?", max_tokens=1)
        refused(http.post("/chat/completions", json=body), 401)
        refused(http.delete("/memories/ada"), 401)
        for scheme in (b"Bearer ", b"bearer "):
            good = {"Authorization": scheme + given[7:]}
            assert http.post("/chat/completions", json=body, headers=good).status_code == 200
        assert httpx.get(f"{server.root}/health").status_code == 200
        assert httpx.get(f"{server.root}/metrics").status_code == 200


def test_the_routes_of_memories(own_server, folder):
    with httpx.Client(base_url=own_server.url) as http:
        (folder / "broken.lcc.safetensors").write_bytes(b"x")
        rows = {row["id"]: row for row in http.get("/memories").json()["data"]}
        assert list(rows) == ["ada", "bo", "broken", "cy"]
        assert rows["broken"]["error"]["code"] == 503
        response = http.get("/memories/broken")
        refused(response, 503, "memory")
        assert response.headers["retry-after"] == "1"
        assert [card["id"] for card in http.get("/models").json()["data"]] == [
            BASE, f"{BASE}:ada", f"{BASE}:bo", f"{BASE}:cy"
        ]  # fmt: skip
        shutil.copy(folder / "ada.lcc.safetensors", folder / "x")
        for name in ("ä :%2e?#", "a:b", " ", "%00"):
            assert http.post("/memories", json={"id": name, "path": "x"}).json()["id"] == name
            quoted = "".join(f"%{byte:02x}" for byte in name.encode())
            assert http.get(f"/memories/{quoted}").json()["digest"] == rows["ada"]["digest"]
            body = chat_body("Who?", model=f"{BASE}:{name}", max_tokens=1)
            assert http.post("/chat/completions", json=body).json()["memory"]["id"] == name
            assert http.delete(f"/memories/{quoted}").json() == {
                "id": name, "object": "memory.deleted", "deleted": True
            }  # fmt: skip
            refused(http.get(f"/memories/{quoted}"), 404, "memory")
            refused(http.delete(f"/memories/{quoted}"), 404, "memory")
        for body, status, param in (
            ({"id": "new", "path": "../x"}, 400, "path"),
            ({"id": "new", "path": "http://example.com/x"}, 404, "path"),
            ({"id": "new", "path": "missing"}, 404, "path"),
            ({"id": "a/b", "path": "x"}, 400, "id"),
            ({"id": "a\nb", "path": "x"}, 400, "id"),
            ({"id": "bo", "path": "x"}, 409, "id"),
            ({"id": "new", "path": "broken.lcc.safetensors"}, 409, "path"),
            ({"id": "new"}, 400, "path"),
            ({"id": "new", "path": "x", "more": 1}, 400, "more"),
        ):
            refused(http.post("/memories", json=body), status, param)
        broken = '{"id": "\\ud800", "path": "x"}'
        refused(http.post("/memories", content=broken, headers={"Content-Type": "application/json"}), 400, "id")
        assert http.get("/memories").status_code == 200


@pytest.mark.parametrize("path", ["%2e%2e", "..%2f..%2fetc%2fpasswd", "%00", "%ff", "a%2fb", "%2fetc%2fpasswd", ""])
def test_paths_that_are_tricks(http, path):
    refused(http.get(f"/memories/{path}"), 404, "memory")


def test_health_and_metrics(server, ask, shelf):
    row = shelf.rows[0]
    assert httpx.get(f"{server.root}/health").json()["status"] == "ok"

    def counts():
        page = httpx.get(f"{server.root}/metrics").text
        return {
            name: float(value) for name, value in (line.rsplit(" ", 1) for line in page.splitlines() if line[0] != "#")
        }

    before, answered = counts(), 'lcc_requests_total{route="/v1/chat/completions",status="200"}'
    usage = ask(row.question, row.memory).json()["usage"]
    after = counts()
    assert after[answered] == before.get(answered, 0) + 1
    tokens = "lcc_generated_tokens_total"
    assert after[tokens] - before[tokens] == usage["completion_tokens"]
    assert after["lcc_running"] == after["lcc_waiting"] == 0
    assert after["lcc_attached_bytes"] > 0
    labels = len(after)
    for number in range(30):
        httpx.get(f"{server.url}/unknown/{number}")
    assert len(counts()) <= labels + 2
