"""Memories: files, fingerprints, and caches that generate reads."""

from __future__ import annotations

import copy
import math
from dataclasses import replace

import pytest
import torch
from peft import LoraConfig, get_peft_model

import lcc
from lcc.compilers.lora import LoraMemory
from lcc.embedded_model.tokenizer import build_tokenizer
from lcc.memory.file_format import FORMAT
from lcc.memory.payload import KVPayload
from lcc.modeling.kv import KV
from lcc.modeling.lora import lora_model
from lcc.modeling.prefill import prefill
from lcc.modeling.scoring import Completion, completion_states
from lcc.text.chat_format import ChatFormat
from lcc.text.context import build_context
from lcc.utils.tensor_files import save_tensors
from tests.support.tiny_models import FAMILIES, tiny_model

METADATA = {
    "prefix_ids", "ratio", "source_tokens", "source_sha256", "rope", "fingerprint", "settings", "curve", "questions",
}  # fmt: skip
QUESTIONS = ["Where does Mara live?", "Say: dog cat.", "What is the job of Hugo, the baker?"]


@pytest.fixture
def memory(llama, tokenizer, text, fast, once):
    return once("memory", lambda: lcc.compile(llama, tokenizer, text, **fast))


def test_file_round_trip(memory, tmp_path):
    memory.save(tmp_path / "m")
    loaded = lcc.Memory.load(tmp_path / "m")
    assert torch.equal(loaded.kv.keys, memory.kv.keys)
    assert torch.equal(loaded.kv.values, memory.kv.values)
    assert loaded.summary() == {**memory.summary(), "settings": loaded.settings}
    assert loaded.settings == {**memory.settings, "targets": None}
    assert loaded.kv_bytes == memory.kv_bytes == 2 * 3 * 2 * memory.buffer_tokens * 12 * 4


def test_the_best_point_is_of_what_was_held_out(memory, tmp_path):
    def best(*kls):
        curve = [{"step": step, "loss": 1.0, "held_out_kl": kl, "seconds": 0.0} for step, kl in enumerate(kls)]
        replace(memory, curve=curve).save(tmp_path / "m")
        found = [one.best_point for one in (replace(memory, curve=curve), lcc.Memory.load(tmp_path / "m"))]
        assert found[0] == found[1]
        return found[0] and found[0]["step"]

    assert best() is best(math.nan) is None
    assert best(0.3, math.nan, 0.1, 0.2) == 2
    assert best(0.3, 0.0) == 1


def test_verify_names_what_differs(memory, llama, tokenizer):
    memory.verify(llama, tokenizer)
    changed = copy.deepcopy(llama)
    changed.model.layers[2].mlp.down_proj.weight.data[5, 7] += 1e-3
    with pytest.raises(lcc.MismatchError, match=r"\(model_weights\)"):
        memory.verify(changed, tokenizer)
    changed = copy.deepcopy(llama)
    changed.config.rms_norm_eps = 1e-4
    with pytest.raises(lcc.MismatchError, match=r"\(model_config\)"):
        memory.verify(changed, tokenizer)
    other = build_tokenizer()
    other.chat_template += " "
    with pytest.raises(lcc.MismatchError, match=r"\(chat_template\)"):
        memory.verify(llama, other)
    other = build_tokenizer()
    other.add_tokens(["extraordinary"])
    with pytest.raises(lcc.MismatchError, match=r"\(tokenizer\)"):
        memory.verify(llama, other)


@pytest.mark.parametrize("part", ["nothing", "model_config"])
def test_a_fingerprint_without_every_field_fits_no_model(part, memory, llama, tokenizer):
    known = {name: digest for name, digest in memory.fingerprint.items() if name == part}
    with pytest.raises(lcc.MismatchError, match="model_weights"):
        replace(memory, fingerprint=known).verify(llama, tokenizer)


