"""Who else loads an exported folder? Each loader in its own environment, on the unchanged folder, against our results.

Loaders: Optimum's ORTModelFor*, sentence-transformers' ONNX backend (encoders and cross-encoders), fastembed,
transformers.js in Node, and onnxruntime-web on the bare file. Every one gets the same texts, of many lengths in one
batch, an empty one and one beyond the length limit among them; text classification gets pairs as well. Token outputs
are compared row by row without padding. "Equal" is the project's agreement limit: fp32 1e-5 of the largest value,
int8 a cosine of 0.998 for every text. Exit status 1 if a loader that was asked for fails or differs.
"""

from __future__ import annotations

import argparse
import json
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

F32 = NDArray[np.float32]
F32_LIMIT = 1e-5  # of the largest value
INT8_LIMIT = 0.998  # least cosine of a text
BACKENDS = ("native", "onnxruntime")

# Each program reads a job (JSON: folder, task, outputs, texts, pairs, ids …) and writes {"versions", "rows"}: for
# every text, then every pair, one list of numbers. These run where this project is not installed.

PYTHON_HEAD = """
import json, sys
from importlib import metadata
import numpy as np
job = json.load(open(sys.argv[1]))
folder, task, texts, pairs = job["folder"], job["task"], job["texts"], job["pairs"]
versions = lambda *names: {name: metadata.version(name) for name in names}
def finish(rows, versions):
    json.dump({"rows": [np.asarray(row, np.float64).ravel().tolist() for row in rows], "versions": versions},
              open(sys.argv[2], "w"))
"""

OPTIMUM = """
import torch
from optimum import onnxruntime as ort
from transformers import AutoTokenizer
kind = {"embedding": "FeatureExtraction", "text-classification": "SequenceClassification",
        "token-classification": "TokenClassification", "question-answering": "QuestionAnswering",
        "fill-mask": "MaskedLM"}[task]
model = getattr(ort, "ORTModelFor" + kind).from_pretrained(folder)
tokenizer = AutoTokenizer.from_pretrained(folder)
rows = []
for batch in ([texts], list(map(list, zip(*pairs)))):
    if not batch:
        continue
    inputs = tokenizer(*batch, padding=True, truncation=True, return_tensors="pt")
    outputs = model(**inputs)
    values = [outputs[name].numpy() for name in job["outputs"]]
    for i, mask in enumerate(inputs["attention_mask"].numpy().astype(bool)):
        rows.append(np.concatenate([(v[i][mask] if job["per_token"] else v[i]).ravel() for v in values]))
finish(rows, versions("optimum", "optimum-onnx", "transformers", "torch", "onnxruntime"))
"""

SENTENCE_TRANSFORMERS = """
import torch
from sentence_transformers import CrossEncoder, SentenceTransformer
if task == "embedding":
    rows = SentenceTransformer(folder, backend="onnx", device="cpu").encode(texts, batch_size=64)
else:
    model = CrossEncoder(folder, backend="onnx", device="cpu")
    rows = model.predict(pairs, batch_size=64, activation_fn=torch.nn.Identity())
finish(rows, versions("sentence-transformers", "optimum-onnx", "transformers", "torch", "onnxruntime"))
"""

FASTEMBED = """
from fastembed import TextEmbedding
from fastembed.common.model_description import ModelSource, PoolingType
pooling = {"mean": PoolingType.MEAN, "cls": PoolingType.CLS}[job["pooling"]]
rows = []
for name, file, options in (
    ("pooled by fastembed", "onnx/model.onnx", {"pooling": pooling, "normalization": job["normalize"]}),
    ("pooled by the file", "model.onnx",
     {"pooling": PoolingType.DISABLED, "normalization": False, "output_name": "sentence_embedding"}),
):
    TextEmbedding.add_custom_model(
        model=name, sources=ModelSource(hf="exported/folder"), dim=job["width"], model_file=file, **options)
    rows.append(np.stack(list(TextEmbedding(name, specific_model_path=folder).embed(texts, batch_size=64))))
# both ways are held to the same answer: of each value the one further from ours counts
ours = np.array(job["expected"])
finish(np.where(abs(rows[0] - ours) > abs(rows[1] - ours), *rows), versions("fastembed", "onnxruntime", "tokenizers"))
"""

