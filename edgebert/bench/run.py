"""`edgebert bench`: model files on this machine, on the project's backends and on other runtimes.

Each contender runs in a process of its own, pinned to as many CPUs as it has threads. What it answers is compared with
the oracle's answers on the same file before anything is timed; then all take turns.
"""

from __future__ import annotations

import contextlib
import importlib.util
import math
import statistics
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

import edgebert
from edgebert.backends.cpus import cpu_flags, usable_cpus
from edgebert.backends.registry import available_backends
from edgebert.bench.harness import (
    Budget,
    CheckFailedError,
    PeerError,
    Ready,
    Timing,
    Worker,
    busy_process,
    choose_settings,
    measure,
    prepare,
    start_cold,
)
from edgebert.bench.peers import FILE_PEERS, make_peer
from edgebert.bench.peers.base import ModelFiles, Peer, Settings
from edgebert.bench.provenance import Rapl, Recorder, affinity, find_spinning
from edgebert.bench.roof import Roof, count_operations, find_roof, measure_roof, roof_of, take_higher
from edgebert.bench.workloads import Model, Workload, name_files, sample_texts
from edgebert.errors import EdgeBertError, InvalidInputError
from edgebert.exporting.check import compare_rows

RESULT_VERSION = 2
RUNTIMES = ("onnxruntime", "openvino", "torch", "ctranslate2")

_EXTRAS = {"onnxruntime": "ort", "onnx": "export", "torch": "compress", "transformers": "compress"}  # else bench
_COLD_RUNS = 3
_ENERGY_S = 1.0
_BF16_FLAGS = {"avx512_bf16", "amx_bf16", "bf16"}

Say = Callable[[str], None]


@dataclass(frozen=True)
class Options:
    """What to measure.

    Attributes:
        models: the project's files.
        backends: the project's backends, on every file.
        against: other runtimes, out of RUNTIMES.
        checkpoint: the Hugging Face folder that the files were exported from, for runtimes that cannot read them.
        batch_sizes: texts computed together.
        lengths: each a count of tokens, or "text:FILE" for the lines of a file.
        threads: counts.
        work: where other runtimes' forms of the model are kept; None for a folder that is removed at the end.
        seconds: of counted runs for each contender and workload, about.
        is_quick: no cold starts, no busy process.
    """

    models: Sequence[Path]
    backends: Sequence[str]
    against: Sequence[str] = ()
    checkpoint: Path | None = None
    batch_sizes: Sequence[int] = (1,)
    lengths: Sequence[str] = ("16", "128")
    threads: Sequence[int] = (1,)
    work: Path | None = None
    seconds: float = 0.8
    is_quick: bool = False


@dataclass(frozen=True)
class Contender:
    """A runtime with a file, and how near its answers must be to those of the oracle on that file."""

    name: str
    model: Model
    peer: Peer
    peer_name: str
    limit: str  # a key of COSINE_LIMITS

    @property
    def precision(self) -> str:
        """Of its linears."""
        return self.model.precision if self.limit == "int8 file" else self.limit


