"""Where memories are attached: any position, several in a row, static and paged caches; and what is refused."""

from __future__ import annotations

import copy
import random
from dataclasses import replace

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, StaticCache

import lcc
from lcc.modeling.kv import KV
from lcc.synthetic.exam import score
from lcc.synthetic.people import document
from lcc.text.chat_format import ChatFormat
from tests.support.plain_memories import plain_memory
from tests.support.tiny_models import FAMILIES, ROPES, TINY, tiny_model

TEXT = "Mara lives in the quiet old town of Selby. Hugo works every day as a baker."
QUESTIONS = ["Where does Mara live?", "Say: dog cat.", "What is the job of Hugo?"]
FAR = 10_000


@torch.no_grad()
def logits_after(model, tokenizer, cache, question: str, past: int, start: int = 0) -> torch.Tensor:
    """(query tokens, vocabulary), read behind ``past`` cached tokens, the first of them at ``start``."""
    query = ChatFormat.of(tokenizer).query_ids(question)
    positions = torch.arange(start + past, start + past + len(query))[None]
    mask = torch.ones(1, past + len(query), dtype=torch.long)
    ids = torch.tensor([query])
    return model(input_ids=ids, position_ids=positions, attention_mask=mask, past_key_values=cache).logits[0]


def static_cache(model, length: int, batch: int = 1) -> StaticCache:
    config = model.config
    cache = StaticCache(config=config, max_cache_len=length)
    width = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    cache.early_initialization(batch, config.num_key_value_heads, width, model.dtype, model.device)
    return cache


def wide(model, window: int = FAR + 1000):
    """``model`` with a longer window; its rope does not depend on it."""
    model.config.max_position_embeddings = window
    return model


