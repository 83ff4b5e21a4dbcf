"""Survey: reads the whole input before any row is scored, to learn its columns and types and to refuse what is wrong.

A job that has begun then never loses a row: the columns and their types are known, and the files are whole.
"""

from __future__ import annotations

import difflib
from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Sequence
from functools import partial
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgebert.errors import InvalidInputError
from edgebert.scoring.readers import InputFile, Source, Window, is_list, is_string
from edgebert.scoring.scorer import RowCheck, Scorer

if TYPE_CHECKING:
    import pyarrow as pa

MAX_COLUMNS = 10_000  # that JSON lines may make: field names that are data must not fill the memory
_NAMES_TOLD = 20  # in a message
_KINDS = {"jsonl": "JSON lines, an object a line", "csv": "CSV", "tsv": "TSV", "txt": "text"}
_EXACT = 1 << 53  # integers up to here are exact in f64
_NULL = type(None)


class Column:
    """What the survey has seen of a column's values.

    Attributes:
        kinds: their Python types.
        low, high: the smallest and the largest integer among them and 0.
        items: of lists, what was seen of their values.
    """

    def __init__(self) -> None:
        self.kinds: set[type] = set()
        self.low = self.high = 0
        self.items: Column | None = None

    def add(self, values: Sequence[Any]) -> None:
        """Note the types, and the range, of more values."""
        kinds = set(map(type, values))
        self.kinds |= kinds
        if int in kinds:
            integers = [value for value in values if type(value) is int]
            self.low, self.high = min(self.low, *integers), max(self.high, *integers)
        if list in kinds:
            self.items = self.items or Column()
            self.items.add([item for value in values if type(value) is list for item in value])

    def merge(self, other: Column) -> None:
        """Add what another Column has noted."""
        self.kinds |= other.kinds
        self.low, self.high = min(self.low, other.low), max(self.high, other.high)
        if other.items:
            self.items = self.items or Column()
            self.items.merge(other.items)

    def find_type(self) -> pa.DataType | None:
        """The Arrow type that holds each value exactly; None if only JSON text does."""
        import pyarrow as pa

        kinds = self.kinds - {_NULL}
        if kinds == {str}:
            return pa.string()
        if kinds == {bool}:
            return pa.bool_()
        if kinds == {int}:
            if self.low >= -(1 << 63) and self.high < 1 << 63:
                return pa.int64()
            return pa.uint64() if self.low == 0 and self.high < 1 << 64 else None
        if kinds in ({float}, {int, float}):
            return pa.float64() if self.low >= -_EXACT and self.high <= _EXACT else None
        if kinds == {list} and self.items and (kind := self.items.find_type()):
            return pa.list_(kind)
        return None


class Survey:
    """What a file or the whole input holds.

    Attributes:
        rows: how many.
        columns: of JSON lines and CSV, by name; of Parquet none, whose schema says it all.
        has_more_columns: whether there are more than MAX_COLUMNS, so that `columns` lacks some.
        has_usable: whether any row can be scored; `fault` is why the first one that cannot be scored cannot.
        unreadable: how many rows could not be read; `damage` is what is wrong with the first of them.
        schema: columns and types of the whole input.
    """

    schema: pa.Schema

    def __init__(self, needed: frozenset[str]) -> None:
        """Args: names of columns that are never left out of `columns`."""
        self._needed = needed
        self.rows = self.unreadable = 0
        self.columns: dict[str, Column] = {}
        self.has_more_columns = self.has_usable = False
        self.fault: str | None = None
        self.damage: str | None = None

    def add(self, window: Window, check: RowCheck) -> None:
        """Note what the rows of a window hold."""
        self.rows += len(window.rows)
        self.unreadable += len(window.errors)
        self.damage = self.damage or next(iter(window.errors.values()), None)
        if not self.has_usable:
            for i, values in enumerate(zip(*map(window.column, check.columns), strict=True)):
                fault = window.errors.get(i) or check.find_fault(values)
                self.has_usable |= fault is None
                self.fault = self.fault or fault
        if isinstance(window.rows, list):
            fields: dict[str, list[Any]] = defaultdict(list)
            for row in window.rows:
                for name, value in row.items():
                    fields[name].append(value)
            for name, seen in fields.items():
                if column := self._open_column(name):
                    column.add(seen)

    def merge(self, other: Survey) -> None:
        """Add what another Survey has noted of a later file."""
        self.rows += other.rows
        self.has_usable |= other.has_usable
        self.fault = self.fault or other.fault
        self.has_more_columns |= other.has_more_columns
        for name, seen in other.columns.items():
            if column := self._open_column(name):
                column.merge(seen)

    def _open_column(self, name: str) -> Column | None:
        if name not in self.columns:
            if len(self.columns) >= MAX_COLUMNS and name not in self._needed:
                self.has_more_columns = True
                return None
            self.columns[name] = Column()
        return self.columns[name]


