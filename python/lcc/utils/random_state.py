"""Random draws: torch's random state, seeded for a block and given back; and samples of what there is."""

from __future__ import annotations

import random
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TypeVar

import torch

Item = TypeVar("Item")
_LOCK = threading.RLock()


@contextmanager
def seeded(device: torch.device, seed: int) -> Iterator[None]:
    """Seed torch, on the CPU and on ``device``, inside the block; the caller's random state comes back after it.

    torch's random state belongs to the process: one thread is inside at a time.
    """
    devices = [device] if device.type == "cuda" else []
    with _LOCK, torch.random.fork_rng(devices=devices):
        torch.manual_seed(seed)
        yield


def sample_up_to(rng: random.Random, items: Sequence[Item], count: int) -> list[Item]:
    """``count`` of ``items`` without replacement, in random order; all of them where there are fewer."""
    return rng.sample(items, min(count, len(items)))
