"""Attaching a memory, against a loop over layers and against a plain copy of as many bytes, in one run.

pytest benchmarks/kernels/test_attach_kv.py --benchmark-only --benchmark-json=attach_kv.json
"""

from __future__ import annotations

from functools import partial

import pytest
import torch

import lcc_kernels as lk
from benchmarks.common.timing import in_turn, peak_bytes, synchronized
from benchmarks.kernels.attach_kv_cases import CPU_CASES, CPU_TARGET, GPU_CASES, AttachCase

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
ROUNDS = 30 if DEVICE == "cuda" else 11
CASES = GPU_CASES if DEVICE == "cuda" else CPU_CASES


def loop(keys, values, key_cache, value_cache, slots, cos, sin, key_scale=None, value_scale=None, paged=False):
    """What a caller would write: dequantise, rotate and index_copy_ a layer after the other."""
    for layer in range(len(keys)):
        key, value = keys[layer].float(), values[layer].float()
        if key_scale is not None:
            key, value = key * key_scale[layer][:, None], value * value_scale[layer][..., None]
        turned = lk.apply_rotary(key, cos, sin)
        for cache, rows in ((key_cache[layer], turned), (value_cache[layer], value)):
            if paged:
                cache[slots // cache.shape[2], :, slots % cache.shape[2]] = rows.transpose(0, 1).to(cache.dtype)
            else:
                cache.index_copy_(2, slots, rows.to(cache.dtype).expand(len(cache), -1, -1, -1))


def _calls(case: AttachCase, backend: str) -> dict:
    """The op, the loop, and a copy that moves as many bytes as they have to."""
    arguments = case.tensors(DEVICE)
    source = torch.zeros(case.bytes // 2, dtype=torch.uint8, device=DEVICE)
    calls = {
        "attach": partial(lk.attach_kv, **arguments, backend=backend, validate=False),
        "loop": partial(loop, **arguments),
        "copy": partial(torch.empty_like(source).copy_, source),
    }
    return {name: synchronized(call, DEVICE) for name, call in calls.items()}


def _run(benchmark, case: AttachCase, backend: str) -> dict[str, float]:
    calls = _calls(case, backend)
    seconds = in_turn(calls, ROUNDS)
    benchmark.extra_info.update(
        op="attach_kv", case=case.name, peer=backend, device=DEVICE, direction="write", bytes=case.bytes,
        bytes_per_second=case.bytes / seconds["attach"], share_of_copy=seconds["copy"] / seconds["attach"],
        loop_over_attach=seconds["loop"] / seconds["attach"], peak_bytes=peak_bytes(calls["attach"], DEVICE),
    )  # fmt: skip
    benchmark.pedantic(calls["attach"], rounds=ROUNDS, warmup_rounds=2)
    return seconds


@pytest.mark.parametrize("backend", ["torch", "triton", "cuda"])
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_attach_kv(benchmark, case: AttachCase, backend: str):
    reason = lk.available_backends("attach_kv")[backend]
    if reason is not None:
        pytest.skip(reason)
    _run(benchmark, case, backend)


@pytest.mark.skipif(DEVICE != "cpu", reason="the target is the CPU's")
def test_cpu_target(benchmark):
    """32 layers, 8 heads of 128, 256 tokens, fp32: not slower than the loop."""
    seconds = _run(benchmark, CPU_TARGET, "torch")
    print(benchmark.extra_info)
    assert seconds["loop"] >= seconds["attach"]
