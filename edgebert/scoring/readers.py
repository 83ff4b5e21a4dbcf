"""Source: Parquet, JSON lines or CSV, a file or a folder of files, cut into windows of rows at bounded memory."""

from __future__ import annotations

import csv
import difflib
import io
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote

from edgebert.errors import InvalidInputError

if TYPE_CHECKING:
    import pyarrow as pa

Row = dict[str, Any]

FORMATS = {".parquet": "parquet", ".jsonl": "jsonl", ".ndjson": "jsonl", ".json": "jsonl", ".csv": "csv"}
_KINDS = {"jsonl": "JSON lines, an object a line", "csv": "CSV"}
CODECS = {".gz": "gzip", ".zst": "zstd"}

WINDOW_BYTES = 32 << 20  # a window is cut short when its rows take this many bytes, so that long texts fit in memory
LINE_BYTES = 64 << 20  # a longer line is a bad row: no row may fill the memory
READ_BYTES = 8192  # read at a time; where a compressed file breaks off, what a read would have given is lost
PARQUET_ROWS = 256  # rows that are decoded at a time
NULL_PARTITION = "__HIVE_DEFAULT_PARTITION__"


@dataclass(frozen=True)
class InputFile:
    """A file of the source: its path, its path below the source, its bytes, and what its name says."""

    path: Path
    name: str
    size: int
    format: str
    codec: str | None

    @property
    def folder(self) -> str:
        """The folders between the source and the file, "" for none."""
        return Path(self.name).parent.as_posix().removeprefix(".")

    @property
    def partition(self) -> Row:
        """The columns in the names of those folders: "year=2026/lang=de"."""
        pairs = [part.split("=", 1) for part in self.folder.split("/") if "=" in part]
        return {key: None if value == NULL_PARTITION else unquote(value) for key, value in pairs}


@dataclass
class Window:
    """Neighbouring rows of one file. Windows depend on nothing but the file, so that a resumed job cuts the same ones.

    Attributes:
        file: which of the source's files.
        index: the window's number in that file.
        first_row: the first row's number in that file.
        rows: a table from Parquet, otherwise a list of dicts.
        errors: what is wrong with rows that could not be read, by their number in the window.
        bytes_read: of the file, when the window was complete.
    """

    file: InputFile
    index: int = 0
    first_row: int = 0
    rows: pa.Table | list[Row] = field(default_factory=list)
    errors: dict[int, str] = field(default_factory=dict)
    bytes_read: int = 0

    def column(self, name: str) -> list[Any]:
        """The values of a column; broken UTF-8 gives surrogates, which the scorer reports."""
        if isinstance(self.rows, list):
            return [row.get(name) for row in self.rows]
        return to_list(self.rows[name])

    def to_dicts(self) -> list[Row]:
        """The rows as dicts."""
        if isinstance(self.rows, list):
            return self.rows
        names = self.rows.column_names
        columns = [to_list(column) for column in self.rows.columns]
        return [dict(zip(names, values, strict=True)) for values in zip(*columns, strict=True)]


