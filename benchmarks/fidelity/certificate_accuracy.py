"""Does the certificate tell what a memory keeps? Its figures beside an exam, for unseen documents at several ratios.

    python -m benchmarks.fidelity.certificate_accuracy --ratios 32 16 8 --seeds 0 1 2
        --out benchmarks/results/fidelity/certificate.json

The exam has questions that compile and certificate know nothing of. One compilation a row; the file is written after
each, and a second call with the same file does only what is missing.
"""

from __future__ import annotations

import argparse
import time
from operator import itemgetter
from pathlib import Path

import lcc
from benchmarks.common.environment import describe
from benchmarks.common.sweep import Sweep
from lcc.cli.demo import demo_document
from lcc.embedded_model import load_embedded
from lcc.inference.asking import ask_text
from lcc.synthetic.exam import score

COLUMNS = ("seed", "ratio", "exam_kept", "kept", "count", "repeated", "general_changed", "cost")


def measure(model, tokenizer, recipe: str, ratio: float, seed: int) -> dict:
    document = demo_document(seed)
    began = time.monotonic()
    memory = lcc.compile(model, tokenizer, document.text, recipe=recipe, ratio=ratio, seed=seed)
    seconds = time.monotonic() - began
    certificate, questions = memory.certificate, document.questions()
    texts = [question.text for question in questions]
    full_text = score(ask_text(model, tokenizer, document.text, texts), questions)
    from_memory = score(lcc.ask(model, tokenizer, memory, texts, max_new_tokens=16), questions)
    return {
        "recipe": recipe,
        "ratio": ratio,
        "seed": seed,
        "steps": memory.curve[-1]["step"],
        "exam_questions": len(questions),
        "exam_kept": from_memory / full_text,
        "kept": certificate["questions"]["kept"],
        "count": certificate["questions"]["count"],
        "repeated": certificate["reconstruction"]["accuracy"]["memory"],
        "general_changed": certificate["general"]["from_full_text"]["memory"]["changed"],
        "cost": certificate["seconds"] / seconds,
        "certificate": certificate,
        "seconds": round(seconds, 1),
        **describe(),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--recipe", default="default")
    parser.add_argument("--ratios", type=float, nargs="+", default=[32, 16, 8])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    model, tokenizer = load_embedded()
    sweep = Sweep(arguments.out, itemgetter("recipe", "ratio", "seed"))
    wanted = [(arguments.recipe, ratio, seed) for seed in arguments.seeds for ratio in arguments.ratios]
    for key in sweep.missing(wanted):
        sweep.add(measure(model, tokenizer, *key))
    print("| " + " | ".join(COLUMNS) + " |\n|" + "---|" * len(COLUMNS))
    for row in sweep.rows:
        print("| " + " | ".join(f"{row[column]:.3g}" for column in COLUMNS) + " |")


if __name__ == "__main__":
    main()
