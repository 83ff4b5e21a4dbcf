"""What is said of a loss holds: against other libraries' numbers, and in simulations whose true loss is known."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import stats

from edgebert.compress import judge
from edgebert.compress.judge import Loss, RowScores, exact_bound, group_rows, judge_loss, score

Sides = tuple[RowScores, RowScores]


def right_rows(is_right: NDArray[np.bool_]) -> RowScores:
    return RowScores(np.stack([is_right, np.ones(len(is_right))], axis=1).astype(np.float64))


def draw_labels(rng: np.random.Generator, count: int, loss: float, rate: float) -> Sides:
    """Rows that a teacher and its student have right, which disagree on a share `rate`."""
    kind = rng.choice(3, count, p=[(rate + loss) / 2, (rate - loss) / 2, 1 - rate])
    both = rng.random(count) < 0.9
    return right_rows((kind == 0) | ((kind == 2) & both)), right_rows((kind == 1) | ((kind == 2) & both))


def draw_entities(rng: np.random.Generator, count: int, lost: float) -> Sides:
    """Sentences of some entities each, some of them hard; of what the teacher finds, the student loses a share."""
    asked = rng.integers(0, 5, count)
    found = rng.binomial(asked, np.where(rng.random(count) < 0.3, 0.6, 0.95))
    kept = rng.binomial(found, 1 - lost)
    teacher, student = (np.stack([2 * part, part + asked], axis=1).astype(np.float64) for part in (found, kept))
    return RowScores(teacher), RowScores(student)


def draw_scores(rng: np.random.Generator, count: int, noise: float) -> Sides:
    expected = rng.normal(size=count)
    found = expected + 0.6 * rng.normal(size=count)
    rows = [np.stack([side, expected], axis=1) for side in (found, found + noise * rng.normal(size=count))]
    return RowScores(rows[0], True), RowScores(rows[1], True)


def test_met_is_false_in_at_most_one_run_of_twenty(monkeypatch: pytest.MonkeyPatch) -> None:
    """500 runs whose true loss is just beyond the limit, or further: of labels, entities and scores."""
    monkeypatch.setattr(judge, "_RESAMPLES", 500)
    rng = np.random.default_rng(0)
    kinds: list[tuple[Callable[..., Sides], list[tuple[float, ...]]]] = [
        (draw_labels, [(0.01, 0.012), (0.01, 0.05), (0.02, 0.1), (0.0, 0.03)]),
        (draw_entities, [(0.01,), (0.04,)]),
        (draw_scores, [(0.1,), (0.25,)]),
    ]
    false = runs = 0
    for draw, settings in kinds:
        for setting in settings:
            true = np.mean([100 * (score(a) - score(b)) for a, b in (draw(rng, 100_000, *setting) for _ in range(2))])
            if draw is draw_labels:
                true = 100 * setting[0]
            for i in range(63):
                count = (60, 200, 500)[i % 3]
                loss = judge_loss(*draw(rng, count, *setting), np.arange(count), seed=i)
                false += loss.verdict(float(true) - 1e-6) == "met"
                runs += 1
    assert runs >= 500 and false <= 0.05 * runs


def test_an_exact_bound_is_not_far_from_the_normal_one() -> None:
    """It holds in small samples too, and costs little in large ones."""
    for lost, won, count in ((30, 20, 1000), (300, 250, 10_000)):
        rate, difference = (lost + won) / count, (lost - won) / count
        normal = difference + 1.645 * math.sqrt((rate - difference**2) / count)
        assert normal < exact_bound(lost, won, count, 0.05) < normal + 0.15 * (normal - difference)


@pytest.mark.parametrize("count", [20, 100, 1000])
def test_no_difference_in_few_rows_shows_little(count: int) -> None:
    """Without any in n rows the loss may be 1 - risk ** (1 / n); that both may err the other way too costs a bit."""
    least = 1 - 0.05 ** (1 / count)
    assert least <= exact_bound(0, 0, count, 0.05) <= 1.35 * least
    whole = RowScores(np.ones((count, 2)) * 2)  # the same by the bootstrap
    assert judge_loss(whole, whole, np.arange(count)).upper >= 90 * 2 / count


def test_the_bound_grows_with_the_confidence_and_shrinks_with_the_rows() -> None:
    rng = np.random.default_rng(1)
    for draw, setting in ((draw_labels, (0.01, 0.05)), (draw_entities, (0.02,)), (draw_scores, (0.2,))):
        sides = draw(rng, 400, *setting)
        few = [RowScores(side.values[:100], side.is_correlation) for side in sides]
        bounds = [judge_loss(*sides, np.arange(400), confidence) for confidence in (0.8, 0.95, 0.99)]
        assert bounds[0].upper < bounds[1].upper < bounds[2].upper
        less = judge_loss(few[0], few[1], np.arange(100))
        assert less.upper - less.estimate > bounds[1].upper - bounds[1].estimate
        assert bounds[1] == judge_loss(*sides, np.arange(400))


def test_rows_that_share_a_text_count_less() -> None:
    """Ten copies of a row are not ten rows."""
    teacher, student = draw_labels(np.random.default_rng(2), 100, 0.03, 0.05)
    plain = judge_loss(teacher, student, np.arange(100))
    copies = [RowScores(np.repeat(side.values, 10, axis=0)) for side in (teacher, student)]
    copied = judge_loss(copies[0], copies[1], np.repeat(np.arange(100), 10))
    assert copied.num_groups == 100 and copied.estimate == pytest.approx(plain.estimate)
    assert copied.upper == pytest.approx(plain.upper, rel=0.25)
    alone = judge_loss(copies[0], copies[1], np.arange(1000))
    assert alone.upper - alone.estimate < 0.5 * (copied.upper - copied.estimate)


def test_groups_join_over_others() -> None:
    found = group_rows([("a", "b"), ("c",), ("b", "d"), ("e", "d"), ("c", "f")])
    assert found.tolist() == [0, 1, 0, 0, 1] or found.tolist() == [1, 0, 1, 1, 0]


def test_correlations_are_spearmans_also_of_rows_drawn_twice() -> None:
    rng = np.random.default_rng(3)
    values = rng.integers(0, 6, (50, 2)).astype(np.float64)  # with ties
    assert score(RowScores(values, True)) == pytest.approx(stats.spearmanr(*values.T).statistic)
    counts = rng.integers(0, 3, 50)
    drawn = np.repeat(values, counts, axis=0)
    found = judge._scores(RowScores(values, True), counts[None].astype(np.float64))
    assert found[0] == pytest.approx(stats.spearmanr(*drawn.T).statistic)


def test_too_few_rows_say_nothing() -> None:
    loss = judge_loss(right_rows(np.ones(19, bool)), right_rows(np.ones(19, bool)), np.arange(19))
    assert loss.upper == math.inf and loss.verdict(50.0) == "not shown" and loss.more_rows(50.0) is None
    assert loss.to_dict()["upper"] is None


def test_verdicts_and_how_many_rows_more() -> None:
    loss = Loss(estimate=0.5, upper=1.5, confidence=0.95, num_groups=400)
    assert [loss.verdict(limit) for limit in (1.5, 1.0, 0.4)] == ["met", "not shown", "not met"]
    assert loss.more_rows(1.0) == 1200  # twice as narrow with four times the rows
    assert loss.more_rows(1.5) == 0 and loss.more_rows(0.5) is None
