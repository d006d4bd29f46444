"""Repeating a text as a whole or piece by piece: what is kept of the fidelity table's documents.

    python -m benchmarks.compile.pieces --documents 6

The two objectives differ in nothing but ``reconstruction_piece``; their data and draws are the same. Beside the scores
of a memory's answers stands the share of the text's tokens that it predicts when it repeats the whole text.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path
from statistics import fmean

import lcc
from benchmarks.common.environment import describe
from benchmarks.common.models import load
from benchmarks.common.results_file import Row
from benchmarks.common.sweep import Sweep
from lcc.evaluation import METRICS, Example
from lcc.evaluation.suites import suite
from lcc.inference.reader import Reader
from lcc.text.chat_format import ChatFormat
from lcc.text.prompts import REPEAT_REQUEST

OUT = Path("benchmarks/results/compile/pieces.json")
WORDS, PIECES = 300, (0, 64)
SETTINGS = {"ratio": 16, "steps": 110, "batch": 16, "evaluate_every": 55, "certify": False}


def scored(reader: Reader, examples: list[Example]) -> float:
    """Mean score of a reader's answers."""
    answers = reader.answer([one.request for one in examples])
    return fmean(METRICS[one.metric](text, one.answers) for one, text in zip(examples, answers, strict=True))


def measure(number: int, piece: int) -> Row:
    """One row: a document, repeated in pieces of so many tokens."""
    model, tokenizer = load()
    examples = suite("reading", number + 1, lengths=(WORDS,))
    text = list(dict.fromkeys(one.context for one in examples))[number]
    examples = [one for one in examples if one.context == text]
    data = Path(tempfile.gettempdir()) / "lcc-pieces"
    memory = lcc.compile(model, tokenizer, text, reconstruction_piece=piece, surrogates=data, **SETTINGS)
    chat = ChatFormat.of(tokenizer)
    reader = Reader.of_memory(model, chat, memory)
    best = memory.best_point or {}
    return {
        "document": number,
        "piece": piece,
        "questions": len(examples),
        "full_text": scored(Reader.of_text(model, chat, text), examples),
        "memory": scored(reader, examples),
        "repeated": reader.accuracy([REPEAT_REQUEST], [tuple(chat.ids(text))]),
        "held_out_kl": best.get("held_out_kl"),
        "settings": SETTINGS,
        **describe(),
    }


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--documents", type=int, default=6)
    parser.add_argument("--out", type=Path, default=OUT)
    arguments = parser.parse_args()
    sweep = Sweep(arguments.out, lambda row: (row["document"], row["piece"]))
    for key in sweep.missing((number, piece) for number in range(arguments.documents) for piece in PIECES):
        sweep.add(measure(*key))
    for piece in PIECES:
        rows = [row for row in sweep.rows if row["piece"] == piece]
        figures = {
            name: fmean(row[name] for row in rows) for name in ("memory", "full_text", "repeated", "held_out_kl")
        }
        print(piece, " ".join(f"{name} {value:.4f}" for name, value in figures.items()))


if __name__ == "__main__":
    main()
