"""What clients send; everything else in a request is refused if it would change the answer, and else left alone."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from .api_errors import bad_request
from .engine import Sampling
from .front import new_tokens_of

# Answers that do not say how long they may be.
DEFAULT_NEW_TOKENS = 256
MOST_STOPS, MOST_CHOICES, MOST_ANSWERS = 4, 16, 64
# What would change an answer and is not known here, with the values that change nothing.
UNKNOWN: dict[str, tuple[Any, ...]] = {
    "tools": ([],),
    "functions": ([],),
    "logprobs": (False, 0),
    "top_logprobs": (0,),
    "logit_bias": ({},),
    "presence_penalty": (0,),
    "frequency_penalty": (0,),
    "repetition_penalty": (1,),
    "response_format": ({"type": "text"},),
    "echo": (False,),
    "suffix": ("",),
    "best_of": (1,),
    "prompt_logprobs": (0,),
    "min_tokens": (0,),
    "min_p": (0,),
    "ignore_eos": (False,),
    "stop_token_ids": ([],),
    "include_stop_str_in_output": (False,),
    "bad_words": ([],),
    "allowed_token_ids": ([],),
    "structured_outputs": ({},),
    "documents": ([],),
    "chat_template": (),
    "chat_template_kwargs": ({},),
    "continue_final_message": (False,),
}
Stop = Annotated[str, Field(min_length=1)]


class StreamOptions(BaseModel):
    """How a stream is made."""

    include_usage: bool | None = None


class _Request(BaseModel):
    """What chats and completions have in common."""

    model_config = ConfigDict(extra="allow")
    model: str | None = None
    memory: str | None = Field(None, description="The id of the memory that is asked.")
    memories: list[str] | None = Field(None, description="Memories that are read together, in this order.")
    cartridges: list[dict[str, Any]] | None = Field(None, description='As ``memories``: ``[{"id": ID}]``.')
    kv_transfer_params: dict[str, Any] | None = Field(None, description='As ``memory``: ``{"memory": ID}``.')
    max_tokens: Annotated[int, Field(ge=1)] | None = None
    temperature: Annotated[float, Field(ge=0, le=2)] | None = None
    top_p: Annotated[float, Field(gt=0, le=1)] | None = None
    top_k: Annotated[int, Field(ge=-1)] | None = None
    n: Annotated[int, Field(ge=1, le=MOST_CHOICES)] | None = None
    seed: int | None = None
    stop: Stop | Annotated[list[Stop], Field(max_length=MOST_STOPS)] | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None

    def body(self) -> dict[str, Any]:
        """The fields that were given."""
        return self.model_dump(exclude_unset=True)

    def stops(self) -> list[str]:
        """Texts that end the answer."""
        return [self.stop] if isinstance(self.stop, str) else list(self.stop or [])

    def sampling(self, choice: int, room: float) -> Sampling:
        """How a choice is drawn; greedily unless a temperature is given.

        Args:
            room: tokens that the window has for an answer, for a request that does not say how long it may be.

        Raises:
            ApiError: 400: a field that would change the answer and is not known here.
        """
        body = self.body()
        for name, harmless in UNKNOWN.items():
            if body.get(name) is not None and body[name] not in harmless:
                raise bad_request(f"{name} is not known to this server: leave it out, or serve with vLLM", name)
        return Sampling(
            new_tokens_of(body) or int(min(DEFAULT_NEW_TOKENS, room)),
            self.temperature or 0.0,
            1.0 if self.top_p is None else self.top_p,
            max(self.top_k or 0, 0),
            None if self.seed is None else self.seed + choice,
        )


class Message(BaseModel):
    """A message of a chat."""

    model_config = ConfigDict(extra="allow")
    role: Literal["system", "developer", "user", "assistant"]
    content: str | list[dict[str, Any]]


class ChatRequest(_Request):
    """``POST /v1/chat/completions``."""

    messages: Annotated[list[Message], Field(min_length=1)]
    max_completion_tokens: Annotated[int, Field(ge=1)] | None = None


class CompletionRequest(_Request):
    """``POST /v1/completions``: the prompt goes on right behind the memory, without the chat template."""

    prompt: str | list[int] | list[str] | list[list[int]]
