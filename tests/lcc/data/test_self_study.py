"""Questions that the model asks itself: askers, pieces, what is kept, and what a killed run goes on from."""

from __future__ import annotations

import math
from collections import Counter

import pytest
import torch

import lcc
from lcc.data import parts as parts_module
from lcc.data import teacher as teacher_module
from lcc.data.askers import FOLLOW_UP, HARD, PLAIN, Begun, Examples, OpenTurn, Request, usable_askers
from lcc.data.parts import Parts
from lcc.data.pieces import sentence_pieces
from lcc.data.samples import Sample
from lcc.data.self_study import Part, SelfStudy, self_study
from lcc.data.settings import DataSettings
from lcc.data.teacher import Teacher
from lcc.data.teacher_states import TeacherStates
from lcc.inference.reader import prefill_chat
from lcc.modeling.decoding import Decoded
from lcc.modeling.scoring import completion_states
from lcc.text.chat_format import ChatFormat
from lcc.text.context import build_context
from tests.support.tiny_models import tiny_model

QUESTION = "Where does Mara live?"


def make_teacher(model, tokenizer, text, parts=None, longest=8) -> Teacher:
    context = build_context(model, tokenizer, text, 8)
    text_kv = prefill_chat(model, context.chat, text)
    return Teacher(model, context, text_kv, longest, TeacherStates(math.inf), parts)


def study_of(teacher, **settings) -> SelfStudy:
    asker = Request(teacher.chat, teacher.ends)
    return SelfStudy(teacher, DataSettings(**settings), asker, 0, lambda *_: None)


def written(chat, text: str, end: int | None) -> Decoded:
    ids = tuple(chat.ids(text))
    return Decoded(ids, end, torch.empty(len(ids) + 1, 1))


def asked_by(monkeypatch, teacher, texts):
    """Let every sample be the next of ``texts``, and every answer hang on the text as ``hangs`` says."""
    given = iter(texts)

    def write(name, visible, prompts, ends, sampling, text_of, report):
        return [next(given) for _ in prompts]

    monkeypatch.setattr(teacher, "write", write)


def test_an_asker_takes_what_came_to_an_end(tokenizer):
    chat = ChatFormat.of(tokenizer)
    for make in (Request, OpenTurn):
        asker = make(chat, {chat.end}.__contains__)
        assert asker.question(written(chat, QUESTION, chat.end)) == QUESTION
        assert asker.question(written(chat, QUESTION, None)) == ""
        assert asker.ends(chat.end)


def test_an_example_question_ends_with_its_line(tokenizer):
    chat = ChatFormat.of(tokenizer)
    asker = Begun(chat, {chat.end}.__contains__)
    *_, mark = chat.ids("?")
    assert asker.ends(mark)
    assert asker.question(written(chat, "Where does Mara live", mark)) == QUESTION
    assert asker.question(written(chat, "Mara lives here", chat.end)) == ""
    openings = {kind: {tuple(asker.begun(kind, number)) for number in range(40)} for kind in (PLAIN, HARD, FOLLOW_UP)}
    assert all(len(each) >= 5 for each in openings.values())


def test_small_vocabularies_are_asked_in_their_own_words(tokenizer):
    chat = ChatFormat.of(tokenizer)
    assert [asker.name for asker in usable_askers(chat, bool)] == ["request"]


def test_askers_go_on_from_a_conversation(tokenizer):
    chat = ChatFormat.of(tokenizer)
    talk = (QUESTION, "here")
    for make in (Request, OpenTurn, Begun, Examples):
        asker = make(chat, bool)
        ids = asker.after(FOLLOW_UP, talk)
        assert "here" in tokenizer.decode(ids)
        assert len(ids) > len(asker.after(PLAIN, ()))


