"""Builds the optional CUDA library from ``csrc/``; without nvcc or a CUDA torch the package is pure Python.

``LCC_KERNELS_BUILD_CUDA=1`` builds against a CPU torch too (its headers suffice), ``=0`` never builds.
``LCC_KERNELS_CUDA_ARCHS`` lists the architectures, by default ``80 90a``.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterable
from importlib.util import find_spec
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).parent
SOURCES = ["csrc/bindings.cpp", "csrc/attach_kv/attach.cu", "csrc/linear_kl/rows.cu"]
HEADERS = [
    "csrc/vector.cuh",
    "csrc/attach_kv/attach.cuh",
    "csrc/attach_kv/attach.h",
    "csrc/linear_kl/divergence.cuh",
    "csrc/linear_kl/rows.cuh",
    "csrc/linear_kl/rows.h",
]
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
    """Path of the CUDA compiler, or None."""
    home = os.environ.get("CUDA_HOME")
    return shutil.which("nvcc") or (shutil.which("nvcc", path=f"{home}/bin") if home else None)


def architectures() -> list[str]:
    """The GPUs to compile for."""
    return os.environ.get("LCC_KERNELS_CUDA_ARCHS", "80 90a").split()


def command(output: str, sources: list[str], archs: Iterable[str]) -> list[str]:
    """The one call of nvcc that makes the library."""
    import torch

    home = Path(torch.__file__).parent
    targets = [f"-gencode=arch=compute_{arch},code=sm_{arch}" for arch in archs]
    flags = ["-std=c++17", "-O3", "-DUSE_CUDA", f"-DTORCH_TARGET_VERSION={TORCH_TARGET}", f"-I{home}/include"]
    links = ["-shared", "-Xcompiler=-fPIC", f"-L{home}/lib", "-Xlinker=--no-as-needed", "-ltorch"]
    return [nvcc() or "nvcc", *flags, *targets, *links, "-o", output, *sources]


class BuildCuda(build_ext):
    """Runs nvcc. The library has no Python in it, so neither its name nor the wheel's carries a Python version."""

    def get_ext_filename(self, fullname: str) -> str:
        """``lcc_kernels/_C.so``."""
        return f"{fullname.replace('.', '/')}.so"

    def build_extension(self, ext: Extension) -> None:
        """Compile and link in one call."""
        output = Path(self.get_ext_fullpath(ext.name))
        output.parent.mkdir(parents=True, exist_ok=True)
        try:
            subprocess.run(command(str(output), ext.sources, architectures()), check=True, cwd=ROOT)
        except subprocess.CalledProcessError as error:
            raise RuntimeError("nvcc failed; LCC_KERNELS_BUILD_CUDA=0 installs without the CUDA library") from error


class PlatformWheel(bdist_wheel):
    """A wheel for every Python of a platform."""

    def get_tag(self) -> tuple[str, str, str]:
        """Only the platform matters."""
        python, abi, platform = super().get_tag()
        return ("py3", "none", platform) if self.distribution.has_ext_modules() else (python, abi, platform)


def extensions() -> list[Extension]:
    """The CUDA library, or nothing and a line that says why."""
    reason = why_not()
    if reason is None:
        return [Extension("lcc_kernels._C", sources=SOURCES, depends=HEADERS)]
    if "bdist_wheel" in sys.argv or "editable_wheel" in sys.argv:
        print(f"lcc-kernels: installing without the CUDA library: {reason}", file=sys.stderr)
    return []


if __name__ == "__main__":
    setup(ext_modules=extensions(), cmdclass={"build_ext": BuildCuda, "bdist_wheel": PlatformWheel})
