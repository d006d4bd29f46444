"""Generation over tokens that are held once: the same answers as from copies, without the copies."""

from __future__ import annotations

import pytest
import torch
from transformers import DynamicCache, StaticCache

import lcc
import lcc_kernels as lk
from benchmarks.common.timing import peak_bytes
from benchmarks.families import models as architectures
from lcc.modeling.architecture import supports_sharing
from lcc.modeling.attention import attending
from lcc.modeling.generation import batch_inputs, generate_after
from lcc.modeling.prefill import prefill
from lcc.modeling.shared_cache import SHARED_PREFIX, SharedCache
from lcc.modeling.shared_prefix_attention import shared_prefix_attention, visible_rows_mask
from tests.support.tiny_models import FAMILIES, TINY, tiny_model

QUERIES = [[5, 9, 40, 41, 7], [11], [300, 301, 12]]
END = 2


def text_kv(model, tokens=37):
    with torch.no_grad():
        return prefill(model, torch.arange(3, 3 + tokens).tolist())


def spied(monkeypatch):
    """The shapes (shared keys, own keys) of every call of the op."""
    calls, op = [], lk.shared_prefix_attention

    def spy(q, shared_k, shared_v, own_k, *rest, **options):
        calls.append((tuple(shared_k.shape), tuple(own_k.shape)))
        return op(q, shared_k, shared_v, own_k, *rest, **options)

    monkeypatch.setattr(lk, "shared_prefix_attention", spy)
    return calls


def step(model, cache, ids, mask):
    with torch.no_grad():
        positions = (mask.cumsum(1) - 1)[:, -ids.shape[1] :].clamp(min=0)
        return model(input_ids=ids, attention_mask=mask, position_ids=positions, past_key_values=cache).logits


def logits(model, queries=QUERIES, steps=3):
    """Logits of the queries' own tokens and of a few steps after them, padding left out."""
    kv = text_kv(model)
    cache = SharedCache(kv).follow(model)
    inputs = batch_inputs(len(kv), queries, END, model.device)
    mask = inputs["attention_mask"]
    out = [step(model, cache, inputs["input_ids"][:, len(kv) :], mask)[mask[:, len(kv) :].bool()]]
    for number in range(steps):
        mask = torch.cat((mask, mask.new_ones(len(queries), 2)), 1)
        out.append(step(model, cache, torch.tensor([[20 + number, 60]] * len(queries)), mask).flatten(0, 1))
    return torch.cat(out)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("family", FAMILIES)
