"""A bank of the embedded model: three documents about the same people, compiled in a moment."""

from __future__ import annotations

import random
from dataclasses import replace

import lcc
from lcc.synthetic.library import library

DOCUMENTS = 3


def made_library():
    return library(random.Random(7), DOCUMENTS, 10, 6)


def fill(bank, model, tokenizer, keep_texts=True):
    """Compile the library's documents; each carries questions about what it alone tells, in two wordings."""
    shelf = made_library()
    for number, document in enumerate(shelf.documents):
        memory = lcc.compile(
            model, tokenizer, document.text, compiler="flashmem", ratio=4, certify=False, progress=False
        )
        asked = tuple(question.text for question in shelf.questions(number, slice(0, 2)))
        bank.put(f"doc{number}", replace(memory, questions=asked), document.text if keep_texts else None)
    return shelf
