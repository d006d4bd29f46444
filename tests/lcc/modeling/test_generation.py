"""What stands behind cached tokens: windows are kept, and nothing reads the placeholder ids of a memory."""

from __future__ import annotations

import copy

import pytest
import torch
from transformers import GenerationConfig

import lcc
from lcc.evaluation.examples import Example
from lcc.evaluation.methods import FullText, NoText
from lcc.inference.asking import ask_text
from lcc.inference.conversation import Conversation
from lcc.inference.reader import Reader, prefill_chat
from lcc.modeling.window import check_window
from lcc.text.chat_format import ChatFormat
from tests.lcc.memory.test_memory import QUESTIONS
from tests.support.tiny_models import tiny_model

LONG = "Where does Mara live? " * 300


@pytest.fixture
def memory(llama, tokenizer, text, fast, once):
    return once("memory", lambda: lcc.compile(llama, tokenizer, text, **fast))


def used(memory, tokenizer, question) -> int:
    chat = ChatFormat.of(tokenizer)
    return len(memory.prefix_ids) + memory.buffer_tokens + len(chat.query_ids(question))


def test_every_way_of_answering_keeps_to_the_window(llama, tokenizer, text, memory):
    chat = ChatFormat.of(tokenizer)
    example = Example(text, LONG, ("x",), max_new_tokens=2)
    ways = {
        "ask": lambda: lcc.ask(llama, tokenizer, memory, [LONG], max_new_tokens=2),
        "ask two": lambda: lcc.ask(llama, tokenizer, memory, ["Who?", LONG], max_new_tokens=2),
        "prompt": lambda: lcc.prompt(llama, tokenizer, memory, [LONG]),
        "chat": lambda: Conversation(llama, tokenizer, memory).say(LONG, 2),
        "full text": lambda: FullText(llama, tokenizer).answer(text, [example]),
        "no text": lambda: NoText(llama, tokenizer).answer(text, [example]),
        "exam": lambda: ask_text(llama, tokenizer, text, [LONG]),
        "prefill": lambda: prefill_chat(llama, chat, LONG),
        "reader": lambda: Reader.of_text(llama, chat, text).say([LONG], 2),
    }
    for name, way in ways.items():
        with pytest.raises(lcc.InputError, match=r"need a window of \d+ tokens, and the model's has 1024"):
            pytest.fail(f"{name} answers {way()}")


def test_the_window_is_used_to_its_last_token(llama, tokenizer, memory):
    room = 1024 - used(memory, tokenizer, "Who?")
    assert lcc.ask(llama, tokenizer, memory, ["Who?"], max_new_tokens=room, eos_token_id=[2], min_new_tokens=1)
    with pytest.raises(lcc.InputError, match="need a window of 1025"):
        lcc.ask(llama, tokenizer, memory, ["Who?"], max_new_tokens=room + 1)
    past = len(memory.prefix_ids) + memory.buffer_tokens
    query = used(memory, tokenizer, "Who?") - past
    assert lcc.prompt(llama, tokenizer, memory, ["Who?"], start=1024 - past - query - 1)
    with pytest.raises(lcc.InputError, match="window"):
        lcc.prompt(llama, tokenizer, memory, ["Who?"], start=1024 - past - query)


def test_a_conversation_ends_at_the_window_and_keeps_its_turns(llama, tokenizer, memory):
    talk = Conversation(llama, tokenizer, memory)
    message = "Where does Mara live? " * 75
    for _ in range(2):
        talk.say(message, 4)
    with pytest.raises(lcc.InputError, match="begin a new chat"):
        talk.say(message, 4)
    history = list(talk._history)
    assert history
    with pytest.raises(lcc.InputError):
        talk.say(message, 4)
    assert talk._history == history
    assert isinstance(talk.say("Who?", 4), str)


def test_a_general_query_beyond_the_window_is_refused_before_any_work(llama, tokenizer, text, fast, data_made):
    with pytest.raises(lcc.InputError, match=r"longest general query need a window .* leave long queries out"):
        lcc.compile(llama, tokenizer, text, queries=["Say: dog.", LONG], **fast)


def test_a_window_names_what_stands_where():
    model = tiny_model("llama")
    check_window(model, 1024, "tokens", "none")
    with pytest.raises(lcc.InputError, match="tokens need a window of 1025 tokens, and the model's has 1024: split it"):
        check_window(model, 1025, "tokens", "split it")
    with pytest.raises(lcc.InputError, match="position -1"):
        check_window(model, 10, "tokens", "none", start=-1)


def test_penalties_do_not_count_placeholders(llama, tokenizer, memory):
    """A penalty of what was said before acts on question and answer alone: the memory's tokens have no ids."""
    past = len(memory.prefix_ids) + memory.buffer_tokens

    def penalised(ids, scores):
        own = ids[:, past:]
        score = scores.gather(1, own)
        return scores.scatter(1, own, torch.where(score < 0, score * 3.0, score / 3.0))

    expected = lcc.ask(llama, tokenizer, memory, QUESTIONS[:1], max_new_tokens=12, logits_processor=[penalised])
    assert lcc.ask(llama, tokenizer, memory, QUESTIONS[:1], max_new_tokens=12, repetition_penalty=3.0) == expected
    cached = lcc.prompt(llama, tokenizer, memory, QUESTIONS)["input_ids"][:, :past]
    assert set(cached.flatten().tolist()) == {ChatFormat.of(tokenizer).prefix_ids[0]}


OWN_DECODING = [
    {"prompt_lookup_num_tokens": 3},
    {"assistant_early_exit": 1},
    {"cache_implementation": "static"},
    {"use_cache": False},
    {"repetition_penalty": 3.0},
    {"no_repeat_ngram_size": 1},
    {"encoder_no_repeat_ngram_size": 1},
    {"encoder_repetition_penalty": 3.0},
    {"min_length": 500},
    {"stop_strings": ["a"]},
    {"num_beams": 2},
    {"do_sample": True, "temperature": 9.0},
]


