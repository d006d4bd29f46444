"""What meta-training learns: where writes start, how far each goes, and what the model reads of a memory."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from transformers import PreTrainedModel

from ...errors import MemoryFileError, MismatchError
from ...modeling.fingerprint import model_digests
from ...modeling.kv import KV, kv_shape
from ...modeling.lora import LoraSwitch, frozen, lora_model
from ...training.trainable import trainable_dtype
from ...utils.tensor_files import load_tensors, save_tensors
from ...utils.values import quoted
from .starts import text_starts
from .writing import NAMES, Form, GradMode, Tensors, Written, write

FORMAT = "lcc-gradmem-1"
# Official script of GradMem's frozen variant: alpha is twice the rank.
ALPHA_OF_RANK = 2.0


@dataclass
class Learned:
    """Step sizes of the writes and, if they are learned, a start, a projection and a LoRA.

    Attributes:
        form: of the memories that are written.
        log_rates: logarithms of the step sizes, (writes,).
        start: ``embeddings`` (m, H), or ``keys`` and ``values`` (layers, kv_heads, m, head_dim). Empty: each memory
            starts from its own text, see ``text_starts``.
        projection: by the name of a memory's tensor, ``NAME.weight`` (..., width, width) and ``NAME.bias``
            (..., 1, width): the model reads W M + b. Empty: it reads M itself.
        lora: the LoRA's parameters by their names in the model; empty if there is none. It acts in the writes where
            the start is learned. Where the start is made of the text it acts in that alone, and the writes are those
            of the model as it is.
    """

    form: Form
    log_rates: torch.Tensor
    start: Tensors = field(default_factory=dict)
    projection: Tensors = field(default_factory=dict)
    lora: Tensors = field(default_factory=dict)

    @classmethod
    def of_rates(cls, model: PreTrainedModel, form: Form, rates: Sequence[float]) -> Learned:
        """Nothing is learned yet: these step sizes, from a start that is made of the text."""
        return cls(form, torch.tensor(rates, dtype=trainable_dtype(model.dtype), device=model.device).log())

    def with_projection(self, model: PreTrainedModel) -> Learned:
        """The same with a projection that changes nothing yet."""
        *before, width = kv_shape(model.config) if self.form == "kv" else (model.config.hidden_size,)
        identity = torch.eye(width, dtype=self.log_rates.dtype, device=model.device)
        projection: Tensors = {}
        for name in NAMES[self.form]:
            projection[f"{name}.weight"] = identity.repeat(*before, 1, 1)
            projection[f"{name}.bias"] = identity.new_zeros(*before, 1, width)
        return replace(self, projection=projection)

    @property
    def rates(self) -> torch.Tensor:
        """The step size of each write."""
        return self.log_rates.exp()

    @property
    def tokens(self) -> float:
        """The most memory tokens that it starts: any number where the start is made of the text."""
        return next((tensor.shape[-2] for tensor in self.start.values()), math.inf)

    def memories(
        self,
        model: PreTrainedModel,
        prefix: KV,
        ids: torch.Tensor,
        counted: torch.Tensor,
        tokens: int,
        applied: Callable[[], AbstractContextManager] = nullcontext,
    ) -> Tensors:
        """The start of each text's memory; for the arguments see ``text_starts``."""
        if not self.start:
            return text_starts(model, prefix, ids, counted, tokens, self.form, applied)
        return {
            name: tensor[..., :tokens, :].expand(len(ids), *tensor.shape[:-2], tokens, -1)
            for name, tensor in self.start.items()
        }

    def write(
        self,
        model: PreTrainedModel,
        prefix: KV,
        memories: Tensors,
        ids: torch.Tensor,
        counted: torch.Tensor,
        rates: Iterable[float | torch.Tensor],
        grad_mode: GradMode = "none",
        applied: Callable[[], AbstractContextManager] = nullcontext,
    ) -> Written:
        """Write each text of a batch from what ``memories`` gave it; for the arguments see ``write``."""
        acting = applied if self.start else nullcontext
        return write(model, prefix, memories, ids, counted, rates, grad_mode, self.used, acting)

    def used(self, memory: Tensors) -> Tensors:
        """What the model reads of a memory."""
        if not self.projection:
            return memory
        weights = self.projection
        return {name: held @ weights[f"{name}.weight"].mT + weights[f"{name}.bias"] for name, held in memory.items()}

    def parameters(self) -> Tensors:
        """All that is learned, by name."""
        parts = {"start": self.start, "projection": self.projection, "lora": self.lora}
        named = {f"{part}.{name}": tensor for part, tensors in parts.items() for name, tensor in tensors.items()}
        return {"log_rates": self.log_rates} | named

    def save(self, path: str | os.PathLike, model: dict[str, str], settings: dict[str, Any], curve: list) -> None:
        """Write a file.

        Args:
            model: ``model_digests`` of the model that it was learned for.
            settings, curve: of the meta-training, JSON-ready.

        Raises:
            MemoryFileError: the file cannot be written.
        """
        metadata = {"model": model, "form": self.form, "settings": settings, "curve": curve}
        save_tensors(path, FORMAT, self.parameters(), metadata)

    @classmethod
    def load(cls, path: str | os.PathLike, model: PreTrainedModel) -> Learned:
        """What ``save`` wrote.

        Raises:
            MemoryFileError: no such file, or one that ``save`` did not write.
            MismatchError: it was learned for another model.
        """
        tensors, metadata = load_tensors(path, FORMAT)
        if metadata.get("model") != model_digests(model):
            raise MismatchError(f"{path} was learned for another model: load that one, or run meta_train for this one")
        parts: dict[str, Tensors] = {"start": {}, "projection": {}, "lora": {}}
        log_rates = None
        for name, tensor in tensors.items():
            part, _, rest = name.partition(".")
            if name == "log_rates":
                log_rates = tensor.to(model.device)
            elif part in parts:
                parts[part][rest] = tensor.to(model.device)
            else:
                raise MemoryFileError(f"{path} holds {quoted(name)}, which this version does not know")
        form = metadata.get("form")
        if log_rates is None or form not in NAMES or set(parts["start"]) not in (set(), set(NAMES[form])):
            raise MemoryFileError(f"{path} lacks its form, step sizes or half of its start: run meta_train again")
        return cls(form, log_rates, **parts)


@contextmanager
def writing_model(model: PreTrainedModel, lora: Tensors, rank: int = 0) -> Iterator[tuple[Any, Tensors]]:
    """The frozen model, for the block with the learned LoRA inside it, if there is one.

    Args:
        lora: the parameters of a LoRA that was learned, by their names in the model; empty: none was.
        rank: of a fresh LoRA, which changes nothing yet; 0: none.

    Yields:
        A maker of contexts in which the LoRA acts, and the LoRA's parameters, by their names in the model.

    Raises:
        MismatchError: the learned LoRA does not fit into the model.
    """
    rank = next((tensor.shape[0] for name, tensor in lora.items() if "lora_A" in name), rank)
    if not rank:
        with frozen(model):
            yield nullcontext, {}
        return
    with lora_model(model, rank, ALPHA_OF_RANK * rank) as layers:
        parameters = {name: tensor for name, tensor in model.named_parameters() if "lora_" in name}
        if lora and {n: t.shape for n, t in lora.items()} != {n: t.shape for n, t in parameters.items()}:
            raise MismatchError("the learned LoRA does not fit into the model's attention projections")
        with torch.no_grad():
            for name, tensor in lora.items():
                parameters[name].copy_(tensor)
        yield LoraSwitch(layers).applied, parameters
