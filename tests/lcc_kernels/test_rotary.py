"""Rotary tables applied and undone."""

from __future__ import annotations

import pytest
import torch
from transformers.models.llama.modeling_llama import apply_rotary_pos_emb

import lcc_kernels as lk


def tables(tokens: int, rotary_dim: int, scaling: float) -> tuple[torch.Tensor, torch.Tensor]:
    angles = torch.arange(tokens, dtype=torch.float64)[:, None] / 10 ** torch.linspace(0, 3, rotary_dim // 2).double()
    angles = torch.cat((angles, angles), -1)
    return angles.cos() * scaling, angles.sin() * scaling


@pytest.mark.parametrize(("rotary_dim", "scaling"), [(16, 1.0), (16, 1.2), (8, 1.0), (2, 0.7)])
def test_undo_inverts_apply(rotary_dim, scaling):
    x = torch.randn(3, 2, 7, 16, dtype=torch.float64).transpose(0, 1)
    cos, sin = tables(7, rotary_dim, scaling)
    turned = lk.apply_rotary(x, cos, sin)
    assert not torch.allclose(turned[..., 1:, :rotary_dim], x[..., 1:, :rotary_dim])
    assert torch.equal(turned[..., rotary_dim:], x[..., rotary_dim:])
    torch.testing.assert_close(lk.undo_rotary(turned, cos, sin), x, rtol=1e-12, atol=1e-12)


def test_apply_is_what_transformers_does():
    query, key = torch.randn(2, 1, 3, 5, 8)
    cos, sin = (table.float() for table in tables(5, 8, 1.0))
    expected, _ = apply_rotary_pos_emb(query, key, cos[None], sin[None])
    torch.testing.assert_close(lk.apply_rotary(query, cos, sin), expected)


def test_gradients():
    x = torch.randn(2, 3, 8, dtype=torch.float64, requires_grad=True)
    cos, sin = tables(3, 6, 1.1)
    assert torch.autograd.gradcheck(lambda x: lk.apply_rotary(x, cos, sin), x)
    assert torch.autograd.gradcheck(lambda x: lk.undo_rotary(x, cos, sin), x)


def test_interleaved_pairs_are_the_half_split_ones_in_another_order():
    x = torch.randn(3, 5, 10, dtype=torch.float64)
    cos, sin = tables(5, 8, 1.1)
    order = torch.arange(8).reshape(2, 4).T.flatten()
    order = torch.cat((order, torch.arange(8, 10)))
    turned = lk.apply_rotary(x[..., order], cos[:, order[:8]], sin[:, order[:8]], interleaved=True)
    torch.testing.assert_close(turned, lk.apply_rotary(x, cos, sin)[..., order])
    undone = lk.undo_rotary(turned, cos[:, order[:8]], sin[:, order[:8]], interleaved=True)
    torch.testing.assert_close(undone, x[..., order])
