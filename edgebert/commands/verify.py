"""`edgebert verify`: whether a model file is what was written, and who signed it."""

from __future__ import annotations

import argparse

HELP = "compare a model file with its content hash, and with its signature"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command's arguments."""
    parser.add_argument("file", help="a model file")
    parser.add_argument(
        "--key",
        metavar="PUBLIC",
        help="the public key that it must be signed with: 64 hexadecimal digits or a PEM file (default: none)",
    )


def main(args: argparse.Namespace) -> None:
    """Run the command."""
    from edgebert.artifact.integrity import check_content
    from edgebert.artifact.reader import read_artifact

    check_content(read_artifact(args.file), args.key)
    print(f"{args.file}: the content is what was {'written' if args.key is None else 'signed with this key'}")
