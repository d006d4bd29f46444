"""Ways of holding a context while questions are answered: the full text, nothing, and a memory."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from itertools import chain, groupby
from pathlib import Path
from typing import Any, Protocol

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ..compilers.lora import WriterFactory, lora_compiler
from ..errors import MismatchError
from ..memory.attachment import attach
from ..memory.memory import Memory
from ..modeling.fingerprint import fingerprint
from ..modeling.generation import answer_queries
from ..modeling.kv import KV
from ..modeling.window import check_window
from ..modeling.wrappers import plain_model
from ..pipeline.compile import compile
from ..pipeline.settings import CompileSettings
from ..synthetic.exam import read_chat
from ..text.chat_format import ChatFormat, Query, turns_of
from ..text.context import text_digest
from ..text.queries import load_queries
from ..training.checkpoint import remove_checkpoint
from ..utils.outputs import make_folder
from .examples import Example


@dataclass(frozen=True)
class Answers:
    """What a method makes of one context.

    Attributes:
        texts: one answer an example, in their order.
        kv_bytes: of the cache that a question finds, prefix included.
        seconds: spent on the context before the first question.
        trained_on: questions that the method asked itself while it prepared.
    """

    texts: list[str]
    kv_bytes: int
    seconds: float
    trained_on: frozenset[str] = frozenset()


class Method(Protocol):
    """Anything that answers questions about a context; it leaves the model as it found it."""

    @property
    def name(self) -> str:
        """How its results are labelled."""
        ...

    @property
    def identity(self) -> dict[str, Any]:
        """All that its answers depend on beside the examples, JSON-ready: only where it is equal are they reused."""
        ...

    def answer(self, context: str, examples: Sequence[Example]) -> Answers:
        """Answer ``examples``, which are all about (or beside) ``context``."""
        ...


class Reading:
    """A method whose questions see K and V alone.

    Raises:
        InputError: an adapter in the model is active.
    """

    def __init__(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, batch: int = 32):
        self.model, self.tokenizer, self.batch = plain_model(model), tokenizer, batch

    @cached_property
    def identity(self) -> dict[str, Any]:
        """The model's and the tokenizer's digests."""
        return dict(fingerprint(self.model, self.tokenizer))


class FullText(Reading):
    """The upper bound: the context is read before every question."""

    name = "full_text"

    def answer(self, context: str, examples: Sequence[Example]) -> Answers:
        """Answer with the whole context in sight.

        Raises:
            InputError: the context is beyond the model's window.
        """
        chat = ChatFormat.of(self.tokenizer)
        check_examples_fit(self.model, chat, len(chat.prefix_ids) + len(chat.ids(context)), examples)
        began = time.monotonic()
        visible = read_chat(self.model, chat, context)
        seconds = time.monotonic() - began
        texts = answer_after(self.model, chat, visible, examples, self.batch, bool(context))
        return Answers(texts, visible.nbytes, seconds)


class NoText(Reading):
    """The lower bound: the chat's prefix and the question."""

    name = "no_text"

    def answer(self, context: str, examples: Sequence[Example]) -> Answers:
        """Answer without the context."""
        chat = ChatFormat.of(self.tokenizer)
        visible = read_chat(self.model, chat, "")
        return Answers(answer_after(self.model, chat, visible, examples, self.batch, False), visible.nbytes, 0.0)


