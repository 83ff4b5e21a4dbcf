"""Recognises an encoder in somebody else's ONNX graph: its sizes, its weights, its heads.

Exporters, versions and optimizers write the same model as very different nodes, so nodes are not what is compared.
The graph is run once by ONNX Runtime on a small batch, with every value in sight. Read from it are only its products
with a constant matrix, its lookups, and the vectors of its biases and LayerNorms. What happens between two products
is found by computing: of the hypotheses "attention with so many heads", "gelu_erf", "add and LayerNorm" the one whose
result is the value that the next product takes. Names are never looked at. What follows from this is a proposal;
`check_original` in exporting/reference.py proves or refutes it on other batches.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, NamedTuple, NoReturn

import numpy as np
from numpy.typing import NDArray

from edgebert.artifact.names import linear_name
from edgebert.artifact.spec import ACTIVATIONS, FFN_ACTIVATIONS, LayerSpec
from edgebert.backends import numpy_ops
from edgebert.backends.encoder_loop import LayerNorm
from edgebert.batch import PackedBatch
from edgebert.checkpoints.onnx_file import OnnxProgram, attributes
from edgebert.errors import UnsupportedModelError
from edgebert.quant import F32

TOLERANCE = 1e-4  # of the largest value: that a hypothesis holds; wrong ones miss by far more
_LENGTH = 11  # tokens of the batch; no size of a model
_MAX_HEADS = 128
_MAX_EPS = 1e-2
# Nodes that hand on the values of their first input, perhaps in another shape or order of axes.
_SHAPE_OPS = ("Identity", "Cast", "Dropout", "Reshape", "Transpose", "Squeeze", "Unsqueeze", "Flatten")
# Fused nodes and the input that is a linear's bias.
_FUSED_BIAS = {"BiasGelu": 1, "FastGelu": 1, "SkipLayerNormalization": 4, "MultiHeadAttention": 3}
_NORM_DEFAULT_EPS = {"LayerNormalization": 1e-5, "SkipLayerNormalization": 1e-12, "EmbedLayerNormalization": 1e-12}


@dataclass
class Recognised:
    """What a graph computes.

    Attributes:
        sizes: fields of EncoderSpec that the graph alone decides, those of the heads left out.
        tensors: the encoder's, f32 by canonical names.
        outputs: the graph's float outputs by name, as far as they were understood.
        ignored: the names of its other outputs.
    """

    sizes: dict[str, Any]
    tensors: dict[str, F32]
    outputs: dict[str, Output] = field(default_factory=dict)
    ignored: list[str] = field(default_factory=list)


class Output(NamedTuple):
    """What one output of a graph is.

    kind: "hidden", "sentence", "labels" (of a sequence), "tokens" (labels of each), "start", "end" or "words".
    fields: fields of EncoderSpec that say how it is computed.
    tensors: f32 by canonical names.
    """

    kind: str
    fields: dict[str, Any]
    tensors: dict[str, F32]


class _Product:
    """rows @ weight + bias: a node's product with a constant matrix, and the bias added to it."""

    def __init__(self, index: int, rows: F32, weight: F32, bias: F32) -> None:
        self.index, self.rows, self.weight, self.bias = index, rows, weight, bias
        self.is_used = False

    @cached_property
    def out(self) -> F32:
        return self.rows @ self.weight + self.bias

    def tensors(self, name: str) -> dict[str, F32]:
        self.is_used = True
        return {f"{name}.weight": self.weight, f"{name}.bias": self.bias}


class _Norm(NamedTuple):
    at: int
    rows: F32
    norm: LayerNorm

    def tensors(self, name: str) -> dict[str, F32]:
        return {f"{name}.weight": self.norm.weight, f"{name}.bias": self.norm.bias}


class _Lookup(NamedTuple):
    table: F32  # [rows, width]
    ids: NDArray[Any] | None  # [tokens]; None: the first ones
    ids_name: str | None


def recognise(program: OnnxProgram) -> Recognised:
    """Find the encoder in a graph.

    Raises:
        UnsupportedModelError: it computes something else; the message names the nodes that were not understood.
    """
    return _Recogniser(program).run()


