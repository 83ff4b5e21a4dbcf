"""Pruning: gradients, choice under a budget, physical removal, and tuning, each against a plain counterpart."""

from __future__ import annotations

import itertools
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from artifacts import Layers, random_batch, random_spec, random_tensors

torch = pytest.importorskip("torch")

from edgebert.artifact.names import linear_name, weight_tensors  # noqa: E402
from edgebert.artifact.spec import EncoderSpec  # noqa: E402
from edgebert.checkpoints.loading import Checkpoint  # noqa: E402
from edgebert.compress import prune as pruning  # noqa: E402
from edgebert.compress.planner import Bytes, Candidate, choose, list_candidates, prune_until, spent_share  # noqa: E402
from edgebert.compress.prune import (  # noqa: E402
    Flops,
    Units,
    choose_layers,
    measure_importance,
    prune,
    prune_within,
    refit,
    remove_units,
    take_layers,
)
from edgebert.compress.torch_encoder import TorchEncoder  # noqa: E402
from edgebert.errors import InvalidInputError, UnsupportedModelError  # noqa: E402
from edgebert.exporting.quantize import quantize  # noqa: E402

LAYERS = ((4, 6, 40), (3, 6, 24), (2, 6, 0), (0, 6, 16))


def make_checkpoint(layers: Layers = LAYERS, task: str = "text-classification", **others: Any) -> Checkpoint:
    spec = random_spec(task=task, layers=layers, **others)
    return Checkpoint(spec, random_tensors(spec), None, {"num_hidden_layers": len(layers)}, {}, Path())


def make_batches(checkpoint: Checkpoint, count: int = 3) -> list[Any]:
    """(input_ids, attention_mask, token_type_ids, labels) of several padded batches."""
    batches = []
    for seed in range(count):
        packed = random_batch(checkpoint.spec, [7, 1, 12, 3, 9], seed)
        labels = torch.from_numpy(np.random.default_rng(seed).integers(0, 3, packed.num_sequences))
        batches.append((*(torch.from_numpy(part) for part in packed.pad()), labels))
    return batches


def loss_of(model: TorchEncoder, batch: Any) -> Any:
    *inputs, labels = batch
    return torch.nn.functional.cross_entropy(model(*inputs)["logits"], labels, reduction="sum")


def test_gradients_are_those_of_each_example() -> None:
    checkpoint = make_checkpoint()
    [batch] = make_batches(checkpoint, 1)
    importance = measure_importance(checkpoint, [batch], loss_of)
    assert len(importance.inputs) == 1
    encoder = TorchEncoder(checkpoint.spec, checkpoint.tensors)
    for row in range(5):
        length = int(batch[1][row].sum())
        heads = [torch.ones(layer.num_heads, requires_grad=True) for layer in checkpoint.spec.layers]
        neurons = [torch.ones(layer.intermediate_size, requires_grad=True) for layer in checkpoint.spec.layers]
        alone = encoder(*(part[row : row + 1, :length] for part in batch[:3]), head_masks=heads, neuron_masks=neurons)
        loss = torch.nn.functional.cross_entropy(alone["logits"], batch[3][row : row + 1])
        expected = torch.autograd.grad(loss, heads + neurons, materialize_grads=True)
        found = [layer.heads[row] for layer in importance.gradients]
        found += [layer.neurons[row] for layer in importance.gradients]
        for a, b in zip(found, expected, strict=True):
            assert np.allclose(a, b.numpy(), rtol=1e-4, atol=1e-6)


def test_growth_of_a_removal() -> None:
    gradients = np.random.default_rng(0).standard_normal((50, 9)).astype(np.float32)
    order, growth = pruning.removal_order(gradients)
    assert sorted(order) == list(range(9))
    for count in range(10):
        removed = gradients[:, order[:count]].astype(np.float64)
        together, alone = np.mean(removed.sum(axis=1) ** 2) / 2, np.mean((removed**2).sum(axis=1)) / 2
        expected = pruning.CORRELATION * together + (1 - pruning.CORRELATION) * alone
        assert np.isclose(growth[count], expected, rtol=1e-4, atol=1e-7)
    first = np.argmin((gradients**2).mean(axis=0))
    assert order[0] == first


