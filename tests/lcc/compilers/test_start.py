"""``start``: a memory goes on from another one of the same text."""

from __future__ import annotations

import pytest
import torch

import lcc
from lcc.compilers.direct_kv import DirectKV, DirectKVSettings
from lcc.modeling.prefill import prefill
from lcc.text.context import build_context
from tests.lcc.pipeline.test_compile import fail_at, same
from tests.support.tiny_models import tiny_model

TRAINED = ("direct_kv", "lcc")
NO_STEP = {"steps": 1, "learning_rate": 1e-12, "patience": 0}


@pytest.fixture
def job(llama, tokenizer, text, fast):
    def run(content=text, **overrides):
        return lcc.compile(llama, tokenizer, content, **(fast | overrides))

    return run


@pytest.fixture
def matched(job, once):
    return once("matched", lambda: job(compiler="attention_matching", certify=False))


@pytest.mark.parametrize("compiler", TRAINED)
@pytest.mark.parametrize("engine", ["packed", "reference"])
def test_the_first_state_is_the_memory_itself(job, matched, compiler, engine):
    still = NO_STEP | ({"buffer_learning_rate": 1e-12} if compiler == "lcc" else {})
    memory = job(compiler=compiler, engine=engine, start=matched, certify=False, **still)
    torch.testing.assert_close(memory.kv.keys, matched.kv.keys, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(memory.kv.values, matched.kv.values, rtol=1e-5, atol=1e-5)
    anew = job(compiler=compiler, engine=engine, certify=False, **still)
    assert not torch.allclose(anew.kv.values, matched.kv.values, atol=1e-2)


@pytest.mark.parametrize("compiler", TRAINED)
def test_it_is_measured_first_and_stays_where_nothing_is_better(job, matched, compiler):
    memory = job(compiler=compiler, start=matched, certify=False, learning_rate=3.0)
    assert [point["step"] for point in memory.curve] == [0, 2, 4]
    assert min(point["held_out_kl"] for point in memory.curve) == memory.curve[0]["held_out_kl"]
    torch.testing.assert_close(memory.kv.keys, matched.kv.keys, rtol=1e-5, atol=1e-5)
    trained = job(compiler=compiler, start=matched, certify=False, patience=0)
    assert trained.curve[0] == memory.curve[0] | {"seconds": trained.curve[0]["seconds"]}
    assert not torch.equal(trained.kv.values, memory.kv.values)


def test_both_engines_take_the_same_steps(job, matched):
    options = {"compiler": "lcc", "start": matched, "certify": False, "patience": 0}
    packed, reference = (job(engine=engine, **options) for engine in ("packed", "reference"))
    torch.testing.assert_close(packed.kv.values, reference.kv.values, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("compiler", TRAINED)
def test_it_goes_on_after_a_kill(job, matched, compiler, tmp_path, monkeypatch):
    options = {"compiler": compiler, "start": matched, "certify": False}
    whole = job(**options)
    with monkeypatch.context() as patch:
        fail_at(patch, 3, lambda _: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            job(checkpoint=tmp_path / "run", checkpoint_every=1, **options)
    with pytest.raises(lcc.MismatchError, match=r"differs in .*lineage"):
        job(checkpoint=tmp_path / "run", compiler=compiler, certify=False)
    assert same(job(checkpoint=tmp_path / "run", **options), whole)


def test_the_file_says_what_it_went_on_from(job, matched, tmp_path):
    once = job(compiler="direct_kv", start=matched, certify=False)
    (ancestor,) = once.lineage
    assert ancestor["compiler"] == {"name": "attention_matching"}
    once.save(tmp_path / "once")
    twice = job(compiler="lcc", start=tmp_path / "once", certify=False)
    twice.save(tmp_path / "twice")
    loaded = lcc.Memory.load(tmp_path / "twice")
    assert [parent["compiler"]["name"] for parent in loaded.lineage] == ["direct_kv", "attention_matching"]
    assert loaded.lineage == once.with_ancestors()
    assert loaded.lineage[1:] == matched.with_ancestors() == once.lineage
    assert matched.lineage == []


@pytest.mark.parametrize(
    ("options", "cause"),
    [
        ({"compiler": "attention_matching"}, "takes no start"),
        ({"ratio": 4}, "at this ratio there are"),
        ({"ratio": "auto"}, "name the ratio"),
        ({"content": "Quite another text, of many more words than one, that stands for itself alone."}, "another text"),
        ({"keep_prefix": False}, "another prefix"),
    ],
)
def test_refused(job, matched, options, cause):
    with pytest.raises(lcc.InputError, match=cause):
        job(start=matched, **({"compiler": "direct_kv"} | options))


def test_refused_of_other_models_and_other_numbers(job, matched, llama, tokenizer, text, fast):
    with pytest.raises(lcc.InputError, match="int8 memory"):
        job(compiler="direct_kv", start=lcc.quantize(matched, "int8", llama, tokenizer, answers=2, max_new_tokens=2))
    with pytest.raises(lcc.MismatchError, match="model"):
        lcc.compile(tiny_model("qwen3"), tokenizer, text, compiler="direct_kv", start=matched, **fast)
    with pytest.raises(lcc.MemoryFileError):
        job(compiler="direct_kv", start="no such file")


def test_direct_kv_starts_in_even_distances(job, llama, tokenizer, text):
    memory = job(compiler="direct_kv", kv_init="even", certify=False, **NO_STEP)
    ids, count = tokenizer(text).input_ids, memory.buffer_tokens
    places = [int((place + 0.5) * len(ids) / count) for place in range(count)]
    with torch.no_grad():
        read = prefill(llama, [*memory.prefix_ids, *ids]).tail(len(ids)).unrotated(llama)
    torch.testing.assert_close(memory.kv.keys, read.keys[:, :, places], rtol=1e-5, atol=1e-5)


def test_a_frozen_first_token_stays(job, matched):
    options = {"compiler": "direct_kv", "certify": False, "patience": 0, "start": matched}
    frozen, free = (job(freeze_first=first, **options) for first in (True, False))
    assert torch.equal(frozen.kv.keys[:, :, 0], matched.kv.keys[:, :, 0])
    assert torch.equal(frozen.kv.values[:, :, 0], matched.kv.values[:, :, 0])
    assert not torch.equal(frozen.kv.values[:, :, 1], matched.kv.values[:, :, 1])
    assert not torch.equal(free.kv.values[:, :, 0], matched.kv.values[:, :, 0])


def test_a_frozen_token_has_no_gradient(llama, tokenizer, text):
    context = build_context(llama, tokenizer, text, 8)
    memory = DirectKV(llama, context, DirectKVSettings(freeze_first=True))
    memory.encode().values.sum().backward()
    assert memory.values.grad.shape[2] == context.buffer - 1
    assert not memory.held.values.requires_grad
