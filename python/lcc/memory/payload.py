"""What a memory holds for the model."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, ClassVar, Protocol

import torch

from ..errors import InputError
from ..modeling.kv import KV
from ..utils.values import quoted

FLOAT = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
QUANTIZED = (torch.int8, torch.float8_e4m3fn)


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

    def check(self) -> None:
        """Refuse what a model must not read; raises InputError."""
        ...


@dataclass(frozen=True)
class KVPayload:
    """K and V of the buffer tokens.

    Attributes:
        kv: keys before rotation, and values, (layers, kv_heads, K, head_dim); float, int8 or float8_e4m3fn.
        key_scale: what int8 or fp8 keys are multiplied by, (layers, kv_heads, head_dim) float32; None for float keys.
        value_scale: the same for values, one a token, (layers, kv_heads, K) float32.
    """

    kind: ClassVar[str] = "kv"

    kv: KV
    key_scale: torch.Tensor | None = None
    value_scale: torch.Tensor | None = None

    @classmethod
    def of(cls, tensors: dict[str, torch.Tensor]) -> KVPayload:
        """The payload of a file.

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

    @property
    def quantized(self) -> bool:
        """Whether K and V are int8 or fp8 numbers that the scales turn into what the model reads."""
        return self.kv.keys.dtype in QUANTIZED

    @property
    def dtype(self) -> str:
        """The dtype of K and V, such as ``float32``."""
        return str(self.kv.keys.dtype).removeprefix("torch.")

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
        if keys.dtype != values.dtype or keys.dtype not in FLOAT + QUANTIZED:
            raise InputError(
                f"keys are {keys.dtype} and values {values.dtype}: both must be of one float dtype, or int8, or "
                "float8_e4m3fn"
            )
        for name, tensor in (("keys", keys), ("values", values)):
            if not _finite(tensor):
                raise InputError(f"the memory's {name} hold NaN or infinity: compile the text again")
        layers, heads, tokens, width = keys.shape
        self._check_scale("key_scale", self.key_scale, (layers, heads, width))
        self._check_scale("value_scale", self.value_scale, (layers, heads, tokens))

    def _check_scale(self, name: str, scale: torch.Tensor | None, shape: tuple[int, ...]) -> None:
        if not self.quantized:
            if scale is not None:
                raise InputError(f"a {self.dtype} memory takes no {name}: scales belong to int8 and fp8 memories")
        elif scale is None:
            raise InputError(f"{name} is missing: a {self.dtype} memory cannot be read without it")
        elif scale.shape != shape or scale.dtype != torch.float32:
            raise InputError(f"{name} is {scale.dtype} {tuple(scale.shape)}; it must be float32 {shape}")
        elif not _finite(scale) or not bool((scale > 0).all()):
            raise InputError(f"{name} holds NaN, infinity, zero or a negative number: quantise the float memory again")

    def to(self, device: torch.device | str, dtype: torch.dtype | None = None) -> KVPayload:
        """The same payload on ``device``, and float K and V in ``dtype``.

        Raises:
            InputError: ``dtype`` is given for quantised K and V, or numbers overflow in it.
        """
        if self.quantized and dtype is not None:
            raise InputError(f"the memory is {self.dtype} and stays so; attaching turns it into the model's dtype")
        moved: dict[str, Any] = {name: tensor.to(device) for name, tensor in self.tensors().items()}
        kv = KV(moved.pop("keys").to(dtype=dtype), moved.pop("values").to(dtype=dtype))
        if not (_finite(kv.keys) and _finite(kv.values)):
            raise InputError(f"the memory's numbers are too large for {dtype}: take bfloat16 or float32")
        return replace(self, kv=kv, **moved)


def _finite(tensor: torch.Tensor) -> bool:
    wide = tensor.float() if tensor.dtype in QUANTIZED else tensor
    return bool(wide.isfinite().all())
