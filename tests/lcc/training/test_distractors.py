"""Steps among distractors: against plain transformers in float64, and what is drawn, measured and planned for."""

from __future__ import annotations

import random
from collections import Counter
from contextlib import nullcontext
from dataclasses import replace

import pytest
import torch
from torch.nn.functional import kl_div, log_softmax
from transformers import DynamicCache
from transformers.models.llama.modeling_llama import apply_rotary_pos_emb

import lcc
from lcc.compilers.direct_kv import DirectKV
from lcc.compilers.lora import LoraCompiler
from lcc.data.samples import Sample
from lcc.modeling.kv import KV
from lcc.pipeline.settings import make_settings
from lcc.text.context import build_context
from lcc.training.distractors import ISOLATED, Distractor, Distractors, OtherTexts, most_asked, most_tokens
from lcc.training.loss import step_loss, validation
from lcc.training.settings import TrainingSettings
from lcc.training.trainer import Trainer
from tests.support.tiny_models import make_data, tiny_model

WAYS = [{"engine": "reference"}, {}, {"gradient_checkpointing": True}, {"encode_chunk": 24}]


def others(memory, *lengths):
    """K and V of so many tokens each, of nothing in particular."""
    layers, heads, _, width = memory.encode().keys.shape
    generator = torch.Generator().manual_seed(1)
    shapes = [(2, layers, heads, length, width) for length in lengths]
    drawn = [torch.randn(shape, generator=generator, dtype=memory.model.dtype) for shape in shapes]
    return [Distractor(KV(keys, values)) for keys, values in drawn]


def plain_logits(memory, row, sample, keep_prefix):
    """Of transformers' own forward, over a cache of ``row``, each memory rotated where it stands."""
    model = memory.model
    prefix = memory.context.prefix_ids if keep_prefix else ()
    cache = DynamicCache()
    if prefix:
        with torch.no_grad():
            model(torch.tensor([prefix]), past_key_values=cache)
    position = len(prefix)
    for kv in row:
        at = torch.arange(position, position + len(kv))[None]
        cos, sin = model.model.rotary_emb(kv.keys, at)
        for layer in range(len(kv.keys)):
            _, turned = apply_rotary_pos_emb(kv.keys[layer][None], kv.keys[layer][None], cos, sin)
            cache.update(turned, kv.values[layer][None], layer)
        position += len(kv)
    return model(torch.tensor([sample.input_ids]), past_key_values=cache).logits[0, len(sample.query_ids) - 1 :]


def plain_loss(memory, row, samples, keep_prefix):
    """The default weights' loss of a reconstruction and general queries, which weigh the same."""
    total = 0.0
    for stream in ("reconstruction", "general"):
        of_stream = [sample for sample in samples if sample.stream == stream]
        for sample in of_stream:
            student = log_softmax(plain_logits(memory, row, sample, keep_prefix), -1)
            teacher = log_softmax(memory.model.get_output_embeddings()(sample.teacher_hidden), -1)
            divergence = kl_div(student, teacher, log_target=True, reduction="sum")
            total = total + divergence / sum(len(one.response_ids) for one in of_stream) / 2
    return total


@pytest.fixture(scope="module")
def exact_job(tokenizer, text):
    """A float64 model, a text, and samples without self-study."""
    model = tiny_model("llama", torch.float64)
    settings = make_settings(rank=2, general_queries=2, self_study_questions=0, max_response_tokens=4, held_out=0.0)
    context = build_context(model, tokenizer, text, 8)
    data = make_data(model, context, settings, ["Say: dog.", "Add 1 and 2."])
    return model, context, settings, [*data.reconstruction, *data.train]


@pytest.mark.parametrize("keep_prefix", [True, False])
@pytest.mark.parametrize("compiler", ["direct_kv", "lcc"])
def test_loss_and_gradient_are_those_of_plain_transformers(exact_job, compiler, keep_prefix):
    model, context, settings, samples = exact_job
    training = replace(settings.training, keep_prefix=keep_prefix)
    with LoraCompiler().trainable(model, context, settings.compiler, 0) if compiler == "lcc" else nullcontext() as lora:
        memory = lora or DirectKV(model, context)
        parameters = [p for group in memory.parameter_groups(training) for p in group["params"]]
        with torch.no_grad():
            for parameter in parameters:
                parameter.add_(torch.randn_like(parameter) * 0.1)
        first, second, third = others(memory, 3, 7, 5)
        for before, behind in (((first, second), (third,)), ((), (first,)), ((second,), ())):
            row = [*(one.kv for one in before), memory.encode(), *(one.kv for one in behind)]
            expected = plain_loss(memory, row, samples, keep_prefix)
            wanted = torch.autograd.grad(expected, parameters, materialize_grads=True)
            for way in WAYS[: 4 if lora else 3]:
                execution = replace(settings.execution, **way)
                loss = step_loss(memory, samples, training, execution, None, Distractors(before, behind))
                torch.testing.assert_close(loss, expected, rtol=1e-9, atol=0)
                gradients = torch.autograd.grad(loss, parameters, materialize_grads=True)
                for own, plain in zip(gradients, wanted, strict=True):
                    assert (own - plain).norm() <= 1e-9 * plain.norm()


