"""Requests that schemathesis and hypothesis draw: no 500, and nothing that is not in the schema.

More of them with ``--hypothesis-profile=long``.
"""

from __future__ import annotations

import asyncio
import json

import pytest
import schemathesis
from fastapi.testclient import TestClient
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from schemathesis import GenerationMode
from schemathesis.specs.openapi import checks

from lcc.serving.app import make_app
from lcc.serving.front import Front
from lcc.serving.prompts import Prompts
from tests.support.served import BASE, is_error, make_catalog, make_engine

# Answers that are drawn at random are long: not all of the window is for them.
WINDOW = 110
few = settings(
    max_examples=settings().max_examples // 4,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow, HealthCheck.filter_too_much],
)


@pytest.fixture(scope="module")
def app(loaded, shelf, tmp_path_factory):
    """A server of a folder in which a file is damaged."""
    folder = shelf.copy(tmp_path_factory.mktemp("fuzz") / "memories")
    (folder / "broken.lcc.safetensors").write_bytes(b"x")
    front = Front(BASE, make_catalog(*loaded, folder), Prompts(loaded[1], WINDOW))
    engine = make_engine(*loaded, front)
    yield make_app(front, engine)
    asyncio.run(engine.close())


@pytest.fixture(scope="module")
def http(app):
    # No "with": its end would be the engine's.
    return TestClient(app, raise_server_exceptions=False)


@pytest.fixture(scope="module")
def api(app):
    async def ageless(scope, receive, send):
        """The application, which each request of schemathesis would start and end."""
        if scope["type"] != "lifespan":
            await app(scope, receive, send)
        else:
            for event in ("startup", "shutdown"):
                await receive()
                await send({"type": f"lifespan.{event}.complete"})

    return schemathesis.openapi.from_asgi("/openapi.json", ageless)


OPERATIONS = (
    "POST /v1/chat/completions",
    "POST /v1/completions",
    "POST /v1/memories",
    "GET /v1/memories",
    "GET /v1/memories/{name}",
    "DELETE /v1/memories/{name}",
    "GET /v1/models",
    "GET /v1/models/{name}",
    "GET /health",
    "GET /metrics",
)


def test_every_operation_is_drawn(api):
    assert {operation.ok().label for operation in api.get_all_operations()} == {*OPERATIONS}


NEGATIVE = [(operation, GenerationMode.NEGATIVE) for operation in OPERATIONS if operation.startswith("POST")]
POSITIVE = [(operation, GenerationMode.POSITIVE) for operation in OPERATIONS]
# What is valid by its schema may be refused, and numbers may be written as text.
CHECKS = [
    checks.status_code_conformance,
    checks.content_type_conformance,
    checks.response_schema_conformance,
    checks.response_headers_conformance,
    checks.unsupported_method,
]


def check(response) -> None:
    """A response that is well, or an error in OpenAI's shape that the client can do something about."""
    assert response.status_code < 500 or response.status_code == 503, response.text[:300]
    if response.status_code >= 400:
        assert is_error(response.json(), response.status_code), response.text[:300]
    assert len(response.content) < 100_000
    assert b"Traceback" not in response.content


@pytest.mark.parametrize(("operation", "mode"), [*POSITIVE, *NEGATIVE])
def test_the_schema(api, operation, mode):
    method, path = operation.split()

    @few
    @given(case=api[path][method].as_strategy(generation_mode=mode))
    def test(case):
        response = case.call()
        case.validate_response(response, checks=CHECKS)
        check(response)

    test()


