"""torch's random state, seeded for a block and given back."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from transformers import PreTrainedModel

_LOCK = threading.RLock()


@contextmanager
def seeded(model: PreTrainedModel, seed: int) -> Iterator[None]:
    """Seed torch inside the block and give the caller's random state back after it.

    torch's random state belongs to the process: one thread is inside at a time.
    """
    devices = [model.device] if model.device.type == "cuda" else []
    with _LOCK, torch.random.fork_rng(devices=devices):
        torch.manual_seed(seed)
        yield
