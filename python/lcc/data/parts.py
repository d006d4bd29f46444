"""What a model has written so far, part by part: a run that was killed while it asked or answered goes on from there.

A part is a fixed number of prompts that are decoded together. It is kept whole or not at all, so that a run that goes
on batches the same prompts, and writes what an uninterrupted one writes, to the last bit.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, TypedDict, TypeVar

import torch

from ..utils.hashing import json_digest
from ..utils.outputs import os_errors
from ..utils.resumable import DATA_PART, IDENTITY, ResumableFile, Stored, require_same_run, sound
from ..utils.values import require

FORMAT = "lcc-part-1"
# Prompts of a part: at most about a minute's work on two cores.
SIZE = 512
Item = TypeVar("Item")


class PartMetadata(TypedDict):
    """What a part's file says beside its tensors."""

    identity: dict[str, Any]
    date: str | None
    values: list[Any]


class Parts:
    """The parts of one text's data, in files beside the file that the data becomes; or nowhere.

    Args:
        path: of that file; None: nothing is kept.
        identity: all that the data depends on.
        restart: see ``ResumableFile``.
    """

    def __init__(
        self,
        path: Path | None = None,
        identity: dict[str, Any] | None = None,
        date: str | None = None,
        restart: bool = False,
    ):
        self._path, self._identity, self._date, self._restart = path, identity or {}, date, restart

    def kept(
        self,
        name: str,
        items: Sequence[Item],
        make: Callable[[Sequence[Item]], tuple[list[Any], list[torch.Tensor]]],
    ) -> Iterator[tuple[list[Any], list[torch.Tensor]]]:
        """What ``make`` makes of each part of ``items``, in order: from its file, or now.

        Args:
            name: what the items are, JSON-ready; with their number it names the part's file.
            make: returns a JSON-ready value for each item, and a tensor for each item or none at all.

        Raises:
            MemoryFileError, MismatchError: a file is damaged, or of other data, and not to be restarted.
        """
        for start in range(0, len(items), SIZE):
            part = items[start : start + SIZE]
            file = self._file([name, start, [repr(item) for item in part]])
            stored = self._stored(file) if file else None
            if file and stored:
                with sound(file.path):
                    yield _unpack(*stored, len(part))
                continue
            values, tensors = make(part)
            if file:
                named = {str(number): tensor for number, tensor in enumerate(tensors)}
                file.write(named, {IDENTITY: self._identity, "date": self._date, "values": values})
            yield values, tensors

    def clear(self) -> None:
        """Remove the files."""
        if self._path is not None:
            with os_errors(f"cannot remove the parts of {self._path}"):
                for file in self._path.parent.glob(f"{self._path.stem}{DATA_PART}*.safetensors"):
                    file.unlink(missing_ok=True)

    def _stored(self, file: ResumableFile) -> Stored | None:
        return file.read(lambda metadata: require_same_run(metadata, self._identity, file.path.parent))

    def _file(self, key: Any) -> ResumableFile | None:
        if self._path is None:
            return None
        path = self._path.with_name(f"{self._path.stem}{DATA_PART}{json_digest(key)[:16]}.safetensors")
        return ResumableFile(path, FORMAT, PartMetadata, restart=self._restart)


def _unpack(
    tensors: dict[str, torch.Tensor], metadata: dict[str, Any], items: int
) -> tuple[list[Any], list[torch.Tensor]]:
    values = metadata["values"]
    require(len(values) == items, "values", len(values), f"{items}")
    require(len(tensors) in (0, items), "tensors", len(tensors), f"none or {items}")
    return values, [tensors[str(number)] for number in range(len(tensors))]
