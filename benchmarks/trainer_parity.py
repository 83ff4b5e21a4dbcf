"""Fine-tuning beside transformers' Trainer: the same model, data, settings and seed, epoch by epoch.

    python -m benchmarks.trainer_parity --model FOLDER --data FOLDER --work FOLDER --out RESULT.json stsb mrpc

Needs accelerate. DATA has a folder a task with train.jsonl.gz and, where there is one, dev.jsonl.gz, else a tenth is
held out. Model, loss, tokenizer, padding, optimizer, schedule, clipping, bf16 and the loop are transformers' own on one
side, edgebert.compress's on the other. Made the same on both: the new head's first weights, the order of the batches
and the state of the random numbers that dropout draws from. Token ids, tags and places of answers are found on each
side by itself and have to be equal. The metric is that of the fp32 model on the evaluation rows, at its best after each
of the epochs. RESULT.json gathers runs, as that of benchmarks.ladder.
"""

from __future__ import annotations

import argparse
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from torch.utils.data import DataLoader

from benchmarks import describe_run, write_result
from benchmarks.ladder import TUNING, first_rows, gather
from edgebert.checkpoints.loading import Checkpoint
from edgebert.compress.data import Dataset, hold_out, load_dataset
from edgebert.compress.encode import IGNORED, STRIDE, Examples, encode, load_tokenizer
from edgebert.compress.evaluate import TorchBackend, evaluate
from edgebert.compress.finetune import batches_by_length, uses_bf16
from edgebert.compress.heads import load_for_task
from edgebert.compress.pipeline import run
from edgebert.compress.recipe import PRECISIONS, Recipe, Training

SETTINGS = TUNING | {
    "stsb": ("text-classification", Training(epochs=3, learning_rate=1e-4)),  # as regression of the pair
    "trec": ("text-classification", Training(epochs=4, learning_rate=2e-4)),
}
LIBRARY = {  # task -> (transformers' model, its head, its collator)
    "text-classification": (
        transformers.AutoModelForSequenceClassification,
        "classifier",
        transformers.DataCollatorWithPadding,
    ),
    "token-classification": (
        transformers.AutoModelForTokenClassification,
        "classifier",
        transformers.DataCollatorForTokenClassification,
    ),
    "question-answering": (
        transformers.AutoModelForQuestionAnswering,
        "qa_outputs",
        transformers.DataCollatorWithPadding,
    ),
}


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.trainer_parity", description=__doc__.splitlines()[0])
    parser.add_argument("tasks", nargs="+", choices=SETTINGS, help="task data")
    parser.add_argument("--model", required=True, help="the checkpoint to begin with, a folder")
    parser.add_argument("--data", type=Path, required=True, help="a folder with one a task")
    parser.add_argument("--work", type=Path, required=True, help="of files and finished stages")
    parser.add_argument("--rows", type=int, help="train on the first so many rows")
    parser.add_argument("--precision", choices=PRECISIONS, default="auto", help="of both sides")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--out", type=Path, help="add to this JSON")
    args = parser.parse_args()
    versions = {"torch": torch.__version__, "transformers": transformers.__version__}
    result: dict[str, Any] = {**describe_run("benchmarks.trainer_parity"), "versions": versions, "tasks": []}
    for name in args.tasks:
        train_file = first_rows(args.data / name / "train.jsonl.gz", args.rows, args.work)
        dev_file = args.data / name / "dev.jsonl.gz"
        output, work = args.work / f"{name}-parity.onnx", args.work / f"{name}.work"
        task, training = SETTINGS[name]
        assert training is not None
        training = replace(training, precision=args.precision)
        recipe = Recipe(args.model, task, str(train_file), str(output), work=str(work), finetune=training)
        if dev_file.exists():
            recipe = replace(recipe, eval=str(dev_file))
        row: dict[str, Any] = {"data": name, "training": vars(recipe.finetune), "runs": []}
        result["tasks"].append(row)
        for seed in args.seeds:
            sides = compare(replace(recipe, seed=seed, int8=False))
            row["rows"], row["metric"] = sides.pop("rows"), sides.pop("metric")
            row["runs"].append({"seed": seed, **sides})
            print(name, seed, sides, flush=True)
            write_result(args.out, gather(args.out, result))
    return 0


