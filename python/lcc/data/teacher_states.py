"""The teacher's hidden states: in memory up to a budget, memory-mapped from disk past it."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from ..errors import MemoryFileError


class TeacherStates:
    """Keeps hidden states where they were made until ``budget`` bytes are held, and on disk from then on.

    A file is unlinked as soon as it is mapped: its space is free again when the last of its rows is gone, also after
    a kill.

    Args:
        budget: bytes.
        folder: where files go; the system's temporary folder if None.
    """

    def __init__(self, budget: float, folder: Path | None = None):
        self._left, self._folder = budget, folder

    def keep(self, hidden: torch.Tensor) -> torch.Tensor:
        """``hidden`` (tokens, H) itself, or its copy on disk, a CPU tensor whose pages are read when they are touched.

        Raises:
            MemoryFileError: the folder cannot be written, or the disk is full.
        """
        if self._fits(hidden):
            return hidden
        try:
            handle, path = tempfile.mkstemp(suffix=".safetensors", dir=self._folder)
            os.close(handle)
            try:
                save_file({"hidden": hidden.cpu().contiguous()}, path)
                with safe_open(path, framework="pt") as file:
                    return file.get_tensor("hidden")
            finally:
                os.unlink(path)
        except (OSError, SafetensorError) as error:
            raise MemoryFileError(
                f"teacher states do not fit into memory, nor on disk: {error}; free space or raise teacher_gigabytes"
            ) from error

    def load(self, hidden: torch.Tensor, device: torch.device) -> torch.Tensor:
        """``hidden`` (tokens, H), mapped from a file, on ``device`` within the budget, and as it is past it."""
        return hidden.to(device) if self._fits(hidden) else hidden

    def _fits(self, hidden: torch.Tensor) -> bool:
        """Whether ``hidden`` is held, within what is left of the budget."""
        held = hidden.nbytes <= self._left
        self._left -= hidden.nbytes if held else 0
        return held
