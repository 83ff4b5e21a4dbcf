"""Timing in turns, with a clock that the calls themselves move on."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from edgebert import turns
from edgebert.turns import time_in_turns


class Machine:
    """Its calls take seconds of its own: more after another call than after themselves, and more each time."""

    def __init__(self) -> None:
        self.now = 0.0
        self.order: list[str] = []

    def clock(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds

    def make_call(self, name: str, seconds: float) -> Callable[[], None]:
        def call() -> None:
            self.now += seconds if self.order and self.order[-1] == name else 100 + seconds
            self.order.append(name)

        return call


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Machine:
    machine = Machine()
    monkeypatch.setattr(turns.time, "sleep", machine.sleep)
    monkeypatch.setattr(turns.time, "monotonic", machine.clock)
    return machine


def test_contenders_take_turns_and_the_first_call_of_a_turn_is_not_counted(machine: Machine) -> None:
    calls = [machine.make_call("a", 1), machine.make_call("b", 2)]
    a, b = time_in_turns(calls, rounds=2, counts=(3, 1), settle_s=7, clock=machine.clock)
    assert machine.order == (["a"] * 4 + ["b"] * 2) * 2
    assert a.tolist() == [[1, 1, 1]] * 2 and b.tolist() == [[2]] * 2
    assert machine.now == 2 * (7 + 101 + 3 + 7 + 102 + 2)


def test_without_warm_up_every_call_counts(machine: Machine) -> None:
    [seconds] = time_in_turns([machine.make_call("a", 1)], rounds=1, counts=3, warm_up=False, clock=machine.clock)
    assert seconds.tolist() == [[101, 1, 1]]


@pytest.mark.parametrize(("seconds", "least", "expected"), [(0, 1, 1), (0, 3, 3), (250, 1, 2), (1e9, 1, 5)])
def test_a_time_limit_ends_the_rounds_but_not_the_least(
    machine: Machine, seconds: float, least: int, expected: int
) -> None:
    calls = [machine.make_call("a", 0), machine.make_call("b", 0)]  # a round takes 200
    found = time_in_turns(calls, rounds=5, warm_up=False, seconds=seconds, least=least, clock=machine.clock)
    assert [len(taken) for taken in found] == [expected] * 2


def test_rounds_without_a_count_go_on_until_the_time_is_over(machine: Machine) -> None:
    [seconds] = time_in_turns([machine.make_call("a", 1)], seconds=104.5, warm_up=False, clock=machine.clock)
    assert seconds[:, 0].tolist() == [101, 1, 1, 1, 1]
