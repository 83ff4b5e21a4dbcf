"""The npm package in Node: the native library's answers, failures, memory; its types; what is published."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from artifacts import random_spec, random_tensors
from conftest import BACKENDS
from test_tasks_native import LABELS, QUESTION_WORDS, TEXTS
from test_text import awkward_texts

from edgebert.artifact.writer import build_model
from edgebert.tokenizer.native import NativeTokenizer

if "native" in BACKENDS:
    from c_api import CModel

ROOT = Path(__file__).resolve().parent.parent
BUILD = Path(os.environ.get("EDGEBERT_WASM", ROOT / "build-wasm")).resolve()
PACKAGE = BUILD / "npm"
NODE = shutil.which("node")

pytestmark = [
    pytest.mark.skipif("native" not in BACKENDS, reason="the native library is not built"),
    pytest.mark.skipif(NODE is None, reason="there is no Node"),
    pytest.mark.skipif(
        not (PACKAGE / "wasm_simd128.wasm").exists(), reason="the npm package is not built: see docs/platforms.md"
    ),
]
UTF16 = 3
ASKED = [*TEXTS, "😀 the 😀 router 中 is off ?", "\U00010400 root 👩‍🚀 a"]
OTHERS = [QUESTION_WORDS[i % len(QUESTION_WORDS)] for i in range(len(ASKED))]
MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "embedding": ("embedding", {"int8": False}),
    "int8": ("embedding", {"int8": True, "layers": ((2, 16, 72), (3, 8, 72)), "hidden": 40}),
    "portable": ("embedding", {"int8": True, "layers": ((2, 16, 72), (3, 8, 72)), "hidden": 40}),
    "attention": ("embedding", {"int8": True, "attention_dtype": "s8"}),
    "text-classification": ("text-classification", {"num_labels": len(LABELS)}),
    "exits": (
        "text-classification",
        {"num_labels": len(LABELS), "layers": ((2, 16, 72), (3, 8, 72)), "exits": ((1, 0.25),)},
    ),
    "token-classification": ("token-classification", {"num_labels": len(LABELS)}),
    "question-answering": ("question-answering", {}),
    "silent": ("embedding", {}),
}


def _run(*command: object, timeout: int = 300, **env: object) -> str:
    done = subprocess.run(
        [str(part) for part in command],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=timeout,
        env=os.environ | {name: str(value) for name, value in env.items()},
        check=False,
    )
    assert done.returncode == 0, done.stdout
    return done.stdout


def _node_options() -> list[str]:
    """What Node 20 asks for, whose relaxed dot product is right in its optimizing compiler alone."""
    flags = ["--experimental-wasm-relaxed-simd", "--no-liftoff"]
    is_known = subprocess.run([str(NODE), *flags, "-e", "0"], capture_output=True, check=False).returncode == 0
    return flags if is_known else []


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, tokenizer_json: str) -> Path:
    """Random models, and cases.json: calls of the package with what native's plain C++ answers, to the bit."""
    folder = tmp_path_factory.mktemp("models")
    for name, (task, options) in MODELS.items():
        spec = random_spec(task=task, num_positions=48, **options).replace(portable=name == "portable")
        if "classification" in task:
            spec = spec.replace(labels=(*LABELS[:-1], "B-é😀"))
        elif task == "embedding":
            spec = spec.replace(prompts={"passage": "passage : "})
        tensors = random_tensors(spec)
        if "head.out.weight" in tensors:
            tensors["head.out.weight"] *= 4  # so that scores differ
        metadata = {} if name == "silent" else {"edgebert.tokenizer": tokenizer_json}
        (folder / f"{name}.onnx").write_bytes(build_model(spec, tensors, metadata))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("EDGEBERT_FORCE_ISA", "baseline")
        cases = _make_cases(folder, tokenizer_json)
    (folder / "cases.json").write_text(json.dumps({"models": cases}))
    return folder


