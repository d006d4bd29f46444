"""Direct KV optimisation: K and V of K tokens are the parameters (Cartridges, arXiv 2506.06266, section 3)."""

from __future__ import annotations

from typing import Any

import torch
from transformers import PreTrainedModel

from lcc.compilers.lora import Writer, read_text, trainable_dtype
from lcc.modeling.kv import KV
from lcc.pipeline.settings import CompileSettings
from lcc.text.context import Context

from .workbench import Peer
from .written import alone, compiled_with


class DirectKV(Writer):
    """Starts as the K and V of the text's first K tokens; the prefix stays frozen, as the sink does there."""

    def __init__(self, model: PreTrainedModel, context: Context):
        super().__init__(model, context)
        start = len(self.prefix)
        with torch.no_grad():
            read = read_text(model, context.context_ids[: context.buffer], self.prefix).tail(context.buffer)
        first = read.unrotated(model, start)
        dtype = trainable_dtype(model.dtype)
        self.keys = torch.nn.Parameter(first.keys.to(dtype, copy=True))
        self.values = torch.nn.Parameter(first.values.to(dtype, copy=True))

    def parameter_groups(self, settings: CompileSettings) -> list[dict[str, Any]]:
        """Keys and values."""
        return [{"params": [self.keys, self.values], "lr": settings.learning_rate}]

    def encode(self) -> KV:
        """The parameters themselves, in the model's dtype."""
        return KV(self.keys.to(self.model.dtype), self.values.to(self.model.dtype))


direct_kv = alone(DirectKV, "direct_kv")
PEER = Peer(
    compiled_with(direct_kv),
    "Cartridges' direct KV optimisation, on LCC's data and loss: our implementation",
    start=0.1,
)
