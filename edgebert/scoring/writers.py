"""Writers: a window of rows and the scorer's results to a part of the output, and parts to one file."""

from __future__ import annotations

import base64
import csv
import io
import json
import shutil
from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from edgebert.errors import InvalidInputError
from edgebert.scoring.readers import Row, Source, Window
from edgebert.scoring.scorer import Scorer

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
    """Makes parts for one job; which columns they have is settled by its first window.

    Attributes:
        columns: the input's, by name.
        results: those added, and their kind.
        truncated_column: the one of them that says whether a row was truncated.
    """

    def __init__(
        self,
        source: Source,
        scorer: Scorer,
        first: Window,
        *,
        has_error_column: bool = True,
        codec: str | None = None,
    ) -> None:
        """Settle the columns.

        Args:
            source: the input.
            scorer: gives the results.
            first: the first window.
            has_error_column: rows with an error stay, and a column says what it is; otherwise they are left out.
            codec: of the output file, "gzip", "zstd" or None.

        Raises:
            InvalidInputError: a result would have the name of a column of the input.
        """
        self._answers = list(scorer.results)
        self._error, self.truncated_column = scorer.error_column, scorer.truncated_column
        self.results = {**scorer.results, self.truncated_column: "flag"}
        self._width, self._dtype = scorer.width, scorer.dtype
        self._has_error_column = has_error_column
        if has_error_column:
            self.results[self._error] = "text"
        self._reserved = {*self.results, self._error}
        self._codec = codec
        self.columns = self._choose_columns(source, first)
        if taken := self._reserved.intersection(self.columns):
            raise InvalidInputError(
                f"the input has a column {sorted(taken)[0]!r} already, which the result would be called: "
                "give the results a prefix"
            )

    def encode(self, window: Window, results: Results) -> Part:
        """A window with its results as a part; a row with an error has no answer."""
        errors = [window.errors.get(i, error) for i, error in enumerate(results[self._error])]
        payload_rows = self._pass_through(window, errors)
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
        payload = self._encode(payload_rows, {name: results[name] for name in self.results}, kept)
        return Part(payload, lines, len(errors), len(bad), sum(results[self.truncated_column]))

    @abstractmethod
    def write(self, payload: Any, path: Path) -> None:
        """Write one part to a file."""

    @abstractmethod
    def merge(self, parts: Sequence[Path], path: Path) -> None:
        """Write the rows of all parts to one file."""

    @abstractmethod
    def _pass_through(self, window: Window, errors: list[str | None]) -> Any:
        """The rows as they are kept, without results; what cannot be kept is noted in `errors`."""

    @abstractmethod
    def _encode(self, rows: Any, results: Results, kept: Bools) -> Any:
        """Those rows with their results."""

    def _choose_columns(self, source: Source, first: Window) -> list[str]:
        if source.format == "parquet":
            return list(source.schema.names)
        return list(dict.fromkeys(name for row in first.to_dicts() for name in row))

    def _note_strays(self, rows: list[Row], errors: list[str | None]) -> None:
        """Note rows with fields that the output has no place for."""
        known = set(self.columns)
        for i, row in enumerate(rows):
            stray = row.keys() - known
            if stray and errors[i] is None:
                errors[i] = f"field {min(stray)!r} has no place in the output: no row of the first part has it"


class LineWriter(Writer):
    """JSON lines: a row keeps whatever fields it has."""

    def _pass_through(self, window: Window, errors: list[str | None]) -> list[Row]:
        rows = window.to_dicts()
        for i, row in enumerate(rows):
            taken = row.keys() & self._reserved
            if taken and errors[i] is None:
                errors[i] = f"field {min(taken)!r} has given way to the result of that name: give the results a prefix"
        return rows

    def _encode(self, rows: list[Row], results: Results, kept: Bools) -> bytes:
        answers = (dict(zip(results, values, strict=True)) for values in zip(*results.values(), strict=True))
        return b"".join(dump_line(row | answer) for row, answer, keep in zip(rows, answers, kept, strict=True) if keep)

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
    """CSV: the columns of the first window; what is not text is written as JSON, null as nothing."""

    def _pass_through(self, window: Window, errors: list[str | None]) -> list[Row]:
        rows = window.to_dicts()
        self._note_strays(rows, errors)
        return rows

    def _encode(self, rows: list[Row], results: Results, kept: Bools) -> bytes:
        answers = zip(*results.values(), strict=True)
        return _format_csv(
            [*map(row.get, self.columns), *answer]
            for row, answer, keep in zip(rows, answers, kept, strict=True)
            if keep
        )

    def _head(self) -> bytes:
        return _format_csv([[*self.columns, *self.results]])


