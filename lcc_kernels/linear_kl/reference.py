"""Readable distillation losses: the whole of both logits at once, in the precision of the inputs."""

from __future__ import annotations

import torch
from torch.nn.functional import log_softmax


def divergence_rows(student_logits: torch.Tensor, teacher_logits: torch.Tensor, direction: str) -> torch.Tensor:
    """Divergence of each row in nats. Logits (rows, V); returns (rows,).

    ``forward`` is KL(teacher || student), LCC Eqs. 2-4; ``reverse`` is KL(student || teacher).
    """
    student, teacher = log_softmax(student_logits, -1), log_softmax(teacher_logits, -1)
    if direction == "reverse":
        student, teacher = teacher, student
    return (teacher.exp() * (teacher - student)).sum(-1)


def squared_error_rows(student_logits: torch.Tensor, teacher_logits: torch.Tensor) -> torch.Tensor:
    """Mean squared difference of each row's logits (the LCC paper's MSE ablation). Returns (rows,)."""
    return (student_logits - teacher_logits).square().mean(-1)
