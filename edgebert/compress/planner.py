"""The planner: tries several ways to bring a model within its budgets, without retraining, and picks the best.

A short form of ZipLM's search (arXiv 2302.04089, section 3.2): instead of many random mixes of widths it tries a
handful of models, each the best that a mask search finds under the measured costs.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from edgebert.artifact.names import weight_tensors
from edgebert.artifact.spec import LINEARS, EncoderSpec, LayerSpec
from edgebert.checkpoints.loading import Checkpoint
from edgebert.compress.measure import describe_shape
from edgebert.compress.prune import Costs, Importance, prune_within

LAYER_SHARES = (0.75, 0.5)  # of the layers, in candidates with fewer of them

Limits = list[tuple[Costs, float]]


@dataclass(frozen=True)
class Bytes:
    """Bytes of a model's file, as `prune.Costs`: those of its tensors, and `overhead` for the rest.

    Attributes:
        spec: f32; of the model or of one pruned to it.
        int8: whether the file will be int8.
        overhead: bytes of tokenizer, graph and metadata.
    """

    spec: EncoderSpec
    int8: bool
    overhead: int = 0

    def layer(self, num_heads: int, intermediate_size: int) -> float:
        """Of one layer of that shape."""
        quantized: dict[str, Any] = dict.fromkeys(LINEARS, "s8") | {"smoothed": ("qkv", "ffn_up")} if self.int8 else {}
        layer = LayerSpec(num_heads, self.spec.layers[0].head_dim, intermediate_size, **quantized)
        return self._count(self.spec, (layer,)) - self._count(self.spec, ())

    def predict(self, spec: EncoderSpec) -> float:
        """Of a whole model."""
        layers = sum(self.layer(layer.num_heads, layer.intermediate_size) for layer in spec.layers)
        return self.overhead + self._count(spec, ()) + layers

    def _count(self, spec: EncoderSpec, layers: tuple[LayerSpec, ...]) -> float:
        made = spec.replace(layers=layers, embedding_dtype="s8" if self.int8 else "f32")
        return float(
            sum(math.prod(shape) * (1 if dtype == "s8" else 4) for dtype, shape in weight_tensors(made).values())
        )


@dataclass(frozen=True)
class Candidate:
    """A way to a smaller model: what to prune and how many layers to keep; masks choose the heads and neurons."""

    parent: Checkpoint
    importance: Importance
    num_layers: int

    @property
    def name(self) -> str:
        """In words."""
        return f"{self.num_layers} layers, {self.parent.spec.vocab_size} pieces"

    def prune(self, limits: Limits) -> Checkpoint:
        """The model within the limits; see `prune.prune_within`."""
        return prune_within(self.parent, self.importance, limits, num_layers=self.num_layers)


def list_candidates(
    whole: Checkpoint, trimmed: Checkpoint | None, importance_of: Callable[[Checkpoint], Importance]
) -> list[Candidate]:
    """All layers; the same with the vocabulary trimmed; and fewer layers, trimmed where that may be.

    Args:
        whole: the model that has to become smaller.
        trimmed: the same with fewer pieces, where these count; else None.
        importance_of: what task data say about a checkpoint's units; called once for each of the two.
    """
    count = whole.spec.num_layers
    parents = [(parent, importance_of(parent)) for parent in (whole, trimmed) if parent is not None]
    shorter = sorted({math.ceil(share * count) for share in LAYER_SHARES} - {count}, reverse=True)
    return [Candidate(*parent, count) for parent in parents] + [Candidate(*parents[-1], n) for n in shorter]


def choose(
    candidates: Sequence[Candidate],
    limits_of: Callable[[Checkpoint], Limits],
    score_of: Callable[[Checkpoint], float],
) -> tuple[Candidate, Checkpoint, dict[str, Any]]:
    """Prune every candidate to its limits, and take the one with the best score, of equals the first.

    If none fits, take the one that comes closest, however bad its score.

    Args:
        candidates: in the order in which they are tried.
        limits_of: what a parent's offspring has to keep to.
        score_of: the metric of a pruned checkpoint.

    Returns:
        (the candidate, what became of it, a record: "chosen", its name; "spent_share", of its limits; "candidates", of
        each its name, score, shape and predicted costs).
    """
    tried: list[tuple[tuple[bool, float], float, Candidate, Checkpoint]] = []
    records: list[dict[str, Any]] = []
    for candidate in candidates:
        limits = limits_of(candidate.parent)
        pruned = candidate.prune(limits)
        score, share = score_of(pruned), spent_share(pruned.spec, limits)
        tried.append(((share <= 1, score if share <= 1 else -share), share, candidate, pruned))
        records.append(_describe(candidate.name, score, pruned, limits))
    _, share, best, pruned = max(tried, key=lambda found: found[0])
    return best, pruned, {"chosen": best.name, "spent_share": share, "candidates": records}


def spent_share(spec: EncoderSpec, limits: Limits) -> float:
    """The largest share of a limit that the model is predicted to cost: above 1 it does not fit."""
    return max((costs.predict(spec) / limit for costs, limit in limits), default=0.0)


def prune_until(
    candidate: Candidate, costs: Costs, shares: Sequence[float], score_of: Callable[[Checkpoint], float], lowest: float
) -> tuple[Checkpoint, dict[str, Any]]:
    """Prune to one share of the costs after another, as long as the score is not below the lowest.

    Args:
        candidate: what to prune.
        costs: what the shares are of.
        shares: descending.
        score_of: the metric of a pruned checkpoint.
        lowest: score that may be reached.

    Returns:
        (the smallest one whose score is high enough, maybe the parent itself; a record as that of `choose`).
    """
    best, chosen = candidate.parent, "100 %"
    records: list[dict[str, Any]] = []
    for share in shares:
        limits: Limits = [(costs, share * costs.predict(candidate.parent.spec))]
        pruned, name = candidate.prune(limits), f"{100 * share:.0f} %"
        score = score_of(pruned)
        records.append(_describe(name, score, pruned, limits))
        if score < lowest:
            break
        best, chosen = pruned, name
    return best, {"chosen": chosen, "candidates": records}


def _describe(name: str, score: float, pruned: Checkpoint, limits: Limits) -> dict[str, Any]:
    predicted = {type(costs).__name__: costs.predict(pruned.spec) for costs, _ in limits}
    return {"name": name, "score": score, **describe_shape(pruned), "predicted": predicted}
