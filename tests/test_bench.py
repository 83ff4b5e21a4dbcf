"""The latency harness: wrong results are never timed, contenders take turns, and a result says where it comes from."""

import json
import math
import os
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
from conftest import ISAS

import edgebert
from edgebert.backends import native
from edgebert.batch import PackedBatch
from edgebert.bench import provenance, roof
from edgebert.bench.harness import (
    Budget,
    CheckFailedError,
    PeerError,
    Ready,
    Timing,
    Worker,
    choose_settings,
    measure,
    prepare,
    start_cold,
)
from edgebert.bench.peers import PEERS, make_peer
from edgebert.bench.peers.base import ModelFiles, Peer, Settings, building
from edgebert.bench.session import PeerSession, installed_sizes
from edgebert.errors import BackendUnavailableError, EdgeBertError, InvalidInputError

ROOT = Path(__file__).resolve().parent.parent
ROWS = [[1, 2], [3], [4, 5, 6], [7, 8]]
REFERENCE = np.repeat(np.array([[1.0, 0.0], [0.0, 1.0], [0.6, 0.8], [0.8, 0.6]], np.float32), 8, axis=1)


class FakeContender:
    """Answers with given embeddings and times, and writes down what it is asked."""

    def __init__(self, name: str, log: list[str], milliseconds: float = 1.0, embeddings: Any = REFERENCE) -> None:
        self.name, self.log = name, log
        self.seconds, self.embeddings = milliseconds / 1e3, embeddings
        self.cpu_s = 0.0
        self.speed = {"": 1.0, "slow": 3.0, "fast": 0.5}
        self.variant = ""

    def load(self, threads: int, settings: Settings) -> None:
        self.variant = settings.get("variant", "")
        if self.variant == "broken":
            raise PeerError("no such variant")

    def bind(self, key: str, rows: Sequence[Sequence[int]], batch_size: int) -> Any:
        self.batch_size = batch_size
        return np.asarray(self.embeddings).tolist()

    def time(self, key: str, calls: int, warm_up_s: float, each: bool = False) -> list[float]:
        self.log.append(self.name)
        self.cpu_s += 0.25
        return [self.seconds * self.speed[self.variant] / self.batch_size] * calls

    def process(self) -> dict[str, float]:
        return {"cpu_s": self.cpu_s, "peak_mb": 1.0}


def ready(contender: FakeContender) -> Ready:
    return prepare(contender.name, contender, "work", ROWS, 1, REFERENCE, "int8")


@pytest.mark.parametrize(
    "embeddings",
    [REFERENCE[::-1], -REFERENCE, REFERENCE[:3], REFERENCE * np.nan, np.zeros((4, 16)), np.ones((4, 3))],
    ids=["other order", "opposite", "a row missing", "nan", "zeros", "other width"],
)
def test_wrong_results_are_refused_before_anything_is_timed(embeddings: Any) -> None:
    log: list[str] = []
    with pytest.raises(CheckFailedError, match="not timed"), np.errstate(invalid="ignore"):
        ready(FakeContender("a", log, embeddings=embeddings))
    assert log == []


def test_fp32_is_held_to_more_than_int8() -> None:
    rough = REFERENCE + np.float32(0.02) * np.tile(np.array([1, -1], np.float32), 8)
    contender = FakeContender("a", [], embeddings=rough)
    assert prepare("a", contender, "work", ROWS, 1, REFERENCE, "int8").cosine_min < 0.9999
    with pytest.raises(CheckFailedError, match="of fp32"):
        prepare("a", contender, "work", ROWS, 1, REFERENCE, "fp32")