def _make_cases(folder: Path, tokenizer_json: str) -> list[dict[str, Any]]:
    cases = []

    def add(name: str, calls: list[tuple[str, list[Any], Any]], **options: Any) -> None:
        cases.append(
            {
                "name": name,
                "task": MODELS[name][0],
                "options": options,
                "calls": [{"method": m, "args": a, "expected": e} for m, a, e in calls],
            }
        )

    for name in ("embedding", "int8", "portable", "attention"):
        model = CModel(folder / f"{name}.onnx")
        prompted = {"prompt": "über 😀 ", "normalize": True, "width": 5}
        add(
            name,
            [
                ("embed", [ASKED], model.embed(ASKED).tolist()),
                (
                    "embed",
                    [ASKED, prompted],
                    model.embed(ASKED, prompt="über 😀 ".encode(), normalize=1, width=5).tolist(),
                ),
                (
                    "embed",
                    [ASKED[:9], {"promptName": "passage"}],
                    model.embed(ASKED[:9], prompt_name=b"passage").tolist(),
                ),
            ],
        )
    windows = CModel(folder / "int8.onnx", long_texts=2, stride=3, max_length=16)
    add("int8", [("embed", [ASKED], windows.embed(ASKED).tolist())], longTexts="windows", stride=3, maxLength=16)
    strings = [text for text in awkward_texts(400) if _is_valid(text)] + ASKED
    tokenizer = NativeTokenizer(tokenizer_json)
    add(
        "embedding",
        [
            ("tokenize", [strings, options], _tokens(tokenizer, strings, **python))
            for options, python in (
                ({}, {"max_length": 48}),
                ({"maxLength": 0}, {"max_length": 0}),
                ({"maxLength": 5, "specialTokens": False}, {"max_length": 5, "special_tokens": False}),
            )
        ],
    )

    model = CModel(folder / "text-classification.onnx")
    pairs = [{"text": text, "pair": pair} for text, pair in zip(ASKED, OTHERS, strict=True)]
    ranked = model.rank("the router ? 😀", ASKED, label=LABELS[1], top_k=9, function="sigmoid")
    add(
        "text-classification",
        [
            ("classify", [ASKED], model.classify(ASKED)),
            (
                "classify",
                [pairs, {"topK": 2, "function": "softmax"}],
                model.classify(ASKED, OTHERS, top_k=2, function="softmax"),
            ),
            (
                "rank",
                ["the router ? 😀", ASKED, {"label": LABELS[1], "topK": 9, "function": "sigmoid"}],
                [{"index": one["corpus_id"], "score": one["score"]} for one in ranked],
            ),
        ],
    )
    answers = [CModel(folder / "exits.onnx", full_depth=whole).classify(ASKED) for whole in (0, 1)]
    assert 0 < sum(a == b for a, b in zip(*answers, strict=True)) < len(ASKED)  # some leave early
    for whole, answer in enumerate(answers):
        add("exits", [("classify", [ASKED], answer)], fullDepth=bool(whole))
    model = CModel(folder / "token-classification.onnx", offset_unit=UTF16)
    add(
        "token-classification",
        [
            (
                "tag",
                [ASKED, {"aggregation": strategy, **({} if ignored is None else {"ignore": ignored})}],
                [
                    [_entity(text, one) for one in found]
                    for text, found in zip(ASKED, model.label(ASKED, strategy, ignored), strict=True)
                ],
            )
            for strategy, ignored in (
                ("none", None),
                ("simple", None),
                ("first", []),
                ("average", None),
                ("max", ["LOC"]),
            )
        ],
    )
    model = CModel(folder / "question-answering.onnx", offset_unit=UTF16)
    asked = [{"question": q, "context": c} for q, c in zip(OTHERS, ASKED, strict=True) if c]
    found = model.answer(
        [one["question"] for one in asked],
        [one["context"] for one in asked],
        top_k=3,
        allows_no_answer=1,
        max_answer_tokens=4,
    )
    add(
        "question-answering",
        [
            (
                "answer",
                [asked, {"topK": 3, "allowsNoAnswer": True, "maxAnswerTokens": 4}],
                [[_span(one["context"], span) for span in spans] for one, spans in zip(asked, found, strict=True)],
            )
        ],
    )
    return cases


