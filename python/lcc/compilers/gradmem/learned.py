"""What meta-training learns: where writes start, how far each goes, and what the model reads of a memory."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from transformers import PreTrainedModel

from ...errors import MemoryFileError, MismatchError
from ...modeling.fingerprint import fingerprint
from ...modeling.kv import KV
from ...modeling.lora import LoraSwitch, frozen, lora_model
from ...modeling.prefill import prefill
from ...utils.tensor_files import load_tensors, save_tensors
from ...utils.values import quoted
from ..lora import trainable_dtype
from .writing import Form, Tensors

FORMAT = "lcc-gradmem-1"
# Official script of GradMem's frozen variant: alpha is twice the rank.
ALPHA_OF_RANK = 2.0
OF_MODEL = ("model_config", "model_weights")


@dataclass
class Learned:
    """A start, step sizes and, if they are learned, a projection and a LoRA of the writes.

    Attributes:
        start: ``embeddings`` (m, H), or ``keys`` and ``values`` (layers, kv_heads, m, head_dim).
        log_rates: logarithms of the step sizes, (writes,).
        projection: by the name of a start's tensor, ``NAME.weight`` (..., width, width) and ``NAME.bias``
            (..., 1, width): the model reads W M + b. Empty: it reads M itself.
        lora: the LoRA's parameters by their names in the model; empty if there is none.
    """

    start: Tensors
    log_rates: torch.Tensor
    projection: Tensors = field(default_factory=dict)
    lora: Tensors = field(default_factory=dict)

    @classmethod
    def of_text(
        cls, model: PreTrainedModel, prefix: KV, ids: Sequence[int], tokens: int, form: Form, rates: Sequence[float]
    ) -> Learned:
        """A start made of a text: the K and V of its first tokens, or the embeddings of evenly spaced ones.

        Args:
            prefix: K and V, rotated, of what stands before the text.
            ids: of the text; it begins anew where it has fewer tokens than the memory.
            tokens: of the memory.
        """
        dtype = trainable_dtype(model.dtype)
        ids = list(ids) * math.ceil(tokens / len(ids))
        if form == "kv":
            kv = prefill(model, ids[:tokens], prefix).tail(tokens).unrotated(model)
            start = {"keys": kv.keys.to(dtype, copy=True), "values": kv.values.to(dtype, copy=True)}
        else:
            spread = [ids[(2 * place + 1) * len(ids) // (2 * tokens)] for place in range(tokens)]
            embeddings = model.get_input_embeddings()(torch.tensor(spread, device=model.device))
            start = {"embeddings": embeddings.to(dtype, copy=True)}
        return cls(start, torch.tensor(rates, dtype=dtype, device=model.device).log())

    def with_projection(self) -> Learned:
        """The same with a projection that changes nothing yet."""
        projection: Tensors = {}
        for name, tensor in self.start.items():
            *before, _, width = tensor.shape
            identity = torch.eye(width, dtype=tensor.dtype, device=tensor.device)
            projection[f"{name}.weight"] = identity.repeat(*before, 1, 1)
            projection[f"{name}.bias"] = tensor.new_zeros(*before, 1, width)
        return replace(self, projection=projection)

    @property
    def rates(self) -> torch.Tensor:
        """The step size of each write."""
        return self.log_rates.exp()

    @property
    def form(self) -> Form:
        """Which memories it starts."""
        return "embeddings" if "embeddings" in self.start else "kv"

    @property
    def tokens(self) -> int:
        """The most memory tokens that it starts."""
        return next(iter(self.start.values())).shape[-2]

    def memories(self, batch: int, tokens: int) -> Tensors:
        """The first ``tokens`` tokens of the start, once for each text of a batch."""
        return {
            name: tensor[..., :tokens, :].expand(batch, *tensor.shape[:-2], tokens, -1)
            for name, tensor in self.start.items()
        }

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
            model: ``OF_MODEL`` of the fingerprint of the model that it was learned for.
            settings, curve: of the meta-training, JSON-ready.

        Raises:
            MemoryFileError: the file cannot be written.
        """
        save_tensors(path, FORMAT, self.parameters(), {"model": model, "settings": settings, "curve": curve})

    @classmethod
    def load(cls, path: str | os.PathLike, model: PreTrainedModel) -> Learned:
        """What ``save`` wrote.

        Raises:
            MemoryFileError: no such file, or one that ``save`` did not write.
            MismatchError: it was learned for another model.
        """
        tensors, metadata = load_tensors(path, FORMAT)
        digests = fingerprint(model)
        if metadata.get("model") != {name: digests[name] for name in OF_MODEL}:
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
        if log_rates is None or set(parts["start"]) not in ({"embeddings"}, {"keys", "values"}):
            raise MemoryFileError(f"{path} lacks step sizes or a start: run meta_train again")
        return cls(parts["start"], log_rates, parts["projection"], parts["lora"])


@contextmanager
def writing_model(model: PreTrainedModel, lora: Tensors, rank: int = 0) -> Iterator[tuple[Any, Tensors]]:
    """The frozen model, for the block with the LoRA of its writes, if there is one.

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
            raise MismatchError("the LoRA of the writes does not fit into the model's attention projections")
        with torch.no_grad():
            for name, tensor in lora.items():
                parameters[name].copy_(tensor)
        yield LoraSwitch(layers).applied, parameters
