"""Weights that are offloaded, repacked or kept in parts: read all the same, or refused by name."""

from __future__ import annotations

import pytest
import torch
from accelerate import cpu_offload, disk_offload
from torch.utils._pytree import tree_map
from transformers import AutoConfig, AutoModelForCausalLM, BitsAndBytesConfig

import lcc
from lcc.embedded_model import EMBEDDED
from lcc.modeling.fingerprint import computed_config, differing, fingerprint, weights_digest
from tests.lcc.memory.test_attachment import QUESTIONS, TEXT
from tests.support.plain_memories import plain_memory


@pytest.fixture
def offloaded(llama, tmp_path):
    """A model of which layer 1 is on the disk."""
    llama.save_pretrained(tmp_path / "model")
    parts = ["model.embed_tokens", "model.layers.0", "model.layers.2", "model.norm", "model.rotary_emb", "lm_head"]
    where = dict.fromkeys(parts, "cpu") | {"model.layers.1": "disk"}
    folder = tmp_path / "offloaded"
    return AutoModelForCausalLM.from_pretrained(tmp_path / "model", device_map=where, offload_folder=folder)


def test_offloaded_layers_are_read_where_they_are(offloaded, llama, tokenizer, monkeypatch):
    memory, _ = plain_memory(llama, tokenizer, TEXT, monkeypatch)
    assert offloaded.model.layers[1].mlp.up_proj.weight.device.type == "meta"
    assert fingerprint(offloaded) == fingerprint(llama)
    expected = lcc.ask(llama, tokenizer, memory, QUESTIONS, max_new_tokens=4)
    assert lcc.ask(offloaded, tokenizer, memory, QUESTIONS, max_new_tokens=4) == expected
    assert offloaded.model.layers[1].mlp.up_proj.weight.device.type == "meta"


@pytest.mark.parametrize("offload", [cpu_offload, disk_offload])
def test_a_model_that_is_offloaded_whole_is_verified_and_refused(offload, llama, tokenizer, tmp_path, monkeypatch):
    memory, _ = plain_memory(llama, tokenizer, TEXT, monkeypatch)
    options = {"offload_dir": tmp_path} if offload is disk_offload else {}
    offload(llama, execution_device=torch.device("cpu"), **options)
    memory.verify(llama, tokenizer)
    for refused in (lambda: lcc.attach(llama, memory), lambda: lcc.ask(llama, tokenizer, memory, QUESTIONS)):
        with pytest.raises(lcc.InputError, match="embeddings are offloaded"):
            refused()


def test_compile_and_plan_refuse_offloaded_weights_at_once(offloaded, tokenizer, text):
    for call in (
        lambda: lcc.compile(offloaded, tokenizer, text, progress=False),
        lambda: lcc.plan(offloaded, tokenizer, text),
    ):
        with pytest.raises(lcc.InputError, match=r"model\.layers\.1\.\S+ is offloaded.*device_map"):
            call()


def test_weights_without_data_are_refused(llama, tokenizer):
    with torch.device("meta"):
        empty = AutoModelForCausalLM.from_config(llama.config)
    with pytest.raises(lcc.InputError, match="has no data"):
        lcc.fingerprint(empty, tokenizer)


QUANTIZED = {
    "nf4": {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4", "bnb_4bit_compute_dtype": torch.float32},
    "fp4, scales quantised": {"load_in_4bit": True, "bnb_4bit_use_double_quant": True},
    "fp4, stored as bfloat16": {"load_in_4bit": True, "bnb_4bit_quant_storage": torch.bfloat16},
    "int8": {"load_in_8bit": True},
}


@pytest.mark.parametrize("name", QUANTIZED)
def test_a_quantised_model_is_the_same_after_its_first_forward(name):
    """On a CPU, that repacks 4-bit weights; and no digest may change what the model computes."""
    pytest.importorskip("bitsandbytes")
    config = BitsAndBytesConfig(**QUANTIZED[name])
    model = AutoModelForCausalLM.from_pretrained(EMBEDDED, quantization_config=config).eval()
    before, ids = fingerprint(model), torch.tensor([[1, 5, 7]])
    with torch.no_grad():
        first = model(ids).logits
        assert fingerprint(model) == before
        assert torch.equal(model(ids).logits, first)
    weight = model.model.layers[0].self_attn.q_proj.weight
    weight.data[0] = weight.data[0].flip(0) + 1
    assert differing(fingerprint(model), before) == ["model_weights"]


class Int8Params(torch.nn.Parameter):
    """As bitsandbytes' class of this name: the first forward moves the scale to the module."""

    def __new__(cls, codes: torch.Tensor, scale: torch.Tensor):
        made = torch.Tensor._make_subclass(cls, codes, False)
        made.SCB = scale
        return made


def test_int8_weights_are_read_with_their_scale_wherever_it_is():
    model = torch.nn.Linear(4, 2, bias=False)
    model.weight = Int8Params(torch.arange(8, dtype=torch.int8).view(2, 4), torch.tensor([1.0, 2.0]))
    model.state = torch.nn.Module()
    before = weights_digest(model)
    model.state.SCB, model.weight.SCB = model.weight.SCB, None
    assert weights_digest(model) == before
    model.state.SCB = torch.tensor([2.0, 1.0])
    assert weights_digest(model) != before


class Scaled(torch.Tensor):
    """Codes and a scale in a tensor that computes nothing but what they stand for, as torchao's are."""

    def __new__(cls, codes: torch.Tensor, scale: torch.Tensor):
        return torch.Tensor._make_wrapper_subclass(cls, codes.shape, dtype=scale.dtype)

    def __init__(self, codes: torch.Tensor, scale: torch.Tensor):
        self.codes, self.scale = codes, scale

    def __tensor_flatten__(self):
        return ["codes", "scale"], None

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        if func is not torch.ops.aten.detach.default:
            raise NotImplementedError(func)
        return tree_map(lambda each: cls(each.codes, each.scale) if isinstance(each, cls) else each, args[0])


def test_tensors_that_hold_tensors_are_read_by_their_parts():
    model = torch.nn.Linear(4, 2, bias=False)
    codes, scale = torch.arange(8, dtype=torch.int8).view(2, 4), torch.tensor([1.0, 2.0])
    model.weight = torch.nn.Parameter(Scaled(codes, scale), requires_grad=False)
    before = weights_digest(model)
    assert weights_digest(model) == before
    scale[1] = 3
    changed = weights_digest(model)
    codes[0, 0] = 5
    assert len({before, changed, weights_digest(model)}) == 3


def test_how_4_bit_weights_are_stored_and_run_does_not_count():
    def config(**options):
        llama = AutoConfig.for_model("llama")
        llama.quantization_config = BitsAndBytesConfig(**options)
        return computed_config(llama)

    four = config(load_in_4bit=True)
    assert four == config(
        load_in_4bit=True, bnb_4bit_compute_dtype=torch.bfloat16, llm_int8_enable_fp32_cpu_offload=True
    )
    assert four != config(load_in_8bit=True)
    assert config(load_in_8bit=True) != config(load_in_8bit=True, llm_int8_threshold=3.0)
