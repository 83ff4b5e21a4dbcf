"""The INT8 contract applied to a checkpoint: smoothing and weight codes chosen on calibration texts.

Smoothing moves the outliers of an input channel into the weights (SmoothQuant, arXiv 2211.10438, section 4); codes are
chosen by second-order rounding (GPTQ, arXiv 2210.17323, sections 3 and 4) or as the nearest ones, whichever gives the
smaller output error. Layers are taken in order, each fed what the quantized layers before it give.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from edgebert import quant
from edgebert.artifact.names import LINEAR_NAMES, linear_name, weight_tensors
from edgebert.artifact.spec import LINEARS, EncoderSpec
from edgebert.backends import numpy_ops
from edgebert.backends.encoder_loop import Capture, Tensors, embed, run_layer
from edgebert.batch import PackedBatch
from edgebert.errors import InvalidInputError, UnsupportedModelError
from edgebert.quant import F32, S8

Array = NDArray[Any]

SMOOTHING_LIMIT = 32.0  # smoothing factors stay in [1/32, 32]: a channel that calibration hardly sees must not explode
DAMPING = 0.1  # of the mean of the Hessian's diagonal; more than the paper's 0.01, for few calibration tokens
_BLOCK = 64  # inputs whose updates stay local before the rest of the weight is updated


class _Candidate(NamedTuple):
    """One way to quantize a linear, and its output's error on the calibration tokens relative to the output."""

    error: float
    rounding: str
    codes: S8
    scale: F32
    inv_smooth: F32 | None


def quantize(
    spec: EncoderSpec,
    tensors: Mapping[str, F32],
    batches: Sequence[PackedBatch],
    portable: bool = False,
    keep_f32: Collection[str] = (),
    smooth: Mapping[str, F32] | None = None,
) -> tuple[EncoderSpec, dict[str, Array], dict[str, Any]]:
    """Quantize the four linears of every layer and the embedding tables; the same input gives the same bits.

    Pooler and heads stay f32, except the tied MLM decoder, which reads the word table's codes.

    Args:
        spec: of an f32 model; its attention_dtype may be s8 already.
        tensors: its canonical f32 tensors; they are not changed.
        batches: calibration batches, at least one token in all. A few thousand tokens of ordinary text are enough.
        portable: keep the codes of every integer product in +-63 instead of +-127.
        keep_f32: linears that stay f32, by canonical name, for instance "layer.3.ffn.down".
        smooth: smoothing factors f32 [K] by linear, where the weights were trained with these (`settle_smoothing`) and
            with the nearest codes, which they then get; None chooses both.

    Returns:
        (spec, canonical tensors, report). The report names per linear the rounding, whether its input is smoothed, and
        the relative error of its output on the calibration tokens, root mean square.

    Raises:
        InvalidInputError: no calibration tokens, or `keep_f32` names what is no linear of the layers.
        UnsupportedModelError: the model is quantized already.
    """
    if spec.replace(attention_dtype="f32").is_int8:
        raise UnsupportedModelError("the model is int8 already: quantize the f32 checkpoint")
    batches = [batch for batch in batches if batch.num_sequences]
    if not batches:
        raise InvalidInputError("calibration has no tokens: give at least one text")
    names = [linear_name(i, name) for i in range(spec.num_layers) for name in LINEARS]
    if unknown := sorted(set(keep_f32) - set(names)):
        raise InvalidInputError(f"there is no linear {unknown[0]} to keep in f32: give names like layer.0.ffn.down")
    limit = quant.PORTABLE_WEIGHT_LIMIT if portable else quant.WEIGHT_LIMIT
    new: dict[str, Array] = dict(tensors)
    for name in [name for name in tensors if name.startswith("embeddings.") and name.count(".") == 2]:
        table, _, part = name.removeprefix("embeddings.").partition(".")
        if part == "weight" and table not in ("layer_norm", "projection"):
            # the word table is also the weight of the tied decoder's integer product
            table_limit = limit if table == "word" and spec.has_decoder else quant.WEIGHT_LIMIT
            new[name], new[f"embeddings.{table}.scale"] = quant.quantize_table(tensors[name], table_limit)
    if spec.has_decoder:
        new["mlm.colsum"] = quant.column_sums(new["embeddings.word.weight"].T)

    spec = spec.replace(embedding_dtype="s8", portable=portable)
    hidden_states = [embed(numpy_ops, spec, new, batch) for batch in batches]
    linears: dict[str, dict[str, Any]] = {}
    for i in range(spec.num_layers):
        inputs = _capture_inputs(spec, new, i, batches, hidden_states)
        chosen = _quantize_layer(new, i, inputs, limit, keep_f32, smooth)
        linears |= {
            linear_name(i, name): {
                "rounding": best.rounding,
                "smoothed": best.inv_smooth is not None,
                "error": float(f"{best.error:.3g}"),
            }
            for name, best in chosen.items()
        }
        smoothed = tuple(name for name, best in chosen.items() if best.inv_smooth is not None)
        dtypes: dict[str, Any] = dict.fromkeys(chosen, "s8")
        layer = replace(spec.layers[i], smoothed=smoothed, **dtypes)
        spec = spec.replace(layers=(*spec.layers[:i], layer, *spec.layers[i + 1 :]))
        if i + 1 < spec.num_layers:
            hidden_states = _run_layer(spec, new, i, batches, hidden_states)
    report = {"calibration_tokens": sum(batch.total_tokens for batch in batches), "linears": linears}
    return spec, new, report


