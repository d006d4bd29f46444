"""Several turns with one memory."""

from __future__ import annotations

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from .attach import attach
from .chat import ChatFormat
from .generate import generate_after
from .memory import Memory


class Conversation:
    """Keeps the tokens of the questions and answers so far.

    Raises:
        MismatchError: the memory belongs to another model or tokenizer.
    """

    def __init__(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, memory: Memory):
        memory.verify(model, tokenizer)
        self.model, self.tokenizer = model, tokenizer
        self.chat = ChatFormat.of(tokenizer)
        self.memory = memory
        self._history: list[int] = []

    def say(self, message: str, max_new_tokens: int = 64) -> str:
        """Answer ``message`` in the light of the memory and the turns so far."""
        new = self.chat.turn_ids(message) if self._history else self.chat.query_ids(message)
        query = [*self._history, *new]
        cache = attach(self.model, self.memory)
        response = generate_after(self.model, cache, [query], self.chat.end, max_new_tokens=max_new_tokens)[0]
        self._history = [*query, *response, self.chat.end]
        return self.tokenizer.decode(response, skip_special_tokens=True).strip()
