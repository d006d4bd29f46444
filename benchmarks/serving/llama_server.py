"""The prebuilt llama.cpp server of PyPI's xllamacpp, in a process of its own: a crash leaves the tests alive."""

from __future__ import annotations

import json
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

CONTEXT = 1024


@dataclass(frozen=True)
class LlamaServer:
    """A process ``pid`` that listens at ``address`` and restores files of ``folder``."""

    address: str
    folder: Path
    pid: int

    def post(self, path: str, body: dict[str, Any]) -> tuple[int, dict[str, Any]]:
        """The status and the JSON object that a request is answered with."""
        request = urllib.request.Request(self.address + path, json.dumps(body).encode())
        request.add_header("Content-Type", "application/json")
        try:
            with urllib.request.urlopen(request, timeout=60) as response:
                return response.status, json.load(response)
        except urllib.error.HTTPError as error:
            return error.code, json.load(error)

    def slot(self, action: str, filename: str, number: int = 0) -> tuple[int, dict[str, Any]]:
        """Save a slot to a file, or restore it from one."""
        return self.post(f"/slots/{number}?action={action}", {"filename": filename})

    def complete(self, prompt: Sequence[int], tokens: int, number: int = 0) -> dict[str, Any]:
        """The greedy continuation of token ids in a slot."""
        body = {"prompt": list(prompt), "n_predict": tokens, "temperature": 0.0, "samplers": ["top_k"], "top_k": 1}
        status, answer = self.post(
            "/completion", body | {"cache_prompt": True, "id_slot": number, "return_tokens": True, "n_probs": 0}
        )
        assert status == 200, answer
        return answer


@contextmanager
def llama_server(
    model: Path,
    folder: Path,
    kv: str = "f32",
    flash_attn: bool = False,
    slots: int = 1,
    unified: bool = False,
    context: int = CONTEXT,
) -> Iterator[LlamaServer]:
    """A server over the GGUF file ``model``, with a cache of this type, while the block lasts.

    Args:
        unified: all slots share one stream of the cache.
        context: positions of each slot.
    """
    sizes = map(str, (int(flash_attn), slots * context, slots, int(unified)))
    command = [sys.executable, "-c", CHILD, str(model), f"{folder}/", kv, *sizes]
    with (folder / "server.log").open("w") as log:
        child = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, text=True)
    try:
        for line in child.stdout:
            if line.startswith("listening "):
                break
        else:
            raise RuntimeError(f"the server did not start: {(folder / 'server.log').read_text()[-2000:]}")
        yield LlamaServer(line.split()[1], folder, child.pid)
    finally:
        child.stdin.close()
        try:
            child.wait(10)
        except subprocess.TimeoutExpired:
            child.kill()
            child.wait()
        child.stdout.close()


CHILD = """
import os, sys
import xllamacpp as x
model, folder, kv, flash_attn, context, slots, unified = sys.argv[1:]
params = x.CommonParams()
params.model.path, params.slot_save_path, params.n_ctx = model, folder, int(context)
params.n_parallel, params.kv_unified, params.n_threads_http = int(slots), unified == "1", 2
params.cpuparams.n_threads = params.cpuparams_batch.n_threads = 1
params.cache_type_k = params.cache_type_v = getattr(x.ggml_type, "GGML_TYPE_" + kv.upper())
state = "ENABLED" if int(flash_attn) else "DISABLED"
params.flash_attn_type = getattr(x.llama_flash_attn_type, "LLAMA_FLASH_ATTN_TYPE_" + state)
params.ui, params.warmup, params.cache_ram_mib, params.port = False, False, 0, 0
server = x.Server(params)
print("\\nlistening", server.listening_address, flush=True)
sys.stdin.read()
os._exit(0)
"""
