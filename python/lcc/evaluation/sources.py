"""Examples by name: a suite, one of the paper's benchmarks, a JSONL file or a dataset in its schema."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from itertools import islice

from ..errors import InputError
from ..utils.jsonl import load_rows
from ..utils.random_state import sample_up_to
from .datasets import LOADERS, load_benchmark
from .examples import Example, beside, parse_examples
from .stories import stories, unrelated_instructions
from .suites import LENGTHS, SUITES, general_queries, suite

# Examples that are not generated and stand in this package.
SHIPPED: dict[str, Callable[[], list[Example]]] = {
    "stories": stories,
    "stories_general": unrelated_instructions,
}


def load_examples(
    source: str,
    contexts: int,
    seed: int = 0,
    lengths: Sequence[int] = LENGTHS,
    fits: Callable[[str], bool] = bool,
) -> list[Example]:
    """The examples about ``contexts`` texts of ``source``, drawn at random where it has more.

    Args:
        source: a key of ``SUITES`` or ``SHIPPED``; a key of ``LOADERS``, from the hub, or ``NAME=PLACE`` from a JSONL
            file or a dataset folder; else a JSONL file or a datasets name (its test split) in ``Example``'s schema.
        lengths: of a suite's documents, in words.
        fits: whether a text of a benchmark or a file is to be drawn; by default, all but empty ones.

    Raises:
        InputError: the source cannot be read, holds no examples, or only queries that are about no text.
    """
    if contexts < 1:
        raise InputError(f"the number of texts is {contexts}; it must be at least 1")
    if source in SUITES:
        if not 100 <= min(lengths) <= max(lengths) <= 2000:
            raise InputError(f"documents of {min(lengths)} to {max(lengths)} words: lengths go from 100 to 2000")
        return suite(source, contexts, seed, lengths)
    examples = _load(source)
    texts = list(dict.fromkeys(example.context for example in examples))
    if texts == [""]:
        raise InputError(f"the queries of {source} are about no text: ask them beside one, with --general {source}")
    shuffled = random.Random(seed).sample(texts, len(texts))
    drawn = set(islice(filter(fits, shuffled), contexts))
    if not drawn:
        raise InputError(f"none of the {len(texts)} texts of {source} is short enough")
    return [example for example in examples if example.context in drawn]


def load_general(source: str, count: int, texts: Sequence[str], seed: int = 0) -> list[Example]:
    """``count`` queries of ``source`` beside each of ``texts``.

    Args:
        source: ``general`` for the package's own, else as in ``load_examples``; their contexts are not used.

    Raises:
        InputError: as ``load_examples``.
    """
    if source == "general":
        return beside(general_queries(seed, count), texts)
    queries = _load(source)
    return beside(sample_up_to(random.Random(seed), queries, count), texts)


def _load(source: str) -> list[Example]:
    if source in SHIPPED:
        return SHIPPED[source]()
    name, _, place = source.partition("=")
    if name in LOADERS:
        return load_benchmark(name, place)
    return parse_examples(load_rows(source, "test"), source)
