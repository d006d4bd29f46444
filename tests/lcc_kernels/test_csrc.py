"""The CUDA kernels without a GPU: compiled for the CPU, and run there."""

from __future__ import annotations

import ctypes
import shutil
import subprocess
from functools import partial
from pathlib import Path

import pytest
import torch

import lcc_kernels as lk
from lcc_kernels.attach_kv.attachment import Attachment
from lcc_kernels.attach_kv.cuda_kernel import prepared
from lcc_kernels.linear_kl.options import KINDS, SHAPES, KLOptions
from tests.lcc_kernels.attach_kv import attach_cases
from tests.lcc_kernels.linear_kl.kl_cases import VARIANTS, banned_logits, check_banned, logits_with_nans
from tests.support.far_apart import far_apart

ROOT = Path(__file__).parents[2]
# As the kernel's Dtype counts them.
FACTORS = {torch.float32: 0, torch.float16: 1, torch.bfloat16: 2, torch.float64: 3}
MEMORIES = {torch.float32: 0, torch.int8: 4, torch.float8_e4m3fn: 5, torch.uint8: 6}
needs_compiler = pytest.mark.skipif(shutil.which("g++") is None, reason="g++ is not on the PATH")


def _run(command):
    run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr[-4000:]
    return run.stdout + run.stderr


def _compiled_for_the_host(folder, name):
    """``name``.cpp of tests/support/host as a library, whose stand-in for CUDA is not that of another such library."""
    output = folder / f"{name}.so"
    flags = (
        "-std=c++17",
        "-O2",
        "-pthread",
        "-fno-gnu-unique",
        "-D__CUDA_ARCH__=900",
        "-Itests/support/host/host_cuda",
        "-Icsrc",
    )
    _run(["g++", *flags, "-shared", "-fPIC", f"tests/support/host/{name}.cpp", "-o", str(output)])
    return ctypes.CDLL(str(output))


@pytest.fixture(scope="module")
def run_rows(tmp_path_factory):
    """``run_rows`` of host_rows.cpp."""
    return _compiled_for_the_host(tmp_path_factory.mktemp("host"), "host_rows").run_rows


@pytest.fixture(scope="module")
def attach_on_the_host(tmp_path_factory):
    """``run_attach`` of host_attach.cpp, for an ``Attachment``."""
    library = _compiled_for_the_host(tmp_path_factory.mktemp("host"), "host_attach")

    def factors(tensor, strides, runs):
        dtype = 0 if tensor is None else FACTORS[tensor.dtype]
        return [dtype, *(strides if tensor is not None else (0, 0, 0, 0)), *runs]

    def attach(attachment, wide, group):
        a = prepared(attachment)
        layers, heads, tokens, head_dim = a.shape
        numbers = [a.slots.stride(0), a.slots.dtype == torch.int32, a.block_size, a.capacity, layers, heads, tokens]
        numbers += [head_dim, a.cos.shape[1], a.copies, group, a.interleaved]
        for table in (a.cos, a.sin):
            numbers += factors(table, (0, 0, *table.stride()), (1, 1))
        tensors = [a.slots, a.cos, a.sin]
        sides = (a.keys, a.key_scale, a.key_caches, (a.key_run, 1)), (
            a.values, a.value_scale, a.value_caches, (1, a.value_run),
        )  # fmt: skip
        for memory, scale, caches, runs in sides:
            tensors += [memory, scale, *caches]
            numbers += [*memory.stride(), *factors(scale, scale is not None and scale.stride(), runs)]
            numbers += caches[0].stride()
        pointers = (ctypes.c_void_p * len(tensors))(*(x.data_ptr() if x is not None else None for x in tensors))
        library.run_attach(pointers, (ctypes.c_int64 * len(numbers))(*numbers), MEMORIES[a.keys.dtype], wide)

    return attach


@needs_compiler
@pytest.mark.parametrize("dtype", MEMORIES)
@pytest.mark.parametrize("interleaved", [False, True])
@pytest.mark.parametrize(
    ("layout", "shape", "rotary_dim", "wide", "group"),
    [
        ("listed", (2, 2, 11, 16), 16, True, 2),
        ("paged_nhd", (2, 3, 5, 24), 8, True, 2),
        ("paged_hnd", (1, 5, 24, 64), 64, True, 3),
        ("sliced", (2, 3, 5, 10), 6, False, 1),
        ("channels_first", (1, 2, 9, 8), 2, False, 2),
    ],
)
def test_attach_kernel_on_the_host(attach_on_the_host, dtype, interleaved, layout, shape, rotary_dim, wide, group):
    torch.manual_seed(0)
    run = partial(attach_on_the_host, wide=wide, group=group)
    attach_cases.check(run, layout, dtype, shape=shape, rotary_dim=rotary_dim, interleaved=interleaved)


