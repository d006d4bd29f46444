"""Continuous batching: many prompts behind one prefix or several, each finished on its own.

A row that is finished leaves the batch, and a prompt that waits takes its place. Equal prompts that enter together are
read once. The pass that chooses a token also gives the hidden state that predicts it, so nobody has to read a response
again to score it.
"""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import chain

import torch
from transformers import PreTrainedModel

from ..utils.device_memory import available_bytes
from .architecture import supports_sharing
from .kv import KV
from .model_copy import share_weights
from .row_cache import Row, RowCache, check_rows, logits_of, parts_of

# The most rows of a batch: on a CPU, where one of 256 rows costs two thirds of one of 64, and on another device.
CPU_ROWS, MOST_ROWS = 256, 512
# Share of the free memory that own K and V may take.
SHARE = 0.25
# What is written goes in circles when its last tokens repeat with a period of at most so many tokens, for as long as
# two periods, and for so many tokens more than one.
PERIOD, CIRCLE = 20, 12
# The batch is refilled when this share of its rows is finished: a refill costs about two steps. Room for so many tokens
# more is made then.
REFILL, ROOM = 3 / 8, 32


@dataclass(frozen=True)
class Sampling:
    """How tokens are drawn. A prompt's draws depend on ``seed`` and its key alone, not on what shares its batch."""

    temperature: float
    seed: str


@dataclass(frozen=True)
class Prompt:
    """What the model goes on from.

    Attributes:
        ids: tokens behind the prefix.
        begun: the first tokens of what is written. Prompts that differ in these alone are read once.
        key: names the prompt's random draws; see ``Sampling``.
        prefix: the number of the prefix that is seen.
    """

    ids: tuple[int, ...]
    begun: tuple[int, ...] = ()
    key: str = ""
    prefix: int = 0

    @property
    def row(self) -> Row:
        """What is read: prompts of the same row are read once."""
        return self.prefix, self.ids


@dataclass(frozen=True)
class Decoded:
    """What the model wrote.

    Attributes:
        ids: new tokens, those that were begun included, without the one that ends them.
        end: the token that ended them; None if none came in time, or before they went in circles.
        states: (new tokens + 1, H), the last hidden states that predict each of them, and what follows the last.
    """

    ids: tuple[int, ...]
    end: int | None
    states: torch.Tensor


def decode(
    model: PreTrainedModel,
    visible: KV | Sequence[KV],
    prompts: Sequence[Prompt],
    ends: Callable[[int], bool],
    max_new_tokens: int,
    sampling: Sampling | None = None,
    rows: int | None = None,
) -> Iterator[tuple[int, Decoded]]:
    """What the model writes after each prompt, in the order in which they are finished, with the prompt's number.

    What goes in circles is cut off: a small model may repeat a phrase for as long as it is let.

    Args:
        visible: rotated K and V that all prompts see, or several prefixes, of which each prompt names its own.
        ends: whether a token ends what is written.
        sampling: None: the most probable token is taken.
        rows: of a batch, at most; by default as many as pay on this device.

    Raises:
        InputError: a prompt and its continuation go beyond the model's window.
    """
    if not prompts:
        return
    prefixes = (visible,) if isinstance(visible, KV) else tuple(visible)
    check_rows(model, prefixes, [prompt.row for prompt in prompts], max_new_tokens)
    longest = max(len(prompt.ids) for prompt in prompts) + max_new_tokens
    shares = supports_sharing(model)
    rows = rows or rows_that_pay(model, prefixes, longest, shares)
    batch = _Batch(RowCache(share_weights(model), prefixes, shares), ends, max_new_tokens, sampling)
    # Equal prompts one behind the other, as they enter together and are read once; so with those of one prefix.
    groups: dict[Row, list[tuple[int, Prompt]]] = {}
    for numbered in enumerate(prompts):
        groups.setdefault(numbered[1].row, []).append(numbered)
    ordered = sorted(groups.values(), key=lambda group: group[0][1].prefix)
    waiting = deque(chain.from_iterable(ordered))
    while waiting or batch.rows:
        if batch.refillable(rows if waiting else 0):
            places = rows - batch.unfinished if waiting else 0
            yield from batch.refill([waiting.popleft() for _ in range(min(places, len(waiting)))])
        if batch.rows:
            yield from batch.step()


def go_on(
    cache: RowCache, hidden: torch.Tensor, ends: Callable[[int], bool], max_new_tokens: int
) -> Iterator[tuple[int, Decoded]]:
    """What the model writes, greedily, behind all rows of ``cache``, with the row's place, in the order of ``decode``.

    What goes in circles goes on to the end.

    Args:
        cache: it is used up.
        hidden: (rows, H), last hidden states of the rows' last tokens.
    """
    batch = _Batch(cache, ends, max_new_tokens, None, circles=True)
    yield from batch.begin([(place, Prompt(())) for place in range(len(hidden))], hidden)
    while batch.rows:
        if batch.refillable(0):
            yield from batch.refill([])
        if batch.rows:
            yield from batch.step()


