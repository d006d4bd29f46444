"""Requests to an HTTP endpoint: every wait ends, and nobody but the endpoint is told the key."""

from __future__ import annotations

import codecs
import http.client
import ipaddress
import re
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from concurrent.futures import Future
from concurrent.futures import TimeoutError as NotDoneError
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import SplitResult, urlsplit

from ..errors import InputError
from ..utils.terminal import first_line

T = TypeVar("T")
RETRIED = {408, 409, 429, 500, 502, 503, 504}
PRINTABLE = re.compile("[!-~]+")
# Bytes of the longest key and of the longest reply that are read, characters of a refusal that are quoted.
LONGEST_KEY, LONGEST_REPLY, QUOTED = 8192, 1 << 20, 300
ONE_LINE = "must be one line of printable ASCII without spaces"


class RetryError(Exception):
    """Worth another attempt."""


def check_address(url: str, key: str | None) -> None:
    """Refuse an address that cannot be asked, or must not be: no message quotes it, it may hold a password.

    Raises:
        InputError: no http(s) URL, one with a user, a password, a query or a fragment, or one that would send the key
            in the clear.
    """
    try:
        parts = urlsplit(url)
        usable = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        usable = False
    if not usable or not PRINTABLE.fullmatch(url):
        raise InputError("the judge's address is no http(s) URL, such as https://api.openai.com/v1")
    if "@" in parts.netloc or "?" in url or "#" in url:
        raise InputError(
            "the judge's address holds a user, a password, a query or a fragment: end it with a path such as /v1, and "
            "give the key in a file"
        )
    if key and parts.scheme == "http" and not _is_loopback(parts):
        raise InputError(f"the judge's address {url} would send the key unencrypted: use https")


def check_key(key: str) -> None:
    """Refuse a key that no header can carry.

    Raises:
        InputError: without a character of it.
    """
    if not PRINTABLE.fullmatch(key):
        raise InputError(f"the judge's key {ONE_LINE}")


def read_key(path: Path) -> str:
    """The key in a file.

    Raises:
        InputError: the file cannot be read, or holds anything but one line of printable ASCII.
    """
    try:
        with path.open("rb") as file:
            content = file.read(LONGEST_KEY + 1)
    except OSError as error:
        # Who gives the key in the file's place is not to read it in a log.
        raise InputError(f"cannot read the key file: {error.strerror}") from None
    content = content.removeprefix(codecs.BOM_UTF8)
    lines = [line.strip() for line in content.decode("latin-1").splitlines() if line.strip()]
    if len(lines) != 1 or len(content) > LONGEST_KEY or not PRINTABLE.fullmatch(lines[0]):
        raise InputError(f"the key file {ONE_LINE}")
    return lines[0]


def post(url: str, body: bytes, key: str | None, seconds: float) -> bytes:
    """The reply to ``body``, a JSON document, within ``seconds``; no redirect is followed.

    Raises:
        RetryError: no reply in time, no connection, or an endpoint that is busy.
        InputError: the endpoint refuses, or its reply is too long.
    """
    waiting = in_background(lambda: _exchange(url, body, key, seconds))
    try:
        return waiting.result(seconds)
    except NotDoneError:
        raise RetryError(f"no reply in {seconds:.0f} s") from None


def in_background(work: Callable[[], T]) -> Future[T]:
    """The outcome of ``work`` in a thread that neither an interrupt nor the end of the process waits for."""
    outcome: Future[T] = Future()

    def run() -> None:
        try:
            outcome.set_result(work())
        except BaseException as error:
            outcome.set_exception(error)

    threading.Thread(target=run, daemon=True).start()
    return outcome


def without(key: str | None, text: str) -> str:
    """``text`` without the key, which an endpoint may repeat."""
    return text.replace(key, "[the key]") if key else text


def _exchange(url: str, body: bytes, key: str | None, seconds: float) -> bytes:
    headers = {"Content-Type": "application/json"} | ({"Authorization": f"Bearer {key}"} if key else {})
    deadline = time.monotonic() + seconds
    # A proxy would see what is meant for this machine alone.
    direct = [urllib.request.ProxyHandler({})] if _is_loopback(urlsplit(url)) else []
    opener = urllib.request.build_opener(_NoRedirect, *direct)
    try:
        with opener.open(urllib.request.Request(url, body, headers), timeout=seconds) as response:
            return _read(response, deadline)
    except urllib.error.HTTPError as error:
        said = f"HTTP {error.code}: {_refusal(error, key, deadline)}"
        if error.code in RETRIED:
            raise RetryError(said) from None
        raise InputError(f"the judge at {url} refuses: {said}") from None
    except (OSError, http.client.HTTPException) as error:
        raise RetryError(f"no connection ({without(key, first_line(error))})") from None


def _read(response: Any, deadline: float) -> bytes:
    content = b""
    while piece := response.read1(LONGEST_REPLY):
        content += piece
        if len(content) > LONGEST_REPLY:
            raise InputError(f"the judge's reply is longer than {LONGEST_REPLY} bytes: name another endpoint")
        if time.monotonic() > deadline:
            raise TimeoutError("the reply does not end")
    return content


def _refusal(error: urllib.error.HTTPError, key: str | None, deadline: float) -> str:
    """The beginning of what the endpoint says about it."""
    try:
        return without(key, _read(error, deadline).decode(errors="replace"))[:QUOTED]
    except (OSError, http.client.HTTPException, InputError):
        return "no reason given"


def _is_loopback(parts: SplitResult) -> bool:
    host = parts.hostname or ""
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return host.rstrip(".") == "localhost"
    return (getattr(address, "ipv4_mapped", None) or address).is_loopback


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    """A redirect would carry the key to another host."""

    def redirect_request(self, *_: object, **__: object) -> None:
        return None
