"""Turns with one memory: what was read stays read."""

from __future__ import annotations

import threading
from itertools import permutations

import pytest

import lcc
from lcc.inference.conversation import Conversation
from lcc.modeling.generation import generate_after

MESSAGES = ["Where does Mara live?", "Say: dog cat.", "What is the job of Hugo, the baker?"]


@pytest.fixture
def conversation(llama, tokenizer, text, fast):
    return Conversation(llama, tokenizer, lcc.compile(llama, tokenizer, text, **fast))


def test_turns_answer_as_if_all_were_read_again(conversation, llama, tokenizer, text, fast):
    """Answers cut by ``max_new_tokens`` and whole ones, whose end token the cache has not seen."""
    memory, lengths = lcc.compile(llama, tokenizer, text, **fast), []
    llama.model.layers[0].register_forward_pre_hook(lambda module, args: lengths.append(args[0].shape[1]))
    for number, message in enumerate(MESSAGES):
        history = conversation._history
        new = conversation.chat.turn_ids(message) if history else conversation.chat.query_ids(message)
        expected = generate_after(
            llama, lcc.attach(llama, memory), [[*history, *new]], conversation.chat.end, max_new_tokens=4 + number
        )[0]
        lengths.clear()
        answer = conversation.say(message, max_new_tokens=4 + number)
        assert answer == tokenizer.decode(expected, skip_special_tokens=True).strip()
        assert max(lengths) <= len(new) + 2


@pytest.mark.parametrize("where", ["lm_head", "model.layers.1"])
def test_an_interrupted_turn_leaves_nothing_behind(conversation, llama, where):
    """Between two tokens, and between two layers of one."""
    conversation.say(MESSAGES[0], max_new_tokens=4)
    expected = conversation._history
    calls = []

    def interrupt(module, args):
        calls.append(module)
        if len(calls) == 3:
            raise KeyboardInterrupt

    handle = llama.get_submodule(where).register_forward_pre_hook(interrupt)
    with pytest.raises(KeyboardInterrupt):
        conversation.say(MESSAGES[1], max_new_tokens=20)
    handle.remove()
    assert conversation._history == expected
    interrupted = conversation.say(MESSAGES[2], max_new_tokens=6)
    again = Conversation(llama, conversation.tokenizer, conversation.memory)
    again.say(MESSAGES[0], max_new_tokens=4)
    assert again.say(MESSAGES[2], max_new_tokens=6) == interrupted


def test_threads_take_turns(conversation, llama):
    """Whichever comes first, the history is that of turns one after the other."""
    threads = [threading.Thread(target=conversation.say, args=(message, 4)) for message in MESSAGES[:3]]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    histories = []
    for order in permutations(MESSAGES[:3]):
        alone = Conversation(llama, conversation.tokenizer, conversation.memory)
        for message in order:
            alone.say(message, 4)
        histories.append(alone._history)
    assert conversation._history in histories