def test_units_that_cancel_go_together() -> None:
    """Of two units with opposite gradients the second is cheaper than it looks: the diagonal alone would not see it."""
    rng = np.random.default_rng(0)
    gradients = rng.standard_normal((200, 4)).astype(np.float32)
    gradients *= np.float32([0.1, 0.95, 0.9, 1]) / np.linalg.norm(gradients, axis=0)
    gradients[:, 3] = -1.1 * gradients[:, 2]
    order, _ = pruning.removal_order(gradients)
    assert order.tolist() == [0, 2, 3, 1]


@pytest.mark.parametrize("budget", [3.0, 7.5, 11.0, 20.0, 100.0])
def test_options_against_all_combinations(budget: float) -> None:
    rng = np.random.default_rng(int(budget))
    options = [(rng.integers(0, 9, size).astype(float), rng.random(size)) for size in (4, 5, 3, 6)]
    options = [(np.append(costs, 0.5), np.append(penalties, 2.0)) for costs, penalties in options]
    chosen = pruning._choose_options(options, budget)

    def total(part: int, choice: Any) -> float:
        return float(sum(option[part][i] for option, i in zip(options, choice, strict=True)))

    combinations = itertools.product(*(range(len(option[0])) for option in options))
    within = budget * (1 - 4 / pruning._COST_BINS)  # four costs are rounded up
    best = min((choice for choice in combinations if total(0, choice) <= within), key=lambda choice: total(1, choice))
    assert total(0, chosen) <= budget
    assert total(1, chosen) <= total(1, best) + 1e-9


def masked_outputs(checkpoint: Checkpoint, kept: list[Units], batch: Any) -> Any:
    masks: dict[str, list[Any]] = {"heads": [], "neurons": []}
    for layer, units in zip(checkpoint.spec.layers, kept, strict=True):
        for name, count in (("heads", layer.num_heads), ("neurons", layer.intermediate_size)):
            masks[name].append(torch.zeros(count).index_fill(0, torch.from_numpy(getattr(units, name)), 1.0))
    encoder = TorchEncoder(checkpoint.spec, checkpoint.tensors).eval()
    return encoder(*batch[:3], head_masks=masks["heads"], neuron_masks=masks["neurons"])["logits"]


KEPT = [
    Units(np.array([1, 3]), np.arange(5, 37)),
    Units(np.array([], int), np.array([0, 23])),
    Units(np.array([0, 1]), np.array([], int)),
    Units(np.array([], int), np.array([], int)),
]


@pytest.mark.parametrize(
    "by_distance", [{}, {"max_relative_distance": 5}, {"max_relative_distance": 2, "distances_per_row": (2, 1, 1, 1)}]
)
def test_removal_equals_masks(by_distance: dict[str, Any]) -> None:
    checkpoint = make_checkpoint(**by_distance)
    [batch] = make_batches(checkpoint, 1)
    spec, tensors = remove_units(checkpoint.spec, checkpoint.tensors, KEPT)
    assert {n: t.shape for n, t in tensors.items()} == {n: shape for n, (_, shape) in weight_tensors(spec).items()}
    assert [(layer.num_heads, layer.intermediate_size) for layer in spec.layers] == [(2, 32), (0, 2), (2, 0), (0, 0)]
    found = TorchEncoder(spec, tensors).eval()(*batch[:3])["logits"]
    assert torch.allclose(found, masked_outputs(checkpoint, KEPT, batch), rtol=1e-4, atol=1e-5)


