"""Who else runs an exported file? Each tool in its own environment, on the unchanged file, against our results.

Tools are libraries that load the folder (Optimum's ORTModelFor*, sentence-transformers' ONNX backend, fastembed,
transformers.js), runtimes that load the bare file, converters that make something else of it and run that, and programs
that rewrite it. Every one gets the same texts, of many lengths in one batch and an empty one among them, pairs where
the head is for them, and a text beyond the length limit. Token outputs are compared without padding. "Equal" is the
project's agreement limit: fp32 1e-5 of the largest value, int8 a cosine of 0.998 for every text, against two of ours;
of a weight-only file these are our onnxruntime backend and the oracle on the dequantized weights. The overlong text is
reported by itself for tools that read texts, since how to truncate is each one's own code. Exit status 1 if a tool that
was asked for gives something else; one that refuses says why.

    python -m benchmarks.interop FOLDER … --tool openvino=PYTHON --tool transformers.js=FOLDER_WITH_NODE_MODULES
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks import ROOT, describe_run, write_result
from benchmarks.interop_programs import TOOLS
from edgebert.artifact.reader import read_artifact
from edgebert.artifact.spec import EncoderSpec
from edgebert.backends.base import Backend, Outputs
from edgebert.backends.numpy_backend import NumpyBackend
from edgebert.backends.registry import load_backend
from edgebert.batch import PackedBatch
from edgebert.exporting.quantize import dequantize
from edgebert.tokenizer import Tokenizer

F32 = NDArray[np.float32]
F32_LIMIT = 1e-5  # of the largest value
INT8_LIMIT = 0.998  # least cosine of a text
# for chemistry's vocabularies, to which the sentences are unknown tokens
REACTIONS = (
    "C C ( = O ) O . O C C 1 = C C = C C = C 1",
    "c 1 c c n c c 1 . C l",
    "N # C C 2 C C 2 , B r",
    "F C ( F ) F",
)
OVERLONG = "overlong"  # the name of the call with a text beyond the length limit
LENGTHS = (16, 128)  # tokens of a text that is timed
TIME_LIMIT = 300  # seconds of a tool's run


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.interop", description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, nargs="+", help="a folder written by edgebert export, with its tokenizer")
    parser.add_argument(
        "--tool",
        action="append",
        default=[],
        metavar="NAME=PATH",
        help=f"a tool, and the Python or the folder of node_modules that has it: {', '.join(TOOLS)}",
    )
    parser.add_argument("--count", type=int, default=20, help="sentences compared, at least 16 (default: 20)")
    parser.add_argument("--seconds", type=float, default=0, help="time what runs, so long each (default: not at all)")
    parser.add_argument("--out", type=Path, help="write JSON here instead of printing it")
    args = parser.parse_args()

    environments: dict[str, Path] = {}
    for text in args.tool:
        name, _, path = text.partition("=")
        if name not in TOOLS or not path:
            parser.error(f"--tool takes NAME=PATH with a name of {', '.join(TOOLS)}, got {text!r}")
        environments[name] = Path(path)
    sentences = (ROOT / "edgebert/data/demo_sentences.txt").read_text(encoding="utf-8").splitlines()
    result: dict[str, Any] = {**describe_run("benchmarks.interop"), "folders": {}}
    for folder in args.folder:
        job, expected = prepare(folder.resolve(), sentences, args.count)
        job |= {"lengths": LENGTHS if args.seconds else (), "seconds": args.seconds}
        tools = {}
        for name, environment in environments.items():
            tasks = TOOLS[name].tasks
            if tasks is None or job["task"] in tasks:
                tools[name] = try_tool(name, environment, job, expected)
                print(f"{folder.name}: {name}: {summarize(tools[name])}", file=sys.stderr, flush=True)
        result["folders"][folder.name] = {"task": job["task"], "weights": job["weights"], "tools": tools}
    write_result(args.out, result)
    print(render(result))
    rows = [row for each in result["folders"].values() for row in each["tools"].values()]
    return 0 if all(row.get("equal", True) for row in rows) else 1


def prepare(
    folder: Path, sentences: Sequence[str], count: int
) -> tuple[dict[str, Any], dict[str, dict[str, list[F32]]]]:
    """What a tool is given, and what each backend of ours makes of it: backend -> call -> one flat row a text."""
    artifact = read_artifact(folder)
    spec = artifact.spec
    models: dict[str, Backend] = {"onnxruntime": load_backend(artifact, "onnxruntime", threads=1)}
    if spec.is_weight_only:
        models["numpy, dequantized"] = NumpyBackend(*dequantize(spec, artifact.tensors))
    else:
        models["native"] = load_backend(artifact, "native", threads=1)
    if artifact.tokenizer_json is None:
        raise SystemExit(f"{folder} has no tokenizer: export a model that has one")
    tokenizer = Tokenizer.for_spec(artifact.tokenizer_json, spec)
    outputs = ("sentence_embedding",) if spec.task == "embedding" else spec.outputs
    texts = [*REACTIONS, *sentences[:count], ""]
    calls: dict[str, Any] = {"texts": {"texts": texts, "pairs": None}}
    if spec.task in ("text-classification", "question-answering"):
        calls["pairs"] = {"texts": texts[:8], "pairs": texts[8:16]}
    calls[OVERLONG] = {"texts": [" ".join(sentences)], "pairs": None}
    expected: dict[str, dict[str, list[F32]]] = {backend: {} for backend in models}
    for name, call in calls.items():
        rows = list(zip(call["texts"], call["pairs"], strict=True)) if call["pairs"] else call["texts"]
        batch, _ = tokenizer.tokenize(rows)
        padded = zip(("input_ids", "attention_mask", "token_type_ids"), batch.pad(spec.pad_token_id), strict=True)
        call["inputs"] = {key: array.tolist() for key, array in padded}
        for backend, model in models.items():
            expected[backend][name] = split_rows(spec, batch, model.run(batch, outputs))
    job = {
        "folder": str(folder),
        "file": str(artifact.path),
        "task": spec.task,
        "weights": "int8 weights" if spec.is_weight_only else "int8" if spec.is_int8 else "fp32",
        "is_int8": spec.is_int8,
        "inputs": ["input_ids", "attention_mask", *["token_type_ids"] * spec.has_token_types],
        "outputs": outputs,
        "graph_name": "edgebert",  # as the writer calls it
        "graph_outputs": spec.outputs,
        "vocab_size": spec.vocab_size,
        "per_token": spec.output_width(outputs[0])[0],
        "pooling": spec.pooling,
        "normalize": spec.normalize,
        "width": spec.output_width(outputs[0])[1],
        "calls": calls,
    }
    return job, expected


def split_rows(spec: EncoderSpec, batch: PackedBatch, values: Outputs) -> list[F32]:
    """Each text's part of all outputs, flat."""
    rows = []
    for i, (first, last) in enumerate(itertools.pairwise(batch.cu_seqlens)):
        parts = [array[first:last] if spec.output_width(name)[0] else array[i] for name, array in values.items()]
        rows.append(np.concatenate([part.ravel() for part in parts]))
    return rows


