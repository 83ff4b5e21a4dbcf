"""Reads rows of Parquet, JSON lines, CSV, TSV or text: a file or a folder of them, in windows that bound the memory."""

from __future__ import annotations

import csv
import gzip
import io
import json
import os
import re
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote

from edgebert.errors import InvalidInputError

if TYPE_CHECKING:
    import pyarrow as pa

Row = dict[str, Any]

FORMATS = {
    ".parquet": "parquet",
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".json": "jsonl",
    ".csv": "csv",
    ".tsv": "tsv",
    ".txt": "txt",
}
DELIMITERS = {"csv": ",", "tsv": "\t"}
CODECS = {".gz": "gzip", ".zst": "zstd"}

WINDOW_BYTES = 32 << 20  # a window is cut short when its rows take this many bytes, so that long texts fit in memory
LINE_BYTES = 64 << 20  # a longer line is a bad row: no row may fill the memory
LINE_LEVELS = 100  # a line with more objects and lists inside of one another is a bad row: no row may fill the stack
LONG_DIGITS = 640  # integers of more are read as text where Python refuses them as numbers
PARQUET_ROWS = 256  # rows that are decoded at a time
NULL_PARTITION = "__HIVE_DEFAULT_PARTITION__"

_SURROGATES = re.compile("[\ud800-\udfff]")
_LONG_INTEGERS = json.JSONDecoder(parse_int=lambda digits: int(digits) if len(digits) <= LONG_DIGITS else digits)


@dataclass(frozen=True)
class InputFile:
    """A file of the source: its path, its path below the source, its size, when it was changed, and its format."""

    path: Path
    name: str
    size: int
    time_ns: int
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
        return {clean(key): None if value == NULL_PARTITION else clean(unquote(value)) for key, value in pairs}


