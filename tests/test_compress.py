"""Training, distillation, the recipe and whole runs, on tiny random models."""

from __future__ import annotations

import argparse
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from artifacts import random_spec, random_tensors
from checkpoints import make_checkpoint

import edgebert
from edgebert.artifact.names import weight_tensors
from edgebert.artifact.reader import read_artifact
from edgebert.artifact.spec import LINEARS
from edgebert.batch import PackedBatch
from edgebert.checkpoints.loading import Checkpoint, load_checkpoint
from edgebert.cli import main
from edgebert.compress import demo, finetune, pipeline, planner, prune
from edgebert.compress import distill as distillation
from edgebert.compress.data import Answer, Dataset, load_dataset
from edgebert.compress.distill import distil, narrow_student, relation_loss, soft_loss, spread_layers
from edgebert.compress.encode import Examples
from edgebert.compress.evaluate import Evaluation
from edgebert.compress.finetune import Batch, TaskLoss, batches_by_length, make_batch, train
from edgebert.compress.heads import load_for_task
from edgebert.compress.judge import RowScores
from edgebert.compress.latency import LatencyTable
from edgebert.compress.pipeline import run
from edgebert.compress.prune import take_layers
from edgebert.compress.recipe import Budget, Distillation, Pruning, QuantizationAware, Recipe, Training
from edgebert.compress.torch_encoder import TorchEncoder
from edgebert.errors import EdgeBertError, InvalidInputError

CPU = torch.device("cpu")
FAST = Training(epochs=3, batch_size=8, learning_rate=3e-3, precision="f32", dropout=0.1, patience=9)


def random_checkpoint(tokenizer_json: str | None = None, seed: int = 0, **spec: Any) -> Checkpoint:
    made = random_spec(**{"vocab_size": 60, "num_positions": 20, **spec})
    return Checkpoint(made, random_tensors(made, seed), tokenizer_json, {}, {}, Path())


