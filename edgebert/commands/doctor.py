"""`edgebert doctor`: what this machine can do."""

from __future__ import annotations

import argparse

HELP = "print what this machine and this installation can do"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command's arguments."""
    del parser  # it has none


def main(args: argparse.Namespace) -> None:
    """Run the command."""
    from edgebert.doctor import describe_machine

    print(describe_machine())
