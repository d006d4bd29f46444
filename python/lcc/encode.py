"""[P | C | B] through the model: what the compiler reads, and the K and V that it writes."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from peft.tuners.tuners_utils import BaseTunerLayer
from transformers import PreTrainedModel

from .chunked import read_in_chunks
from .context import Context
from .errors import InputError
from .kv import KV, SharedCache, decoder
from .packed import PackedDecoder
from .settings import CompileSettings


class Compiler:
    """The disposable part: a LoRA inside the model, and the buffer embeddings (LCC section 3.3).

    The LoRA is off unless ``active()``; ``lora_model`` makes and removes it.
    """

    def __init__(self, model: PreTrainedModel, context: Context, layers: list[BaseTunerLayer]):
        self.model, self.context, self._layers = model, context, layers
        embeddings = model.get_input_embeddings().weight
        mean = embeddings.detach().float().mean(0).to(_trainable_dtype(embeddings.dtype))
        self.buffer = torch.nn.Parameter(mean.expand(context.buffer, -1).clone())
        self.lora = [parameter for layer in layers for parameter in _adapter_parameters(layer)]
        self.packed = PackedDecoder(model)
        self._enable(False)
        with torch.no_grad():
            self.prefix = read_text(model, context.prefix_ids)
            ids = torch.tensor([context.context_ids], device=embeddings.device)
            self._context_embeddings = model.get_input_embeddings()(ids)

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
        """K and V of B, keys rotated, the text read ``tokens`` at a time (see ``chunked``); ``encode``'s gradient."""
        embeddings, text = self.encode_embeddings(), len(self.context.context_ids)
        chunks = [*embeddings[:, :text].split(tokens, 1), embeddings[:, text:]]
        return read_in_chunks(self.model, chunks, self.prefix, self.active)

    def visible(self, buffer: KV, keep_prefix: bool) -> KV:
        """What segments see, at the positions of inference: [P' | B], or B alone."""
        if not keep_prefix:
            return buffer.rotated(self.model, 0)
        return buffer.rotated(self.model, len(self.prefix)).after(self.prefix)


def read_text(model: PreTrainedModel, ids: Sequence[int], past: KV | None = None, start: int = 0) -> KV:
    """K and V (rotated) of ``ids`` read by the model as it is, after ``past``; ``past`` is included.

    ``start`` is the position of the first token of all.
    """
    cache = SharedCache(past) if past is not None else None
    start += 0 if past is None else len(past)
    tokens = torch.tensor([list(ids)], device=model.device)
    positions = torch.arange(start, start + len(ids), device=model.device)
    output = decoder(model)(input_ids=tokens, position_ids=positions[None], past_key_values=cache, use_cache=True)
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
def lora_model(model: PreTrainedModel, settings: CompileSettings) -> Iterator[list[BaseTunerLayer]]:
    """Put a LoRA into ``model`` for the block; the model leaves it as it came, also when the block raises.

    Raises:
        InputError: the model carries an adapter already, or ``targets`` names no layer.
    """
    if any(isinstance(module, BaseTunerLayer) for module in model.modules()):
        raise InputError("the model carries an adapter: merge or unload it first, a memory belongs to a plain model")
    attributes = set(vars(model))
    required = [(parameter, parameter.requires_grad) for parameter in model.parameters()]
    config = LoraConfig(
        r=settings.rank,
        lora_alpha=settings.alpha,
        target_modules=list(settings.targets or attention_projections(model)),
        bias="none",
    )
    wrapped = None
    with evaluating(model):
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
            for parameter, flag in required:
                parameter.requires_grad_(flag)


@contextmanager
def evaluating(model: PreTrainedModel) -> Iterator[None]:
    """Dropout and the like are off inside the block; every module's mode comes back after it."""
    training = [(module, module.training) for module in model.modules()]
    try:
        model.eval()
        yield
    finally:
        for module, flag in training:
            module.training = flag


def _wrap(model: PreTrainedModel, config: LoraConfig) -> PeftModel:
    """``get_peft_model`` without the warning about a name that peft reads off transformers, not the caller."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*is_gradient_checkpointing", category=FutureWarning)
        return get_peft_model(model, config)


def _adapter_parameters(layer: BaseTunerLayer) -> list[torch.nn.Parameter]:
    return [p for name in layer.adapter_layer_names for p in getattr(layer, name).parameters()]


def _trainable_dtype(dtype: torch.dtype) -> torch.dtype:
    return dtype if dtype == torch.float64 else torch.float32