def random_examples(checkpoint: Checkpoint, targets: list[Any], width: int = 1) -> Examples:
    """Sequences of 3 to 9 random tokens; the first one says which target."""
    rng = np.random.default_rng(0)
    count = len(targets) * width
    rows = [[5 + (i // width) % 4, *rng.integers(10, 60, rng.integers(2, 9)).tolist()] for i in range(count)]
    return Examples(PackedBatch.from_lists(rows), targets, width, {})


def run_batch(model: TorchEncoder, examples: Examples) -> tuple[dict[str, Any], Batch]:
    batch = make_batch(examples, list(range(len(examples))), 0, CPU)
    return batch.run(model), batch


# Training

TASKS: dict[str, tuple[dict[str, Any], Any, int]] = {  # spec, target of example i, sequences an example
    "labels": ({"task": "text-classification", "num_labels": 4}, lambda i: np.int64(i % 4), 1),
    "several": ({"task": "text-classification"}, lambda i: np.eye(4, 3, dtype=np.float32)[i % 4], 1),
    "score": ({"task": "text-classification", "num_labels": 1}, lambda i: np.float32(i % 4), 1),
    "contrastive": ({}, lambda i: np.float32(np.nan), 2),
    "similarity": ({}, lambda i: np.float32(i % 2), 2),
    "masked": ({"task": "fill-mask"}, lambda i: None, 1),
}
PROBLEMS = {"several": "multi_label_classification", "score": "regression"}


@pytest.mark.parametrize("name", TASKS)
def test_training_lowers_the_loss(name: str, tokenizer_json: str) -> None:
    spec, target, width = TASKS[name]
    checkpoint = random_checkpoint(with_mask(tokenizer_json), **spec)
    if name in PROBLEMS:
        checkpoint.spec = checkpoint.spec.replace(problem_type=PROBLEMS[name])
    examples = random_examples(checkpoint, [target(i) for i in range(32)], width)
    model = TorchEncoder(checkpoint.spec, checkpoint.tensors)
    progress = train(model, examples, TaskLoss(checkpoint), replace(FAST, epochs=6))
    assert progress.losses[-1] < 0.9 * progress.losses[0] or name == "contrastive"
    assert progress.losses[-1] < progress.losses[0]


def with_mask(tokenizer_json: str) -> str:
    import tokenizers

    tokenizer = tokenizers.Tokenizer.from_str(tokenizer_json)
    tokenizer.add_special_tokens(["[MASK]"])
    return str(tokenizer.to_str())


def test_tags_and_spans_lower_the_loss() -> None:
    for task in ("token-classification", "question-answering"):
        checkpoint = random_checkpoint(task=task, num_labels=2)
        examples = random_examples(checkpoint, [None] * 32)
        for i in range(32):
            length = int(examples.lengths[i])
            tags = np.where(np.arange(length) == 1, 1, 0)
            examples.targets[i] = tags if task == "token-classification" else np.array([1, 2])
        model = TorchEncoder(checkpoint.spec, checkpoint.tensors)
        progress = train(model, examples, TaskLoss(checkpoint), replace(FAST, epochs=6))
        assert progress.losses[-1] < 0.8 * progress.losses[0]


def test_loss_of_labels_equals_transformers(tmp_path: Path) -> None:
    theirs = make_checkpoint(tmp_path, task="text-classification", num_labels=3)
    dataset = load_dataset(write_task(tmp_path / "a.jsonl"), "text-classification")
    ids = torch.tensor([[3, 7, 9, 2], [4, 8, 0, 0]])
    mask = torch.tensor([[1, 1, 1, 1], [1, 1, 0, 0]])
    expected = theirs(input_ids=ids, attention_mask=mask, labels=torch.tensor([2, 0])).loss
    checkpoint = load_checkpoint(tmp_path)
    batch = Batch(ids, mask, torch.zeros_like(ids), [np.int64(2), np.int64(0)], [0, 1])
    found = TaskLoss(checkpoint)(TorchEncoder(checkpoint.spec, checkpoint.tensors), batch)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)
    assert dataset.labels == ("cold", "warm")


def test_training_equals_a_plain_loop_over_transformers(tmp_path: Path) -> None:
    theirs = make_checkpoint(tmp_path, task="text-classification", num_labels=4)
    checkpoint = load_checkpoint(tmp_path)
    examples = random_examples(checkpoint, [np.int64(i % 4) for i in range(40)])
    model = TorchEncoder(checkpoint.spec, checkpoint.tensors)
    training = replace(FAST, epochs=2, learning_rate=1e-3)
    train(model, examples, TaskLoss(checkpoint), training)

    decays = [[p for p in theirs.parameters() if (p.ndim > 1) == is_matrix] for is_matrix in (True, False)]
    groups = [{"params": decays[0], "weight_decay": training.weight_decay}, {"params": decays[1], "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=training.learning_rate)
    schedule = transformers.get_linear_schedule_with_warmup(optimizer, 1, 10)
    for epoch in range(2):
        for indices in batches_by_length(examples.lengths, 8, epoch):
            batch = make_batch(examples, indices, 0, CPU)
            labels = torch.tensor([int(target) for target in batch.targets])
            theirs(batch.input_ids, batch.attention_mask, batch.token_type_ids, labels=labels).loss.backward()
            torch.nn.utils.clip_grad_norm_(theirs.parameters(), training.max_grad_norm)
            optimizer.step()
            schedule.step()
            optimizer.zero_grad()
    theirs.save_pretrained(tmp_path / "trained")
    expected, before = load_checkpoint(tmp_path / "trained").tensors, checkpoint.tensors
    for name, tensor in model.tensors().items():
        moved = np.abs(expected[name] - before[name]).max()
        if (
            "qkv.bias" in name
        ):  # a key's bias changes no output: its gradient is rounding, which AdamW makes a full step
            continue
        assert np.abs(tensor - expected[name]).max() <= 0.02 * moved + 1e-6, name


def test_batches_hold_everything_once_and_like_lengths() -> None:
    lengths = np.random.default_rng(0).integers(1, 100, 501).astype(np.int32)
    batches = batches_by_length(lengths, 8, seed=1)
    assert sorted(i for batch in batches for i in batch) == list(range(501))
    padded = sum(lengths[batch].max() * len(batch) for batch in batches)
    assert padded < 1.1 * lengths.sum()
    assert batches != batches_by_length(lengths, 8, seed=2) and batches == batches_by_length(lengths, 8, seed=1)


def test_a_killed_training_goes_on_to_the_same_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(finetune, "_SAVE_EVERY", 3)
    checkpoint = random_checkpoint(task="text-classification", num_labels=4)
    examples = random_examples(checkpoint, [np.int64(i % 4) for i in range(40)])
    scores = iter([0.0, 0.1, 0.5, 0.3, 0.0, 0.1, 0.5, 0.3])

    def go(state_file: Path | None, fail_after: int = 10**6) -> dict[str, Any]:
        model = TorchEncoder(checkpoint.spec, checkpoint.tensors, dropout=0.1, attention_dropout=0.1)
        loss, calls = TaskLoss(checkpoint), iter(range(10**6))

        def failing(model: TorchEncoder, batch: Batch) -> torch.Tensor:
            if next(calls) == fail_after:
                raise KeyboardInterrupt
            return loss(model, batch)

        train(model, examples, failing, FAST, evaluate=lambda _: next(scores), state_file=state_file)
        return model.tensors()

    whole = go(None)
    with pytest.raises(KeyboardInterrupt):
        go(tmp_path / "state.pt", fail_after=9)  # in the second epoch, three steps after a save
    resumed = go(tmp_path / "state.pt")
    assert all(np.array_equal(whole[name], resumed[name]) for name in whole)


def test_the_best_epoch_is_kept_and_training_stops_early() -> None:
    checkpoint = random_checkpoint(task="text-classification", num_labels=4)
    examples = random_examples(checkpoint, [np.int64(i % 4) for i in range(16)])
    kept: list[Any] = []
    scores = iter([0.1, 0.2, 0.9, 0.4, 0.3, 0.2])

    def score(model: TorchEncoder) -> float:
        kept.append(model.tensors())
        return next(scores)

    model = TorchEncoder(checkpoint.spec, checkpoint.tensors)
    progress = train(model, examples, TaskLoss(checkpoint), replace(FAST, epochs=5, patience=2), evaluate=score)
    assert progress.best_epoch == 1 and len(progress.scores) == 4
    assert all(np.array_equal(kept[2][name], tensor) for name, tensor in model.tensors().items())
    before = model.tensors()
    scores = iter([0.9, 0.4, 0.3])
    progress = train(model, examples, TaskLoss(checkpoint), replace(FAST, epochs=5, patience=2), evaluate=score)
    assert progress.best_epoch == -1  # what it began with was better
    assert all(np.array_equal(before[name], tensor) for name, tensor in model.tensors().items())


def test_a_loss_that_is_not_finite_stops_the_run() -> None:
    checkpoint = random_checkpoint(task="text-classification", num_labels=4)
    examples = random_examples(checkpoint, [np.int64(0)] * 8)
    model = TorchEncoder(checkpoint.spec, checkpoint.tensors)
    with pytest.raises(EdgeBertError, match="learning rate"):
        train(model, examples, lambda model, batch: TaskLoss(checkpoint)(model, batch) * float("nan"), FAST)


def test_heads(tmp_path: Path) -> None:
    make_checkpoint(tmp_path / "embedding", task="embedding")
    make_checkpoint(tmp_path / "classifier", task="text-classification", num_labels=2, label2id={"warm": 0, "cold": 1},
                    id2label={0: "warm", 1: "cold"})  # fmt: skip
    dataset = load_dataset(write_task(tmp_path / "a.jsonl"), "text-classification")
    said: list[str] = []
    new, names = load_for_task(tmp_path / "embedding", dataset, say=said.append)
    body = edgebert.checkpoints.loading.load_checkpoint(tmp_path / "embedding", "embedding:pooler")  # type: ignore[attr-defined]
    assert new.spec.labels == ("cold", "warm") and new.tensors["head.out.weight"].std() > 0
    assert names == {"cold": "cold", "warm": "warm"} and "begins anew" in said[0] and "no head" in said[0]
    assert np.array_equal(new.tensors["head.dense.weight"], body.tensors["head.dense.weight"])
    with pytest.raises(InvalidInputError, match="no head for text-classification"):
        load_for_task(tmp_path / "embedding", dataset, must_keep=True)
    with pytest.raises(InvalidInputError, match="label map is for a trained head"):
        load_for_task(tmp_path / "embedding", dataset, label_map={"cold": "warm"})
    kept, _ = load_for_task(tmp_path / "classifier", dataset, say=said.append, must_keep=True)
    assert kept.spec.labels == ("warm", "cold") and len(said) == 1  # its own order, and its own weights
    assert np.array_equal(
        kept.tensors["head.out.weight"],
        load_for_task(tmp_path / "classifier", dataset, seed=1)[0].tensors["head.out.weight"],
    )


@pytest.mark.parametrize(
    ("head", "data", "label_map", "expected"),
    [
        ("LABEL_0 LABEL_1", "0 1", "", "LABEL_0 LABEL_1"),
        ("LABEL_0 LABEL_1 LABEL_2", "0 2", "", "LABEL_0 LABEL_2"),  # the head has more
        ("LABEL_0 LABEL_1", "1 2", "", None),  # counted from 1, perhaps
        ("LABEL_0 LABEL_1", "neg pos", "", None),
        ("LABEL_0 LABEL_1", "neg pos", "neg=LABEL_1 pos=LABEL_0", "LABEL_1 LABEL_0"),
        ("warm cold", "cold warm", "", "cold warm"),
        ("Warm COLD", "cold warm", "", "COLD Warm"),
        ("Warm warm cold", "cold WARM", "", None),  # two could be meant
        ("negative positive", "neg pos", "", None),
        ("negative positive", "0 1", "", None),
        ("negative positive", "0 1", "0=negative 1=positive", "negative positive"),
        ("negative positive", "neg positive", "neg=negative", "negative positive"),
        ("negative neutral positive", "negative positive", "", "negative positive"),
        ("negative positive", "negative neutral positive", "", None),
        ("0 1", "LABEL_0 LABEL_1", "", None),
    ],
)
def test_a_trained_head_is_kept_or_said_to_begin_anew(
    head: str, data: str, label_map: str, expected: str | None, tmp_path: Path
) -> None:
    names = dict(enumerate(head.split()))
    make_checkpoint(
        tmp_path, task="text-classification", num_labels=len(names), id2label=names,
        label2id={name: i for i, name in names.items()},
    )  # fmt: skip
    trained = edgebert.checkpoints.loading.load_checkpoint(tmp_path)  # type: ignore[attr-defined]
    labels = data.split()
    dataset = Dataset("text-classification", ["a", "b"], labels[:2], tuple(labels), "single_label_classification", "f")
    options = {"label_map": dict(pair.split("=") for pair in label_map.split())}
    said: list[str] = []
    checkpoint, found = load_for_task(tmp_path, dataset, say=said.append, **options)
    is_kept = np.array_equal(checkpoint.tensors["head.out.weight"][:1], trained.tensors["head.out.weight"][:1])
    assert is_kept == (expected is not None)
    if expected is None:
        assert checkpoint.spec.labels == tuple(labels) and "begins anew" in said[0] and head.split()[0] in said[0]
        with pytest.raises(InvalidInputError, match="--label-map"):
            load_for_task(tmp_path, dataset, must_keep=True, **options)
    else:
        assert found == dict(zip(labels, expected.split(), strict=True)) and checkpoint.spec.labels == tuple(
            head.split()
        )
        assert len(said) == (expected != data)  # told, if a name changes
        renamed = dataset.rename(found, checkpoint.spec.labels)
        assert renamed.targets == expected.split()[:2]
        load_for_task(tmp_path, dataset, must_keep=True, **options)


@pytest.mark.parametrize("label_map", [{"0": "warm"}, {"cold": "hot"}, {"cold": "warm", "warm": "warm"}])
def test_a_label_map_that_does_not_fit_is_refused(label_map: dict[str, str], tmp_path: Path) -> None:
    make_checkpoint(tmp_path, task="text-classification", num_labels=2, label2id={"warm": 0, "cold": 1},
                    id2label={0: "warm", 1: "cold"})  # fmt: skip
    dataset = load_dataset(write_task(tmp_path / "a.jsonl"), "text-classification")
    with pytest.raises(InvalidInputError, match="the data's labels are cold, warm, the checkpoint's warm, cold"):
        load_for_task(tmp_path, dataset, label_map=label_map)


def test_heads_of_tags_scores_and_answers_are_kept_too(tmp_path: Path) -> None:
    make_checkpoint(tmp_path / "tags", task="token-classification", num_labels=3)
    tags = Dataset("token-classification", [["a", "b"]], [("0", "2")], ("0", "2"), "single_label_classification", "f")
    checkpoint, names = load_for_task(tmp_path / "tags", tags, must_keep=True)
    assert tags.rename(names, checkpoint.spec.labels).targets == [("LABEL_0", "LABEL_2")]
    make_checkpoint(tmp_path / "score", task="text-classification", num_labels=1, problem_type="regression")
    scores = Dataset("text-classification", ["a"], [0.5], ("score",), "regression", "f")
    checkpoint, names = load_for_task(tmp_path / "score", scores, must_keep=True)
    assert scores.rename(names, checkpoint.spec.labels).targets == [0.5] and checkpoint.spec.labels == ("LABEL_0",)
    make_checkpoint(tmp_path / "answers", task="question-answering")
    answers = Dataset("question-answering", [("q", "c")], [(Answer("c", 0),)], (), "single_label_classification", "f")
    assert load_for_task(tmp_path / "answers", answers, must_keep=True)[1] == {}
    with pytest.raises(InvalidInputError, match="no head for question-answering"):
        load_for_task(tmp_path / "tags", answers, must_keep=True)


# Distillation


def test_a_student_that_is_its_teacher_has_nothing_to_learn() -> None:
    for task in ("text-classification", "token-classification", "question-answering", "embedding"):
        checkpoint = random_checkpoint(task=task)
        model = TorchEncoder(checkpoint.spec, checkpoint.tensors).eval()
        outputs, batch = run_batch(model, random_examples(checkpoint, [None] * 6))
        assert soft_loss(checkpoint.spec, outputs, outputs, batch, 2.0).abs() < 1e-5
        other = TorchEncoder(checkpoint.spec, random_tensors(checkpoint.spec, 1)).eval()
        assert (
            soft_loss(
                checkpoint.spec, run_batch(other, random_examples(checkpoint, [None] * 6))[0], outputs, batch, 2.0
            )
            > 1e-3
        )


def test_soft_labels_are_the_divergence() -> None:
    spec = random_spec(task="text-classification")
    x, y = torch.tensor([[1.0, 2.0, 3.0]]), torch.tensor([[0.0, 2.0, 1.0]])
    batch = Batch(torch.zeros(1, 1), torch.ones(1, 1), torch.zeros(1, 1), [None], [0])
    p, q = torch.softmax(y / 2, -1), torch.softmax(x / 2, -1)
    expected = 4 * (p * (p / q).log()).sum()
    torch.testing.assert_close(soft_loss(spec, {"logits": x}, {"logits": y}, batch, 2.0), expected)


def test_relations_do_not_see_padding_or_the_number_of_heads() -> None:
    torch.manual_seed(0)
    told, mask = torch.randn(2, 5, 3, 4, 6), torch.tensor([[1, 1, 1, 1, 1], [1, 1, 1, 0, 0]]).bool()
    assert relation_loss(told, told, mask).abs() < 1e-6
    found = torch.randn(2, 5, 3, 2, 6)
    loss = relation_loss(found, told, mask)
    padding = found.clone()
    padding[1, 3:] = 9.0
    assert loss > 0 and torch.equal(relation_loss(padding, told, mask), loss)


def test_a_student_comes_nearer_to_its_teacher() -> None:
    teacher = random_checkpoint(task="text-classification", layers=((2, 8, 40),) * 4)
    examples = random_examples(teacher, [np.int64(i % 3) if i % 2 else None for i in range(48)])
    student = take_layers(teacher, spread_layers(4, 2))
    guide = TorchEncoder(teacher.spec, teacher.tensors).eval()

    def distance(checkpoint: Checkpoint) -> float:
        outputs, batch = run_batch(TorchEncoder(checkpoint.spec, checkpoint.tensors).eval(), examples)
        return float(soft_loss(checkpoint.spec, outputs, run_batch(guide, examples)[0], batch, 2.0).detach())

    settings = Distillation(num_layers=2, relation_weight=0.5, label_weight=0.1, training=replace(FAST, epochs=8))
    trained, _ = distil(teacher, student, examples, settings)
    assert distance(trained) < 0.5 * distance(student)


def test_narrow_students_are_projected() -> None:
    teacher = random_checkpoint(task="text-classification")
    student = random_checkpoint(task="text-classification", hidden=16, layers=((2, 8, 20),))
    examples = random_examples(teacher, [np.int64(0)] * 8)
    trained, _ = distil(teacher, student, examples, Distillation(training=FAST))
    assert trained.spec == student.spec
    with pytest.raises(InvalidInputError, match="tokenizer"):
        distil(teacher, replace(student, tokenizer_json="{}"), examples, Distillation(training=FAST))
    other = random_checkpoint(task="text-classification", num_labels=2)
    with pytest.raises(InvalidInputError, match="labels"):
        distil(teacher, other, examples, Distillation(training=FAST))


def test_narrow_students_know_the_words() -> None:
    cases: tuple[tuple[str, int | None, int, tuple[int, ...]], ...] = (
        ("bert", None, 0, ()),
        ("electra", 16, 0, ()),
        ("mpnet", None, 3, ()),
        ("deberta-v2", None, 2, (2, 1, 2)),
    )
    for family, embedding_size, distance, distances_per_row in cases:
        teacher = random_checkpoint(
            task="text-classification",
            family=family,
            embedding_size=embedding_size,
            max_relative_distance=distance,
            distances_per_row=distances_per_row,
            layers=((3, 8, 96), (0, 8, 0)),
        )
        student = narrow_student(teacher, 16, 3)
        spec = student.spec
        assert (spec.hidden_size, [layer.num_heads for layer in spec.layers]) == (16, [2, 0, 0])
        assert [layer.intermediate_size for layer in spec.layers] == [64, 0, 0]
        assert {n: t.shape for n, t in student.tensors.items()} == {n: s for n, (_, s) in weight_tensors(spec).items()}
        words, narrow = (c.tensors["embeddings.word.weight"].astype(float) for c in (teacher, student))
        # of all tables as narrow the one whose dot products are nearest (Eckart and Young), or the table itself
        left = np.linalg.svd(words)[1][16:]
        assert np.isclose(np.linalg.norm(words @ words.T - narrow @ narrow.T), np.linalg.norm(left**2), atol=1e-3)
        same = narrow_student(teacher, 24, 2)  # as wide as the teacher
        assert same.spec == teacher.spec
        assert all(np.array_equal(same.tensors[name], tensor) for name, tensor in teacher.tensors.items())
    for wrong in (12, 32, 0):
        with pytest.raises(InvalidInputError, match="multiple of 8"):
            narrow_student(teacher, wrong, 1)


@pytest.mark.parametrize("task", ["text-classification", "embedding"])
def test_narrow_students_learn_from_their_teacher(task: str) -> None:
    teacher = random_checkpoint(task=task)
    examples = random_examples(teacher, [None] * 32, width=2 if task == "embedding" else 1)
    settings = Distillation(label_weight=0.0, relation_weight=0.5, training=replace(FAST, epochs=8))
    student = narrow_student(teacher, 16, 2)
    trained, progress = distil(teacher, student, examples, settings)
    assert progress.losses[-1] < 0.7 * progress.losses[0] and trained.spec == student.spec


def test_leading_dimensions_are_taught_too() -> None:
    rng = np.random.default_rng(0)
    found, told = (torch.from_numpy(rng.standard_normal((4, 8)).astype(np.float32)) for _ in range(2))
    batch = Batch(*[torch.zeros(4, 1)] * 3, [], [])

    def expect(width: int) -> float:
        pairs = zip(found[:, :width], told[:, :width], strict=True)
        return float(np.mean([1 - x @ y / x.norm() / y.norm() for x, y in pairs]))

    def measure(*widths: int) -> float:
        outputs = ({"sentence_embedding": rows} for rows in (found, told))
        return soft_loss(random_checkpoint().spec, *outputs, batch, 1.0, widths).item()

    assert measure() == pytest.approx(expect(8), rel=1e-5)
    assert measure(2, 5) == pytest.approx((expect(8) + expect(2) + expect(5)) / 3, rel=1e-5)


@pytest.mark.parametrize("num_teacher", [1, 4, 6, 12])
def test_layers_are_spread(num_teacher: int) -> None:
    for count in range(1, num_teacher + 1):
        layers = spread_layers(num_teacher, count)
        assert len(set(layers)) == count and layers[-1] == num_teacher - 1 and sorted(layers) == list(layers)


# Recipe


def test_recipes_round_trip(tmp_path: Path) -> None:
    plain = Recipe("m", "text-classification", "a.csv", "o.onnx")
    budget = Budget.parse(["drop=1.5", "latency=2ms@64,threads=2,batch=4", "size=10MB"])
    full = replace(plain, finetune=None, distill=Distillation(layers=(0, 2)), prune=Pruning(retrain=True), trim=True)
    full = replace(full, columns={"text": "review"}, budget=budget)
    narrow = Distillation(num_layers=2, hidden_size=128, relation_weight=1.0)
    full = replace(full, task="embedding", matryoshka=(64, 128))
    aware = replace(plain, distill=narrow, prune=Pruning(retrain=True, steps=3), qat=QuantizationAware(temperature=1.0))
    for recipe in (plain, full, aware):
        assert Recipe.from_toml(recipe.to_toml()) == recipe
    assert replace(plain, task="ner").task == "token-classification"
    assert full.budget == Budget(drop=1.5, size=10_000_000, latency=0.002, tokens=64, threads=2, batch=4)
    assert Budget.parse(["speed=2.5x@32,batch=8"]) == Budget(speed=2.5, tokens=32, batch=8)


@pytest.mark.parametrize(
    "text",
    ["drop=x", "size=10", "latency=fast", "speed=2", "speed=0x", "latency=2ms@", "drop", "size=1..2MB",
     "size=.MB", f"size={'9' * 400}GB", "latency=..ms", f"latency=2ms@{'9' * 5000}", f"speed=2x,threads={'9' * 5000}"],
)  # fmt: skip
def test_budgets_that_are_not_understood(text: str) -> None:
    with pytest.raises(InvalidInputError, match="budget|positive"):
        Budget.parse([text])


def test_speed_and_latency_are_not_asked_for_together() -> None:
    with pytest.raises(InvalidInputError, match="speed .*left out beside latency"):
        Budget.parse(["speed=2x", "latency=1ms"])


@pytest.mark.parametrize(
    "text",
    ["task = 'none'", "epochs = 3", "seed = -1", "seed = 'a'", "[finetune]\nepochs = 0", "[finetune]\nrate = 1", "x =",
     "prune = 3", "output = 'model'", "[distill]\nlayers = ['a']", "portable = true\nint8 = false",
     "qat = true\nint8 = false", "[prune]\nsteps = 2", "[prune]\nwithin_drop = true",
     "[distill]\nhidden_size = 8\nlayers = [0]", "matryoshka = [0]"],
)  # fmt: skip
def test_bad_recipes(text: str) -> None:
    good = "model = 'm'\ntask = 'embedding'\ntrain = 'a.csv'\noutput = 'o.onnx'\n"
    lines = [line for line in good.splitlines() if line.split(" ")[0] != text.split(" ")[0]]
    with pytest.raises(InvalidInputError, match="recipe"):
        Recipe.from_toml("\n".join(lines) + "\n" + text)
    with pytest.raises(InvalidInputError, match="recipe lacks model, train, output"):
        Recipe.from_toml("task = 'embedding'")


def test_settings_given_in_python_are_of_their_types() -> None:
    given = {"model": Path("m"), "task": "embedding", "train": Path("a.csv"), "output": Path("o.onnx")}
    recipe = Recipe(**given, budget=Budget(drop=1))  # type: ignore[arg-type]
    assert (recipe.output, recipe.budget.drop) == ("o.onnx", 1.0)
    for field, value in (
        ("confidence", "high"), ("seed", 1.5), ("label_map", {1: "a"}), ("columns", None), ("also_eval", "b.csv"),
        ("finetune", 3), ("train", b"a"), ("int8", "yes"),
    ):  # fmt: skip
        with pytest.raises(InvalidInputError, match=f"recipe: {field} must "):
            Recipe(**{**given, field: value})  # type: ignore[arg-type]
    for kind, field, value in (
        (Training, "epochs", "3"), (Training, "dropout", None), (Distillation, "layers", 3), (Pruning, "flops", "all"),
        (QuantizationAware, "temperature", []), (Budget, "drop", "1"), (Budget, "size", 1.5),
    ):  # fmt: skip
        with pytest.raises(InvalidInputError, match=f"recipe: {field} must "):
            kind(**{field: value})


# Whole runs


def write_task(path: Path, count: int = 160) -> Path:
    """Sentences of the tests' vocabulary, warm if they speak of water or roses."""
    rng = np.random.default_rng(0)
    words = ["the", "router", "slow", "fast", "water", "roses", "modem", "good", "bad", "a", "b", "c"]
    rows = []
    for _ in range(count):
        text = rng.choice(words, rng.integers(2, 7)).tolist()
        rows.append({"text": " ".join(text), "label": "warm" if {"water", "roses"} & set(text) else "cold"})
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture
def recipe(tmp_path: Path, tokenizer_json: str) -> Recipe:
    make_checkpoint(tmp_path / "model", task="embedding")
    (tmp_path / "model" / "tokenizer.json").write_text(tokenizer_json)
    return Recipe(
        str(tmp_path / "model"),
        "text-classification",
        str(write_task(tmp_path / "train.jsonl")),
        str(tmp_path / "out.onnx"),
        finetune=FAST,
        distill=Distillation(num_layers=1, training=FAST),
        prune=Pruning(flops=0.7, retrain=True, training=replace(FAST, epochs=1)),
        trim=True,
        budget=Budget(drop=60.0, size=10**9),
    )


def test_a_run_is_one_file_and_its_report(recipe: Recipe, monkeypatch: pytest.MonkeyPatch) -> None:
    result = run(recipe)
    output = Path(recipe.output)
    names = [stage["name"] for stage in result.report["stages"]]
    assert result.met and names == ["start", "trim", "finetune", "distill", "prune", "retrain"]
    model = edgebert.load(output)
    assert model.spec.is_int8 and model.spec.num_layers == 1 and model(["water roses"])[0]["label"] in ("warm", "cold")
    report = json.loads(output.with_suffix(".json").read_text())
    assert report["final"]["metrics"]["accuracy"] >= 0 and report["budgets"]["drop"]["verdict"] == "met"
    page = output.with_suffix(".html").read_text()
    assert "<svg" in page and "retrain" in page
    # users' texts stay out of the file
    evaluated = [row["text"] for row in map(json.loads, Path(recipe.train).read_text().splitlines())]
    stored = output.read_bytes()
    assert b"edgebert.compression" in stored and not [t for t in evaluated if len(t) > 20 and t.encode() in stored]
    assert edgebert.check(output)

    # the same recipe again takes every stage from disk, and gives the same graph, weights, tokenizer and metrics
    monkeypatch.setattr(finetune, "train", None)
    output.rename(output.with_name("first.onnx"))
    again = run(recipe)
    assert same_files(output.with_name("first.onnx"), output)
    assert again.report["final"]["metrics"] == result.report["final"]["metrics"]


def test_rows_that_choose_never_judge(recipe: Recipe, tmp_path: Path) -> None:
    """With an evaluation file and without one: three parts that share no text."""
    other = write_task(tmp_path / "other.jsonl", 400)
    for eval_file in (None, str(other)):
        made = pipeline._Run(replace(recipe, eval=eval_file, work=str(tmp_path / "work")), lambda text: None)
        parts = [set(data.inputs) for data in (made.train, made.choice)]
        assert all(parts) and not parts[0] & parts[1]
        if eval_file is None:
            assert made.eval.inputs and not set(made.eval.inputs) & (parts[0] | parts[1])
        else:
            assert len(made.eval) == 400


def test_rows_of_one_class_that_judge_are_told(recipe: Recipe, tmp_path: Path) -> None:
    rows = [line for line in Path(recipe.train).read_text().splitlines() if '"warm"' in line]
    (tmp_path / "one.jsonl").write_text("\n".join(rows))
    changes = {"eval": str(tmp_path / "one.jsonl"), "also_eval": (recipe.train,), "work": str(tmp_path / "work")}
    messages = pipeline._Run(replace(recipe, **changes), lambda text: None).messages
    assert [text for text in messages if "one class" in text] == [
        f"the {len(rows)} rows of {tmp_path / 'one.jsonl'} that judge have one class only, 'warm': a model that always "
        "answers it loses nothing there"
    ]


def test_a_loss_that_few_rows_cannot_rule_out_is_not_shown(recipe: Recipe, capsys: pytest.CaptureFixture[str]) -> None:
    """The report tells what was lost at most, there and on other text; the exit status is one of its own."""
    folder = Path(recipe.train).parent
    judging = write_task(folder / "judging.jsonl", 30)
    recipe = replace(recipe, distill=None, prune=None, trim=False, budget=Budget(drop=5.0))
    recipe = replace(recipe, eval=str(judging), also_eval=(str(write_task(folder / "more.jsonl", 60)),))
    (folder / "r.toml").write_text(recipe.to_toml())
    assert main(["compress", "--recipe", str(folder / "r.toml"), "--confidence", "0.9"]) == 3
    out = capsys.readouterr().out
    assert "not shown; with a confidence of 90 % it is at most" in out and "more rows in --eval would show it" in out
    assert "more.jsonl" in out
    report = json.loads(Path(recipe.output).with_suffix(".json").read_text())
    drop = report["budgets"]["drop"]
    assert drop["found"] <= 5.0 < drop["upper"] and drop["more_rows"] > 0 and drop["confidence"] == 0.9
    assert report["also"][0]["rows"] == 60 and report["also"][0]["loss"]["upper"] >= 0
    assert report["final"]["loss"] == {key: drop[key] for key in ("estimate", "upper", "confidence", "num_groups")}
    assert not any("loss" in stage for stage in report["stages"])  # int8 comes right after the fine-tuned one
    assert "lost (at most)" in Path(recipe.output).with_suffix(".html").read_text()


def test_budgets_that_cannot_be_met_still_give_a_file(recipe: Recipe, capsys: pytest.CaptureFixture[str]) -> None:
    recipe = replace(recipe, distill=None, prune=None, trim=False, budget=Budget(size=10))
    path = Path(recipe.train).with_name("r.toml")
    path.write_text(recipe.to_toml())
    assert main(["compress", "--recipe", str(path)]) == 1
    out = capsys.readouterr()
    assert "NOT met; try --trim" in out.out and "nothing fits the budget, the closest (" in out.err
    assert f"stay in {recipe.work_folder}" in out.out
    # what comes closest has no head left; what is written is smaller, and as good as what was fine-tuned
    assert edgebert.check(recipe.output)
    spec, whole = edgebert.load(recipe.output).spec, load_checkpoint(recipe.model).spec
    assert spec.num_layers == whole.num_layers and spec.vocab_size < whole.vocab_size
    report = json.loads(Path(recipe.output).with_suffix(".json").read_text())
    scores = {stage["name"]: next(iter(stage["metrics"].values())) for stage in report["stages"]}
    assert scores["plan"] >= scores["finetune"] - 0.01
    candidates = next(stage["candidates"] for stage in report["stages"] if stage["name"] == "plan")
    assert sum(candidates[-1]["intermediate_size"]) > 0 == sum(candidates[0]["intermediate_size"])


def test_a_latency_budget_is_met_by_the_file(recipe: Recipe) -> None:
    whole = run(replace(recipe, distill=None, prune=None, trim=False, budget=Budget(tokens=16)))
    fastest = whole.report["final"]["speed"]["latency_p50"]
    budget = Budget(latency=1e-7, tokens=16)
    for _ in range(2):  # the second time from the stage on disk
        result = run(replace(recipe, distill=None, prune=None, trim=False, budget=budget))
        assert not result.met and "nothing fits the budget" in " ".join(result.report["messages"])
        assert len(result.report["final"]["num_heads"]) == 2
    result = run(replace(recipe, distill=None, prune=None, trim=False, budget=replace(budget, latency=50 * fastest)))
    assert result.met and [stage["name"] for stage in result.report["stages"]] == ["start", "finetune"]


def same_files(one: Path, other: Path) -> bool:
    """Whether graph, weights and tokenizer are equal."""
    first, second = read_artifact(one), read_artifact(other)
    return (
        (first.spec, first.tokenizer_json, first.tensors.keys())
        == (second.spec, second.tokenizer_json, second.tensors.keys())
    ) and all(np.array_equal(first.tensors[name], second.tensors[name]) for name in first.tensors)


def test_every_option_goes_on_after_a_kill_to_the_same_file(recipe: Recipe, monkeypatch: pytest.MonkeyPatch) -> None:
    """Killed in each training's second epoch and once the planner has chosen."""
    make_checkpoint(Path(recipe.model), task="embedding", intermediate_size=512)
    short = replace(FAST, epochs=2)
    recipe = replace(
        recipe,
        trim=False,
        finetune=short,
        distill=Distillation(num_layers=2, hidden_size=24, relation_weight=0.5, training=short),
        prune=Pruning(flops=0.8, retrain=True, steps=2, training=short),
        qat=QuantizationAware(training=short),
        budget=Budget(size=10**9),
    )
    size = run(replace(recipe, work=str(recipe.work_folder) + ".size")).report["final"]["bytes"]
    recipe = replace(recipe, budget=Budget(size=size - 3000))

    def choose_trimmed(candidates: list[planner.Candidate], *rest: Any) -> Any:
        assert [candidate.num_layers for candidate in candidates] == [2, 2, 1]
        return planner.choose(candidates[1:], *rest)

    monkeypatch.setattr(pipeline, "choose", choose_trimmed)
    whole = run(recipe)
    names = [stage["name"] for stage in whole.report["stages"]]
    assert names == ["start", "finetune", "distill", "prune", "retrain", "prune", "plan", "retrain", "qat"]
    plan = whole.report["stages"][names.index("plan")]
    scores = {candidate["name"]: candidate["score"] for candidate in plan["candidates"]}
    assert scores[plan["chosen"]] == max(scores.values()) and len(scores) == 2
    assert plan["vocab_size"] == whole.report["final"]["vocab_size"] < whole.report["stages"][0]["vocab_size"]
    assert whole.met and whole.report["final"]["bytes"] <= size - 3000
    page = Path(recipe.output).with_suffix(".html").read_text()
    assert "The ladder:" in page and "Candidates" in page and plan["chosen"] in page

    killed: set[str] = set()

    def kill_once(name: str) -> None:
        if name not in killed:
            killed.add(name)
            raise KeyboardInterrupt

    def train_and_be_killed(*args: Any, evaluate: Any, name: str, **options: Any) -> Any:
        epochs = iter(range(9))

        def score(model: TorchEncoder) -> float:
            if next(epochs) == 1:
                kill_once(name)
            return float(evaluate(model))

        return train(*args, evaluate=score, name=name, **options)

    def choose_and_be_killed(*args: Any) -> Any:
        chosen = choose_trimmed(*args)
        kill_once("plan")
        return chosen

    for module in (pipeline, distillation):
        monkeypatch.setattr(module, "train", train_and_be_killed)
    monkeypatch.setattr(pipeline, "choose", choose_and_be_killed)
    other = replace(recipe, output=str(Path(recipe.output).with_name("resumed.onnx")))
    while True:
        try:
            resumed = run(other)
            break
        except KeyboardInterrupt:
            pass
    assert killed == {"finetune", "distill", "retrain", "qat", "plan"}
    assert same_files(Path(recipe.output), Path(other.output))
    assert resumed.report["final"]["metrics"] == whole.report["final"]["metrics"]


def test_what_was_measured_is_not_measured_again(recipe: Recipe, monkeypatch: pytest.MonkeyPatch) -> None:
    """A run that is killed while it meets a latency budget goes on with the times it has."""
    make_checkpoint(Path(recipe.model), task="embedding", intermediate_size=512)
    recipe = replace(recipe, distill=None, prune=None, trim=False, budget=Budget(latency=1.0, tokens=16))
    table = LatencyTable({}, 1e-3, (0, 4), (0, 512), ((0.0, 4e-3), (1e-3, 5e-3)))
    monkeypatch.setattr(LatencyTable, "measure", lambda *_, **__: table)
    real, specs = pipeline.measure_speeds, []

    def speeds(paths: Any, budget: Budget) -> Any:
        """A file takes half as long again as the table says."""
        if "candidate" not in paths[-1].name:
            return real(paths, budget)
        specs.append(edgebert.load(paths[0]).spec)
        if len(specs) == 2:
            raise KeyboardInterrupt
        return [{"latency_p50": 1.5 * table.predict(specs[-1])}]

    monkeypatch.setattr(pipeline, "measure_speeds", speeds)
    recipe = replace(recipe, budget=Budget(latency=8e-3, tokens=16))
    with pytest.raises(KeyboardInterrupt):
        run(recipe)
    result = run(recipe)
    [plan] = [stage for stage in result.report["stages"] if stage["name"] == "plan"]
    measured = [attempt["measured"] for attempt in plan["tries"]]
    assert len(measured) >= 2 and measured[-1] <= 8e-3 < measured[0]
    assert len(specs) == len(measured) + 1 and specs[0] != specs[1] == specs[2]  # only the killed one is done again


def test_a_budget_of_speed_is_met_while_the_clock_changes(recipe: Recipe, monkeypatch: pytest.MonkeyPatch) -> None:
    """Files are compared with the fine-tuned one in turns: each measurement is made at another clock."""
    make_checkpoint(Path(recipe.model), task="embedding", intermediate_size=512)
    table = LatencyTable({}, 1e-3, (0, 4), (0, 512), ((0.0, 4e-3), (1e-3, 5e-3)))
    monkeypatch.setattr(LatencyTable, "measure", lambda *_, **__: table)
    clocks, real = iter([1.0, 2.0, 0.5, 3.0, 0.25, 1.5]), pipeline.measure_speeds

    def speeds(paths: Any, budget: Budget) -> Any:
        """A pruned file takes half as long again as the table says."""
        clock = next(clocks)
        specs = [edgebert.load(path).spec for path in paths]
        whole = max(table.predict(spec) for spec in specs) if len(specs) > 1 else table.predict(specs[0])
        times = [table.predict(spec) * (1.5 if table.predict(spec) < whole else 1.0) for spec in specs]
        return [speed | {"latency_p50": clock * t} for speed, t in zip(real(paths, budget), times, strict=True)]

    monkeypatch.setattr(pipeline, "measure_speeds", speeds)
    recipe = replace(recipe, distill=None, prune=None, trim=False, budget=Budget(speed=2.0, tokens=16))
    report = run(recipe).report
    [plan] = [stage for stage in report["stages"] if stage["name"] == "plan"]
    assert len(plan["tries"]) >= 2
    assert report["budgets"]["speed"]["verdict"] == "met" and 2.0 <= report["budgets"]["speed"]["found"] <= 2.2


def test_training_that_stops_early_says_so(recipe: Recipe, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pipeline._Run, "_scorer", lambda *_: lambda model: 0.5)
    finetuning = replace(FAST, epochs=5, patience=2)
    messages = run(replace(recipe, distill=None, prune=None, finetune=finetuning)).report["messages"]
    assert "finetune: stopped after 2 of 5 epochs, since the last 2 were no better" in messages


@pytest.mark.parametrize(
    ("options", "flops", "epochs"),
    [
        ("--epochs 3 --layers 2", None, (3, 3)),
        ("--epochs 3 --layers 2 --no-finetune", None, (None, 3)),
        ("--retrain --budget speed=3x", 1.0, (6, None)),
        ("--retrain --budget drop=1", 0.5, (6, None)),
        ("--retrain --flops 0.7 --budget size=9MB", 0.7, (6, None)),
    ],
)
def test_what_options_say_together(options: str, flops: float | None, epochs: tuple[int | None, int | None]) -> None:
    from edgebert.commands import compress

    parser = argparse.ArgumentParser()
    compress.add_arguments(parser)
    wanted = "FOLDER --task text-classification --train a.csv -o b.onnx " + options
    made = compress.build_recipe(parser.parse_args(wanted.split()))
    assert (made.prune and made.prune.flops) == flops
    assert (made.finetune and made.finetune.epochs, made.distill and made.distill.training.epochs) == epochs


def test_a_budget_of_accuracy_says_how_far_to_prune(recipe: Recipe, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = replace(recipe, distill=None, trim=False, prune=Pruning(flops=0.2, within_drop=True))
    whole = load_checkpoint(recipe.model).spec
    costs = prune.Flops.of(whole)

    def score(_: Any, checkpoint: Checkpoint) -> float:
        """It falls by a point for every tenth of the operations."""
        return 0.9 + 0.1 * costs.predict(checkpoint.spec) / costs.predict(whole)

    monkeypatch.setattr(pipeline._Run, "_choice_score", lambda run, stage: 1.0)
    monkeypatch.setattr(pipeline._Run, "_score_trained", score)
    report = run(replace(recipe, budget=Budget(drop=5.0))).report
    [stage] = [stage for stage in report["stages"] if stage["name"] == "prune"]
    assert stage["chosen"] == stage["candidates"][-2]["name"] and len(stage["candidates"]) < 5
    assert stage["candidates"][-1]["score"] < 0.95 <= stage["candidates"][-2]["score"]
    assert stage["num_heads"] == stage["candidates"][-2]["num_heads"]


def test_texts_alone_make_a_student(recipe: Recipe, tmp_path: Path) -> None:
    """Judged by neighbours that the teacher has, by queries, and with leading dimensions alone."""
    pairs = [json.loads(line) for line in write_task(tmp_path / "pairs.jsonl", 90).read_text().splitlines()]
    texts = [row["text"] for row in pairs]
    rows = [{"query": texts[3 * i], "positives": texts[3 * i + 1 : 3 * i + 2 + i % 2]} for i in range(30)]
    queries = tmp_path / "queries.jsonl"
    queries.write_text("".join(json.dumps(row) + "\n" for row in rows))
    student = Distillation(num_layers=1, training=replace(FAST, epochs=2))
    recipe = replace(recipe, task="embedding", finetune=None, distill=student, prune=None, trim=False, int8=False)
    recipe = replace(recipe, also_eval=(str(queries),), matryoshka=(8,), unlabelled=recipe.train, budget=Budget())
    with pytest.raises(InvalidInputError, match=r"train.jsonl has texts alone.*--column text_pair=NAME"):
        run(replace(recipe, finetune=FAST))
    with pytest.raises(InvalidInputError, match="lists of texts to find"):
        run(replace(recipe, train=str(queries), eval=recipe.train))
    with pytest.raises(InvalidInputError, match="matryoshka 32: choose less than all 32"):
        run(replace(recipe, matryoshka=(8, 32)))
    made = pipeline._Run(recipe, lambda text: None)
    result = made.run()
    teacher, found = edgebert.load(result.folders[0] / "model.onnx"), edgebert.load(recipe.output)

    def agree(width: int | None) -> float:
        kept = []
        for rows in (teacher.encode(made.eval.inputs), found.encode(made.eval.inputs, truncate_dim=width)):
            cosines = edgebert.similarity(rows, rows)
            np.fill_diagonal(cosines, -2)
            kept.append(np.argsort(-cosines, axis=1, kind="stable")[:, :10])
        return float(np.mean([len({*a} & {*b}) / 10 for a, b in zip(*kept, strict=True)]))

    report = result.report
    assert report["stages"][0]["metrics"] == {"neighbours_at_10": 1.0}
    assert report["final"]["metrics"]["neighbours_at_10"] == pytest.approx(agree(None), abs=0.02)  # ties
    assert report["widths"][0]["score"] == pytest.approx(agree(8), abs=0.02)
    assert report["widths"][0]["loss"]["estimate"] == pytest.approx(100 - 100 * report["widths"][0]["score"])

    [also] = report["also"]
    corpus = list(dict.fromkeys([*(text for row in rows for text in row["positives"]), *made.unlabelled]))
    cosines = edgebert.similarity(found.encode([row["query"] for row in rows]), found.encode(corpus))
    ndcg = []
    for row, near in zip(rows, cosines, strict=True):
        best = [corpus[i] in row["positives"] for i in np.lexsort((np.arange(len(near)), -near))[:10]]
        ideal = sum(1 / np.log2(place + 2) for place in range(len(set(row["positives"]))))
        ndcg.append(sum(right / np.log2(place + 2) for place, right in enumerate(best)) / ideal)
    assert also["rows"] == 30 and also["score"] == pytest.approx(np.mean(ndcg), abs=0.02)


def test_linears_stay_f32_where_int8_loses_too_much(recipe: Recipe, monkeypatch: pytest.MonkeyPatch) -> None:
    def evaluate(path: Path, dataset: Dataset, *_: Any) -> Evaluation:
        spec = edgebert.load(path).spec
        count = sum(layer.dtype(name) == "s8" for layer in spec.layers for name in LINEARS)
        return Evaluation({"accuracy": 1.0 - max(0, count - 6) / 100}, RowScores(np.ones((len(dataset), 2))), [])

    monkeypatch.setattr(pipeline, "evaluate_file", evaluate)
    result = run(replace(recipe, distill=None, prune=None, trim=False, budget=Budget(drop=0.0)))
    assert result.verdict == "not shown" and edgebert.check(recipe.output)  # no number of rows shows a loss of 0
    errors = {name: linear["error"] for name, linear in result.report["quantization"]["linears"].items()}
    assert len(errors) == 6  # of 8: the two worst stay f32


def test_the_demo_has_sentences_of_every_class_on_both_sides(tmp_path: Path) -> None:
    recipe = demo.build_recipe(tmp_path)
    train, held = (load_dataset(path, recipe.task) for path in (recipe.train, str(recipe.eval)))
    assert (len(train), len(held)) == (200, 100) and not set(train.inputs) & set(held.inputs)
    assert train.labels == held.labels and len(train.labels) == 6
    counts = [held.targets.count(label) for label in held.labels]
    assert min(counts) >= 10
    assert len((tmp_path / "texts.txt").read_text().splitlines()) > 500


def test_the_command_says_what_is_wrong(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["compress", "model"]) == 1
    assert "recipe lacks task, train, output" in capsys.readouterr().err
    arguments = ["compress", "model", "--task", "embedding", "--train", "a.csv", "-o", str(tmp_path / "o.onnx")]
    assert main([*arguments, "--write-recipe", str(tmp_path / "r.toml"), "--layers", "2", "--flops", "0.5",
                 "--hidden-size", "128", "--qat", "--portable"]) == 0  # fmt: skip
    written = Recipe.from_toml((tmp_path / "r.toml").read_text())
    assert written.distill == Distillation(num_layers=2, hidden_size=128) and written.qat == QuantizationAware()
    assert written.portable
    assert main(arguments) == 1
    assert "a.csv" in capsys.readouterr().err
