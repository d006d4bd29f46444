"""The certificate: its figures against plain transformers, what it is measured on, and where it is kept."""

from __future__ import annotations

import json
import random
from dataclasses import replace

import pytest
import torch

import lcc
from lcc.data.samples import DistillationData, Sample
from lcc.data.settings import DataSettings
from lcc.evaluation import certificate, questions
from lcc.evaluation.certificate import fresh_queries, measure
from lcc.evaluation.questions import held_out_questions, read_questions
from lcc.inference.reader import Reader, changed_share
from lcc.memory.payload import KVPayload
from lcc.modeling.kv import KV
from lcc.synthetic.people import document
from lcc.text.chat_format import ChatFormat
from lcc.text.context import build_context
from lcc.training import trainer as optimize
from tests.lcc.pipeline.test_compile import assert_untouched, state_of
from tests.support.plain_memories import plain_memory
from tests.support.tiny_models import tiny_model

READERS = {"full_text", "memory", "no_text"}


@pytest.fixture
def job(llama, tokenizer, text, fast):
    def run(**overrides):
        return lcc.compile(llama, tokenizer, text, **(fast | overrides))

    return run


@pytest.fixture
def readers(tokenizer, text):
    """The tiny model in float64 behind the text, and behind nothing."""
    model, chat = tiny_model("llama", torch.float64), ChatFormat.of(tokenizer)
    return Reader.of_text(model, chat, text), Reader.of_text(model, chat, "")


def plain_log_probabilities(reader, text, query, response):
    """(response tokens, vocabulary): one plain forward over everything."""
    chat = reader.chat
    before = [*chat.prefix_ids, *chat.ids(text), *chat.query_ids(query, reader.after_text)]
    with torch.no_grad():
        logits = reader.model(torch.tensor([[*before, *response]])).logits[0]
    return logits[len(before) - 1 : -1].log_softmax(-1)


def test_figures_are_those_of_plain_transformers(readers, text, monkeypatch):
    full, none = readers
    queries = ["Where does Mara live?", "Say: dog cat.", "Name the opposite of young."]
    monkeypatch.setattr("lcc.modeling.generation.CACHED_TOKENS", 2 * len(full.visible))  # two batches
    said = full.say(queries, 5)
    responses = said.responses
    assert all(response[-1] == full.chat.end for response in responses)
    expected, tokens = 0.0, 0
    for query, response in zip(queries, responses, strict=True):
        first, second = (
            plain_log_probabilities(reader, part, query, response) for reader, part in ((full, text), (none, ""))
        )
        expected += (first.exp() * (first - second)).sum().item()
        tokens += len(response)
        assert first[:-1].argmax(-1).tolist() == list(response[:-1])
        right = (second.argmax(-1) == torch.tensor(response)).double().mean().item()
        assert none.accuracy([query], [response]) == right
    assert said.kl(none) == pytest.approx(expected / tokens, rel=1e-9)
    assert said.kl(full) == pytest.approx(0, abs=1e-12)
    assert full.said(queries, responses).kl(none) == pytest.approx(said.kl(none), rel=1e-9)
    lengths = [len(response) for response in responses]
    assert [len(part) for part in said.divergence(said.again(none)).split(lengths)] == lengths
    assert changed_share([(1,), (2, 3), (4,)], [(1,), (2,), (5,)]) == pytest.approx(2 / 3)


@pytest.fixture
def measured(embedded, monkeypatch):
    """Measure a memory of a document's own K and V, changed by ``change``, as compile would."""
    model, tokenizer = embedded
    doc = document(random.Random(3), people=2, attributes=4)
    memory, _ = plain_memory(model, tokenizer, doc.text, monkeypatch)
    chat, context = ChatFormat.of(tokenizer), build_context(model, tokenizer, doc.text, 8)

    def sample(stream, query, response):
        return Sample(tuple(chat.query_ids(query)), (*chat.ids(response), chat.end), stream, query)

    known = doc.questions()
    held_out = (
        sample("general", "Say: dog cat.", "dog cat."),
        *(sample("self_study", question.text, question.answer) for question in known[:6]),
    )
    repetition, general = sample("reconstruction", "", doc.text), sample("general", "Say: dog.", "dog.")
    data = DistillationData((repetition,), (general,), held_out)
    settings = DataSettings(max_response_tokens=8)

    def run(change=lambda kv: kv, **options):
        changed = replace(memory, payload=KVPayload(change(memory.kv)))
        return measure(model, context, changed, data, settings, 0, lcc.load_queries(), **options)

    return run, doc