def test_tuning_finds_what_can_be_found() -> None:
    """Units that double others are removed: the rest, tuned, can and must give the same outputs as before."""
    checkpoint = make_checkpoint(((4, 6, 40), (4, 6, 40)))
    tensors = dict(checkpoint.tensors)
    for i in range(2):
        qkv, bias = (tensors[f"layer.{i}.attention.qkv.{part}"].copy() for part in ("weight", "bias"))
        for part in range(3):
            qkv[:, part * 24 + 12 : part * 24 + 24] = qkv[:, part * 24 : part * 24 + 12]
            bias[part * 24 + 12 : part * 24 + 24] = bias[part * 24 : part * 24 + 12]
        tensors[f"layer.{i}.attention.qkv.weight"], tensors[f"layer.{i}.attention.qkv.bias"] = qkv, bias
        for name in ("weight", "bias"):
            half = tensors[f"layer.{i}.ffn.up.{name}"][..., :20]
            tensors[f"layer.{i}.ffn.up.{name}"] = np.concatenate([half, half], axis=-1)
    batches = make_batches(checkpoint, 20)
    kept = [Units(np.array([0, 1]), np.arange(20))] * 2
    small, cut = remove_units(checkpoint.spec, tensors, kept)
    tuned = refit(checkpoint.spec, tensors, small, cut, [batch[:3] for batch in batches])
    outputs = [
        TorchEncoder(*model).eval()(*batches[0][:3])["logits"].detach().numpy()
        for model in ((checkpoint.spec, tensors), (small, cut), (small, tuned))
    ]
    errors = [np.abs(output - outputs[0]).max() / np.abs(outputs[0]).max() for output in outputs[1:]]
    assert errors[1] < 0.1 * errors[0]


@pytest.mark.parametrize("share", [0.3, 0.5, 0.8])
def test_budget_is_kept_and_widths_are_multiples(share: float) -> None:
    checkpoint = make_checkpoint()
    before = {name: tensor.copy() for name, tensor in checkpoint.tensors.items()}
    costs = Flops.of(checkpoint.spec, length=10)
    budget = share * costs.predict(checkpoint.spec)
    importance = measure_importance(checkpoint, make_batches(checkpoint), loss_of)
    small = prune(checkpoint, importance, budget, costs, neuron_step=8)
    assert 0.8 * budget < costs.predict(small.spec) <= budget
    assert all(layer.intermediate_size % 8 == 0 for layer in small.spec.layers)
    assert {n: t.shape for n, t in small.tensors.items()} == {n: s for n, (_, s) in weight_tensors(small.spec).items()}
    assert all(np.array_equal(before[name], tensor) for name, tensor in checkpoint.tensors.items())
    importance = measure_importance(checkpoint, make_batches(checkpoint), loss_of)
    again = prune(checkpoint, importance, budget, costs, neuron_step=8)
    assert again.spec == small.spec
    assert all(again.tensors[name].tobytes() == tensor.tobytes() for name, tensor in small.tensors.items())


def test_pruning_keeps_more_than_chance() -> None:
    """Half of the units do nothing: these go, and the model answers as before."""
    checkpoint = make_checkpoint(((4, 6, 32), (4, 6, 32)))
    for i in range(2):
        checkpoint.tensors[f"layer.{i}.attention.output.weight"][6:18] = 0
        checkpoint.tensors[f"layer.{i}.ffn.down.weight"][::2] = 0
    costs = Flops.of(checkpoint.spec)
    batches = make_batches(checkpoint)
    importance = measure_importance(checkpoint, batches, loss_of)
    small = prune(checkpoint, importance, 0.5 * costs.predict(checkpoint.spec), costs, neuron_step=16)
    assert {(layer.num_heads, layer.intermediate_size) for layer in small.spec.layers} == {(2, 16)}
    whole, pruned = (TorchEncoder(c.spec, c.tensors).eval()(*batches[0][:3])["logits"] for c in (checkpoint, small))
    assert torch.allclose(whole, pruned, rtol=1e-4, atol=1e-4)


