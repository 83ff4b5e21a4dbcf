"""Processes that fork while other threads are inside a run: the children compute, the same bits, and none hangs.

Each test is a process of its own, and each of its children has an alarm: what hangs is killed, and fails the test.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import BACKENDS

FORKING = [name for name in ("native", "numba") if name in BACKENDS]

PARENT = """
import os, signal, sys, threading
import numpy as np
import edgebert

SECONDS = 20  # a child's life, most of which it does not need
backend, path = sys.argv[1:]
model = edgebert.load(path, backend, threads=2)
texts = ["the router restarts", "a", "turn off the modem and water the roses"]
batches = [edgebert.PackedBatch.from_lists([[1 + n % 40] * (1 + n % 50) for n in range(size)]) for size in (3, 60, 400)]


def answers(model):
    runs = [model.encode(texts)] + [model.forward(batch)["sentence_embedding"] for batch in batches]
    return np.concatenate(runs)


def fork(body):
    child = os.fork()
    if child == 0:
        signal.alarm(SECONDS)
        try:
            os._exit(int(not body()))
        finally:
            os._exit(2)
    return child


def succeed(children):
    return [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]


def in_threads(count, body):
    results = [False] * count
    def work(i):
        results[i] = body()
    threads = [threading.Thread(target=work, args=(i,)) for i in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return all(results)


def is_right():
    return np.array_equal(answers(model), expected)
"""

# 100 children: the runs of two threads, of all sizes, are cut at any point of theirs.
DURING_RUNS = (
    PARENT
    + """
expected = answers(model)
going = True
def keep_running(first):
    for n in iter(int, 1):
        if not going:
            return
        answers(model) if (n + first) % 2 else model.forward(batches[2])
runners = [threading.Thread(target=keep_running, args=(i,)) for i in range(2)]
for runner in runners:
    runner.start()
codes = []
for _ in range(25):
    codes += succeed([fork(is_right) for _ in range(3)])
    codes += succeed([fork(lambda: in_threads(3, is_right))])
going = False
for runner in runners:
    runner.join()
print(*codes)
sys.exit(int(any(codes) or not is_right()))
"""
)

# Before the first run, between two, and in the child of a child.
AT_REST = (
    PARENT
    + """
first = fork(lambda: in_threads(2, lambda: answers(model).any()))
expected = answers(model)
codes = succeed([first, fork(is_right), fork(lambda: is_right() and succeed([fork(is_right)]) == [0] and is_right())])
print(*codes)
sys.exit(int(any(codes) or not is_right()))
"""
)


def run(script: str, *arguments: str, **variables: str) -> None:
    env = {name: value for name, value in os.environ.items() if name != "TOKENIZERS_PARALLELISM"} | variables
    found = subprocess.run(
        [sys.executable, "-P", "-c", script, *arguments], env=env, capture_output=True, text=True, timeout=240
    )
    assert found.returncode == 0, f"children's exit codes {found.stdout}{found.stderr[-2000:]}"


@pytest.mark.parametrize("backend", FORKING)
def test_a_child_forked_during_runs_computes_the_same_bits(backend: str, make_file: Callable[..., Path]) -> None:
    run(DURING_RUNS, backend, str(make_file(int8=True)))


@pytest.mark.parametrize("backend", FORKING)
def test_a_child_forked_between_runs_computes_the_same_bits(backend: str, make_file: Callable[..., Path]) -> None:
    run(AT_REST, backend, str(make_file()))


@pytest.mark.skipif(not FORKING, reason="no backend of our own")
def test_a_child_tokenizes_also_where_the_environment_insists_on_threads(make_file: Callable[..., Path]) -> None:
    run(AT_REST, FORKING[0], str(make_file()), TOKENIZERS_PARALLELISM="true")


# Workers that are forked inherit the model, and unpickle another with each task, as those that are spawned do.
POOLS = (
    PARENT
    + """
import multiprocessing
expected = model.encode(texts)
going = True
def keep_running():
    while going:
        model.forward(batches[2])
runner = threading.Thread(target=keep_running)
runner.start()
for method in ("fork", "spawn"):
    with multiprocessing.get_context(method).Pool(2) as pool:
        rows = pool.map_async(model.encode, [[text] for text in texts[:2]]).get(timeout=300)
        assert np.array_equal(np.concatenate(rows), expected[:2]), method
going = False
runner.join()
"""
)


@pytest.mark.parametrize("backend", FORKING)
def test_a_pool_of_processes_computes_the_same_bits(backend: str, make_file: Callable[..., Path]) -> None:
    run(POOLS, backend, str(make_file()))
