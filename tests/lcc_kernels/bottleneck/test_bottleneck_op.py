"""The op as torch sees it: gradcheck, opcheck, compile, and the errors that it raises."""

import pytest
import torch

import lcc_kernels as lk
from lcc_kernels import plain_attention
from tests.lcc_kernels.bottleneck.truth import tensors

LAYOUT = lk.BottleneckLayout(1, 5, 2, (3, 1))


def leaves(layout, dtype=torch.float64):
    return tensors(layout, head_dim=4, dtype=dtype)[:3]


@pytest.mark.parametrize("backend", ["reference", "torch"])
def test_gradcheck(backend):
    torch.autograd.gradcheck(lambda *x: lk.bottleneck_attention(*x, LAYOUT, backend=backend), leaves(LAYOUT))


@pytest.mark.parametrize("backend", ["reference", "torch"])
def test_opcheck(backend):
    arguments = (*leaves(LAYOUT), LAYOUT.spans, 0.5, backend)
    torch.library.opcheck(torch.ops.lcc_kernels.bottleneck_attention.default, arguments)


def test_compiles_whole_and_new_lengths_do_not_recompile():
    graphs = []

    def count(graph, _):
        graphs.append(graph)
        return graph.forward

    def attend(q, k, v, layout):
        return lk.bottleneck_attention(2 * q, k, v, layout)

    compiled = torch.compile(attend, fullgraph=True, backend=count)
    layouts = [lk.BottleneckLayout(2, context, 3, (context, 1)) for context in (5, 7, 11, 13, 17)]
    for layout in layouts:
        q, k, v = leaves(layout, torch.float32)
        assert torch.equal(compiled(q, k, v, layout), attend(q, k, v, layout))
    assert len(graphs) <= 2


def test_gradient_survives_compile():
    q, k, v = leaves(LAYOUT)
    compiled = torch.compile(lk.bottleneck_attention, fullgraph=True, backend="aot_eager")
    wanted = torch.autograd.grad(lk.bottleneck_attention(q, k, v, LAYOUT).square().sum(), (q, k, v))
    got = torch.autograd.grad(compiled(q, k, v, LAYOUT).square().sum(), (q, k, v))
    assert all(map(torch.equal, got, wanted))


def test_lse_is_a_constant():
    _, lse = lk.bottleneck_attention(*leaves(LAYOUT), LAYOUT, return_lse=True)
    assert not lse.requires_grad


@pytest.mark.parametrize(
    ("shapes", "message"),
    [
        ([(1, 2, 13, 4), (1, 1, 13, 4), (1, 1, 13, 5)], "q must be"),
        ([(1, 3, 13, 4), (1, 2, 13, 4), (1, 2, 13, 4)], "kv_heads must divide heads"),
        ([(1, 2, 12, 4), (1, 1, 12, 4), (1, 1, 12, 4)], "the layout has 13 rows and q has 12"),
    ],
)
def test_refuses_wrong_shapes(shapes, message):
    with pytest.raises(ValueError, match=message):
        lk.bottleneck_attention(*map(torch.zeros, shapes), LAYOUT)


def test_refuses_mixed_dtypes_and_unknown_backends():
    q, k, v = (x.detach() for x in leaves(LAYOUT))
    with pytest.raises(ValueError, match="share a floating dtype"):
        lk.bottleneck_attention(q, k.float(), v, LAYOUT)
    with pytest.raises(ValueError, match="has no backend 'cuda'"):
        lk.bottleneck_attention(q, k, v, LAYOUT, backend="cuda")


@pytest.mark.parametrize("causal", [True, False])
def test_blocks_equal_the_fused_call(causal, monkeypatch):
    """What runs off the CPU gives what runs on it, merged lse and all, in blocks smaller than the rows."""
    monkeypatch.setattr(plain_attention, "BLOCK_SCORES", 1)
    torch.manual_seed(0)
    q, grad = (torch.randn(2, 3, 37, 8, dtype=torch.float64) for _ in range(2))
    k, v = (torch.randn(2, 1, 37, 8, dtype=torch.float64) for _ in range(2))
    out, lse = plain_attention.attend(q, k, v, causal, 0.4)
    blocked = plain_attention.attend_in_blocks(q, k, v, causal, 0.4)
    torch.testing.assert_close(blocked, (out, lse))
    inputs = [grad, q, k, v, out * 0.9, lse + 0.1]
    wanted = plain_attention.attend_backward(inputs, causal, 0.4)
    torch.testing.assert_close(plain_attention.attend_in_blocks_backward(inputs, causal, 0.4), wanted)
