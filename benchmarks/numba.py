"""The numba backend beside the native one and ONNX Runtime on one file: speed, compile time and process start.

All backends run the same batches in turns (A B C A B C …) in one process; numba's bits must equal the native backend's
before anything is timed. Batch scoring is a stream of texts as long as real ones. Compile time is that of a process
with an empty cache, process start that of one that finds it filled: seconds from just before the process is started to
its first result.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import ROOT, describe_run, write_result
from benchmarks.shapes import draw_lengths
from edgebert.artifact.spec import EncoderSpec
from edgebert.backends.base import Backend
from edgebert.backends.registry import load_backend
from edgebert.batch import PackedBatch
from edgebert.turns import time_in_turns

BACKENDS = ("native", "numba", "onnxruntime")
STREAM_TOKENS = 4096  # what the model facade sends at once

START = """
import json, resource, sys, time
from edgebert.backends.registry import load_backend
from edgebert.batch import PackedBatch
begun = time.monotonic()
model = load_backend(sys.argv[1], "numba", threads=1)
loaded = time.monotonic()
model.run(PackedBatch.from_lists([[1] * 16]), model.spec.outputs[-1:])
usage = resource.getrusage(resource.RUSAGE_SELF)
done = {"done": time.monotonic(), "load_s": loaded - begun, "cpu_s": usage.ru_utime + usage.ru_stime}
print(json.dumps(done))
"""


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.numba", description=__doc__.splitlines()[0])
    parser.add_argument("model", type=Path, help="an exported file")
    parser.add_argument("--name", help="what the model is called in the result (default: the file's name)")
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--stream", type=int, default=256, help="texts of batch scoring")
    parser.add_argument("--seconds", type=float, default=4.0, help="for one workload and thread count")
    parser.add_argument("--starts", type=int, default=5, help="processes started; 0: measure no compile time either")
    parser.add_argument("--out", type=Path, help="write JSON here instead of printing it")
    args = parser.parse_args()

    result = {**describe_run("benchmarks.numba"), "model": args.name or args.model.name, "workloads": []}
    for threads in args.threads:
        backends = {name: load_backend(args.model, name, threads=threads) for name in BACKENDS}
        for name, batches in make_workloads(backends["native"].spec, args.stream).items():
            row = {"workload": name, "threads": threads, **measure(backends, batches, args.seconds)}
            print(json.dumps(row), file=sys.stderr)
            result["workloads"].append(row)
        result["backends"] = {name: backend.detail for name, backend in backends.items()}
    if args.starts:
        result["process"] = measure_starts(args.model, args.starts)
    write_result(args.out, result)
    return 0


def make_workloads(spec: EncoderSpec, stream: int) -> dict[str, list[PackedBatch]]:
    """Batches of random ids: single texts, and a stream sorted by length and cut as the model facade does."""
    rng = np.random.default_rng(0)

    def rows(lengths: list[int]) -> PackedBatch:
        return PackedBatch.from_lists([rng.integers(0, spec.vocab_size, n).tolist() for n in lengths])

    workloads = {f"one text of {n} tokens": [rows([n])] for n in (16, 128, 384) if n <= spec.usable_positions}
    texts = rows(sorted(draw_lengths(stream), reverse=True))
    workloads[f"batch scoring, {stream} texts, {texts.total_tokens} tokens"] = [
        texts.take(range(first, last)) for first, last in texts.split(STREAM_TOKENS)
    ]
    return workloads


def measure(backends: dict[str, Backend], batches: list[PackedBatch], seconds: float) -> dict[str, Any]:
    """Median and least milliseconds of each backend, and native's time as a share of the others'."""
    output = next(iter(backends.values())).spec.outputs[-1]
    runs = {name: [backend.run(batch, [output])[output] for batch in batches] for name, backend in backends.items()}
    for ours, native, other in zip(*(runs[name] for name in ("numba", "native", "onnxruntime")), strict=True):
        if not np.array_equal(ours.view(np.uint32), native.view(np.uint32)):
            raise SystemExit("numba's bits are not the native backend's: nothing was timed")
        cosine = (ours * other).sum(1) / np.linalg.norm(ours, axis=1) / np.linalg.norm(other, axis=1)
        if cosine.min() < 0.998:
            raise SystemExit(f"onnxruntime's rows differ, cosine {cosine.min():.5f}: nothing was timed")

    def run_all(backend: Backend) -> None:
        for batch in batches:
            backend.run(batch, [output])

    calls = [partial(run_all, backend) for backend in backends.values()]
    samples = [1e3 * taken for taken in time_in_turns(calls, warm_up=False, seconds=seconds)]
    median, least = (dict(zip(backends, map(f, samples), strict=True)) for f in (np.median, np.min))
    return {
        "rounds": len(samples[0]),
        "median_ms": {name: round(float(value), 3) for name, value in median.items()},
        "min_ms": {name: round(float(value), 3) for name, value in least.items()},
        "speed_of_native": {
            name: {"median": round(median["native"] / median[name], 3), "min": round(least["native"] / least[name], 3)}
            for name in backends
            if name != "native"
        },
    }


def measure_starts(model: Path, count: int) -> dict[str, Any]:
    """One process with an empty cache, then `count` that find it filled."""
    with tempfile.TemporaryDirectory() as folder:
        first = start(model, folder)
        later = [start(model, folder) for _ in range(count)]
    return {
        "first": first,
        "later_median": {key: round(float(np.median([run[key] for run in later])), 3) for key in first},
        "later_max_seconds": max(run["seconds"] for run in later),
    }


def start(model: Path, cache: str) -> dict[str, float]:
    """Seconds of a fresh process to its first result, of its `load_backend`, and of CPU time in all."""
    command = [sys.executable, "-c", START, str(model.resolve())]
    environment = os.environ | {"NUMBA_CACHE_DIR": cache}
    begun = time.monotonic()
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise SystemExit(f"the process failed:\n{done.stderr}")
    report = json.loads(done.stdout)
    return {
        "seconds": round(report["done"] - begun, 3),
        "load_seconds": round(report["load_s"], 3),
        "cpu_seconds": round(report["cpu_s"], 3),
    }


if __name__ == "__main__":
    raise SystemExit(main())
