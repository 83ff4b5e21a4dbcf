"""The model file: what the writer writes, the reader reads, ONNX Runtime runs, and the gate lets through."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import shutil
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from artifacts import random_artifact, random_batch, random_spec, random_tensors
from onnx import numpy_helper

import edgebert
from edgebert import quant
from edgebert.artifact.names import weight_tensors
from edgebert.artifact.reader import read_artifact
from edgebert.artifact.spec import TASKS
from edgebert.artifact.writer import build_model, encode_metadata
from edgebert.backends.base import Outputs
from edgebert.backends.numpy_backend import NumpyBackend
from edgebert.checkpoints.loading import Checkpoint
from edgebert.errors import InvalidInputError, ModelFormatError, UnsupportedModelError
from edgebert.exporting import check as check_module
from edgebert.exporting import export as export_module
from edgebert.exporting.check import GateError, check, encode_probe, probe_batch

SHAPES: list[dict[str, Any]] = [
    {},
    {"num_token_types": 1, "activation": "gelu_tanh", "pooling": "cls", "normalize": False},
    {"num_token_types": 0, "embedding_size": 16, "position_offset": 2, "activation": "relu"},
    {"num_token_types": 1, "position_offset": 3, "has_padding_position": True, "family": "roberta"},
    # sub-blocks pruned to nothing, odd sizes
    {"layers": ((0, 8, 40), (2, 8, 0), (3, 5, 17), (0, 1, 0)), "smoothed": False, "dense_size": 7},
]


@pytest.mark.parametrize("shape", range(len(SHAPES)))
@pytest.mark.parametrize("int8", [False, True])
@pytest.mark.parametrize("task", TASKS)
def test_every_graph_is_valid_and_passes_the_gate(task: str, int8: bool, shape: int) -> None:
    data = random_artifact(task=task, int8=int8, **SHAPES[shape])
    onnx.checker.check_model(onnx.load_from_string(data), full_check=True)
    report = check(data)
    assert {"numpy", "onnxruntime"} <= set(report["agreed"])
    spec = read_artifact(data).spec
    assert set(report["min_cosine" if int8 else "max_relative_error"]) == set(spec.outputs)


def test_the_reader_agrees_with_the_onnx_package(tmp_path: Path) -> None:
    for int8 in (False, True):
        path = tmp_path / "model.onnx"
        random_artifact(path, int8=int8, task="pretraining", tokenizer_json='{"a":"é"}')
        model = onnx.load(path)
        artifact = read_artifact(path)
        weights = {t.name: t for t in model.graph.initializer if not t.name.startswith("const.")}
        assert list(artifact.tensors) == list(weights) == list(weight_tensors(artifact.spec))
        for name, tensor in weights.items():
            expected = numpy_helper.to_array(tensor)
            assert artifact.tensors[name].dtype == expected.dtype
            np.testing.assert_array_equal(artifact.tensors[name], expected)
            assert not artifact.tensors[name].flags.writeable
        metadata = {entry.key: entry.value for entry in model.metadata_props}
        assert artifact.spec.to_json() == metadata["edgebert.spec"]
        assert artifact.tokenizer_json == metadata["edgebert.tokenizer"] == '{"a":"é"}'
        assert artifact.path == path and artifact.probe == {} and artifact.report == {}
        assert (model.ir_version, [(o.domain, o.version) for o in model.opset_import]) == (8, [("", 17)])
        assert {node.domain for node in model.graph.node} == {""}


def test_the_graph_hash_is_the_documented_one() -> None:
    model = onnx.load_from_string(random_artifact(int8=True))
    graph = model.graph
    digest = hashlib.sha256()
    constants = [tensor for tensor in graph.initializer if tensor.name.startswith("const.")]
    for number, messages in ((1, graph.node), (5, constants), (11, graph.input), (12, graph.output)):
        for message in messages:
            raw = message.SerializeToString()
            digest.update(bytes([number]) + len(raw).to_bytes(8, "little") + raw)
    assert {entry.key: entry.value for entry in model.metadata_props}["edgebert.graph_hash"] == digest.hexdigest()


def test_a_folder_and_every_kind_of_bytes_are_read(tmp_path: Path) -> None:
    data = random_artifact(tmp_path / "model.onnx")
    spec = read_artifact(data).spec
    for source in (tmp_path, str(tmp_path / "model.onnx"), bytearray(data), memoryview(data)):
        assert read_artifact(source).spec == spec
    assert read_artifact(onnx.load_from_string(data).SerializeToString()).spec == spec  # the order of fields is free


def test_wrong_tensors_are_not_written() -> None:
    spec = random_spec(int8=True)
    tensors = random_tensors(spec)
    name = "layer.0.ffn.up.weight"
    for wrong in (tensors[name].astype(np.float32), tensors[name][:-1]):
        with pytest.raises(ModelFormatError, match=f"{name}: expected s8"):
            build_model(spec, tensors | {name: wrong}, {})
    with pytest.raises(ModelFormatError, match="extra"):
        build_model(spec, tensors | {"surplus": tensors[name]}, {})
    with pytest.raises(ModelFormatError, match=name):
        build_model(spec, {key: value for key, value in tensors.items() if key != name}, {})
    with pytest.raises(UnsupportedModelError, match="bf16"):
        build_model(spec.replace(attention_dtype="bf16"), tensors, {})


def test_a_file_beyond_two_gigabytes_is_refused_with_advice() -> None:
    spec = random_spec(vocab_size=2**24, hidden=64, layers=())
    tensors = {
        name: np.broadcast_to(np.float32(0), shape) for name, (_, shape) in weight_tensors(spec).items()
    }  # no memory behind it
    with pytest.raises(UnsupportedModelError, match="--int8"):
        build_model(spec, tensors, {})


def _session(data: bytes) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 4
    return onnxruntime.InferenceSession(data, options, providers=["CPUExecutionProvider"])


def test_onnxruntime_computes_the_int8_contract_bit_for_bit() -> None:
    data = random_artifact(int8=True, task="fill-mask", layers=((2, 16, 96), (1, 8, 33)), hidden=48)
    tensors = read_artifact(data).tensors
    model = onnx.load_from_string(data)
    producer = {output: node for node in model.graph.node for output in node.output}
    consumer = {value: node for node in model.graph.node for value in node.input}
    steps = []  # (linear, its f32 input, codes, dequantized output)
    for node in (node for node in model.graph.node if node.op_type == "MatMulInteger"):
        codes, weight = node.input
        is_decoder = weight not in tensors
        prefix = "mlm" if is_decoder else weight.removesuffix(".weight")
        x = producer[producer[producer[codes].input[0]].input[0]].input[0]
        x = producer[x].input[0] if f"{prefix}.inv_smooth" in tensors else x
        y = consumer[f"{prefix}.bias"].output[0]
        steps.append((prefix, x, codes, y))
    assert len(steps) == 9
    # last_hidden_state of the graph stays as it is; the inner values become outputs too
    known = {output.name for output in model.graph.output}
    for _, *names in steps:
        for name, dtype in zip(
            names, (onnx.TensorProto.FLOAT, onnx.TensorProto.UINT8, onnx.TensorProto.FLOAT), strict=True
        ):
            if name not in known:
                known.add(name)
                model.graph.output.append(onnx.helper.make_tensor_value_info(name, dtype, None))
    session = _session(model.SerializeToString())
    ids, mask, types = random_batch(read_artifact(data).spec, (1, 2, 40, 17)).pad()
    names = [output.name for output in session.get_outputs()]
    feed = {"input_ids": ids, "attention_mask": mask, "token_type_ids": types}
    values = dict(zip(names, session.run(None, feed), strict=True))
    for prefix, x, codes, y in steps:
        q, a_scale, zn = quant.quantize_rows(values[x], tensors.get(f"{prefix}.inv_smooth"))
        np.testing.assert_array_equal(values[codes], q, err_msg=prefix)
        if prefix == "mlm":
            weight, scale = tensors["embeddings.word.weight"].T, tensors["embeddings.word.scale"]
        else:
            weight, scale = tensors[f"{prefix}.weight"], tensors[f"{prefix}.scale"]
        expected = quant.linear_u8s8_f32(
            q, a_scale, zn, weight, scale, tensors[f"{prefix}.colsum"], tensors[f"{prefix}.bias"]
        )
        np.testing.assert_array_equal(values[y], expected, err_msg=prefix)


def test_int8_on_onnxruntime_has_the_same_bits_alone_and_in_any_batch() -> None:
    data = random_artifact(int8=True, layers=((3, 32, 192), (3, 32, 192)), hidden=96, num_positions=140)
    spec = read_artifact(data).spec
    session = _session(data)

    def run(rows: list[int], extra: int) -> Any:
        ids, mask, types = (np.pad(part, ((0, 0), (0, extra))) for part in batch.take(rows).pad())
        return session.run(None, {"input_ids": ids, "attention_mask": mask, "token_type_ids": types})

    batch = random_batch(spec, (5, 1, 64, 2, 33, 100, 17))
    alone = [run([i], 0) for i in range(7)]
    for rows, extra in (([0, 1, 2, 3, 4, 5, 6], 0), ([6, 1, 5], 31), ([3, 0], 0), ([2], 7), ([1], 1)):
        hidden, pooled = run(rows, extra)
        for k, i in enumerate(rows):
            np.testing.assert_array_equal(hidden[k, : batch.lengths[i]], alone[i][0][0])
            np.testing.assert_array_equal(pooled[k], alone[i][1][0])


# The gate


def _with_probe(**arguments: Any) -> bytes:
    spec = random_spec(**arguments)
    tensors = random_tensors(spec)
    batch = probe_batch(spec, None)
    outputs = NumpyBackend(spec, tensors).run(batch, spec.outputs)
    return build_model(spec, tensors, {"edgebert.probe": encode_probe(batch, outputs, spec)})


@pytest.mark.parametrize("int8", [False, True])
@pytest.mark.parametrize("task", ["embedding", "question-answering", "fill-mask", "text-classification"])
def test_the_stored_probe_gives_back_the_oracle_s_outputs(task: str, int8: bool) -> None:
    data = _with_probe(task=task, int8=int8, vocab_size=1500)
    artifact = read_artifact(data)
    batch = edgebert.PackedBatch.from_lists(artifact.probe["input_ids"], artifact.probe["token_type_ids"])
    outputs = NumpyBackend(artifact.spec, artifact.tensors).run(batch, artifact.spec.outputs)
    for name, values in outputs.items():
        stored = artifact.probe["outputs"][name]
        expected = values[:, :1024] if values.ndim == 2 else values
        np.testing.assert_array_equal(np.float32(stored["values"]).reshape(stored["shape"]), expected)
    check(data)


def test_a_file_that_no_longer_gives_its_probe_fails_the_gate() -> None:
    model = onnx.load_from_string(_with_probe())
    table = next(t for t in model.graph.initializer if t.name == "embeddings.layer_norm.weight")
    table.raw_data = (2 * np.frombuffer(table.raw_data, np.float32)).tobytes()
    with pytest.raises(GateError, match="stored probe"):
        check(model.SerializeToString())


@pytest.mark.parametrize(
    "change",
    [
        {"input_ids": [[1], [], [2]]},
        {"input_ids": [["a"], [1], [2]]},
        {"input_ids": [[1]] * 4, "token_type_ids": [[0]] * 4},
        {"input_ids": None},
        {"outputs": {}},
        {"outputs": []},
        {"outputs": {"last_hidden_state": {"shape": [2, 2], "values": [1.0]}}},
        {"outputs": {"last_hidden_state": {"shape": [10**9, 10**9], "values": []}}},
    ],
)
def test_a_damaged_probe_is_refused(change: dict[str, Any]) -> None:
    data = _with_probe()
    probe = read_artifact(data).probe | change
    model = onnx.load_from_string(data)
    next(entry for entry in model.metadata_props if entry.key == "edgebert.probe").value = json.dumps(probe)
    with pytest.raises(edgebert.EdgeBertError, match="probe|range"):
        check(model.SerializeToString())


def _spoil(monkeypatch: pytest.MonkeyPatch, factor: float) -> None:
    """Make ONNX Runtime's outputs wrong by a factor in their first column."""
    load_backend = check_module.load_backend

    def load(path: Any, name: str) -> Any:
        backend = load_backend(path, name)
        if name == "onnxruntime":
            run = backend.run

            def spoiled(*arguments: Any) -> Outputs:
                outputs = run(*arguments)
                for values in outputs.values():
                    values[..., 0] *= factor
                return outputs

            backend.run = spoiled  # type: ignore[method-assign]
        return backend

    monkeypatch.setattr(check_module, "load_backend", load)


