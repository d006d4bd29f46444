"""What a memory has that an older one has not: a file that turns the old memory into the new one, bit for bit.

The new bytes are XORed with those of the old memory that stand in the same place. Where nothing changed that leaves
zeros, and where tokens were added it leaves them as they are. Bytes of one significance stand together, because the
exponents of neighbouring numbers are alike, and all is compressed.
"""

from __future__ import annotations

import json
import math
import os
import zlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypedDict

import numpy as np
import torch

from ..errors import InputError, MemoryFileError, MismatchError
from ..utils.outputs import Output
from ..utils.safe_json import JSONError, finite_json, parse_json
from ..utils.tensor_files import content_digest, load_stored, ours, save_tensors, tensor_bytes
from ..utils.values import check, quoted, require
from .file_format import DELTA_FORMAT, parse_memory
from .keys import PublicKey
from .memory import Memory, require_memory
from .signing import require_signed

# The new memory has at most so many bytes for each byte of the old one and of the delta.
MOST_GROWTH = 64
DTYPES = {
    str(dtype).removeprefix("torch."): dtype
    for dtype in (torch.float16, torch.bfloat16, torch.float32, torch.float64, torch.int8, torch.uint8,
                  torch.float8_e4m3fn)
}  # fmt: skip
FIELDS, TENSOR = "metadata", "tensor."


class Shape(TypedDict):
    """A tensor of the new memory."""

    dtype: str
    shape: list[int]


class Header(TypedDict):
    """What a delta says beside its bytes: digests as of the memories' files, and the new memory's parts."""

    old: str
    new: str
    tensors: dict[str, Shape]
    fields_bytes: int
    removed: list[str]


@dataclass(frozen=True)
class Delta:
    """The difference of two memories.

    Attributes:
        header: see ``Header``; ``fields_bytes`` counts the JSON of the metadata that differs, ``removed`` are fields
            that the new memory has not.
        packed: compressed bytes, (bytes,) uint8: of ``metadata``, and of each tensor as ``tensor.NAME``.
    """

    header: Header
    packed: dict[str, torch.Tensor]

    @classmethod
    def between(cls, old: Memory, new: Memory) -> Delta:
        """What turns ``old`` into ``new``.

        Raises:
            InputError: the new memory is too large beside the old one, or one of the two is no memory.
        """
        require_memory(old)
        require_memory(new)
        before, after = finite_json(old.metadata()), finite_json(new.metadata())
        tensors = new.tensors()
        packed = {TENSOR + name: _packed(_difference(name, tensor, old.tensors())) for name, tensor in tensors.items()}
        changed = {name: value for name, value in after.items() if name not in before or before[name] != value}
        fields = json.dumps(changed, sort_keys=True).encode()
        packed[FIELDS] = _packed(fields, _dictionary(before))
        header = Header(
            old=_digest_of(old),
            new=_digest_of(new),
            tensors={name: _shape_of(tensor) for name, tensor in tensors.items()},
            fields_bytes=len(fields),
            removed=sorted(before.keys() - after.keys()),
        )
        delta = cls(header, packed)
        delta._check_growth(old)
        return delta

    @property
    def nbytes(self) -> int:
        """Bytes of what is compressed."""
        return sum(tensor.nbytes for tensor in self.packed.values())

    def apply(self, old: Memory) -> Memory:
        """The new memory, bit for bit.

        Raises:
            MismatchError: the delta was made for another memory than ``old``.
            MemoryFileError: the delta is damaged, or makes something else than it says.
            InputError: the new memory is too large beside the old one.
        """
        require_memory(old)
        if _digest_of(old) != self.header["old"]:
            raise MismatchError(
                "the delta was made for another memory, or for this one before its metadata changed, as lcc certify "
                "changes it: take the file that the delta was made from"
            )
        self._check_growth(old)
        before = finite_json(old.metadata())
        tensors = {name: self._tensor(name, old.tensors()) for name in self.header["tensors"]}
        metadata = {name: value for name, value in before.items() if name not in self.header["removed"]}
        metadata |= self._fields(before)
        if content_digest(tensors, metadata) != self.header["new"]:
            raise MemoryFileError("the delta is damaged: it makes another memory than it says")
        payload, fields = parse_memory("the delta's memory", tensors, metadata)
        try:
            return Memory(payload, **fields)
        except (TypeError, InputError) as error:
            raise MemoryFileError(f"the delta makes no memory that can be used: {error}") from error

    def makes(self, new: Memory) -> bool:
        """Whether it turns a memory into ``new``."""
        return self.header["new"] == _digest_of(new)

    def save(self, path: str | os.PathLike) -> None:
        """Write the delta to one safetensors file, atomically; docs/memory-format.md says what is in it.

        Raises:
            MemoryFileError: the file cannot be written; an older one stays as it was.
        """
        save_tensors(path, DELTA_FORMAT, self.packed, dict(self.header))

    @classmethod
    def load(cls, path: str | os.PathLike, trusted: Iterable[PublicKey] | None = None) -> Delta:
        """Read a delta.

        Args:
            trusted: as of ``Memory.load``.

        Raises:
            MemoryFileError: no such file, or a damaged or foreign one; or as ``Memory.load`` with ``trusted``.
            MismatchError, InputError: as ``Memory.load`` with ``trusted``.
        """
        stored = load_stored(path, DELTA_FORMAT, apart=True)
        if trusted is not None:
            require_signed(path, stored, trusted)
        try:
            check("the delta", stored.metadata, Header)
            delta = cls(stored.metadata, stored.tensors)  # type: ignore[arg-type]
            delta._check_parts()
        except InputError as error:
            raise MemoryFileError(f"{path} is no delta that can be used: {error}") from error
        return delta

    def _check_parts(self) -> None:
        tensors = self.header["tensors"]
        wanted = {FIELDS, *(TENSOR + name for name in tensors)}
        if wanted != self.packed.keys():
            raise InputError(f"it lacks, or has besides, {', '.join(map(quoted, sorted(wanted ^ self.packed.keys())))}")
        for name, packed in self.packed.items():
            require(packed.dtype == torch.uint8 and packed.ndim == 1, name, packed.dtype, "bytes")
        for name, shape in tensors.items():
            require(shape["dtype"] in DTYPES, f"{name}.dtype", shape["dtype"], f"one of {', '.join(DTYPES)}")
            sizes = shape["shape"]
            require(bool(sizes) and min(sizes) >= 1, f"{name}.shape", sizes, "sizes of at least 1")
        require(self.header["fields_bytes"] >= 2, "fields_bytes", self.header["fields_bytes"], "2 or more")

    def _check_growth(self, old: Memory) -> None:
        """Refuse what would take far more memory than the two files."""
        sizes = [math.prod(each["shape"]) * DTYPES[each["dtype"]].itemsize for each in self.header["tensors"].values()]
        most = MOST_GROWTH * (old.nbytes + len(json.dumps(old.metadata())) + self.nbytes)
        if sum(sizes) + self.header["fields_bytes"] > most:
            raise InputError(
                f"the new memory would have more than {MOST_GROWTH} bytes for each byte of the old one and of the "
                "delta: keep it as a file of its own"
            )

    def _tensor(self, name: str, old: Mapping[str, torch.Tensor]) -> torch.Tensor:
        shape = self.header["tensors"][name]
        base = _base(name, shape, old)
        planes = np.frombuffer(self._unpacked(TENSOR + name, base.size), np.uint8)
        content = planes.reshape(base.shape[1], base.shape[0]).T ^ base
        return torch.from_numpy(content).reshape(-1).view(DTYPES[shape["dtype"]]).reshape(shape["shape"])

    def _fields(self, before: dict[str, Any]) -> dict[str, Any]:
        content = self._unpacked(FIELDS, self.header["fields_bytes"], _dictionary(before))
        try:
            fields = parse_json(content)
            check("the metadata", fields, dict[str, Any])
        except (JSONError, InputError) as error:
            raise MemoryFileError(f"the delta is damaged: its metadata {error}") from error
        return fields

    def _unpacked(self, name: str, size: int, dictionary: bytes = b"") -> bytes:
        """What ``_packed`` was given, of which ``size`` bytes are known to be right.

        Raises:
            MemoryFileError: it is of another size, or cannot be decompressed.
        """
        stream = zlib.decompressobj(zdict=dictionary)
        try:
            content = stream.decompress(self.packed[name].numpy().tobytes(), size + 1)
        except zlib.error as error:
            raise MemoryFileError(f"the delta is damaged: {quoted(name)} cannot be decompressed: {error}") from error
        if len(content) != size or not stream.eof or stream.unused_data:
            raise MemoryFileError(f"the delta is damaged: {quoted(name)} has not {size} bytes")
        return content


