"""The server of ``lcc serve``: OpenAI's routes over an engine."""

from __future__ import annotations

import asyncio
import hmac
import logging
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import asynccontextmanager, suppress
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, Response, StreamingResponse
from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from ..utils.values import quoted
from ..utils.version import __version__
from .answering import Answering, Order, error_event
from .api_errors import TYPES, ApiError, bad_request
from .api_models import MOST_ANSWERS, ChatRequest, CompletionRequest
from .bank_answers import BankAnswers
from .engine import Engine
from .front import Front
from .memory_routes import error_response, errors, memory_router
from .metrics import Metrics
from .openai_format import Shape

log = logging.getLogger(__name__)
OPEN = ("/health", "/metrics")
# What OpenAPI says of answers: they are JSON, or events.
ANSWERS = {200: {"content": {"text/event-stream": {}}}, **errors(400, 401, 404, 409, 429, 500, 503)}


def make_app(front: Front, engine: Engine, api_key: str | None = None, bank: BankAnswers | None = None) -> FastAPI:
    """The application.

    Args:
        api_key: that clients must give; None: anybody may ask.
        bank: answers chats that name no memory.
    """

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        yield
        await engine.close()

    app = FastAPI(title="lcc serve", version=__version__, lifespan=lifespan)
    metrics = Metrics(engine.stats)
    app.state.lcc, app.state.engine, app.state.metrics, app.state.bank = front, engine, metrics, bank
    app.state.answering = Answering(engine, metrics)
    _handle_errors(app)
    app.include_router(memory_router())
    app.add_api_route("/v1/chat/completions", _chat, methods=["POST"], responses=ANSWERS)
    app.add_api_route("/v1/completions", _completions, methods=["POST"], responses=ANSWERS)
    app.add_api_route("/v1/models/{name:path}", _model, methods=["GET"], responses=errors(401, 404, 503))
    app.add_api_route("/v1/models", _models, methods=["GET"], responses=errors(401, 503))
    app.add_api_route("/health", _health, methods=["GET"], responses=errors(503))
    app.add_api_route("/metrics", _metrics, methods=["GET"], response_class=Response)

    app.add_middleware(_Guard, api_key=api_key, metrics=metrics)
    return app


class _Guard:
    """Asks for the API key, and counts responses."""

    def __init__(self, app: ASGIApp, api_key: str | None, metrics: Metrics):
        self.app, self.api_key, self.metrics = app, api_key, metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return

        async def counting(message: Message) -> None:
            if message["type"] == "http.response.start":
                path = getattr(scope.get("route"), "path", "other")
                self.metrics.request(path, message["status"])
            await send(message)

        if self.api_key is None or scope["path"] in OPEN or _may_ask(Headers(scope=scope), self.api_key):
            await self.app(scope, receive, counting)
        else:
            await error_response(ApiError(401, "the API key is missing or wrong"))(scope, receive, counting)


def _may_ask(headers: Headers, api_key: str) -> bool:
    # Starlette reads each byte of a header as a character.
    scheme, _, given = headers.get("authorization", "").encode("latin-1").partition(b" ")
    return scheme.lower() == b"bearer" and hmac.compare_digest(given, api_key.encode(errors="surrogateescape"))


async def _chat(chat: ChatRequest, request: Request) -> Response:
    """Answer a chat from a memory, from several, from the bank, or from the model alone."""
    state = request.app.state
    body = chat.body()
    asked = await asyncio.to_thread(state.lcc.chat, body)
    if state.bank is not None and not asked.entries:
        return await state.bank.respond(chat, body, request.app.state.lcc.base)
    return await _respond(chat, [asked], request, is_chat=True)


async def _completions(completion: CompletionRequest, request: Request) -> Response:
    """Go on right behind a memory, or behind nothing."""
    asked = await asyncio.to_thread(request.app.state.lcc.completions, completion.body())
    return await _respond(completion, asked, request, is_chat=False)


