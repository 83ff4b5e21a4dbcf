#!/usr/bin/env bash
# Expected: a NaN in the activations of a dynamically quantized model comes out as NaN, as in the float model, so a
#   check for NaN at the output still finds a broken input or an overflow upstream.
# Happens: DynamicQuantizeLinear passes over NaN when it looks for the range, and stores it as the smallest value.
#   The row with the NaN comes out finite and wrong, with nothing to tell it by. An infinity does the reverse: it makes
#   the scale infinite, and every row of the batch NaN, also those that were clean.
# Versions: onnxruntime 1.32.0 (CPU), onnx 1.23.2, numpy 2.4.6.
# Date run: 2026-11-27. Source: seen by running.
# Output seen (rows with a non-finite output, of rows 0 and 1, where row 0 holds the bad value):
#   nan in row 0: float [True, False], int8 [False, False]
#   inf in row 0: float [True, False], int8 [True, True]
#   DynamicQuantizeLinear of [1, NaN, -1]: [254, 0, 0] zero point 127
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
import onnxruntime as ort
from onnx import TensorProto, helper, numpy_helper
from onnxruntime.quantization import quantize_dynamic

logging.disable()
folder = Path(sys.argv[1])


def save(node, inputs, outputs, weights, path):
    graph = helper.make_graph([node], "graph", inputs, outputs, weights)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10), path)


def run(path, x):
    return ort.InferenceSession(path, providers=["CPUExecutionProvider"]).run(None, {"x": x})


info = helper.make_tensor_value_info
weight = np.random.default_rng(0).normal(size=(8, 4)).astype(np.float32)
save(
    helper.make_node("MatMul", ["x", "w"], ["y"]),
    [info("x", TensorProto.FLOAT, [None, 8])],
    [info("y", TensorProto.FLOAT, [None, 4])],
    [numpy_helper.from_array(weight, "w")],
    folder / "float.onnx",
)
quantize_dynamic(folder / "float.onnx", folder / "int8.onnx")
found = {}
for value in (np.nan, np.inf):
    x = np.random.default_rng(1).normal(size=(2, 8)).astype(np.float32)
    x[0, 0] = value
    for name in ("float", "int8"):
        found[name] = (~np.isfinite(run(folder / f"{name}.onnx", x)[0]).all(1)).tolist()
    print(f"{value} in row 0: float {found['float']}, int8 {found['int8']}")
    wanted = [False, False] if np.isnan(value) else [True, True]
    if found["float"] != [True, False] or found["int8"] != wanted:
        sys.exit("the behaviour has changed")

save(
    helper.make_node("DynamicQuantizeLinear", ["x"], ["y", "scale", "zero"]),
    [info("x", TensorProto.FLOAT, [None])],
    [info("y", TensorProto.UINT8, [None]), info("scale", TensorProto.FLOAT, []), info("zero", TensorProto.UINT8, [])],
    [],
    folder / "quantize.onnx",
)
y, _, zero = run(folder / "quantize.onnx", np.array([1, np.nan, -1], np.float32))
print("DynamicQuantizeLinear of [1, NaN, -1]:", y.tolist(), "zero point", zero)
if y[1] != 0:
    sys.exit("the behaviour has changed")
EOP
