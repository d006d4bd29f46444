"""What every method of the fidelity table is built from, and what it says about itself."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from math import ceil
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from lcc.evaluation import Method
from lcc.evaluation.methods import Reading
from lcc.modeling.fingerprint import fingerprint
from lcc.pipeline.settings import CompileSettings
from lcc.text.chat_format import ChatFormat
from lcc.text.queries import load_queries
from lcc.training.checkpoint import Checkpoint
from lcc.training.checkpoint import identity as identity_of

Options = dict[str, Any]

# Learning rates that any method may be given; the search climbs up or down from where a method starts.
RATES = (3e-4, 5e-4, 1e-3, 2e-3, 3e-3, 5e-3, 1e-2, 2e-2, 3e-2, 5e-2, 0.1, 0.2, 0.3, 0.5, 1.0, 2.0, 3.0)


@dataclass(frozen=True)
class Workbench:
    """The model, the settings that all methods share, and where memories and surrogate data are kept."""

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    settings: CompileSettings
    folder: Path

    @property
    def surrogates(self) -> Path:
        """Where all methods find the surrogate data of a text."""
        return self.folder / "surrogates"

    def trained(self, options: Options) -> CompileSettings:
        """The settings with a method's own."""
        return replace(self.settings, **options)


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


class PeerMethod(Reading):
    """A method that answers from what it made of a text, with options of its own."""

    def __init__(self, name: str, bench: Workbench, options: Options):
        super().__init__(bench.model, bench.tokenizer)
        self.name, self.options, self.settings = name, options, bench.settings
        self.chat, self.surrogates = ChatFormat.of(bench.tokenizer), bench.surrogates
        # Of the plain model: an adapter changes it.
        self.fingerprint = fingerprint(bench.model, bench.tokenizer)

    @cached_property
    def identity(self) -> Options:
        """The model's and tokenizer's digests, the shared settings and the options."""
        return {**self.fingerprint, "settings": asdict(self.settings), "options": self.options}

    def shared(self, source_sha256: str) -> Checkpoint:
        """Where all methods find the surrogate data of a text."""
        compilation = identity_of(self.settings, source_sha256, self.fingerprint, load_queries())
        return Checkpoint.shared(self.surrogates, compilation)

    def tokens(self, context: str) -> int:
        """K: the buffer tokens that the ratio allows."""
        return ceil(len(self.chat.ids(context)) / self.settings.ratio)
