"""The Cognitive Monitor: says when a model's attention spreads over so much that it no longer finds what it needs."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ..errors import InputError, MemoryFileError, MismatchError
from ..memory.attachment import attach
from ..memory.memory import Memory
from ..modeling.attention_entropy import AttentionEntropy
from ..modeling.fingerprint import differing
from ..modeling.generation import generate_after
from ..modeling.shared_cache import SharedCache
from ..modeling.wrappers import plain_model
from ..text.chat_format import ChatFormat
from ..utils.outputs import write_bytes
from ..utils.safe_json import JSONError, parse_json
from ..utils.values import check, check_count, require

FORMAT = "lcc-monitor-1"


@dataclass(frozen=True)
class Monitor:
    """Triggers where a generated token's attention has an entropy above a threshold (FlashMem, arXiv 2601.05505).

    The entropy is that of the last layer's attention when the token was chosen: without the sinks, renormalised, the
    mean over heads, in nats (equations 3 and 4). It is between 0 and the logarithm of how many keys are no sinks.

    Attributes:
        threshold: tau; infinity never triggers.
        sinks: how many of the first keys are left out: the first token, and what stands right behind it.
        quantile: of the validation run's entropies, which is the threshold (equation 9); None if it was given.
        tokens: how many tokens the validation run had.
        fingerprint: of the model that was calibrated; empty if none was.

    Raises:
        InputError: a value is out of range.
    """

    threshold: float = math.inf
    sinks: int = 1
    quantile: float | None = None
    tokens: int = 0
    fingerprint: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name in ("sinks", "tokens"):
            check(name, getattr(self, name), int)
            require(getattr(self, name) >= 0, name, getattr(self, name), "0 or more")
        check("threshold", self.threshold, float)
        require(self.threshold >= 0, "threshold", self.threshold, "a number of nats, 0 or more")
        check("quantile", self.quantile, float | None)
        require(self.quantile is None or 0 <= self.quantile <= 1, "quantile", self.quantile, "between 0 and 1")
        check("fingerprint", self.fingerprint, dict[str, str])

    @classmethod
    def of(
        cls,
        entropies: Sequence[float],
        quantile: float = 0.85,
        sinks: int = 1,
        fingerprint: dict[str, str] | None = None,
    ) -> Monitor:
        """A monitor whose threshold is a quantile of the entropies of a validation run, linearly interpolated.

        Raises:
            InputError: there are no entropies, one is NaN, or the quantile is not between 0 and 1.
        """
        check("quantile", quantile, float)
        require(0 <= quantile <= 1, "quantile", quantile, "between 0 and 1")
        if not entropies or any(map(math.isnan, entropies)):
            raise InputError("the validation run gave no entropies, or NaN: calibrate on questions that are answered")
        threshold = torch.tensor(entropies, dtype=torch.float64).quantile(quantile).item()
        return cls(threshold, sinks, float(quantile), len(entropies), fingerprint or {})

    @classmethod
    def calibrate(
        cls,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        memory: Memory,
        questions: Sequence[str],
        quantile: float = 0.85,
        sinks: int = 1,
        max_new_tokens: int = 64,
    ) -> Monitor:
        """Answer each of the questions behind ``memory``, and set the threshold by the answers' entropies.

        Raises:
            InputError: no questions, a quantile that is not between 0 and 1, a model that cannot be watched, or a
                memory that is an adapter.
            MismatchError: the memory belongs to another model or tokenizer.
        """
        check("questions", list(questions), list[str])
        if not questions:
            raise InputError("there is no question to calibrate the monitor on: give at least one")
        check_count("max_new_tokens", max_new_tokens)
        cls(sinks=sinks, quantile=quantile)
        model = plain_model(model)
        memory.verify(model, tokenizer)
        chat = ChatFormat.of(tokenizer, date=memory.date)
        watched = AttentionEntropy(model, sinks)
        visible = attach(model, memory, verify=False).kv()
        for question in questions:
            query, cache = chat.query_ids(question), SharedCache(visible)
            generate_after(watched.model, cache, [query], chat.end, max_new_tokens=max_new_tokens)
        return cls.of(watched.take(), quantile, sinks, memory.fingerprint)

    def triggers(self, entropies: Sequence[float]) -> bool:
        """Whether any of the entropies is above the threshold."""
        return any(entropy > self.threshold for entropy in entropies)

    def watch(self, model: PreTrainedModel) -> AttentionEntropy:
        """A copy of ``model`` that tells its entropies: ``watched.model.generate(...)``, then ``watched.take()``.

        Raises:
            InputError: the model cannot be watched.
        """
        return AttentionEntropy(plain_model(model), self.sinks)

    def check_model(self, fingerprint: dict[str, str]) -> None:
        """Refuse a model other than the one that was calibrated.

        Raises:
            MismatchError: naming the fields that differ.
        """
        fields = differing(self.fingerprint, fingerprint) if self.fingerprint else []
        if fields:
            raise MismatchError(
                f"the monitor was calibrated for another model or tokenizer ({', '.join(fields)}): calibrate it again"
            )

    def save(self, path: str | os.PathLike) -> None:
        """Write the monitor to a JSON file, atomically; a threshold of infinity is null.

        Raises:
            MemoryFileError: the file cannot be written; an older one stays as it was.
        """
        threshold = self.threshold if math.isfinite(self.threshold) else None
        content = {"format": FORMAT, **asdict(self), "threshold": threshold}
        write_bytes(path, json.dumps(content, indent=2).encode() + b"\n")

    @classmethod
    def load(cls, path: str | os.PathLike) -> Monitor:
        """Read a monitor.

        Raises:
            MemoryFileError: no such file, or one that is damaged, or no monitor's.
        """
        try:
            content: Any = parse_json(Path(path).read_bytes())
        except OSError as error:
            raise MemoryFileError(f"cannot read {path}: {error.strerror}") from error
        except JSONError as error:
            raise MemoryFileError(f"{path} {error}: calibrate the monitor again") from error
        if not isinstance(content, dict) or content.pop("format", None) != FORMAT:
            raise MemoryFileError(f"{path} is no monitor of the format {FORMAT}: name a file that Monitor.save wrote")
        if content.get("threshold", 0) is None:
            content["threshold"] = math.inf
        try:
            return cls(**content)
        except (InputError, TypeError) as error:
            raise MemoryFileError(f"{path} is damaged: {error}; calibrate the monitor again") from error
