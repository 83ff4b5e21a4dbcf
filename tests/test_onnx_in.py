"""ONNX files of other exporters become files of ours, equal to the original in ONNX Runtime, or are refused by name."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
import transformers
from checkpoints import (
    CLASSES,
    HIDDEN_SIZE,
    change_config,
    make_checkpoint,
    random_batch,
    run_transformers,
)
from numpy.typing import NDArray
from onnx import version_converter
from onnx_exports import export_torch
from onnxruntime import quantization
from onnxruntime.transformers.onnx_model import OnnxModel

import edgebert
from edgebert.artifact.reader import read_artifact
from edgebert.artifact.spec import EncoderSpec
from edgebert.backends.registry import available_backends, load_backend
from edgebert.batch import PackedBatch, unpad
from edgebert.cli import main
from edgebert.errors import EdgeBertError, InvalidInputError, ModelFormatError, UnsupportedModelError
from edgebert.exporting.check import FP32_TOLERANCE


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


@pytest.mark.parametrize("family", ["bert", "roberta", "xlm-roberta", "camembert", "distilbert", "electra"])
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


def _fuse(source: Path, target: Path, half: bool = False) -> None:
    """ONNX Runtime's own tool for transformers."""
    from onnxruntime.transformers import optimizer

    fused = optimizer.optimize_model(str(source), "bert", num_heads=4, hidden_size=HIDDEN_SIZE, opt_level=0)
    assert fused.get_fused_operator_statistics()["SkipLayerNormalization"] == 4
    if half:
        fused.convert_float_to_float16(keep_io_types=True)
    fused.save_model_to_file(str(target))


def _optimize(source: Path, target: Path) -> None:
    """What ONNX Runtime makes of a graph when it loads it."""
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
    options.optimized_model_filepath = str(target)
    onnxruntime.InferenceSession(str(source), options, providers=["CPUExecutionProvider"])


@pytest.mark.parametrize("tool", [_fuse, _optimize])
@pytest.mark.parametrize(("opset", "attention"), [(11, "eager"), (17, "eager"), (17, "sdpa")])
@pytest.mark.parametrize("family", ["bert", "roberta", "distilbert"])
def test_onnx_runtimes_fused_nodes(family: str, opset: int, attention: str, tool: Any, tmp_path: Path) -> None:
    model = make_checkpoint(tmp_path / "checkpoint", family)
    export_torch(model, tmp_path / "plain.onnx", opset=opset, attention=attention)
    tool(tmp_path / "plain.onnx", tmp_path / "other.onnx")
    fused = {node.op_type for node in onnx.load(tmp_path / "other.onnx").graph.node if node.domain == "com.microsoft"}
    assert fused & {"SkipLayerNormalization", "BiasGelu", "Gelu"}
    assert_becomes_ours(tmp_path / "other.onnx", random_batch(model), "last_hidden_state")


def assert_stands_for(source: Path, batch: PackedBatch, checkpoint: transformers.PreTrainedModel, near: float) -> None:
    """Export an int8 or half precision file; ours is as near to the model behind it as the file itself is."""
    report = edgebert.export(source, source.with_name("ours.onnx"))
    [to_quantized] = report["mean_cosine_to_quantized_original"].values()
    assert to_quantized > near
    found = load_backend(source.with_name("ours.onnx"), "numpy").run(batch, ["last_hidden_state"])
    expected = run_transformers(checkpoint, batch)["last_hidden_state"]
    assert cosine(found["last_hidden_state"], expected) > near
    original = run_original(source, batch)["last_hidden_state"]
    # activations are not quantized in ours, which can only bring it nearer
    assert cosine(found["last_hidden_state"], expected) > cosine(original, expected) - 1e-6


def cosine(a: NDArray[Any], b: NDArray[Any]) -> float:
    return float((a * b).sum() / np.sqrt((a * a).sum() * (b * b).sum()))


@pytest.mark.parametrize("weights", ["s8", "u8", "s8 per channel"])
@pytest.mark.parametrize("form", ["plain", "fused", "optimized"])
def test_int8_by_quantize_dynamic(form: str, weights: str, tmp_path: Path) -> None:
    model = make_checkpoint(tmp_path / "checkpoint")
    path = tmp_path / "plain.onnx"
    export_torch(model, path)
    if form == "fused":
        _fuse(path, tmp_path / "fused.onnx")
        path = tmp_path / "fused.onnx"
    kind = quantization.QuantType.QUInt8 if weights == "u8" else quantization.QuantType.QInt8
    extra = {"DefaultTensorType": onnx.TensorProto.FLOAT}
    other = tmp_path / "other.onnx"
    quantization.quantize_dynamic(path, other, per_channel="channel" in weights, weight_type=kind, extra_options=extra)
    if form == "optimized":
        _optimize(other, tmp_path / "optimized.onnx")
        other = tmp_path / "optimized.onnx"
    kinds = {node.op_type for node in onnx.load(other).graph.node}
    assert kinds & {"MatMulInteger", "QAttention", "DynamicQuantizeMatMul"}
    assert_stands_for(other, random_batch(model), model, 0.9995)


