"""Exits: a text that is sure after some of the layers leaves with the answer it has there; no other text notices."""

from __future__ import annotations

import base64
import dataclasses
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from artifacts import ROTARY, random_artifact, random_batch
from conftest import BACKENDS, ISAS
from test_backends import assert_agree, assert_invariant, assert_same_bits, outputs_of, per_text

import edgebert
from edgebert.artifact.names import weight_tensors
from edgebert.artifact.reader import read_artifact
from edgebert.artifact.spec import EncoderSpec
from edgebert.artifact.writer import build_model, encode_metadata
from edgebert.backends.registry import load_backend
from edgebert.errors import EdgeBertError, ModelFormatError

THREE = {"layers": ((2, 7, 33), (1, 8, 40), (3, 5, 12), (2, 6, 20)), "hidden": 27}
# Thresholds at which of random texts some leave at each exit, and some never do.
CASES: dict[str, dict[str, Any]] = {
    "first token": THREE | {"pooling": "cls", "exits": ((1, 1.25), (3, 0.25))},
    "mean": THREE | {"pooling": "mean", "num_labels": 5, "exits": ((1, 0.5), (2, 0.25), (3, 0.125))},
    "never at the second": THREE | {"pooling": "cls", "num_labels": 4, "exits": ((1, 1.0), (2, None), (3, 0.5))},
    "one label": THREE | {"pooling": "cls", "num_labels": 1, "exits": ((1, 0.4), (2, 1.15))},
    "several labels": THREE
    | {"pooling": "cls", "problem_type": "multi_label_classification", "exits": ((2, 0.3), (3, 0.2))},
    "tokens": THREE
    | {"task": "token-classification", "pooling": "none", "exits": ((1, 0.125), (2, 0.0625), (3, 0.01))},
    "unattended tokens": THREE
    | {"task": "token-classification", "pooling": "none", "unattended": 12, "exits": ((1, 0.125), (2, 0.03))},
    "shared layers": {
        "layers": ((2, 7, 33), (1, 8, 0)),
        "repeats": 3,
        "hidden": 27,
        "embedding_size": 12,
        "pooling": "cls",
        "exits": ((2, 0.5), (4, 0.6)),
    },
    "rotary": ROTARY
    | {
        "is_pre_norm": False,
        "layers": ((2, 8, 40), (0, 8, 40), (2, 6, 0)),
        "windows": (0, 3, 0),
        "rotary_bases": (16e4, 1e4, 1e4),
        "pooling": "mean",
        "exits": ((1, 0.3), (2, 0.2)),
    },
}
EXITING = [name for name in ("numpy", "native") if name in BACKENDS]
LENGTHS = (5, 1, 33, 64, 65, 3, 2, 70, *range(1, 30), *[1, 2, 3] * 5)
needs_native = pytest.mark.skipif("native" not in BACKENDS, reason="the native backend is not built")


def make(case: str, int8: bool) -> bytes:
    return random_artifact(**({"task": "text-classification", "int8": int8} | CASES[case]))


def cut(data: bytes, after: int) -> bytes:
    """The model of the first layers, whose head is the exit's there."""
    artifact = read_artifact(data)
    order = artifact.spec.layer_order[:after]
    layers = tuple(dataclasses.replace(artifact.spec.layers[i], repeats=1) for i in order)
    pooling = "mean" if artifact.spec.task == "text-classification" else "none"
    spec = artifact.spec.replace(layers=layers, exits=(), dense_size=0, pooling=pooling)
    tensors = {}
    for name in weight_tensors(spec):
        source = name.replace("head.out", f"exit.{after}")
        if name.startswith("layer."):
            _, i, rest = name.split(".", 2)
            source = f"layer.{order[int(i)]}.{rest}"
        tensors[name] = artifact.tensors[source]
    return build_model(spec, tensors, {})


def least_margin(spec: EncoderSpec, logits: np.ndarray) -> np.float32:
    if spec.problem_type == "multi_label_classification" or len(spec.labels) == 1:
        return np.abs(logits).min()
    ordered = np.sort(logits, axis=1)
    return (ordered[:, -1] - ordered[:, -2]).min()