NODE_HEAD = """
import fs from "node:fs"; import path from "node:path";
const [jobFile, outFile] = process.argv.slice(-2);
const job = JSON.parse(fs.readFileSync(jobFile));
const versions = (...names) => Object.fromEntries([["node", process.versions.node], ...names.map((name) =>
  [name, JSON.parse(fs.readFileSync(path.join("node_modules", name, "package.json"))).version])]);
// rows of one text out of arrays [batch, sequence, width] or [batch, width], without the padding
const pick = (arrays, mask) => mask.map((row, i) => arrays.flatMap(({data, dims}) => {
  const size = data.length / dims[0], width = size / mask[0].length;
  const values = Array.from(data.slice(i * size, (i + 1) * size));
  return job.per_token ? values.filter((_, k) => row[Math.floor(k / width)]) : values;
}));
const finish = (rows, versions) => fs.writeFileSync(outFile, JSON.stringify({rows, versions}));
"""

TRANSFORMERS_JS = """
import {env, pipeline} from "@huggingface/transformers";
env.allowRemoteModels = false;
env.localModelPath = path.dirname(job.folder);
const task = job.task === "embedding" ? "feature-extraction" : job.task;
const pipe = await pipeline(task, path.basename(job.folder));
let rows = [];
if (job.task === "embedding") {
  rows = (await pipe(job.texts, {pooling: job.pooling, normalize: job.normalize})).tolist();
} else {
  const pairs = [job.pairs.map((pair) => pair[0]), job.pairs.map((pair) => pair[1])];
  for (const [texts, text_pair] of [[job.texts], ...(job.pairs.length ? [pairs] : [])]) {
    const inputs = pipe.tokenizer(texts, {text_pair, padding: true, truncation: true});
    const outputs = await pipe.model(inputs);
    rows.push(...pick(job.outputs.map((name) => outputs[name]), inputs.attention_mask.tolist().map((r) => r.map(Number))));
  }
  if (job.task !== "question-answering") await pipe(job.task === "fill-mask" ? job.masked : job.texts[0]);
}
finish(rows, versions("@huggingface/transformers", "onnxruntime-node"));
"""

