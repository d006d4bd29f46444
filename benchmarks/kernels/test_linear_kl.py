"""Linear KL, forward and backward, against its peers in one run.

pytest benchmarks/kernels/test_linear_kl.py --benchmark-only --benchmark-json=linear_kl.json
"""

from __future__ import annotations

import time
from functools import partial

import pytest
import torch

import lcc_kernels as lk
from benchmarks.common.timing import copies, peak_bytes, replayed_seconds, synchronized
from benchmarks.kernels.linear_kl_cases import CPU_CASES, CPU_TARGET, GPU_CASES, ROW_KERNEL, HeadCase
from benchmarks.kernels.linear_kl_peers import PEERS, missing

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
CASES = GPU_CASES if DEVICE == "cuda" else CPU_CASES


@pytest.mark.parametrize("peer", PEERS)
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_linear_kl(benchmark, case: HeadCase, peer: str):
    reason = missing(peer, DEVICE)
    if reason is not None:
        pytest.skip(reason)
    step = _step(case, peer)
    try:
        step()
    except torch.OutOfMemoryError:
        pytest.skip(f"{peer} does not fit in this GPU's memory")
    benchmark.extra_info.update(
        op="linear_kl", case=case.name, peer=peer, device=DEVICE, torch=torch.__version__, dtype=str(case.dtype)
    )
    benchmark.extra_info["peak_bytes"] = peak_bytes(step, DEVICE)
    benchmark.pedantic(step, rounds=10 if DEVICE == "cuda" else 5, warmup_rounds=2)
    benchmark.extra_info["three_gemm_tflops"] = case.flops / benchmark.stats["median"] / 1e12


@pytest.mark.skipif(DEVICE != "cpu", reason="the target is the CPU's")
def test_cpu_target(benchmark):
    """2,048 rows, H 512, V 128256, fp32: at most 1/50 of naive torch's peak memory, at least 1.3x its speed."""
    ours, naive = _step(CPU_TARGET, "torch"), _step(CPU_TARGET, "naive")
    benchmark.pedantic(ours, rounds=2, warmup_rounds=1)
    seconds = min(_seconds(naive) for _ in range(2))
    peaks = {"torch": peak_bytes(ours, DEVICE), "naive": peak_bytes(naive, DEVICE)}
    benchmark.extra_info.update(
        case=CPU_TARGET.name,
        threads=torch.get_num_threads(),
        naive_seconds=seconds,
        speedup=seconds / benchmark.stats["min"],
        memory_ratio=peaks["naive"] / peaks["torch"],
        peak_bytes=peaks["torch"],
        naive_peak_bytes=peaks["naive"],
    )
    print(benchmark.extra_info)
    assert benchmark.extra_info["memory_ratio"] >= 50
    assert benchmark.extra_info["speedup"] >= 1.3


@pytest.mark.skipif(DEVICE != "cuda", reason="the row kernels' bandwidth is a GPU's")
@pytest.mark.parametrize("backend", ["triton", "cuda"])
def test_row_kernel(benchmark, backend: str):
    """Bytes a second of loss and gradient over one chunk of logits, beside a plain copy in the same run."""
    reason = missing(backend, DEVICE)
    if reason is not None:
        pytest.skip(reason)
    from importlib import import_module

    from lcc_kernels.linear_kl.options import KLOptions

    kernel = import_module(f"lcc_kernels.linear_kl.{backend}_kernel").divergence_
    shape = 2, ROW_KERNEL.rows, ROW_KERNEL.vocab
    student, teacher = torch.randn(shape, device=DEVICE, dtype=ROW_KERNEL.dtype)
    run = partial(kernel, student, teacher, None, KLOptions(), True)
    moved = 3 * student.nbytes  # two logits read, one gradient written
    seconds = replayed_seconds([run], DEVICE)  # more than an L2 holds
    benchmark.pedantic(synchronized(run, DEVICE), rounds=20, warmup_rounds=5)
    benchmark.extra_info.update(
        backend=backend, device_seconds=seconds, bytes_per_second=moved / seconds,
        fraction_of_copy=replayed_seconds(copies(moved, DEVICE), DEVICE) / seconds,
    )  # fmt: skip


def test_inference(benchmark):
    """The loss alone: no gradient is formed."""
    case = CASES[1]
    student, teacher, weight = (tensor.detach() for tensor in case.tensors(DEVICE))
    benchmark.extra_info.update(op="linear_kl", case=case.name, device=DEVICE)
    benchmark.pedantic(synchronized(lambda: lk.linear_kl(student, teacher, weight), DEVICE), rounds=5, warmup_rounds=2)


def _step(case: HeadCase, peer: str):
    student, teacher, weight = case.tensors(DEVICE)
    return synchronized(lambda: torch.autograd.grad(PEERS[peer](student, teacher, weight), student), DEVICE)


def _seconds(step) -> float:
    start = time.perf_counter()
    step()
    return time.perf_counter() - start
