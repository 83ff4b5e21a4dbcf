"""`edgebert run`: texts in, a line of answer each."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator

from edgebert.commands.printing import format_value
from edgebert.errors import InvalidInputError

HELP = "run texts through a model file and print a line for each"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command's arguments."""
    parser.add_argument("file", help="a model file, or a folder that holds model.onnx")
    parser.add_argument("texts", nargs="*", metavar="TEXT", help="texts; none or - reads lines from standard input")
    parser.add_argument("--backend", default="auto", help="auto, native, onnxruntime or numpy (default: auto)")
    parser.add_argument("--device", default="cpu", help="cpu, cuda or cuda:n (default: cpu)")
    parser.add_argument("--threads", type=int, help="CPU threads (default: the CPUs this process may use)")
    parser.add_argument("--max-length", type=int, metavar="N", help="truncate to N tokens (default: the file's limit)")
    parser.add_argument(
        "--prompt-name", metavar="NAME", help="of an embedding file: the prompt to put before every text"
    )
    parser.add_argument("--pairs", action="store_true", help="each text is a pair: first, tab, second")
    parser.add_argument(
        "--format", choices=("json", "text"), default="json", help="JSON lines, or columns (default: json)"
    )
    parser.add_argument("--verbose", action="store_true", help="say on standard error what runs the model")


def main(args: argparse.Namespace) -> None:
    """Run the command."""
    import edgebert

    model = edgebert.load(args.file, backend=args.backend, device=args.device, threads=args.threads)
    if args.verbose:
        print(f"backend: {model.backend.detail}", file=sys.stderr)
    texts = list(_read_lines()) if args.texts in ([], ["-"]) else args.texts
    options = {"max_length": args.max_length}
    if model.task == "embedding":
        options["prompt_name"] = args.prompt_name
    inputs = [_split_pair(i, text) for i, text in enumerate(texts)] if args.pairs else texts
    for text, answer in zip(texts, model(inputs, **options), strict=True):
        if model.task == "embedding":
            answer = {"embedding": [float(value) for value in answer]}
        if args.format == "json":
            print(json.dumps({"text": text, **answer}, ensure_ascii=False))
        else:
            print("\t".join(format_value(value) for value in [*answer.values(), text]))


def _read_lines() -> Iterator[str]:
    for number, line in enumerate(sys.stdin.buffer, 1):
        try:
            yield line.decode().rstrip("\r\n")
        except UnicodeDecodeError as error:
            raise InvalidInputError(f"line {number} of standard input is not UTF-8 ({error}): convert it") from None


def _split_pair(i: int, text: str) -> tuple[str, str]:
    first, tab, second = text.partition("\t")
    if not tab:
        raise InvalidInputError(f"text {i} has no tab: with --pairs each is first, tab, second")
    return first, second
