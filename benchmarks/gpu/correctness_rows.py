"""Correctness of what works on rows: losses, attachment, decoding; and NaN in all of them."""

from __future__ import annotations

from functools import partial

import torch

import lcc_kernels as lk
from benchmarks.common.results_file import Row
from benchmarks.kernels.attach_kv_cases import AttachCase
from benchmarks.kernels.shared_prefix_cases import DecodeCase

from .case import TOLERANCES, Case, Scale, backends, relative_error, short, verdict

KINDS = {
    "forward": {}, "reverse": {"direction": "reverse"}, "jsd": {"direction": "jsd", "beta": 0.3}, "mse": {"loss": "mse"}
}  # fmt: skip
LAUNCHES = 1000
NAN_ROW = 3


def nan_cases(scale: Scale) -> list[Case]:
    """NaN in, NaN out, in its row alone."""
    cases = [
        Case(f"nan linear_kl {backend} {kind}", partial(_nan_loss, scale, backend, kind))
        for backend in backends("linear_kl", scale)
        for kind in KINDS
    ]
    for op, check in (
        ("bottleneck_attention", _nan_bottleneck), ("shared_prefix_attention", _nan_decode), ("attach_kv", _nan_attach)
    ):  # fmt: skip
        cases += [Case(f"nan {op} {backend}", partial(check, scale, backend)) for backend in backends(op, scale)]
    return cases


def cases(scale: Scale) -> list[Case]:
    """Losses with weights of any stride in chunks, decoding, the merge of split tiles, attachment."""
    found = [
        Case(f"linear_kl {backend} {kind} {short(dtype)}", partial(_loss, scale, backend, kind, dtype))
        for backend in backends("linear_kl", scale)
        for kind in KINDS
        for dtype in scale.dtypes
    ]
    decoding = backends("shared_prefix_attention", scale)
    found += [
        Case(f"decode {backend} hd{head_dim} {short(dtype)}", partial(_decode, scale, backend, head_dim, dtype))
        for backend in decoding
        for head_dim in (64, 128, 256)
        for dtype in scale.dtypes
    ]
    found += [Case(f"merge {backend}", partial(_merge, scale, backend)) for backend in decoding]
    memories = {"same": scale.dtypes[0], "int8": torch.int8, "fp8": torch.float8_e4m3fn}
    found += [
        Case(f"attach {backend} {name}{' paged' * paged}", partial(_attach, scale, backend, memory, paged))
        for backend in backends("attach_kv", scale)
        for name, memory in memories.items()
        for paged in (False, True)
    ]
    return found