class _Recogniser:
    def __init__(self, program: OnnxProgram) -> None:
        self.program, self.nodes = program, program.nodes
        vocab_size = program.table_rows("input_ids")
        if not vocab_size:
            first = ", ".join(f"{node.op_type} {node.name or node.output[0]!r}" for node in self.nodes[:3])
            raise UnsupportedModelError(
                f"{program.path}: no encoder: its token ids choose no rows of a constant table, which a word embedding "
                f"does; it begins with {first or 'nothing'}. ONNX Runtime itself still runs the file"
            )
        num_types = program.table_rows("token_type_ids") or 1
        length = program.fixed_shape()[1] or _LENGTH
        rng = np.random.default_rng(0)
        self.ids = rng.integers(min(5, vocab_size - 1), vocab_size, length)
        self.types = np.sort(rng.integers(0, num_types, length))
        self.types[[0, -1]] = 0, num_types - 1
        self.batch = PackedBatch.from_lists([self.ids.tolist()], [self.types.tolist()])
        self.consumers: dict[str, list[int]] = {}
        self.producer: dict[str, int] = {}
        for i, node in enumerate(self.nodes):
            for name in node.input:
                self.consumers.setdefault(name, []).append(i)
            for name in node.output:
                self.producer[name] = i
        varying = [name for node in self.nodes for name in node.output if name and name in program.varying]
        self.values = program.run(self.batch, list(dict.fromkeys([*varying, *program.outputs])))
        read = {name for node in self.nodes if program.varying.intersection(node.output) for name in node.input}
        program.fetch_constants(sorted(name for name in read if name and name not in program.varying))
        self.products = list(self._find_products())
        self.at = 0  # the node up to which everything is understood
        self.eps: set[float] = set()

    # What the graph holds

    def constant(self, name: str) -> F32 | None:
        """A float constant, None for anything else."""
        if not name or name in self.program.varying:
            return None
        value = np.asarray(self.program.constant(name))
        return value.astype(np.float32, copy=False) if value.dtype.kind == "f" else None

    def rows(self, name: str) -> F32 | None:
        """A float value of the run as rows [tokens, width], None for anything else."""
        value = self.values.get(name)
        if not isinstance(value, np.ndarray) or value.dtype.kind != "f" or value.ndim < 2:
            return None
        return value.reshape(-1, value.shape[-1]).astype(np.float32, copy=False)

    def _find_products(self) -> Iterator[_Product]:
        for i, node in enumerate(self.nodes):
            if len(node.input) < 2 or node.op_type not in ("MatMul", "Gemm", "FusedMatMul", "Attention", "FusedGemm"):
                continue
            weight, rows, given = self.constant(node.input[1]), self.rows(node.input[0]), attributes(node)
            if weight is None or weight.ndim != 2 or rows is None or given.get("transA"):
                continue
            weight = (weight.T if given.get("transB") else weight) * np.float32(given.get("alpha", 1.0))
            if rows.shape[1] != weight.shape[0]:
                continue
            bias = self.constant(node.input[2]) if len(node.input) > 2 else None
            if bias is None:
                weight, bias = self._find_bias(node.output[0], weight)
            bias = np.broadcast_to(bias * np.float32(given.get("beta", 1.0)), weight.shape[1:])
            yield _Product(i, rows, weight, bias)

    def _find_bias(self, name: str, weight: F32) -> tuple[F32, F32]:
        """The bias added to a product, and the product's weight with the factors on the way."""
        width = weight.shape[1]
        while len(consumers := self.consumers.get(name, [])) == 1:
            node = self.nodes[consumers[0]]
            place = list(node.input).index(name)
            if node.op_type in _FUSED_BIAS and len(node.input) > _FUSED_BIAS[node.op_type]:
                bias = self.constant(node.input[_FUSED_BIAS[node.op_type]])
                if bias is not None and node.op_type == "MultiHeadAttention" and bias.size == 3 * width:
                    bias = bias.reshape(3, width)[place]
                return weight, bias if bias is not None and bias.size == width else np.zeros(width, np.float32)
            if node.op_type in ("Add", "Mul", "Div"):
                other = self.constant(node.input[1 - place])
                if other is None or other.size not in (1, width) or (node.op_type == "Div" and place):
                    break
                if node.op_type == "Add":
                    return weight, np.broadcast_to(other.reshape(-1), (width,))
                factor = other.reshape(-1) if node.op_type == "Mul" else np.float32(1) / other.reshape(-1)
                weight = weight * factor
            elif node.op_type not in _SHAPE_OPS:
                break
            name = node.output[0]
        return weight, np.zeros(width, np.float32)

    def _norm_at(self, node: Any) -> LayerNorm | None:
        """Weight, bias and epsilon of the LayerNorm that a node ends."""
        kind = node.op_type
        if kind in _NORM_DEFAULT_EPS:
            first = {"LayerNormalization": 1, "SkipLayerNormalization": 2, "EmbedLayerNormalization": 5}[kind]
            weight, bias = (self.constant(node.input[i]) if len(node.input) > i else None for i in (first, first + 1))
            eps = float(attributes(node).get("epsilon", _NORM_DEFAULT_EPS[kind]))
        elif kind == "Add":  # (centred / sqrt(variance + eps)) * weight + bias
            bias, scaled = self._constant_operand(node)
            inner = self._producer_of(scaled)
            if bias is None or inner is None or inner.op_type != "Mul":
                return None
            weight, normed = self._constant_operand(inner)
            found = self._find_eps(normed)
            if weight is None or found is None:
                return None
            eps = found
        else:
            return None
        if weight is None or weight.size < 2:
            return None
        bias = np.zeros(weight.size, np.float32) if bias is None else bias
        eps = float(str(np.float32(eps)))  # 1e-12, not 9.999999960041972e-13
        return LayerNorm(weight.reshape(-1), bias.reshape(-1), eps) if bias.size == weight.size else None

    def _constant_operand(self, node: Any) -> tuple[F32 | None, str]:
        """(the constant, the other's name) of a node with two operands."""
        left, right = (self.constant(name) for name in node.input[:2])
        return (left, node.input[1]) if left is not None else (right, node.input[0])

    def _producer_of(self, name: str) -> Any | None:
        while (i := self.producer.get(name)) is not None and self.nodes[i].op_type in ("Identity", "Cast", "Dropout"):
            name = self.nodes[i].input[0]
        return None if i is None else self.nodes[i]

    def _find_eps(self, name: str) -> float | None:
        """The small number added on the way to a value, a few nodes back."""
        names = [name]
        for _ in range(5):
            nodes = [node for node in map(self._producer_of, names) if node is not None]
            for node in nodes:
                value = self._constant_operand(node)[0] if node.op_type == "Add" else None
                if value is not None and value.size == 1 and 0 < float(value.ravel()[0]) < _MAX_EPS:
                    return float(value.ravel()[0])
            names = [name for node in nodes for name in node.input]
        return None

    # What it computes

    def run(self) -> Recognised:
        sizes, tensors, hidden = self._embeddings()
        layers: list[LayerSpec] = []
        activations: set[str] = set()
        while True:
            found = self._layer(hidden, len(layers))
            if found is None and not layers:  # through a projection?
                for product in self._taking(hidden):
                    found = self._layer(product.out, 0)
                    if found is not None:
                        tensors |= product.tensors("embeddings.projection")
                        break
            if found is None:
                break
            layer, activation, layer_tensors, hidden = found
            layers.append(layer)
            activations.add(activation)
            tensors |= layer_tensors
        recognised = Recognised(sizes, tensors)
        for name in self.program.outputs:
            value = self.values[name]
            output = self._output(value, hidden, tensors) if value.dtype.kind == "f" else None
            if output is not None:
                recognised.outputs[name] = output
            elif value.dtype.kind == "f":
                self._refuse(f"output {name!r} {list(value.shape)} (of a text of {len(self.ids)} tokens)")
            else:
                recognised.ignored.append(name)
        if not layers or not recognised.outputs:
            self._refuse("what follows the embeddings")
        if len(activations) > 1 or len(self.eps) > 1:
            raise UnsupportedModelError(
                f"{self.program.path}: its layers differ in activation ({', '.join(sorted(activations))}) or in the "
                f"epsilon of LayerNorm ({', '.join(map(str, sorted(self.eps)))}); supported: one of each for all"
            )
        recognised.sizes |= {
            "hidden_size": hidden.shape[1],
            "layers": tuple(layers),
            "activation": activations.pop(),
            "layer_norm_eps": self.eps.pop(),
        }
        return recognised

    def _refuse(self, what: str) -> NoReturn:
        """Name the nodes after the last that was understood, up to the next product."""
        ends = [product.index for product in self.products if product.index > self.at and not product.is_used]
        end = ends[0] if ends else len(self.nodes)
        nodes = [
            f"{node.op_type} {node.name or node.output[0]!r}"
            for node in self.nodes[self.at + 1 : end + 1]
            if self.program.varying.intersection(node.output)
        ]
        after = f"after {self.nodes[self.at].op_type} {self.nodes[self.at].name or self.nodes[self.at].output[0]!r}"
        raise UnsupportedModelError(
            f"{self.program.path}: {what} is not recognised as that of a BERT-like encoder; not understood {after}: "
            f"{', '.join(nodes[:12]) or 'the end of the graph'}{', …' if len(nodes) > 12 else ''}. ONNX Runtime itself "
            "still runs the file; or export the checkpoint that it was made from"
        )

    def _taking(self, rows: F32) -> list[_Product]:
        """Products not yet used that take these rows."""
        return [product for product in self.products if not product.is_used and _close(product.rows, rows)]

    def _find_norm(self, total: F32, after: int) -> _Norm | None:
        """The first LayerNorm of these rows after a node."""
        for i in range(after, len(self.nodes)):
            norm = self._norm_at(self.nodes[i])
            rows = self.rows(self.nodes[i].output[0]) if norm is not None else None
            if norm is not None and rows is not None and rows.shape == total.shape:
                expected = numpy_ops.add_layernorm(total, None, norm)
                if _close(expected, rows):
                    self.at = max(self.at, i)
                    self.eps.add(norm.eps)
                    return _Norm(i, rows, norm)
        return None

    def _embeddings(self) -> tuple[dict[str, Any], dict[str, F32], F32]:
        end = next((i for i, node in enumerate(self.nodes) if self._norm_at(node) is not None), None)
        if end is None:
            self._refuse("no LayerNorm with constant weights was found: the graph")
        norm = self._norm_at(self.nodes[end])
        assert norm is not None
        lookups = list(self._lookups(end, norm.weight.size))
        word = position = types = None
        total = np.zeros((len(self.ids), norm.weight.size), np.float32)
        for lookup in lookups:
            table, ids = lookup.table, np.arange(len(self.ids)) if lookup.ids is None else lookup.ids
            if len(ids) != len(self.ids):
                continue
            total = total + table[ids]
            if np.array_equal(ids, self.ids):
                word = lookup
            elif np.array_equal(ids, self.types) and len(np.unique(ids)) > 1:
                types = table
            elif np.array_equal(ids, ids[0] + np.arange(len(ids))):
                position = lookup
            elif not ids.any():
                types = table[:1]
        found = self._find_norm(total, end)
        if word is None or position is None or found is None or found.at != end:
            self._refuse("the sum of word, position and token type rows, and its LayerNorm,")
        offset, pads = self._position_rule(position)
        tensors = {"embeddings.word.weight": word.table, "embeddings.position.weight": position.table}
        if types is not None:
            tensors["embeddings.token_type.weight"] = types
        sizes = {
            "vocab_size": len(word.table),
            "embedding_size": word.table.shape[1],
            "num_positions": len(position.table),
            "num_token_types": 0 if types is None else len(types),
            "position_offset": offset,
            "has_padding_position": pads,
        }
        return sizes, tensors | found.tensors("embeddings.layer_norm"), found.rows

    def _lookups(self, end: int, width: int) -> Iterator[_Lookup]:
        """Tables of this width in the nodes up to `end`, and the rows taken from them."""
        last = self.nodes[end]
        if last.op_type == "EmbedLayerNormalization":
            for ids, table in zip((last.input[0], "", last.input[1]), last.input[2:5], strict=True):
                if table and (rows := self.constant(table)) is not None:
                    yield _Lookup(rows, self.values_of(ids), ids or None)
            return
        for node in self.nodes[:end]:
            if not self.program.varying.intersection(node.output):
                continue
            if node.op_type == "Gather":
                table = self.constant(node.input[0])
                if table is not None and table.ndim == 2 and table.shape[1] == width:
                    yield _Lookup(table, self.values_of(node.input[1]), node.input[1])
            elif node.op_type == "Slice":
                table = self.constant(node.input[0])
                rows = self.rows(node.output[0])
                if table is not None and rows is not None and table.shape[-1] == width == rows.shape[1]:
                    table = table.reshape(-1, width)
                    starts = [i for i in range(len(table)) if np.array_equal(table[i : i + len(rows)], rows)]
                    yield _Lookup(table, np.arange(len(rows)) + (starts[0] if starts else 0), None)
            elif node.op_type == "Add":
                value, other = self._constant_operand(node)
                if value is not None and value.shape[-1:] == (width,) and other in self.program.varying:
                    table = value.reshape(-1, width)
                    same = len(table) == 1
                    yield _Lookup(table, np.zeros(len(self.ids), np.int64) if same else None, None)

    def values_of(self, name: str) -> NDArray[Any] | None:
        """Ids as the graph computed them, [tokens]."""
        if not name:
            return None
        for role_name, role in self.program.roles.items():
            if role_name == name:
                return {"input_ids": self.ids, "token_type_ids": self.types}.get(role, np.arange(len(self.ids)))
        value = self.values[name] if name in self.program.varying else self.program.constant(name)
        return np.asarray(value).reshape(-1)

    def _position_rule(self, position: _Lookup) -> tuple[int, bool]:
        """(row of the first token, whether a token with the id before that is not counted)."""
        offset = 0 if position.ids is None else int(position.ids[0])
        if position.ids is None or offset == 0 or position.ids_name not in self.values:
            return offset, False
        ids = self.ids.copy()
        ids[len(ids) // 2] = offset - 1
        batch = PackedBatch.from_lists([ids.tolist()], [self.types.tolist()])
        found = self.program.run(batch, [position.ids_name])[position.ids_name]
        return offset, not np.array_equal(found.reshape(-1), position.ids)

    def _layer(self, hidden: F32, i: int) -> tuple[LayerSpec, str, dict[str, F32], F32] | None:
        """(sizes, activation, tensors, hidden states after it) of the layer that takes these hidden states."""
        group = self._taking(hidden)
        attention = self._attention(group)
        if attention is None:
            return None
        (qkv_weight, qkv_bias), num_heads, output = attention
        self.at = max(self.at, output.index)
        for product in group:
            product.is_used = True
        tensors = {
            f"{linear_name(i, 'qkv')}.weight": qkv_weight,
            f"{linear_name(i, 'qkv')}.bias": qkv_bias,
            **output.tensors(linear_name(i, "attention_output")),
        }
        middle = self._find_norm(output.out + hidden, output.index)
        if middle is None:
            self._refuse(f"what follows the attention of layer {i}")
        for up in self._taking(middle.rows):
            candidates = [p for p in self.products if not p.is_used and p.rows.shape == up.out.shape]
            hypotheses = [
                (_distance(numpy_ops.activate(up.out, kind), down.rows), kind, down)
                for kind in FFN_ACTIVATIONS
                for down in candidates[:2]
            ]
            self.at = max(self.at, up.index)
            error, activation, down = min(hypotheses, key=lambda h: h[0], default=(np.inf, "", up))
            if error > TOLERANCE:
                continue
            tensors |= up.tensors(linear_name(i, "ffn_up")) | down.tensors(linear_name(i, "ffn_down"))
            self.at = max(self.at, down.index)
            end = self._find_norm(down.out + middle.rows, down.index)
            if end is None:
                self._refuse(f"what follows the feed-forward part of layer {i}")
            tensors |= middle.tensors(f"layer.{i}.attention.layer_norm") | end.tensors(f"layer.{i}.ffn.layer_norm")
            layer = LayerSpec(num_heads, output.weight.shape[0] // num_heads, up.weight.shape[1])
            return layer, activation, tensors, end.rows
        self._refuse(f"the feed-forward part of layer {i}")

    def _attention(self, group: Sequence[_Product]) -> tuple[tuple[F32, F32], int, _Product] | None:
        """((weight, bias) of qkv, number of heads, the product that takes the context)."""
        if not group:
            return None
        weight = np.concatenate([product.weight for product in group], axis=1)
        bias = np.concatenate([product.bias for product in group])
        out = np.concatenate([product.out for product in group], axis=1)
        size, rest = divmod(weight.shape[1], 3)
        candidates = [p for p in self.products if not p.is_used and p not in group and p.weight.shape[0] == size]
        if rest or not candidates:
            return None
        best: tuple[float, NDArray[Any], float, int, _Product] | None = None
        for heads in (heads for heads in range(1, min(size, _MAX_HEADS) + 1) if size % heads == 0):
            head_dim = size // heads
            layouts = [np.arange(3 * size).reshape(3, size)]
            if len(group) == 1:  # queries, keys and values of a head beside each other
                layouts.append(np.moveaxis(np.arange(3 * size).reshape(heads, 3, head_dim), 1, 0).reshape(3, size))
            for layout, order, scale in itertools.product(
                layouts, itertools.permutations(range(3)), (1.0, float(head_dim) ** 0.5)
            ):
                columns = layout[list(order)].reshape(-1)
                qkv = out[:, columns]
                qkv[:, :size] *= np.float32(scale)  # 1 / sqrt(head_dim) may be part of the weights
                context = numpy_ops.attention_varlen(qkv, self.batch.cu_seqlens, heads)
                for output in candidates[:2]:
                    error = _distance(context, output.rows)
                    if error <= TOLERANCE and (best is None or error < best[0]):
                        best = error, columns, scale, heads, output
        if best is None:
            return None
        _, columns, scale, num_heads, output = best
        weight, bias = weight[:, columns], bias[columns]
        weight[:, :size] *= np.float32(scale)
        bias[:size] *= np.float32(scale)
        return (weight, bias), num_heads, output

    # Heads

    def _output(self, value: NDArray[Any], hidden: F32, tensors: Mapping[str, F32]) -> Output | None:
        """What a float output is, None if it is none of those that are known."""
        rows = value.reshape(-1, value.shape[-1]).astype(np.float32, copy=False) if value.ndim > 1 else value[None]
        if _close(rows, hidden):
            return Output("hidden", {}, {})
        if value.ndim == 3 and len(rows) == len(hidden):
            return self._token_output(rows, hidden, tensors)
        if value.ndim == 2 and rows.shape[1] == len(hidden) and (found := self._span_output(rows[0], hidden)):
            return found
        return self._sentence_output(rows, hidden) if value.ndim == 2 and len(rows) == 1 else None

    def _token_output(self, rows: F32, hidden: F32, tensors: Mapping[str, F32]) -> Output | None:
        for product in self._taking(hidden):
            if _close(product.out, rows):
                return Output("tokens", {}, product.tensors("head.out"))
        word = tensors["embeddings.word.weight"]
        for dense, decoder in itertools.product(self._taking(hidden), self.products):
            if decoder.is_used or decoder.weight.shape != word.T.shape or not _close(decoder.out, rows):
                continue
            for kind in ACTIVATIONS:
                norm = self._find_norm(numpy_ops.activate(dense.out, kind), dense.index)
                if norm is None or not _close(norm.rows, decoder.rows):
                    continue
                if not np.array_equal(decoder.weight, word.T):
                    raise UnsupportedModelError(
                        f"{self.program.path}: untied MLM decoder: its weight differs from the word embeddings; "
                        "supported: a decoder that shares them"
                    )
                bias = {"mlm.bias": decoder.tensors("")[".bias"]}
                found = dense.tensors("mlm.dense") | norm.tensors("mlm.layer_norm") | bias
                return Output("words", {"mlm_activation": kind}, found)
        return None

    def _span_output(self, row: F32, hidden: F32) -> Output | None:
        for product in self.products:
            if product.weight.shape[1] == 2 and _close(product.rows, hidden):
                for column, kind in enumerate(("start", "end")):
                    if _close(product.out[:, column], row):
                        return Output(kind, {}, product.tensors("head.out"))
        return None

    def _sentence_output(self, rows: F32, hidden: F32) -> Output | None:
        for pooling in ("mean", "cls"):
            pooled = numpy_ops.pool(hidden, self.batch.cu_seqlens, pooling)
            for normalize in (False, True):
                if _close(numpy_ops.normalize(pooled) if normalize else pooled, rows):
                    return Output("sentence", {"pooling": pooling, "normalize": normalize}, {})
            for dense in self._taking(pooled):
                if _close(dense.out, rows):
                    return Output("labels", {"pooling": pooling}, dense.tensors("head.out"))
                for kind in ACTIVATIONS:
                    fields = {"pooling": pooling, "dense_size": dense.weight.shape[1], "dense_activation": kind}
                    active = numpy_ops.activate(dense.out, kind)
                    for normalize in (False, True):
                        if _close(numpy_ops.normalize(active) if normalize else active, rows):
                            fields["normalize"] = normalize
                            return Output("sentence", fields, dense.tensors("head.dense"))
                    for out in self._taking(active):
                        if out is not dense and _close(out.out, rows):
                            return Output("labels", fields, dense.tensors("head.dense") | out.tensors("head.out"))
        return None


def _distance(a: NDArray[Any], b: NDArray[Any]) -> float:
    """max|a - b| as a part of max|b|; infinite for other shapes and what is no number."""
    if a.shape != b.shape:
        return np.inf
    error = float(np.abs(a - b).max() / max(float(np.abs(b).max()), 1e-30))
    return error if np.isfinite(error) else np.inf


def _close(a: NDArray[Any], b: NDArray[Any]) -> bool:
    return _distance(a, b) <= TOLERANCE
