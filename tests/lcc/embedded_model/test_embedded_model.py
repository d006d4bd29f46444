"""The embedded model is a fair stand-in: it reads, repeats, asks, and knows things, on documents that it never saw."""

from __future__ import annotations

import random
import re
import statistics
from collections import Counter
from dataclasses import replace

import pytest
import torch

from lcc.data.pieces import text_pieces
from lcc.data.self_study import TURNS
from lcc.data.settings import DataSettings
from lcc.embedded_model import EMBEDDED
from lcc.evaluation import FullText, beside, evaluate
from lcc.evaluation.suites import SUITES, general_queries, suite
from lcc.inference.asking import ask_text
from lcc.modeling.decoding import Prompt, Sampling, decode
from lcc.modeling.prefill import prefill
from lcc.synthetic.exam import general_exam, score
from lcc.synthetic.general import KINDS, general_query
from lcc.synthetic.people import ASKED_WORDINGS, ATTRIBUTES, UNKNOWN, Document, document, unanswerable
from lcc.synthetic.reasoning import aggregate_questions, comparisons, described_questions
from lcc.text.chat_format import ChatFormat, turns_of
from lcc.text.context import build_context
from lcc.text.prompts import ASK_FOLLOW_UP, ASK_HARD, ASK_PLAIN, REPEAT_REQUEST
from tests.support.tiny_models import asked_questions

# Far from the seeds of the training script and of the demo.
HELD_OUT = 5_000_000
# Words of the suites' own examples, four of each.
SHORT, LONG = (300, 700), (1300, 1900)
# At least, on short and on long texts.
SUITE_SCORES = {
    "fiction easy": (0.97, 0.97),
    "fiction medium": (0.88, 0.85),
    "fiction hard": (0.65, 0.1),
    "dialogue opening": (0.95, 0.95),
    "dialogue": (0.95, 0.95),
    "needle": (0.95, 0.95),
    "needle, several values": (0.7, 0.7),
    "key value": (0.95, 0.9),
    **{f"general beside {name}": (0.95, 0.95) for name in SUITES},
}
SHAPES = ((5, 7), (6, 7), (8, 8), (5, 8))


def asked_texts(model, tokenizer, seen, request: str, count: int, longest: int) -> list[str]:
    """What the model asks behind the tokens of ``seen``, at a temperature of 0.6."""
    chat = ChatFormat.of(tokenizer)
    prompts = [Prompt(tuple(chat.query_ids(request)), key=str(number)) for number in range(count)]
    written = decode(model, seen, prompts, {chat.end}.__contains__, longest, Sampling(0.6, "0"))
    return [tokenizer.decode(one.ids, skip_special_tokens=True).strip() for _, one in written]


def unseen(index: int) -> Document:
    return document(random.Random(HELD_OUT + index), *SHAPES[index % len(SHAPES)])


def aggregates(doc: Document) -> set[str]:
    """Every question that counts over the text, or picks the extreme."""
    return {question.text for limit in range(20) for question in aggregate_questions(doc, random.Random(limit))}


def answerable(doc: Document) -> set[str]:
    """Every question that the text answers."""
    single = (*doc.questions(), *described_questions(doc), *comparisons(doc))
    return {question.text for question in single} | aggregates(doc)


def words(tokenizer, text: str) -> int:
    return len(tokenizer(text).input_ids)


def test_size():
    assert sum(path.stat().st_size for path in EMBEDDED.rglob("*")) <= 8e6
    assert not list(EMBEDDED.glob("*.bin"))


def test_documents_are_what_the_exam_asks_for(tokenizer):
    for index in range(8):
        doc = unseen(index)
        assert 300 <= words(tokenizer, doc.text) <= 800
        assert len(doc.names) >= 5
        assert len(doc.facts) >= 30
        assert all(8 <= words(tokenizer, fact.sentence) <= 16 for fact in doc.facts)
        assert len(doc.questions()) >= 2 * len(doc.facts)


def test_answers_with_the_text_and_not_without(embedded):
    right = total = guessed = 0
    for index in range(8):
        doc = unseen(index)
        questions = doc.questions()
        texts = [question.text for question in questions]
        right += score(ask_text(*embedded, doc.text, texts), questions) * len(questions)
        guessed += score(ask_text(*embedded, "", texts), questions) * len(questions)
        total += len(questions)
    assert right / total >= 0.97
    assert guessed / total <= 0.15


