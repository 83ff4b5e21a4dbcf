"""The ops of `EncoderOps` as CUDA kernels by Numba, float32; oracle: `numpy_ops`. Arrays between ops are the device's.

Every reduction is a tree or a loop over one row, sequence or tile, so a text's result does not depend on its batch; a
library's matrix product, which may sum in another order when there are more rows, would not keep that.
Threads meet in shared memory only (no warp shuffles), so that CUDA's simulator runs the same code.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from functools import cache
from typing import Any

import numpy as np
from numba import config, cuda, float32
from numpy.typing import NDArray

from edgebert.artifact.spec import ACTIVATIONS
from edgebert.backends.encoder_loop import LayerNorm, Linear, Table
from edgebert.batch import I32
from edgebert.errors import UnsupportedModelError

Array = NDArray[Any]
Device = Any  # an array on the device, float32 unless said otherwise

# The simulator runs every thread of a block as a thread of Python: blocks are small there.
ROW_THREADS = 4 if config.ENABLE_CUDASIM else 128  # of a kernel with a block a row; a power of two
TILE = 4 if config.ENABLE_CUDASIM else 16  # rows and columns of a product's block
MAX_HEAD_DIM = 240  # what fits 48 KB of shared memory beside the scores
_NO_BIAS = np.zeros((1024, 1), np.float32)  # of as many heads as a layer may have

_POOLINGS = ("mean", "cls", "max", "mean_sqrt_len", "weighted_mean", "last", "sum")
_MEAN, _CLS, _MAX, _MEAN_SQRT_LEN, _WEIGHTED_MEAN, _LAST = range(6)
_GELU_ERF, _GELU_TANH, _RELU, _SILU, _TANH = map(ACTIVATIONS.index, ("gelu_erf", "gelu_tanh", "relu", "silu", "tanh"))


@cuda.jit(device=True, inline="always")
def _block_sum(shared: Device, value: float) -> float:
    """The sum of every thread's value, in one order."""
    thread = cuda.threadIdx.x
    shared[thread] = value
    cuda.syncthreads()
    half = ROW_THREADS // 2
    while half > 0:
        if thread < half:
            shared[thread] += shared[thread + half]
        cuda.syncthreads()
        half //= 2
    total = shared[0]
    cuda.syncthreads()
    return total


@cuda.jit
def gather_rows(table: Device, ids: Device, is_first: bool, out: Device) -> None:
    """out[row] = table[ids[row]], or is added to."""
    row = cuda.blockIdx.x
    for c in range(cuda.threadIdx.x, table.shape[1], ROW_THREADS):
        value = table[ids[row], c]
        out[row, c] = value if is_first else out[row, c] + value


@cuda.jit
def layernorm_rows(
    x: Device, residual: Device, has_residual: bool, w: Device, b: Device, eps: float, out: Device
) -> None:
    """out = LayerNorm(x + residual); a residual of one row is every row's."""
    shared = cuda.shared.array(ROW_THREADS, float32)
    row, width = cuda.blockIdx.x, x.shape[1]
    residual_row = row if residual.shape[0] > 1 else 0
    total = float32(0.0)
    for c in range(cuda.threadIdx.x, width, ROW_THREADS):
        value = x[row, c]
        if has_residual:
            value += residual[residual_row, c]
        out[row, c] = value
        total += value
    mean = _block_sum(shared, total) / float32(width)
    squares = float32(0.0)
    for c in range(cuda.threadIdx.x, width, ROW_THREADS):
        squares += (out[row, c] - mean) * (out[row, c] - mean)
    scale = float32(1.0) / math.sqrt(_block_sum(shared, squares) / float32(width) + float32(eps))
    for c in range(cuda.threadIdx.x, width, ROW_THREADS):
        out[row, c] = (out[row, c] - mean) * scale * w[c] + b[c]


