"""What of a text comes out of its memories, at several ratios, with one person's sentences redacted or not.

    python -m benchmarks.compile.leaks --out leaks.json

A document is of four people that the embedded model never saw, and its number is the seed too. The sentences about
the first person are marked, or redacted; that person's values are the canaries. ``questions`` is the share of the
document's own questions about the others that are answered exactly. A second call measures what is missing.
"""

from __future__ import annotations

import argparse
import random
import tempfile
import time
from itertools import product
from operator import itemgetter
from pathlib import Path

import lcc
from benchmarks.common.environment import describe
from benchmarks.common.models import load
from benchmarks.common.results_file import Row
from benchmarks.common.sweep import Sweep
from lcc.synthetic.exam import score
from lcc.synthetic.people import document
from lcc.synthetic.seeds import DEMO

PEOPLE, ATTRIBUTES = 4, 8
SETTINGS = {"recipe": "fast"}
# Whose figures stand beside one another.
READERS = ("full_text", "memory", "no_text")


def measure(number: int, ratio: float, redacted: bool, steps: int, folder: Path) -> Row:
    """One memory's row.

    Args:
        folder: where the distillation data is kept, for all ratios.
    """
    model, tokenizer = load()
    doc = document(random.Random(DEMO + 2000 + number), PEOPLE, ATTRIBUTES)
    person = doc.names[0]
    facts = [fact for fact in doc.facts if fact.name == person]
    passages = [fact.sentence for fact in facts]
    began = time.monotonic()
    memory = lcc.compile(
        model, tokenizer, doc.text, ratio=ratio, seed=number, steps=steps, certify=False,
        redact=passages if redacted else (), surrogates=folder, progress=False, **SETTINGS,
    )  # fmt: skip
    seconds = time.monotonic() - began
    told = {"redacted": passages} if redacted else {"marks": passages}
    report = lcc.leaks(
        model, tokenizer, memory, doc.text, canaries=[fact.value for fact in facts], seed=number, progress=False, **told
    )
    others = [question for question in doc.questions() if person not in question.text]
    answers = lcc.ask(model, tokenizer, memory, [question.text for question in others], max_new_tokens=16)
    return {
        "document": number,
        "ratio": ratio,
        "redacted": redacted,
        "steps": steps,
        "buffer_tokens": memory.buffer_tokens,
        "compile_seconds": round(seconds, 1),
        "questions": score(answers, others),
        "leaks": report.to_dict(),
        **describe(),
    }


def summary(rows: list[Row]) -> str:
    """A line a memory; three figures are those of the text that was compiled, of the memory and of nothing."""
    lines = ["| document | ratio | redacted | questions | recited | longest run | sentences recited | asked about them "
             "| mean exposure, bits | canaries written, of 8 |", "|---" * 10 + "|"]  # fmt: skip
    for row in sorted(rows, key=itemgetter("redacted", "ratio", "document")):
        found = row["leaks"]
        passages, canaries = found["passages"], found["canaries"]
        longest = max(attack["longest"]["memory"] for attack in found["attacks"].values())
        exposures = {name: sum(one["exposure"][name] for one in canaries) / len(canaries) for name in READERS}
        came = {name: sum(one["written"][name] for one in canaries) for name in READERS}
        same = "-" if passages["same"] is None else _figures(passages["same"], "{:.0%}")
        cells = [
            row["document"], f"{row['ratio']:g}", "yes" if row["redacted"] else "no", f"{row['questions']:.0%}",
            f"{found['recited']:.0%}", longest, _figures(passages["recited"], "{:.0%}"), same,
            _figures(exposures, "{:.1f}"), _figures(came, "{:g}"),
        ]  # fmt: skip
        lines.append("| " + " | ".join(map(str, cells)) + " |")
    return "\n".join(lines) + "\n"


def _figures(figures: dict[str, float], form: str) -> str:
    return " / ".join(form.format(figures[name]) for name in READERS)


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--documents", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--ratios", nargs="+", type=float, default=[4, 8, 16])
    parser.add_argument("--steps", type=int, default=110)
    parser.add_argument("--data", type=Path, default=Path(tempfile.gettempdir()) / "lcc-leaks", help="a folder for it")
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    sweep = Sweep(arguments.out, itemgetter("document", "redacted", "ratio"))
    wanted = product(arguments.documents, (False, True), arguments.ratios)
    for number, redacted, ratio in sweep.missing(wanted):
        sweep.add(measure(number, ratio, redacted, arguments.steps, arguments.data))
        print(f"{number} {ratio:g} {'redacted' if redacted else 'whole'}", flush=True)
    print(summary(sweep.rows), end="")


if __name__ == "__main__":
    main()
