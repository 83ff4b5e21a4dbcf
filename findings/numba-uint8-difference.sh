#!/usr/bin/env bash
# Expected: in a Numba kernel q[i] - zero_point on two uint8 values is what C gives (-2), or what NumPy gives (254).
# Happens: Numba widens both to uint64, so 3 - 5 is 18446744073709551614, and as a float 1.8e19. Dequantizing uint8 with
#   a uint8 zero point is then wrong wherever the value is below it. int8 values, and a uint8 with an int8, widen to
#   int64 and are right; the difference of whole arrays wraps to 254, as NumPy's does.
# Versions: numba 0.68.1, numpy 2.4.6.
# Date run: 2026-11-27. Source: seen by running.
# Output seen:
#   numba scalars, uint8 and uint8: 1.8446744073709552e+19
#   numba scalars, uint8 and int8: -2.0
#   numba scalars, int8 and int8: -2.0
#   numba arrays, uint8 and uint8: 254.0
#   numpy, uint8 and uint8: 254.0
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q --no-compile --disable-pip-version-check numba==0.68.1 numpy==2.4.6

"$folder/venv/bin/python" - "$folder" <<'EOP'
import sys

import numba
import numpy as np


@numba.njit
def scalars(q, zero, out):
    for i in range(q.shape[0]):
        out[i] = q[i] - zero[i]


@numba.njit
def arrays(q, zero):
    return q - zero


found = []
for name, left, right in (("uint8", np.uint8, np.uint8), ("uint8", np.uint8, np.int8), ("int8", np.int8, np.int8)):
    out = np.empty(1, np.float64)
    scalars(np.array([3], left), np.array([5], right), out)
    print(f"numba scalars, {name} and {right.__name__}:", out[0])
    found.append(float(out[0]))
q, zero = np.array([3], np.uint8), np.array([5], np.uint8)
found += [float(arrays(q, zero)[0]), float((q - zero)[0])]
print("numba arrays, uint8 and uint8:", found[3])
print("numpy, uint8 and uint8:", found[4])
sys.exit(0 if found == [2.0**64, -2, -2, 254, 254] else "the behaviour has changed")
EOP