class _Batches(quantization.CalibrationDataReader):
    """Calibration data for quantize_static."""

    def __init__(self, batch: PackedBatch) -> None:
        ids, mask, types = batch.pad()
        self.left = [{"input_ids": ids, "attention_mask": mask, "token_type_ids": types}]

    def get_next(self) -> dict[str, Any] | None:
        return self.left.pop() if self.left else None


@pytest.mark.parametrize("form", ["QDQ", "QOperator"])
def test_int8_by_quantize_static(form: str, tmp_path: Path) -> None:
    model = make_checkpoint(tmp_path / "checkpoint")
    export_torch(model, tmp_path / "plain.onnx")
    batch = random_batch(model)
    quantization.quantize_static(
        tmp_path / "plain.onnx",
        tmp_path / "other.onnx",
        _Batches(batch),
        quant_format=quantization.QuantFormat[form],
        op_types_to_quantize=["MatMul", "Gather"],
        per_channel=form == "QDQ",
        weight_type=quantization.QuantType.QInt8,
    )
    kinds = {node.op_type for node in onnx.load(tmp_path / "other.onnx").graph.node}
    assert ("QLinearMatMul" in kinds) == (form == "QOperator")
    assert_stands_for(tmp_path / "other.onnx", batch, model, 0.995)


@pytest.mark.parametrize("activation", ["gelu", "gelu_new"])
@pytest.mark.parametrize("is_fused", [False, True])
def test_half_precision(is_fused: bool, activation: str, tmp_path: Path) -> None:
    model = make_checkpoint(tmp_path / "checkpoint", activation=activation)
    export_torch(model, tmp_path / "plain.onnx", opset=14, attention="sdpa")
    if is_fused:
        _fuse(tmp_path / "plain.onnx", tmp_path / "other.onnx", half=True)
    else:
        half = OnnxModel(onnx.load(tmp_path / "plain.onnx"))
        half.convert_float_to_float16(keep_io_types=True)
        half.save_model_to_file(str(tmp_path / "other.onnx"))
    assert_stands_for(tmp_path / "other.onnx", random_batch(model), model, 0.99999)


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


def _convert(source: Path, target: Path) -> None:
    onnx.save(version_converter.convert_version(onnx.load(source), 21), target)


@pytest.mark.parametrize("tool", [_convert, _optimize])
@pytest.mark.parametrize("task", ["text-classification", "embedding", "fill-mask"])
def test_a_file_of_ours_that_a_tool_rewrote(task: str, tool: Any, tmp_path: Path, tokenizer_json: str) -> None:
    model = make_checkpoint(tmp_path / "checkpoint", task=task)
    (tmp_path / "checkpoint" / "tokenizer.json").write_text(tokenizer_json)
    change_config(tmp_path / "checkpoint", problem_type="multi_label_classification", id2label={0: "a", 1: "b", 2: "c"})
    edgebert.export(tmp_path / "checkpoint", tmp_path / "first.onnx")
    first = read_artifact(tmp_path / "first.onnx")
    tool(tmp_path / "first.onnx", tmp_path / "other.onnx")
    rewritten = onnx.load(tmp_path / "other.onnx")  # the optimizer drops metadata
    del rewritten.metadata_props[:]
    for key, value in first.metadata.items():
        rewritten.metadata_props.add(key=key, value=value)
    onnx.save(rewritten, tmp_path / "other.onnx")
    with pytest.raises(ModelFormatError, match="edgebert export"):
        read_artifact(tmp_path / "other.onnx")
    spec = assert_becomes_ours(tmp_path / "other.onnx", random_batch(model), *first.spec.outputs)
    assert spec == first.spec
    assert read_artifact(tmp_path / "ours.onnx").tokenizer_json == first.tokenizer_json


def _fold(source: Path, target: Path) -> None:
    """Names, types and places of weights change, and they become values of nodes."""
    model = onnx.load(source)
    for number, tensor in enumerate(model.graph.initializer):
        model.graph.node.insert(0, onnx.helper.make_node("Constant", [], [f"w{number}"], value=tensor))
        for node in model.graph.node:
            node.input[:] = [f"w{number}" if name == tensor.name else name for name in node.input]
    del model.graph.initializer[:]
    onnx.save(model, target)