@needs_compiler
@pytest.mark.parametrize("wide", [False, True])
@pytest.mark.parametrize("dtype", [torch.uint8, torch.int8])
@pytest.mark.parametrize(("key_group", "value_groups"), [(1, None), (4, 1), (32, 4), (None, 8), (3, 16)])
def test_attach_kernel_spreads_scales(attach_on_the_host, dtype, wide, key_group, value_groups):
    run = partial(attach_on_the_host, wide=wide, group=2)
    check = partial(attach_cases.check, run, "paged_hnd", dtype, key_group=key_group, value_groups=value_groups)
    for interleaved in (False, True):
        check(rotary_dim=8, interleaved=interleaved)


@needs_compiler
@pytest.mark.parametrize("wide", [False, True])
@pytest.mark.parametrize("interleaved", [False, True])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_attach_kernel_reads_tables_of_any_dtype(attach_on_the_host, dtype, interleaved, wide):
    run = partial(attach_on_the_host, wide=wide, group=1)
    attach_cases.check(run, interleaved=interleaved, table_dtype=dtype)


@needs_compiler
def test_attach_kernel_follows_every_stride(attach_on_the_host):
    """Channels of the memory apart, tables transposed, narrow slots with a gap."""
    keys, values = (torch.randn(2, 5, 8, 3).permute(0, 3, 1, 2) for _ in range(2))
    cos, sin = (x.T.contiguous().T for x in attach_cases.tables(5, 8, False))
    slots = torch.tensor([8, 0, 1, 0, 2, 0, 3, 0, 5, 0], dtype=torch.int32)[::2]
    caches = torch.zeros(2, 2, 2, 1, 3, 9, 8)
    arguments = slots, cos, sin, None, None, False, False
    attach_on_the_host(Attachment(keys, values, *map(list, caches[0]), *arguments), wide=False, group=2)
    lk.attach_kv(keys, values, *caches[1], slots, cos, sin, backend="reference")
    torch.testing.assert_close(*caches)


@needs_compiler
@pytest.mark.parametrize("dim", [0, 1, 2], ids=["layers", "heads", "tokens"])
def test_attach_kernel_finds_numbers_that_lie_far_apart(attach_on_the_host, dim):
    keys, values = torch.randint(-9, 9, (2, 3, 3, 3, 4), dtype=torch.int8)
    caches, scales = torch.zeros(2, 2, 3, 1, 3, 3, 4), (torch.ones(3, 3, 4), torch.ones(3, 3, 3))
    others = torch.tensor([2, 0, 1]), torch.full((3, 4), 0.6), torch.full((3, 4), 0.8), *scales, False, False
    for target, place in zip(caches, (partial(far_apart, dim=dim), torch.clone), strict=True):
        attach_on_the_host(Attachment(place(keys), place(values), *map(list, target), *others), wide=False, group=2)
    torch.testing.assert_close(*caches)


@needs_compiler
def test_attach_kernel_reads_every_e4m3_number(attach_on_the_host):
    memory = torch.arange(256, dtype=torch.uint8).reshape(1, 1, 4, 64).view(torch.float8_e4m3fn)
    caches, ones = torch.zeros(2, 1, 1, 1, 4, 64), torch.ones(1, 1, 64)
    tables = torch.ones(4, 2), torch.zeros(4, 2)
    slots = torch.arange(4)
    attachment = Attachment(memory, memory, *map(list, caches), slots, *tables, ones, ones[..., :4], False, False)
    attach_on_the_host(attachment, wide=False, group=1)
    for cache in caches:
        torch.testing.assert_close(cache[0, 0, 0], memory[0, 0].float(), rtol=0, atol=0, equal_nan=True)


@needs_compiler
@pytest.mark.parametrize("wide", [False, True])
@pytest.mark.parametrize(("slots", "paged"), [([3, -1, 4], False), ([-5, 20, 0], True)])
def test_attach_kernel_skips_foreign_slots(attach_on_the_host, slots, paged, wide):
    attach_cases.check_foreign_slots(partial(attach_on_the_host, wide=wide, group=2), slots, paged)


