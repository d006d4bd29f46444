"""What ``lcc.compile`` is asked for, checked once; and how one compilation runs."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase

from ..compilers import registry
from ..compilers.base import Compiler
from ..errors import InputError
from ..evaluation.questions import Questions
from ..memory.lineage import Succession, ancestor_digests, succession
from ..memory.memory import Memory
from ..text.queries import load_queries, named_queries
from ..text.redaction import checked_texts, redact
from ..utils.distributed import ALONE, Ranks
from ..utils.hashing import text_digest
from ..utils.jsonl import load_rows
from ..utils.settings import MOST
from ..utils.values import check, require
from .distractors import Given, load_distractors
from .option_checks import check_budget, check_search, parse_seconds, require_start
from .parent import Parent
from .settings import AUTO, DEFAULT_RECIPE, RECIPES, SMALLEST, CompileSettings, make_settings
from .size_plan import size_limit

# The share of the full text's score that a memory of ratio="auto" keeps, unless another is asked for.
TARGET = 0.98
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
        redact: passages that are cut out of the text.
        max_bytes: of the memory's file, which choose the ratio and the dtype.
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
    redact: tuple[str, ...] = ()
    max_bytes: int | None = None
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
        redact: Sequence[str] = (),
        max_bytes: int | str | None = None,
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
            start = Memory.of(start)
            require_start(start, method, searched)
        time = None
        if budget is not None:
            check_budget(method, searched, start is not None, distractors is not None)
            time = Budget.of(budget, recipe, compiler, settings)
        among = {} if distractors is None else load_distractors(distractors, method)
        hidden = checked_texts("redact", redact)
        if max_bytes is not None:
            max_bytes = size_limit(max_bytes, settings, method, budget is not None, start is not None)
        given = named_queries(queries)
        return cls(chosen, method, target, given, rows, certify, start, time, among, hidden, max_bytes)

    def redacted(self, text: str, tokenizer: PreTrainedTokenizerBase) -> str:
        """The text that is compiled: nothing reads the passages that are cut out.

        Raises:
            InputError: a passage is not in ``text``.
        """
        return redact(text, self.redact, tokenizer)

    def queries_for(self, tokenizer: PreTrainedTokenizerBase) -> list[str] | str:
        """Context-agnostic queries that a model with this tokenizer is asked; or ``SELF``."""
        return load_queries(None, tokenizer) if self.queries is None else self.queries

    def at_ratio(self, ratio: float) -> CompileOptions:
        """The same at one ratio."""
        return replace(self, settings=self.settings.replace(ratio=ratio), target=None)

    @property
    def succession(self) -> Succession:
        """Where a memory made with these options comes from."""
        settings = self.settings.flat()
        if self.parent:
            return self.parent.memory.succeeded_by("update", settings | {"growing": self.parent.growing})
        return self.start.succeeded_by("refine", settings) if self.start else succession("compile", settings)

    @property
    def lineage(self) -> list[str]:
        """Digests of the memories that one made with these options goes on from, the nearest first."""
        return ancestor_digests(self.succession["lineage"])

    def source_digest(self, text: str) -> str:
        """That of the text that a memory made from ``text`` stands for."""
        digest = text_digest(text)
        return digest if self.parent is None else self.parent.source_digest(digest)

    @property
    def recorded(self) -> dict[str, Any]:
        """What a memory records of the options: two memories that differ in it are different memories."""
        settings = self.settings.flat() | {"compiler": registry.record(self.compiler)}
        if self.target is not None or self.max_bytes is not None:
            del settings["ratio"]
        if self.budget is not None:
            settings = {name: value for name, value in settings.items() if name not in PLANNED}
            return settings | {"target": None, "budget": self.budget.seconds}
        own = {"target": self.target, "budget": None, "max_bytes": self.max_bytes, "lineage": self.lineage}
        return settings | own | {"growing": self.parent and self.parent.growing}


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
