"""A model's modules a second time, over the same weights: what is done to the copy, no other user of the model sees."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any
from weakref import WeakSet

import torch
from transformers import PreTrainedModel

from ..errors import InputError
from .sharding import is_sharded

# Copies are private already: none is copied again.
_COPIES: WeakSet[PreTrainedModel] = WeakSet()


def share_weights(model: PreTrainedModel) -> PreTrainedModel:
    """A copy of ``model`` in eval mode with modules, hooks and config of its own, and with the model's own weights.

    Another attention implementation, a LoRA or another forward in the copy never reach the model, so other threads may
    run the model meanwhile. The copy's passes return named outputs, and its parameters want no gradient. It takes no
    memory for weights.

    Returns:
        The copy; the model itself if it is a copy already, or if its weights are sharded: their collective operations
        belong to its very modules.

    Raises:
        InputError: the model's forward was replaced by a function that runs the model and not the copy.
    """
    return model if model in _COPIES or is_sharded(model) else private_copy(model)


def private_copy(model: PreTrainedModel) -> PreTrainedModel:
    """``share_weights`` of a model in one piece, a copy of a copy included: no other user of the first copy sees it."""
    shared: dict[int, Any] = {id(held): held for held in _held_by_hooks(model)}
    shared |= {id(buffer): buffer for buffer in model.buffers()}
    shared |= {id(parameter): _without_gradient(parameter) for parameter in model.parameters()}
    copied = copy.deepcopy(model, shared).eval()
    copied.config.return_dict = True
    for original, module in zip(model.modules(), copied.modules(), strict=True):
        _keep_to_itself(original, module)
    _COPIES.add(copied)
    return copied


def with_body_in(model: PreTrainedModel, dtype: torch.dtype) -> PreTrainedModel:
    """A copy whose layers and embeddings are in ``dtype``, and whose head is the model's own; it costs their memory."""
    copied = private_copy(model)
    body = getattr(copied, copied.base_model_prefix)
    for module in body.modules():
        for name, parameter in module.named_parameters(recurse=False):
            setattr(module, name, torch.nn.Parameter(parameter.to(dtype), requires_grad=False))
    copied.get_output_embeddings().register_forward_pre_hook(_in_own_dtype)
    return copied


def _in_own_dtype(head: Any, inputs: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
    """The inputs in the dtype of the head's weights."""
    return tuple(states.to(head.weight.dtype) for states in inputs)


def with_first_layers(model: PreTrainedModel, layers: int) -> PreTrainedModel:
    """A copy that has the first ``layers`` layers only: what they cost tells what all of them cost."""
    copied = private_copy(model)
    body = getattr(copied, copied.base_model_prefix)
    body.layers = body.layers[:layers]
    copied.config.num_hidden_layers = layers
    return copied


def without_dropout(model: PreTrainedModel) -> PreTrainedModel:
    """The model itself if all of it is in eval mode, else a copy that is."""
    return share_weights(model) if any(module.training for module in model.modules()) else model


def _keep_to_itself(original: torch.nn.Module, module: torch.nn.Module) -> None:
    """Let a copied module's forward run the copy: a function is not copied with the module that it runs."""
    forward = vars(module).get("forward")
    if forward is None or forward is not vars(original)["forward"]:
        return
    if hasattr(forward, "_torchdynamo_orig_callable"):
        # What torch.compile made of it computes the same.
        del module.forward
    elif isinstance(original, PreTrainedModel):
        raise InputError(
            f"the forward of {type(original).__name__} was replaced by a function: take that off, or register it as a "
            "forward hook"
        )


def _without_gradient(parameter: torch.nn.Parameter) -> torch.nn.Parameter:
    """The parameter itself, or a view of it that wants no gradient."""
    if not parameter.requires_grad:
        return parameter
    return torch.nn.Parameter(parameter.detach(), requires_grad=False)


def _held_by_hooks(model: PreTrainedModel) -> Iterator[Any]:
    """Where accelerate's hooks keep weights that are offloaded."""
    for module in model.modules():
        hook = getattr(module, "_hf_hook", None)
        for each in (hook, *getattr(hook, "hooks", ())):
            for name in ("weights_map", "tied_params_map"):
                held = getattr(each, name, None)
                if held is not None:
                    yield held
