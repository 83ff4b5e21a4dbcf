"""Checkpoints of every family and head, as transformers computes them, on every backend; others refused by name."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
import transformers
from checkpoints import (
    CLASSES,
    CONFIGS,
    HIDDEN_SIZE,
    VOCAB_SIZE,
    add_sentence_modules,
    change_config,
    make_checkpoint,
    random_batch,
    run_transformers,
    write_json,
)
from conftest import BACKENDS
from numpy.typing import NDArray
from safetensors.torch import load_file, save_file

import edgebert
from edgebert.artifact.names import weight_tensors
from edgebert.artifact.spec import FFN_ACTIVATIONS
from edgebert.backends import numpy_ops
from edgebert.backends.numpy_backend import NumpyBackend
from edgebert.batch import PackedBatch
from edgebert.checkpoints.families import FAMILY_TABLES
from edgebert.checkpoints.loading import CROSS_ENCODER_ACTIVATIONS, HIDDEN_ACTS, Checkpoint, load_checkpoint
from edgebert.errors import ModelFormatError, UnsupportedModelError

F32 = NDArray[np.float32]

TASKS = ("embedding", "text-classification", "token-classification", "question-answering", "fill-mask")
MEAN = {"word_embedding_dimension": HIDDEN_SIZE, "pooling_mode_mean_tokens": True, "pooling_mode_cls_token": False}
CLS = {"word_embedding_dimension": HIDDEN_SIZE, "pooling_mode_mean_tokens": False, "pooling_mode_cls_token": True}


class Case(NamedTuple):
    family: str
    task: str
    config: dict[str, Any]

    def __str__(self) -> str:
        return "-".join([self.family, self.task, *(f"{key}={value}" for key, value in self.config.items())])


HEADS = [
    Case(family, task, {})
    for family in CONFIGS
    for task in TASKS
    if hasattr(transformers, FAMILY_TABLES[family].class_prefix + CLASSES[task])
]
HEADS += [Case("bert", task, {}) for task in ("next-sentence", "pretraining")]
VARIANTS = [Case(family, "fill-mask", {"activation": act}) for family in CONFIGS for act in ("gelu_new", "relu")]
VARIANTS += [Case("bert", "fill-mask", {"activation": act}) for act in HIDDEN_ACTS]
VARIANTS += [
    Case("bert", "embedding", {"type_vocab_size": 1}),
    Case("roberta", "embedding", {"type_vocab_size": 2}),
    Case("roberta", "embedding", {"pad_token_id": 4}),
    Case("electra", "embedding", {"type_vocab_size": 1}),
    Case("electra", "fill-mask", {"embedding_size": HIDDEN_SIZE}),
    Case("albert", "embedding", {"num_hidden_layers": 5, "num_hidden_groups": 2}),
    # untied: release 4 ties the dense layer of this head to the words, and fails
    Case("deberta-v2", "fill-mask", {"legacy": False, "share_att_key": True, "tie_word_embeddings": False}),
    Case("deberta-v2", "text-classification", {"norm_rel_ebd": "none", "type_vocab_size": 2, "share_att_key": True}),
    Case("deberta-v2", "embedding", {"position_buckets": -1, "max_relative_positions": -1, "num_attention_heads": 1}),
    Case("deberta-v2", "embedding", {"position_buckets": -1, "max_relative_positions": 5}),
    Case("deberta-v2", "embedding", {"position_biased_input": True, "num_attention_heads": 8}),
    *[
        Case("nomic_bert", task, {"activation": "silu", "head_dim": 6})
        for task in ("fill-mask", "text-classification")
        if "nomic_bert" in CONFIGS
    ],
    Case("bert", "text-classification", {"num_labels": 1}),
    Case("bert", "text-classification", {"problem_type": "multi_label_classification"}),
    Case("bert", "text-classification", {"problem_type": "regression", "num_labels": 1}),
]


def assert_close(ours: dict[str, F32], theirs: dict[str, F32]) -> None:
    for name, value in ours.items():
        expected = theirs[name].reshape(value.shape)
        assert np.abs(value - expected).max() <= 1e-5 * np.abs(expected).max(), name


def run_oracle(checkpoint: Checkpoint, batch: PackedBatch) -> dict[str, F32]:
    return NumpyBackend(checkpoint.spec, checkpoint.tensors).run(batch, checkpoint.spec.outputs)


@pytest.mark.parametrize("case", [*HEADS, *VARIANTS], ids=str)
def test_fp32_equals_transformers(case: Case, tmp_path: Path) -> None:
    model = make_checkpoint(tmp_path / "source", case.family, case.task, **case.config)
    task = "embedding:none" if case.task == "embedding" else None
    checkpoint = load_checkpoint(tmp_path / "source", task=task)
    assert checkpoint.tokenizer_json is None
    assert {name: ("f32", t.shape) for name, t in checkpoint.tensors.items()} == weight_tensors(checkpoint.spec)
    batch = random_batch(model)
    expected = run_transformers(model, batch)
    assert_close(run_oracle(checkpoint, batch), expected)
    edgebert.export(tmp_path / "source", tmp_path / "model.onnx", task=task)
    for backend in BACKENDS:
        loaded = edgebert.load(tmp_path / "model.onnx", backend=backend)
        assert loaded.spec == checkpoint.spec
        assert_close(loaded.forward(batch), expected)


def test_distances_of_long_texts_are_bucketed_as_in_transformers(tmp_path: Path) -> None:
    """All distances up to beyond those that have a bucket of their own, on either side."""
    model = make_checkpoint(tmp_path, "mpnet", max_position_embeddings=310)
    batch = random_batch(model, (300, 5, 129, 3, 2))
    found = run_oracle(load_checkpoint(tmp_path, task="embedding:none"), batch)
    assert_close(found, run_transformers(model, batch))
    change_config(tmp_path, relative_attention_num_buckets=64)
    with pytest.raises(
        UnsupportedModelError, match="relative_attention_num_buckets 64 is not supported; supported: 32"
    ):
        load_checkpoint(tmp_path)


def test_windows_and_rotary_positions_of_long_texts_are_those_of_transformers(tmp_path: Path) -> None:
    """Texts longer than ModernBERT's own window of 128 tokens, in local layers and global ones."""
    model = make_checkpoint(tmp_path, "modernbert", max_position_embeddings=700, local_attention=128)
    batch = random_batch(model, (600, 5, 129, 65, 66))
    found = run_oracle(load_checkpoint(tmp_path, task="embedding:none"), batch)
    assert_close(found, run_transformers(model, batch))


