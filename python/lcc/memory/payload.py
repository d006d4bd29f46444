"""What a memory holds for the model."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Protocol

import torch

from ..errors import InputError
from ..modeling.adapter import Adapter
from ..modeling.kv import KV
from ..utils.values import check, quoted
from .codes import BY_DTYPE, Codes
from .metadata import AdapterRecord

FLOAT = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
# What stands behind a layer's name in the names of an adapter's tensors, as in peft's files.
DOWN, UP = ".lora_A.weight", ".lora_B.weight"


class Payload(Protocol):
    """Tensors that a model reads in place of a text.

    Attributes:
        kind: recorded in the file: a reader that does not know it refuses the memory.
    """

    kind: ClassVar[str]

    @property
    def dtype(self) -> str:
        """The dtype of its numbers, such as ``float32``."""
        ...

    def tensors(self) -> dict[str, torch.Tensor]:
        """All tensors, under the names that they have in the file."""
        ...

    def to(self, device: torch.device | str, dtype: torch.dtype | None = None) -> Payload:
        """The same payload on ``device``, and float numbers in ``dtype``; raises InputError if they overflow in it."""
        ...

    def metadata(self) -> dict[str, Any]:
        """What the file says of it beside its tensors."""
        ...

    def shape(self) -> dict[str, Any]:
        """What ``lcc inspect`` says of its size."""
        ...

    def detached(self) -> Payload:
        """The same payload, no gradient behind it."""
        ...

    def check(self) -> None:
        """Refuse what a model must not read; raises InputError."""
        ...


@dataclass(frozen=True)
class KVPayload:
    """K and V of the buffer tokens.

    Attributes:
        kv: keys before rotation, and values, (layers, kv_heads, K, head_dim); float, int8 or float8_e4m3fn; int4 is
            uint8 (layers, kv_heads, K, head_dim / 2), as ``lk.pack_int4`` gives it.
        key_scale: what int8 or fp8 keys are multiplied by, (layers, kv_heads, head_dim) float32; int4 keys by a scale
            for each 32 tokens, (layers, kv_heads, ceil(K / 32), head_dim) bfloat16. None for float keys.
        value_scale: the same for values, one a token, (layers, kv_heads, K).
    """

    kind: ClassVar[str] = "kv"

    kv: KV
    key_scale: torch.Tensor | None = None
    value_scale: torch.Tensor | None = None

    @classmethod
    def of(cls, tensors: Mapping[str, torch.Tensor], metadata: Mapping[str, Any] | None = None) -> KVPayload:
        """The payload of a file, whose metadata says nothing more of it.

        Raises:
            KeyError: keys or values are missing.
            TypeError: there is another tensor besides.
        """
        rest = dict(tensors)
        kv = KV(rest.pop("keys"), rest.pop("values"))
        if unknown := rest.keys() - {"key_scale", "value_scale"}:
            raise TypeError(f"the tensors {', '.join(map(quoted, sorted(unknown)))}")
        return cls(kv, **rest)

    def tensors(self) -> dict[str, torch.Tensor]:
        """K, V and the scales there are."""
        scales = {"key_scale": self.key_scale, "value_scale": self.value_scale}
        return {"keys": self.kv.keys, "values": self.kv.values} | {
            name: scale for name, scale in scales.items() if scale is not None
        }

    def metadata(self) -> dict[str, Any]:
        """Nothing."""
        return {}

    def shape(self) -> dict[str, Any]:
        """The dimensions of the keys."""
        return dict(zip(("layers", "kv_heads", "buffer_tokens", "head_dim"), self.dims, strict=True))

    def detached(self) -> KVPayload:
        """The same payload, no gradient behind its K and V."""
        return replace(self, kv=replace(self.kv, keys=self.kv.keys.detach(), values=self.kv.values.detach()))

    @property
    def codes(self) -> Codes | None:
        """The format of quantised K and V; None for float ones."""
        return BY_DTYPE.get(self.kv.keys.dtype)

    @property
    def dims(self) -> tuple[int, int, int, int]:
        """(layers, kv_heads, K, head_dim)."""
        layers, heads, tokens, width = self.kv.keys.shape
        return layers, heads, tokens, 2 * width if self.codes and self.codes.packed else width

    @property
    def dtype(self) -> str:
        """The dtype of K and V, such as ``float32`` or ``int4``."""
        return "int4" if self.codes and self.codes.packed else str(self.kv.keys.dtype).removeprefix("torch.")

    def numbers(self, dtype: torch.dtype) -> KV:
        """K and V as the model reads them, in ``dtype``."""
        if self.codes is None or self.key_scale is None or self.value_scale is None:
            return replace(self.kv, keys=self.kv.keys.to(dtype), values=self.kv.values.to(dtype))
        return self.codes.numbers(self.kv, self.key_scale, self.value_scale, dtype)

    def check(self) -> None:
        """Refuse K, V or scales that a model must not read.

        Raises:
            InputError: shapes or dtypes that do not belong together; NaN or infinity; scales that are missing, not
                finite, or not positive.
        """
        if self.kv.start is not None:
            raise InputError("a memory holds keys before rotation: call kv.unrotated(model)")
        keys, values = self.kv.keys, self.kv.values
        if keys.ndim != 4 or 0 in keys.shape or keys.shape != values.shape:
            raise InputError(
                f"keys {tuple(keys.shape)} and values {tuple(values.shape)} must both be "
                "(layers, kv_heads, K, head_dim), and not empty"
            )
        if keys.dtype != values.dtype or keys.dtype not in (*FLOAT, *BY_DTYPE):
            raise InputError(
                f"keys are {keys.dtype} and values {values.dtype}: both must be of one float dtype, or int8, "
                "float8_e4m3fn, or uint8 (two int4 channels each)"
            )
        for name, tensor in (("keys", keys), ("values", values)):
            if not _finite(tensor):
                raise InputError(f"the memory's {name} hold NaN or infinity: compile the text again")
        self._check_scale("key_scale", self.key_scale, self.codes.key_scales(self.dims) if self.codes else ())
        self._check_scale("value_scale", self.value_scale, keys.shape[:3])

    def _check_scale(self, name: str, scale: torch.Tensor | None, shape: tuple[int, ...]) -> None:
        if self.codes is None:
            if scale is not None:
                raise InputError(f"a {self.dtype} memory takes no {name}: scales belong to quantised memories")
        elif scale is None:
            raise InputError(f"{name} is missing: a {self.dtype} memory cannot be read without it")
        elif scale.shape != shape or scale.dtype != self.codes.scales:
            raise InputError(f"{name} is {scale.dtype} {(*scale.shape,)}; it must be {self.codes.scales} {(*shape,)}")
        elif not _finite(scale) or not bool((scale > 0).all()):
            raise InputError(f"{name} holds NaN, infinity, zero or a negative number: quantise the float memory again")

    def to(self, device: torch.device | str, dtype: torch.dtype | None = None) -> KVPayload:
        """The same payload on ``device``, and float K and V in ``dtype``.

        Raises:
            InputError: ``dtype`` is given for quantised K and V, or numbers overflow in it.
        """
        if self.codes and dtype is not None:
            raise InputError(f"the memory is {self.dtype} and stays so; attaching turns it into the model's dtype")
        moved: dict[str, Any] = {name: tensor.to(device) for name, tensor in self.tensors().items()}
        kv = KV(moved.pop("keys").to(dtype=dtype), moved.pop("values").to(dtype=dtype))
        if not (_finite(kv.keys) and _finite(kv.values)):
            raise InputError(f"the memory's numbers are too large for {dtype}: take bfloat16 or float32")
        return replace(self, kv=kv, **moved)


@dataclass(frozen=True)
class AdapterPayload:
    """A LoRA that acts on the model's answers; there are no buffer tokens (CDLM, arXiv 2605.28889).

    Attributes:
        adapter: A and B of one rank and one float dtype, by the names of the linear layers in the plain model.
    """

    kind: ClassVar[str] = "adapter"

    adapter: Adapter

    @classmethod
    def of(cls, tensors: Mapping[str, torch.Tensor], metadata: Mapping[str, Any]) -> AdapterPayload:
        """The payload of a file.

        Raises:
            KeyError: the metadata says nothing of it.
            TypeError: there is a tensor besides, or the metadata is another adapter's.
            InputError: the metadata is not as ``AdapterRecord``, or as ``check``.
        """
        record: Any = metadata[cls.kind]
        check(cls.kind, record, AdapterRecord)
        payload = cls.from_tensors(tensors, record["alpha"], record["cache_sharing"])
        payload.check()
        if payload.metadata()[cls.kind] != record:
            raise TypeError("its rank and targets are not those of its tensors")
        return payload

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, torch.Tensor], alpha: float, cache_sharing: bool) -> AdapterPayload:
        """The payload of what ``tensors`` returned, and the rest of an ``Adapter``.

        Raises:
            TypeError: there is a tensor besides.
        """
        down, up = ({n.removesuffix(end): t for n, t in tensors.items() if n.endswith(end)} for end in (DOWN, UP))
        if not down or down.keys() != up.keys() or len(tensors) != 2 * len(down):
            raise TypeError("the tensors are no A and B of linear layers")
        return cls(Adapter(down, up, alpha, cache_sharing))

    def tensors(self) -> dict[str, torch.Tensor]:
        """A and B of every layer, called as peft calls them."""
        down, up = self.adapter.down, self.adapter.up
        return {name + DOWN: tensor for name, tensor in down.items()} | {name + UP: t for name, t in up.items()}

    def metadata(self) -> dict[str, Any]:
        """``adapter``: see ``AdapterRecord``."""
        adapter = self.adapter
        targets = sorted({name.rpartition(".")[2] for name in adapter.down})
        record = AdapterRecord(
            rank=adapter.rank, alpha=float(adapter.alpha), targets=targets, cache_sharing=adapter.cache_sharing
        )
        return {self.kind: record}

    def shape(self) -> dict[str, Any]:
        """How many linear layers it adapts."""
        return {"adapted_layers": len(self.adapter.down), "buffer_tokens": 0}

    def detached(self) -> AdapterPayload:
        """The same payload, no gradient behind it."""
        return self._mapped(torch.Tensor.detach)

    @property
    def dtype(self) -> str:
        """The dtype of A and B, such as ``float32``."""
        return str(next(iter(self.adapter.down.values())).dtype).removeprefix("torch.")

    def check(self) -> None:
        """Refuse A or B that a model must not read.

        Raises:
            InputError: no layer; shapes or dtypes that do not belong together; NaN or infinity; an alpha that is not
                positive and finite.
        """
        down, up, alpha = self.adapter.down, self.adapter.up, self.adapter.alpha
        if not down or down.keys() != up.keys():
            raise InputError("an adapter holds A and B of the same linear layers, of one at least")
        if not 0 < alpha < math.inf:
            raise InputError(f"the adapter's alpha is {alpha}; it must be above 0, and finite")
        first = next(iter(down.values()))
        for name, a in down.items():
            b = up[name]
            flat = a.ndim != 2 or b.ndim != 2 or 0 in (*a.shape, *b.shape)
            if flat or not len(a) == b.shape[1] == len(first):
                raise InputError(
                    f"A {tuple(a.shape)} and B {tuple(b.shape)} of {quoted(name)} must be (rank, in) and (out, rank), "
                    "of one rank in all layers"
                )
            if not a.dtype == b.dtype == first.dtype or a.dtype not in FLOAT:
                raise InputError(f"A is {a.dtype} and B {b.dtype} of {quoted(name)}: all must be of one float dtype")
            if not (_finite(a) and _finite(b)):
                raise InputError(f"the adapter of {quoted(name)} holds NaN or infinity: compile the text again")

    def to(self, device: torch.device | str, dtype: torch.dtype | None = None) -> AdapterPayload:
        """The same payload on ``device``, in ``dtype``.

        Raises:
            InputError: numbers overflow in it.
        """
        moved = self._mapped(lambda tensor: tensor.to(device, dtype))
        if not all(map(_finite, moved.tensors().values())):
            raise InputError(f"the adapter's numbers are too large for {dtype}: take bfloat16 or float32")
        return moved

    def _mapped(self, change: Callable[[torch.Tensor], torch.Tensor]) -> AdapterPayload:
        down, up = ({n: change(t) for n, t in part.items()} for part in (self.adapter.down, self.adapter.up))
        return replace(self, adapter=replace(self.adapter, down=down, up=up))


def _finite(tensor: torch.Tensor) -> bool:
    wide = tensor.float() if tensor.dtype in BY_DTYPE else tensor
    return bool(wide.isfinite().all())
