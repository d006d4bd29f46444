"""Attaching a memory, against a loop over layers and against a plain copy of as many bytes, in one run.

pytest benchmarks/kernels/test_attach_kv.py --benchmark-only --benchmark-json=attach_kv.json

On a GPU a call is quicker than its launch: ``device_seconds`` are those of CUDA graphs over buffers that take turns,
the statistics those of a caller who waits.
"""

from __future__ import annotations

from functools import partial

import pytest
import torch

import lcc_kernels as lk
from benchmarks.common.timing import in_turn, peak_bytes, replayed_seconds, synchronized
from benchmarks.kernels.attach_kv_cases import CPU_CASES, CPU_TARGET, GPU_CASES, AttachCase
from benchmarks.kernels.attach_kv_peers import calls
from lcc_kernels import dispatch

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
ROUNDS = 30 if DEVICE == "cuda" else 11
CASES = GPU_CASES if DEVICE == "cuda" else CPU_CASES


def _run(benchmark, case: AttachCase, backend: str) -> dict[str, float]:
    ways = calls(case, backend, DEVICE)
    if DEVICE == "cuda":
        seconds = {name: replayed_seconds(way, DEVICE, ROUNDS) for name, way in ways.items()}
    else:
        seconds = in_turn({name: way[0] for name, way in ways.items()}, ROUNDS)
    attach = synchronized(ways["attach"][0], DEVICE)
    benchmark.extra_info.update(
        op="attach_kv", case=case.name, peer=backend, device=DEVICE, direction="write", bytes=case.bytes,
        device_seconds=seconds["attach"],
        bytes_per_second=case.bytes / seconds["attach"], share_of_copy=seconds["copy"] / seconds["attach"],
        loop_over_attach=seconds["loop"] / seconds["attach"], peak_bytes=peak_bytes(attach, DEVICE),
    )  # fmt: skip
    benchmark.pedantic(attach, rounds=ROUNDS, warmup_rounds=2)
    return seconds


@pytest.mark.parametrize("backend", ["torch", "triton", "cuda"])
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_attach_kv(benchmark, case: AttachCase, backend: str):
    reason = lk.available_backends("attach_kv")[backend]
    if reason is not None:
        pytest.skip(reason)
    _run(benchmark, case, backend)


@pytest.mark.parametrize("layout", ["listed", "stacked"])
@pytest.mark.parametrize("layers", [1, 16, 32, 64])
def test_host_work(benchmark, monkeypatch, layers: int, layout: str):
    """What a call takes before a backend begins: its checks and the way through torch's dispatcher."""
    case = AttachCase(f"host-{2 * layers}-caches", layers, 2, 8, 64, torch.float32, torch.float32)
    arguments = case.tensors(DEVICE)
    if layout == "listed":
        arguments |= {name: list(arguments[name]) for name in ("key_cache", "value_cache")}
    monkeypatch.setitem(dispatch._OPS, "attach_kv", {"nothing": dispatch.Backend(lambda attachment: None)})
    benchmark.extra_info.update(op="attach_kv", case=case.name, peer=layout, device="host", direction="nothing")
    call = partial(lk.attach_kv, **arguments, backend="nothing", validate=False)
    benchmark.pedantic(call, rounds=500, warmup_rounds=20)


@pytest.mark.skipif(DEVICE != "cpu", reason="the target is the CPU's")
def test_cpu_target(benchmark):
    """32 layers, 8 heads of 128, 256 tokens, fp32: not slower than the loop."""
    seconds = _run(benchmark, CPU_TARGET, "torch")
    print(benchmark.extra_info)
    assert seconds["loop"] >= seconds["attach"]