@pytest.mark.parametrize(
    ("buckets", "farthest"),
    [(256, 512), (256, -1), (32, 128), (8, 32), (2, 9), (7, 40), (512, 1024), (-1, 300), (-1, -1)],
)
def test_relative_positions_of_long_texts_are_those_of_transformers(
    buckets: int, farthest: int, tmp_path: Path
) -> None:
    """All distances up to beyond the last row, on either side; head sizes off every vector."""
    sizes = {"max_position_embeddings": 640, "num_attention_heads": 3, "hidden_size": 60, "num_hidden_layers": 1}
    positions = {"position_buckets": buckets, "max_relative_positions": farthest}
    model = make_checkpoint(tmp_path, "deberta-v2", **sizes, **positions)
    batch = random_batch(model, (600, 5, 129, 3, 1))
    found = run_oracle(load_checkpoint(tmp_path, task="embedding:none"), batch)
    assert_close(found, run_transformers(model, batch))


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"relative_attention": False}, "relative_attention False of DebertaV2 is not supported; supported: True"),
        ({"pos_att_type": "c2p"}, r"pos_att_type \['c2p'\] of DebertaV2 is not supported"),
        ({"conv_kernel_size": 3}, "conv_kernel_size 3 of DebertaV2 is not supported; supported: 0"),
        ({"embedding_size": 16}, "embedding_size 16 of DebertaV2 is not supported; supported: 32"),
        ({"pooler_hidden_size": 16}, "pooler_hidden_size 16 of DebertaV2 is not supported"),
        ({"attention_head_size": 16}, "attention_head_size 16 with 4 heads is not supported"),
        ({"position_buckets": 1}, "position_buckets 1 with max_relative_positions 32 is not supported"),
        ({"position_buckets": 64}, "position_buckets 64 with max_relative_positions 32 is not supported"),
    ],
)
def test_what_deberta_has_that_is_refused(config: dict[str, Any], message: str, tmp_path: Path) -> None:
    make_checkpoint(tmp_path, "deberta-v2")
    change_config(tmp_path, **config)
    with pytest.raises(UnsupportedModelError, match=message):
        load_checkpoint(tmp_path)


needs_gte = pytest.mark.skipif("gte" not in CONFIGS, reason="the installed transformers has no GTE")


