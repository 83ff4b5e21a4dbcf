"""uvicorn's HTTP protocol, with limits on the head of a request and with connections counted."""

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


class Protocol(HttpToolsProtocol):
    """One connection. A client that does not finish the head of its first request in time is let go."""

    _timer: asyncio.TimerHandle | None = None
    _head_bytes = 0

    _is_last = False

    def connection_made(self, transport: Any) -> None:
        """A client has come."""
        super().connection_made(transport)
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
