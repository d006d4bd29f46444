"""Write a repository of Hugging Face's kernel hub, Python alone: ``python .ci/hub.py FOLDER``.

``kernels.get_local_kernel(FOLDER)`` loads it, beside other versions and the installed package: the ops of a build have
a namespace that names its version and its sources.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
import shutil
import sys
from pathlib import Path

PACKAGE = Path(__file__).parents[1] / "lcc_kernels"
VARIANT = Path("build", "torch-universal")
WITHOUT = ("cuda_build.py", "csrc", "*.so", "__pycache__", "py.typed")  # what only the CUDA library and types need
BUILD = """\
[general]
name = "lcc-kernels"
version = {major}
edition = 5
license = "Apache-2.0"
backends = ["cpu", "cuda"]

[torch-noarch]
"""


def write(package: Path, folder: Path) -> str:
    """Write ``package`` as a repository into ``folder``; the namespace of its ops.

    Raises:
        FileExistsError: ``folder`` has a build.
    """
    variant = folder / VARIANT
    shutil.copytree(package, variant, ignore=shutil.ignore_patterns(*WITHOUT))
    version = assigned("__version__", variant / "__init__.py")
    major = int(version.split(".")[0])
    sources = hashlib.sha256(json.dumps(digests(variant)).encode()).hexdigest()[:8]
    namespace = f"_lcc_kernels_{re.sub(r'[^0-9a-z]', '_', version)}_{sources}"
    ops = variant / "_ops.py"
    name = assigned("NAMESPACE", ops)
    ops.write_text(ops.read_text("utf-8").replace(f'NAMESPACE = "{name}"', f'NAMESPACE = "{namespace}"'), "utf-8")
    metadata = {
        "name": "lcc-kernels",
        "id": namespace,
        "version": major,
        "license": "Apache-2.0",
        "python-depends": [],
        "backend": {"type": "cuda"},  # one must be named; a universal variant is taken on any
        "digest": {"algorithm": "sha256", "files": digests(variant)},
    }
    (variant / "metadata.json").write_text(json.dumps(metadata, indent=2) + "\n", "utf-8")
    (folder / "build.toml").write_text(BUILD.format(major=major), "utf-8")
    return namespace


def assigned(name: str, path: Path) -> str:
    """The string that a line of a file gives to ``name``."""
    (value,) = re.findall(rf'^{name} = "(.+)"$', path.read_text("utf-8"), re.MULTILINE)
    return value


def digests(variant: Path) -> dict[str, str]:
    """SHA-256 in base64 of each file of a variant, by its path there."""
    found = {}
    for path in sorted(path for path in variant.rglob("*") if path.is_file()):
        digest = hashlib.sha256(path.read_bytes()).digest()
        found[path.relative_to(variant).as_posix()] = base64.b64encode(digest).decode()
    return found


if __name__ == "__main__":
    print(write(PACKAGE, Path(sys.argv[1])))
