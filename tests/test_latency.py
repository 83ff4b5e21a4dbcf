"""The latency table: what is measured and how it is put together, kept and read; never how long anything takes."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from artifacts import random_spec, random_tensors
from conftest import BACKENDS

import edgebert
from edgebert.artifact.spec import EncoderSpec
from edgebert.artifact.writer import build_model
from edgebert.batch import PackedBatch
from edgebert.compress import latency, measure
from edgebert.compress.latency import LatencyTable
from edgebert.compress.recipe import Budget
from edgebert.errors import InvalidInputError

pytestmark = [
    pytest.mark.skipif("native" not in BACKENDS, reason="the native backend is not built"),
    pytest.mark.filterwarnings("error"),
]
pytest.importorskip("onnx")

SPEC = random_spec(layers=((8, 8, 256), (6, 8, 512), (8, 8, 128)), num_positions=200)


def cost(spec: EncoderSpec) -> float:
    return 5.0 + sum(1.0 + 0.5 * layer.num_heads + 0.01 * layer.intermediate_size for layer in spec.layers)


@pytest.fixture
def measured(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[list[EncoderSpec]]:
    """Time is `cost`; the specs of each measurement are noted; the cache is in `tmp_path`."""
    calls: list[list[EncoderSpec]] = []

    def time_models(specs: Sequence[EncoderSpec], *_: object) -> list[float]:
        calls.append(list(specs))
        return [cost(spec) for spec in specs]

    monkeypatch.setattr(latency, "_time_models", time_models)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return calls


def test_prediction_adds_up(measured: list[list[EncoderSpec]]) -> None:
    table = LatencyTable.measure(SPEC)
    assert np.isclose(table.predict(SPEC), cost(SPEC))
    assert np.isclose(table.layer(3, 100), 1.0 + 1.5 + 1.0)  # in between
    assert np.isclose(table.layer(20, 999), table.layer(8, 512))
    assert np.isclose(table.predict(SPEC.replace(layers=())), table.constant)
    assert (table.num_heads[0], table.num_heads[-1]) == (0, 8)
    assert (table.intermediate_sizes[0], table.intermediate_sizes[-1]) == (0, 512)
    specs = measured[0]
    assert all(spec.is_int8 for spec in specs)
    assert {len(spec.layers) for spec in specs} == {0, 3}


def test_files_are_timed_by_what_they_compute(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    path.write_bytes(build_model(SPEC, random_tensors(SPEC, 0), {}))
    forward = edgebert.Model.forward

    def interrupted(model: edgebert.Model, batch: PackedBatch) -> object:
        time.sleep(0.1)  # as if other processes had the CPU
        return forward(model, batch)

    monkeypatch.setattr(edgebert.Model, "forward", interrupted)
    monkeypatch.setattr(measure, "_TURNS", 1)
    [speed] = measure.measure_speeds([path], Budget(tokens=16))
    assert 0 < speed["latency_p50"] < 0.05


def test_cache(measured: list[list[EncoderSpec]], tmp_path: Path) -> None:
    table = LatencyTable.measure(SPEC)
    assert LatencyTable.measure(SPEC) == table
    assert len(measured) == 1
    [file] = tmp_path.rglob("*.*")
    assert file.parent == tmp_path / "edgebert" / "latency"
    smaller = SPEC.replace(layers=SPEC.layers[1:2] * 3)  # other layers, another largest one
    for other in (
        lambda: LatencyTable.measure(SPEC, tokens=16),
        lambda: LatencyTable.measure(SPEC, batch=2),
        lambda: LatencyTable.measure(SPEC, threads=2),
        lambda: LatencyTable.measure(SPEC, int8=False),
        lambda: LatencyTable.measure(smaller),
        lambda: LatencyTable.measure(SPEC, use_cache=False),
    ):
        before = len(measured)
        other()
        assert len(measured) == before + 1
    assert len(list(tmp_path.rglob("*.json"))) == len(list(tmp_path.rglob("*.*"))) == 6


@pytest.mark.parametrize(
    "damage", [lambda text: text[:50], lambda text: "[]", lambda text: text.replace('"cpu"', '"x"')]
)
def test_damaged_cache_is_measured_again(
    measured: list[list[EncoderSpec]], tmp_path: Path, damage: Callable[[str], str]
) -> None:
    table = LatencyTable.measure(SPEC)
    [file] = tmp_path.rglob("*.json")
    file.write_text(damage(file.read_text()))
    assert LatencyTable.measure(SPEC) == table
    assert len(measured) == 2
    assert LatencyTable.from_json(file.read_text()) == table


def test_text_form() -> None:
    table = LatencyTable({"tokens": 8}, 0.5, (0, 2), (0, 64, 128), ((0.1, 0.2, 0.3), (0.4, 0.5, 0.6)))
    assert LatencyTable.from_json(table.to_json()) == table
    raw = json.loads(table.to_json())
    for changed in ({**raw, "seconds": [[1.0]]}, {**raw, "extra": 1}, {"workload": {}}, [], None):
        with pytest.raises(InvalidInputError, match="not a latency table"):
            LatencyTable.from_json(json.dumps(changed))


@pytest.mark.parametrize(("tokens", "batch"), [(0, 1), (201, 1), (8, 0)])
def test_refused(tokens: int, batch: int) -> None:
    with pytest.raises(InvalidInputError, match="cannot be measured"):
        LatencyTable.measure(SPEC, tokens=tokens, batch=batch)


@pytest.mark.parametrize("task", ["embedding", "text-classification", "question-answering", "pretraining"])
@pytest.mark.parametrize("int8", [False, True])
def test_models_run(task: str, int8: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """The files really measured are files that the engine takes, layers without heads or neurons among them."""
    monkeypatch.setattr(latency, "ROUNDS", 1)
    monkeypatch.setattr(latency, "_TURN_S", 1e-4)
    spec = random_spec(task=task, layers=((2, 8, 128),), vocab_size=latency._TABLE_ROWS + 5).replace(
        pad_token_id=latency._TABLE_ROWS + 1
    )
    table = LatencyTable.measure(spec, tokens=3, batch=2, int8=int8, use_cache=False)
    assert table.num_heads == (0, 1, 2)
    assert table.intermediate_sizes == (0, 64, 128)
    assert np.array(table.seconds).shape == (3, 3)
    assert table.constant > 0
    assert latency.measure_model(replace(spec, layers=()), tokens=3) > 0
