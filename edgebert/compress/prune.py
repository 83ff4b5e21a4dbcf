"""Structured pruning in minutes, without retraining: heads and FFN neurons leave, the matrices get smaller.

After Kwon et al., "A Fast Post-Training Pruning Framework for Transformers" (arXiv 2204.09656). A mask over heads and
neurons is chosen by the Fisher information of the loss, then what is left is tuned to keep the output of every
sub-block as it was. Two things differ from the paper: the mask's counts are chosen for all layers at once under any
cost that adds up over layers (floating-point operations, or the seconds of a latency table, as in ZipLM, arXiv
2302.04089), and the tuning solves for the output weights themselves instead of one factor a unit.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from tqdm import tqdm

from edgebert.artifact.names import linear_name, position_tensors, weight_tensors
from edgebert.artifact.spec import EncoderSpec
from edgebert.checkpoints.loading import Checkpoint
from edgebert.compress.torch_encoder import TorchEncoder
from edgebert.errors import InvalidInputError, UnsupportedModelError
from edgebert.quant import F32

F64 = NDArray[np.float64]
I64 = NDArray[np.int64]
Loss = Callable[[TorchEncoder, Any], Tensor]  # of a model and a batch; a scalar, the mean or sum over examples

NEURON_STEP = 64  # widths are multiples of the widest panel of the kernels
CORRELATION = 0.25  # factor on what pairs of units have in common: few examples make it look like more
_COST_BINS = 4000
_DAMPING = 0.01  # of the mean of the Gram matrix's diagonal: keeps weights that the texts say little about


class Costs(Protocol):
    """What a model costs: a constant and one term a layer."""

    def layer(self, num_heads: int, intermediate_size: int) -> float:
        """Cost of one layer of that shape."""

    def predict(self, spec: EncoderSpec) -> float:
        """Cost of a whole model."""


@dataclass(frozen=True)
class Flops:
    """Floating-point operations a token of the encoder's layers, in sequences of `length` tokens.

    Two for each multiplication of the four linears and of attention's two products; the rest is left out.
    """

    hidden_size: int
    head_dim: int
    length: int = 128
    is_gated: bool = False

    @classmethod
    def of(cls, spec: EncoderSpec, length: int = 128) -> Flops:
        """Those of a model's layers."""
        return cls(spec.hidden_size, spec.layers[0].head_dim, length, spec.is_gated)

    def layer(self, num_heads: int, intermediate_size: int) -> float:
        """Of one layer of that shape."""
        attention = num_heads * self.head_dim * (4 * self.hidden_size + 2 * self.length)
        return 2.0 * (attention + (3 if self.is_gated else 2) * self.hidden_size * intermediate_size)

    def predict(self, spec: EncoderSpec) -> float:
        """Of all layers."""
        return sum(layer.repeats * self.layer(layer.num_heads, layer.intermediate_size) for layer in spec.layers)


@dataclass(frozen=True)
class Units:
    """Something for the heads and for the neurons of one layer."""

    heads: Any
    neurons: Any


Inputs = list[tuple[Tensor, Tensor, Tensor | None]]  # input_ids, attention_mask, token_type_ids of a batch


@dataclass(frozen=True)
class Importance:
    """What task data say about a checkpoint's units; from `measure_importance`.

    Attributes:
        gradients: of every layer f32 [examples, num_heads] and [examples, intermediate_size]: of each example's loss
            by a mask over heads and neurons, where the mask is 1.
        inputs: of all batches.
    """

    gradients: list[Units]
    inputs: Inputs


def prune(
    checkpoint: Checkpoint, importance: Importance, budget: float, costs: Costs, *, neuron_step: int = NEURON_STEP
) -> Checkpoint:
    """Remove the least important heads and neurons, until the model costs no more than the budget.

    If nothing fits the budget, the cheapest model is returned.

    Args:
        checkpoint: f32; it is not changed.
        importance: of this checkpoint's units.
        budget: in the unit of `costs`.
        costs: what a layer costs, for instance `Flops.of(spec)` or a LatencyTable.
        neuron_step: intermediate sizes are multiples of this, or stay as they were.

    Returns:
        A checkpoint with smaller layers. The same arguments give the same bits on one machine with one thread count.
    """
    return prune_within(checkpoint, importance, [(costs, budget)], neuron_step=neuron_step)


