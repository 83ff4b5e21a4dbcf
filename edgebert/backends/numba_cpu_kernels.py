"""The kernels of the Numba CPU backend, and the loop that runs a program of them: model and bits are the C++ engine's.

Oracle: `numpy_ops`, and quant.py for codes. Every sum has one order (16 lanes or one chain, ascending), so a row's
result does not depend on the rows beside it. A kernel of the list at the end is a C function of two records,
INSTRUCTION (what to do) and CALL (to which rows); each is compiled when a program first needs it, and kept on disk.

Addresses and strides count bytes. Rows of float32 are padded to `ROW_ALIGN` floats, and a few rows follow the last one,
so that kernels may touch whole vectors; what lies there is never used. Rows of codes end with their scale (f32) and
negated zero point (s32), at `code_tail(width)`.
"""

from __future__ import annotations

import contextlib
import hashlib
import math
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from numba import njit, types
from numba.core.caching import FunctionCache, IndexDataCacheFile
from numba.core.ccallback import CFunc

import edgebert
from edgebert.backends import numba_cpu_vectors
from edgebert.backends.numba_cpu_vectors import (
    ISA,
    TILE,
    absolute,
    add_parts,
    add_squares,
    address_of,
    atomic_add,
    atomic_load,
    copy_bytes,
    dot_tile,
    fma,
    fma_tile,
    fnma,
    invoke,
    keep,
    load,
    load_f32_scalar,
    load_first,
    load_i32,
    load_i32_scalar,
    load_i32_wide,
    load_i64_scalar,
    load_s8_first,
    load_wide,
    maximum,
    minimum,
    record_reader,
    reduce_add,
    reduce_max,
    reduce_min,
    rint,
    scale_exp2,
    splat,
    splat_wide,
    stack_space,
    store,
    store_codes,
    store_first,
    to_f32,
    to_i32,
    transpose_block,
    yield_cpu,
)

ROW_ALIGN = 64  # floats
SLACK_ROWS = 16  # rows that a kernel may touch beyond the last
BLOCK_ROWS = 96  # rows computed together between two attentions; each block reads all weights of a layer

DOT_ROWS, FMA_ROWS, TILE_VECTORS, CODE_FLIP = ISA.dot_rows, ISA.fma_rows, ISA.vectors, ISA.code_flip
TILE_BYTES = 4 * TILE
STACK_TILE = max(DOT_ROWS, FMA_ROWS) * TILE_BYTES

V = Any  # a vector
F = Any  # a float32
Record = Any  # of one of the dtypes below; kernels get its address

# What an instruction does: see the kernel of that name in KERNELS.
EMBED, QUANTIZE, LINEAR_S8, LINEAR_F32, LAYERNORM, ATTENTION, ATTENTION_S8, POOL, NORMALIZE, COPY = range(10)
ROTATE, GATE, LOG1P = range(10, 13)
NUM_OPS = 13
POOLINGS = ("mean", "cls", "max", "mean_sqrt_len", "weighted_mean", "last", "sum")
_MEAN, _CLS, _MAX, _MEAN_SQRT_LEN, _WEIGHTED_MEAN, _LAST = range(6)

ACTIVATIONS = ("identity", "gelu_erf", "gelu_tanh", "relu", "tanh", "silu")


def _record(integers: str, **others: str) -> np.dtype[Any]:
    return np.dtype([(name, "i8") for name in integers.split()] + list(others.items()))


# One step of a program. Buffers are named by number (-1: none), arrays of weights by address (0: none).
#   width    of a row of x; of attention, of q, k or v; ROTATE: of a head; GATE: of half a row
#   codes    buffer in which QUANTIZE and LAYERNORM put codes
#   row      LAYERNORM: a residual that is the same for all rows
#   bias     attention: of the scores by distance, f32 [heads, 2 * distance + 1]
#   weight   ROTATE: cosines and sines of each position, each padded to 16, one after the other
#   option   activation; attention: heads; ROTATE: of queries and keys; COPY: output; EMBED: lookups; POOL: four bits a
#            pooling, from the lowest on: its place in POOLINGS and 1
#   window   attention: tokens on each side; 0: all
#   position_keys, position_queries   attention: tables of a bias by distance, f32 [heads, head_dim, position_stride]
#   position_rows   their column for each distance, s32 [2 * distance + 1]; position_stride: bytes
#   unattended, most_unattended   attention: tokens of that id at the end are no keys, so many at most
#   column   COPY: first column
#   per_sequence   COPY: a row a sequence
INSTRUCTION = _record(
    "op x residual out codes width outputs weight scale colsum bias smooth row option column distance window "
    "position_keys position_queries position_rows position_stride unattended most_unattended per_sequence",
    eps="f4",
)
# One embedding lookup: f32 rows, or codes with a scale a row; `ids` is a row of the batch's ids.
LOOKUP = _record("weight scale ids")
# One buffer: bytes of a row; a local one holds a block of rows for each thread, others a slice's rows.
BUFFER = _record("stride is_local")
# Consecutive instructions over the same rows (tokens or sequences), or one attention.
SEGMENT = _record("kind first last block_rows")
OVER_TOKENS, OVER_SEQUENCES, OVER_HEADS = range(3)
# One run, all by address: `functions` by op; `bases` int64 [1 + threads, buffers] and `scratch` int64 [1 + threads,
# threads] are addresses, row 0 for the team, the others for a thread alone; `ids` int32 [3, tokens]: word, token type,
# position; `cu_seqlens` int32 [n + 1]; `outputs` int64, addresses; `slices` int64 [num_slices, 2]: first sequence and
# number of sequences; all but the last run on one thread each. `control` is zeros: the gate, threads that left, then
# two counters for each step.
RUN = _record(
    "threads functions program segments num_segments buffers num_buffers bases scratch lookups ids num_tokens "
    "cu_seqlens outputs slices num_slices control"
)
# What a kernel works on: `rows` rows, given by their addresses. They are the rows from `first` on of a slice, which
# begins at `token` and `sequence` of the batch. Of a linear, the kernel computes the panels `begin` to `end`.
CALL = _record(
    "rows first begin end x x_stride residual residual_stride out out_stride codes codes_stride token sequence scratch "
    "run"
)

