"""Several turns with one memory."""

from __future__ import annotations

import threading

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ..memory.memory import Memory
from ..modeling.generation import generate_after
from ..modeling.wrappers import plain_model
from ..text.chat_format import ChatFormat
from ..utils.values import check, check_count, require
from .attached import attached


class Conversation:
    """Keeps the tokens of the questions and answers so far, and their K and V: a turn reads what is new alone.

    Args:
        parse_special_tokens: let special tokens that are written in a message be control tokens.

    Raises:
        MismatchError: the memory belongs to another model or tokenizer.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        memory: Memory,
        parse_special_tokens: bool = False,
    ):
        model = plain_model(model)
        memory.verify(model, tokenizer)
        self.model, self.tokenizer = model, tokenizer
        self.chat = ChatFormat.of(tokenizer, date=memory.date, parse_special_tokens=parse_special_tokens)
        self.memory = memory
        with attached(model, memory, verify=False) as before:
            self._cache, self._attached = before.cache, before.tokens
        self._history: list[int] = []
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

    def _say(self, message: str, max_new_tokens: int) -> str:
        new = self.chat.turn_ids(message) if self._history else self.chat.query_ids(message)
        query = [*self._history, *new]
        read = self._cache.get_seq_length() - self._attached
        try:
            response = generate_after(
                self.model, self._cache, [query[read:]], self.chat.end, max_new_tokens=max_new_tokens
            )[0]
        except BaseException:
            # Stopped halfway through the layers: the next turn reads the history again.
            self._cache.reset()
            raise
        self._history = [*query, *response]
        return self.tokenizer.decode(response, skip_special_tokens=True).strip()
