"""What a container may use counts, not what its machine has."""

from __future__ import annotations

import pytest
import torch

from lcc.utils import device_memory as control_groups
from lcc.utils.device_memory import V1, V2, available_bytes, group_bytes


@pytest.fixture
def machine(tmp_path, monkeypatch):
    """Write files of a control group file system, and say which groups this process is in."""
    monkeypatch.setattr(control_groups, "MOUNT", tmp_path / "mount")
    monkeypatch.setattr(control_groups, "MEMBERSHIP", tmp_path / "membership")

    def build(membership, groups):
        (tmp_path / "membership").write_text(membership)
        for folder, (names, limit, used, droppable) in groups.items():
            path = tmp_path / "mount" / folder
            path.mkdir(parents=True, exist_ok=True)
            (path / names[0]).write_text(f"{limit}\n")
            (path / names[1]).write_text(f"{used}\n")
            (path / "memory.stat").write_text(f"anon 5\n{names[2]} {droppable}\n")

    return build


def test_the_tightest_group_counts_and_files_can_be_dropped(machine):
    machine(
        "0::/job/step\n",
        {"job": (V2, 1000, 700, 200), "job/step": (V2, "max", 600, 0), "other": (V2, 10, 10, 0)},
    )
    assert group_bytes() == 500
    assert available_bytes(torch.device("cpu")) == 500
    machine("0::/job/step\n", {"job/step": (V2, 800, 600, 50)})
    assert group_bytes() == 250
    machine("0::/job/step\n", {"job/step": (V2, 800, 900, 50)})
    assert group_bytes() == 0


def test_version_1_and_a_container_that_sees_its_own_group_as_the_root(machine):
    machine("7:cpu:/docker/a\n4:memory:/docker/a\n0::/docker/a\n", {"memory": (V1, 1000, 100, 0)})
    assert group_bytes() == 900
    machine("4:hugetlb,memory:/docker/a\n", {"memory/docker/a": (V1, 900, 100, 20)})
    assert group_bytes() == 820


@pytest.mark.parametrize("membership", ["", "0::/job\n", "1:name=systemd:/job\n"])
def test_no_limit(machine, membership):
    machine(membership, {"job": (V2, "max", 100, 0)})
    assert group_bytes() is None


def test_no_control_groups(machine):
    assert group_bytes() is None
