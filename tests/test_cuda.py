"""device="cuda": what is missing is said by name; where a GPU or the emulated library is at hand, agreement and bits.

The emulated library is the CUDA library with its kernels run on the CPU; EDGEBERT_CUDA_LIBRARY names it.
"""

from __future__ import annotations

import dataclasses
import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from artifacts import random_artifact, random_batch, random_spec, random_tensors
from test_backends import CASES, assert_same_bits, outputs_of, per_text

from edgebert import cli, load
from edgebert.artifact.writer import build_model
from edgebert.backends import native
from edgebert.backends.base import Backend
from edgebert.backends.registry import available_backends, load_backend
from edgebert.errors import BackendUnavailableError, InvalidInputError, UnsupportedModelError

REASON = native.unavailable_reason("cuda")
needs_cuda = pytest.mark.skipif(
    REASON is not None, reason=f"no GPU, and EDGEBERT_CUDA_LIBRARY names no emulated one: {REASON}"
)

LENGTHS = (1, 2, 15, 16, 17, 33, 63, 64, 65, 70)

CPU_ONLY = {
    "unattended",
    "is_pre_norm",
    "is_gated",
    "windows",
    "rotary_bases",
    "distances_per_row",
}  # arguments of the cases
SUPPORTED = {
    name: case for name, case in CASES.items() if case.get("attention_dtype") != "s8" and not CPU_ONLY & case.keys()
}
INVARIANT = (
    *("embedding", "pruned", "pretraining", "question-answering", "padding-position"),
    *("poolings", "sparse", "sparse sum", "three outputs"),
)


# What is missing


@pytest.fixture
def load_anew() -> Iterator[None]:
    """The native library is looked for again, now and afterwards."""
    native.load_library.cache_clear()
    yield
    native.load_library.cache_clear()


