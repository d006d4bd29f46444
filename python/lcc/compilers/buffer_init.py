"""Where the buffer embeddings start."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING

import torch

from ..pipeline.settings import CompileSettings

if TYPE_CHECKING:
    from .lora import Compiler


def initial_buffer(compiler: Compiler, settings: CompileSettings) -> torch.Tensor:
    """Buffer embeddings (K, H) before the first step.

    ``vocabulary``: the mean of the vocabulary's embeddings, as the compiler makes them (LCC appendix A). ``even`` and
    ``sampled``: the embeddings of K tokens of the text, evenly spaced or drawn at random, in the text's order. The LoRA
    starts at zero, so such a buffer token starts as a second reading of its token, with K and V near the token's own.
    """
    tokens, count = len(compiler.context.context_ids), compiler.context.buffer
    if settings.buffer_init == "vocabulary":
        return compiler.buffer.detach()
    if settings.buffer_init == "sampled":
        chosen = sorted(random.Random(settings.seed).sample(range(tokens), count))
    else:
        chosen = [(2 * index + 1) * tokens // (2 * count) for index in range(count)]
    embeddings = compiler.model.get_input_embeddings().weight.detach()
    ids = torch.tensor([compiler.context.context_ids[index] for index in chosen], device=embeddings.device)
    return embeddings[ids].to(compiler.buffer.dtype)
