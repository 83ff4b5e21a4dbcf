"""What the commands print in common."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any


def format_value(value: Any) -> str:
    """A value as a person reads it: floats to six digits, lists without brackets."""
    if isinstance(value, list):
        return " ".join(map(format_value, value))
    return f"{value:.6g}" if isinstance(value, float) else str(value)


def print_report(report: dict[str, Any], indent: str = "") -> None:
    """A dict as lines of `key: value`, nested ones indented."""
    for key, value in report.items():
        if isinstance(value, dict):
            print(f"{indent}{key}:")
            print_report(value, indent + "  ")
        else:
            print(f"{indent}{key}: {format_value(value)}")


def print_table(rows: Sequence[Sequence[str]]) -> None:
    """Rows as aligned columns."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    for row in rows:
        print("  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True)))