@dataclass
class Bench:
    """One run of the benchmark and what it has found so far."""

    options: Options
    say: Say
    left_out: dict[str, str] = field(default_factory=dict)
    workloads: list[dict[str, Any]] = field(default_factory=list)
    checks: dict[str, dict[str, Any]] = field(default_factory=dict)
    footprints: dict[str, dict[str, Any]] = field(default_factory=dict)
    loaded: dict[str, Settings] = field(default_factory=dict)  # now, by contender
    first: dict[tuple[str, int], Settings] = field(default_factory=dict)  # by contender and threads: for cold starts

    def run(self, command: Sequence[str]) -> dict[str, Any]:
        """Measure everything; plain values in the form of `result.schema.json`.

        Raises:
            InvalidInputError: options that do not fit the machine or the files, or nothing that could run.
            ModelFormatError: a file is missing, damaged or changed.
        """
        options = self.options
        if max(options.threads) > len(affinity()):
            raise InvalidInputError(f"{max(options.threads)} threads: this process may use {len(affinity())} CPUs")
        if unknown := [name for name in options.backends if f"edgebert/{name}" not in FILE_PEERS]:
            known = [name.removeprefix("edgebert/") for name in FILE_PEERS if name.startswith("edgebert/")]
            raise InvalidInputError(f"unknown backend {unknown[0]!r}: expected some of {', '.join(known)}")
        if options.checkpoint and not options.checkpoint.is_dir():
            raise InvalidInputError(f"{options.checkpoint} is not a folder: give the one the files were exported from")
        if not options.seconds > 0:
            raise InvalidInputError(f"{options.seconds:g} seconds of measuring: give a number above 0")
        for length in options.lengths:
            if file := Workload(length, 1).file:
                sample_texts(file)
        names = name_files(options.models)
        self.models = [Model(path, name) for path, name in zip(options.models, names, strict=True)]
        self.base = next((model for model in self.models if model.precision == "fp32"), self.models[0])
        runtimes = {model.name: list(self._find_runtimes(model)) for model in self.models}
        for name, reason in self.left_out.items():
            self.say(f"left out: {name}: {reason}")
        self.energy = Rapl()
        recorder = Recorder(_find_checkout())
        roof = self._measure_roof()
        with contextlib.ExitStack() as stack:
            work = options.work or Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="edgebert-bench-")))
            contenders = self._build(self._find_contenders(work, runtimes))
            for threads in options.threads:
                recorder.watch_clock()
                self._measure(contenders, threads, recorder)
            cold_start = {} if options.is_quick else self._start_cold(contenders, max(options.threads))
        if not self.workloads:
            reasons = "; ".join(f"{name}: {reason}" for name, reason in self.left_out.items() if name != "roof")
            raise InvalidInputError(f"nothing could be measured: {reasons}")
        after = self._measure_roof() if roof else None
        roof = take_higher(roof, after) if roof and after else roof
        self._add_rates(roof)
        versions = {k: v for footprint in self.footprints.values() for k, v in footprint["versions"].items()}
        provenance = recorder.describe(command, versions)
        idle: dict[str, float] = {}
        for workload in self.workloads:
            for name, row in workload["rows"].items():
                key = f"{name}, {_count(workload['threads'], 'thread')},"
                idle[key] = max(row["idle_cpu"], idle.get(key, 0.0))
        provenance["warnings"] += find_spinning(idle)
        if max(options.threads) > usable_cpus():
            provenance["warnings"].append(
                f"{max(options.threads)} threads share {usable_cpus()} CPUs' worth of time, the limit of the cgroup"
            )
        return {
            "edgebert_bench": RESULT_VERSION,
            "provenance": provenance,
            "seconds_each": options.seconds,
            "roof": roof,
            "models": {model.name: model.describe() for model in self.models},
            "base": self.base.name,
            "contenders": self.footprints,
            "checks": self.checks,
            "workloads": self.workloads,
            "cold_start": cold_start,
            "left_out": self.left_out,
        }

    def _measure_roof(self) -> Roof | None:
        try:
            return measure_roof(find_roof(), self.options.threads)
        except EdgeBertError as error:
            self.left_out["roof"] = str(error)
            return None

    @contextlib.contextmanager
    def _tolerate(self, what: str) -> Iterator[None]:
        """Leave out a contender that fails or answers something else, and note why; the others go on."""
        try:
            yield
        except (PeerError, CheckFailedError, InvalidInputError) as error:
            if what not in self.left_out:
                self.say(f"left out: {what}: {error}")
            self.left_out[what] = str(error)

    def _find_contenders(self, work: Path, runtimes: Mapping[str, Sequence[str]]) -> list[Contender]:
        found = []
        for model in self.models:
            folder = work / f"{model.name}-{model.sha256[:12]}"
            folder.mkdir(parents=True, exist_ok=True)
            names = [f"edgebert/{backend}" for backend in self.options.backends]
            for name in [*names, *runtimes[model.name]]:
                is_checkpoint = name.startswith(("torch", "ctranslate2"))
                source = self.options.checkpoint if is_checkpoint else model.path
                assert source is not None
                peer = make_peer(name, ModelFiles(source.absolute(), folder.absolute(), model.path.absolute()))
                same_file = "int8 file" if model.spec.is_int8 else "fp32"
                limit = peer.precision if peer.precision in ("int8", "bf16") else same_file
                if is_checkpoint and model.spec.is_int8:
                    limit = "int8"
                found.append(Contender(f"{name} {model.name}", model, peer, name, limit))
        return found

    def _find_runtimes(self, model: Model) -> Iterator[str]:
        """Names of the peers that run this file, or the checkpoint; what is missing is left out, with the reason."""
        is_fp32, is_base = model.precision == "fp32", model is self.base
        for runtime in self.options.against:
            if importlib.util.find_spec(runtime) is None:
                self.left_out[runtime] = f"{runtime} is not installed: {_install(runtime)}"
                continue
            if runtime in ("torch", "ctranslate2"):
                if self.options.checkpoint is None:
                    self.left_out[runtime] = (
                        "it cannot read the file: give the Hugging Face folder that it was exported from, "
                        "--checkpoint FOLDER"
                    )
                elif runtime == "ctranslate2" and model.spec.task != "embedding":
                    self.left_out[runtime] = f"it gives hidden states, this is a {model.spec.task} file"
                elif importlib.util.find_spec("transformers") is None:
                    self.left_out[runtime] = f"it needs transformers: {_install('transformers')}"
                elif is_base:
                    yield from {"torch": ("torch", "torch/int8"), "ctranslate2": ("ctranslate2/int8",)}[runtime]
                continue
            yield runtime
            if runtime == "openvino" and is_fp32 and not _BF16_FLAGS.isdisjoint(cpu_flags()):
                yield "openvino/bf16"
            if is_fp32:
                quantizer = {"onnxruntime": "onnx", "openvino": "nncf"}[runtime]
                if importlib.util.find_spec(quantizer) is None:
                    self.left_out[f"{runtime}/int8"] = f"its quantization needs {quantizer}: {_install(quantizer)}"
                else:
                    yield f"{runtime}/int8"

    def _build(self, contenders: Sequence[Contender]) -> list[Contender]:
        built = []
        for one in contenders:
            with self._tolerate(one.name):
                if not one.peer.path.exists():
                    self.say(f"building for {one.name}")
                    with Worker(one.peer_name, one.peer.files) as worker:
                        worker.build(one.model.check_rows(calibration=200))
                built.append(one)
        return built

    def _measure(self, contenders: Sequence[Contender], threads: int, recorder: Recorder) -> None:
        options = self.options
        workloads = [Workload(length, size) for length in options.lengths for size in options.batch_sizes]
        self.say(f"{_count(threads, 'thread')}: starting {_count(len(contenders), 'process', 'processes')}")
        with contextlib.ExitStack() as stack:
            cpus = affinity()[:threads]
            workers = {
                one.name: stack.enter_context(Worker(one.peer_name, one.peer.files, cpus=cpus)) for one in contenders
            }
            for is_file in dict.fromkeys(workload.file is not None for workload in workloads):
                mine = [one for one in workloads if (one.file is not None) == is_file]
                ready = [one for one in contenders if self._load(one, workers[one.name], threads, mine[-1])]
                for i, workload in enumerate(mine):
                    self._time(ready, workers, threads, workload, with_busy=i == 0 and not is_file)
                    recorder.watch_clock()
            timed = {name for workload in self.workloads for name in workload["rows"]}
            for one in contenders:
                if one.name not in timed:
                    continue
                with self._tolerate(one.name):
                    peak = workers[one.name].process()["peak_mb"]
                    known = self.footprints.get(one.name) or self._describe(one, workers[one.name])
                    self.footprints[one.name] = {**known, "peak_mb": max(round(peak, 1), known["peak_mb"])}

    def _describe(self, one: Contender, worker: Worker) -> dict[str, Any]:
        return {
            "title": one.peer.title,
            "model": one.model.name,
            "precision": one.precision,
            "is_own": one.peer.is_own,
            "peak_mb": 0.0,
            **worker.footprint(),
        }

    def _load(self, one: Contender, worker: Worker, threads: int, workload: Workload) -> bool:
        """Load the contender's fastest configuration and check its answers; whether both went well."""
        with self._tolerate(f"{one.name}, {_count(threads, 'thread')}"):
            # texts of many lengths: nothing that is made for a single one
            settings = worker.settings(threads, "throughput" if workload.file else "latency")
            settings = [one for one in settings if "lanes" not in one]  # batches at the same time have no times
            if len(settings) > 1:
                rows, cpus = one.model.rows(workload), affinity()[:threads]
                # in a process of its own: what else was loaded would count as memory
                with Worker(one.peer_name, one.peer.files, cpus=cpus) as trial:
                    best, _, _ = choose_settings(trial, threads, settings, (workload.batch_size,), rows)
            else:
                best = settings[0]
            worker.load(threads, best)
            self.loaded[one.name] = best
            self.first.setdefault((one.name, threads), best)
            ready = prepare(one.name, worker, "check", one.model.check_rows(), 8, one.model.answers(None), one.limit)
            self.checks[one.name] = {
                "texts": len(one.model.check_rows()),
                "mean": round(ready.cosine_mean, 6),
                "min": round(ready.cosine_min, 6),
                **self._compare_with_base(one, worker),
            }
            return True
        return False

    def _compare_with_base(self, one: Contender, worker: Worker) -> dict[str, float]:
        """Cosines with the oracle on the base file, where both take and answer the same things."""
        if one.model.check_rows() != self.base.check_rows():
            return {}
        answers = [np.array(row, np.float32) for row in worker.bind("check", one.model.check_rows(), 8)]
        expected = self.base.answers(None)
        if [row.shape for row in answers] != [row.shape for row in expected]:
            return {}
        cosines = compare_rows(answers, expected)
        return {"base_mean": round(float(cosines.mean()), 6), "base_min": round(float(cosines.min()), 6)}

    def _time(
        self,
        contenders: Sequence[Contender],
        workers: Mapping[str, Worker],
        threads: int,
        workload: Workload,
        with_busy: bool,
    ) -> None:
        self.say(f"{_count(threads, 'thread')}: {workload.name}")
        ready: list[tuple[Contender, Ready]] = []
        for one in contenders:
            with self._tolerate(f"{one.name}, {workload.name}"):
                rows, expected = one.model.rows(workload), one.model.answers(workload)
                size, worker = workload.batch_size, workers[one.name]
                ready.append(
                    (one, prepare(one.name, worker, workload.name, rows, size, expected, one.limit, each=True))
                )
        if not ready:
            return
        budget = Budget(seconds=self.options.seconds, rounds=5)
        self._record(ready, workload, threads, False, budget)
        if with_busy and not self.options.is_quick:
            self.say(f"{_count(threads, 'thread')}: {workload.name}, beside a busy process")
            with busy_process():
                self._record(ready, workload, threads, True, budget)

    def _record(
        self,
        ready: Sequence[tuple[Contender, Ready]],
        workload: Workload,
        threads: int,
        is_busy: bool,
        budget: Budget,
    ) -> None:
        rows = {}
        for (one, prepared), timing in zip(ready, measure([one for _, one in ready], budget), strict=True):
            texts = one.model.rows(workload)
            described = describe_timing(timing, texts, workload.batch_size, one.peer.is_packed)
            rows[one.name] = {
                **described,
                "gop": count_operations(one.model.spec, [len(row) for row in texts]) / 1e9,
                "settings": self.loaded[one.name],
                "cosine_min": round(prepared.cosine_min, 6),
                "mj_per_text": None if is_busy else self._measure_energy(prepared, described),
            }
        self.workloads.append(
            {
                "name": workload.name,
                "length": None if workload.file else int(workload.length),
                "batch_size": workload.batch_size,
                "threads": threads,
                "is_busy": is_busy,
                "rows": rows,
            }
        )

    def _measure_energy(self, ready: Ready, described: Mapping[str, Any]) -> float | None:
        """Millijoules of the whole processor a text, over about a second of runs; None where it cannot be read."""
        if not self.energy.is_readable:
            return None
        calls: int = max(1, round(_ENERGY_S * described["texts_per_s"] / described["texts"]))
        self.energy.take()
        ready.contender.time(ready.key, calls, 0.0)
        millijoules = 1e3 * self.energy.take()
        return round(millijoules / (calls * int(described["texts"])), 3)

    def _start_cold(self, contenders: Sequence[Contender], threads: int) -> dict[str, Any]:
        """Process start to the first answer and the memory it took, in turns: {name: medians}."""
        reports: dict[str, list[dict[str, Any]]] = {}
        for turn in range(_COLD_RUNS):
            self.say(f"cold starts, {turn + 1} of {_COLD_RUNS}")
            for one in contenders:
                if one.name not in self.footprints or (one.name, threads) not in self.first:
                    continue
                with self._tolerate(f"{one.name}, cold start"):
                    row, cpus = one.model.check_rows()[0], affinity()[:threads]
                    settings = self.first[one.name, threads]
                    report = start_cold(one.peer_name, one.peer.files, threads, settings, row, cpus=cpus)
                    answer = np.array(report["answer"], np.float32)
                    cosine = float(compare_rows([answer], one.model.answers(None)[:1])[0])
                    if not cosine >= 0.75:
                        raise CheckFailedError(f"cosine {cosine:.5f} with the oracle: not timed")
                    reports.setdefault(one.name, []).append(report)
        return {
            name: {
                "threads": threads,
                "seconds": round(statistics.median(report["seconds"] for report in found), 3),
                "peak_mb": round(statistics.median(report["peak_mb"] for report in found), 1),
            }
            for name, found in reports.items()
        }

    def _add_rates(self, roof: Roof | None) -> None:
        """To each row GOP/s and its share of the roof of its precision."""
        for workload in self.workloads:
            for name, row in workload["rows"].items():
                precision = self.footprints[name]["precision"]
                row["gops"] = round(row.pop("gop") * row["texts_per_s"] / row["texts"], 2)
                limit = roof_of(roof, workload["threads"], precision) if roof else None
                row["share_of_roof"] = round(row["gops"] / limit, 4) if limit else None