def test_nan_in_a_distractor_is_nan_in_the_loss(exact_job):
    model, context, settings, samples = exact_job
    memory = DirectKV(model, context)
    (other,) = others(memory, 3)
    other.kv.values[1, 0, 2, 1] = float("nan")
    assert step_loss(memory, samples, settings.training, settings.execution, None, Distractors((other,))).isnan()


def distractor(number, questions=0, tokens=1):
    kv = KV(torch.full((1, 1, tokens, 2), float(number)), torch.zeros(1, 1, tokens, 2))
    samples = [Sample((number, asked), (1, 2), "distractors", f"{number} {asked}") for asked in range(questions)]
    return Distractor(kv, tuple(samples))


def test_numbers_and_places_are_drawn_alike():
    pool = [distractor(number) for number in range(5)]
    training = TrainingSettings(max_distractors=3)
    drawn = [OtherTexts(pool, training).draw(random.Random(seed)) for seed in range(6000)]
    places = Counter((len(one.before), len(one.behind)) for one in drawn)
    # A number in 3, then a place in 2, 3 or 4.
    assert sorted(places) == sorted((n - b, b) for n in (1, 2, 3) for b in range(n + 1))
    for (before, behind), times in places.items():
        assert times / 6000 == pytest.approx(1 / 3 / (before + behind + 1), rel=0.2)
    rows = [[int(other.kv.keys[0, 0, 0, 0]) for other in (*one.before, *one.behind)] for one in drawn]
    assert all(len(set(row)) == len(row) == len(one) for row, one in zip(rows, drawn, strict=True))
    seen = Counter(number for row in rows for number in row)
    assert max(seen.values()) < 1.1 * min(seen.values())
    again = OtherTexts(pool, training).draw(random.Random(7))
    assert [*again.before, *again.behind] == [*drawn[7].before, *drawn[7].behind]


def test_those_that_stand_there_are_asked_half_a_batch():
    pool = [distractor(number, questions=4) for number in range(4)]
    training = TrainingSettings(max_distractors=2, batch=11)
    for seed in range(50):
        one = OtherTexts(pool, training).draw(random.Random(seed))
        there = [sample for other in (*one.before, *one.behind) for sample in other.samples]
        assert len(one.asked) == len({sample.query for sample in one.asked}) == min(6, len(there))
        assert set(one.asked) <= set(there)
    assert not OtherTexts(pool, replace(training, distractor_weight=0.0)).draw(random.Random(0)).asked
    assert not OtherTexts([distractor(1)], training).draw(random.Random(0)).asked


def test_what_they_are_asked_is_a_stream(exact_job):
    model, context, settings, samples = exact_job
    memory = DirectKV(model, context)
    others_asked = [replace(sample, stream="distractors") for sample in samples if sample.stream == "general"]
    training = replace(settings.training, distractor_weight=3.0)

    def loss(*drawn):
        return step_loss(memory, drawn, training, settings.execution)

    own, theirs = loss(*samples), loss(*others_asked)
    # The reconstruction and the general queries weigh 0.25 each.
    torch.testing.assert_close(loss(*samples, *others_asked), (0.5 * own + 3.0 * theirs) / 3.5, rtol=1e-9, atol=0)


def test_the_longest_step_is_known():
    training = TrainingSettings(max_distractors=2)
    assert most_tokens([3, 9, 4], training) == 13
    assert most_tokens([3], training) == 3
    pool = distractor(0, questions=3).samples
    assert most_asked(pool, replace(training, batch=3)) == 2 * 3
    isolated = replace(training, isolated_share=1.0)
    assert most_tokens([3, 9, 4], isolated) == most_asked(pool, isolated) == 0


def test_a_share_of_the_steps_is_isolated_and_states_are_chosen_by_both(exact_job):
    model, context, settings, _ = exact_job
    memory = DirectKV(model, context)
    data = make_data(model, context, settings, ["Say: dog.", "Add 1 and 2.", "Say: cat."])
    data = replace(data, train=data.train[:-1], held_out=data.train[-1:])
    pool, execution = others(memory, 3, 4), settings.execution

    def trainer(share):
        training = replace(settings.training, isolated_share=share)
        return Trainer(memory, data, training, execution, 0, company=OtherTexts(pool, training))

    drawing = trainer(0.6)
    isolated = 0
    for drawing.step in range(1000):
        isolated += drawing._draw_distractors() is ISOLATED
    assert isolated == pytest.approx(600, abs=60)
    alone, among, mixed = (trainer(share)._validation() for share in (1.0, 0.0, 0.6))
    assert alone == validation(memory, data.reconstruction, data.held_out, settings.training, execution)
    assert among[0] == mixed[0] == alone[0]
    assert among[1] != alone[1]
    assert mixed[1] == pytest.approx(0.6 * alone[1] + 0.4 * among[1])


@pytest.mark.parametrize("share", [-0.1, 1.1, "most"])
def test_a_share_out_of_range_is_refused(share):
    with pytest.raises(lcc.InputError, match="isolated_share"):
        make_settings(isolated_share=share)
