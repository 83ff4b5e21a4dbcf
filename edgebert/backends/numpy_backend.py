"""The numpy backend: the oracle behind the common interface; exact, portable and slow."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgebert.artifact.reader import Artifact
from edgebert.artifact.spec import EncoderSpec
from edgebert.backends import numpy_ops
from edgebert.backends.base import Backend, Outputs
from edgebert.backends.encoder_loop import run_encoder
from edgebert.batch import PackedBatch


class NumpyBackend(Backend):
    """Runs one sequence at a time, so that a text's result cannot depend on the rest of its batch."""

    name = "numpy"
    device = "cpu"

    def __init__(self, spec: EncoderSpec, tensors: Mapping[str, NDArray[Any]]) -> None:
        self.spec = spec
        self.detail = f"numpy {np.__version__}, one sequence at a time, threads as its BLAS decides"
        # a file's tensors may be unaligned, which takes NumPy off its BLAS path
        self._tensors = {name: np.require(tensor, requirements="A") for name, tensor in tensors.items()}

    def _run(self, batch: PackedBatch, outputs: Sequence[str]) -> Outputs:
        rows = [
            run_encoder(numpy_ops, self.spec, self._tensors, batch.take([i]), outputs)
            for i in range(batch.num_sequences)
        ]
        return {name: np.concatenate([row[name] for row in rows]) for name in outputs}


def load(artifact: Artifact, device: str = "cpu", threads: int | None = None) -> Backend:
    """Load a file, verified; `threads` is left to NumPy's BLAS.

    Raises:
        ModelFormatError: the file is missing, damaged or changed.
    """
    artifact.check_graph()
    return NumpyBackend(artifact.spec, artifact.tensors)
