"""The compiler ``attention_matching``: what it keeps, where it stands, and what it leaves as it was."""

from __future__ import annotations

import random

import pytest
import torch

import lcc
from lcc.compilers.attention_matching.compiler import matched, read_text, self_asked
from lcc.compilers.attention_matching.heads import SELECTIONS
from lcc.inference.reader import Reader
from lcc.modeling.prefill import prefill
from lcc.modeling.scoring import Completion, completion_states, token_divergence
from lcc.synthetic.people import document
from lcc.text.chat_format import ChatFormat
from tests.support.tiny_models import tiny_model

PREFIX, TEXT = [1, 2], [5, 9, 12, 7, 30, 41, 8, 3, 17, 22, 11, 6]
ASKED = [Completion((4, 5), (6, 7, 8)), Completion((10, 11, 12), (13,)), Completion((14,), (15, 16))]
MODELS = ("llama", "qwen3", "mistral")


@torch.no_grad()
def matched_text(model, kept, select="highest_attention", fold=False):
    """The memory of a pass, and the last hidden states of its queries."""
    return matched(model, *read_text(model, PREFIX, TEXT), kept, ASKED, SELECTIONS[select], fold)


@pytest.mark.parametrize("name", MODELS)
def test_nothing_dropped_is_the_text_itself(name):
    model = tiny_model(name).double()
    with torch.no_grad():
        text = prefill(model, [*PREFIX, *TEXT])
        wanted = completion_states(model, text, ASKED)
        kv, states = matched_text(model, len(TEXT))
        kv = kv.unrotated(model)
    torch.testing.assert_close(states, wanted, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(kv.keys, text.tail(len(TEXT)).unrotated(model).keys, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("select", SELECTIONS)
@pytest.mark.parametrize("fold", [True, False])
@pytest.mark.parametrize("name", MODELS)
def test_a_reader_of_the_memory_sees_what_the_pass_saw(name, select, fold):
    model = tiny_model(name)
    memory, states = matched_text(model, 5, select, fold)
    with torch.no_grad():
        read = completion_states(model, memory.after(prefill(model, PREFIX)), ASKED)
    torch.testing.assert_close(read, states, rtol=1e-3, atol=1e-3)


def compiled(model, tokenizer, text, **options):
    return lcc.compile(
        model, tokenizer, text, compiler="attention_matching", **({"ratio": 4, "progress": False} | options)
    )


def test_nothing_is_asked_and_nothing_is_left_behind(llama, tokenizer, text, data_made):
    before = {name: tensor.clone() for name, tensor in llama.state_dict().items()}
    attention = llama.config._attn_implementation
    memory = compiled(llama, tokenizer, text, certify=False)
    assert data_made == []
    (point,) = memory.curve
    assert point["seconds"] > 0
    assert memory.compiler == {"name": "attention_matching"}
    assert memory.settings["matched_keys"] == "highest_attention"
    assert memory.settings["matched_mass"] is True
    assert llama.config._attn_implementation == attention
    assert not any(hasattr(module, "matching") for module in llama.modules())
    assert all(torch.equal(tensor, before[name]) for name, tensor in llama.state_dict().items())
    again = compiled(llama, tokenizer, text, certify=False)
    assert torch.equal(memory.kv.keys, again.kv.keys)
    assert torch.equal(memory.kv.values, again.kv.values)


def test_it_is_nearer_to_the_text_than_the_texts_first_tokens(embedded):
    model, tokenizer = embedded
    chat, told = ChatFormat.of(tokenizer), document(random.Random(5), people=8, attributes=3)
    questions = [question.text for question in told.questions()][::6]
    memory = compiled(model, tokenizer, told.text, ratio=8, certify=False)
    first = prefill(model, [*chat.prefix_ids, *chat.ids(told.text)[: memory.buffer_tokens]])
    said = Reader.of_text(model, chat, told.text).say(questions, 12)

    def distance(reader):
        return token_divergence(model, said.again(reader).states, said.states).mean().item()

    assert distance(Reader.of_memory(model, chat, memory)) < 0.6 * distance(Reader(model, chat, first))


def test_it_is_matched_on_what_the_model_asks_itself(llama, tokenizer, text, fast, data_made):
    def on(what, **overrides):
        return compiled(llama, tokenizer, text, matched_on=what, certify=False, **fast | overrides)

    on_text, on_questions = on("text"), on("self_study")
    (data,) = data_made
    assert set(on_questions.questions) == data.self_questions
    assert on_text.questions == ()
    assert not torch.equal(on_text.kv.values, on_questions.kv.values)
    held_out = {sample.query for sample in data.held_out}
    assert all(one.query not in held_out for one in self_asked(data, 10_000))
    assert len(self_asked(data, 1)) == 1
    with pytest.raises(lcc.InputError, match="the model asked nothing about the text: take matched_on='text'"):
        on("self_study", self_study_questions=0)


def test_reference_queries_are_within_their_tokens(llama, tokenizer, text):
    whole, few = (compiled(llama, tokenizer, text, certify=False, matched_tokens=most) for most in (4096, 64))
    assert not torch.equal(whole.kv.values, few.kv.values)
    with pytest.raises(lcc.InputError, match="matched_tokens"):
        compiled(llama, tokenizer, text, matched_tokens=0)
    with pytest.raises(lcc.InputError, match="matched_keys"):
        compiled(llama, tokenizer, text, matched_keys="best")


def test_a_memory_of_any_float_dtype(llama, tokenizer, text):
    memory = compiled(llama.to(torch.bfloat16), tokenizer, text, certify=False)
    assert memory.kv.keys.dtype == torch.bfloat16
    assert memory.kv.keys.isfinite().all()
