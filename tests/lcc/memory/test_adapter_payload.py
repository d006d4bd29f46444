"""Memories that are adapters: their files, what is said of them, and who refuses them."""

from __future__ import annotations

import json
import math
from dataclasses import replace

import pytest
import torch
from peft import PeftModel
from typer.testing import CliRunner

import lcc
from lcc.cli import app as cli
from lcc.inference.conversation import Conversation
from lcc.memory.file_format import FORMAT
from lcc.memory.payload import AdapterPayload
from lcc.modeling.adapter import AdaptedModel, Adapter
from tests.support.adapters import adapter_memory, random_adapter
from tests.support.forge import forge
from tests.support.plain_memories import plain_memory
from tests.support.tiny_models import tiny_model

QUESTION = "Where does Mara live?"
NAME = "model.layers.0.mlp.up_proj"


@pytest.fixture
def memory(llama, tokenizer):
    return adapter_memory(llama, tokenizer)


def shown(*words: object) -> str:
    result = CliRunner().invoke(cli.app, [str(word) for word in words])
    assert result.exit_code == 0, result.output
    return " ".join(result.stdout.split())


def test_a_file_and_what_is_said_of_it(memory, llama, tokenizer, tmp_path):
    memory.save(tmp_path / "m")
    loaded = lcc.Memory.load(tmp_path / "m")
    loaded.verify(llama, tokenizer)
    assert loaded.tensors().keys() == memory.tensors().keys()
    assert all(torch.equal(tensor, memory.tensors()[name]) for name, tensor in loaded.tensors().items())
    assert (loaded.payload.adapter.alpha, loaded.payload.adapter.cache_sharing) == (6.0, True)
    assert (loaded.buffer_tokens, loaded.kv_bytes) == (0, 0)
    assert loaded.nbytes == sum(tensor.nbytes for tensor in memory.tensors().values()) > 0
    assert loaded.with_ancestors() == memory.with_ancestors()
    summary = json.loads(shown("inspect", tmp_path / "m", "--json"))
    targets = ["down_proj", "gate_proj", "k_proj", "o_proj", "q_proj", "up_proj", "v_proj"]
    assert summary["adapter"] == {"rank": 3, "alpha": 6.0, "targets": targets, "cache_sharing": True}
    assert summary["bytes"]["adapter"] == loaded.nbytes
    assert (summary["payload"], summary["adapted_layers"], summary["dtype"]) == ("adapter", 21, "float32")
    assert "rank 3, alpha 6, 21 linear layers, float32" in shown("inspect", tmp_path / "m")


