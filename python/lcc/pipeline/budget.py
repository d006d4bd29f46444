"""``budget=60``: the best memory that a time allows, and one that can be asked from the first second on.

An instant compiler comes first. The distillation data takes a share of the time: how much of it there is follows from
what a few answers take. Steps take the rest, by what a step takes on that data. The certificate comes last.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ..compilers import registry
from ..compilers.base import TrainedCompiler
from ..errors import InputError, MismatchError
from ..evaluation.certificate import GENERAL_QUERIES
from ..memory.memory import Memory
from ..memory.metadata import Budget
from ..modeling.sharding import is_sharded
from ..text.queries import load_queries
from ..utils.hashing import text_digest
from ..utils.progress import Reporter
from ..utils.random_state import seeded
from .budget_plan import BudgetPlan, PlanFile
from .compile_once import Compilation, Keep, compile_once
from .geometry import sample_count
from .options import PLANNED, CompileOptions, Run
from .probe import TeacherCost, teacher_cost
from .settings import CompileSettings, make_settings

# The first of these that takes the model makes the memory that can be asked at once.
INSTANT = ("flashmem", "attention_matching")
# Of the time that is left, what the data takes at most, and of which settings how much there is at least.
DATA_SHARE = 0.4
LEAST = {"general_queries": 16, "self_study_questions": 32}
# Measurements among the steps, and steps between two at least.
MEASUREMENTS, APART = 6, 5
# Readers that a certificate compares.
READERS = 3


class Clock:
    """The time of one compilation, and what is said of it."""

    def __init__(self, seconds: float, reporter: Reporter):
        self._began, self.seconds, self._reporter = time.monotonic(), seconds, reporter

    @property
    def left(self) -> float:
        """Seconds; below zero when the time is over."""
        return self.seconds - (time.monotonic() - self._began)

    def say(self, figures: str, over: bool = False) -> None:
        """Show how much of the time is gone, and ``figures``."""
        total = math.ceil(self.seconds)
        gone = min(total - 1, round(self.seconds - self.left))
        self._reporter.count("budget (s)", total if over else gone, total, figures)


def compile_within(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    text: str,
    options: CompileOptions,
    run: Run,
    reporter: Reporter,
    keep: Keep | None = None,
) -> Memory:
    """Compile ``text`` within ``options.budget``. A run that was killed goes on with the plan that it had made.

    Args:
        keep: called with the instant memory, and with each one that is nearer to the full text on what is held out.

    Raises:
        InputError: the weights are sharded; or as ``lcc.compile``.
    """
    assert options.budget is not None
    if is_sharded(model):
        raise InputError("a budget is for weights that are whole: leave it out, or load the model on one device")
    with _somewhere(run) as placed:
        return _Within(model, tokenizer, text, options, placed, reporter, keep).memory()


@contextmanager
def _somewhere(run: Run) -> Iterator[Run]:
    """The run with a folder for its data, which two compilations share."""
    if run.checkpoint or run.shared_data:
        yield run
        return
    with TemporaryDirectory() as folder:
        yield replace(run, shared_data=Path(run.ranks.from_main(lambda: folder)))


class _Within:
    """One text, one budget."""

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        text: str,
        options: CompileOptions,
        run: Run,
        reporter: Reporter,
        keep: Keep | None,
    ):
        assert options.budget is not None
        self.given = model, tokenizer, text
        self.options, self.run, self.reporter, self._keep = options, run, reporter, keep
        self.recipes, self.ranks = options.budget.recipes, run.ranks
        self.clock = Clock(options.budget.seconds, reporter)
        self.cost: TeacherCost | None = None
        self.asked = options.recorded
        self.file = PlanFile(run.checkpoint, self.asked | {"text": text_digest(text)}, run.ranks, run.restart)

    def memory(self) -> Memory:
        """The best memory, which is finished."""
        plan = self.file.load() or self._begun()
        if plan.settings is None:
            assert plan.instant is not None
            memory = self._compiled_at_once(plan.instant.compiler["name"], self.options.certify)
        else:
            if "steps" not in plan.settings:
                plan = self._with_steps(plan, plan.settings)
            chosen = self._options(plan)
            self.clock.say(f"{chosen.settings.training.steps} steps")
            memory = compile_once(*self.given, chosen, self.run, self.reporter, self._keep_unfinished)
        self.clock.say("", over=True)
        return self._marked(memory, True)

    def _begun(self) -> BudgetPlan:
        """The instant memory, and how much data there is time for."""
        # Refuses, before any work, what the steps could not take.
        refining = Compilation.of(*self.given, self._options(BudgetPlan(None, {})), self.run, self.reporter)
        if refining.task.sections:
            raise InputError("the text is compiled in sections: leave the budget out, and lower steps if need be")
        instant = self._instant()
        if instant is not None:
            self.clock.say(f"{instant.compiler['name']} can be asked")
            self._keep_unfinished(instant)
        settings = self.ranks.from_main(lambda: self._data_settings(refining, instant is None))
        plan = BudgetPlan(instant, settings)
        self.file.save(plan)
        return plan

    def _instant(self) -> Memory | None:
        for name in INSTANT:
            try:
                return self._compiled_at_once(name, certify=False)
            except (InputError, MismatchError):
                continue
        return None

    def _compiled_at_once(self, name: str, certify: bool) -> Memory:
        settings = self.options.settings
        chosen = make_settings(compiler=name, ratio=settings.ratio, seed=settings.seed).replace(
            keep_prefix=settings.training.keep_prefix, parse_special_tokens=settings.data.parse_special_tokens
        )
        options = replace(self.options, settings=chosen, compiler=registry.get(name), budget=None, certify=certify)
        return compile_once(*self.given, options, replace(self.run, checkpoint=None), self.reporter)

    def _data_settings(self, refining: Compilation, required: bool) -> dict[str, Any] | None:
        """How much is asked and answered, within its share of the time.

        Returns:
            The settings that a budget decides, but for the steps. None: there is no time for the least, which is not
            ``required`` either.
        """
        self.cost = cost = _teacher_cost(refining)
        queries, tokens = _queries(refining), len(refining.task.context.context_ids)
        share = DATA_SHARE * self.clock.left
        for settings in self.recipes:
            fitted = settings.for_text(tokens)
            taken = cost.seconds(sample_count(fitted, queries), fitted.effective_data.asked)
            if taken <= share:
                return _planned(settings)
        scale = max(0.0, share - cost.reading) / (taken - cost.reading)
        counts = {"general_queries": fitted.data.general_queries, "self_study_questions": fitted.data.asked}
        scaled = {name: min(count, max(int(scale * count), LEAST[name])) for name, count in counts.items()}
        least = cost.seconds(sum(scaled.values()), scaled["self_study_questions"]) + self._certificate_seconds(cost)
        return _planned(settings) | scaled if required or least < self.clock.left else None

    def _with_steps(self, plan: BudgetPlan, settings: dict[str, Any]) -> BudgetPlan:
        """The plan with as many steps as there is time for behind the data, which is made here."""
        compilation = Compilation.of(*self.given, self._options(plan), self.run, self.reporter)
        compiler, task = self.options.compiler, compilation.task
        assert isinstance(compiler, TrainedCompiler)
        asked = sum(sample.stream == "self_study" for sample in task.data().held_out)
        with seeded(task.model.device, compilation.settings.seed):
            step, measurement = compiler.seconds_taken(task)

        def steps_left() -> int:
            certificate = self._certificate_seconds(self.cost or _teacher_cost(compilation), asked)
            time_left = self.clock.left - certificate - (MEASUREMENTS + 1) * measurement
            most = max(settings.training.steps for settings in self.recipes)
            return max(1, min(int(time_left / step), most))

        steps = self.ranks.from_main(steps_left)
        every = max(APART, math.ceil(steps / MEASUREMENTS))
        plan = replace(plan, settings=settings | {"steps": steps, "evaluate_every": every})
        self.file.save(plan)
        return plan

    def _certificate_seconds(self, cost: TeacherCost, questions: int = 0) -> float:
        """Of reading and answering, by each of the certificate's readers; zero if none is made."""
        if not self.options.certify:
            return 0.0
        questions = max(questions, len(self.options.questions or ()))
        return READERS * (2 * cost.reading + (GENERAL_QUERIES + questions) * cost.answering)

    def _options(self, plan: BudgetPlan) -> CompileOptions:
        """Those of the steps, as far as the plan decides them."""
        settings = self.recipes[-1].replace(**plan.settings or {})
        return replace(self.options, settings=settings, start=plan.instant, budget=None)

    def _keep_unfinished(self, memory: Memory) -> None:
        if best := memory.best_point:
            self.clock.say(f"held-out KL {best['held_out_kl']:.4f} can be asked")
        if self._keep is not None:
            self._keep(self._marked(memory, False))

    def _marked(self, memory: Memory, finished: bool) -> Memory:
        return replace(memory, budget=Budget(seconds=self.clock.seconds, finished=finished, asked=self.asked))


def _planned(settings: CompileSettings) -> dict[str, Any]:
    """What a recipe says of the settings that a budget decides; how many steps there are is seen later."""
    flat = settings.flat()
    return {name: flat[name] for name in PLANNED if name not in ("steps", "evaluate_every")}


def _queries(compilation: Compilation) -> list[str]:
    """Context-agnostic ones, to time answers with."""
    given = compilation.queries
    return load_queries(None, compilation.tokenizer) if isinstance(given, str) else list(given)


def _teacher_cost(compilation: Compilation) -> TeacherCost:
    task = compilation.task
    with seeded(task.model.device, compilation.settings.seed):
        return teacher_cost(task.model, task.context, compilation.settings, _queries(compilation))[1]
