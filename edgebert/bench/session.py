"""PeerSession: one peer in this process, driven with plain values, so that a pipe can stand between."""

from __future__ import annotations

import gc
import math
import os
import re
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np

from edgebert.batch import PackedBatch
from edgebert.bench.peers.base import Kind, Peer, Settings
from edgebert.errors import InvalidInputError

Rows = Sequence[Sequence[int]]


class PeerSession:
    """A peer that has been loaded, and the work bound to it by name."""

    def __init__(self, peer: Peer) -> None:
        self._peer = peer
        self._lanes: ThreadPoolExecutor | None = None
        self._work: dict[str, list[Callable[[], Any]]] = {}

    def build(self, calibration: Rows) -> None:
        """Write what the peer loads, unless it is there."""
        if not self._peer.path.exists():
            self._peer.build(calibration)

    def settings(self, threads: int, kind: Kind) -> list[Settings]:
        """The configurations worth trying."""
        return self._peer.settings(threads, kind)

    def load(self, threads: int, settings: Settings) -> None:
        """Load the model anew; work bound before is dropped."""
        self._work.clear()
        lanes = settings.get("lanes", 1)
        self._lanes = ThreadPoolExecutor(lanes) if lanes > 1 else None
        self._peer.load(threads, settings)

    def bind(self, key: str, rows: Rows, batch_size: int) -> list[list[float]]:
        """Make the rows, longest first and `batch_size` together, into work called `key`, and run it once.

        Returns:
            What the peer's `embed` makes of the results, a vector for each of `rows`, in their order.
        """
        order = sorted(range(len(rows)), key=lambda i: -len(rows[i]))
        parts = [order[i : i + batch_size] for i in range(0, len(order), batch_size)]
        batches = [PackedBatch.from_lists([rows[i] for i in part]) for part in parts]
        calls = self._work[key] = [self._peer.bind(batch) for batch in batches]
        # one batch at a time here: an output may be a view that the next call overwrites
        sorted_rows = [
            row for call, batch in zip(calls, batches, strict=True) for row in self._peer.embed(call(), batch)
        ]
        return [sorted_rows[i].tolist() for i in np.argsort(order)]

    def time(self, key: str, calls: int, warm_up_s: float, each: bool = False) -> list[float]:
        """Seconds of `calls` runs of that work, after runs without count for `warm_up_s`.

        With `each` not of every run but of every batch in it, one after the other.
        """
        batches = self._work[key]
        lanes = self._lanes
        if each and lanes is not None:
            raise InvalidInputError("batches that run at the same time have no times of their own: use one lane")
        results = []

        def work() -> None:
            if lanes is None:
                for run in batches:
                    run()
            else:
                list(lanes.map(lambda run: run(), batches))

        gc.disable()
        try:
            end = time.perf_counter() + warm_up_s
            while time.perf_counter() < end:
                work()
            for run in batches * calls if each else [work] * calls:
                begun = time.perf_counter()
                run()
                results.append(time.perf_counter() - begun)
        finally:
            gc.enable()
        return results

    def process(self) -> dict[str, float]:
        """CPU seconds of this process so far, and the peak of its resident set in MB."""
        return {"cpu_s": time.process_time(), "peak_mb": peak_mb()}

    def footprint(self) -> dict[str, Any]:
        """Versions of the peer's packages, MB installed with all they require, MB of the model's files."""
        return {
            "versions": {name: version_of(name) for name in self._peer.packages},
            "installed_mb": round(sum(installed_sizes(self._peer.packages).values()) / 1e6, 1),
            "model_mb": round(sum(file.stat().st_size for file in _files(self._peer.path)) / 1e6, 1),
        }


def peak_mb() -> float:
    """Peak resident set of this process, MB (10^6 bytes); nan where the system does not tell.

    Not getrusage's: that one remembers the memory of the process that started this one.
    """
    try:
        status = Path("/proc/self/status").read_text(encoding="utf-8")
    except OSError:
        return math.nan
    return int(re.findall(r"^VmHWM:\s*(\d+) kB", status, re.MULTILINE)[0]) * 1024 / 1e6


def version_of(package: str) -> str | None:
    """The installed version, or None."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def installed_sizes(packages: Sequence[str]) -> dict[str, int]:
    """Bytes on disk of each of `packages` and of everything they require, extras left out."""
    sizes: dict[str, int] = {}
    todo = list(packages)
    while todo:
        name = re.sub(r"[-_.]+", "-", todo.pop()).lower()
        if name in sizes:
            continue
        try:
            distribution = metadata.distribution(name)
        except metadata.PackageNotFoundError:
            if name != "edgebert":
                continue  # required under other conditions than these
            # a checkout: the package, the library built beside it, and what pyproject.toml names
            files = [file for file in _files(Path(__file__).parents[1]) if "__pycache__" not in file.parts]
            files += [Path(library) for library in [os.environ.get("EDGEBERT_LIBRARY")] if library]
            sizes[name] = sum(file.stat().st_size for file in files)
            todo.append("numpy")
            continue
        located = (distribution.locate_file(file) for file in distribution.files or ())
        sizes[name] = sum(Path(str(path)).stat().st_size for path in located if Path(str(path)).is_file())
        for requirement in distribution.requires or ():
            if "extra ==" not in requirement.partition(";")[2]:
                todo += re.findall(r"^[\w.-]+", requirement)
    return sizes


def _files(path: Path) -> list[Path]:
    return [file for file in path.rglob("*") if file.is_file()] if path.is_dir() else [path]
