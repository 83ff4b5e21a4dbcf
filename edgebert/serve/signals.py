"""SIGTERM and SIGINT: stop when everything is answered. SIGHUP: load the models again."""

from __future__ import annotations

import asyncio
import signal
import sys
from types import FrameType
from typing import Any

from edgebert.errors import EdgeBertError
from edgebert.serve.calls import Context
from edgebert.serve.protocol import count_connections


class Signals:
    """While entered, a signal to stop is passed on to uvicorn only after a time in which clients can learn of it.

    In that time /health says so, and every answer asks to close its connection; so a connection is not closed while a
    request is on its way. It is over when no connection is open.
    """

    def __init__(self, context: Context) -> None:
        self._context = context
        self._before: dict[int, Any] = {}
        self._tasks: set[asyncio.Task[None]] = set()

    def __enter__(self) -> None:
        self._loop = asyncio.get_running_loop()
        try:
            for number in (signal.SIGTERM, signal.SIGINT):
                self._before[number] = signal.signal(number, self._stop)
        except ValueError:  # not the main thread: whoever started this one stops it
            return
        if sys.platform != "win32":
            self._loop.add_signal_handler(signal.SIGHUP, lambda: self._start(self._reload()))

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        if self._before and sys.platform != "win32":
            self._loop.remove_signal_handler(signal.SIGHUP)

    def _start(self, work: Any) -> None:
        task = self._loop.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def _stop(self, number: int, frame: FrameType | None) -> None:
        if self._context.is_stopping:  # a second time: now
            self._before[number](number, frame)
            return
        self._context.is_stopping = True
        self._loop.call_soon_threadsafe(lambda: self._start(self._drain(number)))

    async def _drain(self, number: int) -> None:
        end = self._loop.time() + self._context.settings.drain
        while count_connections() and self._loop.time() < end:
            await asyncio.sleep(0.05)
        self._before[number](number, None)

    async def _reload(self) -> None:
        try:
            models = self._context.models
            models.put(await asyncio.to_thread(models.read))
            print("edgebert: the models were loaded again", file=sys.stderr, flush=True)
        except (EdgeBertError, OSError) as error:
            print(f"edgebert: the models stay as they are: {error}", file=sys.stderr, flush=True)
