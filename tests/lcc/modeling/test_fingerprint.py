"""What a memory belongs to: what changes a model's fingerprint, and what must not."""

from __future__ import annotations

import copy

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import checkpoint_wrapper
from transformers import LlamaConfig, PreTrainedConfig

from lcc.modeling.fingerprint import (
    RUN_TIME_KEYS,
    computed_config,
    differing,
    fingerprint,
)

LORA = LoraConfig(r=2, target_modules=["q_proj", "v_proj"])


def eager(module: torch.nn.Module) -> torch.nn.Module:
    return torch.compile(module, backend="eager")


def compiled_in_place(model):
    model.compile(backend="eager")
    return model


def with_layer(model, wrap):
    model.model.layers[1] = wrap(model.model.layers[1])
    return model


def adapted(model, config=LORA):
    model = get_peft_model(model, config)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            parameter.data.normal_()
    return model


def switched_off(model):
    model.base_model.disable_adapter_layers()
    return model


def injected_and_off(model):
    model.add_adapter(LORA)
    model.disable_adapters()
    return model


def with_config(**fields):
    def change(model):
        for name, value in fields.items():
            setattr(model.config, name, value)
        return model

    return change


def untied(model):
    model.lm_head.weight = torch.nn.Parameter(model.lm_head.weight.detach().T.contiguous().T)
    return model


def attending(model):
    model.set_attn_implementation("eager")
    return model


def used(model):
    model(torch.tensor([[1, 5, 7]]))
    return model


THE_SAME = {
    "torch.compile": eager,
    "compiled in place": compiled_in_place,
    "a compiled layer": lambda model: with_layer(model, eager),
    "a checkpointed layer": lambda model: with_layer(model, checkpoint_wrapper),
    "data parallel": torch.nn.DataParallel,
    "data parallel, compiled": lambda model: eager(torch.nn.DataParallel(model)),
    "peft, switched off": lambda model: switched_off(adapted(model)),
    "peft, switched off, compiled": lambda model: eager(switched_off(adapted(model))),
    "peft, modules to save, switched off": lambda model: switched_off(
        adapted(model, LoraConfig(r=2, target_modules=["q_proj"], modules_to_save=["lm_head"]))
    ),
    "transformers' adapter, switched off": injected_and_off,
    "peft, unloaded": lambda model: adapted(model).unload(),
    "train mode": lambda model: model.train(),
    "frozen": lambda model: model.requires_grad_(False),
    "float64": lambda model: model.double(),
    "deep copy": copy.deepcopy,
    "used": used,
    "layout": untied,
    "attention implementation": attending,
    "pad token": with_config(pad_token_id=2),
    "bos and eos": with_config(bos_token_id=5, eos_token_id=[2, 7]),
    "hidden states": with_config(output_hidden_states=True),
    "tuples": with_config(return_dict=False),
    "cache off": with_config(use_cache=False),
    "labels": with_config(id2label={0: "a", 1: "b", 2: "c"}),
    "name": with_config(_name_or_path="elsewhere", architectures=["Mine"], transformers_version="4.0"),
    "problem": with_config(problem_type="regression", chunk_size_feed_forward=4),
    "dropout": with_config(attention_dropout=0.1),
    "generation": with_config(temperature=0.7, max_length=7),
    "initialisation": with_config(initializer_range=0.5),
    "notes of tools": with_config(torchscript=True, unsloth_version="2026", sep_token_id=3, model_max_length=9),
}


class Tempered(LlamaConfig):
    """A config whose model computes with what generation configs have under the same name."""

    def __init__(self, temperature=1.0, **options):
        super().__init__(**options)
        self.temperature = temperature


def test_a_generation_options_name_may_be_an_architectures_own():
    plain, own = (computed_config(kind(temperature=0.5)) for kind in (LlamaConfig, Tempered))
    assert "temperature" not in plain
    assert own["temperature"] == 0.5