@pytest.mark.parametrize(("int8", "factor"), [(False, 1.0001), (True, -1.0), (False, np.nan), (True, np.nan)])
def test_the_gate_names_who_disagrees(monkeypatch: pytest.MonkeyPatch, int8: bool, factor: float) -> None:
    data = random_artifact(int8=int8)
    check(data)
    _spoil(monkeypatch, factor)
    with pytest.raises(GateError, match="onnxruntime and numpy|numpy and onnxruntime|native and onnxruntime"):
        check(data)


def test_one_runtime_alone_cannot_agree(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(check_module, "available_backends", lambda: {"onnxruntime": "not installed", "numpy": None})
    with pytest.raises(GateError, match="only numpy"):
        check(random_artifact())


def test_int8_is_held_to_the_fp32_model() -> None:
    data = random_artifact(int8=True)
    artifact = read_artifact(data)
    batch = probe_batch(artifact.spec, None)
    own = NumpyBackend(artifact.spec, artifact.tensors).run(batch, artifact.spec.outputs)
    report = check(data, {"fp32": own})
    assert all(value >= 0.998 for value in report["mean_cosine_to_fp32"].values())
    other = {name: np.ascontiguousarray(values[:, ::-1]) for name, values in own.items()}
    with pytest.raises(GateError, match="mean cosine"):
        check(data, {"fp32": other})


# Export


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory, tokenizer_json: str) -> Path:
    """A random BERT as transformers saves it, with a tokenizer."""
    import torch
    from transformers import BertConfig, BertForSequenceClassification

    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=len(json.loads(tokenizer_json)["model"]["vocab"]),
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=48,
        max_position_embeddings=64,
        id2label={0: "no", 1: "yes", 2: "who knows"},
        label2id={"no": 0, "yes": 1, "who knows": 2},
        initializer_range=0.2,
    )
    folder = tmp_path_factory.mktemp("checkpoint")
    BertForSequenceClassification(config).save_pretrained(folder)
    (folder / "tokenizer.json").write_text(tokenizer_json, encoding="utf-8")
    return folder