def test_a_memory_that_is_the_text_has_the_texts_figures(measured):
    found = measured[0]()
    accuracy, drift = found["reconstruction"]["accuracy"], found["general"]
    assert accuracy["memory"] == accuracy["full_text"] > 0.9 > 0.8 > accuracy["no_text"]
    assert found["held_out"]["kl"]["memory"] == pytest.approx(0, abs=1e-4)
    assert found["held_out"]["kl"]["no_text"] > 1
    assert (found["held_out"]["answers"], found["questions"]["count"]) == (7, 6)
    assert drift["from_full_text"]["memory"] == pytest.approx({"kl": 0, "changed": 0}, abs=1e-4)
    for name in ("kl", "changed"):
        towards = drift["from_no_text"]
        assert towards["memory"][name] == pytest.approx(towards["full_text"][name], abs=1e-4)
    assert found["questions"]["score"]["no_text"] < 0.5
    assert (found["questions"]["kept"], found["questions"]["missed"]) == (1, [])
    assert json.loads(json.dumps(found)) == found


def test_a_damaged_memory_is_told(measured):
    whole, broken = measured[0](), measured[0](lambda kv: KV(kv.keys, torch.zeros_like(kv.values)))
    assert broken["questions"]["kept"] < 0.5
    missed = broken["questions"]["missed"]
    assert 3 < len(missed) <= 6
    assert all(each["question"] and each["full_text"] != each["memory"] for each in missed)
    assert broken["reconstruction"]["accuracy"]["memory"] < whole["reconstruction"]["accuracy"]["memory"]
    assert broken["held_out"]["kl"]["memory"] > 0.5
    kl, close = (found["general"]["from_full_text"]["memory"]["kl"] for found in (broken, whole))
    assert kl > 1e-3 > close
    assert broken["questions"]["score"]["full_text"] == whole["questions"]["score"]["full_text"]


def test_given_questions_are_scored_against_their_references_or_the_full_text(measured, embedded):
    run, doc = measured
    known = doc.questions()
    rows = [
        {"question": known[0].text, "answer": known[0].answer},
        {"question": known[1].text, "answer": "nobody said this"},
        known[2].text,
        {"question": known[3].text, "answer": None},
        {"question": known[4].text, "context": "another text", "answer": "x"},
    ]
    found = run(questions=read_questions(rows, doc.text, *embedded))["questions"]
    assert (found["source"], found["count"], found["referenced"]) == ("given", 4, 2)
    assert found["score"]["full_text"] == found["score"]["memory"] == 0.75
    assert found["kept"] == 1
    hopeless = run(questions=read_questions(rows[1:2], doc.text, *embedded))["questions"]
    assert hopeless["score"]["full_text"] == 0
    assert hopeless["kept"] is None


def test_questions_come_from_files(tmp_path, llama, tokenizer, text):
    path = tmp_path / "q.jsonl"
    path.write_text('{"question": "Where?", "context": ""}\n{"question": "Who?", "answer": "Mara", "metric": "f1"}\n')
    first, second = read_questions(path, text, llama, tokenizer)
    assert not first.referenced
    assert second.referenced
    assert second.example.answers == ("Mara",)
    assert {first.example.context, second.example.context} == {text}


@pytest.mark.parametrize(
    ("rows", "reason"),
    [
        ([], "none of the 0"),
        ([{"question": "Who?", "context": "other"}], "none of the 1 questions is about this text"),
        ([{"answer": "Mara"}], "question 1 has no question"),
        ([7], "question 1 is 7"),
        (["Who?", " "], "question 2: the question is empty"),
        ([{"question": "Who?", "answer": "x", "metric": "judge"}], "no judge"),
        ([{"question": "Who?", "max_new_tokens": 2000}], "window"),
        ("absent.jsonl", "no file"),
    ],
)
def test_questions_that_cannot_be_used_are_refused_before_the_work(rows, reason, job, monkeypatch):
    monkeypatch.setattr(optimize, "step_loss", lambda *_: 1 / 0)
    with pytest.raises(lcc.InputError, match=reason):
        job(questions=rows)