def rows_that_pay(model: PreTrainedModel, prefixes: Sequence[KV], own_tokens: int, shares: bool) -> int:
    """Rows that pay on the model's device, and whose own K and V fit into its free memory."""
    most = CPU_ROWS if model.device.type == "cpu" else MOST_ROWS
    free = available_bytes(model.device)
    if free is None:
        return most
    tokens, layers = sum(map(len, prefixes)), len(prefixes[0].keys)
    a_token = sum(kv.nbytes for kv in prefixes) / max(1, tokens)
    # Attention that cannot share holds a copy of one layer's shared tokens for each row.
    copied = 0 if shares else tokens / layers
    return max(1, min(most, int(SHARE * free / (a_token * (own_tokens + copied)))))


def goes_in_circles(ids: Sequence[int]) -> bool:
    """Whether the last tokens repeat; see ``PERIOD``."""
    for period in range(1, min(PERIOD, len(ids) - CIRCLE) + 1):
        again = max(period, CIRCLE)
        if len(ids) >= again + period and ids[-again:] == ids[-again - period : -period]:
            return True
    return False


@dataclass
class _Row:
    """One prompt in the batch.

    Attributes:
        begun: see ``Prompt``.
    """

    number: int
    begun: tuple[int, ...]
    draws: random.Random
    finished: bool = False
    ids: list[int] = field(default_factory=list)
    states: list[torch.Tensor] = field(default_factory=list)


class _Batch:
    """The rows that are being written."""

    def __init__(
        self,
        cache: RowCache,
        ends: Callable[[int], bool],
        max_new_tokens: int,
        sampling: Sampling | None,
        circles: bool = False,
    ):
        self.cache, self.ends, self.max_new_tokens, self.sampling = cache, ends, max_new_tokens, sampling
        # Whether what goes in circles may go on.
        self.circles = circles
        self.rows: list[_Row] = []

    @property
    def unfinished(self) -> int:
        """Rows that are being written."""
        return sum(not row.finished for row in self.rows)

    def refillable(self, wanted: int) -> bool:
        """Whether enough rows are finished, or missing of the ``wanted`` ones, to copy the others."""
        idle = max(wanted, len(self.rows)) - self.unfinished
        return not self.unfinished or idle >= REFILL * max(wanted, len(self.rows))

    def refill(self, entering: Sequence[tuple[int, Prompt]]) -> Iterator[tuple[int, Decoded]]:
        """Let finished rows go, read the prompts and choose the first token of each."""
        for part in parts_of([prompt.row for _, prompt in entering]):
            yield from self._refill(entering[part])
        if any(row.finished for row in self.rows):
            self.cache.keep(self._let_go())

    @torch.no_grad()
    def _refill(self, entering: Sequence[tuple[int, Prompt]]) -> list[tuple[int, Decoded]]:
        """``refill`` with prompts that are read at once."""
        return self.begin(entering, self.cache.refill(self._let_go(), [p.row for _, p in entering], ROOM))

    def _let_go(self) -> list[int]:
        """Drop finished rows; returns the places of the others."""
        kept = [place for place, row in enumerate(self.rows) if not row.finished]
        self.rows = [self.rows[place] for place in kept]
        return kept

    @torch.no_grad()
    def begin(self, entering: Sequence[tuple[int, Prompt]], hidden: torch.Tensor) -> list[tuple[int, Decoded]]:
        """Choose the first tokens of prompts that the cache holds already; returns what that finishes.

        Args:
            hidden: (prompts, H), last hidden states of their last tokens.
        """
        seed = self.sampling.seed if self.sampling else ""
        rows = [_Row(number, p.begun, random.Random(f"{seed} {p.key}")) for number, p in entering]
        self.rows += rows
        return self._choose(rows, hidden)

    @torch.no_grad()
    def step(self) -> list[tuple[int, Decoded]]:
        """Write one more token in every row; returns what that finishes."""
        growing = [not row.finished for row in self.rows]
        hidden = self.cache.step([row.ids[-1] for row in self.rows], growing)
        running = [place for place, grows in enumerate(growing) if grows]
        return self._choose([self.rows[place] for place in running], hidden[running])

    def _choose(self, rows: Sequence[_Row], hidden: torch.Tensor) -> list[tuple[int, Decoded]]:
        """Choose a token for each row; returns the rows that it finishes."""
        logits = logits_of(self.cache.model, hidden)
        draws = [row.draws.random() for row in rows]
        finished = []
        for row, state, chosen in zip(rows, hidden, self._tokens(logits, draws), strict=True):
            row.states.append(state)
            written = len(row.ids)
            token = row.begun[written] if written < len(row.begun) else chosen
            ended = written >= len(row.begun) and self.ends(token)
            circling = not self.circles and goes_in_circles(row.ids)
            if ended or written == self.max_new_tokens or circling:
                row.finished = True
                decoded = Decoded(tuple(row.ids), token if ended else None, torch.stack(row.states))
                finished.append((row.number, decoded))
            # A finished row goes on with this token until it leaves; nothing that it writes is kept.
            row.ids.append(token)
        return finished

    def _tokens(self, logits: torch.Tensor, draws: Sequence[float]) -> list[int]:
        if self.sampling is None:
            return logits.argmax(-1).tolist()
        logits = logits.to(torch.promote_types(logits.dtype, torch.float32)) / self.sampling.temperature
        below = logits.softmax(-1).cumsum(-1)
        drawn = torch.tensor(draws, dtype=below.dtype, device=below.device)[:, None] * below[:, -1:]
        return torch.searchsorted(below, drawn, right=True)[:, 0].clamp(max=logits.shape[-1] - 1).tolist()
