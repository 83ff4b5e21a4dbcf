"""`edgebert demo --web` in Chromium and Firefox: the native library's tokens and answers, typing, files, the cache."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from artifacts import random_artifact, random_spec, random_tensors
from conftest import BACKENDS
from test_text import awkward_texts
from test_wasm import NODE, PACKAGE, ROOT, _is_valid, _run, _tokens

from edgebert import demo, web
from edgebert.artifact.writer import build_model
from edgebert.errors import BackendUnavailableError, InvalidInputError, UnsupportedModelError
from edgebert.tokenizer.native import NativeTokenizer

if "native" in BACKENDS:
    from c_api import CModel

MODULES = PACKAGE.parent / "node_modules"
BROWSERS = {"chromium": shutil.which("chromium"), "firefox": shutil.which("firefox-esr") or shutil.which("firefox")}
QUERY = ("lime", "in the kettle", "with vinegar")  # typed one after the other
OWN = [
    "The train leaves at nine.",
    "x" * 400,
    "Tomatoes want sun and water.",
    "Lime in the kettle. " * 30,
    "",
    "é 中 😀 ",
]

needs_package = pytest.mark.skipif(
    "native" not in BACKENDS or not (PACKAGE / "wasm_simd128.wasm").exists(),
    reason="the native library or the npm package is not built: see docs/platforms.md",
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """model.onnx, a random one that knows the demo's words, and cases.json: what the native library answers."""
    import tokenizers
    from tokenizers import models, normalizers, pre_tokenizers, processors

    folder, sentences = tmp_path_factory.mktemp("web"), demo.read_sentences()
    words = sorted({word for sentence in sentences for word in re.findall(r"\w+|[^\w\s]", sentence.lower())})
    pieces = [f"##{letter}" for letter in "abcdefghijklmnopqrstuvwxyz"]
    vocabulary = {
        word: i for i, word in enumerate(dict.fromkeys(["[PAD]", "[UNK]", "[CLS]", "[SEP]", *words, *pieces]))
    }
    tokenizer = tokenizers.Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer()
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    special = [(word, vocabulary[word]) for word in ("[CLS]", "[SEP]")]
    tokenizer.post_processor = processors.TemplateProcessing(single="[CLS] $A [SEP]", special_tokens=special)
    told = tokenizer.to_str()
    spec = random_spec(int8=True, hidden=40, vocab_size=len(vocabulary), num_positions=64).replace(portable=True)
    data = build_model(spec, random_tensors(spec), {"edgebert.tokenizer": told})
    (folder / "model.onnx").write_bytes(data)

    strings = [text for text in awkward_texts(60) if _is_valid(text)] + sentences[:40]
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("EDGEBERT_FORCE_ISA", "baseline")  # whose bits WebAssembly has
        model = CModel(folder / "model.onnx")
        rows = model.embed(sentences)
        queries = [" ".join(QUERY[: i + 1]) for i in range(len(QUERY))] + [sentences[123]]
        cases = {
            "sha256": hashlib.sha256(data).hexdigest(),
            "strings": strings,
            "tokens": _tokens(NativeTokenizer(told), strings, max_length=spec.max_length),
            "embeddings": model.embed(strings).tolist(),
            "queries": queries,
            "found": [_find(model.embed([query])[0], rows, sentences) for query in queries],
        }
    assert cases["found"][-1][0] == sentences[123]
    (folder / "cases.json").write_text(json.dumps(cases))
    (folder / "own.txt").write_bytes("\r\n".join(OWN).encode())
    (folder / "other.txt").write_bytes("The train leaves at nine.".encode("utf-16"))
    return folder


def _find(query: np.ndarray, rows: np.ndarray, sentences: list[str]) -> list[str]:
    cosines = rows.astype(float) @ query / np.linalg.norm(rows.astype(float), axis=1)
    return [sentences[i] for i in np.argsort(-cosines, kind="stable")[:8]]