ONNXRUNTIME_WEB = """
import ort from "onnxruntime-web";
ort.env.wasm.numThreads = 1;
const session = await ort.InferenceSession.create(fs.readFileSync(path.join(job.folder, "model.onnx")));
const rows = [];
for (const batch of job.batches) {
  const dims = [batch.attention_mask.length, batch.attention_mask[0].length];
  const feed = Object.fromEntries(session.inputNames.map((name) =>
    [name, new ort.Tensor("int64", BigInt64Array.from(batch[name].flat(), BigInt), dims)]));
  const outputs = await session.run(feed, job.outputs);
  rows.push(...pick(job.outputs.map((name) => outputs[name]), batch.attention_mask));
}
finish(rows, versions("onnxruntime-web"));
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
    parser.add_argument("--count", type=int, default=30, help="sentences compared (default: 30)")
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
            "texts": len(job["texts"]),
            "pairs": len(job["pairs"]),
            "loaders": loaders,
        }
    write_result(args.out, result)
    print(render(result))
    return 0 if all(row.get("equal") for each in result["folders"].values() for row in each["loaders"].values()) else 1


def prepare(folder: Path, sentences: Sequence[str], count: int) -> tuple[dict[str, Any], dict[str, list[F32]]]:
    """What a loader is given, and what each backend of ours makes of it: backend -> one flat row a text or pair."""
    models = {backend: edgebert.load(folder, backend=backend, threads=1) for backend in BACKENDS}
    model = models[BACKENDS[0]]
    spec = model.spec
    if model.tokenizer is None:
        raise SystemExit(f"{folder} has no tokenizer: export a model that has one")
    texts = [*sentences[:count], "", " ".join(sentences)]
    pairs = [*zip(texts[:8], texts[8:16], strict=True)] if spec.task == "text-classification" else []
    batches = [model.tokenizer.tokenize(part)[0] for part in (texts, pairs) if part]
    # hidden states where a loader gives nothing else, otherwise all there is
    outputs = ("sentence_embedding",) if spec.task == "embedding" else spec.outputs
    expected: dict[str, list[F32]] = {}
    for backend, ours in models.items():
        expected[backend] = rows = []
        for batch in batches:
            values = ours.forward(batch, outputs)
            for i in range(batch.num_sequences):
                first, last = batch.cu_seqlens[i], batch.cu_seqlens[i + 1]
                parts = [
                    values[name][slice(first, last) if spec.output_width(name)[0] else i].ravel() for name in outputs
                ]
                rows.append(np.concatenate(parts))
    padded = [zip(("input_ids", "attention_mask", "token_type_ids"), b.pad(spec.pad_token_id), strict=True) for b in batches]
    job = {
        "folder": str(folder),
        "task": spec.task,
        "is_int8": spec.is_int8,
        "outputs": outputs,
        "per_token": spec.output_width(outputs[0])[0],
        "pooling": spec.pooling,
        "normalize": spec.normalize,
        "width": spec.output_width(outputs[0])[1],
        "texts": texts,
        "pairs": pairs,
        "masked": "the [MASK] of",
        "batches": [{name: array.tolist() for name, array in batch} for batch in padded],
        "expected": [row.tolist() for row in expected["onnxruntime"]] if spec.task == "embedding" else [],
    }
    return job, expected


def try_loader(
    name: str, environment: Path, job: dict[str, Any], expected: dict[str, list[F32]]
) -> dict[str, Any]:
    """Run one loader: {"loads", "unchanged", "versions", "equal", "against": {backend: …}} or {"loads": False, "error"}."""
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
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode != 0 or not out_file.exists():
            print(done.stderr[-4000:], file=sys.stderr)
            lines = [line for line in done.stderr.splitlines() if "Error" in line] or ["no answer"]
            return {"loads": False, "error": lines[-1].strip().replace(str(folder), folder.name)}
        answer = json.loads(out_file.read_text(encoding="utf-8"))
    rows = [np.array(row, np.float32) for row in answer["rows"]]
    # sentence-transformers scores pairs alone
    against = {backend: compare(rows, ours[-len(rows) :], job["is_int8"]) for backend, ours in expected.items()}
    return {
        "loads": True,
        "unchanged": snapshot(folder) == before,
        "versions": answer["versions"],
        "equal": all(each["equal"] for each in against.values()),
        "rows": len(rows),
        "against": against,
    }


def compare(rows: Sequence[F32], ours: Sequence[F32], is_int8: bool) -> dict[str, Any]:
    """Largest difference, absolute and of our largest value, and the least cosine of a row."""
    if [len(row) for row in rows] != [len(row) for row in ours]:
        return {"equal": False, "error": "other sizes: not the same tokens"}
    theirs, own = np.concatenate(rows).astype(np.float64), np.concatenate(ours).astype(np.float64)
    difference = float(np.abs(theirs - own).max())
    relative = difference / float(np.abs(own).max())
    cosine = min(
        float(a @ b / (np.linalg.norm(a) * np.linalg.norm(b)))
        for a, b in ((np.float64(a), np.float64(b)) for a, b in zip(rows, ours, strict=True))
    )
    return {
        "equal": cosine >= INT8_LIMIT if is_int8 else relative <= F32_LIMIT,
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
    worst = row["against"]["onnxruntime"]
    if "error" in worst:
        return str(worst["error"])
    verdict = ("equal" if row["equal"] else "DIFFERS") + ("" if row["unchanged"] else ", CHANGED the folder")
    return f"{verdict}, {worst['max_abs_difference']:.1e}"


def render(result: dict[str, Any]) -> str:
    """A markdown table: folders down, loaders across; the figure is the largest difference to our onnxruntime backend."""
    names = [name for name in LOADERS if any(name in each["loaders"] for each in result["folders"].values())]
    lines = ["| folder | " + " | ".join(names) + " |", "|---" * (len(names) + 1) + "|"]
    for folder, each in result["folders"].items():
        cells = [summarize(each["loaders"][name]) if name in each["loaders"] else "–" for name in names]
        lines.append(f"| {folder} ({each['task']}, {each['weights']}) | " + " | ".join(cells) + " |")
    return "\n".join(lines)


if __name__ == "__main__":
    raise SystemExit(main())