@pytest.mark.parametrize("tool", [_convert, _fold])
@pytest.mark.parametrize("form", ["fp32", "int8", "int8_weights"])
def test_onnxruntime_runs_a_file_of_ours_that_a_tool_rewrote(
    form: str, tool: Any, tmp_path: Path, tokenizer_json: str, capsys: pytest.CaptureFixture[str]
) -> None:
    make_checkpoint(tmp_path / "checkpoint", task="text-classification")
    (tmp_path / "checkpoint" / "tokenizer.json").write_text(tokenizer_json)
    change_config(tmp_path / "checkpoint", id2label={0: "a", 1: "b", 2: "c"})
    options = {} if form == "fp32" else {form: True}
    edgebert.export(tmp_path / "checkpoint", tmp_path / "first.onnx", **options)
    tool(tmp_path / "first.onnx", tmp_path / "other.onnx")
    texts = ["the router is slow", "roses", ("the", "root")]
    first, other = (edgebert.load(tmp_path / f"{name}.onnx", backend="onnxruntime") for name in ("first", "other"))
    assert "changed since export" in other.backend.detail
    for a, b in zip(first(texts), other(texts), strict=True):
        assert a["label"] == b["label"] and a["score"] == pytest.approx(b["score"], abs=1e-4)
    for backend in ("native", "numba", "numpy"):
        if available_backends()[backend] is None:
            with pytest.raises(ModelFormatError, match="onnxruntime backend runs it|ONNX Runtime"):
                edgebert.load(tmp_path / "other.onnx", backend=backend)
    assert main(["info", str(tmp_path / "other.onnx")]) == 1
    out, err = capsys.readouterr()
    assert "only the onnxruntime backend runs it" in out and "labels: a, b, c" in out
    assert ("export the checkpoint again" if options else "edgebert export FILE.onnx") in err
    if options:
        with pytest.raises(UnsupportedModelError, match="int8 file of EdgeBERT.*export its checkpoint again"):
            edgebert.export(tmp_path / "other.onnx", tmp_path / "ours.onnx")


def test_a_rewritten_graph_that_does_not_fit_its_spec_is_refused(tmp_path: Path) -> None:
    make_checkpoint(tmp_path / "checkpoint")
    edgebert.export(tmp_path / "checkpoint", tmp_path / "first.onnx", task="embedding:mean")
    batch = edgebert.PackedBatch.from_lists([[1, 2, 3]])

    def change(how: Any) -> Any:
        model = onnx.load(tmp_path / "first.onnx")
        how(model.graph)
        onnx.save(model, tmp_path / "other.onnx")
        return edgebert.load(tmp_path / "other.onnx", backend="onnxruntime")

    def lose_output(graph: onnx.GraphProto) -> None:
        del graph.output[1:]

    def rename_input(graph: onnx.GraphProto) -> None:
        for node in graph.node:
            node.input[:] = ["ids" if name == "input_ids" else name for name in node.input]
        graph.input[0].name = "ids"

    def keep_outside(graph: onnx.GraphProto) -> None:
        tensor = graph.initializer[0]
        tensor.data_location = onnx.TensorProto.EXTERNAL
        tensor.external_data.add(key="location", value="weights.bin")
        graph.node[0].name = "another"

    def swap_outputs(graph: onnx.GraphProto) -> None:
        names = {graph.output[0].name: graph.output[1].name, graph.output[1].name: graph.output[0].name}
        for node in graph.node:
            node.input[:] = [names.get(name, name) for name in node.input]
            node.output[:] = [names.get(name, name) for name in node.output]
        del graph.output[0].type.tensor_type.shape.dim[:], graph.output[1].type.tensor_type.shape.dim[:]
        graph.output[0].type.tensor_type.ClearField("shape")
        graph.output[1].type.tensor_type.ClearField("shape")

    def fix_length(graph: onnx.GraphProto) -> None:
        for value in graph.input:
            value.type.tensor_type.shape.dim[1].dim_value = 7

    for how, message in (
        (lose_output, "lacks the outputs.*sentence_embedding"),
        (rename_input, "it takes .*ids"),
        (keep_outside, "outside the file"),
    ):
        with pytest.raises(ModelFormatError, match=message):
            change(how)
    for how, message in ((swap_outputs, "is expected"), (fix_length, "cannot run it on 1 × 3 tokens")):
        model = change(how)
        with pytest.raises(ModelFormatError, match=message):
            model.forward(batch)


def test_inputs_are_told_by_what_they_look_up(tmp_path: Path) -> None:
    model = make_checkpoint(tmp_path / "checkpoint")
    export_torch(model, tmp_path / "other.onnx", inputs=("input_ids", "token_type_ids", "attention_mask"))
    renamed = onnx.load(tmp_path / "other.onnx")
    names = {value.name: f"onnx::{i}" for i, value in enumerate(renamed.graph.input)}
    for value in renamed.graph.input:
        value.name = names[value.name]
    for node in renamed.graph.node:
        node.input[:] = [names.get(name, name) for name in node.input]
    onnx.save(renamed, tmp_path / "renamed.onnx")
    edgebert.export(tmp_path / "renamed.onnx", tmp_path / "ours.onnx")
    batch = random_batch(model)
    found = load_backend(tmp_path / "ours.onnx", "numpy").run(batch, ["last_hidden_state"])["last_hidden_state"]
    np.testing.assert_allclose(found, run_original(tmp_path / "other.onnx", batch)["last_hidden_state"], atol=2e-5)


