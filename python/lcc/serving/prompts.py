"""What the model reads of a request: the tokens behind its memories, or the whole chat where it names none."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from itertools import chain, zip_longest
from typing import Any

from transformers import PreTrainedTokenizerBase

from ..errors import InputError
from ..text.chat_format import ChatFormat
from ..text.plain_text import template_ids
from ..text.prompts import SYSTEM_PROMPT
from ..utils.terminal import first_line
from ..utils.values import is_text, quoted
from .api_errors import bad_request
from .catalog import Entry

_MARK = re.compile("\u2045([0-9]+)\u2046")
Messages = Sequence[Mapping[str, Any]]
# What cannot be had together with a memory: the values that ask for nothing, and why others are refused.
REFUSED: dict[str, tuple[tuple[Any, ...], str]] = {
    "tools": (([],), "a memory was compiled behind a prompt without tools"),
    "functions": (([],), "a memory was compiled behind a prompt without functions"),
    "documents": (([],), "a memory stands where documents would"),
    # vLLM reads a memory's tokens as text where it tells probabilities of a prompt, be it of none of them.
    "prompt_logprobs": ((), "there are no tokens of a text whose probabilities could be told"),
    "prompt_logprob_token_ids": ((), "there are no tokens of a text whose probabilities could be told"),
    "echo": ((False,), "there is no text of a prompt to repeat"),
    "chat_template": ((), "a memory belongs to the model's own chat template"),
    "chat_template_kwargs": (({},), "a memory belongs to the model's own chat template"),
    "continue_final_message": ((False,), "a question is what an answer follows"),
    "truncate_prompt_tokens": ((), "a memory is read whole"),
    "prompt_embeds": ((), "a memory stands where they would"),
    "use_beam_search": ((False,), "beams would be asked without the memory"),
    "skip_reading_prefix_cache": ((False,), "a memory is read from the cache"),
}


class Prompts:
    """Makes the tokens of requests.

    Args:
        window: positions that the server's model has.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, window: float):
        self.tokenizer, self.window = tokenizer, window
        self._formats: dict[str | None, ChatFormat] = {}

    def chat(self, entries: Sequence[Entry], messages: Messages) -> list[int]:
        """The tokens behind memories.

        Raises:
            ApiError: 400: messages that are no chat, a system message that the memory was not compiled with, or no
                question.
        """
        system, turns = turns_of(messages)
        first = entries[0]
        try:
            if system is not None and not self._is_before(first, system):
                raise bad_request(
                    "a memory stands behind the system prompt that it was compiled with: leave the system message out",
                    "messages",
                )
            return self._format(first.date).query_ids(turns)
        except InputError as error:
            raise bad_request(str(error), "messages") from error

    def plain_chat(self, messages: Messages) -> list[int]:
        """The tokens of a whole chat, in which no control token comes of what is said.

        Raises:
            ApiError: 400: messages that are no chat, or that the template refuses; or they name a control token that
                the tokenizer cannot write as plain text.
        """
        system, turns = turns_of(messages)
        said = turns if system is None else (system, *turns)
        ids = template_ids(self.tokenizer, self._rendered(said, system is not None))
        # The template alone, with a mark in place of each thing that is said.
        parts = _MARK.split(self._rendered([f"\u2045{at}\u2046" for at in range(len(said))], system is not None))
        alone = [template_ids(self.tokenizer, part) for part in parts[::2]]
        chat = self._format(None)
        if [token for token in ids if token in chat.control] == [
            t for some in alone for t in some if t in chat.control
        ]:
            return ids
        try:
            between = [chat.ids(said[int(mark)]) for mark in parts[1::2]]
        except InputError as error:
            raise bad_request(str(error), "messages") from error
        return [token for some in chain.from_iterable(zip_longest(alone, between, fillvalue=[])) for token in some]

    def _rendered(self, said: Sequence[str], with_system: bool) -> str:
        roles = ["system"] * with_system + ["user", "assistant"] * len(said)
        messages = [{"role": role, "content": text} for role, text in zip(roles, said, strict=False)]
        try:
            return str(self.tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True))
        except Exception as error:
            # A template is a program: it may fail in any way.
            raise bad_request(f"the chat template refuses the messages: {first_line(error)}", "messages") from error

    def text(self, prompt: str | Sequence[int], behind_memory: bool) -> list[int]:
        """The tokens of a prompt that is no chat.

        Raises:
            ApiError: 400: it is empty, or has ids or characters that the tokenizer does not know.
        """
        if isinstance(prompt, str):
            ids = self._text_ids(prompt, behind_memory)
        else:
            ids = list(prompt)
            if any(not 0 <= token < len(self.tokenizer) for token in ids):
                raise bad_request(f"a token id is not in 0 to {len(self.tokenizer) - 1}", "prompt")
        if not ids:
            raise bad_request("the prompt is empty", "prompt")
        return ids

    def check_fits(self, past: int, ids: Sequence[int], new_tokens: int) -> None:
        """Refuse what is beyond the window.

        Raises:
            ApiError: 400.
        """
        needed = past + len(ids) + new_tokens
        if needed > self.window:
            raise bad_request(
                f"memory ({past}), question ({len(ids)}) and answer ({quoted(new_tokens)}) take {quoted(needed)} "
                f"tokens, and the model's window has {self.window}: ask less, or lower max_tokens",
                "max_tokens",
            )

    def _text_ids(self, prompt: str, behind_memory: bool) -> list[int]:
        if not is_text(prompt):
            raise bad_request("the prompt holds half of a surrogate pair, which is no character", "prompt")
        try:
            return self._format(None).ids(prompt) if behind_memory else self.tokenizer(prompt)["input_ids"]
        except InputError as error:
            raise bad_request(str(error), "prompt") from error

    def _is_before(self, entry: Entry, system: str) -> bool:
        """Whether a memory was compiled behind this system prompt."""
        return ChatFormat.of(self.tokenizer, system, entry.date).prefix_ids == list(entry.prefix_ids)

    def _format(self, date: str | None) -> ChatFormat:
        """The format behind memories of a date; threads may ask at once."""
        known = self._formats.get(date)
        if known is None:
            known = ChatFormat.of(self.tokenizer, SYSTEM_PROMPT, date)
            if len(self._formats) > 64:
                self._formats.clear()
            self._formats[date] = known
        return known


