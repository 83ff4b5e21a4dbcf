"""Backends: agreement with the oracle, the same bits in any batch, and refusal instead of falling back."""

from __future__ import annotations

import dataclasses
import os
import re
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from artifacts import POSITION_TABLES, ROTARY, random_artifact, random_batch
from conftest import BACKENDS, ISAS

from edgebert.artifact.reader import read_artifact
from edgebert.backends import numpy_ops
from edgebert.backends.base import Backend
from edgebert.backends.encoder_loop import LayerNorm
from edgebert.backends.numpy_backend import NumpyBackend
from edgebert.backends.registry import available_backends, load_backend
from edgebert.batch import PackedBatch, unpad
from edgebert.errors import BackendUnavailableError, InvalidInputError, ModelFormatError
from edgebert.exporting.quantize import dequantize

LENGTHS = (1, 2, 63, 64, 65, 512)

# Every head, activation and table; pruned layers, odd head sizes, sizes off every tile, no layers at all.
CASES: dict[str, dict[str, Any]] = {
    "embedding": {},
    "embedding-cls-dense": {"pooling": "cls", "dense_size": 9, "normalize": False},
    "embedding-no-pooling": {"pooling": "none", "num_token_types": 1},
    "pruned": {"layers": ((2, 7, 33), (0, 8, 40), (3, 5, 0), (0, 4, 0)), "hidden": 27},
    "no-layers": {"layers": ()},
    "text-classification": {"task": "text-classification", "num_token_types": 0, "position_offset": 2},
    "padding-position": {"position_offset": 2, "has_padding_position": True, "num_token_types": 1, "family": "roberta"},
    "token-classification": {"task": "token-classification", "embedding_size": 12, "activation": "relu"},
    "question-answering": {"task": "question-answering", "layers": ((3, 32, 130),), "hidden": 96},
    "fill-mask": {"task": "fill-mask", "activation": "gelu_tanh", "embedding_size": 20},
    "next-sentence": {"task": "next-sentence", "layers": ((1, 64, 257),), "hidden": 65},
    "pretraining": {"task": "pretraining", "vocab_size": 67},
    "poolings": {
        "pooling": "cls+max+mean+mean_sqrt_len+weighted_mean+last",
        "dense_size": 9,
        "layers": ((2, 7, 33),),
        "hidden": 27,
    },
    "two poolings": {"pooling": "last+max", "layers": ((2, 7, 33),), "hidden": 17, "normalize": False},
    "sparse": {
        "sparse_pooling": "max",
        "pooling": "weighted_mean",
        "embedding_size": 20,
        "vocab_size": 1501,
        "layers": ((2, 7, 33),),
        "hidden": 27,
    },
    "sparse sum": {"sparse_pooling": "sum", "num_sparse_logs": 2, "pooling": "none", "layers": ((2, 8, 40),)},
    "three outputs": {"pooling": "cls", "token_size": 13, "has_token_weights": True, "layers": ((2, 8, 40),)},
    "multi-vector": {"pooling": "none", "token_size": 33, "normalize_tokens": False, "layers": ((2, 8, 40),)},
    "unattended": {
        "pooling": "none",
        "token_size": 12,
        "unattended": 32,
        "layers": ((2, 7, 33), (1, 34, 17)),
        "hidden": 27,
    },
    "unattended in windows": ROTARY
    | {"pooling": "none", "unattended": 21, "windows": (0, 22), "layers": ((2, 8, 40), (3, 6, 33))},
    "unattended int8-attention": {
        "pooling": "none",
        "token_size": 12,
        "unattended": 32,
        "attention_dtype": "s8",
        "layers": ((2, 32, 40), (3, 6, 33)),
        "max_relative_distance": 20,
    },
    "rotary": ROTARY
    | {
        "layers": ((2, 8, 40), (3, 10, 33), (1, 34, 17)),
        "hidden": 34,
        "windows": (0, 17, 64),
        "rotary_bases": (16e4, 1e4, 1e4),
    },
    "gates-after-norms": ROTARY | {"is_pre_norm": False, "activation": "silu", "num_token_types": 1},
    "rotary-pruned": ROTARY
    | {
        "task": "token-classification",
        "layers": ((0, 8, 40), (2, 6, 0), (0, 4, 0), (2, 2, 5)),
        "dense_size": 20,
        "has_dense_norm": True,
        "windows": (0, 1, 0, 70),
        "rotary_bases": (16e4, 1e4, 1e4, 0.0),
    },
    "rotary-int8-attention": ROTARY
    | {"attention_dtype": "s8", "layers": ((2, 32, 40), (3, 6, 33)), "windows": (0, 40)},
    "pre-norm": {"is_pre_norm": True, "layers": (), "activation": "relu"},
    "int8-attention": {"attention_dtype": "s8", "layers": ((2, 32, 40), (3, 7, 33)), "hidden": 64},
    "shared-layers": {"repeats": 3, "layers": ((2, 7, 33), (1, 8, 0)), "hidden": 27, "embedding_size": 12},
    "position-bias": {"max_relative_distance": 30, "layers": ((2, 7, 33), (0, 8, 40), (3, 5, 0)), "hidden": 27},
    "position-bias-int8-attention": {"max_relative_distance": 1000, "attention_dtype": "s8", "layers": ((3, 32, 40),)},
    "position-tables": POSITION_TABLES | {"layers": ((2, 7, 33), (0, 8, 40), (3, 20, 0)), "hidden": 27},
    "position-tables-int8-attention": POSITION_TABLES | {"attention_dtype": "s8", "layers": ((3, 32, 40),)},
}