def prune_within(
    checkpoint: Checkpoint,
    importance: Importance,
    limits: Iterable[tuple[Costs, float]],
    *,
    num_layers: int | None = None,
    neuron_step: int = NEURON_STEP,
) -> Checkpoint:
    """As `prune`, under several budgets, after removing the least important layers.

    Args:
        checkpoint, importance, neuron_step: as of `prune`.
        limits: (costs, budget) each.
        num_layers: layers that stay; None for all of them.
    """
    layers = choose_layers(importance.gradients, num_layers or checkpoint.spec.num_layers)
    gradients = [importance.gradients[i] for i in layers]
    small = take_layers(checkpoint, layers)
    for costs, budget in limits:
        if costs.predict(small.spec) > budget:
            kept = choose_units(small.spec, gradients, budget, costs, neuron_step)
            spec, tensors = remove_units(small.spec, small.tensors, kept)
            small = replace(small, spec=spec, tensors=tensors)
            gradients = [
                Units(layer.heads[:, units.heads], layer.neurons[:, units.neurons])
                for layer, units in zip(gradients, kept, strict=True)
            ]
    if small.spec == checkpoint.spec:
        return checkpoint
    tensors = refit(checkpoint.spec, checkpoint.tensors, small.spec, small.tensors, importance.inputs, layers)
    return replace(small, tensors=tensors)


# Importance


def measure_importance(checkpoint: Checkpoint, batches: Iterable[Any], loss_of: Loss) -> Importance:
    """Run the batches forwards and backwards once.

    Args:
        checkpoint: f32.
        batches: of task data, a few thousand examples at most; what `loss_of` takes.
        loss_of: called as loss_of(model, batch); must run the model once, and leave the masks to it.

    Raises:
        InvalidInputError: no batches.
    """
    model = _Masked(checkpoint.spec, checkpoint.tensors)
    layers = checkpoint.spec.layers
    parts: list[list[Tensor]] = [[] for _ in range(2 * len(layers))]
    for batch in batches:
        loss = loss_of(model, batch)
        for part, gradient in zip(parts, torch.autograd.grad(loss, model.masks, materialize_grads=True), strict=True):
            part.append(gradient.flatten(1).cpu())
    if not model.inputs:
        raise InvalidInputError("no batches to prune by: give some task data")
    joined = [torch.cat(part).numpy() for part in parts]
    gradients = [Units(*pair) for pair in zip(joined[: len(layers)], joined[len(layers) :], strict=True)]
    return Importance(gradients, model.inputs)


class _Masked(TorchEncoder):
    """A model with a mask of ones for each example, so that one pass gives every example's gradient; keeps inputs."""

    def __init__(self, spec: EncoderSpec, tensors: dict[str, F32]) -> None:
        super().__init__(spec, tensors)
        self.eval().requires_grad_(False)
        self.masks: list[Tensor] = []  # of the last pass: [B, num_heads] of all layers, [B, 1, intermediate_size]
        self.inputs: Inputs = []

    def forward(
        self, input_ids: Tensor, attention_mask: Tensor, token_type_ids: Tensor | None = None, **options: Any
    ) -> dict[str, Any]:
        """As `TorchEncoder.forward`, with masks of ones."""
        self.to(input_ids.device)
        self.inputs.append((input_ids, attention_mask, token_type_ids))

        def ones(*shape: int) -> Tensor:
            return torch.ones(len(input_ids), *shape, device=input_ids.device, requires_grad=True)

        heads = [ones(layer.num_heads) for layer in self.spec.layers]
        neurons = [ones(1, layer.intermediate_size) for layer in self.spec.layers]
        self.masks = heads + neurons
        return super().forward(
            input_ids, attention_mask, token_type_ids, head_masks=heads, neuron_masks=neurons, **options
        )


