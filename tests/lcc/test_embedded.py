"""The embedded model is a fair stand-in: it reads, repeats, asks, and knows things, on documents that it never saw."""

from __future__ import annotations

import random
from collections import Counter

import pytest
import torch

from lcc.chat import ChatFormat
from lcc.encode import read_text
from lcc.generate import generate_responses
from lcc.models import EMBEDDED
from lcc.models.exam import answer, general_exam, score
from lcc.models.fiction import UNKNOWN, Document, document, unanswerable
from lcc.models.general import KINDS, general_query
from lcc.surrogate import ASK_REQUEST, REPEAT_REQUEST

# Far from the seeds of the training script and of the demo.
HELD_OUT = 5_000_000
SHAPES = ((5, 7), (6, 7), (8, 8), (5, 8))


def unseen(index: int) -> Document:
    return document(random.Random(HELD_OUT + index), *SHAPES[index % len(SHAPES)])


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
        right += score(answer(*embedded, doc.text, texts), questions) * len(questions)
        guessed += score(answer(*embedded, "", texts), questions) * len(questions)
        total += len(questions)
    assert right / total >= 0.97
    assert guessed / total <= 0.15


@pytest.mark.parametrize("kind", KINDS)
def test_general_queries_beside_an_unrelated_text(kind, embedded):
    rng = random.Random(HELD_OUT)
    queries = [general_query(rng, kind) for _ in range(60)]
    assert score(answer(*embedded, unseen(0).text, [query.text for query in queries]), queries) >= 0.97


def test_general_queries_without_a_text(embedded):
    queries = general_exam(random.Random(HELD_OUT), 60)
    assert score(answer(*embedded, "", [query.text for query in queries]), queries) >= 0.97


def test_says_when_the_text_does_not_tell(embedded):
    doc, rng = unseen(0), random.Random(HELD_OUT)
    strangers = [q for q in (unanswerable(rng, doc) for _ in range(60)) if not any(n in q.text for n in doc.names)]
    answers = answer(*embedded, doc.text, [question.text for question in strangers])
    assert Counter(answers)[UNKNOWN] / len(answers) >= 0.8


def test_repeats_a_text_of_300_tokens(embedded):
    model, tokenizer = embedded
    chat = ChatFormat.of(tokenizer)
    right = total = 0
    for index in range(3):
        ids = chat.ids(unseen(4 * index).text)[:300]
        with torch.no_grad():
            seen = read_text(model, [*chat.prefix_ids, *ids])
        repeated = generate_responses(model, seen, [chat.query_ids(REPEAT_REQUEST)], 320, end=chat.end)[0]
        right += sum(a == b for a, b in zip(repeated, ids, strict=False))
        total += len(ids)
    assert right / total >= 0.99


def test_asks_valid_questions_that_cover_the_text(embedded):
    model, tokenizer = embedded
    chat, doc = ChatFormat.of(tokenizer), unseen(0)
    with torch.no_grad():
        seen = read_text(model, [*chat.prefix_ids, *chat.ids(doc.text)])
    torch.manual_seed(0)
    request = chat.query_ids(ASK_REQUEST)
    asked = []
    for _ in range(8):
        rows = generate_responses(model, seen, [request] * 64, 20, end=chat.end, temperature=1.0)
        asked += [tokenizer.decode(row, skip_special_tokens=True).strip() for row in rows]
    answers = {question.text: question.answer for question in doc.questions()}
    valid = [question for question in asked if question in answers]
    assert len(valid) / len(asked) >= 0.8
    covered = {(question.answer) for question in doc.questions() if question.text in valid}
    assert len(covered) / len({fact.value for fact in doc.facts}) >= 0.8