def try_tool(
    name: str, environment: Path, job: dict[str, Any], expected: dict[str, dict[str, list[F32]]]
) -> dict[str, Any]:
    """Run one tool: {"loads", "unchanged", "versions", "equal", "calls", …} or {"loads": False, "error"}."""
    tool = TOOLS[name]
    folder = Path(job["folder"])
    before = snapshot(folder)
    with tempfile.TemporaryDirectory() as scratch:
        job_file, out_file = Path(scratch, "job.json"), Path(scratch, "out.json")
        job_file.write_text(json.dumps(job), encoding="utf-8")
        if tool.language == "node":
            command = ["node", "--input-type=module", "-e", tool.source, "--"]
        else:
            command = [str(environment.absolute()), "-c", tool.source]
        variables = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
        try:
            done = subprocess.run(
                [*command, str(job_file), str(out_file)],
                cwd=environment if tool.language == "node" else scratch,
                env=variables | {"HF_HUB_OFFLINE": "1"},
                capture_output=True,
                text=True,
                check=False,
                timeout=TIME_LIMIT,
            )
        except subprocess.TimeoutExpired:
            return {"loads": False, "error": f"no answer in {TIME_LIMIT} s"}
        if not out_file.exists():
            print(done.stderr[-4000:], file=sys.stderr)
            said = clean(done.stderr, str(folder), scratch, str(environment)) or f"exit status {done.returncode}"
            return {"loads": False, "error": said}
        answer = json.loads(out_file.read_text(encoding="utf-8"))
    calls = {
        call: {
            backend: compare([np.array(row, np.float32) for row in rows], ours[call.split(",")[0]], job["is_int8"])
            for backend, ours in expected.items()
        }
        for call, rows in answer["rows"].items()
    }
    is_equal = {call: all(each["equal"] for each in against.values()) for call, against in calls.items()}
    overlong = [equal for call, equal in is_equal.items() if call.startswith(OVERLONG)]
    is_apart = tool.reads == "folder"  # what reads token ids truncates nothing
    return {
        "loads": True,
        "unchanged": snapshot(folder) == before,
        "versions": answer["versions"],
        "equal": not calls
        or all(equal for call, equal in is_equal.items() if not (is_apart and call.startswith(OVERLONG))),
        # null: not tried, or int8, whose limit may not notice one token
        "truncates_alike": all(overlong) if is_apart and overlong and not job["is_int8"] else None,
        "milliseconds": answer["milliseconds"],
        "calls": calls,
    }


