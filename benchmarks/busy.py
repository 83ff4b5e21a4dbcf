"""Beside one process that wants a CPU all the time: how much longer does each workload take than alone?

EdgeBERT on all CPUs of this process. Alone and beside the busy process take turns, which is stopped in between, so that
both see the same machine. With as many threads as CPUs, n of them and the busy one share n CPUs: what is divided evenly
takes (n + 1) / n times as long.
"""

from __future__ import annotations

import argparse
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

import edgebert
from benchmarks import describe_run, write_result
from benchmarks.memory import random_batch


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.busy", description=__doc__.splitlines()[0])
    parser.add_argument("models", type=Path, nargs="+", help="exported files")
    parser.add_argument("--threads", type=int, help="default: the CPUs this process may use")
    parser.add_argument("--lengths", type=int, nargs="+", default=[16, 32, 128, 512], help="tokens of one text")
    parser.add_argument("--batches", type=int, nargs="+", default=[1], help="texts computed together")
    parser.add_argument("--seconds", type=float, default=1.0, help="of a turn (default: 1)")
    parser.add_argument("--rounds", type=int, default=6, help="turns of each (default: 6)")
    parser.add_argument("--out", type=Path, help="write JSON here instead of printing it")
    args = parser.parse_args()

    result: dict[str, Any] = {**describe_run("benchmarks.busy"), "workloads": []}
    rival = subprocess.Popen([sys.executable, "-c", "while True: pass"])
    rival.send_signal(signal.SIGSTOP)
    try:
        for path in args.models:
            model = edgebert.load(path, "native", threads=args.threads)
            for length in (length for length in args.lengths if length <= model.spec.usable_positions):
                for size in args.batches:
                    batch = random_batch(model, np.random.default_rng(0), [length] * size)
                    alone: list[float] = []
                    beside: list[float] = []
                    for _ in range(args.rounds):
                        alone += time_calls(model, batch, args.seconds)
                        rival.send_signal(signal.SIGCONT)
                        beside += time_calls(model, batch, args.seconds)
                        rival.send_signal(signal.SIGSTOP)
                    row = {"model": path.name, "backend": model.backend.detail, "tokens": length, "batch": size}
                    row |= describe("alone", alone) | describe("beside", beside)
                    p50, p95 = (row[f"beside_{rank}_ms"] / row[f"alone_{rank}_ms"] for rank in ("p50", "p95"))
                    row |= {"p50_times": p50, "p95_times_p50": row["beside_p95_ms"] / row["alone_p50_ms"]}
                    result["workloads"].append(row)
                    print(
                        f"{path.name}, {size} x {length} tokens: alone {row['alone_p50_ms']:.3f} ms, "
                        f"p50 {p50:.2f} times that, p95 {p95:.2f} times the p95 alone",
                        file=sys.stderr,
                    )
    finally:
        rival.kill()
        rival.wait()
    write_result(args.out, result)
    return 0


def time_calls(model: edgebert.Model, batch: edgebert.PackedBatch, seconds: float) -> list[float]:
    """Seconds of each call for so long, after a tenth of that without count."""
    times: list[float] = []
    begin = time.perf_counter() + seconds / 10
    while (before := time.perf_counter()) < begin + seconds:
        model.forward(batch)
        if before >= begin:
            times.append(time.perf_counter() - before)
    return times


def describe(name: str, times: list[float]) -> dict[str, Any]:
    """Percentiles in ms."""
    p50, p95 = (1e3 * np.percentile(times, [50, 95])).tolist()
    return {f"{name}_p50_ms": p50, f"{name}_p95_ms": p95, f"{name}_calls": len(times)}


if __name__ == "__main__":
    raise SystemExit(main())
