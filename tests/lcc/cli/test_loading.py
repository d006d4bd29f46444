"""Models from folders: whole, of safetensors, and without running their code."""

from __future__ import annotations

import io
import json
import shutil
import sys

import pytest
import torch
from safetensors.torch import load_file, save_file

from lcc.cli.loading import load_model
from lcc.embedded_model import EMBEDDED
from lcc.errors import InputError

WEIGHTS, CONFIG, TOKENIZER = "model.safetensors", "config.json", "tokenizer.json"
DEEP = "[" * 100_000


@pytest.fixture
def folder(tmp_path):
    """A copy of the embedded model that a test may damage."""
    return shutil.copytree(EMBEDDED, tmp_path / "model")


def configured(folder, **changes) -> None:
    config = json.loads((folder / CONFIG).read_text())
    (folder / CONFIG).write_text(json.dumps(config | changes))


def reweighted(folder, change) -> None:
    save_file(change(load_file(folder / WEIGHTS)), folder / WEIGHTS, {"format": "pt"})


def refused(source, message: str) -> None:
    with pytest.raises(InputError, match=message) as refusal:
        load_model(str(source))
    assert "\x1b" not in str(refusal.value)
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize("where", [CONFIG, "tokenizer_config.json"])
@pytest.mark.parametrize("answer", ["y", "yes", "1", ""])
def test_a_folder_cannot_run_its_code(where, answer, folder, monkeypatch):
    monkeypatch.setattr(sys, "stdin", io.StringIO(f"{answer}\n"))
    (folder / "evil.py").write_text(f"open({str(folder / 'RAN')!r}, 'w')")
    mapped = {"AutoConfig": "evil.C", "AutoModelForCausalLM": "evil.M", "AutoTokenizer": ["evil.T", None]}
    changes = {"model_type": "evil"} if where == CONFIG else {"tokenizer_class": "Evil"}
    written = json.loads((folder / where).read_text()) | changes | {"auto_map": mapped}
    (folder / where).write_text(json.dumps(written))
    refused(folder, "needs Python code of its own, which is not run: convert it")
    assert sys.stdin.read() == f"{answer}\n"
    assert not (folder / "RAN").exists()


def test_code_beside_a_known_architecture_is_left_alone(folder):
    (folder / "evil.py").write_text(f"open({str(folder / 'RAN')!r}, 'w')")
    configured(folder, auto_map={"AutoConfig": "evil.C", "AutoModelForCausalLM": "evil.M"})
    assert type(load_model(str(folder))[0]).__module__.startswith("transformers.")
    assert not (folder / "RAN").exists()


def test_weights_are_all_there_and_no_others(folder):
    def without_keys(tensors):
        return {name: tensor for name, tensor in tensors.items() if "k_proj" not in name}

    whole = (folder / WEIGHTS).read_bytes()
    for change, message in (
        (without_keys, r"lacks weights: model.layers.0.self_attn.k_proj.weight, .* and 1 more"),
        (lambda t: t | {"model.layers.7.extra\x1b": torch.ones(2)}, "does not know: model.layers.7.extra"),
        (lambda t: {n: x[:-1].clone() if n.endswith("up_proj.weight") else x for n, x in t.items()}, "other shapes"),
    ):
        (folder / WEIGHTS).write_bytes(whole)
        reweighted(folder, change)
        refused(folder, message)


@pytest.mark.parametrize("layers", [1, 9])
def test_a_config_of_other_layers_is_noticed(layers, folder):
    configured(folder, num_hidden_layers=layers)
    refused(folder, "weights that the architecture does not know" if layers == 1 else "lacks weights: model.layers.4")


def test_tied_weights_are_not_missing(folder):
    assert json.loads((folder / CONFIG).read_text())["tie_word_embeddings"]
    assert "lm_head.weight" not in load_file(folder / WEIGHTS)
    load_model(str(folder))


def test_pickled_weights_are_not_read(folder):
    (folder / "pytorch_model.bin").write_bytes(b"\x80\x04")
    (folder / WEIGHTS).unlink()
    refused(folder, "no safetensors weights, and pickled ones are not read: convert them")


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        (CONFIG, DEEP, "RecursionError"),
        (CONFIG, "[1]", "must be a mapping"),
        (CONFIG, '{"model_type": "llama", "hidden_size": ' + "9" * 5000 + "}", "4300 digits"),
        (CONFIG, "\udcff", "not a valid JSON file"),
        (TOKENIZER, DEEP, "RecursionError"),
        (TOKENIZER, "{}", "KeyError"),
        ("tokenizer_config.json", "[]", "AttributeError"),
        ("generation_config.json", DEEP, "RecursionError"),
        (WEIGHTS, "x" * 99, "header"),
        (WEIGHTS, "", "header too small"),
    ],
)
def test_damaged_files(name, content, message, folder):
    (folder / name).write_bytes(content.encode(errors="surrogateescape"))
    refused(folder, f"cannot load the model .*{message}")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model_type": "\x1b[2J"}, r"model type `\\x1b\[2J`"),
        ({"num_attention_heads": "four"}, "num_attention_heads.*expected int, got str"),
        ({"num_attention_heads": 0}, "ZeroDivisionError"),
        ({"hidden_act": "nope"}, "KeyError: 'nope'"),
        ({"quantization_config": "nope"}, "AttributeError"),
    ],
)
def test_damaged_configs(changes, message, folder):
    configured(folder, **changes)
    refused(folder, message)


def test_parts_that_are_missing(folder, tmp_path):
    (folder / TOKENIZER).unlink()
    refused(folder, "no tokenizer that can be read: save one there")
    (folder / CONFIG).unlink()
    refused(folder, "has no config.json")
    refused(EMBEDDED / WEIGHTS, "is a file: name a GGUF file, or the folder")
    for absent in (tmp_path / "absent", "./absent", "a/b/c", "~/model", "\x00"):
        refused(absent, "there is no folder")
    for empty in ("", " "):
        refused(empty, "the name of the model is empty")


def test_attention_kernels_that_a_config_names_are_not_fetched(folder):
    configured(folder, attn_implementation="kernels-community/flash-attn2")
    model, _ = load_model(str(folder))
    assert model.config._attn_implementation == "sdpa"


def test_a_tokenizer_that_cannot_be_used_is_refused(folder):
    path = folder / "tokenizer_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"model_max_length": "abc"}))
    refused(folder, "cannot load the model")
