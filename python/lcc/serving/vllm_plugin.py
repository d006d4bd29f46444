"""Memories in vLLM's own OpenAI server: ``VLLM_PLUGINS=lcc`` beside the connector's flag.

Requests that name a memory get placeholders for its tokens, and go on as vLLM's own: chats, tools, streams and usage
stay what they are there. Everything else is left to vLLM untouched.
"""

from __future__ import annotations

import asyncio
import json
from argparse import Namespace
from collections.abc import AsyncIterable, AsyncIterator
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, StreamingResponse
from pydantic import ValidationError
from starlette.datastructures import State
from starlette.types import Message, Receive, Scope, Send
from transformers import AutoTokenizer
from vllm.entrypoints.openai.chat_completion.api_router import create_chat_completion
from vllm.entrypoints.openai.chat_completion.protocol import ChatCompletionRequest
from vllm.entrypoints.openai.completion.api_router import create_completion
from vllm.entrypoints.openai.completion.protocol import CompletionRequest
from vllm.exceptions import GenerationError
from vllm.logger import init_logger

from ..memory.memory import Memory
from ..memory.stored_prefix import Prefixes
from ..text.chat_format import ChatFormat
from ..utils.values import quoted
from .api_errors import ApiError, bad_request
from .catalog import Catalog
from .front import Asked, Front
from .memory_routes import error_response, memory_router
from .naming import FIELDS, OF, TRANSFER, named_memories
from .prompts import Prompts
from .vllm_connector import folders_of
from .vllm_scheduling import FILES

log = init_logger("vllm.lcc")
# What the connector's workers refuse ends as a failed generation.
NOT_LOADED = ApiError(503, "the memory could not be loaded: ask again", "memory", retry_after=1)
CHAT, COMPLETIONS = "/v1/chat/completions", "/v1/completions"


class MemoryEndpoints:
    """The plugin; vLLM makes it by the entry point ``lcc`` of ``vllm.endpoint_plugins``."""

    name = "lcc"
    required_tasks = ("generate",)

    def attach_router(self, app: FastAPI) -> None:
        """Replace chat, completions and the list of models, and add ``/v1/memories``."""
        app.include_router(memory_router())
        app.add_api_route(CHAT, _chat, methods=["POST"])
        app.add_api_route(COMPLETIONS, _completions, methods=["POST"])
        app.add_api_route("/v1/models", _models, methods=["GET"])
        app.add_api_route("/v1/models/{name:path}", _model, methods=["GET"])
        app.add_middleware(_NoMemoryElsewhere)

    async def init_state(self, engine_client: Any, state: State, args: Namespace) -> None:
        """Check every memory of the folder; the first start with a model loads it once more, for the prefix."""
        config = engine_client.vllm_config
        model = config.model_config
        extra = config.kv_transfer_config.kv_connector_extra_config if config.kv_transfer_config else {}
        folder, cache = folders_of(extra)
        tokenizer = AutoTokenizer.from_pretrained(model.tokenizer, trust_remote_code=False)
        prefixes = Prefixes(model.model, model.dtype, cache)

        def check(memory: Memory) -> None:
            memory.verify(None, tokenizer)
            prefixes.place(memory)

        base = state.openai_serving_models.base_model_paths[0].name
        state.lcc = Front(base, Catalog(folder, check), Prompts(tokenizer, model.max_model_len))
        state.lcc_placeholder = ChatFormat.of(tokenizer).prefix_ids[0]
        for row in await asyncio.to_thread(state.lcc.listed):
            log.info("memory %s: %s", row["id"], row["error"]["message"] if "error" in row else "served")


async def _chat(raw_request: Request) -> Any:
    return await _answered(raw_request, _rewrite_chat, ChatCompletionRequest, create_chat_completion)


async def _completions(raw_request: Request) -> Any:
    return await _answered(raw_request, _rewrite_completion, CompletionRequest, create_completion)


async def _models(raw_request: Request) -> JSONResponse:
    state = raw_request.app.state
    listed = (await state.openai_serving_models.show_available_models()).model_dump()
    listed["data"] += await asyncio.to_thread(state.lcc.cards)
    return JSONResponse(listed)


async def _model(name: str, raw_request: Request) -> JSONResponse:
    listed = json.loads(bytes((await _models(raw_request)).body))["data"]
    card = next((card for card in listed if card["id"] == name), None)
    if card is None:
        return error_response(ApiError(404, f"the model {quoted(name)} does not exist", "model"))
    return JSONResponse(card)