def survey(
    source: Source,
    scorer: Scorer,
    each: Callable[[Callable[[InputFile], Survey], list[InputFile]], Iterable[Survey]] = map,
) -> Survey:
    """Read the whole input, and check that the scorer can score it and add its columns.

    Args:
        source: the input.
        scorer: what will score it.
        each: applies a function to each file and gives its results in order.

    Raises:
        InvalidInputError: a file is damaged, a column is missing, stands there twice, is not of text or has the name of
            a result, or no row can be scored.
    """
    import pyarrow as pa

    results = {*scorer.results, scorer.error_column, scorer.truncated_column}
    check, needed = scorer.check, frozenset({*scorer.columns, *results})
    if source.format == "parquet":
        _see_columns(source.path, source.schema.names, check)
        for name in check.columns:
            _see_type(source.path, source.schema.field(name), check)
        _see_results(source.schema.names, results)
    whole = Survey(needed)
    for found in each(partial(survey_file, source, check=check, needed=needed), source.files):
        whole.merge(found)
    _see_results(whole.columns, results)
    if whole.rows and not whole.has_usable:
        raise InvalidInputError(f"no row of {source.path} can be scored; the first: {whole.fault}")
    if source.format == "parquet":
        whole.schema = source.schema
    else:
        whole.schema = pa.schema([(name, column.find_type() or pa.string()) for name, column in whole.columns.items()])
    return whole


def survey_file(source: Source, file: InputFile, check: RowCheck, needed: frozenset[str]) -> Survey:
    """Read a file to its end.

    Raises:
        InvalidInputError: it is damaged, lacks a column, or is of another format than its name says.
    """
    found = Survey(needed)
    for window in source.read(file):
        found.add(window, check)
    if found.rows and found.unreadable == found.rows:
        raise InvalidInputError(
            f"{file.path} is not {_KINDS[file.format]}, in UTF-8: none of its {found.rows} rows can be read; "
            f"{found.damage}"
        )
    if found.rows:
        _see_columns(file.path, source.read_names(file) if file.format == "parquet" else found.columns, check)
    return found


def _see_columns(path: Path, known: Collection[str], check: RowCheck) -> None:
    for name in check.columns:
        if name in known:
            continue
        outer = name.split(".")[0]
        near = difflib.get_close_matches(name, known, 1, 0.5)
        if outer in known:
            hint = f"what is inside of {outer!r} has to be made a column first"
        else:
            hint = f"did you mean {near[0]!r}?" if near else "choose one of these"
        names = ", ".join(islice(known, _NAMES_TOLD)) + (", …" if len(known) > _NAMES_TOLD else "")
        raise InvalidInputError(f"there is no column {name!r} in {path}, only {names}: {hint}")


def _see_results(known: Collection[str], results: set[str]) -> None:
    if taken := results.intersection(known):
        raise InvalidInputError(
            f"the input has a column {min(taken)!r} already, which a result would be called: give the "
            "results a prefix (--prefix)"
        )


def _see_type(path: Path, field: pa.Field, check: RowCheck) -> None:
    """Check that a column of Parquet has the type of texts, or of n-best lists for a task that takes them."""
    import pyarrow as pa

    kind = field.type.value_type if pa.types.is_dictionary(field.type) else field.type
    if is_string(kind):
        return
    expected = "text"
    if check.takes_lists:
        expected = "text or lists of {text, score}"
        if is_list(kind) and pa.types.is_struct(kind.value_type):
            parts = {part.name: part.type for part in kind.value_type}
            score = parts.get("score", pa.null())
            if is_string(parts.get("text", pa.null())) and (pa.types.is_integer(score) or pa.types.is_floating(score)):
                return
    raise InvalidInputError(f"column {field.name!r} of {path} is of type {field.type}, not {expected}: convert it")
