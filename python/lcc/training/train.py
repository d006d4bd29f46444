"""A memory's optimisation from the first step to the last, alone or beside others; and what its steps take."""

from __future__ import annotations

import time
from collections.abc import Sequence
from statistics import fmean

import torch

from ..data.samples import DistillationData, SectionedData
from ..errors import InputError
from ..modeling.kv import KV
from ..modeling.sharding import is_sharded
from ..utils.device_memory import available_bytes
from ..utils.distributed import ALONE, Ranks
from ..utils.progress import Reporter
from .checkpoint import Checkpoint
from .distractors import Company, Distractor, OtherTexts
from .execution import resolve_auto
from .neighbours import Neighbours, Row
from .run import TrainingRun
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
    company = OtherTexts(distractors, training) if distractors else None
    execution = _resolved(memory, data, training, execution, ranks, company)
    trainer = Trainer(memory, data, training, execution, seed, ranks, start, on_better, company)
    (tensors,) = TrainingRun([trainer], checkpoint).finish(reporter, checkpoint_every)
    return tensors, trainer.curve


def train_together(
    memories: Sequence[TrainableMemory],
    data: SectionedData,
    training: TrainingSettings,
    execution: ExecutionSettings,
    seed: int,
    reporter: Reporter,
    checkpoint: Checkpoint | None = None,
    checkpoint_every: int = 50,
    ranks: Ranks = ALONE,
) -> tuple[list[dict[str, torch.Tensor]], Curve]:
    """Train the memories of a text's sections, which take turns: a step of one, then of the next.

    In an isolated step a section sees itself alone. In the others it sees all sections in a row, as they are then, and
    only its own parameters move. So a step takes what a step of one section takes, and all steps together grow with
    the number of sections.

    Returns:
        The ``tensors`` of each memory, and measurements: means over the sections, and their seconds together.

    Raises:
        DivergedError, MismatchError, MemoryFileError: as ``train``.
    """
    tokens = [memory.context.buffer for memory in memories]
    row, trainers = Row(memories, execution), []
    for number, (memory, own) in enumerate(zip(memories, data.sections, strict=True)):
        company = Neighbours(number, row, data, training, tokens)
        resolved = _resolved(memory, own, training, execution, ranks, company)
        trainers.append(Trainer(memory, own, training, resolved, seed, ranks, company=company))
    tensors = TrainingRun(trainers, checkpoint).finish(reporter, checkpoint_every)
    return tensors, _mean_curve([trainer.curve for trainer in trainers])


def _mean_curve(curves: Sequence[Curve]) -> Curve:
    """Means over all sections. One that stopped early stays as it was."""
    curve = []
    for step in sorted({point["step"] for one in curves for point in one}):
        latest = [[point for point in one if point["step"] <= step][-1:] for one in curves]
        points = [point for some in latest for point in some]
        means = {name: fmean(point[name] for point in points) for name in ("loss", "held_out_kl")}
        curve.append({"step": step, **means, "seconds": round(sum(point["seconds"] for point in points), 3)})
    return curve


def seconds_taken(
    memory: TrainableMemory,
    data: DistillationData,
    training: TrainingSettings,
    execution: ExecutionSettings,
    seed: int,
    ranks: Ranks = ALONE,
) -> tuple[float, float]:
    """Seconds of an optimiser step and of a measurement, from a few that are forgotten. The first step warms up."""
    trainer = Trainer(memory, data, training, _resolved(memory, data, training, execution, ranks), seed, ranks)
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
    company: Company | None = None,
) -> ExecutionSettings:
    # What a layer of sharded weights takes while it runs cannot be told from what its backward keeps.
    free = None if is_sharded(memory.model) else ranks.least(available_bytes(memory.model.device))
    beside, asked = (company.tokens, company.asked_tokens) if company else (0, 0)
    return resolve_auto(memory, _longest_step(data, training.samples) + asked, execution, free, beside)


def _longest_step(data: DistillationData, batch: int) -> int:
    """Tokens of a step's samples, if its queries are the longest."""
    queries = sorted((len(sample.input_ids) for sample in data.train), reverse=True)
    return max(len(piece.input_ids) for piece in data.reconstruction) + sum(queries[:batch])
