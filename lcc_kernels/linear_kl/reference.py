"""Readable distillation losses: both logits whole, the textbook formula, gradients by autograd."""

from __future__ import annotations

import math
from dataclasses import replace

import torch
from torch.nn.functional import linear, log_softmax

from .groups import gather
from .options import KLOptions, accumulation_dtype


def kl_rows(
    student_logits: torch.Tensor,
    teacher_logits: torch.Tensor,
    row_weight: torch.Tensor | None,
    options: KLOptions,
) -> torch.Tensor:
    """Loss of each row: logits (rows, V) to (rows,), in at least float32; rows of weight 0 are left out (0)."""
    student_logits, teacher_logits = (
        gather(logits, options.group, dim=1) for logits in (student_logits, teacher_logits)
    )
    if row_weight is None:
        return _rows(student_logits, teacher_logits, options)
    live = row_weight.to(student_logits.device) != 0
    rows = student_logits.new_zeros(len(live), dtype=accumulation_dtype(student_logits.dtype))
    return rows.masked_scatter(live, _rows(student_logits[live], teacher_logits[live], options))


def linear_kl_rows(
    student_hidden: torch.Tensor,
    teacher_hidden: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    row_weight: torch.Tensor | None,
    options: KLOptions,
) -> torch.Tensor:
    """``kl_rows`` of hidden states (rows, H) behind ``weight`` (V, H) and ``bias`` (V,)."""
    weight, bias = gather(weight, options.group, 0), None if bias is None else gather(bias, options.group, 0)
    dtype = options.of_logits(weight.dtype)
    weight, bias = weight.to(dtype), None if bias is None else bias.to(dtype)
    student_logits, teacher_logits = (
        linear(hidden.to(dtype), weight, bias) for hidden in (student_hidden, teacher_hidden)
    )
    return kl_rows(student_logits, teacher_logits, row_weight, replace(options, group=None))


def _rows(student_logits: torch.Tensor, teacher_logits: torch.Tensor, options: KLOptions) -> torch.Tensor:
    """Losses (rows,). A token that both ban, by a logit of -inf, is made equal in both: it adds 0."""
    student, teacher = _transform(student_logits, options), _transform(teacher_logits, options)
    banned = (student == -math.inf) & (teacher == -math.inf)
    if options.loss == "kl":
        student, teacher = log_softmax(student, -1), log_softmax(teacher, -1)
    student, teacher = student.masked_fill(banned, 0.0), teacher.masked_fill(banned, 0.0)
    if options.loss == "mse":
        return (student - teacher).square().mean(-1)
    if options.direction == "forward":
        return _kl(teacher, student)
    if options.direction == "reverse":
        return _kl(student, teacher)
    mixture = torch.logaddexp(teacher + math.log(options.beta), student + math.log1p(-options.beta))
    return options.beta * _kl(teacher, mixture) + (1 - options.beta) * _kl(student, mixture)


def _kl(p: torch.Tensor, q: torch.Tensor) -> torch.Tensor:
    """KL(p || q) of log-probabilities; a token that p gives no probability adds nothing."""
    return (p.exp() * (p - q).masked_fill(p.exp() == 0, 0.0)).sum(-1)


def _transform(logits: torch.Tensor, options: KLOptions) -> torch.Tensor:
    scaled = logits.to(accumulation_dtype(logits.dtype)) * options.logit_scale
    if options.softcap is not None:
        scaled = options.softcap * torch.tanh(scaled / options.softcap)
    return scaled / options.temperature