def delta_output(path: Path, inputs: Iterable[Path] = (), force: bool = False) -> Output:
    """The file that a delta goes to: it replaces deltas."""
    return Output(path, tuple(inputs), force, ours(DELTA_FORMAT))


def _digest_of(memory: Memory) -> str:
    """As the file that ``Memory.save`` writes has it."""
    return content_digest(memory.tensors(), finite_json(memory.metadata()))


def _shape_of(tensor: torch.Tensor) -> Shape:
    return Shape(dtype=str(tensor.dtype).removeprefix("torch."), shape=list(tensor.shape))


def _base(name: str, shape: Shape, old: Mapping[str, torch.Tensor]) -> np.ndarray:
    """(numbers, bytes of one) uint8: the old tensor's bytes where it has the same place, zeros elsewhere."""
    dtype, before = DTYPES[shape["dtype"]], old.get(name)
    base = torch.zeros(shape["shape"], dtype=dtype)
    if before is not None and before.dtype == dtype and before.ndim == base.ndim:
        common = tuple(slice(min(sizes)) for sizes in zip(base.shape, before.shape, strict=True))
        base[common] = before.detach().cpu()[common]
    return _bytes_of(base)


def _difference(name: str, tensor: torch.Tensor, old: Mapping[str, torch.Tensor]) -> bytes:
    """The bytes that are not those of the old memory, the first of each number in front."""
    return (_bytes_of(tensor) ^ _base(name, _shape_of(tensor), old)).T.tobytes()


def _bytes_of(tensor: torch.Tensor) -> np.ndarray:
    return np.frombuffer(tensor_bytes(tensor), np.uint8).reshape(-1, tensor.itemsize)


def _dictionary(before: dict[str, Any]) -> bytes:
    """What the new metadata probably repeats."""
    return json.dumps(before, sort_keys=True).encode()


def _packed(content: bytes, dictionary: bytes = b"") -> torch.Tensor:
    """(bytes,) uint8."""
    stream = zlib.compressobj(zdict=dictionary)
    return torch.frombuffer(bytearray(stream.compress(content) + stream.flush()), dtype=torch.uint8)
