"""Every backend against dense attention in float64: values, gradients and isolation."""

import pytest
import torch
from hypothesis import given, settings

import lcc_kernels as lk
from tests.lcc_kernels.bottleneck.layouts import AWKWARD, role_mask, small_layouts
from tests.lcc_kernels.bottleneck.truth import DEVICE, FLOOR, WHAT, assert_near_dense, ours, run, tensors

NAMES = [name for name, reason in lk.available_backends("bottleneck_attention").items() if reason is None]
BACKENDS = [name for name in NAMES if name != "flash_attn"]  # half precision alone: test_bottleneck_flash


def supported(backend, dtype):
    interpreted = backend == "triton" and DEVICE == "cpu"
    return not (backend == "triton" and dtype == torch.float64) and not (interpreted and dtype == torch.bfloat16)


@pytest.mark.parametrize("dtype", FLOOR, ids=str)
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("name", AWKWARD)
def test_as_accurate_as_torch(name, backend, dtype):
    if not supported(backend, dtype):
        pytest.skip("not a dtype of this backend here")
    layout = AWKWARD[name]
    assert_near_dense(layout, backend, tensors(layout, dtype=dtype))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("heads", [(1, 1), (4, 2)], ids=str)
@pytest.mark.parametrize("head_dim", [32, 40, 96])
def test_heads_and_dims(backend, heads, head_dim):
    layout = lk.BottleneckLayout(2, 9, 5, (7, 3))
    assert_near_dense(layout, backend, tensors(layout, *heads, head_dim, batch=2))


@pytest.mark.parametrize("backend", BACKENDS)
@settings(max_examples=12, deadline=None)
@given(layout=small_layouts)
def test_every_pair_of_small_layouts(backend, layout):
    """With equal scores and one-hot values each weight can be read off; with one-hot gradients, each one of dv."""
    one_hot = torch.eye(32, device=DEVICE)[: layout.total].expand(1, 1, -1, -1)
    q, k = (torch.zeros(1, 1, layout.total, 32, device=DEVICE) for _ in range(2))
    v = one_hot.clone().requires_grad_()
    out = lk.bottleneck_attention(q, k, v, layout, backend=backend)
    (grad_v,) = torch.autograd.grad(out, v, one_hot)
    wanted = role_mask(layout)
    assert torch.equal(out[0, 0, :, : layout.total].cpu() > 0, wanted)
    assert torch.equal(grad_v[0, 0, :, : layout.total].cpu().mT > 0, wanted)


@pytest.mark.parametrize("backend", [name for name in BACKENDS if name != "reference"])
@pytest.mark.parametrize("poison", [torch.nan, torch.inf])
def test_nothing_of_the_context_reaches_a_segment(backend, poison):
    """K and V of P and C, of P's row and of another document turn to poison: segment rows do not change by a bit."""
    layout = lk.BottleneckLayout.pack([lk.BottleneckLayout(2, 30, 5, (9, 20, 1)), lk.BottleneckLayout(1, 6, 2, (3,))])
    document = layout.documents[0]
    rows = slice(document.copy_rows.stop, document.stop)
    hidden = [slice(0, document.buffer_rows.start), slice(document.stop, layout.total)]
    q, k, v, grad = (x.detach() for x in tensors(layout))
    bad_k, bad_v = k.clone(), v.clone()
    for where in hidden:
        bad_k[:, :, where] = bad_v[:, :, where] = poison

    def segment_part(keys, values):
        q_leaf, keys, values = (x.clone().requires_grad_() for x in (q, keys, values))
        out = lk.bottleneck_attention(q_leaf, keys, values, layout, backend=backend)[:, :, rows]
        grads = torch.autograd.grad(out, (q_leaf, keys, values), grad[:, :, rows])
        return [out, *(x[:, :, rows] for x in grads)]

    for clean, poisoned in zip(segment_part(k, v), segment_part(bad_k, bad_v), strict=True):
        assert clean.isfinite().all()
        assert torch.equal(clean, poisoned)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("place", [24, 26], ids=["of B", "the first of P', which sees itself alone"])
@pytest.mark.parametrize(
    ("where", "reaches"),
    [
        ("q", {"out": "itself", "lse": "itself", "dq": "itself", "dk": "seen", "dv": "seen"}),
        ("k", {"out": "readers", "lse": "readers", "dq": "readers", "dk": "itself", "dv": "itself"}),
        ("v", {"out": "readers", "dq": "readers", "dk": "itself"}),
        ("grad", {"dq": "itself", "dk": "seen", "dv": "seen"}),
    ],
)
def test_a_nan_comes_out_wherever_it_is_seen(where, reaches, place, backend):
    layout = AWKWARD["packed"]
    inputs = dict(zip(("q", "k", "v", "grad"), tensors(layout), strict=True))
    inputs[where].data[0, 0, place, 3] = torch.nan
    mask = layout.dense_mask()
    rows = {"itself": torch.arange(layout.total) == place, "readers": mask[:, place], "seen": mask[place]}
    for name, tensor in zip(WHAT, run(ours(layout, backend), *inputs.values()), strict=True):
        if name in reaches:
            nan = tensor[0, 0].isnan().cpu()
            assert (nan if name == "lse" else nan.any(-1))[rows[reaches[name]]].all(), name
