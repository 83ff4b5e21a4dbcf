#!/usr/bin/env bash
# Expected: an index of inner products in 8 bits finds, up to rounding, what the same index finds in 32 or 16.
# Happens: vectors given in f32 are scaled to length 127 before they become i8, whatever the metric. Their lengths are
#   gone, so that metric "ip" ranks by cosine: of two vectors the one along the query comes first, although the other
#   has an inner product 2.7 times as large. Distances are those of the codes, 1 minus products of up to 16129, not of
#   the vectors. Codes are cut off, not rounded (0.6 becomes 76 of 76.2, 0.8 becomes 101 of 101.6). Arrays that are i8
#   already are taken as they are.
# Versions: usearch 2.26.6, numpy 2.4.6 (PyPI); Python 3.11, Linux x86-64.
# Date run: 2026-11-28. Source: seen by running.
# Output seen:
#   f32 [1, 0] distances [-1.7, 0.0]
#   f16 [1, 0] distances [-1.7, 0.0]
#   i8 [0, 1] distances [-16128.0, -14477.0]
#   codes of (0.6, 0.8): [76, 101]
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
PATH=$folder/venv/bin:$PATH
pip install -q --no-compile --disable-pip-version-check usearch==2.26.6 numpy==2.4.6
seen=$(
  python - <<'EOP'
import numpy as np
from usearch.index import Index

rows = np.array([[1.0, 0.0], [2.7, 1.3]], np.float32)
query = rows[0]
for dtype in ("f32", "f16", "i8"):
    index = Index(ndim=2, metric="ip", dtype=dtype)
    index.add(np.arange(2), rows)
    found = index.search(query, 2)
    print(dtype, found.keys.tolist(), "distances", [round(d, 2) for d in found.distances.tolist()])
index = Index(ndim=2, metric="ip", dtype="i8")
index.add(np.array([0]), np.array([[0.6, 0.8]], np.float32))
print("codes of (0.6, 0.8):", np.ravel(index.get(0, dtype="i8")).tolist())
EOP
)
echo "$seen"
if [[ $seen != $'f32 [1, 0] distances [-1.7, 0.0]\nf16 [1, 0] distances [-1.7, 0.0]\ni8 [0, 1] distances [-16128.0, -14477.0]\ncodes of (0.6, 0.8): [76, 101]' ]]; then
  echo "the behaviour has changed"
  exit 1
fi
