"""The buffer tokens of every compiler go every way. A compiler that is registered later is covered as well."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch
from peft import PeftModel
from typer.testing import CliRunner

import lcc
from lcc.cli import app as cli
from lcc.compilers import registry
from lcc.evaluation import Example, MemoryMethod, evaluate
from lcc.memory.codes import FORMATS
from lcc.memory.exporters import CACHE_FORMAT
from lcc.utils.tensor_files import load_tensors

QUESTION = "Where does Mara live?"
# What compilers that go on from another memory go on from.
START = "attention_matching"
SHORT = ("steps=1", "batch=2", "evaluate_every=1", "general_queries=4", "self_study_questions=4")
SHORT += ("max_response_tokens=8", "self_study_follow_ups=0", "self_study_hard=0")


def command(*words: object, **options: str) -> str:
    result = CliRunner().invoke(cli.app, [str(word) for word in words], **options)
    assert result.exit_code == 0, result.output
    return result.stdout


def start_of(name: str) -> str | None:
    return START if getattr(registry.get(name), "goes_on", False) else None


@pytest.fixture(scope="module")
def memory_of(tmp_path_factory, text):
    """Gives the file of a compiler's memory: for the embedded model, which all learned compilers have weights for."""
    folder = tmp_path_factory.mktemp("memories")
    (folder / "text").write_text(text)

    def make(name):
        path, start = folder / f"{name}.lcc.safetensors", start_of(name)
        if not path.exists():
            words = ["compile", folder / "text", "-o", path, "--compiler", name, "--ratio", 8, "--no-certify"]
            words += [word for setting in SHORT for word in ("--set", setting)]
            command(*words, *(["--start", make(start)] if start else []))
        return path

    return make


@pytest.fixture(params=[name for name in registry.names() if getattr(registry.get(name), "by_ratio", True)])
def name(request):
    return request.param


@pytest.fixture
def path(memory_of, name):
    return memory_of(name)


@pytest.fixture
def memory(path):
    return lcc.Memory.load(path)


def test_inspect_names_compiler_start_and_lineage(path, name, memory_of):
    summary, start = json.loads(command("inspect", path, "--json")), start_of(name)
    assert summary["compiler"]["name"] == name
    assert summary["lineage"] == (lcc.Memory.load(memory_of(start)).with_ancestors() if start else [])
    lines = command("inspect", path).splitlines()
    assert any("compiler" in line and f"name {name}" in line for line in lines)
    assert any("went on from" in line and f"name {start}" in line for line in lines) == bool(start)


def test_it_is_verified_asked_and_chatted_with(path, memory, embedded, text, tmp_path):
    model, tokenizer = embedded
    assert json.loads(command("verify", path, "--json"))["verified"] is True
    (answer,) = lcc.ask(model, tokenizer, memory, [QUESTION])
    assert f"memory: {answer}" in command("chat", path, input=f"{QUESTION}\n\n")
    inputs = lcc.prompt(model, tokenizer, memory, [QUESTION])
    row = model.generate(**inputs, past_key_values=lcc.attach(model, memory), max_new_tokens=64, do_sample=False)[0]
    assert tokenizer.decode(row[inputs["input_ids"].shape[1] :], skip_special_tokens=True).strip() == answer
    method = MemoryMethod(model, tokenizer, lambda _: memory, memory.compiler)
    (result,) = evaluate([method], [Example(text, QUESTION, ("x",))], tmp_path, progress=False)
    assert result.prediction == answer


@pytest.mark.parametrize("dtype", [None, *FORMATS])
def test_it_is_quantised_and_exported(dtype, memory, embedded, tmp_path):
    model, tokenizer = embedded
    if dtype:
        small = lcc.quantize(replace(memory, questions=()), dtype, model, tokenizer, answers=1, max_new_tokens=1)
        assert (small.compiler, small.lineage) == (memory.compiler, memory.with_ancestors())
        small.save(tmp_path / "small")
        memory = lcc.Memory.load(tmp_path / "small")
    attached = lcc.attach(model, memory).kv()
    assert attached.values.isfinite().all()
    exported = {to: lcc.export(model, memory, tmp_path / to, to) for to in ("cartridge", "safetensors")}
    tensors, _ = load_tensors(exported["safetensors"], CACHE_FORMAT)
    torch.testing.assert_close(tensors["keys"], attached.keys, rtol=0, atol=0)
    read = PeftModel.from_pretrained(model, exported["cartridge"].parent).get_prompt(1)
    torch.testing.assert_close(torch.cat([layer.values for layer in read.layers]), attached.values, rtol=0, atol=0)
