"""One peer in a process of its own: requests as JSON lines on standard input, answers on standard output.

Nothing else may write to that output, so what libraries print goes to standard error.

    python -m edgebert.bench.worker serve PEER FILES
    python -m edgebert.bench.worker cold PEER FILES THREADS SETTINGS ROW   (load, run one row, report, end)

FILES, SETTINGS and ROW are JSON.
"""

from __future__ import annotations

import json
import os
import sys
import time
from typing import IO, Any

from edgebert.batch import PackedBatch
from edgebert.bench.peers import make_peer
from edgebert.bench.peers.base import ModelFiles, Peer


def main(arguments: list[str]) -> int:
    """See the module's text."""
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    _end_with_parent()
    mode, name, files, *rest = arguments
    peer = make_peer(name, ModelFiles.from_json(files))
    if mode == "cold":
        _answer(answers, start_cold(peer, int(rest[0]), json.loads(rest[1]), json.loads(rest[2])))
    else:
        serve(peer, sys.stdin, answers)
    return 0


def serve(peer: Peer, requests: IO[str], answers: IO[str]) -> None:
    """Answer {"do": method of PeerSession, "with": arguments} with {"result": …} or {"error": …} until the end."""
    from edgebert.bench.session import PeerSession

    session = PeerSession(peer)
    for line in requests:
        request = json.loads(line)
        try:
            answer = {"result": getattr(session, request["do"])(**request["with"])}
        except Exception as error:  # whatever a library raises is the answer
            answer = {"error": f"{type(error).__name__}: {error}"}
        _answer(answers, answer)


def start_cold(peer: Peer, threads: int, settings: dict[str, Any], row: list[int]) -> dict[str, Any]:
    """Load and run one row of token ids; the monotonic clock when its result was there."""
    peer.load(threads, settings)
    batch = PackedBatch.from_lists([row])
    output = peer.bind(batch)()
    done = time.monotonic()
    from edgebert.bench.session import peak_mb

    return {"done": done, "peak_mb": peak_mb(), "answer": next(iter(peer.embed(output, batch))).tolist()}


def _end_with_parent() -> None:
    """A parent that is killed leaves this process stopped for ever: have the system kill it too, where it can."""
    if sys.platform == "linux":
        import ctypes
        import signal

        ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG


def _answer(answers: IO[str], value: dict[str, Any]) -> None:
    answers.write(json.dumps(value) + "\n")
    answers.flush()


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
