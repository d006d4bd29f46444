"""Fictional documents about people, with the questions they answer.

Everything is drawn from a ``random.Random``, so a seed names a document. A document is a list of sentences, one fact
each; a fact is one person's value of one attribute. Within a document no two people share a value, as long as there
are enough values for all.
"""

from __future__ import annotations

import math
import random
from dataclasses import dataclass

NAMES = tuple(
    "Ada Boris Carla Dario Elena Felix Greta Hugo Ines Jonas Kira Leon Mara Nils Olga Pablo Rosa Stefan Tessa Ulrich "
    "Vera Walter Yara Zeno Alma Bruno Celia Dimitri Edith Fabio Gloria Henrik Irma Janos Klara Lukas Mina Nestor Oscar "
    "Petra Quentin Rita Simon Thea Ugo Viola Wanda Xaver".split()
)


@dataclass(frozen=True)
class Attribute:
    """What can be told of a person: its values, its wordings as statement and question; ``{n}`` is the name."""

    values: tuple[str, ...]
    statements: tuple[str, ...]
    questions: tuple[str, ...]


ATTRIBUTES = {
    "town": Attribute(
        tuple(
            "Alden Brevik Corvo Dunmore Eskil Farrow Galway Harlan Istria Jarrow Kelso Lindau Morva Norden Ostend "
            "Pella Rovigo Selby Tarn Urbino Varna Wexford Yarrow Zadar".split()
        ),
        (
            "{n} lives in the quiet old town of {v}.",
            "For many years {n} has had a home in {v}.",
            "The house of {n} stands by the river in {v}.",
        ),
        ("Where does {n} live?", "In which town does {n} live?", "What is the home town of {n}?"),
    ),
    "job": Attribute(
        tuple(
            "baker tailor doctor painter farmer sailor teacher lawyer carpenter gardener miner pilot potter printer "
            "singer smith surgeon waiter weaver writer barber butcher dentist judge".split()
        ),
        (
            "{n} works every day as a {v}.",
            "To earn some money {n} has become a {v}.",
            "The job of {n} is the work of a {v}.",
        ),
        ("What is the job of {n}?", "What work does {n} do?", "As what does {n} work?"),
    ),
    "pet": Attribute(
        tuple(
            "cat dog parrot rabbit turtle hamster goat pony duck goose lizard ferret hedgehog canary snake mouse "
            "donkey piglet".split()
        ),
        (
            "{n} takes good care of a little {v}.",
            "At home {n} keeps a {v} as a pet.",
            "Every morning {n} goes for a walk with a {v}.",
        ),
        ("What pet does {n} have?", "Which animal does {n} keep?", "What is the pet of {n}?"),
    ),
    "color": Attribute(
        tuple("red blue green yellow purple orange brown pink gray violet silver golden scarlet turquoise".split()),
        (
            "{n} paints every door and wall in {v}.",
            "Among all colors {n} likes only {v}.",
            "The favorite color of {n} has always been {v}.",
        ),
        ("What is the favorite color of {n}?", "Which color does {n} like?", "What color does {n} paint with?"),
    ),
    "food": Attribute(
        tuple(
            "soup rice bread cheese pasta salad beans fish stew pizza cake noodles mushrooms potatoes eggs pancakes "
            "lentils dumplings".split()
        ),
        (
            "{n} cooks a big pot of {v} on Sunday.",
            "For dinner {n} always wants to eat {v}.",
            "The dish that {n} likes most is {v}.",
        ),
        ("What does {n} like to eat?", "What food does {n} cook?", "Which dish does {n} eat for dinner?"),
    ),
    "instrument": Attribute(
        tuple(
            "piano violin guitar flute harp trumpet drum cello organ banjo clarinet oboe tuba lute accordion "
            "mandolin".split()
        ),
        (
            "{n} plays music in the evening on the {v}.",
            "After years of practice {n} has mastered the {v}.",
            "The neighbors often hear {n} play the {v}.",
        ),
        ("What does {n} play?", "Which instrument does {n} play?", "On what does {n} play music?"),
    ),
    "month": Attribute(
        tuple("January February March April May June July August September October November December".split()),
        (
            "{n} was born on a windy day in {v}.",
            "The birthday of {n} is a day in {v}.",
            "Friends bring {n} a birthday present every {v}.",
        ),
        ("When was {n} born?", "In which month was {n} born?", "When is the birthday of {n}?"),
    ),
    "age": Attribute(
        tuple(str(age) for age in range(20, 80)),
        (
            "{n} is by now a person of {v}.",
            "This year the age of {n} is {v}.",
            "If you ask {n} for the age, it is {v}.",
        ),
        ("How old is {n}?", "What is the age of {n}?", "Which age has {n} reached?"),
    ),
}

