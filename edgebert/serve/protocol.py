"""uvicorn's HTTP protocol, with limits on the head of a request, connections counted, and answers sent whole."""

from __future__ import annotations

import asyncio
from typing import Any

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

HEAD_SECONDS = 20.0
HEAD_BYTES = 1 << 16
LAST_SECONDS = 0.5

_connections: set[Any] = set()


def count_connections() -> int:
    """Connections that are open in this process."""
    return len(_connections)


class _Transport:
    """uvicorn's transport, but that the head of an answer waits for its body and both leave in one packet."""

    def __init__(self, transport: Any) -> None:
        self._transport = transport
        self._head = b""

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)

    def write(self, data: bytes) -> None:
        """Send bytes, or keep a head."""
        is_head = data.startswith(b"HTTP/1.1 ") and data.endswith(b"\r\n\r\n")
        if is_head and not data.startswith(b"HTTP/1.1 100 ") and not self._head:  # 100 asks for the request's body
            self._head = data
            return
        self._transport.write(self._head + data)
        self._head = b""

    def flush(self) -> None:
        """Send a head that no body has followed."""
        if self._head:
            self.write(b"")

    def close(self) -> None:
        """Close, once all is sent."""
        self.flush()
        self._transport.close()


class Protocol(HttpToolsProtocol):
    """One connection. A client that does not finish the head of its first request in time is let go."""

    _timer: asyncio.TimerHandle | None = None
    _head_bytes = 0

    _is_last = False

    def connection_made(self, transport: Any) -> None:
        """A client has come."""
        super().connection_made(_Transport(transport))  # type: ignore[arg-type]
        _connections.add(self)
        self._timer = self.loop.call_later(HEAD_SECONDS, self._give_up)

    def connection_lost(self, exc: Exception | None) -> None:
        """It has gone."""
        _connections.discard(self)
        self._end_head()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Some bytes of a request."""
        if self._timer is None and (self.cycle is None or self.cycle.response_complete):  # the next request's head
            self._timer = self.loop.call_later(HEAD_SECONDS, self._give_up)
        if self._timer is not None:
            self._head_bytes += len(data)
        super().data_received(data)
        if self._timer is not None and self._head_bytes > HEAD_BYTES and not self.transport.is_closing():
            self.logger.warning("The head of a request is too large.")
            self.send_400_response("The head of the request is too large.")

    def on_headers_complete(self) -> None:
        """The head is there."""
        self._end_head()
        super().on_headers_complete()
        if self._is_last:
            self.cycle.keep_alive = False

    def on_response_complete(self) -> None:
        """All of an answer was given."""
        self.transport.flush()  # type: ignore[attr-defined]
        super().on_response_complete()

    def shutdown(self) -> None:
        """The server stops: a request that is on its way is answered, and is the connection's last one."""
        if (self.cycle is None or self.cycle.response_complete) and not self._is_last:
            self._is_last = True
            self.loop.call_later(LAST_SECONDS, self.shutdown)
        else:
            super().shutdown()

    def _end_head(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._timer, self._head_bytes = None, 0

    def _give_up(self) -> None:
        self._timer = None
        if not self.transport.is_closing():
            self.transport.close()
