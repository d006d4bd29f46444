"""The CUDA library built at first use, for who installed a wheel without it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from .dispatch import setting

PACKAGE = Path(__file__).parent
BUILD = """
import sys
from pathlib import Path
sys.path[:] = {path!r}
from lcc_kernels.cuda_build import build
build(Path({sources!r}), Path({folder!r}))
"""


class BuildError(RuntimeError):
    """The library could not be built; the message says why."""


def built_library() -> Path:
    """The library of the sources that came with the package, built unless an earlier process did.

    It lies where torch keeps extensions: under ``TORCH_EXTENSIONS_DIR``, by default in the user's cache. Of several
    processes one builds and the others wait for it.

    Raises:
        BuildError: something that the build needs is missing, or a compiler failed.
    """
    # A wheel has the sources in the package, a checkout beside it; a build for the kernel hub has none.
    sources = next(filter(Path.is_dir, (PACKAGE / "csrc", PACKAGE.parent / "csrc")), None)
    if sources is None:
        raise BuildError(f"{PACKAGE} came without the CUDA sources: pip install lcc-kernels has them")
    try:
        from torch.utils.cpp_extension import get_default_build_root

        from . import cuda_build
    except ImportError as error:
        raise BuildError(f"building needs setuptools ({error}): pip install setuptools ninja") from error
    if cuda_build.toolkit() is None:
        raise BuildError("building needs nvcc, which is neither on the PATH nor under CUDA_HOME")
    root = Path(setting("TORCH_EXTENSIONS_DIR") or get_default_build_root())
    folder = root / f"lcc_kernels-{cuda_build.fingerprint(sources)}"
    library = folder / "_C.so"
    if not library.exists():
        _build(sources, folder, library)
    return library


def _build(sources: Path, folder: Path, library: Path) -> None:
    """Build in a process of its own, whose output is kept, and put the library in its place in one step."""
    import fcntl

    try:
        folder.mkdir(parents=True, exist_ok=True)
        with (folder / "lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)  # the system lets go of it when the process ends, however it ends
            if library.exists():
                return
            code = BUILD.format(path=sys.path, sources=str(sources), folder=str(folder / "build"))
            run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
            if run.returncode != 0:
                said = run.stdout[-2000:] + run.stderr.strip().rpartition("\n")[2]  # the compilers, then Python
                raise BuildError(f"building in {folder} failed: {said}")
            os.replace(folder / "build" / "lcc_kernels" / "_C.so", library)
    except OSError as error:
        raise BuildError(f"building in {folder} failed ({error}); TORCH_EXTENSIONS_DIR names another folder") from error
