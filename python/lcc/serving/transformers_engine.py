"""The engine of ``lcc serve``: plain transformers, all requests in one batch whatever their memories."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from typing import Any

import torch
from tokenizers.decoders import DecodeStream
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ..errors import LCCError
from ..inference.attached import attached
from ..inference.pool import AttachedPool
from ..modeling.generation import end_tokens
from ..modeling.kv import KV, no_tokens
from ..text.chat_format import ChatFormat
from .api_errors import ApiError
from .batching import Batch, Event, Job
from .catalog import Catalog, Entry
from .drawing import Draws
from .engine import Piece, Sampling, backend_of
from .front import Asked


class TransformersEngine:
    """Answers from memories that it attaches when they are first asked for.

    Args:
        rows: answers that are written at once, at most.
        waiting: requests that may wait for a place.
        pool: bytes of attached memories that are kept.

    Raises:
        InputError: the tokenizer cannot tell its tokens one by one.
    """

    name = "transformers"

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        catalog: Catalog,
        rows: int,
        waiting: int,
        pool: int,
    ):
        self.model, self.catalog = model, catalog
        self._backend = backend_of(tokenizer)
        self._pool = AttachedPool[KV](pool)
        self._plain = no_tokens(model)
        self._batch = Batch(model, end_tokens(model, ChatFormat.of(tokenizer).end), rows, waiting)

    async def answer(self, asked: Asked, sampling: Sampling) -> AsyncGenerator[Piece, None]:
        """See ``Engine.answer``."""
        loop, events = asyncio.get_running_loop(), asyncio.Queue[Event]()
        job = Job(
            tuple(entry.digest for entry in asked.entries),
            lambda: self._prefix(asked.entries),
            asked.ids,
            sampling.max_new_tokens,
            Draws(sampling),
            lambda event: _deliver(loop, events, event),
        )
        self._batch.submit(job)
        stream = DecodeStream(skip_special_tokens=True)
        try:
            while True:
                event = await events.get()
                if isinstance(event, Exception):
                    raise event
                if isinstance(event, str):
                    yield Piece("", int(event == "stop"), event)
                    return
                yield Piece(stream.step(self._backend, event) or "", 1)
        finally:
            job.cancelled = True

    def stats(self) -> dict[str, float]:
        """Answers that run and wait, and bytes of attached memories."""
        return {
            "running": self._batch.running,
            "waiting": self._batch.waiting,
            "attached_bytes": self._pool.nbytes,
        }

    def healthy(self) -> bool:
        """Whether the batch's thread runs."""
        return self._batch.alive

    async def close(self) -> None:
        """See ``Engine.close``."""
        await asyncio.to_thread(self._batch.close)

    def about(self) -> dict[str, Any]:
        """The model's dtype and device."""
        return {"dtype": str(self.model.dtype).removeprefix("torch."), "device": str(self.model.device)}

    @torch.no_grad()
    def _prefix(self, entries: tuple[Entry, ...]) -> KV:
        """What a question is read behind.

        Raises:
            ApiError: 503: a memory cannot be loaded.
        """
        if not entries:
            return self._plain
        return self._pool.get(tuple(entry.digest for entry in entries), lambda: self._attach(entries))

    def _attach(self, entries: tuple[Entry, ...]) -> KV:
        memories = [self.catalog.memory(entry) for entry in entries]
        try:
            with attached(self.model, memories, verify=False) as there:
                return there.visible
        except LCCError as error:
            raise ApiError(503, f"a memory cannot be attached: {error}", "memory", retry_after=1) from error


def _deliver(loop: asyncio.AbstractEventLoop, events: asyncio.Queue[Event], event: Event) -> None:
    """Hand an event to the loop; one that is closed wants none."""
    if not loop.is_closed():
        loop.call_soon_threadsafe(events.put_nowait, event)
