"""JSON that comes from outside: from files, from endpoints and from models."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable
from typing import Any

# Deepest nesting of lists and objects, and most digits of a whole number: a float has no more before the point.
DEEPEST, DIGITS = 64, 308


class JSONError(ValueError):
    """What is wrong with the JSON, as the rest of a sentence about it: ``is not JSON: ...``."""


def parse_json(text: str | bytes) -> Any:
    """What the JSON ``text`` says.

    Raises:
        JSONError: it is not JSON or not UTF-8, is nested deeper than ``DEEPEST``, or holds NaN, infinity, a number that
            no float can be, or half of a surrogate pair.
    """
    try:
        value = json.loads(text, parse_constant=_no_number, parse_float=_float, parse_int=_int)
    except RecursionError:
        raise JSONError(f"is nested deeper than {DEEPEST} levels") from None
    except UnicodeDecodeError:
        raise JSONError("is not UTF-8 text") from None
    except json.JSONDecodeError as error:
        raise JSONError(f"is not JSON: {error}") from None
    _check_parts(value)
    return value


def finite_json(value: Any) -> Any:
    """``value`` as JSON gives it back, with null for NaN and infinity."""
    return json.loads(json.dumps(value), parse_constant=lambda _: None)


def _check_parts(value: Any) -> None:
    """Refuse what is nested too deeply, and text that cannot be encoded."""
    level: list[Any] = [value]
    for _ in range(DEEPEST + 1):
        for text in filter(lambda part: isinstance(part, str), level):
            _check_text(text)
        holders = [part for part in level if isinstance(part, (list, dict))]
        if not holders:
            return
        level = [part for holder in holders for part in _parts(holder)]
    raise JSONError(f"is nested deeper than {DEEPEST} levels")


def _parts(holder: list | dict) -> Iterable[Any]:
    return (*holder.keys(), *holder.values()) if isinstance(holder, dict) else holder


def _check_text(text: str) -> None:
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise JSONError(f"holds \\u{ord(text[error.start]):x}, half of a surrogate pair") from None


def _no_number(name: str) -> float:
    raise JSONError(f"holds {name}, which is no JSON number")


def _float(digits: str) -> float:
    value = float(digits)
    if math.isinf(value):
        raise JSONError(f"holds a number that is too large: {digits[:20]}")
    return value


def _int(digits: str) -> int:
    if len(digits) > DIGITS:
        raise JSONError(f"holds a number of {len(digits)} digits, which is too large")
    return int(digits)
