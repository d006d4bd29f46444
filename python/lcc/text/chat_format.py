"""The tokenizer's chat template, cut at the places where a text, a query and a response go."""

from __future__ import annotations

import json
from dataclasses import dataclass
from datetime import datetime

from transformers import PreTrainedTokenizerBase

from ..errors import InputError
from ..utils.terminal import first_line
from .plain_text import control_ids, plain_ids, template_ids
from .prompts import SEPARATOR, SYSTEM_PROMPT

# A question, or the turns of a conversation that ends in one: question, answer, ..., question.
Query = str | tuple[str, ...]
_USER, _ASSISTANT, _NEXT = "\u2045user\u2046", "\u2045assistant\u2046", "\u2045next\u2046"
# What a chat template asks for the date, and every directive that it may ask with.
_DATE_FUNCTION = "strftime_now"
_DIRECTIVES = (
    "%-d",
    "%-m",
    "%-H",
    "%-I",
    "%-M",
    "%-S",
    "%-j",
    *(f"%{letter}" for letter in "aAbBcdDeFHIjmMpSTuUwWxXyYZ"),
)


@dataclass(frozen=True)
class ChatFormat:
    """The literal text around ``{prefix}{text}{separator}{query}{ask}{response}``, and between two turns.

    Attributes:
        prefix: BOS, the system prompt and the opening of the user's turn: the paper's template up to ``Instruction``.
        ask: from the end of the user's last turn to the start of the response: the template's generation prompt.
        answered: the same for the earlier turns of a conversation.
        end: the token id that ends a response: the template's own end-of-turn token, or where it writes none the
            tokenizer's end-of-sequence token.
        next_turn: from the end of a response's text to the start of the user's next message.
        date: when the template was rendered (ISO 8601), if it writes the date, else None.
        control: token ids that texts, queries and answers never become; empty if they may.
    """

    tokenizer: PreTrainedTokenizerBase
    prefix: str
    ask: str
    answered: str
    end: int
    next_turn: str
    date: str | None = None
    control: frozenset[int] = frozenset()

    @classmethod
    def of(
        cls,
        tokenizer: PreTrainedTokenizerBase,
        system_prompt: str = SYSTEM_PROMPT,
        date: str | None = None,
        parse_special_tokens: bool = False,
    ) -> ChatFormat:
        """Read the format off the tokenizer's chat template.

        Args:
            date: what a template that writes the date is told (ISO 8601): a memory's own; by default now.
            parse_special_tokens: let special tokens that are written in a text, a query or an answer be control tokens.
                Only for text that is trusted: a document could then forge turns of the conversation.

        Raises:
            InputError: the tokenizer has no chat template, or one that cannot be rendered, rewrites what users write,
                or puts nothing before it; or it has no token to end a response with.
        """
        if not getattr(tokenizer, "chat_template", None):
            raise InputError(
                "the tokenizer has no chat template; set tokenizer.chat_template to the one the model was trained with"
            )
        source = tokenizer.get_chat_template()
        if _DATE_FUNCTION in source:
            date = date or datetime.now().isoformat(timespec="seconds")
            source = _dated(source, datetime.fromisoformat(date))
        else:
            date = None
        prefix, ask, answered, next_turn, closing = _cut(tokenizer, source, system_prompt)
        parts = {part: template_ids(tokenizer, part) for part in (prefix, ask, answered, next_turn, closing)}
        if not parts[prefix]:
            raise InputError("the chat template puts no token before the user's words: begin it with a BOS or a header")
        control = control_ids(tokenizer, (token for ids in parts.values() for token in ids))
        end = _end_of_turn(tokenizer, parts[closing], parts[next_turn], control)
        return cls(
            tokenizer, prefix, ask, answered, end, next_turn, date, frozenset() if parse_special_tokens else control
        )

    def ids(self, text: str) -> list[int]:
        """Token ids of ``text`` as it stands inside a chat, nothing added.

        Raises:
            InputError: it names a control token that the tokenizer cannot write as plain text.
        """
        return plain_ids(self.tokenizer, text, self.control)

    @property
    def prefix_ids(self) -> list[int]:
        """P: the tokens before the text."""
        return template_ids(self.tokenizer, self.prefix)

    def query_ids(self, query: Query, after_text: bool = True) -> list[int]:
        """The tokens from the end of the text (or of the prefix) to the start of the response."""
        first, *later = turns_of(query)
        ids = self._between("", (SEPARATOR if after_text else "") + first, self.answered if later else self.ask)
        for number, (answer, question) in enumerate(zip(later[::2], later[1::2], strict=True), 1):
            last = 2 * number == len(later)
            ids += [*self.ids(answer), *self._between(self.next_turn, question, self.ask if last else self.answered)]
        return ids

    def turn_ids(self, query: str) -> list[int]:
        """The tokens from the end of a response's text to the start of the next response."""
        return self._between(self.next_turn, query, self.ask)

    def _between(self, before: str, text: str, after: str) -> list[int]:
        """Token ids of ``text`` between two parts of the template: as one string, if no control token comes of it."""
        joined = template_ids(self.tokenizer, before + text + after)
        if not self.control:
            return joined
        head, tail = template_ids(self.tokenizer, before), template_ids(self.tokenizer, after)
        expected = [token for token in head + tail if token in self.control]
        if [token for token in joined if token in self.control] == expected:
            return joined
        return [*head, *self.ids(text), *tail]


