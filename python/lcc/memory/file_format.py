"""The memory file's versions: what is written, what is read, and what a newer version adds."""

from __future__ import annotations

import os
from typing import Any

import torch

from ..errors import InputError, MemoryFileError
from ..utils.values import quoted
from .lineage import of_older
from .metadata import METADATA
from .payload import AdapterPayload, KVPayload, Payload

FORMAT = "lcc-memory-2"
# Version 1 has neither ``payload``, ``compiler`` nor ``requires``.
READABLE = (FORMAT, "lcc-memory-1")
# What one memory has that another has not; see ``lcc.memory.delta``.
DELTA_FORMAT = "lcc-delta-1"
PAYLOADS: dict[str, type[KVPayload] | type[AdapterPayload]] = {
    KVPayload.kind: KVPayload,
    AdapterPayload.kind: AdapterPayload,
}
# Fields that belong to the payload, or that are for the reader of the file alone.
_FOR_READERS = ("payload", "dtype", "requires", AdapterPayload.kind)


def parse_memory(
    path: str | os.PathLike, tensors: dict[str, torch.Tensor], metadata: dict[str, Any]
) -> tuple[Payload, dict[str, Any]]:
    """The payload and the fields of a ``Memory``, from what its file holds.

    A field that this version does not know is kept in ``extra``, unless ``requires`` says that a reader must know it.

    Raises:
        MemoryFileError: a part is missing; a tensor, a payload or a required field is not known here.
    """
    kind = metadata.get("payload", KVPayload.kind)
    unknown = [name for name in _names(path, metadata.get("requires", [])) if name not in (*METADATA, *_FOR_READERS)]
    if not isinstance(kind, str) or kind not in PAYLOADS:
        unknown.append(f"payload {quoted(kind)}")
    if unknown:
        raise MemoryFileError(
            f"{path} needs {', '.join(map(quoted, unknown))}, which this version does not know: update lcc-kernels"
        )
    try:
        payload = PAYLOADS[kind].of(tensors, metadata)
        fields = {name: value for name, value in metadata.items() if name in METADATA}
        for name in ("prefix_ids", "questions"):
            fields[name] = _as_tuples(fields[name])
        if "made" not in fields:
            fields |= of_older(fields.get("lineage", []))
    except (KeyError, TypeError, InputError) as error:
        raise MemoryFileError(f"{path} lacks a part of a memory, or has one too many: {error}") from error
    extra = {name: value for name, value in metadata.items() if name not in METADATA and name not in _FOR_READERS}
    return payload, fields | {"extra": extra}


def _names(path: str | os.PathLike, required: object) -> list[str]:
    if not isinstance(required, list) or not all(isinstance(name, str) for name in required):
        raise MemoryFileError(f"{path} is no memory that can be used: requires is {quoted(required)}; it must be names")
    return required


def _as_tuples(value: Any) -> Any:
    """JSON's lists as the tuples that they were."""
    return tuple(map(_as_tuples, value)) if isinstance(value, list) else value
