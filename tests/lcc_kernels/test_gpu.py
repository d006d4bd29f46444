"""Which GPUs the kernels take, with a stand-in for ``torch.cuda``."""

from __future__ import annotations

import re
from importlib.util import find_spec

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

import lcc_kernels as lk
from lcc_kernels import dispatch, gpu, library
from lcc_kernels.linear_kl.options import KLOptions

KERNELS = {
    "attach_kv": ("triton", "cuda"),
    "bottleneck_attention": ("triton",),
    "bottleneck_attention_backward": ("triton",),
    "kl_from_logits": ("triton", "cuda"),
    "linear_kl": ("triton", "cuda"),
    "shared_prefix_attention": ("triton",),
}
needs_triton = pytest.mark.skipif(find_spec("triton") is None, reason="triton is not installed")


@pytest.fixture
def machine(monkeypatch):
    """Pretend that these capabilities are the GPUs of this machine, under a torch for CUDA or for ROCm."""

    def pretend(*capabilities, hip=None):
        monkeypatch.delenv("TRITON_INTERPRET", raising=False)
        monkeypatch.setattr(torch.version, "hip", hip)
        monkeypatch.setattr(torch.cuda, "is_available", lambda: bool(capabilities))
        monkeypatch.setattr(torch.cuda, "device_count", lambda: len(capabilities))
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capabilities[device])
        monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: f"GPU {device}")
        clear()

    def clear():
        gpu.gpu_missing.cache_clear()
        gpu.gpu_refusal.cache_clear()

    yield pretend
    clear()


def _arguments(device="cuda"):
    """Tensors on ``device`` that every backend of two ops accepts."""
    with FakeTensorMode():
        hidden, weight = torch.empty(4, 8, device=device), torch.empty(32, 8, device=device)
    return {
        "kl_from_logits": (hidden, hidden, None, KLOptions(), False),
        "linear_kl": (hidden, hidden, weight, None, None, KLOptions(), False),
    }


@pytest.mark.parametrize(
    ("capability", "hip", "reason"),
    [((9, 4), "6.4", "ROCm"), ((7, 5), None, r"GPU 0 .* 7\.5.*8\.0"), ((13, 0), None, r"GPU 0 .* 13\.0.*12\.x")],
)
@needs_triton
def test_auto_falls_back_to_torch_on_a_gpu_that_the_kernels_do_not_know(machine, capability, hip, reason):
    machine(capability, hip=hip)
    for op, kernels in KERNELS.items():
        reasons = lk.available_backends(op)
        assert all(re.search(reason, reasons[kernel]) for kernel in kernels)
        assert reasons["torch"] is None
    for op, arguments in _arguments().items():
        assert dispatch.select(op, "auto", *arguments) is dispatch.select(op, "torch", *arguments)


@pytest.mark.parametrize("capability", [(8, 0), (8, 6), (8, 9), (9, 0), (10, 0), (10, 3), (11, 0), (12, 0), (12, 1)])
@needs_triton
def test_auto_takes_triton_on_the_gpus_that_it_is_compiled_for(machine, capability):
    machine(capability)
    assert all(lk.available_backends(op)["triton"] is None for op in KERNELS)
    for op, arguments in _arguments().items():
        assert dispatch.select(op, "auto", *arguments) is dispatch.select(op, "triton", *arguments)


@needs_triton
def test_each_gpu_of_a_machine_is_judged_by_itself(machine):
    machine((7, 0), (9, 0))
    assert lk.available_backends("linear_kl")["triton"] is None
    old, new = (_arguments(f"cuda:{index}")["linear_kl"] for index in range(2))
    assert dispatch.select("linear_kl", "auto", *new) is not dispatch.select("linear_kl", "torch", *new)
    assert dispatch.select("linear_kl", "auto", *old) is dispatch.select("linear_kl", "torch", *old)
    with pytest.raises(lk.BackendUnavailableError, match=r"GPU 0 has compute capability 7\.0"):
        dispatch.select("linear_kl", "triton", *old)


def test_a_machine_without_a_gpu_says_so(machine, monkeypatch):
    machine()
    monkeypatch.setattr(dispatch, "_installed", lambda package: True)
    assert dispatch.triton_missing().startswith("no CUDA device (TRITON_INTERPRET=1")
    assert library.cuda_missing() == "no CUDA device"
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    assert dispatch.triton_missing() is None