def dequantize(spec: EncoderSpec, tensors: Mapping[str, Array]) -> tuple[EncoderSpec, dict[str, Array]]:
    """The f32 model that an int8 model's weights stand for: what its weight-only graph computes.

    Args:
        spec: of an int8 model.
        tensors: its canonical tensors.

    Returns:
        (spec, canonical f32 tensors).
    """
    new = dict(tensors)
    for name in [name for name in tensors if name.endswith(".scale")]:
        prefix = name.removesuffix(".scale")
        scale = tensors[name][:, None] if prefix.startswith("embeddings.") else tensors[name]
        weight = tensors[f"{prefix}.weight"] * scale
        inv_smooth = tensors.get(f"{prefix}.inv_smooth")
        new[f"{prefix}.weight"] = weight if inv_smooth is None else weight * inv_smooth[:, None]
    dtypes: dict[str, Any] = dict.fromkeys(LINEARS, "f32")
    spec = spec.replace(
        embedding_dtype="f32",
        attention_dtype="f32",
        portable=False,
        is_weight_only=False,
        layers=tuple(replace(layer, smoothed=(), **dtypes) for layer in spec.layers),
    )
    return spec, {name: new[name] for name in weight_tensors(spec)}


def settle_smoothing(
    spec: EncoderSpec, tensors: Mapping[str, F32], batches: Sequence[PackedBatch]
) -> tuple[dict[str, F32], dict[str, F32]]:
    """Fix the smoothing before quantization-aware training: fold the attention output's, choose the others' factors.

    Args:
        spec, tensors, batches: as of `quantize`.

    Returns:
        (canonical f32 tensors of the same function, factors f32 [K] of every qkv and ffn_up by canonical name).
    """
    new: dict[str, Array] = dict(tensors)
    smooth: dict[str, F32] = {}
    hidden_states = [embed(numpy_ops, spec, new, batch) for batch in batches]
    for i in range(spec.num_layers):
        inputs = _capture_inputs(spec, new, i, batches, hidden_states)
        if "attention_output" in inputs:
            _fold_into_values(new, i, inputs["attention_output"])
        for name in sorted({"qkv", "ffn_up"} & inputs.keys()):
            prefix = linear_name(i, name)
            smooth[prefix] = smoothing_factors(inputs[name], new[f"{prefix}.weight"])
        hidden_states = _run_layer(spec, new, i, batches, hidden_states)
    return new, smooth


