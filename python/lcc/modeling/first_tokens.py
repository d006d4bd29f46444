"""What a model would say first behind each of several prefixes, and how it goes on behind the chosen ones.

This is how a memory is chosen by what the model makes of it (CDLM, arXiv 2605.28889: routing and self-gating): a
question is read behind many candidates in one pass, and the answer goes on from what was read.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cached_property

import torch
from transformers import PreTrainedModel

from ..errors import InputError
from .architecture import supports_sharing
from .decoding import Prompt, go_on
from .generation import batch_rows
from .kv import KV
from .model_copy import share_weights, without_dropout
from .row_cache import Row, RowCache, check_rows, logits_of, parts_of

# Rows of logits that are held at once where only their entropy is wanted.
LOGIT_ROWS = 256


class FirstTokens:
    """What is predicted behind prompts, and the cache that they were read into. ``read_first`` makes it.

    Attributes:
        hidden: (prompts, H), the last hidden states that predict each prompt's first new token.
    """

    def __init__(self, cache: RowCache, distinct: Sequence[Row], hidden: torch.Tensor, rows: Sequence[Row]):
        """Take the rows that were read into ``cache``, their states, and the row of each prompt."""
        places = {row: place for place, row in enumerate(distinct)}
        self._cache, self._rows, self._places = cache, rows, [places[row] for row in rows]
        self.hidden = hidden[self._places]

    @cached_property
    @torch.no_grad()
    def logits(self) -> torch.Tensor:
        """(prompts, vocabulary) in the dtype of the model's head."""
        return logits_of(self._cache.model, self.hidden)

    @cached_property
    @torch.no_grad()
    def entropy(self) -> torch.Tensor:
        """The entropy of each first token over the whole vocabulary, in nats, (prompts,), float32 or better."""
        parts = self.hidden.split(LOGIT_ROWS)
        return torch.cat([entropy_of(logits_of(self._cache.model, states)) for states in parts])

    def go_on(self, numbers: Sequence[int], ends: Callable[[int], bool], max_new_tokens: int) -> list[tuple[int, ...]]:
        """Greedy continuations of the prompts ``numbers``, each without the token that ends it.

        Nothing is read again, and what was read stays as it is for other calls.

        Args:
            ends: whether a token ends what is written, such as ``end_tokens(model, chat.end).__contains__``.

        Raises:
            InputError: a continuation goes beyond the model's window, or the prompts were read with ``keep=False``.
        """
        if not numbers:
            return []
        if not self._cache.rows:
            raise InputError("what was read was not kept: call read_first with keep=True")
        model = self._cache.model
        check_rows(model, self._cache.prefixes, [self._rows[number] for number in numbers], max_new_tokens)
        # Equal prompts go on as one.
        chosen = {self._places[number]: number for number in numbers}
        cache = self._cache.select(list(chosen), shares=len(chosen) > 1 and supports_sharing(model))
        decoded = dict(go_on(cache, self.hidden[list(chosen.values())], ends, max_new_tokens))
        written = {place: decoded[number].ids for number, place in enumerate(chosen)}
        return [written[self._places[number]] for number in numbers]


@torch.no_grad()
def read_first(
    model: PreTrainedModel, prefixes: Sequence[KV], prompts: Sequence[Prompt], keep: bool = True
) -> FirstTokens:
    """Read each prompt behind the prefix that it names, all in one pass, or in a few if there are many.

    A prefix is held once and a prompt that is given twice is read once. A single prompt is read by the model's own
    attention, and gives the very bits of the model's own pass. Next to others it gives the same but for rounding: of
    matrix products, their size decides the order of sums.

    Args:
        model: a copy that ``share_weights`` made spares making one here; it serves one thread at a time.
        prefixes: rotated K and V, of any lengths, each at positions of its own.
        prompts: ``begun`` and ``key`` do not matter.
        keep: hold each prompt's K and V to go on from. False: hold those of one pass.

    Raises:
        InputError: there is no prompt, or one goes beyond the model's window.
    """
    if not prompts:
        raise InputError("there is nothing to read: give at least one prompt")
    used = sorted({prompt.prefix for prompt in prompts})
    numbers = {number: place for place, number in enumerate(used)}
    seen, rows = [prefixes[number] for number in used], [(numbers[prompt.prefix], prompt.ids) for prompt in prompts]
    # Sorted, as a prefix is read once for all rows that stand side by side.
    distinct = sorted(set(rows))
    check_rows(model, seen, distinct)
    # A single sequence has nothing to share.
    shares = len(distinct) > 1 and supports_sharing(model)
    cache = RowCache(share_weights(model) if shares else without_dropout(model), seen, shares)
    most = None if shares else batch_rows(sum(map(len, seen)))
    hidden = [cache.refill(range(part.start) if keep else (), distinct[part]) for part in parts_of(distinct, most)]
    if not keep:
        cache.keep(())
    return FirstTokens(cache, distinct, torch.cat(hidden), rows)


def entropy_of(logits: torch.Tensor) -> torch.Tensor:
    """Entropy in nats of the softmax of each row, (..., vocabulary) to (...), in float32 or better."""
    logs = logits.to(torch.promote_types(logits.dtype, torch.float32)).log_softmax(-1)
    # A token that cannot come has probability 0 and no logarithm.
    return -(logs.exp() * logs.clamp(min=torch.finfo(logs.dtype).min)).sum(-1)
