"""`edgebert bench compare`: two results side by side."""

from __future__ import annotations

import argparse
from pathlib import Path

HELP = "compare two results of edgebert bench --json"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command's arguments."""
    parser.add_argument("first", type=Path)
    parser.add_argument("second", type=Path)


def main(args: argparse.Namespace) -> None:
    """Run the command."""
    import textwrap

    from edgebert.bench.tables import COMPARISON_RULE, compare_results, format_table, read_result

    tables, doubts = compare_results(read_result(args.first), read_result(args.second))
    print("\n\n".join([*map(format_table, tables), textwrap.fill(COMPARISON_RULE, 100)]))
    if doubts:
        print("\n" + "\n".join(f"warning: {doubt}" for doubt in doubts))