def test_export_writes_one_file_that_all_runtimes_agree_on(checkpoint: Path, tmp_path: Path) -> None:
    report = edgebert.export(checkpoint, tmp_path / "model.onnx")
    assert {"numpy", "onnxruntime", "pytorch"} <= set(report["agreed"])
    assert os.listdir(tmp_path) == ["model.onnx"]
    artifact = read_artifact(tmp_path / "model.onnx")
    assert artifact.report == report
    assert artifact.tokenizer_json and artifact.probe
    assert artifact.spec.labels == ("no", "yes", "who knows")
    check(tmp_path / "model.onnx")


def test_export_int8_passes_the_gate(checkpoint: Path, tmp_path: Path) -> None:
    for portable in (False, True):
        texts = tmp_path / "texts.txt"
        texts.write_text("the router restart\n\nroses at root, is it not good?\n" * 20, encoding="utf-8")
        report = edgebert.export(checkpoint, tmp_path / "m.onnx", int8=True, portable=portable, calibrate=texts)
        artifact = read_artifact(tmp_path / "m.onnx")
        assert artifact.spec.is_int8 and artifact.spec.portable == portable
        assert report["mean_cosine_to_fp32"]["logits"] > 0.98
        limit = quant.PORTABLE_WEIGHT_LIMIT if portable else quant.WEIGHT_LIMIT
        assert np.abs(artifact.tensors["layer.0.ffn.up.weight"].astype(int)).max() == limit


