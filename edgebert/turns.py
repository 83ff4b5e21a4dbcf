"""Time in turns, A B C A B C …, so that what else the machine does hits all contenders alike."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray


def time_in_turns(
    calls: Sequence[Callable[[], object]],
    *,
    rounds: int | None = None,
    counts: Sequence[int] | int = 1,
    warm_up: bool = True,
    settle_s: float = 0.0,
    seconds: float = math.inf,
    least: int = 1,
    clock: Callable[[], float] = time.perf_counter,
) -> list[NDArray[np.float64]]:
    """Time calls in turns.

    Args:
        calls: what is timed.
        rounds: turns that each has at most; None for as many as `seconds` allow.
        counts: counted calls in a turn, of each or of all.
        warm_up: begin each turn with a call that is not counted: the caches were the others'.
        settle_s: silence before a turn, which lets the threads of the call before go to sleep.
        seconds: after which no further round begins.
        least: rounds that are made however long they take.
        clock: gives seconds; `time.thread_time` for the CPU time of calls on this thread alone.

    Returns:
        Of each call its seconds, f64 [rounds, count].
    """
    counts = [counts] * len(calls) if isinstance(counts, int) else counts

    def make_turn(call: Callable[[], object], count: int) -> Callable[[], list[float]]:
        def time_call() -> float:
            begun = clock()
            call()
            return clock() - begun

        def turn() -> list[float]:
            time.sleep(settle_s)
            if warm_up:
                call()
            return [time_call() for _ in range(count)]

        return turn

    turns = [make_turn(call, count) for call, count in zip(calls, counts, strict=True)]
    return [np.array(taken) for taken in take_turns(turns, [rounds] * len(turns), seconds, least)]


def take_turns(
    turns: Sequence[Callable[[], list[float]]],
    rounds: Sequence[int | None],
    seconds: float = math.inf,
    least: int = 1,
) -> list[list[list[float]]]:
    """Let contenders take turns, each until it has had its rounds.

    Args:
        turns: of each contender what makes the calls of one turn and gives their seconds.
        rounds, seconds, least: as of `time_in_turns`, `rounds` for each contender.

    Returns:
        Of each contender, of each turn the seconds of its calls.
    """
    taken: list[list[list[float]]] = [[] for _ in turns]
    end, done = time.monotonic() + seconds, 0
    while done < least or time.monotonic() < end:
        going = [i for i, limit in enumerate(rounds) if limit is None or done < limit]
        if not going:
            break
        for i in going:
            taken[i].append(turns[i]())
        done += 1
    return taken
