"""Memories placed without the model's weights, behind a prefix that was read once."""

from __future__ import annotations

import dataclasses
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

import lcc
from lcc.embedded_model import EMBEDDED
from lcc.errors import MemoryFileError, MismatchError
from lcc.memory import stored_prefix
from lcc.memory.quantization import quantize_payload
from lcc.memory.stored_prefix import Prefixes
from tests.support.plain_memories import plain_memory


@pytest.fixture
def memories(embedded, monkeypatch):
    model, tokenizer = embedded
    return [plain_memory(model, tokenizer, text, monkeypatch)[0] for text in ("Mara lives in Oslo.", "Hugo is a cook.")]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_it_is_what_attach_makes(dtype, memories, tmp_path):
    model = AutoModelForCausalLM.from_pretrained(EMBEDDED, dtype=dtype)
    prefixes = Prefixes(str(EMBEDDED), dtype, tmp_path)
    small = [
        dataclasses.replace(memories[0], payload=quantize_payload(memories[0].payload, dtype))
        for dtype in ("int8", "int4")
    ]
    for chosen in (memories[0], memories, memories[::-1], *small):
        placed, attached = prefixes.place(chosen), lcc.attach(model, chosen, verify=False).kv()
        assert torch.equal(placed.keys, attached.keys)
        assert torch.equal(placed.values, attached.values)
        assert placed.start == 0


def test_the_model_is_loaded_once_for_a_prefix(memories, tmp_path, monkeypatch):
    made = []
    real = stored_prefix._make
    monkeypatch.setattr(stored_prefix, "_make", lambda *given: made.append(given) or real(*given))
    for _ in range(2):
        prefixes = Prefixes(str(EMBEDDED), torch.float32, tmp_path)
        placed = [prefixes.place(memory) for memory in memories]
    assert len(made) == 1
    next(tmp_path.glob("*.safetensors")).write_bytes(b"damaged")
    again = Prefixes(str(EMBEDDED), torch.float32, tmp_path).place(memories[1])
    assert torch.equal(again.keys, placed[1].keys)
    assert len(made) == 2


def test_other_weights_in_the_folder_are_noticed(memories, tmp_path):
    folder = tmp_path / "model"
    shutil.copytree(EMBEDDED, folder)
    Prefixes(str(folder), torch.float32, tmp_path).place(memories[0])
    weights = load_file(folder / "model.safetensors")
    weights["model.norm.weight"] += 1
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(MismatchError, match="model_weights"):
        Prefixes(str(folder), torch.float32, tmp_path).place(memories[0])


def test_refusals(memories, tmp_path):
    prefixes = Prefixes(str(EMBEDDED), torch.float32, tmp_path / "new")
    (tmp_path / "new").write_text("a file")
    with pytest.raises(MemoryFileError, match="new"):
        prefixes.place(memories[0])