def test_int8_weights_are_those_of_int8_in_another_graph(checkpoint: Path, tmp_path: Path) -> None:
    edgebert.export(checkpoint, tmp_path / "int8.onnx", int8=True)
    report = edgebert.export(checkpoint, tmp_path / "weights.onnx", int8_weights=True)
    int8, weights = read_artifact(tmp_path / "int8.onnx"), read_artifact(tmp_path / "weights.onnx")
    assert weights.spec == int8.spec.replace(is_weight_only=True)
    assert weights.tensors.keys() == int8.tensors.keys()
    for name, values in weights.tensors.items():
        np.testing.assert_array_equal(values, int8.tensors[name])
    assert weights.probe == int8.probe  # what engines give
    assert {"numpy", "onnxruntime"} <= set(report["agreed"])
    assert report["graph"]["mean_cosine_to_fp32"]["logits"] > 0.999  # nearer than with int8 activations
    assert report["graph"]["min_cosine"]["logits"] > 0.9999
    check(tmp_path / "weights.onnx")
    for argument in ("portable", "int8_attention"):
        with pytest.raises(InvalidInputError, match="no integer product"):
            edgebert.export(checkpoint, tmp_path / "wrong.onnx", int8_weights=True, **{argument: True})


def test_a_weight_only_graph_that_is_wrong_stops_an_export(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _spoil(monkeypatch, 3.0)
    with pytest.raises(GateError, match="onnxruntime and numpy, dequantized have a cosine of"):
        edgebert.export(checkpoint, tmp_path / "model.onnx", int8_weights=True)
    assert os.listdir(tmp_path) == []


def test_a_single_text_has_no_token_types(checkpoint: Path, tmp_path: Path) -> None:
    edgebert.export(checkpoint, tmp_path / "both.onnx")
    report = edgebert.export(checkpoint, tmp_path / "single.onnx", single_text=True)
    assert "pytorch" in report["agreed"]
    graph = onnx.load(tmp_path / "single.onnx").graph
    assert [value.name for value in graph.input] == ["input_ids", "attention_mask"]
    texts = ["the router is slow", "roses"]
    for backend in ("numpy", "onnxruntime"):
        both, single = (edgebert.load(tmp_path / f"{name}.onnx", backend=backend) for name in ("both", "single"))
        for a, b in zip(both(texts), single(texts), strict=True):
            assert a["label"] == b["label"] and a["score"] == pytest.approx(b["score"], abs=1e-6)
    edgebert.export(checkpoint, tmp_path / "folder", single_text=True)
    config = json.loads((tmp_path / "folder" / "tokenizer_config.json").read_text(encoding="utf-8"))
    assert config["model_input_names"] == ["input_ids", "attention_mask"]
    spec = random_spec(task="question-answering")
    with pytest.raises(UnsupportedModelError, match="reads pairs"):
        export_module.drop_token_types(Checkpoint(spec, random_tensors(spec), None, {}, {}, tmp_path))


def test_an_int8_folder_has_its_file_where_each_loader_looks(checkpoint: Path, tmp_path: Path) -> None:
    target = tmp_path / "model"

    def graphs() -> set[str]:
        return {str(path.relative_to(target)) for path in target.rglob("*.onnx")}

    for options, second, dtype in (({}, "model", "fp32"), ({"int8": True}, "model_quantized", "q8")):
        edgebert.export(checkpoint, target, **options)  # the second over the first, whose graph must not stay
        assert graphs() == {"model.onnx", f"onnx/{second}.onnx"}
        assert (target / "model.onnx").read_bytes() == (target / "onnx" / f"{second}.onnx").read_bytes()
        config = json.loads((target / "config.json").read_text(encoding="utf-8"))
        assert config["transformers.js_config"] == {"dtype": dtype}


def test_export_to_a_folder_makes_a_whole_one(checkpoint: Path, tmp_path: Path) -> None:
    target = tmp_path / "model"
    edgebert.export(checkpoint, target, task="embedding:pooler")
    files = {str(path.relative_to(target)) for path in target.rglob("*") if path.is_file()}
    assert files == {
        "model.onnx",
        "onnx/model.onnx",
        "config.json",
        "tokenizer.json",
        "tokenizer_config.json",
        "special_tokens_map.json",
        "modules.json",
        "1_Pooling/config.json",
        "2_Dense/config.json",
        "2_Dense/model.safetensors",
        "sentence_bert_config.json",
        "config_sentence_transformers.json",
    }
    assert (target / "model.onnx").read_bytes() == (target / "onnx" / "model.onnx").read_bytes()
    assert os.listdir(tmp_path) == ["model"]
    assert read_artifact(target).spec.dense_size == 32
    tokenizer_config = json.loads((target / "tokenizer_config.json").read_text())
    assert tokenizer_config["pad_token"] == "[PAD]" and tokenizer_config["model_max_length"] == 64

    from transformers import AutoConfig, AutoTokenizer

    assert AutoConfig.from_pretrained(target).architectures == ["BertModel"]
    tokens = AutoTokenizer.from_pretrained(target)("the router", "is slow")
    assert tokens["token_type_ids"][-1] == 1 and len(tokens["input_ids"]) == 7

    # an earlier export is replaced, and what else lies there is kept
    (target / "notes.txt").write_text("mine")
    edgebert.export(checkpoint, target)
    assert read_artifact(target).spec.task == "text-classification"
    assert json.loads((target / "config.json").read_text())["label2id"]["who knows"] == 2
    assert (target / "notes.txt").read_text() == "mine"
    assert os.listdir(tmp_path) == ["model"]


def test_a_folder_tells_other_tokenizers_what_the_file_does(checkpoint: Path, tmp_path: Path) -> None:
    """A cased tokenizer of the general class must not fall back to the lower-casing of transformers' BERT classes."""
    source = tmp_path / "cased"
    shutil.copytree(checkpoint, source)
    tokenizer = json.loads((source / "tokenizer.json").read_text(encoding="utf-8"))
    tokenizer["normalizer"] |= {"lowercase": False, "strip_accents": False, "handle_chinese_chars": False}
    (source / "tokenizer.json").write_text(json.dumps(tokenizer), encoding="utf-8")
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", "model_input_names": ["input_ids", "token_type_ids"]}
    (source / "tokenizer_config.json").write_text(json.dumps(settings), encoding="utf-8")
    edgebert.export(source, tmp_path / "model")
    config = json.loads((tmp_path / "model" / "tokenizer_config.json").read_text(encoding="utf-8"))
    assert config["tokenizer_class"] == "BertTokenizer"
    assert not (config["do_lower_case"] or config["strip_accents"] or config["tokenize_chinese_chars"])

    from transformers import AutoTokenizer

    model = edgebert.load(tmp_path / "model", backend="numpy")
    assert model.tokenizer is not None
    for pair in (("the Router", "is slow"), ("thé router 路由", "Roses")):
        batch, _ = model.tokenizer.tokenize([pair])
        theirs = AutoTokenizer.from_pretrained(tmp_path / "model")(*pair)
        assert theirs["input_ids"] == batch.input_ids.tolist()
        assert theirs["token_type_ids"] == batch.token_type_ids.tolist()


def _fail(*_: object, **__: object) -> None:
    raise GateError("injected")


@pytest.mark.parametrize(
    ("where", "fail"),
    [
        ("check", _fail),
        ("build_model", _fail),
        ("write_folder", _fail),
        ("add_metadata", KeyboardInterrupt),
    ],
)
def test_an_export_that_fails_leaves_nothing_and_replaces_nothing(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, where: str, fail: Any
) -> None:
    old = random_artifact(tmp_path / "old.onnx")
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "model.onnx").write_bytes(old)
    before = sorted(path.relative_to(tmp_path) for path in tmp_path.rglob("*"))

    def raise_error(*_: object, **__: object) -> None:
        raise fail if isinstance(fail, type) else GateError("injected")

    monkeypatch.setattr(export_module, where, raise_error)
    for target in ("new.onnx", "old.onnx", "new", "folder"):
        if where == "write_folder" and target.endswith(".onnx"):
            continue
        with pytest.raises((GateError, KeyboardInterrupt)):
            edgebert.export(checkpoint, tmp_path / target)
        assert sorted(path.relative_to(tmp_path) for path in tmp_path.rglob("*")) == before
    assert (tmp_path / "old.onnx").read_bytes() == (tmp_path / "folder" / "model.onnx").read_bytes() == old


