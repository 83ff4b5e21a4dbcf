"""The Java binding: Python's answers to the bit, UTF-16 places, failures, closing; how its libraries are laid out."""

from __future__ import annotations

import base64
import os
import shutil
import struct
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from artifacts import random_spec, random_tensors
from conftest import BACKENDS
from test_integrity import _key as make_key
from test_tasks_native import LABELS, QUESTION_WORDS, TEXTS, load

import edgebert
from edgebert.artifact.writer import build_model
from edgebert.backends import native

ROOT = Path(__file__).resolve().parent.parent
LIBRARIES = Path(native.load_library()._name).resolve().parent if "native" in BACKENDS else Path()
JAR, JNI = LIBRARIES / "edgebert.jar", LIBRARIES / "libedgebert_jni.so"

pytestmark = [
    pytest.mark.skipif("native" not in BACKENDS, reason="the native library is not built"),
    pytest.mark.skipif(shutil.which("javac") is None, reason="there is no JDK: javac is not found"),
    pytest.mark.skipif(not (JAR.exists() and JNI.exists()), reason="the binding is not built: -DEDGEBERT_JAVA=ON"),
]
TASKS = ("embedding", "text-classification", "token-classification", "question-answering", "fill-mask")
ASKED = [text for text in TEXTS if text.strip()][:40] + ["😀 the 😀 router 中 is off ?", "\U00010400 root 👩‍🚀 a"]
OTHERS = [QUESTION_WORDS[i % len(QUESTION_WORDS)] for i in range(len(ASKED))]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, tokenizer_json: str) -> Path:
    """Random models of each task, the embeddings' signed, one without a tokenizer; and texts."""
    folder = tmp_path_factory.mktemp("models")
    for name in (*TASKS, "silent"):
        task = "embedding" if name == "silent" else name
        spec = random_spec(task=task, num_positions=48, num_labels=len(LABELS))
        if task == "embedding":
            spec = spec.replace(prompts={"passage": "passage : "})
        elif "classification" in task:
            spec = spec.replace(labels=(*LABELS[:-1], "B-é😀"))
        tensors = random_tensors(spec)
        if "head.out.weight" in tensors:
            tensors["head.out.weight"] *= 4  # so that scores differ
        metadata = {} if name == "silent" else {"edgebert.tokenizer": tokenizer_json}
        (folder / f"{name}.onnx").write_bytes(build_model(spec, tensors, metadata))
    private, public = make_key(folder)
    edgebert.sign(folder / "embedding.onnx", private)
    (folder / "key").write_bytes(bytes.fromhex(public))
    for name, texts in (("texts", ASKED), ("others", OTHERS)):
        (folder / name).write_text("".join(base64.b64encode(text.encode()).decode() + "\n" for text in texts))
    return folder


@pytest.fixture(scope="module")
def run_java(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., str]:
    """A function that compiles a source once and runs its class with arguments, JNI's own checks on."""
    classes = tmp_path_factory.mktemp("classes")

    def run(source: Path, *arguments: object) -> str:
        if not (classes / f"{source.stem}.class").exists():
            subprocess.run(["javac", "-encoding", "UTF-8", "-cp", JAR, "-d", classes, source], check=True)
        path = os.pathsep.join(map(str, (JAR, classes)))
        command = ["java", "-Xcheck:jni", f"-Djava.library.path={LIBRARIES}", "-Dfile.encoding=UTF-8", "-cp", path]
        result = subprocess.run([*command, source.stem, *map(str, arguments)], capture_output=True, timeout=300)
        printed = result.stdout.decode() + result.stderr.decode()
        assert result.returncode == 0, printed
        assert "WARNING" not in printed, printed  # what JNI's checks print
        return result.stdout.decode()

    return run


def _sections(printed: str) -> dict[str, list[str]]:
    parts = printed.split("== ")[1:]
    return {part.split("\n")[0]: part.split("\n")[1:-1] for part in parts}


def _told(line: str) -> list[tuple[str, int, int, int, bytes]]:
    found = []
    for one in line.split(";") if line else []:
        label, index, begin, end, score = one.split(",")
        found.append((base64.b64decode(label).decode(), int(index), int(begin), int(end), bytes.fromhex(score)))
    return found


def _units(text: str, place: int) -> int:
    return len(text[:place].encode("utf-16-le")) // 2


def _bits(score: float) -> bytes:
    return struct.pack(">d", score)


