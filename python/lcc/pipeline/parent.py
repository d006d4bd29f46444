"""The memory that takes more text in: what stands before the new text, and what becomes of the two."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, replace

from transformers import PreTrainedModel

from ..errors import InputError
from ..memory.attachable import check_shape
from ..memory.memory import Memory
from ..memory.metadata import Update
from ..memory.payload import KVPayload
from ..modeling.fingerprint import require_same
from ..text.chat_format import Query
from ..text.context import Past
from ..utils.hashing import texts_digest
from ..utils.random_state import sample_up_to


@dataclass(frozen=True)
class Parent:
    """A memory that takes more text in.

    Attributes:
        growing: buffer tokens are added for the new text. Else some of the old ones give way to them, and the memory
            keeps its size.

    Raises:
        InputError: the memory has no float K and V.
    """

    memory: Memory
    growing: bool = True

    def __post_init__(self) -> None:
        if self.memory.quantized:
            raise InputError(f"the memory is {self.memory.dtype}: update the float one, and quantise at the end")

    def source_digest(self, digest: str) -> str:
        """The digest of old and new text, of the ``digest`` of the new one."""
        return texts_digest((self.memory.source_sha256, digest))


def past_of(parent: Parent, model: PreTrainedModel, trained: bool) -> Past:
    """The parent as what stands before the new text, on the model's device and in its dtype.

    Args:
        trained: K and V of those tokens that stay are trained too.

    Raises:
        InputError: the memory's numbers overflow in that dtype.
    """
    memory = parent.memory
    kv = memory.to(model.device, model.dtype).kv
    return Past(kv, memory.digest, memory.questions, memory.source_tokens, parent.growing, trained)


def check_parent(memory: Memory, model: PreTrainedModel, prefix_ids: tuple[int, ...], digests: dict[str, str]) -> None:
    """Refuse a memory that cannot stand before the new text.

    Args:
        prefix_ids: that stand before the memory that is made.
        digests: the fingerprint of the model and the tokenizer.

    Raises:
        InputError: it was compiled behind another prefix.
        MismatchError: it is another model's, or its tensors have another shape than the model's K and V.
    """
    require_same(memory.fingerprint, digests)
    check_shape(model.config, memory)
    if memory.prefix_ids != prefix_ids:
        raise InputError(
            "the memory was compiled behind another prefix, or without one (keep_prefix): compile both texts anew"
        )


def updated(memory: Memory, parent: Parent) -> Memory:
    """The memory of old and new text.

    Args:
        memory: what was compiled of the new text.
    """
    old = parent.memory
    tokens = old.source_tokens + memory.source_tokens
    kv, ratio = memory.kv, max(1.0, tokens / memory.buffer_tokens)
    if parent.growing:
        ratio = memory.ratio
    if parent.growing and not memory.settings["past_learning_rate"]:
        kv = kv.after(old.to(kv.keys.device, kv.keys.dtype).kv)
    return replace(
        memory,
        payload=KVPayload(kv),
        ratio=ratio,
        source_tokens=tokens,
        source_sha256=parent.source_digest(memory.source_sha256),
        questions=_carried(old, memory),
        redacted=old.redacted + memory.redacted,
        update=Update(growing=parent.growing, text_tokens=memory.source_tokens, text_sha256=memory.source_sha256),
    )


def _carried(old: Memory, new: Memory) -> tuple[Query, ...]:
    """The questions of both, ``carried_questions`` at most: of each as many as its text is a share of the tokens."""
    most, share = int(new.settings["carried_questions"]), new.source_tokens / (old.source_tokens + new.source_tokens)
    own = min(len(new.questions), max(round(most * share), most - len(old.questions)))
    rng = random.Random(f"{new.settings['seed']} carried")
    return (*_some(rng, old.questions, most - own), *_some(rng, new.questions, own))


def _some(rng: random.Random, questions: Sequence[Query], count: int) -> list[Query]:
    """``count`` of the questions at most, in their order."""
    return [questions[place] for place in sorted(sample_up_to(rng, range(len(questions)), count))]
