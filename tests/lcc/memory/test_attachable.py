"""What a memory is not attached to: other models, caches unlike the model, dtypes that cannot hold its numbers."""

from __future__ import annotations

import copy
import io
from dataclasses import replace

import pytest
import torch
from transformers import AutoConfig, DynamicCache, StaticCache

import lcc
from lcc.embedded_model.tokenizer import build_tokenizer
from lcc.memory.payload import KVPayload
from lcc.memory.quantization import quantize_payload
from lcc.modeling.kv import KV
from tests.lcc.memory.test_attachment import QUESTIONS, TEXT, static_cache
from tests.support.plain_memories import plain_memory
from tests.support.tiny_models import TINY


def test_static_caches_unlike_the_model_are_refused_by_name(llama, tokenizer, monkeypatch):
    memory, own = plain_memory(llama, tokenizer, TEXT, monkeypatch)
    length = own.get_seq_length() + 10

    def cache(dtype=torch.float32, device="cpu", batch=1, config=llama.config, **options):
        made = StaticCache(config=config, max_cache_len=length, **options)
        made.early_initialization(batch, 2, 12, dtype, device)
        return made

    def uneven():
        made, other = cache(), cache(batch=2)
        made.layers[1] = other.layers[1]
        return made

    def narrow_values():
        made = cache()
        made.layers[2].values = made.layers[2].values.half()
        return made

    windowed = AutoConfig.for_model("mistral", **TINY, sliding_window=512)
    for made, reason in (
        (cache(torch.float16), r"dtype is torch\.float16 but the model's is torch\.float32"),
        (cache(torch.float64), r"dtype is torch\.float64"),
        (narrow_values(), r"dtype is torch\.float16, torch\.float32"),
        (cache(device="meta"), "device is meta but the model's is cpu"),
        (uneven(), "different shapes"),
        (cache(config=windowed), "layers of StaticSlidingWindowLayer"),
        (DynamicCache(config=llama.config), "is a DynamicCache"),
    ):
        with pytest.raises(lcc.InputError, match=reason):
            lcc.attach(llama, memory, cache=made)
    offloading = cache()
    offloading.offloading = True
    with pytest.raises(lcc.InputError, match="offloaded layers"):
        lcc.attach(llama, memory, cache=offloading)


def scaled(memory, **factors):
    kv = {name: getattr(memory.kv, name) * factors.get(name, 1.0) for name in ("keys", "values")}
    return replace(memory, payload=KVPayload(KV(**kv)))


@pytest.mark.parametrize("part", ["keys", "values"])
@pytest.mark.parametrize("kind", ["float", "int8", "int4"])
def test_numbers_that_overflow_the_model_are_refused_by_name(kind, part, llama, tokenizer, monkeypatch):
    """Into every kind of cache, before anything is written to it."""
    memory, own = plain_memory(llama, tokenizer, TEXT, monkeypatch)
    if kind != "float":
        quantized, scale = (
            quantize_payload(memory.kv_payload, kind),
            {"keys": "key_scale", "values": "value_scale"}[part],
        )
        scaled_up = replace(quantized, **{scale: getattr(quantized, scale) * 1e6})
        large = replace(memory, payload=scaled_up)
    else:
        large = scaled(memory, **{part: 1e6})
    half = copy.deepcopy(llama).half()
    static, pages = static_cache(half, own.get_seq_length() + 10), torch.zeros(2, 3, 20, 2, 8, 12).half()
    for attach in (
        lambda: lcc.attach(half, large, verify=False),
        lambda: lcc.attach(half, [memory, large], verify=False),
        lambda: lcc.attach(half, large, cache=static, verify=False),
        lambda: lcc.attach_paged(half, large, list(pages[0]), list(pages[1]), torch.arange(20), verify=False),
    ):
        with pytest.raises(lcc.InputError, match=rf"{part} reach .*float16: load the model in bfloat16 or float32"):
            attach()
    assert not pages.any()
    assert not any(layer.keys.any() or layer.values.any() for layer in static.layers)
    assert lcc.attach(llama, large).kv().keys.isfinite().all()


