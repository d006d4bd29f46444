"""A model and its tokenizer, read from files that run no code."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from importlib.util import find_spec
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils import logging

from ..errors import InputError
from ..utils.terminal import first_line, plain
from .sharding import Place

HUB_NAME = re.compile(r"\w[\w.-]*(/\w[\w.-]*)?", re.ASCII)
CONFIGS = ("config.json", "adapter_config.json")
GGUF = ".gguf"
# Weights that an error names.
NAMED = 3


def load_checkpoint(source: str, place: Place | None = None) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """A causal language model, where ``place`` puts it or on a GPU if there is one, and its tokenizer.

    Its weights are safetensors, all of them and no others, and its code is transformers' own: no attention kernel that
    its config names is fetched. The weights of a GGUF file are dequantised, and the model is a plain one from then on.

    Raises:
        InputError: ``source`` is no model folder, no GGUF file and no hub name that can be reached, or its files cannot
            be used.
    """
    logging.disable_progress_bar()
    # Its warnings quote the folder's files, and what they warn of is an error here.
    logging.set_verbosity_error()
    _check_source(source)
    place_of_files, options = _files(source)
    try:
        tokenizer = AutoTokenizer.from_pretrained(place_of_files, trust_remote_code=False, **options)
        model, loading = AutoModelForCausalLM.from_pretrained(
            place_of_files, dtype="auto", trust_remote_code=False, use_safetensors=True, output_loading_info=True,
            ignore_mismatched_sizes=True, attn_implementation="sdpa", **options,
        )  # fmt: skip
        if options:
            _forget_quantization(model)
        tokenizer("Is it a tokenizer that can be used?")
    except Exception as error:
        # What stands in a folder's files can raise nearly anything inside transformers, tokenizers and safetensors.
        raise InputError(f"cannot load the model {source}: {_reason(error)}") from error
    _check_weights(source, loading)
    if place is None:
        return model.to("cuda" if torch.cuda.is_available() else "cpu").eval(), tokenizer
    return place(model).eval(), tokenizer


def _check_source(source: str) -> None:
    """Refuse what transformers would take for something else."""
    if not source.strip():
        raise InputError("the name of the model is empty: name a model folder or a hub name, or leave --model out")
    if os.path.isdir(source):
        if not any(os.path.isfile(os.path.join(source, name)) for name in CONFIGS):
            raise InputError(f"the folder {source} has no config.json: name one that save_pretrained wrote")
    elif os.path.exists(source) and source.endswith(GGUF):
        if find_spec("gguf") is None:
            raise InputError(f"{source} is read with the package gguf: pip install 'lcc-kernels[gguf]'")
    elif os.path.exists(source):
        raise InputError(
            f"{source} is a file: name a GGUF file, or the folder that holds the model's config, weights and tokenizer"
        )
    elif not HUB_NAME.fullmatch(source):
        raise InputError(f"there is no folder {source}")


def _files(source: str) -> tuple[str, dict[str, str]]:
    """Where transformers finds the files of ``source``, and the option that names a GGUF file there."""
    if not source.endswith(GGUF):
        return source, {}
    folder, name = os.path.split(os.path.abspath(source))
    return folder, {"gguf_file": name}


def _forget_quantization(model: PreTrainedModel) -> None:
    """Leave of a model whose weights were dequantised no sign that they ever were quantised."""
    vars(model.config).pop("quantization_config", None)
    for name in ("hf_quantizer", "quantization_method", "is_quantized"):
        vars(model).pop(name, None)


def _reason(error: Exception) -> str:
    """What is wrong, and what to do about it where that can be told."""
    said = first_line(error)
    if "instantiate the backend tokenizer" in said:
        return "it has no tokenizer that can be read: save one there with tokenizer.save_pretrained"
    if "custom code" in said or "trust_remote_code" in str(error):
        return "it needs Python code of its own, which is not run: convert it, or take a supported architecture"
    if "safetensors" in said and "file named" in said:
        return "it has no safetensors weights, and pickled ones are not read: convert them with save_pretrained"
    if isinstance(error, ImportError):
        return said
    named = "" if isinstance(error, (OSError, ValueError)) else f"{type(error).__name__}: "
    return f"{named}{said.rstrip('.')}; its files are damaged, or this version of transformers does not know them"


def _check_weights(source: str, loading: Mapping[str, Any]) -> None:
    """Refuse a model whose weights are not those of its files."""
    wrong = {
        "lacks weights": sorted(loading["missing_keys"]),
        "has weights that the architecture does not know": sorted(loading["unexpected_keys"]),
        "has weights of other shapes than its config says": sorted(key for key, *_ in loading["mismatched_keys"]),
        "has weights that cannot be read": list(loading["error_msgs"]),
    }
    for what, names in wrong.items():
        if names:
            some = ", ".join(map(plain, names[:NAMED])) + (f" and {len(names) - NAMED} more" if names[NAMED:] else "")
            raise InputError(f"the model {source} {what}: {some}; its files are not whole, or of another model")