_ZERO, _ONE, _LEVELS = np.float32(0.0), np.float32(1.0), np.float32(255.0)
_MINUS_TINY, _TINY, _LOWEST = np.float32(-1e-12), np.float32(1e-12), np.float32(-3.0e38)
_LOG2_E, _TWO, _MINUS_ONE = np.float32(1.44269504), np.float32(2.0), np.float32(-1.0)
_MINUS_LOG2_E, _TOP_EXPONENT, _LOW_EXPONENT = np.float32(-1.44269504), np.float32(126.0), np.float32(-126.0)
_E0, _E1, _E2 = np.float32(1.0000001), np.float32(6.9314697e-1), np.float32(2.4022120e-1)
_E3, _E4, _E5 = np.float32(5.5507132e-2), np.float32(9.6755417e-3), np.float32(1.3276492e-3)
_SIX = np.float32(6.0)
_G0, _G1, _G2 = np.float32(-9.9999306e-1), np.float32(-1.1512017), np.float32(-4.5877096e-1)
_G3, _G4, _G5 = np.float32(-5.3412125e-2), np.float32(8.0807296e-3), np.float32(-7.6922356e-4)
_G6 = np.float32(3.3093243e-5)
_CUBIC, _TANH_SCALE = np.float32(0.044715), np.float32(1.5957691)

_LIMIT, _HALF_RANGE, _LOG2_255 = np.float32(127.0), np.float32(128.0), np.float32(7.99435344)
_KEY_START = np.float32(0.0 if CODE_FLIP else -128.0)
_VALUE_START = np.float32(128.0 if CODE_FLIP else 0.0)
_BYTE, _EIGHT, _SIXTEEN, _TWENTY_FOUR = np.int32(255), np.int32(8), np.int32(16), np.int32(24)

_inline: Any = njit(forceinline=True, error_model="numpy")
_helper: Any = njit(error_model="numpy")

_instruction, _call, _run = record_reader(INSTRUCTION), record_reader(CALL), record_reader(RUN)
_lookup, _buffer, _segment = record_reader(LOOKUP), record_reader(BUFFER), record_reader(SEGMENT)
_INSTRUCTION_BYTES, _LOOKUP_BYTES, _CALL_BYTES = INSTRUCTION.itemsize, LOOKUP.itemsize, CALL.itemsize
_BUFFER_BYTES, _SEGMENT_BYTES = BUFFER.itemsize, SEGMENT.itemsize


def code_tail(width: int) -> int:
    """Bytes from the start of a row of codes to its scale and negated zero point."""
    return (width + 63) // 64 * 64


