"""A folder of memories of the embedded model, and servers of it."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import httpx2 as httpx
import openai
import pytest

from benchmarks.serving.servers import llama_cpp_server
from tests.support.chaos import plant
from tests.support.served import BASE, ENDPOINT, Endpoint, Running, Shelf, fill_shelf, running


@pytest.fixture(scope="session")
def loaded(_embedded):
    """The embedded model, which nobody changes, and its tokenizer."""
    return _embedded


@pytest.fixture(scope="session")
def shelf(loaded, tmp_path_factory) -> Shelf:
    """Memories of the embedded model; whoever changes files takes a copy."""
    return fill_shelf(*loaded, tmp_path_factory.mktemp("shelf"))


@pytest.fixture(scope="session")
def planted(loaded, tmp_path_factory):
    """Files of memories that each know a word of their own, and the words."""
    return plant(loaded, tmp_path_factory.mktemp("planted"))


@pytest.fixture
def folder(shelf, tmp_path):
    """A copy of the memories that a test may change."""
    return shelf.copy(tmp_path / "memories")


@pytest.fixture(scope="package")
def server(loaded, shelf) -> Iterator[Running]:
    """The real server, of a folder that nobody changes."""
    with running(*loaded, shelf.folder) as server:
        yield server


@pytest.fixture
def own_server(loaded, folder) -> Iterator[Running]:
    """The real server, of a folder that the test may change."""
    with running(*loaded, folder) as server:
        yield server


@pytest.fixture
def http(server) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=server.url, timeout=30) as client:
        yield client


@pytest.fixture
def client(server) -> Iterator[openai.OpenAI]:
    with server.client() as client:
        yield client


@pytest.fixture(scope="package")
def _transformers(server, shelf) -> Endpoint:
    return Endpoint(server.url, BASE, shelf.rows)


@pytest.fixture(scope="package")
def _llama_cpp(shelf, tmp_path_factory) -> Iterator[Endpoint]:
    work = tmp_path_factory.mktemp("llama")
    with llama_cpp_server(shelf.folder, None, 1, work / "serve.log") as server:
        yield Endpoint(f"{server.url}/v1", server.model, shelf.rows)


@pytest.fixture(scope="package")
def _elsewhere() -> Endpoint:
    return Endpoint.load(Path(os.environ[ENDPOINT]))


# For each engine, a fixture that gives an Endpoint.
ENGINES = ["_elsewhere"] if ENDPOINT in os.environ else ["_transformers", "_llama_cpp"]


@pytest.fixture(scope="package", params=ENGINES)
def endpoint(request) -> Endpoint:
    """A server, of each engine in turn."""
    return request.getfixturevalue(request.param)
