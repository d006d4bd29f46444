"""Builds the optional CUDA library from ``csrc/``; without nvcc or a CUDA torch the package is pure Python.

``LCC_KERNELS_BUILD_CUDA=1`` builds against a CPU torch too (its headers suffice), ``=0`` never builds.
"""

from __future__ import annotations

import os
import shutil
import sys
from importlib.util import find_spec
from pathlib import Path

from setuptools import setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build_py import build_py

sys.path.insert(0, str(Path(__file__).parent))


def why_not() -> str | None:
    """Why the CUDA library cannot be built here, or None."""
    wanted = os.environ.get("LCC_KERNELS_BUILD_CUDA")
    if wanted == "0":
        return "LCC_KERNELS_BUILD_CUDA=0"
    if find_spec("torch") is None:
        return "torch is not importable in the build environment (install it first, then use --no-build-isolation)"
    import torch

    from lcc_kernels.cuda_build import toolkit

    if torch.version.cuda is None and wanted != "1":
        return "this torch has no CUDA (LCC_KERNELS_BUILD_CUDA=1 builds all the same)"
    return None if toolkit() else "nvcc is neither on the PATH nor under CUDA_HOME"


class WithSources(build_py):
    """Puts the CUDA sources into the package, for who builds the library at first use."""

    def run(self) -> None:
        """Copy them, except into an editable install, which finds them in the checkout."""
        super().run()
        if not self.editable_mode:
            shutil.copytree("csrc", Path(self.build_lib, "lcc_kernels", "csrc"), dirs_exist_ok=True)


class PlatformWheel(bdist_wheel):
    """A wheel for every Python of a platform."""

    def get_tag(self) -> tuple[str, str, str]:
        """Only the platform matters."""
        python, abi, platform = super().get_tag()
        return ("py3", "none", platform) if self.distribution.has_ext_modules() else (python, abi, platform)


def main() -> None:
    """Build with the CUDA library, or without it and with a line that says why."""
    commands = {"build_py": WithSources, "bdist_wheel": PlatformWheel}
    reason = why_not()
    if reason is not None:
        if {"bdist_wheel", "editable_wheel"} & {*sys.argv}:
            print(f"lcc-kernels: installing without the CUDA library: {reason}", file=sys.stderr)
        setup(cmdclass=commands)
        return
    from lcc_kernels.cuda_build import BuildCuda, extension

    try:
        setup(ext_modules=[extension(Path("csrc"))], cmdclass={**commands, "build_ext": BuildCuda})
    except RuntimeError as error:
        raise RuntimeError(f"{error}; LCC_KERNELS_BUILD_CUDA=0 installs without the CUDA library") from error


if __name__ == "__main__":
    main()