@needs_gte
def test_gte_with_a_base_and_positions_of_its_own(tmp_path: Path) -> None:
    rotary = {"rope_type": "default", "rope_theta": 500.0}
    model = make_checkpoint(tmp_path, "gte", max_position_embeddings=310, type_vocab_size=2, rope_parameters=rotary)
    batch = random_batch(model, (300, 5, 129, 3, 2))
    expected = run_transformers(model, batch)
    assert_close(run_oracle(load_checkpoint(tmp_path, task="embedding:none"), batch), expected)
    # the same in the words of the code that came with the first checkpoints
    change_config(tmp_path, rope_parameters=None, rope_theta=500.0, position_embedding_type="rope", rope_scaling={})
    assert_close(run_oracle(load_checkpoint(tmp_path, task="embedding:none"), batch), expected)


@needs_gte
@pytest.mark.parametrize(
    ("config", "task", "message"),
    [
        ({"rope_scaling": {"type": "ntk", "factor": 2.0}}, None, "rotary positions of .*'ntk'.* are not supported"),
        ({"rope_parameters": {"rope_type": "dynamic", "factor": 2.0}}, None, "rotary positions of .*'dynamic'"),
        ({"logn_attention_scale": True}, None, "logn_attention_scale True is not supported"),
        ({"position_embedding_type": "absolute"}, None, "position_embedding_type 'absolute' is not supp.*: rope"),
        ({}, "question-answering", "Gte has no question-answering head"),
    ],
)
def test_what_gte_has_that_is_refused(config: dict[str, Any], task: str | None, message: str, tmp_path: Path) -> None:
    make_checkpoint(tmp_path, "gte")
    change_config(tmp_path, **config)
    with pytest.raises(UnsupportedModelError, match=message):
        load_checkpoint(tmp_path, task=task)


@pytest.mark.skipif("nomic_bert" not in CONFIGS, reason="the installed transformers has no NomicBERT")
def test_nomic_bert_in_the_words_of_the_code_on_the_hub(tmp_path: Path) -> None:
    model = make_checkpoint(tmp_path, "nomic_bert", activation="silu", max_position_embeddings=310)
    batch = random_batch(model, (300, 5, 129, 3, 2))
    expected = run_transformers(model, batch)
    assert_close(run_oracle(load_checkpoint(tmp_path, task="embedding:none"), batch), expected)
    config = json.loads((tmp_path / "config.json").read_text())
    old = FAMILY_TABLES["nomic_bert"].old_config
    renamed = {name: config[key] for key, name in old.items()} | dict.fromkeys([*old, "rope_parameters", "head_dim"])
    renamed |= {
        "hidden_act": None,
        "activation_function": "swiglu",
        "rotary_emb_base": 1000,
        "rotary_emb_fraction": 1.0,
    }
    change_config(tmp_path, **renamed, prenorm=False, qkv_proj_bias=False)
    assert_close(run_oracle(load_checkpoint(tmp_path, task="embedding:none"), batch), expected)
    refused = {"prenorm": True, "moe_every_n_layers": 2, "rotary_scaling_factor": 2.0, "activation_function": "geglu"}
    for key, value in refused.items():
        change_config(tmp_path, **renamed | {key: value})
        with pytest.raises(UnsupportedModelError, match=f"{key} {value!r} of NomicBert is not supported; supported: "):
            load_checkpoint(tmp_path)
        change_config(tmp_path, **renamed | {key: None})


def test_every_name_of_an_activation_that_the_engines_compute() -> None:
    """Of all names that transformers knows, exactly those whose values are one of ours."""
    x = torch.cat([torch.linspace(-6, 6, 10001), torch.linspace(-30, 30, 10001)])
    found = {}
    for name in transformers.activations.ACT2FN:
        with torch.no_grad():
            expected = transformers.activations.ACT2FN[name](x).float().numpy()
        for kind in FFN_ACTIVATIONS:
            # against the smaller range's largest value, so that a difference there is not lost beside 30
            if np.abs(numpy_ops.activate(x.numpy(), kind) - expected).max() <= 1e-5 * 6:
                found[name] = kind
    assert found == HIDDEN_ACTS