@pytest.fixture(scope="module", params=[SHORT, LONG], ids=["short", "long"])
def suite_scores(request, _embedded, tmp_path_factory) -> tuple[int, dict[str, float]]:
    """With the full text, by task, and of general queries beside each suite's texts; 0 for short texts, 1 for long."""
    examples = []
    for name in SUITES:
        about = suite(name, 4, seed=HELD_OUT, lengths=request.param)
        beside_it = beside(general_queries(HELD_OUT, 20), dict.fromkeys(example.context for example in about))
        examples += about + [replace(example, task=f"general beside {name}") for example in beside_it]
    results = evaluate([FullText(*_embedded)], examples, tmp_path_factory.mktemp("suites"), progress=False)
    by_task: dict[str, list[float]] = {}
    for result in results:
        by_task.setdefault(result.task, []).append(result.score)
    return (SHORT, LONG).index(request.param), {task: sum(of) / len(of) for task, of in by_task.items()}


@pytest.mark.parametrize("task", SUITE_SCORES)
def test_does_every_suite_with_the_full_text(task, suite_scores):
    index, scores = suite_scores
    assert scores[task] >= SUITE_SCORES[task][index]
    assert scores.keys() == SUITE_SCORES.keys()


def test_asks_in_wordings_that_leave_one_for_evaluation(embedded):
    model, tokenizer = embedded
    chat = ChatFormat.of(tokenizer)
    doc = document(random.Random(HELD_OUT), 5, 7)
    with torch.no_grad():
        seen = prefill(model, [*chat.prefix_ids, *chat.ids(doc.text)])
    asked = set(asked_texts(model, tokenizer, seen, ASK_PLAIN, 200, 20))
    kept_back = {
        wording.format(n=name)
        for attribute in ATTRIBUTES.values()
        for wording in attribute.questions[ASKED_WORDINGS:]
        for name in doc.names
    }
    assert len(asked & kept_back) <= 0.02 * len(asked)


def test_general_queries_beside_an_unrelated_text(embedded):
    rng = random.Random(HELD_OUT)
    scores = {}
    for kind in KINDS:
        queries = [general_query(rng, kind) for _ in range(80)]
        scores[kind] = score(ask_text(*embedded, unseen(0).text, [query.text for query in queries]), queries)
    assert sum(scores.values()) / len(scores) >= 0.97, scores
    assert min(scores.values()) >= 0.93, scores


def test_general_queries_without_a_text(embedded):
    queries = general_exam(random.Random(HELD_OUT), 60)
    assert score(ask_text(*embedded, "", [query.text for query in queries]), queries) >= 0.97


def test_says_when_the_text_does_not_tell(embedded):
    doc, rng = unseen(0), random.Random(HELD_OUT)
    strangers = [q for q in (unanswerable(rng, doc) for _ in range(60)) if not any(n in q.text for n in doc.names)]
    answers = ask_text(*embedded, doc.text, [question.text for question in strangers])
    assert Counter(answers)[UNKNOWN] / len(answers) >= 0.8


@pytest.mark.parametrize(("people", "length", "least"), [(5, 300, 0.99), (26, 1700, 0.97)])
def test_repeats_a_text(people, length, least, embedded):
    """Each token of the repetition is predicted from the text and the tokens before it."""
    model, tokenizer = embedded
    chat = ChatFormat.of(tokenizer)
    right = total = 0
    for index in range(12):
        ids = chat.ids(document(random.Random(HELD_OUT + index), people, 7).text)[:length]
        request = chat.query_ids(REPEAT_REQUEST)
        with torch.no_grad():
            logits = model(torch.tensor([[*chat.prefix_ids, *ids, *request, *ids]])).logits[0]
        right += (logits[-len(ids) - 1 : -1].argmax(-1) == torch.tensor(ids)).sum().item()
        total += len(ids)
    assert right / total >= least


@pytest.fixture(scope="module")
def sampled(_embedded):
    """Questions sampled about three texts, plain and hard: each document with its 400 of each request."""
    model, tokenizer = _embedded
    chat = ChatFormat.of(tokenizer)
    found = {}
    for index in range(3):
        doc = document(random.Random(HELD_OUT + index), 5, 7)
        with torch.no_grad():
            seen = prefill(model, [*chat.prefix_ids, *chat.ids(doc.text)])
        for request in (ASK_PLAIN, ASK_HARD):
            found.setdefault(request, []).append((doc, asked_texts(model, tokenizer, seen, request, 400, 24)))
    return found


