"""Values, reports and tables as people read them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any


def format_value(value: Any) -> str:
    """A value as a person reads it: floats to six digits, lists without brackets."""
    if isinstance(value, list):
        return " ".join(map(format_value, value))
    return f"{value:.6g}" if isinstance(value, float) else str(value)


def print_report(report: dict[str, Any], indent: str = "") -> None:
    """A dict as lines of `key: value`, nested ones indented, those of like dicts as a table."""
    for key, value in report.items():
        if not isinstance(value, dict):
            print(f"{indent}{key}: {format_value(value)}")
            continue
        print(f"{indent}{key}:")
        columns = {tuple(row) if isinstance(row, dict) else () for row in value.values()}
        if len(columns) == 1 and (names := columns.pop()):
            rows = [[name, *map(format_value, row.values())] for name, row in value.items()]
            print_table([["", *names], *rows], indent + "  ")
        else:
            print_report(value, indent + "  ")


def print_table(rows: Sequence[Sequence[str]], indent: str = "") -> None:
    """Rows as aligned columns, the first of them names."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    for name, *cells in rows:
        aligned = [name.ljust(widths[0]), *map(str.rjust, cells, widths[1:])]
        print(indent + "  ".join(aligned))
