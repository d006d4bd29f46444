"""A conversation that is watched, and whose turns are consolidated when the monitor triggers."""

from __future__ import annotations

import math

import pytest
import torch

import lcc
from lcc.errors import InputError
from lcc.inference.conversation import Consolidated, Conversation
from lcc.memory.consolidation import Appended
from lcc.modeling.generation import generate_after
from lcc.modeling.kv import KV
from lcc.modeling.prefill import prefill
from lcc.modeling.shared_cache import SharedCache
from tests.support.plain_memories import plain_memory

MESSAGES = ["Where does Mara live?", "Say: dog cat.", "What is the job of Hugo, the baker?", "And the age?"]
ALWAYS, NEVER = lcc.Monitor(0.0, sinks=0), lcc.Monitor(math.inf)


@pytest.fixture
def memory(llama, tokenizer, text, monkeypatch):
    return plain_memory(llama, tokenizer, text, monkeypatch)[0]


@pytest.fixture
def watched(llama, tokenizer, memory):
    return Conversation(llama, tokenizer, memory, monitor=ALWAYS)


@pytest.fixture
def plain(llama, tokenizer, memory):
    return Conversation(llama, tokenizer, memory)


def same(turns):
    """Consolidates nothing."""
    return turns.visible


def test_without_a_trigger_it_is_plain_decoding_to_the_bit(llama, tokenizer, memory, plain):
    watched = Conversation(llama, tokenizer, memory, monitor=NEVER)
    for message in MESSAGES:
        assert watched.say(message, 6) == plain.say(message, 6)
        assert watched.consolidate(same) is None
        assert watched._history == plain._history
        one, other = KV.of(watched._cache), KV.of(plain._cache)
        assert torch.equal(one.keys, other.keys)
        assert torch.equal(one.values, other.values)
    assert plain.entropies == []


def test_each_token_of_the_last_turn_has_an_entropy(watched):
    """The end token too, if the answer ended; they are between 0 and the logarithm of the keys."""
    for message in MESSAGES:
        chat, said = watched.chat, watched._history
        asked = chat.turn_ids(message) if said else chat.query_ids(message)
        watched.say(message, 5)
        written = len(watched._history) - len(said) - len(asked)
        assert len(watched.entropies) in (written, written + 1)
        assert all(0 < entropy <= math.log(watched._cache.get_seq_length()) for entropy in watched.entropies)


def test_turns_are_given_once_and_in_order(watched, plain):
    """Consolidated into what they were, they answer as before; what was not read yet comes with the next turn."""
    given = []

    def keep(turns):
        given.extend(turns.ids)
        assert len(turns.visible) == watched._cache.get_seq_length()
        assert len(turns.before) + len(turns.ids) == len(turns.visible)
        return turns.visible

    for number, message in enumerate(MESSAGES):
        assert watched.say(message, 4 + number) == plain.say(message, 4 + number)
        tokens = watched._cache.get_seq_length()
        assert watched.consolidate(keep) == Consolidated(tokens, tokens)
        assert watched.consolidate(keep) is None
        assert given + watched._history == plain._history


def test_what_a_consolidation_is_given(watched, llama):
    watched.say(MESSAGES[0], 5)
    seen = []
    watched.consolidate(lambda turns: seen.append(turns) or turns.visible)
    [turns] = seen
    assert turns.model is not llama
    assert turns.model.lm_head.weight.data_ptr() == llama.lm_head.weight.data_ptr()
    assert turns.visible.start == 0
    with torch.no_grad():
        read = prefill(llama, turns.ids, turns.before)
        before = SharedCache(read.head(len(read) - 1))
        states = llama.model(torch.tensor([turns.ids[-1:]]), past_key_values=before).last_hidden_state
    torch.testing.assert_close(turns.visible.keys, read.keys)
    torch.testing.assert_close(turns.hidden, states[0, -1])


def test_turns_may_be_evicted(watched, llama, memory):
    """All of them: the next turn is the first one's, but for the words between two turns."""
    watched.say(MESSAGES[0], 5)
    watched._history = watched._history[: watched._read]
    before = watched._cache.get_seq_length()
    assert watched.consolidate(lambda turns: turns.before) == Consolidated(before, watched._attached)
    assert watched._cache.get_seq_length() == watched._attached == lcc.attach(llama, memory).get_seq_length()
    query = watched.chat.turn_ids(MESSAGES[1])
    expected = generate_after(llama, lcc.attach(llama, memory), [query], watched.chat.end, max_new_tokens=6)[0]
    watched.say(MESSAGES[1], 6)
    assert watched._history == [*query, *expected]


def test_latents_may_be_appended(watched, llama, plain):
    """As FlashMem does: nothing is evicted, and the next turn stands behind them and sees them."""
    watched.say(MESSAGES[0], 5)
    plain.say(MESSAGES[0], 5)
    given, before = [], KV.of(watched._cache)

    def latents(model, kv, hidden):
        given.append((kv, hidden))
        return model.get_input_embeddings()(torch.tensor([20, 21, 22]))

    done = watched.consolidate(Appended(latents))
    assert done == Consolidated(len(before), len(before) + 3)
    assert torch.equal(given[0][0].keys, before.keys)
    assert given[0][1].shape == (llama.config.hidden_size,)
    with torch.no_grad():
        expected = prefill(llama, [20, 21, 22], before)
    torch.testing.assert_close(KV.of(watched._cache).keys, expected.keys)
    watched.say(MESSAGES[1], 4)
    plain.say(MESSAGES[1], 4)
    now = KV.of(watched._cache)
    assert torch.equal(now.head(done.after).keys, expected.keys)
    assert not torch.equal(now.values[:, :, done.after], KV.of(plain._cache).values[:, :, done.before])


def test_a_consolidation_that_fails_leaves_the_conversation_as_it_was(watched, plain):
    watched.say(MESSAGES[0], 5)
    plain.say(MESSAGES[0], 5)

    def fail(turns):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        watched.consolidate(fail)
    assert watched.say(MESSAGES[1], 5) == plain.say(MESSAGES[1], 5)


def test_an_interrupted_turn_keeps_what_was_consolidated(watched, llama, tokenizer, memory):
    watched.say(MESSAGES[0], 5)
    watched.consolidate(same)
    tokens = watched._cache.get_seq_length()
    with pytest.raises(InputError, match="window"):
        watched.say("dog " * 2000)
    assert watched._cache.get_seq_length() == tokens
    assert watched.consolidate(same) is None
    again = Conversation(llama, tokenizer, memory)
    again.say(MESSAGES[0], 5)
    assert watched.say(MESSAGES[1], 5) == again.say(MESSAGES[1], 5)


def test_few_tokens_are_left_alone(watched):
    watched.say(MESSAGES[0], 5)
    tokens = watched._read
    assert watched.consolidate(same, least=tokens + 1) is None
    assert watched.consolidate(same, least=tokens) is not None
