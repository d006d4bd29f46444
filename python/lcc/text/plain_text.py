"""Text as data: a control token that is written in a document, a question or an answer is encoded as plain text."""

from __future__ import annotations

import json
from collections.abc import Iterable
from functools import lru_cache
from typing import Any

from tokenizers import Tokenizer
from transformers import PreTrainedTokenizerBase

from ..errors import InputError

# Tokens a word from which on words are spelled letter by letter.
SPELLED = 3
# A hieroglyph, which few vocabularies have: bytes spell it, or it is unknown.
_RARE_LETTER = "\U00013000"


def template_ids(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    """Token ids of what the chat template wrote, control tokens among them; nothing is added.

    Whoever else uses the tokenizer, in another thread perhaps, may have told it to pad, to cut or to split: a state of
    its own that is neither changed nor heeded here.
    """
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        return list(tokenizer(text, add_special_tokens=False, split_special_tokens=False).input_ids)
    if not backend.encode_special_tokens:
        encoding = backend.encode(text, add_special_tokens=False)
        if not encoding.overflowing and all(encoding.attention_mask):
            return encoding.ids
    return _private(backend.to_str()).encode(text, add_special_tokens=False).ids


def control_ids(tokenizer: PreTrainedTokenizerBase, written: Iterable[int] = ()) -> frozenset[int]:
    """The tokens that text must never become.

    These are the tokenizer's special tokens, and those added tokens that the chat template writes or names. White space
    and plain words are text though they be added tokens. So is an unknown token that letters of any text become.

    Args:
        written: ids that the chat template writes.
    """
    written, template = set(written), str(tokenizer.chat_template)
    control = set(tokenizer.all_special_ids)
    for token, added in tokenizer.added_tokens_decoder.items():
        is_text = not added.content.strip() or added.content.strip().isalnum()
        if added.special or (not is_text and (token in written or added.content in template)):
            control.add(token)
    unknown = tokenizer.unk_token_id
    if unknown in template_ids(tokenizer, _RARE_LETTER) and unknown not in (
        tokenizer.bos_token_id,
        tokenizer.eos_token_id,
    ):
        control.discard(unknown)
    return frozenset(control)


def plain_ids(tokenizer: PreTrainedTokenizerBase, text: str, control: frozenset[int]) -> list[int]:
    """Token ids of ``text``, none of which is in ``control``; nothing is added.

    Raises:
        InputError: the tokenizer has no way to write a control token's name as text.
    """
    ids = template_ids(tokenizer, text)
    if control.isdisjoint(ids):
        return ids
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        ids = list(tokenizer(text, add_special_tokens=False, split_special_tokens=True).input_ids)
    else:
        ids = _without_control(backend.to_str(), control).encode(text, add_special_tokens=False).ids
    left = control.intersection(ids)
    if left:
        names = ", ".join(map(repr, tokenizer.convert_ids_to_tokens(sorted(left))))
        raise InputError(
            f"the text holds {names}, which this tokenizer cannot write as plain text: take it out of the text, or let "
            "it be the control token with parse_special_tokens=True"
        )
    return ids


@lru_cache(maxsize=2)
def _without_control(serialized: str, control: frozenset[int]) -> Tokenizer:
    """A tokenizer of its own, with the same ids, that no text leads to a token of ``control``.

    Setting ``split_special_tokens`` on the caller's tokenizer would reach other threads, and it spares neither added
    tokens that are not special nor tokens that the vocabulary holds as pieces of text.
    """
    state = json.loads(serialized)
    hidden = _hide_pieces(state["model"], control)
    for added in state["added_tokens"]:
        added["special"] = added["special"] or added["id"] in control
        # Under the name that its piece has now, so that it keeps its id.
        if added["id"] in hidden:
            added["content"] = _hidden_name(added["id"])
    plain = _private(json.dumps(state))
    plain.encode_special_tokens = True
    return plain


@lru_cache(maxsize=4)
def _private(serialized: str) -> Tokenizer:
    """A tokenizer that nobody else tells to pad, to cut or to split."""
    private = Tokenizer.from_str(serialized)
    private.no_padding()
    private.no_truncation()
    private.encode_special_tokens = False
    return private


def _hidden_name(token: int) -> str:
    return f"\0control {token}\0"


def _hide_pieces(model: dict[str, Any], control: frozenset[int]) -> set[int]:
    """Give the vocabulary's pieces of ``control`` names that no text has; returns those that it has pieces of."""
    vocab = model["vocab"]
    if isinstance(vocab, list):
        hidden_ids = set(control) & set(range(len(vocab)))
        lowest = min(score for _, score in vocab)
        for token in hidden_ids:
            vocab[token] = [_hidden_name(token), lowest - 1e6]
        return hidden_ids
    hidden = {piece for piece, token in vocab.items() if token in control}
    model["vocab"] = {_hidden_name(token) if piece in hidden else piece: token for piece, token in vocab.items()}
    if model.get("unk_token") in hidden:
        model["unk_token"] = _hidden_name(vocab[model["unk_token"]])
    if "merges" in model:
        pairs = [pair.split(" ", 1) if isinstance(pair, str) else pair for pair in model["merges"]]
        model["merges"] = [pair for pair in pairs if hidden.isdisjoint((*pair, "".join(pair)))]
    return {vocab[piece] for piece in hidden}


def has_words_for(tokenizer: PreTrainedTokenizerBase, text: str) -> bool:
    """Whether the vocabulary has words, or large parts of words, for ``text``: a small one spells it or lacks it."""
    ids = tokenizer(text, add_special_tokens=False).input_ids
    return tokenizer.unk_token_id not in ids and len(ids) < SPELLED * len(text.split())
