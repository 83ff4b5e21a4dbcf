"""Long texts: a model of ModernBERT-base's shape here, in ONNX Runtime on our own graph, and in PyTorch with SDPA.

Weights are random, so times and memory are those of the real model and answers mean nothing. Checked first, at each
length: the last hidden states of the fp32 contenders lie within 1e-3 of PyTorch's largest value, those of the int8 ones
have a cosine of at least 0.98. Each contender is a process of its own; they take turns, and the peak of a
process's memory is told after each length, shortest first. A contender that runs out of memory is told as such.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import time
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

import edgebert
from benchmarks import describe_run, write_result
from edgebert.batch import PackedBatch
from edgebert.bench.session import peak_mb

F32 = NDArray[np.float32]
Run = Callable[[list[int]], F32]  # token ids -> last hidden states

LENGTHS = (512, 2048, 8192)
FP32_TOLERANCE, INT8_COSINE = 1e-3, 0.98
OURS = "edgebert "


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.long_texts", description=__doc__.splitlines()[0])
    parser.add_argument("--work", type=Path, required=True, help="folder for the checkpoint and the files, kept")
    parser.add_argument("--lengths", type=int, nargs="+", default=LENGTHS, help="tokens (default: 512 2048 8192)")
    parser.add_argument("--layers", type=int, default=22, help="of the model (default: 22, ModernBERT-base's)")
    parser.add_argument("--threads", type=int, default=1, help="of each contender (default: 1)")
    parser.add_argument("--rounds", type=int, default=3, help="turns of each contender at each length (default: 3)")
    parser.add_argument("--out", type=Path, help="also write JSON here")
    args = parser.parse_args()

    provenance = describe_run("benchmarks.long_texts")
    files = make_files(args.work / f"{args.layers}-layers", args.layers)
    contenders = {
        "pytorch sdpa fp32": ("torch", files["checkpoint"]),
        f"{OURS}fp32": ("native", files["fp32"]),
        f"{OURS}int8": ("native", files["int8"]),
        f"{OURS}int8, int8 attention": ("native", files["int8-attention"]),
        "onnxruntime fp32": ("onnxruntime", files["fp32"]),
        "onnxruntime int8": ("onnxruntime", files["int8"]),
    }
    workers = {name: Worker(kind, path, args.threads) for name, (kind, path) in contenders.items()}
    rows = []
    for length in sorted(args.lengths):
        ids = np.random.default_rng(length).integers(5, 50_000, length).tolist()
        row = measure(workers, ids, args.rounds)
        print(json.dumps(row, indent=1))
        rows.append(row)
    for worker in workers.values():
        worker.stop()
    sizes = {"layers": args.layers, "hidden_size": 768, "num_heads": 12, "intermediate_size": 1152, "window": 64}
    if args.out:
        write_result(args.out, {**provenance, "threads": args.threads, "model": sizes, "rows": rows})
    return 0


def measure(workers: dict[str, Worker], ids: list[int], rounds: int) -> dict[str, Any]:
    """Check and time every contender that is still there on one text."""
    expected: F32 | None = None
    alive: dict[str, Worker] = {}
    for name, worker in workers.items():
        answer = worker.ask(ids, keep=True)
        if answer is None:
            continue
        alive[name] = worker
        states = answer["states"]
        if expected is None:
            expected = states
        check(name, states, expected)
    seconds: dict[str, list[float]] = {name: [] for name in alive}
    peaks: dict[str, float] = {}
    for _ in range(rounds):
        for name, worker in alive.items():
            answer = worker.ask(ids, keep=False)
            if answer is not None:
                seconds[name].append(answer["seconds"])
                peaks[name] = round(answer["peak_mb"])
    medians = {name: float(np.median(taken)) for name, taken in seconds.items() if taken}
    others = {name: value for name, value in medians.items() if not name.startswith(OURS)}
    return {
        "tokens": len(ids),
        "seconds": {name: round(value, 4) for name, value in medians.items()},
        "all_seconds": seconds,
        "peak_megabytes": peaks,
        "failed": [name for name in workers if name not in medians],
        "times_faster": {
            name: {other: round(value / medians[name], 2) for other, value in others.items()}
            for name in medians
            if name.startswith(OURS)
        },
    }


def check(name: str, states: F32, expected: F32) -> None:
    """Refuse a contender that computes something else."""
    if "int8" in name:
        cosine = float(np.vdot(states, expected) / (np.linalg.norm(states) * np.linalg.norm(expected)))
        if cosine < INT8_COSINE:
            raise SystemExit(f"{name}: a cosine of {cosine:.4f} to PyTorch's states of {len(states)} tokens")
        return
    difference = float(np.abs(states - expected).max() / np.abs(expected).max())
    if not difference <= FP32_TOLERANCE:
        raise SystemExit(f"{name}: {difference:.1e} of the largest value from PyTorch's at {len(states)} tokens")


# The model


def make_files(folder: Path, num_layers: int) -> dict[str, Path]:
    """The checkpoint and its exports; those that are there are taken."""
    import torch
    import transformers

    files = {name: folder / f"{name}.onnx" for name in ("fp32", "int8", "int8-attention")}
    files["checkpoint"] = folder / "checkpoint"
    if not (files["checkpoint"] / "config.json").is_file():
        torch.manual_seed(0)
        model = transformers.ModernBertModel(transformers.ModernBertConfig(num_hidden_layers=num_layers))
        model.save_pretrained(files["checkpoint"])
    for name in ("fp32", "int8", "int8-attention"):
        if not files[name].is_file():
            options = {"int8": name != "fp32", "int8_attention": name == "int8-attention"}
            edgebert.export(files["checkpoint"], files[name], task="embedding:none", **options)
    return files


# A contender's process


class Worker:
    """A process that loads a model and runs texts."""

    def __init__(self, kind: str, path: Path, threads: int) -> None:
        context = multiprocessing.get_context("spawn")
        self._pipe, theirs = context.Pipe()
        self._process = context.Process(target=serve, args=(theirs, kind, path, threads), daemon=True)
        self._process.start()
        theirs.close()

    def ask(self, ids: list[int], keep: bool) -> dict[str, Any] | None:
        """Seconds and peak of a run, with `keep` its states too; None if the process is gone."""
        try:
            self._pipe.send((ids, keep))
            answer: dict[str, Any] = self._pipe.recv()
        except (EOFError, OSError):
            return None
        return answer

    def stop(self) -> None:
        """End the process."""
        self._pipe.close()
        self._process.join(timeout=60)


def serve(pipe: Connection, kind: str, path: Path, threads: int) -> None:
    """Answer until the other side is gone; out of memory, be gone first."""
    run = load(kind, path, threads)
    while True:
        try:
            ids, keep = pipe.recv()
        except EOFError:
            return
        begun = time.perf_counter()
        states = run(ids)
        answer: dict[str, Any] = {"seconds": time.perf_counter() - begun, "peak_mb": peak_mb()}
        pipe.send(answer | ({"states": states} if keep else {}))


def load(kind: str, path: Path, threads: int) -> Run:
    """The model in one of the runtimes."""
    if kind == "torch":
        import torch
        import transformers

        torch.set_num_threads(threads)
        model = transformers.AutoModel.from_pretrained(path, attn_implementation="sdpa", dtype=torch.float32).eval()

        def run_torch(ids: list[int]) -> F32:
            with torch.inference_mode():
                states: F32 = model(input_ids=torch.tensor([ids])).last_hidden_state[0].numpy()
            return states

        return run_torch
    backend = edgebert.load(path, backend=kind, threads=threads)
    return lambda ids: backend.forward(PackedBatch.from_lists([ids]))["last_hidden_state"]


if __name__ == "__main__":
    raise SystemExit(main())
