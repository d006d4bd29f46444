"""A text made ready to compile: its tokens, the chat around it, and how many buffer tokens it gets."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ..errors import InputError
from ..modeling.kv import KV
from ..modeling.prefill import read_prefix
from ..modeling.window import window_of
from ..utils.hashing import text_digest
from ..utils.values import check
from .chat_format import ChatFormat, Query

# So many times the characters of the longest token are one token at least, whatever white space is dropped.
SPARE = 8


@dataclass(frozen=True)
class Past:
    """A memory of earlier text, which stands between P and C.

    Attributes:
        kv: K and V of its tokens, keys unrotated.
        digest: of them.
        questions: what the model asked itself about the earlier text.
        source_tokens: how many tokens of text it stands for.
        growing: all its tokens stay, and B stands behind them. Else some of them give way to B, so that their number
            stays the same.
        trained: K and V of those that stay are trained together with B.
    """

    kv: KV = field(compare=False)
    digest: str
    questions: tuple[Query, ...]
    source_tokens: int
    growing: bool = True
    trained: bool = False

    def giving_way(self, tokens: int) -> int:
        """How many of its tokens give way to a text of ``tokens``: the share that the new text has of both texts."""
        return min(tokens, math.ceil(len(self.kv) * tokens / (self.source_tokens + tokens)))


@dataclass(frozen=True)
class Context:
    """Token ids of P and C, and K = ceil(n / ratio).

    Attributes:
        sections: of a text that is too long to be read at once, in order: each with its own tokens, some of which the
            one before ends with, and with its own share of K.
        past: what stands between P and C.
    """

    chat: ChatFormat
    prefix_ids: tuple[int, ...]
    context_ids: tuple[int, ...]
    buffer: int
    sha256: str
    sections: tuple[Context, ...] = ()
    past: Past | None = None

    @property
    def parts(self) -> tuple[Context, ...]:
        """What is read at once: the sections, or the text."""
        return self.sections or (self,)

    @property
    def shown(self) -> int:
        """Tokens before all that is trained that queries see: those of P, and of a past that stays as it is."""
        return len(self.prefix_ids) + (len(self.past.kv) if self.past and not self.past.trained else 0)

    @property
    def past_kv(self) -> KV | None:
        """K and V of the past, keys unrotated."""
        return self.past.kv if self.past else None

    @property
    def trained_past(self) -> KV | None:
        """K and V of the past's tokens that are trained, keys unrotated: those that do not give way to B."""
        if self.past is None or not self.past.trained:
            return None
        past = self.past.kv
        if self.past.growing:
            return past
        count = len(past) - self.buffer
        return past.select([(2 * place + 1) * len(past) // (2 * count) for place in range(count)])

    @property
    def before(self) -> int:
        """Tokens that stand before C: P, and a past."""
        return len(self.prefix_ids) + (len(self.past.kv) if self.past else 0)

    def read_prefix(self, model: PreTrainedModel) -> KV:
        """K and V (rotated) of all that stands before C."""
        return read_prefix(model, self.prefix_ids, self.past_kv)


def build_context(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    text: str,
    ratio: float,
    date: str | None = None,
    parse_special_tokens: bool = False,
    past: Past | None = None,
) -> Context:
    """Tokenise ``text`` and check that model and tokenizer fit. Whether the window has room for it is seen later.

    Args:
        ratio: context tokens a buffer token, at least 1. It means nothing where tokens of the past give way to B.
        date, parse_special_tokens: see ``ChatFormat.of``.
        past: what stands between P and C.

    Raises:
        InputError: empty text, too short a text for the ratio, more text than the model could read in buffer tokens, a
            past without a token to spare, a ratio below 1, a tokenizer that is not the model's, or no chat template.
    """
    if not 1 <= ratio < math.inf:
        raise InputError(
            f"ratio is {ratio}; it must be a number of at least 1 (16 means one buffer token for 16 tokens of text)"
        )
    check("text", text, str)
    if not text.strip():
        raise InputError("the text is empty")
    check_tokenizer(model, tokenizer)
    _check_length(model, tokenizer, text, ratio)
    chat = ChatFormat.of(tokenizer, date=date, parse_special_tokens=parse_special_tokens)
    prefix, ids = chat.prefix_ids, chat.ids(text)
    buffer = _buffer_tokens(len(ids), ratio, past)
    return Context(chat, tuple(prefix), tuple(ids), buffer, text_digest(text), past=past)


def _buffer_tokens(tokens: int, ratio: float, past: Past | None) -> int:
    """K of a text of ``tokens``."""
    if past is not None and not past.growing:
        buffer = past.giving_way(tokens)
        if buffer >= len(past.kv):
            raise InputError(
                f"beside so long a text none of the memory's {len(past.kv)} tokens would stay: let it grow, or take "
                "less text in at a time"
            )
        return buffer
    if tokens < 2 * ratio:
        lower = ", or lower the ratio" if tokens > 1 else ""
        raise InputError(
            f"the text has {tokens} tokens, too few for ratio {ratio:g}: give at least {math.ceil(2 * ratio)} "
            f"tokens{lower}"
        )
    return math.ceil(tokens / ratio)


def _check_length(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, text: str, ratio: float) -> None:
    """Refuse what no memory holds, however long its tokens: a tokenizer that has begun heeds no interrupt.

    Raises:
        InputError: the text has more characters than there is room for in a window of buffer tokens.
    """
    longest = max(map(len, tokenizer.get_vocab()), default=1)
    if len(text) > SPARE * longest * window_of(model) * ratio:
        raise InputError(
            f"the text has {len(text)} characters, too many for a window of {window_of(model)} tokens at ratio "
            f"{ratio:g}: split the text, raise the ratio, or take a model with a longer window"
        )


def check_tokenizer(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
    """Refuse a tokenizer that cannot be the model's.

    Raises:
        InputError: its size or its special tokens are not the model's.
    """
    rows = model.get_input_embeddings().weight.shape[0]
    if not 0.9 * rows <= len(tokenizer) <= rows:
        raise InputError(f"the tokenizer has {len(tokenizer)} tokens but the model embeds {rows}: not the model's own")
    for name in ("bos_token_id", "eos_token_id"):
        own, expected = getattr(tokenizer, name), _token_ids(model, name)
        if own is not None and expected and own not in expected:
            raise InputError(f"the tokenizer's {name} is {own} but the model's is {expected}: not the model's own")


def _token_ids(model: PreTrainedModel, name: str) -> list[int]:
    """The ids that the model's config and generation config give for ``name``."""
    ids: list[int] = []
    for config in (model.config, model.generation_config):
        value = getattr(config, name, None)
        ids += value if isinstance(value, list) else [] if value is None else [value]
    return ids
