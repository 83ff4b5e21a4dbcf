"""`edgebert export`: a checkpoint, or another exporter's ONNX file, to one checked file."""

from __future__ import annotations

import argparse
import sys

from edgebert.printing import print_report

HELP = "turn a checkpoint or another ONNX file into one checked ONNX file"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command's arguments."""
    parser.add_argument("source", help="a Hugging Face folder, a hub name, an installed model package, an ONNX file")
    parser.add_argument("-o", "--output", required=True, help="a file, or a folder for the Hugging Face layout")
    parser.add_argument("--int8", action="store_true", help="int8 weights and activations")
    parser.add_argument("--portable", action="store_true", help="int8 weights in +-63, for x86 CPUs without VNNI")
    parser.add_argument("--int8-attention", action="store_true", help="attention in int8 too, for long texts")
    parser.add_argument(
        "--int8-weights", action="store_true", help="int8 weights, float activations in the graph, for other runtimes"
    )
    parser.add_argument("--single-text", action="store_true", help="no token types in the graph, for converters")
    parser.add_argument("--calibrate", metavar="FILE", help="calibration texts, one a line (default: built in)")
    parser.add_argument("--task", help="the head to export, or sparse-embedding (default: what the checkpoint says)")
    parser.add_argument("--family", help="the model family (default: what the checkpoint says)")
    parser.add_argument("--tokenizer", metavar="FOLDER", help="of an ONNX file's tokenizer (default: beside the file)")


def main(args: argparse.Namespace) -> None:
    """Run the command."""
    import edgebert

    steps = "is quantized on calibration texts, then " if args.int8 or args.int8_weights else ""
    print(f"edgebert: {args.source} {steps}becomes a file that each runtime installed here checks", file=sys.stderr)
    report = edgebert.export(
        args.source,
        args.output,
        int8=args.int8,
        portable=args.portable,
        int8_attention=args.int8_attention,
        int8_weights=args.int8_weights,
        single_text=args.single_text,
        calibrate=args.calibrate,
        task=args.task,
        family=args.family,
        tokenizer=args.tokenizer,
    )
    print_report(report)
    print(f"wrote {args.output}")
