"""Several prefixes in one batch, a bias a key, log-sum-exp and entropy: every backend against plain attention."""

import pytest
import torch

import lcc_kernels as lk
from lcc_kernels import plain_attention
from tests.lcc_kernels.shared_prefix.batches import DEVICE, batch, one_by_one
from tests.support.float64 import assert_as_accurate

BACKENDS = [name for name, reason in lk.available_backends("shared_prefix_attention").items() if reason is None]
FLOOR = {torch.float64: 1e-12, torch.float32: 4e-6, torch.float16: 1e-3, torch.bfloat16: 8e-3}
AWKWARD = {
    "one prefix": {"lengths": (5, 9, 0, 1)},
    "a bank of candidates": {"lengths": (5, 5, 5), "q_len": 5, "prefixes": ((0, 7), (7, 40), (47, 23)), "shared": 70},
    "siblings apart": {"lengths": (5, 2, 0, 3), "prefixes": ((0, 9), (9, 10), (0, 9), (9, 10))},
    "siblings side by side": {"lengths": (1, 2, 3, 4, 5), "prefixes": ((3, 9), (3, 9), (12, 7), (12, 7), (12, 7))},
    "prefixes that overlap": {"lengths": (2, 2, 2), "prefixes": ((0, 12), (6, 13), (6, 3))},
    "some without a prefix": {"lengths": (2, 0, 4), "prefixes": ((4, 0), (19, 0), (2, 17)), "q_len": 2},
    "sequences that span tiles": {"lengths": (9, 8), "heads": (6, 2), "q_len": 7, "prefixes": ((0, 18), (1, 18))},
    "left padding": {"lengths": (3, 8, 0), "starts": (5, 0, 8), "prefixes": ((1, 2), (0, 19), (5, 5)), "spare": 0},
    "a long prefix": {"lengths": (3, 2), "shared": 700, "prefixes": ((0, 300), (300, 400))},
    "nothing at all": {"lengths": (0, 0), "shared": 0, "prefixes": ((0, 0), (0, 0))},
}


def check(inputs, backend, sinks):
    """Out, log-sum-exp and entropy, all at once and each of the latter on its own."""
    wanted = {"return_lse": True, "return_entropy": True, "sinks": sinks}
    outputs = inputs.ours(backend, **wanted)
    wide = torch.promote_types(inputs.q.dtype, torch.float32)
    assert [x.dtype for x in outputs] == [inputs.q.dtype, wide, wide]
    plain, truth = one_by_one(inputs, sinks), one_by_one(inputs.double(), sinks)
    for name, got, same, true in zip(("out", "lse", "entropy"), outputs, plain, truth, strict=True):
        assert torch.equal(got == -torch.inf, true == -torch.inf)
        finite = [x.where(true != -torch.inf, 0.0) for x in (got, same, true)]
        assert_as_accurate(*finite, FLOOR[inputs.q.dtype], f"{backend} {name}")
    for number, (name, value) in enumerate(wanted.items()):
        if value is True:
            alone = inputs.ours(backend, **{name: True}, sinks=sinks if name == "return_entropy" else 0)
            torch.testing.assert_close(alone, (outputs[0], outputs[1 + number]), atol=FLOOR[inputs.q.dtype], rtol=1e-5)


@pytest.mark.parametrize("dtype", FLOOR, ids=str)
@pytest.mark.parametrize("biased", [False, True], ids=["plain", "biased"])
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("name", AWKWARD)
def test_as_accurate_as_torch(name, backend, biased, dtype):
    if backend == "triton" and dtype in (torch.float64, *[torch.bfloat16] * (DEVICE == "cpu")):
        pytest.skip("not a dtype of this backend here")
    check(batch(**AWKWARD[name], biased=biased, dtype=dtype), backend, sinks=2)


@pytest.mark.parametrize("sinks", [0, 1, 8, 20, 22, 1000])
@pytest.mark.parametrize("backend", BACKENDS)
def test_sinks_are_counted_over_the_prefix_and_then_the_own_rows(backend, sinks):
    inputs = batch((9, 1, 4), starts=(0, 5, 2), prefixes=((0, 19), (4, 15), (2, 0)), q_len=2, biased=True)
    check(inputs, backend, sinks)


@pytest.mark.parametrize("where", ["q", "shared_k", "shared_v", "bias"])
@pytest.mark.parametrize("backend", BACKENDS)
def test_a_nan_in_is_a_nan_out(backend, where):
    """Of one query it reaches that sequence alone; of a prefix, all whose prefix it is."""
    inputs = batch((4, 40, 2), shared=40, biased=True)
    inputs.bias[:, 3] = 0.0
    place = {"q": inputs.q[1], "shared_k": inputs.shared[0][:, 3], "shared_v": inputs.shared[1][:, 3]}
    place.get(where, inputs.bias[:, 3]).fill_(torch.nan)
    out, lse, entropy = inputs.ours(backend, return_lse=True, return_entropy=True)
    hit = slice(1, 2) if where == "q" else slice(None)
    assert out[hit].isnan().all()
    assert where == "shared_v" or (lse[hit].isnan().all() and entropy[hit].isnan().all())
    if where == "q":
        assert not any(x[::2].isnan().any() for x in (out, lse, entropy))


@pytest.mark.parametrize("name", ["siblings apart", "a long prefix"])
def test_batches_too_large_for_one_block_of_scores(name, monkeypatch):
    """The ``torch`` backend one sequence at a time."""
    monkeypatch.setattr(plain_attention, "BLOCK_SCORES", 1)
    check(batch(**AWKWARD[name], biased=True), "torch", sinks=3)


@pytest.mark.parametrize("backend", BACKENDS)
def test_one_prefix_said_twice(backend):
    """A prefix of all rows, given or not, is the same; parts of a softmax join by their log-sum-exp."""
    inputs = batch((5, 2), shared=40, q_len=2)
    arguments = inputs.q, *inputs.shared, *inputs.own, inputs.lengths
    whole, lse = lk.shared_prefix_attention(*arguments, backend=backend, return_lse=True)
    count = torch.tensor([40, 40], device=DEVICE)
    said = lk.shared_prefix_attention(*arguments, backend=backend, shared_lengths=count, return_lse=True)
    torch.testing.assert_close(said, (whole, lse))
    none = torch.zeros_like(inputs.lengths)
    halves = [
        lk.shared_prefix_attention(
            *arguments[:5], lengths, backend=backend, shared_lengths=rows, shared_starts=none + 40 - rows,
            return_lse=True,
        )
        for lengths, rows in ((inputs.lengths, none), (none, count))
    ]  # fmt: skip
    (joined, joined_lse), (piece, piece_lse) = halves
    plain_attention.merge(joined, joined_lse, piece, piece_lse)
    torch.testing.assert_close((joined, joined_lse), (whole, lse))


# In the kernel, sequences of several prefixes share a block, where the weight of a row that is not theirs is 0.
@pytest.mark.parametrize("where", [0, 1], ids=["key", "value"])
@pytest.mark.parametrize("backend", [backend for backend in BACKENDS if backend != "triton"])
def test_a_nan_in_one_prefix_stays_with_its_sequences(backend, where):
    inputs = batch((4, 2, 3), prefixes=((0, 9), (9, 10), (0, 9)))
    inputs.shared[where][:, 12] = torch.nan
    out, lse = inputs.ours(backend, return_lse=True)
    assert out[1].isnan().all()
    assert where == 1 or lse[1].isnan().all()
    assert not any(x[::2].isnan().any() for x in (out, lse))
