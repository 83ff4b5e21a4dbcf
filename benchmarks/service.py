"""A model in a service: how many texts a second and how long for one, with 1 caller and with several at once?

Each caller is a thread that asks for one text after another. The runtimes have the same tokenizer and a process each;
they take turns, and the others sleep meanwhile. Every answer must have the bits that the text has alone, for ONNX
Runtime's int8 those of the same padding, which single texts have. Ways to serve, beside one model for all callers: one
behind a lock, as if calls had to take turns; a model for each caller; ONNX Runtime with one session, whose calls take
all threads or one each. Exit status 1 if an answer differs.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

import edgebert
from benchmarks import ROOT, describe_run, write_result
from benchmarks.memory import resident_bytes
from edgebert.demo import quantize_usual, read_sentences

Encode = Callable[[str], NDArray[np.float32]]
WAYS = {
    "one model": "EdgeBERT, one model",
    "lock": "EdgeBERT, one model behind a lock",
    "own models": "EdgeBERT, a model for each caller",
    "onnxruntime": "ONNX Runtime, one session",
    "onnxruntime-1": "ONNX Runtime, one session, a thread a call",
}


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.service", description=__doc__.splitlines()[0])
    parser.add_argument("model", type=Path, help="an exported embedding file, its tokenizer inside")
    parser.add_argument("--onnxruntime", type=Path, help="for ONNX Runtime: the same in fp32, which it makes int8")
    parser.add_argument("--threads", type=int, help="of a model (default: the CPUs this process may use)")
    parser.add_argument("--callers", type=int, nargs="+", help="default: 1 2 8 and 8 for each thread")
    parser.add_argument("--seconds", type=float, default=2.0, help="of a turn (default: 2)")
    parser.add_argument("--rounds", type=int, default=5, help="turns of each runtime (default: 5)")
    parser.add_argument("--out", type=Path, help="write JSON here instead of printing it")
    parser.add_argument("--way", choices=WAYS, help=argparse.SUPPRESS)
    args = parser.parse_args()
    threads = args.threads or edgebert.load(args.model, "native").backend.threads  # type: ignore[attr-defined]
    if args.way:
        serve(args.way, args.model, threads)
        return 0

    result: dict[str, Any] = {
        **describe_run("benchmarks.service"),
        "threads": threads,
        "seconds": args.seconds,
        "rounds": args.rounds,
    }
    with tempfile.TemporaryDirectory() as folder:
        usual = Path(folder) / "usual-int8.onnx"
        if args.onnxruntime:
            quantize_usual(args.onnxruntime, usual)
        ways = [way for way in WAYS if args.onnxruntime or not way.startswith("onnxruntime")]
        workers = {
            way: Worker(way, args.model, threads, {"USUAL": str(usual), "FP32": str(args.onnxruntime)}) for way in ways
        }
        result["ways"] = {way: {"title": WAYS[way], **workers[way].ask(0, 0), "callers": {}} for way in ways}
        for callers in args.callers or sorted({1, 2, 8, 8 * threads}):
            turns: dict[str, list[dict[str, Any]]] = {way: [] for way in ways}
            for _ in range(args.rounds):
                for way in ways:
                    turns[way].append(workers[way].ask(callers, args.seconds))
            for way in ways:
                result["ways"][way]["callers"][callers] = report = summarize(turns[way])
                rate, p50, p95 = (report[key] for key in ("texts_per_s", "p50_ms", "p95_ms"))
                told = f"{rate:7.0f} texts/s, p50 {p50:6.2f} ms, p95 {p95:6.2f}, {report['resident_mb']:.0f} MB"
                print(f"{callers:3} callers, {WAYS[way]:45} {told}", file=sys.stderr)
        for worker in workers.values():
            worker.end()
    write_result(args.out, result)
    return int(any(turn["differing"] for way in result["ways"].values() for turn in way["callers"].values()))


def summarize(turns: list[dict[str, Any]]) -> dict[str, Any]:
    """The median turn of a runtime; the bytes that it held at the end, and the answers that differed in any."""
    medians = {key: statistics.median(turn[key] for turn in turns) for key in ("texts_per_s", "p50_ms", "p95_ms")}
    return {
        **medians,
        "all_texts_per_s": [turn["texts_per_s"] for turn in turns],
        **{key: turns[-1][key] for key in ("resident_mb", "workspace_bytes")},
        "differing": sum(turn["differing"] for turn in turns),
    }


class Worker:
    """A runtime in a process of its own."""

    def __init__(self, way: str, model: Path, threads: int, files: dict[str, str]) -> None:
        command = [sys.executable, "-m", "benchmarks.service", str(model), "--way", way, "--threads", str(threads)]
        environment = {**os.environ, **{f"EDGEBERT_SERVICE_{name}": value for name, value in files.items()}}
        self._process = subprocess.Popen(
            command, cwd=ROOT, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def ask(self, callers: int, seconds: float) -> dict[str, Any]:
        """What a turn gave; with 0 callers, what the runtime says of itself."""
        assert self._process.stdin and self._process.stdout
        self._process.stdin.write(json.dumps([callers, seconds]) + "\n")
        self._process.stdin.flush()
        answer: dict[str, Any] = json.loads(self._process.stdout.readline())
        return answer

    def end(self) -> None:
        """Close its input, and wait."""
        self._process.communicate()


def serve(way: str, path: Path, threads: int) -> None:
    """Answer requests of `Worker.ask` until the input ends."""
    if way.startswith("onnxruntime"):
        model = load_onnxruntime(1 if way.endswith("1") else threads)
    else:
        model = edgebert.load(path, "native", threads=threads)
    lock = threading.Lock()
    models = [model]

    def encode_in_turn(text: str) -> NDArray[np.float32]:
        with lock:
            return model.encode(text)

    def encode_of(caller: int) -> Encode:
        if way == "lock":
            return encode_in_turn
        if way == "own models":
            while len(models) <= caller:
                models.append(edgebert.load(path, "native", threads=threads))
            return models[caller].encode
        return model.encode

    texts = read_sentences()
    expected = [model.encode(text).tobytes() for text in texts]
    for line in sys.stdin:
        callers, seconds = json.loads(line)
        answer = {"detail": model.backend.detail}
        if callers:
            answer = run_turn([encode_of(caller) for caller in range(callers)], seconds, texts, expected)
            answer["workspace_bytes"] = sum(getattr(model.backend, "workspace_bytes", 0) for model in models)
        print(json.dumps(answer), flush=True)


def load_onnxruntime(threads: int) -> edgebert.Model:
    """A model whose backend runs ONNX Runtime's own int8 file, without spinning, which callers at once do not bear."""
    import onnxruntime

    from edgebert.backends.onnxruntime import OnnxRuntimeBackend

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    session = onnxruntime.InferenceSession(
        os.environ["EDGEBERT_SERVICE_USUAL"], options, providers=["CPUExecutionProvider"]
    )
    ours = edgebert.load(os.environ["EDGEBERT_SERVICE_FP32"], "native", threads=1)
    detail = f"onnxruntime {onnxruntime.__version__}, its usual int8, {threads} threads a call"
    return edgebert.Model(OnnxRuntimeBackend(session, ours.spec, "cpu", detail), ours.tokenizer, ())


