"""`edgebert demo`: the whole of it on a real model."""

from __future__ import annotations

import argparse

HELP = "export all-MiniLM-L6-v2, compare it with ONNX Runtime, and search with it"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command's arguments."""
    parser.add_argument("--keep", metavar="FOLDER", help="keep the exported files there")


def main(args: argparse.Namespace) -> int:
    """Run the command."""
    from edgebert import demo

    return demo.main(args)