def clean(said: str, *paths: str) -> str:
    """The last line of a traceback that names an error, without paths of this machine."""
    lines = [line.strip() for line in said.splitlines() if re.search("error|exception|unsupported", line, re.I)]
    text = lines[-1] if lines else ""
    for path in paths:
        text = text.replace(path, "…")
    return re.sub(r"/(?:[\w.+-]+/)+", "…/", text)[:300]


def compare(rows: Sequence[F32], ours: Sequence[F32], is_int8: bool) -> dict[str, Any]:
    """Largest difference, absolute and of our largest value, and the least cosine of a text."""
    if [len(row) for row in rows] != [len(row) for row in ours]:
        return {"equal": False, "error": "other sizes: not the same tokens"}
    difference = max(float(np.abs(a - b).max()) for a, b in zip(rows, ours, strict=True))
    relative = difference / max(float(np.abs(row).max()) for row in ours)
    doubles = [(np.array(a, np.float64), np.array(b, np.float64)) for a, b in zip(rows, ours, strict=True)]
    cosine = min(float(np.vdot(a, b) / np.sqrt(np.vdot(a, a) * np.vdot(b, b))) for a, b in doubles)
    return {
        "equal": cosine >= INT8_LIMIT if is_int8 else relative <= F32_LIMIT,
        "texts": len(rows),
        "max_abs_difference": difference,
        "max_relative_difference": relative,
        "min_cosine": cosine,
    }


def snapshot(folder: Path) -> dict[str, tuple[int, int]]:
    """Every file's size and time of change."""
    files = (path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): (path.stat().st_size, path.stat().st_mtime_ns) for path in files}


def summarize(row: Mapping[str, Any]) -> str:
    """One tool's result in a table cell."""
    if not row["loads"]:
        return f"no: {row['error']}"
    if not row["calls"]:
        return "converts, and runs elsewhere"
    calls = [against["onnxruntime"] for call, against in row["calls"].items() if not call.startswith(OVERLONG)]
    if errors := [call["error"] for call in calls if "error" in call]:
        return str(errors[0])
    worst = max(call["max_abs_difference"] for call in calls)
    notes = {"CHANGED the folder": not row["unchanged"], "truncates otherwise": row["truncates_alike"] is False}
    times = [f"{value:.1f} ms" for value in row["milliseconds"].values()]
    return ", ".join(
        [
            ("equal" if row["equal"] else "DIFFERS"),
            f"{worst:.1e}",
            *(note for note, applies in notes.items() if applies),
            *([" and ".join(times)] if times else []),
        ]
    )


def render(result: Mapping[str, Any]) -> str:
    """A markdown table: tools down, folders across; figures are the largest difference to our onnxruntime backend."""
    folders = result["folders"]
    names = [name for name in TOOLS if any(name in each["tools"] for each in folders.values())]
    heads = [f"{folder} ({each['task']}, {each['weights']})" for folder, each in folders.items()]
    lines = ["| tool | " + " | ".join(heads) + " |", "|---" * (len(heads) + 1) + "|"]
    for name in names:
        cells = [summarize(each["tools"][name]) if name in each["tools"] else "–" for each in folders.values()]
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


if __name__ == "__main__":
    raise SystemExit(main())
