"""The engines, each as a process of its own on a free port."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from urllib.error import URLError
from urllib.request import urlopen

import psutil

from benchmarks.common.gguf_model import Vocabulary, write_gguf
from benchmarks.common.models import load
from benchmarks.serving.llama_server import llama_server
from lcc.modeling.loading import load_checkpoint
from lcc.modeling.window import window_of

READY_SECONDS = 300
SLOTS, CONTEXT = 8, 2048
VLLM = ["-m", "vllm.entrypoints.openai.api_server"]


@dataclass(frozen=True)
class Server:
    """A server that answers.

    Attributes:
        url: without ``/v1``.
        model: its name in requests.
    """

    url: str
    model: str
    processes: tuple[psutil.Process, ...]

    @property
    def resident_bytes(self) -> int:
        """Memory of the processes and all that they started, shared pages counted once a process."""
        family = [each for one in self.processes for each in (one, *one.children(recursive=True))]
        return sum(each.memory_info().rss for each in family if each.is_running())


@contextmanager
def transformers_server(memories: Path, model: str | None, threads: int, log: Path) -> Iterator[Server]:
    """``lcc serve``."""
    with _lcc_serve(memories, model, threads, log, []) as server:
        yield server


@contextmanager
def llama_cpp_server(
    memories: Path, model: str | None, threads: int, log: Path, kv: str = "f32", flash_attn: bool = False
) -> Iterator[Server]:
    """``lcc serve`` before a llama.cpp server of ``SLOTS`` slots with a cache of this type."""
    loaded, tokenizer = load_checkpoint(model) if model else load()
    folder = log.parent / "states"
    folder.mkdir(exist_ok=True)
    gguf = folder / "model.gguf"
    write_gguf(gguf, loaded, Vocabulary.of(tokenizer))
    context = int(min(window_of(loaded), CONTEXT))
    with llama_server(gguf, folder, kv, flash_attn, slots=SLOTS, context=context) as llama:
        options = ["--engine", "llama-cpp", "--url", llama.address, "--states", str(folder), "--kv", kv,
                   "--flash-attn" if flash_attn else "--no-flash-attn"]  # fmt: skip
        with _lcc_serve(memories, model, threads, log, options) as server:
            yield replace(server, processes=(*server.processes, psutil.Process(llama.pid)))


@contextmanager
def _lcc_serve(memories: Path, model: str | None, threads: int, log: Path, options: list[str]) -> Iterator[Server]:
    port = _free_port()
    command = [sys.executable, "-m", "lcc", "serve", str(memories), "--port", str(port), "--name", "model"]
    command += ["--queue", "1024", *options] + (["--model", model] if model else [])
    with _running(command, port, {"OMP_NUM_THREADS": str(threads)}, log) as server:
        yield server


@contextmanager
def vllm_server(
    python: str, memories: Path, model: str, threads: int, log: Path, options: tuple[str, ...] = ()
) -> Iterator[Server]:
    """vLLM's own server with the connector and the plugin.

    Args:
        python: of the environment that has vLLM and this package.
    """
    port = _free_port()
    transfer = {
        "kv_connector": "LCCConnector",
        "kv_connector_module_path": "lcc.serving.vllm_connector",
        "kv_role": "kv_consumer",
        "kv_connector_extra_config": {"folder": str(memories.resolve())},
    }
    command = [python, *VLLM, "--model", model, "--served-model-name", "model", "--host", "127.0.0.1", "--port",
               str(port), "--enforce-eager", "--dtype", "float32", "--block-size", "32",
               "--enable-prompt-tokens-details", "--kv-transfer-config", json.dumps(transfer), *options]  # fmt: skip
    environment = {
        "VLLM_CPU_KVCACHE_SPACE": "1",
        "VLLM_PLUGINS": "lcc",
        "HF_HUB_OFFLINE": "1",
        "OMP_NUM_THREADS": str(threads),
    }
    with _running(command, port, environment, log) as server:
        yield server


@contextmanager
def _running(command: list[str], port: int, environment: dict[str, str], log: Path) -> Iterator[Server]:
    with log.open("w") as file:
        process = subprocess.Popen(
            command, stdout=file, stderr=subprocess.STDOUT, env=os.environ | environment, start_new_session=True
        )
        try:
            url = f"http://127.0.0.1:{port}"
            _wait(process, url, log)
            yield Server(url, "model", (psutil.Process(process.pid),))
        finally:
            _end(process)


def _wait(process: subprocess.Popen, url: str, log: Path) -> None:
    """Wait until a server answers.

    Raises:
        RuntimeError: it ended, or takes too long.
    """
    end = time.monotonic() + READY_SECONDS
    while time.monotonic() < end and process.poll() is None:
        try:
            with urlopen(f"{url}/health", timeout=5):
                return
        except (URLError, OSError):
            time.sleep(0.25)
    raise RuntimeError(f"the server did not start; the end of {log}:\n{log.read_text(errors='replace')[-2000:]}")


def _end(process: subprocess.Popen) -> None:
    """Let a server end; what is left of it after a while is killed."""
    process.send_signal(signal.SIGTERM)
    with suppress(subprocess.TimeoutExpired):
        process.wait(20)
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def _free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]
