"""Groups of settings: frozen dataclasses that check their values against the types of their fields."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Any, Literal, get_type_hints

from .values import check, require

# Largest count, and largest number.
MOST, LARGEST = 10**9, 1e30
# The value of a setting that is resolved when more is known: the free memory, what a model writes.
AUTO: Literal["auto"] = "auto"


def setting_types(group: Any) -> dict[str, Any]:
    """The settings of a group, which is a class, and the type of each."""
    return _hints(group)


@cache
def _hints(group: Any) -> dict[str, Any]:
    return get_type_hints(group)


@dataclass(frozen=True)
class SettingsGroup:
    """Settings that one room or one compiler owns. A subclass is a frozen dataclass with a ``check_ranges`` of its own.

    Raises:
        InputError: a setting has another type than its field, or is out of range.
    """

    def __post_init__(self) -> None:
        for name, kind in setting_types(type(self)).items():
            value = getattr(self, name)
            if isinstance(value, list):
                value = tuple(value)
                object.__setattr__(self, name, value)
            check(name, value, kind)
            if kind is float:
                require(abs(value) < LARGEST, name, value, f"finite, and less than {LARGEST:g}")
                object.__setattr__(self, name, float(value))
            elif type(value) is int:
                require(value <= MOST, name, value, f"{MOST} at most")
        self.check_ranges()

    def check_ranges(self) -> None:
        """Refuse what is out of range, with ``lcc.utils.values.require``."""

    def require_count(self, *names: str) -> None:
        """Refuse values below 1."""
        for name in names:
            require(getattr(self, name) >= 1, name, getattr(self, name), "a whole number of at least 1")

    def require_more_than(self, least: float, *names: str) -> None:
        """Refuse values that are not more than ``least``."""
        for name in names:
            require(getattr(self, name) > least, name, getattr(self, name), f"more than {least:g}, and finite")

    def require_not_negative(self, *names: str) -> None:
        """Refuse values below zero."""
        for name in names:
            require(getattr(self, name) >= 0, name, getattr(self, name), "zero or more")

    def require_share(self, *names: str) -> None:
        """Refuse values that are not in [0, 1)."""
        for name in names:
            require(0 <= getattr(self, name) < 1, name, getattr(self, name), "in [0, 1)")