def removal_order(gradients: F32) -> tuple[I64, F64]:
    """Units in the order of removal, and how much the loss has grown after each removal.

    The growth after removing the units P is half the sum of F[p, q] over P, where F is the mean over examples of the
    product of two units' gradients: the loss to second order, its Hessian the Fisher information of one sub-block
    (arXiv 2204.09656, equations 6 and 9). Between different units F is shrunk by CORRELATION: with all of it, sets are
    found whose gradients cancel on these examples alone; with none, units that stand in for each other all seem of no
    use. The next unit is the one that adds least.

    Args:
        gradients: f32 [examples, units].

    Returns:
        (int64 [units], f64 [units + 1], the first 0).
    """
    fisher = (gradients.T @ gradients).astype(np.float64) / len(gradients)
    added = fisher.diagonal().copy()  # growth, were this unit removed next
    order, growth = [], [0.0]
    for _ in range(len(fisher)):
        unit = int(added.argmin())
        order.append(unit)
        growth.append(growth[-1] + float(added[unit]))
        added += 2.0 * CORRELATION * fisher[unit]
        added[unit] = np.inf  # and stays so
    return np.array(order, np.int64), np.array(growth) / 2


# Choice


def choose_layers(gradients: Sequence[Units], count: int) -> list[int]:
    """Indices of the `count` most important layers, ascending: removing their units would raise the loss most."""
    growth = [removal_order(layer.heads)[1][-1] + removal_order(layer.neurons)[1][-1] for layer in gradients]
    return sorted(np.argsort(-np.array(growth), kind="stable")[:count].tolist())


def choose_units(
    spec: EncoderSpec, gradients: Sequence[Units], budget: float, costs: Costs, neuron_step: int = NEURON_STEP
) -> list[Units]:
    """Indices of the heads and neurons to keep in each layer, so that the loss grows least within the budget.

    If nothing fits the budget, each layer keeps the units that cost least.
    """
    orders = [Units(removal_order(layer.heads), removal_order(layer.neurons)) for layer in gradients]
    options = []
    for layer, order in zip(spec.layers, orders, strict=True):
        sizes = [
            (heads, neurons)
            for heads in range(layer.num_heads + 1)
            for neurons in [*range(0, layer.intermediate_size, neuron_step), layer.intermediate_size]
        ]
        growth = [order.heads[1][layer.num_heads - h] + order.neurons[1][layer.intermediate_size - n] for h, n in sizes]
        options.append((sizes, np.array([costs.layer(*size) for size in sizes]), np.array(growth)))
    rest = budget - costs.predict(spec.replace(layers=()))
    chosen = _choose_options([option[1:] for option in options], rest)
    kept = []
    for order, (sizes, *_), i in zip(orders, options, chosen, strict=True):
        counts = zip((order.heads[0], order.neurons[0]), sizes[i], strict=True)
        kept.append(Units(*(np.sort(units[len(units) - count :]) for units, count in counts)))  # the last to go
    return kept


def _choose_options(options: Sequence[tuple[F64, F64]], budget: float) -> list[int]:
    """One option for each of several places: least sum of penalties with the sum of costs within the budget.

    Args:
        options: of each place (costs, penalties); dynamic programming over costs rounded up to budget / _COST_BINS.
        budget: of all places together; where nothing fits it, every place gets its cheapest option.
    """
    cheapest = [int(costs.argmin()) for costs, _ in options]
    if budget <= 0:
        return cheapest
    best = np.zeros(_COST_BINS + 1)  # least penalty of the places so far at a cost of at most so many bins
    picks = []
    for costs, penalties in options:
        bins = np.ceil(costs / budget * _COST_BINS - 1e-9).astype(np.int64)
        new, pick = np.full_like(best, np.inf), np.zeros(len(best), np.int64)
        for i in np.argsort(penalties, kind="stable"):
            if 0 <= bins[i] <= _COST_BINS:
                total = np.full_like(best, np.inf)
                total[bins[i] :] = best[: len(best) - bins[i]] + penalties[i]
                pick[total < new] = i
                new = np.minimum(new, total)
        best = new
        picks.append(pick)
    if not np.isfinite(best[-1]):
        return cheapest
    room, chosen = _COST_BINS, []
    for (costs, _), pick in zip(reversed(options), reversed(picks), strict=True):
        chosen.append(int(pick[room]))
        room -= int(np.ceil(costs[pick[room]] / budget * _COST_BINS - 1e-9))
    return chosen[::-1]


