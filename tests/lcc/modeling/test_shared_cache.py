"""The cache whose first tokens are held once changes as transformers' own does."""

from __future__ import annotations

import copy

import pytest
import torch
from transformers import DynamicCache

from lcc.modeling.attention import attending
from lcc.modeling.kv import KV
from lcc.modeling.shared_cache import SHARED_PREFIX, SharedCache, SplitStates

CHANGES = {
    "append": lambda cache: [cache.update(*states(2, 1, seed), seed) for seed in range(2)],
    "select": lambda cache: cache.batch_select_indices(torch.tensor([1])),
    "repeat": lambda cache: cache.batch_repeat_interleave(2),
    "reorder": lambda cache: cache.reorder_cache(torch.tensor([1, 1])),
    "crop": lambda cache: cache.crop(-2),
    "crop into the shared part": lambda cache: cache.crop(-6),
}


def states(batch, tokens, seed):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(batch, 2, tokens, 4, generator=generator) for _ in range(2)]


@pytest.mark.parametrize(
    "names",
    [
        ["append", "append", "append", "crop", "append"],
        ["append", "reorder", "append"],
        ["append", "select", "repeat", "append"],
        ["crop into the shared part", "append"],
        ["append", "crop into the shared part", "append"],
    ],
    ids=" ".join,
)
@pytest.mark.parametrize("grad", [False, True])
def test_the_cache_changes_as_a_dynamic_cache_does(names, grad):
    """The twin holds a copy of the shared tokens for every sequence."""
    keys, values = torch.randn(2, 2, 2, 7, 4)
    shared, twin = SharedCache(KV(keys, values, 0)), DynamicCache()
    for layer in range(2):
        twin.update(keys[layer].expand(2, -1, -1, -1), values[layer].expand(2, -1, -1, -1), layer)
    with torch.set_grad_enabled(grad):
        for name in names:
            CHANGES[name](shared)
            CHANGES[name](twin)
            assert shared.get_seq_length() == twin.get_seq_length()
            assert shared.get_mask_sizes(3, 1) == twin.get_mask_sizes(3, 1)
    for mine, theirs in zip(shared.layers, twin.layers, strict=True):
        assert torch.equal(mine.keys, theirs.keys)
        assert torch.equal(mine.values, theirs.values)
    with pytest.raises(ValueError, match="negative"):
        shared.crop(3)
    shared.reset()
    assert torch.equal(shared.layers[0].keys[0], keys[0][:, : shared.get_seq_length()])


def test_several_prefixes_side_by_side():
    """Rows are copied into another cache, their last own tokens alone; one sequence is not read off two prefixes."""
    first, second = (KV(*torch.randn(2, 2, 2, tokens, 4), 0) for tokens in (3, 5))
    cache, one = SharedCache(first, second), SharedCache(second)
    for layer in range(2):
        cache.update(*states(3, 4, layer), layer)
    one.copy_rows(cache, torch.tensor([2, 0]), 3)
    for layer in range(2):
        own = states(3, 4, layer)[0][[2, 0], :, 1:]
        assert torch.equal(one.layers[layer].keys, torch.cat((second.keys[layer].expand(2, -1, -1, -1), own), 2))
        assert torch.equal(cache.empty().layers[layer].keys[0], torch.cat((first.keys[layer], second.keys[layer]), 1))
    assert cache.get_seq_length() == 12
    with pytest.raises(ValueError, match="two prefixes are not one sequence"):
        cache.kv()


def test_a_single_sequence_becomes_a_batch():
    cache = SharedCache(KV(*torch.randn(2, 2, 2, 3, 4), 0))
    cache.update(*states(1, 2, 0), 0)
    keys, _ = cache.update(*states(3, 1, 1), 0)
    assert keys.shape == (3, 2, 6, 4)
    assert torch.equal(keys[2, :, 3:5], states(1, 2, 0)[0][0])


def test_the_cache_is_differentiable():
    keys = torch.randn(1, 2, 3, 4, requires_grad=True)
    cache = SharedCache(KV(keys, keys, 0))
    total = sum(cache.update(*states(2, 1, seed), 0)[0].square().sum() for seed in range(3))
    (gradient,) = torch.autograd.grad(total, keys)
    torch.testing.assert_close(gradient, 3 * 2 * 2 * keys.detach())


def test_a_copied_cache_follows_the_same_model(llama):
    cache = copy.deepcopy(SharedCache(KV(*torch.randn(2, 3, 2, 5, 12), 0)).follow(llama))
    with attending(llama, SHARED_PREFIX):
        keys, _ = cache.update(torch.ones(2, 2, 1, 12), torch.ones(2, 2, 1, 12), 0)
    assert isinstance(keys, SplitStates)
    assert torch.equal(keys.joined(), cache.layers[0].keys)
    assert isinstance(cache.update(torch.ones(2, 2, 1, 12), torch.ones(2, 2, 1, 12), 0)[0], torch.Tensor)
