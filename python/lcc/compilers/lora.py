"""[P | C | B] through the model: what the compiler reads, and the K and V that it writes."""

from __future__ import annotations

import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import cached_property
from typing import Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from peft.tuners.tuners_utils import BaseTunerLayer
from transformers import PreTrainedModel

from ..errors import InputError
from ..modeling.chunked_prefill import read_in_chunks
from ..modeling.kv import KV, SharedCache, decoder
from ..modeling.model_copy import without_dropout
from ..modeling.packed_decoder import PackedDecoder
from ..modeling.window import check_window
from ..pipeline.settings import CompileSettings
from ..text.context import Context
from .buffer_init import initial_buffer


class Writer(ABC):
    """What is trained to write K and V that the frozen model reads instead of a text.

    Attributes:
        prefix: K and V of P, rotated, as the frozen model reads it.
        packed: runs packed rows through the model.
    """

    def __init__(self, model: PreTrainedModel, context: Context):
        self.model, self.context = model, context
        self.packed = PackedDecoder(model)
        with torch.no_grad():
            self.prefix = read_text(model, context.prefix_ids)

    @abstractmethod
    def parameter_groups(self, settings: CompileSettings) -> list[dict[str, Any]]:
        """What is trained, each group with an optimiser of its own.

        ``params``, their initial ``lr``, and perhaps ``kind``, a value of the setting ``optimizer``.
        """

    def start(self, settings: CompileSettings) -> None:
        """Settle where the parameters start, before the first step."""
        return

    @abstractmethod
    def encode(self) -> KV:
        """K and V of B, (layers, kv_heads, K, head_dim), keys unrotated; differentiable in the parameters."""

    def active(self, on: bool = True) -> AbstractContextManager[None]:
        """Switch on, inside the block, whatever the writer adds to the model."""
        return nullcontext()

    def visible(self, buffer: KV, keep_prefix: bool) -> KV:
        """What segments see, at the positions of inference: [P' | B], or B alone."""
        if not keep_prefix:
            return buffer.rotated(self.model, 0)
        return buffer.rotated(self.model, len(self.prefix)).after(self.prefix)


# A writer for the block, and the model as it came after it.
WriterFactory = Callable[[PreTrainedModel, Context, CompileSettings], AbstractContextManager[Writer]]


class LoraWriter(Writer):
    """A writer with a LoRA inside the model: off unless ``active()``; ``lora_model`` makes and removes it."""

    def __init__(self, model: PreTrainedModel, context: Context, layers: list[BaseTunerLayer]):
        self._layers = layers
        self.lora = [parameter for layer in layers for parameter in _adapter_parameters(layer)]
        self._enable(False)
        super().__init__(model, context)

    @contextmanager
    def active(self, on: bool = True) -> Iterator[None]:
        """Switch the LoRA on inside the block."""
        self._enable(on)
        try:
            yield
        finally:
            self._enable(False)

    def _enable(self, on: bool) -> None:
        for layer in self._layers:
            layer.enable_adapters(on)
            for parameter in _adapter_parameters(layer):
                # peft freezes a layer that it switches off; its gradient is still wanted from the encode.
                parameter.requires_grad_(True)


class Compiler(LoraWriter):
    """The disposable part: a LoRA inside the model, and the buffer embeddings (LCC section 3.3)."""

    def __init__(self, model: PreTrainedModel, context: Context, layers: list[BaseTunerLayer]):
        super().__init__(model, context, layers)
        embeddings = model.get_input_embeddings().weight
        mean = embeddings.detach().float().mean(0).to(trainable_dtype(embeddings.dtype))
        self.buffer = torch.nn.Parameter(mean.expand(context.buffer, -1).clone())
        with torch.no_grad():
            ids = torch.tensor([context.context_ids], device=embeddings.device)
            self._context_embeddings = model.get_input_embeddings()(ids)

    def parameter_groups(self, settings: CompileSettings) -> list[dict[str, Any]]:
        """Buffer embeddings and LoRA, each with its own learning rate."""
        return [
            {"params": [self.buffer], "lr": settings.buffer_learning_rate},
            {"params": self.lora, "lr": settings.learning_rate, "kind": settings.optimizer},
        ]

    def start(self, settings: CompileSettings) -> None:
        """Put the buffer embeddings where ``buffer_init`` says."""
        with torch.no_grad():
            self.buffer.copy_(initial_buffer(self, settings))

    @cached_property
    def copied_prefix(self) -> KV:
        """K and V of P': those of P, as many positions further as the text has tokens (identity 7)."""
        return self.prefix.unrotated(self.model, 0).rotated(self.model, len(self.context.context_ids))

    def encode_embeddings(self) -> torch.Tensor:
        """Embeddings of [C | B], (1, rows, H)."""
        return torch.cat((self._context_embeddings, self.buffer[None].to(self._context_embeddings.dtype)), 1)

    def encode(self) -> KV:
        """K and V of B, (layers, kv_heads, K, head_dim), keys unrotated; differentiable in LoRA and buffers."""
        start = len(self.context.prefix_ids)
        inputs = self.encode_embeddings()
        positions = torch.arange(start, start + inputs.shape[1], device=inputs.device)
        cache = self.prefix.cache()
        with self.active():
            decoder(self.model)(inputs_embeds=inputs, position_ids=positions[None], past_key_values=cache)
        buffer = cache.read().tail(self.context.buffer)
        return buffer.unrotated(self.model, start + len(self.context.context_ids))

    def encode_in_chunks(self, tokens: int) -> KV:
        """``encode``, the text read ``tokens`` at a time (see ``chunked``); the same gradient."""
        embeddings, text = self.encode_embeddings(), len(self.context.context_ids)
        chunks = [*embeddings[:, :text].split(tokens, 1), embeddings[:, text:]]
        buffer = read_in_chunks(self.model, chunks, self.prefix, self.active)
        return buffer.unrotated(self.model, len(self.prefix) + text)