# Removal


def remove_units(
    spec: EncoderSpec, tensors: dict[str, F32], kept: Sequence[Units]
) -> tuple[EncoderSpec, dict[str, F32]]:
    """The model with only the kept heads and neurons (indices of each layer, ascending): smaller matrices, no masks."""
    new = dict(tensors)
    layers = []
    for i, (layer, units) in enumerate(zip(spec.layers, kept, strict=True)):
        inner = (units.heads[:, None] * layer.head_dim + np.arange(layer.head_dim)).ravel()
        qkv = np.concatenate([part * layer.attention_size + inner for part in range(3)])
        up = np.concatenate([part * layer.intermediate_size + units.neurons for part in range(1 + spec.is_gated)])
        for before, after, outputs, inputs in (
            ("qkv", "attention_output", qkv, inner),
            ("ffn_up", "ffn_down", up, units.neurons),
        ):
            first, second = linear_name(i, before), linear_name(i, after)
            if not len(inputs):
                for name in (f"{first}.weight", f"{first}.bias", f"{second}.weight"):
                    new.pop(name, None)
                continue
            new[f"{first}.weight"] = np.ascontiguousarray(tensors[f"{first}.weight"][:, outputs])
            new[f"{first}.bias"] = tensors[f"{first}.bias"][outputs]
            new[f"{second}.weight"] = tensors[f"{second}.weight"][inputs]
        for name in position_tensors(spec, i):
            bias = new.pop(name)
            if len(units.heads):
                new[name] = bias[units.heads]
        layers.append(replace(layer, num_heads=len(units.heads), intermediate_size=len(units.neurons)))
    return spec.replace(layers=tuple(layers)), new


def take_layers(checkpoint: Checkpoint, layers: Sequence[int]) -> Checkpoint:
    """The checkpoint with only these layers, in this order.

    Raises:
        InvalidInputError: a layer that is not there.
        UnsupportedModelError: layers that share their weights.
    """
    if any(layer.repeats > 1 for layer in checkpoint.spec.layers):
        raise UnsupportedModelError(
            "the model's layers share their weights: taking some of them, or their units, leaves a file as large as it "
            "was or tunes one layer against another; quantize it, or distil it into a model of another family"
        )
    count = checkpoint.spec.num_layers
    if wrong := [i for i in layers if not 0 <= i < count]:
        raise InvalidInputError(f"there is no layer {wrong[0]}: the model has {count}, counted from 0")
    tensors = {name: tensor for name, tensor in checkpoint.tensors.items() if not name.startswith("layer.")}
    for new, old in enumerate(layers):
        prefix = f"layer.{old}."
        tensors |= {
            f"layer.{new}.{name.removeprefix(prefix)}": tensor
            for name, tensor in checkpoint.tensors.items()
            if name.startswith(prefix)
        }
    spec = checkpoint.spec.replace(layers=tuple(checkpoint.spec.layers[i] for i in layers))
    # lists with an entry a layer, as newer configs have them
    per_layer = {
        k: [v[i] for i in layers] for k, v in checkpoint.config.items() if isinstance(v, list) and len(v) == count
    }
    config = {**checkpoint.config, **per_layer, "num_hidden_layers": len(layers)}
    return replace(checkpoint, spec=spec, tensors=tensors, config=config)


# Tuning


