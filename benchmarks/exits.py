"""Exits: how much faster texts are answered that leave where they are sure, and whether the promised risk is kept.

    python -m benchmarks.exits sst2 banking77 --model FOLDER --data FOLDER --work FOLDER --out RESULT.json

DATA has a folder a task with train.jsonl.gz and, where there is one, dev.jsonl.gz, whose rows are the unseen ones; else
a fifth of the rows is kept from the run. Files and finished stages stay under --work. The int8 file with exits is timed
in turns with itself at full depth: scoring all unseen texts, and one text at a time. The promise is tried out on the
unseen rows too, many times: one half of them calibrates, the other half shows the risk.
"""

from __future__ import annotations

import argparse
import gzip
import hashlib
import json
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

import edgebert
from benchmarks import describe_run, write_result
from benchmarks.ladder import strip_folders
from edgebert.compress.data import Dataset, load_dataset
from edgebert.compress.evaluate import evaluate
from edgebert.compress.exits import Observation, choose_threshold, independent_rows, observe
from edgebert.compress.pipeline import run
from edgebert.compress.recipe import Distillation, Exits, Recipe, Training
from edgebert.turns import time_in_turns

TOKENS = ("wnut17", "wikiann-en")  # the others are of texts and pairs
CALIBRATIONS = 200
ONE_TEXT = 300  # texts timed alone


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.exits", description=__doc__.splitlines()[0])
    parser.add_argument("tasks", nargs="+", help="task data, in this order")
    parser.add_argument("--model", required=True, help="the checkpoint to begin with")
    parser.add_argument("--data", type=Path, required=True, help="a folder with one a task")
    parser.add_argument("--work", type=Path, required=True, help="of files and finished stages")
    parser.add_argument("--layers", type=int, help="distil into a student of so many layers before")
    parser.add_argument("--risk", type=float, default=0.01)
    parser.add_argument("--epochs", type=int, default=3, help="of fine-tuning, and of training exits")
    parser.add_argument("--rounds", type=int, default=10, help="of timing; 0: none")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    result: dict[str, Any] = {**describe_run("benchmarks.exits"), "threads": args.threads, "tasks": []}
    for name in args.tasks:
        train, unseen = split(args.data / name, args.work)
        recipe = Recipe(
            args.model,
            "token-classification" if name in TOKENS else "text-classification",
            str(train),
            str(args.work / f"{name}-exits-{args.seed}.onnx"),
            work=str(args.work / f"{name}-exits-{args.seed}.work"),
            seed=args.seed,
            finetune=Training(epochs=args.epochs, learning_rate=3e-4 if name == "banking77" else 2e-4),
            distill=Distillation(args.layers) if args.layers else None,
            exits=Exits(risk=args.risk, training=Training(epochs=args.epochs, learning_rate=1e-4)),
        )
        made = run(recipe, progress=lambda text, name=name: print(f"{name}: {text}", flush=True))
        report = made.report
        dataset = load_dataset(unseen, recipe.task, labels=edgebert.load(made.output).spec.labels)
        row = {
            "data": name,
            "recipe": strip_folders(recipe).to_toml(),
            "rows": report["rows"],
            "exits": report["exits"],
            "unseen": judge(made.output, dataset, report["exits"]["threshold"], args.risk, recipe.confidence),
        }
        if args.rounds:
            row["seconds"] = time_file(made.output, dataset, args.threads, args.rounds)
        result["tasks"].append(row)
        print(json.dumps({key: row[key] for key in ("data", "exits", "unseen")} | row.get("seconds", {})), flush=True)
        write_result(args.out, result)
    return 0


def split(folder: Path, work: Path) -> tuple[Path, Path]:
    """(the file to compress with, the file of unseen rows)."""
    if (folder / "dev.jsonl.gz").exists():
        return folder / "train.jsonl.gz", folder / "dev.jsonl.gz"
    parts: list[list[bytes]] = [[], []]
    with gzip.open(folder / "train.jsonl.gz", "rb") as lines:
        for line in lines:
            row = json.loads(line)
            text = row.get("text_a") or row.get("text") or " ".join(row["tokens"])
            parts[hashlib.sha256(b"unseen " + text.encode()).digest()[0] % 5 == 0].append(line)
    files = (work / f"{folder.name}-train.jsonl.gz", work / f"{folder.name}-unseen.jsonl.gz")
    for file, part in zip(files, parts, strict=True):
        file.write_bytes(gzip.compress(b"".join(part), mtime=0))
    return files


def judge(path: Path, dataset: Dataset, threshold: float | None, risk: float, confidence: float) -> dict[str, Any]:
    """On unseen rows: the metric with exits and without, where texts leave, and how often the promise holds."""
    scores = {}
    for name, full_depth in (("exits", False), ("full_depth", True)):
        model = edgebert.load(path, full_depth=full_depth)
        scores[name] = evaluate(model.backend, model.tokenizer, dataset).metrics
    observed = observe(path, dataset, None)
    independent = observed.take(independent_rows(dataset))
    return {"metrics": scores, **observed.describe(threshold), **try_out(independent, risk, confidence)}


def try_out(observed: Observation, risk: float, confidence: float) -> dict[str, Any]:
    """Calibrate on a random half, and count what differs in the other half, again and again.

    A half is no more than a sample: the promise is broken only where it shows a larger risk than chance explains, but
    `mean_differ` must stay below the risk in any case.
    """
    rng = np.random.default_rng(0)
    count = observed.margins.shape[1]
    promised, differ = 0, []
    for _ in range(CALIBRATIONS):
        order = rng.permutation(count)
        threshold = choose_threshold(observed.take(order[: count // 2]), risk, confidence)
        promised += threshold is not None
        differ.append(observed.take(order[count // 2 :]).describe(threshold)["differ"])
    return {
        "calibrations": CALIBRATIONS,
        "promised": promised,
        "mean_differ": float(np.mean(differ)),
        "kept": float(np.mean(np.array(differ) <= risk)),
    }


def time_file(path: Path, dataset: Dataset, threads: int, rounds: int) -> dict[str, Any]:
    """Seconds with exits and without: of all texts, and of one at a time."""
    models = [edgebert.load(path, threads=threads, full_depth=full_depth) for full_depth in (False, True)]
    texts = dataset.texts()
    all_texts = time_in_turns([partial(model, texts) for model in models], rounds=rounds, settle_s=0.01)
    few = texts[:ONE_TEXT]
    alone = [
        time_in_turns([partial(model, [text]) for model in models], rounds=3, settle_s=0.0, counts=3) for text in few
    ]
    medians = np.array([[np.median(taken) for taken in each] for each in alone])  # [texts, 2]
    found = {}
    for i, name in enumerate(("exits", "full_depth")):
        p50, p95 = np.percentile(medians[:, i], [50, 95])
        found[name] = {"all_texts": float(np.median(all_texts[i])), "one_p50": float(p50), "one_p95": float(p95)}
    speed = {key: found["full_depth"][key] / found["exits"][key] for key in found["exits"]}
    return {"texts": len(texts), **found, "speed": speed}


if __name__ == "__main__":
    raise SystemExit(main())