@pytest.mark.parametrize("name", THE_SAME)
def test_the_same_model_is_the_same(name, llama):
    before = fingerprint(llama)
    assert differing(fingerprint(THE_SAME[name](llama)), before) == []


def layer(model, index=0):
    return model.model.layers[index]


def exchange(one: torch.Tensor, other: torch.Tensor) -> None:
    kept = one.clone()
    one.copy_(other)
    other.copy_(kept)


def exchange_layers(model):
    exchange(layer(model, 0).self_attn.k_proj.weight, layer(model, 1).self_attn.k_proj.weight)


def exchange_matrices(model):
    exchange(layer(model).mlp.gate_proj.weight, layer(model).mlp.up_proj.weight)


def exchange_rows(model):
    rows = model.model.embed_tokens.weight
    exchange(rows[3], rows[400])


def exchange_columns(model):
    columns = layer(model).mlp.down_proj.weight.T
    exchange(columns[0], columns[1])


def move(model):
    rows = model.model.embed_tokens.weight
    rows[100, 3] += 0.25
    rows[700, 3] -= 0.25


def turn(model):
    weight = layer(model).self_attn.q_proj.weight
    weight.copy_(weight.T.clone())


def turn_signs(model):
    layer(model, 2).self_attn.o_proj.weight[:2, :2] *= -1


def least_bit(model):
    model.model.norm.weight.view(torch.int32)[-1] ^= 1


def merge(model):
    adapted(model).merge_and_unload()


def round_weights(model):
    model.to(torch.bfloat16)


def store(model):
    model.model.norm.register_buffer("scale", torch.ones(1))


OTHERS = [
    exchange_layers, exchange_matrices, exchange_rows, exchange_columns, move, turn, turn_signs, least_bit, merge,
    round_weights, store,
]  # fmt: skip


@pytest.mark.parametrize("change", OTHERS)
def test_other_weights_are_another_model(change, llama):
    before = fingerprint(llama)
    with torch.no_grad():
        change(llama)
    assert differing(fingerprint(llama), before) == ["model_weights"]


@pytest.mark.parametrize(
    "fields",
    [
        {"rms_norm_eps": 1e-4}, {"hidden_act": "gelu"}, {"max_position_embeddings": 2048}, {"num_key_value_heads": 4},
        {"rope_parameters": {"rope_type": "default", "rope_theta": 5000.0}}, {"clip_qkv": 8.0}, {"head_dim": 24},
        {"tie_word_embeddings": True}, {"quantization_config": {"quant_method": "gptq", "bits": 4}},
    ],
    ids=lambda fields: next(iter(fields)),
)  # fmt: skip
def test_what_an_architecture_is_told_counts(fields, llama):
    before = fingerprint(llama)
    with_config(**fields)(llama)
    assert differing(fingerprint(llama), before) == ["model_config"]


def test_every_generic_field_of_a_config_is_known():
    """A new version of transformers may bring fields of which somebody must say whether they count."""
    counted = {"model_type", "is_encoder_decoder"}
    generic = {name for name in PreTrainedConfig().to_dict() if not name.startswith("_")}
    assert generic - RUN_TIME_KEYS == counted
    assert computed_config(PreTrainedConfig()).keys() == counted


def test_a_generation_key_that_an_architecture_declares_counts():
    class Routed(LlamaConfig):
        top_k: int = 2

    assert computed_config(Routed()) != computed_config(Routed(top_k=3))
    plain, sampling = LlamaConfig(), LlamaConfig()
    sampling.top_k = 3
    assert computed_config(plain) == computed_config(sampling)


def test_nested_configs_are_read_alike():
    class Outer(PreTrainedConfig):
        text_config: dict | None = None

    one = Outer(text_config=LlamaConfig(rms_norm_eps=1e-5).to_dict())
    same = Outer(text_config=LlamaConfig(rms_norm_eps=1e-5, use_cache=False, dtype="bfloat16").to_dict())
    other = Outer(text_config=LlamaConfig(rms_norm_eps=1e-4).to_dict())
    assert computed_config(one) == computed_config(same) != computed_config(other)
