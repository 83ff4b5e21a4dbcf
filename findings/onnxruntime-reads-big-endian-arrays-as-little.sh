#!/usr/bin/env bash
# Expected: InferenceSession.run takes a NumPy array by its values: one in big-endian order (np.load of an .npy file
#   written so, np.frombuffer of network data) is converted, or refused as an unexpected type.
# Happens: its bytes are read as little-endian, without an error. Token id 1 becomes 72057594037927936. A
#   reversed view is taken by its values, and int32 for int64 is refused, so the check of the type looks complete.
# Versions: onnxruntime 1.32.0, onnx 1.23.2, numpy 2.4.6, on a little-endian machine.
# Date run: 2026-11-27. Source: seen by running.
# Output seen:
#   plain [1, 2, 3]: [1, 2, 3]
#   reversed view of [3, 2, 1]: [1, 2, 3]
#   int32: refused
#   big-endian [1, 2, 3]: [72057594037927936, 144115188075855872, 216172782113783808]
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q --no-compile --disable-pip-version-check onnxruntime==1.32.0 onnx==1.23.2 numpy==2.4.6

"$folder/venv/bin/python" - "$folder" <<'EOP'
import sys

import numpy as np
import onnxruntime as ort
from onnx import TensorProto, helper

graph = helper.make_graph(
    [helper.make_node("Identity", ["ids"], ["out"])],
    "graph",
    [helper.make_tensor_value_info("ids", TensorProto.INT64, [None])],
    [helper.make_tensor_value_info("out", TensorProto.INT64, [None])],
)
model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])


def run(ids):
    return session.run(None, {"ids": ids})[0].tolist()


plain, reverse = run(np.array([1, 2, 3])), run(np.array([3, 2, 1])[::-1])
print("plain [1, 2, 3]:", plain)
print("reversed view of [3, 2, 1]:", reverse)
try:
    run(np.array([1, 2, 3], np.int32))
    refused = False
except Exception:
    refused = True
print("int32:", "refused" if refused else "taken")
big = np.array([1, 2, 3], ">i8")
swapped = run(big)
print(f"big-endian {big.tolist()}:", swapped)
as_stated = plain == reverse == [1, 2, 3] and refused and swapped == [i << 56 for i in (1, 2, 3)]
sys.exit(0 if as_stated else "the behaviour has changed")
EOP
