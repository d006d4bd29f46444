"""A server's process: a socket, signals, and an orderly end."""

from __future__ import annotations

import asyncio
import socket

import uvicorn
from fastapi import FastAPI

from ..errors import InputError

# Seconds that answers have to end once the server is told to, and then seconds in which their errors are sent.
GRACE, SENDING = 10, 5


class Server(uvicorn.Server):
    """Serves until SIGINT or SIGTERM; answers that take too long then end with an error that clients can read.

    Args:
        grace: seconds that answers have.
    """

    def __init__(self, app: FastAPI, grace: int = GRACE):
        super().__init__(
            uvicorn.Config(app, timeout_graceful_shutdown=grace + SENDING, log_level="warning", access_log=False)
        )
        self._engine, self._grace = app.state.engine, grace

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Take no more requests, and wait for those that are under way."""
        ending = asyncio.ensure_future(self._end())
        try:
            await super().shutdown(sockets)
        finally:
            ending.cancel()

    async def _end(self) -> None:
        await asyncio.sleep(self._grace)
        await self._engine.close()


def run(app: FastAPI, host: str, port: int) -> None:
    """Serve until SIGINT or SIGTERM; then requests that are under way may end.

    Raises:
        InputError: the address cannot be listened on.
    """
    with listening(host, port) as sock:
        shown = f"[{host}]" if ":" in host else host
        print(f"serving on http://{shown}:{sock.getsockname()[1]}/v1", flush=True)
        Server(app).run(sockets=[sock])


def listening(host: str, port: int) -> socket.socket:
    """A socket that waits for connections.

    Raises:
        InputError: the address cannot be listened on.
    """
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        return socket.create_server((host, port), family=family, backlog=1024)
    except (OSError, OverflowError, UnicodeError) as error:
        raise InputError(f"cannot listen on {host}, port {port}: {error}; name another --port or --host") from error
