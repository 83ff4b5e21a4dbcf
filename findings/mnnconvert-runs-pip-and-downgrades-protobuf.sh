#!/usr/bin/env bash
# Expected: mnnconvert, MNN's converter, reads an ONNX file, writes MNN's, and leaves the environment as it is.
# Happens: as it starts it installs a package for its statistics by pip, aliyun-log-python-sdk, which asks for an older
#   protobuf. That replaces the one installed: the conversion succeeds, and `import onnx` raises in that environment
#   from then on. Convert in an environment of its own.
# Versions: MNN 3.6.1, onnx 1.23.2, protobuf 7.36.2 before and 5.29.6 after (PyPI); Python 3.11, Linux x86-64.
# Date run: 2026-11-28. Source: seen by running.
# Output seen:
#   before: protobuf 7.36.2, onnx works
#   mnnconvert: relu.mnn written, aliyun-log-python-sdk 0.9.52
#   after: protobuf 5.29.6, google.protobuf.runtime_version.VersionError
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
PATH=$folder/venv/bin:$PATH
pip install -q --no-compile --disable-pip-version-check MNN==3.6.1 onnx==1.23.2
cd "$folder"
version() { python -c 'from importlib.metadata import version; print("protobuf", version("protobuf"))'; }
cat >make.py <<'EOP'
import onnx
from onnx import TensorProto, helper

x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, 4]) for name in "xy")
graph = helper.make_graph([helper.make_node("Relu", ["x"], ["y"])], "g", [x], [y])
onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8), "relu.onnx")
print("onnx works")
EOP
before="$(version), $(python make.py)"
mnnconvert -f ONNX --modelFile relu.onnx --MNNModel relu.mnn --bizCode none >log 2>&1 || true
converted="relu.mnn $(test -s relu.mnn && echo written), $(pip list --disable-pip-version-check | grep aliyun | tr -s ' ')"
after="$(version), $(python make.py 2>&1 | tail -1 | cut -d: -f1 || true)"
printf 'before: %s\nmnnconvert: %s\nafter: %s\n' "$before" "$converted" "$after"
case "$before|$converted|$after" in
  *"onnx works|relu.mnn written, aliyun-log-python-sdk"*"|protobuf 5"*VersionError) ;;
  *)
    echo "the behaviour has changed"
    exit 1
    ;;
esac
