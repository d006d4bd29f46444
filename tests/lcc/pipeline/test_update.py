"""``lcc.update``: a memory takes more text in."""

from __future__ import annotations

import math
import random
from collections import Counter
from dataclasses import replace

import pytest
import torch

import lcc
from lcc.embedded_model.tokenizer import build_tokenizer
from lcc.synthetic.people import document
from lcc.utils.hashing import text_digest
from tests.lcc.pipeline.test_compile import fail_at, same
from tests.support.tiny_models import tiny_model

TRAINED = ("lcc", "direct_kv")
MORE = document(random.Random(8), people=2, attributes=3).text
STILL = {"steps": 1, "learning_rate": 1e-12, "buffer_learning_rate": 1e-12, "patience": 0}


@pytest.fixture
def old(llama, tokenizer, text, fast, once):
    return once("old", lambda: lcc.compile(llama, tokenizer, text, certify=False, **fast))


@pytest.fixture
def job(llama, tokenizer, fast, old):
    def run(memory=old, text=MORE, certify=False, **overrides):
        options = fast | overrides
        if options.get("growing") is False:
            del options["ratio"]
        return lcc.update(llama, tokenizer, memory, text, certify=certify, **options)

    return run


@pytest.mark.parametrize("compiler", TRAINED)
def test_a_growing_memory_keeps_its_tokens_bit_by_bit_if_that_is_asked_for(job, old, compiler):
    new, tokens = job(compiler=compiler, past_learning_rate=0.0), old.buffer_tokens
    assert torch.equal(new.kv.keys[:, :, :tokens], old.kv.keys)
    assert torch.equal(new.kv.values[:, :, :tokens], old.kv.values)
    assert not torch.equal(job(compiler=compiler).kv.values[:, :, :tokens], old.kv.values)
    assert new.buffer_tokens == tokens + -(-new.update["text_tokens"] // 8)
    assert new.ratio == 8
    assert job(ratio=4, compiler=compiler).buffer_tokens > new.buffer_tokens


@pytest.mark.parametrize("compiler", TRAINED)
def test_a_growing_memory_begins_with_the_old_one(job, old, compiler):
    still = {name: value for name, value in STILL.items() if compiler == "lcc" or name != "buffer_learning_rate"}
    new, tokens = job(compiler=compiler, past_learning_rate=1e-12, **still), old.buffer_tokens
    torch.testing.assert_close(new.kv.keys[:, :, :tokens], old.kv.keys, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(new.kv.values[:, :, :tokens], old.kv.values, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("engine", ["packed", "reference"])
@pytest.mark.parametrize("compiler", TRAINED)
def test_a_constant_memory_gives_tokens_up(job, old, compiler, engine):
    """The share of the tokens that the new text has of both texts; the old ones that stay stood in even distances."""
    still = {name: value for name, value in STILL.items() if compiler == "lcc" or name != "buffer_learning_rate"}
    new = job(growing=False, compiler=compiler, engine=engine, past_learning_rate=1e-12, **still)
    tokens, text_tokens = old.buffer_tokens, new.update["text_tokens"]
    stay = tokens - math.ceil(tokens * text_tokens / (old.source_tokens + text_tokens))
    assert 1 < stay < tokens
    places = [int((place + 0.5) * tokens / stay) for place in range(stay)]
    torch.testing.assert_close(new.kv.keys[:, :, :stay], old.kv.keys[:, :, places], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(new.kv.values[:, :, :stay], old.kv.values[:, :, places], rtol=1e-5, atol=1e-5)
    assert new.buffer_tokens == tokens
    assert new.ratio == new.source_tokens / tokens


@pytest.mark.parametrize("compiler", TRAINED)
def test_the_tokens_that_stay_in_a_constant_memory_are_trained(job, compiler):
    still, trained = (job(growing=False, compiler=compiler, past_learning_rate=rate) for rate in (1e-12, 3e-2))
    assert not torch.allclose(trained.kv.keys[:, :, 0], still.kv.keys[:, :, 0], rtol=1e-3, atol=1e-3)
    assert not torch.allclose(trained.kv.values[:, :, 0], still.kv.values[:, :, 0], rtol=1e-3, atol=1e-3)


def test_a_text_longer_or_shorter_than_a_constant_memory(job, old):
    short = job(text="Mara has a dog.", growing=False, patience=0)
    assert short.buffer_tokens == old.buffer_tokens
    assert short.update["text_tokens"] < old.buffer_tokens
    assert job(text=" ".join([MORE] * 4), growing=False, compiler="direct_kv").buffer_tokens == old.buffer_tokens


@pytest.mark.parametrize("growing", [True, False])
def test_both_engines_take_the_same_steps(job, growing):
    packed, reference = (job(growing=growing, engine=engine, patience=0) for engine in ("packed", "reference"))
    torch.testing.assert_close(packed.kv.values, reference.kv.values, rtol=1e-3, atol=1e-4)


def test_it_says_what_it_stands_for(job, old, text, tmp_path):
    new = job()
    assert new.source_tokens == old.source_tokens + new.update["text_tokens"]
    assert new.source_sha256 == text_digest(text_digest(text) + text_digest(MORE))
    assert new.update["text_sha256"] == text_digest(MORE)
    assert new.update["growing"] is True
    assert new.questions[: len(old.questions)] == old.questions
    assert len(set(new.questions)) == len(new.questions) > len(old.questions)
    assert new.lineage == old.with_ancestors()
    assert new.made["operation"] == "update"
    new.save(tmp_path / "new")
    again = job(memory=tmp_path / "new", text="Timo lives in Bonn. His dog is called Pim. He is a baker there.")
    assert [parent["digest"] for parent in again.lineage] == [new.digest, old.digest]
    again.save(tmp_path / "again")
    assert lcc.Memory.load(tmp_path / "again").update == again.update


def test_old_questions_are_rehearsed(job, old, data_made):
    job(rehearsal_questions=5, held_out=0.4)
    (data,) = data_made
    rehearsed = [sample.query for sample in data.train + data.held_out if sample.stream == "rehearsal"]
    assert len(rehearsed) == 5
    assert set(rehearsed) <= set(old.questions)
    assert Counter(sample.stream for sample in data.held_out)["rehearsal"] == 2
    job(rehearsal_weight=0.0)
    assert all(sample.stream != "rehearsal" for sample in data_made[1].train + data_made[1].held_out)
    job(rehearsal_questions=0)
    assert all(sample.stream != "rehearsal" for sample in data_made[2].train + data_made[2].held_out)


def test_a_memory_carries_so_many_questions(job, old):
    """Of each text as many as it is a share of the tokens; what one text has too few of, the other one gets."""
    asked, most = tuple(f"Old {number}?" for number in range(40)), 12
    before = replace(old, questions=asked)
    new = job(memory=before, carried_questions=most)
    mine = [question for question in new.questions if question not in asked]
    share = new.update["text_tokens"] / new.source_tokens
    fresh = len(job(memory=before).questions) - len(asked)
    assert len(new.questions) == most
    assert len(mine) == min(round(most * share), fresh)
    assert [question for question in asked if question in new.questions] == list(new.questions[: most - len(mine)])
    assert same(job(memory=before, carried_questions=most), new)
    few = job(memory=replace(old, questions=asked[:1]), carried_questions=most)
    assert few.questions[0] == asked[0]
    assert len(few.questions) == min(most, 1 + fresh)
    assert job(memory=before, carried_questions=0).questions == ()


def test_a_memory_without_questions_is_updated(job, old):
    assert job(memory=replace(old, questions=())).buffer_tokens > old.buffer_tokens


def test_the_certificate_reads_the_old_memory_too(job, old):
    new = job(certify=True, held_out=0.4)
    certificate, rehearsed = new.certificate, new.certificate["rehearsed"]
    assert certificate["questions"]["count"] >= 1
    assert certificate["reconstruction"]["tokens"] == new.update["text_tokens"]
    assert rehearsed["questions"]["count"] == rehearsed["held_out"]["answers"] == 2
    # The old memory's answers are its own: none of them is missed where it is read alone.
    assert rehearsed["questions"]["score"]["full_text"] == 1
    assert job(certify=True, rehearsal_questions=0).certificate["rehearsed"] == {"held_out": None, "questions": None}


def test_questions_to_measure_it_on(job):
    rows = [{"question": "Who lives in Bonn?", "answer": "Timo"}, "Where does Mara live?"]
    certificate = job(certify=True, questions=rows).certificate
    assert certificate["questions"]["source"] == "given"
    assert certificate["questions"]["count"] == 2
    with pytest.raises(lcc.InputError, match="window"):
        job(certify=True, questions=["Where? " * 600])


def test_a_memory_that_did_not_change_keeps_all_that_is_rehearsed(job, monkeypatch):
    monkeypatch.setattr("lcc.pipeline.compile_once.updated", lambda made, parent: parent.memory)
    rehearsed = job(certify=True, held_out=0.4).certificate["rehearsed"]
    assert rehearsed["held_out"]["kl"]["memory"] < 1e-6 < rehearsed["held_out"]["kl"]["no_text"]
    assert rehearsed["questions"]["kept"] == 1


def test_the_memory_and_the_model_are_left_as_they_came(job, old, llama):
    digest, weights = old.digest, {name: tensor.clone() for name, tensor in llama.state_dict().items()}
    job()
    job(growing=False)
    assert old.digest == digest
    assert all(torch.equal(tensor, weights[name]) for name, tensor in llama.state_dict().items())
    assert all(parameter.requires_grad for parameter in llama.parameters())


@pytest.mark.parametrize(
    ("options", "cause"),
    [
        ({"compiler": "attention_matching"}, "reads no memory"),
        ({"compiler": "adapter"}, "reads no memory"),
        ({"ratio": "auto"}, "name a ratio"),
        ({"ratio": 0.5}, "ratio is 0.5"),
        ({"keep_prefix": False}, "keep_prefix"),
        ({"text": " "}, "empty"),
        ({"text": "Mara has a dog."}, "too few for ratio 8"),
        ({"text": MORE * 16}, "tokens of the memory"),
        ({"start": None}, "unknown setting 'start'"),
        ({"budget": "10m"}, "unknown setting 'budget'"),
        ({"growing": False, "past_learning_rate": 0.0}, "leave past_learning_rate out"),
        ({"growing": "no"}, "growing is no"),
        ({"rehearsal_weight": -1.0}, "rehearsal_weight"),
        ({"rehearsal_questions": -1}, "rehearsal_questions"),
        ({"carried_questions": -1}, "carried_questions"),
    ],
)
def test_refused(job, options, cause):
    with pytest.raises(lcc.InputError, match=cause):
        job(**options)


def test_a_ratio_for_a_constant_memory_is_refused(llama, tokenizer, old):
    with pytest.raises(lcc.InputError, match="leave ratio out"):
        lcc.update(llama, tokenizer, old, MORE, growing=False, ratio=8, progress=False)


def test_a_memory_without_a_token_to_spare_is_refused(job, old):
    one = replace(old, payload=type(old.payload)(lcc.KV(old.kv.keys[:, :, :1], old.kv.values[:, :, :1])))
    with pytest.raises(lcc.InputError, match="none of the memory's 1 tokens would stay: let it grow"):
        job(memory=one, growing=False)


def test_memories_that_cannot_be_updated(job, old, llama, tokenizer, text, fast):
    with pytest.raises(lcc.InputError, match="int8: update the float one"):
        job(memory=lcc.quantize(old, "int8", llama, tokenizer, answers=2, max_new_tokens=2))
    with pytest.raises(lcc.InputError, match="payload of kind 'adapter'"):
        job(memory=lcc.compile(llama, tokenizer, text, compiler="adapter", certify=False, **fast))
    with pytest.raises(lcc.InputError, match="another prefix"):
        job(memory=replace(old, prefix_ids=()))
    with pytest.raises(lcc.MismatchError, match="model"):
        lcc.update(tiny_model("qwen3"), tokenizer, old, MORE, **fast)
    with pytest.raises(lcc.LCCError, match="layers"):
        job(memory=replace(old, payload=type(old.payload)(lcc.KV(old.kv.keys[1:], old.kv.values[1:]))))
    with pytest.raises(lcc.MemoryFileError):
        job(memory="no such file")


def test_the_date_stays_the_memorys_own(llama, tokenizer, text, fast):
    dated = build_tokenizer()
    today = "{{ bos_token }}<|system|>Today is {{ strftime_now('%d %b %Y') }}.<|end|>"
    dated.chat_template = today + tokenizer.chat_template
    old = lcc.compile(llama, dated, text, certify=False, **fast)
    old = replace(old, date="2031-05-06T07:08:09")
    with pytest.raises(lcc.InputError, match="another prefix"):
        lcc.update(llama, dated, old, MORE, **fast)
    ids = lcc.text.chat_format.ChatFormat.of(dated, date=old.date).prefix_ids
    assert lcc.update(llama, dated, replace(old, prefix_ids=tuple(ids)), MORE, **fast).date == old.date


@pytest.mark.parametrize("growing", [True, False])
def test_it_goes_on_after_a_failure(job, old, growing, tmp_path, monkeypatch):
    whole = job(growing=growing)
    options = {"growing": growing, "checkpoint": tmp_path / "run"}
    with monkeypatch.context() as patch:
        fail_at(patch, 3, lambda _: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            job(checkpoint_every=1, **options)
    with pytest.raises(lcc.MismatchError, match=r"differs in .*growing"):
        job(**options | {"growing": not growing})
    with pytest.raises(lcc.MismatchError, match=r"differs in .*past"):
        job(memory=replace(old, questions=old.questions[:1]), **options)
    assert same(job(**options), whole)
    assert not (tmp_path / "run").exists()
