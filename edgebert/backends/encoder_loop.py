"""The encoder's layer loop, written once over a set of ops (`numpy_ops` is the oracle's)."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import cache
from typing import Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from edgebert.artifact.names import linear_name, position_bias_name
from edgebert.artifact.spec import EncoderSpec, Step
from edgebert.batch import I32, PackedBatch
from edgebert.errors import UnsupportedModelError
from edgebert.quant import F32, S8, S32, U8

Tensors = Mapping[str, NDArray[Any]]
Capture = Callable[[str, F32], None]
QuantizedRows = tuple[U8, F32, F32]  # codes, a_scale, zn: see quant.quantize_rows


class Linear(NamedTuple):
    """One linear's tensors: y = x @ weight + bias; `scale` and `colsum` belong to an s8 weight."""

    weight: F32 | S8  # [K, N]
    bias: F32  # [N]
    scale: F32 | None = None  # [N]
    colsum: S32 | None = None  # [N]
    inv_smooth: F32 | None = None  # [K]


class Table(NamedTuple):
    """One embedding table: f32 rows, or s8 rows with one scale a row."""

    weight: F32 | S8  # [rows, width]
    scale: F32 | None = None  # [rows]


class LayerNorm(NamedTuple):
    """Weight and bias, f32 [width] each, and epsilon of a LayerNorm."""

    weight: F32
    bias: F32
    eps: float


class EncoderOps(Protocol):
    """The op names a backend of this loop provides; formulas are in `numpy_ops`."""

    def embed_layernorm(self, lookups: Sequence[tuple[Table, I32]], norm: LayerNorm) -> F32:
        """LayerNorm of the sum of the looked-up rows, added in the order given."""

    def quantize_rows(self, x: F32, inv_smooth: F32 | None) -> QuantizedRows:
        """Codes, scale and negated zero point of each row."""

    def linear(
        self, x: F32 | QuantizedRows, linear: Linear, activation: str = "identity", residual: F32 | None = None
    ) -> F32:
        """activation(x @ weight + bias) + residual; x holds codes where the weight is s8."""

    def attention_varlen(self, qkv: F32, cu_seqlens: I32, num_heads: int, position_bias: F32 | None) -> F32:
        """Self-attention inside each sequence, with a bias of the scores by distance if there is one."""

    def attention_varlen_u8s8(self, qkv: F32, cu_seqlens: I32, num_heads: int, position_bias: F32 | None) -> F32:
        """The same with both products in int8, for `attention_dtype` s8."""

    def add_layernorm(self, x: F32, residual: F32 | None, norm: LayerNorm) -> F32:
        """LayerNorm of x + residual, rows or one row for all."""

    def pool(self, x: F32, cu_seqlens: I32, pooling: str) -> F32:
        """One row a sequence."""

    def normalize(self, x: F32) -> F32:
        """Rows divided by their Euclidean norm."""

    def column(self, x: F32, index: int) -> F32:
        """One column of x."""


def run_encoder(
    ops: EncoderOps,
    spec: EncoderSpec,
    tensors: Tensors,
    batch: PackedBatch,
    outputs: Sequence[str],
    capture: Capture | None = None,
) -> dict[str, F32]:
    """Run a packed batch of at least one sequence through the encoder and the heads that `outputs` need.

    Args:
        ops: the op functions, for instance the module `numpy_ops`.
        spec: the model's spec.
        tensors: weights by canonical name, exactly those of `names.weight_tensors(spec)`.
        batch: ids and lengths, already checked against the spec.
        outputs: names out of `spec.outputs`.
        capture: if given, called with the name and the f32 input [total_tokens, K] of each linear of each layer.

    Returns:
        name -> f32 array with the shapes of `Backend.run`.

    Raises:
        UnsupportedModelError: the file asks for an attention dtype other than f32 and s8.
    """
    if spec.attention_dtype not in ("f32", "s8"):
        raise UnsupportedModelError(
            f"attention_dtype {spec.attention_dtype!r} is not supported, only 'f32' and 's8': re-export the model"
        )

    def norm(prefix: str) -> LayerNorm:
        return LayerNorm(tensors[f"{prefix}.weight"], tensors[f"{prefix}.bias"], spec.layer_norm_eps)

    def table(name: str) -> Table:
        return Table(tensors[f"embeddings.{name}.weight"], tensors.get(f"embeddings.{name}.scale"))

    def apply(x: F32, linear: Linear, activation: str = "identity", residual: F32 | None = None) -> F32:
        rows = x if linear.scale is None else ops.quantize_rows(x, linear.inv_smooth)
        return ops.linear(rows, linear, activation, residual)

    def linear(prefix: str, x: F32, activation: str = "identity", residual: F32 | None = None) -> F32:
        fields = {field: tensors.get(f"{prefix}.{field}") for field in Linear._fields}
        return apply(x, Linear(**fields), activation, residual)  # type: ignore[arg-type]

    def layer_linear(layer: int, name: str, x: F32, activation: str = "identity", residual: F32 | None = None) -> F32:
        prefix = linear_name(layer, name)
        if capture is not None:
            capture(prefix, x)
        return linear(prefix, x, activation, residual)

    attention = ops.attention_varlen_u8s8 if spec.attention_dtype == "s8" else ops.attention_varlen
    lookups = [(table("word"), batch.input_ids)]
    if spec.num_token_types:
        types = batch.token_type_ids if spec.has_token_types else np.zeros_like(batch.token_type_ids)
        lookups.append((table("token_type"), types))
    lookups.append((table("position"), batch.position_ids(spec.position_offset, spec.position_padding_id)))
    x = ops.embed_layernorm(lookups, norm("embeddings.layer_norm"))
    if spec.embedding_size != spec.hidden_size:
        x = linear("embeddings.projection", x)

    for i in spec.layer_order:
        layer = spec.layers[i]
        # a pruned-away sub-block leaves its bias
        bias: F32 | None = None
        if layer.num_heads:
            qkv = layer_linear(i, "qkv", x)
            context = attention(qkv, batch.cu_seqlens, layer.num_heads, tensors.get(position_bias_name(i)))
            x = layer_linear(i, "attention_output", context, residual=x)
        else:
            bias = tensors[f"layer.{i}.attention.output.bias"]
        x = ops.add_layernorm(x, bias, norm(f"layer.{i}.attention.layer_norm"))
        bias = None
        if layer.intermediate_size:
            inner = layer_linear(i, "ffn_up", x, activation=spec.activation)
            x = layer_linear(i, "ffn_down", inner, residual=x)
        else:
            bias = tensors[f"layer.{i}.ffn.down.bias"]
        x = ops.add_layernorm(x, bias, norm(f"layer.{i}.ffn.layer_norm"))

    @cache
    def after(steps: tuple[Step, ...]) -> F32:
        """The rows after these steps of a head; what heads have in common is computed once."""
        if not steps:
            return x
        rows, step = after(steps[:-1]), steps[-1]
        if step.op == "pool":
            return ops.pool(rows, batch.cu_seqlens, step.kind)
        if step.op == "layer_norm":
            return ops.add_layernorm(rows, None, norm(step.weights))
        if step.op == "decoder":
            word, bias = table("word"), tensors[f"{step.weights}.bias"]
            return apply(rows, Linear(word.weight.T, bias, word.scale, tensors.get(f"{step.weights}.colsum")))
        if step.op == "normalize":
            return ops.normalize(rows)
        if step.op == "column":
            return ops.column(rows, step.column)
        return linear(step.weights, rows, step.kind)

    steps = {head.name: head.steps for head in spec.heads}
    return {name: after(steps[name]) for name in outputs}
