"""Embeddings beyond a sentence's one vector, against sentence-transformers and the papers' formulas in PyTorch."""

from __future__ import annotations

import json
import string
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from checkpoints import HIDDEN_SIZE, change_config, make_checkpoint, write_json
from conftest import BACKENDS, WORDS

import edgebert
from edgebert.checkpoints.loading import load_checkpoint
from edgebert.errors import InvalidInputError, ModelFormatError, UnsupportedModelError

pytest.importorskip("sentence_transformers", minversion="6.0")  # the first release with all of these

from sentence_transformers import MultiVectorEncoder, SentenceTransformer, SparseEncoder
from sentence_transformers.base.modules import Dense, Normalize, Transformer
from sentence_transformers.multi_vector_encoder.modules import MultiVectorMask
from sentence_transformers.sentence_transformer.modules import Pooling
from sentence_transformers.sparse_encoder.modules import SpladePooling

TEXTS = [
    "The router restarts.",
    "",
    "Water the roses, turn the modem off and on!",
    "a",
    "Is it not very good? a b c d e a b c d e a b c d e",
    "slow fast slow fast",
]
F32 = np.ndarray[Any, np.dtype[np.float32]]


def make_source(folder: Path, task: str = "embedding", words: Sequence[str] = WORDS, **config: Any) -> Path:
    """A random BERT of 40 positions with a tokenizer over `words`."""
    make_checkpoint(folder, "bert", task, vocab_size=len(words), **config)
    (folder / "vocab.txt").write_text("\n".join(words) + "\n", encoding="utf-8")
    write_json(folder / "tokenizer_config.json", {"tokenizer_class": "BertTokenizer", "model_max_length": 40})
    return folder


def random_dense(inputs: int, outputs: int, **options: Any) -> Dense:
    dense = Dense(inputs, outputs, **options)
    with torch.no_grad():
        for parameter in dense.parameters():
            parameter.copy_(torch.randn_like(parameter) * 0.3)
    return dense


def assert_close(ours: Any, theirs: Any) -> None:
    """Within 1e-5 of the largest value."""
    ours, theirs = np.asarray(ours), np.asarray(theirs)
    assert ours.shape == theirs.shape
    assert np.abs(ours - theirs).max(initial=0) <= 1e-5 * np.abs(theirs).max(initial=1e-30)


def densify(weights: dict[str, float]) -> F32:
    row = np.zeros(len(WORDS), np.float32)
    for token, weight in weights.items():
        row[WORDS.index(token)] = weight
    return row


# Sparse embeddings


@pytest.mark.parametrize("strategy", ["max", "sum"])
@pytest.mark.parametrize("activation", ["relu", "log1p_relu"])
def test_splade_is_that_of_sentence_transformers(strategy: str, activation: str, tmp_path: Path) -> None:
    source = make_source(tmp_path / "source", "fill-mask")
    theirs = SparseEncoder(
        modules=[
            Transformer(str(source), transformer_task="fill-mask"),
            SpladePooling(pooling_strategy=strategy, activation_function=activation),  # type: ignore[arg-type]
        ],
        device="cpu",
    )
    theirs.save(str(tmp_path / "sparse"))
    expected = theirs.encode(TEXTS, convert_to_sparse_tensor=False).numpy()
    assert (expected > 0).any() and (expected == 0).any()
    edgebert.export(tmp_path / "sparse", tmp_path / "model.onnx")
    for backend in BACKENDS:
        model = edgebert.load(tmp_path / "model.onnx", backend=backend)
        found = model(TEXTS)
        assert_close(np.stack([densify(weights) for weights in found]), expected)
        assert all(list(weights.values()) == sorted(weights.values(), reverse=True) for weights in found)
        for weights, top, (ids, values) in zip(
            found, model(TEXTS, top_k=3), model(TEXTS, top_k=3, return_arrays=True), strict=True
        ):
            assert list(weights.items())[:3] == list(top.items())
            assert ids.tolist() == sorted(WORDS.index(token) for token in top)
            assert sorted(values.tolist()) == sorted(top.values())
        assert model(TEXTS[0]) == found[0]