def test_disagreement_stops_an_export(checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _spoil(monkeypatch, 1.001)
    with pytest.raises(GateError):
        edgebert.export(checkpoint, tmp_path / "model.onnx")
    assert not os.listdir(tmp_path)


def test_a_checkpoint_that_transformers_reads_otherwise_stops_an_export(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    load_checkpoint = export_module.load_checkpoint

    def load(*arguments: Any) -> Any:
        loaded = load_checkpoint(*arguments)
        return dataclasses.replace(loaded, spec=loaded.spec.replace(activation="gelu_tanh"))

    monkeypatch.setattr(export_module, "load_checkpoint", load)
    with pytest.raises(GateError, match="pytorch"):
        edgebert.export(checkpoint, tmp_path / "model.onnx")
    assert not os.listdir(tmp_path)


def test_targets_that_cannot_be_written_are_refused_early(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("x")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.txt").write_text("x")
    monkeypatch.setattr(export_module, "load_checkpoint", _fail)
    for target in ("absent/model.onnx", "absent/folder", "file", "file/model.onnx", "full"):
        with pytest.raises(InvalidInputError):
            edgebert.export(checkpoint, tmp_path / target)
    with pytest.raises(InvalidInputError, match="holds no earlier export"):
        edgebert.export(checkpoint, checkpoint)
    assert sorted(os.listdir(tmp_path)) == ["file", "full"]


def test_an_unwritable_folder_is_an_input_error(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(**_: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(export_module.tempfile, "TemporaryDirectory", refuse)
    with pytest.raises(InvalidInputError, match="Permission denied"):
        edgebert.export(checkpoint, tmp_path / "model.onnx")


def test_calibration_that_cannot_be_used_is_refused(checkpoint: Path, tmp_path: Path) -> None:
    (tmp_path / "empty.txt").write_text("\n\n")
    (tmp_path / "latin.txt").write_bytes(b"caf\xe9")
    for name in ("empty.txt", "latin.txt", "absent.txt"):
        with pytest.raises(InvalidInputError, match="cannot be read as UTF-8 text|has no texts"):
            edgebert.export(checkpoint, tmp_path / "model.onnx", int8=True, calibrate=tmp_path / name)
    arguments: tuple[dict[str, Any], ...] = ({"portable": True}, {"calibrate": tmp_path / "empty.txt"})
    for argument in arguments:
        with pytest.raises(InvalidInputError, match="int8"):
            edgebert.export(checkpoint, tmp_path / "model.onnx", **argument)


@pytest.mark.parametrize("texts", ["a\n<new> b\nthe router", "<new>\n"])
def test_a_tokenizer_with_tokens_that_the_model_lacks_is_exported_and_told(
    checkpoint: Path, wider_tokenizer_json: str, texts: str, tmp_path: Path
) -> None:
    source = shutil.copytree(checkpoint, tmp_path / "source")
    (source / "tokenizer.json").write_text(wider_tokenizer_json, encoding="utf-8")
    assert "tokens_without_row" not in edgebert.export(checkpoint, tmp_path / "model.onnx")
    report = edgebert.export(source, tmp_path / "model.onnx")
    assert report["tokens_without_row"] == ["<new>"]
    assert edgebert.load(tmp_path / "model.onnx")("the router")
    # int8 is calibrated on the texts that the model takes, and there must be some
    (tmp_path / "texts.txt").write_text(texts, encoding="utf-8")
    if "router" in texts:
        report = edgebert.export(source, tmp_path / "model.onnx", int8=True, calibrate=tmp_path / "texts.txt")
        assert report["quantization"]["calibration_tokens"] == 3 + 4
    else:
        with pytest.raises(InvalidInputError, match="text 0: the tokenizer gives '<new>' the id"):
            edgebert.export(source, tmp_path / "model.onnx", int8=True, calibrate=tmp_path / "texts.txt")


def test_the_probe_is_of_tokens_that_the_model_has(wider_tokenizer_json: str) -> None:
    spec = random_spec(vocab_size=3)  # not even the tokenizer's special tokens
    batch = probe_batch(spec, wider_tokenizer_json)
    assert batch.input_ids.max() == 2
    assert NumpyBackend(spec, random_tensors(spec)).run(batch, spec.outputs)


def test_metadata_appended_to_a_file_belongs_to_it() -> None:
    data = random_artifact()
    text = json.dumps({"note": "ü" * 1000})
    appended = data + encode_metadata({"edgebert.report": text})
    assert read_artifact(appended).report == json.loads(text)
    entries = {entry.key: entry.value for entry in onnx.load_from_string(appended).metadata_props}
    assert entries["edgebert.report"] == text


def test_other_names_of_tasks_are_understood(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def load(source: Any, task: str | None, family: str | None) -> None:
        raise LookupError(task)

    monkeypatch.setattr(export_module, "load_checkpoint", load)
    for given, expected in (("ner", "token-classification"), ("fill-mask", "fill-mask"), (None, "None")):
        with pytest.raises(LookupError, match=expected):
            edgebert.export("folder", tmp_path / "model.onnx", task=given)


def test_a_pooling_that_is_assumed_is_told(checkpoint: Path, tmp_path: Path) -> None:
    with pytest.warns(UserWarning, match="their mean is taken; the task embedding:cls takes the first token"):
        edgebert.export(checkpoint, tmp_path / "mean.onnx", task="embedding")
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        edgebert.export(checkpoint, tmp_path / "stated.onnx", task="embedding:mean")
        edgebert.export(checkpoint, tmp_path / "labels.onnx")
    assert edgebert.load(tmp_path / "mean.onnx").spec.pooling == "mean"


def test_a_source_that_transformers_cannot_load_is_named(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    load_checkpoint = export_module.load_checkpoint

    def load(*arguments: Any) -> Any:
        return dataclasses.replace(load_checkpoint(*arguments), folder=tmp_path, tokenizer_json=None)

    monkeypatch.setattr(export_module, "load_checkpoint", load)
    told = pytest.warns(UserWarning, match="has no tokenizer: the file will take token ids")  # before anything is done
    with told, pytest.raises(GateError, match="transformers .* cannot load"):
        edgebert.export(checkpoint, tmp_path / "model.onnx")
    assert not os.listdir(tmp_path)
