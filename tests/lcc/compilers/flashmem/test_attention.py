"""Attention of latents over a frozen text: torch's own numbers, and no gradient of the text."""

from __future__ import annotations

import pytest
import torch
from torch.nn.functional import scaled_dot_product_attention
from torch.utils._python_dispatch import TorchDispatchMode

from lcc.compilers.flashmem.attention import FrozenText, frozen_text_attention

TOKENS, LATENTS, WIDTH = 37, 5, 11


def inputs(dtype: torch.dtype = torch.float64) -> tuple[list[torch.Tensor], FrozenText]:
    """Queries, keys and values of latents, all with gradients, and the text."""
    generator = torch.Generator().manual_seed(0)
    shapes = [(1, 4, LATENTS, WIDTH), (1, 2, LATENTS, WIDTH), (1, 2, LATENTS, WIDTH), *[(2, TOKENS, WIDTH)] * 2]
    drawn = [torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype) for shape in shapes]
    sees = torch.rand(LATENTS, TOKENS + LATENTS, generator=generator) < 0.6
    return [tensor.requires_grad_() for tensor in drawn[:3]], FrozenText(*drawn[3:], sees)


def attend(text: FrozenText, *tensors: torch.Tensor) -> torch.Tensor:
    module = torch.nn.Identity()
    module.frozen_text = text
    return frozen_text_attention(module, *tensors, None)[0]


@pytest.mark.parametrize(("dtype", "near"), [(torch.float64, 1e-12), (torch.float32, 1e-5), (torch.bfloat16, 3e-2)])
def test_it_is_torchs_attention(dtype, near):
    (q, k, v), text = inputs(dtype)
    keys, values = (torch.cat(pair, 2) for pair in ((text.keys[None], k), (text.values[None], v)))
    expected = scaled_dot_product_attention(q, keys, values, text.sees, enable_gqa=True).transpose(1, 2)
    out = attend(text, q, k, v)
    assert out.dtype == dtype
    torch.testing.assert_close(out, expected, rtol=near, atol=near)
    assert torch.equal(text.own[0], k[0])
    assert torch.equal(text.own[1], v[0])


def test_the_gradient_is_that_of_finite_differences():
    tensors, text = inputs()
    assert torch.autograd.gradcheck(lambda *given: attend(text, *given), tensors, fast_mode=True)


class Products(TorchDispatchMode):
    """The shapes of all matrix products inside the block."""

    def __init__(self):
        super().__init__()
        self.shapes = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        if func.overloadpacket in (torch.ops.aten.bmm, torch.ops.aten.mm):
            self.shapes.add(tuple(out.shape[-2:]))
        return out


def test_no_gradient_of_the_text_is_computed():
    tensors, text = inputs()
    out = attend(text, *tensors)
    with Products() as products:
        out.sum().backward()
    # Of the scores, and of q, k and v of the latents; dK and dV of the text would have a row for each of its tokens.
    assert products.shapes == {(LATENTS, TOKENS), (LATENTS, LATENTS), (LATENTS, WIDTH), (WIDTH, LATENTS)}


def test_nan_comes_through_where_it_is_seen():
    (q, k, v), text = inputs()
    text.sees[0, 3], text.sees[1, 3] = True, False
    with torch.no_grad():
        text.keys[:, 3] = torch.nan
        out = attend(text, q, k, v)
    assert out[0, 0].isnan().all()
    assert not out[0, 1].isnan().any()


def test_what_is_not_computed_is_refused():
    tensors, text = inputs()
    module = torch.nn.Identity()
    module.frozen_text = text
    for options, message in (({"dropout": 0.1}, "has no dropout"), ({"sliding_window": 4}, "a sliding window")):
        with pytest.raises(ValueError, match=message):
            frozen_text_attention(module, *tensors, None, **options)
    with pytest.raises(ValueError, match="takes no mask"):
        frozen_text_attention(module, *tensors, torch.ones(1, 1, LATENTS, LATENTS))
