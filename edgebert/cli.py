"""The command line: parses arguments, calls a command, turns errors into one line and an exit status."""

from __future__ import annotations

import argparse
import io
import os
import sys
import warnings
from collections.abc import Callable, Sequence

from edgebert import __version__
from edgebert.commands import (
    bench,
    bench_compare,
    check,
    compress,
    demo,
    doctor,
    export,
    info,
    run,
    score,
    serve,
    sign,
    verify,
)
from edgebert.errors import EdgeBertError

COMMANDS = {
    "run": run,
    "score": score,
    "serve": serve,
    "export": export,
    "compress": compress,
    "check": check,
    "info": info,
    "sign": sign,
    "verify": verify,
    "doctor": doctor,
    "demo": demo,
    "bench": bench,
    "bench compare": bench_compare,
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; the exit status: 0, 1 after an error, 2 for wrong usage, 130 when interrupted."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    if words[:2] == ["bench", "compare"]:
        words[:2] = ["bench compare"]
    if sys.platform == "win32" and isinstance(sys.stdout, io.TextIOWrapper):  # written to files in UTF-8, as elsewhere
        sys.stdout.reconfigure(encoding="utf-8")
    args = _parse(words)
    warnings.showwarning = _print_warning
    command: Callable[[argparse.Namespace], int | None] = args.command
    try:
        status = command(args) or 0
        print(end="", flush=True)  # a full disk is noticed here
        return status
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:  # the program that reads our output has ended
        _drop_output()
        return 1
    except (EdgeBertError, OSError) as error:
        try:
            print(end="", flush=True)
        except OSError:
            _drop_output()
        told = str(error)
        if isinstance(error, OSError) and error.filename is not None:
            told = f"{error.filename}: {error.strerror}"
        print(f"edgebert: {told}", file=sys.stderr)
        return 1


def _parse(words: Sequence[str]) -> argparse.Namespace:
    """The arguments; texts and models may stand after options, too, where argparse no longer looks for them."""
    parser = build_parser()
    args, rest = parser.parse_known_args(words)
    many = getattr(args, "texts", getattr(args, "models", None))
    if rest and (many is None or any(word.startswith("-") for word in rest)):
        parser.error(f"unrecognized arguments: {' '.join(rest)}")
    if many is not None:
        many += rest
    return args


def build_parser() -> argparse.ArgumentParser:
    """The parser of all commands."""
    parser = argparse.ArgumentParser(prog="edgebert", description="BERT-family encoders as one ONNX file.")
    parser.add_argument("--version", action="version", version=f"edgebert {__version__}")
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")
    for name, command in COMMANDS.items():
        added = commands.add_parser(
            name, help=command.HELP, description=f"{command.HELP[0].upper()}{command.HELP[1:]}."
        )
        command.add_arguments(added)
        added.set_defaults(command=command.main)
    return parser


def _drop_output() -> None:
    """Keep Python from failing again when it flushes at its end."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _print_warning(message: Warning | str, *_: object, **__: object) -> None:
    print(f"edgebert: warning: {message}", file=sys.stderr)
