"""Who else loads an exported folder? Each loader in its own environment, on the unchanged folder, against our results.

Loaders: Optimum's ORTModelFor*, sentence-transformers' ONNX backend (encoders and cross-encoders), fastembed,
transformers.js in Node, and onnxruntime-web on the bare file. Every one gets the same texts, of many lengths in one
batch and an empty one among them, pairs where the head is for them, and a text beyond the length limit. Token outputs
are compared without padding. "Equal" is the project's agreement limit: fp32 1e-5 of the largest value, int8 a cosine
of 0.998 for every text, against two of our backends. The overlong text is reported by itself, since how to truncate is
each loader's own code. Exit status 1 if a loader that was asked for fails or differs.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

import edgebert
from benchmarks import ROOT, describe_run, write_result
from edgebert.artifact.spec import EncoderSpec
from edgebert.backends.base import Outputs
from edgebert.batch import PackedBatch

F32 = NDArray[np.float32]
F32_LIMIT = 1e-5  # of the largest value
INT8_LIMIT = 0.998  # least cosine of a text
BACKENDS = ("native", "onnxruntime")
# for chemistry's vocabularies, to which the sentences are unknown tokens
REACTIONS = (
    "C C ( = O ) O . O C C 1 = C C = C C = C 1",
    "c 1 c c n c c 1 . C l",
    "N # C C 2 C C 2 , B r",
    "F C ( F ) F",
)
OVERLONG = "overlong"  # the name of the call with a text beyond the length limit

# Each program reads a job (JSON: folder, task, calls …) and writes {"rows", "versions"}: for every call it can make,
# by the call's name, one list of numbers a text. These run where this project is not installed. A name may go on after
# a comma: another way to the same answer.

PYTHON_HEAD = """
import json, sys
from importlib import metadata
import numpy as np
job = json.load(open(sys.argv[1]))
folder, task, calls = job["folder"], job["task"], job["calls"]
def finish(rows, *packages):
    rows = {name: [np.asarray(row, np.float64).ravel().tolist() for row in part] for name, part in rows.items()}
    versions = {name: metadata.version(name) for name in packages}
    json.dump({"rows": rows, "versions": versions}, open(sys.argv[2], "w"))
"""

OPTIMUM = """
from optimum import onnxruntime as ort
from transformers import AutoTokenizer
kind = {"embedding": "FeatureExtraction", "text-classification": "SequenceClassification",
        "token-classification": "TokenClassification", "question-answering": "QuestionAnswering",
        "fill-mask": "MaskedLM"}[task]
model = getattr(ort, "ORTModelFor" + kind).from_pretrained(folder)
tokenizer = AutoTokenizer.from_pretrained(folder)
rows = {}
for name, call in calls.items():
    inputs = tokenizer(call["texts"], call["pairs"], padding=True, truncation=True, return_tensors="pt")
    outputs = model(**inputs)
    mask = inputs["attention_mask"].numpy()
    if task == "embedding":  # pooling is not Optimum's
        value = outputs["last_hidden_state"].numpy()
        value = value[:, 0] if job["pooling"] == "cls" else (value * mask[..., None]).sum(1) / mask.sum(1)[:, None]
        rows[name] = value / np.linalg.norm(value, axis=1, keepdims=True) if job["normalize"] else value
    else:
        values = [outputs[output].numpy() for output in job["outputs"]]
        rows[name] = [np.concatenate([(v[i][m > 0] if job["per_token"] else v[i]).ravel() for v in values])
                      for i, m in enumerate(mask)]
finish(rows, "optimum", "optimum-onnx", "transformers", "torch", "onnxruntime")
"""

SENTENCE_TRANSFORMERS = """
import torch
from sentence_transformers import CrossEncoder, SentenceTransformer
if task == "embedding":
    model = SentenceTransformer(folder, backend="onnx", device="cpu")
    rows = {name: model.encode(call["texts"]) for name, call in calls.items()}
else:
    model = CrossEncoder(folder, backend="onnx", device="cpu")
    pairs = list(zip(calls["pairs"]["texts"], calls["pairs"]["pairs"]))
    rows = {"pairs": model.predict(pairs, activation_fn=torch.nn.Identity())}
finish(rows, "sentence-transformers", "optimum-onnx", "transformers", "torch", "onnxruntime")
"""

FASTEMBED = """
from fastembed import TextEmbedding
from fastembed.common.model_description import ModelSource, PoolingType
rows = {}
for way, file, options in (
    ("", "onnx/model.onnx",
     {"pooling": PoolingType[job["pooling"].upper()], "normalization": job["normalize"]}),
    (", pooled by the file", "model.onnx",
     {"pooling": PoolingType.DISABLED, "normalization": False, "output_name": "sentence_embedding"}),
):
    model = "exported/folder" + way
    TextEmbedding.add_custom_model(
        model=model, sources=ModelSource(hf="exported/folder"), dim=job["width"], model_file=file, **options)
    embedding = TextEmbedding(model, specific_model_path=folder)
    rows |= {name + way: list(embedding.embed(call["texts"])) for name, call in calls.items()}