def test_contenders_take_turns() -> None:
    log: list[str] = []
    pauses: list[float] = []
    names = ("a", "b", "c")
    timings = measure(
        [ready(FakeContender(name, log)) for name in names], Budget(seconds=0.2, rounds=3), pause=pauses.append
    )
    pilots, turns = log[:3], log[3:]
    assert pilots == list(names)
    assert turns == list(names) * (len(turns) // 3) and len(turns) == 12  # 50 calls of 1 ms a turn, 0.2 s in all
    assert [len(timing.seconds) for timing in timings] == [200, 200, 200]
    assert len(pauses) == len(turns)


def test_slow_contenders_have_their_rounds_and_fast_ones_go_on() -> None:
    log: list[str] = []
    contenders = [ready(FakeContender("slow", log, 500.0)), ready(FakeContender("fast", log, 0.1))]
    slow, fast = measure(contenders, Budget(seconds=1.0, rounds=5), pause=lambda _: None)
    assert len(slow.seconds) == 5
    assert len(fast.seconds) == pytest.approx(10_000, rel=0.1)
    assert log[2:12] == ["slow", "fast"] * 5 and set(log[12:]) == {"fast"}


def test_cpu_used_out_of_turn_is_seen() -> None:
    class Spinning(FakeContender):
        def process(self) -> dict[str, float]:
            return {"cpu_s": time.monotonic(), "peak_mb": 1.0}  # one CPU, all the time

    spinning, quiet = measure(
        [ready(Spinning("a", [])), ready(FakeContender("b", []))],
        Budget(seconds=0.2, rounds=3, settle_s=0.01),
    )
    assert spinning.idle_cpu > 0.5
    assert quiet.idle_cpu == 0.0


def test_percentiles() -> None:
    timing = Timing(np.arange(1.0, 102.0), 0.0)
    assert (timing.least, timing.median, timing.percentile(95)) == (1.0, 51.0, 96.0)


def test_the_fastest_working_configuration_is_chosen() -> None:
    candidates: list[Settings] = [{"variant": name} for name in ("broken", "slow", "fast", "")]
    contender = FakeContender("a", [])
    settings, batch_size, tried = choose_settings(contender, 1, candidates, (1, 8), ROWS)
    assert settings == {"variant": "fast"} and batch_size == 8
    assert [entry.get("ms") for entry in tried] == [None, 3.0, 0.375, 0.5, 0.0625, 1.0, 0.125]
    with pytest.raises(PeerError, match="no such variant"):
        choose_settings(contender, 1, [{"variant": "broken"}], (1,), ROWS)


class FakePeer(Peer):
    """Its embedding of a row is the row's length and first id; its output the padded ids."""

    title, precision, packages, file = "fake", "int8", ("numpy",), "fake.bin"

    def build(self, calibration: Sequence[Sequence[int]]) -> None:
        with building(self.path) as draft:
            draft.write_bytes(bytes(len(calibration)))

    def load(self, threads: int, settings: Settings) -> None:
        self.sizes: list[int] = []

    def bind(self, batch: PackedBatch) -> Callable[[], Any]:
        def call() -> Any:
            self.sizes.append(batch.num_sequences)
            return batch.pad()[0]

        return call

    def embed(self, output: Any, batch: PackedBatch) -> Any:
        return np.stack([batch.lengths, output[:, 0]], 1).astype(np.float32)


@pytest.mark.parametrize("lanes", [1, 2])
@pytest.mark.parametrize(("batch_size", "sizes"), [(1, [1, 1, 1, 1]), (3, [1, 3]), (8, [4])])
def test_session_sorts_by_length_and_gives_rows_back_in_order(
    lanes: int, batch_size: int, sizes: list[int], tmp_path: Path
) -> None:
    peer = FakePeer(ModelFiles(tmp_path, tmp_path))
    session = PeerSession(peer)
    session.load(1, {"lanes": lanes})
    assert session.bind("work", ROWS, batch_size) == [[2, 1], [1, 3], [3, 4], [2, 7]]
    peer.sizes.clear()
    seconds = session.time("work", 2, 0.0)
    assert sorted(peer.sizes) == sorted(sizes * 2) and len(seconds) == 2 and min(seconds) > 0


def test_session_builds_once_and_measures_sizes(tmp_path: Path) -> None:
    session = PeerSession(FakePeer(ModelFiles(tmp_path, tmp_path)))
    session.build(ROWS)
    session.build([])
    assert [path.name for path in tmp_path.iterdir()] == ["fake.bin"] and (tmp_path / "fake.bin").stat().st_size == 4
    found = session.footprint()
    assert found["versions"] == {"numpy": np.__version__} and found["installed_mb"] > 10 and found["model_mb"] == 0
    assert installed_sizes(["edgebert"]).keys() >= {"edgebert", "numpy"}
    assert installed_sizes(["no-such-package"]) == {}


def test_a_build_that_fails_leaves_nothing_under_the_name(tmp_path: Path) -> None:
    path = tmp_path / "model"
    with pytest.raises(RuntimeError, match="stop"), building(path) as draft:
        draft.mkdir()
        raise RuntimeError("stop")
    assert not path.exists()
    with building(path) as draft:
        draft.mkdir()
    assert path.is_dir()


def test_peers_are_known_by_name_and_precision(tmp_path: Path) -> None:
    for name in PEERS:
        peer = make_peer(name, ModelFiles(tmp_path, tmp_path))
        assert name.endswith(peer.precision) and peer.is_own == name.startswith("edgebert")
    with pytest.raises(InvalidInputError, match="expected one of edgebert-int8"):
        make_peer("no-such-peer", ModelFiles(tmp_path, tmp_path))


@pytest.fixture
def files(make_file: Callable[..., Path], tmp_path: Path) -> ModelFiles:
    make_file("edgebert-int8.onnx", int8=True)
    return ModelFiles(tmp_path, tmp_path)


@pytest.mark.skipif(not ISAS, reason="the native backend is not built")
def test_worker_in_its_own_process(files: ModelFiles) -> None:
    cpu = provenance.affinity()[0]
    with Worker("edgebert-int8", files, cpus=[cpu], environment={"EDGEBERT_FORCE_ISA": "baseline"}) as worker:
        assert worker.settings(1, "latency") == [{}]
        worker.load(1, {})
        model = edgebert.load(files.folder / "edgebert-int8.onnx", backend="native")
        expected = model.forward(PackedBatch.from_lists(ROWS), ["sentence_embedding"])["sentence_embedding"]
        one = prepare("edgebert-int8", worker, "work", ROWS, 2, expected, "int8")
        assert one.cosine_min > 0.998
        (timing,) = measure([one], Budget(seconds=0.01, rounds=2, warm_up_s=0.0))
        assert timing.least > 0 and worker.process()["peak_mb"] > 10
        assert os.sched_getaffinity(worker._process.pid) == {cpu} != os.sched_getaffinity(0) or os.cpu_count() == 1
        with pytest.raises(PeerError, match="KeyError: 'other'"):
            worker.time("other", 1, 0.0)
        worker._process.kill()
        with pytest.raises(PeerError, match="its process ended while asked to time"):
            worker.time("work", 1, 0.0)


SPINNER = """
import hashlib, threading

def spin():
    while True:
        hashlib.sha256(DATA)  # without Python's lock

DATA = bytes(1 << 24)
threading.Thread(target=spin, daemon=True).start()
"""


@pytest.mark.skipif(not ISAS, reason="the native backend is not built")
@pytest.mark.skipif(sys.platform != "linux", reason="how much CPU a process has used is read from /proc")
def test_a_peer_that_spins_takes_nothing_from_the_others(
    files: ModelFiles, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between requests it is stopped, and uses no CPU at all, however its threads wait."""
    (tmp_path / "sitecustomize.py").write_text(SPINNER, encoding="utf-8")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))

    def read(pid: int) -> list[str]:
        return Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()

    with Worker("edgebert-int8", files) as worker:
        worker.load(1, {})
        worker.bind("work", [[1, 2, 3]], 1)
        assert len(worker.time("work", 2, 0.0)) == 2
        pid, end = worker._process.pid, time.monotonic() + 60
        while read(pid)[0] != "T":
            assert time.monotonic() < end, "it was not stopped"
            time.sleep(0.01)
        used = read(pid)[11:13]
        assert used != ["0", "0"]
        time.sleep(0.1)
        assert read(pid)[11:13] == used
        assert len(worker.time("work", 2, 0.0)) == 2  # and goes on
    assert worker._process.returncode == 0


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere the system cannot be told to")
def test_a_stopped_worker_ends_with_a_parent_that_is_killed(files: ModelFiles) -> None:
    code = (
        "import os, signal, sys\nfrom edgebert.bench.harness import Worker\n"
        "from edgebert.bench.peers.base import ModelFiles\n"
        "worker = Worker('edgebert-int8', ModelFiles.from_json(sys.argv[1]))\nworker.process()\n"
        "print(worker._process.pid, flush=True)\nos.kill(os.getpid(), signal.SIGKILL)"
    )
    found = subprocess.run([sys.executable, "-c", code, files.to_json()], capture_output=True, text=True, check=False)
    pid, end = int(found.stdout), time.monotonic() + 60
    while Path(f"/proc/{pid}").exists() and " Z " not in Path(f"/proc/{pid}/stat").read_text(encoding="utf-8"):
        assert time.monotonic() < end, "it is there still"
        time.sleep(0.01)


@pytest.mark.skipif(not ISAS, reason="the native backend is not built")
def test_cold_start(files: ModelFiles) -> None:
    report = start_cold("edgebert-int8", files, 1, {}, ROWS[0])
    assert 0 < report["seconds"] < 60 and report["peak_mb"] > 10
    assert math.isclose(float(np.linalg.norm(report["answer"])), 1.0, rel_tol=1e-5)
    with pytest.raises(PeerError, match="edgebert-fp32.onnx does not exist"):
        start_cold("edgebert-fp32", files, 1, {}, ROWS[0])


def test_importing_the_harness_is_light() -> None:
    code = "import sys, edgebert.bench.harness, edgebert.bench.worker; print(*sys.modules)"
    loaded = subprocess.run(
        [sys.executable, "-P", "-c", code], capture_output=True, text=True, check=True
    ).stdout.split()
    assert not {"torch", "transformers", "onnx", "onnxruntime", "openvino", "ctranslate2"} & set(loaded)


def test_provenance_names_where_a_result_comes_from() -> None:
    recorder = provenance.Recorder(ROOT)
    found = recorder.describe(
        ["python", "-m", "benchmarks.peers", "--work", "/a/b", "--python", "x=/c/d"], {"x": "1.0"}
    )
    assert json.loads(json.dumps(found)) == found
    assert found["command"] == "python -m benchmarks.peers --work b --python x=d"
    assert found["packages"] == {"edgebert": edgebert.__version__, "x": "1.0"}
    assert len(found["load_average"]["before"]) == len(found["load_average"]["after"]) == 3
    keys = {"commit", "cpu", "isa", "cpus", "affinity", "cgroup_quota", "governor", "platform", "python", "date"}
    assert keys <= found.keys() and found["affinity"] and found["cpu"]


def test_provenance_of_a_run_too_short_to_measure_is_that_from_before() -> None:
    recorder = provenance.Recorder(ROOT)
    recorder.others_busy = 0.25  # no hundredth of a second tells this
    found = recorder.describe([], {})
    assert found["others_busy"] == 0.25 and any("used 25%" in warning for warning in found["warnings"])


def test_provenance_warns_of_what_makes_numbers_lie() -> None:
    assert provenance.find_warnings(0.01, 0.0, 0, None) == provenance.find_warnings(0.0, 0.01, 0, "performance") == []
    warnings = provenance.find_warnings(0.5, 0.2, 3, "powersave")
    for words in ("other processes used 50%", "hypervisor took 20%", "stopped this process 3 times", "'powersave'"):
        assert sum(words in warning for warning in warnings) == 1


def make_roof(int8: float) -> roof.Roof:
    isas = {"wide": {"int8_gops": int8, "fp32_gops": 100.0}, "narrow": {"int8_gops": 50.0, "fp32_gops": 25.0}}
    return {"2": {"isas": isas, "read": [{"mb": 1, "gb_per_s": int8}]}}


def test_the_roof_is_the_higher_of_two(tmp_path: Path) -> None:
    higher = roof.take_higher(make_roof(400.0), make_roof(410.0))
    assert higher == make_roof(410.0)
    assert roof.roof_of(higher, 2, "int8") == 410.0
    assert roof.roof_of(higher, 2, "fp32", "narrow") == 25.0
    assert roof.roof_of(higher, 2, "bf16") is None
    with pytest.raises(EdgeBertError, match="the roof could not be measured"):
        roof.measure_roof(Path("/no/such/program"), [1])
    program = tmp_path / "roof"
    program.write_text("#!/bin/sh\necho '{\"int8_gops\": inf}'\n")
    program.chmod(0o755)
    with pytest.raises(EdgeBertError, match="measure again"):
        roof.measure_roof(program, [1])


def test_without_its_program_the_roof_is_unknown(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    library = SimpleNamespace(_name=str(tmp_path / "libedgebert.so"))
    monkeypatch.setattr(native, "load_library", lambda: library)
    with pytest.raises(BackendUnavailableError, match=r"unknown: .*edgebert_roof measures it and is not there"):
        roof.find_roof()
    (tmp_path / "edgebert_roof").touch()
    assert roof.find_roof() == tmp_path / "edgebert_roof"

    def load_nothing() -> None:
        raise BackendUnavailableError("no library")

    monkeypatch.setattr(native, "load_library", load_nothing)
    with pytest.raises(BackendUnavailableError, match="unknown: .*the native library, and that is not installed"):
        roof.find_roof()


# benchmarks/


@pytest.fixture
def programs(monkeypatch: pytest.MonkeyPatch) -> dict[str, ModuleType]:
    """The modules of benchmarks/, which are not part of the package."""
    monkeypatch.syspath_prepend(str(ROOT))
    from benchmarks import peers, render, shapes

    return {"peers": peers, "render": render, "shapes": shapes}


def test_shapes(programs: dict[str, ModuleType], tmp_path: Path, tokenizer_json: str) -> None:
    shapes: Any = programs["shapes"]
    linears = 16 * 6 * (4 * 384 * 384 + 2 * 384 * 1536)
    attention = 6 * 2 * 384 * 16 * 16
    assert shapes.MINILM.count_operations([16]) == 2 * (linears + attention)
    assert sum(shapes.LENGTH_HISTOGRAM.values()) == 3000
    lengths = shapes.draw_lengths(500)
    assert lengths == shapes.draw_lengths(500) and np.mean(lengths) == pytest.approx(16.2, abs=1)
    (tmp_path / "tokenizer.json").write_text(tokenizer_json, encoding="utf-8")
    rows = shapes.Texts(tmp_path / "tokenizer.json").cut([5, 512, 7])
    assert [len(row) for row in rows] == [5, 512, 7] and {row[0] for row in rows} == {shapes.CLS}


def make_result() -> dict[str, Any]:
    def row(median_ms: float, precision: str, isa: str | None = None) -> dict[str, Any]:
        return {"median_ms": median_ms, "p95_ms": 2 * median_ms, "precision": precision, "isa": isa}

    rows = {
        "edgebert-int8": row(1.0, "int8"),
        "edgebert-int8 narrow": row(4.0, "int8", "narrow"),
        "edgebert-fp32": row(5.0, "fp32"),
        "other-int8": row(2.0, "int8"),
        "other-fp32": row(10.0, "fp32"),
        "other-bf16": row(3.0, "bf16"),
    }
    base = {"model": "minilm-l6", "threads": 2, "tokens": 32, "texts": 1, "gop": 0.2}
    workloads = [
        {**base, "kind": kind, "name": name, "peers": {key: dict(value) for key, value in rows.items()}}
        for kind, name in (("latency", "32 tokens"), ("busy", "32 tokens, busy"), ("throughput", "stream"))
    ]
    peers = {name: {"title": name.upper(), "installed_mb": 10.0, "model_mb": 5.0} for name in rows if " " not in name}
    return {
        "peers": peers,
        "workloads": workloads,
        "accuracy": {"minilm-l6": {"texts": 9, "cosine": {"edgebert-int8": {"mean": 0.9995, "min": 0.99}}}},
        "cold_start": {"other-int8": {"median_s": 0.5, "peak_mb": 120.0}},
    }


def test_rates_and_tables(programs: dict[str, ModuleType]) -> None:
    peers: Any = programs["peers"]
    render: Any = programs["render"]
    result = make_result()
    for workload in result["workloads"]:
        peers.add_rates(workload, make_roof(400.0))
    rows = result["workloads"][0]["peers"]
    ratios = {name: row["ratio_to_fastest_peer"] for name, row in rows.items()}
    assert ratios == {
        "edgebert-int8": 0.5,
        "edgebert-int8 narrow": 2.0,
        "edgebert-fp32": 0.5,  # against fp32 alone
        "other-int8": 1.0,
        "other-fp32": 5.0,
        "other-bf16": 1.5,
    }
    shares = {name: row["share_of_roof"] for name, row in rows.items()}
    assert shares["edgebert-int8"] == 0.5 and shares["edgebert-int8 narrow"] == 1.0 and shares["other-fp32"] == 0.2
    assert shares["other-bf16"] is None
    tables = render.render_result(result)
    assert set(tables) == {"peers-minilm-l6-2", "busy", "footprint", "accuracy"}
    assert "| EDGEBERT-INT8 | 1 (50%) | 1000 (50%) |" in tables["peers-minilm-l6-2"]
    assert "| EDGEBERT-INT8, narrow forced | 4 (100%) |" in tables["peers-minilm-l6-2"]
    assert "| EdgeBERT int8 over the fastest peer | 2.00x | 2.00x |" in tables["peers-minilm-l6-2"]
    assert "| OTHER-INT8 | 0.50 | 120 | 5 | 10 |" in tables["footprint"]
    assert "| OTHER-BF16 | 3 | 6 | 3 | 6 |" in tables["busy"]


def test_kernel_rows_have_their_roof(programs: dict[str, ModuleType]) -> None:
    from benchmarks import kernels

    table = {"1": make_roof(400.0)["2"]}
    linear = {"isa": "narrow", "kernel": "linear_u8s8_f32", "shape": "s", "us": 100.0}
    linear |= {"gop": 0.004, "precision": "int8"}
    norm = {"isa": "wide", "kernel": "add_layernorm", "shape": "s", "us": 10.0, "mb": 0.5}
    rows = [kernels.add_rates(row, table) for row in (linear, norm)]
    assert rows[0]["gops"] == 40.0 and rows[0]["share"] == 0.8 and rows[1]["gb_per_s"] == 50.0
    render: Any = programs["render"]
    text = render.render_kernels({"kernels": rows})["kernels"]
    assert "| `linear_u8s8_f32` | s | 100.0 µs, 40 GOP/s (80%) |  |" in text


def test_tables_go_between_their_markers(programs: dict[str, ModuleType]) -> None:
    render: Any = programs["render"]
    text = "a\n<!-- table:one -->\nb\n<!-- table:two -->\n\nold\n\n<!-- /table -->\nc\n"
    filled = render.fill_markers(text, {"one": "1", "two": "2"})
    assert filled == (
        "a\n<!-- table:one -->\n\n1\n\n<!-- /table -->\nb\n<!-- table:two -->\n\n2\n\n<!-- /table -->\nc\n"
    )
    assert render.fill_markers(filled, {"one": "1", "two": "2"}) == filled
    assert render.fill_markers(text, {"three": "3"}) == text
