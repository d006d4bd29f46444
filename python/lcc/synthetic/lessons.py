"""Questions about many generated documents, to learn from: ``python -m lcc.synthetic.lessons --out FILE.jsonl``.

Rows are ``{"context": ..., "question": ..., "answer": ...}``, as ``lcc eval`` and ``lcc.compilers.meta_train`` take
them: one for each fact of each document, in one of its wordings.
"""

from __future__ import annotations

import argparse
import json
import random
from collections.abc import Iterator
from pathlib import Path

from .people import document
from .seeds import LESSONS


def lessons(documents: int, people: tuple[int, int], attributes: tuple[int, int]) -> Iterator[dict[str, str]]:
    """The rows of so many documents.

    Args:
        people, attributes: least and most in a document, and of each person; see ``document``.
    """
    for number in range(documents):
        rng = random.Random(LESSONS + number)
        told = document(rng, rng.randint(*people), rng.randint(*attributes))
        for fact in told.facts:
            question = told.question(fact, rng)
            yield {"context": told.text, "question": question.text, "answer": question.answer}


def main(given: list[str] | None = None) -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--documents", type=int, default=2000)
    parser.add_argument("--people", type=int, nargs=2, default=[3, 8], metavar=("LEAST", "MOST"))
    parser.add_argument("--attributes", type=int, nargs=2, default=[3, 5], metavar=("LEAST", "MOST"))
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args(given)
    with arguments.out.open("w", encoding="utf-8") as file:
        for row in lessons(arguments.documents, tuple(arguments.people), tuple(arguments.attributes)):
            file.write(json.dumps(row) + "\n")


if __name__ == "__main__":
    main()