def run_turn(encodes: list[Encode], seconds: float, texts: list[str], expected: list[bytes]) -> dict[str, Any]:
    """All callers for some seconds, after a tenth of that without count: texts a second, ms for one, answers."""
    times: list[list[float]] = [[] for _ in encodes]
    differing = [0] * len(encodes)
    start = threading.Barrier(len(encodes))

    def call(caller: int) -> None:
        encode, own = encodes[caller], times[caller]
        start.wait()
        begin = time.perf_counter() + seconds / 10
        for i in range(caller * 37, sys.maxsize):
            before = time.perf_counter()
            row = encode(texts[i % len(texts)])
            after = time.perf_counter()
            differing[caller] += row.tobytes() != expected[i % len(texts)]
            if after > begin + seconds:
                return
            if before > begin:
                own.append(after - before)

    callers = [threading.Thread(target=call, args=(caller,)) for caller in range(len(encodes))]
    for thread in callers:
        thread.start()
    for thread in callers:
        thread.join()
    milliseconds = 1e3 * np.concatenate(times)
    return {
        "texts_per_s": len(milliseconds) / seconds,
        "p50_ms": float(np.percentile(milliseconds, 50)),
        "p95_ms": float(np.percentile(milliseconds, 95)),
        "resident_mb": resident_bytes() / 1e6,
        "differing": sum(differing),
    }


if __name__ == "__main__":
    raise SystemExit(main())