def turns_of(query: Query) -> tuple[str, ...]:
    """The turns of a query; a question is one."""
    return (query,) if isinstance(query, str) else tuple(query)


def parse_query(stored: object) -> Query:
    """A query from what JSON made of it.

    Raises:
        InputError: it is neither text nor turns that end in a question.
    """
    if isinstance(stored, str):
        return stored
    if isinstance(stored, (list, tuple)) and len(stored) % 2 and all(isinstance(turn, str) for turn in stored):
        return tuple(stored)
    raise InputError(f"questions must be texts, or conversations that end in one; got {stored!r}")


def _dated(source: str, date: datetime) -> str:
    """A chat template whose every question for the date is answered with ``date``."""
    written = "".join(f"|replace({json.dumps(each)}, {json.dumps(date.strftime(each))})" for each in _DIRECTIVES)
    return f"{{%- macro {_DATE_FUNCTION}(format) -%}}{{{{ format{written} }}}}{{%- endmacro -%}}{source}"


def _cut(tokenizer: PreTrainedTokenizerBase, source: str, system_prompt: str) -> tuple[str, str, str, str, str]:
    """The chat template ``source``, cut: prefix, ask, answered, next turn, and what it writes behind a last response.

    A system turn is left out where the template moves it away from the beginning.

    Raises:
        InputError: the template cannot be rendered, or does not write messages as they are.
    """
    turns = [{"role": "user", "content": _USER}, {"role": "assistant", "content": _ASSISTANT}]
    system = [{"role": "system", "content": system_prompt}]
    for before in (system, []):
        rendered = _render(tokenizer, source, before, [*turns, {"role": "user", "content": _NEXT}])
        ended = _render(tokenizer, source, before, turns)
        asking = _render(tokenizer, source, before, turns[:1], add_generation_prompt=True)
        try:
            prefix, rest = rendered.split(_USER)
            answered, rest = rest.split(_ASSISTANT)
            next_turn, _ = rest.split(_NEXT)
            _, closing = ended.split(_ASSISTANT)
            begun, ask = asking.split(_USER)
        except ValueError:
            raise InputError("the chat template does not write messages as they are; use one that does") from None
        if begun == prefix:
            break
    # A template without a generation prompt writes less there than before a response that it knows.
    return prefix, ask if len(ask) >= len(answered.rstrip()) else answered, answered, next_turn, closing


def _render(
    tokenizer: PreTrainedTokenizerBase,
    source: str,
    system: list[dict[str, str]],
    turns: list[dict[str, str]],
    **options: bool,
) -> str:
    # Some templates (Gemma's, the first Mistral's) refuse a system turn.
    for messages in (system + turns, turns):
        try:
            return str(tokenizer.apply_chat_template(messages, chat_template=source, tokenize=False, **options))
        except Exception as error:
            # A template is a program: it may fail in any way.
            said = first_line(error)
    raise InputError(f"the chat template cannot be rendered: {said}; set tokenizer.chat_template to one that can")


def _end_of_turn(
    tokenizer: PreTrainedTokenizerBase, closing: list[int], next_turn: list[int], control: frozenset[int]
) -> int:
    """The control token that a response ends with.

    Args:
        closing: ids that the template writes behind the last response of a chat.
        next_turn: ids between a response and the user's next message; its last control token may open that message.
    """
    ends = [token for token in closing if token in control]
    ends = ends or [token for token in next_turn if token in control][:-1]
    ends = [token for token in ends if token != tokenizer.bos_token_id] or [tokenizer.eos_token_id]
    if ends[0] is None:
        raise InputError("neither the chat template nor the tokenizer has a token that ends a response: set eos_token")
    return ends[0]