@pytest.mark.parametrize("int8", [False, True], ids=["f32", "int8"])
def test_the_graph_counts_positions_as_transformers_in_padded_batches(int8: bool, tmp_path: Path) -> None:
    """Padding on either side, beside texts that hold the pad token; the config's pad token is not the tokenizer's."""
    onnxruntime = pytest.importorskip("onnxruntime")
    model = make_checkpoint(tmp_path / "source", "roberta", pad_token_id=4)
    edgebert.export(tmp_path / "source", tmp_path / "model.onnx", task="embedding:none", int8=int8)
    session = onnxruntime.InferenceSession(tmp_path / "model.onnx")
    batch = random_batch(model)
    expected = edgebert.load(tmp_path / "model.onnx", backend="numpy").forward(batch)["last_hidden_state"]
    ids, mask, _ = batch.pad(4)
    right = {"input_ids": ids, "attention_mask": mask}
    left = {
        name: np.stack([np.roll(row, -n) for row, n in zip(rows, batch.lengths, strict=True)])
        for name, rows in right.items()
    }
    for feed in (right, left):
        [padded] = session.run(["last_hidden_state"], feed)
        found = padded[feed["attention_mask"].astype(bool)]
        if int8:
            a, b = found.ravel(), expected.ravel()
            assert a @ b >= 0.998 * np.linalg.norm(a) * np.linalg.norm(b)
        else:
            assert_close({"last_hidden_state": found}, run_transformers(model, batch))


@pytest.mark.parametrize("case", HEADS, ids=str)
def test_int8_passes_the_gate(case: Case, tmp_path: Path) -> None:
    model = make_checkpoint(tmp_path / "source", case.family, case.task, **case.config)
    edgebert.export(tmp_path / "source", tmp_path / "model.onnx", int8=True)
    batch = random_batch(model)
    expected = run_transformers(model, batch)
    int8 = edgebert.load(tmp_path / "model.onnx", backend="numpy").forward(batch)
    for name in int8.keys() & expected.keys():
        a, b = int8[name].ravel(), expected[name].ravel()
        assert a @ b > 0.99 * np.linalg.norm(a) * np.linalg.norm(b), name


# Sentence embeddings


def pooled(model: transformers.PreTrainedModel, batch: PackedBatch, pool: Callable[[F32], F32]) -> F32:
    rows = run_transformers(model, batch)["last_hidden_state"]
    return np.stack([pool(rows[a:b]) for a, b in zip(batch.cu_seqlens, batch.cu_seqlens[1:], strict=False)])


@pytest.mark.parametrize(
    ("pooling", "pool"),
    [
        (MEAN, lambda rows: rows.mean(0)),
        (CLS, lambda rows: rows[0]),
        ({"pooling_mode": "cls"}, lambda rows: rows[0]),
    ],
    ids=["mean", "cls", "cls by name"],
)
def test_sentence_transformers_folder(pooling: dict[str, Any], pool: Callable[[F32], F32], tmp_path: Path) -> None:
    model = make_checkpoint(tmp_path, "bert", "fill-mask")  # its architecture does not matter beside modules.json
    rng = np.random.default_rng(0)
    dense = {"linear.weight": rng.normal(size=(12, HIDDEN_SIZE)).astype(np.float32)}
    prompts = {"query": "query: ", "passage": "passage: "}
    add_sentence_modules(
        tmp_path,
        pooling,
        dense=dense,
        normalize=True,
        sentence_bert_config={"max_seq_length": 24},
        config_sentence_transformers={"prompts": prompts, "default_prompt_name": "passage"},
        tokenizer_config={"model_max_length": 33},
    )
    checkpoint = load_checkpoint(tmp_path)
    spec = checkpoint.spec
    assert (spec.task, spec.dense_size, spec.normalize, spec.max_length) == ("embedding", 12, True, 24)
    assert (spec.prompts, spec.default_prompt_name) == (prompts, "passage")
    assert {"modules.json", "1_Pooling/config.json", "sentence_bert_config.json"} <= checkpoint.source_files.keys()
    batch = random_batch(model)
    expected = np.tanh(pooled(model.base_model, batch, pool) @ dense["linear.weight"].T)
    expected /= np.linalg.norm(expected, axis=1, keepdims=True)
    assert_close({"x": run_oracle(checkpoint, batch)["sentence_embedding"]}, {"x": expected})