@pytest.mark.parametrize(
    "wrong",
    [
        {"prefix_ids": "abc"}, {"prefix_ids": [-1]}, {"prefix_ids": [1.5]}, {"rope": None}, {"fingerprint": ["a"]},
        {"questions": [1]}, {"questions": [["Who?", "Ada"]]}, {"curve": None},
        {"ratio": "8"}, {"ratio": 0.5}, {"ratio": 10**400}, {"ratio": True}, {"source_tokens": "8"},
        {"source_tokens": -1}, {"source_sha256": 7}, {"settings": []}, {"prefix_ids": [2**40]}, {"questions": "Who?"},
        {"fingerprint": {"a": 5}}, {"curve": [1]}, {"curve": [{"step": 1}]}, {"certificate": "x"}, {"certificate": {}},
        {"ratio_search": [1]}, {"ratio_search": {"target": 1, "met": True, "tried": [{}]}},
        {"quantization": {"source_dtype": "x", "general": {}}},
    ],
)  # fmt: skip
def test_metadata_of_another_type_is_refused(wrong, memory, tmp_path):
    """A file whose metadata was edited and its digest made right again."""
    metadata = {name: value for name, value in vars(memory).items() if name in METADATA}
    save_tensors(tmp_path / "m", FORMAT, memory.tensors(), metadata)
    assert lcc.Memory.load(tmp_path / "m").prefix_ids == memory.prefix_ids
    save_tensors(tmp_path / "m", FORMAT, memory.tensors(), metadata | wrong)
    # A number of 401 digits is no JSON to begin with.
    named = "401 digits" if wrong == {"ratio": 10**400} else next(iter(wrong))
    with pytest.raises(lcc.MemoryFileError, match=named):
        lcc.Memory.load(tmp_path / "m")


def test_fingerprint_survives_use_and_storage(llama, tokenizer, tmp_path):
    before = lcc.fingerprint(llama, tokenizer)
    tokenizer(["a", "a b c"], padding=True, truncation=True, max_length=2)
    llama.save_pretrained(tmp_path)
    assert lcc.fingerprint(type(llama).from_pretrained(tmp_path), tokenizer) == before


def test_attach_refuses_other_models(memory, llama, text):
    with pytest.raises(lcc.MismatchError, match="rope"):
        lcc.attach(tiny_model("llama3"), memory)
    with pytest.raises(lcc.MismatchError, match="head_dim"):
        lcc.attach(tiny_model("qwen3"), memory)
    with pytest.raises(lcc.MismatchError, match="prefix has token 10000"):
        lcc.attach(llama, replace(memory, prefix_ids=(1, 10000)))
    adapted = get_peft_model(copy.deepcopy(llama), LoraConfig(target_modules=["q_proj"]))
    with pytest.raises(lcc.InputError, match="adapter"):
        lcc.attach(adapted.base_model.model, memory)
    with pytest.raises(lcc.InputError, match="adapter"):
        lcc.compile(adapted.base_model.model, build_tokenizer(), text, progress=False)


def test_attach_refuses_a_model_that_drops_caches(memory, llama):
    llama.gradient_checkpointing_enable()
    llama.train()
    with pytest.raises(lcc.InputError, match=r"call model\.eval"):
        lcc.attach(llama, replace(memory, prefix_ids=()))
    lcc.attach(llama.eval(), memory)


def test_ask_refuses_bad_questions_and_other_models(memory, llama, tokenizer):
    with pytest.raises(lcc.InputError, match="one string"):
        lcc.ask(llama, tokenizer, memory, "Where?")
    with pytest.raises(lcc.InputError, match="empty"):
        lcc.ask(llama, tokenizer, memory, ["Where?", " "])
    for batch in (0, -1):
        with pytest.raises(lcc.InputError, match="batch"):
            lcc.ask(llama, tokenizer, memory, QUESTIONS, batch=batch)
    for questions, message in (("Where?", "one string"), ([""], "empty"), ([], "no question")):
        with pytest.raises(lcc.InputError, match=message):
            lcc.prompt(llama, tokenizer, memory, questions)
    llama.model.norm.weight.data[0] += 1
    with pytest.raises(lcc.MismatchError, match="weights"):
        lcc.ask(llama, tokenizer, memory, QUESTIONS)


