"""The command line of what trains a compiler's own weights: a model, lessons, a file to write, and settings."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from ..errors import LCCError
from ..modeling.architecture import check_architecture
from ..utils.settings import SettingsGroup, setting_types
from ..utils.values import parse


class Job(NamedTuple):
    """What is trained for, from what, and where it goes."""

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    lessons: str
    out: Path
    settings: Any


def print_point(point: dict[str, float]) -> None:
    """A JSON line for each measurement."""
    print(json.dumps(point), flush=True)


def run_command(
    prog: str,
    description: str | None,
    lessons: str,
    settings: type[SettingsGroup],
    train: Callable[[Job], object],
    given: list[str] | None,
) -> None:
    """Parse ``given``, load the model, on a GPU if there is one, and call ``train``; an error ends with one line.

    Args:
        lessons: what may be given for ``--lessons``, for the help.
        settings: each of its fields is an option.
    """
    parser = argparse.ArgumentParser(
        prog=prog,
        description=description,
        epilog=settings.__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--model", required=True, help="a model folder, or a hub name")
    parser.add_argument("--lessons", required=True, help=lessons)
    parser.add_argument("--out", type=Path, required=True, help="the file to write")
    for name, kind in setting_types(settings).items():
        option = f"--{name.replace('_', '-')}"
        parser.add_argument(option, type=partial(parse, name, kind=kind), default=getattr(settings, name))
    arguments = vars(parser.parse_args(given))
    name, source, out = (arguments.pop(each) for each in ("model", "lessons", "out"))
    try:
        chosen = settings(**arguments)
        train(Job(*_loaded(name), source, out, chosen))
    except LCCError as error:
        sys.exit(f"error: {error}")


def _loaded(name: str) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    model = AutoModelForCausalLM.from_pretrained(name, dtype="auto", trust_remote_code=False, use_safetensors=True)
    tokenizer = AutoTokenizer.from_pretrained(name, trust_remote_code=False)
    model = model.to("cuda" if torch.cuda.is_available() else "cpu").eval()
    check_architecture(model)
    return model, tokenizer
