"""Model files as vectorised functions of DuckDB's SQL."""

from __future__ import annotations

from typing import Any

import numpy as np

from edgebert.integrations import Source, need_library, take_model
from edgebert.model import Model

need_library(__name__)

import duckdb
import pyarrow as pa


def register(connection: duckdb.DuckDBPyConnection, model: Source, name: str | None = None, **options: Any) -> Model:
    """Make a file a function of texts in SQL; of NULL it gives NULL.

    An embedding file becomes `embed(text)`, FLOAT[width]; a text-classification file `classify(text)`,
    STRUCT(label VARCHAR, score FLOAT), the best label.

    Args:
        connection: where the function is known.
        model: a file of one of these heads, or what `edgebert.load` returned.
        name: another name for the function.
        **options: of `Model.encode`, or of text classification.

    Returns:
        The loaded model.

    Raises:
        EdgeBertError: as `edgebert.load`; InvalidInputError where the head is another.
    """
    loaded = take_model(model, {}, "embedding", "text-classification")

    def embed(texts: pa.ChunkedArray) -> pa.Array:
        rows = loaded.encode(texts.to_pylist(), **options)
        return pa.FixedSizeListArray.from_arrays(pa.array(rows.reshape(-1)), width)

    def classify(texts: pa.ChunkedArray) -> pa.Array:
        found = loaded(texts.to_pylist(), task="text-classification", **options)
        labels, scores = [entry["label"] for entry in found], [entry["score"] for entry in found]
        columns = [pa.array(labels, pa.string()), pa.array(np.array(scores, np.float32))]
        return pa.StructArray.from_arrays(columns, ["label", "score"])

    if loaded.task == "text-classification":
        run, returned = classify, "STRUCT(label VARCHAR, score FLOAT)"
    else:
        width = options.get("truncate_dim") or loaded.spec.output_width("sentence_embedding")[1]
        run, returned = embed, f"FLOAT[{width}]"
    connection.create_function(name or run.__name__, run, ["VARCHAR"], returned, type="arrow")
    return loaded