def test_answers_are_pythons(folder: Path, run_java: Callable[..., str]) -> None:
    found = _sections(run_java(ROOT / "tests" / "java" / "BindingTest.java", "answers", folder))
    models = {task: load(folder / f"{task}.onnx") for task in TASKS}

    def assert_rows(name: str, **options: Any) -> None:
        rows, is_truncated = models["embedding"].encode(ASKED, return_truncated=True, **options)
        assert found[name][:-1] == [row.astype(">f4").tobytes().hex() for row in np.asarray(rows)]
        assert found[name][-1] == str(is_truncated.tolist()).lower()

    assert_rows("embed")
    small = {"truncate_dim": 5, "normalize_embeddings": True}
    assert_rows("embed windows", prompt="über 😀 ", max_length=16, stride=3, **small)
    assert_rows("embed prompt", prompt_name="passage", **small)

    classifier = models["text-classification"]
    labels = classifier.spec.labels
    for name, inputs, options in (
        ("classify", ASKED, {"top_k": None}),
        ("classify pairs", list(zip(ASKED, OTHERS, strict=True)), {"top_k": 2, "function_to_apply": "sigmoid"}),
    ):
        expected = classifier.answer_each(inputs, **options)[0]
        assert [_told(line) for line in found[name]] == [
            [(one["label"], labels.index(one["label"]), 0, 0, _bits(one["score"])) for one in answer]
            for answer in expected
        ]
    ranking = classifier.rank("the router ? 😀", ASKED, label=labels[1], top_k=2, function_to_apply="sigmoid")
    [line] = found["rank"]
    assert _told(line) == [("", one["corpus_id"], 0, 0, _bits(one["score"])) for one in ranking]

    num_far = 0
    for strategy in ("none", "simple", "first", "average", "max"):
        options = {"ignore_labels": ["LOC", "MISC"]} if strategy == "max" else {}
        expected = models["token-classification"].answer_each(ASKED, aggregation_strategy=strategy, **options)[0]
        for text, answer, line in zip(ASKED, expected, found[f"label {strategy}"], strict=True):
            assert _told(line) == [
                (
                    one["entity" if strategy == "none" else "entity_group"],
                    one.get("index", -1),
                    _units(text, one["start"]),
                    _units(text, one["end"]),
                    _bits(one["score"]),
                )
                for one in answer
            ]
            num_far += sum(_units(text, one["end"]) != one["end"] for one in answer)
    assert num_far > 10  # characters of two units stood before them

    inputs = [{"question": q, "context": c} for q, c in zip(OTHERS, ASKED, strict=True)]
    options = {"top_k": 3, "handle_impossible_answer": True, "max_answer_len": 4}
    for i, (text, answer, line) in enumerate(
        zip(ASKED, models["question-answering"].answer_each(inputs, **options)[0], found["answer"], strict=True)
    ):
        assert _told(line) == [
            ("", i, _units(text, one["start"]), _units(text, one["end"]), _bits(one["score"]))
            for one in (answer if isinstance(answer, list) else [answer])
        ]

    [masks] = models["fill-mask"].answer_each(["😀 the [MASK] is [MASK] é"], top_k=7)[0]
    assert [_told(line) for line in found["fill"]] == [
        [(one["token_str"], one["token"], 0, 0, _bits(one["score"])) for one in mask] for mask in masks
    ]


def test_the_example_of_the_page_runs(folder: Path, run_java: Callable[..., str], tmp_path: Path) -> None:
    page = (ROOT / "docs" / "bindings.md").read_text(encoding="utf-8")
    (tmp_path / "Search.java").write_text(page.split("```java\n")[1].split("```")[0], encoding="utf-8")
    assert run_java(tmp_path / "Search.java", folder / "embedding.onnx") == "2 texts of 24 dimensions\n"


def test_failures_closing_threads_and_cancelling(folder: Path, run_java: Callable[..., str]) -> None:
    assert run_java(ROOT / "tests" / "java" / "BindingTest.java", "checks", folder) == "ok\n"


@pytest.mark.parametrize("library", [JNI, LIBRARIES / "libedgebert.so"], ids=lambda path: path.name)
def test_libraries_load_where_pages_have_16_kb(library: Path) -> None:
    data = library.read_bytes()
    assert data[:6] == b"\x7fELF\x02\x01", "64-bit, little-endian"
    [offset] = struct.unpack_from("<Q", data, 32)
    size, count = struct.unpack_from("<HH", data, 54)
    alignments = []
    for i in range(count):
        kind, _, file_offset, address, _, _, _, alignment = struct.unpack_from("<IIQQQQQQ", data, offset + i * size)
        if kind == 1:  # PT_LOAD
            alignments.append(alignment)
            assert file_offset % 16384 == address % 16384
    assert alignments and all(alignment % 16384 == 0 for alignment in alignments)


@pytest.mark.skipif(shutil.which("nm") is None, reason="nm lists the library's symbols")
def test_the_jni_library_exports_the_native_methods_and_nothing_else() -> None:
    result = subprocess.run(["nm", "-D", "--defined-only", JNI], capture_output=True, text=True, check=True)
    names = {line.split()[-1] for line in result.stdout.splitlines()}
    source = (ROOT / "kernels/bindings/java/src/main/java/dev/edgebert/Native.java").read_text(encoding="utf-8")
    methods = {line.split("(")[0].split()[-1] for line in source.splitlines() if " native " in line}
    assert len(methods) == 7
    assert names == {f"Java_dev_edgebert_Native_{method}" for method in methods}
