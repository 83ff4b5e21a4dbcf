"""ONNX files of other exporters become files of ours, equal to the original in ONNX Runtime, or are refused by name."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from numpy.typing import NDArray

import edgebert
from edgebert.artifact.reader import read_artifact
from edgebert.artifact.spec import EncoderSpec
from edgebert.backends.registry import load_backend
from edgebert.batch import PackedBatch, unpad
from edgebert.errors import EdgeBertError, ModelFormatError, UnsupportedModelError
from edgebert.exporting.check import FP32_TOLERANCE
from tests.checkpoints import CLASSES, CONFIGS, make_checkpoint, random_batch
from tests.onnx_exports import export_torch


def run_original(path: Path, batch: PackedBatch) -> dict[str, NDArray[Any]]:
    """The outputs of an ONNX file in ONNX Runtime with its optimizer, padded, by their names."""
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    ids, mask, types = batch.pad()
    feeds = {"input_ids": ids, "attention_mask": mask, "token_type_ids": types}
    outputs = session.run(None, {value.name: feeds[value.name] for value in session.get_inputs()})
    return {
        value.name: unpad(found, mask) if found.ndim > 1 and found.shape[1] == ids.shape[1] else found
        for value, found in zip(session.get_outputs(), outputs, strict=True)
    }


def assert_becomes_ours(source: Path, batch: PackedBatch, *compared: str, **options: Any) -> EncoderSpec:
    """Export an ONNX file and compare the outputs that both have, `compared` among them; the spec of ours."""
    ours = source.with_name("ours.onnx")
    report = edgebert.export(source, ours, **options)
    assert "original" in report["agreed"]
    spec = read_artifact(ours).spec
    found, expected = load_backend(ours, "numpy").run(batch, spec.outputs), run_original(source, batch)
    assert set(compared) <= found.keys() & expected.keys()
    for name in compared:
        assert np.abs(found[name] - expected[name]).max() <= FP32_TOLERANCE * np.abs(expected[name]).max(), name
    return spec


@pytest.mark.parametrize("family", CONFIGS)
def test_each_family_becomes_ours(family: str, tmp_path: Path) -> None:
    model = make_checkpoint(tmp_path / "checkpoint", family)
    export_torch(model, tmp_path / "other.onnx")
    spec = assert_becomes_ours(tmp_path / "other.onnx", random_batch(model), "last_hidden_state")
    assert spec.has_padding_position == (family in ("roberta", "xlm-roberta", "camembert"))
    assert [(layer.num_heads, layer.head_dim) for layer in spec.layers] == [(4, 8), (4, 8)]


@pytest.mark.parametrize("task", list(CLASSES)[1:])
@pytest.mark.parametrize("family", ["bert", "roberta", "electra", "distilbert"])
def test_each_head_becomes_ours(family: str, task: str, tmp_path: Path) -> None:
    if task in ("next-sentence", "pretraining") and family != "bert":
        pytest.skip("only BERT has this head")
    model = make_checkpoint(tmp_path / "checkpoint", family, task)
    export_torch(model, tmp_path / "other.onnx", task)
    outputs = ["start_logits", "end_logits"] if task == "question-answering" else ["logits"]
    if task == "pretraining":
        outputs = ["prediction_logits", "seq_relationship_logits"]
    asked = task if task == "next-sentence" else None  # a classifier of two labels by its graph
    spec = assert_becomes_ours(tmp_path / "other.onnx", random_batch(model), *outputs, task=asked)
    assert spec.task == task


@pytest.mark.parametrize("activation", ["gelu_new", "relu"])
@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize("opset", [11, 14, 20])
def test_pytorchs_older_exporter(opset: int, attention: str, activation: str, tmp_path: Path) -> None:
    if opset < 14 and attention == "sdpa":
        pytest.skip("PyTorch exports its attention from opset 14 on")
    model = make_checkpoint(tmp_path / "checkpoint", activation=activation)
    export_torch(model, tmp_path / "other.onnx", opset=opset, attention=attention)
    spec = assert_becomes_ours(tmp_path / "other.onnx", random_batch(model), "last_hidden_state")
    assert spec.activation == ("relu" if activation == "relu" else "gelu_tanh")
    assert spec.layer_norm_eps == 1e-5


class _Sentence(torch.nn.Module):
    """Mean or first token of the hidden states, normalized or not."""

    def __init__(self, inner: torch.nn.Module, pooling: str, is_normalized: bool) -> None:
        super().__init__()
        self.inner, self.pooling, self.is_normalized = inner, pooling, is_normalized

    def forward(self, ids: torch.Tensor, mask: torch.Tensor, types: torch.Tensor) -> torch.Tensor:
        (hidden,) = self.inner(ids, mask, types)
        weights = mask.unsqueeze(-1).to(hidden.dtype)
        pooled = (hidden * weights).sum(1) / weights.sum(1).clamp(min=1e-9) if self.pooling == "mean" else hidden[:, 0]
        return torch.nn.functional.normalize(pooled, dim=1) if self.is_normalized else pooled


@pytest.mark.parametrize(("pooling", "is_normalized"), [("mean", True), ("mean", False), ("cls", True)])
def test_an_embedding_that_the_graph_pools(pooling: str, is_normalized: bool, tmp_path: Path) -> None:
    model = make_checkpoint(tmp_path / "checkpoint")
    path = tmp_path / "other.onnx"
    export_torch(model, path, wrap=lambda inner: _Sentence(inner, pooling, is_normalized))
    graph = onnx.load(path)
    graph.graph.output[0].name = graph.graph.node[-1].output[0] = "sentence_embedding"
    onnx.save(graph, path)
    spec = assert_becomes_ours(path, random_batch(model), "sentence_embedding")
    assert (spec.pooling, spec.normalize) == (pooling, is_normalized)


def test_berts_pooler_is_taken_when_asked_for(tmp_path: Path) -> None:
    model = make_checkpoint(tmp_path / "checkpoint")
    path = tmp_path / "other.onnx"
    export_torch(model, path, outputs=["last_hidden_state", "pooler_output"])
    batch = random_batch(model)
    assert assert_becomes_ours(path, batch, "last_hidden_state").dense_size == 0
    spec = assert_becomes_ours(path, batch, "last_hidden_state", task="embedding:pooler")
    assert (spec.pooling, spec.dense_activation) == ("cls", "tanh")
    found = load_backend(path.with_name("ours.onnx"), "numpy").run(batch, ["sentence_embedding"])["sentence_embedding"]
    np.testing.assert_allclose(found, run_original(path, batch)["pooler_output"], atol=1e-5)


def test_what_is_not_understood_is_named(tmp_path: Path) -> None:
    model = make_checkpoint(tmp_path / "checkpoint", activation="silu")
    export_torch(model, tmp_path / "other.onnx")
    with pytest.raises(UnsupportedModelError, match=r"feed-forward part of layer 0.*Sigmoid"):
        edgebert.export(tmp_path / "other.onnx", tmp_path / "ours.onnx")
    assert not (tmp_path / "ours.onnx").exists()


def test_external_data_are_read_from_the_files_folder_alone(tmp_path: Path) -> None:
    model = make_checkpoint(tmp_path / "checkpoint")
    export_torch(model, tmp_path / "whole.onnx")
    (tmp_path / "inner").mkdir()
    path, data = tmp_path / "inner" / "other.onnx", tmp_path / "inner" / "weights.bin"
    onnx.save(
        onnx.load(tmp_path / "whole.onnx"), path, save_as_external_data=True, location=data.name, size_threshold=64
    )
    assert_becomes_ours(path, random_batch(model), "last_hidden_state")

    def refused(match: str, **entries: str) -> None:
        changed = onnx.load(path, load_external_data=False)
        tensor = next(tensor for tensor in changed.graph.initializer if tensor.external_data)
        for entry in tensor.external_data:
            entry.value = entries.get(entry.key, entry.value)
        onnx.save(changed, path.with_name("changed.onnx"))
        with pytest.raises(ModelFormatError, match=match):
            edgebert.export(path.with_name("changed.onnx"), tmp_path / "ours.onnx")

    (tmp_path / "outside.bin").write_bytes(data.read_bytes())
    (tmp_path / "inner" / "link.bin").symlink_to(tmp_path / "outside.bin")
    for outside in ("../outside.bin", str(tmp_path / "outside.bin"), "link.bin", "", "."):
        refused("is not inside the file's folder", location=outside)
    refused("is missing", location="none.bin")
    refused("bytes expected", offset=str(data.stat().st_size - 4))
    refused("bytes expected", length="5")
    refused("malformed", offset="x")


@pytest.mark.parametrize("content", [b"", b"no ONNX", b"\x08\x07" * 40])
def test_a_damaged_file_is_refused(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "other.onnx").write_bytes(content)
    with pytest.raises(EdgeBertError, match="other.onnx"):
        edgebert.export(tmp_path / "other.onnx", tmp_path / "ours.onnx")
