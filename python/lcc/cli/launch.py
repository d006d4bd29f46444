"""The processes of one command."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta

import torch

from ..modeling.sharding import Place, placement
from ..utils.distributed import Ranks

# Collective timeout: the other ranks wait while rank 0 generates.
PATIENCE = timedelta(hours=24)


@contextmanager
def launched() -> Iterator[tuple[Ranks, Place]]:
    """The processes that ``accelerate launch`` or torchrun started, and what puts a model where it belongs.

    A process that was started by itself is alone, its device a GPU if there is one.
    """
    from accelerate import PartialState

    cuda = torch.cuda.is_available()
    state = PartialState(cpu=not cuda, timeout=PATIENCE)
    ranks = Ranks(state.process_index, state.num_processes)
    device = state.device if ranks.count > 1 else torch.device("cuda" if cuda else "cpu")
    try:
        yield ranks, placement(device)
        # Leave together, or a pending broadcast fails.
        state.wait_for_everyone()
    finally:
        if ranks.count > 1:
            state.destroy_process_group()
