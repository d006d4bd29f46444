"""Learn what ``gradmem`` writes with: ``python -m lcc.compilers.meta_train --model M --lessons FILE.jsonl --out FILE``.

Lessons are rows ``{"context": ..., "question": ..., "answer": ...}``; without a question the context is to be
repeated. Run it again after a kill: it goes on where it stopped. To use the file:
``lcc compile TEXT --compiler gradmem --set learned=FILE``.
"""

from __future__ import annotations

import argparse
import json
import sys
from functools import partial
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from ..errors import LCCError
from ..modeling.architecture import check_architecture
from ..modeling.prefill import prefill
from ..text.chat_format import ChatFormat
from ..utils.jsonl import load_rows
from ..utils.settings import setting_types
from ..utils.values import parse
from .gradmem.lessons import make_lessons, split
from .gradmem.meta import MetaSettings, meta_training


def train(model_name: str, lessons: str, out: Path, settings: MetaSettings) -> float:
    """Meta-train for the model ``model_name`` and leave a file at ``out``; prints a JSON line at each measurement.

    Returns:
        The held-out loss of what is in the file, in nats an answer token.

    Raises:
        InputError: the model or the lessons cannot be used.
        DivergedError, MemoryFileError, MismatchError: as ``MetaTraining.run``.
    """
    model = AutoModelForCausalLM.from_pretrained(
        model_name, dtype="auto", trust_remote_code=False, use_safetensors=True
    )
    tokenizer = AutoTokenizer.from_pretrained(model_name, trust_remote_code=False)
    model = model.to("cuda" if torch.cuda.is_available() else "cpu").eval()
    check_architecture(model)
    chat = ChatFormat.of(tokenizer)
    learned_from, held_out = split(make_lessons(load_rows(lessons), chat, lessons), settings.held_out, settings.seed)
    with torch.no_grad():
        prefix = prefill(model, chat.prefix_ids)
    with meta_training(model, prefix, learned_from, held_out, settings, out) as training:
        return training.run(lambda point: print(json.dumps(point), flush=True))


def main(given: list[str] | None = None) -> None:
    """Command line."""
    parser = argparse.ArgumentParser(
        prog="python -m lcc.compilers.meta_train",
        description=__doc__,
        epilog=MetaSettings.__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--model", required=True, help="a model folder, or a hub name")
    parser.add_argument("--lessons", required=True, help="JSONL, or a dataset's name")
    parser.add_argument("--out", type=Path, required=True, help="the file to write")
    for name, kind in setting_types(MetaSettings).items():
        option = f"--{name.replace('_', '-')}"
        parser.add_argument(option, type=partial(parse, name, kind=kind), default=getattr(MetaSettings, name))
    arguments = vars(parser.parse_args(given))
    model, lessons, out = (arguments.pop(name) for name in ("model", "lessons", "out"))
    try:
        train(model, lessons, out, MetaSettings(**arguments))
    except LCCError as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
