"""What a reader keeps of a story: right answers, agreement with the model that reads the text, and everything else.

A small model answers few questions rightly from the text itself. So two things are measured: whether an answer is an
accepted one, and how far the reader is from the full-text model over that model's own answers. Each answer counts alike
there, however long it is.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean, median
from typing import Any

import torch

from lcc.evaluation import METRICS, Example
from lcc.evaluation.stories import ANSWER_TOKENS, LEVELS, UNANSWERABLE, Story, unrelated_instructions
from lcc.inference.reader import Reader, Said

Row = dict[str, Any]
QUESTIONS, INSTRUCTIONS = "questions", "instructions"


@dataclass(frozen=True)
class Exam:
    """A story's questions and the unrelated instructions, with the full-text model's own answers to them.

    Attributes:
        examples: the story's questions, answerable or not, and instructions that have nothing to do with it.
        taught: what the full-text model says to them. It is asked once, before any method changes the model.
    """

    examples: dict[str, list[Example]]
    taught: dict[str, Said]

    @classmethod
    def of(cls, story: Story, full_text: Reader) -> Exam:
        """The exam of a story."""
        examples = {QUESTIONS: story.examples, INSTRUCTIONS: unrelated_instructions()}
        taught = {
            name: full_text.say([one.question for one in asked], ANSWER_TOKENS) for name, asked in examples.items()
        }
        return cls(examples, taught)

    def measure(self, reader: Reader) -> Row:
        """Scores in [0, 1]; KL in nats a token.

        Returns:
            ``right`` by level and over all levels that the text answers, and ``f1`` of these; ``admitted``: the share
            of unanswerable questions where the answer says so; ``instructions``: right answers to them; ``kl`` and
            ``same``, the share of equal first choices, over the full text's answers to the questions, and ``…_kl`` and
            ``…_same`` over those to the instructions. ``kl_median`` over the questions, ``kl_by_question`` and
            ``right_by_question`` in their order, and ``answers``.
        """
        questions, instructions = self.examples[QUESTIONS], self.examples[INSTRUCTIONS]
        answers, said = _answers(reader, questions), _answers(reader, instructions)
        told = [place for place, example in enumerate(questions) if _level(example) != UNANSWERABLE]
        right, f1 = (_scores(name, answers, questions) for name in ("contains", "f1"))
        row: Row = {
            f"right_{level}": fmean(right[place] for place in told if _level(questions[place]) == level)
            for level in LEVELS
            if level != UNANSWERABLE
        }
        row |= {"right": fmean(right[place] for place in told), "f1": fmean(f1[place] for place in told)}
        row["admitted"] = fmean(score for place, score in enumerate(right) if place not in told)
        row["instructions"] = fmean(_scores("contains", said, instructions))
        for prefix, name in (("", QUESTIONS), ("instructions_", INSTRUCTIONS)):
            kl, same = _agreement(self.taught[name], reader)
            row |= {f"{prefix}kl": fmean(kl), f"{prefix}same": fmean(same)}
            if name == QUESTIONS:
                row |= {"kl_median": median(kl), "kl_by_question": [round(one, 5) for one in kl]}
        return row | {"right_by_question": [right[place] for place in told], "answers": answers}


def _agreement(taught: Said, reader: Reader) -> tuple[list[float], list[float]]:
    """Of each response, the mean KL to ``reader`` in nats a token, and the share of equal first choices."""
    read = taught.again(reader)
    same = torch.tensor(read.choices) == torch.tensor(taught.choices)
    lengths = [len(response) for response in taught.responses]
    kl, alike = (values.double().split(lengths) for values in (taught.divergence(read), same))
    return [part.mean().item() for part in kl], [part.mean().item() for part in alike]


def _answers(reader: Reader, examples: Sequence[Example]) -> list[str]:
    said = reader.say([example.question for example in examples], ANSWER_TOKENS)
    return [reader.chat.tokenizer.decode(ids, skip_special_tokens=True).strip() for ids in said.responses]


def _level(example: Example) -> str:
    return example.task.rpartition(" ")[2]


def _scores(metric: str, answers: Sequence[str], examples: Sequence[Example]) -> list[float]:
    return [METRICS[metric](answer, example.answers) for answer, example in zip(answers, examples, strict=True)]