INVARIANT = (
    *("embedding", "pruned", "pretraining", "question-answering", "int8-attention", "padding-position"),
    *("shared-layers", "position-bias", "position-bias-int8-attention"),
    *("gates-after-norms", "rotary", "rotary-pruned", "rotary-int8-attention"),
    *("position-tables", "position-tables-int8-attention"),
    *("poolings", "two poolings", "sparse", "sparse sum", "three outputs"),
    *("unattended", "unattended in windows", "unattended int8-attention"),
)
OTHERS = [name for name in BACKENDS if name != "numpy"]


def outputs_of(backend: Backend, batch: PackedBatch) -> dict[str, np.ndarray]:
    return backend.run(batch, backend.spec.outputs)


def per_text(backend: Backend, batch: PackedBatch, name: str, values: np.ndarray) -> list[np.ndarray]:
    """The part of an output that belongs to each text, flat."""
    if not backend.spec.output_width(name)[0]:
        return [row.ravel() for row in values]
    return [part.ravel() for part in np.split(values, batch.cu_seqlens[1:-1])]


def assert_same_bits(a: np.ndarray, b: np.ndarray) -> None:
    assert a.shape == b.shape
    assert a.dtype == b.dtype == np.float32
    np.testing.assert_array_equal(a.view(np.uint32), b.view(np.uint32))


def assert_agree(oracle: Backend, other: Backend, batch: PackedBatch) -> None:
    expected, found = outputs_of(oracle, batch), outputs_of(other, batch)
    assert found.keys() == expected.keys()
    for name, values in expected.items():
        assert found[name].shape == values.shape
        assert found[name].dtype == np.float32
        if not oracle.spec.is_int8:
            assert np.abs(found[name] - values).max() <= 1e-5 * np.abs(values).max()
            continue
        for a, b in zip(per_text(oracle, batch, name, found[name]), per_text(oracle, batch, name, values), strict=True):
            assert a @ b >= 0.998 * np.linalg.norm(a) * np.linalg.norm(b)


