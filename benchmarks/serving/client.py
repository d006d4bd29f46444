"""Many clients at once, each with one request after the other, as streams."""

from __future__ import annotations

import asyncio
import json
import random
import time
from collections.abc import Sequence
from dataclasses import dataclass

import httpx2 as httpx

from benchmarks.serving.memories import Case
from lcc.text.prompts import SEPARATOR, SYSTEM_PROMPT


@dataclass(frozen=True)
class Reply:
    """What a request came to.

    Attributes:
        first, whole: seconds to the first text and to the end.
        status: of HTTP; 0 if there was none.
        right: it says what it should; of an error False.
    """

    first: float
    whole: float
    status: int
    right: bool
    text: str


async def load(
    url: str, model: str, cases: Sequence[Case], way: str, concurrency: int, seconds: float, new_tokens: int
) -> list[Reply]:
    """Ask for so many seconds; requests that are under way then may end.

    Args:
        way: ``memory``: name the memory; ``text``: send its text in the prompt.
    """
    end = time.perf_counter() + seconds
    limits = httpx.Limits(max_connections=concurrency, max_keepalive_connections=concurrency)
    async with httpx.AsyncClient(base_url=url, timeout=600, limits=limits) as client:

        async def one(number: int) -> list[Reply]:
            rng = random.Random(number)
            replies = [await _ask(client, model, rng.choice(cases), way, new_tokens)]
            while time.perf_counter() < end:
                replies.append(await _ask(client, model, rng.choice(cases), way, new_tokens))
            return replies

        return [reply for some in await asyncio.gather(*map(one, range(concurrency))) for reply in some]


def body(model: str, case: Case, way: str, new_tokens: int) -> dict[str, object]:
    """A request."""
    common = {"model": model, "temperature": 0, "max_tokens": new_tokens, "stream": True}
    if way == "memory":
        return common | {"memory": case.memory, "messages": [{"role": "user", "content": case.question}]}
    asked = case.text + SEPARATOR + case.question
    return common | {"messages": [{"role": "system", "content": SYSTEM_PROMPT}, {"role": "user", "content": asked}]}


async def _ask(client: httpx.AsyncClient, model: str, case: Case, way: str, new_tokens: int) -> Reply:
    began, first, text, status = time.perf_counter(), 0.0, "", 0
    try:
        async with client.stream("POST", "/v1/chat/completions", json=body(model, case, way, new_tokens)) as response:
            status = response.status_code
            async for line in response.aiter_lines():
                if not line.startswith("data: {"):
                    continue
                event = json.loads(line[6:])
                status = event["error"]["code"] if "error" in event else status
                said = "".join(choice["delta"].get("content") or "" for choice in event.get("choices", ()))
                first = first or (time.perf_counter() - began if said else 0.0)
                text += said
    except httpx.HTTPError as error:
        status, text = 0, repr(error)
    expected = case.from_memory if way == "memory" else case.from_text
    whole = time.perf_counter() - began
    return Reply(first or whole, whole, status, status == 200 and text.strip() == expected.strip(), text)