def attention_scratch_bytes(length: int, head_dim: int, num_position_rows: int) -> int:
    """Bytes of scratch that either attention needs for one head of a sequence."""
    span = min(num_position_rows + 15, 2 * length + 30) // 16 * 16 if num_position_rows else 0  # as of `_place_tables`
    products = (length + max(DOT_ROWS, FMA_ROWS)) * span
    return 4 * (((length + 15) // 16 * 16 + 24) * ((head_dim + 15) // 16 * 16 + 14) + products)


# ---- exp2, GELU and tanh: one polynomial each, the C++ engine's ------------------------------------------------------


@_inline
def _exp2(t: V) -> V:
    """2**t for t <= 126; below -126 it is 2**-126. Relative error 8e-8 (minimax polynomial on [-0.5, 0.5])."""
    t = maximum(t, _LOW_EXPONENT)
    n = rint(t)
    r = t - n
    p = fma(r, _E5, _E4)
    p = fma(p, r, _E3)
    p = fma(p, r, _E2)
    p = fma(p, r, _E1)
    p = fma(p, r, _E0)
    return scale_exp2(p, n)


@_inline
def _gelu_erf(x: V) -> V:
    """x * Phi(x) = max(x, 0) - |x| * 2**-P(|x|), P minimax on [0, 6] for the product's absolute error, 5e-8."""
    a = minimum(absolute(x), _SIX)
    p = fma(a, _G6, _G5)
    p = fma(p, a, _G4)
    p = fma(p, a, _G3)
    p = fma(p, a, _G2)
    p = fma(p, a, _G1)
    p = fma(p, a, _G0)
    return fnma(a, _exp2(p), maximum(x, _ZERO))


@_inline
def _sigmoid(x: V) -> V:
    return _ONE / (_exp2(minimum(x * _MINUS_LOG2_E, _TOP_EXPONENT)) + _ONE)


@_inline
def _activate(x: V, activation: int) -> V:
    """The activation of that number: gelu_tanh is x * sigmoid(2 u), u = sqrt(2 / pi) (x + 0.044715 x**3)."""
    if activation == 1:
        return _gelu_erf(x)
    if activation == 2:
        return x * _sigmoid(fma(x * x * x, _CUBIC, x) * _TANH_SCALE)
    if activation == 3:
        return maximum(x, _ZERO)
    if activation == 4:
        return fma(_sigmoid(x * _TWO), _TWO, _MINUS_ONE)
    if activation == 5:
        return x * _sigmoid(x)
    return x


# ---- Rows ------------------------------------------------------------------------------------------------------------


@_inline
def _quantize_row(x: int, width: int, smooth: int, low: F, high: F, codes: int) -> None:
    """Codes of one row by the contract: two divisions, the product rounded, then the difference."""
    span = high - low
    r = _LEVELS / span
    negated_zero = reduce_max(rint(splat(low * r)))
    for c in range(0, width, TILE):
        v = load_wide(x + 4 * c)
        if smooth:
            v = v * load_wide(smooth + 4 * c)
        store_codes(codes + c, rint(v * r - negated_zero))
    tail = codes + (width + 63) // 64 * 64
    store(tail, span / _LEVELS)
    store(tail + 4, np.int32(negated_zero) + np.int32(CODE_FLIP))


def _quantize_rows(s: Record, call: Record) -> None:
    s, call = _instruction(s), _call(call)
    width, smooth = s.width, s.smooth
    for row in range(call.rows):
        x = call.x + row * call.x_stride
        low, high = splat_wide(_MINUS_TINY), splat_wide(_ZERO)
        for c in range(0, width, TILE):
            v = load_wide(x + 4 * c)
            if smooth:
                v = v * load_wide(smooth + 4 * c)
            v = keep(v, width - c, _ZERO)
            low, high = minimum(low, v), maximum(high, v)
        _quantize_row(x, width, smooth, reduce_min(low), reduce_max(high), call.codes + row * call.codes_stride)


@_inline
def _normalize_row(x: int, width: int, sums: V, weight: int, bias: int, eps: F, smooth: int, codes: int) -> None:
    """LayerNorm of the row at x in place, given the lane sums of its values; with `codes`, quantizes the result."""
    inv_width = _ONE / np.float32(width)
    mean = reduce_add(sums) * inv_width
    squares = splat(_ZERO)
    for c in range(0, width, TILE):
        squares = add_squares(squares, keep(load_wide(x + 4 * c) - mean, width - c, _ZERO))
    rstd = _ONE / np.float32(math.sqrt(reduce_add(squares) * inv_width + eps))
    low, high = splat_wide(_MINUS_TINY), splat_wide(_ZERO)
    for c in range(0, width, TILE):
        y = fma((load_wide(x + 4 * c) - mean) * rstd, load_wide(weight + 4 * c), load_wide(bias + 4 * c))
        y = keep(y, width - c, _ZERO)
        store(x + 4 * c, y)
        if smooth:
            y = y * load_wide(smooth + 4 * c)
        low, high = minimum(low, y), maximum(high, y)
    if codes:
        _quantize_row(x, width, smooth, reduce_min(low), reduce_max(high), codes)


def _add_layernorm(s: Record, call: Record) -> None:
    """LayerNorm of x + residual; with `codes`, its codes too."""
    s, call = _instruction(s), _call(call)
    width = s.width
    for row in range(call.rows):
        x, out = call.x + row * call.x_stride, call.out + row * call.out_stride
        residual = s.row if s.row else call.residual + row * call.residual_stride
        sums = splat(_ZERO)
        for c in range(0, width, TILE):
            v = load_wide(x + 4 * c)
            if residual:
                v = v + load_wide(residual + 4 * c)
            v = keep(v, width - c, _ZERO)
            store(out + 4 * c, v)
            sums = add_parts(sums, v)
        _normalize_row(out, width, sums, s.weight, s.bias, s.eps, s.smooth, call.codes + row * call.codes_stride)


def _rotate(s: Record, call: Record) -> None:
    """Turn queries and keys by their positions, in place: (a, b) becomes (a cos - b sin, b cos + a sin)."""
    s, call = _instruction(s), _call(call)
    run, half = _run(call.run), s.width // 2
    padded = (half + 15) // 16 * 64
    for row in range(call.rows):
        position = load_i32_scalar(run.ids + 4 * (2 * run.num_tokens + call.token + call.first + row))
        cosines = s.weight + 2 * padded * np.int64(position)
        for head in range(s.option):
            x = call.x + row * call.x_stride + 4 * s.width * head
            for c in range(0, half, 16):
                first, second = x + 4 * c, x + 4 * (half + c)
                cosine, sine = load(cosines + 4 * c), load(cosines + padded + 4 * c)
                a, b = load_first(first, half - c), load_first(second, half - c)
                store_first(first, a * cosine - b * sine, half - c)
                store_first(second, b * cosine + a * sine, half - c)


def _gate(s: Record, call: Record) -> None:
    """activation(first half) * second half of each row, in place of the first."""
    s, call = _instruction(s), _call(call)
    for row in range(call.rows):
        x = call.x + row * call.x_stride
        for c in range(0, s.width, 16):
            y = _activate(load_first(x + 4 * c, s.width - c), s.option)
            store_first(x + 4 * c, y * load_first(x + 4 * (s.width + c), s.width - c), s.width - c)


@_inline
def _table_lanes(lookup: Record, row: int, width: int, c: int) -> V:
    if lookup.scale:
        scale = load_f32_scalar(lookup.scale + 4 * row)
        return load_s8_first(lookup.weight + row * width + c, width - c) * scale
    return load_first(lookup.weight + 4 * (row * width + c), width - c)


def _embed_layernorm(s: Record, call: Record) -> None:
    """LayerNorm of the sum of the looked-up rows, added in the order of the lookups."""
    s, call = _instruction(s), _call(call)
    run, width = _run(call.run), s.width
    for row in range(call.rows):
        out = call.out + row * call.out_stride
        ids = run.ids + 4 * (call.token + call.first + row)
        sums = splat(_ZERO)
        for c in range(0, width, 16):
            v = splat(_ZERO)
            for i in range(s.option):
                lookup = _lookup(run.lookups + i * _LOOKUP_BYTES)
                lanes = _table_lanes(lookup, load_i32_scalar(ids + 4 * lookup.ids * run.num_tokens), width, c)
                v = v + lanes if i else lanes
            store(out + 4 * c, v)
            sums = sums + v
        _normalize_row(out, width, sums, s.weight, s.bias, s.eps, np.int64(0), np.int64(0))


def _pool(s: Record, call: Record) -> None:
    """One row of each sequence for each pooling, side by side; x is all rows of the slice."""
    s, call = _instruction(s), _call(call)
    for row in range(call.rows):
        starts = _run(call.run).cu_seqlens + 4 * (call.sequence + call.first + row)
        first = load_i32_scalar(starts) - call.token
        length = load_i32_scalar(starts + 4) - load_i32_scalar(starts)
        out = call.out + row * call.out_stride
        kinds = s.option
        while kinds:
            kind = (kinds & 15) - 1
            kinds >>= 4
            start = first + length - 1 if kind == _LAST else first
            count = 1 if kind in (_LAST, _CLS) else length
            number = np.float32(length)
            divisor = np.float32(1.0)
            if kind == _MEAN:
                divisor = number
            elif kind == _MEAN_SQRT_LEN:
                divisor = np.float32(math.sqrt(number))
            elif kind == _WEIGHTED_MEAN:
                divisor = number * (number + np.float32(1.0)) * np.float32(0.5)
            for c in range(0, s.width, 16):
                at = call.x + start * call.x_stride + 4 * c
                v = load(at)
                for t in range(1, count):
                    at += call.x_stride
                    if kind == _MAX:
                        v = maximum(v, load(at))
                    elif kind == _WEIGHTED_MEAN:
                        v = v + load(at) * np.float32(t + 1)
                    else:
                        v = v + load(at)
                store(out + 4 * c, v / divisor)
            out += 4 * s.width


def _log1p(s: Record, call: Record) -> None:
    """log(1 + max(x, 0)) in place, rounded to f32 once."""
    s, call = _instruction(s), _call(call)
    for row in range(call.rows):
        for c in range(s.width):
            at = call.x + row * call.x_stride + 4 * c
            value = load_f32_scalar(at)
            store(at, _ZERO if value <= _ZERO else np.float32(math.log1p(np.float64(value))))


def _normalize(s: Record, call: Record) -> None:
    """Rows divided by max(Euclidean norm, 1e-12)."""
    s, call = _instruction(s), _call(call)
    for row in range(call.rows):
        x, out = call.x + row * call.x_stride, call.out + row * call.out_stride
        squares = splat(_ZERO)
        for c in range(0, s.width, TILE):
            squares = add_squares(squares, keep(load_wide(x + 4 * c), s.width - c, _ZERO))
        norm = np.float32(math.sqrt(reduce_add(squares)))
        norm = norm if norm > _TINY else _TINY
        for c in range(0, s.width, 16):
            store(out + 4 * c, load(x + 4 * c) / norm)


def _copy(s: Record, call: Record) -> None:
    """Rows, or columns of them, to a result of the caller's, whose rows are not padded."""
    s, call = _instruction(s), _call(call)
    first = call.first + (call.sequence if s.per_sequence else call.token)
    to = load_i64_scalar(_run(call.run).outputs + 8 * s.option) + 4 * s.width * first
    for row in range(call.rows):
        copy_bytes(to + 4 * s.width * row, call.x + row * call.x_stride + 4 * s.column, 4 * s.width)


# ---- Matrix products -------------------------------------------------------------------------------------------------


@_inline
def _store_row(y: V, activation: int, residual: int, out: int) -> None:
    y = _activate(y, activation)
    if residual:
        y = y + load_wide(residual)
    store(out, y)


def _linear_u8s8_f32(s: Record, call: Record) -> None:
    """out = activation((sum * w_scale) * a_scale + bias) + residual; weight [panels][steps][TILE][4]."""
    s, call = _instruction(s), _call(call)
    tile = stack_space(STACK_TILE)
    steps = (s.width + 3) // 4
    tail = (s.width + 63) // 64 * 64
    for panel in range(call.begin, call.end):
        weight = s.weight + panel * steps * TILE_BYTES
        at = panel * TILE_BYTES
        for first in range(0, call.rows, DOT_ROWS):
            codes = call.x + first * call.x_stride
            rows = min(DOT_ROWS, call.rows - first)
            dot_tile(rows, TILE_VECTORS, codes, call.x_stride, weight, TILE_BYTES, steps, 0, tile, TILE_BYTES)
            w_scale, colsum, bias = load_wide(s.scale + at), load_i32_wide(s.colsum + at), load_wide(s.bias + at)
            for m in range(rows):
                meta = codes + m * call.x_stride + tail
                acc = load_i32_wide(tile + m * TILE_BYTES) + colsum * load_i32_scalar(meta + 4)
                y = to_f32(acc) * w_scale * load_f32_scalar(meta) + bias
                residual = call.residual + (first + m) * call.residual_stride + at if call.residual else 0
                _store_row(y, s.option, residual, call.out + (first + m) * call.out_stride + at)


def _linear_f32(s: Record, call: Record) -> None:
    """out = activation(sum + bias) + residual; weight [panels][inputs][TILE]."""
    s, call = _instruction(s), _call(call)
    tile = stack_space(STACK_TILE)
    for panel in range(call.begin, call.end):
        weight = s.weight + panel * s.width * TILE_BYTES
        at = panel * TILE_BYTES
        for first in range(0, call.rows, FMA_ROWS):
            x = call.x + first * call.x_stride
            rows = min(FMA_ROWS, call.rows - first)
            fma_tile(rows, TILE_VECTORS, x, call.x_stride, weight, TILE_BYTES, s.width, 0, tile, TILE_BYTES)
            for m in range(rows):
                y = load_wide(tile + m * TILE_BYTES) + load_wide(s.bias + at)
                residual = call.residual + (first + m) * call.residual_stride + at if call.residual else 0
                _store_row(y, s.option, residual, call.out + (first + m) * call.out_stride + at)


# ---- Attention -------------------------------------------------------------------------------------------------------


@_helper
def _fma_tile(
    rows: int,
    num_vectors: int,
    x: int,
    stride: int,
    columns: int,
    step_stride: int,
    steps: int,
    out: int,
    out_stride: int,
) -> None:
    fma_tile(rows, num_vectors, x, stride, columns, step_stride, steps, 0, out, out_stride)


@_inline
def _tile_vectors(columns: int) -> int:
    """The widest tile that has no more vectors than these columns."""
    left = (columns + 15) // 16
    return TILE_VECTORS if left >= TILE_VECTORS else 2 if left >= 2 else 1


@_inline
def _key_range(row: int, rows: int, length: int, window: int) -> tuple[int, int]:
    """The keys, of `length`, that rows [row, row + rows) attend to: all, or `window` on each side of a row."""
    if window == 0:
        return 0, length
    return max(0, row - window), min(length, row + rows + window)


@_inline
def _count_keys(s: Record, call: Record, length: int) -> int:
    """How many tokens are attended to: not those of an id at the end, if there is one, up to so many."""
    run = _run(call.run)
    ids = run.ids + 4 * load_i32_scalar(run.cu_seqlens + 4 * (call.sequence + call.first // s.option))
    least = max(1, length - s.most_unattended)
    count = length
    while count > least and load_i32_scalar(ids + 4 * (count - 1)) == s.unattended:
        count -= 1
    return count


@_inline
def _keep_keys(scores: int, begin: int, end: int, first: int, last: int, fill: F) -> None:
    """Of the scores of the keys from `begin`, a multiple of 16, to `end` leave those of [first, last)."""
    for j in range(begin, first):
        store(scores + 4 * (j - begin), fill)
    for j in range(last, (end + 15) // 16 * 16):
        store(scores + 4 * (j - begin), fill)


@_inline
def _softmax_row(scores: int, length: int, scale2: F) -> F:
    """Replaces scores by 2**(scale2 * (score - the largest)); returns 1 / their sum."""
    top = splat_wide(_LOWEST)
    for c in range(0, length, TILE):
        top = maximum(top, keep(load_wide(scores + 4 * c), length - c, _LOWEST))
    shift = -reduce_max(top) * scale2
    sums = splat(_ZERO)
    whole = length // TILE * TILE
    for c in range(0, whole, TILE):
        wide = _exp2(fma(load_wide(scores + 4 * c), scale2, splat_wide(shift)))
        store(scores + 4 * c, wide)
        sums = add_parts(sums, wide)
    for c in range(whole, length, 16):
        p = keep(_exp2(fma(load(scores + 4 * c), scale2, splat(shift))), length - c, _ZERO)
        store(scores + 4 * c, p)
        sums = sums + p
    return _ONE / reduce_add(sums)


@_inline
def _attention_rows(s: Record, call: Record) -> tuple[int, int, int, int]:
    """(length, head_dim, address of q, address of the context) of the call's head: row = sequence * heads + head."""
    starts = _run(call.run).cu_seqlens + 4 * (call.sequence + call.first // s.option)
    first = load_i32_scalar(starts) - call.token
    head_dim = s.width // s.option
    head = 4 * head_dim * (call.first % s.option)
    length: int = np.int64(load_i32_scalar(starts + 4) - load_i32_scalar(starts))  # type: ignore[assignment]
    return length, head_dim, call.x + first * call.x_stride + head, call.out + first * call.out_stride + head


@_inline
def _lay_out_bias(s: Record, call: Record, length: int, out: int) -> int:
    """The head's bias by distance, in units of 2**x, for a sequence of that length; returns the address of distance 0.

    Of query i, that address less 4 * i is the bias of the first key, for as many keys as `length` padded to 16.
    """
    middle = s.bias + 4 * (call.first % s.option * (2 * s.distance + 1) + s.distance)
    zero = out + 4 * (length - 1)
    for d in range(1 - length, (length + 15) // 16 * 16):
        store(zero + 4 * d, load_f32_scalar(middle + 4 * max(-s.distance, min(d, s.distance))) * _LOG2_E)
    return zero


@_inline
def _place_tables(s: Record, length: int) -> tuple[int, int]:
    """(first, number) of the columns of the position tables that a sequence of that length needs, in whole vectors."""
    reach = min(length - 1, s.distance)
    middle = s.position_rows + 4 * s.distance
    first: int = np.int64(load_i32_scalar(middle - 4 * reach)) // 16 * 16  # type: ignore[assignment]
    return first, (load_i32_scalar(middle + 4 * reach) - first) // 16 * 16 + 16


@_helper
def _multiply_table(
    s: Record, head: int, head_dim: int, x: int, stride: int, count: int, table: int, first: int, span: int, out: int
) -> None:
    """out [count][span] = x times the columns of a head's table from `first` on; each value is one chain."""
    columns = table + head * head_dim * s.position_stride + 4 * first
    for i in range(0, count, FMA_ROWS):
        rows = min(FMA_ROWS, count - i)
        at = np.int64(0)
        while at < span:
            num = _tile_vectors(span - at)
            to = out + 4 * (i * span + at)
            _fma_tile(rows, num, x + i * stride, stride, columns + 4 * at, s.position_stride, head_dim, to, 4 * span)
            at += 16 * num


@_helper
def _gather_bias(
    s: Record, query: int, begin: int, end: int, length: int, of_query: int, of_key: int, span: int, scale2: F, out: int
) -> None:
    """The bias of keys [begin, end) for a query, in units of 2**x, zeros up to whole vectors.

    `of_query` is that of the query, `of_key` of the first key, both less the first column.
    """
    middle = s.position_rows + 4 * s.distance
    last = min(end, length)
    for j in range(begin, last):
        column = 4 * np.int64(load_i32_scalar(middle + 4 * max(-s.distance, min(j - query, s.distance))))
        value = load_f32_scalar(of_query + column) + load_f32_scalar(of_key + 4 * j * span + column)
        store(out + 4 * j, scale2 * value)
    for j in range(last, (end + 15) // 16 * 16):
        store(out + 4 * j, _ZERO)


@_inline
def _add_bias_row(scores: int, length: int, scale2: F, bias: int) -> None:
    """scores = scale2 * scores + bias, in place."""
    for c in range(0, length, 16):
        store(scores + 4 * c, fma(load(scores + 4 * c), scale2, load(bias + 4 * c)))


def _attention_varlen(s: Record, call: Record) -> None:
    """softmax(Q K^T / sqrt(head_dim) + bias) V of one head of one sequence.

    K is transposed once; then for each tile of queries a whole row of scores fits the cache, so the softmax needs no
    rescaling. Every score and every output is one chain of fused multiply-adds, ascending.
    """
    s, call = _instruction(s), _call(call)
    length, head_dim, q, context = _attention_rows(s, call)
    num_keys = _count_keys(s, call, length)
    stride = call.x_stride
    k, v = q + 4 * s.width, q + 8 * s.width
    tile, inv_sums, tile_stride = stack_space(STACK_TILE), stack_space(64), np.int64(TILE_BYTES)
    scores_stride = (length + 15) // 16 * 64
    keys, scores = call.scratch, call.scratch + scores_stride * ((head_dim + 15) // 16 * 16)
    for j in range(0, length, 16):
        for d in range(0, head_dim, 16):
            transpose_block(k + j * stride + 4 * d, stride, keys + d * scores_stride + 4 * j, scores_stride)
    scale2 = _LOG2_E / np.float32(math.sqrt(np.float32(head_dim)))
    rest = scores + FMA_ROWS * scores_stride
    bias = _lay_out_bias(s, call, length, rest) if s.bias else 0
    head, table_first, span = call.first % s.option, np.int64(0), np.int64(0)
    of_query, of_key = rest + scores_stride, rest + scores_stride  # `rest` itself is a row of biases
    if s.position_keys:
        table_first, span = _place_tables(s, length)
        of_key += 4 * FMA_ROWS * span
        _multiply_table(s, head, head_dim, k, stride, length, s.position_queries, table_first, span, of_key)
    for i in range(0, length, FMA_ROWS):
        rows = min(FMA_ROWS, length - i)
        if s.position_keys:
            x = q + i * stride
            _multiply_table(s, head, head_dim, x, stride, rows, s.position_keys, table_first, span, of_query)
        begin, end = _key_range(i, rows, num_keys, s.window)
        begin = begin // 16 * 16
        at = begin
        while at < end:
            num = _tile_vectors(end - at)
            to = scores + 4 * (at - begin)
            _fma_tile(rows, num, q + i * stride, stride, keys + 4 * at, scores_stride, head_dim, to, scores_stride)
            at += 16 * num
        for m in range(rows):
            row = scores + m * scores_stride
            first, last = _key_range(i + m, 1, num_keys, s.window)
            skipped = (first - begin) // 16 * 16  # whole vectors: a key's lane does not depend on the tile
            if bias:
                _add_bias_row(row, end - begin, scale2, bias + 4 * (begin - i - m))
            if s.position_keys:
                at_query, at_key = of_query + 4 * (m * span - table_first), of_key - 4 * table_first
                _gather_bias(s, i + m, begin, end, length, at_query, at_key, span, scale2, rest)
                _add_bias_row(row, end - begin, scale2, rest + 4 * begin)
            _keep_keys(row, begin, end, first, last, _LOWEST)
            is_scaled = bias or s.position_keys
            inv_sum = _softmax_row(row + 4 * skipped, last - begin - skipped, _ONE if is_scaled else scale2)
            _keep_keys(row, begin, end, first, last, _ZERO)
            store(inv_sums + 4 * m, inv_sum)
        at = 0
        while at < head_dim:
            num = _tile_vectors(head_dim - at)
            values = v + begin * stride + 4 * at
            _fma_tile(rows, num, scores, scores_stride, values, stride, end - begin, tile, tile_stride)
            for m in range(rows):
                inv_sum = load_f32_scalar(inv_sums + 4 * m)
                for c in range(0, min(16 * num, head_dim - at), 16):
                    y = load(tile + m * TILE_BYTES + 4 * c) * inv_sum
                    store_first(context + (i + m) * call.out_stride + 4 * (at + c), y, head_dim - at - c)
            at += 16 * num


# Attention with both products in int8. Oracle: quant.attention_u8s8_f32, which states the rounding. Codes of queries
# and scores are stored xor CODE_FLIP; sums start where that makes them equal on every instruction set.


@_helper
def _dot_tile(
    rows: int,
    num_vectors: int,
    codes: int,
    stride: int,
    columns: int,
    step_stride: int,
    steps: int,
    start: int,
    out: int,
    out_stride: int,
) -> None:
    dot_tile(rows, num_vectors, codes, stride, columns, step_stride, steps, start, out, out_stride)


@_inline
def _pack4(a: V, b: V, c: V, d: V) -> V:
    """Lane i: the bytes a, b, c, d of lane i."""
    low = (to_i32(a) & _BYTE) | ((to_i32(b) & _BYTE) << _EIGHT)
    return low | ((to_i32(c) & _BYTE) << _SIXTEEN) | (to_i32(d) << _TWENTY_FOUR)


@_inline
def _pack_lanes(
    x: int,
    stride: int,
    valid: int,
    rows: int,
    codes: int,
    codes_stride: int,
    scale: int,
    start: int,
    start_stride: int,
    start_factor: F,
) -> None:
    """Symmetric codes [rows / 4][lane][4] of the `valid` lanes at x over `rows` rows; a scale and a start a lane.

    With a `start_stride` there is a start for the rows before each 16th, and the last is that of all.
    """
    top = splat(_TINY)
    for row in range(rows):
        top = maximum(top, absolute(keep(load(x + row * stride), valid, _ZERO)))
    store(scale, top / _LIMIT)
    r = splat(_LIMIT) / top
    sums = splat(_ZERO)
    for row in range(0, rows, 4):
        if start_stride and row % 16 == 0:
            store(start + row // 16 * start_stride, to_i32(sums * start_factor))
        a = rint(keep(load(x + row * stride), valid, _ZERO) * r)
        b, c, d = splat(_ZERO), splat(_ZERO), splat(_ZERO)
        if row + 1 < rows:
            b = rint(keep(load(x + (row + 1) * stride), valid, _ZERO) * r)
        if row + 2 < rows:
            c = rint(keep(load(x + (row + 2) * stride), valid, _ZERO) * r)
        if row + 3 < rows:
            d = rint(keep(load(x + (row + 3) * stride), valid, _ZERO) * r)
        sums = sums + a + b + c + d
        store(codes + row // 4 * codes_stride, _pack4(a, b, c, d))
    store(start + (rows + 15) // 16 * start_stride, to_i32(sums * start_factor))


@_inline
def _softmax_codes(scores: int, length: int, top: F, scale2: F, codes: int) -> F:
    """codes = round(255 * 2**(scale2 * (score - top))); returns 1 / their sum."""
    shift = _LOG2_255 - top * scale2
    sums = splat(_ZERO)
    whole = length // TILE * TILE
    for c in range(0, whole, TILE):
        wide = rint(_exp2(fma(load_wide(scores + 4 * c), scale2, splat_wide(shift))))
        store_codes(codes + c, wide)
        sums = add_parts(sums, wide)
    for c in range(whole, length, 16):
        p = keep(rint(_exp2(fma(load(scores + 4 * c), scale2, splat(shift)))), length - c, _ZERO)
        store_codes(codes + c, p)
        sums = sums + p
    return _ONE / reduce_add(sums)


def _attention_varlen_u8s8(s: Record, call: Record) -> None:
    """`_attention_varlen` in int8: K quantized by key, V by column, over this sequence alone."""
    s, call = _instruction(s), _call(call)
    length, head_dim, q, context = _attention_rows(s, call)
    num_keys = _count_keys(s, call, length)
    stride = call.x_stride
    k, v = q + 4 * s.width, q + 8 * s.width
    keys_stride, values_stride = (
        (length + 15) // 16 * 64,
        (head_dim + 15) // 16 * 64,
    )  # bytes of codes by four, or of f32
    key_scale = call.scratch
    key_start = key_scale + keys_stride
    value_scale = key_start + keys_stride
    value_start = value_scale + values_stride
    keys = value_start + ((length + 15) // 16 + 1) * values_stride
    values = keys + (head_dim + 3) // 4 * keys_stride
    scores = values + (length + 3) // 4 * values_stride
    query_codes = scores + DOT_ROWS * keys_stride
    score_codes = query_codes + DOT_ROWS * values_stride // 4
    block = score_codes + DOT_ROWS * keys_stride // 4
    rest = block + 16 * values_stride
    bias = _lay_out_bias(s, call, length, rest) if s.bias else 0
    head, table_first, span = call.first % s.option, np.int64(0), np.int64(0)
    of_query, of_key = rest + keys_stride, rest + keys_stride  # `rest` itself is a row of biases
    if s.position_keys:
        table_first, span = _place_tables(s, length)
        of_key += 4 * DOT_ROWS * span
        _multiply_table(s, head, head_dim, k, stride, length, s.position_queries, table_first, span, of_key)
    for j in range(0, num_keys, 16):
        for d in range(0, head_dim, 16):
            transpose_block(k + j * stride + 4 * d, stride, block + 64 * d, 64)
        at = 4 * j
        _pack_lanes(
            block, 64, num_keys - j, head_dim, keys + at, keys_stride, key_scale + at, key_start + at, 0, _KEY_START
        )
    for d in range(0, head_dim, 16):
        at = 4 * d
        _pack_lanes(
            v + at,
            stride,
            head_dim - d,
            num_keys,
            values + at,
            values_stride,
            value_scale + at,
            value_start + at,
            values_stride,
            _VALUE_START,
        )
    tile, inv_sums, tile_stride = stack_space(STACK_TILE), stack_space(64), np.int64(TILE_BYTES)
    tile_start = stack_space(TILE_BYTES)
    scale2 = _LOG2_E / np.float32(math.sqrt(np.float32(head_dim)))
    for i in range(0, length, DOT_ROWS):
        rows = min(DOT_ROWS, length - i)
        begin, end = _key_range(i, rows, num_keys, s.window)
        begin = begin // 16 * 16
        if s.position_keys:
            x = q + i * stride
            _multiply_table(s, head, head_dim, x, stride, rows, s.position_keys, table_first, span, of_query)
        for m in range(rows):
            x = q + (i + m) * stride
            top = splat(_TINY)
            for c in range(0, head_dim, 16):
                top = maximum(top, absolute(keep(load(x + 4 * c), head_dim - c, _ZERO)))
            largest = reduce_max(top)
            r = _LIMIT / largest
            for c in range(0, head_dim, 16):
                codes = rint(keep(load(x + 4 * c), head_dim - c, _ZERO) * r) + _HALF_RANGE
                store_codes(query_codes + m * values_stride // 4 + c, codes)
            store(inv_sums + 4 * m, largest / _LIMIT)  # the query's scale, until the softmax has used it
        at = begin
        while at < end:
            num = _tile_vectors(end - at)
            _dot_tile(
                rows,
                num,
                query_codes,
                values_stride // 4,
                keys + 4 * at,
                keys_stride,
                (head_dim + 3) // 4,
                key_start + 4 * at,
                scores + 4 * (at - begin),
                keys_stride,
            )
            at += 16 * num
        for m in range(rows):
            row = scores + m * keys_stride
            row_scale2 = scale2 * load_f32_scalar(inv_sums + 4 * m)
            for c in range(0, end - begin, 16):
                store(row + 4 * c, to_f32(load_i32(row + 4 * c)) * load(key_scale + 4 * (begin + c)))
            if bias:
                _add_bias_row(row, end - begin, row_scale2, bias + 4 * (begin - i - m))
                row_scale2 = _ONE
            if s.position_keys:
                at_query, at_key = of_query + 4 * (m * span - table_first), of_key - 4 * table_first
                _gather_bias(s, i + m, begin, end, length, at_query, at_key, span, scale2, rest)
                _add_bias_row(row, end - begin, row_scale2, rest + 4 * begin)
                row_scale2 = _ONE
            first, last = _key_range(i + m, 1, num_keys, s.window)
            _keep_keys(row, begin, end, first, last, _LOWEST)
            top = splat(_LOWEST)
            for c in range(0, end - begin, 16):
                top = maximum(top, load(row + 4 * c))
            inv_sum = _softmax_codes(row, end - begin, reduce_max(top), row_scale2, score_codes + m * keys_stride // 4)
            store(inv_sums + 4 * m, inv_sum)
        at = 0
        while at < head_dim:
            num = _tile_vectors(head_dim - at)
            for c in range(0, 64 * num, 64):
                start = value_start + 4 * at + c
                before, after = begin // 16 * values_stride, (end + 15) // 16 * values_stride
                store(tile_start + c, load_i32(start + after) - load_i32(start + before))
            _dot_tile(
                rows,
                num,
                score_codes,
                keys_stride // 4,
                values + begin // 4 * values_stride + 4 * at,
                values_stride,
                (min(num_keys, (end + 15) // 16 * 16) - begin + 3) // 4,
                tile_start,
                tile,
                tile_stride,
            )
            for m in range(rows):
                inv_sum = load_f32_scalar(inv_sums + 4 * m)
                for c in range(0, min(16 * num, head_dim - at), 16):
                    y = to_f32(load_i32(tile + m * TILE_BYTES + 4 * c)) * load(value_scale + 4 * (at + c)) * inv_sum
                    store_first(context + (i + m) * call.out_stride + 4 * (at + c), y, head_dim - at - c)
            at += 16 * num


# ---- Running a program -----------------------------------------------------------------------------------------------
#
# A thread's view of its team is a step: the address of two counters, of items claimed and items done. A step ends when
# its items are done, not when every thread has arrived. Step 0 is a team of one.

STEP_BYTES = 128  # the two counters, on cache lines of their own
_CLOSED = 1 << 32


@_inline
def _next_item(step: int, item: int) -> int:
    return atomic_add(step, 1) if step else item + 1


@_inline
def _finish_step(step: int, finished: int, items: int) -> int:
    """Report what this thread has done, wait for the rest; returns the step after."""
    if step == 0:
        return step
    atomic_add(step + 64, finished)
    spins = 0
    while atomic_load(step + 64) < items:
        spins += 1
        if spins > 2000:
            yield_cpu()
    return step + STEP_BYTES


@_inline
def _place(run: Record, bases: int, number: int, first: int, block: int) -> tuple[int, int]:
    """(address, stride) of a buffer's rows from `first`, or from `block` of a local buffer."""
    if number < 0:
        return 0, 0
    buffer = _buffer(run.buffers + number * _BUFFER_BYTES)
    at = block if buffer.is_local else first
    return load_i64_scalar(bases + 8 * number) + at * buffer.stride, buffer.stride


@_helper
def _execute(run: Record, bases: int, call: Record, at: int, until: int, block: int, column: int) -> None:
    """Instructions [at, until) over the rows of the call, which are at `block` in local buffers; all columns if -1."""
    for i in range(at, until):
        address = run.program + i * _INSTRUCTION_BYTES
        s = _instruction(address)
        is_attention = s.op == ATTENTION or s.op == ATTENTION_S8
        call.x, call.x_stride = _place(run, bases, s.x, 0 if is_attention or s.op == POOL else call.first, block)
        call.residual, call.residual_stride = _place(run, bases, s.residual, call.first, block)
        call.out, call.out_stride = _place(run, bases, s.out, 0 if is_attention else call.first, block)
        call.codes, call.codes_stride = _place(run, bases, s.codes, call.first, block)
        call.begin, call.end = (column, column + 1) if column >= 0 else (0, (s.outputs + TILE - 1) // TILE)
        invoke(load_i64_scalar(run.functions + 8 * s.op), address, address_of(call))


@_helper
def _run_slice(step: int, rank: int, run: Record, bases: int, call: Record) -> int:
    """Run all segments over the call's sequences, as thread `rank` of a team.

    Between two attentions everything is a matter of single rows: a block of them goes through all of it at once, and
    threads share out the blocks. Where there are too few rows for that, they share out the columns of each linear.
    """
    threads = run.threads if step else 1
    count = call.rows
    starts = run.cu_seqlens + 4 * call.sequence
    call.token = np.int64(load_i32_scalar(starts))
    tokens = load_i32_scalar(starts + 4 * count) - call.token
    for number in range(run.num_segments):
        segment = _segment(run.segments + number * _SEGMENT_BYTES)
        is_heads = segment.kind == OVER_HEADS
        rows = tokens if segment.kind == OVER_TOKENS else count
        if is_heads:
            rows *= _instruction(run.program + segment.first * _INSTRUCTION_BYTES).option
        is_blocks = not is_heads and (threads == 1 or rows >= 2 * DOT_ROWS * threads)
        block_size = 1
        if is_blocks:  # a thread's share in blocks of like size
            share = ((rows + DOT_ROWS - 1) // DOT_ROWS + threads - 1) // threads
            per_share = (share * DOT_ROWS + segment.block_rows - 1) // segment.block_rows
            block_size = (share + per_share - 1) // per_share * DOT_ROWS
        at = segment.first
        while at < segment.last:
            s = _instruction(run.program + at * _INSTRUCTION_BYTES)
            is_columns = not is_blocks and (s.op == LINEAR_S8 or s.op == LINEAR_F32)
            until = segment.last if is_blocks else at + 1
            items = (s.outputs + TILE - 1) // TILE if is_columns else (rows + block_size - 1) // block_size
            finished = 0
            item = _next_item(step, np.int64(-1))
            while item < items:
                call.first = 0 if is_columns else item * block_size
                call.rows = rows if is_columns else min(block_size, rows - call.first)
                block = rank * segment.block_rows if is_blocks else call.first
                _execute(run, bases, call, at, until, block, item if is_columns else -1)
                finished += 1
                item = _next_item(step, item)
            step = _finish_step(step, finished, items)
            at = until
    return step


def _run_program(rank: int, address: int) -> None:
    """Run a batch as thread `rank`; rank 0 returns when all of it is done and no thread is in it any more."""
    run = _run(address)
    if rank and atomic_add(run.control, 1) >= _CLOSED:
        return
    call_address = stack_space(_CALL_BYTES)
    call = _call(call_address)
    call.run = address
    first_step = run.control + STEP_BYTES
    step = first_step
    items = run.num_slices - 1
    finished = 0
    item = _next_item(first_step, np.int64(-1))
    while True:
        is_alone = item < items
        if not is_alone:
            step = _finish_step(first_step, finished, items)
        at = run.slices + 16 * (item if is_alone else items)
        call.sequence, call.rows = load_i64_scalar(at), load_i64_scalar(at + 8)
        workspace = 1 + rank if is_alone else 0
        call.scratch = load_i64_scalar(run.scratch + 8 * (workspace * run.threads + (0 if is_alone else rank)))
        bases = run.bases + 8 * workspace * run.num_buffers
        if call.rows:
            _run_slice(0 if is_alone or run.threads == 1 else step, 0 if is_alone else rank, run, bases, call)
        if not is_alone:
            break
        finished += 1
        item = _next_item(first_step, item)
    if rank:
        atomic_add(run.control + 64, 1)
        return
    entered = atomic_add(run.control, _CLOSED)
    while atomic_load(run.control + 64) < entered:
        yield_cpu()


# ---- Compiling -------------------------------------------------------------------------------------------------------

KERNELS: dict[int, Callable[..., None]] = {
    EMBED: _embed_layernorm,
    QUANTIZE: _quantize_rows,
    LINEAR_S8: _linear_u8s8_f32,
    LINEAR_F32: _linear_f32,
    LAYERNORM: _add_layernorm,
    ATTENTION: _attention_varlen,
    ATTENTION_S8: _attention_varlen_u8s8,
    POOL: _pool,
    NORMALIZE: _normalize,
    LOG1P: _log1p,
    COPY: _copy,
    ROTATE: _rotate,
    GATE: _gate,
}


class _Cache(FunctionCache):
    """Numba's cache on disk, keyed by CPU and Numba's version, and here by what all of our sources hold."""

    def __init__(self, function: Callable[..., None]) -> None:
        super().__init__(function)
        self._cache_file = IndexDataCacheFile(self._cache_path, self._impl.filename_base, _source_stamp())


@cache
def _source_stamp() -> str:
    sources = [Path(path).read_bytes() for path in (__file__, str(numba_cpu_vectors.__file__))]
    return hashlib.sha256(b"".join([edgebert.__version__.encode(), *sources])).hexdigest()


@cache
def _compile(function: Callable[..., None]) -> Any:
    signature = ((types.int64, types.int64), types.void)
    compiled: Any = CFunc(function, signature, {}, {"error_model": "numpy"})
    with contextlib.suppress(RuntimeError):  # no folder to write to: compiled anew in every process
        compiled._cache = _Cache(function)
    compiled.compile()
    return compiled


def kernel_address(op: int) -> int:
    """Address of the kernel of that op, void(INSTRUCTION*, CALL*); compiled, or read from the cache on disk."""
    return int(_compile(KERNELS[op]).address)


def run_program() -> Any:
    """The entry point as a ctypes function (rank, address of RUN), which releases the GIL."""
    return _compile(_run_program).ctypes
