"""The embedded model: a small Llama for trying everything on a CPU, and the script that trains it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

EMBEDDED = Path(__file__).parent / "weights"

__all__ = ["EMBEDDED", "load_embedded"]


def load_embedded(dtype: torch.dtype | str = "auto") -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """The embedded model on the CPU, and its tokenizer."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(EMBEDDED, dtype=dtype, trust_remote_code=False)
    return model, AutoTokenizer.from_pretrained(EMBEDDED, trust_remote_code=False)