def _on_the_host(run_rows, student, teacher, options, row_weight=None, with_grad=True, blocks=1, wide=True):
    """The kernel's losses (rows,), and what it leaves in the student's logits.

    Rows are padded to 16 bytes, the teacher's once more.
    """
    rows, vocab = student.shape
    width = -(-vocab // 4) * 4
    padded, other = torch.full((rows, width), torch.nan), torch.full((rows, width + 4), torch.nan)
    padded[:, :vocab], other[:, :vocab] = student, teacher
    loss = run_on_the_host(run_rows, padded, other, vocab, options, row_weight, with_grad, blocks, wide)
    assert padded[:, vocab:].isnan().all()
    return loss, padded[:, :vocab]


def run_on_the_host(run_rows, student, teacher, vocab, options, row_weight=None, with_grad=True, blocks=1, wide=True):
    """The kernel's losses (rows,) of the first ``vocab`` logits where they lie."""
    loss = torch.full((len(student),), torch.nan)
    pointers = [ctypes.c_void_p(x.data_ptr() if x is not None else None) for x in (student, teacher, loss, row_weight)]
    strides = [ctypes.c_int64(x.stride(0)) for x in (student, teacher)]
    floats = [ctypes.c_float(x) for x in (options.inner, options.scale, options.factor, options.beta)]
    kind, shape = KINDS.index(options.kind), SHAPES.index(options.shape)
    run_rows(*pointers, len(student), vocab, *strides, kind, shape, *floats, with_grad, blocks, wide)
    return loss


@needs_compiler
@pytest.mark.parametrize("kind", [{"direction": d} for d in ("forward", "reverse", "jsd")] + [{"loss": "mse"}])
@pytest.mark.parametrize(
    "transform", [{}, {"logit_scale": -0.7}, {"softcap": 3.0, "temperature": 1.5, "logit_scale": -0.8}]
)
@pytest.mark.parametrize(
    ("vocab", "size", "blocks", "wide"),
    [(1, 1.0, 1, True), (257, 1e4, 1, False), (5003, 3.0, 1, True), (1, 1.0, 2, True), (9001, 3.0, 3, True)],
)
def test_row_kernel_on_the_host(run_rows, kind, transform, vocab, size, blocks, wide):
    generator = torch.Generator().manual_seed(vocab)
    student, teacher = (size * torch.randn(3, vocab, generator=generator) for _ in range(2))
    teacher[0] = student[0]
    options = {"beta": 0.3, **kind, **transform}
    loss, gradient = _on_the_host(run_rows, student, teacher, KLOptions(**options), blocks=blocks, wide=wide)
    exact = student.double().requires_grad_()
    truth = lk.kl_from_logits(exact, teacher.double(), reduction="none", backend="reference", **options)
    (true_gradient,) = torch.autograd.grad(truth.sum(), exact)
    torch.testing.assert_close(loss.double(), truth.detach(), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(gradient.double(), true_gradient, rtol=1e-4, atol=2e-6 * max(1.0, truth.max().item()))
    assert (loss >= 0).all()
    assert loss[0] <= 1e-6


@needs_compiler
def test_row_kernel_finds_rows_that_lie_far_apart(run_rows):
    student, teacher = torch.randn(3, 8), torch.randn(3, 8)
    loss, gradient = _on_the_host(run_rows, student, teacher, KLOptions())
    logits = far_apart(student, 0)
    torch.testing.assert_close(run_on_the_host(run_rows, logits, far_apart(teacher, 0), 8, KLOptions()), loss)
    torch.testing.assert_close(logits, gradient)


@needs_compiler
@pytest.mark.parametrize("loss", ["kl", "mse"])
def test_row_kernel_leaves_alone_what_nobody_asks_for(run_rows, loss):
    student, teacher = torch.randn(3, 70), torch.randn(3, 70)
    student[1] = torch.nan
    weights, options = torch.tensor([1.0, 0.0, 2.0]), KLOptions(loss=loss)
    losses, gradient = _on_the_host(run_rows, student, teacher, options, weights)
    assert losses.isnan().tolist() == gradient.isnan().any(1).tolist() == [False, True, False]
    same_losses, untouched = _on_the_host(run_rows, student, teacher, options, weights, with_grad=False)
    torch.testing.assert_close(same_losses, losses, equal_nan=True)
    torch.testing.assert_close(untouched, student, equal_nan=True)


@needs_compiler
@pytest.mark.parametrize("kind", [{"direction": d} for d in ("forward", "reverse", "jsd")] + [{"loss": "mse"}])
@pytest.mark.parametrize("blocks", [1, 2])
def test_row_kernel_gives_nan_for_nan(run_rows, kind, blocks):
    student, teacher = (logits.detach() for logits in logits_with_nans())
    loss, gradient = _on_the_host(run_rows, student, teacher, KLOptions(**kind), blocks=blocks)
    assert loss.isfinite().tolist() == [False] * 4 + [True]
    assert gradient.isfinite().all(1).tolist() == [False] * 4 + [True]


@needs_compiler
@pytest.mark.parametrize("variant", ["forward", "reverse", "jsd", "mse"])
@pytest.mark.parametrize(("vocab", "blocks"), [(70, 1), (9001, 2)])
def test_row_kernel_leaves_banned_tokens_out(run_rows, variant, vocab, blocks):
    student, teacher = (logits.detach() for logits in banned_logits(vocab))
    loss, gradient = _on_the_host(run_rows, student, teacher, KLOptions(**VARIANTS[variant]), blocks=blocks)
    check_banned(variant, (loss, gradient * torch.arange(1, 5)[:, None]), vocab)
