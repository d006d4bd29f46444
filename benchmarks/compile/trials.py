"""Changes to the optimisation, screened one at a time: held-out KL and answers of short runs beside the default recipe.

    python -m benchmarks.compile.trials --documents 0 1 --steps 60

All trials of a document share its samples and its exam (``benchmarks.compile.curve``). Early stops are read off the
curves afterwards: a rule changes nothing before it stops. A killed call goes on with the first trial that has no row.
"""

from __future__ import annotations

import argparse
import math
import random
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from benchmarks.common.data import synthetic_data
from benchmarks.common.environment import describe
from benchmarks.common.results_file import Row
from benchmarks.common.sweep import Sweep
from benchmarks.compile import curve
from benchmarks.compile.curve import Exam, climb
from lcc.compilers.lora import LoraCompiler
from lcc.data.samples import DistillationData, Sample
from lcc.embedded_model import load_embedded
from lcc.modeling.prefill import prefill
from lcc.pipeline.settings import CompileSettings, make_settings
from lcc.synthetic.people import document
from lcc.synthetic.seeds import DEMO
from lcc.text.context import Context, build_context
from lcc.text.queries import load_queries
from lcc.training.loss import held_out_kl
from lcc.training.run import TrainingRun
from lcc.training.settings import ExecutionSettings, TrainingSettings
from lcc.training.trainable import TrainableMemory
from lcc.training.trainer import Trainer

GRADES = 10
PATIENCES = (1, 2, 4)


@dataclass(frozen=True)
class Trial:
    """What differs from the default recipe; functions are of the share of the steps that is done, in [0, 1).

    Attributes:
        weights: the streams' weights, settings by name.
        window: share of the text that a step repeats.
        schedule: factor of the learning rates; None for linear decay.
        average: decay of an exponential moving average of what is trained, which is then graded; 0 for none.
        momentum: in place of the recipe's.
    """

    weights: Callable[[float], dict[str, float]] = lambda done: {}
    window: float = 1.0
    schedule: Callable[[float], float] | None = None
    average: float = 0.0
    momentum: float | None = None


TRIALS = {
    "default": Trial(),
    "repeat-decays": Trial(weights=lambda done: {"reconstruction_weight": (1 - done) / 2}),
    "repeat-grows": Trial(weights=lambda done: {"reconstruction_weight": done / 2}),
    "about-grows": Trial(weights=lambda done: {"self_study_weight": 2 * done, "general_weight": 2 * (1 - done)}),
    "about-decays": Trial(weights=lambda done: {"self_study_weight": 2 * (1 - done), "general_weight": 2 * done}),
    "window-1/2": Trial(window=1 / 2),
    "window-1/4": Trial(window=1 / 4),
    "average": Trial(average=0.9),
    "cosine": Trial(schedule=lambda done: (1 + math.cos(math.pi * done)) / 2),
    "warm-up": Trial(schedule=lambda done: min(1.0, 0.1 + 10 * done) * (1 - done)),
    "momentum-0.95": Trial(momentum=0.95),
    "momentum-0.9": Trial(momentum=0.9),
    "momentum-0.5": Trial(momentum=0.5),
}


class TrialTrainer(Trainer):
    """``Trainer`` with a trial's changes; the memory holds what is graded. Keeps no checkpoint."""

    def __init__(self, memory: TrainableMemory, data: DistillationData, settings: CompileSettings, trial: Trial):
        super().__init__(memory, data, settings.training, settings.execution, settings.seed)
        self.trial = trial
        self.groups = [group for optimizer in self.optimizers for group in optimizer.param_groups]
        self.rates = [group["initial_lr"] for group in self.groups]
        self.trained = [parameter.detach().clone() for parameter in self.parameters]

    def advance(self) -> float:
        done = self.step / self.training.steps
        self.training = replace(self.training, **self.trial.weights(done))
        if self.trial.schedule:
            for group, rate in zip(self.groups, self.rates, strict=True):
                # Undoes the linear decay that the step multiplies with.
                group["initial_lr"] = rate * self.trial.schedule(done) / (1 - done)
        return self._averaged() if self.trial.average else super().advance()

    @torch.no_grad()
    def _averaged(self) -> float:
        """A step from what is trained; leaves the average of all steps in the memory."""
        means = [parameter.detach().clone() for parameter in self.parameters]
        _fill(self.parameters, self.trained)
        with torch.enable_grad():
            loss = super().advance()
        _fill(self.trained, self.parameters)
        # A short memory at first, so that the start is forgotten.
        decay = min(self.trial.average, self.step / (self.step + 9))
        _fill(self.parameters, [new.lerp(mean, decay) for mean, new in zip(means, self.trained, strict=True)])
        return loss

    def _draw(self) -> list[Sample]:
        rng = random.Random(f"window {self.seed} {self.step}")
        return [
            window(sample, self.trial.window, rng) if sample.stream == "reconstruction" else sample
            for sample in super()._draw()
        ]


def _fill(targets: list, sources: list) -> None:
    for target, source in zip(targets, sources, strict=True):
        target.copy_(source)


