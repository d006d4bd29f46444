"""Text from files, standard input, arguments and the lines of a chat: all of it is UTF-8, or is refused by name."""

from __future__ import annotations

import codecs
import io
import os
import re
import sys
from collections.abc import Mapping
from contextlib import nullcontext
from typing import IO

from ..errors import InputError

STANDARD_INPUT = "-"
# Bytes of a file. What goes on for ever, such as /dev/zero, ends here.
LARGEST = 2**30
PIECE = 2**20
# UTF-32's mark in little endian begins with UTF-16's.
OTHER_MARKS = {
    codecs.BOM_UTF32_LE: "UTF-32",
    codecs.BOM_UTF32_BE: "UTF-32",
    codecs.BOM_UTF16_LE: "UTF-16",
    codecs.BOM_UTF16_BE: "UTF-16",
}
MARK = "\ufeff"
SURROGATE = re.compile("[\ud800-\udfff]")


def read_file(path: str | os.PathLike) -> str:
    """The text of a UTF-8 file or pipe, or of standard input for ``-``; see ``normal``.

    Raises:
        InputError: it cannot be read, is larger than ``LARGEST``, or is not UTF-8.
    """
    standard = os.fspath(path) == STANDARD_INPUT
    name = "standard input" if standard else str(path)
    content = bytearray()
    try:
        with nullcontext(_standard_input()) if standard else open(path, "rb") as file:
            while piece := file.read(PIECE):
                content += piece
                if len(content) > LARGEST:
                    raise InputError(f"{name} is larger than {LARGEST} bytes: split it")
    except (OSError, ValueError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"cannot read {name}: {getattr(error, 'strerror', None) or error}") from None
    return decode(bytes(content), name)


def _standard_input() -> IO[bytes]:
    if sys.stdin is None:
        raise InputError("there is no standard input: name a file")
    return sys.stdin.buffer


def decode(content: bytes, name: str) -> str:
    """``content`` as text; see ``normal``.

    Raises:
        InputError: it is not UTF-8; ``name`` says whose it is.
    """
    for mark, encoding in OTHER_MARKS.items():
        if content.startswith(mark):
            raise InputError(f"{name} is {encoding}, not UTF-8: convert it, as with iconv -f {encoding} -t UTF-8")
    if b"\0" in content:
        raise InputError(f"{name} holds zero bytes, it is not UTF-8 text: convert it, if it is text at all")
    return normal(check_text(content.decode("utf-8", "surrogateescape"), name))


def normal(text: str) -> str:
    """``text`` as ``read_file`` reads it from a file that holds it: without a byte order mark, and with line feeds."""
    return text.lstrip(MARK).replace("\r\n", "\n").replace("\r", "\n")


def check_text(text: str, name: str) -> str:
    """``text`` without byte order marks at its start.

    Raises:
        InputError: it holds bytes that are not UTF-8, or halves of characters, which Python keeps as surrogates.
    """
    if surrogate := SURROGATE.search(text):
        raise InputError(
            f"{name} is not UTF-8 text (character {surrogate.start() + 1} is {surrogate[0]!r}): convert it, as with "
            "iconv -f LATIN1 -t UTF-8"
        )
    return text.lstrip(MARK)


def check_arguments(arguments: Mapping[str, object]) -> None:
    """Refuse texts among a command's arguments that are not UTF-8; paths may be anything.

    Raises:
        InputError: naming the argument.
    """
    for name, value in arguments.items():
        for each in value if isinstance(value, (list, tuple)) else [value]:
            if isinstance(each, str):
                # It may hold a password, and is not quoted.
                check_text(each, name)


def prepare_streams() -> None:
    """Let standard input hold any bytes, for ``check_text`` to judge, and let output escape what it cannot show.

    A stream that is closed becomes one to and from nowhere.
    """
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, mode, encoding="utf-8"))  # noqa: SIM115
    if isinstance(sys.stdin, io.TextIOWrapper):
        sys.stdin.reconfigure(encoding="utf-8", errors="surrogateescape")
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