def test_nothing_to_do_and_nothing_to_be_done() -> None:
    checkpoint = make_checkpoint()
    costs = Flops.of(checkpoint.spec)
    total = costs.predict(checkpoint.spec)
    importance = measure_importance(checkpoint, make_batches(checkpoint), loss_of)
    assert prune(checkpoint, importance, total, costs) is checkpoint
    emptied = prune(checkpoint, importance, -1.0, costs)
    assert {(layer.num_heads, layer.intermediate_size) for layer in emptied.spec.layers} == {(0, 0)}
    with pytest.raises(InvalidInputError, match="no batches"):
        measure_importance(checkpoint, [], loss_of)


def test_layers_that_share_weights_are_not_taken_apart() -> None:
    checkpoint = make_checkpoint(repeats=2)
    importance = measure_importance(checkpoint, make_batches(checkpoint, 1), loss_of)
    with pytest.raises(UnsupportedModelError, match="layers share their weights"):
        prune(checkpoint, importance, 1e9, Flops.of(checkpoint.spec))
    once = checkpoint.spec.replace(layers=tuple(replace(layer, repeats=1) for layer in checkpoint.spec.layers))
    costs = Flops.of(once)
    assert costs.predict(checkpoint.spec) == 2 * costs.predict(once)


def test_taking_layers() -> None:
    checkpoint = make_checkpoint()
    taken = take_layers(checkpoint, [0, 2])
    assert taken.spec.layers == (checkpoint.spec.layers[0], checkpoint.spec.layers[2])
    assert {n: t.shape for n, t in taken.tensors.items()} == {n: s for n, (_, s) in weight_tensors(taken.spec).items()}
    name = "attention.qkv.weight"
    assert np.array_equal(taken.tensors[f"layer.1.{name}"], checkpoint.tensors[f"layer.2.{name}"])
    assert taken.config["num_hidden_layers"] == 2
    with pytest.raises(InvalidInputError, match="no layer 4"):
        take_layers(checkpoint, [0, 4])


# Several budgets, fewer layers, candidates


def test_two_budgets_at_once() -> None:
    checkpoint = make_checkpoint()
    importance = measure_importance(checkpoint, make_batches(checkpoint), loss_of)
    limits = [(costs, 0.7 * costs.predict(checkpoint.spec)) for costs in (Flops.of(checkpoint.spec, 10), ONE_A_UNIT)]
    small = prune_within(checkpoint, importance, limits, neuron_step=8)
    assert all(costs.predict(small.spec) <= limit for costs, limit in limits)
    assert {n: t.shape for n, t in small.tensors.items()} == {n: s for n, (_, s) in weight_tensors(small.spec).items()}


class _OneAUnit:
    """A cost of one for each head and each neuron."""

    def layer(self, num_heads: int, intermediate_size: int) -> float:
        return float(num_heads + intermediate_size)

    def predict(self, spec: EncoderSpec) -> float:
        return sum(self.layer(layer.num_heads, layer.intermediate_size) for layer in spec.layers)


ONE_A_UNIT = _OneAUnit()


def test_the_layer_that_does_nothing_goes_first() -> None:
    checkpoint = make_checkpoint(((4, 6, 32),) * 3)
    for name in ("attention.output", "ffn.down"):
        checkpoint.tensors[f"layer.1.{name}.weight"][:] = 0
    importance = measure_importance(checkpoint, make_batches(checkpoint), loss_of)
    assert choose_layers(importance.gradients, 2) == [0, 2]
    assert choose_layers(importance.gradients, 3) == [0, 1, 2]


