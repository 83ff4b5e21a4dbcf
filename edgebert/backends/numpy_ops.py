"""The oracle: every op of the encoder in the shortest correct float32 NumPy."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence

import numpy as np

from edgebert.artifact.spec import rotary_frequencies
from edgebert.backends.encoder_loop import LayerNorm, Linear, PositionBias, PositionTables, QuantizedRows, Table
from edgebert.batch import I32
from edgebert.quant import F32, attention_u8s8_f32, linear_u8s8_f32, mask_window, quantize_rows

__all__ = [
    "add_layernorm",
    "add_row",
    "attention_varlen",
    "attention_varlen_u8s8",
    "column",
    "embed_layernorm",
    "gate",
    "linear",
    "log1p_relu",
    "normalize",
    "pool",
    "quantize_rows",
    "rotate",
]


def embed_layernorm(lookups: Sequence[tuple[Table, I32]], norm: LayerNorm) -> F32:
    """LayerNorm of the sum of the looked-up rows, added in the order given: (word + type) + position.

    Args:
        lookups: (table, int32 [tokens]) pairs; a row of an s8 table is code * scale.
        norm: of the tables' width.

    Returns:
        f32 [tokens, width].
    """
    total: F32 | None = None
    for table, ids in lookups:
        rows = table.weight[ids].astype(np.float32)
        if table.scale is not None:
            rows = rows * table.scale[ids][:, None]
        total = rows if total is None else total + rows
    assert total is not None
    return add_layernorm(total, None, norm)


def linear(x: F32 | QuantizedRows, linear: Linear, activation: str = "identity", residual: F32 | None = None) -> F32:
    """activation(x @ weight + bias) + residual; for an s8 weight x is `quantize_rows`' triple (see quant.py).

    Args:
        x: f32 [tokens, K], or (u8 [tokens, K], f32 [tokens], f32 [tokens]).
        linear: tensors of the linear [K, N].
        activation: one of spec.ACTIVATIONS.
        residual: f32 [tokens, N] or None.

    Returns:
        f32 [tokens, N].
    """
    if isinstance(x, tuple):
        assert linear.scale is not None and linear.colsum is not None
        y = linear_u8s8_f32(*x, linear.weight, linear.scale, linear.colsum, linear.bias)  # type: ignore[arg-type]
    else:
        y = x @ linear.weight + linear.bias
    y = activate(y, activation)
    return y if residual is None else y + residual


def activate(x: F32, activation: str) -> F32:
    """The activation of that name, element by element.

    gelu_erf: x/2 * (1 + erf(x/sqrt 2)); gelu_tanh: x/2 * (1 + tanh(sqrt(2/pi) * (x + 0.044715 x^3)))
    silu: x / (1 + exp(-x)) (Hendrycks and Gimpel, arXiv 1606.08415).
    """
    one, half = np.float32(1.0), np.float32(0.5)
    if activation == "gelu_erf":
        scaled = x * np.float32(math.sqrt(0.5))
        erf = np.fromiter(map(math.erf, scaled.ravel().tolist()), np.float32, x.size).reshape(x.shape)
        return half * x * (one + erf)
    if activation == "gelu_tanh":
        tanh: F32 = np.tanh(np.float32(math.sqrt(2.0 / math.pi)) * (x + np.float32(0.044715) * x * x * x))
        return half * x * (one + tanh)
    if activation == "relu":
        return np.maximum(x, np.float32(0.0))
    if activation == "silu":
        with np.errstate(over="ignore"):  # infinity gives the right 0
            return np.divide(x, one + np.exp(-x), dtype=np.float32)
    return np.tanh(x) if activation == "tanh" else x


def gate(x: F32, activation: str) -> F32:
    """activation(first half) * second half of each row (arXiv 2002.05202). f32 [tokens, 2 N] -> [tokens, N]."""
    first, second = np.split(x, 2, axis=1)
    return activate(first, activation) * second


def rotary_table(length: int, head_dim: int, base: float) -> tuple[F32, F32]:
    """Cosines and sines of the angles by which positions turn the pairs of a head, f32 [length, head_dim / 2] each.

    The angle of position t and pair j is the f32 product of t and `rotary_frequencies(head_dim, base)[j]`.
    """
    angles = np.arange(length, dtype=np.float32)[:, None] * rotary_frequencies(head_dim, base)
    angles = angles.astype(np.float64)
    return np.cos(angles).astype(np.float32), np.sin(angles).astype(np.float32)


def rotate(qkv: F32, cu_seqlens: I32, num_heads: int, base: float) -> F32:
    """Queries and keys turned by their positions: (a, b) becomes (a cos - b sin, b cos + a sin).

    Column j of the first half of a head makes a pair with column j of the second half.

    Args:
        qkv: f32 [tokens, 3 * num_heads * head_dim]: all heads' queries, then keys, then values.
        cu_seqlens: int32 [n + 1].
        num_heads: heads of this layer.
        base: as of `rotary_table`.

    Returns:
        f32, the same shape.
    """
    tokens, size = len(qkv), qkv.shape[1] // 3
    half = size // num_heads // 2
    lengths = np.diff(cu_seqlens)
    positions = np.concatenate([np.arange(length) for length in lengths])
    cos, sin = (table[positions][:, None] for table in rotary_table(int(lengths.max()), 2 * half, base))
    a, b = np.split(qkv[:, : 2 * size].reshape(tokens, 2 * num_heads, 2 * half), 2, axis=2)
    turned = np.concatenate([a * cos - b * sin, b * cos + a * sin], axis=2)
    return np.hstack([turned.reshape(tokens, 2 * size), qkv[:, 2 * size :]])


def attention_varlen(
    qkv: F32,
    cu_seqlens: I32,
    num_heads: int,
    position_bias: PositionBias | None = None,
    window: int = 0,
    num_keys: I32 | None = None,
) -> F32:
    """softmax(Q Kᵀ / sqrt(head_dim) + bias) V of each sequence and head (Vaswani et al., arXiv 1706.03762, 3.2.1).

    Args:
        qkv: f32 [tokens, 3 * num_heads * head_dim]: all heads' queries, then keys, then values.
        cu_seqlens: int32 [n + 1].
        num_heads: heads of this layer.
        position_bias: of query i and key j the score gets one by the column d + (j - i), or the last on its side if
            they are farther apart. f32 [num_heads, 2 * d + 1]: that column (Raffel et al., arXiv 1910.10683, section
            2.1). Tables: (q_i keys[:, r] + k_j queries[:, r]) / sqrt(head_dim), r the column of `rows` (He et al.,
            arXiv 2006.03654, section 3.1). None: nothing.
        window: tokens on each side that a token attends to; 0: all.
        num_keys: int32 [n], of each sequence the tokens, from the first on, that are attended to; None: all.

    Returns:
        f32 [tokens, num_heads * head_dim].
    """
    return _attend(_attention_f32, qkv, cu_seqlens, num_heads, position_bias, window, num_keys)


def attention_varlen_u8s8(
    qkv: F32,
    cu_seqlens: I32,
    num_heads: int,
    position_bias: PositionBias | None = None,
    window: int = 0,
    num_keys: I32 | None = None,
) -> F32:
    """`attention_varlen` with `quant.attention_u8s8_f32` for each sequence and head; the same shapes."""
    return _attend(attention_u8s8_f32, qkv, cu_seqlens, num_heads, position_bias, window, num_keys)


def attention_maps(
    qkv: F32, num_heads: int, position_bias: PositionBias | None, window: int, num_keys: I32 | None, dtype: str
) -> F32:
    """softmax(Q Kᵀ / sqrt(head_dim) + bias) of one sequence, f32 [num_heads, length, length].

    They are attention's output where the values are the identity's rows. Arguments are those of `attention_varlen`, and
    the attention's dtype, "f32" or "s8".
    """
    attention = attention_u8s8_f32 if dtype == "s8" else _attention_f32
    maps = np.zeros((num_heads, len(qkv), len(qkv)), np.float32)
    heads = iter(maps)

    def keep(query: F32, key: F32, value: F32, bias: F32 | None, window: int) -> F32:
        next(heads)[:, : len(key)] = attention(query, key, np.eye(len(key), dtype=np.float32), bias, window)
        return query  # of the shape of what attention gives, which nobody reads

    _attend(keep, qkv, np.array([0, len(qkv)], np.int32), num_heads, position_bias, window, num_keys)
    return maps


def _attention_f32(query: F32, key: F32, value: F32, bias: F32 | None, window: int) -> F32:
    scores = (query @ key.T) * np.float32(1.0 / math.sqrt(query.shape[1]))
    if bias is not None:
        scores = scores + bias
    scores = mask_window(scores, window)
    scores = np.exp(scores - scores.max(axis=1, keepdims=True))
    context: F32 = (scores / scores.sum(axis=1, keepdims=True)) @ value
    return context


def _attend(
    attention: Callable[[F32, F32, F32, F32 | None, int], F32],
    qkv: F32,
    cu_seqlens: I32,
    num_heads: int,
    position_bias: PositionBias | None,
    window: int,
    num_keys: I32 | None,
) -> F32:
    size = qkv.shape[1] // 3
    head_dim = size // num_heads
    context = np.empty((len(qkv), size), np.float32)
    for i, (first, last) in enumerate(itertools.pairwise(cu_seqlens)):
        count = last - first if num_keys is None else num_keys[i]
        for head in range(num_heads):
            query, key, value = (qkv[first:last, part * size + head * head_dim :][:, :head_dim] for part in range(3))
            bias = None if position_bias is None else _bias_by_distance(position_bias, head, query, key)[:, :count]
            key, value = key[:count], value[:count]
            context[first:last, head * head_dim :][:, :head_dim] = attention(query, key, value, bias, window)
    return context


def _bias_by_distance(bias: PositionBias, head: int, query: F32, key: F32) -> F32:
    """What a head's scores get by distance, f32 [length, length] of queries and keys."""
    columns = bias.rows if isinstance(bias, PositionTables) else np.arange(bias.shape[1])
    places, farthest = np.arange(len(query)), len(columns) // 2
    columns = columns[farthest + np.clip(places - places[:, None], -farthest, farthest)]
    scores: F32
    if not isinstance(bias, PositionTables):
        scores = bias[head, columns]
        return scores
    of_query = np.take_along_axis(query @ bias.keys[head], columns, axis=1)
    of_key = np.take_along_axis((key @ bias.queries[head]).T, columns, axis=0)
    scores = (of_query + of_key) * np.float32(1.0 / math.sqrt(query.shape[1]))
    return scores


