"""Builds for Hugging Face's kernel hub, loaded by its library beside the package and beside one another."""

from __future__ import annotations

import runpy
import shutil
from importlib import import_module
from pathlib import Path
from types import ModuleType

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

import lcc_kernels as lk
from lcc_kernels.dispatch import interpreting
from tests.lcc_kernels.other_process import ROOT

kernels = pytest.importorskip("kernels")
write = runpy.run_path(str(ROOT / ".ci" / "hub.py"))["write"]
PACKAGE = ROOT / "lcc_kernels"


@pytest.fixture(scope="module")
def loaded(tmp_path_factory) -> dict[str, ModuleType]:
    """This version and a later one by their namespaces."""
    folder = tmp_path_factory.mktemp("hub")
    later = folder / "later" / "lcc_kernels"
    shutil.copytree(PACKAGE, later)
    init = later / "__init__.py"
    init.write_text(init.read_text("utf-8").replace(f'__version__ = "{lk.__version__}"', '__version__ = "7.1.0rc1"'))
    builds = {PACKAGE: folder / "build-of-this", later: folder / "build-of-the-later"}
    return {write(package, build): kernels.get_local_kernel(build) for package, build in builds.items()}


class Namespaces(TorchDispatchMode):
    """The namespaces of the ops that are called, torch's own left out."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: set[str] = set()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.seen |= {function.namespace} - {"aten", "prim"}
        return function(*args, **(kwargs or {}))


def bottleneck(package, backend: str) -> list[torch.Tensor]:
    layout = package.BottleneckLayout(2, 9, 4, (3, 5))
    q, k, v = (torch.randn(1, heads, layout.total, 16, requires_grad=True) for heads in (4, 2, 2))
    out = package.bottleneck_attention(q, k, v, layout, backend=backend)
    return [out, *torch.autograd.grad(out.square().sum(), (q, k, v))]


def linear_kl(package, backend: str) -> list[torch.Tensor]:
    student, teacher, weight = torch.randn(5, 16, requires_grad=True), torch.randn(5, 16), torch.randn(33, 16)
    loss = package.LinearKL(torch.nn.Linear(16, 33), backend=backend)(student, teacher)
    loss = loss + package.linear_kl(student, teacher, weight, backend=backend)
    return [loss, *torch.autograd.grad(loss, student)]


def kl_from_logits(package, backend: str) -> list[torch.Tensor]:
    student = torch.randn(5, 33, requires_grad=True)
    loss = package.kl_from_logits(student, torch.randn(5, 33), backend=backend)
    return [loss, *torch.autograd.grad(loss, student)]


def shared_prefix(package, backend: str) -> list[torch.Tensor]:
    keys, own, queries = torch.randn(2, 7, 16), torch.randn(3, 2, 6, 16), torch.randn(3, 4, 1, 16)
    lengths = torch.tensor([1, 6, 3])
    return [package.shared_prefix_attention(queries, keys, -keys, own, -own, lengths, backend=backend)]


def attach(package, backend: str) -> list[torch.Tensor]:
    keys, caches, table = torch.randn(1, 2, 7, 16), torch.zeros(2, 1, 1, 2, 9, 16), torch.rand(7, 8).repeat(1, 2)
    package.attach_kv(keys, -keys, *caches, torch.arange(7), table, table, backend=backend)
    return [caches]


def compare(op, package, namespace: str, backend: str) -> None:
    """A build gives the package's own numbers, by ops of its own."""
    with Namespaces() as called:
        torch.manual_seed(0)
        found = op(package, backend)
    torch.manual_seed(0)
    torch.testing.assert_close(found, op(lk, backend), rtol=0, atol=0)
    assert called.seen == {namespace}


OPS = [bottleneck, linear_kl, kl_from_logits, shared_prefix, attach]


@pytest.mark.parametrize("op", OPS)
def test_two_versions_beside_the_package(op, loaded):
    assert len(loaded) == 2
    for namespace, package in loaded.items():
        compare(op, package, namespace, "torch")


@pytest.mark.skipif(not interpreting(), reason="needs the interpreter")
@pytest.mark.parametrize("op", OPS)
def test_triton_in_a_build(op, loaded):
    (namespace, package), _ = loaded.items()
    compare(op, package, namespace, "triton")


def test_torch_compiles_a_build(loaded):
    (package, *_) = loaded.values()
    student, teacher, weight = torch.randn(5, 8, requires_grad=True), torch.randn(5, 8), torch.randn(33, 8)
    compiled = torch.compile(package.linear_kl, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(student, teacher, weight), lk.linear_kl(student, teacher, weight))


def test_what_a_build_says_of_itself(loaded):
    from kernels._rust import Build

    by_module = {kernel.module: kernel.metadata for kernel in kernels.get_loaded_kernels()}
    for (namespace, package), version in zip(loaded.items(), [lk.__version__, "7.1.0rc1"], strict=True):
        metadata, variant = by_module[package], Path(package.__file__).parent
        assert metadata.id == namespace == package.__name__
        assert namespace.startswith(f"_lcc_kernels_{version.replace('.', '_')}_")
        assert metadata.version == int(version[0])
        metadata.digest.validate(type(metadata.digest).hash_variant(metadata.digest.algorithm, variant))
        assert len(Build.open(variant.parents[1]).general.backends) == 2


def test_a_namespace_is_as_its_sources(tmp_path):
    names = [write(PACKAGE, tmp_path / "one"), write(PACKAGE, tmp_path / "same")]
    changed = tmp_path / "changed" / "lcc_kernels"
    shutil.copytree(PACKAGE, changed)
    (changed / "rotary.py").write_text("")
    assert names[0] == names[1] != write(changed, tmp_path / "other")
    with pytest.raises(FileExistsError):
        write(PACKAGE, tmp_path / "one")


def test_the_cuda_library_is_not_built_from_a_build(loaded, monkeypatch):
    monkeypatch.setenv("LCC_KERNELS_JIT", "1")
    (package, *_) = loaded.values()
    library = import_module(".library", package.__name__)
    library.library_missing.cache_clear()
    assert "without the CUDA sources" in library.library_missing()
