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
from edgebert.backends.encoder_loop import PositionBias, embed, run_encoder, run_layer
from edgebert.batch import I32, PackedBatch
from edgebert.errors import InvalidInputError
from edgebert.quant import F32


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

    def attention(self, batch: PackedBatch, layer: int) -> NDArray[np.float32]:  # noqa: D102  # as of the base class
        order = self.spec.layer_order
        if not isinstance(layer, int) or isinstance(layer, bool) or not 0 <= layer < len(order):
            raise InvalidInputError(f"layer must be an integer from 0 to {len(order) - 1}, got {layer!r}")
        if batch.num_sequences != 1:
            raise InvalidInputError(f"attention maps are those of one sequence, got {batch.num_sequences}")
        self._check(batch, ())
        x = embed(numpy_ops, self.spec, self._tensors, batch)
        for i in order[:layer]:
            x = run_layer(numpy_ops, self.spec, self._tensors, i, batch, x)
        ops: Any = _KeepsMaps(self.spec.attention_dtype, batch.total_tokens)
        run_layer(ops, self.spec, self._tensors, order[layer], batch, x)
        maps: NDArray[np.float32] = ops.maps
        return maps


class _KeepsMaps:
    """The oracle's ops, of which attention keeps its maps: none where it is not called, being pruned away."""

    def __init__(self, dtype: str, length: int) -> None:
        self._dtype = dtype
        self.maps = np.zeros((0, length, length), np.float32)

    def __getattr__(self, name: str) -> Any:
        return getattr(numpy_ops, name)

    def attention_varlen(
        self,
        qkv: F32,
        cu_seqlens: I32,
        num_heads: int,
        bias: PositionBias | None,
        window: int,
        num_keys: I32 | None,
    ) -> F32:
        self.maps = numpy_ops.attention_maps(qkv, num_heads, bias, window, num_keys, self._dtype)
        return numpy_ops.attention_varlen(qkv, cu_seqlens, num_heads, bias, window, num_keys)

    attention_varlen_u8s8 = attention_varlen


def load(artifact: Artifact, device: str = "cpu", threads: int | None = None) -> Backend:
    """Load a file, verified; `threads` is left to NumPy's BLAS.

    Raises:
        ModelFormatError: the file is missing, damaged or changed.
    """
    artifact.check_graph()
    return NumpyBackend(artifact.spec, artifact.tensors)
