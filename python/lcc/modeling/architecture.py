"""Which models this package reproduces: a few random tokens tell, not a list of names.

A model's verdict is kept for as long as the process lives, by its class, config, dtype, device and a sample of its
weights. Finding it takes about as long as reading twenty short texts.
"""

from __future__ import annotations

import json
import math
from collections import OrderedDict
from collections.abc import Callable, Hashable
from dataclasses import dataclass
from threading import Lock

import torch
from torch.distributed.tensor import DTensor
from transformers import PreTrainedModel

from ..errors import InputError
from .comparisons import (
    Probed,
    cache_error,
    chunks_error,
    head_error,
    mask_error,
    moving_error,
    packed_error,
    sharing_error,
    turning_error,
)
from .lora import frozen
from .model_copy import share_weights
from .wrappers import AdapterHook, plain_modules

REMEDY = (
    "a memory of it would answer wrongly. Take a model with rotary keys and full causal attention in every layer, such "
    "as Llama, Qwen 2 and 3, Phi 3 or Mistral without a window; docs/models.md says which"
)
# How many models' verdicts are kept.
KEPT = 64


@dataclass(frozen=True)
class Comparison:
    """One thing that a model must do as this package does it.

    Attributes:
        error: of each token, (cases, tokens); raises what keeps it from being measured.
        failed: what the model does otherwise.
        exact, rough: the largest error allowed, in float32 or float64, and where numbers have fewer bits.
    """

    error: Callable[[Probed], torch.Tensor]
    failed: str
    exact: float = 1e-3
    rough: float = 0.2


# Measured over the accepted families, the embedded model and SmolLM2-135M-Instruct, on CPUs. In float32 and float64,
# right models are off by 9e-5 at most, in float16 by 0.009, in bfloat16 by 0.06, and by 0.11 if they have 80 layers.
# Wrong ones are off by 0.22 or more somewhere, and a layer without positions by 1. The head's logits are the model's to
# the last bit; soft-capped small ones are off by 0.006.
COMPARISONS = (
    Comparison(mask_error, "hides tokens by more than causality, as a sliding window or chunks do"),
    Comparison(cache_error, "does not cache K and V in every layer as its config says"),
    Comparison(head_error, "changes its logits behind the head, as a scale or a soft cap does", 1e-6, 2e-3),
    Comparison(
        turning_error,
        "turns keys of some layer in another way than by its rotary tables, channels in halves: not at all, neighbour "
        "with neighbour, or before a norm",
    ),
    Comparison(moving_error, "answers differently when what it has read stands at another position"),
    Comparison(packed_error, "attends in another way than transformers' AttentionInterface lets it be told"),
    Comparison(chunks_error, "reads a text otherwise in chunks"),
)
SHARING = Comparison(sharing_error, "does not attend to K and V in two parts")


@dataclass(frozen=True)
class Verdict:
    """Why a model is refused, if it is, and whether it can hold the first tokens of sequences once."""

    refused: str | None
    shares: bool = False


def check_architecture(model: PreTrainedModel) -> None:
    """Refuse models whose attention, positions or head this package does not reproduce.

    The model is left alone: what is probed is a copy over the same weights, or the model itself if it is sharded, when
    all processes make this call together.

    Raises:
        InputError: naming what the model does that is not supported.
    """
    refused = verdict(model).refused
    if refused is not None:
        raise InputError(f"{type(model).__name__} {refused}: {REMEDY}")


def supports_sharing(model: PreTrainedModel) -> bool:
    """Whether ``model`` can attend with ``lcc_shared_prefix``; the one place where that is decided."""
    return verdict(model).shares


_verdicts: OrderedDict[Hashable, Verdict] = OrderedDict()
_verdicts_lock = Lock()


def verdict(model: PreTrainedModel) -> Verdict:
    """What is known about models like this one, or found out now."""
    # torch.compile's wrapper computes the same, and would be compiled for every shape.
    model = getattr(model, "_orig_mod", model)
    lacking = _lacking(model)
    if lacking is not None:
        return Verdict(lacking)
    key = _key(model)
    with _verdicts_lock:
        known = _verdicts.get(key)
    if known is None:
        # Outside the lock: processes that share a model's weights wait for one another in here.
        known = _probe(model)
        with _verdicts_lock:
            _verdicts[key] = known
            while len(_verdicts) > KEPT:
                _verdicts.popitem(last=False)
    return known


