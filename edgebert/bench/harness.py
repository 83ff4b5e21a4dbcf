"""Check first, then time in turns.

A contender is a peer that answers requests: in this process (`PeerSession`) or, so that thread pools and libraries do
not disturb one another, in a process of its own (`Worker`). `prepare` binds a workload and compares its answers with
a reference; only what it returns can be timed. `measure` gives turns, A B C A B C …, one contender active at any time.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import IO, Any, Protocol

import numpy as np
from numpy.typing import NDArray

import edgebert
from edgebert.bench.peers.base import Kind, ModelFiles, Settings
from edgebert.bench.session import Rows
from edgebert.errors import EdgeBertError
from edgebert.exporting.check import compare_rows
from edgebert.turns import take_turns

F32 = NDArray[np.float32]

# Least cosine of a text's answer with the reference, (mean, minimum), by the precision of the linears. A peer below
# it computes something else. "int8 file": both ran the same int8 file, and the limit is the gate's.
COSINE_LIMITS = {
    "fp32": (0.99999, 0.9999),
    "bf16": (0.999, 0.99),
    "int8": (0.9, 0.75),
    "int8 file": (0.998, 0.998),
}


class CheckFailedError(EdgeBertError):
    """A peer's results are not those of the reference: nothing was timed."""


class PeerError(EdgeBertError):
    """A peer failed, or its process ended."""


class Contender(Protocol):
    """What `PeerSession` and `Worker` have in common."""

    def load(self, threads: int, settings: Settings) -> None:
        """Load the model."""

    def bind(self, key: str, rows: Rows, batch_size: int) -> list[list[float]]:
        """Prepare the rows of token ids as the workload `key`, and return the vector of each row's answer."""

    def time(self, key: str, calls: int, warm_up_s: float, each: bool = False) -> list[float]:
        """Seconds of each run of that work, or of `each` batch in it."""

    def process(self) -> dict[str, float]:
        """CPU seconds and peak memory of the process."""


class Worker:
    """A peer in a process of its own, pinned to its CPUs; one request at a time, and stopped between two.

    So its threads, which may spin for as long as they like, take nothing from the others while those have their turn;
    on Windows, where processes cannot be stopped, they do.

    Args:
        name: of the peer, a key of PEERS.
        files: the model.
        python: the interpreter; another one than this takes the package from here and the rest from its own packages.
        cpus: CPUs it may run on; None for all that this process may use.
        environment: variables set for it alone.
    """

    def __init__(
        self,
        name: str,
        files: ModelFiles,
        python: str = sys.executable,
        cpus: Sequence[int] | None = None,
        environment: Mapping[str, str] | None = None,
    ) -> None:
        self.name = name
        self._log = tempfile.TemporaryFile("w+", encoding="utf-8")  # noqa: SIM115
        self._process = start_process(["serve", name, files.to_json()], python, cpus, environment, self._log)

    def build(self, calibration: Rows) -> None:
        """Write what the peer loads, unless it is there."""
        self._ask("build", calibration=[list(row) for row in calibration])

    def settings(self, threads: int, kind: Kind) -> list[Settings]:
        """The configurations worth trying."""
        return self._ask("settings", threads=threads, kind=kind)  # type: ignore[no-any-return]

    def load(self, threads: int, settings: Settings) -> None:
        """Load the model anew; work bound before is dropped."""
        self._ask("load", threads=threads, settings=settings)

    def bind(self, key: str, rows: Rows, batch_size: int) -> list[list[float]]:
        """Prepare the rows of token ids as the workload `key`, and return the vector of each row's answer."""
        rows = [list(row) for row in rows]
        return self._ask("bind", key=key, rows=rows, batch_size=batch_size)  # type: ignore[no-any-return]

    def time(self, key: str, calls: int, warm_up_s: float, each: bool = False) -> list[float]:
        """Seconds of each run of that work, or of `each` batch in it."""
        return self._ask("time", key=key, calls=calls, warm_up_s=warm_up_s, each=each)  # type: ignore[no-any-return]

    def process(self) -> dict[str, float]:
        """CPU seconds and peak memory of the process."""
        return self._ask("process")  # type: ignore[no-any-return]

    def footprint(self) -> dict[str, Any]:
        """Versions and sizes."""
        return self._ask("footprint")  # type: ignore[no-any-return]

    def close(self) -> None:
        """End the process."""
        self._go_on(True)
        if self._process.stdin:
            with contextlib.suppress(BrokenPipeError):  # the process ended before it read its last request
                self._process.stdin.close()
        try:
            self._process.wait(timeout=10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        if self._process.stdout:
            self._process.stdout.close()
        self._log.close()

    def __enter__(self) -> Worker:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _ask(self, do: str, **arguments: Any) -> Any:
        requests, answers = self._process.stdin, self._process.stdout
        assert requests is not None and answers is not None
        self._go_on(True)
        with contextlib.suppress(BrokenPipeError):
            requests.write(json.dumps({"do": do, "with": arguments}) + "\n")
            requests.flush()
        line = answers.readline()
        if not line:
            self._log.seek(0)
            tail = " | ".join(self._log.read().splitlines()[-4:])
            raise PeerError(f"{self.name}: its process ended while asked to {do} ({tail or 'it said nothing'})")
        self._go_on(False)
        answer = json.loads(line)
        if "error" in answer:
            raise PeerError(f"{self.name}: {do} failed: {answer['error']}")
        return answer["result"]

    def _go_on(self, goes: bool) -> None:
        if sys.platform != "win32":
            self._process.send_signal(signal.SIGCONT if goes else signal.SIGSTOP)


def start_process(
    arguments: Sequence[str],
    python: str = sys.executable,
    cpus: Sequence[int] | None = None,
    environment: Mapping[str, str] | None = None,
    log: IO[str] | int = subprocess.DEVNULL,
) -> subprocess.Popen[str]:
    """`edgebert.bench.worker` with these arguments, in another process; standard error goes to `log`."""
    variables = {**os.environ, "TOKENIZERS_PARALLELISM": "false", **(environment or {})}
    # the package imported here, not one that happens to lie in the current folder (-P)
    if python == sys.executable:
        folder = Path(edgebert.__file__).parents[1]
        variables["PYTHONPATH"] = os.pathsep.join([str(folder), *filter(None, [os.environ.get("PYTHONPATH")])])
    else:
        variables["PYTHONPATH"] = os.fspath(package_alone())
    command = [python, "-P", "-m", "edgebert.bench.worker", *arguments]
    if cpus is not None and sys.platform == "linux":  # inherited by the child; set back right after
        before = os.sched_getaffinity(0)
        os.sched_setaffinity(0, cpus)
    try:
        return subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, text=True, env=variables
        )
    finally:
        if cpus is not None and sys.platform == "linux":
            os.sched_setaffinity(0, before)


