"""Both engines against the paper's loop: a full pass a sample under a dense mask, LoRA on C and B alone."""

from __future__ import annotations

import copy
from dataclasses import replace

import pytest
import torch
from torch.nn.functional import kl_div, log_softmax

from lcc.compilers.lora import LoraCompiler, LoraMemory
from lcc.modeling.lora import attention_projections, lora_model
from lcc.pipeline.settings import make_settings
from lcc.text.context import build_context
from lcc.training.loss import step_loss, stream_weights
from tests.support.tiny_models import FAMILIES, make_data, tiny_model

WAYS = [
    {"engine": "reference"},
    {"engine": "packed"},
    {"encode_chunk": 24, "gradient_checkpointing": True},
]


def naive_logits(model, compiler, lora, scaling, sample, settings):
    """Student logits of one sample from a single pass over [P | C | B | P' | query response]."""
    context = compiler.context
    prefix, text, buffer = len(context.prefix_ids), len(context.context_ids), context.buffer
    copied = prefix if settings.training.keep_prefix else 0
    own = torch.tensor([sample.input_ids])
    start = prefix + text + buffer
    total = start + copied + own.shape[1]
    embed = model.get_input_embeddings()
    front = embed(torch.tensor([context.prefix_ids]))
    pieces = [front, embed(torch.tensor([context.context_ids])), compiler.buffer[None], front[:, :copied], embed(own)]
    mask = torch.ones(total, total, dtype=torch.bool).tril()
    mask[start:, : prefix + text] = False
    mask[start : start + copied, :start] = False
    # P' stands where the prefix would be if it ended right before B (identity 7).
    own_positions = torch.arange(start, start + own.shape[1])
    positions = torch.cat((torch.arange(start), torch.arange(text, text + copied), own_positions))
    inside = torch.zeros(1, total, 1, dtype=torch.float64)
    inside[:, prefix:start] = 1
    inside[:, start + copied :] = settings.compiler.coupled
    handles = [
        module.register_forward_hook(
            lambda _, inputs, output, pair=lora[name]: output + inputs[0] @ pair[0].T @ pair[1].T * scaling * inside
        )
        for name, module in model.named_modules()
        if name in lora
    ]
    try:
        return model(
            inputs_embeds=torch.cat(pieces, 1), attention_mask=mask[None, None], position_ids=positions[None]
        ).logits[0, start + copied + len(sample.query_ids) - 1 :]
    finally:
        for handle in handles:
            handle.remove()


def naive_loss(model, compiler, lora, scaling, samples, settings):
    """The streams' losses, sample by sample."""
    weights = stream_weights(settings.training)
    present = {sample.stream for sample in samples}
    total = 0.0
    for stream in sorted(present):
        mine = [sample for sample in samples if sample.stream == stream]
        supervised = sum(len(sample.response_ids) for sample in mine)
        for sample in mine:
            student = log_softmax(naive_logits(model, compiler, lora, scaling, sample, settings), -1)
            teacher = log_softmax(model.get_output_embeddings()(sample.teacher_hidden), -1)
            divergence = kl_div(student, teacher, log_target=True, reduction="sum")
            total = total + divergence / supervised * weights[stream]
    return total / sum(weights[stream] for stream in present)


def asked_one(teacher, *_):
    """In place of self-study: one question, answered."""
    return teacher.answer("self_study", {"Where does Mara live?": 1.0}, lambda done: None), None


@pytest.mark.parametrize(
    "variant", [{}, {"keep_prefix": False}, {"coupled": True}], ids=["default", "no prefix", "coupled"]
)
@pytest.mark.parametrize("family", FAMILIES)
def test_both_engines_give_the_per_sample_gradient(family, variant, tokenizer, text, monkeypatch):
    monkeypatch.setattr("lcc.data.synthesis.self_study", asked_one)
    model = tiny_model(family, torch.float64)
    plain = copy.deepcopy(model)
    settings = make_settings(
        rank=2, general_queries=2, self_study_questions=1, max_response_tokens=4, self_study_weight=2.0, held_out=0.0,
        **variant,
    )  # fmt: skip
    context = build_context(model, tokenizer, text, 8)
    data = make_data(model, context, settings, ["Say: dog.", "Add 1 and 2."])
    with lora_model(model, settings.compiler.rank, settings.compiler.alpha) as layers:
        for layer in layers:
            for matrix in (layer.lora_A["default"].weight, layer.lora_B["default"].weight):
                matrix.data = torch.randn(matrix.shape, dtype=torch.float64) * 0.1
        compiler = LoraMemory(model, context, layers, settings.compiler)
        with torch.no_grad():
            compiler.buffer.add_(torch.randn_like(compiler.buffer) * 0.1)
        samples = [*data.reconstruction, *data.train]
        assert {sample.stream for sample in samples} == {"reconstruction", "general", "self_study"}
        names = [name for name, module in plain.named_modules() if name.split(".")[-1] in attention_projections(plain)]
        matrices = [(layer.lora_A["default"].weight, layer.lora_B["default"].weight) for layer in layers]
        lora = dict(zip(names, matrices, strict=True))
        parameters = [compiler.buffer, *compiler.lora]
        expected = naive_loss(
            plain, compiler, lora, settings.compiler.alpha / settings.compiler.rank, samples, settings
        )
        wanted = torch.autograd.grad(expected, parameters, materialize_grads=True)
        # Of the last layer only K and V of B are read: unless coupled, its other projections have no gradient.
        assert sum(bool(gradient.any()) for gradient in wanted) >= len(parameters) - 4
        for ways in WAYS:
            loss = step_loss(compiler, samples, settings.training, replace(settings.execution, **ways))
            torch.testing.assert_close(loss, expected, rtol=1e-9, atol=0)
            for mine, naive in zip(torch.autograd.grad(loss, parameters, materialize_grads=True), wanted, strict=True):
                assert (mine - naive).norm() <= 1e-9 * naive.norm()


@pytest.mark.parametrize("attention", ["eager", "sdpa", "lcc_shared_prefix"])
def test_chunks_are_read_alike_however_the_model_attends(attention, tokenizer, text):
    model = tiny_model("llama", torch.float64)
    context, settings = build_context(model, tokenizer, text, 8), make_settings()
    with LoraCompiler().trainable(model, context, settings.compiler, 0) as compiler:
        expected = compiler.encode()
        model.set_attn_implementation(attention)
        read = compiler.encode_chunked(24)
        torch.autograd.grad(read.keys.sum(), compiler.buffer)
    # eager's softmax is in float32.
    torch.testing.assert_close(read.values, expected.values, rtol=1e-5, atol=1e-5)
    assert model.config._attn_implementation == attention