def add_layernorm(x: F32, residual: F32 | None, norm: LayerNorm) -> F32:
    """LayerNorm of s = x + residual: (s - mean) / sqrt(variance + eps) * weight + bias (arXiv 1607.06450).

    Args:
        x: f32 [tokens, width].
        residual: f32 [tokens, width], or [width] for every row, or None where a linear's epilogue has added it.
        norm: weight and bias f32 [width], eps.

    Returns:
        f32 [tokens, width].
    """
    if residual is not None:
        x = x + residual
    centred = x - x.mean(axis=1, keepdims=True)
    variance = (centred * centred).mean(axis=1, keepdims=True)
    normed: F32 = centred / np.sqrt(variance + np.float32(norm.eps)) * norm.weight + norm.bias
    return normed


def add_row(x: F32, row: F32) -> F32:
    """`row` f32 [width] added to every row of f32 [tokens, width]."""
    return x + row


def pool(x: F32, cu_seqlens: I32, pooling: str) -> F32:
    """One row a sequence, of its tokens' rows.

    "cls" and "last" take one of them. "mean_sqrt_len" divides their sum by the square root of their number, and
    "weighted_mean" weighs them with 1, 2, 3 …, as sentence-transformers does (Muennighoff, arXiv 2202.08904).

    Args:
        x: f32 [tokens, width].
        cu_seqlens: int32 [n + 1].
        pooling: one of spec.POOLINGS or "sum", or k of them joined by "+".

    Returns:
        f32 [n, k * width], the poolings side by side.
    """
    rows = [[_POOLINGS[kind](x[a:b]) for kind in pooling.split("+")] for a, b in itertools.pairwise(cu_seqlens)]
    return np.stack([np.concatenate(parts) for parts in rows])


