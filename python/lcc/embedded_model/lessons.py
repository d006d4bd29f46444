"""What the embedded model is taught: texts, each with exercises about it."""

from __future__ import annotations

import random
from collections.abc import Iterable

from ..synthetic import general
from ..synthetic import people as fiction
from ..synthetic.dialogue import dialogue
from ..synthetic.needles import Lookup, absent_entry, absent_number, hidden_numbers, key_values
from ..synthetic.people import ASKED_WORDINGS
from ..synthetic.reasoning import aggregate_questions, comparisons, described_questions
from ..text.prompts import ASK_FOLLOW_UP, ASK_HARD, ASK_PLAIN, REPEAT_REQUEST
from ..utils.random_state import sample_up_to
from .packing import Exercise, Lesson

CONTINUE_REQUEST = "Continue the text after: {snippet}"
COPYING_WEIGHT, ASKING_WEIGHT, SLOWEST_WEIGHT = 0.15, 0.3, 2.0
LOOKUPS = 12


def copying_lesson(rng: random.Random, length: int, words: int | None = None) -> Lesson:
    """Repeat or continue a text of random words: what copying circuits grow on.

    The fewer distinct ``words`` (all, by default), the further back one must look to know where one is.
    """
    chosen = rng.choices(rng.sample(general.WORDS, words) if words else general.WORDS, k=length)
    text = " ".join(chosen)
    return Lesson(text, (_repeat(text, 1.0), *(_snippet(text, rng) for _ in range(4))))


def document_lesson(
    rng: random.Random,
    people: int,
    attributes: int,
    alike: bool,
    repeat: bool = False,
    reasoning: int = 0,
    questions: int = 12,
) -> Lesson:
    """``questions`` of one to three turns, general queries, asking, continuing and (``repeat``) repeating.

    ``reasoning`` adds so many joins, comparisons, counts and dialogues with pronouns.
    """
    doc = fiction.document(rng, people, attributes, alike)
    exercises = []
    for _ in range(questions):
        turns = rng.choices((1, 2, 3), (6, 1, 1))[0]
        exercises.append(_turns((doc.question(rng.choice(doc.facts), rng) for _ in range(turns)), "question"))
    exercises.append(_untold(fiction.unanswerable(rng, doc).text))
    exercises += _general(rng, 4)
    exercises += [_ask(doc.question(rng.choice(doc.facts), rng, ASKED_WORDINGS).text) for _ in range(3)]
    exercises.append(_snippet(doc.text, rng))
    if repeat:
        exercises.append(_repeat(doc.text, COPYING_WEIGHT))
    if reasoning:
        exercises += _reasoning(doc, rng, reasoning)
    return Lesson(doc.text, tuple(exercises))


def repeating_lesson(rng: random.Random, people: int, attributes: int) -> Lesson:
    """Repeat a document, and continue it from several places."""
    text = fiction.document(rng, people, attributes).text
    return Lesson(text, (_repeat(text, 1.0), *(_snippet(text, rng) for _ in range(6))))


def asking_lesson(rng: random.Random, people: int, attributes: int) -> Lesson:
    """Ask plain questions, hard ones and those that go on from an answer; and answer general queries beside it."""
    doc = fiction.document(rng, people, attributes)
    exercises = [_ask(doc.question(fact, rng, ASKED_WORDINGS).text, 1.0) for fact in rng.choices(doc.facts, k=8)]
    hard = sample_up_to(rng, described_questions(doc, ASKED_WORDINGS), 6)
    hard += sample_up_to(rng, comparisons(doc), 2) + sample_up_to(rng, aggregate_questions(doc, rng), 2)
    exercises += [_ask(question.text, 1.0, ASK_HARD) for question in hard]
    exercises += [_ask_on(dialogue(doc, rng, rng.randint(2, 4), ASKED_WORDINGS)) for _ in range(8)]
    return Lesson(doc.text, (*exercises, *_general(rng, 12)))


def piece_lesson(rng: random.Random, people: int, attributes: int, words: int) -> Lesson:
    """Ask about a piece of so many words of a document, as self-study does, and only about what stands in it whole."""
    doc, text = _piece(fiction.document(rng, people, attributes), rng, words)
    asked = [doc.question(fact, rng, ASKED_WORDINGS).text for fact in rng.choices(doc.facts, k=16)]
    return Lesson(text, (*(_ask(question, 1.0) for question in asked), *_general(rng, 4)))


def comparing_lesson(rng: random.Random, people: int, attributes: int) -> Lesson:
    """Comparisons and counts alone, about people some of whose ages are told."""
    doc = fiction.document(rng, people, attributes)
    while not comparisons(doc):
        doc = fiction.document(rng, people, attributes)
    return _comparing(doc, rng, 12)


def ages_lesson(rng: random.Random, people: int) -> Lesson:
    """Comparisons and counts about a text that tells everybody's age and nothing else."""
    everything = fiction.document(rng, people, len(fiction.ATTRIBUTES))
    ages = fiction.Document(tuple(fact for fact in everything.facts if fact.attribute == "age"))
    return _comparing(ages, rng, 24)


def counting_lesson(rng: random.Random, people: int, attributes: int) -> Lesson:
    """All questions about all of the text, with up to three limits of age."""
    doc = fiction.document(rng, people, attributes)
    questions = dict.fromkeys(question for _ in range(3) for question in aggregate_questions(doc, rng))
    return Lesson(doc.text, tuple(_turns([question], "count") for question in questions))


