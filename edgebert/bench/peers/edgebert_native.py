"""EdgeBERT itself: the native backend on the project's own files. Its time includes pooling and normalisation."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from edgebert.batch import PackedBatch
from edgebert.bench.peers.base import F32, Peer, Settings, building


class EdgeBertInt8(Peer):
    """int8 file, packed batches."""

    title = "EdgeBERT int8"
    precision = "int8"
    packages = ("edgebert",)
    is_own = True
    file = "edgebert-int8.onnx"
    int8_attention = False

    def build(self, calibration: Sequence[Sequence[int]]) -> None:
        """Export the source; calibrated on the project's own sentences, as for any user."""
        from edgebert.exporting.export import export

        with building(self.path) as draft:
            export(self.files.source, draft, int8=self.precision == "int8", int8_attention=self.int8_attention)

    def load(self, threads: int, settings: Settings) -> None:
        """The native backend; EDGEBERT_FORCE_ISA is honoured."""
        from edgebert.model import load

        self._model = load(self.path, backend="native", threads=threads)

    def bind(self, batch: PackedBatch) -> Callable[[], F32]:
        """One packed batch to its sentence embeddings."""
        model, names = self._model, ["sentence_embedding"]
        return lambda: model.forward(batch, names)["sentence_embedding"]

    def embed(self, output: Any, batch: PackedBatch) -> F32:
        """The output as it is."""
        return np.asarray(output, np.float32)


class EdgeBertInt8Attention(EdgeBertInt8):
    """int8 file whose attention products are in int8 as well."""

    title = "EdgeBERT int8, attention too"
    file = "edgebert-int8-attention.onnx"
    int8_attention = True


class EdgeBertFp32(EdgeBertInt8):
    """fp32 file, packed batches."""

    title = "EdgeBERT fp32"
    precision = "fp32"
    file = "edgebert-fp32.onnx"
