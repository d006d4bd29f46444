"""Values that come from outside, against the types that the code declares for them."""

from __future__ import annotations

import re
import types
from collections.abc import Iterable
from datetime import datetime
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints, is_typeddict

from ..errors import InputError
from .safe_json import parse_json

TRUE, FALSE, NONE = ("true", "yes", "on", "1"), ("false", "no", "off", "0"), ("none", "null")
BYTES = {"": 1, "b": 1, "kb": 10**3, "mb": 10**6, "gb": 10**9, "kib": 2**10, "mib": 2**20, "gib": 2**30}
SIZE = re.compile(r"\s*([0-9]{1,18}(?:\.[0-9]*)?)\s*([A-Za-z]*)\s*")
WHOLE = re.compile(r"[+-]?[0-9]{1,4000}")
NUMBER = re.compile(r"[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)(e[+-]?[0-9]+)?|[+-]?inf(inity)?|nan")
ANY = re.compile(".*", re.DOTALL)
# Longest value that an error quotes.
QUOTED = 60


def check(name: str, value: object, kind: Any) -> None:
    """Refuse a value that is not of the declared type.

    A bool is no number, a whole number is a float too, and text holds no half of a surrogate pair.

    Args:
        name: what errors call the value.
        kind: bool, int, float, str, None, Any, a Literal, a union, a TypedDict, list[...], tuple[..., ...] or
            dict[str, ...] of these.

    Raises:
        InputError: naming the value, or the part of it that is wrong, and what it must be.
    """
    origin, inner = get_origin(kind), get_args(kind)
    if is_typeddict(kind):
        _check_fields(name, value, kind)
    elif origin in (Union, types.UnionType):
        _check_union(name, value, kind, inner)
    elif origin in (list, tuple):
        _require_kind(isinstance(value, origin), name, value, kind)
        for index, part in enumerate(value):  # type: ignore[arg-type, var-annotated]
            # Lists of numbers are long.
            if type(part) is not inner[0] or inner[0] is str:
                check(f"{name}[{index}]", part, inner[0])
    elif origin is dict:
        _require_kind(isinstance(value, dict), name, value, kind)
        for key, part in value.items():  # type: ignore[attr-defined]
            check(f"a key of {name}", key, inner[0])
            check(f"{name}.{quoted(key)}", part, inner[1])
    else:
        _require_kind(_is_plain(value, kind), name, value, kind)


def parse(name: str, text: str, kind: Any) -> Any:
    """The value of type ``kind`` that ``text`` spells: ``yes`` is a bool, ``a,b`` a tuple of two texts.

    Raises:
        InputError: naming the value, and what it must be.
    """
    options = get_args(kind) if get_origin(kind) in (Union, types.UnionType) else (kind,)
    for option in sorted(options, key=lambda option: option is not type(None)):
        try:
            return _spelled(text, option)
        except ValueError:
            continue
    raise InputError(f"{name} is {quoted(text)}; it must be {described(kind)}")


def parse_bytes(name: str, given: int | str) -> int:
    """A number of bytes: whole, or a text such as ``300kB``, ``1MB`` (10^6) or ``2MiB`` (2^20).

    Raises:
        InputError: naming the value, and what it must be.
    """
    spelled = SIZE.fullmatch(str(given)) if isinstance(given, str) or type(given) is int else None
    unit = spelled[2].lower() if spelled else ""
    size = int(float(spelled[1]) * BYTES[unit]) if spelled and unit in BYTES else 0
    require(1 <= size < 2**63, name, given, "a number of bytes, such as 300kB, 1MB or 2MiB")
    return size


def require(condition: bool, name: str, value: object, expected: str) -> None:
    """Refuse a value unless ``condition`` holds.

    Raises:
        InputError: naming the value, and what it must be.
    """
    if not condition:
        raise InputError(f"{name} is {quoted(value)}; it must be {expected}")


def check_count(name: str, value: Any) -> None:
    """Refuse what is no whole number of at least 1.

    Raises:
        InputError: naming the value, and what it must be.
    """
    check(name, value, int)
    require(value >= 1, name, value, "at least 1")


