"""Writers: a window of rows and the scorer's results to a part of the output, and parts to one file."""

from __future__ import annotations

import base64
import csv
import io
import json
import math
import shutil
from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from edgebert.errors import InvalidInputError
from edgebert.scoring.readers import DELIMITERS, Window, clean
from edgebert.scoring.scorer import Scorer
from edgebert.scoring.survey import MAX_COLUMNS, Survey

if TYPE_CHECKING:
    import pyarrow as pa

Results = dict[str, list[Any]]
Bools = NDArray[np.bool_]


@dataclass
class Part:
    """A window made ready to be written.

    Attributes:
        payload: a table for Parquet, otherwise lines.
        bad: rows with an error as JSON lines, if they go to a file of their own.
        num_rows: of the window.
        num_errors: of these, with an error.
        num_truncated: of these, scored by their beginning.
    """

    payload: pa.Table | bytes
    bad: bytes
    num_rows: int
    num_errors: int
    num_truncated: int


class Writer(ABC):
    """Makes parts for one job.

    Attributes:
        has_fixed_columns: every row of the output has the same.
        input_schema: columns and types of the input.
        results: the columns that are added, and their kind.
        truncated_column: the one of them that says whether a row was truncated.
    """

    has_fixed_columns = True

    def __init__(
        self, survey: Survey, scorer: Scorer, *, has_error_column: bool = True, codec: str | None = None
    ) -> None:
        """Settle the columns.

        Args:
            survey: what the input holds.
            scorer: gives the results.
            has_error_column: rows with an error stay, and a column says what it is; otherwise they are left out.
            codec: of the output file, "gzip", "zstd" or None.

        Raises:
            InvalidInputError: the output cannot have so many columns.
        """
        self._answers = list(scorer.results)
        self._error, self.truncated_column = scorer.error_column, scorer.truncated_column
        self.results = {**scorer.results, self.truncated_column: "flag"}
        self._width, self._dtype = scorer.width, scorer.dtype
        self._has_error_column = has_error_column
        if has_error_column:
            self.results[self._error] = "text"
        self._codec = codec
        if survey.has_more_columns and self.has_fixed_columns:
            raise InvalidInputError(
                f"the input has more than {MAX_COLUMNS} different fields, too many for columns: "
                "write JSON lines, where a row keeps its own"
            )
        self.input_schema = survey.schema

    def encode(self, window: Window, results: Results) -> Part:
        """A window with its results as a part; a row with an error has no answer."""
        errors = [window.errors.get(i, error) for i, error in enumerate(results[self._error])]
        bad = [i for i, error in enumerate(errors) if error is not None]
        results = {
            name: [value if error is None else None for value, error in zip(results[name], errors, strict=True)]
            for name in self._answers
        } | {self.truncated_column: results[self.truncated_column], self._error: errors}
        lines = b""
        if bad and not self._has_error_column:
            rows = window.to_dicts()
            lines = b"".join(
                dump_line(
                    {"file": window.file.name, "row": window.first_row + i, "error": errors[i], "values": rows[i]}
                )
                for i in bad
            )
        kept = np.array([self._has_error_column or error is None for error in errors], np.bool_)
        payload = self._encode(window, {name: results[name] for name in self.results}, kept)
        return Part(payload, lines, len(errors), len(bad), sum(results[self.truncated_column]))

    @abstractmethod
    def write(self, payload: Any, path: Path) -> None:
        """Write one part to a file."""

    @abstractmethod
    def merge(self, parts: Sequence[Path], path: Path) -> None:
        """Write the rows of all parts to one file."""

    @abstractmethod
    def _encode(self, window: Window, results: Results, kept: Bools) -> Any:
        """The rows that are kept with their results."""


