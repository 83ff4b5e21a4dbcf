"""The INT8 contract, written once: how activations and weights become codes, and how sums become floats.

Activations are u8 per token (row) with a zero point of the row's own; weights are s8 per output channel, symmetric,
in +-127 (never -128) or, portable, +-63; sums are exact in s32. Every operation is one IEEE float32 operation in the
order written, with no fused multiply-add, so that every backend and instruction set gives the same codes and the same
dequantized values for the same input.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

F32 = NDArray[np.float32]
S8 = NDArray[np.int8]
U8 = NDArray[np.uint8]
S32 = NDArray[np.int32]

WEIGHT_LIMIT = 127
PORTABLE_WEIGHT_LIMIT = 63  # 2 * 255 * 63 < 2**15: safe where a runtime's u8*s8 pairs saturate in 16 bits

_ZERO = np.float32(0.0)
_MINUS_TINY = np.float32(-1e-12)
_LEVELS = np.float32(255.0)


def quantize_rows(x: F32, inv_smooth: F32 | None = None) -> tuple[U8, F32, F32]:
    """Codes, scale and negated zero point of each row.

    x' = x * inv_smooth; lo = min(min x', -1e-12); hi = max(max x', 0); a_scale = (hi - lo) / 255;
    r = 255 / (hi - lo); zn = round_half_even(lo * r); q = clamp(round_half_even(x' * r - zn), 0, 255).

    Args:
        x: f32 [rows, K].
        inv_smooth: f32 [K] or None.

    Returns:
        (q u8 [rows, K], a_scale f32 [rows], zn f32 [rows], an integer value = minus the zero point).
    """
    if inv_smooth is not None:
        x = x * inv_smooth
    lo = np.minimum(x.min(axis=1), _MINUS_TINY)
    hi = np.maximum(x.max(axis=1), _ZERO)
    span = hi - lo
    a_scale = span / _LEVELS
    r = _LEVELS / span
    zn = np.rint(lo * r)
    q = np.clip(np.rint(x * r[:, None] - zn[:, None]), _ZERO, _LEVELS).astype(np.uint8)
    return q, a_scale, zn


def linear_u8s8_f32(q: U8, a_scale: F32, zn: F32, weight: S8, w_scale: F32, colsum: S32, bias: F32) -> F32:
    """y = ((q @ weight + zn * colsum) * w_scale) * a_scale + bias, the sum exact in s32.

    Args:
        q: u8 [rows, K]; a_scale, zn: f32 [rows], all from `quantize_rows`.
        weight: s8 [K, N]; w_scale: f32 [N]; colsum: s32 [N], the column sums of `weight`; bias: f32 [N].

    Returns:
        f32 [rows, N].
    """
    # float64 holds every partial sum exactly (K < 65,000) and goes through BLAS
    acc = (q.astype(np.float64) @ weight.astype(np.float64)).astype(np.int32)
    acc += zn.astype(np.int32)[:, None] * colsum
    return (acc.astype(np.float32) * w_scale) * a_scale[:, None] + bias


def weight_scale(weight: F32, limit: int = WEIGHT_LIMIT) -> F32:
    """Scale of each output channel, f32 [K, N] -> f32 [N]: absmax over the inputs / limit; 1 for a channel of zeros."""
    absmax = np.abs(weight).max(axis=0)
    return np.where(absmax > 0, absmax / np.float32(limit), np.float32(1.0)).astype(np.float32)


def round_weight(weight: F32, scale: F32, limit: int = WEIGHT_LIMIT) -> S8:
    """Nearest codes of weight f32 [K, N] at scale f32 [N]: clamp(round_half_even(w / scale), -limit, limit)."""
    codes: S8 = np.clip(np.rint(weight / scale), -limit, limit).astype(np.int8)
    return codes


def column_sums(weight: S8) -> S32:
    """Sums of the codes over the inputs: s8 [K, N] -> s32 [N]."""
    sums: S32 = weight.sum(axis=0, dtype=np.int32)
    return sums


def quantize_table(table: F32, limit: int = WEIGHT_LIMIT) -> tuple[S8, F32]:
    """An embedding table as s8 codes with one scale a row: f32 [rows, width] -> (s8 [rows, width], f32 [rows])."""
    scale = weight_scale(table.T, limit)
    return np.ascontiguousarray(round_weight(table.T, scale, limit).T), scale


def quantize_symmetric(x: F32, axis: int) -> tuple[F32, F32]:
    """Integer-valued codes in +-127 and their scale, one for each slice along `axis`.

    top = max(max|x|, 1e-12); scale = top / 127; codes = round_half_even(x * (127 / top)).

    Args:
        x: f32 [rows, columns].
        axis: 1 for a scale a row, 0 for a scale a column.

    Returns:
        (codes f32 like x, scale f32 with `axis` kept as 1).
    """
    top = np.maximum(np.abs(x).max(axis=axis, keepdims=True), np.float32(1e-12))
    limit = np.float32(WEIGHT_LIMIT)
    codes: F32 = np.rint(x * (limit / top))
    return codes, top / limit


def mask_window(scores: F32, window: int) -> F32:
    """Scores f32 [length, keys], minus infinity for keys more than `window` tokens away; 0: as they are."""
    if not window:
        return scores
    places = np.arange(len(scores))
    is_near = np.abs(places[:, None] - places[: scores.shape[1]]) <= window
    return np.where(is_near, scores, np.float32(-np.inf))


def attention_u8s8_f32(query: F32, key: F32, value: F32, bias: F32 | None = None, window: int = 0) -> F32:
    """Attention of one head of one sequence with both products in int8 (`attention_dtype` "s8").

    Queries and keys have a scale a row, values one a column, all symmetric; the softmax's numerators are codes in
    0 to 255 of their own largest value, and their sum normalises: softmax(q kT / sqrt(head_dim) + bias) v.

    Args:
        query: f32 [length, head_dim].
        key, value: f32 [keys, head_dim], of the first tokens, or of all.
        bias: f32 [length, keys], of queries and keys; None: zeros.
        window: tokens on each side that a token attends to; 0: all. Scales do not depend on it.

    Returns:
        f32 [length, head_dim].
    """
    query_codes, query_scale = quantize_symmetric(query, 1)
    key_codes, key_scale = quantize_symmetric(key, 1)
    value_codes, value_scale = quantize_symmetric(value, 0)
    # float64 holds every sum exactly
    sums = (query_codes.astype(np.float64) @ key_codes.T.astype(np.float64)).astype(np.float32)
    scores = ((sums * key_scale.T) * query_scale) * np.float32(1.0 / np.sqrt(query.shape[1]))
    if bias is not None:
        scores = scores + bias
    scores = mask_window(scores, window)
    weights = np.rint(np.exp(scores - scores.max(axis=1, keepdims=True)) * _LEVELS)
    context = (weights.astype(np.float64) @ value_codes.astype(np.float64)).astype(np.float32)
    rows: F32 = (context * value_scale) * (np.float32(1.0) / weights.sum(axis=1, keepdims=True))
    return rows
