"""``Memory``: a compiled text, as one file that any copy of the same model can read."""

from __future__ import annotations

import os
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from .errors import MemoryFileError, MismatchError
from .files import read_tensors, write_tensors
from .fingerprint import fingerprint
from .kv import KV

FORMAT = "lcc-memory-1"


@dataclass(frozen=True)
class Memory:
    """The K and V of the buffer tokens, and all that is needed to use them and to know where they came from.

    Attributes:
        kv: keys before rotation, and values, (layers, kv_heads, K, head_dim).
        prefix_ids: tokens that stand before the memory (BOS, system prompt, user header); empty when queries were
            trained without them.
        ratio: context tokens a buffer token, as asked for.
        source_tokens, source_sha256: of the text.
        rope: the model's rope parameters.
        fingerprint: digests of the model and the tokenizer; see ``lcc.fingerprint``.
        settings: the ``CompileSettings`` as a dict.
        curve: measurements while compiling: ``step``, ``loss``, ``held_out_kl``, ``seconds``.
        questions: how many questions the model asked itself.
    """

    kv: KV
    prefix_ids: tuple[int, ...]
    ratio: float
    source_tokens: int
    source_sha256: str
    rope: dict[str, Any]
    fingerprint: dict[str, str]
    settings: dict[str, Any]
    curve: list[dict[str, float]] = field(default_factory=list)
    questions: tuple[str, ...] = ()

    @property
    def buffer_tokens(self) -> int:
        """K."""
        return len(self.kv)

    @property
    def kv_bytes(self) -> int:
        """Bytes of the buffer tokens' K and V."""
        return self.kv.nbytes

    @property
    def dtype(self) -> str:
        """The dtype of K and V, such as ``float32``."""
        return str(self.kv.keys.dtype).removeprefix("torch.")

    def save(self, path: str | os.PathLike) -> None:
        """Write the memory to one safetensors file, atomically.

        Raises:
            MemoryFileError: the file cannot be written; an older one stays as it was.
        """
        metadata = {name: value for name, value in vars(self).items() if name != "kv"} | {"dtype": self.dtype}
        write_tensors(path, FORMAT, {"keys": self.kv.keys, "values": self.kv.values}, metadata)

    @classmethod
    def load(cls, path: str | os.PathLike) -> Memory:
        """Read a memory.

        Raises:
            MemoryFileError: no such file, or a truncated, tampered or foreign one.
        """
        tensors, metadata = read_tensors(path, FORMAT)
        metadata.pop("dtype", None)
        try:
            kv = KV(tensors["keys"], tensors["values"])
            metadata["prefix_ids"] = tuple(metadata["prefix_ids"])
            metadata["questions"] = tuple(metadata["questions"])
            return cls(kv, **metadata)
        except (KeyError, TypeError) as error:
            raise MemoryFileError(f"{path} lacks a part of a memory: {error}") from error

    def verify(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
        """Check that this memory was compiled for this very model and tokenizer.

        Raises:
            MismatchError: naming the fields that differ.
        """
        found = fingerprint(model, tokenizer)
        differing = [name for name, digest in self.fingerprint.items() if found.get(name) != digest]
        if differing:
            raise MismatchError(
                f"the memory was compiled for another {' and '.join(name.replace('_', ' ') for name in differing)} "
                f"({', '.join(differing)}): load the one it was compiled for, or compile the text again"
            )

    def to(self, device: torch.device | str, dtype: torch.dtype) -> Memory:
        """The same memory with K and V on ``device`` in ``dtype``."""
        fields = {name: value for name, value in vars(self).items() if name != "kv"}
        return Memory(KV(self.kv.keys.to(device, dtype), self.kv.values.to(device, dtype)), **fields)

    def summary(self) -> dict[str, Any]:
        """What ``lcc inspect`` shows: everything but the tensors."""
        layers, heads, tokens, width = self.kv.keys.shape
        shape = {"layers": layers, "kv_heads": heads, "buffer_tokens": tokens, "head_dim": width}
        rest = {name: value for name, value in asdict(self).items() if name not in ("kv", "questions")}
        return shape | {"dtype": self.dtype, "kv_bytes": self.kv_bytes, "self_questions": len(self.questions)} | rest
