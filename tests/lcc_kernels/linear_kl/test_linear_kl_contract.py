"""Options, errors, weights, autograd, registration and memory of the public ops."""

from __future__ import annotations

import math

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

import lcc_kernels as lk
from lcc_kernels.linear_kl import registration, torch_path
from lcc_kernels.linear_kl.options import KLOptions

from .kl_cases import VARIANTS, make_head

BACKENDS = ("reference", "torch")


def gradient_of(loss, student):
    return torch.autograd.grad(loss, student)[0]


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("chunk_bytes", [None, 200])
def test_reductions_and_weights(backend, chunk_bytes):
    head = make_head(4, 8, 33)
    weights = torch.tensor([2.0, 0.0, 0.5, 1.0])
    options = {"backend": backend, "chunk_bytes": chunk_bytes}
    rows = lk.linear_kl(*head, reduction="none", **options)
    weighted = lk.linear_kl(*head, row_weight=weights, reduction="none", **options)
    torch.testing.assert_close(weighted, rows * weights)
    total = lk.linear_kl(*head, row_weight=weights, reduction="sum", **options)
    torch.testing.assert_close(total, weighted.sum())
    torch.testing.assert_close(lk.linear_kl(*head, row_weight=weights, **options), total / 3.5)
    torch.testing.assert_close(lk.linear_kl(*head, **options), rows.mean())
    expected = gradient_of((rows * weights).sum() / 3.5 * -7, head[0])
    actual = gradient_of(lk.linear_kl(*head, row_weight=weights, **options) * -7, head[0])
    torch.testing.assert_close(actual, expected)


@pytest.mark.parametrize("backend", BACKENDS)
def test_rows_of_weight_zero_may_hold_anything(backend):
    student, teacher, weight, bias = make_head(4, 8, 33)
    weights = torch.tensor([1.0, 0.0, 3.0, 0.0])
    expected = lk.linear_kl(student, teacher, weight, bias, row_weight=weights, backend=backend)
    poisoned = student.detach().masked_fill(weights[:, None] == 0, torch.nan).requires_grad_()
    actual = lk.linear_kl(poisoned, teacher, weight, bias, row_weight=weights, backend=backend)
    torch.testing.assert_close(actual, expected)
    torch.testing.assert_close(gradient_of(actual, poisoned), gradient_of(expected, student))


def test_no_weight_at_all():
    student, *rest = make_head(3, 8, 33)
    loss = lk.linear_kl(student, *rest, row_weight=torch.zeros(3))
    assert loss == 0
    assert (gradient_of(loss, student) == 0).all()


def test_rows_of_weight_zero_are_not_computed():
    head, weights = make_head(8, 8, 33), torch.zeros(8)
    weights[3] = 1.0
    with Recorder() as recorder:
        registration.live_rows(
            lambda s, t, w: torch_path.linear_kl_rows(s, t, *head[2:], w, KLOptions(), True),
            head[0].detach(),
            head[1],
            weights,
            True,
        )
    assert recorder.largest == 2 * 33
    assert "index_copy_" in recorder.names


def test_gradients_go_to_the_student_alone():
    student, teacher, weight, bias = make_head(3, 8, 33)
    weight.requires_grad_()
    lk.linear_kl(student, teacher, weight, bias).backward()
    assert weight.grad is None
    assert student.grad is not None


def test_half_precision_gives_a_float32_loss_and_a_half_precision_gradient():
    student, *rest = make_head(3, 8, 33, torch.bfloat16)
    loss = lk.linear_kl(student, *rest)
    assert loss.dtype == torch.float32
    assert gradient_of(loss, student).dtype == torch.bfloat16


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"teacher_hidden": torch.zeros(3, 8, requires_grad=True)}, "torch.no_grad"),
        ({"teacher_hidden": torch.zeros(2, 8)}, "of one shape"),
        ({"student_hidden": torch.zeros(1, 3, 8), "teacher_hidden": torch.zeros(1, 3, 8)}, "flatten"),
        ({"teacher_hidden": torch.zeros(3, 8, dtype=torch.bfloat16)}, "share a floating dtype"),
        ({"weight": torch.zeros(33, 9)}, r"\(V, 8\)"),
        ({"weight": torch.zeros(33, 8, dtype=torch.bfloat16)}, "cast the hidden states"),
        ({"bias": torch.zeros(32)}, r"bias must be \(33,\)"),
        ({"row_weight": torch.zeros(4)}, r"row_weight must be \(3,\)"),
        ({"row_weight": torch.zeros(3, requires_grad=True)}, "detach"),
        ({"reduction": "batchmean"}, "reduction must be"),
        ({"direction": "backward"}, "direction must be"),
        ({"loss": "ce"}, "loss one of"),
        ({"temperature": 0.0}, "temperature and softcap must be > 0"),
        ({"softcap": -1.0}, "temperature and softcap must be > 0"),
        ({"temperature": math.nan}, "temperature and softcap must be > 0"),
        ({"logit_scale": math.inf}, "logit_scale must be finite"),
        ({"direction": "jsd", "beta": 1.0}, "direction='reverse'"),
        ({"vocab_size": 34}, "between 1 and the 33"),
        ({"vocab_size": 0}, "between 1 and the 33"),
        ({"chunk_bytes": 0}, "chunk_bytes"),
        ({"backend": "fast"}, "no backend 'fast'"),
    ],
)
def test_refusals(change, message):
    student, teacher, weight, bias = make_head(3, 8, 33)
    arguments = {"student_hidden": student, "teacher_hidden": teacher, "weight": weight, "bias": bias, **change}
    with pytest.raises(ValueError, match=message):
        lk.linear_kl(**arguments)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_an_explicit_backend_that_cannot_run_says_why():
    head = make_head(3, 8, 33)
    with pytest.raises(lk.BackendUnavailableError, match="no CUDA device"):
        lk.linear_kl(*head, backend="cuda")
    reasons = lk.available_backends("linear_kl")
    assert reasons["torch"] is None
    assert reasons["reference"] is None
    assert "CUDA" in reasons["cuda"]


