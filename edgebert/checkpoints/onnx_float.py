"""A graph that computes in int8 or half precision as the float32 graph that it stands for.

Weights become the numbers that their codes stand for. Activations that the graph quantizes on the way stay as they
are: what is lost there is the quantization's error, not the model.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from edgebert.checkpoints.onnx_file import all_nodes, all_tensors, read_names

_SHAPE_OPS = (
    "Identity",
    "Reshape",
    "Transpose",
    "Squeeze",
    "Unsqueeze",
    "Flatten",
    "Gather",
    "Slice",
    "Split",
    "Concat",
)
_FLOAT, _FLOAT16, _BFLOAT16 = 1, 10, 16  # TensorProto.DataType
_HALVES = (_FLOAT16, _BFLOAT16)
# The numbers that encoders are made of, by what half precision makes of them: those of GELU, the roots that scale
# attention's products, a LayerNorm's epsilon.
_CONSTANTS = {
    float(np.float16(value)): value
    for value in (
        *(d**power for d in range(256, 0, -1) for power in (0.5, -0.5, 0.25, -0.25)),
        *(1e-5, 1e-6, 1e-7, 0.044715, math.sqrt(2 / math.pi), math.sqrt(0.5), math.sqrt(2)),
    )
}


def make_float(model: Any) -> tuple[Any, bool]:
    """The model in float32, and whether it computes something else than the one given."""
    import onnx

    changed = onnx.ModelProto()
    changed.CopyFrom(model)
    is_changed = _Rewriter(changed.graph).run()
    is_changed |= _widen(changed)
    if is_changed:
        del changed.graph.value_info[:]
    return (changed, True) if is_changed else (model, False)


class _Rewriter:
    """Replaces the integer nodes of a graph."""

    def __init__(self, graph: Any) -> None:
        self.graph = graph
        stored = {tensor.name for tensor in graph.initializer}
        self.varying = {value.name for value in graph.input if value.name not in stored}
        self.carried: set[str] = set()  # values that were codes, and now are what the codes stood for
        self.producer = {name: node for node in graph.node for name in node.output}
        self.nodes: list[Any] = []
        self.count = 0

    def run(self) -> bool:
        """Rewrite; whether anything was replaced."""
        is_changed = False
        for node in list(self.graph.node):
            if self.varying.intersection(read_names(node)):
                self.varying.update(node.output)
                replace = getattr(self, f"_{node.op_type}", None)
                if replace is not None and replace(node):
                    is_changed = True
                    continue
                if node.op_type in _SHAPE_OPS and self.carried.intersection(node.input):
                    self.carried.update(node.output)
            self.nodes.append(node)
        if is_changed:
            del self.graph.node[:]
            self.graph.node.extend(self.nodes)
        return is_changed

    def add(self, op: str, inputs: Sequence[str], output: str = "", domain: str = "", **attributes: Any) -> str:
        """Append a node and give the name of its output."""
        import onnx

        self.count += 1
        output = output or f"edgebert.float.{self.count}"
        self.nodes.append(onnx.helper.make_node(op, inputs, [output], domain=domain, **attributes))
        return output

    def dequantize(self, codes: str, scale: str, zero_point: str = "") -> str:
        """(codes - zero_point) * scale, one number or one for each of the last axis."""
        value = self.add("Cast", [codes], to=_FLOAT)
        if zero_point:
            value = self.add("Sub", [value, self.add("Cast", [zero_point], to=_FLOAT)])
        return self.add("Mul", [value, scale]) if scale else value

    # One method an operator; each tells whether it replaced the node.

    def _DynamicQuantizeLinear(self, node: Any) -> bool:
        import onnx

        codes, scale, zero_point = node.output
        self.add("Identity", node.input, codes)
        for name, value in ((scale, np.float32(1)), (zero_point, np.uint8(0))):
            self.add("Constant", [], name, value=onnx.numpy_helper.from_array(np.asarray(value)))
        self.varying -= {scale, zero_point}
        self.carried.add(codes)
        return True

    def _QuantizeLinear(self, node: Any) -> bool:
        self.add("Identity", node.input[:1], node.output[0])
        self.carried.add(node.output[0])
        return True

    def _DequantizeLinear(self, node: Any) -> bool:
        codes = node.input[0]
        if codes in self.carried:
            self.add("Identity", [codes], node.output[0])
            return True
        lookup = self.producer.get(codes)
        if lookup is None or lookup.op_type != "Gather" or lookup.input[0] in self.varying:
            return False
        table = self.add("DequantizeLinear", [lookup.input[0], *node.input[1:]])
        self.nodes[-1].attribute.extend(node.attribute)
        self.add("Gather", [table, lookup.input[1]], node.output[0])
        return True

    def _MatMulInteger(self, node: Any) -> bool:
        left, right, *zero_points = node.input
        if left not in self.carried:
            return False
        if right not in self.carried:
            right = self.dequantize(right, "", zero_points[1] if len(zero_points) > 1 else "")
        self.add("MatMul", [left, right], node.output[0])
        return True

    def _QLinearMatMul(self, node: Any) -> bool:
        left, right = node.input[0], node.input[3]
        if left not in self.carried:
            return False
        if right not in self.carried:
            right = self.dequantize(right, node.input[4], node.input[5])
        self.add("MatMul", [left, right], node.output[0])
        self.carried.add(node.output[0])
        return True

    def _QLinearAdd(self, node: Any) -> bool:
        parts = [
            name if name in self.carried else self.dequantize(name, *node.input[at + 1 : at + 3])
            for at, name in ((0, node.input[0]), (3, node.input[3]))
        ]
        self.add("Add", parts, node.output[0])
        self.carried.add(node.output[0])
        return True

    def _DynamicQuantizeMatMul(self, node: Any) -> bool:
        left, codes, scale, zero_point, bias = [*node.input, "", ""][:5]
        return self._linear(node, left, codes, scale, zero_point, bias)

    def _MatMulIntegerToFloat(self, node: Any) -> bool:
        left, codes, _, scale, _, zero_point, bias = [*node.input, "", "", ""][:7]
        return left in self.carried and self._linear(node, left, codes, scale, zero_point, bias)

    def _linear(self, node: Any, left: str, codes: str, scale: str, zero_point: str, bias: str) -> bool:
        inputs = [left, self.dequantize(codes, scale, zero_point)]
        if bias:
            self.add("Add", [self.add("MatMul", inputs), bias], node.output[0])
        else:
            self.add("MatMul", inputs, node.output[0])
        return True

    def _QAttention(self, node: Any) -> bool:
        codes, weight, bias, _, scale, mask, _, zero_point, *past = [*node.input, "", "", ""][:9]
        if codes not in self.carried or any(past):
            return False
        self.add(
            "Attention", [codes, self.dequantize(weight, scale, zero_point), bias, mask], node.output[0], node.domain
        )
        self.nodes[-1].attribute.extend(node.attribute)
        return True

    def _QEmbedLayerNormalization(self, node: Any) -> bool:
        ids, mask = node.input[:2], node.input[7]
        tables = [
            self.dequantize(name, node.input[8 + i], node.input[13 + i]) if name else ""
            for i, name in enumerate(node.input[2:7])
        ]
        self.add("EmbedLayerNormalization", [*ids, *tables, mask], node.output[0], node.domain)
        self.nodes[-1].output.extend(node.output[1:])
        self.nodes[-1].attribute.extend(node.attribute)
        return True


def _widen(model: Any) -> bool:
    """Make float32 of every half precision type of a model; whether there was one in what it computes with."""
    import onnx

    is_changed = False
    for value in [*model.graph.input, *model.graph.output]:
        if value.type.tensor_type.elem_type in _HALVES:
            value.type.tensor_type.elem_type = _FLOAT
            is_changed = True
    for node in all_nodes(model.graph):
        for attribute in node.attribute:
            if node.op_type == "Cast" and attribute.name == "to" and attribute.i in _HALVES:
                attribute.i = _FLOAT
                is_changed = True
    for tensor in all_tensors(model.graph):
        if tensor.data_type in _HALVES:
            name, value = tensor.name, onnx.numpy_helper.to_array(tensor).astype(np.float32)
            if value.size == 1 and tensor.data_type == _FLOAT16:
                value = np.full(value.shape, _CONSTANTS.get(float(value.ravel()[0]), value.ravel()[0]), np.float32)
            tensor.CopyFrom(onnx.numpy_helper.from_array(value, name))
            is_changed = True
    return is_changed
