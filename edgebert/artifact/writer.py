"""Writes a model file: an ONNX graph of standard operators, built node by node from a spec and its tensors.

Hidden states are 2-D, [tokens, width] with tokens = batch * sequence, so that an int8 linear has one scale and one zero
point a row. An int8 linear is spelled out in the order of `edgebert.quant`, one node per IEEE operation, so that a
runtime's codes are those of the contract. Weights keep their canonical names; the graph's own constants are `const.*`.
In a weight-only graph the same weights are dequantized and multiplied in f32.
"""

from __future__ import annotations

import binascii
import math
from collections.abc import Iterable, Mapping
from functools import cache
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from edgebert.artifact.names import (
    ONNX_DTYPES,
    exit_tensors,
    linear_name,
    position_bias_name,
    position_table_names,
    stored_tensors,
    weight_tensors,
)
from edgebert.artifact.reader import DTYPES, hash_graph
from edgebert.artifact.spec import EncoderSpec, Head, Step, rotary_frequencies
from edgebert.errors import ModelFormatError, UnsupportedModelError

if TYPE_CHECKING:
    import onnx

OPSET = 17
IR_VERSION = 8
MAX_FILE_BYTES = 2**31 - 2**24  # protobuf stops at 2 GiB; the rest is for graph, tokenizer and probe
_BOOL = 9  # TensorProto.DataType
_MASKED = -1e9  # added to the scores of padding: exp() of it is exactly 0, and a row of nothing else stays finite


def build_model(spec: EncoderSpec, tensors: Mapping[str, NDArray[Any]], metadata: Mapping[str, str]) -> bytes:
    """The file's bytes.

    Args:
        spec: what to build.
        tensors: exactly the arrays of `names.weight_tensors(spec)`.
        metadata: further metadata entries; `edgebert.spec`, `edgebert.graph_hash` and `edgebert.exits` are added here.

    Raises:
        ModelFormatError: a tensor is missing, extra, or has the wrong dtype or shape.
        UnsupportedModelError: the file would exceed 2 GiB, or attention is neither f32 nor s8.
    """
    import onnx
    from onnx import helper

    if spec.attention_dtype not in ("f32", "s8"):
        raise UnsupportedModelError(f"attention_dtype {spec.attention_dtype} cannot be written as ONNX: use f32 or s8")
    _check_tensors(spec, tensors)
    graph = _Graph()
    _build_encoder(graph, spec)
    inputs = ["input_ids", "attention_mask"] + ["token_type_ids"] * spec.has_token_types
    ids_shape = ["batch", "sequence"]
    initializers = [_tensor_proto(name, tensors[name]) for name in stored_tensors(spec)]
    initializers += [_tensor_proto(name, value) for name, value in graph.constants.items()]
    proto = helper.make_graph(
        graph.nodes,
        "edgebert",
        [helper.make_tensor_value_info(name, onnx.TensorProto.INT64, ids_shape) for name in inputs],
        [helper.make_tensor_value_info(h.name, onnx.TensorProto.FLOAT, _output_shape(h)) for h in spec.heads],
        initializers,
    )
    graph_bytes = proto.SerializeToString(deterministic=True)
    model = helper.make_model(
        onnx.GraphProto(),
        producer_name="edgebert",
        ir_version=IR_VERSION,
        opset_imports=[helper.make_opsetid("", OPSET)],
    )
    model.ClearField("graph")
    entries = {**metadata, "edgebert.spec": spec.to_json(), "edgebert.graph_hash": hash_graph(graph_bytes)}
    if spec.exits:
        raw = b"".join(np.ascontiguousarray(tensors[name], DTYPES["f32"]).tobytes() for name in exit_tensors(spec))
        entries["edgebert.exits"] = binascii.b2a_base64(raw, newline=False).decode()
    header: bytes = model.SerializeToString()
    return header + _field(7, graph_bytes) + encode_metadata(entries)


def encode_metadata(entries: Mapping[str, str]) -> bytes:
    """Metadata entries on the wire (ModelProto.metadata_props): appended to a file they become part of it."""
    return b"".join(_field(14, _field(1, key.encode()) + _field(2, value.encode())) for key, value in entries.items())


