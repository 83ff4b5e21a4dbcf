#!/usr/bin/env bash
# Expected: onnx.save(..., save_as_external_data=True) writes a model and its weights, and leaves the model as it was.
# Happens: the weights are moved out of the model in memory. A second save of the same object, to another folder,
#   succeeds and writes no weights at all; the model in memory can no longer be run. And where the data file is there
#   already, the weights are appended to it: each export over the last makes it longer, old weights kept inside.
# Versions: onnx 1.23.2, numpy 2.4.6.
# Date run: 2026-11-27. Source: seen by running.
# Output seen:
#   bytes of weights in memory: 16384 before, 0 after
#   first folder: ['model.onnx', 'weights'], second folder: ['model.onnx']
#   data file after exports 1, 2, 3 over each other: [16384, 32768, 49152]
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q --no-compile --disable-pip-version-check onnx==1.23.2 numpy==2.4.6

"$folder/venv/bin/python" - "$folder" <<'EOP'
import sys
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

folder = Path(sys.argv[1])


def export():
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "w"], ["y"])],
        "graph",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [None, 64])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [None, 64])],
        [numpy_helper.from_array(np.ones((64, 64), np.float32), "w")],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)


def save(model, name):
    (folder / name).mkdir(exist_ok=True)
    onnx.save(model, folder / name / "model.onnx", save_as_external_data=True, location="weights", size_threshold=0)
    return sorted(path.name for path in (folder / name).iterdir())


model = export()
before = len(model.graph.initializer[0].raw_data)
first = save(model, "first")
after = len(model.graph.initializer[0].raw_data)
second = save(model, "second")
print(f"bytes of weights in memory: {before} before, {after} after")
print(f"first folder: {first}, second folder: {second}")
sizes = []
for _ in range(3):
    save(export(), "over")
    sizes.append((folder / "over" / "weights").stat().st_size)
print("data file after exports 1, 2, 3 over each other:", sizes)
as_stated = (before, after) == (16384, 0) and first == ["model.onnx", "weights"] and second == ["model.onnx"]
sys.exit(0 if as_stated and sizes == [16384, 32768, 49152] else "the behaviour has changed")
EOP
