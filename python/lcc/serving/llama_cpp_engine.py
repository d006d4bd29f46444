"""A llama.cpp server as the engine: memories are restored into its slots, and its answers checked to have read them."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from contextlib import aclosing, asynccontextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx2 as httpx
import torch
from tokenizers.decoders import DecodeStream
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ..errors import InputError, LCCError, MemoryFileError
from ..memory.attachment import attach
from ..memory.llama_cpp import StateOptions, parse_state, placeholders, state_of
from ..modeling.generation import end_tokens
from ..text.chat_format import ChatFormat
from ..utils.hashing import json_digest
from ..utils.outputs import write_bytes
from .api_errors import ApiError, too_many
from .catalog import Catalog, Entry
from .engine import Piece, Sampling, backend_of
from .front import Asked

PREFIX, PROBE = "lcc-", "lcc-probe.ggsq"
# Seconds until the server accepts a request; an answer may take any time.
CONNECT = 10


@dataclass
class Slot:
    """A slot of the server.

    Attributes:
        memory: digests of what was restored into it; None: not known.
    """

    number: int
    memory: tuple[str, ...] | None = None


@dataclass(frozen=True)
class Server:
    """What a llama.cpp server says of itself.

    Attributes:
        state: ``state_version`` and ``streams`` of what it saves.
        slots: their numbers.
        window: positions of a slot.
    """

    state: dict[str, int]
    slots: tuple[int, ...]
    window: int


def look_at(url: str, states: Path) -> Server:
    """Ask a server for what must be known of it.

    Raises:
        InputError: it cannot be reached, or does not save its slots in the folder ``states``.
    """
    if not states.is_dir():
        raise InputError(f"there is no folder {states}: name the one of the server's --slot-save-path")
    try:
        with httpx.Client(base_url=url, timeout=CONNECT) as http:
            slots = http.get("/slots").json()
            saved = http.post("/slots/0", params={"action": "save"}, json={"filename": PROBE})
    except (httpx.HTTPError, ValueError) as error:
        raise InputError(f"there is no llama.cpp server at {url}: {error!r}") from error
    if saved.status_code != 200 or not isinstance(slots, list):
        raise InputError(f"the server at {url} saves no slots: start it with --slots --slot-save-path {states}/")
    try:
        state = parse_state(states / PROBE)
    except MemoryFileError as error:
        raise InputError(f"the server at {url} saves its slots elsewhere than in {states}") from error
    (states / PROBE).unlink(missing_ok=True)
    return Server(state, tuple(slot["id"] for slot in slots), min(slot["n_ctx"] for slot in slots))


class LlamaCppEngine:
    """Answers by a server that nobody else asks.

    Args:
        model: what the server's GGUF file holds; it makes the states.
        url: of the server.
        states: the folder that its ``--slot-save-path`` names.
        options: of the states that it takes.
        slots: their numbers; see ``look_at``.
        waiting: requests that may wait for a slot.

    Raises:
        InputError: the tokenizer cannot tell its tokens one by one.
    """

    name = "llama-cpp"

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        catalog: Catalog,
        url: str,
        states: Path,
        options: StateOptions,
        slots: Sequence[int],
        waiting: int,
    ):
        self.model, self.catalog, self.url, self.states = model, catalog, url, states
        self._options = options
        self._backend = backend_of(tokenizer)
        self._ends = end_tokens(model, ChatFormat.of(tokenizer).end)
        self._http = httpx.AsyncClient(base_url=url, timeout=httpx.Timeout(None, connect=CONNECT))
        self._most_waiting, self._waiting, self._running = waiting, 0, 0
        # The least recently used first.
        self._slots, self._count = [Slot(number) for number in slots], len(slots)
        self._free = asyncio.Condition()
        self._reached = True

    async def answer(self, asked: Asked, sampling: Sampling) -> AsyncGenerator[Piece, None]:
        """See ``Engine.answer``."""
        digests = tuple(entry.digest for entry in asked.entries)
        async with self._slot(digests) as slot:
            prompt = await self._prepared(slot, asked, digests)
            body = _body(prompt, slot.number, sampling)
            for attempt in (1, 2):
                async with aclosing(self._events(body)) as events:
                    first = await anext(events)
                    if first["timings"]["cache_n"] >= asked.past:
                        async for piece in self._pieces(first, events):
                            yield piece
                        return
                # The server has forgotten the slot, as after a restart of its own.
                slot.memory = None
                if attempt == 1:
                    await self._prepared(slot, asked, digests)
            raise ApiError(503, "llama.cpp did not read the memory: ask again", "memory", retry_after=1)

    def stats(self) -> dict[str, float]:
        """Answers that run and wait, and slots."""
        return {"running": self._running, "waiting": self._waiting, "slots": self._count}

    def healthy(self) -> bool:
        """Whether the server answered the last time that it was asked."""
        return self._reached

    async def close(self) -> None:
        """See ``Engine.close``."""
        await self._http.aclose()

    def about(self) -> dict[str, Any]:
        """Where the server is, and what its caches hold."""
        return {"url": self.url, "kv": self._options.kv, "flash_attn": self._options.flash_attn}

    @asynccontextmanager
    async def _slot(self, digests: tuple[str, ...]) -> AsyncIterator[Slot]:
        """A slot for one answer: one that holds its memory already, or the one that was used least recently."""
        if self._waiting >= self._most_waiting:
            raise too_many(self._waiting)
        self._waiting += 1
        try:
            async with self._free:
                await self._free.wait_for(lambda: self._slots)
                at = next((at for at, slot in enumerate(self._slots) if slot.memory == digests), 0)
                slot = self._slots.pop(at)
        finally:
            self._waiting -= 1
        self._running += 1
        try:
            yield slot
        finally:
            self._running -= 1
            async with self._free:
                self._slots.append(slot)
                self._free.notify()

    async def _prepared(self, slot: Slot, asked: Asked, digests: tuple[str, ...]) -> list[int]:
        """Restore the memory into a slot that holds another one; returns the prompt.

        Raises:
            ApiError: 503: the memory cannot be loaded, or the server does not take it.
        """
        if not asked.entries:
            slot.memory = None
            return list(asked.ids)
        path = await asyncio.to_thread(self._state, asked.entries, digests)
        if slot.memory != digests:
            slot.memory = None
            response = await self._post(f"/slots/{slot.number}", {"filename": path.name}, {"action": "restore"})
            if response.status_code != 200:
                said = _message(response)
                raise ApiError(503, f"llama.cpp takes no memory: {said}; --kv and --flash-attn must be the server's",
                               "memory", retry_after=5)  # fmt: skip
            slot.memory = digests
        return [*await asyncio.to_thread(placeholders, path), *asked.ids]

    @torch.no_grad()
    def _state(self, entries: tuple[Entry, ...], digests: tuple[str, ...]) -> Path:
        """The file of a memory's state; it is written when it is first wanted."""
        name = "-".join(digest[:16] for digest in digests)
        kind = json_digest([str(self.model.dtype), vars(self._options)])[:8]
        path = self.states / f"{PREFIX}{name}-{kind}.ggsq"
        if not path.exists():
            memories = [self.catalog.memory(entry) for entry in entries]
            try:
                kv = attach(self.model, memories, verify=False).kv()
                write_bytes(path, state_of(self.model, kv, self._options))
            except LCCError as error:
                raise ApiError(503, f"a memory has no state: {error}", "memory", retry_after=5) from error
        return path

    async def _post(self, path: str, body: dict[str, Any], params: dict[str, str]) -> httpx.Response:
        try:
            response = await self._http.post(path, json=body, params=params)
        except httpx.HTTPError as error:
            raise self._unreachable(error) from error
        self._reached = True
        return response

    async def _events(self, body: dict[str, Any]) -> AsyncGenerator[dict[str, Any], None]:
        """The events of an answer.

        Raises:
            ApiError: 503: the server does not answer.
        """
        try:
            async with self._http.stream("POST", "/completion", json=body) as response:
                if response.status_code != 200:
                    await response.aread()
                    raise ApiError(503, f"llama.cpp does not answer: {_message(response)}", retry_after=5)
                self._reached = True
                async for line in response.aiter_lines():
                    if line.startswith("data: {"):
                        event = json.loads(line[6:])
                        if "error" in event:
                            raise ApiError(503, f"llama.cpp does not answer: {event['error'].get('message')}")
                        yield event
        except httpx.HTTPError as error:
            raise self._unreachable(error) from error

    async def _pieces(
        self, first: dict[str, Any], events: AsyncGenerator[dict[str, Any], None]
    ) -> AsyncGenerator[Piece, None]:
        stream = DecodeStream(skip_special_tokens=True)
        event = first
        while True:
            for token in event.get("tokens", ()):
                if token in self._ends:
                    yield Piece("", 1, "stop")
                    return
                yield Piece(stream.step(self._backend, token) or "", 1)
            if event.get("stop"):
                yield Piece("", 0, "length" if event.get("stop_type") == "limit" else "stop")
                return
            event = await anext(events)

    def _unreachable(self, error: Exception) -> ApiError:
        self._reached = False
        return ApiError(503, f"the llama.cpp server at {self.url} does not answer ({error!r})", retry_after=5)


def _body(prompt: list[int], slot: int, sampling: Sampling) -> dict[str, Any]:
    drawn: dict[str, Any] = {"temperature": 0.0, "samplers": ["top_k"], "top_k": 1}
    if sampling.temperature:
        drawn = {
            "temperature": sampling.temperature,
            "samplers": ["temperature", "top_k", "top_p"],
            "top_k": sampling.top_k,
            "top_p": sampling.top_p,
            "seed": -1 if sampling.seed is None else sampling.seed % 2**31,
        }
    return drawn | {
        "prompt": prompt,
        "id_slot": slot,
        "n_predict": sampling.max_new_tokens,
        "cache_prompt": True,
        "stream": True,
        "return_tokens": True,
        "timings_per_token": True,
    }


def _message(response: httpx.Response) -> str:
    with suppress(ValueError, KeyError, TypeError):
        return str(response.json()["error"]["message"])
    return f"status {response.status_code}"
