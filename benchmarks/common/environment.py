"""Where a figure was measured."""

from __future__ import annotations

import os
import platform
import subprocess
from datetime import date
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch

COMMIT = "LCC_COMMIT"  # names the commit of a tree that came without its .git


def describe() -> dict[str, str]:
    """Date, commit, versions and machine, for every row of results."""
    cuda = torch.cuda.is_available()
    return {
        "date": date.today().isoformat(),
        "commit": os.environ.get(COMMIT) or _git_commit() or "unknown",
        "torch": torch.__version__,
        "transformers": _version("transformers"),
        "triton": _version("triton"),
        "driver": _driver(),
        "device": torch.cuda.get_device_name() if cuda else f"{_processor()}, {torch.get_num_threads()} threads",
    }


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    if info.exists():
        for line in info.read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()


def _git_commit() -> str:
    command = ["git", "rev-parse", "--short", "HEAD"]
    try:
        ran = subprocess.run(command, capture_output=True, text=True, cwd=Path(__file__).parent, check=False)
    except OSError:
        return ""
    return ran.stdout.strip()


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "none"


def _driver() -> str:
    if not torch.cuda.is_available():
        return "none"
    query = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        return subprocess.run(query, capture_output=True, text=True, check=True).stdout.splitlines()[0]
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