@pytest.mark.parametrize("context", [torch.no_grad, torch.inference_mode])
def test_no_gradient_is_formed_where_none_is_wanted(context, monkeypatch):
    asked = []
    kernel = torch_path.divergence_
    monkeypatch.setattr(torch_path, "divergence_", lambda *args: asked.append(args[-1]) or kernel(*args))
    student, *rest = make_head(3, 8, 33)
    with context():
        loss = lk.linear_kl(student, *rest)
    assert not loss.requires_grad
    assert not lk.linear_kl(student.detach(), *rest).requires_grad
    assert lk.linear_kl(student, *rest).requires_grad
    assert asked == [False, False, True]


def test_backward_twice_and_second_derivatives():
    student, *rest = make_head(3, 8, 33)
    loss = lk.linear_kl(student, *rest)
    first = torch.autograd.grad(loss, student, retain_graph=True)[0]
    assert torch.equal(first, gradient_of(loss, student))
    with pytest.raises(RuntimeError, match="no second derivative"):
        torch.autograd.grad(lk.linear_kl(student, *rest), student, create_graph=True)


@pytest.mark.parametrize("variant", VARIANTS.values(), ids=VARIANTS)
@pytest.mark.parametrize("chunk_bytes", [None, 300])
def test_gradcheck(variant, chunk_bytes):
    student, teacher, weight, bias = make_head(3, 4, 33, torch.float64)

    def loss(student):
        return lk.linear_kl(student, teacher, weight, bias, reduction="none", chunk_bytes=chunk_bytes, **variant)

    assert torch.autograd.gradcheck(loss, student)
    logits, teacher_logits = student @ weight.t(), teacher @ weight.t()
    assert torch.autograd.gradcheck(
        lambda x: lk.kl_from_logits(x, teacher_logits, **variant), logits.detach().requires_grad_()
    )


@pytest.mark.parametrize("with_grad", [True, False])
def test_opcheck(with_grad):
    student, teacher, weight, bias = make_head(3, 4, 9)
    student.requires_grad_(with_grad)
    weights = torch.tensor([1.0, 0.0, 2.0])
    options = KLOptions(softcap=2.0).arguments
    arguments = student, teacher, weight, bias, weights, "torch", with_grad, *options
    torch.library.opcheck(torch.ops.lcc_kernels.linear_kl_rows.default, arguments)
    arguments = student, teacher, None, "auto", with_grad, *options
    torch.library.opcheck(torch.ops.lcc_kernels.kl_rows.default, arguments)


@pytest.mark.parametrize("dynamic", [False, True])
def test_compiles_without_a_graph_break(dynamic):
    student, teacher, weight, bias = make_head(6, 8, 33)
    weights = torch.tensor([1.0, 0.0, 2.0, 1.0, 1.0, 1.0])

    def loss(student, teacher, weights):
        return 3 * lk.linear_kl(torch.tanh(student), teacher, weight, bias, softcap=4.0, row_weight=weights)

    compiled = torch.compile(loss, fullgraph=True, dynamic=dynamic, backend="aot_eager")
    for rows in (6, 4):
        arguments = student[:rows].detach().requires_grad_(), teacher[:rows], weights[:rows]
        actual, expected = compiled(*arguments), loss(*arguments)
        torch.testing.assert_close(actual, expected)
        torch.testing.assert_close(gradient_of(actual, arguments[0]), gradient_of(expected, arguments[0]))


class Recorder(TorchDispatchMode):
    """Names of the operators that ran, and the elements and bytes of the largest new tensor."""

    def __init__(self):
        super().__init__()
        self.names, self.largest, self.largest_bytes = set(), 0, 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        self.names.add(func.overloadpacket.__name__)
        for tensor in result if isinstance(result, (tuple, list)) else [result]:
            if isinstance(tensor, torch.Tensor) and not func.is_view:
                self.largest = max(self.largest, tensor.numel())
                self.largest_bytes = max(self.largest_bytes, tensor.nbytes)
        return result


@pytest.mark.parametrize("chunk_bytes", [2**15, 2**12])
def test_the_logits_never_exist_whole_and_nothing_waits_for_the_device(chunk_bytes):
    head = [tensor.detach().to("meta") for tensor in make_head(64, 16, 1000)]
    with Recorder() as recorder:
        torch_path.linear_kl_rows(*head, None, KLOptions(chunk_bytes=chunk_bytes, softcap=3.0), True)
    assert recorder.largest * 4 <= chunk_bytes
    assert not recorder.names & {"_local_scalar_dense", "item", "nonzero", "equal", "is_nonzero", "masked_select"}
