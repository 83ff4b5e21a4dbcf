"""What a trimmed vocabulary costs and saves: an embedding model cut to the words of some task data.

    python -m benchmarks.vocabulary --model FOLDER --data FOLDER chnsenticorp thucnews-titles --out RESULT.json

DATA has a folder a task with train.jsonl.gz and dev.jsonl.gz. The vocabulary is trimmed to all training texts. On the
development texts of each task: the share of unknown tokens, tokens a text, and the cosine of each text's embedding to
the whole model's, both in fp32; then the same in int8. With --finetuned STAGE, the folder of a model that
benchmarks.ladder fine-tuned on the first task, instead that model is trimmed: its metric and bytes before and after;
RESULT.json gathers such runs.
"""

from __future__ import annotations

import argparse
import gzip
import json
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

import edgebert
from benchmarks import describe_run, write_result
from benchmarks.accuracy import unit_rows
from benchmarks.ladder import TUNING, gather
from edgebert.checkpoints.loading import Checkpoint, load_checkpoint
from edgebert.compress.data import load_dataset
from edgebert.compress.measure import evaluate_file
from edgebert.compress.stages import load_saved
from edgebert.compress.vocabulary import trim, unknown_share
from edgebert.exporting.export import export_checkpoint
from edgebert.tokenizer import Text


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.vocabulary", description=__doc__.splitlines()[0])
    parser.add_argument("tasks", nargs="+", help="task data")
    parser.add_argument("--model", required=True, help="the checkpoint")
    parser.add_argument("--data", type=Path, required=True, help="a folder with one a task")
    parser.add_argument("--texts", type=int, default=300, help="development texts of each task that are embedded")
    parser.add_argument("--finetuned", type=Path, metavar="STAGE", help="a stage's folder: trim what is fine-tuned")
    parser.add_argument("--out", type=Path, help="also write JSON here")
    args = parser.parse_args()

    whole = load_checkpoint(args.model)
    train = [text for task in args.tasks for text in read_texts(args.data / task / "train.jsonl.gz")]
    if args.finetuned is not None:
        described = describe_run("benchmarks.vocabulary")
        found = {**described, **trim_finetuned(args, load_saved(args.finetuned, whole), train)}
        write_result(args.out, gather(args.out, found))
        return 0
    started = time.perf_counter()
    trimmed = trim(whole, train)
    result: dict[str, Any] = {
        **describe_run("benchmarks.vocabulary"),
        "train_texts": len(train),
        "trim_seconds": time.perf_counter() - started,
        "vocab_size": {"whole": whole.spec.vocab_size, "trimmed": trimmed.spec.vocab_size},
        "bytes": {},
        "tasks": {},
    }
    models = {}
    with tempfile.TemporaryDirectory() as folder:
        calibration = train[:: max(1, len(train) // 200)]
        for name, checkpoint, int8 in (("whole", whole, False), ("trimmed", trimmed, False), ("int8", trimmed, True)):
            path = Path(folder) / f"{name}.onnx"
            export_checkpoint(checkpoint, path, int8=int8, texts=calibration)
            result["bytes"][name] = path.stat().st_size
            models[name] = edgebert.load(path)
    for task in args.tasks:
        dev = read_texts(args.data / task / "dev.jsonl.gz")
        result["tasks"][task] = row = {"dev_texts": len(dev)}
        for name, checkpoint in (("whole", whole), ("trimmed", trimmed)):
            row[f"unknown_share_{name}"] = unknown_share(str(checkpoint.tokenizer_json), dev)
        row |= compare(models, [text if isinstance(text, str) else text[0] for text in dev[: args.texts]])
        print(task, json.dumps(row))
    print(json.dumps({key: result[key] for key in ("vocab_size", "bytes", "trim_seconds")}))
    if args.out is not None:
        write_result(args.out, result)
    return 0


def trim_finetuned(args: argparse.Namespace, tuned: Checkpoint, texts: list[Text]) -> dict[str, Any]:
    """Metrics and bytes of a fine-tuned model's fp32 file, and of its fp32 and int8 files after trimming to `texts`."""
    name = args.tasks[0]
    task, training = TUNING[name]
    stage = json.loads((args.finetuned / "stage.json").read_text(encoding="utf-8"))
    dev = load_dataset(args.data / name / "dev.jsonl.gz", task, labels=tuned.spec.labels)
    trimmed = trim(tuned, texts)
    calibration = read_texts(args.data / name / "train.jsonl.gz")[::50]
    rows = {"whole fp32": {key: stage[key] for key in ("metrics", "bytes", "vocab_size")}}
    with tempfile.TemporaryDirectory() as folder:
        for dtype in ("fp32", "int8"):
            path = Path(folder) / f"{dtype}.onnx"
            export_checkpoint(trimmed, path, int8=dtype == "int8", texts=calibration)
            metrics = evaluate_file(path, dev, training.max_length if training else None).metrics
            row = {"metrics": metrics, "bytes": path.stat().st_size, "vocab_size": trimmed.spec.vocab_size}
            rows[f"trimmed {dtype}"] = row
            print(name, dtype, row, flush=True)
    unknown = unknown_share(str(trimmed.tokenizer_json), dev.texts())
    return {"data": name, "train_texts": len(texts), "dev_rows": len(dev), "unknown_share": unknown, "files": rows}


def read_texts(path: Path) -> list[Text]:
    """The text, or the pair, of every line."""
    with gzip.open(path, "rt", encoding="utf-8") as lines:
        rows = [json.loads(line) for line in lines]
    return [row["text"] if "text" in row else (row["text_a"], row["text_b"]) for row in rows]


def compare(models: dict[str, edgebert.Model], texts: list[str]) -> dict[str, Any]:
    """Cosines to the whole model, and how many tokens the texts have."""
    unit = {name: unit_rows(model.encode(texts, return_truncated=True)[0]) for name, model in models.items()}
    row: dict[str, Any] = {"embedded_texts": len(texts)}
    for name in ("trimmed", "int8"):
        cosines = (unit[name] * unit["whole"]).sum(axis=1)
        row[f"cosine_{name}"] = {"mean": float(cosines.mean()), "min": float(cosines.min())}
    for name in ("whole", "trimmed"):
        tokenizer = models[name].tokenizer
        assert tokenizer is not None
        row[f"tokens_{name}"] = tokenizer.tokenize(texts)[0].total_tokens
    row["equal_share"] = float(np.mean((unit["trimmed"] * unit["whole"]).sum(axis=1) > 1 - 1e-6))
    return row


if __name__ == "__main__":
    raise SystemExit(main())