class TableWriter(Writer):
    """Parquet: a fixed schema. From JSON lines the first window gives the types; what has no type is kept as JSON."""

    def _choose_columns(self, source: Source, first: Window) -> list[str]:
        import pyarrow as pa

        names = super()._choose_columns(source, first)
        if source.format == "parquet":
            fields, metadata = list(source.schema), source.schema.metadata
        else:
            rows = first.to_dicts()
            fields = [pa.field(name, _infer_type([row.get(name) for row in rows])) for name in names]
            metadata = None
        added = [pa.field(name, self._arrow_type(kind)) for name, kind in self.results.items()]
        self._own = pa.schema(fields)
        self.schema = pa.schema(fields + added, metadata)
        return names

    def _pass_through(self, window: Window, errors: list[str | None]) -> pa.Table:
        import pyarrow as pa

        if not isinstance(window.rows, list):
            return window.rows
        rows = window.rows
        self._note_strays(rows, errors)
        columns = [_to_array(field, [row.get(field.name) for row in rows], errors) for field in self._own]
        return pa.Table.from_arrays(columns, schema=self._own)

    def _encode(self, rows: pa.Table, results: Results, kept: Bools) -> pa.Table:
        import pyarrow as pa

        answers = [self._to_array(name, values) for name, values in results.items()]
        table = pa.Table.from_arrays(rows.columns + answers, schema=self.schema)
        return table if kept.all() else table.filter(pa.array(kept))

    def _to_array(self, name: str, values: list[Any]) -> pa.Array:
        """A column of results."""
        import pyarrow as pa

        kind = self.results[name]
        if kind == "json":
            values = [None if value is None else dump_line(value).decode().rstrip("\n") for value in values]
        if kind != "vector":
            return pa.array(values, self._arrow_type(kind))
        is_null = np.array([value is None for value in values], np.bool_)
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
                table = parquet.read_table(part, schema=self.schema)
                writer.write_table(table, max(1, table.num_rows))

    def _open(self, path: Path) -> Any:
        from pyarrow import parquet

        # a dictionary of numbers that hardly ever repeat is work for nothing
        repeating = [name for name in self.schema.names if self.results.get(name) != "vector"]
        return parquet.ParquetWriter(path, self.schema, use_dictionary=repeating)

    def _arrow_type(self, kind: str) -> pa.DataType:
        import pyarrow as pa

        if kind == "vector":
            return pa.list_(pa.from_numpy_dtype(self._dtype), self._width)
        return {"text": pa.string(), "json": pa.string(), "number": pa.float64(), "flag": pa.bool_()}[kind]


WRITERS: dict[str, type[Writer]] = {"parquet": TableWriter, "jsonl": LineWriter, "csv": CsvWriter}


def dump_line(value: Any) -> bytes:
    """A value as a line of JSON in UTF-8; lone surrogates, which UTF-8 cannot hold, are escaped."""
    text = json.dumps(value, ensure_ascii=False, default=_to_plain)
    try:
        return text.encode() + b"\n"
    except UnicodeEncodeError:
        return json.dumps(value, default=_to_plain).encode() + b"\n"


def _to_plain(value: Any) -> Any:
    if isinstance(value, np.ndarray):
        return value.tolist()
    if isinstance(value, bytes):
        return base64.b64encode(value).decode()
    return str(value)


def _format_csv(rows: Iterable[list[Any]]) -> bytes:
    """Records in UTF-8; bytes that were not UTF-8 come out as they came in, other surrogates as question marks."""
    text = io.StringIO(newline="")
    writer = csv.writer(text, lineterminator="\n")
    for row in rows:
        is_plain = (value is None or isinstance(value, str) for value in row)
        writer.writerow(
            [
                value if plain else dump_line(value).decode().rstrip("\n")
                for value, plain in zip(row, is_plain, strict=True)
            ]
        )
    try:
        return text.getvalue().encode(errors="surrogateescape")
    except UnicodeEncodeError:
        return text.getvalue().encode(errors="replace")


def _infer_type(values: list[Any]) -> pa.DataType:
    """A column's type; string, for JSON, where values are of several types, objects or all null."""
    import pyarrow as pa

    try:
        kind = pa.infer_type(values)
    except (pa.ArrowException, OverflowError, UnicodeEncodeError):
        return pa.string()
    return pa.string() if any(word in str(kind) for word in ("null", "struct")) else kind


def _to_array(field: pa.Field, values: list[Any], errors: list[str | None]) -> pa.Array:
    """A column of the given type; a value that does not fit it becomes null, and its row has an error."""
    import pyarrow as pa

    is_text = pa.types.is_string(field.type)
    if is_text:
        values = [value if value is None or isinstance(value, str) else json.dumps(value) for value in values]
    try:
        return pa.array(values).cast(field.type)  # given the type, array() would make the integer 7 of 7.5
    except (pa.ArrowException, OverflowError, UnicodeEncodeError):
        cells: list[Any] = []
        for i, value in enumerate(values):
            try:
                cells += pa.array([value]).cast(field.type).to_pylist()
            except (pa.ArrowException, OverflowError, UnicodeEncodeError):
                cells.append(value.encode(errors="replace").decode() if is_text else None)
                what = "is not valid Unicode" if is_text else f"does not fit {field.type}, the type in the first part"
                errors[i] = errors[i] or f"{field.name} {what}: {value!r:.100}"
        return pa.array(cells, field.type)
