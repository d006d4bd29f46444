"""The memory that Linux control groups leave to this process: a container's or a batch job's limit is one."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

MEMBERSHIP, MOUNT = Path("/proc/self/cgroup"), Path("/sys/fs/cgroup")
# A group's limit and use, in bytes, and what of its use is files that can be dropped, in memory.stat.
V2 = "memory.max", "memory.current", "inactive_file"
V1 = "memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"


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
