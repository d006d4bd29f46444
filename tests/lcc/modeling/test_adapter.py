"""Adapters on a copy of a model: which tokens and which rows they act on, and what they leave alone."""

from __future__ import annotations

import copy
import math
from dataclasses import replace

import pytest
import torch
from peft import LoraConfig, get_peft_model

import lcc
from lcc.modeling.adapter import AdaptedModel, adaptable_layers
from lcc.modeling.architecture import supports_sharing
from lcc.modeling.kv import decoder
from lcc.modeling.model_copy import share_weights
from tests.lcc.pipeline.test_compile import assert_untouched, state_of
from tests.support.adapters import random_adapter
from tests.support.tiny_models import tiny_model

IDS = torch.tensor([[5, 9, 40, 41, 7]])


def read(model, ids=IDS):
    """Last hidden states, and the K and V of every layer."""
    with torch.no_grad():
        output = decoder(model)(input_ids=ids, use_cache=True)
    layers = output.past_key_values.layers
    return output.last_hidden_state, torch.stack([torch.stack((layer.keys, layer.values)) for layer in layers])


def in_peft(model, adapter):
    """A model with the adapter in it, by peft."""
    targets = sorted({name.rpartition(".")[2] for name in adapter.down})
    config = LoraConfig(r=adapter.rank, lora_alpha=adapter.alpha, target_modules=targets)
    wrapped = get_peft_model(copy.deepcopy(model), config, autocast_adapter_dtype=False).eval()
    modules = dict(wrapped.base_model.model.named_modules())
    for name, down in adapter.down.items():
        modules[name].lora_A["default"].weight.data = down.clone()
        modules[name].lora_B["default"].weight.data = adapter.up[name].clone()
    return wrapped.base_model.model


@pytest.mark.parametrize("family", ["llama", "qwen3", "phi3"])
def test_it_computes_what_peft_computes(family):
    model = tiny_model(family, torch.float64)
    adapter = random_adapter(model, cache_sharing=False)
    assert {name.rpartition(".")[2] for name in adapter.down} >= {"o_proj", "down_proj"}
    ours = read(AdaptedModel(model, [adapter]).model)
    torch.testing.assert_close(ours, read(in_peft(model, adapter)), rtol=1e-10, atol=1e-10)
    assert not torch.allclose(read(model)[0], ours[0])


def test_it_acts_on_the_last_token_alone_and_leaves_the_others_bit_for_bit():
    model = tiny_model("llama", torch.float64)
    before, adapter = state_of(model), random_adapter(model)
    plain_hidden, plain_kv = read(model)
    hidden, kv = read(AdaptedModel(model, [adapter]).model)
    assert torch.equal(hidden[:, :-1], plain_hidden[:, :-1])
    assert torch.equal(kv[..., :-1, :], plain_kv[..., :-1, :])
    assert not torch.allclose(hidden[:, -1], plain_hidden[:, -1])
    everywhere, _ = read(AdaptedModel(model, [replace(adapter, cache_sharing=False)]).model)
    assert not torch.allclose(everywhere[:, 0], plain_hidden[:, 0])
    assert_untouched(model, before)


def test_rows_are_named_in_a_flat_batch():
    model = tiny_model("llama", torch.float64)
    adapted = AdaptedModel(model, [random_adapter(model)])
    ids = IDS.repeat(2, 1)
    with adapted.acting_on(torch.tensor([4, 9])):
        last, _ = read(adapted.model, ids)
    with adapted.acting_on(None):
        everywhere, _ = read(adapted.model, ids)
    torch.testing.assert_close(last, read(adapted.model, ids)[0], rtol=0, atol=1e-12)
    assert not torch.allclose(everywhere[:, 0], last[:, 0])


