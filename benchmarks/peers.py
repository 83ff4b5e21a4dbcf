"""EdgeBERT against its peers on the same token ids: results checked first, then all timed in turns.

    python -m benchmarks.peers --minilm FOLDER --threads 1,2 --work DIR --out benchmarks/results/peers.json

Builds under DIR what is missing there, the models in each runtime's form and each runtime's fastest configuration (so
the first run takes much longer); --choose tries the configurations again. Every peer runs in a process of its own,
pinned to as many CPUs as it has threads. Its time ends when its last hidden state can be read, EdgeBERT's only when the
embedding is pooled and normalised.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import hashlib
import json
import statistics
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import ROOT, write_result
from benchmarks.kernels import build_native
from benchmarks.render import render_result
from benchmarks.shapes import LENGTHS, MINILM, SHAPES, Shape, Texts, draw_lengths, make_source
from edgebert.backends.cpus import usable_cpus
from edgebert.bench.harness import (
    COSINE_LIMITS,
    F32,
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
from edgebert.bench.peers import PEERS, make_peer
from edgebert.bench.peers.base import Kind, ModelFiles, Peer, Settings
from edgebert.bench.provenance import Recorder, affinity
from edgebert.bench.roof import Roof, measure_roof, roof_of, take_higher
from edgebert.exporting.check import compare_rows

REFERENCE = "torch-fp32"
OWN_INT8 = "edgebert-int8"
ALL_MODELS = ",".join(shape.name for shape in SHAPES)
BATCH_SIZES = (1, 8, 16, 32)  # of texts sorted by length
CALIBRATION_TEXTS = 200
CHECK_TEXTS = 100
CHOICE_LENGTH = 32  # tokens, and
CHOICE_TEXTS = 32  # texts of the stream, on which configurations are compared
BUSY_LENGTH = 32
COLD_RUNS = 3


@dataclass(frozen=True)
class Entry:
    """One line of a table: a peer, perhaps with an instruction set forced (then it has a part in latencies only)."""

    name: str
    peer: Peer
    python: str
    isa: str | None = None

    def start(self, threads: int) -> Worker:
        """Its process."""
        environment = {"EDGEBERT_FORCE_ISA": self.isa} if self.isa else None
        return Worker(self.name.partition(" ")[0], self.peer.files, self.python, affinity()[:threads], environment)


@dataclass
class Run:
    """What every step needs, and what they have found so far."""

    texts: Texts
    budget: Budget
    roof: Roof
    choose: bool
    started: float = field(default_factory=time.monotonic)
    workloads: list[dict[str, Any]] = field(default_factory=list)
    accuracy: dict[str, dict[str, Any]] = field(default_factory=dict)
    left_out: dict[str, str] = field(default_factory=dict)

    def say(self, text: str) -> None:
        """Progress on standard error."""
        print(f"[{time.monotonic() - self.started:6.1f} s] {text}", file=sys.stderr, flush=True)

    @contextlib.contextmanager
    def tolerate(self, what: str) -> Iterator[None]:
        """A peer that fails or computes something else is left out, with the reason, and the others go on."""
        try:
            yield
        except (PeerError, CheckFailedError) as error:
            self.left_out[what] = str(error)
            self.say(f"LEFT OUT: {what}: {error}")


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.peers", description=__doc__.splitlines()[0])
    parser.add_argument("--minilm", type=Path, required=True, help="all-MiniLM-L6-v2 as a Hugging Face folder")
    parser.add_argument("--work", type=Path, required=True, help="a folder for models and builds, kept between runs")
    parser.add_argument("--out", type=Path, help="write JSON here")
    parser.add_argument("--threads", help="counts, for instance 1,2 (default: 1 and the usable CPUs)")
    parser.add_argument("--only", default=",".join(PEERS), help="peers (default: %(default)s)")
    parser.add_argument("--models", help=f"default: {ALL_MODELS}, {MINILM.name} with --quick")
    parser.add_argument(
        "--python",
        action="append",
        default=[],
        metavar="PEER=PATH",
        help="another interpreter for a peer (openvino-int8), all of a kind (openvino) or all but EdgeBERT (others)",
    )
    parser.add_argument("--choose", action="store_true", help="try every configuration again")
    parser.add_argument("--quick", action="store_true", help="a look, not evidence: short turns, no cold starts")
    args = parser.parse_args()
    counts = sorted({1, usable_cpus()}) if args.threads is None else sorted(map(int, args.threads.split(",")))
    if counts[-1] > len(affinity()):
        parser.error(f"--threads {counts[-1]}: this process may use {len(affinity())} CPUs")

    program = build_native(args.work / "native") / "edgebert_roof"
    recorder = Recorder(ROOT)
    run = Run(
        Texts(args.minilm / "tokenizer.json"),
        Budget(seconds=0.2, rounds=3) if args.quick else Budget(),
        measure_roof(program, counts),
        args.choose,
    )
    pythons = dict(word.split("=", 1) for word in args.python)
    wanted = (args.models or (MINILM.name if args.quick else ALL_MODELS)).split(",")
    models: dict[str, Any] = {}
    peers: dict[str, Any] = {}
    cold_start: dict[str, Any] = {}
    for shape in (shape for shape in SHAPES if shape.name in wanted):
        folder = args.work / shape.name
        folder.mkdir(parents=True, exist_ok=True)
        files = ModelFiles(make_source(shape, args.minilm, folder), folder)
        models[shape.name] = {"weights": shape.weights, "stream": shape.stream}
        reference, *entries = (
            Entry(name, make_peer(name, files), find_python(name, pythons))
            for name in (REFERENCE, *args.only.split(","))
        )
        entries = build_all(run, shape, entries)
        for threads in counts:
            is_main = shape is MINILM and threads == counts[-1]
            forced = force_isas(run.roof[str(threads)], entries) if shape is MINILM else []
            with Field(run, shape, threads, [*entries, *forced], reference) as field_:
                field_.run_latencies(BUSY_LENGTH if is_main else None)
                field_.run_stream()
                if is_main:
                    peers = field_.describe_peers()
            if is_main and not args.quick:
                cold_start = start_all_cold(run, entries, reference, threads)

    roof = take_higher(run.roof, measure_roof(program, counts))
    for workload in run.workloads:
        add_rates(workload, roof)
    versions = {name: version for peer in peers.values() for name, version in peer["versions"].items()}
    result: dict[str, Any] = {
        "provenance": recorder.describe(["python", "-m", "benchmarks.peers", *sys.argv[1:]], versions),
        "budget": dataclasses.asdict(run.budget),
        "roof": roof,
        "models": models,
        "peers": peers,
        "accuracy": run.accuracy,
        "workloads": run.workloads,
        "cold_start": cold_start,
        "left_out": run.left_out,
    }
    if args.out:
        write_result(args.out, result)
    for name, table in render_result(result).items():
        print(f"\n{name}\n\n{table}")
    for warning in result["provenance"]["warnings"]:
        print(f"\nwarning: {warning}")
    run.say(f"done; left out: {', '.join(run.left_out) or 'nothing'}")
    return 1 if run.left_out else 0


def find_python(name: str, pythons: Mapping[str, str]) -> str:
    """The interpreter for a peer: by its name, its kind, or `others`; else this one."""
    kind = name.partition("-")[0]
    rest = sys.executable if kind == OWN_INT8.partition("-")[0] else pythons.get("others", sys.executable)
    return pythons.get(name, pythons.get(kind, rest))


def build_all(run: Run, shape: Shape, entries: Sequence[Entry]) -> list[Entry]:
    """Build what is missing; the peers that have what they load."""
    built = []
    for entry in entries:
        with run.tolerate(f"{entry.name}, {shape.name}"):
            if not entry.peer.path.exists():
                run.say(f"{shape.name}: building for {entry.name}")
                with entry.start(len(affinity())) as worker:
                    worker.build(run.texts.calibration[:CALIBRATION_TEXTS])
            built.append(entry)
    return built


def force_isas(roof: Mapping[str, Any], entries: Sequence[Entry]) -> list[Entry]:
    """EdgeBERT's int8 with each instruction set of this CPU forced, but the best and the plain one."""
    isas = list(roof["isas"])[1:-1]
    return [
        dataclasses.replace(entry, name=f"{entry.name} {isa}", isa=isa)
        for entry in entries
        if entry.name == OWN_INT8
        for isa in isas
    ]


