"""`edgebert bench`: how fast files are here, beside other runtimes."""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path

from edgebert.errors import InvalidInputError, require

HELP = "measure how fast model files are on this machine, beside other runtimes"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command's arguments."""
    parser.add_argument("models", nargs="+", type=Path, metavar="MODEL", help="model files")
    parser.add_argument("--backends", metavar="LIST", help="native,onnxruntime,… (default: the best one here)")
    parser.add_argument(
        "--against",
        metavar="LIST",
        default="",
        help="other runtimes: onnxruntime,openvino run the files and their own int8 of fp32 files; torch,ctranslate2 "
        "need --checkpoint",
    )
    parser.add_argument("--checkpoint", type=Path, metavar="FOLDER", help="what the files were exported from")
    parser.add_argument("--batch", default="1", metavar="LIST", help="texts computed together (default: 1)")
    parser.add_argument(
        "--length",
        default="16,128",
        metavar="LIST",
        help="tokens of a text, or text:FILE with a text a line (default: 16,128)",
    )
    parser.add_argument("--threads", metavar="LIST", help="default: 1 and the CPUs this process may use")
    parser.add_argument(
        "--seconds", type=float, default=0.8, help="time to measure each runtime and workload (default: 0.8)"
    )
    parser.add_argument("--quick", action="store_true", help="no cold starts, no runs beside a busy process")
    parser.add_argument("--work", type=Path, metavar="FOLDER", help="keep other runtimes' forms of the files there")
    parser.add_argument("--html", type=Path, metavar="FILE", help="write a page with plots")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write every number, for edgebert bench compare")


def main(args: argparse.Namespace) -> None:
    """Run the command."""
    from edgebert.backends.cpus import usable_cpus
    from edgebert.bench.page import write_report
    from edgebert.bench.run import RUNTIMES, Bench, Options, command_line, default_backends
    from edgebert.bench.tables import format_result
    from edgebert.files import check_target, write_whole

    for path in filter(None, (args.html, args.json)):
        check_target(path)
    if args.html:
        require("report", "jinja2", "matplotlib")
    against = [name for name in args.against.split(",") if name]
    if unknown := [name for name in against if name not in RUNTIMES]:
        raise InvalidInputError(f"unknown runtime {unknown[0]!r}: expected some of {', '.join(RUNTIMES)}")
    threads = _integers("--threads", args.threads) if args.threads else sorted({1, usable_cpus()})
    lengths = list(dict.fromkeys(args.length.split(",")))
    _integers("--length", ",".join(length for length in lengths if not length.startswith("text:")) or "1")
    started = time.monotonic()

    def say(text: str) -> None:
        print(f"[{time.monotonic() - started:5.1f} s] {text}", file=sys.stderr, flush=True)

    options = Options(
        models=[path / "model.onnx" if path.is_dir() else path for path in args.models],
        backends=args.backends.split(",") if args.backends else default_backends(),
        against=against,
        checkpoint=args.checkpoint,
        batch_sizes=_integers("--batch", args.batch),
        lengths=lengths,
        threads=threads,
        work=args.work,
        seconds=args.seconds,
        is_quick=args.quick,
    )
    result = Bench(options, say).run(command_line())
    print(format_result(result))
    if args.json:
        write_whole(args.json, json.dumps(result, indent=2, ensure_ascii=False) + "\n")
    if args.html:
        write_report(args.html, result)


def _integers(option: str, text: str) -> list[int]:
    numbers = [int(word) if word.isascii() and word.isdigit() else 0 for word in text.split(",")]
    if min(numbers) < 1:
        raise InvalidInputError(f"{option} takes numbers from 1 up, separated by commas, got {text!r}")
    return list(dict.fromkeys(numbers))
