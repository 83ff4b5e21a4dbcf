"""The numba backend on an NVIDIA GPU: `CudaOps` under the common layer loop."""

from __future__ import annotations

import os
import threading
from collections.abc import Mapping, Sequence
from importlib import import_module
from importlib.metadata import version
from importlib.util import find_spec
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgebert.artifact.spec import EncoderSpec
from edgebert.backends.base import Backend, Outputs
from edgebert.backends.encoder_loop import run_encoder
from edgebert.batch import PackedBatch
from edgebert.errors import BackendUnavailableError, UnsupportedModelError

_FORKED = (
    "CUDA does not survive a fork; load the model in the child, and nothing on a GPU in its parent before, "
    "or start the child anew (multiprocessing's spawn)"
)


class NumbaCudaBackend(Backend):
    """A float32 model in CUDA kernels that Numba compiled; runs on one model take turns."""

    name = "numba"

    def __init__(self, spec: EncoderSpec, tensors: Mapping[str, NDArray[Any]], device: str) -> None:
        if spec.is_int8 or spec.attention_dtype != "f32":
            raise UnsupportedModelError(
                "the CUDA kernels run f32 files only: export without --int8, or use device='cpu'"
            )
        layers = spec.layers
        if (
            spec.is_pre_norm
            or spec.is_gated
            or not spec.has_position_table
            or spec.distances_per_row
            or any(layer.window or layer.rotary_base for layer in layers)
        ):
            raise UnsupportedModelError(
                "the model has rotary positions, windows of attention, gates, norms before its sub-blocks or tables of "
                "relative positions, which the CUDA kernels do not run: use device='cpu' (native, numba, onnxruntime "
                "and numpy run it)"
            )
        if spec.max_unattended:
            raise UnsupportedModelError(
                "the model fills queries up with tokens that are not attended to, which the CUDA kernels do not run: "
                "use device='cpu'"
            )
        from numba import cuda

        from edgebert.backends.numba_cuda_ops import CudaOps

        self._index = int(device.removeprefix("cuda:"))
        try:
            num_gpus = len(cuda.gpus)
        except Exception as error:  # the driver's share no other base
            raise BackendUnavailableError(f"numba-cuda cannot use the GPUs here ({error}): {_FORKED}") from error
        if self._index >= num_gpus:
            raise BackendUnavailableError(f"device {device!r}: this machine has {num_gpus} CUDA devices")
        self.spec = spec
        self.device = device
        self._cuda = cuda
        with cuda.gpus[self._index]:
            name = getattr(cuda.get_current_device(), "name", "simulated")
        self.detail = f"numba CUDA, {name.decode() if isinstance(name, bytes) else name}"
        self._tensors = tensors
        self._ops: Any = CudaOps()  # without the ops of what was refused
        self._lock = threading.Lock()
        self._pid = os.getpid()

    def _run(self, batch: PackedBatch, outputs: Sequence[str]) -> Outputs:
        if os.getpid() != self._pid:
            raise BackendUnavailableError(f"this process was forked from the one that loaded the model: {_FORKED}")
        with self._lock, self._cuda.gpus[self._index]:
            results = run_encoder(self._ops, self.spec, self._tensors, batch, outputs)
            return {name: np.array(results[name].copy_to_host()) for name in outputs}  # type: ignore[attr-defined]


def unavailable_reason() -> str | None:
    """Why Numba cannot use a GPU here, or None if it can."""
    if find_spec("numba_cuda") is None:
        return "numba-cuda is not installed: install edgebert[cuda]"
    from numba import cuda

    if reason := _compiler_refuses():
        return reason
    if not cuda.is_available():
        error = cuda.cuda_error() or "NVVM, which compiles the kernels, is missing: install edgebert[cuda]"
        return f"numba-cuda finds no driver, GPU or compiler it can use ({' '.join(error.split())})"
    return None


def _compiler_refuses() -> str | None:
    """Why numba-cuda cannot compile any kernel, or None: its compiler names functions that a newer NumPy may lack."""
    try:
        import_module("numba.cuda.np.arrayobj")
    except AttributeError as error:
        return (
            f"numba-cuda {version('numba-cuda')} does not work with the installed NumPy {np.__version__} ({error}): "
            "install edgebert[cuda] again, which takes a NumPy that works"
        )
    except ImportError:  # the simulator has no compiler
        pass
    return None
