"""The state of an optimisation on disk, written every so often: a run that was killed goes on from it."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal, TypedDict

import torch

from ..utils.distributed import ALONE, Ranks
from ..utils.outputs import is_file, make_folder
from ..utils.resumable import (
    IDENTITY,
    PART,
    STATE_FILE,
    ResumableFile,
    Stored,
    differing_names,
    require_same_run,
)
from ..utils.tensor_files import load_tensors, save_tensors

FORMAT = "lcc-state-4"
# In the metadata of a state: the run went on from it and diverged.
DIVERGED = "diverged"


class Point(TypedDict):
    """A measurement."""

    step: float
    loss: float | None
    held_out_kl: float | None
    seconds: float


class Counters(TypedDict):
    """How far a memory's training is."""

    encode_chunk: int | Literal["auto"]
    step: int
    best_loss: float | None
    best_kl: float | None
    stale: int
    curve: list[Point]
    seconds: float


class StateMetadata(TypedDict):
    """What the file says beside its tensors; ``data`` is what the distillation data depends on."""

    identity: dict[str, Any]
    data: dict[str, Any]
    memories: list[Counters]


class Checkpoint:
    """A folder that belongs to one compilation: one text, model, tokenizer, query set, compiler and settings.

    Args:
        identity: all that the compilation depends on, JSON-ready.
        data: the part of it that its distillation data depends on.
        restart: see ``ResumableFile``.
        date: what the chat template was told, if it writes the date.

    Raises:
        MemoryFileError: the folder is a link, or cannot be made, read or written.
    """

    def __init__(
        self,
        folder: Path,
        identity: dict[str, Any],
        data: dict[str, Any],
        ranks: Ranks = ALONE,
        restart: bool = False,
        date: str | None = None,
    ):
        self.folder, self.identity, self.data, self.date = folder, identity, data, date
        self.file = ResumableFile(folder / f"{STATE_FILE}.safetensors", FORMAT, StateMetadata, ranks, restart)
        ranks.from_main(lambda: make_folder(folder))

    def save(self, tensors: dict[str, torch.Tensor], metadata: dict[str, Any]) -> None:
        """Write the optimisation's state."""
        self.file.write(tensors, {IDENTITY: self.identity, "data": self.data, "date": self.date} | metadata)

    def load(self) -> Stored | None:
        """The last state that was written. None: there is none, or only that of another run, which diverged.

        Raises:
            MemoryFileError, MismatchError: the file is damaged, or another compilation has to go on from it.
        """
        return self.file.read(self._belongs)

    def _belongs(self, metadata: dict[str, Any]) -> bool:
        if metadata["data"] == self.data and metadata.get(DIVERGED):
            return not differing_names(metadata[IDENTITY], self.identity)
        return require_same_run(metadata, self.identity, self.folder)


def mark_diverged(folder: Path) -> None:
    """Let compilations with other settings pass over the state in ``folder``, and over those of all ratios tried."""
    if folder.name.startswith(PART):
        folder = folder.parent
    for path in (folder / f"{STATE_FILE}.safetensors", *folder.glob(f"{PART}*/{STATE_FILE}.safetensors")):
        if is_file(path):
            tensors, metadata = load_tensors(path, FORMAT)
            save_tensors(path, FORMAT, tensors, metadata | {DIVERGED: True})