def _is_valid(text: str) -> bool:
    return not any(0xD800 <= ord(char) < 0xE000 for char in text)


def _slice(text: str, start: int, end: int) -> str:
    return text.encode("utf-16-le")[2 * start : 2 * end].decode("utf-16-le")


def _span(text: str, one: dict[str, Any]) -> dict[str, Any]:
    return {"text": _slice(text, one["start"], one["end"]), **one}


def _entity(text: str, one: dict[str, Any]) -> dict[str, Any]:
    label = one.get("entity", one.get("entity_group"))
    return _span(text, {"label": label, "start": one["start"], "end": one["end"], "score": one["score"]})


def _tokens(tokenizer: NativeTokenizer, texts: list[str], **options: Any) -> list[dict[str, Any]]:
    found = tokenizer.tokenize(texts, offsets="utf16", **options)
    assert found.offsets is not None
    assert found.word_ids is not None
    return [
        {
            "ids": found.input_ids[begin:end].tolist(),
            "typeIds": found.token_type_ids[begin:end].tolist(),
            "offsets": np.ravel(found.offsets[begin:end]).tolist(),
            "wordIds": found.word_ids[begin:end].tolist(),
            "isTruncated": bool(found.is_truncated[i]),
        }
        for i, (begin, end) in enumerate(zip(found.cu_seqlens, found.cu_seqlens[1:], strict=False))
    ]


@pytest.mark.parametrize("isa", ["wasm_simd128", "wasm_relaxed_simd"])
def test_package(folder: Path, isa: str) -> None:
    is_relaxed = isa == "wasm_relaxed_simd"
    options = [*_node_options(), "--test-name-pattern", "library's answers"] if is_relaxed else []
    test = ROOT / "tests" / "wasm" / "package.test.mjs"
    _run(NODE, *options, "--test", test, EDGEBERT_NPM=PACKAGE, EDGEBERT_CASES=folder, EDGEBERT_ISA=isa)


@pytest.mark.skipif(not (BUILD / "kernel_test").exists(), reason="kernel_test is not built: -DEDGEBERT_TESTS=ON")
@pytest.mark.parametrize("kernel", ["linear_u8s8_f32", "quantize_rows", "add_layernorm", "attention_varlen_u8s8"])
def test_kernels_on_every_instruction_set(kernel: str) -> None:
    printed = _run(NODE, *_node_options(), ROOT / "tests" / "wasm" / "run.mjs", BUILD / "kernel_test", kernel)
    assert "checked on wasm_relaxed_simd,wasm_simd128,baseline" in printed


@pytest.mark.skipif(shutil.which("tsc") is None, reason="there is no TypeScript compiler")
def test_types(tmp_path: Path) -> None:
    (tmp_path / "node_modules").mkdir()
    (tmp_path / "node_modules" / "edgebert").symlink_to(PACKAGE)
    shutil.copy(ROOT / "tests" / "wasm" / "example.ts", tmp_path)
    options = [
        "--strict",
        "--noEmit",
        "--target",
        "es2022",
        "--lib",
        "es2022,dom",
        "--module",
        "nodenext",
        "--moduleResolution",
        "nodenext",
    ]
    _run("tsc", *options, tmp_path / "example.ts")


@pytest.mark.skipif(shutil.which("npm") is None, reason="there is no npm")
def test_what_is_published(tmp_path: Path) -> None:
    [told] = json.loads(_run("npm", "pack", "--dry-run", "--json", "--silent", PACKAGE, npm_config_cache=tmp_path))
    assert {file["path"] for file in told["files"]} == {
        *("package.json", "README.md", "LICENSE", "index.d.ts", "index.js", "engine.js", "error.js", "worker.js"),
        *("wasm_simd128.wasm", "wasm_relaxed_simd.wasm"),
    }