_package_folder: tempfile.TemporaryDirectory[str] | None = None


def package_alone() -> Path:
    """A folder that holds nothing but this package, for the path of an interpreter with other packages."""
    global _package_folder
    if _package_folder is None:
        _package_folder = tempfile.TemporaryDirectory(prefix="edgebert-bench-")
        (Path(_package_folder.name) / "edgebert").symlink_to(Path(edgebert.__file__).resolve().parent)
    return Path(_package_folder.name)


@dataclass(frozen=True)
class Ready:
    """A contender whose results for one workload have been checked; made by `prepare`."""

    name: str
    contender: Contender
    key: str
    cosine_mean: float
    cosine_min: float
    each: bool = False


@dataclass(frozen=True)
class Timing:
    """Seconds of every counted run (or of every batch, where each is timed), and `idle_cpu`.

    That is the share of one CPU that the contender's process used while others had their turn.
    """

    seconds: NDArray[np.float64]
    idle_cpu: float

    @property
    def median(self) -> float:
        """Seconds."""
        return float(np.median(self.seconds))

    def percentile(self, rank: float) -> float:
        """Seconds; `rank` of 0 to 100."""
        return float(np.percentile(self.seconds, rank))

    @property
    def least(self) -> float:
        """Seconds."""
        return float(self.seconds.min())


@dataclass(frozen=True)
class Budget:
    """How long to measure each contender, in seconds.

    Attributes:
        seconds: of counted runs in all, about.
        rounds: turns that each gets at least, however long they take.
        turn_s: of counted runs in a turn, about; at least one run is made.
        warm_up_s: of runs before them that do not count, because the caches were the others'.
        settle_s: of silence before a turn, in which the last one's process stops.
    """

    seconds: float = 0.8
    rounds: int = 5
    turn_s: float = 0.05
    warm_up_s: float = 0.01
    settle_s: float = 0.003


def prepare(
    name: str,
    contender: Contender,
    key: str,
    rows: Rows,
    batch_size: int,
    reference: Sequence[F32],
    precision: str,
    each: bool = False,
) -> Ready:
    """Bind rows as work called `key` and compare its answers with the reference's.

    Args:
        name: what to call the contender.
        contender: loaded.
        key: what to call the work.
        rows: token ids of each text.
        batch_size: texts computed together.
        reference: an f32 vector for each of the rows, of the same texts in fp32.
        precision: of the contender's linears, a key of COSINE_LIMITS.
        each: time each batch, not a run of all.

    Raises:
        CheckFailedError: the answers have other sizes, are not finite, or are too far from the reference.
    """
    answers = [np.array(row, np.float32) for row in contender.bind(key, rows, batch_size)]
    if [row.shape for row in answers] != [row.shape for row in reference]:
        raise CheckFailedError(
            f"{name}: {len(answers)} answers, the first of {len(answers[0])} values, expected {len(reference)}, "
            f"{len(reference[0])}: not timed"
        )
    cosines = compare_rows(answers, reference)
    mean, least = float(cosines.mean()), float(cosines.min())
    mean_limit, least_limit = COSINE_LIMITS[precision]
    if not (mean >= mean_limit and least >= least_limit):  # written so that nan fails
        raise CheckFailedError(
            f"{name}: cosine with the reference {mean:.5f} in the mean, {least:.5f} at the least, expected "
            f"at least {mean_limit} and {least_limit} of {precision}: not timed"
        )
    return Ready(name, contender, key, mean, least, each)


