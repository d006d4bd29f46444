"""What a memory answers where it is served, beside what it answers here."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import date
from urllib.request import urlopen

import openai
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ..errors import InputError, MismatchError
from ..inference.attached import attached
from ..inference.requests import Request, answer
from ..memory.memory import Memory
from ..memory.metadata import Changed, Served
from ..text.chat_format import ChatFormat, Query, turns_of
from ..utils.progress import Report
from ..utils.terminal import first_line

# Answers that differ and are written down, and requests at once.
WRITTEN, AT_ONCE = 16, 8
WORK = "served answers"


class ServedMemory:
    """A memory behind a server's OpenAI API.

    Args:
        url: of the API, ``/v1`` included.
        name: the memory's id there.
        digest: that the server must have it with.
    """

    def __init__(self, url: str, name: str, digest: str, api_key: str | None = None):
        self.url, self.name, self.digest = url, name, digest
        self._client = openai.OpenAI(base_url=url, api_key=api_key or "none", max_retries=2)

    def ask(self, query: Query, max_new_tokens: int) -> str:
        """The server's greedy answer.

        Raises:
            InputError: the server cannot be reached, or refuses.
            MismatchError: its memory is another one.
        """
        roles = ("user", "assistant")
        messages = [{"role": roles[at % 2], "content": turn} for at, turn in enumerate(turns_of(query))]
        try:
            reply = self._client.chat.completions.create(
                model="", messages=messages, temperature=0, max_tokens=max_new_tokens,  # type: ignore[arg-type]
                extra_body={"model": None, "memory": self.name},
            )  # fmt: skip
        except openai.OpenAIError as error:
            raise InputError(f"the server at {self.url} does not answer: {first_line(error)}") from error
        told = (reply.model_extra or {}).get("memory") or {}
        if told.get("digest") != self.digest:
            raise MismatchError(f"the server's memory {self.name} is another one than the file's: serve this file")
        return (reply.choices[0].message.content or "").strip()

    @property
    def version(self) -> str:
        """What the server says that it is; empty if it does not say."""
        try:
            with urlopen(self.url.removesuffix("/v1") + "/version", timeout=10) as reply:
                return str(json.load(reply)["version"])
        except (OSError, ValueError, KeyError, TypeError):
            return ""


def certify_served(
    memory: Memory,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    ask: Callable[[Query, int], str],
    engine: str,
    dtype: str,
    queries: Sequence[Query] = (),
    count: int = 32,
    max_new_tokens: int = 64,
    report: Report = lambda *_: None,
) -> Memory:
    """The memory with a row on a server: how many of its answers are those of ``lcc.ask``.

    A row of the same engine and dtype is replaced.

    Args:
        ask: the server's greedy answer to a query.
        engine, dtype: what the row says of the server.
        queries: that are asked; by default those that the memory asked itself.
        count: queries at most.

    Raises:
        InputError: there is nothing to ask.
        MismatchError: the memory belongs to another model.
    """
    memory.verify(model, tokenizer)
    asked = list(queries or memory.questions)[:count]
    if not asked:
        raise InputError("the memory did not ask itself anything: give --questions")
    chat = ChatFormat.of(tokenizer, date=memory.date)
    requests = [Request(turns_of(query), max_new_tokens=max_new_tokens) for query in asked]
    with attached(model, memory, verify=False) as before:
        here = [one.text for one in answer(before.model, chat, before.visible, requests, after_text=before.after_text)]
    there = _all(ask, asked, max_new_tokens, report)
    changed = [
        Changed(question=turns_of(query)[-1], lcc=one, served=other)
        for query, one, other in zip(asked, here, there, strict=True)
        if one != other
    ]
    row = Served(engine=engine, dtype=dtype, date=date.today().isoformat(), answers=len(asked),
                 same=len(asked) - len(changed), changed=changed[:WRITTEN])  # fmt: skip
    others = [kept for kept in memory.served if (kept["engine"], kept["dtype"]) != (engine, dtype)]
    return replace(memory, served=[*others, row])


def _all(ask: Callable[[Query, int], str], asked: Sequence[Query], tokens: int, report: Report) -> list[str]:
    with ThreadPoolExecutor(AT_ONCE) as pool:
        waiting = [pool.submit(ask, query, tokens) for query in asked]
        answers = []
        for number, one in enumerate(waiting):
            report(WORK, number, len(waiting))
            answers.append(one.result())
        report(WORK, len(waiting), len(waiting))
    return answers
