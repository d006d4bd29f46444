"""The entropy of a model's last attention at every pass, which changes no bit of what the model computes.

Importing this file makes ``lcc_entropy`` a transformers attention implementation.
"""

from __future__ import annotations

import copy
from typing import Any, cast

import torch
from transformers import AttentionInterface, PreTrainedModel
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

import lcc_kernels as lk

from ..errors import InputError
from .attention import UNSUPPORTED
from .kv import decoder
from .model_copy import share_weights
from .sharding import is_sharded

IMPLEMENTATION = "lcc_entropy"


class AttentionEntropy:
    """A copy of a model, over the same weights, whose last layer tells the entropy of its attention.

    The copy's output is the model's own: its last layer attends as before, and ``lk.shared_prefix_attention`` attends
    once more for the entropy. No attention matrix is made for it.

    Attributes:
        model: the copy; what it generates for one sequence is told.
        hidden: the last hidden state of its latest token, (H,); None before the first pass.

    Raises:
        InputError: the weights are sharded, or the last layer does not attend by transformers' AttentionInterface.
    """

    def __init__(self, model: PreTrainedModel, sinks: int):
        """Watch a copy of ``model``; the entropy leaves the first ``sinks`` keys out."""
        if is_sharded(model):
            raise InputError("the model's weights are sharded, and its last attention cannot be watched: load it whole")
        self._base = ALL_ATTENTION_FUNCTIONS.get(model.config._attn_implementation)
        if self._base is None:
            raise InputError(
                f"the model attends with {model.config._attn_implementation}, which cannot be watched: use "
                'model.set_attn_implementation("sdpa")'
            )
        self.model, self.sinks = share_weights(model), sinks
        self.hidden: torch.Tensor | None = None
        self._told: list[torch.Tensor] = []
        self._passes = 0
        body = decoder(self.model)
        attention: Any = getattr(body.layers[-1], "self_attn", None)
        if not hasattr(attention, "config"):
            raise InputError(f"the last layer of {type(model).__name__} has no self_attn that can be watched")
        attention.config = copy.copy(attention.config)
        attention.config._attn_implementation = IMPLEMENTATION
        attention.entropy = self
        body.register_forward_hook(self._after_pass)

    def __deepcopy__(self, memo: dict[int, Any]) -> AttentionEntropy:
        """A copy of the watched model tells the same object."""
        return self

    def take(self) -> list[float]:
        """The entropy of each pass since it was last taken, in nats, the mean over heads: one a generated token.

        The first pass reads a whole prompt, and its entropy is that of the last token, which predicts the first one.

        Raises:
            InputError: the model ran, and its last layer told nothing.
        """
        if self._passes != len(self._told):
            raise InputError(
                f"the last layer of {type(self.model).__name__} does not attend by transformers' AttentionInterface, "
                "so its attention cannot be watched: take a model of docs/models.md"
            )
        told = torch.stack(self._told).tolist() if self._told else []
        self.clear()
        return told

    def clear(self) -> None:
        """Forget what was told."""
        self._told, self._passes = [], 0

    def attend(
        self, module: torch.nn.Module, query: torch.Tensor, key: Any, value: Any, mask: object, **options: Any
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """What the last layer calls for its attention, as transformers does it; returns what it always returned."""
        for option, what in UNSUPPORTED.items():
            if options.get(option) is not None:
                raise InputError(f"the last layer of the model uses {what}, so its attention cannot be watched")
        if len(query) > 1:
            raise InputError(f"{len(query)} sequences are generated at once: only one can be watched at a time")
        self._told.append(self._entropy(query[:, :, -1:], key, value, options.get("scaling")))
        return self._base(module, query, key, value, mask, **options)

    @torch.no_grad()
    def _entropy(
        self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, scale: float | None
    ) -> torch.Tensor:
        """Of the last token's attention over all keys, the mean over heads: a scalar, float32 or better."""
        key, value = key.to(query.dtype), value.to(query.dtype)
        tokens = torch.full((1,), key.shape[2], dtype=torch.int32, device=query.device)
        nothing = key[0, :, :0]
        _, entropy = lk.shared_prefix_attention(
            query, nothing, nothing, key, value, tokens, scale, return_entropy=True, sinks=self.sinks
        )
        return entropy.mean()

    def _after_pass(self, module: torch.nn.Module, inputs: object, output: Any) -> None:
        self._passes += 1
        self.hidden = output.last_hidden_state[0, -1]


def entropy_attention(
    module: torch.nn.Module, query: torch.Tensor, key: Any, value: Any, attention_mask: object, **options: Any
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """The last layer's attention of a watched copy, as transformers calls it."""
    return cast(AttentionEntropy, module.entropy).attend(module, query, key, value, attention_mask, **options)


AttentionInterface.register(IMPLEMENTATION, entropy_attention)
