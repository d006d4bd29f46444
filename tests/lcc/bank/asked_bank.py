"""A bank of the embedded model: three documents about the same people, compiled in a moment."""

from __future__ import annotations

import random
from dataclasses import replace

import lcc
from lcc.synthetic.corpus import draw_corpus

DOCUMENTS = 3


def made_corpus():
    return draw_corpus(random.Random(7), DOCUMENTS, 10, 6)


def fill(bank, model, tokenizer, keep_texts=True):
    """Compile the corpus's documents; each carries questions about what it alone tells, in two wordings."""
    corpus = made_corpus()
    for number, document in enumerate(corpus.documents):
        memory = lcc.compile(
            model, tokenizer, document.text, compiler="flashmem", ratio=4, certify=False, progress=False
        )
        asked = tuple(question.text for question in corpus.questions(number, slice(0, 2)))
        bank.put(f"doc{number}", replace(memory, questions=asked), document.text if keep_texts else None)
    return corpus
