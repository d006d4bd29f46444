"""A packed row: who is adapted, what is given and refused, and what checkpointing and torch.compile leave alone."""

from dataclasses import replace
from functools import partial

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch._dynamo.backends.common import aot_autograd
from transformers import AutoConfig, AutoModelForCausalLM

import lcc_kernels as lk
from lcc.modeling.module_patching import mlp_on
from lcc.modeling.packed_decoder import PackedDecoder, PackedRow, packed_attention
from lcc.modeling.prefill import prefill
from tests.support.tiny_models import TINY, tiny_model

PREFIX, TEXT, BUFFER, SEGMENTS = 3, 11, 4, (6, 1, 5)
LAYOUT = lk.BottleneckLayout(PREFIX, TEXT, BUFFER, SEGMENTS)
ROWS = TEXT + BUFFER + sum(SEGMENTS)


def build(family="llama", dtype=torch.float64):
    """A tiny model with a LoRA, both halves random and switched off, and its packed decoder."""
    model = tiny_model(family, dtype)
    model.requires_grad_(False)
    targets = ["qkv_proj", "o_proj"] if family == "phi3" else ["q_proj", "k_proj", "v_proj", "o_proj"]
    wrapped = get_peft_model(model, LoraConfig(r=2, lora_alpha=4, target_modules=targets), autocast_adapter_dtype=False)
    wrapped.base_model.disable_adapter_layers()
    model.eval()
    lora = [parameter for name, parameter in model.named_parameters() if "lora_" in name]
    for parameter in lora:
        torch.nn.init.normal_(parameter.requires_grad_(True), std=0.2)
    return model, lora, PackedDecoder(model)


def row_of(model):
    """The packed row after a given prefix and its copy, its embeddings and its positions."""
    with torch.no_grad():
        prefix = prefill(model, range(3, 3 + PREFIX))
    copied = prefix.moved(model, TEXT)
    row = PackedRow(LAYOUT, ((0, prefix), (TEXT + BUFFER, copied)), TEXT + BUFFER)
    generator = torch.Generator().manual_seed(1)
    embeddings = torch.randn(1, ROWS, TINY["hidden_size"], generator=generator, dtype=torch.float64)
    behind = PREFIX + TEXT + BUFFER
    positions = torch.cat([torch.arange(PREFIX, behind), *(behind + torch.arange(length) for length in SEGMENTS)])
    return row, embeddings.to(model.dtype), positions


def gradients(packed, lora, rows, embeddings, positions, **options):
    embeddings = embeddings.clone().requires_grad_()
    hidden = packed(embeddings, positions, rows, **options)[:, -sum(SEGMENTS) :]
    return [hidden, *torch.autograd.grad(hidden.square().sum(), [embeddings, *lora], materialize_grads=True)]


def test_the_adapter_touches_adapted_rows_alone():
    model, lora, packed = build("qwen3")
    row, embeddings, positions = row_of(model)
    with torch.no_grad():
        adapted = packed(embeddings, positions, [row] * 3)
        for parameter in lora[1::2]:
            parameter.zero_()
        plain = packed(embeddings, positions, [row] * 3)
        nobody = packed(embeddings, positions, [replace(row, adapted=0)] * 3)
    changed = (adapted - plain).abs().amax((0, 2)) > 0
    assert changed.all(), "segments read an adapted B"
    assert torch.equal(plain, nobody)
    with torch.no_grad():
        for parameter in lora:
            torch.nn.init.normal_(parameter)
        first = packed(embeddings, positions, [replace(row, adapted=5)] * 3)
    assert not torch.equal(first[:, :5], plain[:, :5])
    assert torch.equal(packed(embeddings, positions, [replace(row, adapted=0)] * 3), plain)


def test_the_last_layer_needs_only_the_buffer_of_what_is_encoded():
    model, lora, packed = build()
    row, embeddings, positions = row_of(model)
    ((_, prefix), (_, copied)) = row.given
    trimmed = PackedRow(
        lk.BottleneckLayout(PREFIX, 0, BUFFER, SEGMENTS), ((0, prefix), (BUFFER, copied)), BUFFER, skipped=TEXT
    )
    whole = gradients(packed, lora, [row] * 3, embeddings, positions)
    short = gradients(packed, lora, [row, row, trimmed], embeddings, positions)
    for mine, theirs in zip(short, whole, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-10, atol=1e-12)