class LineWriter(Writer):
    """JSON lines: a row keeps whatever fields it has."""

    has_fixed_columns = False

    def _encode(self, window: Window, results: Results, kept: Bools) -> bytes:
        answers = (dict(zip(results, values, strict=True)) for values in zip(*results.values(), strict=True))
        rows = zip(window.to_dicts(), answers, kept, strict=True)
        return b"".join(dump_line(row | answer) for row, answer, keep in rows if keep)

    def write(self, payload: bytes, path: Path) -> None:
        """Write lines, compressed if the output is."""
        import pyarrow as pa

        with open(path, "wb") as raw:
            if self._codec is None or not payload:
                raw.write(payload)
                return
            with pa.CompressedOutputStream(raw, self._codec) as stream:
                stream.write(payload)

    def merge(self, parts: Sequence[Path], path: Path) -> None:
        """Write one part after the other: gzip members and zstd frames may follow each other, too."""
        self.write(self._head(), path)
        with open(path, "ab") as merged:
            for part in parts:
                with open(part, "rb") as stream:
                    shutil.copyfileobj(stream, merged, 1 << 20)

    def _head(self) -> bytes:
        return b""


class CsvWriter(LineWriter):
    """CSV: what is not text is written as JSON, null as nothing."""

    has_fixed_columns = True
    _delimiter = DELIMITERS["csv"]

    def _encode(self, window: Window, results: Results, kept: Bools) -> bytes:
        names = self.input_schema.names
        rows = zip(window.to_dicts(), zip(*results.values(), strict=True), kept, strict=True)
        return self._format([*map(row.get, names), *answer] for row, answer, keep in rows if keep)

    def _head(self) -> bytes:
        return self._format([[*self.input_schema.names, *self.results]])

    def _format(self, rows: Iterable[list[Any]]) -> bytes:
        """Records in UTF-8; bytes that were not UTF-8 come out as they came in, other surrogates as question marks."""
        text = io.StringIO(newline="")
        writer = csv.writer(text, delimiter=self._delimiter, lineterminator="\n")
        writer.writerows([to_text(value) for value in row] for row in rows)
        try:
            return text.getvalue().encode(errors="surrogateescape")
        except UnicodeEncodeError:
            return text.getvalue().encode(errors="replace")


class TsvWriter(CsvWriter):
    """TSV: CSV with tabs between the fields."""

    _delimiter = DELIMITERS["tsv"]


class TableWriter(Writer):
    """Parquet: a fixed schema."""

    def __init__(self, survey: Survey, scorer: Scorer, **options: Any) -> None:
        """As of any writer."""
        import pyarrow as pa

        super().__init__(survey, scorer, **options)
        added = [pa.field(name, self._arrow_type(kind)) for name, kind in self.results.items()]
        self.schema = pa.schema([*self.input_schema, *added], self.input_schema.metadata)

    def _encode(self, window: Window, results: Results, kept: Bools) -> pa.Table:
        import pyarrow as pa

        if isinstance(window.rows, list):
            columns = [_to_array(field, [row.get(field.name) for row in window.rows]) for field in self.input_schema]
        else:
            columns = window.rows.columns
        answers = [self._to_array(name, values) for name, values in results.items()]
        table = pa.Table.from_arrays(columns + answers, schema=self.schema)
        return table if kept.all() else table.filter(pa.array(kept))

    def _to_array(self, name: str, values: list[Any]) -> pa.Array:
        """A column of results."""
        import pyarrow as pa

        kind = self.results[name]
        if kind == "json":
            values = [None if value is None else dump_json(value) for value in values]
        if kind not in ("vector", "vectors"):
            return pa.array(values, self._arrow_type(kind))
        is_null = np.array([value is None for value in values], np.bool_)
        if kind == "vectors":
            given = np.concatenate([np.zeros((0, self._width), self._dtype), *(v for v in values if v is not None)])
            bounds = np.arange(0, given.size + 1, self._width, dtype=np.int32)
            vectors = pa.ListArray.from_arrays(pa.array(bounds), pa.array(given.ravel()))
            counts = [0 if value is None else len(value) for value in values]
            bounds = np.cumsum([0, *counts], dtype=np.int32)
            return pa.ListArray.from_arrays(pa.array(bounds), vectors, mask=pa.array(is_null))
        rows = np.zeros((len(values), self._width), self._dtype)
        if not is_null.all():
            rows[~is_null] = [value for value in values if value is not None]
        return pa.FixedSizeListArray.from_arrays(pa.array(rows.ravel()), self._width, mask=pa.array(is_null))

    def write(self, payload: pa.Table, path: Path) -> None:
        """Write a table as one row group."""
        with self._open(path) as writer:
            writer.write_table(payload, max(1, payload.num_rows))

    def merge(self, parts: Sequence[Path], path: Path) -> None:
        """Write the parts as row groups of one file."""
        from pyarrow import parquet

        with self._open(path) as writer:
            for part in parts:
                with parquet.ParquetFile(part) as reader:
                    table = reader.read()
                writer.write_table(table, max(1, table.num_rows))

    def _open(self, path: Path) -> Any:
        from pyarrow import parquet

        # a dictionary of numbers that hardly ever repeat is work for nothing
        repeating = [name for name in self.schema.names if self.results.get(name) not in ("vector", "vectors")]
        return parquet.ParquetWriter(path, self.schema, use_dictionary=repeating)

    def _arrow_type(self, kind: str) -> pa.DataType:
        import pyarrow as pa

        if kind == "vector":
            return pa.list_(pa.from_numpy_dtype(self._dtype), self._width)
        if kind == "vectors":
            return pa.list_(pa.list_(pa.from_numpy_dtype(self._dtype)))
        if kind == "weights":
            return pa.list_(pa.struct({"id": pa.int32(), "token": pa.string(), "weight": pa.float32()}))
        if kind == "numbers":
            return pa.list_(pa.float32())
        return {"text": pa.string(), "json": pa.string(), "number": pa.float64(), "flag": pa.bool_()}[kind]


