"""`edgebert serve`: models behind HTTP."""

from __future__ import annotations

import argparse
import re
from pathlib import Path

from edgebert.backends.registry import BACKENDS
from edgebert.errors import InvalidInputError, require

HELP = "serve model files over HTTP, to clients of OpenAI, Text Embeddings Inference and Cohere"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command's arguments."""
    parser.add_argument(
        "models", nargs="+", metavar="FILE", help="a model file, or a folder that holds model.onnx; or NAME=FILE"
    )
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on (default: 127.0.0.1)")
    parser.add_argument("--port", type=int, default=8080, help="0 takes a free one (default: 8080)")
    parser.add_argument("--backend", default="auto", help=f"auto, {', '.join(BACKENDS)} (default: auto)")
    parser.add_argument("--device", default="cpu", help="cpu, cuda or cuda:n (default: cpu)")
    parser.add_argument("--threads", type=int, help="CPU threads (default: the CPUs this process may use)")
    parser.add_argument("--workers", type=int, default=1, metavar="N", help="processes (default: 1)")
    parser.add_argument("--api-keys", metavar="FILE", help="answer those alone who have one of its keys, one a line")
    parser.add_argument(
        "--cors", action="append", default=[], metavar="ORIGIN", help="let pages of this origin ask; may be repeated"
    )
    parser.add_argument("--access-log", action="store_true", help="a line of JSON for each request on standard output")
    parser.add_argument(
        "--auto-truncate", action="store_true", help="truncate long texts where a client of TEI does not say"
    )
    numbers = (
        ("--batch-tokens", 4096, "tokens of one forward pass"),
        ("--max-body", 8 << 20, "bytes of a request"),
        ("--max-texts", 2048, "texts of a request"),
        ("--max-tokens", 300_000, "tokens of a request"),
        ("--max-waiting", 512, "requests that wait for a model; more are told to come again"),
    )
    for name, value, words in numbers:
        parser.add_argument(name, type=int, default=value, metavar="N", help=f"{words} (default: {value})")
    parser.add_argument(
        "--timeout", type=float, default=60.0, metavar="SECONDS", help="until a request is answered (default: 60)"
    )
    parser.add_argument(
        "--drain",
        type=float,
        default=5.0,
        metavar="SECONDS",
        help="after SIGTERM, that open connections may still bring requests (default: 5)",
    )
    parser.add_argument("--ssl-certfile", metavar="FILE", help="for TLS")
    parser.add_argument("--ssl-keyfile", metavar="FILE", help="for TLS")


def main(args: argparse.Namespace) -> None:
    """Run the command."""
    require("serve", "starlette", "uvicorn", "httptools", "orjson", "prometheus_client")
    from edgebert.serve.server import serve
    from edgebert.serve.settings import Settings

    for name in ("workers", "batch_tokens", "max_body", "max_texts", "max_tokens", "max_waiting", "timeout"):
        if not getattr(args, name) > 0:
            raise InvalidInputError(f"--{name.replace('_', '-')} must be greater than 0, got {getattr(args, name)}")
    if not args.drain >= 0:
        raise InvalidInputError(f"--drain must be 0 or greater, got {args.drain}")
    for origin in args.cors:
        if origin != "*" and not re.fullmatch(r"[a-z][a-z0-9+.-]*://[^/\s]+", origin):
            raise InvalidInputError(f"--cors takes an origin, such as https://example.org, got {origin!r}")
    if not 0 <= args.port <= 65535:
        raise InvalidInputError(f"--port must be from 0 to 65535, got {args.port}")
    if args.ssl_keyfile and not args.ssl_certfile:
        raise InvalidInputError("--ssl-keyfile is the key of a certificate: give --ssl-certfile too")
    models = _name_models(args.models)
    serve(
        Settings(
            models=models,
            backend=args.backend,
            device=args.device,
            threads=args.threads,
            host=args.host,
            port=args.port,
            workers=args.workers,
            batch_tokens=args.batch_tokens,
            max_body_bytes=args.max_body,
            max_texts=args.max_texts,
            max_tokens=args.max_tokens,
            max_waiting=args.max_waiting,
            timeout=args.timeout,
            drain=args.drain,
            auto_truncate=args.auto_truncate,
            keys_file=args.api_keys,
            cors=tuple(args.cors),
            access_log=args.access_log,
            ssl_certfile=args.ssl_certfile,
            ssl_keyfile=args.ssl_keyfile,
        )
    )


def _name_models(words: list[str]) -> tuple[tuple[str, str], ...]:
    """(name, path) of each word; the name is what stands before "=", else the file's or folder's."""
    models: dict[str, str] = {}
    for word in words:
        name, equals, path = word.partition("=")
        if not equals or "/" in name:
            path = word
            file = Path(path).resolve()
            name = file.parent.name if file.name == "model.onnx" else file.stem if file.suffix == ".onnx" else file.name
        if not name or name in models:
            raise InvalidInputError(
                f"two models would have the name {name!r}, {models[name]} and {path}: give them others, NAME=FILE"
                if name
                else f"the model {path} has no name: give it one, NAME=FILE"
            )
        models[name] = path
    return tuple(models.items())
