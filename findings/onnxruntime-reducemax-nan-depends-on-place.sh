#!/usr/bin/env bash
# Expected: ReduceMax of values with a NaN among them is NaN, as in NumPy, or at least always the same.
# Happens: on the CPU it is NaN only where the NaN comes first; elsewhere the NaN is passed over. ReduceMin does the
#   same, while ReduceSum and the elementwise Max give NaN. Max pooling over tokens, or a softmax written out with
#   ReduceMax, therefore shows or hides a broken token by its place in the text.
# Versions: onnxruntime 1.32.0 (CPU), onnx 1.23.2, numpy 2.4.6.
# Date run: 2026-11-27. Source: seen by running.
# Output seen:
#   [nan, 1.0, 3.0] ReduceMax nan ReduceMin nan ReduceSum nan Max with 2: nan
#   [1.0, nan, 3.0] ReduceMax 3.0 ReduceMin 1.0 ReduceSum nan Max with 2: nan
#   [3.0, 1.0, nan] ReduceMax 3.0 ReduceMin 1.0 ReduceSum nan Max with 2: nan
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q --no-compile --disable-pip-version-check onnxruntime==1.32.0 onnx==1.23.2 numpy==2.4.6

"$folder/venv/bin/python" - "$folder" <<'EOP'
import sys

import numpy as np
import onnxruntime as ort
from onnx import TensorProto, helper, numpy_helper


def session(op, inputs, **attributes):
    graph = helper.make_graph(
        [helper.make_node(op, inputs, ["y"], **attributes)],
        "graph",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [None])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(np.float32(2), "two")] if "two" in inputs else [],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    return ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])


reductions = {op: session(op, ["x"], keepdims=0) for op in ("ReduceMax", "ReduceMin", "ReduceSum")}
largest = session("Max", ["x", "two"])
as_stated = True
for values, wanted in (
    ([np.nan, 1, 3], [np.nan, np.nan, np.nan]),
    ([1, np.nan, 3], [3, 1, np.nan]),
    ([3, 1, np.nan], [3, 1, np.nan]),
):
    x = np.array(values, np.float32)
    found = [float(reduction.run(None, {"x": x})[0]) for reduction in reductions.values()]
    spread = largest.run(None, {"x": x})[0][np.isnan(x)][0]
    print(x.tolist(), *(f"{op} {value}" for op, value in zip(reductions, found, strict=True)), "Max with 2:", spread)
    as_stated &= np.array_equal(found, wanted, equal_nan=True) and bool(np.isnan(spread))
sys.exit(0 if as_stated else "the behaviour has changed")
EOP
