"""`edgebert demo`: the whole of it on a real model."""

from __future__ import annotations

import argparse
from pathlib import Path

from edgebert.errors import InvalidInputError, require

HELP = "export all-MiniLM-L6-v2, compare it with ONNX Runtime, and search with it"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command's arguments."""
    parser.add_argument("--keep", metavar="FOLDER", help="keep the exported files there")
    parser.add_argument(
        "--compress", action="store_true", help="instead fine-tune, distil, prune and quantize it into a classifier"
    )

    parser.add_argument("--web", action="store_true", help="instead serve a page that searches, in the browser alone")
    parser.add_argument("--model", metavar="FILE", help="of --web: an embedding model in place of the demo's")
    parser.add_argument(
        "--package", metavar="FOLDER", help="of --web: the npm package, where it is not in build-wasm/npm"
    )
    parser.add_argument("--port", type=int, help="of --web: 0 takes a free one (default: 8080)")


def main(args: argparse.Namespace) -> int:
    """Run the command."""
    from edgebert import demo

    if args.web:
        return _serve(args)
    for name in ("model", "package", "port"):
        if getattr(args, name) is not None:
            raise InvalidInputError(f"--{name} belongs to --web: add --web, or leave it out")
    if not args.compress:
        return demo.main(args)
    from edgebert.commands.compress import NEEDS

    require("demo,compress", *NEEDS, demo.MODEL_PACKAGE)
    from edgebert.compress.demo import main as compress

    return compress(args.keep)


def _serve(args: argparse.Namespace) -> int:
    """Serve the page until it is interrupted."""
    from edgebert import demo, web

    if args.compress or (args.model and args.keep):
        other = "--compress" if args.compress else "--keep, which is of the demo's model, with --model"
        raise InvalidInputError(f"--web does not go with {other}: leave one out")
    package = web.find_package(web.PACKAGE if args.package is None else Path(args.package))
    with demo.open_folder(args.keep) as folder:
        model = args.model
        if model is None:
            print("making the model, all-MiniLM-L6-v2 in int8", flush=True)
            model = demo.export_portable(folder)
        with web.make_server(model, package, 8080 if args.port is None else args.port) as server:
            print(f"serving on http://{web.HOST}:{server.server_port}, Ctrl+C ends it", flush=True)
            server.serve_forever()
    return 0
