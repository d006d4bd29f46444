"""A running memory: what it keeps, and that the model goes on from it nearly as from the turns."""

from __future__ import annotations

import math
import random

import pytest
import torch

from lcc.compilers.attention_matching.running import RunningMemory
from lcc.errors import InputError
from lcc.memory.consolidation import Turns
from lcc.modeling.prefill import prefill
from lcc.modeling.scoring import Completion, completion_states, token_divergence
from lcc.synthetic.people import document
from lcc.text.chat_format import ChatFormat
from tests.support.tiny_models import tiny_model

QUESTION = "Where does {} live?"


@torch.no_grad()
def turns_of(model, tokenizer, told: str) -> Turns:
    """Behind the chat's prefix, a text and a question about it."""
    chat = ChatFormat.of(tokenizer)
    ids = tuple(chat.query_ids(f"{told}\n\nWho is that?", after_text=False))
    visible = prefill(model, [*chat.prefix_ids, *ids])
    return Turns(model, chat, visible, ids, torch.zeros(model.config.hidden_size))


@pytest.mark.parametrize("ratio", [1.0, 3.0, 8.0, 1000.0])
def test_the_turns_shrink_by_the_ratio_and_nothing_before_them_changes(ratio, llama, tokenizer, text):
    turns = turns_of(llama, tokenizer, text)
    kept = RunningMemory(ratio)(turns)
    first = len(turns.before)
    assert len(kept) == first + math.ceil(len(turns.ids) / ratio)
    assert kept.start == 0
    assert torch.equal(kept.head(first).keys, turns.before.keys)
    assert torch.equal(kept.head(first).values, turns.before.values)
    assert llama.config._attn_implementation == "sdpa"
    assert not any(hasattr(module, "matching") for module in llama.modules())


@torch.no_grad()
def test_keeping_every_token_changes_next_to_nothing(tokenizer, text):
    model = tiny_model("llama", torch.float64)
    turns = turns_of(model, tokenizer, text)
    asked = [Completion(tuple(turns.chat.turn_ids("Where does Mara live?")), (5, 6, 7))]
    states = completion_states(model, turns.visible, asked)
    torch.testing.assert_close(completion_states(model, RunningMemory(1.0)(turns), asked), states, rtol=1e-3, atol=1e-3)


@torch.no_grad()
def test_the_next_turn_is_nearer_to_the_turns_than_without_them(embedded):
    """Of the embedded model, a quarter of the tokens: less than half of the divergence of forgetting the turns."""
    model, tokenizer = embedded
    lost, left = [], []
    for seed in range(2):
        told = document(random.Random(seed), people=1, attributes=5)
        turns = turns_of(model, tokenizer, told.text)
        chat = turns.chat
        name = told.text.split()[0]
        asked = [Completion(tuple(chat.turn_ids(QUESTION.format(name))), (*chat.ids("Selby"), chat.end))]
        states = completion_states(model, turns.visible, asked)
        for into, kept in ((left, RunningMemory(4.0)(turns)), (lost, turns.before)):
            into.append(token_divergence(model, completion_states(model, kept, asked), states).mean().item())
    assert sum(left) < 0.5 * sum(lost)


@pytest.mark.parametrize("ratio", [0.5, math.inf, math.nan, "8"])
def test_a_ratio_that_is_none(ratio):
    with pytest.raises(InputError, match="ratio is"):
        RunningMemory(ratio)
    with pytest.raises(InputError, match="reference_tokens"):
        RunningMemory(reference_tokens=0)
