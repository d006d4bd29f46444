"""The compilers by name."""

from __future__ import annotations

import re
from difflib import get_close_matches
from importlib import import_module
from importlib.metadata import entry_points
from typing import TYPE_CHECKING, Any, TypeVar

from ..errors import InputError
from ..utils.settings import SettingsGroup, setting_types
from ..utils.terminal import first_line
from ..utils.values import check

if TYPE_CHECKING:
    from .base import Compiler

DEFAULT = "lcc"
NAME = re.compile(r"[A-Za-z0-9_-]+")
# Other packages name their compilers under this entry point group: a command knows them without an import.
PLUGINS = "lcc.compilers"
# The package's own: the file of each, imported when it is asked for, and torch with it.
_FILES = {
    "lcc": "lora",
    "direct_kv": "direct_kv",
    "attention_matching": "attention_matching.compiler",
    "gradmem": "gradmem.compiler",
    "flashmem": "flashmem.compiler",
    "adapter": "adapter",
}
C = TypeVar("C", bound=type)
_registered: dict[str, Any] = {}


def register(compiler: C) -> C:
    """Make a compiler known by its ``name``; a class decorator.

    Args:
        compiler: a class whose objects are made without arguments.

    Raises:
        InputError: the name is taken by another class, or the class is no compiler.
    """
    if not isinstance(compiler, type):
        raise InputError(f"{compiler!r} is no class: register the class, or give the object to compile")
    check_compiler(compiler)
    name = str(getattr(compiler, "name"))  # noqa: B009
    known = _registered.get(name, compiler)
    if (name in _FILES and not compiler.__module__.startswith(__package__)) or _defined(known) != _defined(compiler):
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
        if isinstance(compiler, type):
            raise InputError(f"the compiler is the class {compiler.__name__}: give an object of it, or its name")
        check_compiler(compiler)
        return compiler
    if compiler in _FILES and compiler not in _registered:
        import_module(f".{_FILES[compiler]}", __package__)
    if compiler not in _registered:
        _load_plugins(compiler)
    if compiler not in _registered:
        near = "".join(f"did you mean {match}? " for match in get_close_matches(compiler, names(), 1))
        raise InputError(f"unknown compiler {compiler!r}; {near}there are {', '.join(names())}")
    try:
        return _registered[compiler]()
    except TypeError as error:
        raise InputError(
            f"the compiler {compiler!r} cannot be made without arguments ({error}): give an object"
        ) from None


def names() -> list[str]:
    """All names, the package's own first."""
    plugins = (plugin.name for plugin in entry_points(group=PLUGINS))
    return list(dict.fromkeys([*_FILES, *_registered, *plugins]))


def owner(setting: str) -> str | None:
    """The name of a compiler that has ``setting``, of those that are known without loading other packages."""
    for name in _FILES:
        get(name)
    return next((name for name, known in _registered.items() if setting in setting_types(known.Settings)), None)


def check_compiler(compiler: Any) -> None:
    """Refuse what is no compiler: a class or an object.

    Raises:
        InputError: saying what is wrong with it.
    """
    name, settings = getattr(compiler, "name", None), getattr(compiler, "Settings", None)
    if not isinstance(name, str) or not NAME.fullmatch(name):
        raise InputError(f"the name of a compiler is {name!r}; it must be letters, digits, - and _")
    if not callable(getattr(compiler, "compile", None)) or not callable(getattr(compiler, "fingerprint", None)):
        raise InputError(f"the compiler {name!r} lacks compile or fingerprint: derive it from lcc.BaseCompiler")
    if not (isinstance(settings, type) and issubclass(settings, SettingsGroup)):
        raise InputError(f"the Settings of the compiler {name!r} are {settings!r}; they must be an lcc.SettingsGroup")
    try:
        settings()
    except (TypeError, KeyError) as error:
        raise InputError(
            f"the Settings of the compiler {name!r} cannot be used ({error}): make them a frozen dataclass of plain "
            "types, with a default for each field"
        ) from None


def record(compiler: Compiler) -> dict[str, str]:
    """What a memory records of its compiler: the ``name``, and the digests of its learned weights.

    Raises:
        InputError: the compiler's fingerprint is no dict of texts, or has a ``name``.
    """
    digests = compiler.fingerprint()
    check(f"the fingerprint of the compiler {compiler.name!r}", digests, dict[str, str])
    if "name" in digests:
        raise InputError(f"the fingerprint of the compiler {compiler.name!r} has a field name: call it otherwise")
    return {"name": compiler.name} | digests


def _load_plugins(name: str) -> None:
    """Register the compiler that other packages call ``name``.

    Raises:
        InputError: the package is broken, or calls its class otherwise.
    """
    for plugin in entry_points(group=PLUGINS, name=name):
        try:
            known = register(plugin.load())
        except Exception as error:
            raise InputError(
                f"the compiler {name!r} of {plugin.value} cannot be loaded: {first_line(error)}"
            ) from error
        if known.name != name:
            raise InputError(
                f"{plugin.value} calls itself {known.name!r} and its entry point {name!r}: make them alike"
            )


def _defined(compiler: Any) -> tuple[str, str]:
    """Where a class is defined: a module that is imported twice defines the same class twice."""
    return compiler.__module__, compiler.__qualname__
