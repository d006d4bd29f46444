"""A LoRA inside a model for a block, and the model frozen meanwhile."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from peft.tuners.tuners_utils import BaseTunerLayer
from transformers import PreTrainedModel

from ..errors import InputError
from .kv import decoder


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


def layer_projections(model: PreTrainedModel) -> list[str]:
    """Names of the linear layers of attention and MLP: of all that stand in the decoder's layers."""
    modules = decoder(model).layers.named_modules()
    return sorted({name.rpartition(".")[2] for name, module in modules if isinstance(module, torch.nn.Linear)})


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
def lora_model(
    model: PreTrainedModel, rank: int, alpha: float, targets: Sequence[str] | None = None
) -> Iterator[list[BaseTunerLayer]]:
    """Put a LoRA (arXiv 2106.09685) into ``model`` for the block. The model is restored, also when the block raises.

    Args:
        targets: names of the linear layers to adapt. None: every attention projection.

    Yields:
        The adapted layers.

    Raises:
        InputError: the model carries an adapter already, or ``targets`` names no layer.
    """
    if any(isinstance(module, BaseTunerLayer) for module in model.modules()):
        raise InputError("the model carries an adapter: merge or unload it first, a memory belongs to a plain model")
    attributes = set(vars(model))
    config = LoraConfig(
        r=rank,
        lora_alpha=alpha,
        target_modules=list(targets or attention_projections(model)),
        bias="none",
    )
    with frozen(model):
        wrapped = None
        try:
            try:
                wrapped = _wrap(model, config)
            except ValueError as error:
                raise InputError(f"targets {targets} cannot carry a LoRA: {error}") from error
            model.eval()
            yield [module for module in model.modules() if isinstance(module, BaseTunerLayer)]
        finally:
            if wrapped is not None:
                wrapped.unload()
            for name in set(vars(model)) - attributes:
                delattr(model, name)


class LoraSwitch:
    """Switches the LoRA of ``lora_model`` on and off. It is off at first.

    Attributes:
        parameters: of the LoRA. They want a gradient whether it is on or off.
    """

    def __init__(self, layers: Sequence[BaseTunerLayer]):
        self._layers = layers
        self.parameters = [
            parameter
            for layer in layers
            for name in layer.adapter_layer_names
            for parameter in getattr(layer, name).parameters()
        ]
        self._enable(False)

    @contextmanager
    def applied(self, on: bool = True) -> Iterator[None]:
        """Switch it on inside the block."""
        self._enable(on)
        try:
            yield
        finally:
            self._enable(False)

    def _enable(self, on: bool) -> None:
        for layer in self._layers:
            layer.enable_adapters(on)
        for parameter in self.parameters:
            # peft freezes a layer that it switches off; its gradient is still wanted from where it was on.
            parameter.requires_grad_(True)


def _wrap(model: PreTrainedModel, config: LoraConfig) -> PeftModel:
    """``get_peft_model`` without the warning about a name that peft reads off transformers, not the caller."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*is_gradient_checkpointing", category=FutureWarning)
        return get_peft_model(model, config)