def describe_timing(timing: Timing, rows: Sequence[Sequence[int]], batch_size: int, is_packed: bool) -> dict[str, Any]:
    """Milliseconds and rates of one contender's runs of these rows.

    Returns:
        Times of a batch: p50_ms and the bounds of its 95 % interval (order statistics,
        as if samples were independent), p90_ms from ten samples, p99_ms from a hundred, min_ms, samples. Rates from
        the median time of all rows: texts_per_s, tokens_per_s (no padding counted). fill: the texts' share of the
        tokens computed. idle_cpu: the share of a CPU used while others had their turn.
    """
    order = sorted((len(row) for row in rows), reverse=True)
    batches = [order[i : i + batch_size] for i in range(0, len(order), batch_size)]
    seconds = np.sort(timing.seconds)
    run_s = float(np.median(timing.seconds.reshape(-1, len(batches)).sum(1)))
    count = len(seconds)
    margin = 0.98 * math.sqrt(count)
    low, high = max(0, math.floor(count / 2 - margin)), min(count - 1, math.ceil(count / 2 + margin))
    computed = sum(order) if is_packed else sum(max(batch) * len(batch) for batch in batches)
    return {
        "p50_ms": _ms(timing.median),
        "p50_low_ms": _ms(float(seconds[low])),
        "p50_high_ms": _ms(float(seconds[high])),
        "p90_ms": _ms(timing.percentile(90)) if count >= 10 else None,
        "p99_ms": _ms(timing.percentile(99)) if count >= 100 else None,
        "min_ms": _ms(timing.least),
        "samples": count,
        "texts": len(order),
        "tokens": sum(order),
        "texts_per_s": round(len(order) / run_s, 2),
        "tokens_per_s": round(sum(order) / run_s, 1),
        "fill": round(sum(order) / computed, 4),
        "idle_cpu": round(timing.idle_cpu, 3),
    }


def default_backends() -> list[str]:
    """The backend that `auto` takes."""
    return [next(name for name, reason in available_backends().items() if reason is None)]


def _install(package: str) -> str:
    return f"pip install 'edgebert[{_EXTRAS.get(package, 'bench')}]'"


def _ms(seconds: float) -> float:
    return round(1e3 * seconds, 4)


def _count(count: int, one: str, many: str = "") -> str:
    return f"{count} {one if count == 1 else many or one + 's'}"


def _find_checkout() -> Path | None:
    root = Path(edgebert.__file__).parents[1]
    return root if (root / ".git").exists() else None


def command_line() -> list[str]:
    """What the user typed, for the result."""
    return ["edgebert", *sys.argv[1:]]