class Source:
    """The input of a job.

    Attributes:
        files: in the order they are read in.
        format: "parquet", "jsonl" or "csv".
        total_bytes: of all files.
        window_rows: rows that a window has at most.
    """

    def __init__(self, path: Path, window_rows: int, has_partition: bool = True) -> None:
        """Find the files; nothing is read.

        Args:
            path: a file or a folder.
            window_rows: rows that a window has at most.
            has_partition: make columns of folder names like "year=2026".

        Raises:
            InvalidInputError: nothing is there, or nothing that can be read, or files of several formats.
        """
        if not path.exists():
            raise InvalidInputError(f"{path} does not exist")
        self.path = path
        paths = sorted(file for file in path.rglob("*") if _is_data(file, path)) if path.is_dir() else [path]
        if not paths:
            raise InvalidInputError(f"the folder {path} holds no files: expected {_describe_formats()}")
        base = path if path.is_dir() else path.parent
        self.files = [_describe(file, file.relative_to(base).as_posix()) for file in paths]
        formats = sorted({file.format for file in self.files})
        if len(formats) > 1:
            raise InvalidInputError(
                f"{path} holds files of several formats, {', '.join(formats)}: score them one by one"
            )
        self.format = formats[0]
        self.total_bytes = sum(file.size for file in self.files)
        self.window_rows = window_rows
        self._partition_names = list(self.files[0].partition) if has_partition else []

    def read(self, file: InputFile) -> Iterator[Window]:
        """The windows of a file, in order. Rows before a place where it cannot be read any further are still given.

        Raises:
            InvalidInputError: the file is damaged or not of its format.
        """
        windows = self._read_parquet(file) if file.format == "parquet" else self._read_lines(file)
        first_row = 0
        for index, window in enumerate(windows):
            window.index, window.first_row = index, first_row
            first_row += len(window.rows)
            yield window

    def empty_window(self) -> Window:
        """No rows, of the first file."""
        return Window(self.files[0], rows=self.schema.empty_table() if self.format == "parquet" else [])

    def share_read(self, window: Window) -> float:
        """How much of all bytes was read when a window was complete."""
        before = sum(file.size for file in self.files[: self.files.index(window.file)])
        return (before + window.bytes_read) / max(1, self.total_bytes)

    @cached_property
    def schema(self) -> pa.Schema:
        """Of Parquet: the columns of all files together.

        Raises:
            InvalidInputError: a file is damaged, or its columns do not fit those of the first.
        """
        import pyarrow as pa
        from pyarrow import parquet

        schema: pa.Schema = None
        for file in self.files:
            try:
                found = parquet.read_schema(file.path)
            except (pa.ArrowException, OSError) as error:
                raise InvalidInputError(f"{file.path} is not a readable Parquet file: {_one_line(error)}") from None
            try:
                schema = pa.unify_schemas([schema, found]) if schema else found
            except pa.ArrowException as error:
                raise InvalidInputError(
                    f"the columns of {file.path} do not fit those of the files before it: {_one_line(error)}"
                ) from None
        for name in self._partition_names:
            if name not in schema.names:
                schema = schema.append(pa.field(name, pa.string()))
        return schema

    def check_columns(self, wanted: Sequence[str], window: Window) -> None:
        """See that the columns are there.

        Args:
            wanted: their names.
            window: the first one.

        Raises:
            InvalidInputError: a column is missing or not of text, or no row of the window could be read.
        """
        if self.format == "parquet":
            known = list(self.schema.names)
        else:
            if window.rows and len(window.errors) == len(window.rows):
                raise InvalidInputError(
                    f"{window.file.path} is not {_KINDS[self.format]}, in UTF-8: none of its first "
                    f"{len(window.rows)} rows can be read; {window.errors[0]}"
                )
            known = list(dict.fromkeys(name for row in window.rows for name in row))
        for name in wanted:
            if known and name not in known:
                near = difflib.get_close_matches(name, known, 1, 0.5)
                hint = f"did you mean {near[0]!r}?" if near else "choose one of these"
                raise InvalidInputError(f"there is no column {name!r} in {self.path}, only {', '.join(known)}: {hint}")
            if self.format == "parquet" and not _is_text(self.schema.field(name).type):
                raise InvalidInputError(
                    f"column {name!r} of {self.path} is of type {self.schema.field(name).type}, not text: convert it"
                )

    def _partition(self, file: InputFile) -> Row:
        return {name: file.partition.get(name) for name in self._partition_names}

    def _read_parquet(self, file: InputFile) -> Iterator[Window]:
        import pyarrow as pa
        from pyarrow import parquet

        schema, done = self.schema, 0
        try:
            with parquet.ParquetFile(file.path, buffer_size=1 << 20, pre_buffer=False) as reader:
                total = max(1, reader.metadata.num_rows)
                parts: list[pa.Table] = []
                for batch in reader.iter_batches(PARQUET_ROWS):
                    parts.append(pa.Table.from_batches([batch]))
                    done += batch.num_rows
                    count = sum(part.num_rows for part in parts)
                    if count >= self.window_rows or sum(part.nbytes for part in parts) >= WINDOW_BYTES:
                        yield Window(file, rows=self._join(file, parts, schema), bytes_read=file.size * done // total)
                        parts = []
                if parts:
                    yield Window(file, rows=self._join(file, parts, schema), bytes_read=file.size)
        except (pa.ArrowException, OSError) as error:
            raise InvalidInputError(f"{file.path} cannot be read after row {done}: {_one_line(error)}") from None

    def _join(self, file: InputFile, parts: list[pa.Table], schema: pa.Schema) -> pa.Table:
        """One table with the columns of all files, null where this one has none."""
        import pyarrow as pa

        table = pa.concat_tables(parts)
        for name, value in self._partition(file).items():
            if name not in table.column_names:
                table = table.append_column(name, pa.array([value] * table.num_rows, pa.string()))
        columns = [
            table[name].cast(kind) if name in table.column_names else pa.nulls(table.num_rows, kind)
            for name, kind in zip(schema.names, schema.types, strict=True)
        ]
        return pa.Table.from_arrays(columns, schema=schema)

    def _read_lines(self, file: InputFile) -> Iterator[Window]:
        import pyarrow as pa

        partition = self._partition(file)
        with open(file.path, "rb", buffering=0) as raw:
            stream = pa.CompressedInputStream(raw, file.codec) if file.codec else raw
            records = (_parse_csv if file.format == "csv" else _parse_jsonl)(io.BufferedReader(stream, READ_BYTES))
            window, size, done = Window(file), 0, 0
            broken: Exception | None = None
            while True:
                try:
                    row, error, row_bytes = next(records)
                except StopIteration:
                    break
                except OSError as found:  # of the codec: what was read before is good
                    broken = found
                    break
                if error:
                    window.errors[len(window.rows)] = error
                window.rows.append(row | partition if partition else row)
                size, done = size + row_bytes, done + 1
                if len(window.rows) >= self.window_rows or size >= WINDOW_BYTES:
                    window.bytes_read = raw.tell()
                    yield window
                    window, size = Window(file), 0
            if window.rows:
                window.bytes_read = file.size
                yield window
            if broken:
                raise InvalidInputError(
                    f"{file.path} cannot be read after row {done}: {_one_line(broken)}; the rows before are scored"
                )


def to_list(column: pa.ChunkedArray) -> list[Any]:
    """The values of a column as Python's; bytes that are not UTF-8 become surrogates."""
    import pyarrow as pa

    try:
        values: list[Any] = column.to_pylist()
    except UnicodeDecodeError:
        values = column.cast(pa.string()).cast(pa.binary()).to_pylist()
        values = [None if value is None else value.decode(errors="surrogateescape") for value in values]
    return values


def _parse_jsonl(stream: io.BufferedReader) -> Iterator[tuple[Row, str | None, int]]:
    """(row, what is wrong with it, bytes) of each line; blank lines are no rows."""
    number = 0
    while line := stream.readline(LINE_BYTES):
        number += 1
        size = len(line)
        if size == LINE_BYTES and not line.endswith(b"\n"):
            while (rest := stream.readline(LINE_BYTES)) and not rest.endswith(b"\n"):
                pass
            yield {}, f"line {number} is longer than {LINE_BYTES} bytes", 0
            continue
        text = line.decode("utf-8-sig" if number == 1 else "utf-8", "surrogateescape")
        if not text.strip():
            continue
        try:
            row = json.loads(text)
        except (ValueError, RecursionError) as error:
            yield {}, f"line {number} is not JSON ({error}): {text[:100].strip()}", size
            continue
        if isinstance(row, dict):
            yield row, None, size
        else:
            yield {}, f"line {number} is not a JSON object: {text[:100].strip()}", size


def _parse_csv(stream: io.BufferedReader) -> Iterator[tuple[Row, str | None, int]]:
    """(row, what is wrong with it, characters) of each record; all values stay text, an empty line is no row."""
    csv.field_size_limit(LINE_BYTES)
    records = csv.reader(io.TextIOWrapper(stream, "utf-8-sig", "surrogateescape", newline=""), strict=True)
    header: list[str] | None = None
    while True:
        try:
            values = next(records)
        except StopIteration:
            return
        except csv.Error as error:
            yield {}, f"line {records.line_num} is not CSV ({error})", 0
            continue
        if header is None:
            header = values
            if len(set(header)) < len(header):
                raise InvalidInputError(f"the header of the CSV names a column twice: {', '.join(header)}")
        elif values:
            fault = None
            if len(values) != len(header):
                fault = f"line {records.line_num} has {len(values)} fields, the header {len(header)}"
            yield dict(zip(header, values, strict=False)), fault, sum(map(len, values))


def _is_data(path: Path, base: Path) -> bool:
    """Whether a path is a file that is meant to be read, not one that a tool has put beside the data."""
    return path.is_file() and not any(part.startswith((".", "_")) for part in path.relative_to(base).parts)


def _describe(path: Path, name: str) -> InputFile:
    format_, codec = find_format(path)
    if format_ is None or (format_ == "parquet" and codec):
        raise InvalidInputError(f"{path} is of no known format: expected {_describe_formats()}")
    return InputFile(path, name, path.stat().st_size, format_, codec)


def find_format(path: Path) -> tuple[str | None, str | None]:
    """(format, codec) that a name stands for."""
    suffixes = path.suffixes
    codec = CODECS.get(suffixes[-1]) if suffixes else None
    suffixes = suffixes[:-1] if codec else suffixes
    return (FORMATS.get(suffixes[-1]) if suffixes else None), codec


def _describe_formats() -> str:
    return f"{', '.join(FORMATS)}, of the last ones also with {' or '.join(CODECS)}"


def _is_text(kind: pa.DataType) -> bool:
    """Whether values of a type may be texts, or n-best lists of them."""
    import pyarrow as pa

    kind = kind.value_type if pa.types.is_dictionary(kind) else kind
    return any(
        check(kind)
        for check in (pa.types.is_string, pa.types.is_large_string, pa.types.is_string_view, pa.types.is_list)
    )


def _one_line(error: Exception) -> str:
    return str(error).strip().partition("\n")[0]
