"""A watched model computes what it computed, and tells the entropy of its last attention."""

from __future__ import annotations

import copy

import pytest
import torch

from lcc.errors import InputError
from lcc.modeling.attention_entropy import AttentionEntropy
from tests.support.tiny_models import tiny_model

IDS = torch.tensor([[5, 6, 7, 8, 9, 10, 11]])
NEW = 6
FAMILIES = ("llama", "qwen3", "phi3")


def generate(model, ids=IDS):
    return model.generate(
        ids, max_new_tokens=NEW, min_new_tokens=NEW, do_sample=False, output_logits=True, return_dict_in_generate=True
    )


def expected(model, sinks):
    """From the attention matrices of a model that makes them, in float32: one entropy a generated token."""
    eager = copy.deepcopy(model)
    eager.set_attn_implementation("eager")
    written = generate(eager).sequences
    with torch.no_grad():
        matrix = eager(written[:, :-1], output_attentions=True).attentions[-1][0]
    kept = matrix[:, IDS.shape[1] - 1 :, sinks:]
    kept = kept / kept.sum(-1, keepdim=True)
    return torch.special.entr(kept).sum(-1).mean(0).tolist()


@pytest.mark.parametrize("sinks", [0, 1, 3])
@pytest.mark.parametrize("family", FAMILIES)
def test_each_generated_token_has_the_entropy_of_its_attention_matrix(family, sinks):
    model = tiny_model(family, torch.float64)
    watched = AttentionEntropy(model, sinks)
    generate(watched.model)
    assert watched.take() == pytest.approx(expected(model, sinks), abs=1e-6)
    assert watched.take() == []


@pytest.mark.parametrize("family", FAMILIES)
def test_watching_changes_no_bit(family):
    """Neither of what the copy computes nor of the model itself, though that be in train mode."""
    model = tiny_model(family)
    plain, config = generate(model), model.config.to_dict()
    model.train()
    watched = generate(AttentionEntropy(model, 1).model)
    assert torch.equal(watched.sequences, plain.sequences)
    assert all(map(torch.equal, watched.logits, plain.logits))
    assert model.config.to_dict() == config
    assert model.model.layers[-1].self_attn.config is model.config
    assert model.training


def test_equal_scores_give_the_logarithm_of_the_keys_that_are_no_sinks():
    model = tiny_model("llama", torch.float64)
    torch.nn.init.zeros_(model.model.layers[-1].self_attn.q_proj.weight)
    watched = AttentionEntropy(model, 2)
    generate(watched.model)
    counts = torch.arange(IDS.shape[1] - 2, IDS.shape[1] - 2 + NEW, dtype=torch.float64)
    assert watched.take() == pytest.approx(counts.log().tolist(), abs=1e-12)


def test_the_last_hidden_state_is_that_of_the_latest_token():
    model = tiny_model("llama", torch.float64)
    watched = AttentionEntropy(model, 1)
    written = generate(watched.model).sequences
    with torch.no_grad():
        states = model.model(written[:, :-1]).last_hidden_state
    torch.testing.assert_close(watched.hidden, states[0, -1], rtol=0, atol=1e-12)


def test_a_copy_of_the_copy_tells_the_same_object():
    watched = AttentionEntropy(tiny_model("llama"), 1)
    generate(copy.deepcopy(watched.model))
    assert len(watched.take()) == NEW


def test_what_cannot_be_watched_is_refused():
    eager = tiny_model("llama")
    eager.set_attn_implementation("eager")
    with pytest.raises(InputError, match=r"attends with eager.*set_attn_implementation\(\"sdpa\"\)"):
        AttentionEntropy(eager, 1)
    with pytest.raises(InputError, match="2 sequences are generated at once"):
        generate(AttentionEntropy(tiny_model("llama"), 1).model, IDS.expand(2, -1))
    sliding = AttentionEntropy(tiny_model("mistral"), 1)
    sliding.model.model.layers[-1].self_attn.config.sliding_window = 4
    with pytest.raises(InputError, match="the last layer of the model uses a sliding window"):
        generate(sliding.model)
    renamed = tiny_model("llama")
    renamed.model.layers[-1].attention = renamed.model.layers[-1].self_attn
    del renamed.model.layers[-1].self_attn
    with pytest.raises(InputError, match="the last layer of LlamaForCausalLM has no self_attn"):
        AttentionEntropy(renamed, 1)


def test_a_layer_that_attends_by_itself_is_noticed():
    """Its entropies would be missing, and nothing would ever trigger."""
    watched = AttentionEntropy(tiny_model("llama"), 1)
    attention = watched.model.model.layers[-1].self_attn
    attention.forward = lambda hidden_states, **options: (hidden_states, None)
    with torch.no_grad():
        watched.model(IDS, use_cache=False)
    with pytest.raises(InputError, match="does not attend by transformers' AttentionInterface"):
        watched.take()
