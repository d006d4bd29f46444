"""Continuous batching: many prompts after tokens that all of them share, each finished on its own.

A row that is finished leaves the batch, and a prompt that waits takes its place. Equal prompts that enter together are
read once. The pass that chooses a token also gives the hidden state that predicts it, so nobody has to read a response
again to score it.
"""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from itertools import chain

import torch
from transformers import PreTrainedModel

from ..utils.device_memory import available_bytes
from .architecture import supports_sharing
from .attention import attending
from .kv import KV, decoder
from .model_copy import share_weights
from .shared_cache import SharedCache
from .shared_prefix_attention import SHARED_PREFIX
from .window import check_window

# The most rows of a batch: on a CPU, where one of 256 rows costs two thirds of one of 64, and on another device.
CPU_ROWS, MOST_ROWS = 256, 512
# Share of the free memory that own K and V may take, and tokens that are read at once.
SHARE, PREFILL_TOKENS = 0.25, 4096
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
        ids: tokens after those that all prompts share.
        begun: the first tokens of what is written. Prompts that differ in these alone are read once.
        key: names the prompt's random draws; see ``Sampling``.
    """

    ids: tuple[int, ...]
    begun: tuple[int, ...] = ()
    key: str = ""


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
    visible: KV,
    prompts: Sequence[Prompt],
    ends: Callable[[int], bool],
    max_new_tokens: int,
    sampling: Sampling | None = None,
    rows: int | None = None,
) -> Iterator[tuple[int, Decoded]]:
    """What the model writes after each prompt, in the order in which they are finished, with the prompt's number.

    What goes in circles is cut off: a small model may repeat a phrase for as long as it is let.

    Args:
        visible: rotated K and V that all prompts see.
        ends: whether a token ends what is written.
        sampling: None: the most probable token is taken.
        rows: of a batch, at most; by default as many as pay on this device.

    Raises:
        InputError: a prompt and its continuation go beyond the model's window.
    """
    if not prompts:
        return
    longest = max(len(prompt.ids) for prompt in prompts) + max_new_tokens
    check_window(model, visible.end + longest, "text, question and answer", "ask less", visible.end - len(visible))
    shares = supports_sharing(model)
    rows = rows or rows_that_pay(model, visible, longest, shares)
    batch = _Batch(share_weights(model), visible, ends, max_new_tokens, sampling, shares)
    # Equal prompts one behind the other: they enter together, and are read once.
    groups: dict[tuple[int, ...], list[tuple[int, Prompt]]] = {}
    for numbered in enumerate(prompts):
        groups.setdefault(numbered[1].ids, []).append(numbered)
    waiting = deque(chain.from_iterable(groups.values()))
    while waiting or batch.rows:
        if batch.refillable(rows if waiting else 0):
            places = rows - batch.unfinished if waiting else 0
            yield from batch.refill([waiting.popleft() for _ in range(min(places, len(waiting)))])
        if batch.rows:
            yield from batch.step()


def rows_that_pay(model: PreTrainedModel, visible: KV, own_tokens: int, shares: bool) -> int:
    """Rows that pay on the model's device, and whose own K and V fit into its free memory."""
    most = CPU_ROWS if model.device.type == "cpu" else MOST_ROWS
    free = available_bytes(model.device)
    if free is None:
        return most
    a_token = visible.nbytes / max(1, len(visible))
    # Attention that cannot share holds a copy of one layer's shared tokens for each row.
    copied = 0 if shares else len(visible) / len(visible.keys)
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
        tokens: that it owns in the cache.
        begun: see ``Prompt``.
    """

    number: int
    tokens: int
    begun: tuple[int, ...]
    draws: random.Random
    finished: bool = False
    ids: list[int] = field(default_factory=list)
    states: list[torch.Tensor] = field(default_factory=list)


class _Batch:
    """The rows that are being written, their own tokens aligned at the end of the cache."""

    def __init__(
        self,
        model: PreTrainedModel,
        visible: KV,
        ends: Callable[[int], bool],
        max_new_tokens: int,
        sampling: Sampling | None,
        shares: bool,
    ):
        self.model, self.visible, self.ends = model, visible, ends
        self.max_new_tokens, self.sampling, self.shares = max_new_tokens, sampling, shares
        self.rows: list[_Row] = []
        self.cache = SharedCache(visible)

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
        start = 0
        while start < len(entering) or any(row.finished for row in self.rows):
            stop, longest = start, 0
            while stop < len(entering):
                longest = max(longest, len(entering[stop][1].ids))
                if stop > start and longest * (stop + 1 - start) > PREFILL_TOKENS:
                    break
                stop += 1
            yield from self._refill(entering[start:stop])
            start = stop

    @torch.no_grad()
    def _refill(self, entering: Sequence[tuple[int, Prompt]]) -> list[tuple[int, Decoded]]:
        """``refill`` with prompts that are read at once."""
        kept = [index for index, row in enumerate(self.rows) if not row.finished]
        self.rows = [self.rows[index] for index in kept]
        places = torch.tensor(kept, dtype=torch.int64, device=self.model.device)
        if not entering:
            self.cache.batch_select_indices(places)
            return []
        new = SharedCache(self.visible)
        hidden = self._read(new, [prompt.ids for _, prompt in entering])
        self.cache.refill(places, max((row.tokens for row in self.rows), default=0), new, ROOM)
        seed = self.sampling.seed if self.sampling else ""
        rows = [_Row(number, len(p.ids), p.begun, random.Random(f"{seed} {p.key}")) for number, p in entering]
        self.rows += rows
        return self._choose(rows, hidden)

    def _read(self, cache: SharedCache, prompts: Sequence[tuple[int, ...]]) -> torch.Tensor:
        """Read each prompt into the empty ``cache``, equal ones once; returns last hidden states, (prompts, H)."""
        distinct = list(dict.fromkeys(prompts))
        longest = max(map(len, distinct))
        ids = torch.tensor([[0] * (longest - len(prompt)) + list(prompt) for prompt in distinct])
        hidden = self._forward(cache, ids, [len(prompt) for prompt in distinct])
        if len(distinct) == len(prompts):
            return hidden
        places = {prompt: place for place, prompt in enumerate(distinct)}
        copies = torch.tensor([places[prompt] for prompt in prompts], device=self.model.device)
        cache.batch_select_indices(copies)
        return hidden[copies]

    @torch.no_grad()
    def step(self) -> list[tuple[int, Decoded]]:
        """Write one more token in every row; returns what that finishes."""
        ids = torch.tensor([[row.ids[-1]] for row in self.rows])
        for row in self.rows:
            # A finished row stays at its position: further ones may lie beyond the window.
            row.tokens += not row.finished
        hidden = self._forward(self.cache, ids, [row.tokens for row in self.rows])
        running = [index for index, row in enumerate(self.rows) if not row.finished]
        return self._choose([self.rows[index] for index in running], hidden[running])

    def _forward(self, cache: SharedCache, ids: torch.Tensor, lengths: Sequence[int]) -> torch.Tensor:
        """Last hidden states of the rows' last tokens, (rows, H).

        Args:
            ids: (rows, new tokens), padded on the left.
            lengths: own tokens of each row, the new ones included.
        """
        past, width = len(self.visible), cache.get_seq_length() - len(self.visible) + ids.shape[1]
        own = torch.tensor(lengths)[:, None]
        columns = torch.arange(width)[None]
        mask = torch.cat((torch.ones(len(ids), past, dtype=torch.bool), columns >= width - own), 1)
        positions = (self.visible.end + own - width + columns[:, -ids.shape[1] :]).clamp(min=self.visible.end)
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

    def _choose(self, rows: Sequence[_Row], hidden: torch.Tensor) -> list[tuple[int, Decoded]]:
        """Choose a token for each row; returns the rows that it finishes."""
        head = self.model.get_output_embeddings()
        logits = head(hidden.to(head.weight.dtype))
        draws = [row.draws.random() for row in rows]
        finished = []
        for row, state, chosen in zip(rows, hidden, self._tokens(logits, draws), strict=True):
            row.states.append(state)
            written = len(row.ids)
            token = row.begun[written] if written < len(row.begun) else chosen
            ended = written >= len(row.begun) and self.ends(token)
            if ended or written == self.max_new_tokens or goes_in_circles(row.ids):
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
