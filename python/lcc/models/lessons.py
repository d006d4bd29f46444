"""What the embedded model is taught: texts, each with exercises about it."""

from __future__ import annotations

import random

from ..self_study import ASK_REQUEST
from ..surrogate import REPEAT_REQUEST
from . import fiction, general
from .packing import Exercise, Lesson

CONTINUE_REQUEST = "Continue the text after: {snippet}"
COPYING_WEIGHT = 0.15


def _snippet(words: list[str], rng: random.Random) -> Exercise:
    """Continue the text after four of its words, for up to twelve more."""
    start = rng.randrange(max(1, len(words) - 8))
    given, rest = words[start : start + 4], words[start + 4 : start + 16]
    return Exercise(((CONTINUE_REQUEST.format(snippet=" ".join(given)), " ".join(rest)),), "continue", COPYING_WEIGHT)


def copying_lesson(rng: random.Random, length: int, words: int | None = None) -> Lesson:
    """Repeat or continue a text of random words: what copying circuits grow on.

    The fewer distinct ``words`` (all, by default), the further back one must look to know where one is.
    """
    chosen = rng.choices(rng.sample(general.WORDS, words) if words else general.WORDS, k=length)
    text = " ".join(chosen)
    return Lesson(text, (Exercise(((REPEAT_REQUEST, text),), "repeat"), *(_snippet(chosen, rng) for _ in range(4))))


def document_lesson(rng: random.Random, people: int, attributes: int, alike: bool, repeat: bool = False) -> Lesson:
    """Questions of one to three turns, general queries, asking, continuing and (``repeat``) repeating."""
    doc = fiction.document(rng, people, attributes, alike)
    exercises = []
    for _ in range(12):
        turns = rng.choices((1, 2, 3), (6, 1, 1))[0]
        asked = [doc.question(rng.choice(doc.facts), rng) for _ in range(turns)]
        exercises.append(Exercise(tuple((q.text, q.answer) for q in asked), "question"))
    unknown = fiction.unanswerable(rng, doc)
    exercises.append(Exercise(((unknown.text, unknown.answer),), "unknown"))
    for _ in range(4):
        query = general.general_query(rng)
        exercises.append(Exercise(((query.text, query.answer),), "general"))
    for _ in range(3):
        exercises.append(Exercise(((ASK_REQUEST, doc.question(rng.choice(doc.facts), rng).text),), "ask", 0.3))
    exercises.append(_snippet(doc.text.split(), rng))
    if repeat:
        exercises.append(Exercise(((REPEAT_REQUEST, doc.text),), "repeat", COPYING_WEIGHT))
    return Lesson(doc.text, tuple(exercises))


def repeating_lesson(rng: random.Random, people: int, attributes: int) -> Lesson:
    """Repeat a document, and continue it from several places."""
    text = fiction.document(rng, people, attributes).text
    snippets = [_snippet(text.split(), rng) for _ in range(6)]
    return Lesson(text, (Exercise(((REPEAT_REQUEST, text),), "repeat"), *snippets))


def asking_lesson(rng: random.Random, people: int, attributes: int) -> Lesson:
    """Ask many questions about one document, and answer general queries beside it."""
    doc = fiction.document(rng, people, attributes)
    asked = [doc.question(fact, rng).text for fact in rng.choices(doc.facts, k=24)]
    queries = [general.general_query(rng) for _ in range(16)]
    asking = [Exercise(((ASK_REQUEST, question),), "ask") for question in asked]
    return Lesson(doc.text, (*asking, *(Exercise(((q.text, q.answer),), "general") for q in queries)))


def closed_book_lesson(rng: random.Random) -> Lesson:
    """No text: general queries are answered, questions about people are not."""
    exercises = []
    for _ in range(8):
        query = general.general_query(rng)
        exercises.append(Exercise(((query.text, query.answer),), "general"))
        unknown = fiction.unanswerable(rng, None)
        exercises.append(Exercise(((unknown.text, unknown.answer),), "unknown"))
    return Lesson("", tuple(exercises))