UNKNOWN = "unknown"
# Words and punctuation marks of a sentence, on average: about the tokens of the embedded model's tokenizer.
SENTENCE_WORDS = 10.7
# The embedded model asks in the first so many wordings: the others are for questions that compile never asked itself.
ASKED_WORDINGS = 2


@dataclass(frozen=True)
class Fact:
    """One sentence of a document: ``name`` has ``value`` for ``attribute``; ``statement`` is the wording's index."""

    name: str
    attribute: str
    value: str
    statement: int

    @property
    def sentence(self) -> str:
        """The fact as the text states it."""
        return ATTRIBUTES[self.attribute].statements[self.statement].format(n=self.name, v=self.value)


@dataclass(frozen=True)
class Question:
    """A question with its exact answer."""

    text: str
    answer: str


@dataclass(frozen=True)
class Document:
    """Facts in the order in which the text states them."""

    facts: tuple[Fact, ...]

    @property
    def text(self) -> str:
        """The document."""
        return " ".join(fact.sentence for fact in self.facts)

    @property
    def names(self) -> list[str]:
        """The people in it."""
        return sorted({fact.name for fact in self.facts})

    def question(self, fact: Fact, rng: random.Random, wordings: int | None = None) -> Question:
        """One question about ``fact``, in a wording drawn from the first ``wordings`` (None: all) of its attribute."""
        return Question(rng.choice(ATTRIBUTES[fact.attribute].questions[:wordings]).format(n=fact.name), fact.value)

    def questions(self) -> list[Question]:
        """Every question that the text answers, in every wording."""
        return [
            Question(wording.format(n=fact.name), fact.value)
            for fact in self.facts
            for wording in ATTRIBUTES[fact.attribute].questions
        ]


def document(rng: random.Random, people: int, attributes: int, alike: bool = False) -> Document:
    """Draw a document of ``people`` x ``attributes`` facts, told person by person or in random order.

    ``alike`` gives everybody the same attributes, so that no question can be answered without its name.
    """
    names = rng.sample(NAMES, people)
    values = {}
    for key, attribute in ATTRIBUTES.items():
        copies = math.ceil(people / len(attribute.values))
        values[key] = rng.sample(attribute.values * copies, people)
    shared = rng.sample(list(ATTRIBUTES), attributes)
    facts = []
    for index, name in enumerate(names):
        for key in rng.sample(shared if alike else list(ATTRIBUTES), attributes):
            statement = rng.randrange(len(ATTRIBUTES[key].statements))
            facts.append(Fact(name, key, values[key][index], statement))
    if rng.random() < 0.5:
        rng.shuffle(facts)
    return Document(tuple(facts))


def people_for(words: int, attributes: int) -> int:
    """How many people with so many ``attributes`` each make a document of about ``words`` words."""
    return max(3, round(words / (SENTENCE_WORDS * attributes)))


def unanswerable(rng: random.Random, doc: Document | None) -> Question:
    """A question about somebody (or something of somebody) that ``doc`` does not tell; its answer is ``UNKNOWN``."""
    known = {(fact.name, fact.attribute) for fact in doc.facts} if doc else set()
    while True:
        name, key = rng.choice(NAMES), rng.choice(list(ATTRIBUTES))
        if (name, key) not in known:
            return Question(rng.choice(ATTRIBUTES[key].questions).format(n=name), UNKNOWN)
