"""A bank before the embedded model: where answers come from, and that they are those of the memory, text or model."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest
import torch

import lcc
from lcc.bank import opening
from lcc.bank.gating import NEVER, Gate
from lcc.bank.router_file import load_trained, save_trained
from lcc.bank.session import QUESTIONS
from lcc.inference.asking import ask_text
from lcc.inference.reader import prefill_chat
from lcc.modeling.shared_cache import SharedCache
from tests.lcc.bank.asked_bank import fill, made_corpus

GENERAL = ["What is the capital of France?", "Say: moon stone.", "Add 3 and 4."]
OPEN = {"router": "score", "gate": "none"}


@pytest.fixture(scope="module")
def model(_embedded):
    return _embedded[0]


@pytest.fixture(scope="module")
def corpus_bank(model, tokenizer, tmp_path_factory):
    with lcc.MemoryBank(tmp_path_factory.mktemp("corpus") / "bank", create=True) as bank:
        yield bank, fill(bank, model, tokenizer)


def own_questions(corpus):
    return [(f"doc{n}", question) for n in range(len(corpus.documents)) for question in corpus.questions(n)]


def test_answers_are_those_of_the_memory_that_is_named(corpus_bank, model, tokenizer):
    bank, corpus = corpus_bank
    asked = own_questions(corpus)
    assert len(asked) > 2 * QUESTIONS
    answers = bank.ask(model, tokenizer, [question.text for _, question in asked], **OPEN)
    assert sum(answer.keys == (key,) for answer, (key, _) in zip(answers, asked, strict=True)) > 0.9 * len(asked)
    for key in ("doc0", "doc1", "doc2"):
        of_key = [answer for answer in answers if answer.keys == (key,)]
        alone = lcc.ask(model, tokenizer, bank.memory(key), [answer.question for answer in of_key])
        assert [answer.text for answer in of_key] == alone
        assert {answer.source for answer in of_key} == {"memory"}
    assert sum(a.text == question.answer for a, (_, question) in zip(answers, asked, strict=True)) > 0.7 * len(asked)


@pytest.mark.parametrize("gate", [NEVER, "entropy=0"])
def test_lambda_of_0_is_the_plain_model_bit_for_bit(corpus_bank, model, tokenizer, gate):
    bank, corpus = corpus_bank
    ready = bank.open(model, tokenizer, retriever="asking", router="score", gate=gate)
    question = corpus.questions(0)[0].text
    [answer] = ready.ask([question])
    assert (answer.source, answer.keys, answer.considered) == ("model", (), ())
    assert answer.reason == "the gate never opens"
    assert [answer.text] == ask_text(model, tokenizer, "", [question], 64)
    session = ready.session
    logits = session.read([question], [[]]).tokens.logits
    ids = torch.tensor([session.chat.query_ids(question, after_text=False)])
    before = prefill_chat(model, session.chat, "")
    positions = torch.arange(before.end, before.end + ids.shape[1])[None]
    with torch.no_grad():
        plain = model(ids, past_key_values=SharedCache(before), position_ids=positions, logits_to_keep=1).logits
    assert torch.equal(logits[0], plain[0, -1])


def test_what_is_refused_is_answered_by_the_text_or_by_the_model(corpus_bank, model, tokenizer):
    bank, corpus = corpus_bank
    question = corpus.questions(1)[0].text
    refusing = {"router": "score", "gate": Gate("divergence", 1e6)}
    [from_text] = bank.ask(model, tokenizer, [question], **refusing)
    assert (from_text.source, from_text.keys) == ("text", ("doc1",))
    assert [from_text.text] == ask_text(model, tokenizer, bank.text("doc1"), [question], 64)
    [plain] = bank.ask(model, tokenizer, [question], fallback="model", **refusing)
    assert (plain.source, plain.keys) == ("model", ())
    assert [plain.text] == ask_text(model, tokenizer, "", [question], 64)
    assert "is not above 1e+06" in plain.reason


def test_without_a_word_in_common_the_model_answers(corpus_bank, model, tokenizer):
    bank, _ = corpus_bank
    [answer] = bank.ask(model, tokenizer, ["Reverse: stone moon."], **OPEN)
    assert (answer.source, answer.reason) == ("model", "the retriever found no memory")


def test_two_memories_side_by_side(corpus_bank, model, tokenizer):
    bank, corpus = corpus_bank
    question = corpus.questions(0)[0].text
    [answer] = bank.ask(model, tokenizer, [question], together=2, **OPEN)
    assert answer.source == "memory"
    assert len(answer.keys) == 2
    memories = [bank.memory(key) for key in answer.keys]
    assert [answer.text] == lcc.ask(model, tokenizer, memories, [question])


def test_a_memory_that_breaks_meanwhile_is_skipped_and_named(model, tokenizer, tmp_path):
    with lcc.MemoryBank(tmp_path / "bank", create=True) as bank:
        corpus = fill(bank, model, tokenizer, keep_texts=False)
        ready = bank.open(model, tokenizer, **OPEN)
        (tmp_path / "bank" / "memories" / "doc0.lcc.safetensors").write_bytes(b"broken")
        [answer] = ready.ask([corpus.questions(0)[0].text])
        assert answer.keys != ("doc0",)
        assert list(ready.session.skipped) == ["doc0"]


def test_an_open_bank_answers_from_the_memories_and_texts_that_are_there_now(model, tokenizer, tmp_path):
    with lcc.MemoryBank(tmp_path / "bank", create=True) as bank:
        corpus = fill(bank, model, tokenizer)
        question, first, second = corpus.questions(0)[0].text, bank.memory("doc0"), bank.memory("doc1")
        ready, of_text = bank.open(model, tokenizer, **OPEN), {"router": "score", "gate": "entropy=-1"}
        texts = bank.open(model, tokenizer, **of_text)
        before, [_] = [answer.text for answer in ready.ask([question])], texts.ask([question])
        bank.put("doc0", replace(second, questions=first.questions), corpus.documents[1].text)
        [answer], [from_text] = ready.ask([question]), texts.ask([question])
        assert answer.keys == from_text.keys == ("doc0",)
        assert [answer.text] == lcc.ask(model, tokenizer, second, [question]) != before
        assert from_text == bank.ask(model, tokenizer, [question], **of_text)[0]
        assert from_text.text != corpus.questions(0)[0].answer


def test_a_memory_that_is_deleted_by_hand_while_two_answer(model, tokenizer, tmp_path):
    with lcc.MemoryBank(tmp_path / "bank", create=True) as bank:
        corpus = fill(bank, model, tokenizer)
        question = corpus.questions(0)[0].text
        ready = bank.open(model, tokenizer, together=2, **OPEN)
        assert next(hit.key for hit in ready.session.find(question, 5)) == "doc0"
        (tmp_path / "bank" / "memories" / "doc0.lcc.safetensors").unlink()
        [answer] = ready.ask([question])
        assert "doc0" not in answer.keys
        assert list(ready.session.skipped) == ["doc0"]


def test_a_text_that_leaves_no_room_for_the_question_does_not_answer(corpus_bank, model, tokenizer, monkeypatch):
    bank, corpus = corpus_bank
    question, refusing = corpus.questions(1)[0].text, {"router": "score", "gate": "entropy=-1"}
    ready = bank.open(model, tokenizer, **refusing)
    session = ready.session
    held = len(session.chat.ids(bank.text("doc1")))
    monkeypatch.setattr(session.model.config, "max_position_embeddings", held + 40)
    sources = [next(ready.ask([question], max_new_tokens)).source for max_new_tokens in (4, 40)]
    assert sources == ["text", "model"]


def test_threads_share_an_open_bank(corpus_bank, model, tokenizer):
    bank, corpus = corpus_bank
    ready, asked = bank.open(model, tokenizer, **OPEN), [question.text for _, question in own_questions(corpus)[:12]]
    alone = [next(ready.ask([question])) for question in asked]
    with ThreadPoolExecutor(4) as threads:
        assert [*threads.map(lambda question: next(ready.ask([question])), asked)] == alone


def test_what_is_no_list_of_questions(corpus_bank, model, tokenizer):
    bank, _ = corpus_bank
    for questions, cause in (("Who?", "one string"), (["Who?", " "], "is empty"), ([None], "must be text")):
        with pytest.raises(lcc.InputError, match=cause):
            bank.ask(model, tokenizer, questions)
    with pytest.raises(lcc.InputError, match="max_new_tokens is 0"):
        bank.ask(model, tokenizer, ["Who?"], max_new_tokens=0)


def test_adapters_answer_from_the_question_of_the_plain_model(model, tokenizer, tmp_path):
    corpus = made_corpus()
    with lcc.MemoryBank(tmp_path / "bank", create=True) as bank:
        for number, document in enumerate(corpus.documents[:2]):
            options = {"compiler": "adapter", "rank": 4, "steps": 3, "recipe": "fast"}
            asked = {"self_study_questions": 4, "general_queries": 8, "certify": False, "progress": False}
            memory = lcc.compile(model, tokenizer, document.text, **options, **asked)
            bank.put(f"doc{number}", replace(memory, questions=(corpus.questions(number)[0].text,)))
        questions = [corpus.questions(number)[0].text for number in range(2)]
        answers = bank.ask(model, tokenizer, questions, max_new_tokens=8, **OPEN)
        assert [answer.keys for answer in answers] == [("doc0",), ("doc1",)]
        for answer in answers:
            memory = bank.memory(answer.keys[0])
            assert [answer.text] == lcc.ask(model, tokenizer, memory, [answer.question], max_new_tokens=8)


def test_routers_and_gates_are_trained_kept_and_used(corpus_bank, model, tokenizer, monkeypatch):
    bank, corpus = corpus_bank
    with pytest.raises(lcc.InputError, match="was not trained: run lcc bank train-router"):
        bank.open(model, tokenizer, router="first_token")
    with pytest.raises(lcc.InputError, match="gate entropy was not trained"):
        bank.open(model, tokenizer, gate="entropy")
    trained = bank.train_router(model, tokenizer)
    assert trained.gates["likeness"].accuracy > 0.9
    assert trained.counts["held_out"] > 4
    ready = bank.open(model, tokenizer)
    assert ready.trained.to_dict() == trained.to_dict()
    assert [answer.source for answer in ready.ask(GENERAL)] == ["model"] * 3
    asked = own_questions(corpus)
    answers = [*ready.ask([question.text for _, question in asked])]
    assert sum(answer.keys == (key,) for answer, (key, _) in zip(answers, asked, strict=True)) > 0.8 * len(asked)
    assert bank.open(model, tokenizer, retriever="asking").notes == ["the router was trained with retriever bm25"]
    with pytest.raises(lcc.InputError, match="the gate score is of the router first_token"):
        bank.open(model, tokenizer, router="neighbors", gate="score")
    gates = trained.gates | {"score": replace(trained.gates["score"], accuracy=2.0)}
    made_with = load_trained(bank.folder.router)[1]
    monkeypatch.setattr(opening, "load_trained", lambda path: (replace(trained, gates=gates), made_with))
    chosen = [bank.open(model, tokenizer, router=router).asking.chooser.gate.signal for router in ("auto", "score")]
    assert chosen[0] == "score" != chosen[1]
    monkeypatch.undo()
    for options in ({"gate": "conformal"}, {"router": "neighbors"}, {"retriever": "bm25+hidden"}):
        [answer] = bank.open(model, tokenizer, **options).ask(GENERAL[:1])
        assert answer.text == "Paris"


def test_options_that_are_none(corpus_bank, model, tokenizer):
    bank, _ = corpus_bank
    for options, named in (
        ({"router": "best"}, "router is best"),
        ({"gate": "entropy=low"}, "SIGNAL=THRESHOLD"),
        ({"gate": "mood"}, "gate is mood"),
        ({"gate": None}, "gate is None"),
        ({"candidates": 0}, "candidates"),
        ({"fallback": "web"}, "fallback is web"),
        ({"retriever": "bm25+"}, "retriever is"),
    ):
        with pytest.raises(lcc.InputError, match=named):
            bank.open(model, tokenizer, **options)


def test_another_model_or_an_empty_bank(corpus_bank, tokenizer, bank, model):
    from tests.support.tiny_models import tiny_model

    with pytest.raises(lcc.MismatchError, match="model"):
        corpus_bank[0].open(tiny_model("llama"), tokenizer)
    with pytest.raises(lcc.InputError, match="no memory that can be used: lcc bank add"):
        bank.open(model, tokenizer)


def test_a_router_of_another_model_is_not_used(model, tokenizer, tmp_path):
    with lcc.MemoryBank(tmp_path / "bank", create=True) as bank:
        fill(bank, model, tokenizer)
        trained = bank.train_router(model, tokenizer)
        save_trained(bank.folder.router, trained, retriever="bm25", candidates=5, model="another")
        ready = bank.open(model, tokenizer)
        assert ready.trained is None
        assert ready.notes == ["the router was trained for another model: lcc bank train-router"]
