"""Two passes, and one packed pass, against the paper's loop: a full pass a sample, LoRA on C and B alone."""

from __future__ import annotations

import copy

import pytest
import torch
from torch.nn.functional import kl_div, log_softmax

import lcc_kernels as lk
from lcc.context import build_context
from lcc.encode import Compiler, attention_projections, lora_model, read_text
from lcc.objective import divergence, row_weights, step_loss, stream_weights
from lcc.packed import packed_embeddings, packed_forward
from lcc.settings import make_settings
from lcc.surrogate import build_surrogate
from tests.conftest import FAMILIES, tiny_model


def silent(*_: object) -> None:
    pass


def naive_logits(model, compiler, lora, scaling, sample, keep_prefix):
    """Student logits of one sample from a single pass over [P | C | B | P' | query response]."""
    context = compiler.context
    prefix, text, buffer = len(context.prefix_ids), len(context.context_ids), context.buffer
    copied = prefix if keep_prefix else 0
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
    weights = stream_weights(settings)
    present = {sample.stream for sample in samples}
    total = 0.0
    for stream in sorted(present):
        mine = [sample for sample in samples if sample.stream == stream]
        supervised = sum(len(sample.response_ids) for sample in mine)
        for sample in mine:
            student = log_softmax(naive_logits(model, compiler, lora, scaling, sample, settings.keep_prefix), -1)
            teacher = log_softmax(model.get_output_embeddings()(sample.teacher_hidden), -1)
            divergence = kl_div(student, teacher, log_target=True, reduction="sum")
            total = total + divergence / supervised * weights[stream]
    return total / sum(weights[stream] for stream in present)


def packed_loss(model, compiler, samples, settings):
    """The same loss from one packed row [P | C | B | P' | samples] under the bottleneck attention op."""
    context = compiler.context
    segments = [len(sample.input_ids) for sample in samples]
    sizes = len(context.prefix_ids), len(context.context_ids), context.buffer
    layout = lk.BottleneckLayout(*sizes, segments, settings.keep_prefix)
    copied = context.prefix_ids if settings.keep_prefix else ()
    own = [token for sample in samples for token in sample.input_ids]
    ids = torch.tensor([*context.prefix_ids, *context.context_ids, *[0] * context.buffer, *copied, *own])
    hidden = packed_forward(model, packed_embeddings(model, ids, layout, [compiler.buffer]), layout)[0]
    starts = [
        rows.start + len(s.query_ids) - 1 for rows, s in zip(layout.documents[0].segment_rows, samples, strict=True)
    ]
    supervised = torch.cat([hidden[start:][: len(s.response_ids)] for start, s in zip(starts, samples, strict=True)])
    return divergence(model, supervised, samples, row_weights(samples, settings), settings.loss)


@pytest.mark.parametrize("keep_prefix", [True, False])
@pytest.mark.parametrize("family", FAMILIES)
def test_two_passes_and_one_packed_pass_give_the_per_sample_gradient(family, keep_prefix, tokenizer, text):
    model = tiny_model(family, torch.float64)
    plain = copy.deepcopy(model)
    settings = make_settings(
        keep_prefix=keep_prefix, rank=2, general_queries=4, self_study_questions=3, max_response_tokens=5,
        self_study_weight=2.0, held_out=0.0,
    )  # fmt: skip
    context = build_context(model, tokenizer, text, 8, 5)
    with lora_model(model, settings) as layers:
        for layer in layers:
            for matrix in (layer.lora_A["default"].weight, layer.lora_B["default"].weight):
                matrix.data = torch.randn(matrix.shape, dtype=torch.float64) * 0.1
        compiler = Compiler(model, context, layers)
        with torch.no_grad():
            compiler.buffer.add_(torch.randn_like(compiler.buffer) * 0.1)
            text_kv = read_text(model, context.context_ids, compiler.prefix)
            surrogate = build_surrogate(model, context, text_kv, settings, ["Say: dog.", "Add 1 and 2."], silent)
        samples = [surrogate.reconstruction, *surrogate.train]
        assert {sample.stream for sample in samples} == {"reconstruction", "general", "self_study"}
        names = [name for name, module in plain.named_modules() if name.split(".")[-1] in attention_projections(plain)]
        matrices = [(layer.lora_A["default"].weight, layer.lora_B["default"].weight) for layer in layers]
        lora = dict(zip(names, matrices, strict=True))
        parameters = [compiler.buffer, *compiler.lora]
        loss = step_loss(compiler, samples, settings)
        expected = naive_loss(plain, compiler, lora, settings.alpha / settings.rank, samples, settings)
        torch.testing.assert_close(loss, expected, rtol=1e-9, atol=0)
        packed = packed_loss(model, compiler, samples, settings)
        torch.testing.assert_close(packed, expected, rtol=1e-9, atol=0)
        got, single, want = (
            torch.autograd.grad(value, parameters, materialize_grads=True) for value in (loss, packed, expected)
        )
        for mine, one, naive in zip(got, single, want, strict=True):
            assert (mine - naive).norm() <= 1e-9 * naive.norm()
            assert (one - naive).norm() <= 1e-9 * naive.norm()
        # Of the last layer only K and V of B are read: its other projections have no gradient.
        assert sum(bool(gradient.any()) for gradient in got) >= len(parameters) - 4
