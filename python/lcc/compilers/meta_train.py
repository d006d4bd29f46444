"""Learn what ``gradmem`` writes with: ``python -m lcc.compilers.meta_train --model M --lessons FILE.jsonl --out FILE``.

Lessons are rows ``{"context": ..., "question": ..., "answer": ...}``; without a question the context is to be
repeated. Run it again after a kill: it goes on where it stopped. To use the file:
``lcc compile TEXT --compiler gradmem --set learned=FILE``.
"""

from __future__ import annotations

import torch

from ..modeling.prefill import prefill
from ..text.chat_format import ChatFormat
from ..utils.jsonl import load_rows
from .gradmem.lessons import make_lessons, split
from .gradmem.meta import MetaSettings, meta_training
from .learning_command import Job, print_point, run_command


def train(job: Job) -> float:
    """Meta-train and leave a file; prints a JSON line at each measurement.

    Returns:
        The held-out loss of what is in the file, in nats an answer token.

    Raises:
        InputError: the lessons cannot be used.
        DivergedError, MemoryFileError, MismatchError: as ``Learning.run``.
    """
    chat, settings = ChatFormat.of(job.tokenizer), job.settings
    lessons = make_lessons(load_rows(job.lessons), chat, job.lessons)
    learned_from, held_out = split(lessons, settings.held_out, settings.seed)
    with torch.no_grad():
        prefix = prefill(job.model, chat.prefix_ids)
    with meta_training(job.model, prefix, learned_from, held_out, settings, job.out) as training:
        return training.run(print_point)


def main(given: list[str] | None = None) -> None:
    """Command line."""
    run_command("python -m lcc.compilers.meta_train", __doc__, "JSONL, or a dataset's name", MetaSettings, train, given)


if __name__ == "__main__":
    main()
