"""What a memory keeps at several ratios, with and without the self-study stream, on unseen documents.

    python -m benchmarks.ratios --ratios 4 8 16 32 --seeds 0 --out benchmarks/results/ratios.json

One compilation a line; the file is written after each, and a second call with the same file does only what is missing.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from benchmarks.environment import describe
from benchmarks.results_file import load_rows, write_rows
from lcc.cli.demo import run_demo
from lcc.embedded_model import load_embedded

# two streams: the default's optimisation on the paper's streams alone.
RECIPES = {
    "default": {},
    "fast": {"recipe": "fast"},
    "two streams": {"self_study_questions": 0, "general_queries": 2000, "patience": 0},
}
COLUMNS = ("recipe", "ratio", "seed", "full_text", "memory", "unseen_wording", "general", "held_out_kl", "seconds")


def measure(model, tokenizer, recipe: str, ratio: float, seed: int, steps: int | None) -> dict:
    report = run_demo(model, tokenizer, seed=seed, ratio=ratio, steps=steps, **RECIPES[recipe])
    return {
        "recipe": recipe,
        "ratio": ratio,
        "seed": seed,
        "steps": report.steps,
        "full_text": report.scores["full_text"],
        "memory": report.scores["memory"],
        "unseen_wording": report.scores["memory_unseen_wording"],
        "no_text": report.scores["no_text"],
        "general_full_text": report.general["full_text"],
        "general": report.general["memory"],
        "held_out_kl": round(report.held_out_kl, 4),
        "self_questions": report.self_questions,
        "unseen_wordings": report.unseen_wordings,
        "buffer_tokens": report.buffer_tokens,
        "seconds": round(report.compile_seconds, 1),
        **describe(),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ratios", type=float, nargs="+", default=[4, 8, 16, 32])
    parser.add_argument("--recipes", nargs="+", choices=RECIPES, default=list(RECIPES))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--steps", type=int)
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    model, tokenizer = load_embedded()
    rows = load_rows(arguments.out)
    done = {(row["recipe"], row["ratio"], row["seed"]) for row in rows}
    for recipe in arguments.recipes:
        for ratio in arguments.ratios:
            for seed in arguments.seeds:
                if (recipe, ratio, seed) not in done:
                    rows.append(measure(model, tokenizer, recipe, ratio, seed, arguments.steps))
                    write_rows(arguments.out, rows)
    print("| " + " | ".join(COLUMNS) + " |\n|" + "---|" * len(COLUMNS))
    for row in rows:
        print("| " + " | ".join(_cell(row[column]) for column in COLUMNS) + " |")


def _cell(value: object) -> str:
    return f"{value:.3f}" if isinstance(value, float) and not value.is_integer() else str(value)


if __name__ == "__main__":
    main()
