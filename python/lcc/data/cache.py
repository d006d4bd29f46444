"""Distillation data on disk: made once, and found by a run that goes on, or by any other run of the same text."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any, TypedDict

import torch

from ..text.chat_format import parse_query
from ..utils.distributed import ALONE, Ranks
from ..utils.hashing import json_digest
from ..utils.outputs import make_folder
from ..utils.resumable import DATA_FILE, IDENTITY, ResumableFile, Stored, require_same_run, sound
from ..utils.values import require
from .parts import Parts
from .samples import DistillationData, Sample
from .teacher_states import TeacherStates

FORMAT = "lcc-surrogate-7"


class SampleRow(TypedDict):
    """A sample, without its teacher states."""

    stream: str
    query: Any
    query_ids: list[int]
    response_ids: list[int]
    weight: float


class DataMetadata(TypedDict):
    """What the file says beside its tensors."""

    identity: dict[str, Any]
    rows: list[SampleRow]
    train: int
    asking: dict[str, Any] | None


class DataCache:
    """A folder's file with the distillation data of one text.

    Args:
        identity: all that the data depends on, JSON-ready.
        restart: see ``ResumableFile``.
        date: what the chat template was told, if it writes the date.
        shared: the folder holds the data of many texts and settings, each in a file of its own.

    Raises:
        MemoryFileError: the folder is a link, or cannot be made, read or written.
    """

    def __init__(
        self,
        folder: Path,
        identity: dict[str, Any],
        ranks: Ranks = ALONE,
        restart: bool = False,
        date: str | None = None,
        shared: bool = False,
    ):
        self.folder, self.identity, self.date = folder, identity, date
        name = f"{DATA_FILE}-{json_digest(identity)[:16]}" if shared else DATA_FILE
        self.file = ResumableFile(folder / f"{name}.safetensors", FORMAT, DataMetadata, ranks, restart)
        ranks.from_main(lambda: make_folder(folder))

    @property
    def parts(self) -> Parts:
        """What a run that was stopped while it made the data has written, and where this one writes on."""
        return Parts(self.file.path, self.identity, self.date, self.file.restart)

    def save(self, data: DistillationData) -> None:
        """Write the samples with their teacher states. Their parts are not needed any more."""
        tensors, metadata = pack(data)
        self.file.write(tensors, {IDENTITY: self.identity, "date": self.date} | metadata)
        if self.file.ranks.main:
            self.parts.clear()

    def load(self, device: torch.device, budget: float = math.inf, repeats: bool = True) -> DistillationData | None:
        """The samples that an earlier run wrote, or None; see ``unpack``.

        Args:
            repeats: the reconstruction has a sample.

        Raises:
            MemoryFileError, MismatchError: the file is damaged, or of other data.
        """
        stored = self.file.read(lambda metadata: require_same_run(metadata, self.identity, self.folder))
        if stored is None:
            return None
        with sound(self.file.path):
            data = unpack(*stored, device, budget)
            require(bool(data.reconstruction) >= repeats, "samples of the reconstruction", 0, "at least one")
            return data


def pack(data: DistillationData) -> Stored:
    """The samples, and each one's teacher states, (response tokens, H), as a tensor of its own. None is copied."""
    samples = [*data.reconstruction, *data.train, *data.held_out]
    rows = [{name: value for name, value in vars(sample).items() if name != "teacher_hidden"} for sample in samples]
    hidden = {f"hidden.{index}": sample.teacher_hidden for index, sample in enumerate(samples)}
    return hidden, {"rows": rows, "train": len(data.train), "asking": data.asking}


def unpack(
    tensors: dict[str, torch.Tensor], metadata: dict[str, Any], device: torch.device, budget: float = math.inf
) -> DistillationData:
    """What ``pack`` packed, with ``budget`` bytes of teacher states on ``device`` and the rest as they are."""
    states = TeacherStates(budget)
    for index, row in enumerate(metadata["rows"]):
        shape, tokens = tensors[f"hidden.{index}"].shape, len(row["response_ids"])
        require(len(shape) == 2 and shape[0] == tokens > 0, f"hidden.{index}", tuple(shape), f"({tokens}, hidden size)")
        require(row["weight"] > 0, "weight", row["weight"], "more than 0")
    samples = [
        Sample(
            tuple(row["query_ids"]),
            tuple(row["response_ids"]),
            row["stream"],
            parse_query(row["query"]),
            states.load(tensors[f"hidden.{index}"], device),
            row["weight"],
        )
        for index, row in enumerate(metadata["rows"])
    ]
    reconstruction = tuple(sample for sample in samples if sample.stream == "reconstruction")
    queries = tuple(sample for sample in samples if sample.stream != "reconstruction")
    train = metadata["train"]
    require(0 <= train <= len(queries), "train", train, "no more than there are queries")
    return DistillationData(reconstruction, queries[:train], queries[train:], metadata["asking"])