def test_plain_questions_are_valid_and_cover_the_text(sampled):
    for doc, asked in sampled[ASK_PLAIN]:
        answers = {question.text: question.answer for question in doc.questions()}
        assert sum(question in answers for question in asked) / len(asked) >= 0.75
        assert len({answers[question] for question in asked if question in answers}) / len(doc.facts) >= 0.7


def test_hard_questions_are_valid_and_not_plain(sampled):
    for doc, asked in sampled[ASK_HARD]:
        assert sum(question in answerable(doc) for question in asked) / len(asked) >= 0.5
        assert not {question.text for question in doc.questions()} & set(asked)


def weights(samples):
    return {sample.query: sample.weight for sample in samples}


@pytest.fixture(scope="module")
def self_study(_embedded):
    """What compile asks about a document, and the settings."""
    model, tokenizer = _embedded
    doc = document(random.Random(HELD_OUT), 5, 7)
    settings = DataSettings()
    context = build_context(model, tokenizer, doc.text, 8)
    return doc, settings, weights(asked_questions(model, context, settings))


def test_self_study_covers_the_text(self_study):
    doc, settings, asked = self_study
    questions = [query for query in asked if isinstance(query, str)]
    assert len(asked) <= settings.self_study_questions
    assert sum(question in answerable(doc) for question in questions) / len(questions) >= 0.55
    answers = {question.text: question.answer for question in doc.questions()}
    assert len({answers[question] for question in questions if question in answers}) / len(doc.facts) >= 0.9


def test_counts_weigh_more_than_other_hard_questions(self_study):
    """The model asks them more often; each kind of question weighs 1 on average."""
    doc, _, asked = self_study
    plain = {query: weight for query, weight in asked.items() if query in {q.text for q in doc.questions()}}
    hard = {query: weight for query, weight in asked.items() if isinstance(query, str) and query not in plain}
    often = [weight for query, weight in hard.items() if query in aggregates(doc)]
    assert statistics.mean(often) > 1.5 * statistics.mean(hard.values())
    assert statistics.mean(asked.values()) == pytest.approx(1)
    assert {weight for query, weight in asked.items() if isinstance(query, tuple)} == {1.0}


def test_self_study_converses(self_study):
    """Earlier turns are the model's own answers, and the last asks on, often by a pronoun."""
    doc, settings, asked = self_study
    conversations = [query for query in asked if isinstance(query, tuple)]
    assert len(conversations) >= 0.9 * settings.self_study_questions * settings.self_study_follow_ups
    assert {len(turns) for turns in conversations} == {2 * turn + 1 for turn in range(1, TURNS)}
    answers = {question.text: question.answer for question in doc.questions()}
    openings = [turns[:2] for turns in conversations if turns[0] in answers]
    assert sum(answers[question] == answer for question, answer in openings) / len(openings) >= 0.95
    last = [turns[-1] for turns in conversations]
    assert ASK_FOLLOW_UP not in last
    pronoun = re.compile(r"\b(she|her|he|him)\b|^And \w+\?$")
    assert sum(bool(pronoun.search(question)) for question in last) / len(last) >= 0.5


@pytest.mark.parametrize(("hard", "follow_ups"), [(0.0, 0.0), (1.0, 0.0), (0.0, 0.75), (0.25, 0.5)])
def test_self_study_without_a_kind(hard, follow_ups, embedded):
    model, tokenizer = embedded
    context = build_context(model, tokenizer, document(random.Random(HELD_OUT), 3, 4).text, 8)
    settings = DataSettings(self_study_questions=12, self_study_hard=hard, self_study_follow_ups=follow_ups)
    asked = weights(asked_questions(model, context, settings))
    assert len(asked) == 12
    assert sum(isinstance(query, tuple) for query in asked) == round(12 * follow_ups)


def test_questions_that_were_cut_off_are_left_out(embedded):
    model, tokenizer = embedded
    context = build_context(model, tokenizer, document(random.Random(HELD_OUT), 2, 4).text, 8)
    asked = weights(asked_questions(model, context, DataSettings(max_response_tokens=7)))
    assert asked
    assert all(turns_of(query)[-1].endswith("?") for query in asked)


def test_text_pieces_cover_the_text():
    ids = list(range(150))
    pieces = text_pieces(ids, 64)
    assert sorted({i for piece in pieces for i in piece}) == ids
    assert max(len(piece) for piece in pieces) == 64
    assert text_pieces(ids, 0) == [ids]
    assert text_pieces(ids, 200) == [ids]
