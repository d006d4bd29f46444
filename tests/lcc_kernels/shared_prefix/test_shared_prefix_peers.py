"""The benchmark's peers compute the same attention; those for GPUs alone lay out the same keys."""

import pytest
import torch

import lcc_kernels as lk
from benchmarks.kernels.shared_prefix_cases import DecodeCase
from benchmarks.kernels.shared_prefix_peers import PAGE, PEERS, _pages

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
CASE = DecodeCase("small", 5, 37, 21, 4, 2, 32, torch.float32)


@pytest.mark.parametrize("q_len", [1, 3])
@pytest.mark.parametrize("peer", PEERS)
def test_peers_equal_the_reference(peer, q_len):
    case = DecodeCase("small", 5, 37, 21, 4, 2, 32, torch.float32 if DEVICE == "cpu" else torch.bfloat16, q_len)
    reason = PEERS[peer].refuses(case, DEVICE)
    if reason is not None:
        pytest.skip(reason)
    tensors = case.tensors(DEVICE)
    wanted = lk.shared_prefix_attention(*tensors.arguments, backend="reference")
    torch.testing.assert_close(PEERS[peer].prepare(case, tensors).call(), wanted)


def test_replicas_hold_the_prefix_once_a_sequence():
    tensors = CASE.tensors(DEVICE)
    ours, theirs = (PEERS[peer].prepare(CASE, tensors).kv_bytes for peer in ("torch", "sdpa_replicated"))
    row = 2 * CASE.kv_heads * CASE.head_dim * 4
    assert ours == row * (37 + 5 * 21)
    assert theirs == row * 5 * (37 + 21)


def test_pages_hold_every_row():
    tensors = CASE.tensors(DEVICE)
    pages = _pages(tensors.own_k, tensors.own_v)
    assert pages.shape == (5 * 2, 2, PAGE, 2, 32)
    sequence, row = 3, 20
    assert torch.equal(pages[sequence * 2 + row // PAGE, 1, row % PAGE], tensors.own_v[sequence, :, row])
