"""CTranslate2: its BERT converter and encoder, int8."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any

import numpy as np

from edgebert.backends.cpus import cpu_flags
from edgebert.batch import PackedBatch
from edgebert.bench.peers.base import Kind, Peer, Settings, building


class CTranslate2Int8(Peer):
    """int8 weights, activations quantized on the fly."""

    title = "CTranslate2 int8"
    precision = "int8"
    packages = ("ctranslate2",)
    file = "ctranslate2-int8"

    def build(self, calibration: Sequence[Sequence[int]]) -> None:
        """The converter for transformers' models."""
        from ctranslate2.converters import TransformersConverter

        with building(self.path) as draft:
            TransformersConverter(str(self.files.source)).convert(str(draft), quantization="int8")

    def settings(self, threads: int, kind: Kind) -> list[Settings]:
        """For throughput also one worker a thread."""
        return [{}, {"lanes": threads}] if kind == "throughput" and threads > 1 else [{}]

    def load(self, threads: int, settings: Settings) -> None:
        """Threads inside a batch, or workers of one thread each."""
        if "avx512f" in cpu_flags():  # CTranslate2 takes AVX2 on AMD if not told; read once, when it is imported
            os.environ.setdefault("CT2_FORCE_CPU_ISA", "AVX512")
        import ctranslate2

        lanes = settings.get("lanes", 1)
        self._encoder = ctranslate2.Encoder(
            str(self.path), device="cpu", compute_type="int8", inter_threads=lanes, intra_threads=threads // lanes
        )

    def bind(self, batch: PackedBatch) -> Callable[[], Any]:
        """Lists of ids: CTranslate2 pads inside."""
        encoder = self._encoder
        rows = [batch.input_ids[first:last].tolist() for first, last in pairwise(batch.cu_seqlens)]
        return lambda: np.asarray(encoder.forward_batch(rows).last_hidden_state)