@pytest.mark.parametrize("int8", [False, True], ids=["f32", "int8"])
@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("name", EXITING)
def test_a_text_has_the_bits_of_the_model_cut_where_it_is_sure(name: str, case: str, int8: bool) -> None:
    data = make(case, int8)
    backend, whole = load_backend(data, name, threads=2), load_backend(data, name, full_depth=True)
    exits = [each for each in read_artifact(data).spec.exits if each.threshold is not None]
    cuts = [(each.threshold, load_backend(cut(data, each.after), name)) for each in exits]
    batch = random_batch(whole.spec, LENGTHS)
    found = outputs_of(backend, batch)["logits"]
    taken = []
    for i, logits in enumerate(per_text(backend, batch, "logits", found)):
        one = batch.take([i])
        at_exits = [(threshold, outputs_of(model, one)["logits"]) for threshold, model in cuts]
        sure = [j for j, (threshold, at) in enumerate(at_exits) if least_margin(backend.spec, at) >= threshold]
        taken.append(sure[0] if sure else len(cuts))
        expected = at_exits[sure[0]][1] if sure else outputs_of(whole, one)["logits"]
        assert_same_bits(logits, expected.ravel())
    assert set(taken) == set(range(len(cuts) + 1))  # else a part of this is not tested


@needs_native
@pytest.mark.parametrize("case", CASES)
def test_backends_take_the_same_exits(case: str) -> None:
    oracle, native = (load_backend(make(case, int8=False), name) for name in ("numpy", "native"))
    assert_agree(oracle, native, random_batch(oracle.spec, LENGTHS))


@needs_native
@pytest.mark.parametrize("int8", [False, True], ids=["f32", "int8"])
@pytest.mark.parametrize("case", CASES)
def test_the_same_bits_in_any_batch(isa: str, case: str, int8: bool) -> None:
    data = make(case, int8)
    assert_invariant(lambda threads: load_backend(data, "native", threads=threads), LENGTHS)


@needs_native
@pytest.mark.parametrize("case", CASES)
def test_vector_isas_take_the_same_exits(case: str, monkeypatch: pytest.MonkeyPatch) -> None:
    results = []
    for isa in [isa for isa in ISAS if isa != "baseline"]:
        monkeypatch.setenv("EDGEBERT_FORCE_ISA", isa)
        native = load_backend(make(case, int8=True), "native")
        results.append(outputs_of(native, random_batch(native.spec, LENGTHS))["logits"])
    for result in results[1:]:
        assert_same_bits(result, results[0])


@needs_native
@pytest.mark.parametrize("case", ["mean", "tokens"])
def test_threads_that_come_late_do_no_harm(case: str) -> None:
    backend = load_backend(make(case, int8=True), "native", threads=4)
    for lengths in ((3, 5, 2, 7, 30, 12, 9), (17,), (2, 1)):
        batch = random_batch(backend.spec, lengths)
        expected = outputs_of(load_backend(make(case, int8=True), "native", threads=1), batch)["logits"]
        for _ in range(100):
            assert_same_bits(outputs_of(backend, batch)["logits"], expected)


@pytest.mark.parametrize("name", EXITING)
def test_token_outputs_at_some_tokens(name: str) -> None:
    model = load_backend(make("tokens", int8=True), name, threads=2)
    batch = random_batch(model.spec, [70, 33, 5, 1, 17, 64, 2, 30, 30, 30, 30])
    everything = outputs_of(model, batch)["logits"]
    for chosen in ([], [0], [69, 70, 108, 109, 130], list(range(batch.total_tokens)), [batch.total_tokens - 1]):
        tokens = np.array(chosen, np.int32)
        found = outputs_of(model, dataclasses.replace(batch, output_tokens=tokens))["logits"]
        assert_same_bits(found, everything[tokens])


@pytest.mark.parametrize("name", [name for name in BACKENDS if name not in EXITING])
def test_other_backends_run_all_layers_and_say_so(name: str) -> None:
    backend = load_backend(make("mean", int8=False), name)
    assert "takes none of the file's exits" in backend.detail
    assert backend.spec.exits == ()
    oracle = load_backend(make("mean", int8=False), "numpy", full_depth=True)
    assert_agree(oracle, backend, random_batch(oracle.spec, LENGTHS))


