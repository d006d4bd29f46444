"""The formulas on tiles of torch tensors: row sums first, then the gradient of each logit."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property

import torch
from torch.nn.functional import log_softmax, softmax

from .options import KLOptions


@dataclass(frozen=True)
class Pair:
    """Some or all columns of some rows.

    ``student`` and ``teacher`` (rows, columns) are log-probabilities over the whole vocabulary, for ``mse`` transformed
    logits. Exponentials are computed once, when first needed.
    """

    student: torch.Tensor
    teacher: torch.Tensor
    options: KLOptions

    @cached_property
    def p(self) -> torch.Tensor:
        """The student's probabilities, (rows, columns)."""
        return self.student.exp()

    @cached_property
    def q(self) -> torch.Tensor:
        """The teacher's probabilities, (rows, columns)."""
        return self.teacher.exp()

    @cached_property
    def mixture(self) -> torch.Tensor:
        """Log-probabilities of m = beta q + (1 - beta) p."""
        beta = self.options.beta
        return torch.logaddexp(self.teacher + math.log(beta), self.student + math.log1p(-beta))

    def row_sums(self) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Each row's loss (rows,), for ``mse`` not yet a mean, and what ``gradient`` centres on (rows,) or None.

        ``forward``: KL(q || p), LCC Eqs. 2-4. ``reverse``: KL(p || q). ``jsd`` (GKD, arXiv 2306.13649):
        beta KL(q || m) + (1 - beta) KL(p || m).
        """
        kind, beta = self.options.kind, self.options.beta
        if kind == "mse":
            return (self.student - self.teacher).square_().sum(-1), None
        if kind == "forward":
            return (self.teacher - self.student).mul_(self.q).sum(-1), None
        if kind == "reverse":
            loss = (self.student - self.teacher).mul_(self.p).sum(-1)
            return loss, loss
        from_teacher = (self.teacher - self.mixture).mul_(self.q).sum(-1)
        from_student = (self.student - self.mixture).mul_(self.p).sum(-1)
        return beta * from_teacher + (1 - beta) * from_student, from_student

    def gradient(self, centre: torch.Tensor | None) -> torch.Tensor:
        """Gradient (rows, columns) of the whole rows' losses in the transformed student logits."""
        if self.options.kind == "mse":
            return (self.student - self.teacher).mul_(2.0)
        if self.options.kind == "forward":
            return self.p - self.q
        assert centre is not None
        if self.options.kind == "reverse":
            return (self.student - self.teacher).sub_(centre[:, None]).mul_(self.p)
        return (self.student - self.mixture).sub_(centre[:, None]).mul_(self.p).mul_(1 - self.options.beta)


@dataclass(frozen=True)
class WholeRows(Pair):
    """A pair with all its columns: softmax of the transformed logits is faster than the exponential."""

    student_logits: torch.Tensor
    teacher_logits: torch.Tensor

    @cached_property
    def p(self) -> torch.Tensor:
        """The student's probabilities, (rows, columns)."""
        return softmax(self.student_logits, -1)

    @cached_property
    def q(self) -> torch.Tensor:
        """The teacher's probabilities, (rows, columns)."""
        return softmax(self.teacher_logits, -1)


def whole_rows(student_logits: torch.Tensor, teacher_logits: torch.Tensor, options: KLOptions) -> Pair:
    """The pair of raw logits (rows, V)."""
    student, teacher = options.transform(student_logits), options.transform(teacher_logits)
    if options.loss == "mse":
        return Pair(student, teacher, options)
    return WholeRows(log_softmax(student, -1), log_softmax(teacher, -1), options, student, teacher)
