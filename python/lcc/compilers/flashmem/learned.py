"""Files of trained consolidators, and those that are shipped."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel

from ...errors import InputError, MemoryFileError, MismatchError
from ...modeling.fingerprint import model_digests
from ...modeling.kv import KV
from ...modeling.lora import frozen
from ...utils.hashing import file_digest
from ...utils.tensor_files import load_tensors, save_tensors
from ..learning import is_for
from .consolidator import FORMS, Consolidator, Form, LastLayerConsolidator

FORMAT = "lcc-flashmem-1"
STORED = torch.float16
# Of the embedded model, a file for each form; the README beside them says how they were made.
SHIPPED = Path(__file__).parent / "weights"
TRAIN = "python -m lcc.compilers.flashmem.train --model MODEL --lessons FILE.jsonl --out FILE"


def save(
    path: str | os.PathLike, consolidator: Consolidator, model: dict[str, str], settings: dict[str, Any], curve: list
) -> None:
    """Write a file.

    Args:
        model: ``model_digests`` of the model that it was trained for.
        settings, curve: of the training, JSON-ready.

    Raises:
        MemoryFileError: the file cannot be written.
    """
    metadata = {"form": consolidator.form, "rank": consolidator.rank, "trained": consolidator.trained, "model": model}
    tensors = {name: tensor.to(STORED) for name, tensor in consolidator.state_dict().items()}
    save_tensors(path, FORMAT, tensors, metadata | {"settings": settings, "curve": curve})


def load(path: str | os.PathLike, model: PreTrainedModel) -> Consolidator:
    """What ``save`` wrote, on the model's device, frozen.

    Raises:
        MemoryFileError: no such file, or one that ``save`` did not write.
        MismatchError: it was trained for another model.
    """
    tensors, metadata = load_tensors(path, FORMAT)
    if metadata.get("model") != model_digests(model):
        raise MismatchError(f"{path} was trained for another model: load that one, or train one for this: {TRAIN}")
    try:
        consolidator = FORMS[metadata["form"]](model, metadata["rank"], metadata["trained"])
        consolidator.load_state_dict(tensors)
    except (KeyError, TypeError, RuntimeError) as error:
        raise MemoryFileError(f"{path} holds no consolidator that this version knows: train it again") from error
    return consolidator.requires_grad_(False)


def load_shipped(form: Form, model: PreTrainedModel) -> Consolidator:
    """The shipped consolidator of a form.

    Raises:
        MismatchError: none is shipped for the model; the message says how to train one.
        MemoryFileError: the file is damaged.
    """
    path = SHIPPED / f"{form}.safetensors"
    if not is_for(path, FORMAT, model):
        raise MismatchError(
            "flashmem has trained weights for the embedded model alone: train them for this one, "
            f"{TRAIN}, and name the file in the setting learned (--set learned=FILE)"
        )
    return load(path, model)


def load_last(model: PreTrainedModel, learned: str | os.PathLike | None = None) -> LastLayerConsolidator:
    """The consolidator whose latents are input embeddings.

    Args:
        learned: a file of ``python -m lcc.compilers.flashmem.train --form last``. None: the shipped weights, which were
            trained to stand for a text that goes.

    Raises:
        InputError: the file holds another consolidator.
        MemoryFileError, MismatchError: as ``load`` and ``load_shipped``.
    """
    consolidator = load_shipped("last", model) if learned is None else load(learned, model)
    if not isinstance(consolidator, LastLayerConsolidator):
        raise InputError(
            f"{learned} holds the consolidator {consolidator.form!r}, which writes no embeddings: name one "
            "of the form 'last'"
        )
    return consolidator


def latent_embeddings(
    model: PreTrainedModel, text: KV, hidden: torch.Tensor, count: int = 8, learned: str | os.PathLike | None = None
) -> torch.Tensor:
    """Latents to append to a cache as input embeddings, (count, H), as the paper does; 8 is its count.

    Whoever asks often calls ``load_last`` once, and the ``embeddings`` of what it returns.

    Args:
        text: K and V, rotated, of what has been read.
        hidden: the last hidden state of its last token, (H,).
        learned: see ``load_last``.

    Raises:
        InputError, MemoryFileError, MismatchError: as ``load_last``.
    """
    consolidator = load_last(model, learned)
    with torch.no_grad(), frozen(model):
        return consolidator.embeddings(model, text, hidden, count)


def shipped_digests() -> dict[str, str]:
    """SHA-256 of each shipped file, by its form."""
    return {form: file_digest(SHIPPED / f"{form}.safetensors") for form in FORMS}