def test_pieces_are_whole_sentences(tokenizer):
    text = " ".join(f"Mara {word} a dog." for word in ("has", "likes", "sees", "keeps", "has")) * 6
    ids = tokenizer(text, add_special_tokens=False).input_ids
    pieces = sentence_pieces(tokenizer, ids, 12)
    assert all(len(piece) >= 12 for piece in pieces[:-1])
    assert all(tokenizer.decode(piece).rstrip().endswith(".") for piece in pieces)
    assert all(tokenizer.decode(piece).lstrip().startswith("Mara") for piece in pieces)
    covered = Counter(token for piece in pieces for token in piece)
    assert covered >= Counter(ids)
    assert sentence_pieces(tokenizer, ids, 0) == [ids]
    endless = list(range(100, 200))
    assert max(map(len, sentence_pieces(tokenizer, endless, 10))) <= 30


def test_neighbouring_pieces_are_asked_with_other_openings(llama, tokenizer, text, monkeypatch):
    teacher, begun = make_teacher(llama, tokenizer, text), []
    monkeypatch.setattr(teacher, "write", lambda name, visible, new, *_: begun.extend(new) or [""] * len(new))
    study = study_of(teacher)
    monkeypatch.setattr(study.asker, "begun", lambda kind, number: [number])
    parts = [Part("0", (9, 9)), Part("1", (9, 8))]
    for _ in range(2):
        study._sample(PLAIN, parts, 3)
    by_piece = {name: [prompt.begun for prompt in begun if prompt.key.split()[2] == name] for name in "01"}
    assert by_piece == {"0": [(0,), (1,), (2,), (6,), (7,), (8,)], "1": [(3,), (4,), (5,), (9,), (10,), (11,)]}
    assert len({prompt.key for prompt in begun}) == len(begun)


def test_what_is_not_about_the_text_is_dropped(llama, tokenizer, text, monkeypatch):
    teacher = make_teacher(llama, tokenizer, text)
    texts = ["About?", "Other?", "", "About?", "Also?", "Other?"]
    asked_by(monkeypatch, teacher, texts)
    monkeypatch.setattr(teacher, "text_kl", lambda samples: [0.0 if s.query == "Other?" else 1.0 for s in samples])
    study = study_of(teacher)
    found = {}
    study.round(PLAIN, [Part("0", (9, 9)), Part("1", (9, 8))], 3, found, 10)
    assert {query: each.times for query, each in found.items()} == {"About?": 2, "Also?": 1}
    assert study.result.to_dict() == {
        "asker": "request", "sampled": 0, "ended": 5, "distinct": 3, "about": 2, "kept": 2
    }  # fmt: skip


def test_a_follow_up_need_not_hang_on_the_text(llama, tokenizer, text, monkeypatch):
    teacher = make_teacher(llama, tokenizer, text)
    asked_by(monkeypatch, teacher, ["And why?"])
    monkeypatch.setattr(teacher, "text_kl", lambda samples: [0.0] * len(samples))
    study = study_of(teacher)
    found = {}
    study.round(FOLLOW_UP, [Part("0", None, (QUESTION, "here"))], 1, found, 10)
    assert set(found) == {(QUESTION, "here", "And why?")}


def test_conversations_without_room_are_not_asked(tokenizer, text, monkeypatch):
    """Behind text and buffer, a follow-up that would end beyond the window is left out, and the others are asked."""
    talks = {"short": ("Who?", "here"), "long": ("Where does Mara live now? " * 20, "here")}
    asked = {}
    for window in (1024, 240):
        teacher = make_teacher(tiny_model("llama", max_position_embeddings=window), tokenizer, text)
        prompts = []
        monkeypatch.setattr(
            teacher, "write", lambda name, visible, new, *_, kept=prompts: kept.extend(new) or [""] * len(new)
        )
        study = study_of(teacher)
        study._sample(FOLLOW_UP, [Part(name, None, talk) for name, talk in talks.items()], 1)
        most = window - teacher.context.buffer - teacher.longest
        assert all(len(teacher.text_kv) + len(prompt.ids) <= most for prompt in prompts)
        asked[window] = {prompt.key.split()[2] for prompt in prompts}
    assert asked == {1024: {"short", "long"}, 240: {"short"}}


