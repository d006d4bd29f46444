"""What the judge's endpoint needs beside the requests: a checked address, a key that stays secret, waits that end."""

from __future__ import annotations

import codecs
import ipaddress
import re
import threading
from collections.abc import Callable
from concurrent.futures import Future
from pathlib import Path
from typing import TypeVar
from urllib.parse import urlsplit

from ..errors import InputError

T = TypeVar("T")
PRINTABLE = re.compile("[!-~]+")
LONGEST_KEY = 8192  # bytes of a key file
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
    if key and parts.scheme == "http" and not is_loopback(url):
        raise InputError(f"the judge's address {url} would send the key unencrypted: use https")


def check_key(key: str) -> None:
    """Refuse a key that no header can carry.

    Raises:
        InputError: without a character of it.
    """
    if not PRINTABLE.fullmatch(key):
        raise InputError(f"the judge's key {ONE_LINE}")


def load_key(path: Path) -> str:
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


def is_loopback(url: str) -> bool:
    """Whether ``url``, an http(s) address, is this machine's own."""
    host = urlsplit(url).hostname or ""
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return host.rstrip(".") == "localhost"
    return (getattr(address, "ipv4_mapped", None) or address).is_loopback