finish(rows, "fastembed", "onnxruntime", "tokenizers")
"""

NODE_HEAD = """
import fs from "node:fs";
import path from "node:path";
const [jobFile, outFile] = process.argv.slice(-2);
const job = JSON.parse(fs.readFileSync(jobFile));
// one row a text out of arrays [batch, sequence, width] or [batch, width], padding left out
const pick = (arrays, mask) => mask.map((row, i) => arrays.flatMap(({data, dims}) => {
  const size = data.length / dims[0], width = size / row.length;
  const values = Array.from(data.slice(i * size, (i + 1) * size));
  return job.per_token ? values.filter((_, k) => row[Math.floor(k / width)] > 0) : values;
}));
const finish = (rows, ...packages) => {
  const version = (name) => JSON.parse(fs.readFileSync(path.join("node_modules", name, "package.json"))).version;
  const versions = {node: process.versions.node, ...Object.fromEntries(packages.map((name) => [name, version(name)]))};
  fs.writeFileSync(outFile, JSON.stringify({rows, versions}));
};
const rows = {};
"""

TRANSFORMERS_JS = """
import {env, pipeline} from "@huggingface/transformers";
env.allowRemoteModels = false;
env.localModelPath = path.dirname(job.folder);
const task = job.task === "embedding" ? "feature-extraction" : job.task;
const pipe = await pipeline(task, path.basename(job.folder));
for (const [name, {texts, pairs}] of Object.entries(job.calls)) {
  if (job.task === "embedding") {
    rows[name] = (await pipe(texts, {pooling: job.pooling, normalize: job.normalize})).tolist();
  } else {
    const inputs = pipe.tokenizer(texts, {text_pair: pairs, padding: true, truncation: true});
    const outputs = await pipe.model(inputs);
    rows[name] = pick(job.outputs.map((output) => outputs[output]), inputs.attention_mask.tolist());
  }
}
if (job.task.endsWith("classification")) await pipe(job.calls.texts.texts[0]);
if (job.task === "fill-mask") await pipe(pipe.tokenizer.mask_token);
finish(rows, "@huggingface/transformers", "onnxruntime-node");
"""

ONNXRUNTIME_WEB = """
import ort from "onnxruntime-web";
ort.env.wasm.numThreads = 1;
const session = await ort.InferenceSession.create(fs.readFileSync(path.join(job.folder, "model.onnx")));
for (const [name, {inputs}] of Object.entries(job.calls)) {
  const mask = inputs.attention_mask, dims = [mask.length, mask[0].length];
  const feed = Object.fromEntries(session.inputNames.map((input) =>
    [input, new ort.Tensor("int64", BigInt64Array.from(inputs[input].flat(), BigInt), dims)]));
  const outputs = await session.run(feed, job.outputs);
  rows[name] = pick(job.outputs.map((output) => outputs[output]), mask);
}
finish(rows, "onnxruntime-web");
"""

# name -> (program, tasks it serves; None: all)
LOADERS = {
    "optimum": (
        OPTIMUM,
        ("embedding", "text-classification", "token-classification", "question-answering", "fill-mask"),
    ),
    "sentence-transformers": (SENTENCE_TRANSFORMERS, ("embedding", "text-classification")),
    "fastembed": (FASTEMBED, ("embedding",)),
    "transformers.js": (
        TRANSFORMERS_JS,
        ("embedding", "text-classification", "token-classification", "question-answering", "fill-mask"),
    ),
    "onnxruntime-web": (ONNXRUNTIME_WEB, None),
}


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.interop", description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, nargs="+", help="a folder written by edgebert export, with its tokenizer")
    for name in ("optimum", "sentence-transformers", "fastembed"):
        parser.add_argument(f"--{name}", type=Path, metavar="PYTHON", help=f"the Python that has {name}")
    for name in ("transformers.js", "onnxruntime-web"):
        parser.add_argument(f"--{name}", type=Path, metavar="FOLDER", help=f"the folder whose node_modules has {name}")
    parser.add_argument("--count", type=int, default=20, help="sentences compared, at least 16 (default: 20)")
    parser.add_argument("--out", type=Path, help="write JSON here instead of printing it")
    args = parser.parse_args()

    environments = {name: getattr(args, name.replace("-", "_")) for name in LOADERS}
    environments = {name: path for name, path in environments.items() if path is not None}
    sentences = (ROOT / "edgebert/data/demo_sentences.txt").read_text(encoding="utf-8").splitlines()
    result: dict[str, Any] = {**describe_run("benchmarks.interop"), "folders": {}}
    for folder in args.folder:
        job, expected = prepare(folder.resolve(), sentences, args.count)
        loaders = {}
        for name, environment in environments.items():
            tasks = LOADERS[name][1]
            if tasks is None or job["task"] in tasks:
                loaders[name] = try_loader(name, environment, job, expected)
                print(f"{folder.name}: {name}: {summarize(loaders[name])}", file=sys.stderr)
        result["folders"][folder.name] = {
            "task": job["task"],
            "weights": "int8" if job["is_int8"] else "fp32",
            "loaders": loaders,
        }
    write_result(args.out, result)
    print(render(result))
    return 0 if all(row.get("equal") for each in result["folders"].values() for row in each["loaders"].values()) else 1


def prepare(
    folder: Path, sentences: Sequence[str], count: int
) -> tuple[dict[str, Any], dict[str, dict[str, list[F32]]]]:
    """What a loader is given, and what each backend of ours makes of it: backend -> call -> one flat row a text."""
    models = {backend: edgebert.load(folder, backend=backend, threads=1) for backend in BACKENDS}
    tokenizer, spec = models[BACKENDS[0]].tokenizer, models[BACKENDS[0]].spec
    if tokenizer is None:
        raise SystemExit(f"{folder} has no tokenizer: export a model that has one")
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
            expected[backend][name] = split_rows(spec, batch, model.forward(batch, outputs))
    job = {
        "folder": str(folder),
        "task": spec.task,
        "is_int8": spec.is_int8,
        "outputs": outputs,
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


def try_loader(
    name: str, environment: Path, job: dict[str, Any], expected: dict[str, dict[str, list[F32]]]
) -> dict[str, Any]:
    """Run one loader: {"loads", "unchanged", "versions", "equal", "calls"} or {"loads": False, "error"}."""
    program = LOADERS[name][0]
    is_node = name in ("transformers.js", "onnxruntime-web")
    folder = Path(job["folder"])
    before = snapshot(folder)
    with tempfile.TemporaryDirectory() as scratch:
        job_file, out_file = Path(scratch, "job.json"), Path(scratch, "out.json")
        job_file.write_text(json.dumps(job), encoding="utf-8")
        if is_node:
            command = ["node", "--input-type=module", "-e", NODE_HEAD + program, "--"]
        else:
            command = [str(environment.absolute()), "-c", PYTHON_HEAD + program]
        done = subprocess.run(
            [*command, str(job_file), str(out_file)],
            cwd=environment if is_node else scratch,
            env={key: value for key, value in os.environ.items() if key != "PYTHONPATH"} | {"HF_HUB_OFFLINE": "1"},
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode != 0 or not out_file.exists():
            print(done.stderr[-4000:], file=sys.stderr)
            lines = [line for line in done.stderr.splitlines() if "Error" in line] or ["no answer"]
            return {"loads": False, "error": lines[-1].strip().replace(str(folder), folder.name)}
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
    return {
        "loads": True,
        "unchanged": snapshot(folder) == before,
        "versions": answer["versions"],
        "equal": all(equal for call, equal in is_equal.items() if not call.startswith(OVERLONG)),
        # null: not tried, or int8, whose limit may not notice one token
        "truncates_alike": all(overlong) if overlong and not job["is_int8"] else None,
        "calls": calls,
    }


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


def summarize(row: dict[str, Any]) -> str:
    """One loader's result in a table cell."""
    if not row["loads"]:
        return f"refuses: {row['error']}"
    calls = [against["onnxruntime"] for call, against in row["calls"].items() if not call.startswith(OVERLONG)]
    if errors := [call["error"] for call in calls if "error" in call]:
        return str(errors[0])
    worst = max(call["max_abs_difference"] for call in calls)
    notes = {"CHANGED the folder": not row["unchanged"], "truncates otherwise": row["truncates_alike"] is False}
    return ", ".join(
        [
            ("equal" if row["equal"] else "DIFFERS"),
            f"{worst:.1e}",
            *(note for note, applies in notes.items() if applies),
        ]
    )


def render(result: dict[str, Any]) -> str:
    """A markdown table: folders down, loaders across; figures are the largest difference to our onnxruntime backend."""
    names = [name for name in LOADERS if any(name in each["loaders"] for each in result["folders"].values())]
    lines = ["| folder | " + " | ".join(names) + " |", "|---" * (len(names) + 1) + "|"]
    for folder, each in result["folders"].items():
        cells = [summarize(each["loaders"][name]) if name in each["loaders"] else "–" for name in names]
        lines.append(f"| {folder} ({each['task']}, {each['weights']}) | " + " | ".join(cells) + " |")
    return "\n".join(lines)


if __name__ == "__main__":
    raise SystemExit(main())