def untold_lesson(rng: random.Random, people: int, attributes: int) -> Lesson:
    """Questions that the text does not answer among as many that it does."""
    doc = fiction.document(rng, people, attributes)
    told = _plain(doc, rng, 8)
    return Lesson(doc.text, (*told, *(_untold(fiction.unanswerable(rng, doc).text) for _ in range(8))))


def _comparing(doc: fiction.Document, rng: random.Random, count: int) -> Lesson:
    """``count`` comparisons and half as many questions about all of the text, where it has as many."""
    exercises = [_turns([question], "compare") for question in sample_up_to(rng, comparisons(doc), count)]
    exercises += [
        _turns([question], "count") for question in sample_up_to(rng, aggregate_questions(doc, rng), count // 2)
    ]
    return Lesson(doc.text, tuple(exercises))


def _piece(doc: fiction.Document, rng: random.Random, words: int) -> tuple[fiction.Document, str]:
    """The facts that stand whole in ``words`` words of the text (more, if none does), and these words."""
    split = doc.text.split()
    start = rng.randrange(max(1, len(split) - words))
    text = " ".join(split[start : start + words])
    facts = tuple(fact for fact in doc.facts if fact.sentence in text)
    return (fiction.Document(facts), text) if facts else _piece(doc, rng, words + 5)


def needle_lesson(rng: random.Random, people: int, attributes: int) -> Lesson:
    """Numbers hidden in a document are looked up, and the document is asked about as ever."""
    doc = fiction.document(rng, people, attributes)
    text, lookups = hidden_numbers(doc, rng)
    questions = _plain(doc, rng, 4)
    return Lesson(text, (*_look_up(lookups, rng), _untold(absent_number(text, rng)), *questions, *_general(rng, 3)))


def key_value_lesson(rng: random.Random, entries: int, repeat: bool = False) -> Lesson:
    """A list of pairs is looked up, continued and (``repeat``) repeated."""
    text, lookups = key_values(rng, entries)
    exercises = [*_look_up(sample_up_to(rng, lookups, LOOKUPS), rng), _untold(absent_entry(text, rng))]
    exercises += [*_general(rng, 4), _snippet(text, rng)]
    if repeat:
        exercises.append(_repeat(text, COPYING_WEIGHT))
    return Lesson(text, tuple(exercises))


def closed_book_lesson(rng: random.Random) -> Lesson:
    """No text: general queries are answered, questions about people and hidden numbers are not."""
    doc = fiction.document(rng, 4, 4)
    about_texts = sample_up_to(rng, described_questions(doc), 3) + sample_up_to(rng, aggregate_questions(doc, rng), 3)
    untold = [question.text for question in about_texts] + [absent_number("", rng), absent_entry("", rng)]
    untold += [fiction.unanswerable(rng, None).text for _ in range(8)]
    return Lesson("", (*map(_untold, untold), *_general(rng, 8)))


def _reasoning(doc: fiction.Document, rng: random.Random, count: int) -> list[Exercise]:
    """``count`` exercises of each kind that takes more than one sentence or turn, where the document has as many.

    Comparisons and counts, the slowest to learn, are twice as many and weigh more.
    """
    exercises = [_turns([question], "join") for question in sample_up_to(rng, described_questions(doc), count)]
    slowest = {"compare": comparisons(doc), "count": aggregate_questions(doc, rng)}
    for kind, questions in slowest.items():
        exercises += [_turns([question], kind, SLOWEST_WEIGHT) for question in sample_up_to(rng, questions, 2 * count)]
    return exercises + [_turns(dialogue(doc, rng, rng.randint(2, 5)), "dialogue") for _ in range(count)]


def _plain(doc: fiction.Document, rng: random.Random, count: int) -> list[Exercise]:
    """``count`` questions of one turn each."""
    return [_turns([doc.question(rng.choice(doc.facts), rng)], "question") for _ in range(count)]


def _look_up(lookups: list[Lookup], rng: random.Random) -> list[Exercise]:
    """Look up, and ask to look up."""
    exercises = [Exercise(((lookup.text, " ".join(lookup.values)),), "lookup") for lookup in lookups]
    asked = [_ask(lookup.text) for lookup in sample_up_to(rng, lookups, 3)]
    return exercises + asked


def _snippet(text: str, rng: random.Random) -> Exercise:
    """Continue the text after four of its words, for up to twelve more."""
    words = text.split()
    start = rng.randrange(max(1, len(words) - 8))
    given, rest = words[start : start + 4], words[start + 4 : start + 16]
    return Exercise(((CONTINUE_REQUEST.format(snippet=" ".join(given)), " ".join(rest)),), "continue", COPYING_WEIGHT)


def _repeat(text: str, weight: float) -> Exercise:
    return Exercise(((REPEAT_REQUEST, text),), "repeat", weight)


def _ask(question: str, weight: float = ASKING_WEIGHT, request: str = ASK_PLAIN) -> Exercise:
    return Exercise(((request, question),), "ask", weight)


def _ask_on(turns: list[fiction.Question]) -> Exercise:
    """Ask the last of the turns, after the others."""
    *answered, asked = turns
    return Exercise((*((turn.text, turn.answer) for turn in answered), (ASK_FOLLOW_UP, asked.text)), "ask")


def _untold(question: str) -> Exercise:
    return Exercise(((question, fiction.UNKNOWN),), "unknown")


def _general(rng: random.Random, count: int) -> list[Exercise]:
    return [_turns([general.general_query(rng)], "general") for _ in range(count)]


def _turns(questions: Iterable[fiction.Question], kind: str, weight: float = 1.0) -> Exercise:
    return Exercise(tuple((question.text, question.answer) for question in questions), kind, weight)
