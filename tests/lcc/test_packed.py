"""One packed pass equals a dense mask and equals two passes over a cache: loss and every gradient, in float64."""

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoConfig, AutoModelForCausalLM, DynamicCache

import lcc_kernels as lk
from lcc.packed import adapter_rows, packed_attention, packed_embeddings, packed_forward
from tests.conftest import Float64Rotary

SIZES = {
    "vocab_size": 50,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
FAMILIES = {
    "llama": {},
    "qwen2": {},
    "qwen3": {"head_dim": 16},
    "mistral": {"sliding_window": None},
    "phi3": {"sliding_window": None, "partial_rotary_factor": 0.5},
}
LAYOUT = lk.BottleneckLayout(3, 11, 4, (6, 1, 5))


def build(family, **changes):
    """A tiny random model in float64 with a LoRA whose both halves are random, and its buffer."""
    torch.manual_seed(0)
    config = AutoConfig.for_model(family, **{**SIZES, **FAMILIES.get(family, {}), **changes})
    model = AutoModelForCausalLM.from_config(config).double().eval()
    getattr(model, model.base_model_prefix).rotary_emb = Float64Rotary(model.base_model.rotary_emb)
    targets = ["qkv_proj", "o_proj"] if family == "phi3" else ["q_proj", "k_proj", "v_proj", "o_proj"]
    get_peft_model(model, LoraConfig(r=2, lora_alpha=4, target_modules=targets), autocast_adapter_dtype=False)
    model.eval()
    for name, parameter in model.named_parameters():
        torch.nn.init.normal_(parameter, std=0.2, mean=1.0 if "norm" in name else 0.0)
    buffer = torch.randn(4, 32, dtype=torch.float64, requires_grad=True)
    return model, buffer


def row_of(layout):
    """Random tokens, P' a copy of P."""
    ids = torch.randint(3, 50, (layout.total,), generator=torch.Generator().manual_seed(1))
    for document in layout.documents:
        if document.keep_prefix:
            ids[document.copy_rows] = ids[document.start : document.start + document.prefix]
    return ids


def packed(model, buffer, ids, layout):
    return packed_forward(model, packed_embeddings(model, ids, layout, [buffer] * len(layout.documents)), layout)


def dense(model, buffer, ids, layout):
    """The same row under a (total, total) mask, with transformers' own attention."""
    embeddings = packed_embeddings(model, ids, layout, [buffer] * len(layout.documents))
    mask = layout.dense_mask()[None, None]
    with adapter_rows(model, layout.lora_slices()):
        decoder = model.base_model
        output = decoder(inputs_embeds=embeddings, attention_mask=mask, position_ids=layout.position_ids()[None])
    return output.last_hidden_state


def two_passes(model, buffer, ids, layout):
    """[P C B] into a cache, then each segment over the K and V of [P' B]; hidden states of the segment rows."""
    (document,) = layout.documents
    embeddings = packed_embeddings(model, ids, layout, [buffer])
    positions = layout.position_ids()
    encode = slice(0, document.buffer_rows.stop)
    with adapter_rows(model, layout.lora_slices()):
        encoded = run(model, embeddings[:, encode], positions[encode])[1]
    with adapter_rows(model, []):
        copied = run(model, embeddings[:, document.copy_rows], positions[document.copy_rows])[1]
        hidden = []
        for rows in document.segment_rows:
            visible = DynamicCache(config=model.config)
            for number, (buffers, prefix) in enumerate(zip(encoded.layers, copied.layers, strict=True)):
                parts = [(prefix.keys, prefix.values)]
                parts += [(buffers.keys[:, :, document.buffer_rows], buffers.values[:, :, document.buffer_rows])]
                visible.update(*(torch.cat(part, 2) for part in zip(*parts, strict=True)), number)
            hidden.append(run(model, embeddings[:, rows], positions[rows], visible)[0])
    return torch.cat(hidden, 1)


def run(model, embeddings, positions, cache=None):
    output = model.base_model(
        inputs_embeds=embeddings, position_ids=positions[None], past_key_values=cache, use_cache=True
    )
    return output.last_hidden_state, output.past_key_values


def loss_and_gradients(model, buffer, hidden):
    leaves = [buffer, *(p for name, p in model.named_parameters() if "lora_" in name)]
    loss = model.lm_head(hidden).log_softmax(-1)[..., 7].mean()
    return [loss, *torch.autograd.grad(loss, leaves, materialize_grads=True)]


def assert_same(got, wanted):
    for mine, theirs in zip(got, wanted, strict=True):
        assert (mine - theirs).abs().max() <= 1e-9 * theirs.abs().max()


@pytest.mark.parametrize("family", FAMILIES)
def test_one_pass_is_two_passes_and_the_dense_mask(family):
    model, buffer = build(family)
    ids = row_of(LAYOUT)
    segments = slice(LAYOUT.documents[0].copy_rows.stop, LAYOUT.total)
    one, mask = packed(model, buffer, ids, LAYOUT), dense(model, buffer, ids, LAYOUT)
    assert_same(loss_and_gradients(model, buffer, one), loss_and_gradients(model, buffer, mask))
    got = loss_and_gradients(model, buffer, packed(model, buffer, ids, LAYOUT)[:, segments])
    assert_same(got, loss_and_gradients(model, buffer, two_passes(model, buffer, ids, LAYOUT)))


def test_several_documents_and_no_visible_prefix():
    model, buffer = build("llama")
    layout = lk.BottleneckLayout.pack([LAYOUT, lk.BottleneckLayout(2, 5, 4, (3,), keep_prefix=False)])
    ids = row_of(layout)
    one, mask = packed(model, buffer, ids, layout), dense(model, buffer, ids, layout)
    assert_same(loss_and_gradients(model, buffer, one), loss_and_gradients(model, buffer, mask))


def test_the_adapter_touches_context_and_buffer_rows_alone():
    model, buffer = build("qwen3")
    ids = row_of(LAYOUT)
    with torch.no_grad():
        adapted = packed(model, buffer, ids, LAYOUT)
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.zero_()
        plain = packed(model, buffer, ids, LAYOUT)
    changed = (adapted - plain).abs().amax((0, 2)) > 0
    document = LAYOUT.documents[0]
    assert not changed[: LAYOUT.lora_tokens().start].any()
    assert changed[LAYOUT.lora_tokens()].all()
    assert not changed[document.copy_rows].any()
    assert changed[document.copy_rows.stop :].all()


def test_leaves_the_model_as_it_was():
    model, buffer = build("llama")
    ids = torch.arange(3, 9)[None]
    before, kind = model(ids).logits, model.config._attn_implementation
    packed(model, buffer, row_of(LAYOUT), LAYOUT)
    assert torch.equal(model(ids).logits, before)
    assert model.config._attn_implementation == kind


@pytest.mark.parametrize(
    ("family", "changes", "message"),
    [
        ("mistral", {"sliding_window": 8}, "MistralAttention uses a sliding window"),
        ("gemma2", {"head_dim": 8, "layer_types": ["full_attention"] * 3}, "Gemma2Attention uses soft-capped scores"),
    ],
)
def test_refuses_other_attentions_by_name(family, changes, message):
    model, buffer = build(family, **changes)
    with pytest.raises(ValueError, match=message):
        packed(model, buffer, row_of(LAYOUT), LAYOUT)


def test_refuses_attention_sinks_by_name():
    sizes = {**SIZES, "head_dim": 8, "num_local_experts": 2, "num_experts_per_tok": 1}
    config = AutoConfig.for_model("gpt_oss", **sizes, layer_types=["full_attention"] * 3)
    model = AutoModelForCausalLM.from_config(config).eval()
    with pytest.raises(ValueError, match="GptOssAttention uses attention sinks"):
        packed(model, torch.zeros(4, 32), row_of(LAYOUT), LAYOUT)


def test_refuses_a_mask_and_dropout():
    q = torch.zeros(1, 1, LAYOUT.total, 8)
    with pytest.raises(ValueError, match="takes its mask from the layout"):
        packed_attention(torch.nn.Identity(), q, q, q, LAYOUT.dense_mask(), layout=LAYOUT)
    with pytest.raises(ValueError, match="has no dropout"):
        packed_attention(torch.nn.Identity(), q, q, q, None, dropout=0.1, layout=LAYOUT)


def test_refuses_wrong_rows_and_a_missing_layout():
    model, buffer = build("llama")
    with pytest.raises(ValueError, match=r"30 rows and buffers of \[4\]|rows and buffers"):
        packed_embeddings(model, torch.zeros(3, dtype=torch.int64), LAYOUT, [buffer])
    model.config._attn_implementation = "lcc_bottleneck"
    with pytest.raises(ValueError, match="needs the keyword layout"):
        model(torch.zeros(1, 3, dtype=torch.int64))