@pytest.mark.parametrize("family", ["bert", "electra"])
def test_poolings_by_name(family: str, tmp_path: Path) -> None:
    model = make_checkpoint(tmp_path, family)
    batch = random_batch(model)
    expected = {
        "mean": pooled(model, batch, lambda rows: rows.mean(0)),
        "cls": pooled(model, batch, lambda rows: rows[0]),
    }
    if family == "bert":
        expected["pooler"] = run_transformers(model, batch)["pooler_output"]
    for name, value in expected.items():
        ours = run_oracle(load_checkpoint(tmp_path, task=f"embedding:{name}"), batch)
        assert_close({"x": ours["sentence_embedding"]}, {"x": value})
    assert load_checkpoint(tmp_path).spec.pooling == "mean"
    assert load_checkpoint(tmp_path, task="embedding:none").spec.outputs == ("last_hidden_state",)


@pytest.mark.parametrize(
    ("max_seq_length", "model_max_length", "expected"),
    [(None, None, 38), (16, 20, 16), (None, 20, 20), (None, 10**30, 38), (100, None, 38)],
)
def test_length_limit(max_seq_length: int | None, model_max_length: int | None, expected: int, tmp_path: Path) -> None:
    make_checkpoint(tmp_path, "roberta")  # 40 positions, the first two taken by the pad token
    files = {"sentence_bert_config": {"max_seq_length": max_seq_length}}
    add_sentence_modules(tmp_path, MEAN, **files, tokenizer_config={"model_max_length": model_max_length})
    assert load_checkpoint(tmp_path).spec.max_length == expected


# Cross-encoders

IDENTITY, TANH = "torch.nn.modules.linear.Identity", "torch.nn.modules.activation.Tanh"


def add_cross_encoder_files(folder: Path, **settings: Any) -> None:
    """What release 6 of sentence-transformers writes beside a cross-encoder."""
    write_json(
        folder / "modules.json", [{"idx": 0, "name": "0", "path": "", "type": "sentence_transformers.Transformer"}]
    )
    write_json(folder / "config_sentence_transformers.json", {"model_type": "CrossEncoder"} | settings)


@pytest.mark.parametrize(
    ("config", "settings", "expected"),
    [
        ({}, None, None),
        ({"sentence_transformers": {"activation_fn": IDENTITY, "version": "5.0.0"}}, None, "none"),
        ({"sentence_transformers": {"activation_fn": "torch.nn.Sigmoid"}}, None, "sigmoid"),
        ({"sbert_ce_default_activation_function": TANH}, None, "tanh"),
        (
            {"sentence_transformers": {"activation_fn": TANH}, "sbert_ce_default_activation_function": IDENTITY},
            None,
            "tanh",
        ),
        ({"sentence_transformers": {"version": "5.0.0"}}, None, None),
        ({"sentence_transformers": {"activation_fn": IDENTITY}}, {"activation_fn": TANH}, "tanh"),
        ({"sentence_transformers": {"activation_fn": IDENTITY}}, {"activation_fn": None}, "none"),
        (
            {},
            {"activation_fn": "torch.nn.modules.activation.Softmax", "prompts": {}, "default_prompt_name": None},
            "softmax",
        ),
    ],
)
def test_the_activation_of_a_cross_encoder(
    config: dict[str, Any], settings: dict[str, Any] | None, expected: str | None, tmp_path: Path
) -> None:
    make_checkpoint(tmp_path / "source", "bert", "text-classification")
    change_config(tmp_path / "source", **config)
    if settings is not None:
        add_cross_encoder_files(tmp_path / "source", **settings)
    assert load_checkpoint(tmp_path / "source").spec.rank_function == expected
    # the exported folder says the same, where every release of sentence-transformers looks
    edgebert.export(tmp_path / "source", tmp_path / "folder")
    written = json.loads((tmp_path / "folder" / "config.json").read_text())
    paths = {
        written.get("sentence_transformers", {}).get("activation_fn"),
        written.get("sbert_ce_default_activation_function"),
    }
    assert paths == {next((path for path, name in CROSS_ENCODER_ACTIVATIONS.items() if name == expected), None)}


@pytest.mark.parametrize("name", ["torch.nn.modules.activation.GELU", "my_package.Sigmoid", "Sigmoid", 3])
def test_another_activation_of_a_cross_encoder_is_refused(name: object, tmp_path: Path) -> None:
    make_checkpoint(tmp_path, "bert", "text-classification")
    change_config(tmp_path, sentence_transformers={"activation_fn": name})
    with pytest.raises(UnsupportedModelError, match=f"activation function {name!r} is not supported; supported: torch"):
        load_checkpoint(tmp_path)