def test_batches_answer_like_single_questions(memory, llama, tokenizer):
    together = lcc.ask(llama, tokenizer, memory, QUESTIONS, max_new_tokens=6)
    alone = [lcc.ask(llama, tokenizer, memory, [question], max_new_tokens=6)[0] for question in QUESTIONS]
    assert together == alone
    assert lcc.ask(llama, tokenizer, memory, []) == []
    assert lcc.ask(llama, tokenizer, memory, QUESTIONS, max_new_tokens=6, batch=2) == alone


def test_a_checkpoints_repetition_penalty_leaves_answers_alone(memory, llama, tokenizer):
    """It would count the placeholders for cached tokens, so that answers depended on their id and number."""
    greedy = lcc.ask(llama, tokenizer, memory, QUESTIONS, max_new_tokens=6)
    asked_for = lcc.ask(llama, tokenizer, memory, QUESTIONS, max_new_tokens=6, repetition_penalty=3.0)
    llama.generation_config.repetition_penalty = 3.0
    assert lcc.ask(llama, tokenizer, memory, QUESTIONS, max_new_tokens=6) == greedy != asked_for


def test_no_option_makes_generate_read_the_placeholders(memory, llama, tokenizer):
    greedy = lcc.ask(llama, tokenizer, memory, QUESTIONS, max_new_tokens=6)
    for wrong in ({"use_cache": False}, {"prompt_lookup_num_tokens": 3}, {"return_dict_in_generate": True}):
        with pytest.raises(lcc.InputError, match=next(iter(wrong))):
            lcc.ask(llama, tokenizer, memory, QUESTIONS, **wrong)
    # Left behind by a training with checkpointing.
    llama.config.use_cache = llama.generation_config.use_cache = False
    unverified = replace(memory, fingerprint=lcc.fingerprint(llama, tokenizer))
    assert lcc.ask(llama, tokenizer, unverified, QUESTIONS, max_new_tokens=6) == greedy


def test_plain_generate_reads_the_cache(memory, llama, tokenizer):
    """Greedy, sampling and beams through the model's own ``generate``."""
    inputs = lcc.prompt(llama, tokenizer, memory, QUESTIONS)
    start = inputs["input_ids"].shape[1]
    for options in (
        {"do_sample": False},
        {"do_sample": True, "top_k": 1},
        {"do_sample": False, "num_beams": 3},
        {"do_sample": True, "num_return_sequences": 2},
    ):
        output = llama.generate(
            **inputs, past_key_values=lcc.attach(llama, memory), max_new_tokens=5, min_new_tokens=5, **options
        )
        assert output.shape == (3 * options.get("num_return_sequences", 1), start + 5)
        if options == {"do_sample": False}:
            greedy = output
        elif options.get("top_k") == 1:
            assert torch.equal(output, greedy)


def test_one_beam_of_the_shared_cache_equals_greedy(memory, llama, tokenizer):
    """Beams expand the shared tokens; a replicated cache must give the same sequences."""
    inputs = lcc.prompt(llama, tokenizer, memory, QUESTIONS[:1])
    options = {"max_new_tokens": 5, "num_beams": 4, "do_sample": False}
    shared = llama.generate(**inputs, past_key_values=lcc.attach(llama, memory), **options)
    replicated = lcc.attach(llama, memory)
    replicated.batch_repeat_interleave(4)
    assert torch.equal(shared, llama.generate(**inputs, past_key_values=replicated, **options))


