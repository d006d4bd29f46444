"""The tokenizer's chat template, cut at the places where a text, a query and a response go."""

from __future__ import annotations

from dataclasses import dataclass

from jinja2 import TemplateError
from transformers import PreTrainedTokenizerBase

from .errors import InputError

SYSTEM_PROMPT = "You are a helpful assistant."
SEPARATOR = "\n\n"
# A question, or the turns of a conversation that ends in one: question, answer, ..., question.
Query = str | tuple[str, ...]
_USER, _ASSISTANT, _NEXT = "\u2045user\u2046", "\u2045assistant\u2046", "\u2045next\u2046"


@dataclass(frozen=True)
class ChatFormat:
    """The literal text around ``{prefix}{text}{separator}{query}{ask}{response}{end}``, and between two turns.

    Attributes:
        prefix: BOS, the system prompt and the opening of the user's turn: the paper's template up to ``Instruction``.
        ask: from the end of the user's turn to the start of the response.
        end: the token id that ends a response.
        next_turn: from the end of a response to the start of the user's next message.
    """

    tokenizer: PreTrainedTokenizerBase
    prefix: str
    ask: str
    end: int
    next_turn: str

    @classmethod
    def of(cls, tokenizer: PreTrainedTokenizerBase, system_prompt: str = SYSTEM_PROMPT) -> ChatFormat:
        """Read the format off the tokenizer's chat template.

        Raises:
            InputError: the tokenizer has no chat template, or one that rewrites what users write or puts nothing
                before it.
        """
        if not getattr(tokenizer, "chat_template", None):
            raise InputError(
                "the tokenizer has no chat template; set tokenizer.chat_template to the one the model was trained with"
            )
        rendered = _render(tokenizer, system_prompt)
        try:
            prefix, rest = rendered.split(_USER)
            ask, rest = rest.split(_ASSISTANT)
            next_turn, _ = rest.split(_NEXT)
        except ValueError:
            raise InputError("the chat template does not write messages as they are; use one that does") from None
        if not tokenizer(prefix, add_special_tokens=False).input_ids:
            raise InputError("the chat template puts no token before the user's words: begin it with a BOS or a header")
        end = tokenizer(next_turn, add_special_tokens=False).input_ids
        return cls(tokenizer, prefix, ask, end[0] if end else tokenizer.eos_token_id, next_turn)

    def ids(self, text: str) -> list[int]:
        """Token ids of ``text`` as it stands inside a chat, nothing added."""
        return list(self.tokenizer(text, add_special_tokens=False).input_ids)

    @property
    def prefix_ids(self) -> list[int]:
        """P: the tokens before the text."""
        return self.ids(self.prefix)

    def query_ids(self, query: Query, after_text: bool = True) -> list[int]:
        """The tokens from the end of the text (or of the prefix) to the start of the response."""
        first, *later = turns_of(query)
        ids = self.ids((SEPARATOR if after_text else "") + first + self.ask)
        for answer, question in zip(later[::2], later[1::2], strict=True):
            ids += [*self.ids(answer), self.end, *self.turn_ids(question)]
        return ids

    def turn_ids(self, query: str) -> list[int]:
        """The tokens from the end token of a response to the start of the next one."""
        ids = self.ids(self.next_turn + query + self.ask)
        return ids[1:] if ids[:1] == [self.end] else ids


def turns_of(query: Query) -> tuple[str, ...]:
    """The turns of a query; a question is one."""
    return (query,) if isinstance(query, str) else tuple(query)


def read_query(stored: object) -> Query:
    """A query from what JSON made of it.

    Raises:
        InputError: it is neither text nor turns that end in a question.
    """
    if isinstance(stored, str):
        return stored
    if isinstance(stored, (list, tuple)) and len(stored) % 2 and all(isinstance(turn, str) for turn in stored):
        return tuple(stored)
    raise InputError(f"questions must be texts, or conversations that end in one; got {stored!r}")


def _render(tokenizer: PreTrainedTokenizerBase, system_prompt: str) -> str:
    turns = [
        {"role": "user", "content": _USER},
        {"role": "assistant", "content": _ASSISTANT},
        {"role": "user", "content": _NEXT},
    ]
    system = [{"role": "system", "content": system_prompt}]
    try:
        return tokenizer.apply_chat_template(system + turns, tokenize=False)
    except TemplateError:
        # Some templates (Gemma's, the first Mistral's) refuse a system turn.
        return tokenizer.apply_chat_template(turns, tokenize=False)
