"""A folder of memories of the embedded model, and servers of it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import httpx2 as httpx
import openai
import pytest

from tests.support.served import BASE, Row, Running, Shelf, fill_shelf, running


@pytest.fixture(scope="session")
def loaded(_embedded):
    """The embedded model, which nobody changes, and its tokenizer."""
    return _embedded


@pytest.fixture(scope="session")
def shelf(loaded, tmp_path_factory) -> Shelf:
    """Memories of the embedded model; whoever changes files takes a copy."""
    return fill_shelf(*loaded, tmp_path_factory.mktemp("shelf"))


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


@pytest.fixture(scope="package")
def _transformers(server, shelf) -> Endpoint:
    return Endpoint(server.url, BASE, shelf.rows)


# For each engine, a fixture that gives an Endpoint.
@pytest.fixture(scope="package", params=["_transformers"])
def endpoint(request) -> Endpoint:
    """A server, of each engine in turn."""
    return request.getfixturevalue(request.param)