def embed_reference(entry: Entry, rows: Sequence[Sequence[int]]) -> F32:
    """Embeddings f32 [n, hidden] of the rows by PyTorch in fp32, one at a time; kept for the next time."""
    digest = hashlib.sha256(json.dumps(list(rows)).encode()).hexdigest()[:16]
    path = entry.peer.files.folder / f"reference-{digest}.npy"
    if not path.exists():
        with entry.start(len(affinity())) as worker:
            worker.load(len(affinity()), {})
            np.save(path, np.array(worker.bind("reference", rows, 1), np.float32))
    reference: F32 = np.load(path)
    return reference


class Field(contextlib.ExitStack):
    """The contenders of one model and count of threads, each in its process and with its fastest configuration."""

    def __init__(self, run: Run, shape: Shape, threads: int, entries: Sequence[Entry], reference: Entry) -> None:
        super().__init__()
        self.run, self.shape, self.threads = run, shape, threads
        self.reference = reference
        self.title = f"{shape.name}, {threads} thread{'s' if threads > 1 else ''}"
        run.say(f"{self.title}: starting {len(entries)} processes")
        self.entries = list(entries)
        self.workers = {entry.name: self.enter_context(entry.start(threads)) for entry in entries}
        self.loaded: dict[str, Settings] = {}
        self.stream = run.texts.cut(draw_lengths(shape.stream))

    def run_latencies(self, busy_length: int | None) -> None:
        """One text of each length; that of `busy_length` also beside a busy process."""
        run = self.run
        chosen = self._load("latency", self.entries, run.texts.cut([CHOICE_LENGTH]), (1,))
        for length in LENGTHS:
            rows = run.texts.cut([length])
            ready = self._prepare(f"{length} tokens", rows, chosen)
            self._time(f"{length} tokens", "latency", rows, ready, chosen, run.budget)
            if length == busy_length:
                with busy_process():
                    self._time(f"{length} tokens, busy", "busy", rows, ready, chosen, run.budget)

    def run_stream(self) -> None:
        """Batch scoring of the stream of texts; before it, the accuracy on real sentences."""
        sample = self.stream[:: len(self.stream) // CHOICE_TEXTS]
        whole = [entry for entry in self.entries if entry.isa is None]
        chosen = self._load("throughput", whole, sample, BATCH_SIZES)
        cosines = {
            one.name: {"mean": round(one.cosine_mean, 5), "min": round(one.cosine_min, 5)}
            for one in self._prepare("real sentences", self.run.texts.sentences[:CHECK_TEXTS], chosen)
        }
        self.run.accuracy[self.shape.name] = {"texts": CHECK_TEXTS, "cosine": cosines}
        ready = self._prepare("stream", self.stream, chosen)
        budget = dataclasses.replace(self.run.budget, turn_s=0.0)  # one pass a turn
        self._time("stream", "throughput", self.stream, ready, chosen, budget)

    def describe_peers(self) -> dict[str, Any]:
        """What each peer is, its versions and sizes."""
        return {
            entry.name: {
                "title": entry.peer.title,
                "precision": entry.peer.precision,
                **self.workers[entry.name].footprint(),
            }
            for entry in self.entries
            if entry.isa is None
        }

    def _load(
        self, kind: Kind, entries: Sequence[Entry], rows: Sequence[Sequence[int]], batch_sizes: Sequence[int]
    ) -> dict[str, dict[str, Any]]:
        """Load each with its fastest configuration for that kind of work, found now or before: {name: the choice}."""
        self.run.say(f"{self.title}: loading for {kind}")
        chosen = {}
        for entry in entries:
            with self.run.tolerate(f"{entry.name}, {self.title}, {kind}"):
                choice = self._choose(kind, entry, rows, batch_sizes)
                if self.loaded.get(entry.name) != choice["settings"]:
                    self.workers[entry.name].load(self.threads, choice["settings"])
                    self.loaded[entry.name] = choice["settings"]
                chosen[entry.name] = choice
        return chosen

    def _choose(
        self, kind: Kind, entry: Entry, rows: Sequence[Sequence[int]], batch_sizes: Sequence[int]
    ) -> dict[str, Any]:
        worker = self.workers[entry.name]
        candidates = worker.settings(self.threads, kind)
        if len(candidates) * len(batch_sizes) == 1:
            return {"settings": candidates[0], "batch_size": batch_sizes[0]}
        path = entry.peer.files.folder / f"choice-{entry.name}-{kind}-{self.threads}.json"
        if self.run.choose or not path.exists():
            self.loaded.pop(entry.name, None)
            settings, batch_size, tried = choose_settings(worker, self.threads, candidates, batch_sizes, rows)
            write_result(path, {"settings": settings, "batch_size": batch_size, "tried": tried})
        choice: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        return choice

    def _prepare(self, key: str, rows: Sequence[Sequence[int]], chosen: Mapping[str, dict[str, Any]]) -> list[Ready]:
        expected = embed_reference(self.reference, rows)
        ready = []
        for entry in self.entries:
            if entry.name in chosen:
                with self.run.tolerate(f"{entry.name}, {self.title}, {key}"):
                    size = chosen[entry.name]["batch_size"]
                    worker, precision = self.workers[entry.name], entry.peer.precision
                    ready.append(prepare(entry.name, worker, key, rows, size, expected, precision))
        return ready

    def _time(
        self,
        name: str,
        kind: str,
        rows: Sequence[Sequence[int]],
        ready: Sequence[Ready],
        chosen: Mapping[str, dict[str, Any]],
        budget: Budget,
    ) -> None:
        self.run.say(f"{self.title}: {name}")
        lengths = [len(row) for row in rows]
        isas = {entry.name: entry.isa for entry in self.entries}
        precisions = {entry.name: entry.peer.precision for entry in self.entries}
        self.run.workloads.append(
            {
                "model": self.shape.name,
                "threads": self.threads,
                "kind": kind,
                "name": name,
                "texts": len(rows),
                "tokens": sum(lengths),
                "gop": self.shape.count_operations(lengths) / 1e9,
                "peers": {
                    one.name: {
                        **describe_timing(timing),
                        "precision": precisions[one.name],
                        "isa": isas[one.name],
                        "cosine_min": round(one.cosine_min, 5),
                        "settings": chosen[one.name]["settings"],
                        "batch_size": chosen[one.name]["batch_size"],
                    }
                    for one, timing in zip(ready, measure(ready, budget), strict=True)
                },
            }
        )


def describe_timing(timing: Timing) -> dict[str, Any]:
    """Milliseconds, the count of samples, and the CPUs used while others had their turn."""
    return {
        "median_ms": round(1e3 * timing.median, 4),
        "p95_ms": round(1e3 * timing.percentile(95), 4),
        "min_ms": round(1e3 * timing.least, 4),
        "samples": len(timing.seconds),
        "idle_cpu": round(timing.idle_cpu, 3),
    }


def start_all_cold(run: Run, entries: Sequence[Entry], reference: Entry, threads: int) -> dict[str, Any]:
    """Process start to the first embedding and the memory it took, all peers in turns: {name: medians}."""
    row = run.texts.cut([BUSY_LENGTH])
    expected = embed_reference(reference, row)
    settings = {
        name: row["settings"]
        for workload in run.workloads
        if workload["kind"] == "latency" and (workload["model"], workload["threads"]) == (MINILM.name, threads)
        for name, row in workload["peers"].items()
    }
    reports: dict[str, list[dict[str, Any]]] = {name: [] for name in settings}
    for turn in range(COLD_RUNS):
        run.say(f"cold starts, {turn + 1} of {COLD_RUNS}")
        for entry in entries:
            if entry.name not in settings:
                continue
            with run.tolerate(f"{entry.name}, cold start"):
                cpus, chosen = affinity()[:threads], settings[entry.name]
                report = start_cold(entry.name, entry.peer.files, threads, chosen, row[0], entry.python, cpus)
                cosine = float(compare_rows(np.array([report["answer"]], np.float32), expected)[0])
                if cosine < COSINE_LIMITS[entry.peer.precision][1]:
                    raise CheckFailedError(f"cosine {cosine:.5f} with the reference")
                reports[entry.name].append(report)
    return {
        name: {
            "median_s": round(statistics.median(report["seconds"] for report in found), 3),
            "peak_mb": round(statistics.median(report["peak_mb"] for report in found), 1),
        }
        for name, found in reports.items()
        if found
    }


def add_rates(workload: dict[str, Any], roof: Roof) -> None:
    """To each peer: GOP/s, its share of the roof of its precision, and its time over that of the fastest peer.

    EdgeBERT is compared with the fastest of the others, in fp32 with the fastest in fp32; each other with the fastest
    of all others.
    """
    peers = workload["peers"]
    others = {name: row for name, row in peers.items() if not name.startswith("edgebert")}
    for name, row in peers.items():
        row["gops"] = round(workload["gop"] / row["median_ms"] * 1e3, 1)
        limit = roof_of(roof, workload["threads"], row["precision"], row["isa"])
        row["share_of_roof"] = round(row["gops"] / limit, 3) if limit else None
        rivals = [
            other["median_ms"]
            for other in others.values()
            if name in others or row["precision"] != "fp32" or other["precision"] == "fp32"
        ]
        row["ratio_to_fastest_peer"] = round(row["median_ms"] / min(rivals), 3) if rivals else None


if __name__ == "__main__":
    raise SystemExit(main())