# Running one layer of the oracle


def _run_layer(
    spec: EncoderSpec,
    tensors: Tensors,
    i: int,
    batches: Sequence[PackedBatch],
    hidden_states: Sequence[F32],
    capture: Capture | None = None,
) -> list[F32]:
    """Layer i alone, as often as it repeats, on the hidden states f32 [tokens, hidden_size] of each batch."""
    hidden_states = list(hidden_states)
    for _ in range(spec.layers[i].repeats):
        pairs = zip(batches, hidden_states, strict=True)
        hidden_states = [run_layer(numpy_ops, spec, tensors, i, batch, x, capture) for batch, x in pairs]
    return hidden_states


def _capture_inputs(
    spec: EncoderSpec, tensors: Tensors, i: int, batches: Sequence[PackedBatch], hidden_states: Sequence[F32]
) -> dict[str, F32]:
    """Inputs of layer i's linears, f32 [tokens, K] each, over all batches."""
    parts: dict[str, list[F32]] = {}
    names = {linear_name(i, name): name for name in LINEARS}
    _run_layer(spec, tensors, i, batches, hidden_states, lambda name, x: parts.setdefault(names[name], []).append(x))
    return {name: np.concatenate(values) for name, values in parts.items()}


# Choosing codes


def _quantize_layer(
    tensors: dict[str, Array],
    i: int,
    inputs: dict[str, F32],
    limit: int,
    keep_f32: Collection[str],
    smooth: Mapping[str, F32] | None,
) -> dict[str, _Candidate]:
    """Replace the layer's f32 linears by their best codes; `inputs` are the f32 inputs of each, [tokens, K]."""
    if smooth is None and "attention_output" in inputs:
        inputs["attention_output"] = _fold_into_values(tensors, i, inputs["attention_output"])
    chosen = {}
    for name, x in inputs.items():
        prefix = linear_name(i, name)
        if prefix in keep_f32:
            continue
        weight = tensors[f"{prefix}.weight"]
        if smooth is not None:
            best = _candidates(x, weight, smooth.get(prefix), limit)[0]
        else:
            # the attention output's smoothing is folded; only for ffn_down is it open whether smoothing helps
            smoothings = {"attention_output": (False,), "ffn_down": (False, True)}.get(name, (True,))
            factors = [smoothing_factors(x, weight) if is_smoothed else None for is_smoothed in smoothings]
            candidates = [c for factor in factors for c in _candidates(x, weight, factor, limit)]
            best = min(candidates, key=lambda candidate: candidate.error)
        chosen[name] = best
        tensors[f"{prefix}.weight"], tensors[f"{prefix}.scale"] = best.codes, best.scale
        tensors[f"{prefix}.colsum"] = quant.column_sums(best.codes)
        if best.inv_smooth is not None:
            tensors[f"{prefix}.inv_smooth"] = best.inv_smooth
    return chosen


def _fold_into_values(tensors: dict[str, Array], i: int, context: F32) -> F32:
    """Smooth the attention output's input for free: V's columns and bias divided, the weight's rows multiplied.

    Attention mixes tokens, never channels, so its output `context` f32 [tokens, attention_size] divides likewise.
    """
    qkv, output = (f"layer.{i}.{LINEAR_NAMES[name]}" for name in ("qkv", "attention_output"))
    smooth = smoothing_factors(context, tensors[f"{output}.weight"])
    divide = np.concatenate([np.ones(2 * len(smooth), np.float32), smooth])
    tensors[f"{qkv}.weight"] = tensors[f"{qkv}.weight"] / divide
    tensors[f"{qkv}.bias"] = tensors[f"{qkv}.bias"] / divide
    tensors[f"{output}.weight"] = tensors[f"{output}.weight"] * smooth[:, None]
    return context / smooth