def test_what_cross_encoders_have_that_is_refused(tmp_path: Path) -> None:
    make_checkpoint(tmp_path)
    add_sentence_modules(tmp_path, MEAN, config_sentence_transformers={"model_type": "CrossEncoder"})
    with pytest.raises(UnsupportedModelError, match="a CrossEncoder of the modules 'Transformer, Pooling' is not supp"):
        load_checkpoint(tmp_path)
    add_cross_encoder_files(tmp_path, prompts={"query": "query: "}, default_prompt_name="query")
    with pytest.raises(UnsupportedModelError, match="a CrossEncoder's default_prompt_name 'query' is not supported"):
        load_checkpoint(tmp_path, task="text-classification")


def test_length_limit_of_a_cross_encoder(tmp_path: Path) -> None:
    """sentence-transformers reads sentence_bert_config.json only where there is modules.json."""
    make_checkpoint(tmp_path, "bert", "text-classification")
    write_json(tmp_path / "tokenizer_config.json", {"model_max_length": 20})
    write_json(tmp_path / "sentence_bert_config.json", {"max_seq_length": 16})
    assert load_checkpoint(tmp_path).spec.max_length == 20
    add_cross_encoder_files(tmp_path)
    assert load_checkpoint(tmp_path).spec.max_length == 16
    assert load_checkpoint(tmp_path, task="embedding:none").spec.max_length == 16
    write_json(tmp_path / "sentence_bert_config.json", {"transformer_task": "sequence-classification"})
    assert load_checkpoint(tmp_path).spec.max_length == 20


# How a checkpoint may be saved


def test_names_of_older_releases_and_other_dtypes(tmp_path: Path) -> None:
    make_checkpoint(tmp_path)
    state = load_file(tmp_path / "model.safetensors")
    old = {name.replace("LayerNorm.weight", "LayerNorm.gamma"): value for name, value in state.items()}
    old = {"bert." + name.replace("LayerNorm.bias", "LayerNorm.beta"): value for name, value in old.items()}
    old["bert.embeddings.position_ids"] = torch.arange(40)[None]
    new = load_checkpoint(tmp_path)
    save_file(old, tmp_path / "model.safetensors")
    same = load_checkpoint(tmp_path)
    for name, tensor in new.tensors.items():
        assert np.array_equal(tensor, same.tensors[name]), name
    for dtype in (torch.float16, torch.bfloat16, torch.float64):
        narrow = {name: value.to(dtype) if value.is_floating_point() else value for name, value in old.items()}
        save_file(narrow, tmp_path / "model.safetensors")
        loaded = load_checkpoint(tmp_path).tensors["embeddings.word.weight"]
        assert np.array_equal(loaded, narrow["bert.embeddings.word_embeddings.weight"].float().numpy())


def test_shards_and_pytorch_files(tmp_path: Path) -> None:
    model = make_checkpoint(tmp_path / "one")
    model.save_pretrained(tmp_path / "shards", max_shard_size="20KB")
    assert len(list((tmp_path / "shards").glob("*.safetensors"))) > 1
    (tmp_path / "torch").mkdir()
    (tmp_path / "torch" / "config.json").write_text((tmp_path / "one" / "config.json").read_text())
    torch.save(model.state_dict(), tmp_path / "torch" / "pytorch_model.bin")
    one = load_checkpoint(tmp_path / "one")
    for name in ("shards", "torch"):
        other = load_checkpoint(tmp_path / name)
        assert all(np.array_equal(tensor, other.tensors[key]) for key, tensor in one.tensors.items())


def test_installed_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = tmp_path / "tiny_model_package"
    make_checkpoint(package / "model")
    (package / "__init__.py").write_text("raise RuntimeError('must not be imported')")
    monkeypatch.syspath_prepend(tmp_path)
    assert load_checkpoint("tiny_model_package").folder == package / "model"
    assert "tiny_model_package" not in sys.modules
    make_checkpoint(package / "other")
    with pytest.raises(ModelFormatError, match="holds 2 checkpoints"):
        load_checkpoint("tiny_model_package")


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        ({"id2label": {"1": "no", "0": "yes", "2": "maybe"}}, ("yes", "no", "maybe")),
        ({"id2label": {"0": "a", "1": "b"}, "num_labels": 3}, ("LABEL_0", "LABEL_1", "LABEL_2")),
        ({"id2label": {"0": "a", "1": "b", "2": "c"}, "num_labels": 3}, ("a", "b", "c")),
        ({"id2label": None, "num_labels": 3}, ("LABEL_0", "LABEL_1", "LABEL_2")),
    ],
)
def test_labels(config: dict[str, Any], expected: tuple[str, ...], tmp_path: Path) -> None:
    make_checkpoint(tmp_path, "bert", "text-classification")
    change_config(tmp_path, **config)
    assert load_checkpoint(tmp_path).spec.labels == expected


