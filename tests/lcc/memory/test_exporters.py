"""Exports answer the same where this package is not at hand."""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest
import torch
from peft import PeftModel

import lcc
from lcc.modeling.generation import batch_inputs as batched_prompt
from lcc.text.chat_format import ChatFormat
from tests.lcc.memory.test_attachment import QUESTIONS, TEXT, logits_after
from tests.support.plain_memories import plain_memory
from tests.support.tiny_models import FAMILIES, tiny_model

FORMAT_DOC = Path(__file__).parents[3] / "docs" / "memory-format.md"


@pytest.mark.parametrize("family", FAMILIES)
def test_cartridge_answers_the_same_in_plain_peft(family, tokenizer, tmp_path, monkeypatch):
    model = tiny_model(family)
    memory, own = plain_memory(model, tokenizer, TEXT, monkeypatch)
    expected = logits_after(model, tokenizer, own, QUESTIONS[0], own.get_seq_length())
    path = lcc.export(model, memory, tmp_path / "adapter", "cartridge")
    assert path.stat().st_size < 2 * lcc.attach(model, memory).kv().keys.nbytes + 1000
    answers = [lcc.ask(model, tokenizer, memory, [question], max_new_tokens=6)[0] for question in QUESTIONS]
    assert all(answers)
    adapted = PeftModel.from_pretrained(model, tmp_path / "adapter")
    assert adapted.peft_config["default"].peft_type == "CARTRIDGE"
    assert adapted.peft_config["default"].num_frozen_tokens == len(memory.prefix_ids)
    chat = ChatFormat.of(tokenizer)
    with torch.no_grad():
        ids = torch.tensor([chat.query_ids(QUESTIONS[0])])
        found = adapted(input_ids=ids, attention_mask=torch.ones_like(ids)).logits[0]
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
    for question, answer in zip(QUESTIONS, answers, strict=True):
        ids = torch.tensor([chat.query_ids(question)])
        options = {"max_new_tokens": 6, "do_sample": False, "eos_token_id": [2, chat.end]}
        row = adapted.generate(input_ids=ids, attention_mask=torch.ones_like(ids), **options)[0]
        assert tokenizer.decode(row[ids.shape[1] :], skip_special_tokens=True).strip() == answer
    # Queries of several lengths, padded on the left.
    padded = batched_prompt(0, [chat.query_ids(question) for question in QUESTIONS], chat.end, model.device)
    rows = adapted.generate(**padded, **options)[:, padded["input_ids"].shape[1] :].tolist()
    texts = [tokenizer.decode(row[: [*row, 2].index(2)], skip_special_tokens=True).strip() for row in rows]
    assert texts == answers


def test_quantised_and_stacked_memories_are_exported(llama, tokenizer, tmp_path, monkeypatch):
    memory, _ = plain_memory(llama, tokenizer, TEXT, monkeypatch)
    small, smallest = (
        lcc.quantize(memory, dtype, llama, tokenizer, answers=1, max_new_tokens=1) for dtype in ("int8", "int4")
    )
    stack = [small, memory, smallest]
    expected = lcc.attach(llama, stack).kv()
    lcc.export(llama, stack, tmp_path, "cartridge")
    adapted = PeftModel.from_pretrained(llama, tmp_path)
    cache = adapted.get_prompt(1)
    torch.testing.assert_close(torch.cat([layer.keys for layer in cache.layers]), expected.keys, rtol=0, atol=0)
    torch.testing.assert_close(torch.cat([layer.values for layer in cache.layers]), expected.values, rtol=0, atol=0)