@contextmanager
def lora_compiler(model: PreTrainedModel, context: Context, settings: CompileSettings) -> Iterator[Compiler]:
    """LCC's writer."""
    with lora_model(model, settings) as layers:
        yield Compiler(model, context, layers)


def read_text(model: PreTrainedModel, ids: Sequence[int], past: KV | None = None, start: int = 0) -> KV:
    """K and V (rotated) of ``ids`` read by the model as it is, after ``past``; ``past`` is included.

    ``start`` is the position of the first token of all. No dropout acts, also if the model is in train mode.

    Raises:
        InputError: the tokens go beyond the model's window.
    """
    model = without_dropout(model)
    cache = SharedCache(past) if past is not None else None
    start += 0 if past is None else len(past)
    check_window(
        model, start + len(ids), "the tokens to read", "give fewer, or take a model with a longer window", start
    )
    tokens = torch.tensor([list(ids)], device=model.device)
    positions = torch.arange(start, start + len(ids), device=model.device)
    options = {"past_key_values": cache, "use_cache": True, "return_dict": True}
    output = decoder(model)(input_ids=tokens, position_ids=positions[None], **options)
    return KV.of(output.past_key_values)


def attention_projections(model: PreTrainedModel) -> list[str]:
    """Names of the linear layers inside attention blocks (q_proj, k_proj, ... or qkv_proj, o_proj)."""
    names = {
        child_name
        for name, module in model.named_modules()
        if name.endswith(("self_attn", "attention"))
        for child_name, child in module.named_children()
        if isinstance(child, torch.nn.Linear)
    }
    if not names:
        raise InputError(f"no attention projections found in {type(model).__name__}: name them in targets=")
    return sorted(names)


@contextmanager
def frozen(model: PreTrainedModel) -> Iterator[None]:
    """No gradient for the model's own parameters, and eval mode, inside the block; as it came after it."""
    required = [(parameter, parameter.requires_grad) for parameter in model.parameters()]
    training = [(module, module.training) for module in model.modules()]
    model.eval().requires_grad_(False)
    try:
        yield
    finally:
        for parameter, flag in required:
            parameter.requires_grad_(flag)
        for module, flag in training:
            module.training = flag


@contextmanager
def lora_model(model: PreTrainedModel, settings: CompileSettings) -> Iterator[list[BaseTunerLayer]]:
    """Put a LoRA into ``model`` for the block; the model leaves it as it came, also when the block raises.

    Raises:
        InputError: the model carries an adapter already, or ``targets`` names no layer.
    """
    if any(isinstance(module, BaseTunerLayer) for module in model.modules()):
        raise InputError("the model carries an adapter: merge or unload it first, a memory belongs to a plain model")
    attributes = set(vars(model))
    config = LoraConfig(
        r=settings.rank,
        lora_alpha=settings.alpha,
        target_modules=list(settings.targets or attention_projections(model)),
        bias="none",
    )
    with frozen(model):
        wrapped = None
        try:
            try:
                wrapped = _wrap(model, config)
            except ValueError as error:
                raise InputError(f"targets {settings.targets} cannot carry a LoRA: {error}") from error
            model.eval()
            yield [module for module in model.modules() if isinstance(module, BaseTunerLayer)]
        finally:
            if wrapped is not None:
                wrapped.unload()
            for name in set(vars(model)) - attributes:
                delattr(model, name)


def _wrap(model: PreTrainedModel, config: LoraConfig) -> PeftModel:
    """``get_peft_model`` without the warning about a name that peft reads off transformers, not the caller."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*is_gradient_checkpointing", category=FutureWarning)
        return get_peft_model(model, config)


def _adapter_parameters(layer: BaseTunerLayer) -> list[torch.nn.Parameter]:
    return [p for name in layer.adapter_layer_names for p in getattr(layer, name).parameters()]


def trainable_dtype(dtype: torch.dtype) -> torch.dtype:
    """float32 at least."""
    return dtype if dtype == torch.float64 else torch.float32