@pytest.mark.parametrize("keep_prefix", [True, False])
@pytest.mark.parametrize("family", FAMILIES)
def test_attached_memory_equals_the_training_time_student(family, keep_prefix, tokenizer, text, tmp_path):
    """Through K and V, unrotated, on disk and back: the same hidden states as while training."""
    model = tiny_model(family)
    context = build_context(model, tokenizer, text, 8)
    query = context.chat.query_ids(QUESTIONS[0])
    sample = Completion(tuple(query), tuple(context.chat.ids("Mara dog.")))
    with lora_model(model, 8, 8.0) as layers, torch.no_grad():
        for layer in layers:
            layer.lora_B["default"].weight.normal_(std=0.1)
        compiler = LoraMemory(model, context, layers)
        kv = compiler.encode()
        student = completion_states(model, compiler.visible(kv, keep_prefix), [sample])
    memory = lcc.Memory(
        payload=KVPayload(kv), prefix_ids=context.prefix_ids if keep_prefix else (), ratio=8.0, source_tokens=1,
        source_sha256="", rope=dict(model.config.rope_parameters), settings={},
        fingerprint=lcc.fingerprint(model, tokenizer),
    )  # fmt: skip
    memory.save(tmp_path / "m")
    cache = lcc.attach(model, lcc.Memory.load(tmp_path / "m"))
    with torch.no_grad():
        attached = completion_states(model, cache.kv(), [sample])
    torch.testing.assert_close(attached, student, rtol=1e-5, atol=1e-5)


def test_memory_is_rotated_to_where_it_is_attached(memory, llama):
    """Unrotating what attach rotated gives the memory's keys back."""
    cached = lcc.attach(llama, memory).kv().tail(memory.buffer_tokens)
    torch.testing.assert_close(cached.unrotated(llama).keys, memory.kv.keys, rtol=1e-5, atol=1e-6)


def test_prefix_is_the_frozen_models_own(memory, llama):
    with torch.no_grad():
        prefix = prefill(llama, memory.prefix_ids)
    cached = lcc.attach(llama, memory).kv()
    assert torch.equal(cached.keys[:, :, : len(prefix)], prefix.keys)


def test_cast_memory_answers(memory, llama, tokenizer):
    half = memory.to("cpu", torch.bfloat16)
    assert half.dtype == "bfloat16"
    assert half.kv_bytes * 2 == memory.kv_bytes
    assert len(lcc.ask(llama, tokenizer, half, QUESTIONS, max_new_tokens=3)) == 3


@pytest.mark.parametrize("part", ["keys", "values"])
def test_a_cast_that_overflows_is_refused_by_name(part, memory):
    kv = {"keys": memory.kv.keys, "values": memory.kv.values}
    large = replace(memory, payload=KVPayload(KV(**kv | {part: kv[part] * 1e6})))
    with pytest.raises(lcc.InputError, match=r"too large for torch\.float16: take bfloat16 or float32"):
        large.to("cpu", torch.float16)
    assert large.to("cpu", torch.bfloat16).dtype == "bfloat16"
    with pytest.raises(lcc.InputError, match=r"too large for torch\.float32"):
        replace(memory, payload=KVPayload(KV(memory.kv.keys.double() * 1e60, memory.kv.values.double()))).to(
            "cpu", torch.float32
        )


def test_conversation_keeps_its_history(memory, llama, tokenizer):
    from lcc.inference.conversation import Conversation

    conversation = Conversation(llama, tokenizer, memory)
    first = conversation.say(QUESTIONS[0], max_new_tokens=4)
    assert first == lcc.ask(llama, tokenizer, memory, QUESTIONS[:1], max_new_tokens=4)[0]
    conversation.say(QUESTIONS[1], max_new_tokens=4)
    chat = ChatFormat.of(tokenizer)
    history = tokenizer.decode(conversation._history)
    assert history.count("<|end|><|user|>") == 1
    assert history.count(tokenizer.decode([chat.end]) + "<|assistant|>") == 2
    with pytest.raises(lcc.MismatchError):
        Conversation(llama, tokenizer, replace(memory, fingerprint={"tokenizer": "other"}))


def test_half_precision_keys_are_turned_in_float32(memory, llama):
    half = memory.to("cpu", torch.bfloat16).kv
    moved = half.rotated(llama, 700).unrotated(llama)
    assert moved.keys.dtype == torch.bfloat16
    exact = KV(half.keys.double(), half.values).rotated(llama, 700).keys
    rounding = (exact.bfloat16().double() - exact).abs().max()
    assert (half.rotated(llama, 700).keys.double() - exact).abs().max() <= 2 * rounding
