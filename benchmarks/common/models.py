"""The embedded model, loaded once a process."""

from __future__ import annotations

from functools import cache

from transformers import PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils.logging import disable_progress_bar

from lcc.embedded_model import load_embedded


@cache
def load() -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """The embedded model on the CPU, and its tokenizer; no bar shows how they load."""
    disable_progress_bar()
    return load_embedded()
