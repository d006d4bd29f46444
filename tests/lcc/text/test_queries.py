"""General queries: which ones a model is asked, and those that it writes itself."""

from __future__ import annotations

import math
from importlib import resources

import pytest
from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

import lcc
from lcc.data.own_queries import own_queries
from lcc.data.teacher import Teacher
from lcc.data.teacher_states import TeacherStates
from lcc.inference.reader import prefill_chat
from lcc.pipeline.memory_method import compiled_memories
from lcc.pipeline.settings import make_settings
from lcc.text.context import build_context
from lcc.text.plain_text import has_words_for
from lcc.text.queries import INSTRUCTIONS, LESSONS, SELF, load_queries
from lcc.utils.hashing import json_digest


@pytest.fixture(scope="module")
def instructions():
    return load_queries(str(resources.files("lcc.text") / INSTRUCTIONS))


@pytest.fixture(scope="module")
def large(instructions):
    """A tokenizer with words for the instructions, as that of any instruct model has."""
    trained = Tokenizer(models.BPE(unk_token=None))
    trained.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trained.train_from_iterator(instructions, trainers.BpeTrainer(vocab_size=4000, initial_alphabet=alphabet))
    return PreTrainedTokenizerFast(tokenizer_object=trained, eos_token="<end>")


def test_the_instructions_that_ship(instructions):
    assert len(instructions) >= 600
    assert len({query.casefold() for query in instructions}) == len(instructions)
    assert all(1 <= len(query.split()) <= 60 for query in instructions)


def test_a_model_is_asked_what_it_can_read(tokenizer, large, instructions):
    lessons = load_queries(str(resources.files("lcc.text") / LESSONS))
    assert load_queries() == load_queries(None, tokenizer) == lessons
    assert load_queries(None, large) == instructions
    assert load_queries(["Say: dog."], large) == ["Say: dog."]
    assert has_words_for(large, "How do you ask for a pay rise?")
    assert not has_words_for(tokenizer, "\n".join(instructions))


def test_a_model_writes_its_own(llama, tokenizer, text):
    context = build_context(llama, tokenizer, text, 8)
    teacher = Teacher(llama, context, prefill_chat(llama, context.chat, text), 8, TeacherStates(math.inf))
    teacher.ends = lambda token: token % 3 == 0
    shown = []
    queries = own_queries(teacher, 12, 0, lambda *counts: shown.append(counts))
    assert len(set(queries)) == len(queries) == 12
    assert queries == own_queries(teacher, 12, 0, lambda *_: None)
    assert queries != own_queries(teacher, 12, 1, lambda *_: None)
    assert shown[-1] == ("writing queries", 12, 12)


def test_compile_takes_the_models_own(llama, tokenizer, text, fast):
    memory = lcc.compile(llama, tokenizer, text, queries=SELF, **fast)
    assert memory.buffer_tokens


def test_every_door_knows_the_models_own(llama, tokenizer, text, fast, tmp_path):
    settings = {name: value for name, value in fast.items() if name != "progress"}
    assert lcc.plan(llama, tokenizer, text, queries=SELF, **settings).queries
    method = compiled_memories(llama, tokenizer, tmp_path, make_settings(**settings), queries=SELF)
    assert method.identity["queries"] == json_digest(SELF)
