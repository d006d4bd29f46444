"""``/v1/memories``: the memories of a server, listed, shown, added and deleted; the same for every engine."""

from __future__ import annotations

import asyncio
from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse
from pydantic import BaseModel, ConfigDict

from .api_errors import ApiError
from .cards import described
from .front import Front

SHAPE = {
    "type": "object",
    "required": ["error"],
    "properties": {
        "error": {
            "type": "object",
            "required": ["message", "type", "param", "code"],
            "properties": {
                "message": {"type": "string"},
                "type": {"type": "string"},
                "param": {"type": ["string", "null"]},
                "code": {"type": "integer"},
            },
        }
    },
}


def errors(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """What an operation's OpenAPI says of its errors."""
    return {
        status: {"description": "An error", "content": {"application/json": {"schema": SHAPE}}} for status in statuses
    }


class NewMemory(BaseModel):
    """A file of the server's folder, and the id that it gets."""

    model_config = ConfigDict(extra="forbid")
    id: str
    path: str


def memory_router() -> APIRouter:
    """The routes; ``app.state.lcc`` is their ``Front``."""
    router = APIRouter()

    @router.get("/v1/memories", responses=errors(401, 503))
    async def list_memories(request: Request) -> JSONResponse:
        """All memories of the folder, those that cannot be served with why."""
        rows = await asyncio.to_thread(_front(request).listed)
        return JSONResponse({"object": "list", "data": rows})

    @router.get("/v1/memories/{name:path}", responses=errors(401, 404, 409, 503))
    async def show_memory(name: str, request: Request) -> JSONResponse:
        """One memory."""
        return await _entry(lambda front: front.catalog.entry(name), request)

    @router.post("/v1/memories", responses=errors(400, 401, 404, 409, 503))
    async def add_memory(new: NewMemory, request: Request) -> JSONResponse:
        """Give a file of the folder an id; it is checked at once."""
        return await _entry(lambda front: front.catalog.add(new.id, new.path), request)

    @router.delete("/v1/memories/{name:path}", responses=errors(401, 404, 503))
    async def delete_memory(name: str, request: Request) -> JSONResponse:
        """Forget an id; its file stays."""
        try:
            await asyncio.to_thread(_front(request).catalog.remove, name)
        except ApiError as error:
            return error_response(error)
        return JSONResponse({"id": name, "object": "memory.deleted", "deleted": True})

    return router


async def _entry(find: Any, request: Request) -> JSONResponse:
    try:
        return JSONResponse(described(await asyncio.to_thread(find, _front(request))))
    except ApiError as error:
        return error_response(error)


def error_response(error: ApiError) -> JSONResponse:
    """An error as HTTP has it."""
    return JSONResponse(error.body(), error.status, error.headers())


def _front(request: Request) -> Front:
    return request.app.state.lcc
