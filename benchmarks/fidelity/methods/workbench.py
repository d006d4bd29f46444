"""What every method of the fidelity table is built from, and what it says about itself."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from functools import cached_property
from math import ceil
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from lcc.compilers import registry
from lcc.data.cache import DataCache
from lcc.data.samples import DistillationData
from lcc.evaluation import Answers, Example, Method
from lcc.evaluation.methods import ReadingMethod
from lcc.inference.reader import Reader
from lcc.modeling.fingerprint import fingerprint
from lcc.pipeline.distillation import distillation_data
from lcc.pipeline.identity import Identity
from lcc.pipeline.settings import CompileSettings, known_settings, make_settings
from lcc.text.chat_format import ChatFormat
from lcc.text.context import Context, build_context
from lcc.text.queries import load_queries
from lcc.utils.progress import Reporter

Options = dict[str, Any]

# Learning rates that any method may be given; the search climbs up or down from where a method starts.
RATES = (3e-4, 5e-4, 1e-3, 2e-3, 3e-3, 5e-3, 1e-2, 2e-2, 3e-2, 5e-2, 0.1, 0.2, 0.3, 0.5, 1.0, 2.0, 3.0)


@dataclass(frozen=True)
class Workbench:
    """The model, the settings that all methods share, and where memories and distillation data are kept."""

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    settings: CompileSettings
    folder: Path

    @property
    def surrogates(self) -> Path:
        """Where all methods find the distillation data of a text."""
        return self.folder / "surrogates"

    def settings_for(self, options: Options, compiler: str = registry.DEFAULT) -> CompileSettings:
        """The shared settings with a method's own; a setting that ``compiler`` does not have is left out.

        Raises:
            InputError: an option is no setting, or out of range.
        """
        shared, known = self.settings.flat(), known_settings(compiler)
        flat = {name: value for name, value in (shared | options).items() if name in known or name not in shared}
        return make_settings(compiler=compiler, **flat)


@dataclass(frozen=True)
class Peer:
    """A method of the table.

    Attributes:
        build: makes the method with some options.
        source: whose method it is, and how this one differs.
        variants: its options beside the learning rate, all of which the search tries.
        start: the learning rate where the search starts, one of ``RATES``; None if nothing is trained.
        by_ratio: its state is as large as the ratio says.
    """

    build: Callable[[str, Workbench, Options], Method]
    source: str
    variants: tuple[Options, ...] = field(default=({},))
    start: float | None = None
    by_ratio: bool = True

    @property
    def default(self) -> Options:
        """What is taken where nothing was searched."""
        return self.options(self.start, self.variants[0])

    def options(self, rate: float | None, variant: Options) -> Options:
        """A variant at a learning rate."""
        return variant if rate is None else {"learning_rate": rate, "buffer_learning_rate": rate} | variant


@dataclass(frozen=True)
class Held:
    """What a method holds of a text while questions are answered.

    Attributes:
        nbytes: of it.
        seconds: spent on it.
        questions: that the method asked itself for it.
        batch: questions that may be answered at once.
    """

    reader: Reader
    nbytes: int
    seconds: float
    questions: frozenset[str] = frozenset()
    batch: int = 32


class PeerMethod(ReadingMethod):
    """A method that answers from what it made of a text, with options of its own."""

    def __init__(self, name: str, bench: Workbench, options: Options):
        super().__init__(bench.model, bench.tokenizer)
        self.name, self.options, self.settings = name, options, bench.settings
        self.chat, self.surrogates = ChatFormat.of(bench.tokenizer), bench.surrogates
        # Of the plain model: an adapter changes it.
        self.fingerprint = fingerprint(bench.model, bench.tokenizer)

    @abstractmethod
    def holding(self, text: str) -> AbstractContextManager[Held]:
        """Make of ``text`` what questions are answered from, inside the block."""

    def answer(self, context: str, examples: Sequence[Example]) -> Answers:
        """Answer from what the method makes of ``context``."""
        with self.holding(context) as held:
            texts = held.reader.answer([example.request for example in examples], held.batch)
        return Answers(texts, held.nbytes, held.seconds, held.questions)

    @cached_property
    def identity(self) -> Options:
        """The model's and tokenizer's digests, the shared settings and the options."""
        return {**self.fingerprint, "settings": self.settings.flat(), "options": self.options}

    def context_of(self, text: str) -> Context:
        """The text's tokens, and K."""
        return build_context(self.model, self.tokenizer, text, self.settings.ratio)

    def distillation_data(self, context: Context) -> DistillationData:
        """The data that all methods share: from its folder, or made now."""
        queries, settings = load_queries(None, self.tokenizer), self.settings.for_text(len(context.context_ids))
        identity = Identity.of(settings, registry.get(), context, self.fingerprint, queries)
        cache = DataCache(self.surrogates, identity.data, shared=True)
        return distillation_data(self.model, context, settings, queries, cache, Reporter(False))

    def tokens(self, context: str) -> int:
        """K: the buffer tokens that the ratio allows."""
        return ceil(len(self.chat.ids(context)) / self.settings.ratio)
