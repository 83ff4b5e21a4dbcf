"""The compression ladder: fp32, fine-tuned, distilled, pruned, int8; what each rung costs and gains, on real tasks.

    python -m benchmarks.ladder --model FOLDER --data FOLDER --work FOLDER --out RESULT.json sst2 banking77

DATA has a folder a task with train.jsonl.gz and, where there is one, dev.jsonl.gz. The metric of a rung is that of its
file. Finished stages stay under --work: a run that was stopped goes on. Then all rungs of a task, its fine-tuned
model in ONNX Runtime, and a model of BERT-base's shape with random weights in ONNX Runtime are timed in turns.
RESULT.json gathers runs: one with the same arguments takes the place of the earlier one.
"""

from __future__ import annotations

import argparse
import functools
import gzip
import itertools
import json
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

import edgebert
from benchmarks import describe_run, write_result
from edgebert.artifact.names import weight_tensors
from edgebert.artifact.spec import EncoderSpec, LayerSpec
from edgebert.artifact.writer import build_model
from edgebert.batch import PackedBatch
from edgebert.compress.data import load_dataset
from edgebert.compress.pipeline import Result, run
from edgebert.compress.recipe import Budget, Distillation, Pruning, QuantizationAware, Recipe, Training
from edgebert.turns import time_in_turns

TUNING = {  # task data -> (task, fine-tuning)
    "banking77": ("text-classification", Training(epochs=6, learning_rate=3e-4)),
    "sst2": ("text-classification", Training(epochs=3, learning_rate=2e-4)),
    "mrpc": ("text-classification", Training(epochs=3, learning_rate=2e-4)),
    "stsb": ("embedding", None),
    "wnut17": ("token-classification", Training(epochs=3, learning_rate=3e-4)),
    "wikiann-en": ("token-classification", Training(epochs=3, learning_rate=2e-4)),
    "squad-slice": ("question-answering", Training(epochs=3, learning_rate=2e-4, batch_size=16, max_length=384)),
    "chnsenticorp": ("text-classification", Training(epochs=2, learning_rate=1e-4, max_length=128)),
}
LENGTHS = (32, 128)
BATCH = 32  # texts, packed here and padded in ONNX Runtime
BERT_BASE = EncoderSpec(
    family="bert",
    task="embedding",
    vocab_size=30522,
    hidden_size=768,
    embedding_size=768,
    num_positions=512,
    num_token_types=2,
    layers=(LayerSpec(12, 64, 3072),) * 12,
    pooling="mean",
)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.ladder", description=__doc__.splitlines()[0])
    parser.add_argument("tasks", nargs="+", choices=TUNING, help="task data, in this order")
    parser.add_argument("--model", required=True, help="the checkpoint to begin with")
    parser.add_argument("--data", type=Path, required=True, help="a folder with one a task")
    parser.add_argument("--work", type=Path, required=True, help="of files and finished stages")
    parser.add_argument("--layers", type=int, help="distil into a student of so many layers")
    parser.add_argument("--hidden-size", type=int, help="with --layers: of so many features")
    parser.add_argument("--flops", type=float, help="prune to this share of the arithmetic")
    parser.add_argument("--retrain", action="store_true", help="with --flops: distil what is left from what was whole")
    parser.add_argument("--trim", action="store_true", help="cut the vocabulary to the training texts")
    parser.add_argument("--qat", action="store_true", help="quantization-aware training before int8")
    parser.add_argument("--portable", action="store_true", help="int8 with weights of 7 bits")
    parser.add_argument("--budget", action="append", default=[], help="as that of edgebert compress")
    parser.add_argument("--rows", type=int, help="train on the first so many rows")
    parser.add_argument("--no-timing", action="store_true", help="metrics alone")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path, help="add to this JSON")
    args = parser.parse_args()
    result: dict[str, Any] = {**describe_run("benchmarks.ladder"), "threads": args.threads, "tasks": []}
    for name in args.tasks:
        recipe = make_recipe(args, name)
        made = run(recipe, progress=lambda text, name=name: print(f"{name}: {text}", flush=True))
        rungs = collect_rungs(made)
        if not args.no_timing:
            time_rungs(rungs, recipe, made, args)
        columns = ("parameters", "vocab_size", "num_heads", "intermediate_size")
        for rung, record in zip(rungs, [*made.report["stages"], made.report["final"]], strict=True):
            rung |= {key: record[key] for key in columns}
        row = {"data": name, "rows": made.report["rows"], "recipe": strip_folders(recipe).to_toml(), "rungs": rungs}
        row |= {
            "loss": made.report["final"]["loss"],
            "budgets": made.report["budgets"],
            "messages": made.report["messages"],
        }
        result["tasks"].append(row)
        for rung in rungs:
            print(name, rung["name"], {key: round(100 * value, 2) for key, value in rung["metrics"].items()}, end=" ")
            print(f"{rung['bytes'] / 1e6:.1f} MB", rung.get("seconds"), rung.get("over_bert_base"))
        write_result(args.out, gather(args.out, result))
    return 0


def gather(path: Path | None, result: dict[str, Any]) -> dict[str, Any]:
    """The runs in the file at `path`, with this one in the place of an earlier one of the same arguments."""
    gathered = json.loads(path.read_text(encoding="utf-8")) if path is not None and path.exists() else {"runs": []}
    gathered["runs"] = [run for run in gathered["runs"] if run["command"] != result["command"]] + [result]
    return dict(gathered)


