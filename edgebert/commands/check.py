"""`edgebert check`: the gate, again."""

from __future__ import annotations

import argparse

from edgebert.printing import print_report

HELP = "run a file's probe on every backend here and compare"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command's arguments."""
    parser.add_argument("file", help="a model file")


def main(args: argparse.Namespace) -> None:
    """Run the command."""
    import edgebert

    print_report(edgebert.check(args.file))
    print(f"{args.file}: all agree")
