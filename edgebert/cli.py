"""The command line: parses arguments, calls the library, prints."""

from __future__ import annotations

import argparse
import json
import os
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from edgebert import __version__
from edgebert.errors import EdgeBertError, InvalidInputError


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; the exit status: 0, 1 after an error, 2 for wrong usage, 130 when interrupted."""
    args = _build_parser().parse_args(arguments)
    warnings.showwarning = _print_warning
    command: Callable[[argparse.Namespace], int | None] = args.command
    try:
        return command(args) or 0
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:  # the reader of our output left; keep Python from failing again when it flushes
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except (EdgeBertError, OSError) as error:
        print(f"edgebert: {error}", file=sys.stderr)
        return 1


def _run(args: argparse.Namespace) -> None:
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
            print("\t".join(_format_value(value) for value in [*answer.values(), text]))


def _export(args: argparse.Namespace) -> None:
    import edgebert

    report = edgebert.export(
        args.source,
        args.output,
        int8=args.int8,
        portable=args.portable,
        int8_attention=args.int8_attention,
        calibrate=args.calibrate,
        task=args.task,
        family=args.family,
    )
    _print_report(report)
    print(f"wrote {args.output}")


def _check(args: argparse.Namespace) -> None:
    import edgebert

    _print_report(edgebert.check(args.file))
    print(f"{args.file}: all agree")


def _info(args: argparse.Namespace) -> None:
    from edgebert.artifact.reader import read_artifact

    artifact = read_artifact(args.file)
    spec = artifact.spec
    path = Path(args.file)
    path = path / "model.onnx" if path.is_dir() else path
    heads, widths = ({getattr(layer, name) for layer in spec.layers} for name in ("num_heads", "intermediate_size"))
    fields: dict[str, Any] = {
        "file": f"{path}, {path.stat().st_size / 1e6:.1f} MB, graph verified",
        "task": spec.task,
        "family": spec.family,
        "outputs": ", ".join(spec.outputs),
        "weights": ("int8" + (" (portable)" if spec.portable else "")) if spec.is_int8 else "fp32",
        "attention": "int8" if spec.attention_dtype == "s8" else spec.attention_dtype,
        "sizes": f"{spec.num_layers} layers, hidden_size {spec.hidden_size}, num_heads {_span(heads)}, "
        f"intermediate_size {_span(widths)}, vocab_size {spec.vocab_size}",
        "tokenizer": "in the file" if artifact.tokenizer_json is not None else "none: the file takes token ids",
        "max_length": f"{spec.max_length} tokens (the model has {spec.usable_positions} positions)",
    }
    if spec.task == "embedding":
        fields["pooling"] = spec.pooling + (", normalized" if spec.normalize else "")
    if spec.labels:
        more = f", … ({len(spec.labels)})" if len(spec.labels) > 10 else ""
        fields["labels"] = ", ".join(spec.labels[:10]) + more
    if spec.prompts:
        fields["prompts"] = ", ".join(
            f"{name}{' (default)' if name == spec.default_prompt_name else ''}" for name in spec.prompts
        )
    _print_report(fields)
    if artifact.report:
        print("export report:")
        _print_report(artifact.report, indent="  ")


def _doctor(args: argparse.Namespace) -> None:
    from edgebert.doctor import describe_machine

    print(describe_machine())


def _demo(args: argparse.Namespace) -> int:
    from edgebert import demo

    return demo.main(args)


def _build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="edgebert", description="BERT-family encoders as one ONNX file.")
    parser.add_argument("--version", action="version", version=f"edgebert {__version__}")
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")

    def add(name: str, command: Callable[[argparse.Namespace], int | None], text: str) -> argparse.ArgumentParser:
        added = commands.add_parser(name, help=text, description=text[0].upper() + text[1:] + ".")
        added.set_defaults(command=command)
        return added

    run = add("run", _run, "run texts through a model file and print a line for each")
    run.add_argument("file", help="a model file, or a folder that holds model.onnx")
    run.add_argument("texts", nargs="*", metavar="TEXT", help="texts; none or - reads lines from standard input")
    run.add_argument("--backend", default="auto", help="auto, native, onnxruntime or numpy (default: auto)")
    run.add_argument("--device", default="cpu", help="cpu, cuda or cuda:n (default: cpu)")
    run.add_argument("--threads", type=int, help="CPU threads (default: the CPUs this process may use)")
    run.add_argument("--max-length", type=int, metavar="N", help="truncate to N tokens (default: the file's limit)")
    run.add_argument("--prompt-name", metavar="NAME", help="of an embedding file: the prompt to put before every text")
    run.add_argument("--pairs", action="store_true", help="each text is a pair: first, tab, second")
    run.add_argument(
        "--format", choices=("json", "text"), default="json", help="JSON lines, or columns (default: json)"
    )
    run.add_argument("--verbose", action="store_true", help="say on standard error what runs the model")

    export = add("export", _export, "turn a checkpoint into one checked ONNX file")
    export.add_argument("source", help="a Hugging Face folder, a hub name or an installed model package")
    export.add_argument("-o", "--output", required=True, help="a file, or a folder for the Hugging Face layout")
    export.add_argument("--int8", action="store_true", help="int8 weights and activations")
    export.add_argument("--portable", action="store_true", help="int8 weights in +-63, for x86 CPUs without VNNI")
    export.add_argument("--int8-attention", action="store_true", help="attention in int8 too, for long texts")
    export.add_argument("--calibrate", metavar="FILE", help="calibration texts, one a line (default: built in)")
    export.add_argument("--task", help="the head to export (default: what the checkpoint says)")
    export.add_argument("--family", help="the model family (default: what the checkpoint says)")

    check = add("check", _check, "run a file's probe on every backend here and compare")
    check.add_argument("file", help="a model file")
    info = add("info", _info, "print what a model file is")
    info.add_argument("file", help="a model file")
    add("doctor", _doctor, "print what this machine and this installation can do")
    demo = add("demo", _demo, "export all-MiniLM-L6-v2, compare it with ONNX Runtime, and search with it")
    demo.add_argument("--keep", metavar="FOLDER", help="keep the exported files there")
    return parser


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


def _format_value(value: Any) -> str:
    if isinstance(value, list):
        return " ".join(map(_format_value, value))
    return f"{value:.6g}" if isinstance(value, float) else str(value)


def _span(values: set[int]) -> str:
    return " to ".join(map(str, sorted({min(values, default=0), max(values, default=0)})))


def _print_report(report: dict[str, Any], indent: str = "") -> None:
    for key, value in report.items():
        if isinstance(value, dict):
            print(f"{indent}{key}:")
            _print_report(value, indent + "  ")
        else:
            print(f"{indent}{key}: {_format_value(value)}")


def _print_warning(message: Warning | str, *_: object, **__: object) -> None:
    print(f"edgebert: warning: {message}", file=sys.stderr)
