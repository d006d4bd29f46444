"""Attaching and decoding, which are quicker than their launches: CUDA graphs over buffers that take turns."""

from __future__ import annotations

from functools import partial

import torch

from benchmarks.common.results_file import Row
from benchmarks.common.timing import copies, replayed_seconds, rotation
from benchmarks.kernels import attach_kv_peers
from benchmarks.kernels.attach_kv_cases import LLAMA, QUANTISED, AttachCase
from benchmarks.kernels.shared_prefix_cases import DecodeCase
from benchmarks.kernels.shared_prefix_peers import PEERS

from .case import Case, Refused, Scale, backends

BFLOAT16 = torch.bfloat16
# Sequences, tokens of the prefix, own tokens: latency first, then what fills the chip.
BATCHES = (
    (1, 2048, 64),
    (32, 2048, 64),
    (32, 8192, 64),
    (8, 8192, 2048),
    (256, 2048, 64),
    (256, 512, 2048),
    (32, 512, 64),
)
DECODERS = ("triton", "sdpa_replicated", "flash_attn_replicated", "flashinfer_cascade", "flex_replicated")
COMPILED = {"flex_replicated": 2}  # batches of a peer that is compiled for seconds


def cases(scale: Scale) -> list[Case]:
    """Attaching by size, then decoding by batch, the peers behind."""
    attaching = [
        Case(f"attach {case.name} {backend}", partial(_attach, scale, case, backend))
        for case in _memories(scale)
        for backend in backends("attach_kv", scale)
    ]
    batches = [_batch(scale, *sizes) for sizes in ([(3, 24, 4)] if scale.tiny else BATCHES)]
    decoding = [
        Case(f"decode {case.name} {peer}", partial(_decode, scale, case, peer))
        for peer in (*["torch"] * scale.tiny, *DECODERS)
        for case in batches[: COMPILED.get(peer)]
    ]
    return attaching + decoding


def _memories(scale: Scale) -> list[AttachCase]:
    if scale.tiny:
        return [AttachCase("tiny", 2, 2, 16, 32, torch.float32, torch.int8, paged=True)]
    sizes = [
        AttachCase(f"{tokens} bf16", tokens=tokens, cache=BFLOAT16, memory=BFLOAT16, **LLAMA)
        for tokens in (256, 64, 1024)
    ]
    kinds = [
        AttachCase(f"256 {name}", tokens=256, cache=BFLOAT16, memory=memory, **LLAMA)
        for name, memory in QUANTISED.items()
    ]
    return [
        *sizes,
        *kinds,
        AttachCase("256 bf16 paged", tokens=256, cache=BFLOAT16, memory=BFLOAT16, paged=True, **LLAMA),
    ]


def _batch(scale: Scale, batch: int, shared: int, own: int) -> DecodeCase:
    if scale.tiny:
        return DecodeCase("tiny", batch, shared, own, 4, 2, 16, torch.float32)
    return DecodeCase("8b", batch, shared, own, 32, 8, 128, BFLOAT16)


def _attach(scale: Scale, case: AttachCase, backend: str) -> Row:
    ways = attach_kv_peers.calls(case, backend, scale.device)
    ways["attach"][0]()  # what it refuses, it refuses here
    seconds = {name: replayed_seconds(calls, scale.device) for name, calls in ways.items()}
    return _figures(case.bytes, seconds["attach"], seconds["copy"]) | {"loop_seconds": seconds["loop"]}


def _decode(scale: Scale, case: DecodeCase, peer: str) -> Row:
    reason = PEERS[peer].refuses(case, scale.device)
    if reason is not None:
        raise Refused(reason)
    with torch.inference_mode():
        sets = [
            PEERS[peer].prepare(case, case.tensors(scale.device))
            for _ in range(rotation(case.least_bytes, scale.device))
        ]
        seconds = replayed_seconds([ready.call for ready in sets], scale.device)
        copied = replayed_seconds(copies(case.least_bytes, scale.device), scale.device)
    return _figures(case.least_bytes, seconds, copied) | {"kv_bytes": sets[0].kv_bytes}


def _figures(moved: int, seconds: float, copied: float) -> Row:
    """``moved`` are the fewest bytes that the work needs; ``copied`` the seconds of a copy that moves as many."""
    return {
        "seconds": seconds, "bytes": moved, "bytes_per_second": moved / seconds, "share_of_copy": copied / seconds
    }  # fmt: skip