@pytest.mark.parametrize("killed_at", ["adapter_model.safetensors", "adapter_config.json"])
def test_an_interrupted_export_is_never_mistaken_for_a_whole_one(killed_at, llama, tokenizer, tmp_path, monkeypatch):
    memory, _ = plain_memory(llama, tokenizer, TEXT, monkeypatch)
    lcc.export(llama, memory, tmp_path)
    two = lcc.attach(llama, [memory, memory]).kv()
    real = Path.replace

    def killed(path, target):
        if target.name == killed_at:
            raise KeyboardInterrupt
        return real(path, target)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "replace", killed)
        patch.setattr(Path, "unlink", lambda path, **_: "partial" in path.name or os.unlink(path))  # as a kill would
        with pytest.raises(KeyboardInterrupt):
            lcc.export(llama, [memory, memory], tmp_path)
    with pytest.raises(ValueError, match=r"adapter_config\.json"):
        PeftModel.from_pretrained(llama, tmp_path)
    lcc.export(llama, [memory, memory], tmp_path)
    cache = PeftModel.from_pretrained(llama, tmp_path).get_prompt(1)
    assert torch.equal(torch.cat([layer.values for layer in cache.layers]), two.values)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["adapter_config.json", "adapter_model.safetensors"]


def snippets() -> list[str]:
    return re.findall(r"```python\n(.*?)```", FORMAT_DOC.read_text("utf-8"), re.DOTALL)


@pytest.mark.parametrize("dtype", [None, "int8", "fp8", "int4"])
def test_the_documents_reader_reads_a_memory(dtype, llama, tokenizer, tmp_path, monkeypatch):
    """The very lines of docs/memory-format.md, in a namespace without this package."""
    memory, _ = plain_memory(llama, tokenizer, TEXT, monkeypatch)
    if dtype:
        memory = lcc.quantize(memory, dtype, llama, tokenizer, answers=1, max_new_tokens=1)
    memory.save(tmp_path / "m.lcc.safetensors")
    reader = snippets()[0]
    assert len(reader.splitlines()) <= 24
    assert "lcc." not in reader
    namespace: dict = {}
    exec(reader, namespace)
    keys, values, metadata = namespace["read_memory"](tmp_path / "m.lcc.safetensors")
    assert keys.dtype == values.dtype == torch.float32
    assert tuple(metadata["prefix_ids"]) == memory.prefix_ids
    attached = lcc.attach(llama, memory).kv().tail(memory.buffer_tokens)
    unrotated = attached.unrotated(llama)
    torch.testing.assert_close(keys, unrotated.keys, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(values, attached.values, rtol=1e-6, atol=1e-6)


def test_the_documents_reader_reads_an_exported_cache(llama, tokenizer, tmp_path, monkeypatch):
    memory, own = plain_memory(llama, tokenizer, TEXT, monkeypatch)
    expected = logits_after(llama, tokenizer, own, QUESTIONS[0], own.get_seq_length())
    path = lcc.export(llama, memory, tmp_path, "safetensors")
    namespace: dict = {}
    exec(snippets()[1], namespace)
    cache = namespace["read_cache"](path, llama.config)
    past = len(memory.prefix_ids) + memory.buffer_tokens
    assert cache.get_seq_length() == past
    found = logits_after(llama, tokenizer, cache, QUESTIONS[0], past)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


def test_every_field_is_documented(llama, tokenizer, tmp_path, monkeypatch):
    memory, _ = plain_memory(llama, tokenizer, TEXT, monkeypatch)
    small = lcc.quantize(memory, "int8", llama, tokenizer, answers=1, max_new_tokens=1)
    named = set(re.findall(r"^\| `(\w+)`", FORMAT_DOC.read_text("utf-8"), re.MULTILINE))
    assert named >= small.tensors().keys() | small.metadata().keys()


def test_unusable_targets_are_refused(llama, tokenizer, tmp_path, monkeypatch):
    memory, _ = plain_memory(llama, tokenizer, TEXT, monkeypatch)
    with pytest.raises(lcc.InputError, match="unknown target 'gguf'"):
        lcc.export(llama, memory, tmp_path, "gguf")
    with pytest.raises(lcc.MismatchError, match="rope"):
        lcc.export(tiny_model("llama3"), memory, tmp_path)
    (tmp_path / "file").write_text("")
    for target in ("cartridge", "safetensors"):
        with pytest.raises(lcc.MemoryFileError, match="cannot make the folder"):
            lcc.export(llama, memory, tmp_path / "file" / "below", target)
