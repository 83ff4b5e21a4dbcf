"""quant.py against the contract spelled out one number at a time."""

from __future__ import annotations

import math

import numpy as np
import pytest
from numpy.typing import NDArray

from edgebert import quant
from edgebert.artifact.spec import MAX_INNER_SIZE

F32 = NDArray[np.float32]


def rows_of(kind: str) -> F32:
    """Rows [9, 33] of one awkward kind."""
    x = np.random.default_rng(3).standard_normal((9, 33)).astype(np.float32)
    if kind == "zeros":
        x[:] = 0.0
    elif kind == "all equal":
        x[:] = np.arange(-4, 5, dtype=np.float32)[:, None]
    elif kind == "one huge":
        x[4, 7], x[5, 8] = 3e8, -3e8
    elif kind == "tiny":
        x *= np.float32(1e-20)
    elif kind == "positive":
        x = np.abs(x)
    elif kind == "negative":
        x = -np.abs(x)
    elif kind == "ties":  # a range of exactly 255, so that every half is a tie
        x = np.round(x * 20) + np.float32(0.5)
        x[:, 0], x[:, 1] = -100.0, 155.0
    return x


KINDS = ("normal", "zeros", "all equal", "one huge", "tiny", "positive", "negative", "ties")


def quantize_one_row(row: F32) -> tuple[list[int], np.float32, np.float32]:
    """The contract for one row in scalars; every operation is rounded to float32."""
    f32 = np.float32
    lo, hi = min(f32(row.min()), f32(-1e-12)), max(f32(row.max()), f32(0))
    a_scale, r = f32(f32(hi - lo) / f32(255)), f32(f32(255) / f32(hi - lo))
    zn = f32(round(float(f32(lo * r))))  # Python's round goes to even at a half
    codes = [min(max(round(float(f32(f32(value * r) - zn))), 0), 255) for value in row]
    return codes, a_scale, zn


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("is_smoothed", [False, True])
def test_rows_become_codes_as_written(kind: str, is_smoothed: bool) -> None:
    x = rows_of(kind)
    inv_smooth = np.random.default_rng(4).uniform(0.5, 2.0, 33).astype(np.float32) if is_smoothed else None
    q, a_scale, zn = quant.quantize_rows(x, inv_smooth)
    smoothed = x if inv_smooth is None else x * inv_smooth
    for i, row in enumerate(smoothed):
        codes, scale, zero = quantize_one_row(row)
        assert q[i].tolist() == codes
        assert (a_scale[i], zn[i]) == (scale, zero)
    assert q.dtype == np.uint8
    assert zn.min() >= -255
    assert zn.max() <= 0


@pytest.mark.parametrize("kind", KINDS)
def test_codes_are_within_half_a_step(kind: str) -> None:
    x = rows_of(kind)
    q, a_scale, zn = quant.quantize_rows(x)
    seen = (q.astype(np.float64) + zn[:, None]) * a_scale[:, None]
    # half a step for the code, half a step for the zero point, and the roundings of the product
    assert np.all(np.abs(seen - x) <= a_scale[:, None] * 1.001)
    assert np.all(seen[x == 0] == 0)  # zero is exact


def test_a_row_does_not_see_the_others() -> None:
    x = rows_of("one huge")
    together = quant.quantize_rows(x)
    for i in range(len(x)):
        for whole, alone in zip(together, quant.quantize_rows(x[i : i + 1]), strict=True):
            assert np.array_equal(whole[i], alone[0])


@pytest.mark.parametrize("size", [1, 33, 1537])
def test_linear_sums_are_exact(size: int) -> None:
    rng = np.random.default_rng(size)
    q = rng.integers(0, 256, (5, size)).astype(np.uint8)
    weight = rng.integers(-127, 128, (size, 7)).astype(np.int8)
    q[0], weight[:, 0], weight[:, 1] = 255, 127, -127
    a_scale, w_scale, bias = (rng.uniform(0.001, 1.0, n).astype(np.float32) for n in (5, 7, 7))
    zn = -rng.integers(0, 256, 5).astype(np.float32)
    colsum = quant.column_sums(weight)
    assert colsum.dtype == np.int32
    y = quant.linear_u8s8_f32(q, a_scale, zn, weight, w_scale, colsum, bias)
    for i in range(5):
        for j in range(7):
            acc = sum(int(a) * int(w) for a, w in zip(q[i], weight[:, j], strict=True)) + int(zn[i]) * int(colsum[j])
            product = np.float32(np.float32(np.float32(acc) * w_scale[j]) * a_scale[i])
            assert y[i, j] == np.float32(product + bias[j])