def check_memory_request(body: Mapping[str, Any]) -> None:
    """Refuse what cannot be had together with a memory.

    Raises:
        ApiError: 400, with the field.
    """
    for name, (harmless, why) in REFUSED.items():
        if body.get(name) is not None and body[name] not in harmless:
            raise bad_request(f"{name} cannot be given with a memory: {why}", name)


def turns_of(messages: Messages) -> tuple[str | None, tuple[str, ...]]:
    """The system prompt, if there is one, and the turns: question, answer, ..., question.

    Raises:
        ApiError: 400.
    """
    said = [(message.get("role"), _text(message)) for message in messages]
    system = said.pop(0)[1] if said and said[0][0] in ("system", "developer") else None
    wanted = ["user", "assistant"] * (len(said) // 2 + 1)
    if not said or [role for role, _ in said] != wanted[: len(said)] or len(said) % 2 == 0:
        raise bad_request(
            "messages must be user and assistant in turn, with a system message in front or none, and end in one of "
            "the user's",
            "messages",
        )
    turns = tuple(text for _, text in said)
    if not turns[-1].strip():
        raise bad_request("the question is empty", "messages")
    return system, turns


def _text(message: Mapping[str, Any]) -> str:
    content = message.get("content")
    if message.get("tool_calls"):
        raise bad_request("messages with tool_calls cannot be read here", "messages")
    if isinstance(content, str) and is_text(content):
        return content
    if isinstance(content, list) and all(isinstance(part, Mapping) and part.get("type") == "text" for part in content):
        texts = [part.get("text") for part in content]
        if all(map(is_text, texts)):
            return "\n".join(map(str, texts))
    raise bad_request(f"a message's content is {quoted(content)}; it must be text", "messages")
