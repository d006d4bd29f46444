"""Context-agnostic queries that any small instruction model can answer: the material of the regularisation stream."""

from __future__ import annotations

import json
import random
from pathlib import Path

from .people import ATTRIBUTES, NAMES, Question
from .seeds import QUERIES

LISTED_WORDS = tuple(
    "moon stone river cloud lamp chair spoon window ladder basket candle bridge garden forest island mountain pencil "
    "mirror button hammer bottle carpet pillow ticket wagon feather blanket bucket rocket anchor".split()
)

CAPITALS = dict(
    France="Paris", Italy="Rome", Spain="Madrid", Japan="Tokyo", Egypt="Cairo", Russia="Moscow", Greece="Athens",
    Norway="Oslo", Poland="Warsaw", Cuba="Havana", Kenya="Nairobi", Peru="Lima", Austria="Vienna", Portugal="Lisbon",
)  # fmt: skip
OPPOSITES = dict(
    hot="cold", big="small", fast="slow", light="dark", young="old", high="low", wet="dry", full="empty", soft="hard",
    early="late", open="closed", rich="poor",
)  # fmt: skip
COLORS_OF = dict(snow="white", grass="green", blood="red", coal="black", gold="yellow", chocolate="brown")
LEGS = dict(spider="8", ant="6", horse="4", bird="2", worm="0")

WORLD_FACTS = tuple(
    Question(wording.format(key), answer)
    for table, wordings in (
        (CAPITALS, ("What is the capital of {}?", "Name the capital of {}.")),
        (OPPOSITES, ("What is the opposite of {}?", "Name the opposite of {}.")),
        (COLORS_OF, ("What color is {}?", "Name the color of {}.")),
        (LEGS, ("How many legs has a {}?", "Count the legs of a {}.")),
    )
    for key, answer in table.items()
    for wording in wordings
)

LARGEST_ADDEND = 12
WORDS = LISTED_WORDS + NAMES + tuple(value for key in ATTRIBUTES for value in ATTRIBUTES[key].values)


def _say(rng: random.Random) -> Question:
    words = " ".join(rng.choices(WORDS, k=rng.randint(1, 4)))
    return Question(f"Say: {words}.", words)


def _reverse(rng: random.Random) -> Question:
    words = rng.sample(WORDS, rng.randint(2, 4))
    return Question(f"Reverse: {' '.join(words)}.", " ".join(reversed(words)))


def _first(rng: random.Random) -> Question:
    words = rng.sample(WORDS, rng.randint(2, 5))
    return Question(f"Give the first word of: {' '.join(words)}.", words[0])


def _last(rng: random.Random) -> Question:
    words = rng.sample(WORDS, rng.randint(2, 5))
    return Question(f"Give the last word of: {' '.join(words)}.", words[-1])


def _add(rng: random.Random) -> Question:
    left, right = rng.randint(1, LARGEST_ADDEND), rng.randint(1, LARGEST_ADDEND)
    wording = rng.choice(("Add {} and {}.", "What is {} plus {}?"))
    return Question(wording.format(left, right), str(left + right))


def _world(rng: random.Random) -> Question:
    return rng.choice(WORLD_FACTS)


KINDS = {"say": _say, "reverse": _reverse, "first": _first, "last": _last, "add": _add, "world": _world}


def general_query(rng: random.Random, kind: str | None = None) -> Question:
    """Draw one query with its answer; ``kind`` is a key of ``KINDS``, by default a random one."""
    return KINDS[kind or rng.choice(list(KINDS))](rng)


def write_queries(path: Path, count: int = 600, seed: int = QUERIES) -> None:
    """Write the package's context-agnostic queries: ``count`` distinct ones, as JSONL."""
    rng = random.Random(seed)
    distinct: dict[str, None] = {}
    while len(distinct) < count:
        distinct.setdefault(general_query(rng).text)
    path.write_text("".join(json.dumps({"query": query}) + "\n" for query in distinct), encoding="utf-8")


if __name__ == "__main__":
    write_queries(Path(__file__).parents[1] / "text" / "lessons.jsonl")
