"""The loss of a step: the frozen model reading B alone against the same model reading C (LCC Eqs. 2-4)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from transformers import PreTrainedModel

from ..data.samples import STREAMS, Sample
from ..modeling.scoring import state_divergence
from ..utils.settings import AUTO
from .distractors import ISOLATED, Distractors
from .settings import ExecutionSettings, TrainingSettings
from .student import student_hidden
from .trainable import TrainableMemory


def step_loss(
    memory: TrainableMemory,
    samples: Sequence[Sample],
    training: TrainingSettings,
    execution: ExecutionSettings,
    all_samples: Sequence[Sample] | None = None,
    distractors: Distractors = ISOLATED,
) -> torch.Tensor:
    """Weighted mean over streams of the mean divergence over each stream's supervised tokens.

    One encode serves all samples (identity 1: docs/glossary.md).

    Args:
        samples: of any streams. A stream's weight is shared by its supervised tokens.
        all_samples: the samples of the whole step, when ``samples`` are one process's share. The losses of all shares
            add up to the step's.
        distractors: what the samples see beside the memory. Their teacher reads one text, or one memory, alone.

    Returns:
        A scalar, in nats a token for ``loss="kl"``; differentiable in the memory's parameters.
    """
    hidden = student_hidden(memory, samples, training.keep_prefix, execution, distractors)
    weights = token_weights(samples, training, all_samples).to(hidden.device)
    return divergence(memory.model, hidden, samples, weights, training.loss, execution)


def held_out_kl(
    memory: TrainableMemory, samples: Sequence[Sample], training: TrainingSettings, execution: ExecutionSettings
) -> float:
    """Mean KL(teacher || student) over the samples' supervised tokens, in nats a token."""
    with torch.no_grad():
        hidden = student_hidden(memory, samples, training.keep_prefix, execution)
        weights = torch.full((len(hidden),), 1 / len(hidden), device=hidden.device)
        return divergence(memory.model, hidden, samples, weights, "kl", execution).item()


def validation(
    memory: TrainableMemory,
    reconstruction: Sequence[Sample],
    held_out: Sequence[Sample],
    training: TrainingSettings,
    execution: ExecutionSettings,
    distractors: Distractors = ISOLATED,
) -> tuple[float, float]:
    """``held_out_kl``, and the loss by which states are chosen, both in nats a token.

    That loss looks at every stream that is trained: the mean KL over the reconstruction, over each stream's held-out
    samples, and over what ``distractors`` are asked, weighted as in ``step_loss``.
    """
    samples = [*(reconstruction if training.reconstruction_weight else ()), *distractors.asked, *held_out]
    with torch.no_grad():
        hidden = student_hidden(memory, samples, training.keep_prefix, execution, distractors)
        weights = token_weights(samples, training).to(hidden.device)
        chosen_by = divergence(memory.model, hidden, samples, weights, "kl", execution).item()
        tokens = sum(len(sample.response_ids) for sample in held_out)
        mean = torch.full((tokens,), 1 / tokens, device=hidden.device)
        return divergence(memory.model, hidden[-tokens:], held_out, mean, "kl", execution).item(), chosen_by


def stream_weights(training: TrainingSettings) -> dict[str, float]:
    """Weight of each stream's mean loss, before they are normalised over the streams present."""
    weights = (
        training.reconstruction_weight,
        training.general_weight,
        training.self_study_weight,
        training.across_weight,
        training.rehearsal_weight,
        training.distractor_weight,
    )
    return dict(zip(STREAMS, weights, strict=True))


def token_weights(
    samples: Sequence[Sample], training: TrainingSettings, all_samples: Sequence[Sample] | None = None
) -> torch.Tensor:
    """Weights of the samples' supervised tokens, (tokens,) float64. They sum to 1 over all samples of the step."""
    whole = samples if all_samples is None else all_samples
    weights = stream_weights(training)
    tokens = {stream: sum(len(s.response_ids) for s in whole if s.stream == stream) for stream in STREAMS}
    total = sum(weights[stream] for stream in STREAMS if tokens[stream])
    by_token = [weights[s.stream] / total / tokens[s.stream] for s in samples for _ in s.response_ids]
    return torch.tensor(by_token, dtype=torch.float64)


def divergence(
    model: PreTrainedModel,
    hidden: torch.Tensor,
    samples: Sequence[Sample],
    weights: torch.Tensor,
    loss: str,
    execution: ExecutionSettings,
) -> torch.Tensor:
    """Weighted sum of the divergence from the samples' teacher to ``hidden``, (supervised tokens, H)."""
    # States past the teacher's budget are on the CPU, wherever the model is.
    teacher = torch.cat([sample.teacher_hidden.to(hidden.device) for sample in samples])
    wide = execution.float32_logits
    wide = hidden.device.type != "cpu" if wide == AUTO else wide
    return state_divergence(model, hidden, teacher, weights, loss, torch.float32 if wide else None)
