"""A server's process: a socket, signals, and an orderly end."""

from __future__ import annotations

import socket

import uvicorn
from fastapi import FastAPI

from ..errors import InputError

# Seconds that requests have to end once the server is told to.
GRACE = 10


def run(app: FastAPI, host: str, port: int) -> None:
    """Serve until SIGINT or SIGTERM; then requests that are under way may end.

    Raises:
        InputError: the address cannot be listened on.
    """
    config = uvicorn.Config(app, timeout_graceful_shutdown=GRACE, log_level="warning", access_log=False)
    with _listening(host, port) as sock:
        shown = f"[{host}]" if ":" in host else host
        print(f"serving on http://{shown}:{sock.getsockname()[1]}/v1", flush=True)
        uvicorn.Server(config).run(sockets=[sock])


def _listening(host: str, port: int) -> socket.socket:
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        return socket.create_server((host, port), family=family, backlog=1024)
    except (OSError, OverflowError, UnicodeError) as error:
        raise InputError(f"cannot listen on {host}, port {port}: {error}; name another --port or --host") from error