def compare(recipe: Recipe) -> dict[str, Any]:
    """Both sides with the recipe's seed: of each the mean loss and the score of every epoch, and the best score."""
    made = run(recipe, progress=lambda text: print(f"  {text}", flush=True))
    stage = next(stage for stage in made.report["stages"] if stage["name"] == "finetune")
    dataset = load_dataset(recipe.train, recipe.task)
    train, dev, *_ = hold_out(dataset, (1, 2) if recipe.eval is None else (1,))  # the rows that choose, on both sides
    checkpoint, names = load_for_task(recipe.model, train, seed=recipe.seed)
    train, dev = (data.rename(names, checkpoint.spec.labels) for data in (train, dev))
    ours = {"losses": stage["losses"], "scores": stage["scores"], "cpu_seconds": stage["cpu_seconds"]}
    theirs = run_trainer(recipe, checkpoint, train, dev)
    for side in (ours, theirs):
        side["best"] = max(side["scores"])
    both = {"edgebert": ours, "trainer": theirs, "rows": made.report["rows"]}
    return both | {"metric": next(iter(stage["metrics"])), "points": 100 * (ours["best"] - theirs["best"])}


def run_trainer(recipe: Recipe, checkpoint: Checkpoint, train: Dataset, dev: Dataset) -> dict[str, Any]:
    """Fine-tune by transformers' Trainer, beginning with the head of `checkpoint`."""
    training, spec = recipe.finetune, checkpoint.spec
    assert training is not None
    family, head, collator = LIBRARY[recipe.task]
    options: dict[str, Any] = {"dtype": torch.float32}
    if spec.labels:
        options |= {"num_labels": len(spec.labels), "problem_type": spec.problem_type}
    model, judge = (family.from_pretrained(recipe.model, **options) for _ in range(2))
    linears = {"head.out": getattr(model, head)}
    if spec.dense_size:  # BERT's pooler, which not every checkpoint has
        linears["head.dense"] = model.base_model.pooler.dense
    for name, linear in linears.items():
        weights = {"weight": checkpoint.tensors[f"{name}.weight"].T, "bias": checkpoint.tensors[f"{name}.bias"]}
        linear.load_state_dict({key: torch.from_numpy(np.array(value)) for key, value in weights.items()})
    judge.spec = spec
    tokenizer = transformers.AutoTokenizer.from_pretrained(recipe.model)
    limit = min(training.max_length or spec.max_length, spec.max_length)
    examples = encode(train, checkpoint, limit)
    rows = encode_by_library(tokenizer, train, limit)
    check_same(rows, examples)

    def score(state: dict[str, torch.Tensor]) -> float:
        judge.load_state_dict(state)
        return evaluate(TorchBackend(judge), load_tokenizer(checkpoint), dev, limit).score

    steps = -(-len(rows) // training.batch_size)
    arguments = transformers.TrainingArguments(
        output_dir=str(Path(str(recipe.work)) / "trainer"),
        num_train_epochs=training.epochs,
        per_device_train_batch_size=training.batch_size,
        learning_rate=training.learning_rate,
        warmup_steps=round(training.warmup * steps * training.epochs),
        weight_decay=training.weight_decay,
        max_grad_norm=training.max_grad_norm,
        optim="adamw_torch_fused",
        adam_epsilon=1e-8,
        bf16=uses_bf16(training.precision, torch.device("cpu")),
        use_cpu=True,
        seed=recipe.seed,
        logging_strategy="epoch",
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
    )
    watch = _Watch(recipe.seed, score)
    trainer = _Trainer(
        model=model,
        args=arguments,
        train_dataset=rows,
        data_collator=collator(tokenizer),
        callbacks=[watch],
    )
    trainer.order = _Order(examples, training.batch_size, recipe.seed)
    started = time.process_time()
    trainer.train()
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    return {"losses": losses, "scores": watch.scores, "cpu_seconds": time.process_time() - started}


def encode_by_library(tokenizer: Any, dataset: Dataset, limit: int) -> list[dict[str, Any]]:
    """Rows for transformers' Trainer, prepared as its documentation does for each task."""
    if dataset.task == "question-answering":
        items = zip(dataset.inputs, dataset.targets, strict=True)
        return [row for item in items for row in _windows(tokenizer, *item, limit)]
    is_split = dataset.task == "token-classification"
    index = {label: i for i, label in enumerate(dataset.labels)}
    rows = []
    for item, target in zip(dataset.inputs, dataset.targets, strict=True):
        parts = (item,) if is_split or isinstance(item, str) else item
        encoding = tokenizer(*parts, truncation=True, max_length=limit, is_split_into_words=is_split)
        row = dict(encoding)
        if is_split:  # the first piece of a word has its tag
            words = encoding.word_ids()
            pairs = zip([None, *words], words, strict=False)
            tags = [None if word in (None, before) else target[word] for before, word in pairs]
            row["labels"] = [IGNORED if tag is None else index[tag] for tag in tags]
        else:
            row["labels"] = index.get(target, target)
        rows.append(row)
    return rows


def _windows(tokenizer: Any, pair: tuple[str, str], answers: Any, limit: int) -> list[dict[str, Any]]:
    """The windows of a question and its context; the answer is at the first token where it is not inside."""
    overlap = {"stride": STRIDE, "return_overflowing_tokens": True, "return_offsets_mapping": True}
    found = tokenizer(*pair, truncation="only_second", max_length=limit, **overlap)
    start, end = (answers[0].start, answers[0].start + len(answers[0].text)) if answers else (-1, -1)
    rows = []
    for i, spans in enumerate(found["offset_mapping"]):
        inside = [token for token, part in enumerate(found.sequence_ids(i)) if part == 1]
        first = last = 0
        if spans[inside[0]][0] <= start and end <= spans[inside[-1]][1]:
            first = max(token for token in inside if spans[token][0] <= start)
            last = min(token for token in inside if spans[token][1] >= end)
        row = {name: found[name][i] for name in tokenizer.model_input_names}
        rows.append(row | {"start_positions": first, "end_positions": last})
    return rows


def check_same(rows: list[dict[str, Any]], examples: Examples) -> None:
    """Both sides must learn the same targets of the same tokens."""
    ids = [token for row in rows for token in row["input_ids"]]
    assert ids == examples.batch.input_ids.tolist(), "the tokenizers differ"
    for row, target in zip(rows, examples.targets, strict=True):
        places = [row[name] for name in ("labels", "start_positions", "end_positions") if name in row]
        assert np.allclose(np.ravel(places), np.ravel(target)), (row, target)


class _Order:
    """The batches of each epoch in turn, as edgebert.compress orders them."""

    def __init__(self, examples: Examples, batch_size: int, seed: int) -> None:
        self._lengths, self._batch_size, self._seed = examples.lengths, batch_size, seed
        self._epoch = 0

    def __iter__(self) -> Any:
        self._epoch += 1
        return iter(batches_by_length(self._lengths, self._batch_size, self._seed + self._epoch - 1))

    def __len__(self) -> int:
        return -(-len(self._lengths) // self._batch_size)


class _Trainer(transformers.Trainer):
    """transformers' Trainer with a given order of the batches."""

    order: _Order

    def get_train_dataloader(self) -> DataLoader[Any]:
        """The rows in the given batches."""
        rows: Any = self.train_dataset
        return DataLoader(rows, batch_sampler=self.order, collate_fn=self.data_collator)


class _Watch(transformers.TrainerCallback):
    """Scores the model after each epoch, and keeps the state of the random numbers from the data loader."""

    def __init__(self, seed: int, score: Any) -> None:
        self._score, self.scores = score, list[float]()
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            self._random: Any = torch.get_rng_state()

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Before an epoch's first step: the state that the epoch before left."""
        if self._random is not None:
            torch.set_rng_state(self._random)
            self._random = None

    def on_epoch_end(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
        """Keep the state and score the model without the autocast that is around it."""
        self._random = torch.get_rng_state()
        self.scores.append(self._score(model.state_dict()))


if __name__ == "__main__":
    raise SystemExit(main())