@pytest.mark.parametrize("start", [0, 7, 500])
@pytest.mark.parametrize("family", [*FAMILIES, *ROPES])
def test_attached_cache_is_the_models_own(family, start, tokenizer, monkeypatch):
    """Keys recorded before the model's own rotation, and the cache that the model made: never through our rotary."""
    model = tiny_model(family)
    memory, own = plain_memory(model, tokenizer, TEXT, monkeypatch, start)
    cache = lcc.attach(model, memory, start)
    attached, direct = cache.kv(), KV.of(own)
    past = len(direct)
    assert len(attached) == past == len(memory.prefix_ids) + memory.buffer_tokens
    torch.testing.assert_close(attached.keys, direct.keys, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(attached.values, direct.values, rtol=1e-5, atol=1e-5)
    found, expected = (logits_after(model, tokenizer, c, QUESTIONS[0], past, start) for c in (cache, own))
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("family", ["llama3", "qwen3", "phi3", "yarn"])
def test_static_cache_reads_the_same(family, tokenizer, monkeypatch):
    model = tiny_model(family)
    memory, own = plain_memory(model, tokenizer, TEXT, monkeypatch)
    past = own.get_seq_length()
    cache = lcc.attach(model, memory, cache=static_cache(model, past + 40, batch=2))
    assert int(cache.get_seq_length()) == past
    assert torch.equal(cache.layers[1].keys[0, :, :past], cache.layers[1].keys[1, :, :past])
    query = ChatFormat.of(tokenizer).query_ids(QUESTIONS[0])
    with torch.no_grad():
        ids, positions = torch.tensor([query] * 2), torch.arange(past, past + len(query))[None]
        found = model(input_ids=ids, position_ids=positions, past_key_values=cache).logits
    expected = logits_after(model, tokenizer, own, QUESTIONS[0], past)
    torch.testing.assert_close(found, expected.expand(2, -1, -1), rtol=1e-5, atol=1e-5)


def test_generate_reads_a_static_cache(llama, tokenizer, monkeypatch):
    memory, _ = plain_memory(llama, tokenizer, TEXT, monkeypatch)
    inputs = lcc.prompt(llama, tokenizer, memory, QUESTIONS)
    options = {"max_new_tokens": 5, "min_new_tokens": 5, "do_sample": False}
    expected = llama.generate(**inputs, past_key_values=lcc.attach(llama, memory), **options)
    static = lcc.attach(llama, memory, cache=static_cache(llama, inputs["input_ids"].shape[1] + 5, batch=3))
    assert torch.equal(llama.generate(**inputs, past_key_values=static, **options), expected)


@pytest.mark.parametrize("layout", ["NHD", "HND"])
def test_paged_cache_holds_the_same(layout, llama, tokenizer, monkeypatch):
    """vLLM's two layouts, from allocations (layers, 2, blocks, block_size, kv_heads, head_dim) and heads first."""
    memory, _ = plain_memory(llama, tokenizer, TEXT, monkeypatch)
    expected = lcc.attach(llama, memory, 3).kv()
    size, table = 8, torch.tensor([5, 0, 7, 2, 9, 4])
    if layout == "NHD":
        pages = torch.zeros(3, 2, 10, size, 2, 12).transpose(3, 4)
    else:
        pages = torch.zeros(3, 2, 10, 2, size, 12)
    written = lcc.attach_paged(llama, memory, list(pages[:, 0]), list(pages[:, 1]), table, 3)
    assert written == len(expected)
    for which, wanted in enumerate((expected.keys, expected.values)):
        rows = pages[:, which][:, table].transpose(1, 2).reshape(3, 2, -1, 12)
        torch.testing.assert_close(rows[:, :, :written], wanted, rtol=0, atol=0)
        assert not rows[:, :, written:].any()
    assert not pages[:, :, [1, 3, 6, 8]].any()


def test_block_tables_that_do_not_fit_are_refused(llama, tokenizer, monkeypatch):
    """Before anything is written."""
    memory, own = plain_memory(llama, tokenizer, TEXT, monkeypatch)
    pages = torch.zeros(2, 3, 10, 2, 8, 12)
    needed = -(-own.get_seq_length() // 8)
    good = list(range(needed))
    for table, reason in (
        (good[:-1], f"takes {needed} blocks"),
        ([*good[:-1], 0], "different blocks"),
        ([*good[:-1], 10], "of 0 to 9"),
        ([*good[:-1], -1], "of 0 to 9"),
    ):
        with pytest.raises(lcc.InputError, match=reason):
            lcc.attach_paged(llama, memory, list(pages[0]), list(pages[1]), torch.tensor(table))
    with pytest.raises(lcc.InputError, match="no layer"):
        lcc.attach_paged(llama, memory, [], [], torch.tensor(good))
    with pytest.raises(ValueError, match="layers"):
        lcc.attach_paged(llama, memory, list(pages[0, :2]), list(pages[1, :2]), torch.tensor(good))
    assert not pages.any()
    lcc.attach_paged(llama, memory, list(pages[0]), list(pages[1]), torch.tensor([*good, 0, -1]))


def test_same_answers_wherever_it_stands(embedded, monkeypatch):
    """The embedded model answers from a text's own K and V; at 0, at 7 and at 10,000 word for word the same."""
    model, tokenizer = embedded
    wide(model)
    doc = document(random.Random(5), people=3, attributes=4)
    memory, _ = plain_memory(model, tokenizer, doc.text, monkeypatch)
    questions = doc.questions()
    texts = [question.text for question in questions]
    answers, logits = {}, {}
    for start in (0, 7, FAR):
        inputs = lcc.prompt(model, tokenizer, memory, texts, start)
        assert ("position_ids" in inputs) == (start > 0)
        cache = lcc.attach(model, memory, start)
        rows = model.generate(**inputs, past_key_values=cache, max_new_tokens=4, do_sample=False)
        new = rows[:, inputs["input_ids"].shape[1] :]
        answers[start] = [answer.strip() for answer in tokenizer.batch_decode(new, skip_special_tokens=True)]
        cache = lcc.attach(model, memory, start)
        logits[start] = logits_after(model, tokenizer, cache, texts[0], len(cache.kv()), start)
    assert score(answers[0], questions) >= 0.95
    assert answers[0] == answers[7] == answers[FAR]
    # Logits up to 24; an angle of 10,000 radians is rounded to 5e-4 in float32.
    torch.testing.assert_close(logits[7], logits[0], rtol=0, atol=3e-4)
    torch.testing.assert_close(logits[FAR], logits[0], rtol=0, atol=1e-2)


def test_float64_does_not_know_where_it_stands(tokenizer, monkeypatch):
    model = wide(tiny_model("llama", torch.float64))
    memory, _ = plain_memory(model, tokenizer, TEXT, monkeypatch)
    past = lcc.prompt(model, tokenizer, memory, QUESTIONS[:1])["input_ids"].shape[1]
    past -= len(ChatFormat.of(tokenizer).query_ids(QUESTIONS[0]))
    near, far = (
        logits_after(model, tokenizer, lcc.attach(model, memory, start), QUESTIONS[0], past, start)
        for start in (0, FAR)
    )
    torch.testing.assert_close(far, near, rtol=1e-9, atol=1e-9)


def test_stacked_memories_stand_in_the_order_given(llama, tokenizer, monkeypatch):
    """One prefix; the second memory's keys are turned to behind the first's."""
    first, second = (
        plain_memory(llama, tokenizer, text, monkeypatch)[0] for text in (TEXT, "Elena keeps a goat as a pet.")
    )
    prefix, one, two = len(first.prefix_ids), first.buffer_tokens, second.buffer_tokens
    both = lcc.attach(llama, [first, second]).kv()
    assert len(both) == prefix + one + two
    assert torch.equal(both.keys[:, :, : prefix + one], lcc.attach(llama, first).kv().keys)
    shifted = second.kv.rotated(llama, prefix + one)
    torch.testing.assert_close(both.tail(two).keys, shifted.keys, rtol=1e-5, atol=1e-6)
    assert torch.equal(both.tail(two).values, second.kv.values)
    reverse = lcc.attach(llama, [second, first]).kv()
    assert torch.equal(reverse.tail(one).values, first.kv.values)
    assert torch.equal(lcc.attach(llama, [first]).kv().keys, lcc.attach(llama, first).kv().keys)
    inputs = lcc.prompt(llama, tokenizer, [first, second], QUESTIONS[:1])
    assert inputs["input_ids"].shape[1] == len(both) + len(ChatFormat.of(tokenizer).query_ids(QUESTIONS[0]))
    assert len(lcc.ask(llama, tokenizer, [first, second], QUESTIONS, max_new_tokens=3)) == 3


def test_stacks_that_do_not_go_together_are_refused(llama, tokenizer, monkeypatch):
    memory, _ = plain_memory(llama, tokenizer, TEXT, monkeypatch)
    with pytest.raises(lcc.MismatchError, match="another prefix"):
        lcc.attach(llama, [memory, replace(memory, prefix_ids=())])
    with pytest.raises(lcc.MismatchError, match="another model or tokenizer"):
        lcc.attach(llama, [memory, replace(memory, fingerprint={})])
    with pytest.raises(lcc.InputError, match="no memory"):
        lcc.attach(llama, [])
    with pytest.raises(lcc.MismatchError, match="rope"):
        lcc.attach(llama, [memory, replace(memory, rope={})])


def test_memories_of_several_dtypes_share_a_cache(llama, tokenizer, monkeypatch):
    memory, _ = plain_memory(llama, tokenizer, TEXT, monkeypatch)
    half = memory.to("cpu", torch.bfloat16)
    both = lcc.attach(llama, [memory, half]).kv()
    assert both.keys.dtype == torch.float32
    assert torch.equal(both.tail(half.buffer_tokens).values, half.kv.values.float())


def test_positions_beyond_the_window_are_refused(llama, tokenizer, monkeypatch):
    memory, own = plain_memory(llama, tokenizer, TEXT, monkeypatch)
    past, window = own.get_seq_length(), llama.config.max_position_embeddings
    lcc.attach(llama, memory, window - past - 1)
    with pytest.raises(lcc.InputError, match=f"the model's has {window}"):
        lcc.attach(llama, memory, window - past)
    with pytest.raises(lcc.InputError, match="position -1"):
        lcc.attach(llama, memory, -1)


def test_a_span_across_a_change_of_rope_is_refused(tokenizer, monkeypatch):
    model = tiny_model("longrope")
    memory, _ = plain_memory(model, tokenizer, TEXT, monkeypatch)
    for start in (255, 240):
        with pytest.raises(lcc.InputError, match="another one from 256 on"):
            lcc.attach(model, memory, start)
    lcc.attach(model, memory, 256)


def test_static_caches_that_do_not_fit_are_refused(llama, tokenizer, monkeypatch):
    memory, own = plain_memory(llama, tokenizer, TEXT, monkeypatch)
    past = own.get_seq_length()
    with pytest.raises(lcc.InputError, match="not allocated"):
        lcc.attach(llama, memory, cache=StaticCache(config=llama.config, max_cache_len=100))
    with pytest.raises(lcc.InputError, match=f"room for {past} tokens"):
        lcc.attach(llama, memory, cache=static_cache(llama, past))
    used = lcc.attach(llama, memory, cache=static_cache(llama, past + 10))
    with pytest.raises(lcc.InputError, match=f"holds {past} tokens"):
        lcc.attach(llama, memory, cache=used)
    used.reset()
    lcc.attach(llama, memory, cache=used)
    with pytest.raises(lcc.InputError, match="StaticCache"):
        lcc.attach(llama, memory, cache=lcc.attach(llama, memory))
    with pytest.raises(lcc.MismatchError, match="kv_heads"):
        lcc.attach(llama, memory, cache=static_cache(tiny_model("llama", num_key_value_heads=4), past + 10))


def test_a_memory_that_went_bad_is_refused(llama, tokenizer, monkeypatch):
    """Tensors can be changed in place after a memory was made."""
    memory, _ = plain_memory(llama, tokenizer, TEXT, monkeypatch)
    bad = copy.deepcopy(memory)
    bad.kv.keys[1, 0, 3, 2] = float("nan")
    with pytest.raises(lcc.InputError, match="NaN"):
        lcc.attach(llama, bad)
    with pytest.raises(lcc.InputError, match="NaN"):
        lcc.attach(llama, [memory, bad])


@pytest.mark.parametrize("model_type", ["glm", "helium", "ernie4_5"])
def test_models_that_rotate_neighbours_are_refused(model_type, tokenizer):
    """Their keys would be turned with the wrong partners, in silence."""
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(model_type, **TINY, head_dim=12))
    with pytest.raises(lcc.InputError, match="neighbour with neighbour"):
        lcc.compile(model, tokenizer, TEXT, progress=False)
