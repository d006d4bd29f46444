"""Several turns with one memory."""

from __future__ import annotations

import threading
from dataclasses import dataclass

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ..memory.attachment import attach, cached_tokens
from ..memory.consolidation import Consolidation, Turns
from ..memory.memory import Memory
from ..modeling.generation import generate_after
from ..modeling.kv import KV
from ..modeling.model_copy import share_weights
from ..modeling.shared_cache import SharedCache
from ..modeling.wrappers import plain_model
from ..text.chat_format import ChatFormat
from ..utils.values import check, check_count, require
from .monitor import Monitor


@dataclass(frozen=True)
class Consolidated:
    """How many tokens a conversation saw before a consolidation and after it, the memory's included."""

    before: int
    after: int

    def __str__(self) -> str:
        return f"{self.before} tokens → {self.after}"


class Conversation:
    """Keeps the tokens of the questions and answers so far, and their K and V: a turn reads what is new alone.

    There are no conversations with an adapter: it has learned to answer behind the plain model's K and V alone.

    Args:
        parse_special_tokens: let special tokens that are written in a message be control tokens.
        monitor: watches the answers' attention. The answers are the same, to the bit, as long as nothing is
            consolidated.

    Attributes:
        entropies: of the last turn's tokens, its end token included, as ``monitor`` sees them; without one empty.

    Raises:
        InputError: the model cannot be watched, or the memory is an adapter.
        MismatchError: the memory, or the monitor, belongs to another model or tokenizer.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        memory: Memory,
        parse_special_tokens: bool = False,
        monitor: Monitor | None = None,
    ):
        model = plain_model(model)
        memory.verify(model, tokenizer)
        self.model, self.tokenizer = model, tokenizer
        self.chat = ChatFormat.of(tokenizer, date=memory.date, parse_special_tokens=parse_special_tokens)
        self.memory, self.monitor = memory, monitor
        self.entropies: list[float] = []
        if monitor is not None:
            monitor.check_model(memory.fingerprint)
        self._watched = None if monitor is None else monitor.watch(model)
        self._cache, self._attached = attach(model, memory, verify=False), cached_tokens(memory)
        # Of what was said, the tokens that were not consolidated.
        self._history: list[int] = []
        self._begun = self._triggered = False
        self._turn = threading.Lock()

    def say(self, message: str, max_new_tokens: int = 64) -> str:
        """Answer ``message`` in the light of the memory and the turns so far; of several threads, one takes its turn.

        Raises:
            InputError: the message is empty, or the conversation would grow beyond the model's window; the turns so far
                stand.
        """
        check("message", message, str)
        require(bool(message.strip()), "message", message, "a question")
        check_count("max_new_tokens", max_new_tokens)
        with self._turn:
            return self._say(message, max_new_tokens)

    @torch.no_grad()
    def consolidate(self, consolidation: Consolidation, least: int = 1) -> Consolidated | None:
        """Consolidate the turns since the last time, if the monitor triggered at any token of the last one.

        A turn is consolidated once at most. A token that the model has not read yet stays for the next turn.

        Args:
            consolidation: returns what the conversation sees from now on.
            least: how many tokens the turns have at least.

        Returns:
            None if the monitor did not trigger, or the turns since the last time have fewer tokens.
        """
        check_count("least", least)
        with self._turn:
            ids = self._history[: self._read]
            if not self._triggered or len(ids) < least or self._watched is None or self._watched.hidden is None:
                return None
            visible = KV.of(self._cache)
            model = share_weights(self.model)
            kept = consolidation(Turns(model, self.chat, visible, tuple(ids), self._watched.hidden))
            self._cache, self._attached = SharedCache(kept), len(kept)
            self._history, self._triggered = self._history[len(ids) :], False
            return Consolidated(len(visible), len(kept))

    @property
    def _read(self) -> int:
        """How many tokens of the history the cache holds."""
        return self._cache.get_seq_length() - self._attached

    def _say(self, message: str, max_new_tokens: int) -> str:
        new = self.chat.turn_ids(message) if self._begun else self.chat.query_ids(message)
        query = [*self._history, *new]
        model = self.model if self._watched is None else self._watched.model
        try:
            if self._watched is not None:
                self._watched.clear()
            response = generate_after(
                model, self._cache, [query[self._read :]], self.chat.end, max_new_tokens=max_new_tokens
            )[0]
            entropies = [] if self._watched is None else self._watched.take()
        except BaseException:
            # Stopped halfway through the layers: the next turn reads the history again.
            self._cache.reset()
            raise
        self._history, self._begun, self.entropies = [*query, *response], True, entropies
        self._triggered = self.monitor is not None and self.monitor.triggers(entropies)
        return self.tokenizer.decode(response, skip_special_tokens=True).strip()
