"""The compilers by name."""

from __future__ import annotations

from difflib import get_close_matches
from importlib import import_module
from importlib.metadata import entry_points
from typing import TYPE_CHECKING, Any, TypeVar

from ..errors import InputError

if TYPE_CHECKING:
    from .base import Compiler

DEFAULT = "lcc"
# Other packages name their compilers under this entry point group: a command knows them without an import.
PLUGINS = "lcc.compilers"
# The package's own: the file of each, imported when it is asked for, and torch with it.
_FILES = {"lcc": "lora", "direct_kv": "direct_kv"}
C = TypeVar("C", bound=type)
_registered: dict[str, Any] = {}


def register(compiler: C) -> C:
    """Make a compiler known by its ``name``; a class decorator.

    Args:
        compiler: a class whose objects are made without arguments.

    Raises:
        InputError: the name is taken by another class.
    """
    name: str = compiler.name  # type: ignore[attr-defined]
    known = _registered.get(name, compiler)
    if (name in _FILES and not compiler.__module__.startswith(__package__)) or _named(known) != _named(compiler):
        raise InputError(f"there is a compiler {name!r} already: choose another name")
    _registered[name] = compiler
    return compiler


def get(compiler: str | Compiler = DEFAULT) -> Compiler:
    """The compiler of a name, or the compiler that is given.

    Other packages make compilers known by an entry point of the group ``lcc.compilers``.

    Raises:
        InputError: there is no compiler of this name, or what is given is none.
    """
    if not isinstance(compiler, str):
        if isinstance(compiler, type) or not hasattr(compiler, "Settings") or not hasattr(compiler, "compile"):
            raise InputError(f"the compiler is {compiler!r}: give a name, or an object that has Settings and compile")
        return compiler
    if compiler in _FILES and compiler not in _registered:
        import_module(f".{_FILES[compiler]}", __package__)
    if compiler not in _registered:
        for plugin in entry_points(group=PLUGINS, name=compiler):
            register(plugin.load())
    if compiler not in _registered:
        near = "".join(f"did you mean {match}? " for match in get_close_matches(compiler, names(), 1))
        raise InputError(f"unknown compiler {compiler!r}; {near}there are {', '.join(names())}")
    return _registered[compiler]()


def names() -> list[str]:
    """All names, the package's own first."""
    plugins = (plugin.name for plugin in entry_points(group=PLUGINS))
    return list(dict.fromkeys([*_FILES, *_registered, *plugins]))


def _named(compiler: Any) -> tuple[str, str]:
    """Where a class is defined: a module that is imported twice defines the same class twice."""
    return compiler.__module__, compiler.__qualname__
