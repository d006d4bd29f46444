"""A compilation's state on disk: the surrogate data once, the optimisation every so often."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from .errors import MemoryFileError, MismatchError
from .files import read_tensors, write_tensors
from .settings import CompileSettings
from .surrogate import Sample, Surrogate

STATE, SURROGATE = "lcc-state-1", "lcc-surrogate-1"


class Checkpoint:
    """A folder that belongs to one compilation: one text, model, tokenizer, query set and settings."""

    def __init__(self, folder: Path, identity: dict[str, Any]):
        self.folder, self.identity = folder, identity
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise MemoryFileError(f"cannot make the checkpoint folder {folder}: {error.strerror}") from error

    def save_surrogate(self, surrogate: Surrogate) -> None:
        """Write the samples with their teacher hidden states."""
        samples = [surrogate.reconstruction, *surrogate.train, *surrogate.held_out]
        rows = [{name: value for name, value in vars(sample).items() if name != "teacher_hidden"} for sample in samples]
        hidden = torch.cat([sample.teacher_hidden for sample in samples])
        self._write("surrogate", SURROGATE, {"hidden": hidden}, {"rows": rows, "train": len(surrogate.train)})

    def load_surrogate(self, device: torch.device) -> Surrogate | None:
        """The samples that an earlier run wrote, or None."""
        stored = self._read("surrogate", SURROGATE)
        if stored is None:
            return None
        tensors, metadata = stored
        sizes = [len(row["response_ids"]) for row in metadata["rows"]]
        samples = [
            Sample(row["stream"], row["query"], tuple(row["query_ids"]), tuple(row["response_ids"]), hidden)
            for row, hidden in zip(metadata["rows"], tensors["hidden"].to(device).split(sizes), strict=True)
        ]
        train = metadata["train"]
        return Surrogate(samples[0], tuple(samples[1 : train + 1]), tuple(samples[train + 1 :]))

    def save_state(self, tensors: dict[str, torch.Tensor], metadata: dict[str, Any]) -> None:
        """Write the optimisation's state."""
        self._write("state", STATE, tensors, metadata)

    def load_state(self) -> tuple[dict[str, torch.Tensor], dict[str, Any]] | None:
        """The optimisation's last written state, or None."""
        return self._read("state", STATE)

    def _path(self, name: str) -> Path:
        return self.folder / f"{name}.safetensors"

    def _write(self, name: str, kind: str, tensors: dict[str, torch.Tensor], metadata: dict) -> None:
        write_tensors(self._path(name), kind, tensors, {"identity": self.identity} | metadata)

    def _read(self, name: str, kind: str) -> tuple[dict[str, torch.Tensor], dict[str, Any]] | None:
        if not self._path(name).exists():
            return None
        tensors, metadata = read_tensors(self._path(name), kind)
        differing = [key for key, value in self.identity.items() if metadata["identity"].get(key) != value]
        if differing:
            raise MismatchError(
                f"{self.folder} holds an unfinished compilation that differs in {', '.join(differing)}: finish it "
                "with what it was started with, name another checkpoint folder, or delete this one"
            )
        return tensors, metadata


def remove_checkpoint(folder: str | os.PathLike) -> None:
    """Delete a compilation's checkpoint; other files in the folder are left alone."""
    path = Path(folder)
    for name in ("surrogate", "state"):
        (path / f"{name}.safetensors").unlink(missing_ok=True)
    if path.is_dir() and not any(path.iterdir()):
        path.rmdir()


def identity(
    settings: CompileSettings, source_sha256: str, fingerprint: dict[str, str], queries: Sequence[str]
) -> dict[str, Any]:
    """What must be the same for a run to go on from a checkpoint, JSON-ready."""
    query_digest = hashlib.sha256(json.dumps(list(queries)).encode()).hexdigest()
    fields = asdict(settings) | {"text": source_sha256, "queries": query_digest} | fingerprint
    return json.loads(json.dumps(fields))
