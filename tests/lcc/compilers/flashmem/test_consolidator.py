"""The consolidators: the equations, the model's own keys and values, and what training may change."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch.nn.functional import linear, scaled_dot_product_attention, silu

import lcc
import lcc_kernels as lk
from lcc.compilers.flashmem.consolidator import FORMS, ReadText
from lcc.modeling.kv import KV, decoder, rotary_tables
from lcc.modeling.shared_cache import SharedCache
from tests.lcc.compilers.flashmem.cases import IDS, PREFIX, case, consolidator
from tests.support.tiny_models import FAMILIES, tiny_model


@pytest.fixture(params=FORMS)
def form(request):
    return request.param


def test_last_follows_the_equations():
    made = case()
    model, text = made.model, made.text
    module = consolidator(model, "last")
    layer, parts = decoder(model).layers[-1], module.parts[0]
    keys, values = text.kv.keys[-1:], text.kv.values[-1:]

    def projected(name, owner, x):
        return linear(x, getattr(owner, name).weight + parts[name].up @ parts[name].down)

    seeds = module.seeds
    state, expected = seeds.outer(silu(seeds.inner(text.hidden[-1:]))), []
    for place in range(4):
        asked = projected("q_proj", layer.self_attn, layer.input_layernorm(state)).view(1, 1, 4, 12).transpose(1, 2)
        asked = lk.apply_rotary(asked, *rotary_tables(model, len(text.kv) + place, 1, asked.dtype))
        out = scaled_dot_product_attention(asked, keys, values, enable_gqa=True).transpose(1, 2).reshape(1, 48)
        state = state + projected("o_proj", layer.self_attn, out)
        normed, mlp = layer.post_attention_layernorm(state), layer.mlp
        gated = silu(projected("gate_proj", mlp, normed)) * projected("up_proj", mlp, normed)
        state = state + projected("down_proj", mlp, gated)
        expected.append(state)
    found = module.embeddings(model, text.kv, text.hidden[-1], 4)
    torch.testing.assert_close(found, torch.cat(expected))
    # Greedily, one after another: more latents begin with the same ones.
    torch.testing.assert_close(module.embeddings(model, text.kv, text.hidden[-1], 2), found[:2])


def test_last_keeps_what_soft_injection_appends():
    made = case()
    module = consolidator(made.model, "last")
    text, before = made.text.kv, KV(made.text.kv.keys.clone(), made.text.kv.values.clone(), 0)
    with torch.no_grad():
        inputs = module.embeddings(made.model, text, made.text.hidden[-1], 3)
        cache = SharedCache(text)
        positions = torch.arange(len(text), len(text) + 3)
        decoder(made.model)(inputs_embeds=inputs[None], position_ids=positions[None], past_key_values=cache)
        written = module.write(made.model, made.text, 3)
    after = cache.kv()
    for one, other in ((after.keys, before.keys), (after.values, before.values)):
        assert torch.equal(one[:, :, : len(text)], other)
    appended = after.tail(3).unrotated(made.model)
    torch.testing.assert_close(written.keys, appended.keys)
    torch.testing.assert_close(written.values, appended.values)


def test_an_untrained_latent_is_the_texts_token():
    made = case()
    module = consolidator(made.model, "per_layer", moved=0.0)
    expected = made.text.kv.tail(len(IDS)).unrotated(made.model)
    one = module.write(made.model, made.text, 1)
    torch.testing.assert_close(one.keys, expected.keys[:, :, -1:])
    torch.testing.assert_close(one.values, expected.values[:, :, -1:])
    # In the first layer nothing has been read yet: latents are the tokens that end the pieces of 11 tokens in 4.
    four = module.write(made.model, made.text, 4)
    places = [1, 4, 7, 10]
    torch.testing.assert_close(four.keys[0], expected.keys[0][:, places])
    torch.testing.assert_close(four.values[0], expected.values[0][:, places])
    assert four.start is None


def test_a_latent_sees_the_text_before_it_alone():
    made = case()
    module = consolidator(made.model, "per_layer")
    one = module.write(made.model, made.text, 4)
    for place in range(len(IDS)):
        changed = ReadText.of(made.model, made.prefix, [*IDS[:place], 60, *IDS[place + 1 :]])
        other = module.write(made.model, changed, 4)
        differs = (one.keys != other.keys).flatten(0, 1).any(2).any(0)
        assert differs.tolist() == [end >= place for end in (1, 4, 7, 10)]


def test_a_latent_sees_the_latents_before_it():
    made = case()
    module = consolidator(made.model, "per_layer")
    embeddings = made.text.embeddings.clone()
    embeddings[4] += 1.0  # the seed of the second of four
    one, other = (module.write(made.model, text, 4) for text in (made.text, replace(made.text, embeddings=embeddings)))
    assert (one.keys != other.keys).flatten(0, 1).any(2).any(0).tolist() == [False, True, True, True]


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_writes_with_its_own_keys_and_values(family, form):
    """The same twice, nothing of model or text is changed, and only queries differ where only they are trained."""
    made = case(family)
    weights = {name: tensor.clone() for name, tensor in made.model.state_dict().items()}
    text = made.text.kv.keys.clone(), made.text.kv.values.clone()
    module = consolidator(made.model, form, "queries")
    written, again = (module.write(made.model, made.text, 3) for _ in range(2))
    assert torch.equal(written.keys, again.keys)
    assert torch.equal(written.values, again.values)
    assert written.keys.shape == (*made.text.kv.keys.shape[:2], 3, made.text.kv.keys.shape[3])
    assert all(torch.equal(tensor, weights[name]) for name, tensor in made.model.state_dict().items())
    assert torch.equal(made.text.kv.keys, text[0])
    assert torch.equal(made.text.kv.values, text[1])
    asking = {"qkv_proj" if family == "phi3" else "q_proj"}
    assert [set(parts) for parts in module.parts if len(parts)] == [asking] * (2 if form == "per_layer" else 1)
    if form == "per_layer":
        # What a latent's first keys are made of has not asked yet.
        with torch.no_grad():
            for parameter in module.parts[0].parameters():
                parameter.mul_(3.0)
        other = module.write(made.model, made.text, 3)
        assert torch.equal(other.keys[0], written.keys[0])
        assert not torch.equal(other.keys[1], written.keys[1])


def test_the_gradient_is_that_of_finite_differences(form):
    made = case()
    module = consolidator(made.model, form)
    ways = [torch.randn_like(parameter) for parameter in module.parameters()]

    def value():
        written = module.write(made.model, made.text, 3)
        return written.keys.square().sum() + written.values.sum()

    def moved(step):
        with torch.no_grad():
            for parameter, way in zip(module.parameters(), ways, strict=True):
                parameter.add_(way, alpha=step)
            return value()

    value().backward()
    slope = sum((parameter.grad * way).sum() for parameter, way in zip(module.parameters(), ways, strict=True))
    torch.testing.assert_close(slope, (moved(1e-6) - moved(-2e-6)) / 2e-6, rtol=1e-6, atol=1e-7)


def test_what_is_trained(form):
    model = case().model
    reading = ["o_proj", "gate_proj", "up_proj", "down_proj"]
    for trained, own, kept in (("queries", [], []), ("reading", reading, []), ("all", reading, ["k_proj", "v_proj"])):
        parts = [set(layer) for layer in consolidator(model, form, trained).parts]
        if form == "last":
            assert parts == [{"q_proj", *own}]
        else:
            # Nobody reads what the last layer gives out.
            assert parts == [{"q_proj", *own, *kept}] * 2 + [set(kept)]


def test_a_model_without_such_queries_is_refused(form):
    model = tiny_model("llama")
    for layer in model.model.layers:
        layer.self_attn.q = layer.self_attn.q_proj
        del layer.self_attn.q_proj
    with pytest.raises(lcc.InputError, match="has no q_proj or qkv_proj to ask with"):
        FORMS[form](model, 2, "all")


def test_a_text_is_read_as_it_is_prefilled():
    made = case()
    with torch.no_grad():
        ids = torch.tensor([[*PREFIX, *IDS]])
        hidden = decoder(made.model)(input_ids=ids, use_cache=False).last_hidden_state[0]
    torch.testing.assert_close(made.text.hidden, hidden[len(PREFIX) :])
    assert made.text.kv.start == 0
    assert len(made.text.kv) == len(PREFIX) + len(IDS)
