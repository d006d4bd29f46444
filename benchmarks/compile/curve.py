"""Speed to quality: held-out KL and answers against steps and seconds, the paper's recipe beside the default.

    python -m benchmarks.compile.curve --runs fast default paper --documents 0 1 2 3 4

All runs of a document are graded on the same exam: general queries that are not in the package, the text repeated, and
questions about it. ``held_out_kl`` is the mean of the KLs of the first two, the streams that all recipes train. A
killed call goes on from its last grade, and what is done is skipped.
"""

from __future__ import annotations

import argparse
import random
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from operator import itemgetter
from pathlib import Path

import torch
from matplotlib.figure import Figure

from benchmarks.common.data import synthetic_data
from benchmarks.common.environment import describe
from benchmarks.common.sweep import Sweep
from lcc.compilers.lora import LoraCompiler
from lcc.data.cache import DataCache
from lcc.data.samples import DistillationData, Sample
from lcc.embedded_model import load_embedded
from lcc.inference.requests import Request, answer
from lcc.modeling.fingerprint import fingerprint
from lcc.modeling.kv import KV
from lcc.modeling.prefill import prefill
from lcc.pipeline.identity import Identity
from lcc.pipeline.settings import make_settings
from lcc.synthetic.exam import general_exam, score
from lcc.synthetic.people import Document, Question, document
from lcc.synthetic.seeds import DEMO
from lcc.text.context import Context, build_context
from lcc.text.queries import load_queries
from lcc.training.checkpoint import Checkpoint
from lcc.training.loss import held_out_kl
from lcc.training.run import TrainingRun
from lcc.training.settings import ExecutionSettings, TrainingSettings
from lcc.training.trainable import TrainableMemory
from lcc.training.trainer import Trainer
from lcc.utils.resumable import remove_checkpoint

PEOPLE, ATTRIBUTES, GENERAL_QUERIES = 4, 4, 60
POINTS = 28
TENTH = {"steps": 281}
# paper-lr: the paper's recipe with a learning rate that fits this model, far harder to beat.
RUNS = {
    "fast": ("fast", TENTH),
    "default": ("default", TENTH),
    "paper-lr": ("paper", {"learning_rate": 4e-3, "buffer_learning_rate": 4e-3}),
    "paper": ("paper", {}),
}
COLOURS = {"fast": "C0", "default": "C1", "paper-lr": "C3", "paper": "C7"}
PANELS = (("held_out_kl", "held-out KL, nats a token"), ("questions", "questions answered"))


@dataclass(frozen=True)
class Exam:
    """What every run of a document is measured on; teacher responses are the full text's reader's."""

    general: tuple[Sample, ...]
    reconstruction: tuple[Sample, ...]
    about: tuple[Sample, ...]
    questions: tuple[Question, ...]

    @classmethod
    def of(cls, model, context: Context, text_kv: KV, doc: Document, seed: int) -> Exam:
        general = general_exam(random.Random(DEMO + seed), GENERAL_QUERIES, load_queries())
        beside = _answered(model, context, text_kv, general)
        about = _answered(model, context, text_kv, doc.questions())
        return cls(beside.train, beside.reconstruction, about.train, tuple(doc.questions()))

    @torch.no_grad()
    def grade(
        self, memory: TrainableMemory, training: TrainingSettings, execution: ExecutionSettings
    ) -> dict[str, float]:
        """KL of each part in nats a token, and the share of questions answered exactly, by the buffer as it is now."""
        parts = {"general_kl": self.general, "reconstruction_kl": self.reconstruction, "about_kl": self.about}
        kl = {name: held_out_kl(memory, samples, training, execution) for name, samples in parts.items()}
        requests = [Request((question.text,), max_new_tokens=16) for question in self.questions]
        visible = memory.visible(memory.encode(), training.keep_prefix)
        answers = [one.text for one in answer(memory.model, memory.context.chat, visible, requests, len(requests))]
        held_out = (kl["general_kl"] + kl["reconstruction_kl"]) / 2
        return {"held_out_kl": held_out, **kl, "questions": score(answers, self.questions)}


def _answered(model, context: Context, text_kv: KV, questions: Sequence[Question]) -> DistillationData:
    settings = make_settings("paper", general_queries=len(questions))
    return synthetic_data(model, context, text_kv, settings, [question.text for question in questions])


