"""A written file, measured through `edgebert.load`: its metric, size, latency and throughput."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import numpy as np

import edgebert
from edgebert.artifact.checkpoint import Checkpoint
from edgebert.artifact.reader import read_artifact
from edgebert.batch import PackedBatch
from edgebert.compress.data import Dataset
from edgebert.compress.encode import encode
from edgebert.compress.evaluate import Evaluation, evaluate
from edgebert.compress.recipe import Budget
from edgebert.model import Model

_LATENCY_CALLS = 60
_MAX_SECONDS = 2.0  # of timing a file, about


def evaluate_file(path: Path, dataset: Dataset, max_length: int | None = None) -> Evaluation:
    """The file's metrics on a dataset, with its own tokenizer, on the best backend here."""
    model = edgebert.load(path)
    artifact = read_artifact(path, verify=False)
    checkpoint = Checkpoint(model.spec, {}, artifact.tokenizer_json, {}, {}, path.parent)
    examples = encode(dataset, checkpoint, max_length)
    return evaluate(checkpoint, dataset, examples, model.forward)


def measure_speed(path: Path, budget: Budget) -> dict[str, Any]:
    """Latency and throughput of a file for the workload of a budget: seconds of a call (p50, p95), tokens a second."""
    model = edgebert.load(path, threads=budget.threads)
    batch = random_batch(model, budget)
    times: list[float] = []
    model.forward(batch)
    while len(times) < _LATENCY_CALLS and sum(times) < _MAX_SECONDS:
        start = time.perf_counter()
        model.forward(batch)
        times.append(time.perf_counter() - start)
    p50, p95 = np.percentile(times, [50, 95]).tolist()
    return {
        "backend": model.backend.detail,
        "tokens": budget.tokens,
        "batch": budget.batch,
        "threads": budget.threads,
        "latency_p50": p50,
        "latency_p95": p95,
        "tokens_per_second": batch.total_tokens / p50,
    }


def random_batch(model: Model, budget: Budget) -> PackedBatch:
    """Sequences of random ids, as long and as many as the budget says."""
    length = min(budget.tokens, model.spec.usable_positions)
    ids = np.random.default_rng(0).integers(0, model.spec.vocab_size, (budget.batch, length))
    return PackedBatch.from_lists(list(ids.astype(np.int32)))


def describe_shape(checkpoint: Checkpoint) -> dict[str, Any]:
    """Parameters, vocabulary, and the sizes of each layer."""
    spec = checkpoint.spec
    return {
        "parameters": sum(tensor.size for tensor in checkpoint.tensors.values()),
        "vocab_size": spec.vocab_size,
        "num_heads": [layer.num_heads for layer in spec.layers],
        "intermediate_size": [layer.intermediate_size for layer in spec.layers],
    }
