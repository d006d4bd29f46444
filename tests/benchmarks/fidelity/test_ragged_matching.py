"""Attention Matching with biases and ragged heads: what is kept, budgets, and the compiler's own memory."""

from __future__ import annotations

import random
from itertools import product

import pytest
import torch

import lcc
from benchmarks.fidelity.methods import PEERS
from benchmarks.fidelity.methods.biased_attention import Biased, attending_with, biased_attention
from benchmarks.fidelity.methods.ragged_matching import (
    BUDGETS,
    Matching,
    biased,
    by_head,
    folded,
    least_sum,
    plain,
    uniform,
)
from lcc.compilers.attention_matching.compiler import before_reader, read_text, references
from lcc.compilers.attention_matching.heads import SELECTIONS, Head
from lcc.modeling.prefill import prefill
from lcc.modeling.scoring import Completion, completion_states, token_divergence
from tests.support.tiny_models import tiny_model
from tests.support.untouched import assert_untouched, state


def test_a_bias_counts_a_key_as_often_as_it_says():
    query, key, value = (torch.randn(1, heads, 5, 8, dtype=torch.float64) for heads in (4, 2, 2))
    module = torch.nn.Module()
    module.biased = Biased(torch.tensor([[2.0, 1.0], [1.0, 3.0]], dtype=torch.float64).log())
    found, _ = biased_attention(module, query, key, value, torch.zeros(1, 1, 5, 5, dtype=torch.float64))
    for head, often in enumerate(([0, 0, 1, 2, 3, 4], [0, 1, 1, 1, 2, 3, 4])):
        several, values = key[0, head, often], value[0, head, often]
        for mine in (2 * head, 2 * head + 1):
            expected = (query[0, mine] @ several.T / 8**0.5).softmax(-1) @ values
            torch.testing.assert_close(found[0, :, mine], expected)
    assert torch.equal(module.biased.query, query)


def test_biases_of_the_pursuit_count_how_many_keys_one_stands_for():
    keys, values = torch.randn(3, 8, dtype=torch.float64), torch.randn(7, 4, dtype=torch.float64)
    often = [0, 1, 2, 0, 1, 0, 0]
    queries = torch.randn(200, 8, dtype=torch.float64)
    kept, fitted, bias = biased(Head(queries, keys[often], values), 3, SELECTIONS["omp"])
    stands_for = [(keys == key).all(-1).nonzero().item() for key in kept]
    assert sorted(stands_for) == [0, 1, 2]
    for which, value, added in zip(stands_for, fitted, bias, strict=True):
        mine = [place for place, key in enumerate(often) if key == which]
        torch.testing.assert_close(added.exp().item(), float(len(mine)), atol=1e-3, rtol=0)
        torch.testing.assert_close(value, values[mine].mean(0), atol=1e-3, rtol=0)


@pytest.mark.parametrize(("match", "mass"), [(folded, True), (plain, False)])
def test_as_many_keys_of_each_head_without_biases_are_the_compilers_memory(
    match, mass, llama, tokenizer, text, context
):
    made = lcc.compile(
        llama, tokenizer, text, compiler="attention_matching", ratio=8, certify=False, progress=False,
        matched_mass=mass, matched_tokens=512,
    )  # fmt: skip
    prefix, ids = context.prefix_ids, context.context_ids
    with torch.no_grad():
        text_kv = before_reader(llama, *read_text(llama, prefix, ids), context.buffer)
        matching = Matching(
            llama, text_kv, len(prefix), references(context, 512), SELECTIONS["highest_attention"], match
        )
        matching.fit(uniform(matching, context.buffer))
        visible, bias = matching.kept()
    assert torch.equal(bias, torch.zeros_like(bias))
    expected = lcc.attach(llama, made).kv()
    torch.testing.assert_close(visible.keys, expected.keys, rtol=1e-2, atol=1e-2)
    torch.testing.assert_close(visible.values, expected.values, rtol=1e-2, atol=1e-2)