def test_general_queries_are_fresh(llama):
    known = [f"query {number}" for number in range(12)]

    def samples(queries):
        return [Sample((1,), (2,), query=query) for query in queries]

    left = fresh_queries(samples(known[:8]), known, 0)
    assert sorted(left) == sorted(known[8:])
    generated = fresh_queries(samples(known[:9]), known, 0)
    assert set(generated) >= set(known[9:])
    assert len(set(generated)) == 4
    own = lcc.load_queries()
    assert not set(fresh_queries(samples(own), own, 0)) & set(own)
    assert fresh_queries(samples(own), own, 0) != fresh_queries(samples(own), own, 1)


def test_self_asked_questions_are_held_out_ones_that_the_text_settles(readers, text, monkeypatch):
    full, _ = readers
    queries = ["Where does Mara live?", "Say: dog cat.", "Who?", "What is the job of Hugo?"]
    responses = full.say(queries, 4).responses
    expected = [
        plain_log_probabilities(full, text, query, response).gather(1, torch.tensor(response)[:, None]).mean().exp()
        for query, response in zip(queries, responses, strict=True)
    ]
    found = full.confidence(queries, responses)
    assert found == pytest.approx([value.item() for value in expected], rel=1e-9)
    streams = ["general", "self_study", "self_study", "self_study"]
    samples = [Sample((1,), *each) for each in zip(responses, streams, queries, strict=True)]
    monkeypatch.setattr(questions, "SETTLED", (found[2] + found[3]) / 2)
    asked = held_out_questions((samples[0], *samples[2:]), full, 8)
    surer = 2 if found[2] > found[3] else 3
    assert [question.example.question for question in asked] == [queries[surer]]
    assert not asked[0].referenced


@pytest.mark.parametrize("overrides", [{}, {"engine": "reference"}, {"keep_prefix": False}, {"held_out": 0.0}])
def test_compile_writes_it_into_the_memory(overrides, job, tmp_path):
    memory = job(**overrides)
    found = memory.certificate
    assert found["reconstruction"]["accuracy"].keys() == READERS
    assert (found["held_out"] is None) == (found["questions"] is None) == ("held_out" in overrides)
    assert found["general"]["answers"] == 4
    assert found["dtype"] == "float32"
    memory.save(tmp_path / "m")
    assert lcc.Memory.load(tmp_path / "m").certificate == found
    without = job(certify=False, **overrides)
    assert without.certificate is None
    assert torch.equal(without.kv.keys, memory.kv.keys)


def test_the_held_out_kl_is_the_one_that_compile_measured(job):
    memory = job(patience=0)
    assert memory.certificate["held_out"]["kl"]["memory"] == pytest.approx(memory.curve[-1]["held_out_kl"], rel=1e-3)


def test_the_model_is_left_as_it_came_when_measuring_fails(job, llama, monkeypatch):
    llama.train()
    before = state_of(llama)
    monkeypatch.setattr(certificate, "fresh_queries", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        job()
    assert_untouched(llama, before)


def test_a_kill_while_measuring_loses_no_step(job, tmp_path, monkeypatch):
    def interrupt(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(certificate, "fresh_queries", interrupt)
        with pytest.raises(KeyboardInterrupt):
            job(checkpoint=tmp_path / "run")
    monkeypatch.setattr(optimize, "step_loss", lambda *_: 1 / 0)
    assert job(checkpoint=tmp_path / "run").certificate["general"]["answers"] == 4
    assert not (tmp_path / "run").exists()


def test_quantising_keeps_it_and_it_says_what_it_measured(job, llama, tokenizer):
    memory = job()
    small = lcc.quantize(memory, "int8", llama, tokenizer, answers=2, max_new_tokens=2)
    assert small.certificate == memory.certificate
    assert (small.dtype, small.certificate["dtype"]) == ("int8", "float32")


def test_questions_without_a_certificate_are_refused(job):
    with pytest.raises(lcc.InputError, match="leave certify on"):
        job(certify=False, questions=["Where?"])
