"""``train``: a memory's optimisation from the first step to the last; and what its steps take."""

from __future__ import annotations

import time
from collections.abc import Sequence
from heapq import nlargest

import torch

from ..data.samples import DistillationData
from ..errors import InputError
from ..modeling.kv import KV
from ..modeling.sharding import is_sharded
from ..utils.device_memory import available_bytes
from ..utils.distributed import ALONE, Ranks
from ..utils.progress import Reporter
from .checkpoint import Checkpoint
from .distractors import Distractor, most_asked, most_tokens
from .execution import resolve_auto
from .settings import ExecutionSettings, TrainingSettings
from .trainable import TrainableMemory
from .trainer import Curve, OnBetter, Trainer


def train(
    memory: TrainableMemory,
    data: DistillationData,
    training: TrainingSettings,
    execution: ExecutionSettings,
    seed: int,
    reporter: Reporter,
    checkpoint: Checkpoint | None = None,
    checkpoint_every: int = 50,
    ranks: Ranks = ALONE,
    start: KV | None = None,
    on_better: OnBetter | None = None,
    distractors: Sequence[Distractor] = (),
) -> tuple[dict[str, torch.Tensor], Curve]:
    """Train ``memory`` on ``data`` to the end, or to an early stop.

    Args:
        checkpoint: where the state is kept every ``checkpoint_every`` steps, and found after a kill.
        start: what to go on from, keys unrotated. It is measured first, and kept if nothing better comes.
        on_better: called after each measurement behind a step that is the best so far, with what would be returned.
        distractors: memories of other texts that stand around this one in some steps.

    Returns:
        The ``tensors`` of the memory in its best state, and the measurements.

    Raises:
        InputError: there is no sample to train on.
        DivergedError: the loss, the held-out KL, or what is kept became NaN or infinite; the last checkpoint stands.
        MismatchError: the checkpoint belongs to another compilation.
        MemoryFileError: a checkpoint cannot be read or written.
    """
    if not data.train and not training.reconstruction_weight:
        raise InputError(
            "there is no sample to train on: raise general_queries, self_study_questions or reconstruction_weight"
        )
    execution = _resolved(memory, data, training, execution, ranks, distractors)
    trainer = Trainer(memory, data, training, execution, seed, checkpoint, ranks, start, on_better, distractors)
    return trainer.run(reporter, checkpoint_every), trainer.curve


def seconds_taken(
    memory: TrainableMemory,
    data: DistillationData,
    training: TrainingSettings,
    execution: ExecutionSettings,
    seed: int,
    ranks: Ranks = ALONE,
) -> tuple[float, float]:
    """Seconds of an optimiser step and of a measurement, from a few that are forgotten. The first step warms up."""
    trainer = Trainer(memory, data, training, _resolved(memory, data, training, execution, ranks), seed, None, ranks)
    trainer.advance()
    began = trainer.seconds
    loss = trainer.advance()
    step = trainer.seconds - began
    began = time.monotonic()
    trainer.measure(loss)
    return step, time.monotonic() - began


def _resolved(
    memory: TrainableMemory,
    data: DistillationData,
    training: TrainingSettings,
    execution: ExecutionSettings,
    ranks: Ranks,
    distractors: Sequence[Distractor] = (),
) -> ExecutionSettings:
    # What a layer of sharded weights takes while it runs cannot be told from what its backward keeps.
    free = None if is_sharded(memory.model) else ranks.least(available_bytes(memory.model.device))
    parts = len(memory.context.parts)
    tokens = _longest_step(data, parts, parts * training.samples) + most_asked(distractors, training)
    return resolve_auto(memory, tokens, execution, free, most_tokens([len(one.kv) for one in distractors], training))


def _longest_step(data: DistillationData, pieces: int, batch: int) -> int:
    """Tokens of a step's samples, if they are the longest."""
    queries = nlargest(batch, (len(sample.input_ids) for sample in data.train))
    return sum(queries) + sum(nlargest(pieces, (len(piece.input_ids) for piece in data.reconstruction)))
