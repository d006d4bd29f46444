"""The whole story on an unseen document: compile it, throw the text away, and ask."""

from __future__ import annotations

import random
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ..evaluation.methods import last_questions
from ..inference.asking import ask, ask_text
from ..inference.attached import attached
from ..inference.reader import Reader, prefill_chat
from ..memory.memory import Memory
from ..modeling.generation import generate_after
from ..modeling.shared_cache import SharedCache
from ..pipeline.compile import compile
from ..synthetic.exam import general_exam, score
from ..synthetic.people import Document, Question, document
from ..synthetic.seeds import DEMO
from ..text.chat_format import ChatFormat
from ..text.queries import load_queries
from ..utils.progress import Reporter

PEOPLE, ATTRIBUTES = 5, 7
GENERAL_QUERIES = 60
TIMINGS = 7


@dataclass(frozen=True)
class Row:
    """One question and what each reader answers."""

    question: str
    expected: str
    full_text: str
    memory: str
    no_text: str
    asked_by_compile: bool


@dataclass(frozen=True)
class DemoReport:
    """What the demo shows; scores are shares of exact answers, times are seconds, medians of several."""

    seed: int
    ratio: float
    text_tokens: int
    buffer_tokens: int
    scores: dict[str, float | None]
    general: dict[str, float]
    kv_bytes: dict[str, int]
    time_to_first_token: dict[str, float]
    compile_seconds: float
    steps: int
    held_out_kl: float | None
    self_questions: int
    unseen_wordings: int
    rows: list[Row]

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        return asdict(self)


def demo_document(seed: int) -> Document:
    """The unseen document of a seed: 5 people with 7 facts each."""
    return document(random.Random(DEMO + seed), PEOPLE, ATTRIBUTES)


def run_demo(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    seed: int,
    ratio: float,
    progress: bool | Reporter = True,
    **settings: Any,
) -> DemoReport:
    """Compile an unseen document, save and load the memory, and score it against the full text and nothing.

    Args:
        **settings: passed on to ``lcc.compile``.
    """
    doc = demo_document(seed)
    memory, seconds = _compile(model, tokenizer, doc.text, progress, {"ratio": ratio, "seed": seed, **settings})
    questions = doc.questions()
    texts = [question.text for question in questions]
    answers = {
        "full_text": ask_text(model, tokenizer, doc.text, texts),
        "memory": ask(model, tokenizer, memory, texts, max_new_tokens=16),
        "no_text": ask_text(model, tokenizer, "", texts),
    }
    asked = last_questions(memory.questions)
    rows = [
        Row(q.text, q.answer, full, mem, none, q.text in asked)
        for q, full, mem, none in zip(questions, *answers.values(), strict=True)
    ]
    scores: dict[str, float | None] = {name: score(given, questions) for name, given in answers.items()}
    unseen = [(row.memory, q) for row, q in zip(rows, questions, strict=True) if not row.asked_by_compile]
    scores["memory_unseen_wording"] = score(*zip(*unseen, strict=True)) if unseen else None
    return DemoReport(
        seed=seed,
        ratio=ratio,
        text_tokens=memory.source_tokens,
        buffer_tokens=memory.buffer_tokens,
        scores=scores,
        general=_general_scores(model, tokenizer, doc.text, memory, seed),
        kv_bytes=_kv_bytes(model, tokenizer, doc.text, memory),
        time_to_first_token=_first_token_seconds(model, tokenizer, doc.text, memory, questions[0]),
        compile_seconds=seconds,
        steps=int(memory.curve[-1]["step"]) if memory.curve else 0,
        held_out_kl=memory.best_point["held_out_kl"] if memory.best_point else None,
        self_questions=len(asked),
        unseen_wordings=len(unseen),
        rows=rows,
    )


def _compile(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    text: str,
    progress: bool | Reporter,
    settings: dict[str, Any],
) -> tuple[Memory, float]:
    """The memory after a trip through its file, and the seconds that compiling took."""
    began = time.monotonic()
    memory = compile(model, tokenizer, text, progress=progress, certify=False, **settings)
    seconds = time.monotonic() - began
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "demo.lcc.safetensors"
        memory.save(path)
        return Memory.load(path), seconds


def _general_scores(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, text: str, memory: Memory, seed: int
) -> dict[str, float]:
    """Exact answers to general queries that compile never saw, with the text and with the memory in context."""
    exam = general_exam(random.Random(DEMO + seed), GENERAL_QUERIES, load_queries())
    texts = [query.text for query in exam]
    return {
        "full_text": score(ask_text(model, tokenizer, text, texts), exam),
        "memory": score(ask(model, tokenizer, memory, texts, max_new_tokens=16), exam),
    }


def _kv_bytes(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, text: str, memory: Memory) -> dict[str, int]:
    """Bytes of the caches that a query finds, prefix included in both."""
    chat = ChatFormat.of(tokenizer)
    readers = {"full_text": Reader.of_text(model, chat, text), "memory": Reader.of_memory(model, chat, memory)}
    return {name: reader.visible.nbytes for name, reader in readers.items()}


def _first_token_seconds(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, text: str, memory: Memory, question: Question
) -> dict[str, float]:
    """Median seconds from a cold start to the first token of the answer."""
    chat = ChatFormat.of(tokenizer)

    def with_text() -> None:
        query = chat.query_ids(question.text)
        generate_after(model, SharedCache(prefill_chat(model, chat, text)), [query], chat.end, max_new_tokens=1)

    def with_memory() -> None:
        with attached(model, memory, verify=False) as before:
            query = chat.query_ids(question.text, before.after_text)
            generate_after(before.model, before.cache, [query], chat.end, max_new_tokens=1)

    return {"full_text": _median_seconds(with_text), "memory": _median_seconds(with_memory)}


def _median_seconds(run: Callable[[], None]) -> float:
    times = []
    for _ in range(TIMINGS):
        began = time.perf_counter()
        run()
        times.append(time.perf_counter() - began)
    return statistics.median(times)