def test_keys_that_overflow_only_once_they_are_turned_are_refused(llama, tokenizer, monkeypatch):
    memory, _ = plain_memory(llama, tokenizer, TEXT, monkeypatch)
    keys = torch.full_like(memory.kv.keys, 60_000.0)
    half = copy.deepcopy(llama).half()
    with pytest.raises(lcc.InputError, match="keys reach 8"):
        lcc.attach(half, replace(memory, payload=KVPayload(KV(keys, memory.kv.values))), verify=False)


def test_a_memory_of_other_weights_is_refused_unless_asked_for(llama, tokenizer, tmp_path, monkeypatch):
    memory, own = plain_memory(llama, tokenizer, TEXT, monkeypatch)
    other = copy.deepcopy(llama)
    other.model.layers[1].mlp.up_proj.weight.data *= 1.01
    static, pages = static_cache(llama, own.get_seq_length() + 10), torch.zeros(2, 3, 20, 2, 8, 12)
    table = torch.arange(20)
    calls = (
        lambda **options: lcc.attach(other, memory, **options),
        lambda **options: lcc.attach(other, [memory, memory], **options),
        lambda **options: lcc.attach(other, memory, cache=static, **options),
        lambda **options: lcc.attach_paged(other, memory, list(pages[0]), list(pages[1]), table, **options),
        lambda **options: lcc.export(other, memory, tmp_path, **options),
        lambda **options: lcc.export(other, memory, tmp_path, "safetensors", **options),
    )
    for call in calls:
        with pytest.raises(lcc.MismatchError, match=r"\(model_weights\)"):
            call()
    assert not pages.any()
    assert not any(tmp_path.iterdir())
    for call in calls:
        call(verify=False)
    for model in (llama, copy.deepcopy(llama).double()):
        lcc.attach(model, memory)


def test_prompts_are_made_by_the_memorys_own_tokenizer(llama, tokenizer, monkeypatch):
    memory, _ = plain_memory(llama, tokenizer, TEXT, monkeypatch)
    other = build_tokenizer()
    other.add_tokens(["extraordinary"])
    with pytest.raises(lcc.MismatchError, match=r"\(tokenizer\)"):
        lcc.prompt(llama, other, memory, QUESTIONS)
    assert lcc.prompt(llama, other, memory, QUESTIONS, verify=False).keys() == {"input_ids", "attention_mask"}


def test_memories_that_differ_in_the_dtype_of_equal_weights_go_together(llama, tokenizer, monkeypatch):
    memory, _ = plain_memory(llama, tokenizer, TEXT, monkeypatch)
    wide = replace(memory, fingerprint=memory.fingerprint | {"model_dtype": "float64"})
    assert len(lcc.attach(llama, [memory, wide]).kv()) == len(memory.prefix_ids) + 2 * memory.buffer_tokens


def restored(layer):
    made = type(layer).__new__(type(layer))
    made.__dict__.update(copy.deepcopy(layer.__getstate__()))
    return made


@pytest.mark.parametrize("attention", ["sdpa", "lcc_shared_prefix"])
def test_a_cache_can_be_saved_and_copied(attention, llama, tokenizer, monkeypatch):
    memory, _ = plain_memory(llama, tokenizer, TEXT, monkeypatch)
    llama.set_attn_implementation(attention)
    inputs = lcc.prompt(llama, tokenizer, memory, QUESTIONS)
    options = {"max_new_tokens": 5, "min_new_tokens": 5, "do_sample": False}
    cache = lcc.attach(llama, memory)
    torch.save(cache, io.BytesIO())
    # What saving keeps of a layer, and loading makes of it.
    loaded = copy.copy(cache)
    loaded.layers = [restored(layer) for layer in cache.layers]
    copied = copy.deepcopy(cache)
    assert [layer.config is None for layer in loaded.layers] == [True] * 3
    assert [layer.config() for layer in copied.layers] == [llama.config] * 3
    expected = llama.generate(**inputs, past_key_values=cache, **options)
    for other in (loaded, copied, loaded.follow(llama)):
        other.reset()
        assert torch.equal(llama.generate(**inputs, past_key_values=other, **options), expected)