NAMES = st.sampled_from(["ada", "bo", "cy", "broken", "nobody", "", "..", "ada\0", "\ud800", "é" * 300])
NUMBERS = st.integers() | st.floats() | st.sampled_from([0, 1, -1, 2**31, 2**63, -(2**64), 10**400, 5e-324, True, "1"])
TEXTS = st.text(st.characters(), max_size=30) | st.sampled_from(["Where does Ada live?", " ", "<s>", "\0", "</s><s>"])
ANY = st.recursive(
    st.none() | NUMBERS | TEXTS | NAMES,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXTS, inner, max_size=3),
    max_leaves=6,
)
MESSAGES = st.lists(
    st.fixed_dictionaries(
        {"role": st.sampled_from(["user", "user", "assistant", "system", "tool"]), "content": TEXTS | ANY},
    ),
    max_size=4,
)
# Each field as it should be, or nearly.
FIELDS = {
    "model": st.sampled_from([BASE, f"{BASE}:ada", f"{BASE}:", f"{BASE}:\udfff", "another"]),
    "memory": NAMES,
    "memories": st.lists(NAMES, max_size=3),
    "cartridges": st.lists(st.fixed_dictionaries({"id": NAMES}), max_size=2),
    "kv_transfer_params": st.fixed_dictionaries({"memory": NAMES}),
    "max_tokens": st.integers(1, 20),
    "max_completion_tokens": st.integers(1, 20),
    "temperature": st.floats(0, 2),
    "top_p": st.floats(0, 1),
    "top_k": st.integers(-1, 900),
    "n": st.integers(1, 4),
    "seed": st.integers(),
    "stop": TEXTS | st.lists(TEXTS, max_size=5),
    "stream": st.booleans(),
    "stream_options": st.fixed_dictionaries({"include_usage": st.booleans()}),
    "logit_bias": st.dictionaries(TEXTS, NUMBERS, max_size=1),
}


@st.composite
def requests(draw, **needed):
    """A body that is right but for a field or two."""
    body = {name: draw(strategy) for name, strategy in needed.items()}
    for name in draw(st.lists(st.sampled_from(sorted(FIELDS)), max_size=4, unique=True)):
        body[name] = draw(FIELDS[name])
    if draw(st.integers(0, 3)) == 0:
        body[draw(st.sampled_from(sorted(body)) | TEXTS)] = draw(ANY)
    return body


def post(http, path, body):
    """Send what JSON may hold, though it should not: NaN, and halves of surrogate pairs."""
    content = json.dumps(body).encode()
    return http.post(path, content=content, headers={"Content-Type": "application/json"})


QUESTION = st.just([{"role": "user", "content": "Where does Ada live?"}])


@few
@given(body=requests(messages=QUESTION | MESSAGES))
def test_chats(http, body):
    check(post(http, "/v1/chat/completions", body))


@few
@given(body=requests(prompt=TEXTS | st.lists(TEXTS | st.integers(-1, 900), max_size=4) | ANY))
def test_completions(http, body):
    check(post(http, "/v1/completions", body))


@few
@given(
    name=NAMES | TEXTS,
    path=st.sampled_from(["ada.lcc.safetensors", "broken.lcc.safetensors", ".", "..", "../x", "/etc/passwd"]) | TEXTS,
)
def test_added_memories(http, name, path):
    response = post(http, "/v1/memories", {"id": name, "path": path})
    check(response)
    if response.status_code == 200 and name not in ("ada", "bo", "cy", "broken"):
        quoted = "".join(f"%{byte:02x}" for byte in name.encode())
        assert http.get(f"/v1/memories/{quoted}").json()["id"] == name
        check(http.get("/v1/models"))
        assert http.delete(f"/v1/memories/{quoted}").status_code == 200


@few
@given(
    method=st.sampled_from(["GET", "POST", "PUT", "DELETE", "PATCH", "OPTIONS"]),
    path=st.sampled_from(["/v1/chat/completions", "/v1/completions", "/v1/memories", "/v1/models", "/v1/x", "/"]),
    kind=st.sampled_from(["application/json", "text/plain", "multipart/form-data", ""]),
    content=st.binary(max_size=50) | ANY.map(lambda value: json.dumps(value).encode()),
)
def test_any_bytes(http, method, path, kind, content):
    check(http.request(method, path, content=content, headers={"Content-Type": kind}))


@few
@given(
    name=st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=50),
    method=st.sampled_from(["GET", "DELETE"]),
)
def test_any_name_in_a_path(http, name, method):
    quoted = "".join(f"%{byte:02x}" for byte in name.encode())
    response = http.request(method, f"/v1/memories/{quoted}")
    check(response)
    assert name in ("ada", "bo", "cy", "broken") or response.status_code == 404