def _heads(scale: Scale, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Student and teacher (rows, H) and a head (V, H) that is no multiple of a tile."""
    torch.manual_seed(0)
    rows, hidden, vocab = (24, 16, 301) if scale.tiny else (1500, 512, 32_003)
    make = partial(torch.randn, device=scale.device)
    shapes = (rows, hidden), (rows, hidden), (vocab, hidden)
    student, teacher, weight = (make(*shape).to(dtype) for shape in shapes)
    return student, teacher, weight * 2 * hidden**-0.5


def _loss(scale: Scale, backend: str, kind: str, dtype: torch.dtype) -> Row:
    """Losses and gradients in several chunks, with weights whose stride is 2, one row in three of weight 0."""
    student, teacher, weight = _heads(scale, dtype)
    pairs = torch.rand(len(student), 2, device=scale.device)
    pairs[::3] = 0
    above = torch.randn(len(student), device=scale.device)
    chunk = len(weight) * student.element_size() * 2 * (len(student) // 5)

    def run(*heads: torch.Tensor, **how: object) -> tuple[torch.Tensor, torch.Tensor]:
        hidden = heads[0].detach().requires_grad_()
        options = {"row_weight": pairs[:, 0].to(hidden.dtype if how["backend"] == "reference" else pairs.dtype)}
        rows = lk.linear_kl(hidden, *heads[1:], reduction="none", **KINDS[kind], **options, **how)
        return rows.detach(), torch.autograd.grad(rows, hidden, above.to(rows.dtype))[0]

    got = run(student, teacher, weight, backend=backend, chunk_bytes=chunk)
    wanted = run(student.double(), teacher.double(), weight.double(), backend="reference")
    errors = {name: relative_error(*pair) for name, *pair in zip(("loss", "gradient"), got, wanted, strict=True)}
    # Logits are rounded to the dtype before the softmax: three times what one rounding of a result gives.
    return verdict(errors, 3 * TOLERANCES[dtype])


def _nan_loss(scale: Scale, backend: str, kind: str) -> Row:
    student, teacher, weight = _heads(scale, scale.dtypes[0])
    run = partial(lk.linear_kl, teacher_hidden=teacher, weight=weight, reduction="none", backend=backend, **KINDS[kind])
    clean, student = run(student), student.clone()
    student[NAN_ROW] = torch.nan
    return _only_there(run(student), clean, NAN_ROW)


def _nan_bottleneck(scale: Scale, backend: str) -> Row:
    layout = lk.BottleneckLayout(2, 9, 4, (7, 5)) if scale.tiny else lk.BottleneckLayout(5, 900, 64, (300, 77))
    torch.manual_seed(0)
    q, k, v = torch.randn(3, 1, 2, layout.total, 64, device=scale.device, dtype=scale.dtypes[0])
    clean, q = lk.bottleneck_attention(q, k, v, layout, backend=backend), q.clone()
    q[:, :, NAN_ROW] = torch.nan
    broken = lk.bottleneck_attention(q, k, v, layout, backend=backend)
    return _only_there(broken.transpose(0, 2), clean.transpose(0, 2), NAN_ROW)


def _nan_decode(scale: Scale, backend: str) -> Row:
    arguments = list(_batch(scale, 64, scale.dtypes[0]).tensors(scale.device).arguments)
    run = partial(lk.shared_prefix_attention, backend=backend)
    clean, arguments[0] = run(*arguments), arguments[0].clone()
    arguments[0][NAN_ROW] = torch.nan
    return _only_there(run(*arguments), clean, NAN_ROW)


def _nan_attach(scale: Scale, backend: str) -> Row:
    arguments = _memory(scale, scale.dtypes[0], False).tensors(scale.device)
    slot = int(arguments["slots"][NAN_ROW])
    lk.attach_kv(**arguments, backend=backend)
    caches = [arguments[name] for name in ("key_cache", "value_cache")]
    clean = torch.stack(caches)
    for name in ("keys", "values"):
        arguments[name][:, :, NAN_ROW] = torch.nan
    lk.attach_kv(**arguments, backend=backend)
    return _only_there(torch.stack(caches).movedim(4, 0), clean.movedim(4, 0), slot)


def _only_there(broken: torch.Tensor, clean: torch.Tensor, row: int) -> Row:
    """Passed if ``row`` is NaN throughout, and the others are what they were without it."""
    others = torch.arange(len(clean), device=clean.device) != row
    nan, same = broken[row].isnan().all(), torch.equal(broken[others], clean[others])
    return {"passed": bool(nan) and same, "nan": bool(nan), "others_alike": same}


def _batch(scale: Scale, head_dim: int, dtype: torch.dtype, q_len: int = 1) -> DecodeCase:
    if scale.tiny:
        return DecodeCase("tiny", 5, 37, 9, 4, 2, head_dim, dtype, q_len)
    return DecodeCase("uneven", 37, 1000, 333, 32, 8, head_dim, dtype, q_len)


def _decode(scale: Scale, backend: str, head_dim: int, dtype: torch.dtype) -> Row:
    """One query and three, keys and values with strides of their own."""
    errors = {}
    for q_len in (1, 3):
        q, shared_k, shared_v, own_k, own_v, lengths = (
            _batch(scale, head_dim, dtype, q_len).tensors(scale.device).arguments
        )
        shared_v, own_v = shared_v.mT.contiguous().mT, own_v.transpose(1, 2).contiguous().transpose(1, 2)
        tensors = q, shared_k, shared_v, own_k, own_v
        got = lk.shared_prefix_attention(*tensors, lengths, backend=backend)
        wanted = lk.shared_prefix_attention(*(x.double() for x in tensors), lengths, backend="reference")
        errors[f"{q_len} queries"] = relative_error(got, wanted)
    return verdict(errors, TOLERANCES[dtype])


def _merge(scale: Scale, backend: str) -> Row:
    """Few sequences on a long prefix, whose tiles many programs share: each launch must give the first one's bits."""
    prefix, launches = (90, 3) if scale.tiny else (8192, LAUNCHES)
    case = DecodeCase("merge", 2, prefix, 64, 8, 2, 64, scale.dtypes[0])
    tensors = case.tensors(scale.device).arguments
    first = lk.shared_prefix_attention(*tensors, backend=backend)
    others = torch.zeros((), dtype=torch.int64, device=scale.device)
    for _ in range(launches):
        others += (lk.shared_prefix_attention(*tensors, backend=backend) != first).any()
    wanted = lk.shared_prefix_attention(*(x.double() for x in tensors[:5]), tensors[5], backend="reference")
    row = verdict({"out": relative_error(first, wanted)}, TOLERANCES[case.dtype])
    return row | {"launches": launches, "other_bits": int(others), "passed": row["passed"] and not others}


def _memory(scale: Scale, memory: torch.dtype, paged: bool) -> AttachCase:
    layers, heads, tokens, head_dim = (2, 2, 16, 32) if scale.tiny else (8, 8, 1008, 128)
    return AttachCase("memory", layers, heads, tokens, head_dim, scale.dtypes[0], memory, paged=paged)


def _attach(scale: Scale, backend: str, memory: torch.dtype, paged: bool) -> Row:
    """Keys and values with strides of their own; what no slot names must stay as it was."""
    case, caches = _memory(scale, memory, paged), {}
    for name in (backend, "reference"):
        torch.manual_seed(0)
        arguments = case.tensors(scale.device)
        arguments["values"] = arguments["values"].transpose(1, 2).contiguous().transpose(1, 2)
        for cache in ("key_cache", "value_cache"):
            for layer in arguments[cache]:
                layer.fill_(7.0)
        lk.attach_kv(**arguments, backend=name)
        caches[name] = {key: torch.stack(list(arguments[key])) for key in ("key_cache", "value_cache")}
    errors = {key: relative_error(caches[backend][key], wanted) for key, wanted in caches["reference"].items()}
    return verdict(errors, TOLERANCES[case.cache])
