"""Chat completions over the ``openai`` client: every wait ends, and nobody but the endpoint is told the key."""

from __future__ import annotations

import time
from collections.abc import Iterator
from concurrent.futures import TimeoutError as NotDoneError
from typing import Any

import httpx2
import openai

from ..errors import InputError
from ..utils.terminal import first_line
from .endpoint import RetryError, in_background, is_loopback, without

RETRIED = {408, 409, 429, 500, 502, 503, 504}
# Bytes of the longest reply that is read, characters of a refusal that are quoted.
LONGEST_REPLY, QUOTED = 1 << 20, 300


def completion(url: str, key: str | None, request: dict[str, Any], seconds: float) -> bytes:
    """The body of the reply to a chat completion, within ``seconds``; no redirect is followed.

    Args:
        url: the part before ``/chat/completions``, as ``check_address`` takes it.
        key: sent as a bearer token; without it no ``Authorization`` is sent.
        request: what is asked, such as ``model`` and ``messages``.

    Raises:
        RetryError: no reply in time, no connection, or an endpoint that is busy.
        InputError: the endpoint cannot be asked or refuses, or its reply is too long.
    """
    try:
        client = _client(url, key, seconds)
    except (ImportError, ValueError, httpx2.InvalidURL) as error:
        raise InputError(f"the judge at {url} cannot be asked: {first_line(error)}") from None
    waiting = in_background(lambda: _exchange(client, url, key, request))
    try:
        return waiting.result(seconds)
    except NotDoneError:
        raise RetryError(f"no reply in {seconds:.0f} s") from None


def _client(url: str, key: str | None, seconds: float) -> openai.OpenAI:
    """A client for one request, which sends no credentials but ``key``.

    Raises:
        ImportError, ValueError, httpx2.InvalidURL: the address or a proxy cannot be used.
    """
    deadline = time.monotonic() + seconds

    def set_credentials(request: httpx2.Request) -> None:
        # The client sends its own key, and what it finds in OPENAI_ORG_ID, OPENAI_CUSTOM_HEADERS and the like.
        for name in ("Authorization", "OpenAI-Organization", "OpenAI-Project"):
            request.headers.pop(name, None)
        request.headers["Accept-Encoding"] = "identity"
        if key:
            request.headers["Authorization"] = f"Bearer {key}"

    def limit(response: httpx2.Response) -> None:
        # The body alone is used. A header could name an encoding that inflates it, or put an echoed key into a log.
        response.headers = httpx2.Headers()
        response.stream = _LimitedStream(response.stream, deadline)

    transport = httpx2.Client(
        follow_redirects=False,  # a redirect would carry the key to another host
        trust_env=not is_loopback(url),  # a proxy would see what is meant for this machine alone
        timeout=seconds,
        event_hooks={"request": [set_credentials], "response": [limit]},
    )
    return openai.OpenAI(api_key="replaced", base_url=url, max_retries=0, timeout=seconds, http_client=transport)


def _exchange(client: openai.OpenAI, url: str, key: str | None, request: dict[str, Any]) -> bytes:
    try:
        with client:
            return client.chat.completions.with_raw_response.create(**request).content
    except openai.APIStatusError as error:
        said = without(key, error.response.content.decode(errors="replace"))[:QUOTED]
        if error.status_code in RETRIED:
            raise RetryError(f"HTTP {error.status_code}: {said}") from None
        raise InputError(f"the judge at {url} refuses: HTTP {error.status_code}: {said}") from None
    except openai.APIConnectionError as error:
        cause = error.__cause__
        # Other errors may quote the reply.
        reason = first_line(cause) if isinstance(cause, httpx2.ConnectError) else type(cause or error).__name__
        raise RetryError(f"no connection ({reason})") from None


class _LimitedStream(httpx2.SyncByteStream):
    """A reply's body, up to ``LONGEST_REPLY`` bytes and a time of ``time.monotonic``."""

    def __init__(self, stream: Any, deadline: float) -> None:
        self._stream, self._deadline = stream, deadline

    def __iter__(self) -> Iterator[bytes]:
        length = 0
        for piece in self._stream:
            length += len(piece)
            if length > LONGEST_REPLY:
                raise InputError(f"the judge's reply is longer than {LONGEST_REPLY} bytes: name another endpoint")
            if time.monotonic() > self._deadline:
                raise RetryError("no reply in time: it does not end")
            yield piece

    def close(self) -> None:
        self._stream.close()
