#!/usr/bin/env bash
# Expected: a graph whose input has a named dimension, as exporters write for batches, runs on batches of any size.
# Happens: tinygrad's OnnxRunner takes the size of the first call for that name and keeps it: the second batch of
#   another size is refused with "mismatch on dim=0". One runner a batch size is needed, or batches padded to one size.
# Versions: tinygrad 0.14.0, onnx 1.23.2, numpy 2.4.6 (PyPI).
# Date run: 2026-11-28. Source: seen by running.
# Output seen:
#   2 rows: (2, 4)
#   3 rows: RuntimeError input x has mismatch on dim=0. Expected 2, received 3.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q --no-compile --disable-pip-version-check tinygrad==0.14.0 onnx==1.23.2 numpy==2.4.6
cd "$folder"
"$folder/venv/bin/python" - <<'EOP'
import onnx
from onnx import TensorProto, helper

x = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 4])
y = helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", 4])
graph = helper.make_graph([helper.make_node("Relu", ["x"], ["y"])], "g", [x], [y])
model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
onnx.checker.check_model(model)
onnx.save(model, "relu.onnx")
EOP
export DEV=CPU
"$folder/venv/bin/python" - <<'EOP'
import sys

import numpy as np
from tinygrad import Tensor
from tinygrad.nn.onnx import OnnxRunner

run = OnnxRunner("relu.onnx")
seen = []
for rows in (2, 3):
    try:
        seen.append(str(run({"x": Tensor(np.ones((rows, 4), np.float32))})["y"].shape))
    except RuntimeError as error:
        seen.append(f"RuntimeError {error}")
    print(f"{rows} rows: {seen[-1]}")
sys.exit(0 if seen[0] == "(2, 4)" and "mismatch on dim=0" in seen[1] else "the behaviour has changed")
EOP
