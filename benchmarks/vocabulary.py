"""What a trimmed vocabulary costs and saves: an embedding model cut to the words of some task data.

    python -m benchmarks.vocabulary --model FOLDER --data FOLDER chnsenticorp thucnews-titles --out RESULT.json

DATA has a folder a task with train.jsonl.gz and dev.jsonl.gz. The vocabulary is trimmed to all training texts. On the
development texts of each task: the share of unknown tokens, tokens a text, and the cosine of each text's embedding to
the whole model's, both in fp32; then the same in int8. With --finetune TASK --work FOLDER the model is also fine-tuned
on that task as in benchmarks.ladder and trimmed after that: the metric of each of the files.
"""

from __future__ import annotations

import argparse
import gzip
import json
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

import edgebert
from benchmarks import describe_run, write_result
from benchmarks.accuracy import unit_rows
from benchmarks.ladder import make_recipe, strip_folders
from edgebert.artifact.checkpoint import load_checkpoint
from edgebert.artifact.export import export_checkpoint
from edgebert.compress.data import load_dataset
from edgebert.compress.heads import load_for_task
from edgebert.compress.measure import evaluate_file
from edgebert.compress.pipeline import run
from edgebert.compress.stages import load_saved
from edgebert.compress.vocabulary import trim, unknown_share
from edgebert.tokenizer import Text


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.vocabulary", description=__doc__.splitlines()[0])
    parser.add_argument("tasks", nargs="+", help="task data")
    parser.add_argument("--model", required=True, help="the checkpoint")
    parser.add_argument("--data", type=Path, required=True, help="a folder with one a task")
    parser.add_argument("--texts", type=int, default=300, help="development texts of each task that are embedded")
    parser.add_argument("--finetune", metavar="TASK", help="also trim the model that is fine-tuned on this task")
    parser.add_argument("--rows", type=int, help="with --finetune: on the first so many rows")
    parser.add_argument("--work", type=Path, help="with --finetune: of finished stages")
    parser.add_argument("--out", type=Path, help="also write JSON here")
    parser.set_defaults(layers=None, flops=None, retrain=False, trim=False, budget=[])
    args = parser.parse_args()

    whole = load_checkpoint(args.model)
    train = [text for task in args.tasks for text in read_texts(args.data / task / "train.jsonl.gz")]
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
    if args.finetune is not None:
        result["finetuned"] = trim_finetuned(args, train)
        print(json.dumps(result["finetuned"]))
    if args.out is not None:
        write_result(args.out, result)
    return 0


def trim_finetuned(args: argparse.Namespace, texts: list[Text]) -> dict[str, Any]:
    """Metrics and bytes of a fine-tuned model's files, whole and trimmed to `texts`, fp32 and int8."""
    recipe = replace(make_recipe(args, args.finetune), int8=False)
    made = run(recipe, progress=lambda text: print(f"{args.finetune}: {text}", flush=True))
    train = load_dataset(recipe.train, recipe.task)
    dev = load_dataset(str(recipe.eval), recipe.task, labels=train.labels)
    whole = load_saved(made.folders[-1], load_for_task(recipe.model, train))
    row: dict[str, Any] = {
        "data": args.finetune,
        "rows": made.report["rows"],
        "recipe": strip_folders(recipe).to_toml(),
    }
    row |= {"metrics": {}, "bytes": {}}
    limit = recipe.finetune.max_length if recipe.finetune else None
    for name, checkpoint in (("whole", whole), ("trimmed", trim(whole, texts))):
        for dtype in ("fp32", "int8"):
            path = args.work / "vocabulary.onnx"
            export_checkpoint(checkpoint, path, int8=dtype == "int8", texts=train.texts()[:: len(train) // 200])
            row["metrics"][f"{name} {dtype}"] = evaluate_file(path, dev, limit).metrics
            row["bytes"][f"{name} {dtype}"] = path.stat().st_size
            path.unlink()
    return row


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