def make_part(window: Window, scorer: Scorer, writer: Writer) -> Part:
    """Score a window and make it ready to be written."""
    return writer.encode(window, scorer({name: window.column(name) for name in scorer.columns}))


WRITERS: dict[str, type[Writer]] = {"parquet": TableWriter, "jsonl": LineWriter, "csv": CsvWriter, "tsv": TsvWriter}


def dump_line(value: Any) -> bytes:
    """A value as a line of JSON in UTF-8: lone surrogates are escaped, NaN and the infinities are null."""
    try:
        text = _JSON.encode(value)
    except ValueError:
        value = _without_nan(value)
        text = _JSON.encode(value)
    try:
        return text.encode() + b"\n"
    except UnicodeEncodeError:
        return json.dumps(value, default=_to_plain).encode() + b"\n"


def dump_json(value: Any) -> str:
    """A value as JSON."""
    return dump_line(value)[:-1].decode()


def to_text(value: Any) -> str | None:
    """A value as text: text as it is, what JSON has no form for as Python's str gives it, the rest as JSON."""
    if value is None or isinstance(value, str):
        return value
    if isinstance(value, (dict, list, tuple, np.ndarray)):
        return dump_json(value)
    return json.dumps(value) if isinstance(value, (bool, int, float)) else _to_plain(value)


def _to_plain(value: Any) -> Any:
    if isinstance(value, np.ndarray):
        return value.tolist()
    if isinstance(value, bytes):
        return base64.b64encode(value).decode()
    return str(value)


_JSON = json.JSONEncoder(ensure_ascii=False, allow_nan=False, default=_to_plain)


def _without_nan(value: Any) -> Any:
    """A value with null for NaN and the infinities, which JSON lacks."""
    if isinstance(value, np.ndarray):
        value = value.tolist()
    if isinstance(value, dict):
        return {key: _without_nan(part) for key, part in value.items()}
    if isinstance(value, (list, tuple)):
        return [_without_nan(part) for part in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _to_array(field: pa.Field, values: list[Any]) -> pa.Array:
    """A column of the type that the survey has found for it."""
    import pyarrow as pa

    if field.type == pa.string():
        values = [to_text(value) for value in values]
    try:
        return pa.array(values, field.type)
    except UnicodeEncodeError:
        return pa.array(_clean(values), field.type)


def _clean(value: Any) -> Any:
    """Texts, and lists of them, without surrogates."""
    if isinstance(value, list):
        return [_clean(part) for part in value]
    return clean(value) if isinstance(value, str) else value
