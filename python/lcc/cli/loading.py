"""Models for the commands."""

from __future__ import annotations

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ..embedded_model import EMBEDDED
from ..modeling.loading import load_checkpoint
from ..modeling.sharding import Place


def load_model(name: str | None, place: Place | None = None) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """A causal language model and its tokenizer, as ``load_checkpoint`` reads them; without a name the embedded one.

    Raises:
        InputError: as ``load_checkpoint``.
    """
    return load_checkpoint(model_source(name), place)


def model_source(name: str | None) -> str:
    """What ``--model`` names: a folder, a GGUF file or a hub name; without it the embedded model's folder."""
    return str(EMBEDDED) if name is None else name
