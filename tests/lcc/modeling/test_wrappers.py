"""Models inside wrappers: answered like the plain model where they compute the same, refused by name where not."""

from __future__ import annotations

import pytest
import torch
from peft import LoraConfig, PromptTuningConfig, TaskType

import lcc
from lcc.inference.conversation import Conversation
from lcc.modeling.wrappers import plain_model, plain_modules
from tests.lcc.memory.test_attachment import QUESTIONS, TEXT
from tests.lcc.modeling.test_fingerprint import (
    LORA,
    adapted,
    compiled_in_place,
    eager,
    injected_and_off,
    switched_off,
    with_layer,
)
from tests.support.plain_memories import plain_memory

PROMPTS = PromptTuningConfig(task_type=TaskType.CAUSAL_LM, num_virtual_tokens=3)
SAVED = LoraConfig(r=2, target_modules=["q_proj"], modules_to_save=["lm_head"])


@pytest.mark.parametrize(
    "wrap",
    [
        eager, torch.nn.DataParallel, injected_and_off, lambda model: eager(switched_off(adapted(model))),
        lambda model: switched_off(adapted(model, SAVED)),
    ],
    ids=["compile", "data parallel", "injected", "peft", "modules to save"],
)  # fmt: skip
def test_every_entry_takes_a_wrapped_model(wrap, llama, tokenizer, tmp_path, monkeypatch):
    memory, _ = plain_memory(llama, tokenizer, TEXT, monkeypatch)
    expected = lcc.ask(llama, tokenizer, memory, QUESTIONS, max_new_tokens=4)
    keys = lcc.attach(llama, memory).kv().keys
    wrapped = wrap(llama)
    assert lcc.ask(wrapped, tokenizer, memory, QUESTIONS, max_new_tokens=4) == expected
    assert torch.equal(lcc.attach(wrapped, memory).kv().keys, keys)
    assert lcc.prompt(wrapped, tokenizer, memory, QUESTIONS)["input_ids"].device == keys.device
    assert Conversation(wrapped, tokenizer, memory).say(QUESTIONS[0], 4) == expected[0]
    assert lcc.export(wrapped, memory, tmp_path).exists()
    assert lcc.quantize(memory, "int8", wrapped, tokenizer, answers=1, max_new_tokens=1).dtype == "int8"
    memory.verify(wrapped, tokenizer)


@pytest.mark.parametrize("wrap", [compiled_in_place, lambda model: with_layer(model, eager)], ids=["model", "layer"])
def test_modules_that_are_compiled_in_place_answer(wrap, llama, tokenizer, monkeypatch):
    memory, _ = plain_memory(llama, tokenizer, TEXT, monkeypatch)
    expected = lcc.ask(llama, tokenizer, memory, QUESTIONS[:1], max_new_tokens=1)
    assert lcc.ask(wrap(llama), tokenizer, memory, QUESTIONS[:1], max_new_tokens=1) == expected


@pytest.mark.parametrize("wrap", [eager, torch.nn.DataParallel])
def test_compile_and_plan_take_a_wrapped_model(wrap, llama, tokenizer, text, fast):
    memory = lcc.compile(wrap(llama), tokenizer, text, certify=False, **fast | {"steps": 1})
    memory.verify(llama, tokenizer)
    del fast["progress"]
    assert lcc.plan(wrap(llama), tokenizer, text, **fast).text_tokens == memory.source_tokens


@pytest.mark.parametrize("config", [LORA, PROMPTS], ids=["lora", "prompt tuning"])
def test_adapters_are_off_inside_peft_s_own_block(config, llama, tokenizer, monkeypatch):
    memory, _ = plain_memory(llama, tokenizer, TEXT, monkeypatch)
    keys = lcc.attach(llama, memory).kv().keys
    wrapped = adapted(llama, config)
    with wrapped.disable_adapter():
        assert torch.equal(lcc.attach(wrapped, memory).kv().keys, keys)
    with pytest.raises(lcc.InputError, match="active adapter"):
        lcc.attach(wrapped, memory)


def merged(model):
    model = adapted(model)
    model.merge_adapter()
    return model


ACTIVE = {
    "peft": adapted,
    "peft, compiled": lambda model: eager(adapted(model)),
    "inside peft": lambda model: adapted(model).base_model.model,
    "prompt tuning": lambda model: adapted(model, PROMPTS),
    "modules to save": lambda model: adapted(model, SAVED),
    "merged, not unloaded": merged,
    "merged and switched off": lambda model: switched_off(merged(model)),
}


@pytest.mark.parametrize("name", ACTIVE)
def test_an_active_adapter_is_refused_by_name(name, llama, tokenizer, text, tmp_path, monkeypatch):
    memory, _ = plain_memory(llama, tokenizer, TEXT, monkeypatch)
    model = ACTIVE[name](llama)
    for refused in (
        lambda: lcc.fingerprint(model, tokenizer),
        lambda: lcc.attach(model, memory),
        lambda: lcc.attach(model, memory, verify=False),
        lambda: lcc.ask(model, tokenizer, memory, QUESTIONS),
        lambda: lcc.export(model, memory, tmp_path),
        lambda: lcc.compile(model, tokenizer, text, progress=False),
        lambda: lcc.plan(model, tokenizer, text),
    ):
        with pytest.raises(lcc.InputError, match=r"active adapter.*disable_adapter.*merge_and_unload"):
            refused()


def test_what_is_no_model_is_refused_by_name(tokenizer):
    for other in (torch.nn.Linear(2, 2), "a name", None, torch.nn.DataParallel(torch.nn.Linear(2, 2))):
        with pytest.raises(lcc.InputError, match=f"is a {type(other).__name__}"):
            lcc.fingerprint(other, tokenizer)


def test_names_are_those_of_the_plain_model(llama):
    assert plain_model(llama) is llama
    names = [name for name, _ in plain_modules(llama)]
    assert [name for name, _ in plain_modules(eager(adapted(with_layer(llama, eager))))] == names
