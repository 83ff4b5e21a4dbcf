"""A written file, measured through `edgebert.load`: its metric, size, latency and throughput."""

from __future__ import annotations

import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

import edgebert
from edgebert.batch import PackedBatch
from edgebert.checkpoints.loading import Checkpoint
from edgebert.compress.data import Dataset
from edgebert.compress.evaluate import Evaluation, evaluate
from edgebert.compress.recipe import Budget
from edgebert.model import Model
from edgebert.turns import time_in_turns

_TURNS, _CALLS = 12, 5  # turns of all files, timed calls a turn
_MAX_SECONDS = 30.0  # of timing, about; two turns at least


def evaluate_file(path: Path, dataset: Dataset, max_length: int | None = None, width: int | None = None) -> Evaluation:
    """The file's metrics on a dataset, with its own tokenizer, on the best backend here; arguments as of `evaluate`."""
    model = edgebert.load(path)
    assert model.tokenizer is not None  # see `load_tokenizer`
    return evaluate(model.backend, model.tokenizer, dataset, max_length, width)


def measure_speeds(paths: Sequence[Path], budget: Budget) -> list[dict[str, Any]]:
    """Latency and throughput of files for the workload of a budget, at full depth, timed in turns.

    With one thread the native backend's CPU time is measured, as in `latency.LatencyTable`: on a quiet machine it is
    the same, and on a busy one other processes do not count against the budget.

    Returns:
        Of each file the workload, `latency_p50` and `latency_p95` in seconds of a call, and `tokens_per_second`.
    """
    models = [edgebert.load(path, threads=budget.threads, full_depth=True) for path in paths]
    batches = [random_batch(model, budget) for model in models]
    is_native = all(model.backend.name == "native" for model in models)
    clock = time.thread_time if is_native and budget.threads == 1 else time.perf_counter
    calls = [partial(model.forward, batch) for model, batch in zip(models, batches, strict=True)]
    times = time_in_turns(calls, rounds=_TURNS, counts=_CALLS, seconds=_MAX_SECONDS, least=2, clock=clock)
    results = []
    for model, batch, samples in zip(models, batches, times, strict=True):
        p50, p95 = np.percentile(samples, [50, 95]).tolist()
        results.append(
            {
                "backend": model.backend.detail,
                "tokens": budget.tokens,
                "batch": budget.batch,
                "threads": budget.threads,
                "latency_p50": p50,
                "latency_p95": p95,
                "tokens_per_second": batch.total_tokens / p50,
            }
        )
    return results


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
