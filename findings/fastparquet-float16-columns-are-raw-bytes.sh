#!/usr/bin/env bash
# Expected: a Parquet column of 16-bit floats (logical type Float16, in the format since 2.10 of 2023) is read as
#   numbers, or refused.
# Happens: fastparquet gives objects of two raw bytes each, without a warning; with lists of them, as embeddings are
#   stored, too. pyarrow, pandas, polars and DuckDB give numbers of the same file.
# Versions: fastparquet 2026.9.0, pyarrow 26.0.1, pandas 3.1.1 (PyPI); Python 3.11, Linux x86-64.
# Date run: 2026-11-28. Source: seen by running.
# Output seen:
#   pyarrow: [1.0, -0.5]
#   fastparquet: [b'\x00<', b'\x00\xb8']
#   fastparquet, lists: [b'\x00<', b'\x00\xb8']
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
PATH=$folder/venv/bin:$PATH
pip install -q --no-compile --disable-pip-version-check fastparquet==2026.9.0 pyarrow==26.0.1 pandas==3.1.1
cd "$folder"
seen=$(
  python - <<'EOP'
import fastparquet
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

halves = pa.array(np.array([1.0, -0.5], np.float16))
pq.write_table(pa.table({"x": halves}), "plain.parquet")
pq.write_table(pa.table({"x": pa.FixedSizeListArray.from_arrays(halves, 2)}), "lists.parquet")
print("pyarrow:", pq.read_table("plain.parquet")["x"].to_pylist())
print("fastparquet:", fastparquet.ParquetFile("plain.parquet").to_pandas()["x"].tolist())
print("fastparquet, lists:", [bytes(value) for value in fastparquet.ParquetFile("lists.parquet").to_pandas()["x"][0]])
EOP
)
echo "$seen"
if [[ $seen != "pyarrow: [1.0, -0.5]
fastparquet: [b'\\x00<', b'\\x00\\xb8']
fastparquet, lists: [b'\\x00<', b'\\x00\\xb8']" ]]; then
  echo "the behaviour has changed"
  exit 1
fi