def test_the_graph_is_that_of_the_file_without_exits_and_loads_without_a_warning(tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime")
    path = tmp_path / "exits.onnx"
    path.write_bytes(make("mean", int8=True))
    artifact = read_artifact(path)
    spec = artifact.spec.replace(exits=())
    plain = build_model(spec, {name: artifact.tensors[name] for name in weight_tensors(spec)}, {})
    assert artifact.metadata["edgebert.graph_hash"] == read_artifact(plain).metadata["edgebert.graph_hash"]
    program = "import sys, onnxruntime; onnxruntime.InferenceSession(sys.argv[1], providers=['CPUExecutionProvider'])"
    done = subprocess.run([sys.executable, "-c", program, str(path)], capture_output=True, text=True, check=True)
    assert "exit" not in done.stderr and "nitializer" not in done.stderr


def test_a_file_taken_for_its_graph_has_no_exits(tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime")
    path, other = tmp_path / "exits.onnx", tmp_path / "other.onnx"
    path.write_bytes(make("first token", int8=False))
    with pytest.warns(UserWarning, match="no tokenizer"):
        edgebert.export(path, other)
    oracle, found = load_backend(path, "numpy", full_depth=True), load_backend(other, "numpy")
    assert found.spec.exits == ()
    assert_agree(oracle, found, random_batch(oracle.spec, (5, 1, 30)))


def with_metadata(data: bytes, change: Callable[[dict[str, Any]], None], exits: str | None = None) -> bytes:
    """The same model with another spec, and perhaps with other bytes for the exits' weights."""
    onnx = pytest.importorskip("onnx")
    entries = dict(read_artifact(data).metadata)
    spec = json.loads(entries["edgebert.spec"])
    change(spec)
    entries["edgebert.spec"] = json.dumps(spec)
    if exits is not None:
        entries["edgebert.exits"] = exits
    model = onnx.load_from_string(data)
    del model.metadata_props[:]
    return bytes(model.SerializeToString()) + encode_metadata(entries)


def _set(**fields: Any) -> Callable[[dict[str, Any]], None]:
    return lambda spec: spec.update(fields)


def _set_exit(**fields: Any) -> Callable[[dict[str, Any]], None]:
    return lambda spec: spec["exits"][0].update(fields)


@pytest.mark.parametrize("name", EXITING)
@pytest.mark.parametrize(
    "change",
    [
        _set_exit(after=0),
        _set_exit(after=2),  # as the next one
        _set_exit(after=4),  # as many as there are layers
        _set_exit(after="1"),
        _set_exit(threshold=-1.0),
        _set_exit(threshold=1e30),
        _set_exit(threshold="0"),
        _set_exit(other=1),
        _set(exits=3),
        _set(exits=None),
        _set(exits=[7]),
        _set(problem_type="regression"),
        _set(is_pre_norm=True),
    ],
)
def test_exits_out_of_range_are_refused(name: str, change: Callable[[dict[str, Any]], None]) -> None:
    data = with_metadata(make("mean", int8=False), change)
    with pytest.raises(ModelFormatError):
        load_backend(data, name)


@pytest.mark.parametrize("name", EXITING)
@pytest.mark.parametrize("damage", ["missing", "short", "long", "not base64", "not ASCII"])
def test_damaged_weights_of_exits_are_refused(name: str, damage: str) -> None:
    data = make("mean", int8=False)
    raw = base64.b64decode(read_artifact(data).metadata["edgebert.exits"])
    exits = {
        "missing": "",
        "short": base64.b64encode(raw[:-4]).decode(),
        "long": base64.b64encode(raw + bytes(4)).decode(),
        "not base64": base64.b64encode(raw).decode()[:-4] + "!!!!",
        "not ASCII": "ß" + base64.b64encode(raw).decode(),
    }[damage]
    with pytest.raises(EdgeBertError, match=r"edgebert\.exits"):
        load_backend(with_metadata(data, lambda spec: None, exits), name)


def test_a_task_without_an_answer_to_be_sure_of_has_no_exits() -> None:
    for task in ("embedding", "question-answering", "fill-mask", "next-sentence"):
        with pytest.raises(ModelFormatError, match=f"exits do not fit, the task is {task}: only text-classification"):
            random_artifact(task=task, exits=((1, 0.5),), pooling="cls" if task == "next-sentence" else "none")
