"""`edgebert demo`: the whole of it on a real model."""

from __future__ import annotations

import argparse

from edgebert.errors import require

HELP = "export all-MiniLM-L6-v2, compare it with ONNX Runtime, and search with it"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command's arguments."""
    parser.add_argument("--keep", metavar="FOLDER", help="keep the exported files there")
    parser.add_argument(
        "--compress", action="store_true", help="instead fine-tune, distil, prune and quantize it into a classifier"
    )


def main(args: argparse.Namespace) -> int:
    """Run the command."""
    from edgebert import demo

    if not args.compress:
        return demo.main(args)
    from edgebert.commands.compress import NEEDS

    require("demo,compress", *NEEDS, demo.MODEL_PACKAGE)
    from edgebert.compress.demo import main as compress

    return compress(args.keep)