@pytest.fixture(scope="module")
def address(folder: Path) -> Iterator[str]:
    """Of a server, by the command."""
    words = ["demo", "--web", "--model", folder / "model.onnx", "--package", PACKAGE, "--port", "0"]
    with subprocess.Popen(
        [sys.executable, "-m", "edgebert", *map(str, words)], stdout=subprocess.PIPE, text=True
    ) as run:
        try:
            assert run.stdout is not None
            line = run.stdout.readline()
            found = re.search(r"http://127\.0\.0\.1:\d+", line)
            assert found, line
            yield found[0]
        finally:
            run.kill()


@needs_package
@pytest.mark.skipif(NODE is None, reason="there is no Node")
@pytest.mark.skipif(
    not (MODULES / "puppeteer-core").exists(), reason="npm install --prefix build-wasm puppeteer-core@24.43.1"
)
@pytest.mark.parametrize("browser", BROWSERS)
def test_the_page(browser: str, address: str, folder: Path, tmp_path: Path) -> None:
    if BROWSERS[browser] is None:
        pytest.skip(f"there is no {browser}")
    _run(
        NODE,
        "--test",
        ROOT / "tests" / "wasm" / "page.mjs",
        EDGEBERT_NODE_MODULES=MODULES,
        EDGEBERT_BROWSER=f"{browser}={BROWSERS[browser]}",
        EDGEBERT_ADDRESS=address,
        EDGEBERT_CASES=folder,
        EDGEBERT_SCREENSHOTS=os.environ.get("EDGEBERT_SCREENSHOTS", tmp_path),
    )


@needs_package
def test_types_and_policy_and_who_is_answered(address: str) -> None:
    for path, kind in (
        ("/", "text/html; charset=utf-8"),
        ("/edgebert/wasm_relaxed_simd.wasm", "application/wasm"),
        ("/edgebert/index.js", "text/javascript; charset=utf-8"),
        ("/model.onnx?again", "application/octet-stream"),
    ):
        with urllib.request.urlopen(address + path) as reply:
            assert reply.headers["Content-Type"] == kind
            assert len(reply.read()) == int(reply.headers["Content-Length"])
            policy = dict(part.split(" ", 1) for part in reply.headers["Content-Security-Policy"].split("; "))
            assert policy["script-src"] == "'self' 'wasm-unsafe-eval'"
            assert policy["default-src"] == "'none'"
            assert "unsafe-inline" not in str(policy)
    port = address.rpartition(":")[2]
    with urllib.request.urlopen(f"http://localhost:{port}/page.css") as reply:
        assert reply.status == 200
    for path, host in (
        ("/", f"evil.example:{port}"),
        ("/../pyproject.toml", "127.0.0.1:1"),
        ("/page.py", "localhost:1"),
    ):
        with pytest.raises(urllib.error.HTTPError, match="404"):
            urllib.request.urlopen(urllib.request.Request(address + path, headers={"Host": host}))


def test_what_is_missing_is_named(tmp_path: Path, tokenizer_json: str) -> None:
    (tmp_path / "index.js").touch()
    with pytest.raises(BackendUnavailableError, match=r"lacks engine\.js.*wasm_simd128\.wasm.*--target npm"):
        web.find_package(tmp_path)
    random_artifact(tmp_path / "silent.onnx")
    random_artifact(tmp_path / "labels.onnx", task="text-classification", tokenizer_json=tokenizer_json)
    for name in ("silent.onnx", "labels.onnx"):
        with pytest.raises(UnsupportedModelError, match=name):
            web.make_server(tmp_path / name, tmp_path, 0)
    random_artifact(tmp_path / "model.onnx", tokenizer_json=tokenizer_json)
    with web.make_server(tmp_path, tmp_path, 0) as server:
        for port, told in ((server.server_port, "cannot be listened on"), (99999, "from 0 to 65535, got 99999")):
            with pytest.raises(InvalidInputError, match=told):
                web.make_server(tmp_path, tmp_path, port)
