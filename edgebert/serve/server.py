"""Starts uvicorn: in this process, or a process a worker."""

from __future__ import annotations

import os
import signal
import socket
import ssl
import sys
import tempfile
import warnings
from functools import partial
from pathlib import Path

import uvicorn
from starlette.types import ASGIApp
from uvicorn.config import STARTUP_FAILURE
from uvicorn.supervisors import Multiprocess

from edgebert.errors import EdgeBertError
from edgebert.serve.app import make_app
from edgebert.serve.protocol import Protocol
from edgebert.serve.settings import Settings

BACKLOG = 4096
HEALTH_SECONDS = 60  # after which a worker that does not answer is replaced
_FOLDER = "PROMETHEUS_MULTIPROC_DIR"  # of the workers' metrics
_LOADED = "loaded-{}"  # the file there of a worker that has its models, and
_FAILED = "failed-{}"  # of one that cannot have them, which says why


class ServerError(EdgeBertError):
    """The address cannot be listened on, or a worker did not start."""


def serve(settings: Settings) -> None:
    """Serve until a signal stops it.

    Raises:
        EdgeBertError: the address cannot be listened on, a model, certificate or file of keys cannot be loaded, or a
            worker did not start.
    """
    if settings.ssl_certfile:
        _check_certificate(settings.ssl_certfile, settings.ssl_keyfile)
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
        proxy_headers=settings.access_log,  # nothing else asks who the client is
        ssl_certfile=settings.ssl_certfile,
        ssl_keyfile=settings.ssl_keyfile,
        timeout_worker_healthcheck=HEALTH_SECONDS,
        backlog=BACKLOG,
    )
    with _bind(settings.host, settings.port) as listener:
        host, port = listener.getsockname()[:2]
        scheme = "https" if settings.ssl_certfile else "http"
        told = f"serving on {scheme}://{f'[{host}]' if ':' in host else host}:{port}"
        if settings.workers == 1:
            config.load()  # with the models
            listener.listen(BACKLOG)
            _tell(told)
            _run(uvicorn.Server(config), listener)
            return
        with tempfile.TemporaryDirectory(prefix="edgebert-workers-") as folder:
            os.environ[_FOLDER] = folder
            workers = _Workers(config, listener, f"{told} with {settings.workers} workers", Path(folder))
            workers.run()
            if failure := workers.find_failure():
                raise ServerError(failure)


def _check_certificate(certificate: str, key: str | None) -> None:
    try:
        ssl.create_default_context(ssl.Purpose.CLIENT_AUTH).load_cert_chain(certificate, key, password="")
    except OSError as error:
        names = certificate if key is None else f"{certificate} and {key}"
        raise ServerError(
            f"no certificate with its key can be read from {names} ({error}): give PEM files, the key without a "
            "password, with --ssl-certfile and --ssl-keyfile"
        ) from None


def _bind(host: str, port: int) -> socket.socket:
    """A socket that does not listen yet, as until the models are loaded nobody would answer."""
    listener = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
    try:
        if sys.platform != "win32":  # there it would share the port with whoever has it
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((host, port))
    except (OSError, UnicodeError) as error:
        listener.close()
        reason = error.strerror if isinstance(error, OSError) else error
        raise ServerError(f"{host}:{port} cannot be listened on ({reason}): choose another --port or --host") from None
    return listener


def _run(server: uvicorn.Server, listener: socket.socket) -> None:
    """Run until a signal; uvicorn raises it once more when it has stopped, and would end the process by it."""

    def stop(*_: object) -> None:
        server.should_exit = True

    before = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        server.run(sockets=[listener])
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


class _Workers(Multiprocess):
    """uvicorn's workers, which load their models again on SIGHUP instead of being replaced.

    Until all of them have their models for the first time, one that ends stops them all.
    """

    def __init__(self, config: uvicorn.Config, listener: socket.socket, told: str, folder: Path) -> None:
        """Args: as of uvicorn; what is told once all workers have their models; the folder where they say so."""
        super().__init__(config, sockets=[listener])
        self._told, self._folder = told, folder
        self._ended: int | None = None

    def init_processes(self) -> None:
        """Start the workers; while they start, Ctrl-C is for this process alone, which ends them."""
        before = signal.signal(signal.SIGINT, signal.SIG_IGN)  # which they inherit
        super().init_processes()
        signal.signal(signal.SIGINT, before)

    def keep_subprocess_alive(self) -> None:
        """See to the workers; called twice a second."""
        for process in self.processes:
            process.child_conn.close()  # our copy of the worker's end: with it open, one that has ended is waited for
        if not self._told:
            super().keep_subprocess_alive()
            return
        ended = [process.exitcode for process in self.processes if process.exitcode is not None]
        if self.should_exit.is_set() or self.signal_queue:
            return
        if ended:
            self._ended = ended[0]
            self.should_exit.set()
        elif len(list(self._folder.glob(_LOADED.format("*")))) >= self.processes_num:
            _tell(self._told)
            self._told = ""

    def find_failure(self) -> str | None:
        """Why a worker could not start, if one could not."""
        for told in self._folder.glob(_FAILED.format("*")):
            return told.read_text(encoding="utf-8", errors="surrogateescape")
        if self._ended is None and not any(process.exitcode == STARTUP_FAILURE for process in self.processes):
            return None
        status = STARTUP_FAILURE if self._ended is None else self._ended
        if status >= 0:
            return f"a worker ended with status {status} before it served: what it said stands above"
        return (
            f"a worker was ended by signal {-status} before it had its models: if the system did so for want of "
            "memory, start fewer --workers"
        )

    def handle_hup(self) -> None:
        """Pass the signal on."""
        for process in self.processes:
            if process.pid is not None and process.exitcode is None:
                os.kill(process.pid, signal.SIGHUP)


def _make_app(settings: Settings) -> ASGIApp:
    warnings.simplefilter("ignore")  # those of tasks may hold texts
    if sys.platform != "win32":
        signal.signal(signal.SIGHUP, signal.SIG_IGN)  # until the models are there
    if settings.workers == 1:
        return make_app(settings)
    try:
        app = make_app(settings)
    except (EdgeBertError, OSError) as error:
        told = Path(os.environ[_FOLDER], _FAILED.format(os.getpid()))
        told.write_text(str(error), encoding="utf-8", errors="surrogateescape")
        sys.exit(STARTUP_FAILURE)
    Path(os.environ[_FOLDER], _LOADED.format(os.getpid())).touch()
    return app


def _tell(message: str) -> None:
    print(f"edgebert: {message}", file=sys.stderr, flush=True)
