"""Memory of this machine: what is free, what a call takes, and sizes for people.

Linux control groups count: a container's or a batch job's limit is one.
"""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import accumulate
from pathlib import Path

import torch
from torch.profiler import ProfilerActivity, profile

MEMBERSHIP, MOUNT = Path("/proc/self/cgroup"), Path("/sys/fs/cgroup")
# A group's limit and use, in bytes, and what of its use is files that can be dropped, in memory.stat.
V2 = "memory.max", "memory.current", "inactive_file"
V1 = "memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"


def available_bytes(device: torch.device) -> int | None:
    """Free memory of ``device``, within the limits of this process's control groups; None where it cannot be asked."""
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        return free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    meminfo = Path("/proc/meminfo")
    if device.type != "cpu" or not meminfo.exists():
        return None
    fields = dict(line.split(":") for line in meminfo.read_text().splitlines())
    free, limited = int(fields["MemAvailable"].split()[0]) * 1024, group_bytes()
    return free if limited is None else min(free, limited)


def gibibytes(count: float) -> str:
    """Bytes for people."""
    return f"{count / 2**30:.2f} GiB" if count >= 2**28 else f"{count / 2**20:.1f} MiB"


def peak_bytes(call: Callable[[], object], device: str) -> int:
    """Bytes of tensors, internal ones too, that ``call`` holds at its worst beyond those held before."""
    if device == "cuda":
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        held = torch.cuda.memory_allocated()
        call()
        return torch.cuda.max_memory_allocated() - held
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        call()
    with tempfile.TemporaryDirectory() as folder:
        profiler.export_chrome_trace(f"{folder}/trace.json")
        events = json.loads(Path(folder, "trace.json").read_text())["traceEvents"]
    memory = sorted((event["ts"], event["args"]["Bytes"]) for event in events if event["name"] == "[memory]")
    return max(accumulate((size for _, size in memory), initial=0))


@contextmanager
def silent_profiler() -> Iterator[None]:
    """Keep what torch's profiler says of its own starting and stopping off the terminal."""
    kept = os.dup(2)
    with open(os.devnull, "wb") as nowhere:
        os.dup2(nowhere.fileno(), 2)
    try:
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)


def group_bytes() -> int | None:
    """Bytes that are left below the tightest limit over this process; None where there is none."""
    left = [_left(folder, *names) for folder, names in _groups()]
    return min((each for each in left if each is not None), default=None)


def _groups() -> Iterator[tuple[Path, tuple[str, str, str]]]:
    """This process's groups up to the root, which in a container is often all that is to be seen of them."""
    if not MEMBERSHIP.exists():
        return
    for line in MEMBERSHIP.read_text().splitlines():
        _, controllers, path = line.split(":", 2)
        if controllers and "memory" not in controllers.split(","):
            continue
        top, names = (MOUNT / "memory", V1) if controllers else (MOUNT, V2)
        group = top / path.lstrip("/")
        for folder in (group, *group.parents):
            if folder.is_relative_to(top):
                yield folder, names


def _left(folder: Path, limit: str, use: str, droppable: str) -> int | None:
    try:
        bound, used = (folder / limit).read_text().strip(), int((folder / use).read_text())
        kinds = dict(line.split() for line in (folder / "memory.stat").read_text().splitlines())
    except OSError:
        return None
    return None if bound == "max" else max(0, int(bound) - used + int(kinds.get(droppable, 0)))
