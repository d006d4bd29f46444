"""What ``lcc.compile`` is asked for, checked once; and how one compilation runs."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase

from ..compilers import registry
from ..compilers.base import Compiler, TrainedCompiler
from ..errors import InputError
from ..evaluation.certificate import Questions
from ..memory.memory import Memory
from ..memory.metadata import Ancestor
from ..text.queries import load_queries, named_queries
from ..utils.distributed import ALONE, Ranks
from ..utils.hashing import text_digest
from ..utils.jsonl import load_rows
from ..utils.settings import LARGEST, MOST
from ..utils.values import check, require
from .distractors import Given, load_distractors
from .parent import Parent
from .settings import AUTO, DEFAULT_RECIPE, RECIPES, SMALLEST, CompileSettings, make_settings

# The share of the full text's score that a memory of ratio="auto" keeps, unless another is asked for.
TARGET = 0.98
UNITS = {"s": 1, "m": 60, "h": 3600}
NOTHING_TO_MEASURE = (
    'ratio="auto" has nothing to measure: give questions, or let the model ask itself more (self_study_questions, '
    "self_study_weight) and hold more of that out (held_out); only what the full text settles counts"
)


# What a budget decides: all that the smallest recipe names.
PLANNED = tuple(RECIPES[SMALLEST])


@dataclass(frozen=True)
class Budget:
    """The time that a compilation may take.

    Attributes:
        recipes: settings to choose from, the best and slowest first. The last ones may be made smaller still.
    """

    seconds: float
    recipes: tuple[CompileSettings, ...]

    @classmethod
    def of(cls, given: float | str, recipe: str, compiler: str | Compiler, settings: Mapping[str, Any]) -> Budget:
        """Seconds, or a text such as ``90s``, ``10m`` or ``2h``. The default recipe may become the smallest one.

        Raises:
            InputError: it is no time, or a setting cannot be used.
        """
        names = dict.fromkeys((recipe, SMALLEST) if recipe == DEFAULT_RECIPE else (recipe,))
        return cls(parse_seconds(given), tuple(make_settings(name, compiler, **settings) for name in names))


@dataclass(frozen=True)
class CompileOptions:
    """What to compile a text with. Files, pipes and iterables are read when it is made, so it serves many texts.

    Attributes:
        settings: with ``ratio="auto"``, each ratio that is tried replaces theirs.
        target: with ``ratio="auto"``, the share of the full text's score to keep; else None.
        queries: context-agnostic ones; None: the package's own, see ``queries_for``; or ``SELF``.
        questions: rows to measure memories on; None: those that the model asked itself and that were held out.
        certify: whether to measure.
        start: a memory of the same text to go on from.
        budget: the time to compile in.
        distractors: memories to train among, by their digests. Those of the text itself do not count.
        parent: the memory that takes the text in, in an update.
    """

    settings: CompileSettings
    compiler: Compiler
    target: float | None
    queries: list[str] | str | None
    questions: list[str | Mapping[str, Any]] | None
    certify: bool
    start: Memory | None = None
    budget: Budget | None = None
    distractors: Mapping[str, Memory] = field(default_factory=dict)
    parent: Parent | None = None

    @classmethod
    def of(
        cls,
        recipe: str = "default",
        compiler: str | Compiler = registry.DEFAULT,
        queries: str | Path | Iterable[str] | None = None,
        questions: Questions | None = None,
        certify: bool = True,
        target: float | None = None,
        start: Memory | str | os.PathLike | None = None,
        budget: float | str | None = None,
        distractors: Given | None = None,
        **settings: Any,
    ) -> CompileOptions:
        """The options of ``lcc.compile``.

        Raises:
            InputError: a setting that cannot be used, options that do not go together, or queries or questions that
                cannot be read.
            MemoryFileError: ``start`` or a distractor is the path of a file that is no memory.
        """
        if not certify and questions is not None:
            raise InputError("questions are for the certificate: leave certify on, or leave them out")
        searched = settings.get("ratio") == AUTO
        chosen = make_settings(recipe, compiler, **settings | ({"ratio": None} if searched else {}))
        method = registry.get(compiler)
        if searched and not getattr(method, "by_ratio", True):
            raise InputError(f"the compiler {method.name!r} makes no buffer tokens: there is no ratio to search")
        if searched:
            target = TARGET if target is None else target
            check_search(chosen, target, questions is not None, certify)
        elif target is not None:
            raise InputError('target is for ratio="auto": leave it out, or let compile choose the ratio')
        rows: list[Any] | None = None
        if questions is not None:
            named = isinstance(questions, (str, Path))
            rows = load_rows(str(questions), "test") if named else list(questions)  # type: ignore[arg-type]
        if start is not None:
            start = start if isinstance(start, Memory) else Memory.load(start)
            require_start(start, method, searched)
        time = None
        if budget is not None:
            check_budget(method, searched, start is not None, distractors is not None)
            time = Budget.of(budget, recipe, compiler, settings)
        among = {} if distractors is None else load_distractors(distractors, method)
        return cls(chosen, method, target, named_queries(queries), rows, certify, start, time, among)

    def queries_for(self, tokenizer: PreTrainedTokenizerBase) -> list[str] | str:
        """Context-agnostic queries that a model with this tokenizer is asked; or ``SELF``."""
        return load_queries(None, tokenizer) if self.queries is None else self.queries

    def at_ratio(self, ratio: float) -> CompileOptions:
        """The same at one ratio."""
        return replace(self, settings=self.settings.replace(ratio=ratio), target=None)

    @property
    def lineage(self) -> list[Ancestor]:
        """That of a memory made with these options."""
        before = self.start if self.parent is None else self.parent.memory
        return [] if before is None else before.with_ancestors()

    def source_digest(self, text: str) -> str:
        """That of the text that a memory made from ``text`` stands for."""
        digest = text_digest(text)
        return digest if self.parent is None else self.parent.source_digest(digest)

    @property
    def recorded(self) -> dict[str, Any]:
        """What a memory records of the options: two memories that differ in it are different memories."""
        settings = self.settings.flat() | {"compiler": registry.record(self.compiler)}
        if self.target is not None:
            del settings["ratio"]
        if self.budget is not None:
            settings = {name: value for name, value in settings.items() if name not in PLANNED}
            return settings | {"target": None, "budget": self.budget.seconds}
        growing = self.parent and self.parent.growing
        return settings | {"target": self.target, "budget": None, "lineage": self.lineage, "growing": growing}


@dataclass(frozen=True)
class Run:
    """How one compilation runs. Nothing of it changes the memory.

    Attributes:
        checkpoint: a folder to go on from after a kill; None: none is kept.
        checkpoint_every: steps between two checkpoints.
        restart: remove a checkpoint of another compilation, or a damaged one, instead of refusing it.
        shared_data: a folder where compilations share their distillation data.
        distributed: the processes of torch.distributed's default group make the memory together.
    """

    checkpoint: Path | None = None
    checkpoint_every: int = 50
    restart: bool = False
    shared_data: Path | None = None
    distributed: bool = False

    @classmethod
    def of(
        cls,
        checkpoint: str | os.PathLike | None = None,
        checkpoint_every: int = 50,
        restart: bool = False,
        surrogates: str | os.PathLike | None = None,
        distributed: bool = False,
    ) -> Run:
        """The options of ``lcc.compile``.

        Raises:
            InputError: ``checkpoint_every`` is below 1.
        """
        check("checkpoint_every", checkpoint_every, int)
        require(1 <= checkpoint_every <= MOST, "checkpoint_every", checkpoint_every, "at least 1")
        folders = [None if folder is None else Path(folder) for folder in (checkpoint, surrogates)]
        return cls(folders[0], checkpoint_every, restart, folders[1], distributed)

    @property
    def ranks(self) -> Ranks:
        """The processes.

        Raises:
            InputError: ``distributed`` is asked for, and there is no group of processes.
        """
        return Ranks.of_group() if self.distributed else ALONE


def require_start(start: Memory, compiler: Compiler, searched: bool) -> None:
    """Refuse a memory to start from, whatever the text.

    Raises:
        InputError: saying why.
    """
    if not getattr(compiler, "goes_on", False):
        raise InputError(f"the compiler {compiler.name!r} takes no start: leave it out, or take direct_kv or lcc")
    if start.quantized:
        raise InputError(f"start is a {start.dtype} memory: go on from the float one, and quantise at the end")
    if searched:
        raise InputError('ratio="auto" makes memories of many sizes: name the ratio of start')


def parse_seconds(given: float | str) -> float:
    """The seconds of a budget.

    Raises:
        InputError: it is no time.
    """
    number, unit = (given[:-1], given[-1]) if isinstance(given, str) and given[-1:] in UNITS else (given, "s")
    try:
        seconds = float(number) * UNITS[unit]
    except (TypeError, ValueError):
        seconds = 0.0
    require(0 < seconds < LARGEST, "budget", given, "a time above 0, such as 90s, 10m or 2h")
    return seconds


def check_budget(compiler: Compiler, searched: bool, started: bool, among: bool) -> None:
    """Refuse a budget that goes with no other option.

    Raises:
        InputError: saying why.
    """
    if not isinstance(compiler, TrainedCompiler):
        raise InputError(f"the compiler {compiler.name!r} has no steps to fill a budget with: take lcc or direct_kv")
    if not compiler.goes_on:
        raise InputError(
            f"the compiler {compiler.name!r} does not go on from the instant memory of a budget: take lcc or direct_kv"
        )
    if searched:
        raise InputError('ratio="auto" compiles many memories: name a ratio, or leave the budget out')
    if started:
        raise InputError("a budget makes its own start: leave one of the two out")
    if among:
        raise InputError("a budget counts on steps without distractors: leave one of the two out")


def check_search(settings: CompileSettings, target: float, questions_given: bool, certify: bool) -> None:
    """Refuse, before any work, a search that could not end.

    Raises:
        InputError: saying why.
    """
    check("target", target, float)
    if not 0 < target <= 1:
        raise InputError(f"target is {target}; it must be a share above 0, and 1 at most")
    if not certify:
        raise InputError('ratio="auto" is told by the certificate: leave certify on, or name a ratio')
    data = settings.effective_data
    held_out = int(data.asked * data.held_out)
    if not questions_given and not held_out:
        raise InputError(NOTHING_TO_MEASURE)
