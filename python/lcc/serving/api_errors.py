"""What goes wrong with a request, in the shape in which OpenAI's clients read it."""

from __future__ import annotations

from typing import Any

TYPES = {
    400: "BadRequestError",
    401: "AuthenticationError",
    404: "NotFoundError",
    409: "ConflictError",
    429: "RateLimitError",
    500: "InternalServerError",
    503: "ServiceUnavailableError",
}


class ApiError(Exception):
    """A request that is refused, or that failed.

    Attributes:
        status: of HTTP.
        param: the part of the request that it is about, if it is about one.
        retry_after: seconds after which it is worth asking again.
    """

    def __init__(self, status: int, message: str, param: str | None = None, retry_after: int | None = None):
        super().__init__(message)
        self.status, self.param, self.retry_after = status, param, retry_after

    def body(self) -> dict[str, Any]:
        """``{"error": {"message", "type", "param", "code"}}``."""
        return {
            "error": {"message": str(self), "type": TYPES[self.status], "param": self.param, "code": self.status},
        }

    def headers(self) -> dict[str, str]:
        """Those of the response."""
        return {} if self.retry_after is None else {"Retry-After": str(self.retry_after)}


def too_many(waiting: int) -> ApiError:
    """The client must ask later."""
    return ApiError(429, f"{waiting} requests wait already: ask again later", retry_after=1)


def bad_request(message: str, param: str | None) -> ApiError:
    """The client must ask otherwise."""
    return ApiError(400, message, param)