def _weighted_mean(rows: F32) -> F32:
    weights = np.arange(1, len(rows) + 1, dtype=np.float32)
    mean: F32 = (rows * weights[:, None]).sum(axis=0) / weights.sum()
    return mean


_POOLINGS: dict[str, Callable[[F32], F32]] = {
    "mean": lambda rows: rows.mean(axis=0),
    "cls": lambda rows: rows[0],
    "max": lambda rows: rows.max(axis=0),
    "mean_sqrt_len": lambda rows: rows.sum(axis=0) / np.sqrt(np.float32(len(rows))),
    "weighted_mean": _weighted_mean,
    "last": lambda rows: rows[-1],
    "sum": lambda rows: rows.sum(axis=0),
}


def log1p_relu(x: F32) -> F32:
    """log(1 + max(x, 0)), rounded to f32 once; the same shape."""
    return np.log1p(np.maximum(x, np.float32(0.0)).astype(np.float64)).astype(np.float32)


def normalize(x: F32) -> F32:
    """Rows divided by max(Euclidean norm, 1e-12). f32 [n, width] -> f32 [n, width]."""
    norm = np.sqrt((x * x).sum(axis=1, keepdims=True))
    unit: F32 = x / np.maximum(norm, np.float32(1e-12))
    return unit


def column(x: F32, index: int) -> F32:
    """Column `index` of f32 [tokens, width], f32 [tokens]."""
    return np.ascontiguousarray(x[:, index])
