"""From an engine's pieces to a response, whole or streamed."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any

from .api_errors import ApiError
from .engine import Engine, Piece, Sampling
from .front import Asked
from .metrics import Metrics
from .openai_format import DONE, Choice, Shape, event_line, usage_of
from .stops import Stops

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Order:
    """What a response is made of.

    Attributes:
        asked: a prompt each; every prompt gets as many choices as there are ways to draw one.
        sampling: of each choice of a prompt.
        with_usage: a stream ends with its usage.
    """

    shape: Shape
    asked: tuple[Asked, ...]
    sampling: tuple[Sampling, ...]
    stops: tuple[str, ...] = ()
    with_usage: bool = False

    def choices(self) -> list[tuple[Choice, Asked, Sampling]]:
        """All choices, in the order in which the response has them."""
        pairs = [(asked, sampling) for asked in self.asked for sampling in self.sampling]
        return [(Choice(index), asked, sampling) for index, (asked, sampling) in enumerate(pairs)]

    def usage(self, choices: Sequence[Choice]) -> dict[str, Any]:
        """Tokens; each prompt counts once."""
        prompts = [asked.past + len(asked.ids) for asked in self.asked]
        return usage_of(prompts, [asked.past for asked in self.asked], choices)


class Answering:
    """Answers orders by an engine."""

    def __init__(self, engine: Engine, metrics: Metrics):
        self.engine, self.metrics = engine, metrics

    async def whole(self, order: Order) -> dict[str, Any]:
        """A response that is no stream.

        Raises:
            ApiError: as ``Engine.answer``.
        """
        parts = order.choices()
        tasks = [asyncio.ensure_future(self._write(choice, asked, how, order)) for choice, asked, how in parts]
        try:
            await asyncio.gather(*tasks)
        finally:
            for task in tasks:
                task.cancel()
        choices = [choice for choice, _, _ in parts]
        return order.shape.whole(choices, order.usage(choices))

    async def stream(self, order: Order) -> AsyncGenerator[str, None]:
        """The first events of a stream, once there is a first piece, and then all others as they come.

        Raises:
            ApiError: as ``Engine.answer``, before the first event.
        """
        parts = order.choices()
        ready: asyncio.Queue[tuple[Choice, str | BaseException | None]] = asyncio.Queue()
        tasks = [asyncio.ensure_future(self._queue(c, asked, how, order, ready)) for c, asked, how in parts]
        try:
            said: set[int] = set()
            open_choices = len(parts)
            while open_choices:
                choice, text = await ready.get()
                if isinstance(text, BaseException):
                    raise text
                first, last = choice.index not in said, text is None
                open_choices -= last
                if text or first or last:
                    delta = order.shape.delta(choice, text or "", first, last)
                    memories = {} if said else order.shape.memories
                    said.add(choice.index)
                    yield event_line(order.shape.event([delta], **memories))
            if order.with_usage:
                choices = [choice for choice, _, _ in parts]
                yield event_line(order.shape.event([], usage=order.usage(choices)))
            yield DONE
        finally:
            for task in tasks:
                task.cancel()

    async def _write(self, choice: Choice, asked: Asked, sampling: Sampling, order: Order) -> None:
        async for text in self._texts(choice, asked, sampling, order.stops):
            choice.text += text

    async def _queue(
        self, choice: Choice, asked: Asked, sampling: Sampling, order: Order, ready: asyncio.Queue[Any]
    ) -> None:
        try:
            async for text in self._texts(choice, asked, sampling, order.stops):
                ready.put_nowait((choice, text))
            ready.put_nowait((choice, None))
        except Exception as error:
            ready.put_nowait((choice, error))

    async def _texts(
        self, choice: Choice, asked: Asked, sampling: Sampling, stop_texts: Sequence[str]
    ) -> AsyncGenerator[str, None]:
        """The texts of one choice; its finish and its tokens are set as they come."""
        stops, timed = Stops(stop_texts), self.metrics.answer()
        async with aclosing(_checked(self.engine.answer(asked, sampling))) as pieces:
            async for piece in pieces:
                choice.tokens += piece.tokens
                timed.piece(piece.tokens)
                text = stops.push(piece.text)
                if stops.stopped:
                    choice.finish = "stop"
                    yield text
                    return
                if piece.finish is not None:
                    choice.finish = piece.finish
                    text += stops.rest()
                yield text


async def _checked(pieces: AsyncGenerator[Piece, None]) -> AsyncGenerator[Piece, None]:
    """An engine's pieces; what is no ``ApiError`` becomes one, which tells nothing of the inside.

    Raises:
        ApiError: as ``Engine.answer``, or 500.
    """
    async with aclosing(pieces):
        try:
            async for piece in pieces:
                yield piece
        except ApiError:
            raise
        except Exception as error:
            log.error("the engine failed", exc_info=error)
            raise ApiError(500, f"the engine failed ({type(error).__name__}); the server's log says more") from error


def error_event(error: ApiError) -> str:
    """An error in the middle of a stream, where there is no status any more."""
    return event_line(error.body()) + DONE
