"""The C API's answers beside Python's, bit for bit, on real text: 1,000 sentences, and 200 questions in windows.

The weights are those of an embedding file. For the other tasks its body gets a random head, whose answers are as hard
to repeat as a trained one's. With --search, a program built from `kernels/examples/search.c`, it also tells how long
one takes from its start to its end with one line to search, and its peak memory. Exit status 1 if anything differs.
"""

from __future__ import annotations

import argparse
import gzip
import json
import statistics
import subprocess
import sys
import tempfile
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

import edgebert
from benchmarks import ROOT, describe_run, write_result
from benchmarks.invariance import read_texts
from edgebert.artifact.names import weight_tensors
from edgebert.artifact.reader import read_artifact
from edgebert.artifact.writer import build_model

LABELS = ("O", "B-PER", "I-PER", "B-LOC", "I-LOC", "MISC")
NUM_RUNS = 9  # of the program, of which the median counts


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.text_api", description=__doc__.splitlines()[0])
    parser.add_argument("model", type=Path, help="an embedding file with its tokenizer inside")
    parser.add_argument("--sentences", type=Path, required=True, help="JSON lines with keys that begin with text")
    parser.add_argument("--questions", type=Path, required=True, help="JSON lines with question and context")
    parser.add_argument("--search", type=Path, help="the example program, to be timed")
    parser.add_argument("--out", type=Path, help="write JSON here instead of printing it")
    args = parser.parse_args()

    sentences = read_texts(args.sentences, 1000)
    with gzip.open(args.questions, "rt", encoding="utf-8") as lines:
        pairs = [{key: row[key] for key in ("question", "context")} for row in map(json.loads, islice(lines, 200))]
    result: dict[str, Any] = {
        **describe_run("benchmarks.text_api"),
        "sentences": len(sentences),
        "questions": len(pairs),
    }
    result["differing"] = {}
    with tempfile.TemporaryDirectory() as folder:
        for name, differing in compare(args.model, Path(folder), sentences, pairs):
            result["differing"][name] = differing
            print(f"{name}: {differing} differ")
        if args.search:
            result["search"] = time_program(args.search, args.model, Path(folder))
            print(result["search"])
    write_result(args.out, result)
    return 1 if any(result["differing"].values()) else 0


def compare(source: Path, folder: Path, sentences: list[str], pairs: list[dict[str, str]]) -> Any:
    """(what, how many answers differ) of each task."""
    sys.path.insert(0, str(ROOT / "tests"))
    from c_api import STRATEGIES, CModel  # type: ignore[import-not-found]

    def load(task: str) -> tuple[Any, Any]:
        path = source if task == "embedding" else put_head(source, folder, task)
        return edgebert.load(path, "native"), lambda **options: CModel(path, threads=2, offset_unit=2, **options)

    model, session = load("embedding")
    found, expected = session().embed(sentences), model.encode(sentences)
    yield "embedding", int((found.view(np.uint32) != expected.view(np.uint32)).any(axis=1).sum())

    model, session = load("text-classification")
    found, expected = session().classify(sentences), model.answer_each(sentences, top_k=None)[0]
    yield "text-classification", count_differing(found, expected)
    found, expected = (
        session().rank(sentences[0], sentences, label="MISC"),
        model.rank(sentences[0], sentences, label="MISC"),
    )
    yield "reranking", count_differing(found, expected)

    model, session = load("token-classification")
    for strategy in STRATEGIES:
        expected = model.answer_each(sentences, aggregation_strategy=strategy)[0]
        yield (
            f"token-classification, {strategy}",
            count_differing(session().label(sentences, strategy), strip(expected)),
        )
    contexts = [pair["context"] for pair in pairs]
    expected = model.answer_each(contexts, aggregation_strategy="first", max_length=64, stride=16)[0]
    found = session(max_length=64, long_texts=2, stride=16).label(contexts, "first")
    yield "token-classification in windows", count_differing(found, strip(expected))

    model, session = load("question-answering")
    questions = [pair["question"] for pair in pairs]
    for what, limits, told in (
        ("", {}, {}),
        (" in windows", {"max_length": 96, "long_texts": 2, "stride": 32}, {"max_seq_len": 96, "doc_stride": 32}),
    ):
        expected = model.answer_each(pairs, top_k=3, **told)[0]
        found = session(**limits).answer(questions, contexts, top_k=3)
        yield f"question-answering{what}", count_differing(found, strip(expected))


def strip(answers: Any) -> Any:
    """Without the texts that places tell."""
    return [[{k: v for k, v in one.items() if k not in ("word", "answer")} for one in found] for found in answers]


def count_differing(found: list[Any], expected: list[Any]) -> int:
    return sum(a != b for a, b in zip(found, expected, strict=True))


def put_head(source: Path, folder: Path, task: str) -> Path:
    """A file with the body of another and a random head."""
    artifact = read_artifact(source)
    pooling = "cls" if task == "text-classification" else "none"
    labels = () if task == "question-answering" else LABELS
    spec = artifact.spec.replace(task=task, pooling=pooling, normalize=False, labels=labels)
    generator = np.random.default_rng(0)
    tensors = {
        name: artifact.tensors[name] if name in artifact.tensors else generator.normal(0, 0.2, shape).astype(np.float32)
        for name, (_, shape) in weight_tensors(spec).items()
    }
    path = folder / f"{task}.onnx"
    path.write_bytes(build_model(spec, tensors, {"edgebert.tokenizer": artifact.tokenizer_json or ""}))
    return path


def time_program(program: Path, model: Path, folder: Path) -> dict[str, Any]:
    """Seconds of a whole run of the example with one line to search, the median, and its peak memory."""
    (folder / "line.txt").write_text("The water is at the root.\n")
    arguments = [str(program), str(model), str(folder / "line.txt"), "How do I water roses?"]
    # from a small process: what this one holds would count as the child's peak
    code = (
        "import os, sys, time\n"
        f"for _ in range({NUM_RUNS}):\n"
        "    start = time.perf_counter()\n"
        "    _, status, usage = os.wait4(os.posix_spawn(sys.argv[1], sys.argv[1:], os.environ), 0)\n"
        "    assert status == 0\n"
        "    print(time.perf_counter() - start, usage.ru_maxrss, file=sys.stderr)\n"
    )
    run = subprocess.run([sys.executable, "-S", "-c", code, *arguments], check=True, capture_output=True, text=True)
    rows = [line.split() for line in run.stderr.splitlines()]
    return {
        "seconds": statistics.median(float(seconds) for seconds, _ in rows),
        "peak_kib": max(int(peak) for _, peak in rows),
    }


if __name__ == "__main__":
    raise SystemExit(main())
