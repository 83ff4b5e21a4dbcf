"""Starts uvicorn: in this process, or a process a worker."""

from __future__ import annotations

import os
import signal
import sys
import tempfile
import warnings
from functools import partial

import uvicorn
from starlette.applications import Starlette
from uvicorn.config import STARTUP_FAILURE
from uvicorn.supervisors import Multiprocess

from edgebert.errors import EdgeBertError
from edgebert.serve.app import make_app
from edgebert.serve.protocol import Protocol
from edgebert.serve.settings import Settings


class ServerError(EdgeBertError):
    """A worker did not start."""


def serve(settings: Settings) -> None:
    """Serve until a signal stops it.

    Raises:
        EdgeBertError: a model cannot be loaded, or a worker did not start.
        OSError: the address is in use, or the file of keys cannot be read.
    """
    config = uvicorn.Config(
        partial(_make_app, settings),
        factory=True,
        host=settings.host,
        port=settings.port,
        workers=settings.workers,
        http=Protocol,
        ws="none",
        lifespan="on",
        log_level="error",
        access_log=False,
        server_header=False,
        ssl_certfile=settings.ssl_certfile,
        ssl_keyfile=settings.ssl_keyfile,
        timeout_worker_healthcheck=60,
        backlog=4096,
    )
    try:
        socket = config.bind_socket()
    except SystemExit:
        raise ServerError(f"{settings.host}:{settings.port} cannot be listened on: choose another --port") from None
    host, port = socket.getsockname()[:2]
    scheme = "https" if settings.ssl_certfile else "http"
    place = f"{scheme}://{f'[{host}]' if ':' in host else host}:{port}"
    if settings.workers == 1:
        config.load()  # with the models
        _tell(f"serving on {place}")
        uvicorn.Server(config).run(sockets=[socket])
        return
    with tempfile.TemporaryDirectory(prefix="edgebert-metrics-") as folder:
        os.environ["PROMETHEUS_MULTIPROC_DIR"] = folder
        _tell(f"serving on {place} with {settings.workers} workers")
        workers = _Workers(config, sockets=[socket])
        workers.run()
    if any(process.exitcode == STARTUP_FAILURE for process in workers.processes):
        raise ServerError("a worker did not start: its message stands above")


class _Workers(Multiprocess):
    """uvicorn's workers, which load their models again on SIGHUP instead of being replaced."""

    def handle_hup(self) -> None:
        """Pass the signal on."""
        for process in self.processes:
            if process.pid is not None and process.exitcode is None:
                os.kill(process.pid, signal.SIGHUP)


def _make_app(settings: Settings) -> Starlette:
    warnings.simplefilter("ignore")  # those of tasks may hold texts
    if sys.platform != "win32":
        signal.signal(signal.SIGHUP, signal.SIG_IGN)  # until the models are there
    if settings.workers == 1:
        return make_app(settings)
    try:
        return make_app(settings)
    except (EdgeBertError, OSError) as error:
        _tell(str(error))
        sys.exit(STARTUP_FAILURE)


def _tell(message: str) -> None:
    print(f"edgebert: {message}", file=sys.stderr, flush=True)
