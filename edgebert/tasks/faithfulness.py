"""Whether an explanation is faithful: whether the score comes from the words that it names.

The words are masked one after the other, those that contribute most first: a deletion curve. Its falls at some depths
are comprehensiveness, and those with all words masked but the first ones sufficiency (DeYoung et al., arXiv 1911.03429,
section 4.2). Random orders say what these come to without an explanation.

This is the second half of `Model.explain`, no task that is called by name: it needs the contributions.
"""

from __future__ import annotations

import math
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from edgebert.tasks import explain
from edgebert.tasks.base import Outputs, Prepared
from edgebert.tokenizer import Tokenizer

DEPTHS = (0.05, 0.1, 0.2, 0.5)  # of the words, as in the paper
RANDOM_ORDERS = 5


@dataclass(frozen=True, kw_only=True)
class Options(explain.Options):
    """As of `explain`.

    Attributes:
        orders: for each input orders of its words, by number, in which they are masked.
    """

    orders: Sequence[Sequence[Sequence[int]]] = ()


def prepare(inputs: Sequence[Any], tokenizer: Tokenizer, options: Options) -> Prepared:
    """Rows of inputs, and for each order copies with its first word masked, its first two, and so on; equal ones once.

    Raises:
        InvalidInputError: as `explain.prepare`.
    """
    cases, is_truncated = explain.read_cases(inputs, tokenizer, options)
    for case, orders in zip(cases, options.orders, strict=True):
        case.masks = [*dict.fromkeys(mask for order in orders for mask in _find_prefixes(order))]
    rows = explain.make_copies(cases, tokenizer, options.spec)
    return Prepared(rows, explain.find_outputs(options.spec), is_truncated)


def decode(inputs: Sequence[Any], outputs: Outputs, tokenizer: Tokenizer, options: Options) -> list[list[list[float]]]:
    """Deletion curves: for each order of each input the score with none, with the first, the first two, … masked."""
    curves: list[list[list[float]]] = [[] for _ in inputs]
    for case in explain.finish_cases(outputs):
        _, score, masked = explain.score_masks(case, tokenizer, options)
        curves[case.number] = [
            [score, *(masked[mask] for mask in _find_prefixes(order))] for order in options.orders[case.number]
        ]
    return curves


def _find_prefixes(order: Sequence[int]) -> list[tuple[int, ...]]:
    """The masks of the first word, of the first two, and so on."""
    return [tuple(sorted(order[:k])) for k in range(1, len(order) + 1)]


def order_words(answer: Mapping[str, Any]) -> list[list[int]]:
    """Of an answer of `explain` the orders that `measure` takes: by contribution, the reverse, and random ones."""
    contributions = [word["contribution"] for word in answer["words"]]
    best_first = sorted(range(len(contributions)), key=lambda i: -contributions[i])
    generator = random.Random(0)
    shuffled = [generator.sample(best_first, len(best_first)) for _ in range(RANDOM_ORDERS)]
    return [best_first, best_first[::-1], *shuffled]


def measure(curves: Sequence[Sequence[float]]) -> dict[str, Any]:
    """How faithful an explanation is.

    Args:
        curves: of the orders of `order_words`.

    Returns:
        {"comprehensiveness", "sufficiency", "deletion", "random": the same three}: what the score loses with the best
        words masked (greater is better) and with all but them masked (less is better), means over DEPTHS; and what it
        loses on the whole deletion curve, the mean over all depths (greater is better).
    """
    best, worst, *others = curves
    found: dict[str, Any] = _summarize(best, worst)
    each = [_summarize(curve, curve) for curve in others]
    return found | {"random": {name: sum(one[name] for one in each) / len(each) for name in found}}


def _summarize(masks_best: Sequence[float], masks_worst: Sequence[float]) -> dict[str, float]:
    score, count = masks_best[0], len(masks_best) - 1
    depths = [math.ceil(count * depth) for depth in DEPTHS]
    return {
        "comprehensiveness": sum(score - masks_best[k] for k in depths) / len(depths),
        "sufficiency": sum(score - masks_worst[count - k] for k in depths) / len(depths),
        "deletion": sum(score - masked for masked in masks_best[1:]) / max(count, 1),
    }
