"""A compilation's state on disk: the surrogate data once, the optimisation every so often."""

from __future__ import annotations

import hashlib
import json
import math
import os
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from ..data.synthesis import Sample, Surrogate
from ..data.teacher_states import TeacherStates
from ..errors import MemoryFileError, MismatchError
from ..memory.metadata import StateMetadata, SurrogateMetadata, is_date
from ..pipeline.settings import CompileSettings
from ..text.chat_format import read_query
from ..utils.distributed import ALONE, Ranks
from ..utils.outputs import PARTIAL, check_folder, is_file, make_folder, os_errors
from ..utils.tensor_files import read_metadata, read_tensors, write_tensors
from ..utils.terminal import first_line
from ..utils.values import check, require

# With ratio="auto", the checkpoint of each ratio is in a folder of its own.
RATIO_FOLDER = "ratio-"
STATE, SURROGATE = "lcc-state-1", "lcc-surrogate-4"
SURROGATE_FILE, STATE_FILE = "surrogate", "state"
# Of a compilation's identity, what its surrogate data does not depend on; a stream without weight is left out of it.
NOT_OF_SURROGATE = {
    "writer", "ratio", "steps", "batch", "optimizer", "learning_rate", "buffer_learning_rate", "momentum",
    "buffer_init", "rank", "alpha", "targets", "reconstruction_weight", "evaluate_every", "patience", "keep_prefix",
    "loss", "coupled", "engine", "gradient_checkpointing", "encode_chunk", "torch_compile", "teacher_gigabytes",
}  # fmt: skip
STREAM_WEIGHTS = ("general_weight", "self_study_weight")
# Names that a checkpoint's files have, and what their metadata always holds.
_FILE = re.compile(f"({STATE_FILE}|{SURROGATE_FILE}(-[0-9a-f]{{16}})?)\\.safetensors")
_PARTIAL_FILE = re.compile(f"\\.{_FILE.pattern}\\.[0-9a-f]{{8}}\\{PARTIAL}")
_IDENTITY = "identity"
# In the metadata of a state: the run went on from it and diverged.
DIVERGED = "diverged"
# Tensors on the CPU, and JSON-ready metadata.
Stored = tuple[dict[str, torch.Tensor], dict[str, Any]]


class Checkpoint:
    """A folder that belongs to one compilation: one text, model, tokenizer, query set and settings.

    Its surrogate data serves any compilation that differs only in what the data does not depend on. Of several
    processes rank 0 alone touches the folder; the others are told what it read.

    Args:
        restart: remove what is of another compilation, or damaged, instead of refusing it.
        date: what the chat template was told, if it writes the date.

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
        surrogate: str = SURROGATE_FILE,
    ):
        self.folder, self.identity, self.ranks, self.restart = folder, identity, ranks, restart
        self.date, self._surrogate = date, surrogate
        ranks.from_main(lambda: make_folder(folder))

    @classmethod
    def shared(
        cls, folder: Path, compilation: dict[str, Any], ranks: Ranks = ALONE, restart: bool = False
    ) -> Checkpoint:
        """Where compilations find one another's surrogate data: a file for whatever the data depends on.

        Args:
            compilation: the ``identity`` of one of them.
        """
        same = of_surrogate(compilation)
        digest = hashlib.sha256(json.dumps(same, sort_keys=True).encode()).hexdigest()[:16]
        return cls(folder, same, ranks, restart, surrogate=f"{SURROGATE_FILE}-{digest}")

    def save_surrogate(self, surrogate: Surrogate) -> None:
        """Write the samples with their teacher hidden states."""
        self._write(self._surrogate, SURROGATE, *pack_surrogate(surrogate))

    def load_surrogate(self, device: torch.device, budget: float = math.inf) -> Surrogate | None:
        """The samples that an earlier run wrote, or None; see ``unpack_surrogate``."""
        stored = self.ranks.from_main(lambda: self._read(self._surrogate, SURROGATE))
        if stored is None:
            return None
        with sound(self._path(self._surrogate)):
            return unpack_surrogate(*stored, device, budget)

    def save_state(self, tensors: dict[str, torch.Tensor], metadata: dict[str, Any]) -> None:
        """Write the optimisation's state."""
        self._write(STATE_FILE, STATE, tensors, metadata)

    def load_state(self) -> Stored | None:
        """The optimisation's last written state; None if there is none, or only that of another run that diverged."""
        return self.ranks.from_main(lambda: self._read(STATE_FILE, STATE))

    def _path(self, name: str) -> Path:
        return self.folder / f"{name}.safetensors"

    def _write(self, name: str, kind: str, tensors: dict[str, torch.Tensor], metadata: dict) -> None:
        if self.ranks.main:
            write_tensors(self._path(name), kind, tensors, {"identity": self.identity, "date": self.date} | metadata)

    def _read(self, name: str, kind: str) -> Stored | None:
        path = self._path(name)
        if not is_file(path):
            return None
        try:
            tensors, metadata = read_tensors(path, kind)
            with sound(path):
                check("metadata", metadata, StateMetadata if kind == STATE else SurrogateMetadata)
                belongs = self._belongs(kind, metadata)
        except (MemoryFileError, MismatchError) as error:
            if not self.restart:
                raise type(error)(f"{error}; to start afresh, add --force (restart=True)") from error
            with os_errors(f"cannot remove {path}"):
                path.unlink()
            return None
        return (tensors, metadata) if belongs else None

    def _belongs(self, kind: str, metadata: dict[str, Any]) -> bool:
        """Whether this compilation goes on from what has ``metadata``, and does not pass over it.

        Raises:
            MismatchError: another compilation has to go on from it.
        """
        found, wanted = metadata["identity"], self.identity
        same_data = of_surrogate(found) == of_surrogate(wanted)
        differing = [name for name, value in wanted.items() if found.get(name) != value]
        if not differing or (kind == SURROGATE and same_data):
            return True
        if same_data and metadata.get(DIVERGED):
            return False
        raise MismatchError(
            f"{self.folder} holds an unfinished compilation that differs in {', '.join(differing)}: finish it with "
            "what it was started with, or delete this folder"
        )