def make_recipe(args: argparse.Namespace, name: str) -> Recipe:
    """The recipe of a task; runs that differ in later stages share the work folder, and so the earlier stages."""
    task, training = TUNING[name]
    dev = args.data / name / "dev.jsonl.gz"
    numbers = {"rows": args.rows, "layers": args.layers, "hidden": args.hidden_size, "flops": args.flops}
    kind = "".join(f"-{key}{value}" for key, value in numbers.items() if value)
    switches = ("retrain", "trim", "qat", "portable")
    kind += "".join(f"-{part}" for part in [*filter(vars(args).get, switches), *args.budget])
    recipe = Recipe(
        args.model,
        task,
        str(first_rows(args.data / name / "train.jsonl.gz", args.rows, args.work)),
        str(args.work / f"{name}{kind}.onnx"),
        eval=str(dev) if dev.exists() else None,
        work=str(args.work / f"{name}.work"),
        finetune=training,
        trim=args.trim,
        qat=QuantizationAware() if args.qat else None,
        portable=args.portable,
        budget=Budget.parse(args.budget),
    )
    tuned = training or Training()
    if args.layers:
        epochs = 4 if args.hidden_size is None else 8  # a narrower one has more to learn
        student = Distillation(args.layers, hidden_size=args.hidden_size, training=replace(tuned, epochs=epochs))
        recipe = replace(recipe, distill=student)
    if args.flops:
        recipe = replace(recipe, prune=Pruning(args.flops, retrain=args.retrain, training=replace(tuned, epochs=2)))
    return recipe


def first_rows(path: Path, count: int | None, work: Path) -> Path:
    """A file in `work` with the first `count` lines of another one; without a count, that one."""
    if count is None:
        return path
    part = work / f"{path.parent.name}-{count}.jsonl.gz"
    with gzip.open(path, "rb") as lines:
        part.write_bytes(gzip.compress(b"".join(itertools.islice(lines, count)), mtime=0))
    return part


def strip_folders(recipe: Recipe) -> Recipe:
    """The recipe with names of files instead of paths."""
    paths = {key: Path(getattr(recipe, key)).name for key in ("model", "train", "output")}
    return replace(recipe, work=None, eval=Path(recipe.eval).name if recipe.eval else None, **paths)


def collect_rungs(made: Result) -> list[dict[str, Any]]:
    """Name, metrics, size of every stage's file and of the last one; what a stage took, if it was told."""
    records = [*made.report["stages"], made.report["final"]]
    rungs = [{key: record[key] for key in ("name", "metrics", "bytes")} for record in records]
    for rung, stage in zip(rungs, made.report["stages"], strict=False):
        rung |= {f"stage_{key}": stage.get(key) for key in ("seconds", "cpu_seconds")}
    return rungs


def time_rungs(rungs: list[dict[str, Any]], recipe: Recipe, made: Result, args: argparse.Namespace) -> None:
    """Add to every rung the seconds of one text of each length and of a batch, and how often BERT-base takes that."""
    paths = [path / "model.onnx" for path in made.folders] + [made.output]
    teacher = [stage["name"] for stage in made.report["stages"]].index(made.report["reference"])
    models = [edgebert.load(path, threads=args.threads) for path in paths]
    base = args.work / "bert-base.onnx"
    if not base.exists():
        base.write_bytes(build_model(BERT_BASE, random_tensors(BERT_BASE), {}))
    runtimes = [edgebert.load(path, backend="onnxruntime", threads=args.threads) for path in (paths[teacher], base)]
    for rung in rungs:
        rung["seconds"], rung["over_bert_base"], rung["over_teacher_in_onnxruntime"] = {}, {}, {}
    dataset, spec = load_dataset(recipe.eval or recipe.train, recipe.task), models[-1].spec
    limit = min((recipe.finetune and recipe.finetune.max_length) or spec.max_length, spec.max_length)
    assert models[-1].tokenizer is not None
    batch, _ = models[-1].tokenizer.tokenize(dataset.texts()[:BATCH], limit)
    workloads = {str(length): [length] for length in LENGTHS} | {"batch": batch.lengths.tolist()}
    for workload, lengths in workloads.items():
        calls = []
        for model in [*models, *runtimes]:
            rng = np.random.default_rng(0)
            rows = [rng.integers(0, model.spec.vocab_size, length).tolist() for length in lengths]
            calls.append(functools.partial(model.forward, PackedBatch.from_lists(rows)))
        # of one thread the CPU time, which other processes disturb less
        clock = time.thread_time if args.threads == 1 else time.perf_counter
        rounds, count = (8, 5) if len(lengths) == 1 else (3, 1)
        samples = time_in_turns(calls, rounds=rounds, counts=count, settle_s=0.01, clock=clock)
        *ours, in_onnxruntime, bert_base = (float(np.median(seconds)) for seconds in samples)
        for rung, seconds in zip(rungs, ours, strict=True):
            rung["seconds"][workload] = seconds
            rung["over_bert_base"][workload] = bert_base / seconds
            rung["over_teacher_in_onnxruntime"][workload] = in_onnxruntime / seconds


def random_tensors(spec: EncoderSpec) -> dict[str, Any]:
    """Weights of no meaning, for timing."""
    rng = np.random.default_rng(0)
    return {
        name: np.ones(shape, np.float32)
        if name.endswith("layer_norm.weight")
        else (0.02 * rng.standard_normal(shape)).astype(np.float32)
        for name, (_, shape) in weight_tensors(spec).items()
    }


if __name__ == "__main__":
    raise SystemExit(main())