def _field(number: int, payload: bytes) -> bytes:
    """A length-delimited protobuf field."""
    size, length = len(payload), bytearray()
    while size > 127:
        length.append(size & 127 | 128)
        size >>= 7
    return bytes([number << 3 | 2, *length, size]) + payload


def _check_tensors(spec: EncoderSpec, tensors: Mapping[str, NDArray[Any]]) -> None:
    expected = weight_tensors(spec)
    if odd := sorted(expected.keys() ^ tensors.keys()):
        raise ModelFormatError(f"tensors do not fit the spec: missing or extra {', '.join(odd[:5])}")
    for name, (dtype, shape) in expected.items():
        found = tensors[name]
        if found.dtype != DTYPES[dtype] or found.shape != shape:
            raise ModelFormatError(f"{name}: expected {dtype} {list(shape)}, got {found.dtype} {list(found.shape)}")
    num_bytes = sum(tensor.nbytes for tensor in tensors.values())
    if num_bytes > MAX_FILE_BYTES:
        raise UnsupportedModelError(
            f"the weights take {num_bytes / 2**30:.1f} GiB and an ONNX file holds at most 2: export with --int8"
        )


def _tensor_proto(name: str, value: NDArray[Any]) -> onnx.TensorProto:
    import onnx

    code = next(code for code, dtype in DTYPES.items() if dtype == value.dtype)
    raw = np.ascontiguousarray(value, DTYPES[code]).tobytes()
    return onnx.TensorProto(name=name, data_type=ONNX_DTYPES[code], dims=value.shape, raw_data=raw)


def _output_shape(head: Head) -> list[str | int]:
    shape: list[str | int] = ["batch", "sequence"] if head.is_per_token else ["batch"]
    return shape + [head.width] * bool(head.width)


class _Graph:
    """Nodes and constants in the making; every value is known by its name."""

    def __init__(self) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.constants: dict[str, NDArray[Any]] = {}
        self.scope = ""
        self._names: set[str] = set()

    def add(self, op: str, *inputs: str, output: str | None = None, **attributes: Any) -> str:  # noqa: ANN401
        """Append a node with one output and return the output's name."""
        name = output or self._unique(f"{self.scope}/{op}")
        return self._append(op, inputs, [name], attributes)[0]

    def split(self, x: str, parts: int, size: int, axis: int = 1) -> list[str]:
        """Append a split of `x` into parts of one size, by default of the columns of [rows, columns].

        The size is spelled out: some converters do not work it out.
        """
        outputs = [self._unique(f"{self.scope}/Split") for _ in range(parts)]
        sizes = self.constant(f"sizes_{parts}_{size}", [size] * parts, np.int64)
        return self._append("Split", [x, sizes], outputs, {"axis": axis})

    def constant(self, name: str, value: object, dtype: type[np.generic] = np.float32) -> str:
        """Name of a small constant of the graph's own."""
        self.constants[f"const.{name}"] = np.asarray(value, dtype)
        return f"const.{name}"

    def _append(self, op: str, inputs: Iterable[str], outputs: list[str], attributes: dict[str, Any]) -> list[str]:
        from onnx import helper

        self.nodes.append(helper.make_node(op, list(inputs), outputs, name=outputs[0], **attributes))
        return outputs

    def _unique(self, base: str) -> str:
        name, count = base, 1
        while name in self._names:
            count += 1
            name = f"{base}_{count}"
        self._names.add(name)
        return name


