"""A memory between the prefix and the text: what teacher and student see, in float64."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch

import lcc
from lcc.compilers.direct_kv import DirectKV
from lcc.compilers.lora import LoraMemory
from lcc.data.teacher import Teacher
from lcc.data.teacher_states import TeacherStates
from lcc.memory.attachment import attach
from lcc.modeling.kv import KV
from lcc.modeling.lora import lora_model
from lcc.modeling.prefill import prefill, read_prefix
from lcc.modeling.scoring import completion_states
from lcc.pipeline.settings import make_settings
from lcc.text.context import Past, build_context
from lcc.training.loss import step_loss
from tests.support.plain_memories import plain_memory
from tests.support.tiny_models import FAMILIES, asked_questions, make_data, tiny_model

MORE = "Timo lives in Bonn. His little dog is called Pim, and he works every day as a baker in the old town."
SETTINGS = {"rank": 2, "general_queries": 2, "self_study_questions": 0, "max_response_tokens": 4, "held_out": 0.0}


STAYS, TRAINED, GIVES_WAY = "stays", "trained", "gives way"


def past_of(memory: lcc.Memory, becomes: str = STAYS) -> Past:
    questions = ("Where does Mara live?", "Who is Hugo?")
    return Past(memory.kv, memory.digest, questions, memory.source_tokens, becomes != GIVES_WAY, becomes != STAYS)


def read(model, ids):
    with torch.no_grad():
        return prefill(model, ids)


@pytest.fixture(params=FAMILIES)
def model(request):
    return tiny_model(request.param, torch.float64)


def test_the_teacher_reads_a_memory_as_the_text_that_it_holds(model, tokenizer, text, monkeypatch):
    """A memory of all of a text's tokens is that text."""
    memory, _ = plain_memory(model, tokenizer, text, monkeypatch)
    context = build_context(model, tokenizer, MORE, 8, past=past_of(memory))
    with torch.no_grad():
        behind = prefill(model, context.context_ids, context.read_prefix(model))
    whole = read(model, [*context.prefix_ids, *context.chat.ids(text), *context.context_ids])
    torch.testing.assert_close(behind.keys, whole.keys, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(behind.values, whole.values, rtol=1e-9, atol=1e-9)
    assert (behind.start, len(behind)) == (0, len(whole))


@pytest.mark.parametrize("becomes", [STAYS, TRAINED, GIVES_WAY])
def test_both_engines_give_the_same_gradient(model, tokenizer, text, monkeypatch, becomes):
    memory, _ = plain_memory(model, tokenizer, text, monkeypatch)
    past = replace(past_of(memory, becomes), kv=memory.kv.head(7))
    settings = make_settings(**SETTINGS)
    context = build_context(model, tokenizer, MORE, 8, past=past)
    tokens = len(context.context_ids)
    share = tokens / (memory.source_tokens + tokens)
    assert context.buffer == (math.ceil(7 * share) if becomes == GIVES_WAY else math.ceil(tokens / 8))
    data = make_data(model, context, settings, ["Say: dog.", "Add 1 and 2."])
    samples = [*data.reconstruction, *data.train]
    assert {sample.stream for sample in samples} == {"reconstruction", "general", "rehearsal"}
    with lora_model(model, 2, 4.0) as layers:
        for layer in layers:
            for matrix in (layer.lora_A["default"].weight, layer.lora_B["default"].weight):
                matrix.data = torch.randn(matrix.shape, dtype=torch.float64) * 0.1
        trained = LoraMemory(model, context, layers, settings.compiler)
        with torch.no_grad():
            trained.buffer.add_(torch.randn_like(trained.buffer) * 0.1)
        found = []
        for ways in ({"engine": "reference"}, {"engine": "packed"}, {"encode_chunk": 9}):
            loss = step_loss(trained, samples, settings.training, replace(settings.execution, **ways))
            parameters = [parameter for group in trained.all_groups(settings.training) for parameter in group["params"]]
            assert len(parameters) == 1 + len(trained.lora) + 2 * (becomes != STAYS)
            found.append((loss, torch.autograd.grad(loss, parameters, materialize_grads=True)))
    (expected, wanted), *others = found
    assert sum(bool(gradient.any()) for gradient in wanted) > len(wanted) / 2
    for loss, gradients in others:
        torch.testing.assert_close(loss, expected, rtol=1e-9, atol=0)
        for mine, reference in zip(gradients, wanted, strict=True):
            assert (mine - reference).norm() <= 1e-9 * reference.norm()


@pytest.mark.parametrize("becomes", [STAYS, TRAINED, GIVES_WAY])
def test_samples_see_what_is_attached(model, tokenizer, text, monkeypatch, becomes):
    """What the student sees while it trains is what a reader of the finished memory sees."""
    memory, _ = plain_memory(model, tokenizer, text, monkeypatch)
    context = build_context(model, tokenizer, MORE, 8, past=past_of(memory, becomes))
    trained = DirectKV(model, context)
    with torch.no_grad():
        made = KV(**trained.tensors())
        visible = trained.visible(trained.encode(), keep_prefix=True)
    finished = made.after(memory.kv) if becomes == STAYS else made
    payload = type(memory.payload)(KV(finished.keys.detach(), finished.values.detach()))
    attached = KV.of(attach(model, replace(memory, payload=payload)))
    torch.testing.assert_close(visible.keys, attached.keys, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(visible.values, attached.values, rtol=1e-9, atol=1e-9)


def test_how_much_an_answer_hangs_on_the_new_text_alone(tokenizer, text, monkeypatch):
    """Behind a memory of the very text that is new, no answer hangs on the text as it does behind nothing."""
    model = tiny_model("llama", torch.float64)
    memory, _ = plain_memory(model, tokenizer, text, monkeypatch)
    context = build_context(model, tokenizer, MORE, 8, past=past_of(memory))
    with torch.no_grad():
        text_kv = prefill(model, context.context_ids, context.read_prefix(model))
        teacher = Teacher(model, context, text_kv, 4, TeacherStates(float("inf")))
        samples = teacher.answer("general", {"Where does Timo live?": 1.0}, lambda _: None)
        (found,) = teacher.text_kl(samples)
        ids = context.chat.query_ids("Where does Timo live?")
        before = read_prefix(model, context.prefix_ids, memory.kv)
        expected = 0.0
        answer = samples[0].response_ids
        states = [prefill_logits(model, side, [*ids, *answer[:-1]], len(answer)) for side in (text_kv, before)]
        full, without = (logits.log_softmax(-1) for logits in states)
        expected = (full.exp() * (full - without)).sum(-1).mean().item()
    assert found == pytest.approx(expected, rel=1e-6)


def prefill_logits(model, past, ids, last):
    """Logits of the last ``last`` tokens of ``ids`` behind ``past``, by transformers alone."""
    from lcc.modeling.shared_cache import SharedCache

    positions = torch.arange(len(past), len(past) + len(ids))[None]
    cache = SharedCache(past)
    return model(torch.tensor([ids]), position_ids=positions, past_key_values=cache).logits[0, -last:]


def test_what_is_rehearsed_is_answered_by_the_memory_alone(tokenizer, text, monkeypatch):
    model = tiny_model("llama", torch.float64)
    memory, _ = plain_memory(model, tokenizer, text, monkeypatch)
    context = build_context(model, tokenizer, MORE, 8, past=past_of(memory))
    data = make_data(model, context, make_settings(**SETTINGS), ["Say: dog.", "Add 1 and 2."])
    rehearsed = [sample for sample in data.train if sample.stream == "rehearsal"]
    assert {sample.query for sample in rehearsed} == set(context.past.questions)
    before = read_prefix(model, context.prefix_ids, memory.kv)
    for sample in rehearsed:
        with torch.no_grad():
            states = completion_states(model, before, [sample])
        torch.testing.assert_close(sample.teacher_hidden, states, rtol=1e-9, atol=1e-9)


def test_pieces_are_asked_about_without_the_memory(tokenizer, text, monkeypatch):
    """A question about a piece of the new text comes of that piece; one that was asked before is not asked again."""
    model = tiny_model("llama")
    memory, _ = plain_memory(model, tokenizer, text, monkeypatch)
    settings = make_settings(
        self_study_questions=4, self_study_temperature=5.0, self_study_piece=10, self_study_min_kl=0.0,
        self_study_hard=0.0, self_study_follow_ups=0.0, max_response_tokens=8,
    ).data  # fmt: skip
    alone = build_context(model, tokenizer, MORE, 8)
    asked = [sample.query for sample in asked_questions(model, alone, settings)]
    behind = build_context(model, tokenizer, MORE, 8, past=replace(past_of(memory), questions=()))
    assert [sample.query for sample in asked_questions(model, behind, settings)] == asked
    again = build_context(model, tokenizer, MORE, 8, past=replace(past_of(memory), questions=tuple(asked)))
    assert not {sample.query for sample in asked_questions(model, again, settings)} & set(asked)
