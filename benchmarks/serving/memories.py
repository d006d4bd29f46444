"""A folder of memories with questions whose answers are known: what ``lcc.ask`` and the full text say."""

from __future__ import annotations

import json
import random
from dataclasses import asdict, dataclass
from pathlib import Path

from transformers import PreTrainedModel, PreTrainedTokenizerBase

import lcc
from lcc.inference.asking import ask_text
from lcc.synthetic.people import Document, document, people_for

ATTRIBUTES = 6
QUESTIONS = "questions.json"


@dataclass(frozen=True)
class Case:
    """A question.

    Attributes:
        memory: the id of the memory.
        text: of the memory's document.
        from_memory, from_text: greedy answers.
    """

    memory: str
    text: str
    question: str
    from_memory: str
    from_text: str


def make_memories(
    folder: Path, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, count: int, words: int, ratio: float
) -> list[Case]:
    """Compile what is missing of ``count`` documents' memories, and ask each everything that its document answers."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / QUESTIONS
    if path.exists():
        return load_cases(folder)
    cases = []
    for number in range(count):
        drawn = document(random.Random(f"serving {number}"), people_for(words, ATTRIBUTES), ATTRIBUTES)
        file = folder / f"document-{number}.lcc.safetensors"
        if not file.exists():
            print(f"compiling {file.name}", flush=True)
            options = {"ratio": ratio, "recipe": "fast", "certify": False, "progress": False, "seed": number}
            lcc.compile(model, tokenizer, drawn.text, **options).save(file)
        cases += _cases(f"document-{number}", drawn, lcc.Memory.load(file), model, tokenizer)
    path.write_text(json.dumps([asdict(case) for case in cases]), "utf-8")
    return cases


def load_cases(folder: Path) -> list[Case]:
    """The questions that ``make_memories`` left."""
    return [Case(**row) for row in json.loads((folder / QUESTIONS).read_text("utf-8"))]


def _cases(
    name: str, drawn: Document, memory: lcc.Memory, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase
) -> list[Case]:
    asked = [question.text for question in drawn.questions()]
    answers = zip(asked, lcc.ask(model, tokenizer, memory, asked), ask_text(model, tokenizer, drawn.text, asked),
                  strict=True)  # fmt: skip
    return [Case(name, drawn.text, question, one, other) for question, one, other in answers]
