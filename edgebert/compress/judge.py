"""How much of a metric a smaller model lost, with what is certain about it: judged on rows that chose nothing.

Both models answer the same rows, so that only rows on which they differ count. Rows that share a text are one group:
they are not independent of each other.

- Metrics that are a share of right rows (accuracy, exact match, recall): the exact unconditional bound. A loss d is
  refuted if a model that loses d would look as good as this one in less than 1 - confidence of all samples, at whatever
  rate the two disagree, within an interval for that rate that costs a tenth of the risk (Berger and Boos 1994, P values
  maximized over a confidence set for the nuisance parameter, JASA 89).
- All others: the bootstrap over groups, the percentile interval expanded for small samples (Hesterberg 2015, What
  teachers should know about the bootstrap, arXiv 1411.5279), with one more group that lost as much as those that
  changed do: a sample without any change does not show that there is none.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import stats

F64 = NDArray[np.float64]

MIN_GROUPS = 20  # fewer say nothing
_RESAMPLES, _CHUNK = 4000, 250  # samples; of them at a time
_RATE_RISK = 0.1  # of the risk, for the interval of the rate of disagreement
_RATES = 9  # of that interval, tried


@dataclass(frozen=True)
class RowScores:
    """What each row adds to a metric.

    Attributes:
        values: f64 [n, 2]. Of a ratio (part, whole) each: the metric is the sum of the parts over that of the wholes.
            Of a correlation (found, expected) each: the metric is Spearman's.
        is_correlation: which of the two.
    """

    values: F64
    is_correlation: bool = False

    @property
    def is_exact(self) -> bool:
        """Whether each row is right or wrong, and counts once."""
        parts, wholes = self.values.T
        return not self.is_correlation and bool((wholes == 1).all() and np.isin(parts, (0, 1)).all())


@dataclass(frozen=True)
class Loss:
    """Points (hundredths) of the metric that were lost on the judging rows, and at most, with `confidence`, in truth.

    `num_groups` counts rows, those that share a text as one.
    """

    estimate: float
    upper: float
    confidence: float
    num_groups: int

    def to_dict(self) -> dict[str, float | None]:
        """For JSON: an `upper` of None says that there are too few rows for a bound."""
        return {**vars(self), "upper": self.upper if math.isfinite(self.upper) else None}

    def verdict(self, limit: float) -> str:
        """Whether a limit is kept: "met", also by the bound; "not shown", by the estimate alone; "not met", by none."""
        if self.upper <= limit:
            return "met"
        return "not shown" if self.estimate <= limit else "not met"

    def more_rows(self, limit: float) -> int | None:
        """About how many more rows would show that the limit is kept, if the loss stays; None: no number of them."""
        room, width = limit - self.estimate, self.upper - self.estimate
        if room <= 0 or not math.isfinite(width):
            return None
        return max(0, math.ceil(self.num_groups * ((width / room) ** 2 - 1)))


def judge_loss(
    teacher: RowScores, student: RowScores, groups: NDArray[np.int64], confidence: float = 0.95, seed: int = 0
) -> Loss:
    """The loss from a teacher to its student, one-sided.

    Args:
        teacher: of the same rows as
        student: the model that lost.
        groups: int [n], 0 to the number of groups - 1: rows with the same number are not independent.
        confidence: that the loss in truth is no more than `upper`.
        seed: of the bootstrap.
    """
    num_groups = int(groups.max()) + 1
    estimate = 100 * (score(teacher) - score(student))
    risk = 1 - confidence
    if num_groups < MIN_GROUPS:
        upper = math.inf
    elif teacher.is_exact and student.is_exact and num_groups == len(groups):
        lost = int((teacher.values[:, 0] > student.values[:, 0]).sum())
        won = int((teacher.values[:, 0] < student.values[:, 0]).sum())
        upper = 100 * exact_bound(lost, won, num_groups, risk)
    else:
        upper = 100 * _bootstrap_bound(teacher, student, groups, risk, seed)
    return Loss(estimate, max(upper, estimate), confidence, num_groups)


def score(rows: RowScores) -> float:
    """The metric."""
    return float(_scores(rows, np.ones((1, len(rows.values))))[0])


def group_rows(parts: Iterable[Iterable[Hashable]]) -> NDArray[np.int64]:
    """A number for each row: equal for rows that share a part, also over others between them."""
    parents: list[int] = []
    first_with: dict[Hashable, int] = {}

    def find(i: int) -> int:
        while parents[i] != i:
            parents[i] = parents[parents[i]]
            i = parents[i]
        return i

    for i, row in enumerate(parts):
        parents.append(i)
        for part in row:
            parents[find(i)] = find(first_with.setdefault(part, i))
    return np.unique([find(i) for i in range(len(parents))], return_inverse=True)[1].astype(np.int64)


def exact_bound(lost: int, won: int, count: int, risk: float) -> float:
    """The largest loss that is not refuted by rows of which the teacher alone has `lost` right, the student `won`.

    Args:
        lost: rows.
        won: rows.
        count: of all rows.
        risk: that the true loss is larger.

    Returns:
        A share of the rows, to about 1e-5.
    """
    differ, part = lost + won, risk * _RATE_RISK / 2
    low = float(stats.beta.ppf(part, differ, count - differ + 1)) if differ else 0.0
    high = float(stats.beta.ppf(1 - part, differ + 1, count - differ)) if differ < count else 1.0

    few, many = stats.binom.ppf((1e-12, 1 - 1e-12), count, (low, high))
    counts = np.arange(max(few, 0.0), many + 1)

    def is_refuted(loss: float) -> bool:
        rates = np.linspace(max(low, loss), high, _RATES)
        return bool(_chance(lost, won, count, loss, rates, counts).max() <= risk * (1 - _RATE_RISK))

    # No loss is larger than the rate at which the two disagree.
    least, most = (lost - won) / count, high
    while most - least > 1e-5:
        middle = (least + most) / 2
        least, most = (least, middle) if is_refuted(middle) else (middle, most)
    return most


def _chance(lost: int, won: int, count: int, loss: float, rates: F64, differ: F64) -> F64:
    """The share of samples in which a model that loses `loss` looks as good as this one, by rates of disagreement.

    "As good" is by (lost - won - count * loss) over its standard deviation, which the sample's own disagreement gives;
    `differ` are the numbers of rows that may differ.
    """

    def deviation(found: F64) -> F64:
        return np.asarray(np.sqrt(np.maximum(np.maximum(found, count * loss), 1.0) - count * loss**2))

    here = (lost - won - count * loss) / deviation(np.array(lost + won, np.float64))
    most_lost = np.floor((differ + count * loss + here * deviation(differ)) / 2 + 1e-9)
    rates = np.maximum(rates, 1e-12)[:, None]
    chances = stats.binom.pmf(differ, count, rates) * stats.binom.cdf(most_lost, differ, (1 + loss / rates) / 2)
    return np.asarray(chances.sum(axis=1))


def _bootstrap_bound(
    teacher: RowScores, student: RowScores, groups: NDArray[np.int64], risk: float, seed: int
) -> float:
    count = int(groups.max()) + 1
    if not teacher.is_correlation:
        whole = float(teacher.values[:, 1].sum() / count)
        changed = np.abs(np.bincount(groups, teacher.values[:, 0] - student.values[:, 0]))
        lost = float(changed[changed > 0].mean()) if changed.any() else whole
        teacher, student = (
            RowScores(np.vstack([rows.values, (part, whole)])) for rows, part in ((teacher, lost), (student, 0.0))
        )
        groups, count = np.append(groups, count), count + 1
    rng = np.random.default_rng(seed)
    losses: list[F64] = []
    for _ in range(_RESAMPLES // _CHUNK):
        weights = rng.multinomial(count, np.full(count, 1 / count), size=_CHUNK)[:, groups].astype(np.float64)
        losses.append(_scores(teacher, weights) - _scores(student, weights))
    expanded = stats.norm.cdf(-math.sqrt(count / (count - 1)) * stats.t.isf(risk, count - 1))
    return float(np.quantile(np.concatenate(losses), 1 - expanded))


def _scores(rows: RowScores, weights: F64) -> F64:
    """The metric of samples in which row i is there weights[b, i] times: f64 [b, n] to [b]."""
    if rows.is_correlation:
        one, other = (_ranks(column, weights) for column in rows.values.T)
        total = weights.sum(axis=1, keepdims=True)
        one, other = (ranks - (weights * ranks).sum(axis=1, keepdims=True) / total for ranks in (one, other))
        parts = (weights * one * other).sum(axis=1)
        wholes = np.sqrt((weights * one**2).sum(axis=1) * (weights * other**2).sum(axis=1))
    else:
        parts, wholes = (weights @ rows.values).T
    return np.asarray(np.divide(parts, wholes, out=np.zeros(len(weights)), where=wholes > 0))


def _ranks(values: F64, weights: F64) -> F64:
    """Ranks from 1 of values that are there several times, the mean one for equals: f64 [n], [b, n] to [b, n]."""
    _, places = np.unique(values, return_inverse=True)
    order = np.argsort(places, kind="stable")
    starts = np.searchsorted(places[order], np.arange(places.max() + 1))
    counts = np.add.reduceat(weights[:, order], starts, axis=1)
    return np.asarray((counts.cumsum(axis=1) - (counts - 1) / 2)[:, places])