def test_family_and_task_by_hand(tmp_path: Path) -> None:
    make_checkpoint(tmp_path, "bert", "pretraining")
    change_config(tmp_path, model_type=None, architectures=None)
    with pytest.raises(UnsupportedModelError, match="no model_type: name the family"):
        load_checkpoint(tmp_path, task="pretraining")
    with pytest.raises(UnsupportedModelError, match="no `architectures`: name the task"):
        load_checkpoint(tmp_path, family="bert")
    for task in ("pretraining", "fill-mask", "next-sentence", "embedding:pooler"):
        assert load_checkpoint(tmp_path, task=task, family="bert").spec.task == task.partition(":")[0]


# Refused by name


@pytest.mark.parametrize(
    ("config", "task", "message"),
    [
        ({"model_type": "longformer"}, None, "model family 'longformer' is not supported; supported: bert"),
        ({"architectures": ["BertForMultipleChoice"]}, None, "architecture 'BertForMultipleChoice' is not supported"),
        ({"architectures": ["BertLMHeadModel"]}, None, "supported: BertModel, BertForSequenceClassification"),
        ({"is_decoder": True}, None, "is_decoder"),
        ({"add_cross_attention": True}, None, "add_cross_attention"),
        ({"position_embedding_type": "relative_key"}, None, "'relative_key' is not supported; supported: absolute"),
        ({"hidden_act": "mish"}, None, "hidden_act 'mish' is not supported; supported: gelu, gelu_python, gelu_new"),
        ({"hidden_act": "quick_gelu"}, None, "hidden_act 'quick_gelu' is not supported"),
        ({"hidden_act": "gelu_10"}, None, "hidden_act 'gelu_10' is not supported"),
        ({"pruned_heads": {"0": [1]}}, None, "pruned_heads"),
        ({"num_attention_heads": 5}, None, "not a multiple of the 5 attention heads"),
        ({}, "summarization", "task 'summarization' is not supported; supported: embedding"),
        ({}, "embedding:largest", "supported: embedding:mean"),
        ({}, "text-classification", "no tensor classifier.weight"),
        ({}, "fill-mask", "no tensor cls.predictions.transform.dense.weight"),
        ({"vocab_size": 121}, None, r"word_embeddings.weight has shape \(120, 32\), the config asks for \(121, 32\)"),
        ({"num_hidden_layers": 3}, None, "no tensor bert.encoder.layer.2.attention.self.query.weight"),
        ({"num_hidden_layers": 1}, None, "its config does not account for"),
    ],
)
def test_refused_configs(config: dict[str, Any], task: str | None, message: str, tmp_path: Path) -> None:
    make_checkpoint(tmp_path)
    change_config(tmp_path, **config)
    with pytest.raises(UnsupportedModelError, match=message):
        load_checkpoint(tmp_path, task=task)


@pytest.mark.parametrize(
    ("family", "task", "message"),
    [
        ("electra", "pretraining", "Electra has no pretraining head"),
        ("roberta", "next-sentence", "Roberta has no next-sentence head"),
        ("distilbert", "embedding:pooler", "DistilBert models have no pooler"),
    ],
)
def test_refused_heads(family: str, task: str, message: str, tmp_path: Path) -> None:
    make_checkpoint(tmp_path, family)
    with pytest.raises(UnsupportedModelError, match=message):
        load_checkpoint(tmp_path, task=task)


@pytest.mark.parametrize(
    ("pooling", "message"),
    [
        (
            {"pooling_mode_median": True},
            "the pooling 'pooling_mode_median' is not supported; supported: pooling_mode_cls",
        ),
        ({"pooling_mode": "median"}, "median"),
        ({"pooling_mode": ["mean", "median"]}, "median"),
        ({"pooling_mode": []}, "the pooling"),
        ({"pooling_mode": {"mean": True}}, "the pooling"),
        ({**MEAN, "include_prompt": False}, "include_prompt"),
    ],
)
def test_refused_poolings(pooling: dict[str, Any], message: str, tmp_path: Path) -> None:
    make_checkpoint(tmp_path)
    add_sentence_modules(tmp_path, pooling, config_sentence_transformers={"prompts": {"query": "query: "}})
    with pytest.raises(UnsupportedModelError, match=message):
        load_checkpoint(tmp_path)


