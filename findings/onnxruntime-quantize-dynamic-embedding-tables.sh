#!/usr/bin/env bash
# Expected: quantize_dynamic(weight_type=QInt8, per_channel=True) makes the linear layers int8, one scale a channel, and
#   leaves embedding lookups alone, or treats them the same.
# Happens: it also quantizes the table of each Gather, to uint8 whatever weight_type says, with one scale for the
#   whole table whatever per_channel says. One large row then leaves all the other tokens a handful of values.
#   op_types_to_quantize=["MatMul"] keeps the tables in float32.
# Versions: onnxruntime 1.32.0, onnx 1.23.2, numpy 2.4.6.
# Date run: 2026-11-27. Source: seen by running.
# Output seen:
#   linear weight: INT8 scales [4]
#   table: UINT8 scales []
#   different values among 72 of the nine small rows: 7
#   with op_types_to_quantize=["MatMul"] the table is FLOAT
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q --no-compile --disable-pip-version-check onnxruntime==1.32.0 onnx==1.23.2 numpy==2.4.6

"$folder/venv/bin/python" - "$folder" <<'EOP'
import logging
import sys
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper
from onnxruntime.quantization import QuantType, quantize_dynamic

logging.disable()
folder = Path(sys.argv[1])
random = np.random.default_rng(0)
table = random.normal(size=(10, 8)).astype(np.float32)
table[0] *= 100
weight = random.normal(size=(8, 4)).astype(np.float32)
graph = helper.make_graph(
    [helper.make_node("Gather", ["e", "ids"], ["h"]), helper.make_node("MatMul", ["h", "w"], ["y"])],
    "graph",
    [helper.make_tensor_value_info("ids", TensorProto.INT64, [None])],
    [helper.make_tensor_value_info("y", TensorProto.FLOAT, [None, 4])],
    [numpy_helper.from_array(table, "e"), numpy_helper.from_array(weight, "w")],
)
onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10), folder / "float.onnx")


def quantized(**options):
    options |= {"weight_type": QuantType.QInt8, "per_channel": True}
    quantize_dynamic(folder / "float.onnx", folder / "int8.onnx", **options)
    return {tensor.name: tensor for tensor in onnx.load(folder / "int8.onnx").graph.initializer}


found = quantized()
kinds = {name: TensorProto.DataType.Name(found[f"{name}_quantized"].data_type) for name in "we"}
scales = {name: list(found[f"{name}_scale"].dims) for name in "we"}
print("linear weight:", kinds["w"], "scales", scales["w"])
print("table:", kinds["e"], "scales", scales["e"])
small = numpy_helper.to_array(found["e_quantized"])[1:]
print("different values among", small.size, "of the nine small rows:", np.unique(small).size)
kept = TensorProto.DataType.Name(quantized(op_types_to_quantize=["MatMul"])["e"].data_type)
print('with op_types_to_quantize=["MatMul"] the table is', kept)
as_stated = (kinds, scales) == ({"w": "INT8", "e": "UINT8"}, {"w": [4], "e": []}) and np.unique(small).size < 16
sys.exit(0 if as_stated and kept == "FLOAT" else "the behaviour has changed")
EOP
