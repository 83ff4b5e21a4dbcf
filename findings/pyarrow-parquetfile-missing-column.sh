#!/usr/bin/env bash
# Expected: asking a Parquet file for a column that it lacks is an error, as with pyarrow.parquet.read_table.
# Happens: ParquetFile.read and iter_batches leave it out: the result has the right number of rows and no such column.
#   A name with a dot reads two things at once: "a.b" brings the column "a.b" and the field b of the struct "a".
# Versions: pyarrow 26.0.1.
# Date run: 2026-11-27. Source: seen by running.
# Output seen:
#   ParquetFile.read(columns=["text", "label"]): {'text': ['x', 'y']}
#   ParquetFile.iter_batches(columns=["Text"]): 2 rows, 0 columns
#   read_table(columns=["text", "label"]): ArrowInvalid
#   ParquetFile.read(columns=["a.b"]): {'a.b': ['x'], 'a': [{'b': 1}]}
#   read_table(columns=["a.b"]): {'a.b': ['x']}
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q --no-compile --disable-pip-version-check pyarrow==26.0.1

"$folder/venv/bin/python" - "$folder" <<'EOP'
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

path, dotted = Path(sys.argv[1], "texts.parquet"), Path(sys.argv[1], "dotted.parquet")
pq.write_table(pa.table({"text": ["x", "y"]}), path)
pq.write_table(pa.table({"a.b": ["x"], "a": [{"b": 1, "c": 2}]}), dotted)
found = pq.ParquetFile(path).read(columns=["text", "label"]).to_pydict()
print('ParquetFile.read(columns=["text", "label"]):', found)
(batch,) = pq.ParquetFile(path).iter_batches(columns=["Text"])
print('ParquetFile.iter_batches(columns=["Text"]):', batch.num_rows, "rows,", batch.num_columns, "columns")
try:
    pq.read_table(path, columns=["text", "label"])
    raised = "nothing"
except Exception as error:
    raised = type(error).__name__
print('read_table(columns=["text", "label"]):', raised)
both = pq.ParquetFile(dotted).read(columns=["a.b"]).to_pydict()
print('ParquetFile.read(columns=["a.b"]):', both)
one = pq.read_table(dotted, columns=["a.b"]).to_pydict()
print('read_table(columns=["a.b"]):', one)
as_stated = (
    found == {"text": ["x", "y"]}
    and (batch.num_rows, batch.num_columns) == (2, 0)
    and raised == "ArrowInvalid"
    and both == {"a.b": ["x"], "a": [{"b": 1}]}
    and one == {"a.b": ["x"]}
)
sys.exit(0 if as_stated else "the behaviour has changed")
EOP