def test_splade_of_a_plain_masked_language_model(tmp_path: Path) -> None:
    source = make_source(tmp_path / "source", "fill-mask")
    modules = [Transformer(str(source), transformer_task="fill-mask"), SpladePooling()]
    expected = SparseEncoder(modules=modules, device="cpu").encode(TEXTS, convert_to_sparse_tensor=False).numpy()
    report = edgebert.export(source, tmp_path / "model.onnx", task="sparse-embedding")
    assert "pytorch" in report["runtimes"]
    model = edgebert.load(tmp_path / "model.onnx")
    assert_close(np.stack([densify(weights) for weights in model(TEXTS)]), expected)
    with pytest.raises(InvalidInputError, match="embedding does not fit this file.*use model"):
        model.encode(TEXTS)
    with pytest.raises(UnsupportedModelError, match="sparse-embedding:max, sparse-embedding:sum"):
        edgebert.export(source, tmp_path / "other.onnx", task="sparse-embedding:mean")


def test_splade_in_windows_has_the_largest_weights(tmp_path: Path) -> None:
    edgebert.export(make_source(tmp_path / "s", "fill-mask"), tmp_path / "model.onnx", task="sparse-embedding")
    model = edgebert.load(tmp_path / "model.onnx")
    words = ["a", "b", "c", "d", "e", "the", "router", "slow", "fast", "water", "roses"]
    windows = model([" ".join(words[:6]), " ".join(words[5:])])
    whole = model(" ".join(words), max_length=8, stride=1)
    assert whole == {token: max(window.get(token, 0.0) for window in windows) for window in windows for token in window}


@pytest.mark.parametrize("int8", [False, True])
def test_sparse_int8(int8: bool, tmp_path: Path) -> None:
    source = make_source(tmp_path / "s", "fill-mask")
    edgebert.export(source, tmp_path / "fp32.onnx", task="sparse-embedding")
    edgebert.export(source, tmp_path / "model.onnx", task="sparse-embedding", int8=int8)
    rows = [
        np.stack([densify(weights) for weights in edgebert.load(tmp_path / name)(TEXTS)])
        for name in ("fp32.onnx", "model.onnx")
    ]
    assert np.vdot(*rows) >= 0.99 * np.linalg.norm(rows[0]) * np.linalg.norm(rows[1])


# Token embeddings


def make_multi_vector(folder: Path, source: Path, dense: Sequence[Dense], **settings: Any) -> MultiVectorEncoder:
    mask = settings.pop("mask", {})
    prompts = settings.pop("prompts", None)
    modules = [
        Transformer(str(source), **settings),
        *dense,
        MultiVectorMask(**mask),
        Normalize(module_input_name="token_embeddings"),
    ]
    model = MultiVectorEncoder(modules=modules, device="cpu", prompts=prompts)
    model.save(str(folder))
    return model


TOKENS: dict[str, Any] = {"module_input_name": "token_embeddings", "activation_function": torch.nn.Identity()}