def test_a_folder_with_an_onnx_file_and_its_texts(tmp_path: Path, tokenizer_json: str) -> None:
    model = make_checkpoint(tmp_path / "checkpoint", task="text-classification")
    (tmp_path / "hub" / "onnx").mkdir(parents=True)
    export_torch(model, tmp_path / "hub" / "onnx" / "model.onnx", "text-classification")
    (tmp_path / "hub" / "tokenizer.json").write_text(tokenizer_json)
    (tmp_path / "hub" / "config.json").write_text('{"id2label": {"0": "bad", "1": "fair", "2": "good"}}')
    report = edgebert.export(tmp_path / "hub", tmp_path / "ours.onnx")
    assert report["tokenizer"]["num_texts"] > 20
    assert edgebert.load(tmp_path / "ours.onnx").spec.labels == ("bad", "fair", "good")
    # the file alone has no texts beside it
    alone = (tmp_path / "hub" / "onnx" / "model.onnx").rename(tmp_path / "alone.onnx")
    edgebert.export(alone, tmp_path / "ours.onnx")
    assert read_artifact(tmp_path / "ours.onnx").tokenizer_json is None
    edgebert.export(alone, tmp_path / "ours.onnx", tokenizer=tmp_path / "hub")
    assert edgebert.load(tmp_path / "ours.onnx").spec.labels == ("bad", "fair", "good")
    edgebert.export(alone, tmp_path / "folder")
    assert edgebert.load(tmp_path / "folder").spec.num_layers == 2
    (tmp_path / "hub" / "config.json").write_text('{"id2label": {"0": "bad", "1": "good"}}')
    with pytest.raises(ModelFormatError, match="names 2 labels, the ONNX file has 3"):
        edgebert.export(alone, tmp_path / "ours.onnx", tokenizer=tmp_path / "hub")
    with pytest.raises(InvalidInputError, match="tokenizer belongs to an ONNX file"):
        edgebert.export(tmp_path / "checkpoint", tmp_path / "ours.onnx", tokenizer=tmp_path / "hub")


def test_info_says_what_another_exporters_file_is(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    export_torch(make_checkpoint(tmp_path / "checkpoint"), tmp_path / "other.onnx", opset=14)
    assert main(["info", str(tmp_path / "other.onnx")]) == 1
    out, err = capsys.readouterr()
    assert "ONNX file by pytorch" in out
    assert "not written by EdgeBERT" in out
    assert "ai.onnx 14" in out
    assert "edgebert export" in err


def test_what_is_not_understood_is_named(tmp_path: Path) -> None:
    model = make_checkpoint(tmp_path / "checkpoint", activation="quick_gelu")
    export_torch(model, tmp_path / "other.onnx")
    with pytest.raises(UnsupportedModelError, match=r"feed-forward part of layer 0.*Sigmoid"):
        edgebert.export(tmp_path / "other.onnx", tmp_path / "ours.onnx")
    assert not (tmp_path / "ours.onnx").exists()


def test_another_activation_is_understood(tmp_path: Path) -> None:
    model = make_checkpoint(tmp_path / "checkpoint", activation="silu")
    export_torch(model, tmp_path / "other.onnx")
    assert_becomes_ours(tmp_path / "other.onnx", random_batch(model), "last_hidden_state")


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


def test_a_graph_without_a_word_table_is_refused(tmp_path: Path) -> None:
    names = ("input_ids", "attention_mask")
    values = [onnx.helper.make_tensor_value_info(name, onnx.TensorProto.INT64, ["b", "s"]) for name in names]
    output = onnx.helper.make_tensor_value_info("last_hidden_state", onnx.TensorProto.INT64, ["b", "s"])
    graph = onnx.helper.make_graph([onnx.helper.make_node("Add", names, [output.name])], "sum", values, [output])
    opset = [onnx.helper.make_opsetid("", 17)]
    onnx.save(onnx.helper.make_model(graph, opset_imports=opset, ir_version=9), tmp_path / "other.onnx")
    with pytest.raises(UnsupportedModelError, match="other.onnx: no encoder: .*begins with Add 'last_hidden_state'"):
        edgebert.export(tmp_path / "other.onnx", tmp_path / "ours.onnx")
    assert not (tmp_path / "ours.onnx").exists()
