#!/usr/bin/env bash
# Expected: x.sum() and x.mean() of a float32 array give inside numba.njit what they give in NumPy, to some rounding.
# Happens: Numba adds one value after another in float32, where NumPy sums pairwise. Over ten million values of 0.1
#   the compiled sum is 9 % off, and the mean with it: code moved into a kernel for speed loses the precision that it
#   was tested with. Summing x.astype(np.float64) brings it back.
# Versions: numba 0.68.1, numpy 2.4.6.
# Date run: 2026-11-27. Source: seen by running.
# Output seen:
#   numpy sum 1000000.1 mean 0.1
#   numba sum 1087937.0 mean 0.10879
#   numba sum over float64 1000000.0
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
def compiled(x):
    return x.sum(), x.mean()


x = np.full(10_000_000, 0.1, np.float32)
total, mean = compiled(x)
wide, _ = compiled(x.astype(np.float64))
print(f"numpy sum {x.sum():.1f} mean {x.mean():.5g}")
print(f"numba sum {total:.1f} mean {mean:.5g}")
print(f"numba sum over float64 {wide:.1f}")
as_stated = abs(x.sum() - 1e6) < 1 and abs(wide - 1e6) < 1 and total > 1.05e6 and mean > 0.105
sys.exit(0 if as_stated else "the behaviour has changed")
EOP