def test_every_row_is_under_its_own_adapter():
    model = tiny_model("llama", torch.float64)
    adapters = [random_adapter(model, rank, seed) for rank, seed in ((3, 1), (5, 2), (1, 3))]
    alone = [read(AdaptedModel(model, [adapter]).model)[0] for adapter in adapters]
    plain, _ = read(model, IDS.repeat(4, 1))
    grouped = AdaptedModel(model, [*adapters, None])
    together, _ = read(grouped.model, IDS.repeat(4, 1))
    torch.testing.assert_close(together[:3], torch.cat(alone), rtol=1e-10, atol=1e-10)
    assert torch.equal(together[3], plain[3])
    with grouped.choosing([2, 3]):
        chosen, _ = read(grouped.model, IDS.repeat(2, 1))
    torch.testing.assert_close(chosen, together[2:], rtol=1e-12, atol=1e-12)
    with pytest.raises(ValueError, match="a batch of 2 sequences is under 4 adapters"):
        read(grouped.model, IDS.repeat(2, 1))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_zeros_are_the_plain_model_to_the_bit(dtype):
    model = tiny_model("llama", dtype)
    zero = random_adapter(model, size=0.0, cache_sharing=False)
    for ours, plain in zip(read(AdaptedModel(model, [zero]).model), read(model), strict=True):
        assert torch.equal(ours, plain)
    rows = IDS.repeat(2, 1)
    grouped, plain = read(AdaptedModel(model, [random_adapter(model), None]).model, rows)[0], read(model, rows)[0]
    assert torch.equal(grouped[1], plain[1])


def test_adapters_of_some_layers_only():
    model = tiny_model("llama", torch.float64)
    whole, other = random_adapter(model, seed=1), random_adapter(model, seed=2)
    name = "model.layers.1.mlp.up_proj"
    part = replace(whole, down={name: whole.down[name]}, up={name: whole.up[name]})
    alone = torch.cat([read(AdaptedModel(model, [adapter]).model)[0] for adapter in (part, other)])
    together, _ = read(AdaptedModel(model, [part, other]).model, IDS.repeat(2, 1))
    torch.testing.assert_close(together, alone, rtol=1e-10, atol=1e-10)


def test_nan_is_not_hidden():
    model = tiny_model("llama")
    adapter = random_adapter(model)
    adapter.up["model.layers.2.mlp.down_proj"][3, 0] = math.nan
    assert read(AdaptedModel(model, [adapter]).model)[0][:, -1].isnan().any()


def test_a_copy_of_a_copy_is_adapted_alone():
    model = share_weights(tiny_model("llama"))
    plain, _ = read(model)
    adapted = AdaptedModel(model, [random_adapter(model)])
    assert torch.equal(read(model)[0], plain)
    assert not torch.equal(read(adapted.model)[0], plain)


def test_the_layers_have_their_plain_names_inside_peft():
    model = tiny_model("llama")
    expected, adapter = {*adaptable_layers(model)}, random_adapter(model)
    wrapped = in_peft(model, adapter)
    assert {*adaptable_layers(wrapped)} == expected
    assert "lm_head" not in expected


def test_refused():
    model = tiny_model("llama")
    adapter = random_adapter(model)
    with pytest.raises(lcc.InputError, match="there is no adapter"):
        AdaptedModel(model, [None])
    with pytest.raises(lcc.InputError, match="some of the adapters act on queries"):
        AdaptedModel(model, [adapter, replace(adapter, cache_sharing=False)])
    with pytest.raises(lcc.MismatchError, match=r"self_attn\.qkv_proj, which the model does not"):
        AdaptedModel(model, [random_adapter(tiny_model("phi3"))])
    with pytest.raises(lcc.MismatchError, match=r"q_proj of 48 x 64; the model's is \(48, 48\)"):
        AdaptedModel(model, [random_adapter(tiny_model("llama", head_dim=16))])


def test_the_copy_shares_a_cache_as_its_model_does(monkeypatch):
    model = tiny_model("llama")
    assert supports_sharing(model)
    monkeypatch.setattr("lcc.modeling.architecture._probe", lambda _: pytest.fail("probed again"))
    assert supports_sharing(AdaptedModel(model, [random_adapter(model)]).model)
