"""Inputs, the naive loss that everyone writes, and the comparison that a kernel must pass."""

from __future__ import annotations

import math

import torch
from torch.nn.functional import linear, log_softmax

import lcc_kernels as lk

VARIANTS = {
    "forward": {},
    "reverse": {"direction": "reverse"},
    "jsd": {"direction": "jsd", "beta": 0.3},
    "mse": {"loss": "mse"},
    "temperature": {"temperature": 2.5},
    "softcap": {"softcap": 3.0, "logit_scale": 0.7, "temperature": 1.3},
    "softcap-reverse": {"softcap": 3.0, "direction": "reverse"},
    "softcap-jsd": {"softcap": 3.0, "direction": "jsd", "logit_scale": -1.5},
    "negative-scale": {"logit_scale": -0.7, "direction": "reverse"},
    "padded": {"vocab_size": 30},
}


def make_head(rows, width, vocab, dtype=torch.float32, seed=0, bias=True):
    """Student and teacher hidden states (rows, width), weight (vocab, width), bias (vocab,); logits of a few units."""
    generator = torch.Generator().manual_seed(seed)
    shapes = (rows, width), (rows, width), (vocab, width), (vocab,)
    student, teacher, weight, offset = (torch.randn(shape, generator=generator).to(dtype) for shape in shapes)
    return student.requires_grad_(), teacher, weight, offset if bias else None


def naive_rows(student, teacher, direction="forward", beta=0.5, loss="kl", vocab_size=None, **transform):
    """Losses (rows,) of logits in their own dtype, all of it materialised."""
    student, teacher = (_transformed(logits[:, :vocab_size], **transform) for logits in (student, teacher))
    if loss == "mse":
        return (student - teacher).square().mean(-1)
    student, teacher = log_softmax(student, -1), log_softmax(teacher, -1)
    if direction == "jsd":
        mixture = torch.logaddexp(math.log(beta) + teacher, math.log(1 - beta) + student)
        return beta * _kl(teacher, mixture) + (1 - beta) * _kl(student, mixture)
    return _kl(student, teacher) if direction == "reverse" else _kl(teacher, student)


def naive_linear_rows(student, teacher, weight, bias, **options):
    return naive_rows(linear(student, weight, bias), linear(teacher, weight, bias), **options)


def _transformed(logits, temperature=1.0, softcap=None, logit_scale=1.0):
    logits = logits * logit_scale
    if softcap is not None:
        logits = softcap * torch.tanh(logits / softcap)
    return logits / temperature


def _kl(p, q):
    return (p.exp() * (p - q)).sum(-1)


def loss_and_gradient(rows, student):
    """Row losses and the gradient of a sum that weighs them 1, 2, 3, …."""
    (gradient,) = torch.autograd.grad(rows, student, torch.arange(1, len(rows) + 1).to(rows))
    return rows.detach(), gradient


def assert_as_good_as_torch(ours, naive, truth):
    """|ours - float64| <= 2 |naive in the same dtype - float64| + floor, in the maximum norm."""
    for name, mine, theirs, exact in zip(("loss", "gradient"), ours, naive, truth, strict=True):
        eps = torch.finfo(theirs.dtype).eps
        floor = 8 * eps * exact.abs().max() + torch.finfo(torch.float32).eps
        error, allowed = (mine - exact).abs().max(), 2 * (theirs.double() - exact).abs().max() + floor
        assert error <= allowed, f"{name}: error {error:.3e}, allowed {allowed:.3e}"


def check_linear(student, teacher, weight, bias, variant, **call):
    """``lk.linear_kl`` against naive torch in the same dtype and in float64."""
    rows = lk.linear_kl(student, teacher, weight, bias, reduction="none", **variant, **call)
    ours = loss_and_gradient(rows, student)
    naive = loss_and_gradient(naive_linear_rows(student, teacher, weight, bias, **variant), student)
    doubles = [None if x is None else x.detach().double() for x in (student, teacher, weight, bias)]
    doubles[0].requires_grad_()
    truth = loss_and_gradient(naive_linear_rows(*doubles, **variant), doubles[0])
    assert_as_good_as_torch(ours, naive, truth)


def check_wide_logits(student, teacher, weight, bias, variant, **call):
    """Of inputs in half precision, ``logit_dtype=torch.float32`` loses nothing before the gradient is rounded."""
    rows = lk.linear_kl(student, teacher, weight, bias, reduction="none", logit_dtype=torch.float32, **variant, **call)
    loss, gradient = loss_and_gradient(rows, student)
    doubles = [None if x is None else x.detach().double() for x in (student, teacher, weight, bias)]
    doubles[0].requires_grad_()
    true_loss, true_gradient = loss_and_gradient(naive_linear_rows(*doubles, **variant), doubles[0])
    torch.testing.assert_close(loss.double(), true_loss, rtol=1e-5, atol=1e-5)
    assert gradient.dtype == student.dtype
    error = (gradient.double() - true_gradient).norm() / true_gradient.norm()
    assert error <= torch.finfo(student.dtype).eps


