"""The native backend: its library and loader, ISAs and threads by name, and memory that stays flat."""

from __future__ import annotations

import ctypes
import ctypes.util
import gc
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import numpy as np
import onnx
import pytest
from artifacts import random_artifact, random_batch

from edgebert.artifact.reader import read_artifact
from edgebert.backends import native
from edgebert.backends.cpus import usable_cpus
from edgebert.batch import PackedBatch
from edgebert.errors import BackendUnavailableError, EdgeBertError, InvalidInputError, ModelFormatError
from edgebert.model import load

SMALL = {"layers": ((2, 3, 5), (0, 3, 7)), "hidden": 6, "vocab_size": 11, "num_positions": 9}


@pytest.fixture(scope="module")
def data() -> bytes:
    return random_artifact(int8=True, **SMALL)


def load_in_engine(data: bytes) -> None:
    """Give the bytes to the engine's own loader, which has its own reader of model files."""
    library, model = native.load_library(), ctypes.c_void_p()
    try:
        native.check(library, library.eb_load_memory(data, len(data), native._Options(None, 1), ctypes.byref(model)))
    finally:
        library.eb_free(model)


def test_the_library_is_in_the_package() -> None:
    assert native.unavailable_reason() is None
    assert "baseline" in native.usable_isas()
    assert set(native.usable_isas()) <= set(native.built_isas())


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("/nonexistent/lib.so", "cannot open"),
        (sys.executable, "cannot be loaded"),
        ("/", "Is a directory"),
        (__file__, "invalid ELF header"),
        *([(found, "eb_version")] if (found := ctypes.util.find_library("m")) else []),  # not all systems can say
    ],
)
def test_a_library_that_is_none_is_explained(value: str, message: str) -> None:
    code = "from edgebert.backends import native; print(native.unavailable_reason())"
    result = subprocess.run(
        [sys.executable, "-P", "-c", code],
        env={**os.environ, "EDGEBERT_LIBRARY": value},
        capture_output=True,
        text=True,
        check=True,
        timeout=300,
    )
    assert message in result.stdout
    assert value in result.stdout
    assert "EDGEBERT_LIBRARY names it: correct or unset that" in result.stdout


def test_an_unknown_isa_is_refused_by_name(data: bytes) -> None:
    with pytest.raises(BackendUnavailableError, match="unknown instruction set 'avx10_9'") as error:
        native.load(data, isa="avx10_9")
    assert "baseline" in str(error.value)


def test_an_isa_that_this_cpu_lacks_is_another_error(data: bytes) -> None:
    lacking = [isa for isa in native.built_isas() if isa not in native.usable_isas()]
    if not lacking:
        pytest.skip("this CPU runs every instruction set of this build")
    with pytest.raises(BackendUnavailableError, match=f"this CPU cannot run the instruction set '{lacking[0]}'"):
        native.load(data, isa=lacking[0])


def test_threads(data: bytes) -> None:
    assert native.default_threads() == usable_cpus()
    assert native.load(data).threads == usable_cpus()
    one, three = native.load(data, threads=1), native.load(data, threads=3)
    assert one.detail == f"native, {one.isa}, 1 thread"
    assert three.detail == f"native, {three.isa}, 3 threads"
    with pytest.raises(InvalidInputError, match="num_threads"):
        native.load(data, threads=100_000)