@pytest.mark.parametrize("name", ["native", "auto"])
@pytest.mark.usefixtures("load_anew")
def test_says_that_the_library_is_not_in_this_build(
    name: str, make_file: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = make_file()
    monkeypatch.delenv("EDGEBERT_CUDA_LIBRARY", raising=False)
    monkeypatch.setattr(native.edgebert, "__path__", [str(tmp_path)])
    with pytest.raises(BackendUnavailableError, match="libedgebert_cuda.* is not in this installation") as error:
        load_backend(path, name, "cuda")
    assert "EDGEBERT_CUDA=ON" in str(error.value)
    assert "EDGEBERT_CUDA_LIBRARY" in str(error.value)


@pytest.mark.usefixtures("load_anew")
def test_says_that_the_library_cannot_be_loaded(
    make_file: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EDGEBERT_CUDA_LIBRARY", sys.executable)
    with pytest.raises(BackendUnavailableError, match=f"{sys.executable} cannot be loaded"):
        load_backend(make_file(), "native", "cuda")


def test_the_cpu_does_not_load_the_cuda_library(make_file: Callable[..., Path]) -> None:
    code = (
        "import sys; from edgebert.backends import registry, native\n"
        "native._find_library = lambda library, find=native._find_library: (\n"
        "    sys.exit('looked for the CUDA library') if 'CUDA' in library.variable else find(library))\n"
        "registry.load_backend(sys.argv[1], 'auto')\n"
    )
    subprocess.run([sys.executable, "-P", "-c", code, str(make_file())], check=True, timeout=300)


@pytest.mark.skipif(any(reason is None for reason in available_backends("cuda").values()), reason="there is a GPU")
def test_auto_names_every_backend_and_its_reason(make_file: Callable[..., Path]) -> None:
    reasons = available_backends("cuda")
    assert list(reasons) == ["native", "onnxruntime", "numba"]
    with pytest.raises(BackendUnavailableError, match="no backend here can run on device 'cuda:0'") as error:
        load_backend(make_file(), "auto", "cuda")
    for name, reason in reasons.items():
        assert f"{name}: {reason}" in str(error.value)


def test_doctor_tells_of_cuda(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["doctor"]) in (0, None)
    out = capsys.readouterr().out
    assert "\nCUDA " in out
    for name, reason in available_backends("cuda").items():
        assert f"{name}: {'available' if reason is None else f'not available: {reason}'}" in out


@pytest.mark.skipif(REASON is None, reason="there is a GPU")
def test_the_benchmark_measures_nothing_without_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("torch")
    monkeypatch.syspath_prepend(str(Path(__file__).parent.parent))
    from benchmarks import gpu

    with pytest.raises(SystemExit, match="no GPU that PyTorch .* can use: nothing was measured"):
        gpu.require_gpu()


@needs_cuda
def test_a_device_that_is_not_there(make_file: Callable[..., Path]) -> None:
    with pytest.raises(BackendUnavailableError, match=r"there is no device cuda:99: this machine has \d+ GPU"):
        load_backend(make_file(), "native", "cuda:99")


# What the kernels do not run


@needs_cuda
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"attention_dtype": "s8"}, "attention_dtype is s8"),
        ({"layers": ((1, 129, 8),)}, "heads of 129 values, more than 128"),
        ({"is_pre_norm": True}, "a norm before each sub-block"),
        ({"unattended": 4, "pooling": "none", "normalize": False}, "tokens that are not attended to"),
        ({"is_gated": True}, "a gated feed-forward part"),
        ({"has_position_table": False}, "no table of positions"),
        ({"max_relative_distance": 1, "distances_per_row": (1, 1, 1)}, "tables of relative positions"),
        ({"windows": (4, 0), "layers": ((2, 4, 8),) * 2}, "a window of attention"),
        ({"rotary_bases": (1e4, 1e4), "layers": ((2, 4, 8),) * 2}, "rotary positions"),
    ],
)
def test_refuses_what_it_does_not_run(make_file: Callable[..., Path], arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(UnsupportedModelError, match=message):
        load_backend(make_file(**arguments), "native", "cuda")


@needs_cuda
def test_refuses_weights_beyond_f16(tmp_path: Path) -> None:
    path, spec = tmp_path / "model.onnx", random_spec()
    tensors = random_tensors(spec)
    tensors["layer.1.ffn.up.weight"][3, 5] = 65536
    path.write_bytes(build_model(spec, tensors, {}))
    with pytest.raises(UnsupportedModelError, match="layer.1.ffn.up.weight has values beyond f16"):
        load_backend(path, "native", "cuda")


@needs_cuda
def test_all_layers_run_for_every_text() -> None:
    """Also where the file has exits; the library ignores them if the caller does not say so."""
    arguments = {"task": "text-classification", "pooling": "cls", "int8": True}
    data = random_artifact(**arguments, exits=((1, 0.0),))
    backend = load_backend(data, "native", "cuda")
    assert "takes none of the file's exits" in backend.detail and backend.spec.exits == ()
    batch = random_batch(backend.spec, LENGTHS)
    at_exits = outputs_of(load_backend(data, "native"), batch)["logits"]
    found, ignored = outputs_of(backend, batch)["logits"], outputs_of(native.load(data, "cuda:0"), batch)["logits"]
    assert_same_bits(found, ignored)
    assert not np.allclose(found, at_exits, atol=1e-3)
    whole = outputs_of(load_backend(data, "native", full_depth=True), batch)["logits"]
    assert np.vdot(found, whole) >= 0.998 * np.linalg.norm(found) * np.linalg.norm(whole)


# Agreement


def load_both(path: Path, **arguments: Any) -> tuple[Backend, Backend]:
    random_artifact(path, **arguments)
    return load_backend(path, "numpy"), load_backend(path, "native", "cuda")


@needs_cuda
@pytest.mark.parametrize("int8", [False, True], ids=["f32", "int8"])
@pytest.mark.parametrize("case", SUPPORTED)
def test_agrees_with_the_oracle(case: str, int8: bool, tmp_path: Path) -> None:
    oracle, cuda = load_both(tmp_path / "model.onnx", int8=int8, **SUPPORTED[case])
    assert cuda.device == "cuda:0"
    batch = random_batch(oracle.spec, LENGTHS)
    expected, found = outputs_of(oracle, batch), outputs_of(cuda, batch)
    for name, values in expected.items():
        assert found[name].shape == values.shape
        if not int8:  # f16 has 11 bits; a few roundings a layer
            largest = np.abs(values).max()
            if name == "sparse_embedding":  # the roundings are those of the logits, whose logarithm it is
                largest = np.expm1(largest)
            assert np.abs(found[name] - values).max() <= 2e-3 * largest
            continue
        for a, b in zip(per_text(oracle, batch, name, found[name]), per_text(oracle, batch, name, values), strict=True):
            assert a @ b >= 0.998 * np.linalg.norm(a) * np.linalg.norm(b)


@needs_cuda
@pytest.mark.parametrize("int8", [False, True], ids=["f32", "int8"])
@pytest.mark.parametrize("case", INVARIANT)
def test_gives_the_same_bits_in_any_batch(case: str, int8: bool, tmp_path: Path) -> None:
    cuda = load_both(tmp_path / "model.onnx", int8=int8, **SUPPORTED[case])[1]
    batch = random_batch(cuda.spec, (1, 2, 16, 17, 33, 65))
    together = outputs_of(cuda, batch)
    alone = [outputs_of(cuda, batch.take([i])) for i in range(batch.num_sequences)]
    order = np.random.default_rng(1).permutation(batch.num_sequences)
    reordered = outputs_of(cuda, batch.take(order))
    for name, values in together.items():
        assert_same_bits(values, np.concatenate([row[name] for row in alone]))
        parts = per_text(cuda, batch, name, values)
        assert_same_bits(np.concatenate([parts[i] for i in order]), reordered[name].ravel())


# Running: graphs, slices, memory


@needs_cuda
def test_a_shape_that_comes_again_gives_the_same_bits(tmp_path: Path) -> None:
    """The first time its work is queued, the second time recorded, from then on replayed; other ids, other results."""
    cuda = load_both(tmp_path / "model.onnx")[1]
    batches = [random_batch(cuda.spec, (5, 11), seed=i) for i in range(2)]
    first, other = (outputs_of(cuda, batch) for batch in batches)
    for _ in range(3):
        for batch, expected in zip(batches, (first, other), strict=True):
            for name, values in outputs_of(cuda, batch).items():
                assert_same_bits(values, expected[name])
    assert not np.array_equal(first["sentence_embedding"], other["sentence_embedding"])


@needs_cuda
def test_more_shapes_than_are_remembered(tmp_path: Path) -> None:
    """Which are 64; here the number of tokens that are asked for makes the shape."""
    cuda = load_both(tmp_path / "model.onnx", layers=(), hidden=8)[1]
    batch = random_batch(cuda.spec, (66,))
    expected = cuda.run(batch, ["last_hidden_state"])["last_hidden_state"]
    for _ in range(3):
        for count in range(1, 67):
            some = dataclasses.replace(batch, output_tokens=np.arange(count, dtype=np.int32))
            assert_same_bits(cuda.run(some, ["last_hidden_state"])["last_hidden_state"], expected[:count])


@needs_cuda
@pytest.mark.parametrize("task", ["embedding", "fill-mask", "question-answering"])
def test_a_batch_in_several_slices(task: str, tmp_path: Path) -> None:
    """The emulated library's slices are small."""
    cuda = load_both(tmp_path / "model.onnx", task=task, layers=((1, 8, 8),), hidden=8)[1]
    batch = random_batch(cuda.spec, [70, 1, 33, 64, 64, 17] * 2)
    together = outputs_of(cuda, batch)
    parts = [outputs_of(cuda, batch.take(range(i, i + 4))) for i in (0, 4, 8)]
    for name, values in together.items():
        assert_same_bits(values, np.concatenate([part[name] for part in parts]))
    chosen = np.arange(3, batch.total_tokens, 7, dtype=np.int32)
    some = cuda.run(dataclasses.replace(batch, output_tokens=chosen), cuda.spec.outputs)
    for name, values in together.items():
        assert_same_bits(some[name], values[chosen] if cuda.spec.output_width(name)[0] else values)


@needs_cuda
@pytest.mark.parametrize("int8", [False, True], ids=["f32", "int8"])
@pytest.mark.parametrize("case", ["embedding", "token-classification", "question-answering", "pretraining"])
def test_token_outputs_at_some_tokens(case: str, int8: bool, tmp_path: Path) -> None:
    cuda = load_both(tmp_path / "model.onnx", int8=int8, **CASES[case])[1]
    batch = random_batch(cuda.spec, [20, 33, 1])
    everything = outputs_of(cuda, batch)
    for tokens in ([], [0], [19, 20, 53], list(range(54))):
        chosen = np.array(tokens, np.int32)
        found = cuda.run(dataclasses.replace(batch, output_tokens=chosen), cuda.spec.outputs)
        for name, values in everything.items():
            assert_same_bits(found[name], values[chosen] if cuda.spec.output_width(name)[0] else values)


@needs_cuda
def test_one_output_of_several(tmp_path: Path) -> None:
    cuda = load_both(tmp_path / "model.onnx", task="pretraining")[1]
    batch = random_batch(cuda.spec, (5, 17))
    everything = outputs_of(cuda, batch)
    for name, values in everything.items():
        assert_same_bits(cuda.run(batch, [name])[name], values)


@needs_cuda
def test_memory_is_flat_after_warm_up(tmp_path: Path) -> None:
    cuda = load_both(tmp_path / "model.onnx", layers=((1, 8, 8),), hidden=8)[1]
    assert isinstance(cuda, native.NativeBackend)

    def run(lengths: Sequence[int]) -> None:
        cuda.run(random_batch(cuda.spec, lengths), ["sentence_embedding"])

    for lengths in ([70] * 3, [64] * 2, [1] * 50):  # the most tokens of a batch and of a slice, the most sequences
        run(lengths)
    workspace = cuda.workspace_bytes
    assert workspace > 0
    rng = np.random.default_rng(0)
    for _ in range(8):
        run(rng.integers(1, 71, 3).tolist())
    assert cuda.workspace_bytes == workspace


@needs_cuda
def test_refuses_bad_batches(tmp_path: Path) -> None:
    """The C API checks what it is given on either library."""
    cuda = load_both(tmp_path / "model.onnx")[1]
    batch = random_batch(cuda.spec, (5,))
    with pytest.raises(InvalidInputError, match=r"input_ids\[4\] is 101, expected 0 to 100"):
        cuda._run(dataclasses.replace(batch, input_ids=np.int32([1, 2, 3, 4, 101])), cuda.spec.outputs)


FORKED = """
import gc, os, signal, sys
import numpy as np
from artifacts import random_batch
from edgebert.backends.registry import load_backend
from edgebert.errors import BackendUnavailableError

model = load_backend(sys.argv[1], "native", "cuda")
batch = random_batch(model.spec, (5, 17))
expected = model.run(batch, ["sentence_embedding"])["sentence_embedding"]


def refusals():
    global model
    for call in (lambda: model.run(batch, ["sentence_embedding"]), lambda: load_backend(sys.argv[1], "native", "cuda")):
        try:
            call()
        except BackendUnavailableError as error:
            assert "load the model in the child" in str(error), error
            yield True
    assert model.workspace_bytes == 0
    model = None  # freed without a word to CUDA
    gc.collect()


child = os.fork()
if child == 0:
    signal.alarm(30)
    try:
        os._exit(len(list(refusals())))
    finally:
        os._exit(9)
assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 2
assert np.array_equal(model.run(batch, ["sentence_embedding"])["sentence_embedding"], expected)
"""


@needs_cuda
def test_a_forked_child_is_told_to_load_the_model_itself(make_file: Callable[..., Path]) -> None:
    path = os.pathsep.join([str(Path(__file__).parent), *sys.path])
    subprocess.run(
        [sys.executable, "-P", "-c", FORKED, str(make_file())],
        env=os.environ | {"PYTHONPATH": path},
        check=True,
        timeout=300,
    )


@needs_cuda
def test_texts_through_the_c_api(make_file: Callable[..., Path]) -> None:
    from c_api import CModel

    path = make_file()
    texts = ["the router is off .", "", "water roses at the root " * 9]
    expected = load(path, "native", device="cuda").encode(texts)
    assert CModel(path, kind="cuda").embed(texts).tobytes() == expected.tobytes()
