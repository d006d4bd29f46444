"""What a terminal is shown: text from files, models and other libraries acts on none and is no markup."""

from __future__ import annotations

import re

from rich.console import Console
from rich.markup import escape

# Control characters, line separators, halves of surrogate pairs, and what turns the direction of writing around.
ACTING = re.compile("[\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")


def plain(text: object) -> str:
    """``text`` on one line, with what would act on a terminal written out: an escape is ``\\x1b``."""
    return ACTING.sub(lambda match: match[0].encode("unicode_escape").decode(), str(text))


def shown(text: object) -> str:
    """``text`` on one line, to be printed by ``Terminal``: no control sequence, no markup."""
    return escape(plain(text))


def shown_lines(text: str) -> str:
    """``shown``, but line breaks and tabs stay what they are."""
    return re.sub("[^\n\t]+", lambda match: shown(match[0]), text)


def first_line(error: BaseException) -> str:
    """What another library's error says, on one line: its first, or two if that is a heading."""
    first, *more = str(error).strip().splitlines() or [type(error).__name__]
    return plain(f"{first} {more[0].strip()}" if more and first.rstrip().endswith(":") else first)


def say(message: str) -> None:
    """Tell people, on stderr, what is no result; ``message`` may have markup."""
    Terminal(stderr=True).print(message, soft_wrap=True)


class Terminal(Console):
    """A rich console that changes no text, and leaves a reader who has gone to whoever called it."""

    def __init__(self, stderr: bool = False):
        super().__init__(stderr=stderr, emoji=False, highlight=not stderr)

    def on_broken_pipe(self) -> None:
        """Nobody reads any more.

        Raises:
            BrokenPipeError: always, where rich would end the process.
        """
        raise BrokenPipeError
