"""What Prometheus is told; with several workers the sums of all of them."""

from __future__ import annotations

import os
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.multiprocess import MultiProcessCollector

_SECONDS = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 30, 60)
_COUNTS = tuple(2.0**power for power in range(13))


class Metrics:
    """The numbers of one process."""

    def __init__(self) -> None:
        registry = self._registry = CollectorRegistry()
        self.seconds = Histogram(
            "edgebert_request_seconds", "Time to answer a request.", ("route",), buckets=_SECONDS, registry=registry
        )
        self.requests = Counter(
            "edgebert_requests", "Requests, by their HTTP status.", ("route", "status"), registry=registry
        )
        self.errors = Counter("edgebert_errors", "Requests that were refused or failed.", ("code",), registry=registry)
        self.texts = Counter("edgebert_texts", "Texts, pairs and documents answered.", registry=registry)
        self.tokens = Counter("edgebert_tokens", "Tokens computed, special tokens included.", registry=registry)
        self.truncated = Counter("edgebert_truncated_texts", "Texts that were too long.", registry=registry)
        self.queue_seconds = Histogram(
            "edgebert_queue_seconds", "Time that a request waits for its model.", buckets=_SECONDS, registry=registry
        )
        self.batch_tokens = Histogram(
            "edgebert_batch_tokens", "Tokens of one forward pass.", buckets=_COUNTS, registry=registry
        )
        self.batch_rows = Histogram(
            "edgebert_batch_rows",
            "Rows of one forward pass, of all requests in it.",
            buckets=_COUNTS,
            registry=registry,
        )
        self.waiting = Gauge(
            "edgebert_waiting_requests",
            "Requests that wait for a model.",
            ("model",),
            registry=registry,
            multiprocess_mode="livesum",
        )

    def render(self) -> bytes:
        """In Prometheus' text format."""
        registry = self._registry
        if "PROMETHEUS_MULTIPROC_DIR" in os.environ:
            registry = CollectorRegistry()
            collector: Any = MultiProcessCollector  # without types
            collector(registry)
        text: bytes = generate_latest(registry)
        return text