def compare_multi_vector(file: Path, theirs: MultiVectorEncoder, backends: Sequence[str] = BACKENDS) -> None:
    """Queries, documents, and their MaxSim."""
    expected = [
        theirs.encode_query(TEXTS, convert_to_numpy=True),
        theirs.encode_document(TEXTS, convert_to_numpy=True),
    ]
    for backend in backends:
        model = edgebert.load(file, backend=backend)
        found = [model(TEXTS, task="multi-vector", is_query=is_query) for is_query in (True, False)]
        for ours, their in zip(found, expected, strict=True):
            for a, b in zip(ours, their, strict=True):
                assert_close(a, b)
        scores = edgebert.maxsim(*found)
        assert_close(scores, theirs.similarity(*map(list, expected)))
        assert_close(edgebert.maxsim(found[0][2], found[1]), scores[2:3])


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"prompts": {"query": "a b ", "document": "c "}, "query_length": 9, "document_length": 12},
        {"mask": {"skiplist_words": [*string.punctuation, "nowhere"]}},
        {"query_expansion": {"strategy": "fixed", "attend": True, "length": 11}},
        {"query_expansion": {"strategy": "min", "attend": True, "length": 7}, "query_length": 10},
    ],
    ids=["plain", "prompts and lengths", "skiplist", "expansion", "least expansion"],
)
def test_token_embeddings_are_those_of_sentence_transformers(settings: dict[str, Any], tmp_path: Path) -> None:
    source = make_source(tmp_path / "source")
    dense = [random_dense(HIDDEN_SIZE, 12, bias=False, **TOKENS)]
    theirs = make_multi_vector(tmp_path / "colbert", source, dense, **settings)
    edgebert.export(tmp_path / "colbert", tmp_path / "model.onnx")
    compare_multi_vector(tmp_path / "model.onnx", theirs)


def test_projections_without_activation_are_one_matrix(tmp_path: Path) -> None:
    source = make_source(tmp_path / "source")
    dense = [
        random_dense(HIDDEN_SIZE, 40, use_residual=True, **TOKENS),
        random_dense(40, 40, bias=False, use_residual=True, **TOKENS),
        random_dense(40, 9, **TOKENS),
    ]
    theirs = make_multi_vector(tmp_path / "colbert", source, dense)
    edgebert.export(tmp_path / "colbert", tmp_path / "model.onnx")
    assert edgebert.load(tmp_path / "model.onnx").spec.token_size == 9
    compare_multi_vector(tmp_path / "model.onnx", theirs, ["numpy"])


def make_pylate(folder: Path, source: Path, dense: Dense, settings: dict[str, Any]) -> None:
    """A folder as PyLate 1 writes it."""
    Transformer(str(source)).save(str(folder))
    (folder / "1_Dense").mkdir()
    dense.save(str(folder / "1_Dense"))
    kinds = [("", "sentence_transformers.models.Transformer"), ("1_Dense", "pylate.models.Dense.Dense")]
    modules = [{"idx": i, "name": str(i), "path": path, "type": kind} for i, (path, kind) in enumerate(kinds)]
    write_json(folder / "modules.json", modules)
    write_json(folder / "config_sentence_transformers.json", {"model_type": "ColBERT", **settings})
    change = json.loads((folder / "1_Dense" / "config.json").read_text())
    for name in ("module_input_name", "module_output_name"):  # which PyLate does not write
        change.pop(name, None)
    write_json(folder / "1_Dense" / "config.json", change)


MARKERS = ["[unused0]", "[unused1]", *WORDS]


@pytest.mark.parametrize(
    "settings",
    [
        {"query_prefix": "[unused0] ", "document_prefix": "[unused1] ", "do_query_expansion": False},
        {
            "query_prefix": "[unused0] ",
            "document_prefix": "[unused1] ",
            "query_length": 9,
            "document_length": 12,
            "attend_to_expansion_tokens": True,
            "skiplist_words": [",", "!"],
        },
        {"query_prefix": "query : ", "document_prefix": "passage : ", "do_query_expansion": False, "query_length": 8},
        {"query_prefix": "[unused0] ", "query_length": 13, "prompts": {"query": "not ", "document": "on "}},
    ],
    ids=["markers", "expansion", "prefixes of words", "unattended"],
)
def test_pylate_folders(settings: dict[str, Any], tmp_path: Path) -> None:
    source = make_source(tmp_path / "source", words=MARKERS)
    make_pylate(tmp_path / "colbert", source, random_dense(HIDDEN_SIZE, 12, bias=False, **TOKENS), settings)
    theirs = MultiVectorEncoder(str(tmp_path / "colbert"), device="cpu")
    edgebert.export(tmp_path / "colbert", tmp_path / "model.onnx")
    compare_multi_vector(tmp_path / "model.onnx", theirs)