def smoothing_factors(x: F32, weight: F32) -> F32:
    """smooth[k] = sqrt(absmax_x[k] / absmax_w[k]), normalised to mean 1: SmoothQuant's equation 4 with alpha 0.5.

    Of 0.35, 0.5, 0.65 and 0.8, 0.5 keeps all-MiniLM-L6-v2 closest to fp32 on the STS-B development sentences; choosing
    the exponent linear by linear, by the output's error, is no better.

    Args:
        x: f32 [tokens, K].
        weight: f32 [K, N].

    Returns:
        f32 [K], in [1 / SMOOTHING_LIMIT, SMOOTHING_LIMIT].
    """
    largest_x, largest_w = np.abs(x).max(axis=0), np.abs(weight).max(axis=1)
    usable = (largest_x > 0) & (largest_w > 0)
    smooth = np.ones(len(weight), np.float32)
    if usable.any():
        smooth[usable] = np.sqrt(largest_x[usable] / largest_w[usable])
        smooth[usable] /= smooth[usable].mean()
    return np.clip(smooth, np.float32(1 / SMOOTHING_LIMIT), np.float32(SMOOTHING_LIMIT))


def _candidates(x: F32, weight: F32, smooth: F32 | None, limit: int) -> list[_Candidate]:
    """The linear with nearest and with GPTQ's codes, and how far each output is from x @ weight."""
    target = x @ weight
    inv_smooth = None
    if smooth is not None:
        inv_smooth = np.float32(1.0) / smooth
        weight = weight * smooth[:, None]
    q, a_scale, zn = quant.quantize_rows(x, inv_smooth)
    seen = (q + zn[:, None]) * a_scale[:, None]  # what the integer product sees of x
    scale = quant.weight_scale(weight, limit)
    roundings = {"nearest": quant.round_weight(weight, scale, limit), "gptq": gptq(weight, seen, scale, limit)}
    size = float(np.linalg.norm(target)) or 1.0
    return [
        _Candidate(float(np.linalg.norm(seen @ (codes * scale) - target)) / size, rounding, codes, scale, inv_smooth)
        for rounding, codes in roundings.items()
    ]


def gptq(weight: F32, x: F32, scale: F32, limit: int = quant.WEIGHT_LIMIT) -> S8:
    """Codes of a weight by second-order rounding: inputs in turn, each one's error spread over those still open.

    GPTQ (arXiv 2210.17323), algorithm 1, for symmetric per-channel codes; inputs with the largest second moment first.

    Args:
        weight: f32 [K, N].
        x: f32 [tokens, K], inputs of the linear as the integer product sees them.
        scale: f32 [N], of the codes.
        limit: the codes' largest absolute value.

    Returns:
        s8 [K, N].
    """
    hessian = (x.T @ x).astype(np.float64)
    diagonal = hessian.diagonal()
    hessian += np.eye(len(hessian)) * (DAMPING * float(diagonal.mean()) or 1.0)
    order = np.argsort(-diagonal, kind="stable")
    inverse = np.linalg.inv(hessian[np.ix_(order, order)])
    upper = np.linalg.cholesky(inverse).T.astype(np.float32)  # inverse = upper.T @ upper
    open_weight = weight[order]
    codes = np.empty(weight.shape, np.int8)
    for first in range(0, len(weight), _BLOCK):
        block = open_weight[first : first + _BLOCK]
        last = first + len(block)
        corner = upper[first:last, first:last]
        errors = np.empty_like(block)
        for k, row in enumerate(block):
            rounded = np.clip(np.rint(row / scale), -limit, limit)
            codes[order[first + k]] = rounded
            errors[k] = (row - rounded * scale) / corner[k, k]
            block[k + 1 :] -= corner[k, k + 1 :, None] * errors[k]
        open_weight[last:] -= upper[first:last, last:].T @ errors
    return codes
