"""Requests that are refused."""

from __future__ import annotations

from edgebert.errors import EdgeBertError


class RequestError(EdgeBertError):
    """A request is not answered.

    Attributes:
        status: of HTTP.
        code: one word or two for programs: "too_long", "too_many", "timeout", …
        retry_after: seconds after which it is worth another try; None where it is not.
    """

    def __init__(self, status: int, code: str, message: str, retry_after: int | None = None) -> None:
        super().__init__(message)
        self.status, self.code, self.retry_after = status, code, retry_after


class ClientGoneError(EdgeBertError):
    """The client has hung up: nobody is left to answer."""