def test_a_file_may_go_away_after_loading(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "model.onnx"
    path.write_bytes(data)
    from_file, from_folder, from_bytes = native.load(path), native.load(tmp_path), native.load(data)
    path.write_bytes(b"\0" * len(data))
    path.unlink()
    batch = random_batch(from_file.spec, [1, 9, 4])
    expected = from_bytes.run(batch, ["sentence_embedding"])["sentence_embedding"]
    for model in (from_file, from_folder):
        np.testing.assert_array_equal(model.run(batch, ["sentence_embedding"])["sentence_embedding"], expected)


def test_errors_name_the_file(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "tämpered.onnx"
    model = onnx.load_from_string(data)
    model.graph.node[0].name = "renamed"
    path.write_bytes(model.SerializeToString())
    with pytest.raises(ModelFormatError, match="graph was changed") as error:
        native.load(path)
    assert str(path) in str(error.value)


@pytest.mark.parametrize(
    "arguments", [{}, {"task": "pretraining", "embedding_size": 4}], ids=["embedding", "pretraining"]
)
@pytest.mark.parametrize("int8", [False, True])
def test_both_readers_refuse_the_same_files(arguments: dict[str, object], int8: bool) -> None:
    """The engine's reader and Python's see the same mutants; the engine alone looks into the weights' values."""
    data = random_artifact(int8=int8, **{**SMALL, **arguments})
    rng = np.random.default_rng(0)
    load_in_engine(data)
    stricter = ("-128", "not finite", "not the weight's sums", "not valid JSON")
    looser = ("edgebert.probe", "edgebert.report", "edgebert.tokenizer", "UTF-8")
    for _ in range(500):
        mutant = bytearray(data)
        for at in rng.integers(0, len(data), rng.integers(1, 3)):
            mutant[at] = rng.choice([0, 1, 2, 127, 128, mutant[at] ^ 1, mutant[at] ^ 128])
        errors = []
        for read in (load_in_engine, read_artifact):
            try:
                read(bytes(mutant))  # type: ignore[operator]
                errors.append("")
            except EdgeBertError as error:
                errors.append(str(error))
        engine, python = errors
        agree = bool(engine) == bool(python)
        explained = any(text in engine for text in stricter) if engine else any(text in python for text in looser)
        assert agree or explained, errors


def test_the_engine_checks_what_the_caller_hands_it(data: bytes) -> None:
    model = native.load(data)
    good = random_batch(model.spec, [2, 3])

    def run(**changes: object) -> None:
        fields = {"input_ids": good.input_ids, "token_type_ids": good.token_type_ids, "cu_seqlens": good.cu_seqlens}
        # past the checks made in Python, straight to the C API
        model._run(PackedBatch(**{**fields, **changes}), ["last_hidden_state"])  # type: ignore[arg-type]

    run()
    for name, values, message in (
        ("cu_seqlens", [1, 2, 5], r"cu_seqlens\[0\] is 1"),
        ("cu_seqlens", [0, 2, 2], "sequence 1 has 0 tokens"),
        ("cu_seqlens", [0, 3, 2], "sequence 1 has -1 tokens"),
        ("input_ids", [1, 2, 3, 4, 11], r"input_ids\[4\] is 11, expected 0 to 10"),
        ("input_ids", [-1, 2, 3, 4, 5], r"input_ids\[0\] is -1"),
        ("token_type_ids", [0, 0, 2, 0, 0], r"token_type_ids\[2\] is 2, expected 0 to 1"),
    ):
        with pytest.raises(InvalidInputError, match=message):
            run(**{name: np.array(values, np.int32)})
    with pytest.raises(InvalidInputError, match="10 tokens, the model takes 1 to 9"):
        run(
            input_ids=np.zeros(10, np.int32),
            token_type_ids=np.zeros(10, np.int32),
            cu_seqlens=np.array([0, 10], np.int32),
        )


def test_outputs_need_room(data: bytes) -> None:
    model, library = native.load(data), native.load_library()
    batch = random_batch(model.spec, [2, 3])
    out = np.zeros(30, np.float32)
    args = native._Batch(batch.input_ids.ctypes.data, None, batch.cu_seqlens.ctypes.data, 2)
    outputs = (native._Output * 1)(native._Output(b"last_hidden_state", out.ctypes.data, 29))
    assert library.eb_run(model._model, args, outputs, 1) == 1
    assert b"needs room for 30 floats, got 29" in library.eb_last_error()
    outputs[0].capacity = 30
    assert library.eb_run(model._model, args, outputs, 1) == 0
    assert out.any()
    outputs[0].data = None
    assert library.eb_run(model._model, args, outputs, 1) == 1
    outputs[0].name = b"logits"
    assert library.eb_run(model._model, args, outputs, 1) == 1
    assert b"unknown output 'logits'" in library.eb_last_error()


def test_threads_of_the_caller_share_a_model(data: bytes) -> None:
    model = native.load(data, threads=2)
    batches = [random_batch(model.spec, [1 + i % 9, 3], seed=i) for i in range(8)]
    expected = [model.run(batch, ["last_hidden_state"])["last_hidden_state"] for batch in batches]
    wrong = []

    def work(first: int) -> None:
        for i in range(100):
            which = (first + i) % len(batches)
            got = model.run(batches[which], ["last_hidden_state"])["last_hidden_state"]
            if not np.array_equal(got, expected[which]):
                wrong.append(which)

    threads = [threading.Thread(target=work, args=(i,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_callers_at_once_hold_no_more_memory_than_threads(make_file: Callable[..., Path]) -> None:
    """However many call: a place for each run that has a thread of its own, of the size it has with one thread."""
    path = make_file(hidden=64, layers=((2, 32, 128),))
    shared, alone, single = (native.load(path, threads=threads) for threads in (2, 2, 1))
    batches = [random_batch(shared.spec, [32] * 12, seed=i) for i in range(8)]
    expected = [alone.run(batch, ["last_hidden_state"])["last_hidden_state"] for batch in batches]
    for batch in batches:
        single.run(batch, ["last_hidden_state"])

    def work(batch: PackedBatch) -> bytes:
        return b"".join(shared.run(batch, ["last_hidden_state"])["last_hidden_state"].tobytes() for _ in range(20))

    with ThreadPoolExecutor(8) as callers:
        found = list(callers.map(work, batches))
    assert found == [values.tobytes() * 20 for values in expected]
    assert 0 < shared.workspace_bytes <= alone.workspace_bytes + 2 * single.workspace_bytes


def test_more_threads_than_cpus_are_said(make_file: Callable[..., Path]) -> None:
    path, cpus = make_file(), usable_cpus()
    for backend in ("native", "auto"):
        assert "more than" not in repr(load(path, backend, threads=cpus))
        assert f"{cpus + 1} threads, more than the {cpus} CPU" in repr(load(path, backend, threads=cpus + 1))


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="the peak is read as Linux gives it")
@pytest.mark.parametrize("int8", [False, True], ids=["f32", "int8"])
def test_loading_a_file_never_holds_its_weights_twice(tmp_path: Path, int8: bool) -> None:
    shapes = {"layers": ((2, 32, 1024),) * 24, "hidden": 512 if int8 else 256, "vocab_size": 2000}
    path = tmp_path / "model.onnx"
    size = len(random_artifact(path, int8=int8, **shapes))
    code = (
        "import ctypes, sys\n"
        "peak = lambda: next(int(line.split()[1]) << 10 for line in open('/proc/self/status') if 'VmHWM' in line)\n"
        "library, model = ctypes.CDLL(sys.argv[1]), ctypes.c_void_p()\n"
        "before = peak()\n"
        "assert library.eb_load(sys.argv[2].encode(), None, ctypes.byref(model)) == 0\n"
        "print(peak() - before)\n"
    )
    run = [sys.executable, "-S", "-c", code, native.load_library()._name, str(path)]
    added = int(subprocess.run(run, check=True, capture_output=True, text=True).stdout)
    assert size > 20_000_000
    assert 0.9 * size < added < 1.25 * size


@pytest.fixture
def no_huge_pages() -> Iterator[None]:
    """Keep the kernel from filling up, in the background, freed arrays that NumPy had asked huge pages for."""
    set_disabled = partial(ctypes.CDLL(None).prctl, 41)  # PR_SET_THP_DISABLE
    set_disabled(1, 0, 0, 0)
    yield
    set_disabled(0, 0, 0, 0)


def resident_bytes() -> int:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="resident memory is read from /proc")
@pytest.mark.parametrize("threads", [1, 2])
def test_memory_is_flat_after_warm_up(threads: int, no_huge_pages: None) -> None:
    data = random_artifact(int8=True, hidden=64, layers=((2, 32, 128),), vocab_size=101, num_positions=128)
    model = native.load(data, threads=threads)
    rng = np.random.default_rng(0)

    def run(lengths: list[int]) -> None:
        model.run(random_batch(model.spec, lengths), ["sentence_embedding"])

    for lengths in ([128] * 16, [128], [1] * 400, [1] * 90):  # the most tokens and the most sequences, shared or not
        run(lengths)
    for _ in range(200):  # what Python and the C library cache
        run(rng.integers(1, 129, rng.integers(1, 17)).tolist())
    gc.collect()
    workspace, resident = model.workspace_bytes, resident_bytes()
    assert workspace > 0
    for _ in range(2000):
        run(rng.integers(1, 129, rng.integers(1, 17)).tolist())
    gc.collect()
    assert model.workspace_bytes == workspace
    assert resident_bytes() - resident < 2_000_000


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="resident memory is read from /proc")
def test_loading_and_freeing_leaves_nothing(make_file: Callable[..., Path], no_huge_pages: None) -> None:
    path = make_file(hidden=128, layers=((4, 32, 512),) * 4)  # about 3 MB of weights
    for _ in range(20):  # the C library's heap grows once more, when it likes
        native.load(path)
    gc.collect()
    resident = resident_bytes()
    for _ in range(60):
        native.load(path)
    gc.collect()
    assert resident_bytes() - resident < 8_000_000
