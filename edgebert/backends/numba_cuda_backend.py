"""The numba backend on an NVIDIA GPU: `CudaOps` under the common layer loop."""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgebert.artifact.spec import EncoderSpec
from edgebert.backends.base import Backend, Outputs
from edgebert.backends.encoder_loop import run_encoder
from edgebert.batch import PackedBatch
from edgebert.errors import BackendUnavailableError, UnsupportedModelError


class NumbaCudaBackend(Backend):
    """A float32 model in CUDA kernels that Numba compiled; runs on one model take turns."""

    name = "numba"

    def __init__(self, spec: EncoderSpec, tensors: Mapping[str, NDArray[Any]], device: str) -> None:
        if spec.is_int8 or spec.attention_dtype != "f32":
            raise UnsupportedModelError(
                "the CUDA kernels run f32 files only: export without --int8, or use device='cpu'"
            )
        from numba import cuda

        from edgebert.backends.numba_cuda_ops import CudaOps

        self._index = int(device.removeprefix("cuda:"))
        if self._index >= len(cuda.gpus):
            raise BackendUnavailableError(f"device {device!r}: this machine has {len(cuda.gpus)} CUDA devices")
        self.spec = spec
        self.device = device
        self._cuda = cuda
        with cuda.gpus[self._index]:
            name = getattr(cuda.get_current_device(), "name", "simulated")
        self.detail = f"numba CUDA, {name.decode() if isinstance(name, bytes) else name}"
        self._tensors = tensors
        self._ops = CudaOps()
        self._lock = threading.Lock()

    def _run(self, batch: PackedBatch, outputs: Sequence[str]) -> Outputs:
        with self._lock, self._cuda.gpus[self._index]:
            results = run_encoder(self._ops, self.spec, self._tensors, batch, outputs)
            return {name: np.array(results[name].copy_to_host()) for name in outputs}  # type: ignore[attr-defined]


def unavailable_reason() -> str | None:
    """Why Numba cannot use a GPU here, or None if it can."""
    if find_spec("numba_cuda") is None:
        return "numba-cuda is not installed: install edgebert[cuda]"
    from numba import cuda

    if not cuda.is_available():
        error = cuda.cuda_error() or "NVVM, which compiles the kernels, is missing: install edgebert[cuda]"
        return f"numba-cuda finds no driver, GPU or compiler it can use ({' '.join(error.split())})"
    return None
