"""`edgebert score`: files of rows in, the same rows with answers out."""

from __future__ import annotations

import argparse
import sys

from edgebert.commands.arguments import add_model_arguments, read_option

HELP = "score a file or folder of rows (Parquet, JSON lines, CSV, TSV, text) with a model file, resumably"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command's arguments."""
    parser.add_argument("file", help="a model file, or a folder that holds model.onnx")
    parser.add_argument(
        "input", help="a .parquet, .jsonl, .csv, .tsv or .txt file, all but the first also .gz or .zst, or a folder"
    )
    parser.add_argument(
        "-o", "--output", required=True, help="a file of one of these kinds but .txt, or a folder, for Parquet files"
    )
    parser.add_argument(
        "--column",
        action="append",
        metavar="NAME",
        help="the column of texts (default: text); twice for pairs, or for a question and its context",
    )
    parser.add_argument("--task", help="a task that fits the file (default: the file's own)")
    add_model_arguments(parser)
    parser.add_argument(
        "--embedding-dtype",
        "--dtype",
        dest="dtype",
        choices=("f32", "f16", "int8", "binary"),
        default="f32",
        help="of embeddings (default: f32)",
    )
    parser.add_argument("--prefix", default="", help="put before the names of the result columns")
    parser.add_argument(
        "--too-long",
        choices=("truncate", "error"),
        default="truncate",
        help="what to do with a text of too many tokens (default: truncate)",
    )
    parser.add_argument(
        "--errors",
        metavar="FILE",
        help="write bad rows there, as JSON lines (default: keep them, with an error column)",
    )
    parser.add_argument("--scores", action="store_true", help="of a classifier, also a column for each label's score")
    parser.add_argument(
        "--threshold",
        type=float,
        metavar="P",
        help="of a classifier, a column with all labels whose score is at least P, in the place of the best one",
    )
    parser.add_argument(
        "--resume", action="store_true", help="go on with a job that was interrupted, also with --overwrite"
    )
    parser.add_argument(
        "--overwrite", action="store_true", help="replace an output that is there, once the new one is whole"
    )
    parser.add_argument(
        "--rows-per-part",
        type=int,
        default=8192,
        metavar="N",
        help="rows that are read, sorted by length, scored and committed together (default: 8192)",
    )
    parser.add_argument(
        "--engine", choices=("local", "ray"), default="local", help="what runs the job (default: local)"
    )
    parser.add_argument("--quiet", action="store_true", help="no progress bar and no summary")


def main(args: argparse.Namespace) -> None:
    """Run the command."""
    from edgebert.scoring.runner import score

    try:
        summary = score(
            args.file,
            args.input,
            args.output,
            columns=args.column or ["text"],
            task=args.task,
            options=dict(map(read_option, args.option)),
            too_long=args.too_long,
            dtype=args.dtype,
            prefix=args.prefix,
            scores=args.scores,
            threshold=args.threshold,
            errors=args.errors,
            rows_per_part=args.rows_per_part,
            resume=args.resume,
            overwrite=args.overwrite,
            engine=args.engine,
            progress=not args.quiet,
            backend=args.backend,
            device=args.device,
            threads=args.threads,
        )
    except KeyboardInterrupt:
        if args.engine == "local":
            print("edgebert: interrupted; the same command with --resume goes on", file=sys.stderr)
        raise
    if not args.quiet:
        print(
            f"{summary['rows']} rows ({summary['errors']} with an error, {summary['truncated']} truncated) in "
            f"{args.output}; {summary['rows_per_second']:.0f} rows/s in {summary['seconds']:.1f} s",
            file=sys.stderr,
        )
