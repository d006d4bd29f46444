"""GGUF files: their weights dequantised, and a plain model made of them."""

from __future__ import annotations

import string

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

import lcc
from lcc.cli.loading import load_model
from lcc.errors import InputError
from lcc.modeling import loading
from lcc.modeling.fingerprint import fingerprint
from lcc.utils.outputs import model_paths

gguf_model = pytest.importorskip("benchmarks.common.gguf_model", reason="the package gguf is not installed")

WIDTH, LAYERS, HEADS, KV_HEADS, INNER = 64, 2, 4, 2, 96
TEMPLATE = (
    "{% for m in messages %}{{ '<|start|>' + m['role'] + ' ' + m['content'] + '<|end|>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|start|>assistant ' }}{% endif %}"
)


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """A tiny Llama's GGUF file, with one 8-bit matrix, and what that matrix is worth."""
    letters = [letter for letter in string.printable[:95] if letter != " "]
    tokens = [*letters, "Ġ", "th", "Ġa", "<|endoftext|>", "<|start|>", "<|end|>"]
    config = LlamaConfig(
        vocab_size=len(tokens), hidden_size=WIDTH, intermediate_size=INNER, num_hidden_layers=LAYERS,
        num_attention_heads=HEADS, num_key_value_heads=KV_HEADS, max_position_embeddings=512,
        tie_word_embeddings=True,
    )  # fmt: skip
    torch.manual_seed(0)
    model = LlamaForCausalLM(config)
    path = tmp_path_factory.mktemp("gguf") / "tiny.gguf"
    types = [1] * (len(tokens) - 3) + [3, 3, 3]
    ends = {"bos": len(tokens) - 2, "eos": len(tokens) - 1}
    vocabulary = gguf_model.Vocabulary("gpt2", tokens, types, **ends, template=TEMPLATE, merges=("t h", "Ġ a"))
    name = "model.layers.0.mlp.gate_proj.weight"
    kept = gguf_model.write_gguf(path, model, vocabulary, quantized=(name,))[name]
    return path, kept


def test_weights_are_dequantised_and_the_model_is_a_plain_one(written, tmp_path):
    path, kept = written
    model, tokenizer = load_model(str(path))
    assert torch.equal(model.model.layers[0].mlp.gate_proj.weight, torch.from_numpy(kept))
    assert not hasattr(model.config, "quantization_config")
    model.save_pretrained(tmp_path / "folder")
    tokenizer.save_pretrained(tmp_path / "folder")
    again = load_model(str(tmp_path / "folder"))
    assert fingerprint(*again) == fingerprint(model, tokenizer)


def test_a_memory_is_compiled_with_it(written):
    model, tokenizer = load_model(str(written[0]))
    settings = {"steps": 1, "general_queries": 2, "self_study_questions": 0, "max_response_tokens": 4}
    memory = lcc.compile(model, tokenizer, "A text for a tiny model. " * 4, certify=False, progress=False, **settings)
    memory.verify(*load_model(str(written[0])))


def test_the_file_is_an_input(written):
    assert model_paths(str(written[0])) == (written[0],)


def test_a_damaged_file(written, tmp_path):
    damaged = tmp_path / "damaged.gguf"
    damaged.write_bytes(written[0].read_bytes()[:4000])
    with pytest.raises(InputError, match="cannot load the model"):
        load_model(str(damaged))


def test_without_the_package(written, monkeypatch):
    monkeypatch.setattr(loading, "find_spec", lambda name: None)
    with pytest.raises(InputError, match=r"pip install 'lcc-kernels\[gguf\]'"):
        load_model(str(written[0]))
