"""Train what ``flashmem`` writes with: ``python -m lcc.compilers.flashmem.train --model M --lessons L --out FILE``.

Lessons are a JSONL file of rows ``{"context": ..., "question": ..., "answer": ...}``, or ``synthetic``: texts of the
package's own generators, for the embedded model. Run it again after a kill: it goes on where it stopped. To use the
file: ``lcc compile TEXT --compiler flashmem --set learned=FILE``.
"""

from __future__ import annotations

from ...text.chat_format import ChatFormat
from ...utils.jsonl import load_rows
from ..learning_command import Job, print_point, run_command
from .lessons import FileLessons, Lessons, SyntheticLessons
from .training import ConsolidatorSettings, consolidator_training

SYNTHETIC = "synthetic"


def train(job: Job) -> float:
    """Train and leave a file; prints a JSON line at each measurement.

    Returns:
        The mean held-out KL of what is in the file, in nats a token.

    Raises:
        InputError: the lessons cannot be used.
        DivergedError, MemoryFileError, MismatchError: as ``Learning.run``.
    """
    tokenizer, source, settings = job.tokenizer, job.lessons, job.settings
    lessons: Lessons
    if source == SYNTHETIC:
        lessons = SyntheticLessons(tokenizer, settings.seed, settings.queries)
    else:
        lessons = FileLessons(tokenizer, load_rows(source), source, settings.seed, settings.queries)
    prefix_ids = ChatFormat.of(tokenizer).prefix_ids
    with consolidator_training(job.model, prefix_ids, lessons, settings, job.out) as training:
        return training.run(print_point)


def main(given: list[str] | None = None) -> None:
    """Command line."""
    lessons = f"JSONL, a dataset's name, or {SYNTHETIC}"
    run_command("python -m lcc.compilers.flashmem.train", __doc__, lessons, ConsolidatorSettings, train, given)


if __name__ == "__main__":
    main()
