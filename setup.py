"""Builds the optional CUDA library from ``csrc/``; without nvcc or a CUDA torch the package is pure Python.

``LCC_KERNELS_BUILD_CUDA=1`` builds against a CPU torch too (its headers suffice), ``=0`` never builds.
``LCC_KERNELS_CUDA_ARCHS`` lists the architectures, by default ``80 90a``.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).parent
SOURCES = ["csrc/bindings.cpp", "csrc/kl/rows.cu"]
HEADERS = ["csrc/kl/divergence.cuh", "csrc/kl/rows.cuh", "csrc/kl/rows.h"]
TORCH_TARGET = "0x020a000000000000"  # torch 2.10, the oldest that the package supports


def why_not() -> str | None:
    """Why the CUDA library cannot be built here, or None."""
    wanted = os.environ.get("LCC_KERNELS_BUILD_CUDA")
    if wanted == "0":
        return "LCC_KERNELS_BUILD_CUDA=0"
    if nvcc() is None:
        return "nvcc is neither on the PATH nor under CUDA_HOME"
    if find_spec("torch") is None:
        return "torch is not importable in the build environment (install it first, then use --no-build-isolation)"
    import torch

    if torch.version.cuda is None and wanted != "1":
        return "this torch has no CUDA (LCC_KERNELS_BUILD_CUDA=1 builds all the same)"
    return None


def nvcc() -> str | None:
    home = os.environ.get("CUDA_HOME")
    return shutil.which("nvcc") or (shutil.which("nvcc", path=f"{home}/bin") if home else None)


def command(output: str, sources: list[str]) -> list[str]:
    """The one call of nvcc that makes the library. It links no libtorch: its symbols come from the running torch."""
    import torch

    include = Path(torch.__file__).parent / "include"
    archs = os.environ.get("LCC_KERNELS_CUDA_ARCHS", "80 90a").split()
    targets = [f"-gencode=arch=compute_{arch},code=sm_{arch}" for arch in archs]
    flags = ["-std=c++17", "-O3", "-DUSE_CUDA", f"-DTORCH_TARGET_VERSION={TORCH_TARGET}", f"-I{include}"]
    return [nvcc() or "nvcc", "-shared", "-Xcompiler=-fPIC", *flags, *targets, "-o", output, *sources]


class BuildCuda(build_ext):
    """Runs nvcc; the library has no Python in it, so its name carries no Python version."""

    def get_ext_filename(self, fullname: str) -> str:
        return f"{fullname.replace('.', '/')}.so"

    def build_extension(self, ext: Extension) -> None:
        output = Path(self.get_ext_fullpath(ext.name))
        output.parent.mkdir(parents=True, exist_ok=True)
        subprocess.run(command(str(output), ext.sources), check=True, cwd=ROOT)


def extensions() -> list[Extension]:
    reason = why_not()
    if reason is None:
        return [Extension("lcc_kernels._C", sources=SOURCES, depends=HEADERS)]
    if "bdist_wheel" in sys.argv or "editable_wheel" in sys.argv:
        print(f"lcc-kernels: installing without the CUDA library: {reason}", file=sys.stderr)
    return []


if __name__ == "__main__":
    setup(ext_modules=extensions(), cmdclass={"build_ext": BuildCuda})
