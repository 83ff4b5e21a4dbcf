"""`edgebert sign`: a signature into a model file."""

from __future__ import annotations

import argparse

HELP = "sign a model file with an Ed25519 key, in place"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command's arguments."""
    parser.add_argument("file", help="a model file")
    parser.add_argument(
        "--key",
        required=True,
        metavar="PEM",
        help="the private key, as `openssl genpkey -algorithm ed25519 -out key.pem` makes it",
    )


def main(args: argparse.Namespace) -> None:
    """Run the command."""
    import edgebert

    print(f"{args.file}: signed; its readers verify it with --key {edgebert.sign(args.file, args.key)}")