def test_checkpointing_changes_nothing_but_memory():
    model, lora, packed = build()
    row, embeddings, positions = row_of(model)
    plain = gradients(packed, lora, [row] * 3, embeddings, positions)
    again = gradients(packed, lora, [row] * 3, embeddings, positions, checkpointing=True)
    assert all(torch.equal(mine, theirs) for mine, theirs in zip(again, plain, strict=True))
    assert model.config._attn_implementation != "lcc_bottleneck"


def test_leaves_the_model_as_it_was():
    model, _, packed = build()
    ids = torch.arange(3, 9)[None]
    before, kind = model(ids).logits, model.config._attn_implementation
    row, embeddings, positions = row_of(model)
    packed(embeddings, positions, [row] * 3)
    with pytest.raises(ValueError, match="layer 0 gets 26 rows, and its packed row runs 27"):
        packed(embeddings[:, 1:], positions[1:], [row] * 3)
    assert torch.equal(model(ids).logits, before)
    assert model.config._attn_implementation == kind
    assert not any("forward" in vars(layer) for layer in model.model.layers)


@pytest.mark.parametrize(
    ("family", "changes", "message"),
    [
        ("mistral", {"sliding_window": 8}, "MistralAttention uses a sliding window"),
        ("gemma2", {"head_dim": 8, "layer_types": ["full_attention"] * 3}, "Gemma2Attention uses soft-capped scores"),
        (
            "gpt_oss",
            {"head_dim": 8, "layer_types": ["full_attention"] * 3, "num_local_experts": 2, "num_experts_per_tok": 1},
            "GptOssAttention uses attention sinks",
        ),
    ],
)
def test_refuses_other_attentions_by_name(family, changes, message):
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(family, **TINY, **changes)).eval()
    row = PackedRow(lk.BottleneckLayout(0, TEXT, BUFFER, SEGMENTS))
    with pytest.raises(ValueError, match=message):
        PackedDecoder(model)(torch.zeros(1, ROWS, TINY["hidden_size"]), torch.arange(ROWS), [row] * 3)


def test_refuses_a_mask_dropout_and_missing_spans():
    q = torch.zeros(1, 1, LAYOUT.total, 8)
    with pytest.raises(ValueError, match="takes its mask from the layout"):
        packed_attention(torch.nn.Identity(), q, q, q, LAYOUT.dense_mask(), spans=LAYOUT.spans)
    with pytest.raises(ValueError, match="has no dropout"):
        packed_attention(torch.nn.Identity(), q, q, q, None, dropout=0.1, spans=LAYOUT.spans)
    with pytest.raises(ValueError, match="needs the keyword spans"):
        packed_attention(torch.nn.Identity(), q, q, q, None)


def test_a_layer_is_one_graph_for_all_lengths_and_layers(monkeypatch):
    model, lora, packed = build()
    row, embeddings, positions = row_of(model)
    eager = gradients(packed, lora, [row] * 3, embeddings, positions)
    graphs = []

    def count(graph, inputs):
        graphs.append(graph)
        return graph

    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend=aot_autograd(fw_compiler=count)))
    torch._dynamo.reset()
    compiled = gradients(packed, lora, [row] * 3, embeddings, positions, compiled=True)
    for mine, theirs in zip(compiled, eager, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-12, atol=1e-12)
    traced = len(graphs)
    longer = replace(row, layout=lk.BottleneckLayout(PREFIX, TEXT, BUFFER, (*SEGMENTS, 3)))
    embeddings, positions = torch.cat((embeddings, embeddings[:, :3]), 1), torch.cat((positions, positions[-3:] + 9))
    gradients(packed, lora, [longer] * 3, embeddings, positions, compiled=True)
    assert len(graphs) == traced


def test_the_mlp_runs_on_chosen_rows_alone_and_is_itself_afterwards(llama):
    layer = llama.model.layers[-1]
    hidden, rows = torch.randn(2, 5, llama.config.hidden_size), torch.tensor([1, 7, 8])
    whole, seen = layer.mlp(hidden), []
    handle = layer.mlp.down_proj.register_forward_hook(lambda _, args, out: seen.append(out.shape[:-1].numel()))
    with mlp_on(layer, rows):
        chosen = layer.mlp(hidden)
    handle.remove()
    assert seen == [3]
    torch.testing.assert_close(chosen.flatten(0, 1)[rows], whole.flatten(0, 1)[rows])
    assert chosen.flatten(0, 1).any(1).nonzero()[:, 0].tolist() == rows.tolist()
    assert torch.equal(layer.mlp(hidden), whole)
    with mlp_on(torch.nn.Identity(), rows):
        pass