@pytest.mark.parametrize("options", OWN_DECODING)
def test_a_checkpoints_own_decoding_changes_no_answer(llama, tokenizer, memory, options):
    expected = lcc.ask(llama, tokenizer, memory, QUESTIONS, max_new_tokens=6)
    llama.generation_config = GenerationConfig(eos_token_id=2, pad_token_id=0, **options)
    assert lcc.ask(llama, tokenizer, memory, QUESTIONS, max_new_tokens=6) == expected


def assisted(llama):
    return {
        "prompt lookup": {"prompt_lookup_num_tokens": 3},
        "an assistant": {"assistant_model": copy.deepcopy(llama)},
        "a config of the caller's": {"generation_config": GenerationConfig(prompt_lookup_num_tokens=2)},
    }


@pytest.mark.parametrize("name", ["prompt lookup", "an assistant", "a config of the caller's"])
def test_assisted_decoding_is_refused_everywhere(llama, tokenizer, memory, name):
    options = assisted(llama)[name]
    with pytest.raises(lcc.InputError):
        lcc.ask(llama, tokenizer, memory, QUESTIONS[:1], max_new_tokens=4, **options)
    inputs = lcc.prompt(llama, tokenizer, memory, QUESTIONS[:1])
    with pytest.raises(lcc.InputError, match="assisted decoding"):
        llama.generate(**inputs, past_key_values=lcc.attach(llama, memory), max_new_tokens=4, **options)


@pytest.mark.parametrize("option", ["min_length", "max_length"])
def test_options_that_count_cached_tokens_are_refused(llama, tokenizer, memory, option):
    with pytest.raises(lcc.InputError, match=f"{option}=5 cannot be given"):
        lcc.ask(llama, tokenizer, memory, QUESTIONS, **{option: 5})


WRONG = {
    "an unknown option": lambda m, t, y: lcc.ask(m, t, y, ["Who?"], temprature=0.5),
    "several answers of greedy decoding": lambda m, t, y: lcc.ask(m, t, y, ["Who?"], num_return_sequences=2),
    "no beams": lambda m, t, y: lcc.ask(m, t, y, ["Who?"], num_beams=0),
    "beams of None": lambda m, t, y: lcc.ask(m, t, y, ["Who?"], num_beams=None),
    "a cache of one's own": lambda m, t, y: lcc.ask(m, t, y, ["Who?"], past_key_values=lcc.attach(m, y)),
    "tokens of one's own": lambda m, t, y: lcc.ask(m, t, y, ["Who?"], input_ids=torch.ones(1, 3)),
    "code from the hub": lambda m, t, y: lcc.ask(m, t, y, ["Who?"], custom_generate="somebody/code"),
    "questions of None": lambda m, t, y: lcc.ask(m, t, y, [None]),
    "questions of bytes": lambda m, t, y: lcc.ask(m, t, y, [b"Who?"]),
    "no list": lambda m, t, y: lcc.ask(m, t, y, None),
    "half a character": lambda m, t, y: lcc.ask(m, t, y, ["Who? \ud800"]),
    "no tokens": lambda m, t, y: lcc.ask(m, t, y, ["Who?"], max_new_tokens=0),
    "tokens as text": lambda m, t, y: lcc.ask(m, t, y, ["Who?"], max_new_tokens="5"),
    "half a batch": lambda m, t, y: lcc.ask(m, t, y, ["Who?"], batch=1.5),
    "no memory": lambda m, t, y: lcc.ask(m, t, None, ["Who?"]),
    "a path for a memory": lambda m, t, y: lcc.attach(m, "doc.lcc.safetensors"),
    "half a position": lambda m, t, y: lcc.attach(m, y, start=1.5),
    "a position as tensor": lambda m, t, y: lcc.attach(m, y, start=torch.tensor(3)),
    "prompt of a number": lambda m, t, y: lcc.prompt(m, t, y, [3]),
    "prompt at text": lambda m, t, y: lcc.prompt(m, t, y, ["Who?"], start="3"),
    "nothing said": lambda m, t, y: Conversation(m, t, y).say("  "),
    "a number said": lambda m, t, y: Conversation(m, t, y).say(3),
    "text of None": lambda m, t, y: lcc.compile(m, t, None, progress=False),
    "text of bytes": lambda m, t, y: lcc.compile(m, t, b"Mara lives in Tarn.", progress=False),
    "plan of a list": lambda m, t, y: lcc.plan(m, t, ["Mara"]),
}


@pytest.mark.parametrize("name", WRONG)
def test_values_of_wrong_types_are_refused_by_name(llama, tokenizer, memory, name):
    with pytest.raises(lcc.InputError):
        WRONG[name](llama, tokenizer, memory)


def test_a_conversation_goes_on_outside_of_inference_mode(llama, tokenizer, memory):
    talk, alone = Conversation(llama, tokenizer, memory), Conversation(llama, tokenizer, memory)
    expected = [alone.say(question, 4) for question in (*QUESTIONS, *QUESTIONS)]
    said = []
    for number, question in enumerate((*QUESTIONS, *QUESTIONS)):
        with torch.inference_mode(number % 2 == 1):
            said.append(talk.say(question, 4))
    assert said == expected


def test_questions_may_come_one_by_one(llama, tokenizer, memory):
    expected = lcc.ask(llama, tokenizer, memory, QUESTIONS, max_new_tokens=4)
    assert lcc.ask(llama, tokenizer, memory, iter(QUESTIONS), max_new_tokens=4) == expected
