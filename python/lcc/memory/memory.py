"""``Memory``: a compiled text, as one file that any copy of the same model can read."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from operator import itemgetter
from typing import Any

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ..errors import InputError, MemoryFileError
from ..modeling.fingerprint import fingerprint, require_same, tokenizer_fingerprint
from ..modeling.kv import KV
from ..text.chat_format import Query
from ..utils.hashing import json_digest, tensor_digest
from ..utils.tensor_files import file_bytes, load_stored, save_tensors
from .file_format import FORMAT, READABLE, parse_memory
from .keys import PublicKey
from .lineage import Ancestor, Made, Succession, succession, unrecorded
from .metadata import Budget, Section, Served, Update, check_metadata
from .payload import AdapterPayload, KVPayload, Payload
from .signing import require_signed


@dataclass(frozen=True)
class Memory:
    """What the model reads instead of a text, and all that is needed to use it and to know where it came from.

    Attributes:
        payload: the tensors.
        prefix_ids: tokens that stand before the memory (BOS, system prompt, user header). Empty if it was trained
            without them.
        ratio: context tokens a buffer token, as asked for.
        source_tokens, source_sha256: of the text.
        rope: the model's rope parameters.
        fingerprint: digests of the model and the tokenizer; see ``lcc.fingerprint``.
        settings: the settings of the compilation, by name.
        compiler: ``name`` of the compiler, and digests of its learned weights if it has any.
        curve: measurements while compiling: ``step``, ``loss``, ``held_out_kl``, ``seconds``.
        questions: what the model asked itself: questions, and conversations that end in one.
        asking: what came of asking itself: the asker's name, and how many questions were sampled, ended, were distinct,
            were about the text, and were kept; None if the model did not ask itself.
        quantization: the measured cost of quantising; see ``lcc.quantize``.
        certificate: what the memory keeps and changes, measured when it was compiled; see docs/memory-format.md.
        ratio_search: with ``ratio="auto"``, the target and the ratios that were tried.
        budget: with ``budget=``, its ``seconds``, whether this is the last memory (``finished``), and all options that
            were ``asked`` for.
        max_bytes: what the file was given, if its size chose the ratio and the dtype.
        made: the operation that made it, with its settings, its parents and the version; see ``lcc.memory.lineage``.
        lineage: all memories that this one was made of, the nearest first: of each the ``digest`` of its tensors, its
            ``compiler``, its ``buffer_tokens``, and how it was made.
        update: the text that it took in last, and how; None if it was compiled at once. See ``lcc.update``.
        distractors: the ``digest`` of each memory of another text that it was trained among.
        served: how servers' answers compare with those of ``lcc.ask``; see ``lcc certify``.
        sections: of a text that was compiled in several: their sizes, in order; empty for a text in one piece.
        redacted: how many passages were cut out of the text before anything read it.
        leaks: what of the text can be got out of the memory; see ``lcc.leaks``.
        date: what the chat template was told when the memory was compiled (ISO 8601), if it writes the date.
        extra: fields of a newer version of the file format, which this version keeps and does not use.

    Raises:
        InputError: a payload that a model must not read; metadata that is not as in ``lcc.memory.metadata``.
    """

    payload: Payload
    prefix_ids: tuple[int, ...]
    ratio: float
    source_tokens: int
    source_sha256: str
    rope: dict[str, Any]
    fingerprint: dict[str, str]
    settings: dict[str, Any]
    compiler: dict[str, str] = field(default_factory=lambda: {"name": "lcc"})
    curve: list[dict[str, float]] = field(default_factory=list)
    questions: tuple[Query, ...] = ()
    quantization: dict[str, Any] | None = None
    certificate: dict[str, Any] | None = None
    ratio_search: dict[str, Any] | None = None
    budget: Budget | None = None
    max_bytes: int | None = None
    asking: dict[str, Any] | None = None
    date: str | None = None
    made: Made = field(default_factory=unrecorded)
    lineage: list[Ancestor] = field(default_factory=list)
    update: Update | None = None
    distractors: list[str] = field(default_factory=list)
    served: list[Served] = field(default_factory=list)
    sections: list[Section] = field(default_factory=list)
    redacted: int = 0
    leaks: dict[str, Any] | None = None
    extra: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.check()

    def check(self) -> None:
        """Refuse a payload that a model must not read, and wrong metadata; see the class for what is raised."""
        self.payload.check()
        check_metadata(vars(self))

    @property
    def kv_payload(self) -> KVPayload:
        """The payload, if it is K and V.

        Raises:
            InputError: it is of another kind.
        """
        if not isinstance(self.payload, KVPayload):
            raise InputError(
                f"the memory holds no K and V but a payload of kind {self.payload.kind!r}: ask it alone, with lcc.ask, "
                "or export it to peft"
            )
        return self.payload

    @property
    def kv(self) -> KV:
        """K and V of the buffer tokens, keys unrotated."""
        return self.kv_payload.kv

    @property
    def key_scale(self) -> torch.Tensor | None:
        """See ``KVPayload``."""
        return self.kv_payload.key_scale

    @property
    def value_scale(self) -> torch.Tensor | None:
        """See ``KVPayload``."""
        return self.kv_payload.value_scale

    @property
    def quantized(self) -> bool:
        """Whether K and V are codes and scales, no float numbers."""
        return self.kv_payload.codes is not None

    @property
    def dtype(self) -> str:
        """The dtype of the payload's numbers, such as ``float32``."""
        return self.payload.dtype

    @property
    def buffer_tokens(self) -> int:
        """K; 0 for an adapter."""
        return self.payload.shape()["buffer_tokens"]

    @property
    def nbytes(self) -> int:
        """Bytes of the payload."""
        return sum(tensor.nbytes for tensor in self.tensors().values())

    @property
    def kv_bytes(self) -> int:
        """Bytes of the buffer tokens' K and V, scales included; 0 for an adapter."""
        return self.nbytes if isinstance(self.payload, KVPayload) else 0

    @property
    def file_bytes(self) -> int:
        """Bytes of the file that ``save`` writes."""
        return file_bytes(FORMAT, self.tensors(), self.metadata())

    @property
    def digest(self) -> str:
        """SHA-256 of the tensors, as hexadecimal digits."""
        return json_digest({name: tensor_digest(tensor).hex() for name, tensor in self.tensors().items()})

    def with_ancestors(self) -> list[Ancestor]:
        """The lineage of a memory that is made of this one alone."""
        itself = Ancestor(**self.made, digest=self.digest, compiler=self.compiler, buffer_tokens=self.buffer_tokens)
        return [itself, *self.lineage]

    def succeeded_by(self, operation: str, settings: Mapping[str, Any], *others: Memory) -> Succession:
        """The fields ``made`` and ``lineage`` of a memory that ``operation`` makes of this one.

        Args:
            settings: of the operation; JSON can say them.
            others: further memories that it is made of.

        Raises:
            InputError: the operation has no name, or JSON cannot say a setting.
        """
        return succession(operation, settings, [each.with_ancestors() for each in (self, *others)])

    @property
    def best_point(self) -> dict[str, float] | None:
        """The measurement with the least held-out KL; None if nothing was held out."""
        kls = ((point["held_out_kl"], point) for point in self.curve)
        measured = [(kl, point) for kl, point in kls if kl is not None and math.isfinite(kl)]
        return min(measured, key=itemgetter(0), default=(None, None))[1]

    def tensors(self) -> dict[str, torch.Tensor]:
        """The payload's tensors, under the names that they have in the file."""
        return self.payload.tensors()

    def metadata(self) -> dict[str, Any]:
        """Everything but the tensors, as the file has it."""
        named = {name: value for name, value in vars(self).items() if name not in ("payload", "extra")}
        of_payload = {"payload": self.payload.kind, "dtype": self.dtype, "requires": []} | self.payload.metadata()
        return self.extra | named | of_payload

    def save(self, path: str | os.PathLike) -> None:
        """Write the memory to one safetensors file, atomically; docs/memory-format.md says what is in it.

        The file is not signed, be it in place of one that was; see ``lcc.sign``.

        Raises:
            MemoryFileError: the file cannot be written; an older one stays as it was.
        """
        save_tensors(path, FORMAT, self.tensors(), self.metadata())

    @classmethod
    def load(cls, path: str | os.PathLike, trusted: Iterable[PublicKey] | None = None) -> Memory:
        """Read a memory.

        Args:
            trusted: public keys, one of which must have signed the file: keys of ``cryptography``, PEM bytes, or paths
                of PEM files. None: no signature is looked at.

        Raises:
            MemoryFileError: no such file, or a truncated, tampered or foreign one, or one that needs a newer version,
                or one that holds NaN, or scales that are missing, NaN or zero; with ``trusted``, one that is not
                signed, or was changed after it was.
            MismatchError: none of those who signed it is trusted.
            InputError: a key cannot be read.
        """
        stored = load_stored(path, *READABLE, apart=True)
        if trusted is not None:
            require_signed(path, stored, trusted)
        payload, fields = parse_memory(path, stored.tensors, stored.metadata)
        try:
            return cls(payload, **fields)
        except TypeError as error:
            raise MemoryFileError(f"{path} lacks a part of a memory: {error}") from error
        except InputError as error:
            raise MemoryFileError(f"{path} is no memory that can be used: {error}") from error

    @classmethod
    def of(cls, given: Memory | str | os.PathLike) -> Memory:
        """A memory as it is, or that of a file.

        Raises:
            MemoryFileError: the file cannot be read; see ``load``.
        """
        return given if isinstance(given, Memory) else cls.load(given)

    def verify(self, model: PreTrainedModel | None, tokenizer: PreTrainedTokenizerBase | None = None) -> None:
        """Check that this memory was compiled for this very model and tokenizer; what is None is not checked.

        Raises:
            InputError: the model carries an active adapter, or its weights cannot be read.
            MismatchError: naming the fields that differ.
        """
        given = {} if model is None else fingerprint(model)
        given |= {} if tokenizer is None else tokenizer_fingerprint(tokenizer)
        require_same(self.fingerprint, given)

    def to(self, device: torch.device | str, dtype: torch.dtype | None = None) -> Memory:
        """The same memory with its tensors on ``device``, and a float memory's numbers in ``dtype``.

        Raises:
            InputError: ``dtype`` is given for a quantised memory, or numbers overflow in it.
        """
        return replace(self, payload=self.payload.to(device, dtype))

    def summary(self) -> dict[str, Any]:
        """What ``lcc inspect`` shows: everything but the tensors; sizes in bytes."""
        metadata = self.metadata()
        sizes = {name: tensor.nbytes for name, tensor in self.tensors().items()}
        if isinstance(self.payload, AdapterPayload):
            sizes = {self.payload.kind: self.nbytes}
        sizes["metadata"] = len(json.dumps(metadata).encode())
        del metadata["questions"]
        counts = {"kv_bytes": self.kv_bytes, "bytes": sizes, "self_questions": len(self.questions)}
        return self.payload.shape() | counts | metadata


def require_memory(given: object) -> None:
    """Refuse what is no memory, such as the path of one.

    Raises:
        InputError: naming its type.
    """
    if not isinstance(given, Memory):
        raise InputError(f"a memory is a {type(given).__name__}; give a Memory, such as Memory.load returns")
