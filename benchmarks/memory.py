"""Does memory stay flat? How much resident memory grows over random batches, after the largest shapes were run."""

from __future__ import annotations

import argparse
import gc
import os
from pathlib import Path
from typing import Any

import numpy as np

import edgebert
from benchmarks import describe_run, write_result
from edgebert.batch import PackedBatch

LIMIT_BYTES = 2_000_000


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.memory", description=__doc__)
    parser.add_argument("model", type=Path, nargs="+", help="an exported file")
    parser.add_argument("--batches", type=int, default=10_000)
    parser.add_argument("--max-sequences", type=int, default=8)
    parser.add_argument("--max-seqlen", type=int, default=128)
    parser.add_argument("--backend", default="native")
    parser.add_argument("--threads", type=int)
    parser.add_argument("--out", type=Path, help="write JSON here instead of printing it")
    args = parser.parse_args()

    result: dict[str, Any] = {**describe_run("benchmarks.memory"), "batches": args.batches, "models": {}}
    for path in args.model:
        model = edgebert.load(path, backend=args.backend, threads=args.threads)
        report = {"backend": model.backend.detail, **measure_growth(model, args)}
        result["models"][path.name] = report
        print(
            f"{path.name}: {report['growth_bytes'] / 1e6:+.2f} MB over {args.batches} batches ({model.backend.detail})"
        )
    write_result(args.out, result)
    return int(any(report["growth_bytes"] >= LIMIT_BYTES for report in result["models"].values()))


def measure_growth(model: edgebert.Model, args: argparse.Namespace) -> dict[str, int]:
    """Resident bytes after the largest shapes were run, and what the random ones added."""
    rng = np.random.default_rng(0)
    max_seqlen = min(args.max_seqlen, model.spec.max_length)
    total = args.max_sequences * max_seqlen
    for length in (max_seqlen, 1):  # the longest rows, then as many tokens in the shortest
        for num_sequences in (total // length, 1):
            model.forward(random_batch(model, rng, [length] * num_sequences))
    gc.collect()
    before = resident_bytes()
    for _ in range(args.batches):
        model.forward(
            random_batch(model, rng, rng.integers(1, max_seqlen + 1, rng.integers(1, args.max_sequences + 1)))
        )
    gc.collect()
    return {"resident_bytes": before, "growth_bytes": resident_bytes() - before}


def random_batch(model: edgebert.Model, rng: np.random.Generator, lengths: Any) -> PackedBatch:
    """Random ids in sequences of the given lengths."""
    return PackedBatch.from_lists([rng.integers(0, model.spec.vocab_size, n) for n in lengths])


def resident_bytes() -> int:
    """Resident memory of this process (Linux)."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


if __name__ == "__main__":
    raise SystemExit(main())