@torch.no_grad()
def refit(
    spec: EncoderSpec,
    tensors: dict[str, F32],
    small: EncoderSpec,
    small_tensors: dict[str, F32],
    inputs: Inputs,
    layers: Sequence[int] | None = None,
) -> dict[str, F32]:
    """Tune attention_output and ffn_down of a pruned model, layer after layer, on the inputs of some batches.

    Each is fitted by least squares: from the units that are left, its output plus the pruned model's residual should be
    what the whole model's sub-block plus its residual was. So it also makes up for errors of the layers before it, and
    for layers that were removed.

    Args:
        spec, tensors: the whole model.
        small, small_tensors: the pruned one.
        inputs: of all batches.
        layers: which of the whole model's layers are left, ascending; None for all.

    Returns:
        The pruned model's tensors, tuned.
    """
    device = inputs[0][0].device
    whole, pruned = (TorchEncoder(*model).eval().to(device) for model in ((spec, tensors), (small, small_tensors)))
    masks = [mask.bool() for _, mask, _ in inputs]
    targets = [whole.embed(ids, types) for ids, _, types in inputs]  # hidden states of the whole model, batch by batch
    states = list(targets)  # and of the pruned one
    places = {layer: place for place, layer in enumerate(range(spec.num_layers) if layers is None else layers)}
    for i in tqdm(range(spec.num_layers), desc="tuning", unit="layer", mininterval=1.0):
        for name in ("attention_output", "ffn_down"):
            if i not in places:
                targets = [
                    whole.add(i, name, _inner(whole, i, name, x, mask), x)
                    for x, mask in zip(targets, masks, strict=True)
                ]
                continue
            place, inners = places[i], []
            fit = _LeastSquares(pruned, linear_name(place, name))
            for j, mask in enumerate(masks):
                inner = _inner(whole, i, name, targets[j], mask)
                wanted = targets[j] + whole.output(i, name, inner) - states[j]
                targets[j] = whole.add(i, name, inner, targets[j])
                inners.append(_inner(pruned, place, name, states[j], mask))
                fit.add(inners[j][mask], wanted[mask])
            fit.solve()
            states = [pruned.add(place, name, inner, x) for inner, x in zip(inners, states, strict=True)]
    return pruned.tensors()


def _inner(model: TorchEncoder, i: int, name: str, x: Tensor, mask: Tensor) -> Tensor:
    """The input of layer i's attention_output or ffn_down."""
    if name == "ffn_down":
        return model.activate(i, x)
    return model.attend(i, x, None if bool(mask.all()) else mask[:, None, None, :])[0]


class _LeastSquares:
    """Fits weight and bias of a linear to given inputs and the outputs wanted for them."""

    def __init__(self, model: TorchEncoder, prefix: str) -> None:
        self._bias = model.tensor(f"{prefix}.bias")
        has_inputs = f"{prefix}.weight" in weight_tensors(model.spec)
        self._weight = model.tensor(f"{prefix}.weight") if has_inputs else self._bias.new_zeros(0, len(self._bias))
        inputs, outputs = self._weight.shape
        self._xx, self._xy = np.zeros((inputs, inputs)), np.zeros((inputs, outputs))
        self._x, self._y, self._count = np.zeros(inputs), np.zeros(outputs), 0

    def add(self, x: Tensor, y: Tensor) -> None:
        """Inputs [rows, K] and outputs [rows, N]."""
        self._xx += (x.T @ x).cpu().numpy()
        self._xy += (x.T @ y).cpu().numpy()
        self._x += x.sum(0).cpu().numpy()
        self._y += y.sum(0).cpu().numpy()
        self._count += len(x)

    def solve(self) -> None:
        """Set weight and bias: min mean |x W + b - y|^2 + damping |W - weight|^2."""
        x, y = self._x / self._count, self._y / self._count
        xx = self._xx / self._count - np.outer(x, x)
        xy = self._xy / self._count - np.outer(x, y)
        weight = self._weight.cpu().numpy().astype(np.float64)
        if len(x):
            damped = xx + np.eye(len(x)) * max(_DAMPING * float(xx.diagonal().mean()), 1e-12)
            weight += np.linalg.solve(damped, xy - xx @ weight)
        self._weight.copy_(torch.from_numpy(weight))
        self._bias.copy_(torch.from_numpy(y - x @ weight))