async def _answered(raw_request: Request, rewrite: Any, kind: type, answer: Any) -> Any:
    """vLLM's answer to a request in which a memory stands as placeholders."""
    state = raw_request.app.state
    try:
        body, asked = _of_base(await _json(raw_request), state), None
        # Another model, such as a LoRA: vLLM knows it, or says that there is none.
        if not _is_of_another_model(body, state.lcc.base):
            if named_memories(body, state.lcc.base):
                body, asked = await asyncio.to_thread(rewrite, state.lcc, state.lcc_placeholder, body)
            else:
                body = {name: value for name, value in body.items() if name not in FIELDS}
        request = kind(**body)
    except ApiError as error:
        return error_response(error)
    except ValidationError as error:
        raise RequestValidationError(error.errors()) from error
    try:
        response = await answer(request, raw_request)
    except GenerationError as error:
        if asked is None:
            raise
        log.warning("a memory was not loaded: %s", error)
        return error_response(NOT_LOADED)
    return response if asked is None else _told(response, asked)


def _of_base(body: dict[str, Any], state: State) -> dict[str, Any]:
    """The request with the first of the base model's names in place of any other one of them."""
    names = [path.name for path in state.openai_serving_models.base_model_paths]
    return body | {"model": state.lcc.base} if body.get("model") in names else body


def _is_of_another_model(body: dict[str, Any], base: str) -> bool:
    """Whether a request is neither of the base model nor of one of its memories.

    Raises:
        ApiError: 400: it is, and names a memory beside.
    """
    model = body.get("model")
    if model in (None, base) or str(model).startswith(base + OF):
        return False
    if _field_of(body) is not None:
        raise bad_request(f"a memory was compiled for the model {base}, and the request wants another one", "model")
    return True


def _field_of(body: Any) -> str | None:
    """The first field of a request that names a memory, if one does."""
    return next((name for name in FIELDS if isinstance(body, dict) and body.get(name) is not None), None)


def _rewrite_chat(front: Front, placeholder: int, body: dict[str, Any]) -> tuple[dict[str, Any], Asked]:
    asked = front.chat(body)
    ids = [placeholder] * asked.past + list(asked.ids)
    return _for_vllm(front, body, asked) | {TRANSFER: {"prompt_token_ids": ids, FILES: _files(front, asked)}}, asked


def _rewrite_completion(front: Front, placeholder: int, body: dict[str, Any]) -> tuple[dict[str, Any], Asked]:
    asked = front.completions(body)
    prompts = [[placeholder] * one.past + list(one.ids) for one in asked]
    rewritten = _for_vllm(front, body, asked[0]) | {"prompt": prompts, TRANSFER: {FILES: _files(front, asked[0])}}
    return rewritten, asked[0]


def _for_vllm(front: Front, body: dict[str, Any], asked: Asked) -> dict[str, Any]:
    return {name: value for name, value in body.items() if name not in FIELDS} | {"model": front.base}


def _files(front: Front, asked: Asked) -> list[list[str]]:
    return [[str(entry.path.relative_to(front.catalog.folder)), entry.digest] for entry in asked.entries]


def _told(response: Any, asked: Asked) -> Any:
    """The response, with the memories that it was given."""
    if isinstance(response, StreamingResponse):
        response.body_iterator = _with_memory(response.body_iterator, asked)
        return response
    if not isinstance(response, JSONResponse):
        return response
    content = json.loads(bytes(response.body))
    if response.status_code == 500:
        return error_response(NOT_LOADED)
    content.pop(TRANSFER, None)
    return JSONResponse(content | (asked.memory_fields() if response.status_code == 200 else {}), response.status_code)


async def _with_memory(chunks: AsyncIterable[Any], asked: Asked) -> AsyncIterator[Any]:
    """A stream whose first event names the memories."""
    first = True
    async for chunk in chunks:
        text = chunk.decode() if isinstance(chunk, bytes) else chunk
        if first and text.startswith("data: {"):
            event, _, rest = text.removeprefix("data: ").partition("\n")
            text, first = f"data: {json.dumps(json.loads(event) | asked.memory_fields())}\n{rest}", False
        yield text


async def _json(raw_request: Request) -> dict[str, Any]:
    try:
        body = await raw_request.json()
    except ValueError as error:
        raise bad_request(f"the body is no JSON: {error}", None) from error
    if not isinstance(body, dict):
        raise bad_request("the body must be a JSON object", None)
    return body


class _NoMemoryElsewhere:
    """Refuses a memory on routes that would not see it: no question is ever answered without its memory."""

    def __init__(self, app: Any):
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        path = scope.get("path", "")
        ours = path in (CHAT, COMPLETIONS) or path.startswith("/v1/memories")
        if scope["type"] != "http" or scope["method"] != "POST" or ours:
            await self.app(scope, receive, send)
            return
        body, messages = b"", []
        while True:
            message = await receive()
            messages.append(message)
            body += message.get("body", b"")
            if not message.get("more_body"):
                break
        named = _named_in(body)
        if named is not None:
            error = bad_request(f"{path} knows no memories: ask {CHAT} or {COMPLETIONS}", named)
            await error_response(error)(scope, receive, send)
            return

        async def again() -> Message:
            return messages.pop(0) if messages else await receive()

        await self.app(scope, again, send)


def _named_in(body: bytes) -> str | None:
    try:
        content = json.loads(body)
    except ValueError:
        return None
    return _field_of(content)
