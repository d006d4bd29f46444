"""A step of a text in sections, in float64: against each section encoded by itself, and what is drawn for it."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import pytest
import torch

from lcc.compilers.direct_kv import DirectKV
from lcc.compilers.lora import LoraMemory
from lcc.data.samples import DistillationData, Sample
from lcc.data.sections import split_context
from lcc.data.settings import DataSettings
from lcc.modeling.kv import KV
from lcc.modeling.lora import lora_model
from lcc.pipeline.settings import make_settings
from lcc.text.context import build_context
from lcc.training.loss import step_loss
from lcc.training.trainer import Trainer
from tests.support.tiny_models import tiny_model

WAYS = [{"engine": "reference"}, {}, {"gradient_checkpointing": True}, {"encode_chunk": 7}]


@pytest.fixture
def model():
    return tiny_model("llama", torch.float64)


@pytest.fixture
def context(model, tokenizer, text):
    split = split_context(
        model, build_context(model, tokenizer, text, 8), 8, DataSettings(section_tokens=40, section_overlap=10)
    )
    assert len(split.sections) > 1
    return split


def sample(context, model, query="Where does Mara live?", answer="Mara .", stream="self_study"):
    ids = tuple(context.chat.ids(answer))
    hidden = torch.randn(len(ids), model.config.hidden_size, dtype=torch.float64)
    return Sample(tuple(context.chat.query_ids(query)), ids, stream, query, hidden)


def test_sections_are_encoded_one_by_one_and_seen_in_a_row(model, context):
    settings = make_settings(rank=2)
    samples = [sample(context, model), sample(context, model, "Say: dog.", "dog.", "general")]
    with lora_model(model, 2, 2.0) as layers:
        for layer in layers:
            for matrix in (layer.lora_A["default"].weight, layer.lora_B["default"].weight):
                matrix.data = torch.randn(matrix.shape, dtype=torch.float64) * 0.1
        memory = LoraMemory(model, context, layers, settings.compiler)
        memory.initialize()
        parts = [LoraMemory(model, part, layers, settings.compiler) for part in context.sections]
        for part, own in zip(parts, memory.buffer.split([one.buffer for one in context.sections]), strict=True):
            part.buffer = own
        rows = [part.encode() for part in parts]
        whole = KV.in_a_row(rows)
        torch.testing.assert_close(memory.encode().keys, whole.keys, rtol=1e-9, atol=1e-11)
        torch.testing.assert_close(memory.encode().values, whole.values, rtol=1e-9, atol=1e-11)
        parameters = [memory.buffer, *memory.lora]
        seen = memory.encode
        memory.encode = lambda: KV.in_a_row(part.encode() for part in parts)
        expected = step_loss(memory, samples, settings.training, replace(settings.execution, engine="reference"))
        wanted = torch.autograd.grad(expected, parameters, materialize_grads=True)
        memory.encode = seen
        for ways in WAYS:
            loss = step_loss(memory, samples, settings.training, replace(settings.execution, **ways))
            torch.testing.assert_close(loss, expected, rtol=1e-9, atol=0)
            for mine, plain in zip(torch.autograd.grad(loss, parameters, materialize_grads=True), wanted, strict=True):
                assert (mine - plain).norm() <= 1e-9 * plain.norm()


def test_buffer_tokens_start_at_tokens_of_their_own_section(model, context):
    with lora_model(model, 2, 2.0) as layers:
        memory = LoraMemory(model, context, layers, make_settings().compiler)
        memory.initialize()
        embeddings = model.get_input_embeddings().weight
        for part, own in zip(
            context.sections, memory.buffer.split([one.buffer for one in context.sections]), strict=True
        ):
            middles = [
                part.context_ids[int((place + 0.5) * len(part.context_ids) / part.buffer)]
                for place in range(part.buffer)
            ]
            torch.testing.assert_close(own, embeddings[middles])
    first = DirectKV(model, context).encode()
    alone = [DirectKV(model, part).encode() for part in context.sections]
    assert torch.equal(first.keys, torch.cat([one.keys for one in alone], 2))


def test_a_step_has_samples_of_every_section(model, context):
    settings = make_settings(batch=4, general_weight=0.5, self_study_weight=1.0, across_weight=0.5)
    parts = len(context.sections)
    pieces = tuple(sample(context, model, f"Say: {n}.", "dog.", "reconstruction") for n in range(3))
    streams = ["general", "self_study", "across"]
    train = tuple(sample(context, model, f"Add 1 and {n}.", "dog.", streams[n % 3]) for n in range(60))
    data = DistillationData(pieces, train, ())
    trainer = Trainer(DirectKV(model, context), data, settings.training, settings.execution, 0)
    repeated: Counter[str] = Counter()
    for trainer.step in range(6):
        samples = trainer._draw()
        drawn = Counter(one.stream for one in samples)
        repeated.update(one.query for one in samples if one.stream == "reconstruction")
        assert drawn == {"reconstruction": parts, "general": parts, "self_study": 2 * parts, "across": parts}
    assert max(repeated.values()) - min(repeated.values()) <= 1