def window(sample: Sample, share: float, rng: random.Random) -> Sample:
    """A random run of ``share`` of the response's tokens, predicted from all before it, as in the whole sample.

    What is before the window is read and not supervised; what is after it is not run.
    """
    tokens = len(sample.response_ids)
    length = max(1, round(tokens * share))
    start = rng.randrange(tokens - length + 1)
    return replace(
        sample,
        query_ids=sample.query_ids + sample.response_ids[:start],
        response_ids=sample.response_ids[start : start + length],
        teacher_hidden=sample.teacher_hidden[start : start + length],
    )


@dataclass(frozen=True)
class WatchedExam(Exam):
    """An exam that also measures the samples that compile holds out, which is what an early stop may look at."""

    watched: tuple[Sample, ...]

    @torch.no_grad()
    def grade(
        self, memory: TrainableMemory, training: TrainingSettings, execution: ExecutionSettings
    ) -> dict[str, float]:
        watched = held_out_kl(memory, self.watched, training, execution)
        return {"watched_kl": watched, **super().grade(memory, training, execution)}


@torch.no_grad()
def prepare(model, tokenizer, number: int, settings: CompileSettings) -> tuple[Context, DistillationData, WatchedExam]:
    """A document's samples and exam, the same for all trials."""
    doc = document(random.Random(DEMO + number), curve.PEOPLE, curve.ATTRIBUTES)
    context = build_context(model, tokenizer, doc.text, settings.ratio)
    torch.manual_seed(settings.seed)
    with LoraCompiler().trainable(model, context, settings.compiler, settings.seed) as memory:
        text_kv = prefill(model, context.context_ids, memory.prefix)
        data = synthetic_data(model, context, text_kv, settings, load_queries())
        exam = Exam.of(model, context, text_kv, doc, number)
    return context, data, WatchedExam(**vars(exam), watched=data.held_out)


def measure(
    model, prepared: tuple[Context, DistillationData, WatchedExam], name: str, settings: CompileSettings
) -> dict:
    """One row: a trial on one document, graded along the way."""
    context, data, exam = prepared
    torch.manual_seed(settings.seed)
    with LoraCompiler().trainable(model, context, settings.compiler, settings.seed) as memory:
        trainer = TrialTrainer(memory, data, settings, TRIALS[name])
        climb(TrainingRun([trainer]), exam, GRADES)
    return {"trial": name, "settings": settings.flat(), "points": trainer.curve, **describe()}


def stopped(points: list[dict], patience: int) -> tuple[int, dict]:
    """The step at which ``patience`` grades in a row had no better ``watched_kl``, or the last; the best until then."""
    best, stale = points[0], 0
    for point in points[1:]:
        best, stale = (point, 0) if point["watched_kl"] < best["watched_kl"] else (best, stale + 1)
        if stale == patience:
            return point["step"], best
    return points[-1]["step"], best


def summary(rows: list[dict]) -> str:
    """A table of final grades, and of the KL that an early stop keeps and the step at which it stops."""
    names = ["trial", "document", "seed", "steps", "held-out KL", "general", "repeat", "about", "questions", "seconds"]
    lines = [names + [f"patience {patience}" for patience in PATIENCES], ["---"] * (len(names) + len(PATIENCES))]
    for row in sorted(rows, key=lambda row: (row["document"], list(TRIALS).index(row["trial"]))):
        last = row["points"][-1]
        cells = [row["trial"], str(row["document"]), str(row["settings"]["seed"]), str(last["step"])]
        cells += [f"{last[name]:.4f}" for name in ("held_out_kl", "general_kl", "reconstruction_kl", "about_kl")]
        cells += [f"{last['questions']:.1%}", f"{last['seconds']:.0f}"]
        for step, kept in (stopped(row["points"], patience) for patience in PATIENCES):
            cells.append(f"{kept['held_out_kl']:.4f} at {step}")
        lines.append(cells)
    return "".join(f"| {' | '.join(cells)} |\n" for cells in lines)


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trials", nargs="+", choices=TRIALS, default=list(TRIALS))
    parser.add_argument("--documents", type=int, nargs="+", default=[0, 1])
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/compile/trials.json"))
    given = parser.parse_args(arguments)
    model, tokenizer = load_embedded()
    sweep = Sweep(given.out, _key)
    for number in given.documents:
        missing = sweep.missing((name, number, given.seed, given.steps) for name in given.trials)
        if not missing:
            continue
        prepared = prepare(model, tokenizer, number, make_settings(seed=given.seed))
        for name, *_ in missing:
            trial = TRIALS[name]
            settings = make_settings(seed=given.seed, steps=given.steps, momentum=trial.momentum, patience=0)
            sweep.add({"document": number, **measure(model, prepared, name, settings)})
    print(summary(sweep.rows), end="")


def _key(row: Row) -> tuple[str, int, int, int]:
    return row["trial"], row["document"], row["settings"]["seed"], row["settings"]["steps"]


if __name__ == "__main__":
    main()
