"""An lm_head sharded over two gloo ranks gives what the whole one gives."""

from __future__ import annotations

import weakref
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing

import lcc_kernels as lk

from .kl_cases import VARIANTS, loss_and_gradient, make_head

RANKS = 2
VOCAB_SIZES = (40, 33, 20, 7)  # of 40 columns: whole, padded, a whole shard of padding, and more
BACKENDS = ("reference", "torch")


def _losses(student, teacher, weight, bias, logits, rank_columns, **options):
    """Results of both ops: the loss and gradient behind the head, and those of this rank's logits."""
    behind_head = loss_and_gradient(lk.linear_kl(student, teacher, weight, bias, reduction="none", **options), student)
    own = [x[:, rank_columns].detach() for x in logits]
    own[0].requires_grad_()
    return *behind_head, *loss_and_gradient(lk.kl_from_logits(*own, reduction="none", **options), own[0])


def _check(rank, vocab_size, variant, **shard_options):
    student, teacher, weight, bias = make_head(5, 8, 40, torch.float64)
    logits = [torch.nn.functional.linear(hidden, weight, bias).detach() for hidden in (student, teacher)]
    own = slice(rank * 20, (rank + 1) * 20)
    options = {**variant, "vocab_size": vocab_size, "row_weight": torch.tensor([1.0, 0.0, 2.0, 1.0, 3.0])}
    sharded = _losses(student, teacher, weight[own], bias[own], logits, own, **options, **shard_options)
    *expected, from_logits, logit_gradient = _losses(student, teacher, weight, bias, logits, slice(None), **options)
    torch.testing.assert_close(sharded, (*expected, from_logits, logit_gradient[:, own]))


def _run_rank(rank, store):
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=RANKS)
    for name in ("forward", "reverse", "jsd", "mse", "softcap"):
        for vocab_size in VOCAB_SIZES:
            for backend in BACKENDS:
                _check(rank, vocab_size, VARIANTS[name], backend=backend, process_group=dist.group.WORLD)
            _check(rank, vocab_size, VARIANTS[name], process_group=dist.group.WORLD, chunk_bytes=2**14)
    group = weakref.ref(dist.group.WORLD)
    dist.destroy_process_group()
    assert group() is None, "the ops hold the group"


@pytest.mark.skipif(not dist.is_available(), reason="this torch has no torch.distributed")
def test_two_ranks(tmp_path: Path):
    torch.multiprocessing.spawn(_run_rank, (tmp_path / "store",), nprocs=RANKS)