def measure(
    ready: Sequence[Ready], budget: Budget = Budget(), pause: Callable[[float], None] = time.sleep
) -> list[Timing]:
    """Time contenders in turns until each has had its budget; in the order of `ready`."""
    pilots = [sum(one.contender.time(one.key, 1, 0.01, one.each)) for one in ready]
    calls = [max(1, round(budget.turn_s / pilot)) for pilot in pilots]
    rounds = [
        max(budget.rounds, round(budget.seconds / (count * pilot))) for count, pilot in zip(calls, pilots, strict=True)
    ]
    used, idle, waited = [0.0] * len(ready), [0.0] * len(ready), [0.0] * len(ready)
    since: list[float | None] = [None] * len(ready)

    def turn(i: int) -> list[float]:
        one = ready[i]
        pause(budget.settle_s)
        cpu_s = one.contender.process()["cpu_s"]
        if (before := since[i]) is not None:
            idle[i] += cpu_s - used[i]
            waited[i] += time.monotonic() - before
        # a slow call brings its own data into the caches, long before it ends
        warm_up_s = budget.warm_up_s if pilots[i] < budget.turn_s else 0.0
        seconds = one.contender.time(one.key, calls[i], warm_up_s, one.each)
        used[i], since[i] = one.contender.process()["cpu_s"], time.monotonic()
        return seconds

    taken = take_turns([partial(turn, i) for i in range(len(ready))], rounds)
    return [
        Timing(np.concatenate(turns), spent / gap if gap else 0.0)
        for turns, spent, gap in zip(taken, idle, waited, strict=True)
    ]


def choose_settings(
    contender: Contender, threads: int, candidates: Sequence[Settings], batch_sizes: Sequence[int], rows: Rows
) -> tuple[Settings, int, list[dict[str, Any]]]:
    """The fastest of all candidate configurations and batch sizes on these rows, and what each of them took.

    A configuration that fails is left out; the contender is left loaded with the last one tried.

    Raises:
        PeerError: none works.
    """
    tried: list[dict[str, Any]] = []
    for settings in candidates:
        for i, batch_size in enumerate(batch_sizes):
            try:
                if i == 0:
                    contender.load(threads, settings)
                key = f"choose {batch_size}"
                contender.bind(key, rows, batch_size)
                first = contender.time(key, 1, 0.0)[0]
                calls = max(2, min(50, round(0.2 / first)))
                taken = float(np.median(contender.time(key, calls, 0.0)))
                tried.append({"settings": settings, "batch_size": batch_size, "ms": round(1e3 * taken, 4)})
            except PeerError as error:
                tried.append({"settings": settings, "batch_size": batch_size, "error": str(error)})
                break
    working = [entry for entry in tried if "ms" in entry]
    if not working:
        raise PeerError(f"no configuration works: {'; '.join(entry['error'] for entry in tried)}")
    best = min(working, key=lambda entry: float(entry["ms"]))
    return best["settings"], best["batch_size"], tried


@contextlib.contextmanager
def busy_process() -> Iterator[None]:
    """Another process that wants one CPU all the time, while the block runs."""
    process = subprocess.Popen([sys.executable, "-c", "while True: pass"])
    try:
        yield
    finally:
        process.kill()
        process.wait()


def start_cold(
    name: str,
    files: ModelFiles,
    threads: int,
    settings: Settings,
    row: Sequence[int],
    python: str = sys.executable,
    cpus: Sequence[int] | None = None,
) -> dict[str, Any]:
    """Start a process that loads the peer and runs one row of token ids, and end it.

    Returns:
        {"seconds": from just before the start to the result, "peak_mb": its resident set, "answer": its vector}.

    Raises:
        PeerError: it failed.
    """
    arguments = ["cold", name, files.to_json(), str(threads), json.dumps(settings), json.dumps(list(row))]
    with tempfile.TemporaryFile("w+", encoding="utf-8") as log:
        begun = time.monotonic()
        output, _ = start_process(arguments, python, cpus, log=log).communicate()
        if not output:
            log.seek(0)
            raise PeerError(f"{name}: the start failed: {' | '.join(log.read().splitlines()[-4:])}")
    report = json.loads(output)
    return {
        "seconds": report["done"] - begun,
        "peak_mb": report["peak_mb"],
        "answer": report["answer"],
    }