def test_refused_modules(tmp_path: Path) -> None:
    make_checkpoint(tmp_path)
    dense = {"linear.weight": np.ones((4, HIDDEN_SIZE), np.float32)}
    add_sentence_modules(tmp_path, MEAN, dense=dense, activation="torch.nn.modules.activation.SiLU")
    with pytest.raises(UnsupportedModelError, match="'SiLU' is not supported; supported: Tanh, Identity"):
        load_checkpoint(tmp_path)
    modules = json.loads((tmp_path / "modules.json").read_text())
    modules[2]["type"] = "sentence_transformers.models.LayerNorm"
    write_json(tmp_path / "modules.json", modules)
    with pytest.raises(UnsupportedModelError, match="'Pooling, LayerNorm' is not supported; supported: Pooling"):
        load_checkpoint(tmp_path)
    modules[1]["path"] = "../1_Pooling"
    write_json(tmp_path / "modules.json", modules)
    with pytest.raises(ModelFormatError, match="leaves the folder"):
        load_checkpoint(tmp_path)


def test_untied_decoder_is_refused(tmp_path: Path) -> None:
    make_checkpoint(tmp_path, "bert", "fill-mask")
    state = load_file(tmp_path / "model.safetensors")
    state["cls.predictions.decoder.weight"] = torch.randn(VOCAB_SIZE, HIDDEN_SIZE)
    save_file(state, tmp_path / "model.safetensors")
    with pytest.raises(UnsupportedModelError, match="untied MLM decoder: cls.predictions.decoder.weight"):
        load_checkpoint(tmp_path)


def test_adapters_in_the_encoder_are_refused(tmp_path: Path) -> None:
    make_checkpoint(tmp_path)
    state = load_file(tmp_path / "model.safetensors")
    state["encoder.layer.0.attention.self.query.lora_A.weight"] = torch.randn(4, HIDDEN_SIZE)
    save_file(state, tmp_path / "model.safetensors")
    with pytest.raises(UnsupportedModelError, match="lora_A"):
        load_checkpoint(tmp_path)


# Missing and damaged


def test_missing_sources(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(ModelFormatError, match="no such folder"):
        load_checkpoint(tmp_path / "nowhere")
    with pytest.raises(ModelFormatError, match="expected a folder with config.json and model.safetensors"):
        load_checkpoint(tmp_path)
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(ModelFormatError, match="give the folder"):
        load_checkpoint(tmp_path / "file")
    with pytest.raises(ModelFormatError, match="neither a folder nor an installed package"):
        load_checkpoint("nobody/no-such-model")
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(ModelFormatError, match="install huggingface_hub"):
        load_checkpoint("nobody/no-such-model")


@pytest.mark.parametrize("name", ["model.safetensors", "pytorch_model.bin", "config.json"])
def test_damaged_files(name: str, tmp_path: Path) -> None:
    make_checkpoint(tmp_path)
    if name == "pytorch_model.bin":
        (tmp_path / "model.safetensors").rename(tmp_path / name)
    data = (tmp_path / name).read_bytes()
    (tmp_path / name).write_bytes(data[: len(data) // 2])
    with pytest.raises(ModelFormatError, match=name):
        load_checkpoint(tmp_path)


def test_pickled_code_is_not_run(tmp_path: Path) -> None:
    class Bomb:
        def __reduce__(self) -> tuple[Any, ...]:
            return Path.touch, (tmp_path / "ran",)

    make_checkpoint(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    torch.save({"bert.embeddings.word_embeddings.weight": Bomb()}, tmp_path / "pytorch_model.bin")
    with pytest.raises(ModelFormatError, match="cannot be read"):
        load_checkpoint(tmp_path)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json", "model.safetensors", "pytorch_model.bin"])
def test_a_git_lfs_pointer_is_called_one(tmp_path: Path, name: str) -> None:
    make_checkpoint(tmp_path)
    if name == "pytorch_model.bin":
        (tmp_path / "model.safetensors").unlink()
    (tmp_path / name).write_text("version https://git-lfs.github.com/spec/v1\noid sha256:4d7a2146\nsize 12345\n")
    with pytest.raises(ModelFormatError, match=f"{name}: a Git LFS pointer.*`git lfs pull`"):
        load_checkpoint(tmp_path)