@dataclass
class Window:
    """Neighbouring rows of one file. Windows depend on nothing but the file, so that a resumed job cuts the same ones.

    Attributes:
        file: which of the source's files.
        index: the window's number in that file.
        first_row: the first row's number in that file.
        rows: a table from Parquet, otherwise a list of dicts.
        errors: what is wrong with rows that could not be read, by their number in the window.
        lines: the line on which each row ends, counted from 1; of Parquet none.
    """

    file: InputFile
    index: int = 0
    first_row: int = 0
    rows: pa.Table | list[Row] = field(default_factory=list)
    errors: dict[int, str] = field(default_factory=dict)
    lines: list[int] = field(default_factory=list)

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
        format: one of FORMATS.
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
            raise InvalidInputError(f"{path} does not exist: give a file or folder of rows")
        self.path = path
        paths = sorted(_find_data(path)) if path.is_dir() else [path]
        if not paths:
            raise InvalidInputError(f"the folder {path} holds no files: expected {_describe_formats()}")
        base = path if path.is_dir() else path.parent
        self.files = [_describe(file, file.relative_to(base).as_posix()) for file in paths]
        formats = sorted({file.format for file in self.files})
        if len(formats) > 1:
            raise InvalidInputError(
                f"{path} holds files of several formats, {', '.join(formats)}: read them one by one"
            )
        self.format = formats[0]
        self.total_bytes = sum(file.size for file in self.files)
        self.window_rows = window_rows
        names = (name for file in self.files for name in file.partition)
        self._partition_names = list(dict.fromkeys(names)) if has_partition else []

    def read(self, file: InputFile) -> Iterator[Window]:
        """The windows of a file, in order.

        Raises:
            InvalidInputError: the file is damaged, not of its format, or has changed since the source was made.
        """
        windows = self._read_parquet(file) if file.format == "parquet" else self._read_lines(file)
        first_row = 0
        for index, window in enumerate(windows):
            window.index, window.first_row = index, first_row
            first_row += len(window.rows)
            yield window
        now = file.path.stat()
        if (now.st_size, now.st_mtime_ns) != (file.size, file.time_ns):
            raise InvalidInputError(f"{file.path} has changed while it was read: remove the output and begin anew")

    def empty_window(self) -> Window:
        """No rows, of the first file."""
        return Window(self.files[0], rows=self.schema.empty_table() if self.format == "parquet" else [])

    @cached_property
    def schema(self) -> pa.Schema:
        """Of Parquet: the columns of all files together, each of a type that holds the values of all.

        Raises:
            InvalidInputError: a file is damaged, names a column twice, or its columns do not fit those before.
        """
        import pyarrow as pa

        schema: pa.Schema = None
        for file in self.files:
            found = self._read_schema(file)
            if schema is None or found.equals(schema):
                schema = schema or found
                continue
            try:
                schema = _unify(schema, found)
            except (pa.ArrowException, TypeError) as error:
                raise InvalidInputError(
                    f"the columns of {file.path} do not fit those of the files before it: {_one_line(error)}"
                ) from None
        for name in self._partition_names:
            if name not in schema.names:
                schema = schema.append(pa.field(name, pa.string()))
        return schema

    def read_names(self, file: InputFile) -> list[str]:
        """Names of the columns of a Parquet file."""
        return [*self._read_schema(file).names, *self._partition(file)]

    def _read_schema(self, file: InputFile) -> pa.Schema:
        from pyarrow import parquet

        try:
            schema = parquet.read_schema(file.path)
            _refuse_repeated(file, schema.names)
        except _damage_errors() as error:
            raise InvalidInputError(f"{file.path} is not a readable Parquet file: {_one_line(error)}") from None
        return schema

    def _partition(self, file: InputFile) -> Row:
        return {name: file.partition.get(name) for name in self._partition_names}

    def _read_parquet(self, file: InputFile) -> Iterator[Window]:
        import pyarrow as pa
        from pyarrow import parquet

        schema, done = self.schema, 0
        try:
            with parquet.ParquetFile(
                file.path, buffer_size=1 << 20, pre_buffer=False, page_checksum_verification=True
            ) as reader:
                parts: list[pa.Table] = []
                for batch in reader.iter_batches(PARQUET_ROWS):
                    parts.append(pa.Table.from_batches([batch]))
                    done += batch.num_rows
                    count = sum(part.num_rows for part in parts)
                    if count >= self.window_rows or sum(part.nbytes for part in parts) >= WINDOW_BYTES:
                        yield Window(file, rows=self._join(file, parts, schema))
                        parts = []
                if parts:
                    yield Window(file, rows=self._join(file, parts, schema))
                if done != reader.metadata.num_rows:
                    raise OSError(f"its footer says {reader.metadata.num_rows} rows")
        except _damage_errors() as error:
            raise _broken(file, done, error) from None

    def _join(self, file: InputFile, parts: list[pa.Table], schema: pa.Schema) -> pa.Table:
        """One table with the columns of all files; those that this file lacks are null."""
        import pyarrow as pa

        table = pa.concat_tables(parts)
        for name, value in self._partition(file).items():
            if name not in table.column_names:
                table = table.append_column(name, pa.array([value] * table.num_rows, pa.string()))
        columns = []
        for name, kind in zip(schema.names, schema.types, strict=True):
            try:
                has_it = name in table.column_names
                columns.append(table[name].cast(kind) if has_it else pa.nulls(table.num_rows, kind))
            except pa.ArrowException as error:
                raise InvalidInputError(
                    f"column {name!r} of {file.path} does not fit {kind}, which the files together ask for: "
                    f"{_one_line(error)}: make it of one type in all files"
                ) from None
        return pa.Table.from_arrays(columns, schema=schema)

    def _read_lines(self, file: InputFile) -> Iterator[Window]:
        import pyarrow as pa

        partition, done = self._partition(file), 0
        try:
            with open(file.path, "rb", buffering=0) as raw:
                stream: Any = raw
                if file.codec:  # Python's gzip takes the zeros that tapes leave after the end, Arrow's does not
                    stream = (
                        gzip.GzipFile(fileobj=raw) if file.codec == "gzip" else pa.CompressedInputStream(raw, "zstd")
                    )
                window, size = Window(file), 0
                for line, row, error, row_bytes in _PARSERS[file.format](io.BufferedReader(stream), file):
                    if error:
                        window.errors[len(window.rows)] = error
                    window.rows.append(row | partition if partition else row)
                    window.lines.append(line)
                    size, done = size + row_bytes, done + 1
                    if len(window.rows) >= self.window_rows or size >= WINDOW_BYTES:
                        yield window
                        window, size = Window(file), 0
                if window.rows:
                    yield window
        except _damage_errors() as error:
            raise _broken(file, done, error) from None


def to_list(column: pa.ChunkedArray) -> list[Any]:
    """The values of a column as Python's; bytes that are not UTF-8 become surrogates."""
    try:
        values: list[Any] = column.to_pylist()
    except (ValueError, OverflowError, KeyError):
        values = [_to_python(value) for value in column]
    return values