def _build_encoder(g: _Graph, spec: EncoderSpec) -> None:
    """Append everything from `input_ids` to the outputs."""
    g.scope = "inputs"
    ids_shape = g.add("Shape", "input_ids")
    # not a Cast to f32, which converters to half precision leave as it is
    is_token = g.add("Cast", "attention_mask", to=_BOOL)
    mask = g.add("Where", is_token, g.constant("one", 1.0), g.constant("zero", 0.0))
    padding = g.add("Where", is_token, g.constant("zero", 0.0), g.constant("masked", _MASKED))
    padding = g.add("Unsqueeze", padding, g.constant("mask_axes", [1, 2], np.int64))  # [batch, 1, 1, sequence]
    distances = _distances(g, spec, ids_shape) if spec.max_relative_distance else ""
    x = _embed(g, spec, ids_shape)

    # what layers have in common is appended once
    @cache
    def masked(window: int) -> str:
        g.scope = "inputs"
        return _mask_window(g, padding, ids_shape, window) if window else padding

    @cache
    def rotation(head_dim: int, base: float) -> tuple[str, str]:
        g.scope = "inputs"
        return _rotary_table(g, ids_shape, head_dim, base)

    @cache
    def rows(num_heads: int) -> str:
        g.scope = "inputs"
        return _distance_rows(g, spec, distances, num_heads, ids_shape)

    for i in spec.layer_order:
        layer = spec.layers[i]
        turn = rotation(layer.head_dim, layer.rotary_base) if layer.rotary_base and layer.num_heads else None
        by_distance = rows(layer.num_heads) if spec.distances_per_row and layer.num_heads else distances
        x = _build_layer(g, spec, i, x, (padding, masked(layer.window)), by_distance, turn, ids_shape)
    if spec.is_pre_norm:
        g.scope = "final"
        x = _layer_norm(g, spec, x, "final.layer_norm")
    _build_heads(g, spec, x, mask, ids_shape)


def _distances(g: _Graph, spec: EncoderSpec, ids_shape: str) -> str:
    """Column of a position bias for each query and key: int64 [sequence, sequence]."""
    zero, one, farthest = (
        g.constant(f"index_{name}", value, np.int64)
        for name, value in (("zero", 0), ("one", 1), ("farthest", spec.max_relative_distance))
    )
    places = g.add("Range", zero, g.add("Gather", ids_shape, one), one)
    keys = g.add("Add", places, farthest)
    distances = g.add("Sub", keys, g.add("Unsqueeze", places, g.constant("row_axis", [1], np.int64)))
    last = g.constant("index_last", 2 * spec.max_relative_distance, np.int64)
    return g.add("Min", g.add("Max", distances, zero), last)


def _distance_rows(g: _Graph, spec: EncoderSpec, distances: str, num_heads: int, ids_shape: str) -> str:
    """Row of a layer's position tables for each query and key: s32 [batch, num_heads, sequence, sequence]."""
    rows = g.add("Gather", g.constant("distance_rows", spec.distance_rows, np.int32), distances)
    first_axis, second_axis = (g.constant(f"{name}_axis", [i], np.int64) for name, i in (("first", 0), ("row", 1)))
    batch, length = (g.add("Gather", ids_shape, axis) for axis in (first_axis, second_axis))
    heads = g.constant(f"num_heads_{num_heads}", [num_heads], np.int64)
    return g.add("Expand", rows, g.add("Concat", batch, heads, length, length, axis=0))


def _restore(g: _Graph, x: str, ids_shape: str, inner: list[int], output: str | None = None) -> str:
    """[tokens, …] as [batch, sequence, *inner]."""
    shape = ids_shape
    if inner:
        shape = g.add("Concat", shape, g.constant("shape_" + "_".join(map(str, inner)), inner, np.int64), axis=0)
    return g.add("Reshape", x, shape, output=output)


def _places(g: _Graph, ids_shape: str) -> str:
    """0, 1, … for the tokens of a padded sequence, int64 [sequence]; with padding on the left it begins earlier."""
    length = g.add("Gather", ids_shape, g.constant("index_one", 1, np.int64))
    return g.add("Range", g.constant("index_zero", 0, np.int64), length, g.constant("index_one", 1, np.int64))


def _mask_window(g: _Graph, padding: str, ids_shape: str, window: int) -> str:
    """`padding`, and the same for keys more than `window` tokens away: f32 [batch, 1, sequence, sequence]."""
    places = _places(g, ids_shape)
    last_axis, first_axis = (g.constant(f"{name}_axis", [i], np.int64) for name, i in (("last", -1), ("first", 0)))
    distance = g.add("Abs", g.add("Sub", g.add("Unsqueeze", places, last_axis), g.add("Unsqueeze", places, first_axis)))
    is_far = g.add("Greater", distance, g.constant(f"window_{window}", window, np.int64))
    return g.add("Add", padding, g.add("Where", is_far, g.constant("masked", _MASKED), g.constant("zero", 0.0)))


