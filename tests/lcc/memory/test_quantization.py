"""int8, fp8 and int4 memories: how far they are from the float one, what is measured, and what is refused."""

from __future__ import annotations

import json
import random
from dataclasses import replace

import pytest
import torch
from transformers import StaticCache

import lcc
import lcc_kernels as lk
from lcc.memory.codes import FORMATS
from lcc.memory.file_format import FORMAT
from lcc.memory.payload import KVPayload
from lcc.memory.quantization import quantize_payload
from lcc.modeling.kv import KV
from lcc.synthetic.people import document
from lcc.utils.tensor_files import load_tensors, save_tensors
from tests.support.plain_memories import plain_memory

DTYPES = list(FORMATS)


@pytest.fixture
def memory(llama, tokenizer, text, monkeypatch):
    asked = ("Where does Mara live?", "What is the job of Hugo?")
    return replace(plain_memory(llama, tokenizer, text, monkeypatch)[0], questions=asked)


@pytest.fixture
def small(memory, llama, tokenizer):
    return lcc.quantize(memory, "int8", llama, tokenizer, answers=2, max_new_tokens=2)


def random_kv(dtype=torch.float32, tokens=9) -> KV:
    """Channels and tokens of very different sizes, some of them all zero."""
    generator = torch.Generator().manual_seed(0)
    keys, values = torch.randn(2, 3, 2, tokens, 16, generator=generator, dtype=torch.float64)
    keys = keys * 10.0 ** torch.linspace(-4, 3, 16)
    values = values * 10.0 ** torch.linspace(-4, 3, tokens)[:, None]
    keys[0, 1, :, 3] = 0
    values[2, 0, -1] = 0
    return KV(keys.to(dtype), values.to(dtype))


