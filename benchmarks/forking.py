"""Do forked workers serve? gunicorn with --preload: the model is loaded, and running, where workers are forked.

On each backend, workers with threads answer requests over the loopback interface, and are replaced after some of
them, so that more are forked while others compute. Every answer must have the bits that the model has in this process.
Exit status 1 if an answer differs or does not come, or a worker hangs. Needs gunicorn.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import urllib.request
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import edgebert
from benchmarks import ROOT, describe_run, write_result
from edgebert.batch import PackedBatch
from edgebert.bench.session import version_of

MODEL, BACKEND = "EDGEBERT_FORKING_MODEL", "EDGEBERT_FORKING_BACKEND"  # for `application`, environment variables
WORKERS, THREADS, REQUESTS_OF_A_WORKER = 2, 4, 20
SECONDS = 30  # for an answer; a worker that is silent for as long is killed
TEXTS = ["turn off the modem", "a", "water the roses at the root, not the leaves, and early in the day"]


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.forking", description=__doc__.splitlines()[0])
    parser.add_argument("model", type=Path, help="an exported embedding file with its tokenizer inside")
    parser.add_argument("--requests", type=int, default=400, help="to each backend (default: 400)")
    parser.add_argument("--out", type=Path, help="write JSON here instead of printing it")
    args = parser.parse_args()

    result: dict[str, Any] = {
        **describe_run("benchmarks.forking"),
        "gunicorn": version_of("gunicorn"),
        "workers": WORKERS,
        "threads_of_a_worker": THREADS,
        "requests_of_a_worker": REQUESTS_OF_A_WORKER,
        "backends": {name: check_backend(args.model, name, args.requests) for name in ("native", "numba")},
    }
    write_result(args.out, result)
    failures = 0
    for name, report in result["backends"].items():
        failures += report["differing"] + report["unanswered"] + report["hung"]
        print(f"{name}: {report}")
    return int(failures > 0)


def check_backend(model: Path, backend: str, requests: int) -> dict[str, int]:
    """Requests sent, answers that differed or did not come, workers forked and workers that were killed for hanging."""
    os.environ |= {MODEL: str(model.resolve()), BACKEND: backend}
    expected = [digest(edgebert.load(model, backend, threads=2), text) for text in TEXTS]
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = "{}:{}".format(*free.getsockname())
    command = [
        *(sys.executable, "-m", "gunicorn", "--preload", "--worker-class", "gthread", "--bind", address),
        *("--workers", str(WORKERS), "--threads", str(THREADS), "--timeout", str(SECONDS)),
        *("--max-requests", str(REQUESTS_OF_A_WORKER), "benchmarks.forking:application()"),
    ]
    with tempfile.TemporaryFile("w+") as log:
        server = subprocess.Popen(command, cwd=ROOT, stderr=log, start_new_session=True)
        try:
            with ThreadPoolExecutor(WORKERS * THREADS) as clients:
                answers = list(clients.map(lambda i: ask(address, i % len(TEXTS)), range(requests)))
        finally:
            server.terminate()
            try:
                server.wait(2 * SECONDS)
            except subprocess.TimeoutExpired:  # workers that hang
                os.killpg(server.pid, signal.SIGKILL)
                server.wait()
        log.seek(0)
        said = log.read()
    return {
        "requests": requests,
        "differing": sum(bool(answer) and answer != expected[i % len(TEXTS)] for i, answer in enumerate(answers)),
        "unanswered": answers.count(""),
        "workers": len(re.findall("Booting worker", said)),
        "hung": len(re.findall("WORKER TIMEOUT", said)),
    }


def ask(address: str, index: int) -> str:
    """The server's answer; a connection that a worker on its way out has cut is tried again, silence is not."""
    for _ in range(200):
        try:
            with urllib.request.urlopen(f"http://{address}/{index}", timeout=SECONDS) as answer:
                return str(answer.read().decode())
        except TimeoutError:
            return ""
        except OSError:
            threading.Event().wait(0.1)
    return ""


def digest(model: edgebert.Model, text: str) -> str:
    """SHA-256 of the text's embedding."""
    return hashlib.sha256(model.encode(text).tobytes()).hexdigest()


def application() -> Callable[..., Iterable[bytes]]:
    """What gunicorn loads before it forks: an application, and a thread that never stops running its model."""
    model = edgebert.load(os.environ[MODEL], os.environ[BACKEND], threads=2)
    batch = PackedBatch.from_lists([[1] * 60] * 200)
    is_running = threading.Event()

    def keep_running() -> None:
        while True:
            model.forward(batch)
            is_running.set()

    threading.Thread(target=keep_running, daemon=True).start()
    is_running.wait()

    def answer(environment: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        start_response("200 OK", [("Content-Type", "text/plain")])
        return [digest(model, TEXTS[int(environment["PATH_INFO"][1:])]).encode()]

    return answer


if __name__ == "__main__":
    raise SystemExit(main())