def _rotary_table(g: _Graph, ids_shape: str, head_dim: int, base: float) -> tuple[str, str]:
    """Cosines and sines of `numpy_ops.rotary_table`, f32 [sequence, head_dim], for both halves of a head."""
    frequencies = np.tile(rotary_frequencies(head_dim, base), 2)
    places = g.add("Unsqueeze", _places(g, ids_shape), g.constant("last_axis", [-1], np.int64))
    names = g.constant(f"rotary_{head_dim}_{base:g}", frequencies)
    angles = g.add("Mul", g.add("Cast", places, to=ONNX_DTYPES["f32"]), names)
    return g.add("Cos", angles), g.add("Sin", angles)


def _rotate(g: _Graph, x: str, axis: int, head_dim: int, turn: tuple[str, str]) -> str:
    """x * cos + (-second half, first half) * sin, where `axis` is that of head_dim."""
    if axis == 2:  # keys are transposed
        turn = (g.add("Transpose", turn[0], perm=[1, 0]), g.add("Transpose", turn[1], perm=[1, 0]))
    first, second = g.split(x, 2, head_dim // 2, axis)
    turned = g.add("Concat", g.add("Neg", second), first, axis=axis)
    return g.add("Add", g.add("Mul", x, turn[0]), g.add("Mul", turned, turn[1]))


def _embed(g: _Graph, spec: EncoderSpec, ids_shape: str) -> str:
    """LayerNorm of (word + token type) + position, then ELECTRA's projection: f32 [tokens, hidden_size]."""
    g.scope = "embeddings"
    is_s8 = spec.embedding_dtype == "s8"

    def column(x: str) -> str:
        return g.add("Unsqueeze", x, g.constant("last_axis", [-1], np.int64))

    def dequantize(codes: str, scale: str) -> str:
        return g.add("Mul", g.add("Cast", codes, to=ONNX_DTYPES["f32"]), scale)

    def look_up(table: str, ids: str) -> str:
        rows = g.add("Gather", f"embeddings.{table}.weight", ids)
        if not is_s8:
            return rows
        return dequantize(rows, g.add("Gather", f"embeddings.{table}.scale", column(ids)))

    x = look_up("word", "input_ids")
    if spec.has_token_types:
        x = g.add("Add", x, look_up("token_type", "token_type_ids"))
    elif spec.num_token_types:
        row = "embeddings.token_type.weight"
        x = g.add("Add", x, dequantize(row, "embeddings.token_type.scale") if is_s8 else row)
    positions = None
    if spec.has_padding_position:
        positions = look_up("position", _position_ids(g, spec))
    elif spec.has_position_table:  # they count up from the offset, so their rows are a slice of the table
        start = g.constant("position_offset", [spec.position_offset], np.int64)
        length = g.add("Gather", ids_shape, g.constant("sequence_axis", [1], np.int64))
        end = g.add("Add", length, start)
        first_axis = g.constant("first_axis", [0], np.int64)
        positions = g.add("Slice", "embeddings.position.weight", start, end, first_axis)
        if is_s8:
            scale = g.add("Slice", "embeddings.position.scale", start, end, first_axis)
            positions = dequantize(positions, column(scale))
    x = _layer_norm(g, spec, g.add("Add", x, positions) if positions else x, "embeddings.layer_norm")
    x = g.add("Reshape", x, g.constant("embedding_rows", [-1, spec.embedding_size], np.int64))
    return _linear(g, x, "embeddings.projection") if spec.embedding_size != spec.hidden_size else x


def _position_ids(g: _Graph, spec: EncoderSpec) -> str:
    """`PackedBatch.position_ids` with a padding id in nodes: int64 [batch, sequence]."""
    is_padding = g.add("Equal", "input_ids", g.constant("padding_id", spec.pad_token_id, np.int64))
    is_counted = g.add("Cast", g.add("Not", is_padding), to=ONNX_DTYPES["s64"])
    counts = g.add("CumSum", is_counted, g.constant("count_axis", 1, np.int64))
    before = g.constant("padding_position", spec.position_offset - 1, np.int64)
    return g.add("Add", g.add("Mul", counts, is_counted), before)


def _build_layer(
    g: _Graph,
    spec: EncoderSpec,
    i: int,
    x: str,
    masks: tuple[str, str],
    distances: str,
    turn: tuple[str, str] | None,
    ids_shape: str,
) -> str:
    """Layer i after the hidden states x.

    `masks` are added to scores: for padding [batch, 1, 1, sequence], and all there is. `distances` are those of
    `_distances`, or of `_distance_rows` where there are such tables; `turn` the cosines and sines of its rotary
    positions, where it has any.
    """
    layer = spec.layers[i]

    def linear(values: str, name: str, inputs: int) -> str:
        g.scope = linear_name(i, name)
        if not inputs:
            return f"{g.scope}.bias"  # pruned away: the sub-block is its bias and the residual
        if layer.dtype(name) == "f32":
            return _linear(g, values, g.scope)
        inv_smooth = f"{g.scope}.inv_smooth" if name in layer.smoothed else None
        return _linear_int8(g, spec, values, g.scope, inv_smooth)

    def norm(values: str, name: str) -> str:
        g.scope = f"layer.{i}.{name}"
        return _layer_norm(g, spec, values, f"layer.{i}.{name}.layer_norm")

    context = ""
    if layer.num_heads:
        is_normed = spec.is_pre_norm and layer.has_attention_norm
        qkv = linear(norm(x, "attention") if is_normed else x, "qkv", spec.hidden_size)
        g.scope = f"layer.{i}.attention"
        attention = _attention_s8 if spec.attention_dtype == "s8" else _attention
        query, key, value = _split_heads(g, qkv, layer.num_heads, layer.head_dim, ids_shape)
        if turn:
            query = _rotate(g, query, 3, layer.head_dim, turn)
            key = _rotate(g, key, 2, layer.head_dim, turn)
        heads = query, key, value
        if spec.distances_per_row:
            bias = _position_scores(g, (query, key), position_table_names(i), distances, layer.head_dim)
        else:
            bias = g.add("Gather", position_bias_name(i), distances, axis=1) if distances else ""
        context = attention(g, heads, layer.head_dim, masks, bias)
        rows = g.constant(f"attention_rows_{layer.attention_size}", [-1, layer.attention_size], np.int64)
        context = g.add("Reshape", g.add("Transpose", context, perm=[0, 2, 1, 3]), rows)
    out = linear(context, "attention_output", layer.attention_size)
    x = g.add("Add", out, x)
    x = x if spec.is_pre_norm else norm(x, "attention")
    up = ""
    if layer.intermediate_size:
        up = linear(norm(x, "ffn") if spec.is_pre_norm else x, "ffn_up", spec.hidden_size)
        if spec.is_gated:
            up, gate = g.split(up, 2, layer.intermediate_size)
            up = g.add("Mul", _activate(g, up, spec.activation), gate)
        else:
            up = _activate(g, up, spec.activation)
    x = g.add("Add", linear(up, "ffn_down", layer.intermediate_size), x)
    return x if spec.is_pre_norm else norm(x, "ffn")


def _split_heads(g: _Graph, qkv: str, num_heads: int, head_dim: int, ids_shape: str) -> tuple[str, str, str]:
    """Query and value [batch, heads, sequence, head_dim], key [batch, heads, head_dim, sequence]."""
    query, key, value = (
        _restore(g, part, ids_shape, [num_heads, head_dim]) for part in g.split(qkv, 3, num_heads * head_dim)
    )
    return (
        g.add("Transpose", query, perm=[0, 2, 1, 3]),
        g.add("Transpose", key, perm=[0, 2, 3, 1]),
        g.add("Transpose", value, perm=[0, 2, 1, 3]),
    )


def _attention_scale(g: _Graph, head_dim: int) -> str:
    return g.constant(f"attention_scale_{head_dim}", 1.0 / math.sqrt(head_dim))


def _position_scores(g: _Graph, heads: tuple[str, str], tables: tuple[str, str], rows: str, head_dim: int) -> str:
    """The bias of query i and key j, (q_i keys[r] + k_j queries[r]) / sqrt(head_dim) with r = rows[i, j]."""
    query, key = heads
    of_query = g.add("GatherElements", g.add("MatMul", query, tables[0]), rows, axis=3)
    products = g.add("MatMul", g.add("Transpose", tables[1], perm=[0, 2, 1]), key)
    return g.add(
        "Mul", g.add("Add", of_query, g.add("GatherElements", products, rows, axis=2)), _attention_scale(g, head_dim)
    )


def _attention(g: _Graph, heads: tuple[str, str, str], head_dim: int, masks: tuple[str, str], bias: str) -> str:
    """softmax(q kᵀ / sqrt(head_dim) + bias + mask) v; the bias, [heads, sequence, sequence], only if it is named."""
    query, key, value = heads
    factor = _attention_scale(g, head_dim)
    scores = g.add("Mul", g.add("MatMul", query, key), factor)
    if bias:
        scores = g.add("Add", scores, bias)
    weights = g.add("Softmax", g.add("Add", scores, masks[1]), axis=-1)
    return g.add("MatMul", weights, value)


def _attention_s8(g: _Graph, heads: tuple[str, str, str], head_dim: int, masks: tuple[str, str], bias: str) -> str:
    """`quant.attention_u8s8_f32` in nodes."""
    query, key, value = heads
    padding, mask = masks
    middle, levels = g.constant("u8_middle", 128, np.uint8), g.constant("levels", 255.0)
    # padding is 0 for a token and far below 0 for none: what is not there must not set the scale of the values
    is_token = g.add("Cast", g.add("Equal", padding, g.constant("zero", 0.0)), to=ONNX_DTYPES["f32"])
    value = g.add("Mul", value, g.add("Transpose", is_token, perm=[0, 1, 3, 2]))
    query_codes, query_scale = _quantize_symmetric(g, query, 3, middle)
    key_codes, key_scale = _quantize_symmetric(g, key, 2, g.constant("s8_zero", 0, np.int8))
    value_codes, value_scale = _quantize_symmetric(g, value, 2, g.constant("s8_zero", 0, np.int8))
    sums = g.add("Cast", g.add("MatMulInteger", query_codes, key_codes, middle), to=ONNX_DTYPES["f32"])
    factor = _attention_scale(g, head_dim)
    scores = g.add("Mul", g.add("Mul", g.add("Mul", sums, key_scale), query_scale), factor)
    if bias:
        scores = g.add("Add", scores, bias)
    scores = g.add("Add", scores, mask)
    weights = g.add("Exp", g.add("Sub", scores, g.add("ReduceMax", scores, axes=[3], keepdims=1)))
    codes = g.add(
        "QuantizeLinear", g.add("Mul", weights, levels), g.constant("one", 1.0), g.constant("u8_zero", 0, np.uint8)
    )
    total = g.add("ReduceSum", g.add("Cast", codes, to=ONNX_DTYPES["f32"]), g.constant("keys_axis", [3], np.int64))
    sums = g.add("Cast", g.add("MatMulInteger", codes, value_codes), to=ONNX_DTYPES["f32"])
    return g.add("Mul", g.add("Mul", sums, value_scale), g.add("Div", g.constant("one", 1.0), total))


def _quantize_symmetric(g: _Graph, x: str, axis: int, zero_point: str) -> tuple[str, str]:
    """`quant.quantize_symmetric` in nodes: codes of `zero_point`'s dtype, shifted by it, and their scale."""
    limit = g.constant("limit", 127.0)
    top = g.add("Max", g.add("ReduceMax", g.add("Abs", x), axes=[axis], keepdims=1), g.constant("tiny", 1e-12))
    scaled = g.add("Mul", x, g.add("Div", limit, top))
    return g.add("QuantizeLinear", scaled, g.constant("one", 1.0), zero_point), g.add("Div", top, limit)


def _linear(g: _Graph, x: str, prefix: str) -> str:
    return g.add("Add", g.add("MatMul", x, f"{prefix}.weight"), f"{prefix}.bias")


def _quantize_rows(g: _Graph, x: str, inv_smooth: str | None) -> tuple[str, str, str]:
    """`quant.quantize_rows` in nodes: (codes u8 [rows, K], a_scale f32 [rows, 1], negated zero point f32 [rows, 1])."""
    levels = g.constant("levels", 255.0)
    if inv_smooth:
        x = g.add("Mul", x, inv_smooth)
    high = g.add("Max", g.add("ReduceMax", x, axes=[1], keepdims=1), g.constant("zero", 0.0))
    low = g.add("Min", g.add("ReduceMin", x, axes=[1], keepdims=1), g.constant("minus_tiny", -1e-12))
    span = g.add("Sub", high, low)
    a_scale = g.add("Div", span, levels)
    r = g.add("Div", levels, span)
    zn = g.add("Round", g.add("Mul", low, r))
    shifted = g.add("Sub", g.add("Mul", x, r), zn)
    # with scale 1 and zero point 0 this is only "round half to even, then saturate"
    codes = g.add("QuantizeLinear", shifted, g.constant("one", 1.0), g.constant("u8_zero", 0, np.uint8))
    return codes, a_scale, zn


def _linear_int8(
    g: _Graph,
    spec: EncoderSpec,
    x: str,
    prefix: str,
    inv_smooth: str | None,
    weight: str | None = None,
    scale: str | None = None,
) -> str:
    """A linear with an s8 weight: in int8, or in f32 after its dequantization."""
    weight, scale = weight or f"{prefix}.weight", scale or f"{prefix}.scale"
    if not spec.is_weight_only:
        return _linear_s8(g, _quantize_rows(g, x, inv_smooth), prefix, weight, scale)
    if inv_smooth:
        x = g.add("Mul", x, inv_smooth)
    product = g.add("MatMul", x, g.add("DequantizeLinear", weight, scale, axis=1))
    return g.add("Add", product, f"{prefix}.bias")


def _linear_s8(g: _Graph, rows: tuple[str, str, str], prefix: str, weight: str, scale: str) -> str:
    """`quant.linear_u8s8_f32` in nodes: the s32 sums made exact for the zero point, then scaled, then the bias."""
    codes, a_scale, zn = rows
    sums = g.add("MatMulInteger", codes, weight)
    correction = g.add("Mul", g.add("Cast", zn, to=ONNX_DTYPES["s32"]), f"{prefix}.colsum")
    y = g.add("Cast", g.add("Add", sums, correction), to=ONNX_DTYPES["f32"])
    y = g.add("Mul", g.add("Mul", y, scale), a_scale)
    return g.add("Add", y, f"{prefix}.bias")


def _layer_norm(g: _Graph, spec: EncoderSpec, x: str, prefix: str) -> str:
    weights = f"{prefix}.weight", f"{prefix}.bias"
    return g.add("LayerNormalization", x, *weights, axis=-1, epsilon=spec.layer_norm_eps)


def _activate(g: _Graph, x: str, kind: str) -> str:
    if kind == "identity":
        return x
    if kind in ("relu", "tanh"):
        return g.add(kind.capitalize(), x)
    if kind == "silu":
        return g.add("Mul", x, g.add("Sigmoid", x))
    half, one = g.constant("half", 0.5), g.constant("one", 1.0)
    if kind == "gelu_erf":  # x / 2 * (1 + erf(x / sqrt 2)), in the shape that runtimes fuse
        erf = g.add("Erf", g.add("Div", x, g.constant("sqrt2", math.sqrt(2.0))))
        return g.add("Mul", g.add("Mul", x, g.add("Add", erf, one)), half)
    # gelu_tanh: x / 2 * (1 + tanh(sqrt(2 / pi) * (x + 0.044715 x^3)))
    cube = g.add("Mul", g.add("Pow", x, g.constant("three", 3.0)), g.constant("gelu_cubic", 0.044715))
    inner = g.add("Mul", g.add("Add", x, cube), g.constant("gelu_factor", math.sqrt(2.0 / math.pi)))
    return g.add("Mul", g.add("Mul", x, half), g.add("Add", g.add("Tanh", inner), one))


def _build_heads(g: _Graph, spec: EncoderSpec, x: str, mask: str, ids_shape: str) -> None:
    """Append the heads after the last hidden states `x`; what they have in common is appended once."""
    g.scope = "head"
    columns = cache(g.split)

    @cache
    def hidden_states(output: str | None) -> str:
        return _restore(g, x, ids_shape, [spec.hidden_size], output)

    @cache
    def after(steps: tuple[Step, ...]) -> str:
        if not steps:
            return x
        before, step = steps[:-1], steps[-1]
        if step.op == "pool":
            if before:
                rows = _restore(g, after(before), ids_shape, [step.width])
            else:
                rows = hidden_states(next((head.name for head in spec.heads if not head.steps), None))
            parts = [_pool(g, rows, mask, kind) for kind in step.kind.split("+")]
            return parts[0] if len(parts) == 1 else g.add("Concat", *parts, axis=1)
        rows = after(before)
        if step.op == "log1p_relu":
            return g.add("Log", g.add("Add", g.add("Relu", rows), g.constant("one", 1.0)))
        if step.op == "layer_norm":
            return _layer_norm(g, spec, rows, step.weights)
        if step.op == "decoder":
            decoder = g.add("Transpose", "embeddings.word.weight", perm=[1, 0])
            if spec.embedding_dtype == "s8":
                return _linear_int8(g, spec, rows, step.weights, None, decoder, "embeddings.word.scale")
            return g.add("Add", g.add("MatMul", rows, decoder), f"{step.weights}.bias")
        if step.op == "normalize":
            norm = g.add("ReduceL2", rows, axes=[1], keepdims=1)
            return g.add("Div", rows, g.add("Max", norm, g.constant("tiny", 1e-12)))
        if step.op == "column":
            return columns(rows, before[-1].width, 1)[step.column]
        return _activate(g, _linear(g, rows, step.weights), step.kind)

    for head in spec.heads:
        if not head.steps:
            hidden_states(head.name)
        elif head.is_per_token:
            _restore(g, after(head.steps), ids_shape, [head.width] * bool(head.width), output=head.name)
        else:
            g.add("Identity", after(head.steps), output=head.name)


def _pool(g: _Graph, hidden_states: str, mask: str, kind: str) -> str:
    """One row a sequence of f32 [batch, sequence, hidden_size]."""
    zero_index = g.constant("index_zero", 0, np.int64)
    if kind == "cls":
        return g.add("Gather", hidden_states, zero_index, axis=1)
    if kind == "max":
        padding = g.add("Mul", g.add("Sub", g.constant("one", 1.0), mask), g.constant("masked", _MASKED))
        column = g.add("Unsqueeze", padding, g.constant("last_axis", [-1], np.int64))
        return g.add("ReduceMax", g.add("Add", hidden_states, column), axes=[1], keepdims=0)
    if kind == "last":  # where the count of tokens reaches its end
        count = g.add("CumSum", mask, g.constant("count_axis", 1, np.int64))
        return g.add("GatherND", hidden_states, g.add("ArgMax", count, axis=1, keepdims=1), batch_dims=1)
    if kind == "weighted_mean":
        mask = g.add("Mul", mask, g.add("CumSum", mask, g.constant("count_axis", 1, np.int64)))
    # Two equal rows: a runtime gives a product of one row another code path, whose bits move with the batch.
    axis = g.constant("row_axis", [1], np.int64)
    row = g.add("Unsqueeze", mask, axis)
    sums = g.add("MatMul", g.add("Concat", row, row, axis=1), hidden_states)
    sums = g.add("Gather", sums, zero_index, axis=1)
    if kind == "sum":
        return sums
    count = g.add("ReduceSum", mask, axis, keepdims=1)
    least = g.constant("one_token", 1.0)  # not the shared one: converters to half precision keep what Max reads in f32
    count = g.add("Max", count, least)
    return g.add("Div", sums, g.add("Sqrt", count) if kind == "mean_sqrt_len" else count)
