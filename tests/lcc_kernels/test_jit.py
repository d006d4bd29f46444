"""The CUDA library built at first use."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from lcc_kernels import cuda_build, jit, library

needs_nvcc = pytest.mark.skipif(cuda_build.toolkit() is None, reason="nvcc is not on the PATH")
PRETENDED = """
import time
from pathlib import Path
folder = Path({folder!r})
with open(folder.parent / "builds", "a") as builds:
    builds.write("one ")
time.sleep(0.3)
folder.joinpath("lcc_kernels").mkdir(parents=True, exist_ok=True)
folder.joinpath("lcc_kernels", "_C.so").write_text("")
"""


@pytest.fixture
def _first_use(monkeypatch, tmp_path):
    """A machine with nvcc and without the library, whose user wants it built."""
    monkeypatch.setenv("LCC_KERNELS_JIT", "1")
    monkeypatch.setenv("TORCH_EXTENSIONS_DIR", str(tmp_path))
    monkeypatch.setattr(library, "PATH", tmp_path / "absent.so")
    monkeypatch.setattr(cuda_build, "toolkit", lambda: Path("/usr/local/cuda"))
    library.library_missing.cache_clear()
    yield
    library.library_missing.cache_clear()


@pytest.mark.usefixtures("_first_use")
def test_of_several_that_come_first_one_builds(monkeypatch):
    monkeypatch.setattr(jit, "BUILD", PRETENDED)
    with ThreadPoolExecutor(4) as threads:
        paths = {future.result() for future in [threads.submit(jit.built_library) for _ in range(4)]}
    (path,) = paths
    assert path.is_file()
    assert path.with_name("builds").read_text() == "one "
    assert "does not load with torch" in library.library_missing()


@pytest.mark.usefixtures("_first_use")
def test_nothing_is_built_unasked(monkeypatch, tmp_path):
    monkeypatch.delenv("LCC_KERNELS_JIT")
    assert "absent.so is not built" in library.library_missing()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.usefixtures("_first_use")
def test_what_keeps_it_from_being_built(monkeypatch, tmp_path):
    (tmp_path / "csrc").mkdir()
    (tmp_path / "csrc" / "broken.cpp").write_text("#error broken on purpose")
    monkeypatch.setattr(jit, "PACKAGE", tmp_path)
    monkeypatch.setattr(cuda_build, "toolkit", lambda: None)
    with pytest.raises(jit.BuildError, match="needs nvcc"):
        jit.built_library()
    monkeypatch.setattr(cuda_build, "toolkit", lambda: Path("/usr/local/cuda"))
    monkeypatch.setenv("TORCH_EXTENSIONS_DIR", "/dev/null")
    with pytest.raises(jit.BuildError, match=r"TORCH_EXTENSIONS_DIR names another folder"):
        jit.built_library()


@needs_nvcc
@pytest.mark.usefixtures("_first_use")
def test_a_failed_build_says_what_the_compiler_said(monkeypatch, tmp_path):
    (tmp_path / "csrc").mkdir()
    (tmp_path / "csrc" / "broken.cpp").write_text("#error broken on purpose")
    monkeypatch.setattr(jit, "PACKAGE", tmp_path)
    assert "broken on purpose" in library.library_missing()


@needs_nvcc
@pytest.mark.slow
@pytest.mark.usefixtures("_first_use")
def test_the_library_is_built(monkeypatch, tmp_path):
    """Without device optimisation: test_cuda_library reads the code that it gives."""
    monkeypatch.setenv("NVCC_APPEND_FLAGS", "-Xcicc -O0 -Xptxas -O0")
    path = jit.built_library()
    assert path.is_relative_to(tmp_path)
    stamp = path.stat().st_mtime_ns
    assert jit.built_library() == path
    assert path.stat().st_mtime_ns == stamp
    assert b"lcc_kernels_cuda" in path.read_bytes()