@cuda.jit(device=True, inline="always")
def _activate(x: float, activation: int) -> float:
    half, one = float32(0.5), float32(1.0)
    if activation == _GELU_ERF:
        return half * x * (one + math.erf(x * float32(0.70710678)))
    if activation == _GELU_TANH:
        return half * x * (one + math.tanh(float32(0.79788456) * (x + float32(0.044715) * x * x * x)))
    if activation == _RELU:
        return max(x, float32(0.0))
    if activation == _SILU:
        return x / (one + math.exp(-x))
    if activation == _TANH:
        return math.tanh(x)
    return x


@cuda.jit
def linear_f32(
    x: Device, weight: Device, bias: Device, activation: int, residual: Device, has_residual: bool, out: Device
) -> None:
    """out = activation(x @ weight + bias) + residual, a tile of outputs a block, inputs ascending."""
    left = cuda.shared.array((TILE, TILE), float32)
    right = cuda.shared.array((TILE, TILE), float32)  # the simulator tells shared arrays apart by their line
    i, j = cuda.threadIdx.y, cuda.threadIdx.x
    row, column = cuda.blockIdx.x * TILE + i, cuda.blockIdx.y * TILE + j
    rows, inputs, columns = x.shape[0], x.shape[1], weight.shape[1]
    total = float32(0.0)
    for first in range(0, inputs, TILE):
        left[i, j] = x[row, first + j] if row < rows and first + j < inputs else float32(0.0)
        right[i, j] = weight[first + i, column] if first + i < inputs and column < columns else float32(0.0)
        cuda.syncthreads()
        for k in range(TILE):
            total += left[i, k] * right[k, j]
        cuda.syncthreads()
    if row < rows and column < columns:
        y = _activate(total + bias[column], activation)
        out[row, column] = y + residual[row, column] if has_residual else y