@pytest.mark.parametrize("keys", SELECTIONS)
def test_matching_comes_closer_the_more_is_kept_and_all_of_it_changes_nothing(keys, llama, context):
    ids, prefix = [*context.prefix_ids, *context.context_ids], len(context.prefix_ids)
    samples = [Completion((5, 6, 7 + n, 9, 11), (8, 9, 10 + n, 4)) for n in range(40)]
    text = prefill(llama, ids)
    errors = []
    with torch.no_grad():
        expected = completion_states(llama, text, samples)
        for tokens in (2, 8, len(context.context_ids)):
            matching = Matching(llama, text, prefix, samples, SELECTIONS[keys])
            matching.fit(uniform(matching, tokens))
            kv, bias = matching.kept()
            assert kv.keys.shape[2] == bias.shape[2] == prefix + tokens
            assert torch.equal(kv.head(prefix).values, text.head(prefix).values)
            with attending_with(llama, bias):
                errors.append((completion_states(llama, kv, samples) - expected).abs().max().item())
    assert errors[0] > errors[1] > errors[2]
    assert errors[2] < 2e-4


def test_the_least_sum_is_that_of_all_choices():
    rng = random.Random(0)
    for total in (0, 3, 8, 40):
        curves = [{size: rng.random() for size in (0, 1, 2, 4, 8)} for _ in range(4)]
        choices = [sizes for sizes in product(*curves) if sum(sizes) <= total]
        best = min(choices, key=lambda sizes: sum(curve[size] for curve, size in zip(curves, sizes, strict=True)))
        assert least_sum(curves, total) == best


def test_budgets_go_to_the_heads_that_matter(context):
    model = tiny_model("llama", torch.float64)
    width = model.config.head_dim
    group = model.config.num_attention_heads // model.config.num_key_value_heads
    with torch.no_grad():
        # Nothing is made of what any head finds but the second K/V head of the second layer.
        for layer, decoder_layer in enumerate(model.model.layers):
            for head in range(model.config.num_attention_heads):
                if (layer, head // group) != (1, 1):
                    decoder_layer.self_attn.o_proj.weight[:, head * width : (head + 1) * width] = 0
        ids, prefix = [*context.prefix_ids, *context.context_ids], len(context.prefix_ids)
        samples = [Completion((5, 6, 7 + n, 9, 11), (8, 9, 10 + n, 4)) for n in range(20)]
        text = prefill(model, ids)
        teacher = completion_states(model, text, samples)
        matching = Matching(model, text, prefix, samples, SELECTIONS["highest_attention"])
        budgets = by_head(matching, 4)
        assert matching.bias.isfinite().all()
        assert torch.equal(matching.kv.keys, text.keys)
        assert torch.equal(matching.kv.values, text.values)
        heads = len(budgets) * len(budgets[0])
        assert sum(map(sum, budgets)) <= 4 * heads
        assert budgets[1][1] == max(map(max, budgets)) > 4
        losses = []
        for several in (budgets, uniform(matching, 4)):
            trial = Matching(model, text, prefix, samples, SELECTIONS["highest_attention"])
            trial.fit(several)
            losses.append(token_divergence(model, trial.states(samples), teacher).mean())
            kv, bias = trial.kept()
            assert len(kv) == prefix + max(map(max, several))
            pairs = sum(map(sum, several))
            assert trial.nbytes == 8 * (2 * width * (pairs + heads * prefix) + pairs)
            assert int(bias[:, :, prefix:].isfinite().sum()) == pairs
    assert losses[0] < losses[1]


@pytest.mark.parametrize("budgets", BUDGETS)
def test_it_has_a_memorys_bytes_and_its_biases(budgets, bench, llama, text, examples):
    before = state(llama)
    method = PEERS["ragged_matching"].build("ragged", bench, {"keys": "highest_attention", "budgets": budgets})
    found = method.answer(text, examples)
    assert_untouched(llama, before)
    assert not any(hasattr(layer.self_attn, "biased") for layer in llama.model.layers)
    assert len(found.texts) == len(examples)
    assert found.trained_on
    memory = PEERS["first_tokens"].build("first_tokens", bench, {}).answer(text, examples).kv_bytes
    config = llama.config
    biases = config.num_hidden_layers * config.num_key_value_heads * method.tokens(text) * 4
    held = memory + biases
    assert found.kv_bytes == held if budgets == "uniform" else found.kv_bytes <= held