def test_tuning_makes_up_for_a_layer_that_is_gone() -> None:
    checkpoint = make_checkpoint(((4, 6, 32),) * 3)
    batches = make_batches(checkpoint, 20)
    inputs = [batch[:3] for batch in batches]
    left = take_layers(checkpoint, [0, 2])
    tuned = refit(checkpoint.spec, checkpoint.tensors, left.spec, left.tensors, inputs, [0, 2])
    outputs = [
        TorchEncoder(*model).eval()(*batches[0][:3])["logits"].detach().numpy()
        for model in ((checkpoint.spec, checkpoint.tensors), (left.spec, left.tensors), (left.spec, tuned))
    ]
    errors = [np.linalg.norm(output - outputs[0]) for output in outputs[1:]]
    assert errors[1] < 0.8 * errors[0]


def test_candidates_and_the_choice_among_them() -> None:
    checkpoint = make_checkpoint(((4, 6, 32),) * 4)
    importance = measure_importance(checkpoint, make_batches(checkpoint), loss_of)
    trimmed = replace(checkpoint, spec=checkpoint.spec.replace(vocab_size=50))
    alone = list_candidates(checkpoint, None, lambda _: importance)
    both = list_candidates(checkpoint, trimmed, lambda _: importance)
    assert [c.num_layers for c in alone] == [4, 3, 2] and all(c.parent is checkpoint for c in alone)
    assert [(c.num_layers, c.parent is trimmed) for c in both] == [(4, False), (4, True), (3, True), (2, True)]

    costs = Flops.of(checkpoint.spec)
    limits = [(costs, 0.6 * costs.predict(checkpoint.spec))]
    for wanted in (4, 3, 2):
        best, pruned, record = choose(alone, lambda _: limits, lambda c, n=wanted: -abs(c.spec.num_layers - n))
        records = record["candidates"]
        assert best.num_layers == pruned.spec.num_layers == wanted
        assert [record["score"] for record in records] == [-abs(n - wanted) for n in (4, 3, 2)]
        assert all(record["predicted"]["Flops"] <= limits[0][1] for record in records)
    assert choose(alone, lambda _: limits, lambda _: 0.0)[0] is alone[0]
    costs = Bytes(checkpoint.spec, int8=True)
    for budget in (1.0, costs.predict(checkpoint.spec.replace(layers=())) + 1.0):
        limits = [(costs, budget)]  # nothing fits: the closest is taken, whatever its score
        best, pruned, _ = choose(alone, lambda _, limits=limits: limits, lambda c: c.spec.num_layers)
        assert best is alone[-1] and spent_share(pruned.spec, limits) > 1


def test_pruning_goes_on_until_the_score_falls() -> None:
    checkpoint = make_checkpoint(((4, 6, 32),) * 2)
    importance = measure_importance(checkpoint, make_batches(checkpoint), loss_of)
    costs = Flops.of(checkpoint.spec)
    total, shares = costs.predict(checkpoint.spec), (0.9, 0.7, 0.5, 0.3)

    def share_of(pruned: Checkpoint) -> float:
        return costs.predict(pruned.spec) / total

    for lowest, kept, tried in ((0.0, 0.3, 4), (0.5, 0.7, 3), (2.0, 1.0, 1)):
        candidate = Candidate(checkpoint, importance, 2)
        small, record = prune_until(candidate, costs, shares, share_of, lowest)
        assert kept - 0.2 < share_of(small) <= kept and len(record["candidates"]) == tried
    assert small is checkpoint


@pytest.mark.parametrize("task", ["text-classification", "fill-mask"])
@pytest.mark.parametrize("int8", [False, True])
def test_bytes_are_those_of_the_tensors(task: str, int8: bool) -> None:
    pytest.importorskip("onnx")
    checkpoint = make_checkpoint(task=task)
    spec, tensors = checkpoint.spec, dict(checkpoint.tensors)
    if int8:
        smooth = {linear_name(i, n): np.ones(24, np.float32) for i in range(4) for n in ("qkv", "ffn_up")}
        _, tensors, _ = quantize(spec, tensors, [random_batch(spec, [5, 9])], smooth=smooth)
    expected = sum(tensor.nbytes for tensor in tensors.values())
    assert Bytes(spec, int8, 1000).predict(spec) == expected + 1000
