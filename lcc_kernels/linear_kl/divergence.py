"""The formulas on tiles of torch tensors: row sums first, then the gradient of each logit."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property

import torch
from torch.nn.functional import log_softmax, softmax

from .options import KLOptions

RowSums = tuple[torch.Tensor, torch.Tensor | None]


@dataclass(frozen=True)
class Pair:
    """Some or all columns of some rows.

    ``student`` and ``teacher`` (rows, columns) are log-probabilities over the whole vocabulary, for ``mse`` transformed
    logits. Exponentials are computed once, when first needed. ``finite`` takes them to be finite, which is quicker, and
    which finite losses then prove.
    """

    student: torch.Tensor
    teacher: torch.Tensor
    options: KLOptions
    finite: bool

    @cached_property
    def p(self) -> torch.Tensor:
        """The student's probabilities, (rows, columns)."""
        return self.student.exp()

    @cached_property
    def q(self) -> torch.Tensor:
        """The teacher's probabilities, (rows, columns)."""
        return self.teacher.exp()

    @cached_property
    def difference(self) -> torch.Tensor:
        """Student minus teacher, 0 between equal infinities."""
        difference = self.student - self.teacher
        return difference if self.finite else difference.masked_fill_(self.student == self.teacher, 0.0)

    @cached_property
    def mixture(self) -> torch.Tensor:
        """Log-probabilities of m = beta q + (1 - beta) p."""
        beta = self.options.beta
        return torch.logaddexp(self.teacher + math.log(beta), self.student + math.log1p(-beta))

    def row_sums(self) -> RowSums:
        """Each row's loss (rows,), for ``mse`` not yet a mean, and what ``gradient`` centres on (rows,) or None.

        ``forward``: KL(q || p), LCC Eqs. 2-4. ``reverse``: KL(p || q). ``jsd`` (GKD, arXiv 2306.13649):
        beta KL(q || m) + (1 - beta) KL(p || m).
        """
        kind, beta = self.options.kind, self.options.beta
        if kind == "mse":
            return self.difference.square().sum(-1), None
        if kind == "forward":
            return self._mean(self.q, self.teacher - self.student), None
        if kind == "reverse":
            loss = self._mean(self.p, self.student - self.teacher)
            return loss, loss
        from_teacher = self._mean(self.q, self.teacher - self.mixture)
        from_student = self._mean(self.p, self.student - self.mixture)
        return beta * from_teacher + (1 - beta) * from_student, from_student

    def _mean(self, probability: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
        """Row sums (rows,) of their product, which a token of probability 0 is no part of; ``value`` is overwritten.

        Such a token's value may be infinite, or the NaN between two logits of -inf. nansum leaves it out. The NaN of a
        row's own logits is in all its probabilities, so that those of one column bring it back.
        """
        value.mul_(probability)
        if self.finite:
            return value.sum(-1)
        broken = (self.student[:, :1].exp() + self.teacher[:, :1].exp()).mul_(0.0).sum(-1)
        return value.nansum(-1).add_(broken)

    def gradient(self, centre: torch.Tensor | None) -> torch.Tensor:
        """Gradient (rows, columns) of the whole rows' losses in the transformed student logits."""
        if self.options.kind == "mse":
            return self.difference * 2.0
        if self.options.kind == "forward":
            return self.p - self.q
        assert centre is not None
        other = self.teacher if self.options.kind == "reverse" else self.mixture
        gradient = (self.student - other).sub_(centre[:, None]).mul_(self.p)
        if not self.finite:
            gradient.masked_fill_(self.p == 0, 0.0)
        return gradient if self.options.kind == "reverse" else gradient.mul_(1 - self.options.beta)


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


def whole_rows(student_logits: torch.Tensor, teacher_logits: torch.Tensor, options: KLOptions, finite: bool) -> Pair:
    """The pair of raw logits (rows, V)."""
    student, teacher = options.transform(student_logits), options.transform(teacher_logits)
    if options.loss == "mse":
        return Pair(student, teacher, options, finite)
    return WholeRows(log_softmax(student, -1), log_softmax(teacher, -1), options, finite, student, teacher)
