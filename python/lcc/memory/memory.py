"""``Memory``: a compiled text, as one file that any copy of the same model can read."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ..errors import InputError, MemoryFileError
from ..modeling.fingerprint import fingerprint, require_same, tokenizer_fingerprint
from ..modeling.kv import KV
from ..text.chat_format import Query
from ..utils.tensor_files import read_tensors, write_tensors
from .metadata import check_metadata

FORMAT = "lcc-memory-1"
FLOAT = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
QUANTIZED = (torch.int8, torch.float8_e4m3fn)


@dataclass(frozen=True)
class Memory:
    """The K and V of the buffer tokens, and all that is needed to use them and to know where they came from.

    Attributes:
        kv: keys before rotation, and values, (layers, kv_heads, K, head_dim); float, int8 or float8_e4m3fn.
        prefix_ids: tokens that stand before the memory (BOS, system prompt, user header); empty when queries were
            trained without them.
        ratio: context tokens a buffer token, as asked for.
        source_tokens, source_sha256: of the text.
        rope: the model's rope parameters.
        fingerprint: digests of the model and the tokenizer; see ``lcc.fingerprint``.
        settings: the ``CompileSettings`` as a dict.
        curve: measurements while compiling: ``step``, ``loss``, ``held_out_kl``, ``seconds``.
        questions: what the model asked itself: questions, and conversations that end in one.
        key_scale: what int8 or fp8 keys are multiplied by, (layers, kv_heads, head_dim) float32; None for float keys.
        value_scale: the same for values, one a token, (layers, kv_heads, K) float32.
        quantization: what quantising cost, measured: see ``quantize``.
        certificate: what the memory keeps and changes, measured when it was compiled: see docs/memory-format.md.
        ratio_search: with ``ratio="auto"``, the target and the ratios that were tried.
        date: what the chat template was told when the memory was compiled (ISO 8601), if it writes the date.

    Raises:
        InputError: shapes or dtypes that do not belong together; NaN or infinity; scales that are missing, not
            finite, or not positive; metadata that is not as in ``lcc.memory.metadata``.
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
    questions: tuple[Query, ...] = ()
    key_scale: torch.Tensor | None = None
    value_scale: torch.Tensor | None = None
    quantization: dict[str, Any] | None = None
    certificate: dict[str, Any] | None = None
    ratio_search: dict[str, Any] | None = None
    date: str | None = None

    def __post_init__(self) -> None:
        self.check()

    def check(self) -> None:
        """Refuse K, V or scales that a model must not read; see the class for what is raised."""
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
        check_metadata(vars(self))

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

    @property
    def quantized(self) -> bool:
        """Whether K and V are int8 or fp8 numbers that the scales turn into what the model reads."""
        return self.kv.keys.dtype in QUANTIZED

    @property
    def buffer_tokens(self) -> int:
        """K."""
        return len(self.kv)

    @property
    def kv_bytes(self) -> int:
        """Bytes of the buffer tokens' K and V, scales included."""
        return sum(tensor.nbytes for tensor in self.tensors().values())

    @property
    def dtype(self) -> str:
        """The dtype of K and V, such as ``float32``."""
        return str(self.kv.keys.dtype).removeprefix("torch.")

    def tensors(self) -> dict[str, torch.Tensor]:
        """K, V and the scales there are, under the names that they have in the file."""
        scales = {"key_scale": self.key_scale, "value_scale": self.value_scale}
        return {"keys": self.kv.keys, "values": self.kv.values} | {
            name: scale for name, scale in scales.items() if scale is not None
        }

    def _metadata(self) -> dict[str, Any]:
        """Everything but the tensors."""
        rest = {name: value for name, value in vars(self).items() if name not in ("kv", "key_scale", "value_scale")}
        return rest | {"dtype": self.dtype}

    def save(self, path: str | os.PathLike) -> None:
        """Write the memory to one safetensors file, atomically; docs/memory-format.md says what is in it.

        Raises:
            MemoryFileError: the file cannot be written; an older one stays as it was.
        """
        write_tensors(path, FORMAT, self.tensors(), self._metadata())

    @classmethod
    def load(cls, path: str | os.PathLike) -> Memory:
        """Read a memory.

        Raises:
            MemoryFileError: no such file, or a truncated, tampered or foreign one, or one that holds NaN, or scales
                that are missing, NaN or zero.
        """
        tensors, metadata = read_tensors(path, FORMAT)
        metadata.pop("dtype", None)
        try:
            kv = KV(tensors.pop("keys"), tensors.pop("values"))
            for name in ("prefix_ids", "questions"):
                metadata[name] = _as_tuples(metadata[name])
            fields: dict[str, Any] = {**metadata, **tensors}
            return cls(kv, **fields)
        except (KeyError, TypeError) as error:
            raise MemoryFileError(f"{path} lacks a part of a memory, or has one too many: {error}") from error
        except InputError as error:
            raise MemoryFileError(f"{path} is no memory that can be used: {error}") from error

    def verify(self, model: PreTrainedModel | None, tokenizer: PreTrainedTokenizerBase | None = None) -> None:
        """Check that this memory was compiled for this very model and tokenizer; what is None is not checked.

        Raises:
            InputError: the model carries an active adapter, or its weights cannot be read.
            MismatchError: naming the fields that differ.
        """
        found = {} if model is None else fingerprint(model)
        found |= {} if tokenizer is None else tokenizer_fingerprint(tokenizer)
        require_same(self.fingerprint, found)

    def to(self, device: torch.device | str, dtype: torch.dtype | None = None) -> Memory:
        """The same memory with its tensors on ``device``, and a float memory's K and V in ``dtype``.

        Raises:
            InputError: a dtype for a quantised memory, whose dtype is a part of it, or one that overflows.
        """
        if self.quantized and dtype is not None:
            raise InputError(f"the memory is {self.dtype} and stays so; attaching turns it into the model's dtype")
        moved: dict[str, Any] = {name: tensor.to(device) for name, tensor in self.tensors().items()}
        kv = KV(moved.pop("keys").to(dtype=dtype), moved.pop("values").to(dtype=dtype))
        if not (_finite(kv.keys) and _finite(kv.values)):
            raise InputError(f"the memory's numbers are too large for {dtype}: take bfloat16 or float32")
        return replace(self, kv=kv, **moved)

    def quantize(
        self, dtype: str, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, **options: Any
    ) -> Memory:
        """The same memory in a quarter of a float32's bytes, with what that costs in ``quantization``.

        See ``lcc.memory.quantization.quantize`` for the arguments, the arithmetic and what is raised.
        """
        from .quantization import quantize

        return quantize(self, dtype, model, tokenizer, **options)

    def summary(self) -> dict[str, Any]:
        """What ``lcc inspect`` shows: everything but the tensors; sizes in bytes."""
        layers, heads, tokens, width = self.kv.keys.shape
        shape = {"layers": layers, "kv_heads": heads, "buffer_tokens": tokens, "head_dim": width}
        metadata = self._metadata()
        sizes = {name: tensor.nbytes for name, tensor in self.tensors().items()}
        sizes["metadata"] = len(json.dumps(metadata).encode())
        del metadata["questions"]
        return shape | {"kv_bytes": self.kv_bytes, "bytes": sizes, "self_questions": len(self.questions)} | metadata


def _as_tuples(value: Any) -> Any:
    """JSON's lists as the tuples that they were."""
    return tuple(map(_as_tuples, value)) if isinstance(value, list) else value


def _finite(tensor: torch.Tensor) -> bool:
    wide = tensor.float() if tensor.dtype in QUANTIZED else tensor
    return bool(wide.isfinite().all())
