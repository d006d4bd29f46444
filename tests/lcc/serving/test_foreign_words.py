"""No answer ever comes from another memory than the one that was asked, whatever happens to the files meanwhile."""

from __future__ import annotations

import httpx2 as httpx
import pytest

from benchmarks.serving.servers import llama_cpp_server
from tests.support.chaos import ask_in_chaos
from tests.support.served import BASE, running


@pytest.mark.parametrize("pool", [1 << 26, 1], ids=["kept", "attached each time"])
def test_no_answer_has_another_memorys_word(loaded, planted, tmp_path, pool):
    with (
        running(*loaded, tmp_path, rows=5, pool=pool) as server,
        httpx.Client(base_url=server.url, timeout=60) as http,
    ):
        ask_in_chaos(http, BASE, tmp_path, planted)


def test_nor_through_llama_cpp(planted, tmp_path):
    """Eight slots for six memories of two states each: each slot is restored many times."""
    folder = tmp_path / "memories"
    folder.mkdir()
    with (
        llama_cpp_server(folder, None, 1, tmp_path / "serve.log") as server,
        httpx.Client(base_url=f"{server.url}/v1", timeout=60) as http,
    ):
        ask_in_chaos(http, server.model, folder, planted)
