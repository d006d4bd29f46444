"""Attached keys are the keys that transformers' own rotation, and its models, put into a cache."""

from __future__ import annotations

import sys

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, DynamicCache, StaticCache

import lcc_kernels as lk
from tests.support.tiny_models import LLAMA3_ROPE, tiny_model

HEADS, HEAD_DIM = 2, 16
SIZE = {
    "vocab_size": 50, "hidden_size": 4 * HEAD_DIM, "intermediate_size": 32, "num_hidden_layers": 2,
    "num_attention_heads": 4, "num_key_value_heads": HEADS, "head_dim": HEAD_DIM, "max_position_embeddings": 512,
    "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0,
}  # fmt: skip
YARN = {"rope_type": "yarn", "rope_theta": 10000.0, "factor": 4.0, "original_max_position_embeddings": 128}
LONG = {
    "rope_type": "longrope", "rope_theta": 10000.0, "original_max_position_embeddings": 128,
    "short_factor": [1.0 + i / 8 for i in range(8)], "long_factor": [1.0 + i for i in range(8)],
}  # fmt: skip
HALF_LONG = {**LONG, "short_factor": LONG["short_factor"][:4], "long_factor": LONG["long_factor"][:4]}
ROPES = {
    "default": ("llama", {}),
    "linear": ("llama", {"rope_parameters": {"rope_type": "linear", "rope_theta": 10000.0, "factor": 3.0}}),
    "llama3": ("llama", {"rope_parameters": LLAMA3_ROPE}),
    "yarn": ("llama", {"rope_parameters": YARN}),
    "longrope": ("phi3", {"rope_parameters": LONG}),
    "partial": ("phi3", {"partial_rotary_factor": 0.5}),
    "partial longrope": ("phi3", {"rope_parameters": {**HALF_LONG, "partial_rotary_factor": 0.5}}),
    "interleaved": ("cohere", {}),
    "interleaved and partial": ("glm", {"partial_rotary_factor": 0.5}),
}


def rotary_module(rope):
    """A family's rotary module and its ``apply_rotary_pos_emb``."""
    family, options = ROPES[rope]
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(AutoConfig.for_model(family, **SIZE, **options))
    rotary = type(model.model.rotary_emb)
    return rotary(model.config), sys.modules[rotary.__module__].apply_rotary_pos_emb


@pytest.mark.parametrize("rope", ROPES)
@pytest.mark.parametrize("start", [0, 7, 100, 300])
def test_equals_the_rotation_of_transformers(rope, start):
    torch.manual_seed(0)
    rotary, apply = rotary_module(rope)
    keys = torch.randn(1, HEADS, 40, HEAD_DIM)
    cos, sin = rotary(keys, torch.arange(start, start + 40)[None])
    expected = apply(keys, keys, cos, sin)[1]
    if rope == "interleaved and partial":  # GLM's module leaves the repeating to the rotation
        cos, sin = (table[..., : table.shape[-1] // 2].repeat_interleave(2, -1) for table in (cos, sin))
    assert cos.shape[-1] == (8 if "partial" in rope else HEAD_DIM)
    caches = torch.zeros(2, 1, 1, HEADS, 400, HEAD_DIM)
    slots = torch.arange(start, start + 40)
    lk.attach_kv(keys, keys, *caches, slots, cos[0], sin[0], interleaved="interleaved" in rope)
    torch.testing.assert_close(caches[0, 0, :, :, slots], expected, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(caches[1, 0, :, :, slots], keys, rtol=0, atol=0)


@pytest.mark.parametrize("family", ["llama3", "qwen3", "phi3"])
@pytest.mark.parametrize("start", [0, 9])
@torch.no_grad()
def test_equals_the_cache_of_a_model(family, start):
    """Keys of a run at positions 0 ..., unrotated, then attached at ``start`` to a static cache: a run from there."""
    model = tiny_model(family, torch.float64)
    ids = torch.randint(3, 50, (1, 12), generator=torch.Generator().manual_seed(0))

    def cached(first):
        return model(ids, position_ids=torch.arange(first, first + 12)[None], past_key_values=DynamicCache())[1].layers

    def tables(first):
        cos, sin = model.model.rotary_emb(torch.zeros(1).double(), torch.arange(first, first + 12)[None])
        return cos[0], sin[0]

    keys = lk.undo_rotary(torch.cat([layer.keys for layer in cached(0)]), *tables(0))
    values = torch.cat([layer.values for layer in cached(0)])
    target = StaticCache(model.config, max_cache_len=32)
    target.early_initialization(2, keys.shape[1], keys.shape[3], torch.float64, torch.device("cpu"))
    key_caches, value_caches = ([getattr(layer, name) for layer in target.layers] for name in ("keys", "values"))
    slots = torch.arange(start, start + 12)
    lk.attach_kv(keys, values, key_caches, value_caches, slots, *tables(start))
    for layer, expected in zip(target.layers, cached(start), strict=True):
        for sequence in range(2):
            torch.testing.assert_close(layer.keys[sequence, :, slots], expected.keys[0], rtol=0, atol=1e-12)
            torch.testing.assert_close(layer.values[sequence, :, slots], expected.values[0], rtol=0, atol=1e-12)
