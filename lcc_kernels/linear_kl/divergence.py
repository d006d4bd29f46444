"""The formulas on tiles of torch tensors: row sums first, then the gradient of each logit.

``student`` and ``teacher`` are log-probabilities (rows, columns), for ``mse`` transformed logits; columns may be any
part of the vocabulary, since every sum here is a sum over columns.
"""

from __future__ import annotations

import math

import torch

from .options import KLOptions


def row_sums(
    student: torch.Tensor, teacher: torch.Tensor, options: KLOptions
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Each row's loss (rows,), and what ``logit_gradient`` centres the slopes on (rows,) or None.

    ``forward``: KL(teacher || student), LCC Eqs. 2-4. ``reverse``: KL(student || teacher). ``jsd``, with
    m = beta teacher + (1 - beta) student: beta KL(teacher || m) + (1 - beta) KL(student || m), GKD (arXiv 2306.13649).
    """
    if options.kind == "mse":
        return (student - teacher).square_().sum(-1), None
    if options.kind == "forward":
        return (teacher - student).mul_(teacher.exp()).sum(-1), None
    if options.kind == "reverse":
        loss = (student - teacher).mul_(student.exp()).sum(-1)
        return loss, loss
    mixture = _log_mixture(student, teacher, options.beta)
    from_teacher = (teacher - mixture).mul_(teacher.exp()).sum(-1)
    from_student = mixture.neg_().add_(student).mul_(student.exp()).sum(-1)
    return options.beta * from_teacher + (1 - options.beta) * from_student, from_student


def logit_gradient(
    student: torch.Tensor, teacher: torch.Tensor, centre: torch.Tensor | None, options: KLOptions
) -> torch.Tensor:
    """Gradient (rows, columns) of the rows' losses in the transformed student logits; ``mse`` as a sum, not a mean."""
    if options.kind == "mse":
        return (student - teacher).mul_(2.0)
    if options.kind == "forward":
        return student.exp().sub_(teacher.exp())
    assert centre is not None
    if options.kind == "reverse":
        return (student - teacher).sub_(centre[:, None]).mul_(student.exp())
    slope = _log_mixture(student, teacher, options.beta).neg_().add_(student)
    return slope.sub_(centre[:, None]).mul_(student.exp()).mul_(1 - options.beta)


def _log_mixture(student: torch.Tensor, teacher: torch.Tensor, beta: float) -> torch.Tensor:
    return torch.logaddexp(teacher + math.log(beta), student + math.log1p(-beta))