def _to_python(value: pa.Scalar) -> Any:
    """A value that Arrow may fail to convert: text that is not UTF-8, or a time that Python cannot hold."""
    import pyarrow as pa

    if not value.is_valid:
        return None
    if isinstance(value, pa.DictionaryScalar):
        return _to_python(value.value)
    if isinstance(value, pa.MapScalar):
        return [tuple(map(_to_python, pair.values())) for pair in value.values]
    if is_list(value.type):
        return [_to_python(item) for item in value.values]
    if isinstance(value, pa.StructScalar):
        pairs = [(field.name, _to_python(value[i])) for i, field in enumerate(value.type)]
        return dict(pairs) if len(dict(pairs)) == len(pairs) else pairs
    if is_string(value.type):
        return value.as_buffer().to_pybytes().decode(errors="surrogateescape")
    try:
        return value.as_py()
    except (ValueError, OverflowError, KeyError):
        pass
    try:
        return value.cast(pa.string()).as_py()
    except pa.ArrowException:  # the zone
        return value.cast(pa.timestamp(value.type.unit)).cast(pa.string()).as_py()


def clean(text: str) -> str:
    """A text without surrogates, which UTF-8 cannot hold."""
    return _SURROGATES.sub("\ufffd", text)


Record = tuple[int, Row, str | None, int]  # a row's line, the row, what is wrong with it, its bytes or characters


def _decode_lines(stream: io.BufferedReader) -> Iterator[tuple[int, str | None, int]]:
    """(number, text, bytes) of each line that is not blank; no text if it is longer than LINE_BYTES."""
    number = 0
    while line := stream.readline(LINE_BYTES):
        number += 1
        size = len(line)
        if size == LINE_BYTES and not line.endswith(b"\n"):
            while (rest := stream.readline(LINE_BYTES)) and not rest.endswith(b"\n"):
                pass
            yield number, None, 0
            continue
        text = line.decode("utf-8-sig" if number == 1 else "utf-8", "surrogateescape")
        if text.strip():
            yield number, text, size


def _parse_text(stream: io.BufferedReader, _: InputFile) -> Iterator[Record]:
    """The row of each line: its text, in the column "text"."""
    for number, text, size in _decode_lines(stream):
        fault = f"line {number} is longer than {LINE_BYTES} bytes" if text is None else None
        yield number, {} if text is None else {"text": text.rstrip("\r\n")}, fault, size


def _parse_jsonl(stream: io.BufferedReader, _: InputFile) -> Iterator[Record]:
    """The row of each line."""
    for number, text, size in _decode_lines(stream):
        if text is None:
            yield number, {}, f"line {number} is longer than {LINE_BYTES} bytes", size
            continue
        row, fault = _read_object(text)
        yield number, row, fault and f"line {number} {fault}: {text[:100].strip()!r}", size


def _read_object(text: str) -> tuple[Row, str | None]:
    """(a JSON object, what is wrong with it)."""
    try:
        try:
            row = json.loads(text)
        except ValueError:  # no JSON, or an integer of thousands of digits
            row = _LONG_INTEGERS.decode(text)
    except ValueError as error:
        return {}, f"is not JSON ({error})"
    except RecursionError:
        return {}, f"has more than {LINE_LEVELS} objects and lists inside of one another"
    if text.count("[") + text.count("{") > LINE_LEVELS and _is_deep(row):
        return {}, f"has more than {LINE_LEVELS} objects and lists inside of one another"
    if not isinstance(row, dict):
        return {}, "is not a JSON object"
    if _SURROGATES.search("".join(row)):
        return {}, "has a field name that is not valid Unicode"
    return row, None


def _is_deep(value: Any) -> bool:
    """Whether a value has objects and lists on more than LINE_LEVELS levels."""
    level = [value]
    for _ in range(LINE_LEVELS):
        inside = (part.values() if isinstance(part, dict) else part for part in level if isinstance(part, (dict, list)))
        level = [part for parts in inside for part in parts]
    return any(isinstance(part, (dict, list)) for part in level)


def _parse_csv(stream: io.BufferedReader, file: InputFile) -> Iterator[Record]:
    """The row of each record; all values stay text, an empty line is no row."""
    csv.field_size_limit(LINE_BYTES)
    text = io.TextIOWrapper(stream, "utf-8-sig", "surrogateescape", newline="")
    records = csv.reader(text, delimiter=DELIMITERS[file.format], strict=True)
    header: list[str] | None = None
    while True:
        first = records.line_num + 1
        try:
            values = next(records)
        except StopIteration:
            return
        except csv.Error as error:
            is_one = records.line_num <= first
            lines = f"line {first} is" if is_one else f"lines {first} to {records.line_num} are"
            if header is None:
                raise InvalidInputError(f"the header of {file.path} is not CSV ({error})") from None
            yield records.line_num, {}, f"{lines} not CSV ({error})", 0
            continue
        if header is None:
            header = values
            _refuse_repeated(file, header)
            if _SURROGATES.search("".join(header)):
                raise InvalidInputError(f"the header of {file.path} is not in UTF-8: convert the file")
        elif values:
            fault = None
            if len(values) != len(header):
                fault = f"line {records.line_num} has {len(values)} fields, the header {len(header)}"
            yield records.line_num, dict(zip(header, values, strict=False)), fault, sum(map(len, values))