@pytest.mark.parametrize("int8", [False, True], ids=["f32", "int8"])
@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("name", OTHERS)
def test_agrees_with_the_oracle(name: str, case: str, int8: bool, tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    random_artifact(path, int8=int8, num_positions=514, **CASES[case])
    oracle = load_backend(path, "numpy")
    batch = random_batch(oracle.spec, LENGTHS)
    assert_agree(oracle, load_backend(path, name), batch)


@pytest.mark.parametrize("int8", [False, True], ids=["f32", "int8"])
def test_every_isa_agrees_with_the_oracle(isa: str, int8: bool, tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    for case in INVARIANT[1:]:
        random_artifact(path, int8=int8, num_positions=514, **CASES[case])
        oracle, native = load_backend(path, "numpy"), load_backend(path, "native")
        assert isa in native.detail
        assert_agree(oracle, native, random_batch(oracle.spec, LENGTHS))


def assert_invariant(load: Callable[[int], Backend], lengths: Sequence[int]) -> None:
    """The same bits for a text alone, in a batch, in another order, and with any number of threads."""
    backend = load(1)
    batch = random_batch(backend.spec, lengths)
    together = outputs_of(backend, batch)
    alone = [outputs_of(backend, batch.take([i])) for i in range(batch.num_sequences)]
    order = np.random.default_rng(1).permutation(batch.num_sequences)
    reordered = outputs_of(backend, batch.take(order))
    for name, values in together.items():
        assert_same_bits(values, np.concatenate([row[name] for row in alone]))
        parts = per_text(backend, batch, name, values)
        assert_same_bits(np.concatenate([parts[i] for i in order]), reordered[name].ravel())
    for threads in (2, 3):
        for name, values in outputs_of(load(threads), batch).items():
            assert_same_bits(values, together[name])


@pytest.mark.parametrize("int8", [False, True], ids=["f32", "int8"])
@pytest.mark.parametrize("case", INVARIANT)
def test_numpy_gives_the_same_bits_in_any_batch(case: str, int8: bool, tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    random_artifact(path, int8=int8, **CASES[case])
    assert_invariant(lambda threads: load_backend(path, "numpy", threads=threads), (5, 1, 33, 64, 5, 2))


@pytest.mark.parametrize("int8", [False, True], ids=["f32", "int8"])
@pytest.mark.parametrize("case", INVARIANT)
def test_native_gives_the_same_bits_in_any_batch(isa: str, case: str, int8: bool, tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    random_artifact(path, int8=int8, num_positions=514, **CASES[case])
    lengths = (5, 1, 63, 64, 65, 5, 2, 129, 512, *range(1, 30))
    assert_invariant(lambda threads: load_backend(path, "native", threads=threads), lengths)


@pytest.mark.parametrize("int8", [False, True], ids=["f32", "int8"])
@pytest.mark.parametrize("case", CASES)
def test_vector_isas_give_equal_bits(case: str, int8: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    isas = [isa for isa in ISAS if isa != "baseline"]
    if len(isas) < 2:
        pytest.skip("fewer than two vector instruction sets are usable here")
    path = tmp_path / "model.onnx"
    random_artifact(path, int8=int8, num_positions=514, **CASES[case])
    results = []
    for isa in isas:
        monkeypatch.setenv("EDGEBERT_FORCE_ISA", isa)
        native = load_backend(path, "native")
        results.append(outputs_of(native, random_batch(native.spec, LENGTHS)))
    for result in results[1:]:
        for name, values in results[0].items():
            assert_same_bits(values, result[name])


@pytest.mark.parametrize("int8", [False, True], ids=["f32", "int8"])
@pytest.mark.parametrize("task", ["embedding", "pretraining"])
def test_an_output_asked_for_alone_has_the_same_bits(
    backend: str, make_file: Callable[..., Path], task: str, int8: bool
) -> None:
    model = load_backend(make_file(task=task, int8=int8, pooling="cls"), backend, threads=2)
    batch = random_batch(model.spec, [70, 33, 5, 1, 17, 64, 2, 30, 30, 30, 30])
    together = model.run(batch, model.spec.outputs)
    for name in model.spec.outputs:
        np.testing.assert_array_equal(model.run(batch, [name])[name], together[name])


@pytest.mark.parametrize("int8", [False, True], ids=["f32", "int8"])
@pytest.mark.parametrize("case", ["embedding", "token-classification", "question-answering", "pretraining"])
def test_token_outputs_at_some_tokens(backend: str, make_file: Callable[..., Path], case: str, int8: bool) -> None:
    model = load_backend(make_file(task=case, int8=int8), backend, threads=2)
    batch = random_batch(model.spec, [70, 33, 5, 1, 17, 64, 2, 30, 30, 30, 30])
    everything = model.run(batch, model.spec.outputs)
    for chosen in ([], [0], [69, 70, 108, 109, 130], list(range(batch.total_tokens)), [batch.total_tokens - 1]):
        tokens = np.array(chosen, np.int32)
        found = model.run(dataclasses.replace(batch, output_tokens=tokens), model.spec.outputs)
        for name, values in everything.items():
            expected = values[tokens] if model.spec.output_width(name)[0] else values
            np.testing.assert_array_equal(found[name], expected)


@pytest.mark.parametrize("tokens", [[-1], [3, 3], [4, 2], [9]])
def test_refuses_bad_output_tokens(backend: str, make_file: Callable[..., Path], tokens: list[int]) -> None:
    model = load_backend(make_file(task="fill-mask"), backend)
    batch = dataclasses.replace(PackedBatch.from_lists([[1] * 9]), output_tokens=np.int32(tokens))
    with pytest.raises(InvalidInputError, match="output_tokens must be tokens of the batch in ascending order"):
        model.run(batch, ["logits"])


@pytest.mark.skipif("native" not in BACKENDS, reason="the native backend is not built")
@pytest.mark.parametrize("int8", [False, True], ids=["f32", "int8"])
def test_native_holds_no_logits_of_all_tokens(make_file: Callable[..., Path], int8: bool) -> None:
    arguments = {"vocab_size": 30_000, "layers": ((1, 4, 4),), "hidden": 4, "pooling": "none", "tokenizer_json": None}
    model = load_backend(make_file(sparse_pooling="max", int8=int8, **arguments), "native", threads=2)
    batch = random_batch(model.spec, [60] * 20)
    found = model.run(batch, ["sparse_embedding"])["sparse_embedding"]
    assert found.shape == (20, 30_000) and (found > 0).any()
    assert model.workspace_bytes < 4 * batch.total_tokens * 30_000 / 20  # type: ignore[attr-defined]


def test_empty_batch(backend: str, make_file: Callable[..., Path]) -> None:
    loaded = load_backend(make_file(), backend)
    found = outputs_of(loaded, PackedBatch.from_lists([]))
    assert {name: (value.shape, value.dtype) for name, value in found.items()} == {
        "last_hidden_state": ((0, 24), np.float32),
        "sentence_embedding": ((0, 24), np.float32),
    }


@pytest.mark.parametrize(
    ("batch", "message"),
    [
        (PackedBatch.from_lists([[1], [101]]), "token ids 1 to 101 are out of range: the vocabulary has ids 0 to 100"),
        (PackedBatch(np.int32([-1]), np.int32([0]), np.int32([0, 1])), "token ids -1"),
        (PackedBatch.from_lists([[1, 2]], [[0, 2]]), "token types 0 to 2 are out of range"),
        (PackedBatch(np.int32([1]), np.int32([-1]), np.int32([0, 1])), "token types -1"),
        (PackedBatch.from_lists([[1] * 81]), "81 tokens is too long"),
    ],
)
def test_refuses_bad_batches(backend: str, make_file: Callable[..., Path], batch: PackedBatch, message: str) -> None:
    with pytest.raises(InvalidInputError, match=message):
        outputs_of(load_backend(make_file(), backend), batch)


def test_refuses_unknown_outputs(backend: str, make_file: Callable[..., Path]) -> None:
    loaded = load_backend(make_file(), backend)
    with pytest.raises(InvalidInputError, match="unknown output 'logits': this embedding file has last_hidden_state"):
        loaded.run(PackedBatch.from_lists([[1]]), ["logits"])


def test_types_are_ignored_by_a_model_without_them(backend: str, make_file: Callable[..., Path]) -> None:
    loaded = load_backend(make_file(num_token_types=1), backend)
    with_types = outputs_of(loaded, PackedBatch.from_lists([[1, 2]], [[0, 7]]))
    assert_same_bits(
        with_types["last_hidden_state"], outputs_of(loaded, PackedBatch.from_lists([[1, 2]]))["last_hidden_state"]
    )


@pytest.mark.parametrize("damage", ["missing", "empty", "truncated", "text", "node"])
def test_refuses_bad_files(backend: str, make_file: Callable[..., Path], damage: str) -> None:
    path = make_file()
    data = path.read_bytes()
    if damage == "missing":
        path.unlink()
    elif damage == "node":
        if backend == "onnxruntime":
            pytest.skip("runs a changed graph on purpose")
        assert b"Softmax" in data
        path.write_bytes(data.replace(b"Softmax", b"Sigmoid", 1))
    else:
        path.write_bytes({"empty": b"", "truncated": data[: len(data) // 2], "text": b"not a model\n" * 9}[damage])
    with pytest.raises(ModelFormatError):
        load_backend(path, backend)


WEIGHT_ONLY = ("embedding", "pruned", "no-layers", "pretraining", "position-bias", "shared-layers", "rotary-pruned")


@pytest.mark.parametrize("case", WEIGHT_ONLY)
def test_a_weight_only_file_is_the_int8_file_but_for_its_graph(case: str, tmp_path: Path) -> None:
    int8, weights = tmp_path / "int8.onnx", tmp_path / "weights.onnx"
    random_artifact(int8, int8=True, num_positions=140, **CASES[case])
    random_artifact(weights, int8=True, is_weight_only=True, num_positions=140, **CASES[case])
    for name in BACKENDS:
        one, other = load_backend(int8, name), load_backend(weights, name)
        batch = random_batch(one.spec, (1, 2, 130))
        if name != "onnxruntime":
            expected = outputs_of(one, batch)
            for output, values in outputs_of(other, batch).items():
                assert_same_bits(values, expected[output])


@pytest.mark.parametrize("case", WEIGHT_ONLY)
def test_a_weight_only_graph_multiplies_dequantized_weights(case: str, tmp_path: Path) -> None:
    onnx, onnxruntime = pytest.importorskip("onnx"), pytest.importorskip("onnxruntime")
    path = tmp_path / "weights.onnx"
    random_artifact(path, int8=True, is_weight_only=True, num_positions=140, **CASES[case])
    model = onnx.load(path)
    onnx.checker.check_model(model, full_check=True)
    kinds = {node.op_type for node in model.graph.node}
    assert not kinds & {"MatMulInteger", "QuantizeLinear", "DynamicQuantizeLinear"}
    read = {name for node in model.graph.node for name in node.input}
    unread = {tensor.name for tensor in model.graph.initializer} - read  # runtimes warn of these
    assert all("layer_norm" in name for name in unread)  # of sub-blocks that are pruned away
    artifact = read_artifact(path)
    oracle = NumpyBackend(*dequantize(artifact.spec, artifact.tensors))
    batch = random_batch(oracle.spec, (1, 2, 130))
    expected = outputs_of(oracle, batch)
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    ids, mask, types = batch.pad(oracle.spec.pad_token_id)
    feed = {"input_ids": ids, "attention_mask": mask, "token_type_ids": types}
    feed = {value.name: feed[value.name] for value in session.get_inputs()}
    for (name, values), found in zip(expected.items(), session.run(list(expected), feed), strict=True):
        found = unpad(found, mask) if oracle.spec.output_width(name)[0] else found
        assert np.abs(found - values).max() <= 1e-5 * np.abs(values).max()
    for name, values in outputs_of(load_backend(path, "onnxruntime"), batch).items():
        for a, b in zip(*(per_text(oracle, batch, name, of) for of in (values, expected[name])), strict=True):
            assert a @ b >= 0.998 * np.linalg.norm(a) * np.linalg.norm(b)


def test_only_onnxruntime_runs_a_changed_graph(make_file: Callable[..., Path]) -> None:
    if "onnxruntime" not in BACKENDS:
        pytest.skip("onnxruntime is not installed")
    onnx = pytest.importorskip("onnx")
    path = make_file(activation="relu")
    before = load_backend(path, "onnxruntime")
    model = onnx.load(path)
    changed = next(node for node in model.graph.node if node.op_type == "Relu")
    changed.op_type = "Abs"
    onnx.save(model, path)
    batch = random_batch(before.spec, (5,))
    found = outputs_of(load_backend(path, "onnxruntime"), batch)
    assert np.abs(found["last_hidden_state"] - outputs_of(before, batch)["last_hidden_state"]).max() > 1e-3
    for name in BACKENDS:
        if name != "onnxruntime":
            with pytest.raises(ModelFormatError, match="edgebert export|ONNX Runtime"):
                load_backend(path, name)


def test_auto_picks_the_best_and_says_so(make_file: Callable[..., Path]) -> None:
    loaded = load_backend(make_file(), "auto")
    assert loaded.name == BACKENDS[0]
    assert "picked by auto" in loaded.detail
    for name in list(available_backends())[: list(available_backends()).index(loaded.name)]:
        assert f"no {name}" in loaded.detail


@pytest.mark.skipif("native" not in BACKENDS, reason="the native backend is not built")
@pytest.mark.parametrize("backend_name", ["native", "auto"])
def test_a_forced_isa_is_taken_or_refused(
    backend_name: str, make_file: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    path = make_file()
    monkeypatch.setenv("EDGEBERT_FORCE_ISA", "baseline")
    assert "baseline" in load_backend(path, backend_name).detail
    monkeypatch.setenv("EDGEBERT_FORCE_ISA", "nonsense")
    with pytest.raises(BackendUnavailableError, match="nonsense"):
        load_backend(path, backend_name)


def test_refuses_unknown_names(make_file: Callable[..., Path]) -> None:
    path = make_file()
    with pytest.raises(
        InvalidInputError, match="unknown backend 'tpu': expected auto, native, numba, onnxruntime, numpy"
    ):
        load_backend(path, "tpu")
    for backend in (None, 3, ["native"], b"native"):
        with pytest.raises(InvalidInputError, match="unknown backend"):
            load_backend(path, backend)  # type: ignore[arg-type]
    for device in ("gpu", "cuda:", "cuda:-1", "CPU", None):
        with pytest.raises(InvalidInputError, match="unknown device"):
            load_backend(path, "numpy", device)  # type: ignore[arg-type]
    for threads in (0, -1, 1.5, True, "2", 1025, 2**31, 2**64):
        with pytest.raises(InvalidInputError, match="threads must be an integer from 1 to 1024, or None"):
            load_backend(path, "numpy", threads=threads)  # type: ignore[arg-type]


def test_refuses_a_device_it_does_not_run_on(make_file: Callable[..., Path]) -> None:
    with pytest.raises(
        BackendUnavailableError, match="backend numpy is not available: it runs on cpu, not on 'cuda:0'"
    ):
        load_backend(make_file(), "numpy", "cuda")


def test_a_missing_backend_is_explained(make_file: Callable[..., Path], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "onnxruntime", None)
    assert "edgebert[ort]" in str(available_backends()["onnxruntime"])
    with pytest.raises(BackendUnavailableError, match=r"onnxruntime.*edgebert\[ort\]"):
        load_backend(make_file(), "onnxruntime")


class FakeSession:
    """An InferenceSession that falls back to the CPU as the real one does without a GPU."""

    options: Any = None

    def __init__(self, path: str, sess_options: object, providers: list) -> None:
        FakeSession.options = sess_options

    def get_providers(self) -> list[str]:
        return ["CPUExecutionProvider"]

    def get_inputs(self) -> list[SimpleNamespace]:
        return [SimpleNamespace(name="input_ids")]


@pytest.mark.parametrize("backend_name", ["onnxruntime", "auto"])
def test_onnxruntime_does_not_fall_back(
    backend_name: str, make_file: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    onnxruntime = pytest.importorskip("onnxruntime")
    path = make_file()
    if "CUDAExecutionProvider" not in onnxruntime.get_available_providers():
        with pytest.raises(BackendUnavailableError, match="has no CUDA"):
            load_backend(path, backend_name, "cuda")
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: ["CUDAExecutionProvider"])
    monkeypatch.setattr(onnxruntime, "InferenceSession", FakeSession)
    with pytest.raises(BackendUnavailableError, match="'cuda:1' was asked for, ONNX Runtime runs on CPUExecutionProv"):
        load_backend(path, backend_name, "cuda:1")


@pytest.mark.parametrize(
    ("machine", "flags", "expected"),
    [
        ("x86_64", {"avx2"}, True),
        ("x86_64", {"avx2", "avx_vnni"}, False),
        ("x86_64", {"avx2", "avx512_vnni"}, False),
        ("aarch64", set(), False),
    ],
)
def test_onnxruntime_is_exact_on_x86_without_vnni(
    machine: str, flags: set[str], expected: bool, make_file: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    onnxruntime = pytest.importorskip("onnxruntime")
    from edgebert.backends import onnxruntime as module

    monkeypatch.setattr(onnxruntime, "InferenceSession", FakeSession)
    monkeypatch.setattr(module.platform, "machine", lambda: machine)
    monkeypatch.setattr(module, "cpu_flags", lambda: frozenset(flags))
    load_backend(make_file(), "onnxruntime")
    if expected:
        assert FakeSession.options.get_session_config_entry("session.x64quantprecision") == "1"
    else:
        with pytest.raises(RuntimeError):  # not set
            FakeSession.options.get_session_config_entry("session.x64quantprecision")


def test_oracle_against_torch() -> None:
    torch = pytest.importorskip("torch")
    functional = torch.nn.functional
    rng = np.random.default_rng(0)
    x = rng.standard_normal((7, 30)).astype(np.float32) * 3

    def close(found: np.ndarray, expected: Any) -> None:
        np.testing.assert_allclose(found, expected.numpy(), rtol=1e-5, atol=2e-6)

    tensor = torch.from_numpy(x)
    close(numpy_ops.activate(x, "gelu_erf"), functional.gelu(tensor))
    close(numpy_ops.activate(x, "gelu_tanh"), functional.gelu(tensor, approximate="tanh"))
    close(numpy_ops.activate(x, "relu"), functional.relu(tensor))
    close(numpy_ops.activate(x, "silu"), functional.silu(tensor))
    close(numpy_ops.activate(x, "tanh"), torch.tanh(tensor))
    close(numpy_ops.normalize(x), functional.normalize(tensor))
    close(numpy_ops.normalize(x * 0), functional.normalize(tensor * 0))
    weight, bias = x[0] + 1, x[1]
    norm = LayerNorm(weight, bias, 1e-5)
    expected = functional.layer_norm(tensor, (30,), torch.from_numpy(weight), torch.from_numpy(bias), 1e-5)
    close(numpy_ops.add_layernorm(x, None, norm), expected)
    close(numpy_ops.add_layernorm(x - 1, np.ones_like(x), norm), expected)
    context = numpy_ops.attention_varlen(x, np.int32([0, 3, 7]), num_heads=2)
    for first, last in ((0, 3), (3, 7)):
        query, key, value = (part.reshape(-1, 2, 5).transpose(0, 1) for part in tensor[first:last].split(10, dim=1))
        attended = functional.scaled_dot_product_attention(query, key, value)
        close(context[first:last], attended.transpose(0, 1).reshape(-1, 10))
    close(numpy_ops.pool(x, np.int32([0, 3, 7]), "mean"), torch.stack([tensor[:3].mean(0), tensor[3:].mean(0)]))
    close(numpy_ops.pool(x, np.int32([0, 3, 7]), "cls"), tensor[[0, 3]])


@pytest.mark.parametrize("name", [name for name in ("native", "numba") if name in BACKENDS])
def test_threads_that_cannot_be_started(name: str, tmp_path: Path) -> None:
    """Room for some stacks of threads, not for all; what was started is put away, and the process lives on."""
    random_artifact(tmp_path / "model.onnx", layers=((1, 4, 4),), hidden=4, num_positions=8, vocab_size=9)
    script = (
        "import resource, sys\n"
        "from artifacts import random_batch\n"
        "from edgebert.backends.registry import load_backend\n"
        "from edgebert.errors import BackendUnavailableError\n"
        "model = load_backend(sys.argv[1], sys.argv[2], threads=1000)\n"
        "room = 2**30 + 1024 * int(open('/proc/self/status').read().split('VmSize:')[1].split()[0])\n"
        "resource.setrlimit(resource.RLIMIT_AS, (room, room))\n"
        "for _ in range(2):\n"
        "    try:\n"
        "        model.run(random_batch(model.spec, [3, 5]), ['sentence_embedding'])\n"
        "    except BackendUnavailableError as error:\n"
        "        print(error)\n"
    )
    path = os.pathsep.join([str(Path(__file__).parent), *sys.path])
    found = subprocess.run(
        [sys.executable, "-P", "-c", script, str(tmp_path / "model.onnx"), name],
        env=os.environ | {"PYTHONPATH": path, "OPENBLAS_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert len(re.findall(r"of 1000 threads only \d+ could be started", found.stdout)) == 2, found
