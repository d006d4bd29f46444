"""The CUDA library without a GPU: its build, what is in it, its binding, and what is said where it is missing."""

from __future__ import annotations

import ctypes
import importlib.util
import os
import re
import subprocess
import sys
from dataclasses import fields
from pathlib import Path

import pytest
import torch

from lcc_kernels import cuda_build, library
from lcc_kernels.attach_kv.attachment import Attachment
from lcc_kernels.linear_kl.options import KINDS, SHAPES

ROOT = Path(__file__).parents[2]
needs_nvcc = pytest.mark.skipif(cuda_build.toolkit() is None, reason="nvcc is not on the PATH")


@pytest.fixture(autouse=True)
def _nothing_is_remembered():
    yield
    library.load_failure.cache_clear()
    library.library_missing.cache_clear()


def _build(folder):
    """Run setup.py's build in ``folder``: the library and what the compilers say."""
    command = [sys.executable, "setup.py", "-q", "build_ext", f"--build-lib={folder}", f"--build-temp={folder}/temp"]
    variables = {"LCC_KERNELS_BUILD_CUDA": "1", "NVCC_APPEND_FLAGS": "-Xptxas=-v"}
    run = subprocess.run(
        command, env={**os.environ, **variables}, cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert run.returncode == 0, (run.stdout + run.stderr)[-4000:]
    return folder / "lcc_kernels" / "_C.so", run.stdout + run.stderr


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    return _build(tmp_path_factory.mktemp("cuda"))


@needs_nvcc
@pytest.mark.slow
def test_compiles_for_every_gpu_without_spills(built):
    path, log = built
    kernels = re.findall(r"Compiling entry function '(\w+)' for '(\w+)'", log)
    spills = re.findall(r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads", log)
    # Losses: 3 dtypes, 4 kinds, 3 shapes, 2 access widths. Attachments: 6 memories, 3 caches, 2 access widths.
    assert len(kernels) == len(spills) == 2 * (72 + 36)
    assert set(spills) == {("0", "0", "0")}
    cuobjdump = pytest.importorskip("tests.lcc_kernels.ahead_of_time").CUOBJDUMP
    listed = subprocess.run([cuobjdump, "-lelf", "-lptx", path], capture_output=True, text=True, check=True).stdout
    assert sorted(re.findall(r"sm_\w+\.\w+", listed)) == ["sm_80.cubin"] * 2 + ["sm_90.cubin"] * 2 + ["sm_90.ptx"] * 2


# Of the kernels of a GPU: type, kind, shape and the logits that a thread takes in one access.
ROW_KERNEL = re.compile(r"divergence_rowsI(\w+?)LN\w+?4KindE(\d)ELN\w+?5ShapeE(\d)ELi(\d)E")
SWEEPS = {"forward": 2, "reverse": 2, "jsd": 3, "mse": 1}


@needs_nvcc
@pytest.mark.slow
@pytest.mark.parametrize("gpu", ["sm_80", "sm_90"])
def test_sweeps_over_logits_are_short_and_never_wait(built, gpu):
    sass = pytest.importorskip("tests.lcc_kernels.sass")
    path, _ = built
    of_kernel = {ROW_KERNEL.search(name): loops for name, loops in sass.loops_in_file(path, "-arch", gpu).items()}
    wide = {kernel: loops for kernel, loops in of_kernel.items() if kernel and kernel[4] != "1"}
    assert len(wide) == 36  # 3 dtypes, 4 kinds, 3 shapes
    for kernel, loops in wide.items():
        kind, shape, width = KINDS[int(kernel[2])], SHAPES[int(kernel[3])], int(kernel[4])
        sweeps = [loop for loop in loops if sass.count(loop, "LDG")]
        assert len(sweeps) >= SWEEPS[kind]
        for loop in sweeps:
            assert sass.count(loop, "BAR") == 0
            assert sass.count(loop, r"LD[GSL]|ST[GSL]") == sass.count(loop, r"(LDG|STG)\.E\.128")
        if (kind, shape, width) == ("forward", "plain", 8):
            assert sum(sass.instructions_a_pair(loop, 2) for loop in sweeps) <= 30


@needs_nvcc
@pytest.mark.slow
def test_a_second_build_compiles_nothing(built):
    path, _ = built
    _, log = _build(path.parents[1])
    assert "no work to do" in log
    assert "Compiling entry function" not in log


@needs_nvcc
@pytest.mark.parametrize("cuda", [None, "13.0"])
def test_a_changed_header_is_compiled(tmp_path, monkeypatch, cuda):
    monkeypatch.setattr(torch.version, "cuda", cuda)
    header, source = tmp_path / "a.cuh", tmp_path / "a.cu"
    header.write_text("// one")
    source.write_text('#include "a.cuh"')
    first = cuda_build.extension(tmp_path)
    assert (first.sources, first.depends) == ([str(source)], [str(header)])
    header.write_text("// two")
    options = [x.extra_compile_args["nvcc"] for x in (first, cuda_build.extension(tmp_path))]
    assert (options[0] == options[1]) == (cuda is not None)  # nvcc itself tells ninja then


@needs_nvcc
@pytest.mark.slow
@pytest.mark.skipif(torch.version.cuda is not None, reason="needs a torch without CUDA")
def test_binding(built, tmp_path, monkeypatch):
    path, _ = built
    reason = library.load_failure(path)
    assert "does not load with torch" in reason
    assert "undefined symbol" in reason
    assert "pip install" in reason

    stub = tmp_path / "stub.so"
    source = "int aoti_torch_get_current_cuda_stream(int device, void** stream) { return 1; }"
    subprocess.run(["gcc", "-shared", "-fPIC", "-xc", "-", "-o", str(stub)], input=source, text=True, check=True)
    ctypes.CDLL(str(stub), mode=ctypes.RTLD_GLOBAL)
    library.load_failure.cache_clear()
    assert library.load_failure(path) is None
    kernels = torch.ops.lcc_kernels_cuda
    schema = kernels.kl_rows.default._schema
    assert [argument.name for argument in schema.arguments if argument.alias_info] == ["student", "loss"]
    schema = kernels.attach_kv.default._schema
    assert [argument.name for argument in schema.arguments] == [field.name for field in fields(Attachment)]
    assert [argument.name for argument in schema.arguments if argument.alias_info] == ["key_caches", "value_caches"]

    on_gpu, logits, memory = (
        torch._C.DispatchKeySet(torch._C.DispatchKey.CUDA),
        torch.zeros(2, 3),
        torch.zeros(1, 1, 1, 4),
    )
    with pytest.raises(RuntimeError, match="must be on one GPU"):
        kernels.kl_rows.default.redispatch(on_gpu, logits, logits, torch.zeros(2), None, 0, 0, 1.0, 1.0, 1.0, 0.5, True)
    caches, table = ([memory], [memory]), torch.zeros(1, 4)
    slots = torch.zeros(1, dtype=torch.int64)
    with pytest.raises(RuntimeError, match="on the GPU of its caches"):
        kernels.attach_kv.default.redispatch(
            on_gpu, memory, memory, *caches, slots, table, table, None, None, False, False, None
        )

    monkeypatch.setattr(library, "ABI", library.ABI + 1)
    library.load_failure.cache_clear()
    assert f"has ABI {library.ABI - 1} where this version needs {library.ABI}" in library.load_failure(path)


def test_a_missing_or_broken_library_says_how_to_build_it(tmp_path):
    assert re.search(r"_C.so is not built; .*pip install.*LCC_KERNELS_JIT=1", library.load_failure(tmp_path / "_C.so"))
    broken = tmp_path / "broken" / "_C.so"
    broken.parent.mkdir()
    broken.write_text("not a library")
    assert re.search("does not load with torch .*pip install", library.load_failure(broken))


def test_what_keeps_setup_from_building_the_library(monkeypatch):
    spec = importlib.util.spec_from_file_location("lcc_kernels_setup", ROOT / "setup.py")
    setup = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(setup)
    monkeypatch.delenv("LCC_KERNELS_BUILD_CUDA", raising=False)
    monkeypatch.setattr(setup, "find_spec", lambda name: None)
    assert "--no-build-isolation" in setup.why_not()
    monkeypatch.undo()
    monkeypatch.setattr(torch.version, "cuda", None)
    monkeypatch.setattr(cuda_build, "toolkit", lambda: Path("/usr/local/cuda"))
    assert "LCC_KERNELS_BUILD_CUDA=1" in setup.why_not()
    monkeypatch.setenv("LCC_KERNELS_BUILD_CUDA", "1")
    assert setup.why_not() is None
    monkeypatch.setattr(cuda_build, "toolkit", lambda: None)
    assert "nvcc" in setup.why_not()
    monkeypatch.setenv("LCC_KERNELS_BUILD_CUDA", "0")
    assert "=0" in setup.why_not()