def is_text(value: object) -> bool:
    """Whether it is a string without half of a surrogate pair, which no encoding and no tokenizer takes."""
    try:
        return isinstance(value, str) and bool(value.encode() or True)
    except UnicodeEncodeError:
        return False


def is_date(value: object) -> bool:
    """Whether it is a date and time as ISO 8601 writes them."""
    try:
        return isinstance(value, str) and bool(datetime.fromisoformat(value))
    except ValueError:
        return False


def described(kind: Any) -> str:
    """A declared type in words."""
    origin, inner = get_origin(kind), get_args(kind)
    if origin is Literal:
        return _alternatives(map(str, inner))
    if origin in (Union, types.UnionType):
        return _alternatives(map(described, inner))
    if origin in (list, tuple):
        return "a list" if inner[0] is not str else "a list of names"
    if origin is dict or is_typeddict(kind):
        return "an object with named fields"
    words = {bool: "true or false", int: "a whole number", float: "a number", str: "text", type(None): "none"}
    return words[kind]


def quoted(value: object) -> str:
    """The beginning of a value, for an error; halves of surrogate pairs, which no stream takes, are written out."""
    try:
        text = str(value).encode(errors="backslashreplace").decode()
    except (ValueError, RecursionError):
        text = f"a {type(value).__name__} too large to be printed"
    return text if len(text) <= QUOTED else f"{text[:QUOTED]}…"


def _require_kind(condition: bool, name: str, value: object, kind: Any) -> None:
    if not condition:
        raise InputError(f"{name} is {quoted(value)} ({type(value).__name__}); it must be {described(kind)}")


def _check_fields(name: str, value: object, kind: Any) -> None:
    """Every declared field is there; what this version does not know is left alone."""
    _require_kind(isinstance(value, dict), name, value, kind)
    for field, declared in get_type_hints(kind).items():
        if field in value:  # type: ignore[operator]
            check(f"{name}.{field}", value[field], declared)  # type: ignore[index]
        elif field in kind.__required_keys__:
            raise InputError(f"{name} has no {field}; it must be {described(declared)}")


def _check_union(name: str, value: object, kind: Any, options: tuple[Any, ...]) -> None:
    several = [option for option in options if option is not type(None)]
    if value is None and len(several) < len(options):
        return
    if len(several) == 1:
        check(name, value, several[0])
    else:
        _require_kind(any(_is_plain(value, option) for option in several), name, value, kind)


def _is_plain(value: object, kind: Any) -> bool:
    if get_origin(kind) is Literal:
        return any(type(value) is type(option) and value == option for option in get_args(kind))
    if kind is float:
        return isinstance(value, float) or (type(value) is int and abs(value) < 1 << 1000)
    if kind is str:
        return is_text(value)
    return kind is Any or type(value) is kind


def _spelled(text: str, kind: Any) -> Any:
    """The value of ``kind``, no union, that ``text`` spells.

    Raises:
        ValueError: it spells none.
    """
    word = text.strip().lower()
    if get_origin(kind) is tuple:
        (part, *_), listed = get_args(kind), word.startswith("[")
        parts = parse_json(text) if listed else map(str.strip, text.split(","))
        return tuple(parts) if listed else tuple(one if part is str else _spelled(one, part) for one in parts)
    if get_origin(kind) is Literal:
        spellings: dict[str, Any] = {option: option for option in get_args(kind)}
    elif kind is bool:
        spellings = dict.fromkeys(TRUE, True) | dict.fromkeys(FALSE, False)
    elif kind is type(None):
        spellings = dict.fromkeys(NONE)
    else:
        spelling = {int: WHOLE, float: NUMBER, str: ANY}[kind]
        spellings = {word: kind(text)} if spelling.fullmatch(word) else {}
    if word not in spellings:
        raise ValueError(text)
    return spellings[word]


def _alternatives(words: Iterable[str]) -> str:
    *some, last = words
    return f"{', '.join(some)} or {last}" if some else last
