"""The first token of one question under several adapters, and the answer under the chosen one."""

from __future__ import annotations

import pytest
import torch

import lcc
import lcc_kernels as lk
from lcc.modeling.adapter import AdaptedModel
from lcc.modeling.attention import attending
from lcc.modeling.generation import generate_after
from lcc.modeling.grouped_lora import first_tokens
from lcc.modeling.kv import KV
from lcc.modeling.model_copy import share_weights
from lcc.modeling.prefill import prefill
from lcc.modeling.shared_cache import SHARED_PREFIX, SharedCache
from tests.support.adapters import random_adapter
from tests.support.tiny_models import tiny_model

PREFIX, QUESTION, END, LONGEST = [1, 7, 30], [5, 9, 40, 41, 7], 2, 6


@pytest.fixture
def model():
    return tiny_model("llama", torch.float64)


@pytest.fixture
def adapters(model):
    return [random_adapter(model, rank, seed) for rank, seed in ((3, 1), (4, 2), (2, 3))]


@pytest.fixture
def question(model):
    """K and V of the prefix and the question without its last token."""
    with torch.no_grad():
        return prefill(model, [*PREFIX, *QUESTION[:-1]])


def alone(model, adapter):
    """The last token's hidden state when the question is read whole under one adapter, or none."""
    reading = model if adapter is None else AdaptedModel(model, [adapter]).model
    with torch.no_grad():
        return reading.model(input_ids=torch.tensor([PREFIX + QUESTION])).last_hidden_state[0, -1]


def answer(model, adapter):
    """The greedy answer to the whole question under one adapter, or none."""
    visible = prefill(model, PREFIX)
    reading = model if adapter is None else AdaptedModel(model, [adapter]).model
    return generate_after(reading, SharedCache(visible), [QUESTION], END, max_new_tokens=LONGEST)[0]


@pytest.mark.parametrize("family", ["llama", "qwen2", "phi3"])
def test_each_row_is_what_its_adapter_gives_alone(family):
    model = tiny_model(family, torch.float64)
    adapters = [random_adapter(model, rank, seed) for rank, seed in ((3, 1), (4, 2))]
    with torch.no_grad():
        question = prefill(model, [*PREFIX, *QUESTION[:-1]])
    first = first_tokens(AdaptedModel(model, [*adapters, None]), question, QUESTION[-1])
    expected = torch.stack([alone(model, adapter) for adapter in (*adapters, None)])
    torch.testing.assert_close(first.hidden, expected, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(first.logits, model.lm_head(expected), rtol=1e-9, atol=1e-9)


def test_one_adapter_is_that_adapter(model, adapters, question):
    first = first_tokens(AdaptedModel(model, adapters[:1]), question, QUESTION[-1])
    torch.testing.assert_close(first.hidden[0], alone(model, adapters[0]), rtol=1e-10, atol=1e-10)
    assert first.go_on(0, END, LONGEST) == answer(model, adapters[0])


def test_adapters_are_swapped_over_the_same_bits(model, adapters, question, monkeypatch):
    shared, op = [], lk.shared_prefix_attention

    def spy(q, shared_k, shared_v, *rest, **options):
        shared.append((tuple(q.shape[:1]), shared_k.data_ptr()))
        return op(q, shared_k, shared_v, *rest, **options)

    monkeypatch.setattr(lk, "shared_prefix_attention", spy)
    before = KV(question.keys.clone(), question.values.clone(), question.start)
    first = first_tokens(AdaptedModel(model, [*adapters, None]), question, QUESTION[-1])
    # One call a layer, for all adapters at once, over the question's own keys: none is copied.
    assert shared == [((4,), keys.data_ptr()) for keys in question.keys]
    # In any order, and one adapter twice: nothing is left of the one before.
    for row in (2, 0, 3, 1, 0):
        assert first.go_on(row, END, LONGEST) == answer(model, [*adapters, None][row])
    assert torch.equal(question.keys, before.keys)
    assert torch.equal(question.values, before.values)
    assert len({tuple(first.go_on(row, END, LONGEST)) for row in range(4)}) > 1


def test_the_plain_row_is_the_plain_model_to_the_bit(model, adapters, question):
    several = AdaptedModel(model, [None, random_adapter(model, size=0.0), *adapters])
    first = first_tokens(several, question, QUESTION[-1])
    plain, rows = share_weights(model), 2 + len(adapters)
    with torch.no_grad(), attending(plain, SHARED_PREFIX):
        expected = plain.model(
            input_ids=torch.full((rows, 1), QUESTION[-1]),
            position_ids=torch.full((rows, 1), question.end),
            past_key_values=SharedCache(question).follow(plain),
        ).last_hidden_state[:, -1]
    assert torch.equal(first.hidden[:2], expected[:2])
    assert not torch.allclose(first.hidden[2:], expected[2:])


def test_an_answer_ends_where_it_is_told_to(model, adapters, question):
    first = first_tokens(AdaptedModel(model, adapters), question, QUESTION[-1])
    whole = first.go_on(1, END, LONGEST)
    assert first.go_on(1, END, 1) == whole[:1]
    assert first.go_on(1, whole[0], LONGEST) == []
    assert first.go_on(1, whole[2], LONGEST) == whole[: whole.index(whole[2])]


def test_candidates_are_chosen_among_the_adapters_of_a_bank(model, adapters, question):
    bank = AdaptedModel(model, [*adapters, None])
    every = first_tokens(bank, question, QUESTION[-1])
    with pytest.raises(lcc.InputError, match="no adapter is chosen"):
        first_tokens(bank, question, QUESTION[-1], [])
    for rows in ([2, 0], [3, 1, 1], [1]):
        some = first_tokens(bank, question, QUESTION[-1], rows)
        torch.testing.assert_close(some.hidden, every.hidden[rows], rtol=1e-10, atol=1e-10)
        for place, row in enumerate(rows):
            assert some.go_on(place, END, LONGEST) == every.go_on(row, END, LONGEST)
