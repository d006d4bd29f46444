"""A folder of memories with questions whose answers are known: what ``lcc.ask`` and the full text say."""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel, PreTrainedTokenizerBase

import lcc
from lcc.evaluation.stories import NAMES, load_story
from lcc.inference.asking import ask_text
from lcc.synthetic.people import document, people_for
from lcc.utils.outputs import MEMORY_SUFFIX

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


@dataclass(frozen=True)
class Source:
    """A document, and what is asked about it."""

    name: str
    text: str
    questions: tuple[str, ...]


def invented(count: int, words: int) -> list[Source]:
    """Documents about people that nobody has seen, with all questions that they answer."""
    drawn = [document(random.Random(f"serving {n}"), people_for(words, ATTRIBUTES), ATTRIBUTES) for n in range(count)]
    return [
        Source(f"document-{number}", one.text, tuple(question.text for question in one.questions()))
        for number, one in enumerate(drawn)
    ]


def stories(count: int) -> list[Source]:
    """Texts of the suite ``stories``."""
    chosen = [load_story(name) for name in NAMES[:count]]
    return [Source(story.name, story.text, tuple(q["question"] for q in story.questions)) for story in chosen]


def make_memories(
    folder: Path,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    sources: Sequence[Source],
    new_tokens: int,
    **options: Any,
) -> list[Case]:
    """Compile what is missing of the sources' memories, and ask each every question.

    Args:
        options: of ``lcc.compile``.
    """
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / QUESTIONS
    if path.exists():
        return [Case(**row) for row in json.loads(path.read_text("utf-8"))]
    cases = []
    for source in sources:
        file = folder / f"{source.name}{MEMORY_SUFFIX}"
        if not file.exists():
            print(f"compiling {file.name}", flush=True)
            lcc.compile(model, tokenizer, source.text, certify=False, progress=False, **options).save(file)
        memory, asked = lcc.Memory.load(file), list(source.questions)
        here = lcc.ask(model, tokenizer, memory, asked, max_new_tokens=new_tokens)
        texts = ask_text(model, tokenizer, source.text, asked, max_new_tokens=new_tokens)
        cases += [Case(source.name, source.text, *row) for row in zip(asked, here, texts, strict=True)]
    path.write_text(json.dumps([asdict(case) for case in cases]), "utf-8")
    return cases