def test_sums_fit_s32_at_the_largest_inner_size() -> None:
    assert MAX_INNER_SIZE * 255 * 127 < 2**31
    q = np.full((1, MAX_INNER_SIZE), 255, np.uint8)
    weight = np.full((MAX_INNER_SIZE, 1), -127, np.int8)
    one, zero = np.ones(1, np.float32), np.zeros(1, np.float32)
    y = quant.linear_u8s8_f32(q, one, zero, weight, one, quant.column_sums(weight), zero)
    assert y[0, 0] == np.float32(-MAX_INNER_SIZE * 255 * 127)


@pytest.mark.parametrize("limit", [quant.WEIGHT_LIMIT, quant.PORTABLE_WEIGHT_LIMIT])
def test_weights_become_codes(limit: int) -> None:
    weight = np.random.default_rng(5).standard_normal((40, 6)).astype(np.float32)
    weight[:, 2], weight[:, 3] = 0.0, -np.abs(weight[:, 3])
    scale = quant.weight_scale(weight, limit)
    codes = quant.round_weight(weight, scale, limit)
    assert codes.dtype == np.int8
    assert np.abs(codes.astype(int)).max(axis=0).tolist() == [limit, limit, 0, limit, limit, limit]  # never -128
    assert scale[2] == 1.0
    assert np.all(np.abs(codes * scale - weight) <= scale * 0.5001)


def test_weights_round_half_to_even() -> None:
    weight = np.array([[127.0], [0.5], [1.5], [-2.5], [-126.5]], np.float32)
    assert quant.round_weight(weight, quant.weight_scale(weight)).ravel().tolist() == [127, 0, 2, -2, -126]


def test_portable_pairs_cannot_saturate_16_bits() -> None:
    assert 2 * 255 * quant.PORTABLE_WEIGHT_LIMIT < 2**15 < 2 * 255 * (quant.PORTABLE_WEIGHT_LIMIT + 2)


def test_tables_have_a_scale_a_row() -> None:
    table = np.random.default_rng(6).standard_normal((11, 24)).astype(np.float32)
    table[3] *= 1000
    table[4] = 0
    codes, scale = quant.quantize_table(table)
    assert (codes.shape, scale.shape, codes.flags.c_contiguous) == ((11, 24), (11,), True)
    assert np.all(np.abs(codes * scale[:, None] - table) <= scale[:, None] * 0.5001)
    assert np.abs(quant.quantize_table(table, quant.PORTABLE_WEIGHT_LIMIT)[0]).max() == quant.PORTABLE_WEIGHT_LIMIT


@pytest.mark.parametrize("length", [1, 2, 65])
def test_int8_attention_as_written(length: int) -> None:
    """`attention_u8s8_f32` against the same in integers and scalars."""
    rng = np.random.default_rng(length)
    query, key, value = (rng.standard_normal((length, 5)).astype(np.float32) for _ in range(3))
    value[:, 2] = 0.0
    f32, limit = np.float32, np.float32(127)

    def symmetric(x: F32) -> tuple[list[int], np.float32]:
        top = max(f32(np.abs(x).max()), f32(1e-12))
        return [round(float(f32(a * f32(limit / top)))) for a in x], f32(top / limit)

    queries, keys, values = ([symmetric(row) for row in x] for x in (query, key, value.T))
    root = f32(1.0 / math.sqrt(5))
    got = quant.attention_u8s8_f32(query, key, value)
    for i, (q_codes, q_scale) in enumerate(queries):
        dots = [sum(a * b for a, b in zip(q_codes, codes, strict=True)) for codes, _ in keys]
        scores = [f32(f32(f32(f32(d) * s) * q_scale) * root) for d, (_, s) in zip(dots, keys, strict=True)]
        weights = [round(float(f32(np.exp(f32(s - max(scores))) * f32(255)))) for s in scores]
        assert max(weights) == 255
        for j, (v_codes, v_scale) in enumerate(values):
            total = f32(sum(w * v for w, v in zip(weights, v_codes, strict=True)))
            expected = f32(f32(total * v_scale) * f32(f32(1) / f32(sum(weights))))
            assert abs(got[i, j] - expected) <= 1e-6 * float(np.abs(value).max())