@pytest.mark.parametrize("metadata", [None, {"query_maxlen": 16, "doc_maxlen": 20, "mask_punctuation": False}])
def test_colberts_own_checkpoints(metadata: dict[str, Any] | None, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    folder = make_source(tmp_path / "colbert", words=MARKERS)
    state = {f"bert.{name}": tensor for name, tensor in load_file(folder / "model.safetensors").items()}
    save_file(state | {"linear.weight": torch.randn(16, HIDDEN_SIZE) * 0.3}, folder / "model.safetensors")
    change_config(folder, architectures=["HF_ColBERT"])
    if metadata is not None:
        write_json(folder / "artifact.metadata", metadata)
    theirs = MultiVectorEncoder(str(folder), device="cpu")
    edgebert.export(folder, tmp_path / "model.onnx")
    spec = edgebert.load(tmp_path / "model.onnx").spec
    assert (spec.token_size, spec.markers) == (16, {"query": 0, "document": 1})
    assert not spec.attends_to_expansion
    compare_multi_vector(tmp_path / "model.onnx", theirs)


def test_token_embeddings_cut_to_fewer_dimensions(tmp_path: Path) -> None:
    source = make_source(tmp_path / "source")
    make_multi_vector(tmp_path / "colbert", source, [random_dense(HIDDEN_SIZE, 12, **TOKENS)])
    edgebert.export(tmp_path / "colbert", tmp_path / "model.onnx")
    model = edgebert.load(tmp_path / "model.onnx")
    for whole, cut in zip(model(TEXTS), model(TEXTS, truncate_dim=5), strict=True):
        assert_close(cut, whole[:, :5] / np.linalg.norm(whole[:, :5], axis=1, keepdims=True))
    with pytest.raises(InvalidInputError, match="truncate_dim is 13, the embeddings have 12"):
        model(TEXTS, truncate_dim=13)
    with pytest.raises(InvalidInputError, match="leave stride out"):
        model(TEXTS, stride=2)


def test_maxsim_is_the_plain_sum_of_maxima() -> None:
    rng = np.random.default_rng(0)
    queries = [rng.standard_normal((n, 7), np.float32) for n in (3, 0, 1, 32)]
    documents = [rng.standard_normal((n, 7), np.float32) for n in (5, 1, 0, 300, 2, 0)]
    expected = np.zeros((4, 6), np.float32)
    for i, query in enumerate(map(torch.from_numpy, queries)):
        for j, document in enumerate(map(torch.from_numpy, documents)):
            if len(query) and len(document):
                expected[i, j] = (query @ document.T).amax(1).sum()
    found = edgebert.maxsim(queries, documents)
    assert_close(found, expected)
    from edgebert.tasks import multi_vector

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(multi_vector, "MAX_PRODUCTS", 64)
        assert_close(edgebert.maxsim(queries, documents), expected)
    assert edgebert.maxsim([], documents).shape == (0, 6)
    assert edgebert.maxsim(queries, []).shape == (4, 0)
    for bad in ([np.zeros((2, 6))], [np.zeros(7)], [np.zeros((2, 7)), np.zeros((2, 6))]):
        with pytest.raises(InvalidInputError, match="values a token|matrices of one width|must be a matrix"):
            edgebert.maxsim(queries, bad)
    for wrong in ("a", 3, None, np.array(3), ["a"], [[[1, 2], [3]]], [[[10**400]]], [None]):
        with pytest.raises(InvalidInputError, match=r"documents(\[0\])? must be (a list of matrices|numbers|a matrix)"):
            edgebert.maxsim(queries, wrong)  # type: ignore[arg-type]


# Poolings


@pytest.mark.parametrize(
    "modes",
    ["max", "mean_sqrt_len_tokens", "weightedmean", "lasttoken", ("lasttoken", "mean", "max"), ("cls", "weightedmean")],
    ids=str,
)
def test_poolings_are_those_of_sentence_transformers(modes: Any, tmp_path: Path) -> None:
    source = make_source(tmp_path / "source")
    pooling = Pooling(HIDDEN_SIZE, modes)
    modules = [Transformer(str(source)), pooling, random_dense(pooling.pooling_output_dimension, 13), Normalize()]
    theirs = SentenceTransformer(modules=modules, device="cpu")
    theirs.save(str(tmp_path / "pooled"))
    expected = theirs.encode(TEXTS)
    edgebert.export(tmp_path / "pooled", tmp_path / "again")
    for backend in BACKENDS:
        model = edgebert.load(tmp_path / "again", backend=backend)
        assert_close(model.encode(TEXTS), expected)
    # Matryoshka: cut, then scaled to length 1
    cut = theirs.encode(TEXTS, truncate_dim=6, normalize_embeddings=True)
    assert_close(model.encode(TEXTS, truncate_dim=6, normalize_embeddings=True), cut)
    # the folder that an export writes is read by sentence-transformers as what it was
    again = Pooling.load(str(tmp_path / "again"), subfolder="1_Pooling", local_files_only=True)
    assert again.pooling_mode == modes


def test_flags_of_earlier_releases_lie_side_by_side_in_their_order(tmp_path: Path) -> None:
    source = make_source(tmp_path / "source")
    theirs = SentenceTransformer(modules=[Transformer(str(source)), Pooling(HIDDEN_SIZE, "mean")], device="cpu")
    theirs.save(str(tmp_path / "pooled"))
    flags = {"pooling_mode_lasttoken": True, "pooling_mode_mean_tokens": True, "pooling_mode_cls_token": True}
    write_json(tmp_path / "pooled" / "1_Pooling" / "config.json", {"word_embedding_dimension": HIDDEN_SIZE} | flags)
    expected = SentenceTransformer(str(tmp_path / "pooled"), device="cpu").encode(TEXTS)
    edgebert.export(tmp_path / "pooled", tmp_path / "model.onnx")
    model = edgebert.load(tmp_path / "model.onnx")
    assert model.spec.pooling == "cls+mean+last"
    assert_close(model.encode(TEXTS), expected)


# BGE-M3


def make_bge_m3(folder: Path) -> Any:
    """A folder like BGE-M3's, and what FlagEmbedding computes of texts: dense, weights by id, vectors."""
    source = make_source(folder)
    modules = [Transformer(str(source)), Pooling(HIDDEN_SIZE, "cls"), Normalize()]
    SentenceTransformer(modules=modules, device="cpu").save(str(folder))
    torch.manual_seed(1)
    sparse, colbert = torch.nn.Linear(HIDDEN_SIZE, 1), torch.nn.Linear(HIDDEN_SIZE, 24)
    torch.save(sparse.state_dict(), folder / "sparse_linear.pt")
    torch.save(colbert.state_dict(), folder / "colbert_linear.pt")
    encoder = modules[0].auto_model.eval()

    def run(text: str) -> tuple[F32, dict[str, float], F32]:
        inputs = modules[0].tokenizer(text, return_tensors="pt")
        with torch.no_grad():
            hidden = encoder(**inputs).last_hidden_state
            dense = torch.nn.functional.normalize(hidden[:, 0], dim=-1)[0]
            weights = torch.relu(sparse(hidden))[0, :, 0]
            vectors = torch.nn.functional.normalize(colbert(hidden[:, 1:]), dim=-1)[0]
        best: dict[str, float] = {}
        for i, weight in zip(inputs["input_ids"][0].tolist(), weights.tolist(), strict=True):
            if WORDS[i] not in ("[CLS]", "[PAD]", "[UNK]") and weight > best.get(WORDS[i], 0.0):
                best[WORDS[i]] = weight
        return dense.numpy(), best, vectors.numpy()

    return run


def test_three_outputs_from_one_pass(tmp_path: Path) -> None:
    run = make_bge_m3(tmp_path / "m3")
    edgebert.export(tmp_path / "m3", tmp_path / "model.onnx")
    expected = [run(text) for text in TEXTS]
    for backend in BACKENDS:
        model = edgebert.load(tmp_path / "model.onnx", backend=backend)
        assert model.spec.outputs == ("last_hidden_state", "sentence_embedding", "token_embeddings", "token_weights")
        assert_close(model.encode(TEXTS), np.stack([dense for dense, *_ in expected]))
        for found, (_, weights, vectors) in zip(
            zip(model(TEXTS, task="sparse-embedding"), model(TEXTS, task="multi-vector"), strict=True),
            expected,
            strict=True,
        ):
            assert found[0].keys() == weights.keys()
            assert_close(densify(found[0]), densify(weights))
            assert_close(found[1], vectors)


def test_pickles_that_are_more_than_weights_are_refused(tmp_path: Path) -> None:
    make_bge_m3(tmp_path / "m3")
    torch.save({"weight": print}, tmp_path / "m3" / "sparse_linear.pt")
    with pytest.raises(ModelFormatError, match="cannot be read as PyTorch weights"):
        load_checkpoint(tmp_path / "m3")
    torch.save({"weight": torch.zeros(2, HIDDEN_SIZE)}, tmp_path / "m3" / "sparse_linear.pt")
    with pytest.raises(UnsupportedModelError, match="gives 2 values a token, expected 1"):
        load_checkpoint(tmp_path / "m3")
    (tmp_path / "m3" / "sparse_linear.pt").write_bytes(b"version https://git-lfs.github.com/spec/v1\noid sha256:1\n")
    with pytest.raises(ModelFormatError, match="Git LFS"):
        load_checkpoint(tmp_path / "m3")


# What is refused


@pytest.mark.parametrize(
    ("module", "change", "message"),
    [
        (
            "1_SpladePooling",
            {"pooling_strategy": "mean"},
            "pooling_strategy 'mean' is not supported; supported: max, sum",
        ),
        ("1_SpladePooling", {"activation_function": "softplus"}, "activation_function 'softplus'"),
    ],
)
def test_splade_settings_are_refused_by_name(module: str, change: dict[str, Any], message: str, tmp_path: Path) -> None:
    source = make_source(tmp_path / "source", "fill-mask")
    modules = [Transformer(str(source), transformer_task="fill-mask"), SpladePooling()]
    SparseEncoder(modules=modules, device="cpu").save(str(tmp_path / "sparse"))
    path = tmp_path / "sparse" / module / "config.json"
    write_json(path, json.loads(path.read_text()) | change)
    with pytest.raises(UnsupportedModelError, match=message):
        load_checkpoint(tmp_path / "sparse")


@pytest.mark.parametrize(
    ("file", "change", "message"),
    [
        (
            "1_Dense/config.json",
            {"activation_function": "torch.nn.modules.activation.Tanh"},
            "a Dense module on tokens",
        ),
        ("1_Dense/config.json", {"module_input_name": "sentence_embedding"}, "from and to 'sentence_embedding, tok"),
        ("2_MultiVectorMask/config.json", {"skiplist_tasks": ["query"]}, "skiplist_tasks"),
        ("2_MultiVectorMask/config.json", {"keep_only_token_ids": [5]}, "keep_only_token_ids is for images"),
        ("2_MultiVectorMask/config.json", {"skiplist_words": "a"}, "skiplist_words must be list, got 'a'"),
        ("3_Normalize/config.json", {"module_input_name": "sentence_embedding"}, "a Normalize module without Pooling"),
        ("sentence_bert_config.json", {"query_length": "9"}, "query_length must be int, got '9'"),
        ("sentence_bert_config.json", {"query_expansion": {"strategy": "all", "length": 9}}, "strategy of query_exp"),
        (
            "sentence_bert_config.json",
            {"query_expansion": {"strategy": "fixed", "length": 99}},
            "a length from 1 to 40",
        ),
        (
            "sentence_bert_config.json",
            {"query_expansion": {"strategy": "fixed", "length": 9, "token": "[nowhere]"}},
            r"filled up with '\[nowhere\]', which the tokenizer lacks",
        ),
    ],
)
def test_settings_of_token_embeddings_are_refused_by_name(
    file: str, change: dict[str, Any], message: str, tmp_path: Path
) -> None:
    source = make_source(tmp_path / "source")
    dense = [random_dense(HIDDEN_SIZE, 12, **TOKENS)]
    make_multi_vector(tmp_path / "colbert", source, dense, mask={"skiplist_words": [","]})
    path = tmp_path / "colbert" / file
    write_json(path, json.loads(path.read_text()) | change)
    with pytest.raises((UnsupportedModelError, ModelFormatError), match=message):
        load_checkpoint(tmp_path / "colbert")


# Files of rows, and the server's answers


def test_scores_have_natural_types_in_parquet(tmp_path: Path) -> None:
    parquet = pytest.importorskip("pyarrow.parquet")
    make_bge_m3(tmp_path / "m3")
    edgebert.export(tmp_path / "m3", tmp_path / "model.onnx")
    rows = [{"text": text} for text in TEXTS] + [{"text": None}]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    model = edgebert.load(tmp_path / "model.onnx")
    for task, column in (("sparse-embedding", "weights"), ("multi-vector", "embeddings")):
        for name in ("scored.parquet", "scored.jsonl"):
            edgebert.score(tmp_path / "model.onnx", tmp_path / "rows.jsonl", tmp_path / f"{task}-{name}", task=task)
        table = parquet.read_table(tmp_path / f"{task}-scored.parquet")
        lines = (tmp_path / f"{task}-scored.jsonl").read_text(encoding="utf-8").splitlines()
        kind = str(table.schema.field(column).type).replace("element", "item")
        answers = model(TEXTS, task=task)
        for found in (table.column(column).to_pylist(), [json.loads(line)[column] for line in lines]):
            assert found[-1] is None
            for values, answer in zip(found, answers, strict=False):
                if task == "sparse-embedding":
                    assert [(v["token"], np.float32(v["weight"])) for v in values] == list(answer.items())
                    assert [WORDS[v["id"]] for v in values] == list(answer)
                else:
                    np.testing.assert_array_equal(np.array(values, np.float32), answer)
        expected = {
            "sparse-embedding": "list<item: struct<id: int32, token: string, weight: float>>",
            "multi-vector": "list<item: list<item: float>>",
        }
        assert kind == expected[task]


def test_the_command_line_prints_them(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from edgebert.cli import main

    make_bge_m3(tmp_path / "m3")
    edgebert.export(tmp_path / "m3", tmp_path / "model.onnx")
    model = edgebert.load(tmp_path / "model.onnx")
    for task, key in (("sparse-embedding", "weights"), ("multi-vector", "embeddings")):
        main(["run", str(tmp_path / "model.onnx"), "the router", "--task", task])
        line = json.loads(capsys.readouterr().out)
        answer = model("the router", task=task)
        assert line == {"text": "the router", key: answer if task == "sparse-embedding" else answer.tolist()}


def test_bits_as_sentence_transformers_packs_them() -> None:
    from sentence_transformers.util.quantization import quantize_embeddings

    rows = np.random.default_rng(0).standard_normal((50, 48)).astype(np.float32)
    rows[0, ::3] = 0.0
    expected = quantize_embeddings(rows, precision="ubinary")
    found = edgebert.quantize_embeddings(rows, "binary")
    assert found.dtype == expected.dtype
    np.testing.assert_array_equal(found, expected)
