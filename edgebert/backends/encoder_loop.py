"""The encoder's layer loop, written once over a set of ops (`numpy_ops` is the oracle's)."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import cache
from typing import Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from edgebert.artifact.names import linear_name, position_bias_name, position_table_names
from edgebert.artifact.spec import EncoderSpec, Head, Step
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


class PositionTables(NamedTuple):
    """What queries and keys are multiplied with for a bias of their scores by distance."""

    keys: F32  # for queries, [num_heads, head_dim, rows]
    queries: F32  # for keys, the same shape
    rows: I32  # of each distance from the farthest before on, [2 * d + 1], ascending


# f32 [num_heads, 2 * d + 1], or tables: see `numpy_ops.attention_varlen`
PositionBias = F32 | PositionTables


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

    def gate(self, x: F32, activation: str) -> F32:
        """activation(first half of each row) * second half."""

    def rotate(self, qkv: F32, cu_seqlens: I32, num_heads: int, base: float) -> F32:
        """Queries and keys turned by their positions."""

    def attention_varlen(
        self,
        qkv: F32,
        cu_seqlens: I32,
        num_heads: int,
        position_bias: PositionBias | None,
        window: int,
        num_keys: I32 | None = None,
    ) -> F32:
        """Self-attention inside each sequence, with a bias of the scores by distance if there is one.

        A token attends to `window` tokens on either side; 0: to all; of them to the first `num_keys` of its sequence.
        """

    def attention_varlen_u8s8(
        self,
        qkv: F32,
        cu_seqlens: I32,
        num_heads: int,
        position_bias: PositionBias | None,
        window: int,
        num_keys: I32 | None = None,
    ) -> F32:
        """The same with both products in int8, for `attention_dtype` s8."""

    def add_row(self, x: F32, row: F32) -> F32:
        """`row` added to every row of x."""

    def add_layernorm(self, x: F32, residual: F32 | None, norm: LayerNorm) -> F32:
        """LayerNorm of x + residual, rows or one row for all."""

    def pool(self, x: F32, cu_seqlens: I32, pooling: str) -> F32:
        """One row a sequence."""

    def normalize(self, x: F32) -> F32:
        """Rows divided by their Euclidean norm."""

    def log1p_relu(self, x: F32) -> F32:
        """log(1 + max(x, 0))."""

    def column(self, x: F32, index: int) -> F32:
        """One column of x."""


class _Tensors:
    """The weights of a file, as ops take them."""

    def __init__(self, ops: EncoderOps, spec: EncoderSpec, tensors: Tensors, capture: Capture | None = None) -> None:
        self._ops, self._spec, self._tensors, self._capture = ops, spec, tensors, capture

    def __getitem__(self, name: str) -> NDArray[Any]:
        return self._tensors[name]

    def norm(self, prefix: str) -> LayerNorm:
        return LayerNorm(self[f"{prefix}.weight"], self[f"{prefix}.bias"], self._spec.layer_norm_eps)

    def table(self, name: str) -> Table:
        return Table(self[f"embeddings.{name}.weight"], self._tensors.get(f"embeddings.{name}.scale"))

    def position_bias(self, layer: int) -> PositionBias | None:
        if not self._spec.distances_per_row:
            return self._tensors.get(position_bias_name(layer))
        keys, queries = (self[name] for name in position_table_names(layer))
        return PositionTables(keys, queries, self._spec.distance_rows)

    def decoder(self, prefix: str) -> Linear:
        word = self.table("word")
        colsum = self._tensors.get(f"{prefix}.colsum")
        return Linear(word.weight.T, self[f"{prefix}.bias"], word.scale, colsum)

    def apply(self, x: F32, linear: Linear, activation: str = "identity", residual: F32 | None = None) -> F32:
        rows = x if linear.scale is None else self._ops.quantize_rows(x, linear.inv_smooth)
        return self._ops.linear(rows, linear, activation, residual)

    def linear(self, prefix: str, x: F32, activation: str = "identity", residual: F32 | None = None) -> F32:
        fields = {field: self._tensors.get(f"{prefix}.{field}") for field in Linear._fields}
        return self.apply(x, Linear(**fields), activation, residual)  # type: ignore[arg-type]

    def layer_linear(
        self, layer: int, name: str, x: F32, activation: str = "identity", residual: F32 | None = None
    ) -> F32:
        prefix = linear_name(layer, name)
        if self._capture is not None:
            self._capture(prefix, x)
        return self.linear(prefix, x, activation, residual)


def embed(ops: EncoderOps, spec: EncoderSpec, tensors: Tensors, batch: PackedBatch) -> F32:
    """The input of the first layer, f32 [total_tokens, hidden_size]."""
    weights = _Tensors(ops, spec, tensors)
    lookups = [(weights.table("word"), batch.input_ids)]
    if spec.num_token_types:
        types = batch.token_type_ids if spec.has_token_types else np.zeros_like(batch.token_type_ids)
        lookups.append((weights.table("token_type"), types))
    if spec.has_position_table:
        position_ids = batch.position_ids(spec.position_offset, spec.position_padding_id)
        lookups.append((weights.table("position"), position_ids))
    x = ops.embed_layernorm(lookups, weights.norm("embeddings.layer_norm"))
    if spec.embedding_size != spec.hidden_size:
        x = weights.linear("embeddings.projection", x)
    return x


def run_layer(
    ops: EncoderOps,
    spec: EncoderSpec,
    tensors: Tensors,
    i: int,
    batch: PackedBatch,
    x: F32,
    capture: Capture | None = None,
) -> F32:
    """The output of layer i for the hidden states x, f32 [total_tokens, hidden_size]; `capture` as of `run_encoder`."""
    weights = _Tensors(ops, spec, tensors, capture)
    layer = spec.layers[i]
    attention_norm, ffn_norm = f"layer.{i}.attention.layer_norm", f"layer.{i}.ffn.layer_norm"

    def before(x: F32, norm: str) -> F32:
        return ops.add_layernorm(x, None, weights.norm(norm)) if spec.is_pre_norm else x

    def after(x: F32, bias: F32 | None, norm: str) -> F32:
        """`bias` is what a pruned-away sub-block leaves."""
        if not spec.is_pre_norm:
            return ops.add_layernorm(x, bias, weights.norm(norm))
        return x if bias is None else ops.add_row(x, bias)

    if layer.num_heads:
        qkv = weights.layer_linear(i, "qkv", before(x, attention_norm) if layer.has_attention_norm else x)
        if layer.rotary_base:
            qkv = ops.rotate(qkv, batch.cu_seqlens, layer.num_heads, layer.rotary_base)
        attention = ops.attention_varlen_u8s8 if spec.attention_dtype == "s8" else ops.attention_varlen
        num_keys = spec.count_keys(batch.input_ids, batch.cu_seqlens) if spec.max_unattended else None
        bias = weights.position_bias(i)
        context = attention(qkv, batch.cu_seqlens, layer.num_heads, bias, layer.window, num_keys)
        x = weights.layer_linear(i, "attention_output", context, residual=x)
        x = after(x, None, attention_norm)
    else:
        x = after(x, weights[f"layer.{i}.attention.output.bias"], attention_norm)
    if not layer.intermediate_size:
        return after(x, weights[f"layer.{i}.ffn.down.bias"], ffn_norm)
    inner = weights.layer_linear(
        i, "ffn_up", before(x, ffn_norm), activation="identity" if spec.is_gated else spec.activation
    )
    if spec.is_gated:
        inner = ops.gate(inner, spec.activation)
    x = weights.layer_linear(i, "ffn_down", inner, residual=x)
    return after(x, None, ffn_norm)


def run_encoder(
    ops: EncoderOps,
    spec: EncoderSpec,
    tensors: Tensors,
    batch: PackedBatch,
    outputs: Sequence[str],
    capture: Capture | None = None,
) -> dict[str, F32]:
    """Run a packed batch of at least one sequence through the encoder and the heads that `outputs` need.

    A sequence that is sure at an exit goes no deeper: it is alone in its batch where the spec has exits.

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
    weights = _Tensors(ops, spec, tensors)
    exits = {each.after: (each, head) for each, head in zip(spec.exits, spec.exit_heads, strict=True)}
    assert not exits or batch.num_sequences == 1
    x = embed(ops, spec, tensors, batch)
    for depth, i in enumerate(spec.layer_order, 1):
        x = run_layer(ops, spec, tensors, i, batch, x, capture)
        if depth in exits and (threshold := exits[depth][0].threshold) is not None:
            found = _run_heads(ops, weights, batch, x, [exits[depth][1]])
            if (spec.margins(found["logits"]) >= np.float32(threshold)).all():
                return {name: found[name] for name in outputs}
    if spec.is_pre_norm:
        x = ops.add_layernorm(x, None, weights.norm("final.layer_norm"))
    heads = {head.name: head for head in spec.heads}
    return _run_heads(ops, weights, batch, x, [heads[name] for name in outputs])


def _run_heads(ops: EncoderOps, weights: _Tensors, batch: PackedBatch, x: F32, heads: Sequence[Head]) -> dict[str, F32]:
    """The outputs of heads, by name, from hidden states."""

    @cache
    def after(steps: tuple[Step, ...]) -> F32:
        """The rows after these steps of a head; what heads have in common is computed once."""
        if not steps:
            return x
        rows, step = after(steps[:-1]), steps[-1]
        if step.op == "pool":
            return ops.pool(rows, batch.cu_seqlens, step.kind)
        if step.op == "layer_norm":
            return ops.add_layernorm(rows, None, weights.norm(step.weights))
        if step.op == "decoder":
            return weights.apply(rows, weights.decoder(step.weights))
        if step.op == "normalize":
            return ops.normalize(rows)
        if step.op == "log1p_relu":
            return ops.log1p_relu(rows)
        if step.op == "column":
            return ops.column(rows, step.column)
        return weights.linear(step.weights, rows, step.kind)

    return {head.name: after(head.steps) for head in heads}
