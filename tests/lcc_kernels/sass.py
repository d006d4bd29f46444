"""The innermost loops of kernels, read from the machine code of a GPU that is not here."""

from __future__ import annotations

import re
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path

import triton

CUOBJDUMP = Path(triton.__file__).parent / "backends/nvidia/bin/cuobjdump"
INSTRUCTION = re.compile(r"^\s*/\*([0-9a-f]{4,})\*/\s+(.*?)\s*;", re.MULTILINE)
BRANCH = re.compile(r"\bBRA\b.*\b0x([0-9a-f]+)")
PRODUCT = r"HGMMA|HMMA|UTCHMMA"


def innermost_loops(cubin: bytes) -> dict[str, list[list[str]]]:
    """Instructions of each loop that holds no other, of each kernel by its (mangled) name, in the code's order."""
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        Path(file.name).write_bytes(cubin)
        return loops_in_file(Path(file.name))


def loops_in_file(path: Path, *options: str) -> dict[str, list[list[str]]]:
    """``innermost_loops`` of what cuobjdump reads from ``path`` with these ``options``."""
    command = [str(CUOBJDUMP), "--dump-sass", *options, str(path)]
    code = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    _, *parts = re.split(r"^\s*Function : (\S+)$", code, flags=re.MULTILINE)
    return {name: _innermost(body) for name, body in zip(parts[::2], parts[1::2], strict=True)}


def count(loop: Sequence[str], pattern: str) -> int:
    """How many instructions of a loop begin with ``pattern``, behind their predicate."""
    return sum(re.match(rf"(@!?U?P\w+ )?({pattern})", instruction) is not None for instruction in loop)


def loop_instructions(cubin: bytes) -> list[int]:
    """Instructions of each innermost loop that multiplies on tensor cores."""
    loops = [loop for of_kernel in innermost_loops(cubin).values() for loop in of_kernel]
    return [len(loop) for loop in loops if count(loop, PRODUCT)]


def instructions_a_pair(loop: Sequence[str], itemsize: int) -> float:
    """Instructions for each pair of numbers that the loop reads, all of it in accesses of 16 bytes."""
    pairs = count(loop, r"LDG\.E\.128") * 16 / itemsize / 2
    return round(len(loop) / pairs, 2)


def _innermost(body: str) -> list[list[str]]:
    """What lies between a branch and where it goes back to, unless other such stretches lie in there."""
    lines = [(int(address, 16), text) for address, text in INSTRUCTION.findall(body)]
    stretches = set()
    for address, text in lines:
        target = BRANCH.search(text)
        if target and int(target[1], 16) < address:
            stretches.add((int(target[1], 16), address))
    inner = [
        (start, stop)
        for start, stop in stretches
        if not any((start, stop) != other and start <= other[0] and other[1] <= stop for other in stretches)
    ]
    return [[text for address, text in lines if start <= address <= stop] for start, stop in sorted(inner)]
