"""Model files as expressions of Polars."""

from __future__ import annotations

from typing import Any

from edgebert.integrations import Source, need_library, take_model

need_library(__name__)

import polars as pl

NAMES = {"embedding": "embed", "text-classification": "classify"}


def embed(texts: pl.Expr | str, model: Source, **options: Any) -> pl.Expr:
    """The embedding of each text, Array(Float32, width); null where the text is.

    Args:
        texts: an expression of strings, or a column's name.
        model: an embedding file, or what `edgebert.load` returned.
        **options: of `Model.encode`.
    """
    loaded = take_model(model, NAMES, "embedding")
    width = options.get("truncate_dim") or loaded.spec.output_width("sentence_embedding")[1]
    dtype = pl.Array(pl.Float32, width)

    def run(column: pl.Series) -> pl.Series:
        rows = loaded.encode(column.drop_nulls().to_list(), **options)
        return _put_back(column, pl.Series(rows.reshape(-1, width), dtype=dtype))

    return _map(texts, run, dtype)


def classify(texts: pl.Expr | str, model: Source, **options: Any) -> pl.Expr:
    """The best label of each text, Struct(label, score); null where the text is.

    Args:
        texts: an expression of strings, or a column's name.
        model: a text-classification file, or what `edgebert.load` returned.
        **options: of text classification, for instance `function_to_apply`.
    """
    loaded = take_model(model, NAMES, "text-classification")
    dtype = pl.Struct({"label": pl.String, "score": pl.Float64})

    def run(column: pl.Series) -> pl.Series:
        found = loaded(column.drop_nulls().to_list(), task="text-classification", **options)
        return _put_back(column, pl.Series(found, dtype=dtype))

    return _map(texts, run, dtype)


def _map(texts: pl.Expr | str, run: Any, dtype: Any) -> pl.Expr:
    column = pl.col(texts) if isinstance(texts, str) else texts
    return column.map_batches(run, return_dtype=dtype, is_elementwise=True)


def _put_back(column: pl.Series, found: pl.Series) -> pl.Series:
    """What was found for the texts that are not null, in their places."""
    if not column.null_count():
        return found.alias(column.name)
    is_text = column.is_not_null()
    places = pl.when(is_text).then(is_text.cast(pl.Int64).cum_sum() - 1)
    return pl.select(pl.lit(found).gather(places).alias(column.name)).to_series()