def test_it_goes_to_other_dtypes(memory):
    half = memory.to("cpu", torch.bfloat16)
    assert (half.dtype, half.nbytes) == ("bfloat16", memory.nbytes // 2)
    large = AdapterPayload(Adapter({NAME: torch.full((1, 2), 1e5)}, {NAME: torch.ones(3, 1)}, 1.0))
    with pytest.raises(lcc.InputError, match=r"too large for torch\.float16"):
        replace(memory, payload=large).to("cpu", torch.float16)


A, B = torch.ones(2, 5), torch.ones(7, 2)
WRONG = {
    "nothing": (Adapter({}, {}, 1.0), "of one at least"),
    "other layers": (Adapter({"a": A}, {"b": B}, 1.0), "of the same linear layers"),
    "a vector": (Adapter({"a": A[0]}, {"a": B}, 1.0), r"must be \(rank, in\)"),
    "a number": (Adapter({"a": A.sum()}, {"a": B.sum()}, 1.0), r"must be \(rank, in\)"),
    "no rank": (Adapter({"a": A[:0]}, {"a": B[:, :0]}, 1.0), r"must be \(rank, in\)"),
    "two ranks": (Adapter({"a": A}, {"a": B[:, :1]}, 1.0), "one rank"),
    "ranks of two layers": (Adapter({"a": A, "b": A[:1]}, {"a": B, "b": B[:, :1]}, 1.0), "one rank"),
    "two dtypes": (Adapter({"a": A}, {"a": B.half()}, 1.0), "one float dtype"),
    "whole numbers": (Adapter({"a": A.int()}, {"a": B.int()}, 1.0), "one float dtype"),
    "NaN": (Adapter({"a": A * math.nan}, {"a": B}, 1.0), "of a holds NaN"),
    "infinity": (Adapter({"a": A}, {"a": B * math.inf}, 1.0), "of a holds NaN or infinity"),
    "no alpha": (Adapter({"a": A}, {"a": B}, 0.0), "alpha is 0"),
    "an endless alpha": (Adapter({"a": A}, {"a": B}, math.inf), "alpha is inf"),
}


@pytest.mark.parametrize("what", WRONG)
def test_what_a_model_must_not_read(what, memory):
    adapter, cause = WRONG[what]
    with pytest.raises(lcc.InputError, match=cause):
        replace(memory, payload=AdapterPayload(adapter))


@pytest.mark.parametrize(
    ("change", "cause"),
    [
        ({"adapter": None}, "adapter"),
        ({"adapter": {"rank": 3}}, "adapter has no alpha"),
        (
            {"adapter": {"rank": 4, "alpha": 6.0, "targets": [], "cache_sharing": True}},
            "are not those of its tensors",
        ),
        ({"payload": "kv"}, "keys"),
        ({"payload": "prompt"}, "which this version does not know"),
    ],
)
def test_files_that_were_edited(change, cause, memory, tmp_path):
    metadata = json.loads(json.dumps(memory.metadata()))
    forge(tmp_path / "m", memory.tensors(), metadata, FORMAT)
    assert lcc.Memory.load(tmp_path / "m").payload.kind == "adapter"
    forge(tmp_path / "m", memory.tensors(), metadata | change, FORMAT)
    with pytest.raises(lcc.MemoryFileError, match=cause):
        lcc.Memory.load(tmp_path / "m")


def test_files_whose_tensors_were_edited(memory, tmp_path):
    metadata, tensors = json.loads(json.dumps(memory.metadata())), memory.tensors()
    for wrong, cause in (
        ({"keys": torch.ones(1)}, "no A and B"),
        ({name: torch.tensor(1.0) for name in tensors}, r"must be \(rank, in\)"),
        ({name: torch.ones(4, 4) for name in tensors}, "are not those of its tensors"),
    ):
        forge(tmp_path / "m", tensors | wrong, metadata, FORMAT)
        with pytest.raises(lcc.MemoryFileError, match=cause):
            lcc.Memory.load(tmp_path / "m")


def test_those_who_need_keys_and_values_refuse_it_by_name(memory, llama, tokenizer, text, fast, tmp_path, monkeypatch):
    kv, _ = plain_memory(llama, tokenizer, "Mara lives in Oslo.", monkeypatch)
    for use in (
        lambda: lcc.attach(llama, memory),
        lambda: lcc.attach(llama, [kv, memory]),
        lambda: lcc.ask(llama, tokenizer, [memory, memory], [QUESTION]),
        lambda: lcc.prompt(llama, tokenizer, memory, [QUESTION]),
        lambda: lcc.quantize(memory, "int8", llama, tokenizer),
        lambda: lcc.export(llama, memory, tmp_path / "a", "cartridge"),
        lambda: lcc.export(llama, memory, tmp_path / "a", "safetensors"),
        lambda: lcc.compile(llama, tokenizer, text, start=memory, **fast),
        lambda: Conversation(llama, tokenizer, memory),
        lambda: lcc.Monitor.calibrate(llama, tokenizer, memory, [QUESTION]),
    ):
        with pytest.raises(lcc.InputError, match=r"of kind 'adapter': ask it alone, with lcc\.ask"):
            use()
    assert not (tmp_path / "a").exists()


@pytest.mark.parametrize("cache_sharing", [True, False])
@pytest.mark.parametrize("family", ["llama", "phi3"])
def test_peft_gives_the_same_logits(family, cache_sharing, tokenizer, tmp_path):
    model = tiny_model(family)
    memory = adapter_memory(model, tokenizer, random_adapter(model, cache_sharing=cache_sharing))
    ids = torch.tensor([[*memory.prefix_ids, 5, 9, 40]])
    with torch.no_grad():
        plain = model(input_ids=ids).logits
        ours = AdaptedModel(model, [memory.payload.adapter]).model(input_ids=ids).logits
    path = lcc.export(model, memory, tmp_path / "lora", to="peft")
    assert path.name == "adapter_model.safetensors"
    assert lcc.export(model, memory, tmp_path / "lora", to="peft") == path
    inside = PeftModel.from_pretrained(model, tmp_path / "lora").eval()
    config = inside.peft_config["default"]
    assert (config.peft_type, config.r, config.lora_alpha) == ("LORA", 3, 6.0)
    with torch.no_grad():
        if cache_sharing:  # as docs/memory-format.md says
            with inside.disable_adapter():
                cache = inside(input_ids=ids[:, :-1], use_cache=True).past_key_values
            pefts = inside(input_ids=ids[:, -1:], past_key_values=cache).logits
        else:
            pefts = inside(input_ids=ids).logits
    torch.testing.assert_close(ours[:, -pefts.shape[1] :], pefts, rtol=1e-4, atol=1e-4)
    assert not torch.allclose(ours[:, -1], plain[:, -1], atol=1e-2)


def test_an_adapter_of_part_of_the_layers_names_them_in_peft(llama, tokenizer, tmp_path):
    whole = random_adapter(llama)
    part = Adapter({NAME: whole.down[NAME]}, {NAME: whole.up[NAME]}, whole.alpha)
    lcc.export(llama, adapter_memory(llama, tokenizer, part), tmp_path / "lora", to="peft")
    inside = PeftModel.from_pretrained(llama, tmp_path / "lora")
    assert inside.peft_config["default"].target_modules == {NAME}
    assert [name for name, _ in inside.named_parameters() if "lora_A" in name] == [
        f"base_model.model.{NAME}.lora_A.default.weight"
    ]


def test_what_is_no_adapter_is_not_exported_as_one(memory, llama, tokenizer, tmp_path, monkeypatch):
    kv, _ = plain_memory(llama, tokenizer, "Mara lives in Oslo.", monkeypatch)
    with pytest.raises(lcc.InputError, match="this is one of kv"):
        lcc.export(llama, kv, tmp_path / "lora", to="peft")
    with pytest.raises(lcc.InputError, match="there are 2"):
        lcc.export(llama, [memory, memory], tmp_path / "lora", to="peft")
    with pytest.raises(lcc.MismatchError, match="model_weights"):
        lcc.export(tiny_model("qwen3"), memory, tmp_path / "lora", to="peft")
    lcc.export(llama, kv, tmp_path / "other", to="cartridge")
    with pytest.raises(lcc.MemoryFileError):
        lcc.export(llama, memory, tmp_path / "other", to="peft")