class CompiledMemory(Reading):
    """A memory of each context, compiled once and kept in ``folder``; a compilation that was killed goes on.

    Args:
        queries: context-agnostic queries, see ``lcc.load_queries``.
        progress: show compile's progress bars on stderr.
        name: how its results are labelled.
        writer: what writes the memories, see ``lcc.compile``.
        surrogates: where surrogate data is shared with other methods, see ``lcc.compile``.

    Raises:
        InputError: the queries cannot be used.
        MemoryFileError: the folder cannot be made.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        folder: Path,
        settings: CompileSettings,
        batch: int = 32,
        queries: str | Sequence[str] | None = None,
        progress: bool = False,
        name: str = "memory",
        writer: WriterFactory = lora_compiler,
        surrogates: Path | None = None,
    ):
        super().__init__(model, tokenizer, batch)
        self.folder, self.settings, self.progress = folder, settings, progress
        self.name, self.writer, self.surrogates = name, writer, surrogates
        self.queries = load_queries(queries)
        make_folder(folder)

    @cached_property
    def identity(self) -> dict[str, Any]:
        """The model's and tokenizer's digests, the settings and the queries."""
        asked = {"settings": asdict(self.settings), "queries": _digest(self.queries), "writer": self.writer.__name__}
        return fingerprint(self.model, self.tokenizer) | asked

    def answer(self, context: str, examples: Sequence[Example]) -> Answers:
        """Answer from the memory alone.

        Raises:
            InputError: the context cannot be compiled.
            MismatchError: the folder holds the memory of another text or model under this one's name.
        """
        memory = self.memory(context)
        visible = attach(self.model, memory).read()
        chat = ChatFormat.of(self.tokenizer, date=memory.date)
        texts = answer_after(self.model, chat, visible, examples, self.batch)
        seconds = memory.curve[-1]["seconds"] if memory.curve else 0.0
        return Answers(texts, visible.nbytes, seconds, last_questions(memory.questions))

    def memory(self, context: str) -> Memory:
        """The memory of ``context``: from the folder, or compiled now."""
        path = self.folder / f"{_digest([context, self.identity])[:24]}.lcc.safetensors"
        if not path.exists():
            checkpoint = path.with_suffix(".checkpoint")
            memory = compile(
                self.model,
                self.tokenizer,
                context,
                queries=self.queries,
                checkpoint=checkpoint,
                keep_checkpoint=True,
                surrogates=self.surrogates,
                progress=self.progress,
                writer=self.writer,
                certify=False,
                **asdict(self.settings),
            )
            memory.save(path)
            remove_checkpoint(checkpoint)
        memory = Memory.load(path)
        if memory.source_sha256 != text_digest(context):
            raise MismatchError(f"{path} is the memory of another text: delete it, and it is compiled again")
        return memory


def last_questions(queries: Iterable[Query]) -> frozenset[str]:
    """The questions in which queries end."""
    return frozenset(turns_of(query)[-1] for query in queries)


def answer_after(
    model: PreTrainedModel,
    chat: ChatFormat,
    visible: KV,
    examples: Sequence[Example],
    batch: int = 32,
    after_text: bool = True,
) -> list[str]:
    """Greedy answers to ``examples``, each after the rotated tokens of ``visible`` alone.

    Args:
        after_text: whether ``visible`` ends in a text (or what stands for one) rather than in the chat's prefix.

    Raises:
        InputError: text, question and answer together are beyond the model's window.
    """
    check_examples_fit(model, chat, len(visible), examples)
    queries = [query_ids(chat, example, after_text) for example in examples]
    texts: dict[int, str] = {}
    order = sorted(range(len(examples)), key=lambda index: examples[index].max_new_tokens)
    for tokens, indices in groupby(order, key=lambda index: examples[index].max_new_tokens):
        mine = list(indices)
        found = answer_queries(model, chat, visible, [queries[i] for i in mine], batch, max_new_tokens=tokens)
        texts.update(zip(mine, found, strict=True))
    return [texts[index] for index in range(len(examples))]


def query_ids(chat: ChatFormat, example: Example, after_text: bool = True) -> list[int]:
    """Token ids from the end of the text to the start of the answer: earlier turns, question and answer prefix."""
    turns = (*chain.from_iterable(example.history), example.question)
    return chat.query_ids(turns, after_text) + chat.ids(example.answer_prefix)


def check_examples_fit(model: PreTrainedModel, chat: ChatFormat, past: int, examples: Sequence[Example]) -> None:
    """Refuse what does not fit behind ``past`` tokens.

    Raises:
        InputError: question and answer are beyond the model's window.
    """
    needed = past + max(len(query_ids(chat, example)) + example.max_new_tokens for example in examples)
    remedy = "leave longer texts out, or take a model with a longer window"
    check_window(model, needed, "text, question and answer", remedy)


def _digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()
