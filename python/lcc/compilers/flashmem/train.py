"""Train what ``flashmem`` writes with: ``python -m lcc.compilers.flashmem.train --model M --lessons L --out FILE``.

Lessons are a JSONL file of rows ``{"context": ..., "question": ..., "answer": ...}``, or ``synthetic``: texts of the
package's own generators, for the embedded model. Run it again after a kill: it goes on where it stopped. To use the
file: ``lcc compile TEXT --compiler flashmem --set learned=FILE``.
"""

from __future__ import annotations

import argparse
import json
import sys
from functools import partial
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from ...errors import LCCError
from ...modeling.architecture import check_architecture
from ...text.chat_format import ChatFormat
from ...utils.jsonl import load_rows
from ...utils.settings import setting_types
from ...utils.values import parse
from .lessons import FileLessons, Lessons, SyntheticLessons
from .training import ConsolidatorSettings, consolidator_training

SYNTHETIC = "synthetic"


def train(model_name: str, source: str, out: Path, settings: ConsolidatorSettings) -> float:
    """Train for the model ``model_name`` and leave a file at ``out``; prints a JSON line at each measurement.

    Returns:
        The mean held-out KL of what is in the file, in nats a token.

    Raises:
        InputError: the model or the lessons cannot be used.
        DivergedError, MemoryFileError, MismatchError: as ``ConsolidatorTraining.run``.
    """
    model = AutoModelForCausalLM.from_pretrained(
        model_name, dtype="auto", trust_remote_code=False, use_safetensors=True
    )
    tokenizer = AutoTokenizer.from_pretrained(model_name, trust_remote_code=False)
    model = model.to("cuda" if torch.cuda.is_available() else "cpu").eval()
    check_architecture(model)
    lessons: Lessons
    if source == SYNTHETIC:
        lessons = SyntheticLessons(tokenizer, settings.seed, settings.queries)
    else:
        lessons = FileLessons(tokenizer, load_rows(source), source, settings.seed, settings.queries)
    prefix_ids = ChatFormat.of(tokenizer).prefix_ids
    with consolidator_training(model, prefix_ids, lessons, settings, out) as training:
        return training.run(lambda point: print(json.dumps(point), flush=True))


def main(given: list[str] | None = None) -> None:
    """Command line."""
    parser = argparse.ArgumentParser(
        prog="python -m lcc.compilers.flashmem.train",
        description=__doc__,
        epilog=ConsolidatorSettings.__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--model", required=True, help="a model folder, or a hub name")
    parser.add_argument("--lessons", required=True, help=f"JSONL, a dataset's name, or {SYNTHETIC}")
    parser.add_argument("--out", type=Path, required=True, help="the file to write")
    for name, kind in setting_types(ConsolidatorSettings).items():
        option = f"--{name.replace('_', '-')}"
        parser.add_argument(option, type=partial(parse, name, kind=kind), default=getattr(ConsolidatorSettings, name))
    arguments = vars(parser.parse_args(given))
    model, source, out = (arguments.pop(name) for name in ("model", "lessons", "out"))
    try:
        train(model, source, out, ConsolidatorSettings(**arguments))
    except LCCError as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