def close_heads(rows, width=256, vocab=4096, distance=0.008):
    """bfloat16 student, teacher (rows, width) and weight: logits of a few units, KL of some 1e-4."""
    generator = torch.Generator().manual_seed(5)
    teacher, noise, weight = (torch.randn(n, width, generator=generator) for n in (rows, rows, vocab))
    student = teacher + distance * noise
    return student.bfloat16(), teacher.bfloat16(), (3 * width**-0.5 * weight).bfloat16()


def check_logits(student, teacher, variant, **call):
    """``lk.kl_from_logits`` against naive torch in the same dtype and in float64."""
    rows = lk.kl_from_logits(student, teacher, reduction="none", **variant, **call)
    ours = loss_and_gradient(rows, student)
    naive = loss_and_gradient(naive_rows(student, teacher, **variant), student)
    exact = student.detach().double().requires_grad_()
    truth = loss_and_gradient(naive_rows(exact, teacher.double(), **variant), exact)
    assert_as_good_as_torch(ours, naive, truth)


def extreme_logits(vocab=257):
    """Student and teacher logits (6, vocab): ±1e4, one-hot teachers and students, equal rows, all equal logits."""
    generator = torch.Generator().manual_seed(7)
    student, teacher = (torch.randn(6, vocab, generator=generator) for _ in range(2))
    student[0] = torch.where(student[0] > 0, 1e4, -1e4)
    teacher[0] = torch.where(teacher[0] > 0, 1e4, -1e4)
    teacher[1] = torch.full((vocab,), -1e4).index_fill_(0, torch.tensor(5), 1e4)
    student[2] = torch.full((vocab,), -1e4).index_fill_(0, torch.tensor(vocab - 1), 1e4)
    student[3] = teacher[3]
    student[4], teacher[4] = 1e4, 1e4
    student[5] += 1e4
    return student.requires_grad_(), teacher


def logits_with_nans(vocab=70):
    """Student and teacher logits (5, vocab): a NaN in the student, in the teacher, all NaN, one +inf, all finite."""
    generator = torch.Generator().manual_seed(11)
    student, teacher = (torch.randn(5, vocab, generator=generator) for _ in range(2))
    student[0, vocab // 2] = teacher[1, -1] = torch.nan
    student[2] = teacher[2] = torch.nan
    student[3, 0] = torch.inf
    return student.requires_grad_(), teacher


def check_nan_in_nan_out(vocab=70, **call):
    """A row with a NaN or +inf has a loss of NaN, and no other row has."""
    student, teacher = logits_with_nans(vocab)
    rows, gradient = loss_and_gradient(lk.kl_from_logits(student, teacher, reduction="none", **call), student)
    expected = [True] * 3 + [call.get("loss") != "mse", False]
    assert (~rows.isfinite()).tolist() == [True] * 4 + [False]
    assert rows.isnan().tolist() == expected
    assert gradient[:4].isfinite().all(1).tolist() == [False] * 4
    assert gradient[4].isfinite().all()


# Rows of ``banned_logits`` whose loss is infinite: one gives probability where the other gives none.
INFINITE = {"forward": [3], "reverse": [2], "jsd": [], "mse": [2, 3]}


def banned_logits(vocab=70):
    """Student and teacher logits (4, vocab) with -inf: in both, in both in one half, in the teacher, in the student."""
    generator = torch.Generator().manual_seed(13)
    student, teacher = (torch.randn(4, vocab, generator=generator) for _ in range(2))
    for logits in (student, teacher):
        logits[0, [0, vocab // 2, vocab - 1]] = -torch.inf
        logits[1, : vocab // 2] = -torch.inf
    teacher[2, 0] = student[3, vocab - 1] = -torch.inf
    return student.requires_grad_(), teacher


def check_banned(name, ours, vocab):
    """Losses and gradients of ``banned_logits`` are those of logits so low that their probability is 0 in float64."""
    student, teacher = (logits.detach().double().clamp(min=-1e4) for logits in banned_logits(vocab))
    truth = loss_and_gradient(naive_rows(student.requires_grad_(), teacher, **VARIANTS[name]), student)
    finite = [row for row in range(4) if row not in INFINITE[name]]
    for mine, exact in zip(ours, truth, strict=True):
        torch.testing.assert_close(mine[finite].double(), exact[finite], rtol=1e-5, atol=1e-6)
    assert (ours[0][INFINITE[name]] == torch.inf).all()
    assert (ours[1][1, : vocab // 2] == 0).all()
