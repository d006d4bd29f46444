"""Rows of one batch behind prefixes: each row names its own, and a prefix is held once however many rows see it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import nullcontext

import torch
from transformers import PreTrainedModel

from .attention import attending
from .kv import KV, decoder
from .shared_cache import SharedCache
from .shared_prefix_attention import SHARED_PREFIX
from .window import check_window

# The number of a row's prefix, and the tokens behind it.
Row = tuple[int, tuple[int, ...]]

# Tokens that are read at once.
PREFILL_TOKENS = 4096


class RowCache:
    """The rows that a model reads and writes together, their own tokens aligned at the end of the cache.

    Args:
        prefixes: rotated K and V, each at positions of its own.
        shares: the model attends with ``lcc_shared_prefix``. False: it attends as it does by itself, and a pass holds a
            copy of one layer's prefixes, all of them, for each row.
    """

    def __init__(self, model: PreTrainedModel, prefixes: Sequence[KV], shares: bool):
        self.model, self.prefixes, self.shares = model, tuple(prefixes), shares
        self._cache = SharedCache(*self.prefixes)
        # Of each row.
        self._numbers: list[int] = []
        self._lengths: list[int] = []
        # Which shared tokens are each prefix's, (prefixes, shared tokens), and the position behind each prefix.
        self._seen = torch.block_diag(*(torch.ones(1, len(kv), dtype=torch.bool) for kv in self.prefixes))
        self._ends = torch.tensor([kv.end for kv in self.prefixes])

    @property
    def rows(self) -> int:
        """How many rows the cache holds."""
        return len(self._lengths)

    def refill(self, kept: Sequence[int], entering: Sequence[Row], room: int = 0) -> torch.Tensor:
        """Go on with the rows ``kept`` alone, and read the rows ``entering``, equal ones once; they come last.

        Args:
            room: tokens that can be appended before memory is asked for.

        Returns:
            Last hidden states of the last tokens of ``entering``, (entering, H).
        """
        new = self._cache.empty()
        hidden = self._read(new, entering)
        self._numbers, self._lengths = self._of(kept)
        self._cache.refill(self._places(kept), max(self._lengths, default=0), new, room)
        self._numbers += [number for number, _ in entering]
        self._lengths += [len(ids) for _, ids in entering]
        return hidden

    def keep(self, places: Sequence[int]) -> None:
        """Go on with these rows alone."""
        self._numbers, self._lengths = self._of(places)
        self._cache.batch_select_indices(self._places(places))

    def step(self, ids: Sequence[int], growing: Sequence[bool]) -> torch.Tensor:
        """Read one token in each row; returns last hidden states, (rows, H).

        Args:
            growing: False for rows that are finished. They stay at their position, as further ones may lie beyond the
                window; their states mean nothing.
        """
        self._lengths = [length + grows for length, grows in zip(self._lengths, growing, strict=True)]
        tokens = torch.tensor(ids)[:, None]
        return self._forward(self._cache, tokens, self._numbers, self._lengths)

    def select(self, places: Sequence[int], shares: bool) -> RowCache:
        """These rows in a cache of their own, which holds their prefixes alone; this one goes on as it is."""
        numbers, lengths = self._of(places)
        used = sorted(set(numbers))
        selected = RowCache(self.model, [self.prefixes[number] for number in used], shares)
        selected._numbers, selected._lengths = [used.index(number) for number in numbers], lengths
        selected._cache.copy_rows(self._cache, self._places(places), max(lengths))
        return selected

    def over(self, prefixes: Sequence[KV], numbers: Mapping[int, int]) -> RowCache:
        """The same rows in a cache over other prefixes; their own K and V are not copied, and this one is used up.

        Args:
            numbers: the new number of each prefix that a row sees.
        """
        moved = RowCache(self.model, prefixes, self.shares)
        moved._numbers, moved._lengths = [numbers[number] for number in self._numbers], self._lengths
        moved._cache.take_rows(self._cache)
        return moved

    def _of(self, places: Sequence[int]) -> tuple[list[int], list[int]]:
        """Prefixes and lengths of these rows."""
        return [self._numbers[place] for place in places], [self._lengths[place] for place in places]

    def _places(self, places: Sequence[int]) -> torch.Tensor:
        return torch.tensor(places, dtype=torch.int64, device=self.model.device)

    def _read(self, cache: SharedCache, rows: Sequence[Row]) -> torch.Tensor:
        """Read the rows into the empty ``cache``; returns last hidden states, (rows, H)."""
        distinct = list(dict.fromkeys(rows))
        longest = max(len(ids) for _, ids in distinct)
        tokens = torch.tensor([[0] * (longest - len(ids)) + list(ids) for _, ids in distinct])
        hidden = self._forward(cache, tokens, [number for number, _ in distinct], [len(ids) for _, ids in distinct])
        if len(distinct) == len(rows):
            return hidden
        places = {row: place for place, row in enumerate(distinct)}
        copies = self._places([places[row] for row in rows])
        cache.batch_select_indices(copies)
        return hidden[copies]

    def _forward(
        self, cache: SharedCache, ids: torch.Tensor, numbers: Sequence[int], lengths: Sequence[int]
    ) -> torch.Tensor:
        """Last hidden states of the rows' last tokens, (rows, H).

        Args:
            ids: (rows, new tokens), padded on the left.
            numbers: of each row's prefix.
            lengths: own tokens of each row, the new ones included.
        """
        width = cache.get_seq_length() - self._seen.shape[1] + ids.shape[1]
        prefix, own, columns = torch.tensor(numbers), torch.tensor(lengths)[:, None], torch.arange(width)[None]
        # Whole rows are copied: comparing numbers would take ten times as long.
        mask = torch.cat((self._seen.index_select(0, prefix), columns >= width - own), 1)
        end = self._ends.index_select(0, prefix)[:, None]
        positions = (end + own - width + columns[:, -ids.shape[1] :]).clamp(min=end)
        device = self.model.device
        with attending(self.model, SHARED_PREFIX) if self.shares else nullcontext():
            output = decoder(self.model)(
                input_ids=ids.to(device),
                attention_mask=mask.to(device),
                position_ids=positions.to(device),
                past_key_values=cache.follow(self.model),
                use_cache=True,
            )
        return output.last_hidden_state[:, -1]


def parts_of(rows: Sequence[Row], most: int | None = None) -> Iterator[slice]:
    """Consecutive rows that are read at once: ``most`` at most, and ``PREFILL_TOKENS``, unless one row has more."""
    start = longest = 0
    for stop, (_, ids) in enumerate(rows):
        longest = max(longest, len(ids))
        if stop > start and (stop - start == most or longest * (stop + 1 - start) > PREFILL_TOKENS):
            yield slice(start, stop)
            start, longest = stop, len(ids)
    if rows:
        yield slice(start, len(rows))


def check_rows(model: PreTrainedModel, prefixes: Sequence[KV], rows: Sequence[Row], new_tokens: int = 0) -> None:
    """Refuse rows that, with ``new_tokens`` more each, do not fit behind their prefixes.

    Raises:
        InputError: a position is beyond the model's window, or two of them, of whatever rows, are on either side of a
            change of its rope: one pass has one rope.
    """
    end = max(prefixes[number].end + len(ids) for number, ids in rows) + new_tokens
    start = min(prefixes[number].end - len(prefixes[number]) for number, _ in rows)
    check_window(model, end, "text or memory, question and answer", "ask less", start)


def logits_of(model: PreTrainedModel, hidden: torch.Tensor) -> torch.Tensor:
    """What last hidden states predict, (rows, vocabulary), in the dtype of the model's head."""
    head = model.get_output_embeddings()
    return head(hidden.to(head.weight.dtype))