def _lacking(model: PreTrainedModel) -> str | None:
    """What a model has not, without which there is nothing to compare."""
    if model.config.is_encoder_decoder:
        return "is an encoder and a decoder, and a text goes into the encoder"
    decoder = getattr(model, model.base_model_prefix, None)
    if not hasattr(decoder, "rotary_emb"):
        return "has no rotary position embedding for all of its layers"
    if not hasattr(decoder, "layers"):
        return "keeps its layers under another name than layers"
    hooked = any(hasattr(module, "_hf_hook") for module in model.modules())
    if not hooked and any(parameter.is_meta for parameter in model.parameters()):
        return "has weights on the meta device, so load them first"
    return None


def _key(model: PreTrainedModel) -> Hashable:
    """What the verdict depends on. Of each weight one element: some weights, such as ones, make a wrong turn right."""
    own = [parameter for name, parameter in model.named_parameters() if "lora_" not in name]
    held = [p.to_local() if isinstance(p, DTensor) else p for p in own]
    middles = [p.detach()[tuple(size // 2 for size in p.shape)] for p in held if p.numel() and not p.is_meta]
    sample = [middle.to("cpu", torch.float32) for middle in middles]
    return (
        type(model),
        json.dumps(model.config.to_dict(), sort_keys=True, default=str),
        model.config._attn_implementation,
        frozenset(p.dtype for p in held),
        model.device,
        repr(torch.stack(sample).tolist() if sample else []),
        tuple(map(_changed, plain_modules(model))),
    )


def _changed(named: tuple[str, torch.nn.Module]) -> Hashable:
    """What may make a module compute something else than its class does: a forward of its own, and hooks."""
    _, module = named
    own = [vars(module)["forward"]] if "forward" in vars(module) else []
    hooks = (*module._forward_pre_hooks.values(), *module._forward_hooks.values())
    functions = (*own, *(hook for hook in hooks if not isinstance(hook, AdapterHook)))
    # A copy of the model has copies of methods and partial functions, of the same functions.
    return type(module), tuple(id(getattr(each, "__func__", getattr(each, "func", each))) for each in functions)


def _probe(model: PreTrainedModel) -> Verdict:
    rough = any(p.element_size() < 4 for p in model.parameters()) or torch.get_float32_matmul_precision() != "highest"
    with torch.no_grad(), torch.autocast(model.device.type, enabled=False):
        try:
            copied = share_weights(model)
            with frozen(copied):
                probed = Probed.of(copied)
                failures = (_failure(comparison, probed, rough) for comparison in COMPARISONS)
                refused = next((failure for failure in failures if failure is not None), None)
                return Verdict(refused, refused is None and _failure(SHARING, probed, rough) is None)
        except torch.OutOfMemoryError:
            raise
        except Exception as error:
            return Verdict(f"cannot be probed ({_first_line(error)})")


def _failure(comparison: Comparison, probed: Probed, rough: bool) -> str | None:
    """Why the comparison fails, or None.

    The worst token counts, or the middle one where numbers have few bits: a mixture of experts may then send some token
    to another expert.
    """
    try:
        errors = comparison.error(probed).float().cpu()
    except torch.OutOfMemoryError:
        raise
    except Exception as error:
        return f"{comparison.failed} ({_first_line(error)})"
    worst = (errors.quantile(0.5, -1) if rough else errors).max().item()
    if math.isnan(worst):
        return "computes the same whatever it reads, or NaN, so that nothing can be compared"
    allowed = comparison.rough if rough else comparison.exact
    return None if worst <= allowed else f"{comparison.failed} (off by {worst:.2g}, allowed {allowed:g})"


def _first_line(error: Exception) -> str:
    return f"{type(error).__name__}: {error}".splitlines()[0]