_PARSERS = {"jsonl": _parse_jsonl, "csv": _parse_csv, "tsv": _parse_csv, "txt": _parse_text}


def _find_data(folder: Path) -> Iterator[Path]:
    """The files below a folder; those whose name begins with a dot or an underscore are not data."""

    def refuse(error: OSError) -> None:
        raise error

    for path, folders, files in os.walk(folder, onerror=refuse):
        folders[:] = [name for name in folders if not name.startswith((".", "_"))]
        yield from (Path(path, name) for name in files if not name.startswith((".", "_")))


def _describe(path: Path, name: str) -> InputFile:
    format_, codec = find_format(path)
    if format_ is None or (format_ == "parquet" and codec):
        raise InvalidInputError(f"{path} is of no known format: expected {_describe_formats()}")
    if not path.is_file():
        raise InvalidInputError(f"{path} is not a regular file, which could be read twice: write its rows to one")
    status = path.stat()
    return InputFile(path, name, status.st_size, status.st_mtime_ns, format_, codec)


def find_format(path: Path) -> tuple[str | None, str | None]:
    """(format, codec) by a file's name; None for one that is not known."""
    suffixes = [suffix.lower() for suffix in path.suffixes]
    codec = CODECS.get(suffixes[-1]) if suffixes else None
    suffixes = suffixes[:-1] if codec else suffixes
    return (FORMATS.get(suffixes[-1]) if suffixes else None), codec


def _describe_formats() -> str:
    return f"{', '.join(FORMATS)}, of the last ones also with {' or '.join(CODECS)}"


def is_string(kind: pa.DataType) -> bool:
    """Whether values of a type are texts."""
    import pyarrow as pa

    return kind in (pa.string(), pa.large_string(), pa.string_view())


def is_list(kind: pa.DataType) -> bool:
    """Whether values of a type are lists."""
    import pyarrow as pa

    return isinstance(
        kind, (pa.ListType, pa.LargeListType, pa.FixedSizeListType, pa.ListViewType, pa.LargeListViewType)
    )


def _unify(schema: pa.Schema, other: pa.Schema) -> pa.Schema:
    """The columns of both schemas. If a column's types differ, it gets a type that holds the values of both.

    Raises:
        ArrowException, TypeError: there is no such type.
    """
    import pyarrow as pa

    both = []
    for one, beside in ((schema, other), (other, schema)):
        types = dict(zip(beside.names, beside.types, strict=True))
        fields = [each if types.get(each.name) == each.type else each.with_type(_plain(each.type)) for each in one]
        both.append(pa.schema([each.with_nullable(True) for each in fields], one.metadata))
    unified = pa.unify_schemas(both, promote_options="permissive")
    for column in (*schema, *other):
        kind = unified.field(column.name).type
        if is_string(_plain(column.type)) and not is_string(kind):  # bytes, which JSON would not tell as text
            raise TypeError(f"column {column.name!r} is of type {column.type} in one and {kind} in another")
    return unified


def _plain(kind: pa.DataType) -> pa.DataType:
    """A type that others can be unified with."""
    import pyarrow as pa

    kind = kind.value_type if pa.types.is_dictionary(kind) else kind
    return {pa.string_view(): pa.string(), pa.binary_view(): pa.binary()}.get(kind, kind)


def _refuse_repeated(file: InputFile, names: Iterable[str]) -> None:
    seen: set[str] = set()
    for name in names:
        if name in seen:
            raise InvalidInputError(f"{file.path} names a column twice, {name!r}: rename or remove one")
        seen.add(name)


def _damage_errors() -> tuple[type[Exception], ...]:
    """What reading a damaged file raises."""
    import pyarrow as pa

    return pa.ArrowException, OSError, EOFError, zlib.error, UnicodeDecodeError, OverflowError


def _broken(file: InputFile, done: int, error: Exception) -> InvalidInputError:
    advice = "get it whole again, or make a file of the rows that can be read"
    if "too much memory" in str(error):
        advice = "decompress it first, or compress it without --long"
    return InvalidInputError(f"{file.path} cannot be read after row {done}: {_one_line(error)}: {advice}")


def _one_line(error: Exception) -> str:
    return str(error).strip().partition("\n")[0].rstrip(".")
