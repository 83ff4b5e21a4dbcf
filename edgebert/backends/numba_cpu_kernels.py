"""The kernels of the Numba CPU backend, and the loop that runs a program of them: model and bits are the C++ engine's.

Oracle: `numpy_ops`, and quant.py for codes. Every sum has one order (16 lanes or one chain, ascending), so a row's
result does not depend on the rows beside it. A kernel takes addresses and strides in bytes. Rows of float32 are padded
to `ROW_ALIGN` floats, and a few rows follow the last one, so that kernels may touch whole vectors; what lies there is
never used. Rows of codes end with their scale (f32) and negated zero point (s32), at `code_tail(width)`.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numba import njit

from edgebert.backends import numba_cpu_vectors as vectors
from edgebert.backends.numba_cpu_vectors import (
    ISA,
    TILE,
    absolute,
    add_parts,
    atomic_add,
    atomic_load,
    copy_bytes,
    fma,
    fnma,
    keep,
    load,
    load_f32_scalar,
    load_first,
    load_i32_scalar,
    load_i32_wide,
    load_s8_first,
    load_wide,
    maximum,
    minimum,
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
    transpose_block,
    yield_cpu,
)

ROW_ALIGN = 64  # floats
SLACK_ROWS = 16  # rows that a kernel may touch beyond the last
BLOCK_ROWS = 96  # rows that go from one attention to the next at once; every block reads all weights of a layer

DOT_ROWS, FMA_ROWS, TILE_VECTORS, CODE_FLIP = ISA.dot_rows, ISA.fma_rows, ISA.vectors, ISA.code_flip
TILE_BYTES = 4 * TILE
STACK_TILE = max(DOT_ROWS, FMA_ROWS) * TILE_BYTES

# What an instruction does, and what fields it reads besides buffers.
EMBED, QUANTIZE, LINEAR_S8, LINEAR_F32, LAYERNORM, ATTENTION, ATTENTION_S8, POOL, NORMALIZE, COPY = range(10)

ACTIVATIONS = ("identity", "gelu_erf", "gelu_tanh", "relu", "tanh")

# One kernel call. Buffers are named by number (-1: none), arrays of weights by address (0: none).
INSTRUCTION = np.dtype(
    [
        ("op", "i8"),
        ("x", "i8"),
        ("residual", "i8"),
        ("out", "i8"),
        ("codes", "i8"),  # where QUANTIZE and LAYERNORM put codes
        ("width", "i8"),  # of a row of x; of attention, one of q, k, v
        ("outputs", "i8"),  # of a linear
        ("weight", "i8"),
        ("scale", "i8"),
        ("colsum", "i8"),
        ("bias", "i8"),
        ("smooth", "i8"),
        ("row", "i8"),  # LAYERNORM: a residual that is the same for all rows
        ("option", "i8"),  # activation; attention: heads; POOL: is mean; COPY: output; EMBED: lookups
        ("column", "i8"),  # COPY: first column
        ("eps", "f4"),
    ]
)
# One embedding lookup: f32 rows, or codes with a scale a row; `ids` is a row of the batch's id table.
LOOKUP = np.dtype([("weight", "i8"), ("scale", "i8"), ("ids", "i8")])
# One buffer: bytes of a row; a local one holds a block of rows for each thread, others a slice's rows.
BUFFER = np.dtype([("stride", "i8"), ("is_local", "i8")])
# Consecutive instructions over the same rows (tokens or sequences), or one attention.
SEGMENT = np.dtype([("kind", "i8"), ("first", "i8"), ("last", "i8"), ("block_rows", "i8")])
OVER_TOKENS, OVER_SEQUENCES, OVER_HEADS = range(3)

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

_inline: Any = njit(forceinline=True, error_model="numpy")
_kernel: Any = njit(error_model="numpy")


def code_tail(width: int) -> int:
    """Bytes from the start of a row of codes to its scale and negated zero point."""
    return (width + 63) // 64 * 64


# ---- exp2, GELU and tanh: one polynomial each, the C++ engine's --------------------------------------------------------


@_inline
def _exp2(t):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN202
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
def _gelu_erf(x):
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
def _sigmoid(x):
    return _ONE / (_exp2(minimum(x * _MINUS_LOG2_E, _TOP_EXPONENT)) + _ONE)


@_inline
def _activate(x, activation):
    """The activation of that number: gelu_tanh is x * sigmoid(2 u), u = sqrt(2 / pi) (x + 0.044715 x**3)."""
    if activation == 1:
        return _gelu_erf(x)
    if activation == 2:
        return x * _sigmoid(fma(x * x * x, _CUBIC, x) * _TANH_SCALE)
    if activation == 3:
        return maximum(x, _ZERO)
    if activation == 4:
        return fma(_sigmoid(x * _TWO), _TWO, _MINUS_ONE)
    return x


# ---- Rows ---------------------------------------------------------------------------------------------------------------


@_inline
def _quantize_row(x, width, smooth, low, high, codes):
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


@_kernel
def _quantize_rows(rows, width, x, x_stride, smooth, codes, codes_stride):
    for row in range(rows):
        low, high = splat(_MINUS_TINY), splat(_ZERO)
        for c in range(0, width, 16):
            v = load(x + 4 * c)
            if smooth:
                v = v * load(smooth + 4 * c)
            v = keep(v, width - c, _ZERO)
            low, high = minimum(low, v), maximum(high, v)
        _quantize_row(x, width, smooth, reduce_min(low), reduce_max(high), codes)
        x += x_stride
        codes += codes_stride


@_inline
def _normalize_row(x, width, sums, weight, bias, eps, smooth, codes):
    """LayerNorm of the row at x in place, given the lane sums of its values; with `codes`, quantizes the result."""
    inv_width = _ONE / np.float32(width)
    mean = reduce_add(sums) * inv_width
    squares = splat(_ZERO)
    for c in range(0, width, 16):
        d = keep(load(x + 4 * c) - mean, width - c, _ZERO)
        squares = fma(d, d, squares)
    rstd = _ONE / np.float32(math.sqrt(reduce_add(squares) * inv_width + eps))
    low, high = splat(_MINUS_TINY), splat(_ZERO)
    for c in range(0, width, 16):
        y = fma((load(x + 4 * c) - mean) * rstd, load(weight + 4 * c), load(bias + 4 * c))
        y = keep(y, width - c, _ZERO)
        store(x + 4 * c, y)
        if smooth:
            y = y * load(smooth + 4 * c)
        low, high = minimum(low, y), maximum(high, y)
    if codes:
        _quantize_row(x, width, smooth, reduce_min(low), reduce_max(high), codes)


@_kernel
def _add_layernorm(
    rows, width, x, x_stride, residual, residual_stride, weight, bias, eps, out, out_stride, smooth, codes, codes_stride
):
    for _ in range(rows):
        sums = splat(_ZERO)
        for c in range(0, width, 16):
            v = load(x + 4 * c)
            if residual:
                v = v + load(residual + 4 * c)
            v = keep(v, width - c, _ZERO)
            store(out + 4 * c, v)
            sums = sums + v
        _normalize_row(out, width, sums, weight, bias, eps, smooth, codes)
        x += x_stride
        residual += residual_stride
        out += out_stride
        codes += codes_stride


@_inline
def _table_lanes(lookup, row, width, c):
    if lookup.scale:
        scale = load_f32_scalar(lookup.scale + 4 * row)
        return load_s8_first(lookup.weight + row * width + c, width - c) * scale
    return load_first(lookup.weight + 4 * (row * width + c), width - c)


@_kernel
def _embed_layernorm(rows, width, lookups, count, ids, first, weight, bias, eps, out, out_stride):
    for row in range(first, first + rows):
        sums = splat(_ZERO)
        for c in range(0, width, 16):
            v = _table_lanes(lookups[0], ids[lookups[0].ids, row], width, c)
            for i in range(1, count):
                v = v + _table_lanes(lookups[i], ids[lookups[i].ids, row], width, c)
            store(out + 4 * c, v)
            sums = sums + v
        _normalize_row(out, width, sums, weight, bias, eps, 0, 0)
        out += out_stride


@_kernel
def _pool(count, width, x, x_stride, starts, is_mean, out, out_stride):
    """`starts` holds where each of the sequences begins in x, and where the last one ends."""
    for s in range(count):
        first = starts[s] - starts[0]
        rows = starts[s + 1] - starts[s] if is_mean else 1
        length = np.float32(rows)
        for c in range(0, width, 16):
            at = x + first * x_stride + 4 * c
            v = load(at)
            for _ in range(1, rows):
                at += x_stride
                v = v + load(at)
            store(out + 4 * c, v / length)
        out += out_stride


@_kernel
def _normalize(rows, width, x, x_stride, out, out_stride):
    for _ in range(rows):
        squares = splat(_ZERO)
        for c in range(0, width, 16):
            v = keep(load(x + 4 * c), width - c, _ZERO)
            squares = fma(v, v, squares)
        norm = np.float32(math.sqrt(reduce_add(squares)))
        norm = norm if norm > _TINY else _TINY
        for c in range(0, width, 16):
            store(out + 4 * c, load(x + 4 * c) / norm)
        x += x_stride
        out += out_stride


# ---- Matrix products ------------------------------------------------------------------------------------------------------


@_kernel
def _dot_tile(rows, num_vectors, codes, stride, columns, step_stride, steps, start, out, out_stride):
    vectors.dot_tile(rows, num_vectors, codes, stride, columns, step_stride, steps, start, out, out_stride)


@_kernel
def _fma_tile(rows, num_vectors, x, stride, columns, step_stride, steps, out, out_stride):
    vectors.fma_tile(rows, num_vectors, x, stride, columns, step_stride, steps, 0, out, out_stride)


@_inline
def _store_row(y, activation, residual, out):
    y = _activate(y, activation)
    if residual:
        y = y + load_wide(residual)
    store(out, y)


@_kernel
def _linear_u8s8_f32(
    rows, s, panel_begin, panel_end, codes, codes_stride, residual, residual_stride, out, out_stride
):
    """out = activation((sum * w_scale) * a_scale + bias) + residual; weight [panels][steps][TILE][4]."""
    tile = stack_space(STACK_TILE)
    steps = (s.width + 3) // 4
    tail = (s.width + 63) // 64 * 64
    for panel in range(panel_begin, panel_end):
        weight = s.weight + panel * steps * TILE_BYTES
        at = panel * TILE_BYTES
        for row in range(0, rows, DOT_ROWS):
            count = min(DOT_ROWS, rows - row)
            first = codes + row * codes_stride
            _dot_tile(count, TILE_VECTORS, first, codes_stride, weight, TILE_BYTES, steps, 0, tile, TILE_BYTES)
            for m in range(count):
                meta = first + m * codes_stride + tail
                acc = load_i32_wide(tile + m * TILE_BYTES) + load_i32_wide(s.colsum + at) * load_i32_scalar(meta + 4)
                y = to_f32(acc) * load_wide(s.scale + at) * load_f32_scalar(meta) + load_wide(s.bias + at)
                added = residual + (row + m) * residual_stride + at if residual else 0
                _store_row(y, s.option, added, out + (row + m) * out_stride + at)


@_kernel
def _linear_f32(rows, s, panel_begin, panel_end, x, x_stride, residual, residual_stride, out, out_stride):
    """out = activation(sum + bias) + residual; weight [panels][inputs][TILE]."""
    tile = stack_space(STACK_TILE)
    for panel in range(panel_begin, panel_end):
        weight = s.weight + panel * s.width * TILE_BYTES
        at = panel * TILE_BYTES
        for row in range(0, rows, FMA_ROWS):
            count = min(FMA_ROWS, rows - row)
            _fma_tile(
                count, TILE_VECTORS, x + row * x_stride, x_stride, weight, TILE_BYTES, s.width, tile, TILE_BYTES
            )
            for m in range(count):
                y = load_wide(tile + m * TILE_BYTES) + load_wide(s.bias + at)
                added = residual + (row + m) * residual_stride + at if residual else 0
                _store_row(y, s.option, added, out + (row + m) * out_stride + at)


# ---- Attention --------------------------------------------------------------------------------------------------------------


@_inline
def _tile_vectors(columns):
    """The widest tile that has no more vectors than these columns."""
    left = (columns + 15) // 16
    return TILE_VECTORS if left >= TILE_VECTORS else 2 if left >= 2 else 1


@_inline
def _softmax_row(scores, length, scale2):
    """Replaces scores by 2**(scale2 * (score - the largest)); returns 1 / their sum."""
    top = splat(_LOWEST)
    for c in range(0, length, 16):
        top = maximum(top, keep(load(scores + 4 * c), length - c, _LOWEST))
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


@_kernel
def _attention_varlen(length, head_dim, q, k, v, stride, context, context_stride, scratch):
    """softmax(Q K^T / sqrt(head_dim)) V of one head of one sequence.

    K is transposed once; then for each tile of queries a whole row of scores fits the cache, so the softmax needs no
    rescaling. Every score and every output is one chain of fused multiply-adds, ascending.
    """
    tile, inv_sums = stack_space(STACK_TILE), stack_space(64)
    scores_stride = (length + 15) // 16 * 64
    keys, scores = scratch, scratch + scores_stride * ((head_dim + 15) // 16 * 16)
    for j in range(0, length, 16):
        for d in range(0, head_dim, 16):
            transpose_block(k + j * stride + 4 * d, stride, keys + d * scores_stride + 4 * j, scores_stride)
    scale2 = _LOG2_E / np.float32(math.sqrt(np.float32(head_dim)))
    for i in range(0, length, FMA_ROWS):
        count = min(FMA_ROWS, length - i)
        j = 0
        while j < length:
            num = _tile_vectors(length - j)
            _fma_tile(
                count, num, q + i * stride, stride, keys + 4 * j, scores_stride, head_dim, scores + 4 * j, scores_stride
            )
            j += 16 * num
        for m in range(count):
            store(inv_sums + 4 * m, _softmax_row(scores + m * scores_stride, length, scale2))
        d = 0
        while d < head_dim:
            num = _tile_vectors(head_dim - d)
            _fma_tile(count, num, scores, scores_stride, v + 4 * d, stride, length, tile, TILE_BYTES)
            for m in range(count):
                inv_sum = load_f32_scalar(inv_sums + 4 * m)
                to = context + (i + m) * context_stride + 4 * d
                for c in range(0, 16 * num, 16):
                    y = load(tile + m * TILE_BYTES + 4 * c) * inv_sum
                    if head_dim - d - c >= 16:
                        store(to + 4 * c, y)
                    elif head_dim - d - c > 0:
                        store_first(to + 4 * c, y, head_dim - d - c)
            d += 16 * num


# ---- Running a program ------------------------------------------------------------------------------------------------------
#
# A thread's view of its team is a step: the address of two counters, of items claimed and items done. A step ends when
# its items are done, not when every thread has arrived. Step 0 is a team of one.

STEP_BYTES = 128  # the two counters, on cache lines of their own
_CLOSED = 1 << 32


@_inline
def _next_item(step, item):
    return atomic_add(step, 1) if step else item + 1


@_inline
def _finish_step(step, finished, items):
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
def _address(buffers, bases, number, first, block):
    """Where a buffer's rows begin: those from `first`, or from the thread's block of a local buffer."""
    if number < 0:
        return 0
    return bases[number] + (block if buffers[number].is_local else first) * buffers[number].stride


@_inline
def _stride(buffers, number):
    return buffers[number].stride if number >= 0 else 0


@_kernel
def _execute(s, buffers, bases, lookups, ids, cu_seqlens, outputs, token, sequence, first, rows, block, begin, end):
    """One instruction over rows [first, first + rows) of a slice, panels [begin, end) if it is a linear.

    The slice begins at that token and sequence of the batch.
    """
    x = _address(buffers, bases, s.x, first, block)
    residual = _address(buffers, bases, s.residual, first, block)
    out = _address(buffers, bases, s.out, first, block)
    codes = _address(buffers, bases, s.codes, first, block)
    x_stride, residual_stride = _stride(buffers, s.x), _stride(buffers, s.residual)
    out_stride, codes_stride = _stride(buffers, s.out), _stride(buffers, s.codes)
    if s.op == LINEAR_S8:
        _linear_u8s8_f32(rows, s, begin, end, x, x_stride, residual, residual_stride, out, out_stride)
    elif s.op == LINEAR_F32:
        _linear_f32(rows, s, begin, end, x, x_stride, residual, residual_stride, out, out_stride)
    elif s.op == LAYERNORM:
        if s.row:
            residual = s.row
        _add_layernorm(
            rows, s.width, x, x_stride, residual, residual_stride, s.weight, s.bias, s.eps, out, out_stride,
            s.smooth, codes, codes_stride,
        )
    elif s.op == QUANTIZE:
        _quantize_rows(rows, s.width, x, x_stride, s.smooth, codes, codes_stride)
    elif s.op == EMBED:
        _embed_layernorm(
            rows, s.width, lookups, s.option, ids, token + first, s.weight, s.bias, s.eps, out, out_stride
        )
    elif s.op == POOL:
        from_row = cu_seqlens[sequence + first] - cu_seqlens[sequence]
        starts = cu_seqlens[sequence + first :]
        x = _address(buffers, bases, s.x, from_row, 0)
        _pool(rows, s.width, x, x_stride, starts, s.option, out, out_stride)
    elif s.op == NORMALIZE:
        _normalize(rows, s.width, x, x_stride, out, out_stride)
    elif s.op == COPY:
        at = outputs[s.option] + 4 * s.width * (first + (sequence if s.outputs else token))
        for row in range(rows):
            copy_bytes(at + 4 * s.width * row, x + row * x_stride + 4 * s.column, 4 * s.width)


@_inline
def _num_panels(s):
    return (s.outputs + TILE - 1) // TILE if s.op == LINEAR_S8 or s.op == LINEAR_F32 else 1


@_kernel
def _run_slice(
    step, rank, threads, program, segments, buffers, bases, scratch, lookups, ids, cu_seqlens, outputs, sequence, count
):
    """Run all segments over `count` sequences from `sequence`, as thread `rank` of a team.

    Between two attentions everything is a matter of single rows: a block of them goes through all of it at once, and
    threads share out the blocks. Where there are too few rows for that, they share out the columns of each linear.
    """
    token = cu_seqlens[sequence]
    tokens = cu_seqlens[sequence + count] - token
    for segment in segments:
        s = program[segment.first]
        finished = 0
        if segment.kind == OVER_HEADS:
            stride, context_stride = buffers[s.x].stride, buffers[s.out].stride
            head_dim = s.width // s.option
            items = count * s.option
            item = _next_item(step, -1)
            while item < items:
                at = sequence + item // s.option
                first, length = cu_seqlens[at] - token, cu_seqlens[at + 1] - cu_seqlens[at]
                head = 4 * head_dim * (item % s.option)
                q = bases[s.x] + first * stride + head
                context = bases[s.out] + first * context_stride + head
                _attention_varlen(
                    length, head_dim, q, q + 4 * s.width, q + 8 * s.width, stride, context, context_stride, scratch
                )
                finished += 1
                item = _next_item(step, item)
            step = _finish_step(step, finished, items)
            continue
        rows = count if segment.kind == OVER_SEQUENCES else tokens
        if threads == 1 or rows >= 2 * DOT_ROWS * threads:
            # a thread's share in blocks of like size
            tiles = (rows + DOT_ROWS - 1) // DOT_ROWS
            share = (tiles + threads - 1) // threads
            per_share = (share * DOT_ROWS + segment.block_rows - 1) // segment.block_rows
            size = (share + per_share - 1) // per_share * DOT_ROWS
            items = (rows + size - 1) // size
            item = _next_item(step, -1)
            while item < items:
                first = item * size
                for i in range(segment.first, segment.last):
                    _execute(
                        program[i], buffers, bases, lookups, ids, cu_seqlens, outputs, token, sequence,
                        first, min(size, rows - first), rank * segment.block_rows, 0, _num_panels(program[i]),
                    )
                finished += 1
                item = _next_item(step, item)
            step = _finish_step(step, finished, items)
        else:
            for i in range(segment.first, segment.last):
                is_linear = program[i].op == LINEAR_S8 or program[i].op == LINEAR_F32
                items = _num_panels(program[i]) if is_linear else rows
                finished = 0
                item = _next_item(step, -1)
                while item < items:
                    first, number = (0, rows) if is_linear else (item, 1)
                    begin, end = (item, item + 1) if is_linear else (0, 1)
                    _execute(
                        program[i], buffers, bases, lookups, ids, cu_seqlens, outputs, token, sequence,
                        first, number, first, begin, end,
                    )
                    finished += 1
                    item = _next_item(step, item)
                step = _finish_step(step, finished, items)


def make_run_program(key: str) -> Any:
    """The entry point, compiled once a machine: `key` stands for all that the result depends on besides this file."""

    def run_program(
        rank, threads, control, program, segments, buffers, bases, scratch, lookups, ids, cu_seqlens, outputs, slices
    ):
        """Run a batch as thread `rank`; rank 0 returns when all of it is done and no thread is in it any more.

        Args:
            rank: of this thread; threads: of the team.
            control: address of zeros: gate, threads that left, slices claimed and done, then a step each two counters.
            program, segments, buffers, lookups: what to do.
            bases: int64 [1 + threads, buffers]: addresses; row 0 for the team, the others for a thread alone.
            scratch: int64 [1 + threads, threads]: addresses of attention's scratch.
            ids: int32 [3, tokens]: word, token type and position.
            cu_seqlens: int32 [n + 1].
            outputs: int64: addresses of the results.
            slices: int64 [k, 2]: first sequence and number of sequences; all but the last run on one thread each.
        """
        if key == "":
            return
        if rank and atomic_add(control, 1) >= _CLOSED:
            return
        step = control + STEP_BYTES
        items = len(slices) - 1
        finished = 0
        item = _next_item(step, -1)
        while item < items:
            _run_slice(
                0, 0, 1, program, segments, buffers, bases[1 + rank], scratch[1 + rank, 0], lookups, ids, cu_seqlens,
                outputs, slices[item, 0], slices[item, 1],
            )
            finished += 1
            item = _next_item(step, item)
        step = _finish_step(step, finished, items)
        if slices[items, 1]:
            _run_slice(
                step if threads > 1 else 0, rank, threads, program, segments, buffers, bases[0], scratch[0, rank],
                lookups, ids, cu_seqlens, outputs, slices[items, 0], slices[items, 1],
            )
        if rank:
            atomic_add(control + 64, 1)
            return
        entered = atomic_add(control, _CLOSED)
        while atomic_load(control + 64) < entered:
            yield_cpu()

    try:
        return njit(nogil=True, error_model="numpy", cache=True)(run_program)
    except RuntimeError:  # no folder can be written
        return njit(nogil=True, error_model="numpy")(run_program)
