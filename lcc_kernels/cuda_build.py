"""How ``setup.py`` and ``jit`` build the CUDA library: with torch's extension builder and ninja."""

from __future__ import annotations

import hashlib
import re
import shutil
import subprocess
from pathlib import Path

import torch
from setuptools import Distribution, Extension
from torch.utils import cpp_extension

from .dispatch import setting

NAME = "lcc_kernels._C"
TORCH_TARGET = "0x020a000000000000"  # torch 2.10, the oldest that the package supports
FLAGS = ("-std=c++17", "-O3", "-DUSE_CUDA", f"-DTORCH_TARGET_VERSION={TORCH_TARGET}")
# Machine code for 8.x and 9.0; from the PTX of 9.0 a driver makes that of newer GPUs.
GPUS = ("-gencode=arch=compute_80,code=sm_80", "-gencode=arch=compute_90,code=[sm_90,compute_90]")
# The operators of half-precision numbers that torch takes from nvcc.
HALVES = tuple(f.replace("-D", "-U", 1) for f in cpp_extension.COMMON_NVCC_FLAGS if f.startswith("-D__CUDA_NO_"))


def toolkit() -> Path | None:
    """The folder of the CUDA toolkit, as its compiler names it, or None where there is no nvcc.

    torch looks for a toolkit only if it is built for CUDA itself, and takes a script that calls nvcc for nvcc.
    """
    home = setting("CUDA_HOME")
    nvcc = shutil.which("nvcc", path=f"{home}/bin" if home else None)
    if nvcc is None:
        return None
    told = subprocess.run([nvcc, "--dryrun", "-c", "none.cu"], capture_output=True, text=True, check=False).stderr
    top = re.search(r"^#\$ TOP=(.+)$", told, re.MULTILINE)
    return Path(top[1]).resolve() if top else None


def files(folder: Path, *suffixes: str) -> list[str]:
    """Those under ``folder`` that end in one of ``suffixes``."""
    return sorted(str(path) for path in folder.rglob("*") if path.suffix in suffixes)


def fingerprint(folder: Path) -> str:
    """16 hexadecimal digits of the sources in ``folder`` and of the options that they are compiled with."""
    digest = hashlib.sha256(" ".join((*FLAGS, *GPUS)).encode())
    for path in files(folder, ".cpp", ".cu", ".cuh", ".h"):
        digest.update(Path(path).read_bytes())
    return digest.hexdigest()[:16]


def extension(folder: Path) -> Extension:
    """The library of the sources in ``folder``, on torch's stable ABI: the headers of a torch without CUDA suffice."""
    home = toolkit()
    cpp_extension.CUDA_HOME = str(home)
    # nvcc names the headers that a source reads for a torch with CUDA. Without, any change compiles all.
    state = [] if torch.version.cuda else [f"-DLCC_KERNELS_SOURCES={fingerprint(folder)}"]
    return Extension(
        NAME,
        sources=files(folder, ".cpp", ".cu"),
        depends=files(folder, ".cuh", ".h"),
        include_dirs=cpp_extension.include_paths("cuda"),
        library_dirs=[*cpp_extension.library_paths(), f"{home}/lib64", f"{home}/lib"],
        libraries=["cudart_static", "dl", "rt"],
        extra_compile_args={"cxx": [*FLAGS], "nvcc": [*FLAGS, *HALVES, *GPUS, *state]},
        extra_link_args=["-Wl,--no-as-needed", "-ltorch"],
    )


class BuildCuda(cpp_extension.BuildExtension):
    """The library has no Python in it, so neither its name nor the wheel's carries a Python version."""

    def get_ext_filename(self, ext_name: str) -> str:
        """``lcc_kernels/_C.so``."""
        return f"{ext_name.replace('.', '/')}.so"


def build(sources: Path, folder: Path) -> Path:
    """Build the library of ``sources`` in ``folder``; its path."""
    command = BuildCuda(Distribution({"ext_modules": [extension(sources)]}))
    command.build_lib = command.build_temp = str(folder)
    command.ensure_finalized()
    command.run()
    return Path(command.get_ext_fullpath(NAME))
