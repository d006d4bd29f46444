"""Where a memory comes from: the operation that made it, of which memories, and the same of each of those."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any, TypedDict

from ..errors import InputError
from ..utils.safe_json import finite_json, parse_json
from ..utils.values import check, quoted, require
from ..utils.version import __version__


class Made(TypedDict):
    """How a memory was made; of an older file, settings and version are None, which says nothing.

    ``operation`` is ``compile``, ``refine`` (a compilation with a ``start``), ``quantize``, ``update`` or a word of a
    plug-in's; ``parents`` are the digests of the tensors that it was made of; ``settings`` are the operation's;
    ``version`` is that of this package.
    """

    operation: str
    parents: list[str]
    settings: dict[str, Any] | None
    version: str | None


class Ancestor(Made):
    """A memory that another one was made of, and how it was made itself.

    ``digest`` is ``Memory.digest``; of an older file, ``buffer_tokens`` is None.
    """

    digest: str
    compiler: dict[str, str]
    buffer_tokens: int | None


class Succession(TypedDict):
    """The fields of a ``Memory`` that say where it comes from."""

    made: Made
    lineage: list[Ancestor]


class OlderAncestor(TypedDict):
    """What older files say of an ancestor."""

    digest: str
    compiler: dict[str, str]


def unrecorded() -> Made:
    """Of a memory that nobody said more of: it was compiled."""
    return Made(operation="compile", parents=[], settings=None, version=None)


def succession(operation: str, settings: Mapping[str, Any], parents: Sequence[list[Ancestor]] = ()) -> Succession:
    """The fields of a memory that ``operation`` makes now.

    Args:
        settings: of the operation; JSON can say them.
        parents: ``Memory.with_ancestors()`` of each memory that it is made of.

    Raises:
        InputError: the operation has no name, or JSON cannot say a setting.
    """
    check("operation", operation, str)
    require(bool(operation), "operation", operation, "a word")
    try:
        said = parse_json(json.dumps(finite_json(dict(settings))))
    except (TypeError, ValueError) as error:
        raise InputError(f"the settings of {quoted(operation)} are not what JSON can say: {error}") from error
    made = Made(operation=operation, parents=[first["digest"] for first, *_ in parents], settings=said,
                version=__version__)  # fmt: skip
    once = _once_each([each for line in parents for each in line])
    return Succession(made=made, lineage=_reached(made, once))


def ancestor_digests(lineage: Sequence[Ancestor]) -> list[str]:
    """What two memories have in common that were made of the same memories, by whichever versions."""
    return [ancestor["digest"] for ancestor in lineage]


def of_older(lineage: object) -> Succession:
    """What an older file says, which lists one line of ancestors, the nearest first.

    Raises:
        InputError: it is no such list.
    """
    check("lineage", lineage, list[OlderAncestor])
    line: list[Any] = _once_each(lineage)  # type: ignore[arg-type]
    parents: list[list[str]] = [[each["digest"]] for each in line] + [[]]
    steps = [
        Made(operation="refine" if given else "compile", parents=given, settings=None, version=None)
        for given in parents
    ]
    ancestors = [
        Ancestor(**step, digest=each["digest"], compiler=each["compiler"], buffer_tokens=None)
        for each, step in zip(line, steps[1:], strict=True)
    ]
    return Succession(made=steps[0], lineage=ancestors)


def check_lineage(made: Made, lineage: Sequence[Ancestor]) -> None:
    """Refuse a history that is no tree: an ancestor twice, without a descendant, or in front of one.

    Raises:
        InputError: naming the ancestor.
    """
    require(bool(made["operation"]), "made.operation", made["operation"], "a word")
    named, told = set(made["parents"]), set()
    for ancestor in lineage:
        digest = ancestor["digest"]
        require(bool(ancestor["operation"]), "lineage.operation", ancestor["operation"], "a word")
        if digest in told:
            raise InputError(f"lineage names {quoted(digest)} twice, or behind what was made of it")
        if digest not in named:
            raise InputError(f"lineage has {quoted(digest)}, of which nothing before it was made")
        told.add(digest)
        named |= set(ancestor["parents"])
        if told & set(ancestor["parents"]):
            raise InputError(f"lineage says that {quoted(digest)} was made of what came after it")
    if missing := sorted(named - told):
        raise InputError(f"lineage has nothing on the parent {quoted(missing[0])}")


def _reached(made: Made, lineage: Sequence[Ancestor]) -> list[Ancestor]:
    """Without what a memory went through before it had the tensors of an ancestor again."""
    named, kept = set(made["parents"]), []
    for ancestor in lineage:
        if ancestor["digest"] in named:
            named |= set(ancestor["parents"])
            kept.append(ancestor)
    return kept


def _once_each(lines: Sequence[Any]) -> list[Any]:
    """Each ancestor where it comes last: so it stays behind all that was made of it."""
    last = {ancestor["digest"]: place for place, ancestor in enumerate(lines)}
    return [ancestor for place, ancestor in enumerate(lines) if last[ancestor["digest"]] == place]
