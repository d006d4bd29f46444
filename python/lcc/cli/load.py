"""Models and documents for the commands."""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils import logging

from .. import documents
from ..errors import InputError
from ..models import EMBEDDED
from ..shards import Place


def load_model(name: str | None, place: Place | None = None) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """A causal language model, where ``place`` puts it or on a GPU if there is one, and its tokenizer.

    Raises:
        InputError: ``name`` is no model folder and no hub name that can be reached.
    """
    logging.disable_progress_bar()
    source = name or str(EMBEDDED)
    try:
        tokenizer = AutoTokenizer.from_pretrained(source)
        model = AutoModelForCausalLM.from_pretrained(source, dtype="auto")
    except (OSError, ValueError) as error:
        raise InputError(f"cannot load the model {source}: {str(error).splitlines()[0]}") from error
    if place is None:
        return model.to("cuda" if torch.cuda.is_available() else "cpu").eval(), tokenizer
    return place(model).eval(), tokenizer


def read_document(path: Path) -> str:
    """The text of a UTF-8 file, or of standard input for ``-``.

    Raises:
        InputError: no such file, or not UTF-8.
    """
    if str(path) == "-":
        return sys.stdin.read()
    return documents.read_document(path)
