"""Chats that name no memory, answered by a bank: it chooses the memory, or none."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

from fastapi.responses import JSONResponse, Response, StreamingResponse

from ..bank.opening import OpenBank
from ..bank.session import BankAnswer
from ..errors import InputError, MemoryFileError
from .api_errors import ApiError, bad_request
from .api_models import DEFAULT_NEW_TOKENS, ChatRequest
from .openai_format import DONE, Choice, Shape, event_line
from .prompts import turns_of


class BankAnswers:
    """A bank as a part of a server."""

    def __init__(self, bank: OpenBank):
        self.bank = bank

    async def respond(self, chat: ChatRequest, body: dict[str, Any], base: str) -> Response:
        """A response that says where its answer came from; a stream of it has the answer in one event.

        Raises:
            ApiError: 400: a chat of several turns, or what a bank does not know; 503: its memories cannot be read.
        """
        system, turns = turns_of(body["messages"])
        if len(turns) > 1 or system is not None:
            raise bad_request(
                "a bank answers single questions: to go on, name the memory that the answer came from", "messages"
            )
        sampling = chat.sampling(0, DEFAULT_NEW_TOKENS)
        if sampling.temperature or (chat.n or 1) > 1 or chat.stops():
            raise bad_request("a bank answers greedily, once, and to the end: leave the sampling out", "temperature")
        answer = await asyncio.to_thread(self._ask, turns[0], sampling.max_new_tokens)
        source = {"source": answer.source, "keys": list(answer.keys), "reason": answer.reason}
        shape = Shape(True, chat.model or base, {"bank": source})
        choice = Choice(0, answer.text, finish="stop")
        if chat.stream:
            return StreamingResponse(_events(shape, choice), media_type="text/event-stream")
        tokens = {"prompt_tokens": 0, "completion_tokens": 0, "total_tokens": 0}
        return JSONResponse(shape.whole([choice], tokens))

    def _ask(self, question: str, max_new_tokens: int) -> BankAnswer:
        try:
            return next(iter(self.bank.ask([question], max_new_tokens)))
        except InputError as error:
            raise bad_request(str(error), "messages") from error
        except MemoryFileError as error:
            raise ApiError(503, str(error), "memory", retry_after=1) from error


async def _events(shape: Shape, choice: Choice) -> AsyncIterator[str]:
    event = shape.event([shape.delta(choice, choice.text, first=True, last=True)], **shape.memories)
    yield event_line(event) + DONE