def test_an_asker_that_cannot_ask_is_refused(llama, tokenizer, text):
    teacher = make_teacher(llama, tokenizer, text)
    with pytest.raises(lcc.InputError, match="self_study_asker is 'examples'; with this tokenizer there are request"):
        self_study(teacher, DataSettings(self_study_asker="examples"), 0, lambda *_: None)


@pytest.fixture
def queries():
    return {f"Say: {word}.": 1.0 for word in ("dog", "cat", "pony", "fish", "river", "lamp", "58", "36", "54")}


def test_answers_come_with_the_states_that_predict_them(tokenizer, text, queries):
    teacher = make_teacher(tiny_model("llama", torch.float64), tokenizer, text)
    samples = teacher.answer("general", queries, lambda done: None)
    assert [sample.query for sample in samples] == list(queries)
    assert all(sample.response_ids[-1] == teacher.chat.end for sample in samples)
    with torch.no_grad():
        expected = completion_states(teacher.model, teacher.text_kv, samples)
    found = torch.cat([sample.teacher_hidden for sample in samples])
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-9)


def test_text_kl_is_that_of_the_first_tokens(tokenizer, text, queries):
    model = tiny_model("llama", torch.float64)
    teacher = make_teacher(model, tokenizer, text, longest=24)
    samples = teacher.answer("general", queries, lambda done: None)
    head = model.get_output_embeddings()
    for sample, kl in zip(samples, teacher.text_kl(samples), strict=True):
        first = sample.response_ids[: teacher_module.TELLING]
        alone = Sample(tuple(teacher.chat.query_ids(sample.query, after_text=False)), first)
        with torch.no_grad():
            without = head(completion_states(model, teacher.prefix_kv, [alone])).log_softmax(-1)
            taught = head(sample.teacher_hidden[: len(first)]).log_softmax(-1)
        expected = (taught.exp() * (taught - without)).sum(-1).mean().item()
        assert kl == pytest.approx(expected, rel=1e-6)


def test_a_killed_run_goes_on_bit_by_bit(llama, tokenizer, text, queries, tmp_path, monkeypatch):
    """Parts that were finished are not written again, and the rest is what an uninterrupted run writes."""
    monkeypatch.setattr(parts_module, "SIZE", 4)
    whole = make_teacher(llama, tokenizer, text).answer("general", queries, lambda done: None)
    path = tmp_path / "surrogate.safetensors"
    decode, calls = teacher_module.decode, []

    def killed(*arguments):
        calls.append(arguments)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return decode(*arguments)

    monkeypatch.setattr(teacher_module, "decode", killed)
    with pytest.raises(KeyboardInterrupt):
        make_teacher(llama, tokenizer, text, Parts(path, {"a": 1})).answer("general", queries, lambda done: None)
    assert len(list(tmp_path.glob("*-part-*"))) == 2
    resumed = make_teacher(llama, tokenizer, text, Parts(path, {"a": 1})).answer("general", queries, lambda done: None)
    assert len(calls) == 4
    for one, other in zip(resumed, whole, strict=True):
        assert one == other
        assert torch.equal(one.teacher_hidden, other.teacher_hidden)


def test_parts_of_other_data_are_refused_or_made_anew(llama, tokenizer, text, queries, tmp_path):
    path = tmp_path / "surrogate.safetensors"
    make_teacher(llama, tokenizer, text, Parts(path, {"a": 1})).answer("general", queries, lambda done: None)
    other = make_teacher(llama, tokenizer, text, Parts(path, {"a": 2}))
    with pytest.raises(lcc.MismatchError, match="differs in a"):
        other.answer("general", queries, lambda done: None)
    parts = Parts(path, {"a": 2}, restart=True)
    assert make_teacher(llama, tokenizer, text, parts).answer("general", queries, lambda done: None)
    parts.clear()
    assert not list(tmp_path.iterdir())