def spread(scale: torch.Tensor, tokens: int) -> torch.Tensor:
    """int4 keys' scales, a row a token, written out."""
    return torch.stack([scale[:, :, token // 32] for token in range(tokens)], 2)


@pytest.mark.parametrize("source", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("dtype", ["int8", "fp8"])
def test_rounding_is_to_the_nearest(dtype, source):
    """int8: half a step of each channel's (token's) scale; fp8: half of its last bit, 1/16."""
    kv = random_kv(source)
    payload = quantize_payload(KVPayload(kv), dtype)
    small, key_scale, value_scale = payload.kv, payload.key_scale, payload.value_scale
    assert small.keys.dtype == small.values.dtype == FORMATS[dtype].dtype
    assert key_scale.shape == (3, 2, 16)
    assert value_scale.shape == (3, 2, 9)
    for exact, codes, scale in (
        (kv.keys.double(), small.keys, key_scale[:, :, None].double()),
        (kv.values.double(), small.values, value_scale[..., None].double()),
    ):
        error = (codes.double() * scale - exact).abs()
        bound = scale / 2 if dtype == "int8" else torch.maximum(exact.abs() / 16, scale * 2.0**-10)
        assert (error <= bound * (1 + 1e-5)).all()
        assert (codes.float().abs() <= FORMATS[dtype].largest).all()
        assert not codes.float()[exact == 0].any()


@pytest.mark.parametrize("source", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("tokens", "groups"), [(1, 1), (31, 1), (32, 1), (33, 2), (64, 2), (70, 3)])
def test_int4_rounds_to_the_nearest_in_groups_of_tokens(tokens, groups, source):
    """A scale of two bytes may end the codes 1/256 too early: half a step more, for numbers of seven steps."""
    kv = random_kv(source, tokens)
    small = quantize_payload(KVPayload(kv), "int4")
    small.check()
    assert small.kv.keys.shape == small.kv.values.shape == (3, 2, tokens, 8)
    assert small.key_scale.shape == (3, 2, groups, 16)
    assert small.value_scale.shape == (3, 2, tokens)
    assert (small.dims, small.dtype) == ((3, 2, tokens, 16), "int4")
    numbers = small.numbers(torch.float64)
    for exact, found, packed, scale in (
        (kv.keys.double(), numbers.keys, small.kv.keys, spread(small.key_scale, tokens).double()),
        (kv.values.double(), numbers.values, small.kv.values, small.value_scale[..., None].double()),
    ):
        codes = lk.unpack_int4(packed)
        assert torch.equal(found, codes * scale)
        assert ((found - exact).abs() <= scale / 2 * (1 + 1e-5) + exact.abs() / 256).all()
        assert codes.abs().max() == 7
        assert not codes[exact == 0].any()


@pytest.mark.parametrize("dtype", DTYPES)
def test_tiny_numbers_have_a_scale(dtype):
    kv = KV(torch.full((1, 1, 2, 4), 1e-45), torch.full((1, 1, 2, 4), 1e-45))
    small = quantize_payload(KVPayload(kv), dtype)
    assert all((scale > 0).all() for scale in (small.key_scale, small.value_scale))


def test_int4_takes_an_even_head_dim():
    kv = KV(torch.ones(1, 1, 2, 5), torch.ones(1, 1, 2, 5))
    with pytest.raises(lcc.InputError, match=r"head_dim is 5.*take int8"):
        quantize_payload(KVPayload(kv), "int4")


@pytest.mark.parametrize("dtype", DTYPES)
def test_attach_multiplies_the_scales_back_in(dtype, memory, llama, tokenizer):
    small = lcc.quantize(memory, dtype, llama, tokenizer, answers=2, max_new_tokens=2)
    quantized = quantize_payload(memory.kv_payload, dtype)
    packed, tokens = dtype == "int4", len(memory.kv)
    keys, values = ((lk.unpack_int4(x) if packed else x).float() for x in (quantized.kv.keys, quantized.kv.values))
    key_scale = spread(quantized.key_scale, tokens) if packed else quantized.key_scale[:, :, None]
    by_hand = KV(keys * key_scale, values * quantized.value_scale[..., None])
    for start in (0, 9):
        found = lcc.attach(llama, small, start).kv()
        expected = lcc.attach(llama, replace(memory, payload=KVPayload(by_hand)), start).kv()
        torch.testing.assert_close(found.keys, expected.keys, rtol=1e-6, atol=1e-6)
        torch.testing.assert_close(found.values, expected.values, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("dtype", DTYPES)
def test_static_and_paged_caches_hold_the_same(dtype, memory, llama):
    small = replace(memory, payload=quantize_payload(memory.kv_payload, dtype))
    expected = lcc.attach(llama, [small, small]).kv()
    tokens, (layers, heads, _, width) = len(expected), small.kv_payload.dims
    static = StaticCache(llama.config, max_cache_len=tokens + 1)
    static.early_initialization(1, heads, width, torch.float32, llama.device)
    lcc.attach(llama, [small, small], cache=static)
    pages = torch.zeros(2, layers, tokens, heads, 1, width)
    lcc.attach_paged(llama, [small, small], list(pages[0]), list(pages[1]), torch.arange(tokens).flip(0))
    for side, name in enumerate(("keys", "values")):
        wanted = getattr(expected, name)
        held = torch.cat([getattr(layer, name) for layer in static.layers])
        assert torch.equal(held[:, :, :tokens], wanted)
        assert torch.equal(pages[side][:, :, :, 0].flip(1).transpose(1, 2), wanted)


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_embedded_model_still_answers(dtype, embedded, monkeypatch):
    model, tokenizer = embedded
    doc = document(random.Random(3), people=2, attributes=4)
    memory, _ = plain_memory(model, tokenizer, doc.text, monkeypatch)
    memory = replace(memory, questions=tuple(question.text for question in doc.questions()))
    small = lcc.quantize(memory, dtype, model, tokenizer, answers=24, max_new_tokens=8)
    cost = small.quantization
    assert cost["source_dtype"] == "float32"
    assert cost["self_study"]["answers"] == cost["general"]["answers"] == 24
    for stream in ("self_study", "general"):
        assert 0 < cost[stream]["kl"] < 0.02
        assert cost[stream]["changed"] <= 0.1
    assert small.kv_bytes < (0.15 if dtype == "int4" else 0.3) * memory.kv_bytes
    verdict = lcc.ask(model, tokenizer, small, list(memory.questions)[:4], max_new_tokens=8)
    assert verdict == [question.answer for question in doc.questions()[:4]]


def test_what_is_measured_is_what_differs(memory, llama, tokenizer, monkeypatch):
    """Coarser codes cost more; memories that asked nothing are measured on general queries alone."""
    fine = lcc.quantize(memory, "int8", llama, tokenizer, answers=8, max_new_tokens=6).quantization
    monkeypatch.setitem(FORMATS, "int8", replace(FORMATS["int8"], largest=3.0))
    coarse = lcc.quantize(memory, "int8", llama, tokenizer, answers=8, max_new_tokens=6).quantization
    for stream in ("self_study", "general"):
        assert coarse[stream]["kl"] > 10 * fine[stream]["kl"] > 0
        assert coarse[stream]["changed"] >= fine[stream]["changed"]
        assert coarse[stream]["tokens"] == fine[stream]["tokens"]
    assert coarse["general"]["changed"] > 0
    silent = lcc.quantize(replace(memory, questions=()), "int8", llama, tokenizer, answers=2, max_new_tokens=2)
    assert silent.quantization.keys() == {"source_dtype", "general"}


@pytest.mark.parametrize("dtype", DTYPES)
def test_file_round_trip(dtype, memory, tmp_path):
    small = replace(memory, payload=quantize_payload(memory.kv_payload, dtype))
    small.save(tmp_path / "m")
    loaded = lcc.Memory.load(tmp_path / "m")
    for name, tensor in small.tensors().items():
        assert torch.equal(loaded.tensors()[name].float(), tensor.float())
        assert loaded.tensors()[name].dtype == tensor.dtype
    assert loaded.dtype == small.dtype
    assert loaded.summary()["head_dim"] == memory.kv.keys.shape[3]


def test_the_measured_cost_is_in_the_file(small, tmp_path):
    small.save(tmp_path / "m")
    assert lcc.Memory.load(tmp_path / "m").quantization == small.quantization


def test_sizes_are_those_of_the_tensors(small):
    layers, heads, tokens, width = small.kv.keys.shape
    sizes = small.summary()["bytes"]
    assert sizes["keys"] == sizes["values"] == layers * heads * tokens * width
    assert sizes["key_scale"] == 4 * layers * heads * width
    assert sizes["value_scale"] == 4 * layers * heads * tokens
    assert sizes["metadata"] > 100
    assert small.kv_bytes == sum(sizes.values()) - sizes["metadata"]


def test_quantising_twice_and_unknown_dtypes_are_refused(memory, small, llama, tokenizer):
    with pytest.raises(lcc.InputError, match="int8 already"):
        lcc.quantize(small, "fp8", llama, tokenizer)
    with pytest.raises(lcc.InputError, match="unknown dtype 'int3'"):
        lcc.quantize(memory, "int3", llama, tokenizer)
    with pytest.raises(lcc.InputError, match="at least 1"):
        lcc.quantize(memory, "int8", llama, tokenizer, answers=0)
    with pytest.raises(lcc.InputError, match="stays so"):
        small.to("cpu", torch.float32)
    llama.model.norm.weight.data[0] += 1
    with pytest.raises(lcc.MismatchError, match="weights"):
        lcc.quantize(memory, "int8", llama, tokenizer)


def broken_scales(scale: torch.Tensor) -> dict[str, torch.Tensor | None]:
    bad = {name: scale.clone() for name in ("NaN", "zero", "negative", "infinite")}
    for name, value in (("NaN", float("nan")), ("zero", 0.0), ("negative", -1.0), ("infinite", float("inf"))):
        bad[name].view(-1)[3] = value
    return bad | {"missing": None, "shape": scale[..., :-1].contiguous(), "dtype": scale.double()}


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", ["key_scale", "value_scale"])
def test_bad_scales_are_refused(name, dtype, memory, llama, tmp_path):
    """By a memory itself, by load with a digest that fits, and by attach when they went bad in place."""
    small = replace(memory, payload=quantize_payload(memory.kv_payload, dtype))
    small.save(tmp_path / "m")
    tensors, metadata = load_tensors(tmp_path / "m", FORMAT)
    for kind, scale in broken_scales(tensors[name]).items():
        with pytest.raises(lcc.InputError, match=name):
            replace(small, payload=replace(small.payload, **{name: scale}))
        others = {key: tensor for key, tensor in tensors.items() if key != name}
        save_tensors(tmp_path / kind, FORMAT, others | ({} if scale is None else {name: scale}), metadata)
        with pytest.raises(lcc.MemoryFileError, match=name):
            lcc.Memory.load(tmp_path / kind)
    getattr(small, name).view(-1)[0] = 0
    with pytest.raises(lcc.InputError, match=name):
        lcc.attach(llama, small)


def test_other_files_that_no_model_must_read_are_refused(memory, small, tmp_path):
    memory.save(tmp_path / "m")
    tensors, metadata = load_tensors(tmp_path / "m", FORMAT)
    poisoned = tensors["keys"].clone()
    poisoned[0, 0, 0, 0] = float("inf")
    for changed, reason in (
        ({"keys": poisoned}, "NaN or infinity"),
        ({"keys": tensors["keys"][:, :, 1:].contiguous()}, "must both be"),
        ({"values": tensors["values"].half()}, "both must be of one"),
        ({"keys": tensors["keys"].int(), "values": tensors["values"].int()}, "both must be of one"),
        ({"key_scale": small.key_scale}, "takes no key_scale"),
        ({"keys": tensors["keys"].byte(), "values": tensors["values"].byte()}, "key_scale is missing"),
        ({"extra": torch.ones(2)}, "one too many"),
    ):
        save_tensors(tmp_path / "bad", FORMAT, tensors | changed, metadata)
        with pytest.raises(lcc.MemoryFileError, match=reason):
            lcc.Memory.load(tmp_path / "bad")


def test_summary_is_json(small):
    assert json.loads(json.dumps(small.summary()))["quantization"] == small.quantization
