"""`edgebert demo --web`: a page that searches by meaning, with the engine and the model in the browser."""

from __future__ import annotations

import hashlib
import json
import shutil
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from edgebert.artifact.reader import find_model_file, read_artifact
from edgebert.demo import SENTENCES_FILE
from edgebert.errors import BackendUnavailableError, InvalidInputError, UnsupportedModelError

HOST = "127.0.0.1"
PACKAGE = Path("build-wasm/npm")  # where a checkout builds the npm package
PACKAGE_FILES = ("index.js", "engine.js", "error.js", "worker.js", "wasm_simd128.wasm", "wasm_relaxed_simd.wasm")
TYPES = {
    ".css": "text/css; charset=utf-8",
    ".html": "text/html; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".json": "application/json",
    ".onnx": "application/octet-stream",
    ".txt": "text/plain; charset=utf-8",
    ".wasm": "application/wasm",
}
HEADERS = {
    "Cache-Control": "no-cache",
    "Content-Security-Policy": "default-src 'none'; script-src 'self' 'wasm-unsafe-eval'; worker-src 'self'; "
    "connect-src 'self'; style-src 'self'; img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}


def find_package(folder: Path) -> Path:
    """The folder, which has all of the npm package that a page needs.

    Raises:
        BackendUnavailableError: it has not; the message says how the package is built.
    """
    missing = [name for name in PACKAGE_FILES if not (folder / name).is_file()]
    if missing:
        raise BackendUnavailableError(
            f"the npm package is not in {folder}, which lacks {', '.join(missing)}: name its folder with --package, or "
            "build it in a checkout, and start there: pip install ziglang==0.17.0 && cmake -B build-wasm "
            "--toolchain .ci/zig.cmake -DEDGEBERT_TARGET=wasm32-wasi && cmake --build build-wasm --target npm"
        )
    return folder


def make_server(model: str | Path, package: Path, port: int) -> ThreadingHTTPServer:
    """A server on loopback that listens: of the page, the npm package, an embedding model and the demo's sentences.

    Args:
        model: A model file, or a folder that holds model.onnx.
        package: From `find_package`.
        port: 0 takes a free one.

    Raises:
        InvalidInputError: there is no such port, or it cannot be listened on.
        ModelFormatError: the model is missing or damaged.
        UnsupportedModelError: it gives no embeddings of texts.
    """
    path = find_model_file(model)
    artifact = read_artifact(path)
    if artifact.spec.task != "embedding" or artifact.tokenizer_json is None:
        lacks = " without a tokenizer" if artifact.tokenizer_json is None else ""
        raise UnsupportedModelError(
            f"{path}: the page searches with embeddings of texts, and this file is for {artifact.spec.task}{lacks}; "
            "give one that `edgebert export` wrote of an embedding model"
        )
    with path.open("rb") as file:
        told = {"name": path.stem, "sha256": hashlib.file_digest(file, "sha256").hexdigest()}
    here = Path(__file__).parent
    served: dict[str, Path | bytes] = {
        "/": here / "page.html",
        "/page.js": here / "page.js",
        "/page.css": here / "page.css",
        "/sentences.txt": SENTENCES_FILE,
        "/model.json": json.dumps(told).encode(),
        "/model.onnx": path,
        **{f"/edgebert/{name}": package / name for name in PACKAGE_FILES},
    }
    if not 0 <= port <= 65535:
        raise InvalidInputError(f"--port must be from 0 to 65535, got {port}")
    try:
        return ThreadingHTTPServer((HOST, port), partial(_Handler, served))
    except OSError as error:
        raise InvalidInputError(
            f"port {port} of {HOST} cannot be listened on ({error.strerror}): give another with --port, or 0 for a "
            "free one"
        ) from None


class _Handler(BaseHTTPRequestHandler):
    def __init__(self, served: dict[str, Path | bytes], *args: object) -> None:
        self.served = served
        super().__init__(*args)  # type: ignore[arg-type]

    def do_GET(self) -> None:
        """Answer with a file; to nobody who came by another name, as a site whose name leads here would."""
        path = self.path.partition("?")[0]
        content = self.served.get(path)
        if (self.headers["Host"] or "").partition(":")[0] not in (HOST, "localhost") or content is None:
            self.send_error(404)
            return
        self.send_response(200)
        size = len(content) if isinstance(content, bytes) else content.stat().st_size
        headers = {"Content-Type": TYPES[Path(path).suffix or ".html"], "Content-Length": str(size)}
        for name, value in (headers | HEADERS).items():
            self.send_header(name, value)
        self.end_headers()
        if isinstance(content, bytes):
            self.wfile.write(content)
        else:
            with content.open("rb") as file:
                shutil.copyfileobj(file, self.wfile)

    def log_message(self, *_: object) -> None:
        """Say nothing."""