@cache
def attention_varlen_kernel(head_dim: int) -> Any:
    """The kernel for heads of that size: a tile of queries of one head of one sequence a block, keys tile by tile.

    The softmax runs along (Milakov and Gimelshein, arXiv 1805.02867): a row keeps its largest score so far and the sum
    of exponentials relative to it, and rescales what it has when a larger one comes.
    """
    columns_each = -(-head_dim // TILE)

    @cuda.jit
    def attention_varlen(qkv: Device, cu_seqlens: Device, scale: float, bias: Device, out: Device) -> None:
        q = cuda.shared.array((TILE, head_dim), float32)
        k = cuda.shared.array((TILE, head_dim), float32)
        v = cuda.shared.array((TILE, head_dim), float32)
        scores = cuda.shared.array((TILE, TILE), float32)
        context = cuda.local.array(columns_each, float32)
        i, j = cuda.threadIdx.y, cuda.threadIdx.x
        sequence, head = cuda.blockIdx.x, cuda.blockIdx.z
        begin, length = cu_seqlens[sequence], cu_seqlens[sequence + 1] - cu_seqlens[sequence]
        query = cuda.blockIdx.y * TILE + i
        if cuda.blockIdx.y * TILE >= length:  # the same for the whole block
            return
        size = out.shape[1]
        at = head * head_dim
        farthest = bias.shape[1] // 2
        for c in range(columns_each):
            context[c] = float32(0.0)
            if j + c * TILE < head_dim:
                q[i, j + c * TILE] = qkv[begin + min(query, length - 1), at + j + c * TILE]
        top, total = float32(-3.0e38), float32(0.0)
        for first in range(0, length, TILE):
            for c in range(columns_each):
                d = j + c * TILE
                if d < head_dim:
                    key = begin + min(first + i, length - 1)
                    k[i, d] = qkv[key, size + at + d]
                    v[i, d] = qkv[key, 2 * size + at + d]
            cuda.syncthreads()
            score = float32(0.0)
            for d in range(head_dim):
                score += q[i, d] * k[j, d]
            distance = max(-farthest, min(first + j - query, farthest))
            scores[i, j] = score * scale + bias[head, farthest + distance]
            cuda.syncthreads()
            count = min(TILE, length - first)
            larger = top
            for other in range(count):
                larger = max(larger, scores[i, other])
            cuda.syncthreads()
            scores[i, j] = math.exp(scores[i, j] - larger)
            cuda.syncthreads()
            shrink = math.exp(top - larger)
            total *= shrink
            for c in range(columns_each):
                context[c] *= shrink
            for other in range(count):
                total += scores[i, other]
                for c in range(columns_each):
                    if j + c * TILE < head_dim:
                        context[c] += scores[i, other] * v[other, j + c * TILE]
            top = larger
            cuda.syncthreads()
        if query < length:
            for c in range(columns_each):
                if j + c * TILE < head_dim:
                    out[begin + query, at + j + c * TILE] = context[c] / total

    return attention_varlen


@cuda.jit
def pool_rows(x: Device, cu_seqlens: Device, pooling: int, column: int, out: Device) -> None:
    """out[s] from `column` on = one row of sequence s, by a place in _POOLINGS."""
    sequence = cuda.blockIdx.x
    first, last = cu_seqlens[sequence], cu_seqlens[sequence + 1]
    length = float32(last - first)
    for c in range(cuda.threadIdx.x, x.shape[1], ROW_THREADS):
        value = x[last - 1 if pooling == _LAST else first, c]
        if pooling not in (_LAST, _CLS):
            for row in range(first + 1, last):
                if pooling == _MAX:
                    value = max(value, x[row, c])
                elif pooling == _WEIGHTED_MEAN:
                    value += x[row, c] * float32(row - first + 1)
                else:
                    value += x[row, c]
        if pooling == _MEAN:
            value /= length
        elif pooling == _MEAN_SQRT_LEN:
            value /= float32(math.sqrt(length))
        elif pooling == _WEIGHTED_MEAN:
            value /= length * (length + float32(1.0)) * float32(0.5)
        out[sequence, column + c] = value


@cuda.jit
def log1p_relu_rows(x: Device, out: Device) -> None:
    """out = log(1 + max(x, 0))."""
    row = cuda.blockIdx.x
    for c in range(cuda.threadIdx.x, x.shape[1], ROW_THREADS):
        out[row, c] = math.log1p(max(x[row, c], float32(0.0)))


@cuda.jit
def normalize_rows(x: Device, out: Device) -> None:
    """out = rows of x divided by max(Euclidean norm, 1e-12)."""
    shared = cuda.shared.array(ROW_THREADS, float32)
    row = cuda.blockIdx.x
    squares = float32(0.0)
    for c in range(cuda.threadIdx.x, x.shape[1], ROW_THREADS):
        squares += x[row, c] * x[row, c]
    norm = max(float32(math.sqrt(_block_sum(shared, squares))), float32(1e-12))
    for c in range(cuda.threadIdx.x, x.shape[1], ROW_THREADS):
        out[row, c] = x[row, c] / norm


@cuda.jit
def take_column(x: Device, index: int, out: Device) -> None:
    """out = one column of x, a thread a row."""
    row = cuda.grid(1)
    if row < x.shape[0]:
        out[row] = x[row, index]


class CudaOps:
    """`EncoderOps` on the current device; weights are copied there once."""

    def __init__(self) -> None:
        self._weights: dict[tuple[Any, ...], tuple[Array, Device]] = {}

    def embed_layernorm(self, lookups: Sequence[tuple[Table, I32]], norm: LayerNorm) -> Device:
        """LayerNorm of the sum of the looked-up rows."""
        out = _empty(len(lookups[0][1]), len(norm.weight))
        for i, (table, ids) in enumerate(lookups):
            gather_rows[out.shape[0], ROW_THREADS](self._weight(table.weight), cuda.to_device(ids), i == 0, out)
        return self.add_layernorm(out, None, norm)

    def linear(self, x: Device, linear: Linear, activation: str = "identity", residual: Device | None = None) -> Device:
        """activation(x @ weight + bias) + residual."""
        rows, columns = x.shape[0], len(linear.bias)
        out = _empty(rows, columns)
        grid = (-(-rows // TILE), -(-columns // TILE))
        weight, bias = self._weight(linear.weight), self._weight(linear.bias)
        has_residual = residual is not None
        added = residual if has_residual else x
        linear_f32[grid, (TILE, TILE)](x, weight, bias, ACTIVATIONS.index(activation), added, has_residual, out)
        return out

    def attention_varlen(
        self,
        qkv: Device,
        cu_seqlens: I32,
        num_heads: int,
        position_bias: Array | None,
        window: int = 0,
        num_keys: I32 | None = None,
    ) -> Device:
        """Self-attention inside each sequence, with a bias of the scores by distance if there is one.

        Windows and keys that are left out are refused when a model is loaded.
        """
        size = qkv.shape[1] // 3
        head_dim = size // num_heads
        if head_dim > MAX_HEAD_DIM:
            raise UnsupportedModelError(f"a head of {head_dim} columns: the CUDA kernels take up to {MAX_HEAD_DIM}")
        out = _empty(qkv.shape[0], size)
        longest = max(last - first for first, last in itertools.pairwise(cu_seqlens.tolist()))
        grid = (len(cu_seqlens) - 1, -(-longest // TILE), num_heads)
        scale = np.float32(1.0 / math.sqrt(head_dim))
        bias = self._weight(_NO_BIAS if position_bias is None else position_bias)
        attention_varlen_kernel(head_dim)[grid, (TILE, TILE)](qkv, cuda.to_device(cu_seqlens), scale, bias, out)
        return out

    def add_layernorm(self, x: Device, residual: Device | Array | None, norm: LayerNorm) -> Device:
        """LayerNorm of x + residual, rows or one row for all."""
        out = _empty(*x.shape)
        has_residual = residual is not None
        if isinstance(residual, np.ndarray):  # one row for all
            residual = self._weight(residual.reshape(1, -1))
        weight, bias = self._weight(norm.weight), self._weight(norm.bias)
        added = residual if has_residual else x
        layernorm_rows[x.shape[0], ROW_THREADS](x, added, has_residual, weight, bias, np.float32(norm.eps), out)
        return out

    def pool(self, x: Device, cu_seqlens: I32, pooling: str) -> Device:
        """One row a sequence."""
        kinds = pooling.split("+")
        out = _empty(len(cu_seqlens) - 1, len(kinds) * x.shape[1])
        bounds = cuda.to_device(cu_seqlens)
        for i, kind in enumerate(kinds):
            pool_rows[out.shape[0], ROW_THREADS](x, bounds, _POOLINGS.index(kind), i * x.shape[1], out)
        return out

    def normalize(self, x: Device) -> Device:
        """Rows divided by their Euclidean norm."""
        out = _empty(*x.shape)
        normalize_rows[x.shape[0], ROW_THREADS](x, out)
        return out

    def log1p_relu(self, x: Device) -> Device:
        """log(1 + max(x, 0))."""
        out = _empty(*x.shape)
        log1p_relu_rows[x.shape[0], ROW_THREADS](x, out)
        return out

    def column(self, x: Device, index: int) -> Device:
        """One column of x."""
        out = _empty(x.shape[0])
        take_column[-(-x.shape[0] // ROW_THREADS), ROW_THREADS](x, index, out)
        return out

    def quantize_rows(self, x: Device, inv_smooth: Device | None) -> Device:
        """Refused: int8 is not there on the GPU."""
        raise UnsupportedModelError("the CUDA kernels run f32 files only")

    def attention_varlen_u8s8(
        self, qkv: Device, cu_seqlens: I32, num_heads: int, position_bias: Array | None
    ) -> Device:
        """Refused: int8 is not there on the GPU."""
        raise UnsupportedModelError("the CUDA kernels run f32 attention only")

    def _weight(self, values: Array) -> Device:
        key = (values.ctypes.data, values.shape, values.strides)
        if key not in self._weights:
            self._weights[key] = (values, cuda.to_device(np.array(values, order="C")))
        return self._weights[key][1]


def _empty(*shape: int) -> Device:
    return cuda.device_array(shape, np.float32)
