"""The loss of a step: the frozen model reading B alone against the same model reading C (LCC Eqs. 2-4)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from transformers import PreTrainedModel

import lcc_kernels as lk

from ..compilers.lora import Writer
from ..data.synthesis import STREAMS, Sample
from ..pipeline.settings import CompileSettings
from .student import student_hidden


def step_loss(
    writer: Writer, samples: Sequence[Sample], settings: CompileSettings, of: Sequence[Sample] | None = None
) -> torch.Tensor:
    """Weighted mean over streams of the mean divergence over each stream's supervised tokens.

    One encode serves all samples, by the engine that the settings name (see ``student_hidden``).

    Args:
        samples: of any streams; each stream's weight is shared by its supervised tokens.
        of: the step's samples when ``samples`` are one process's share: the shares' losses add up to the step's.

    Returns:
        A scalar, in nats a token for ``loss="kl"``; differentiable in what the writer trains.
    """
    hidden = student_hidden(writer, samples, settings)
    weights = row_weights(samples, settings, of).to(hidden.device)
    return divergence(writer.model, hidden, samples, weights, settings.loss)


def held_out_kl(writer: Writer, samples: Sequence[Sample], settings: CompileSettings) -> float:
    """Mean KL(teacher || student) over the samples' supervised tokens, in nats a token."""
    with torch.no_grad():
        hidden = student_hidden(writer, samples, settings)
        weights = torch.full((len(hidden),), 1 / len(hidden), device=hidden.device)
        return divergence(writer.model, hidden, samples, weights, "kl").item()


def stream_weights(settings: CompileSettings) -> dict[str, float]:
    """Weight of each stream's mean loss, before they are normalised over the streams present."""
    weights = (settings.reconstruction_weight, settings.general_weight, settings.self_study_weight)
    return dict(zip(STREAMS, weights, strict=True))


def row_weights(
    samples: Sequence[Sample], settings: CompileSettings, of: Sequence[Sample] | None = None
) -> torch.Tensor:
    """Weights of the samples' supervised tokens, (tokens,) float64; they sum to one over ``of`` or ``samples``."""
    whole = samples if of is None else of
    weights = stream_weights(settings)
    tokens = {stream: sum(len(s.response_ids) for s in whole if s.stream == stream) for stream in STREAMS}
    total = sum(weights[stream] for stream in STREAMS if tokens[stream])
    rows = [weights[s.stream] / total / tokens[s.stream] for s in samples for _ in s.response_ids]
    return torch.tensor(rows, dtype=torch.float64)


def divergence(
    model: PreTrainedModel, hidden: torch.Tensor, samples: Sequence[Sample], weights: torch.Tensor, loss: str
) -> torch.Tensor:
    """Weighted sum of the divergence from the samples' teacher to ``hidden``, (supervised tokens, H)."""
    # States past the teacher's budget are on the CPU, wherever the model is.
    teacher = torch.cat([sample.teacher_hidden.to(hidden.device) for sample in samples])
    return state_divergence(model, hidden, teacher, weights, loss)


def state_divergence(
    model: PreTrainedModel, hidden: torch.Tensor, teacher: torch.Tensor, weights: torch.Tensor, loss: str
) -> torch.Tensor:
    """Weighted sum of the divergence from ``teacher`` to ``hidden``, both last hidden states, (rows, H)."""
    head = model.get_output_embeddings()
    hidden = hidden.to(head.weight.dtype)
    bias = getattr(head, "bias", None)
    return lk.linear_kl(
        hidden, teacher.to(hidden), head.weight, bias, row_weight=weights.to(hidden.dtype), reduction="sum", loss=loss
    )