async def _respond(given: ChatRequest | CompletionRequest, asked: list[Any], request: Request, is_chat: bool) -> Any:
    front, answering = request.app.state.lcc, request.app.state.answering
    room = min(front.prompts.window - one.past - len(one.ids) for one in asked)
    options = tuple(given.sampling(choice, room) for choice in range(given.n or 1))
    if len(asked) * len(options) > MOST_ANSWERS:
        raise bad_request(f"a request has {MOST_ANSWERS} answers at most: send several", "n" if is_chat else "prompt")
    shape = Shape(is_chat, given.model or front.base, asked[0].memory_fields())
    with_usage = bool(given.stream_options and given.stream_options.include_usage)
    order = Order(shape, tuple(asked), options, tuple(given.stops()), with_usage)
    if not given.stream:
        return JSONResponse(await _unless_gone(request, answering.whole(order)))
    events = answering.stream(order)
    # Until there is a first event, an error has a status.
    first = await _unless_gone(request, anext(events))
    return StreamingResponse(_events(first, events), media_type="text/event-stream")


async def _events(first: str, events: AsyncGenerator[str, None]) -> AsyncIterator[str]:
    try:
        yield first
        async for event in events:
            yield event
    except ApiError as error:
        yield error_event(error)
    finally:
        await events.aclose()


async def _unless_gone(request: Request, work: Any) -> Any:
    """What ``work`` returns; it is cancelled when the client goes."""
    task = asyncio.ensure_future(work)
    gone = asyncio.ensure_future(_gone(request))
    try:
        await asyncio.wait({task, gone}, return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            task.cancel()
            with suppress(asyncio.CancelledError):
                await task
            raise ApiError(503, "the client has gone")
        return await task
    finally:
        gone.cancel()
        task.cancel()


async def _gone(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


async def _models(request: Request) -> dict[str, Any]:
    """The model, and every memory as a model of its own."""
    front = request.app.state.lcc
    base = {"id": front.base, "object": "model", "created": 0, "owned_by": "lcc", "parent": None, "root": front.base}
    return {"object": "list", "data": [base, *await asyncio.to_thread(front.cards)]}


async def _model(name: str, request: Request) -> dict[str, Any]:
    """One model of the list."""
    card = next((card for card in (await _models(request))["data"] if card["id"] == name), None)
    if card is None:
        raise ApiError(404, f"the model {quoted(name)} does not exist; GET /v1/models lists them", "model")
    return card


async def _health(request: Request) -> JSONResponse:
    """Whether the server can answer."""
    engine = request.app.state.engine
    if not engine.healthy():
        return error_response(ApiError(503, f"the engine {engine.name} does not answer", retry_after=5))
    return JSONResponse({"status": "ok", "engine": engine.name, **engine.about()})


async def _metrics(request: Request) -> Response:
    """Counters and gauges for Prometheus."""
    return Response(request.app.state.metrics.page(), media_type="text/plain; version=0.0.4; charset=utf-8")


def _invalid(first: dict[str, Any]) -> ApiError:
    """What the first thing is that is wrong with a request's fields."""
    if first["type"] == "json_invalid":
        return bad_request(f"the body is no JSON: {first['ctx']['error']}", None)
    place = [str(part) for part in first["loc"] if part != "body"]
    if not place:
        return bad_request("the body must be a JSON object, sent as Content-Type: application/json", None)
    return bad_request(f"{quoted('.'.join(place))}: {first['msg']}", quoted(place[0]))


def _handle_errors(app: FastAPI) -> None:
    """Give every error OpenAI's shape."""

    @app.exception_handler(ApiError)
    async def of_api(request: Request, error: ApiError) -> JSONResponse:
        return error_response(error)

    @app.exception_handler(RequestValidationError)
    async def of_validation(request: Request, error: RequestValidationError) -> JSONResponse:
        return error_response(_invalid(error.errors()[0]))

    @app.exception_handler(HTTPException)
    async def of_http(request: Request, error: HTTPException) -> JSONResponse:
        body = {"error": {"message": str(error.detail), "type": TYPES.get(error.status_code, "BadRequestError"),
                          "param": None, "code": error.status_code}}  # fmt: skip
        return JSONResponse(body, error.status_code, error.headers)

    @app.exception_handler(Exception)
    async def of_anything(request: Request, error: Exception) -> JSONResponse:
        log.error("a request failed", exc_info=error)
        return error_response(ApiError(500, "the server failed; its log says more"))
