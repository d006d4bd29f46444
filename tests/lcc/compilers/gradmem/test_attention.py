"""Attention that can be differentiated twice, against torch's own and against finite differences."""

from __future__ import annotations

import pytest
import torch
from torch.nn.functional import scaled_dot_product_attention

from lcc.compilers.gradmem.attention import NAME, plain_attention
from lcc.modeling.attention import attending


def inputs(queries: int, tokens: int, heads: int = 4, kv_heads: int = 2, width: int = 3) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(queries + tokens)
    shapes = [(2, heads, queries, width), (2, kv_heads, tokens, width), (2, kv_heads, tokens, width)]
    drawn = [torch.randn(shape, generator=generator, dtype=torch.float64) for shape in shapes]
    return [tensor.requires_grad_() for tensor in drawn]


def attend(*tensors: torch.Tensor) -> torch.Tensor:
    return plain_attention(torch.nn.Identity(), *tensors, None)[0]


@pytest.mark.parametrize(("queries", "tokens"), [(1, 1), (5, 5), (3, 7), (1, 6)])
def test_it_is_torchs_attention(queries, tokens):
    q, k, v = inputs(queries, tokens)
    seen = torch.ones(queries, tokens, dtype=torch.bool).tril(tokens - queries)
    expected = scaled_dot_product_attention(q, k, v, seen, enable_gqa=True)
    torch.testing.assert_close(attend(q, k, v), expected.transpose(1, 2))


def test_its_gradients_have_gradients():
    tensors = inputs(3, 4)
    assert torch.autograd.gradcheck(attend, tensors)
    assert torch.autograd.gradgradcheck(attend, tensors)


def test_a_model_attends_with_it(llama):
    ids = torch.randint(3, 50, (2, 9))
    with torch.no_grad():
        expected = llama(ids).logits
        with attending(llama, NAME):
            torch.testing.assert_close(llama(ids).logits, expected, rtol=1e-4, atol=1e-5)


def test_nan_comes_through_and_other_attention_is_refused():
    q, k, v = inputs(2, 2)
    with torch.no_grad():
        v[0, 0, 1, 0] = torch.nan
    out = attend(q, k, v)
    assert out[0, 1, 0, 0].isnan()
    assert not out[1].isnan().any()
    for options, message in (({"dropout": 0.1}, "has no dropout"), ({"sliding_window": 4}, "a sliding window")):
        with pytest.raises(ValueError, match=message):
            plain_attention(torch.nn.Identity(), q, k, v, None, **options)
    with pytest.raises(ValueError, match="pass no mask"):
        plain_attention(torch.nn.Identity(), q, k, v, torch.ones(2, 2))