def test_same_logits_as_replicated_keys(family, dtype, monkeypatch):
    """Ragged queries, then several tokens a step."""
    model = tiny_model(family, dtype)
    plain = logits(model)
    calls = spied(monkeypatch)
    with attending(model, SHARED_PREFIX):
        shared = logits(model)
    after_the_text = [shapes for shapes in calls if shapes[0] == (2, 37, shapes[0][2])]
    assert len(after_the_text) == 4 * TINY["num_hidden_layers"]
    tolerance = 1e-9 if dtype == torch.float64 else 1e-4
    torch.testing.assert_close(shared, plain, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize(
    "options",
    [
        {"do_sample": False},
        {"do_sample": False, "num_beams": 3, "num_return_sequences": 2},
        {"do_sample": True, "temperature": 0.8, "top_k": 0},
        {"do_sample": True, "num_return_sequences": 3, "top_k": 0},
    ],
    ids=["greedy", "beams", "sampled", "several"],
)
@pytest.mark.parametrize("family", ["llama3", "phi3"])
def test_plain_generate_with_the_implementation_set(family, options):
    """What users do: ``set_attn_implementation``, then the model's own ``generate``."""
    model = tiny_model(family, torch.float64)
    kv = text_kv(model)
    inputs = batch_inputs(len(kv), QUERIES, END, model.device)

    def generate():
        torch.manual_seed(3)
        cache = SharedCache(kv).follow(model)
        return model.generate(**inputs, past_key_values=cache, max_new_tokens=6, min_new_tokens=6, **options)

    plain = generate()
    model.set_attn_implementation(SHARED_PREFIX)
    assert torch.equal(generate(), plain)
    assert plain.shape == (3 * options.get("num_return_sequences", 1), inputs["input_ids"].shape[1] + 6)


def test_ask_and_compile_share_by_default(tokenizer, text, fast, monkeypatch):
    model = tiny_model("llama")
    calls = spied(monkeypatch)
    memory = lcc.compile(model, tokenizer, text, **fast)
    read = len(memory.prefix_ids) + memory.source_tokens
    assert any(shared == (2, read, 12) and own[0] > 1 for shared, own in calls)
    calls.clear()
    lcc.ask(model, tokenizer, memory, ["Where?", "What is it, then?", "Who?"], max_new_tokens=4, min_new_tokens=4)
    seen = len(memory.prefix_ids) + memory.buffer_tokens
    assert {shared for shared, _ in calls} == {(2, seen, 12)}
    assert {own[0] for _, own in calls} == {3}
    assert model.config._attn_implementation == "sdpa"


def test_32_questions_hold_one_copy_of_the_text():
    """Bytes alive while generating, counted by the profiler, and what the cache keeps."""
    model, batch, new = tiny_model("llama"), 32, 4
    kv = text_kv(model, 600)
    once = kv.keys.nbytes + kv.values.nbytes
    cache = SharedCache(kv)

    def shared():
        generate_after(model, cache, [[5, 6, 7]] * batch, END, max_new_tokens=new, min_new_tokens=new)

    def replicated():
        copies = DynamicCache(config=model.config)
        for layer, (keys, values) in enumerate(zip(kv.keys, kv.values, strict=True)):
            copies.update(keys[None].expand(batch, -1, -1, -1), values[None].expand(batch, -1, -1, -1), layer)
        inputs = batch_inputs(600, [[5, 6, 7]] * batch, END, model.device)
        model.generate(**inputs, past_key_values=copies, max_new_tokens=new, min_new_tokens=new, do_sample=False)

    assert peak_bytes(replicated, "cpu") > batch * once
    # Token ids, masks and activations of 32 sequences are in here, too.
    assert peak_bytes(shared, "cpu") < 8 * once
    own = batch * (3 + new) * once // 600
    assert once <= cache.nbytes <= once + 2 * own


def test_the_models_own_implementation_never_changes(llama):
    def fail(ids, scores):
        assert llama.config._attn_implementation == "sdpa"
        raise RuntimeError("stop here")

    with pytest.raises(RuntimeError, match="stop here"):
        generate_after(llama, SharedCache(text_kv(llama)), QUERIES, END, logits_processor=[fail], max_new_tokens=2)
    assert llama.config._attn_implementation == "sdpa"


def test_other_families_keep_their_own_attention(monkeypatch):
    model = architectures.FAMILIES["qwen2_moe"].model()
    assert not supports_sharing(model)
    calls = spied(monkeypatch)

    def generated(queries):
        return generate_after(model, SharedCache(text_kv(model)), queries, END, max_new_tokens=5)

    assert generated(QUERIES) == [generated([query])[0] for query in QUERIES]
    assert not calls


def test_autocast_attends_in_half_precision():
    model = tiny_model("llama")
    with torch.autocast("cpu", torch.bfloat16):
        plain = logits(model)
        with attending(model, SHARED_PREFIX):
            shared = logits(model)
    exact = logits(model)
    assert (shared - exact).abs().max() <= 2 * (plain - exact).abs().max()


def test_reads_texts_with_nothing_shared(llama):
    plain = text_kv(llama)
    llama.set_attn_implementation(SHARED_PREFIX)
    torch.testing.assert_close(text_kv(llama).keys, plain.keys, rtol=1e-4, atol=1e-5)


def test_the_mask_says_which_shared_tokens_are_seen(llama):
    """Some consecutive ones, none of them, or all; the plain attention reads the same mask."""
    kv = text_kv(llama)
    inputs = batch_inputs(len(kv), QUERIES, END, llama.device)
    mask = inputs["attention_mask"]
    mask[0, :5], mask[0, 20 : len(kv)], mask[1, : len(kv)] = 0, 0, 0
    ids = inputs["input_ids"][:, len(kv) :]
    plain = step(llama, SharedCache(kv).follow(llama), ids, mask)
    with attending(llama, SHARED_PREFIX):
        shared = step(llama, SharedCache(kv).follow(llama), ids, mask)
    own = mask[:, len(kv) :].bool()
    torch.testing.assert_close(shared[own], plain[own], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    "spoil",
    [
        lambda mask: mask[0, -1:].fill_(0),
        lambda mask: mask[1, 3:5].fill_(0),
        lambda mask: mask[0, -3].fill_(0),
    ],
    ids=["right padding", "hole in the shared part", "hole in a query"],
)
def test_refuses_padding_elsewhere(llama, spoil):
    kv = text_kv(llama)
    inputs = batch_inputs(len(kv), QUERIES, END, llama.device)
    spoil(inputs["attention_mask"])
    with attending(llama, SHARED_PREFIX), pytest.raises(ValueError, match="shared tokens that follow one another"):
        step(llama, SharedCache(kv).follow(llama), inputs["input_ids"][:, len(kv) :], inputs["attention_mask"])


def test_refuses_other_masks_caches_and_attentions(llama):
    ids = torch.tensor([[5, 6, 7]])
    with attending(llama, SHARED_PREFIX):
        with pytest.raises(ValueError, match="pass no 4-D mask"):
            llama(ids, attention_mask=torch.zeros(1, 1, 3, 3))
        with pytest.raises(ValueError, match="caches that grow"):
            llama(ids, past_key_values=StaticCache(config=llama.config, max_cache_len=8))
        with pytest.raises(ValueError, match="takes no other mask"):
            llama(ids, position_ids=torch.tensor([[0, 1, 0]]), use_cache=False)
        with pytest.raises(ValueError, match="covers 2 tokens"):
            llama(ids, attention_mask=torch.ones(1, 2), past_key_values=SharedCache(text_kv(llama)).follow(llama))
    rows = visible_rows_mask(1, 3, 3)
    q = torch.zeros(1, 2, 3, 8)
    with pytest.raises(ValueError, match="no dropout"):
        shared_prefix_attention(torch.nn.Identity(), q, q, q, rows, dropout=0.1)
    with pytest.raises(ValueError, match="Identity uses a sliding window"):
        shared_prefix_attention(torch.nn.Identity(), q, q, q, rows, sliding_window=4)