def begun_on(folder: str | os.PathLike) -> str | None:
    """The date that the compilation in ``folder`` told its chat template: it goes on with it on another day."""
    found = [read_metadata(Path(folder, f"{name}.safetensors")).get("date") for name in (STATE_FILE, SURROGATE_FILE)]
    return next((date for date in found if is_date(date)), None)


def of_surrogate(compilation: dict[str, Any]) -> dict[str, Any]:
    """Of a compilation's ``identity``, what its surrogate data depends on."""
    same = {name: value for name, value in compilation.items() if name not in NOT_OF_SURROGATE}
    return same | {name: compilation[name] > 0 for name in STREAM_WEIGHTS if name in compilation}


def mark_diverged(folder: Path) -> None:
    """Let compilations with other settings pass over the state in ``folder``, and over those of all ratios tried."""
    if folder.name.startswith(RATIO_FOLDER):
        folder = folder.parent
    for path in (folder / f"{STATE_FILE}.safetensors", *folder.glob(f"{RATIO_FOLDER}*/{STATE_FILE}.safetensors")):
        if is_file(path):
            tensors, metadata = read_tensors(path, STATE)
            write_tensors(path, STATE, tensors, metadata | {DIVERGED: True})


@contextmanager
def sound(path: Path) -> Iterator[None]:
    """Refuse, inside the block, what a checkpoint's file says and no compilation has written.

    Raises:
        MemoryFileError: instead of the error that the block raises.
    """
    try:
        yield
    except torch.OutOfMemoryError:
        raise
    except (LookupError, TypeError, AttributeError, ValueError, RuntimeError) as error:
        said = first_line(error)
        raise MemoryFileError(f"{path} is no checkpoint to go on from: {said}; delete it to start anew") from error


def pack_surrogate(surrogate: Surrogate) -> Stored:
    """The samples, each one's teacher hidden states, (supervised tokens, H), in a tensor of its own: none is copied."""
    samples = [surrogate.reconstruction, *surrogate.train, *surrogate.held_out]
    rows = [{name: value for name, value in vars(sample).items() if name != "teacher_hidden"} for sample in samples]
    hidden = {f"hidden.{index}": sample.teacher_hidden for index, sample in enumerate(samples)}
    return hidden, {"rows": rows, "train": len(surrogate.train)}


def unpack_surrogate(
    tensors: dict[str, torch.Tensor], metadata: dict[str, Any], device: torch.device, budget: float = math.inf
) -> Surrogate:
    """What ``pack_surrogate`` packed, with ``budget`` bytes of hidden states on ``device`` and the rest as they are."""
    states = TeacherStates(budget)
    for index, row in enumerate(metadata["rows"]):
        found, rows = tensors[f"hidden.{index}"].shape, len(row["response_ids"])
        require(len(found) == 2 and found[0] == rows > 0, f"hidden.{index}", tuple(found), f"({rows}, hidden size)")
        require(row["weight"] > 0, "weight", row["weight"], "more than 0")
    require(0 <= metadata["train"] < len(metadata["rows"]), "train", metadata["train"], "fewer than there are rows")
    samples = [
        Sample(
            row["stream"],
            read_query(row["query"]),
            tuple(row["query_ids"]),
            tuple(row["response_ids"]),
            states.load(tensors[f"hidden.{index}"], device),
            row["weight"],
        )
        for index, row in enumerate(metadata["rows"])
    ]
    train = metadata["train"]
    return Surrogate(samples[0], tuple(samples[1 : train + 1]), tuple(samples[train + 1 :]))


def remove_checkpoint(folder: str | os.PathLike) -> None:
    """Delete a compilation's checkpoint, those of all ratios tried included; other files are left alone.

    Raises:
        MemoryFileError: the folder is a link, or may not be read and written.
    """
    path = Path(folder)
    check_folder(path)
    with os_errors(f"cannot remove the checkpoint {path}"):
        for tried in path.glob(f"{RATIO_FOLDER}*"):
            if not tried.is_symlink():
                remove_checkpoint(tried)
        for file in path.glob(".*") if path.is_dir() else ():
            if _PARTIAL_FILE.fullmatch(file.name):
                file.unlink(missing_ok=True)
        for file in path.glob("*.safetensors"):
            if _FILE.fullmatch(file.name) and (file.is_symlink() or _IDENTITY in read_metadata(file)):
                file.unlink(missing_ok=True)
        if path.is_dir() and not any(path.iterdir()):
            path.rmdir()


def identity(
    settings: CompileSettings, source_sha256: str, fingerprint: dict[str, str], queries: Sequence[str]
) -> dict[str, Any]:
    """What must be the same for a run to go on from a checkpoint, JSON-ready."""
    query_digest = hashlib.sha256(json.dumps(list(queries)).encode()).hexdigest()
    fields = asdict(settings) | {"text": source_sha256, "queries": query_digest} | fingerprint
    return json.loads(json.dumps(fields))
