"""Exits in compression: the promise on unseen texts, by simulation; what is learned; whole runs."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from artifacts import random_batch
from test_compress import FAST, random_checkpoint, random_examples, recipe, write_task

import edgebert
from edgebert.artifact.writer import build_model
from edgebert.backends.registry import load_backend
from edgebert.cli import main
from edgebert.compress.data import load_dataset
from edgebert.compress.distill import distil
from edgebert.compress.exits import Observation, add_exits, choose_threshold, observe, rows_needed
from edgebert.compress.finetune import make_batch
from edgebert.compress.pipeline import run
from edgebert.compress.recipe import Budget, Distillation, Exits, Recipe
from edgebert.compress.torch_encoder import TorchEncoder
from edgebert.errors import InvalidInputError

__all__ = ["recipe"]  # a fixture


def draw_texts(rng: np.random.Generator, count: int, noise: float) -> Observation:
    """Texts of three exits: how far each is from the border, seen through less and less noise."""
    distance = 6 * rng.standard_normal(count)
    seen = distance + noise * np.array([[4.0], [2.0], [1.0]]) * rng.standard_normal((3, count))
    return Observation(np.array([1, 2, 3, 4]), np.abs(seen).astype(np.float32), (seen > 0) != (distance > 0))


def test_the_risk_is_kept_in_nineteen_calibrations_of_twenty() -> None:
    """500 calibrations, each judged by the true share of answers that differ; and they do let texts leave."""
    rng = np.random.default_rng(0)
    broken = runs = 0
    settings = [(0.01, 0.3, 500), (0.01, 0.6, 1500), (0.05, 0.6, 200), (0.05, 1.0, 800), (0.1, 1.0, 100)]
    for risk, noise, count in settings:
        many = draw_texts(rng, 100_000, noise)
        true: dict[float, dict[str, float]] = {}
        for _ in range(100):
            threshold = choose_threshold(draw_texts(rng, count, noise), risk, 0.95)
            runs += 1
            if threshold is None:
                continue
            if threshold not in true:
                true[threshold] = many.describe(threshold)
            broken += true[threshold]["differ"] > risk
        assert len(true) > 1 and all(found["mean_depth"] < 3.9 for found in true.values())
    assert runs == 500 and broken <= 0.05 * runs


def test_the_fewest_rows_that_can_promise_anything() -> None:
    for risk, confidence in ((0.01, 0.95), (0.05, 0.9), (0.5, 0.99)):
        count = rows_needed(risk, confidence)
        alike = Observation(np.array([1, 2]), np.zeros((1, count), np.float32), np.zeros((1, count), bool))
        assert choose_threshold(alike, risk, confidence) == 0.0
        assert choose_threshold(alike.take(np.arange(count - 1)), risk, confidence) is None
    assert rows_needed(0.01, 0.95) == 299  # 0.99 ** 299 < 0.05 < 0.99 ** 298


def test_a_threshold_below_one_that_is_not_shown_is_never_reached() -> None:
    """Fixed sequence testing: what comes after a failure counts for nothing, however good it looks."""
    margins = np.array([[4.0] * 100, [8.0] * 100], np.float32)
    differs = np.array([[False] * 100, [True] * 100])
    observed = Observation(np.array([1, 2, 3]), margins, differs)
    assert [observed.count_differing(threshold) for threshold in (9.0, 8.0, 4.5, 4.0)] == [0, 100, 100, 0]
    found = choose_threshold(observed, 0.05, 0.95)
    assert found is not None and found > 8.0


@pytest.mark.parametrize("task", ["text-classification", "token-classification"])
def test_logits_at_exits_equal_the_oracle(task: str) -> None:
    checkpoint = add_exits(random_checkpoint(task=task, layers=((2, 8, 40),) * 3, pooling="mean"), seed=0)
    spec = checkpoint.spec
    assert [each.after for each in spec.exits] == [1, 2]
    batch = random_batch(spec, (7, 1, 15, 2))
    ids, mask, types = (torch.from_numpy(part) for part in batch.pad())
    with torch.no_grad():
        at_exits = TorchEncoder(spec, checkpoint.tensors).eval()(ids, mask, types)["exits"]
    for i, logits in enumerate(at_exits):
        opened = tuple(replace(each, threshold=0.0 if i == j else None) for j, each in enumerate(spec.exits))
        backend = load_backend(build_model(spec.replace(exits=opened), checkpoint.tensors, {}), "numpy")
        expected = backend.run(batch, ["logits"])["logits"]
        found = (logits[mask.bool()] if task == "token-classification" else logits).numpy()
        assert np.abs(found - expected).max() <= 1e-5 * np.abs(expected).max()


@pytest.mark.parametrize("task", ["text-classification", "token-classification"])
def test_exits_learn_to_answer_as_the_last_layer_does(task: str) -> None:
    whole = random_checkpoint(task=task, layers=((2, 8, 40),) * 3, num_labels=2)
    examples = random_examples(whole, [None] * 64)
    student = add_exits(whole, seed=0)
    settings = Distillation(hidden_weight=0.0, training=replace(FAST, epochs=20, dropout=0.0))
    trained, progress = distil(whole, student, examples, settings)
    assert progress.losses[-1] < progress.losses[0]

    def agreement(checkpoint: object) -> list[float]:
        batch = make_batch(examples, list(range(64)), 0, torch.device("cpu"))
        with torch.no_grad():
            told = batch.run(TorchEncoder(whole.spec, whole.tensors).eval())["logits"].argmax(-1)
            found = batch.run(TorchEncoder(checkpoint.spec, checkpoint.tensors).eval())["exits"]  # type: ignore[attr-defined]
        return [float((logits.argmax(-1) == told).float().mean()) for logits in found]

    before, after = agreement(student), agreement(trained)
    assert min(after) > 0.9 > min(before)


def test_a_run_with_exits(recipe: Recipe, capsys: pytest.CaptureFixture[str]) -> None:  # noqa: F811
    folder = Path(recipe.train).parent
    recipe = replace(
        recipe,
        train=str(write_task(folder / "more.jsonl", 900)),
        distill=None,
        prune=None,
        trim=False,
        exits=Exits(risk=0.2, training=FAST),
        budget=Budget(),
    )
    (folder / "r.toml").write_text(recipe.to_toml())
    assert Recipe.from_toml(recipe.to_toml()) == recipe
    assert main(["compress", "--recipe", str(folder / "r.toml"), "--exit-risk", "0.1"]) == 0
    out = capsys.readouterr().out
    assert "% after layer 1, " in out and "of all at most 10 % with a confidence of 95 %" in out
    report = json.loads(Path(recipe.output).with_suffix(".json").read_text())
    exits = report["exits"]
    assert exits["risk"] == 0.1 and exits["shares"]["1"] > 0.3 and 1 <= exits["mean_depth"] < 2
    assert exits["mean_depth"] == pytest.approx(exits["shares"]["1"] + 2 * exits["shares"]["2"])
    assert "Exits:" in Path(recipe.output).with_suffix(".html").read_text()
    assert edgebert.check(recipe.output)  # at full depth, as the probe is
    # what was counted from margins is what the file does
    model, whole = edgebert.load(recipe.output), edgebert.load(recipe.output, full_depth=True)
    assert [each.threshold for each in model.spec.exits] == [exits["threshold"]] and whole.spec.exits == ()
    dataset = load_dataset(recipe.train, recipe.task, labels=model.spec.labels)
    found, expected = ([row["label"] for row in each(dataset.inputs)] for each in (model, whole))
    observed = observe(Path(recipe.output), dataset, None)
    assert observed.count_differing(exits["threshold"]) == sum(a != b for a, b in zip(found, expected, strict=True))
    assert model.spec == edgebert.load(recipe.output).spec  # thresholds are back
    assert main(["info", recipe.output]) == 0
    told = capsys.readouterr().out
    assert f"after layer 1 from a margin of {exits['threshold']:g} on" in told
    assert f"{exits['mean_depth']:.2f} layers a text: of {exits['texts']} texts" in told
    # another risk takes the training from disk
    again = run(replace(recipe, exits=replace(recipe.exits, risk=0.3)))  # type: ignore[type-var]
    assert again.report["exits"]["threshold"] <= exits["threshold"]


def test_too_few_rows_to_promise_anything_are_told(recipe: Recipe) -> None:  # noqa: F811
    with pytest.raises(InvalidInputError, match=r"no threshold of exits can be promised with \d+ rows .* needs 299"):
        run(replace(recipe, distill=None, exits=Exits()))


def test_exits_are_refused_where_no_answer_is_sure(recipe: Recipe, tmp_path: Path) -> None:  # noqa: F811
    with pytest.raises(InvalidInputError, match="exits are for text and token classification, not for embedding"):
        replace(recipe, task="embedding", distill=None, exits=Exits())
    with pytest.raises(InvalidInputError, match="num_layers must be 2 or more with exits"):
        replace(recipe, distill=Distillation(num_layers=1), exits=Exits())
    scores = tmp_path / "scores.jsonl"
    rows = [{"text": f"water {'a ' * (i % 7)}{i}", "score": i % 5} for i in range(900)]
    scores.write_text("".join(json.dumps(row) + "\n" for row in rows))
    with pytest.raises(InvalidInputError, match="can have no exits, its answers are scores"):
        run(replace(recipe, train=str(scores), distill=None, exits=Exits(risk=0.1)))
