"""The seam of compilers: what one is given, what it returns, and the base of those that train."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol

import torch
from transformers import PreTrainedModel

from ..data.samples import DistillationData
from ..memory.payload import KVPayload, Payload
from ..modeling.kv import KV
from ..modeling.model_copy import private_copy
from ..text.context import Context
from ..training.checkpoint import Checkpoint
from ..training.distractors import Distractor
from ..training.execution import autocast
from ..training.settings import ExecutionSettings, TrainingSettings
from ..training.train import seconds_taken, train, train_together
from ..training.trainable import TrainableMemory
from ..training.trainer import Curve
from ..utils.distributed import ALONE, Ranks
from ..utils.progress import Reporter
from ..utils.settings import SettingsGroup


@dataclass(frozen=True)
class CompileTask:
    """One text to compile.

    Attributes:
        model: frozen, in eval mode, private to this compilation. Leave it as it came.
        context: the text's tokens, the chat around it, and K, the number of buffer tokens.
        settings: the compiler's own ``Settings``.
        data: the distillation data, made or found at the first call; ``SectionedData`` for a text in sections. The
            certificate then asks nothing that is trained on, and measures what is held out. A compiler without need of
            data never calls it.
        seed: torch is seeded with it already.
        checkpoint: where the state of the optimisation is kept every ``checkpoint_every`` steps. None: nowhere.
        ranks: the processes that compile this text together.
        start: K and V of K tokens, keys unrotated, to go on from: only for compilers that say ``goes_on``.
        distractors: memories of other texts to train among: only for compilers that say ``among``.
        on_better: called with what would be returned whenever a compiler that trains has something better.
        sections: a text that is compiled in sections: their contexts. Only for compilers that say ``in_sections``.
    """

    model: PreTrainedModel
    context: Context
    settings: Any
    training: TrainingSettings
    execution: ExecutionSettings
    data: Callable[[], DistillationData]
    seed: int
    reporter: Reporter
    checkpoint: Checkpoint | None = None
    checkpoint_every: int = 50
    ranks: Ranks = ALONE
    start: KV | None = None
    distractors: tuple[Distractor, ...] = ()
    on_better: Callable[[Compiled], None] | None = None
    sections: tuple[Context, ...] = ()


@dataclass(frozen=True)
class Compiled:
    """What a compiler returns.

    Attributes:
        payload: K and V of at most K buffer tokens, float, keys unrotated: ``KVPayload(kv)``; or an
            ``AdapterPayload``.
        curve: measurements: ``step``, ``loss``, ``held_out_kl`` and ``seconds``.
    """

    payload: Payload
    curve: tuple[dict[str, float], ...] = ()


class Compiler(Protocol):
    """A way to make a memory. Register the class under a name, or give an object of it to ``lcc.compile``.

    Attributes:
        name: recorded in the memory.
        Settings: a ``SettingsGroup``. Keywords of ``lcc.compile`` go to the group that owns a field of that name.
        defaults: settings of other groups for which this compiler has other defaults.
    """

    name: ClassVar[str]
    Settings: ClassVar[type[SettingsGroup]]
    defaults: ClassVar[Mapping[str, Any]]

    def fingerprint(self) -> dict[str, str]:
        """Digests of learned weights of the compiler's own, recorded in the memory; empty if it has none."""
        ...

    def compile(self, task: CompileTask) -> Compiled:
        """Compile the task's text."""
        ...


@dataclass(frozen=True)
class NoSettings(SettingsGroup):
    """The settings of a compiler without settings of its own."""


class BaseCompiler(ABC):
    """A ``Compiler`` with the usual answers: no settings of its own, no other defaults, no learned weights.

    Attributes:
        goes_on: it takes ``CompileTask.start``.
        among: it takes ``CompileTask.distractors``.
        by_ratio: its memories have as many tokens as the ratio says.
        in_sections: it takes ``CompileTask.sections``.
    """

    name: ClassVar[str]
    Settings: ClassVar[type[SettingsGroup]] = NoSettings
    defaults: ClassVar[Mapping[str, Any]] = {}
    goes_on: ClassVar[bool] = False
    among: ClassVar[bool] = False
    by_ratio: ClassVar[bool] = True
    in_sections: ClassVar[bool] = False

    def fingerprint(self) -> dict[str, str]:
        """No learned weights."""
        return {}

    @abstractmethod
    def compile(self, task: CompileTask) -> Compiled:
        """Compile the task's text."""


class TrainedCompiler(BaseCompiler):
    """A compiler that optimises a ``TrainableMemory`` on the distillation data."""

    goes_on: ClassVar[bool] = True
    among: ClassVar[bool] = True
    in_sections: ClassVar[bool] = True

    @abstractmethod
    def trainable(
        self, model: PreTrainedModel, context: Context, settings: Any, seed: int
    ) -> AbstractContextManager[TrainableMemory]:
        """The memory to train, inside a block in which the model is frozen. The block restores the model."""

    def data(self, task: CompileTask) -> DistillationData:
        """What the memory is trained on: the task's data."""
        return task.data()

    def payload(self, tensors: dict[str, torch.Tensor], settings: Any) -> Payload:
        """What a model reads: of the trained memory's ``tensors``."""
        return KVPayload.of(tensors)

    def compile(self, task: CompileTask) -> Compiled:
        """Train the memory.

        Raises:
            DivergedError: the loss became NaN; the last checkpoint stands.
            MismatchError: the checkpoint folder belongs to another compilation.
            MemoryFileError: a checkpoint cannot be read or written.
        """
        if task.sections:
            return self._compile_sections(task)

        def compiled(tensors: dict[str, torch.Tensor], curve: Curve) -> Compiled:
            return Compiled(self.payload(tensors, task.settings), tuple(curve))

        def better(tensors: dict[str, torch.Tensor], curve: Curve) -> None:
            assert task.on_better is not None
            task.on_better(compiled(tensors, curve))

        with (
            self.trainable(task.model, task.context, task.settings, task.seed) as memory,
            autocast(task.model, task.execution),
        ):
            tensors, curve = train(
                memory, self.data(task), task.training, task.execution, task.seed, task.reporter, task.checkpoint,
                task.checkpoint_every, task.ranks, task.start, task.on_better and better, task.distractors,
            )  # fmt: skip
        return compiled(tensors, curve)

    def _compile_sections(self, task: CompileTask) -> Compiled:
        """The sections' memories in a row. Each is trained in a copy of the model, over the same weights."""
        data: Any = task.data()
        with ExitStack() as stack:
            memories = [
                stack.enter_context(
                    self.trainable(private_copy(task.model), section, task.settings, task.seed + number)
                )
                for number, section in enumerate(task.sections)
            ]
            stack.enter_context(autocast(task.model, task.execution))
            tensors, curve = train_together(
                memories, data, task.training, task.execution, task.seed, task.reporter,
                task.checkpoint, task.checkpoint_every, task.ranks,
            )  # fmt: skip
        rows = {name: torch.cat([one[name] for one in tensors], 2) for name in ("keys", "values")}
        return Compiled(self.payload(rows, task.settings), tuple(curve))

    def seconds_taken(self, task: CompileTask) -> tuple[float, float]:
        """Seconds of an optimiser step and of a measurement on the task's data; nothing is kept of them."""
        with (
            self.trainable(task.model, task.context, task.settings, task.seed) as memory,
            autocast(task.model, task.execution),
        ):
            return seconds_taken(memory, self.data(task), task.training, task.execution, task.seed, task.ranks)