def measure(model, tokenizer, run: str, number: int, seed: int, folder: Path) -> dict:
    """One row: a run of one document, graded along the way."""
    recipe, overrides = RUNS[run]
    settings = make_settings(recipe, seed=seed, patience=0, **overrides)
    doc = document(random.Random(DEMO + number), PEOPLE, ATTRIBUTES)
    context = build_context(model, tokenizer, doc.text, settings.ratio)
    settings, queries = settings.for_text(len(context.context_ids)), load_queries()
    compiler = LoraCompiler()
    identity = Identity.of(settings, compiler, context, fingerprint(model, tokenizer), queries)
    checkpoint, cache = Checkpoint(folder, identity.compilation, identity.data), DataCache(folder, identity.data)
    torch.manual_seed(seed)
    with compiler.trainable(model, context, settings.compiler, seed) as memory:
        began = time.monotonic()
        with torch.no_grad():
            text_kv = prefill(model, context.context_ids, memory.prefix)
            data = cache.load(model.device)
            if data is None:
                data = synthetic_data(model, context, text_kv, settings, queries)
                cache.save(data)
            prepared = time.monotonic() - began
            exam = Exam.of(model, context, text_kv, doc, number)
        trainer = Trainer(memory, data, settings.training, settings.execution, seed)
        climb(TrainingRun([trainer], checkpoint), exam)
    remove_checkpoint(folder)
    return {
        "run": run,
        "document": number,
        "seed": seed,
        "text_tokens": len(context.context_ids),
        "buffer_tokens": context.buffer,
        "settings": settings.flat(),
        "prepare_seconds": round(prepared, 2),
        "points": trainer.curve,
        **describe(),
    }


def climb(run: TrainingRun, exam: Exam, points: int = POINTS) -> None:
    """Optimise one memory to the end; some ``points`` grades on the way go into the curve and its checkpoint."""
    (trainer,) = run.trainers
    steps = trainer.training.steps
    every = max(1, steps // points)
    while trainer.step < steps:
        loss = trainer.advance()
        if trainer.step % every == 0 or trainer.step == steps:
            point = {"step": trainer.step, "seconds": trainer.seconds, "loss": loss}
            grade = exam.grade(trainer.memory, trainer.training, trainer.execution)
            trainer.curve.append({name: round(value, 6) for name, value in (point | grade).items()})
            run.save()


def first_step(points: list[dict], target: float) -> int | None:
    """The first graded step whose held-out KL is at most ``target``."""
    return next((point["step"] for point in points if point["held_out_kl"] <= target), None)


def summary(rows: list[dict]) -> str:
    """A table of final grades, and of the first step that reaches the final KL of the document's paper runs."""
    finals = {(row["run"], row["document"]): row["points"][-1]["held_out_kl"] for row in rows}
    targets = [run for run in RUNS if RUNS[run][0] == "paper" and any(run == row["run"] for row in rows)]
    names = ("run", "document", "seed", "steps", "held-out KL", "general", "repeat", "about", "questions", "seconds")
    lines = ["| " + " | ".join([*names, *(f"reaches {run}" for run in targets)]) + " |"]
    lines.append("|---" * (len(names) + len(targets)) + "|")
    for row in sorted(rows, key=lambda row: (list(RUNS).index(row["run"]), row["document"], row["seed"])):
        last = row["points"][-1]
        cells = [row["run"], str(row["document"]), str(row["seed"]), str(last["step"])]
        cells += [f"{last[name]:.4f}" for name in ("held_out_kl", "general_kl", "reconstruction_kl", "about_kl")]
        cells += [f"{last['questions']:.1%}", f"{last['seconds']:.0f}"]
        for run in targets:
            target = finals.get((run, row["document"]))
            cells.append("" if target is None else str(first_step(row["points"], target) or "never"))
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def plot(rows: list[dict], path: Path) -> None:
    """Held-out KL and questions answered, against steps and against seconds; a line a document and seed."""
    figure = Figure(figsize=(11, 7), layout="constrained")
    axes = figure.subplots(2, 2, sharex="col", sharey="row")
    for line, (name, label) in zip(axes, PANELS, strict=True):
        line[0].set_ylabel(label)
        for axis, unit in zip(line, ("step", "seconds"), strict=True):
            for row in rows:
                x, y = ([point[key] for point in row["points"]] for key in (unit, name))
                axis.plot(x, y, color=COLOURS[row["run"]], lw=1, label=row["run"])
            axis.set_xscale("log")
            axis.grid(alpha=0.3)
    for axis in axes[0]:
        axis.set_yscale("log")
    axes[1][0].set_xlabel("steps")
    axes[1][1].set_xlabel("seconds of optimisation, on a shared core")
    shown = dict(zip(*reversed(axes[0][0].get_legend_handles_labels()), strict=True))
    figure.legend(shown.values(), shown.keys(), loc="outside upper center", ncols=len(shown))
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", nargs="+", choices=RUNS, default=["fast", "default", "paper"])
    parser.add_argument("--documents", type=int, nargs="+", default=[0, 1, 2, 3, 4])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/compile/curve.json"))
    parser.add_argument("--plot", type=Path, default=Path("docs/compile-curve.png"))
    parser.add_argument("--checkpoints", type=Path, default=Path(tempfile.gettempdir()) / "lcc-compile-curve")
    arguments = parser.parse_args()
    model, tokenizer = load_embedded()
    sweep = Sweep(arguments.out, itemgetter("run", "document", "seed"))
    wanted = product(arguments.documents, arguments.runs, arguments.seeds)
    for run, number, seed in sweep.missing((run, number, seed) for number, run, seed in wanted):
        folder = arguments.checkpoints / f"{run}-{number}-{seed}"
        sweep.add(measure(model, tokenizer, run, number, seed, folder))
    plot(sweep.rows, arguments.plot)
    print(summary(sweep.rows), end="")


if __name__ == "__main__":
    main()
