"""Reranking and similarity search against plain loops over the scores of pairs."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from artifacts import random_spec, random_tensors

import edgebert
from edgebert.artifact.spec import PROBLEM_TYPES
from edgebert.artifact.writer import build_model
from edgebert.errors import InvalidInputError
from edgebert.tasks import embedding

QUERY = "is the router off ?"
DOCUMENTS = ["the router is off .", "roses", "", "turn the modem on", "roses", "the water is fast and very good"]


def test_ranks_by_the_score_of_each_pair(backend: str, make_file: Callable[..., Path]) -> None:
    model = edgebert.load(make_file(task="text-classification", num_labels=1), backend)
    scores = [model({"text": QUERY, "text_pair": text})["score"] for text in DOCUMENTS]
    found = model.rank(QUERY, DOCUMENTS)
    assert [entry["corpus_id"] for entry in found] == sorted(range(6), key=lambda i: -scores[i])
    assert [entry["score"] for entry in found] == pytest.approx(sorted(scores, reverse=True), abs=1e-6)
    assert model.rank(QUERY, DOCUMENTS, top_k=2) == found[:2]
    with_texts = model.rank(QUERY, DOCUMENTS, top_k=2, return_documents=True)
    assert [entry["text"] for entry in with_texts] == [DOCUMENTS[entry["corpus_id"]] for entry in found[:2]]
    raw = model.rank(QUERY, DOCUMENTS, function_to_apply="none")
    assert [entry["corpus_id"] for entry in raw] == [entry["corpus_id"] for entry in found]
    assert raw[0]["score"] == pytest.approx(np.log(found[0]["score"] / (1 - found[0]["score"])), rel=1e-3)
    assert model.rank(QUERY, []) == []
    _, is_truncated = model.rank(QUERY, ["a", "a " * 99], return_truncated=True)
    assert is_truncated.tolist() == [False, True]


def test_ranks_by_a_label(make_file: Callable[..., Path]) -> None:
    model = edgebert.load(make_file(task="text-classification", num_labels=3), "numpy")
    found = model.rank(QUERY, DOCUMENTS, label="LABEL_2")
    for entry in found:
        answers = model({"text": QUERY, "text_pair": DOCUMENTS[entry["corpus_id"]]}, top_k=None)
        assert entry["score"] == {answer["label"]: answer["score"] for answer in answers}["LABEL_2"]
    assert [entry["score"] for entry in found] == sorted((entry["score"] for entry in found), reverse=True)


SCORES: dict[str, Callable[[Any], Any]] = {
    "none": lambda logits: logits,
    "sigmoid": lambda logits: 1 / (1 + np.exp(-logits)),
    "tanh": np.tanh,
    "softmax": lambda logits: np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True),
}


@pytest.fixture
def make_ranker(tmp_path: Path, tokenizer_json: str) -> Callable[..., tuple[edgebert.Model, Any]]:
    """A function that makes (a cross-encoder, its logits for (QUERY, each of DOCUMENTS), f64 [n, labels])."""

    def make(num_labels: int, shift: float = 0.0, **spec: Any) -> tuple[edgebert.Model, Any]:
        made = random_spec(task="text-classification", num_labels=num_labels).replace(**spec)
        tensors = random_tensors(made)
        tensors["head.out.bias"][0] += np.float32(shift)
        (tmp_path / "model.onnx").write_bytes(build_model(made, tensors, {"edgebert.tokenizer": tokenizer_json}))
        model = edgebert.load(tmp_path / "model.onnx", "numpy")
        assert model.tokenizer is not None
        batch, _ = model.tokenizer.tokenize([(QUERY, text) for text in DOCUMENTS])
        return model, model.forward(batch)["logits"].astype(np.float64)

    return make


@pytest.mark.parametrize("shift", [0.0, 40.0, -120.0])
@pytest.mark.parametrize("function", SCORES)
@pytest.mark.parametrize("num_labels", [1, 2, 3])
def test_the_stated_function_makes_the_scores_and_the_logits_the_order(
    num_labels: int, function: str, shift: float, make_ranker: Callable[..., tuple[edgebert.Model, Any]]
) -> None:
    """As CrossEncoder; but where its scores are all 0 or 1, documents keep the order of their logits."""
    model, logits = make_ranker(num_labels, shift, rank_function=function)
    found = model.rank(QUERY, DOCUMENTS, label="LABEL_0")
    lead = logits[:, 0]
    if function == "softmax":  # p / (1 - p) = exp(x_0) / sum of the others'
        lead = lead - np.log(np.exp(logits[:, 1:]).sum(axis=1)) if num_labels > 1 else 0 * lead
    order = sorted(range(len(DOCUMENTS)), key=lambda i: -lead[i])
    assert [entry["corpus_id"] for entry in found] == order
    scores = SCORES[function](logits)[:, 0]
    assert [entry["score"] for entry in found] == pytest.approx([scores[e["corpus_id"]] for e in found], rel=1e-5)
    raw = model.rank(QUERY, DOCUMENTS, label="LABEL_0", function_to_apply="none")  # the caller's wins
    assert [entry["score"] for entry in raw] == pytest.approx(sorted(logits[:, 0], reverse=True), rel=1e-6)


@pytest.mark.parametrize("problem_type", PROBLEM_TYPES)
def test_a_single_label_has_its_sigmoid_where_nothing_is_stated(
    problem_type: str, make_ranker: Callable[..., tuple[edgebert.Model, Any]]
) -> None:
    """CrossEncoder's default, whatever transformers' pipeline makes of the problem type."""
    model, logits = make_ranker(1, problem_type=problem_type)
    scores = [entry["score"] for entry in model.rank(QUERY, DOCUMENTS)]
    assert scores == pytest.approx(sorted(SCORES["sigmoid"](logits[:, 0]), reverse=True), rel=1e-5)


def test_pairs_are_scored_as_the_pipeline_of_transformers_whatever_is_stated(
    make_ranker: Callable[..., tuple[edgebert.Model, Any]],
) -> None:
    model, logits = make_ranker(1, rank_function="none")
    pairs = [(QUERY, text) for text in DOCUMENTS]
    for options, function in (
        ({}, "sigmoid"),
        ({"function_to_apply": "none"}, "none"),
        ({"function_to_apply": "tanh"}, "tanh"),
    ):
        found = [answer["score"] for answer in model(pairs, **options)]
        assert found == pytest.approx(SCORES[function](logits[:, 0]).tolist(), rel=1e-5)


@pytest.mark.parametrize(
    ("arguments", "options", "message"),
    [
        ((QUERY, DOCUMENTS), {}, "label must be one of LABEL_0, LABEL_1, LABEL_2, got None"),
        ((QUERY, DOCUMENTS), {"label": "yes"}, "label must be one of LABEL_0, LABEL_1, LABEL_2, got 'yes'"),
        ((QUERY, "a"), {"label": "LABEL_0"}, "expected a list of documents, got one str"),
        ((QUERY, [3]), {"label": "LABEL_0"}, "text 0 must be a str, got int"),
        ((None, ["a"]), {"label": "LABEL_0"}, "query must be a str, got NoneType"),
        ((QUERY, ["a"]), {"label": "LABEL_0", "top_k": 0}, "top_k must be a positive integer"),
    ],
)
def test_refuses(make_file: Callable[..., Path], arguments: tuple, options: dict, message: str) -> None:
    model = edgebert.load(make_file(task="text-classification"), "numpy")
    with pytest.raises(InvalidInputError, match=message):
        model.rank(*arguments, **options)


def test_embeddings_of_fewer_dimensions_and_length_one(backend: str, make_file: Callable[..., Path]) -> None:
    model = edgebert.load(make_file(normalize=False), backend)
    rows = model.encode(DOCUMENTS)
    short = model.encode(DOCUMENTS, truncate_dim=7, normalize_embeddings=True)
    assert short.shape == (6, 7)
    np.testing.assert_allclose(short, rows[:, :7] / np.linalg.norm(rows[:, :7], axis=1, keepdims=True), atol=1e-6)
    np.testing.assert_array_equal(model.encode("roses", truncate_dim=7), model.encode("roses")[:7])
    with pytest.raises(InvalidInputError, match="truncate_dim is 25, the embeddings have 24 dimensions"):
        model.encode("a", truncate_dim=25)


def test_long_texts_are_the_mean_of_their_windows(backend: str, make_file: Callable[..., Path]) -> None:
    model = edgebert.load(make_file(), backend)
    words = [["roses", "water", "fast", "slow"][i * i % 7 % 4] for i in range(16)]
    windows = model.encode([" ".join(words[i : i + 8]) for i in (0, 4, 8)])
    (row, alone), is_truncated = model.encode([" ".join(words), "a"], max_length=10, stride=4, return_truncated=True)
    mean = windows.mean(axis=0)
    np.testing.assert_allclose(row, mean / np.linalg.norm(mean), atol=1e-6)
    np.testing.assert_allclose(alone, model.encode("a"), atol=1e-6)
    assert not is_truncated.any()


def test_similarity_and_search(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    corpus = rng.standard_normal((50, 8)).astype(np.float32)
    corpus[7] = 2 * corpus[3]
    corpus[9] = 0
    queries = corpus[[3, 20]] * 5
    cosines = edgebert.similarity(queries, corpus)
    expected = [[a @ b / max(np.linalg.norm(a) * np.linalg.norm(b), 1e-12) for b in corpus] for a in queries]
    np.testing.assert_allclose(cosines, expected, atol=1e-6)
    assert edgebert.similarity(corpus[0], corpus[0]).shape == (1, 1)
    found = edgebert.semantic_search(queries, corpus, top_k=5)
    assert [{hit["corpus_id"] for hit in hits[:2]} for hits in found][0] == {3, 7}
    assert found[1][0]["corpus_id"] == 20
    for hits, row in zip(found, cosines, strict=True):
        assert [hit["score"] for hit in hits] == pytest.approx(np.sort(row)[::-1][:5].tolist(), abs=1e-6)
    monkeypatch.setattr(embedding, "MAX_COSINES", 1)
    again: Any = edgebert.semantic_search(queries, corpus, top_k=5)
    assert [[hit["corpus_id"] for hit in hits] for hits in again] == [[h["corpus_id"] for h in hits] for hits in found]
    assert len(edgebert.semantic_search(queries[0], corpus, top_k=80)[0]) == 50
    with pytest.raises(InvalidInputError, match="embeddings of one width"):
        edgebert.similarity(corpus, corpus[:, :4])
    wrong: Any
    for wrong in ("a", ["a"], [[1.0, 2.0], [3.0]], {1}, [10**400]):
        with pytest.raises(InvalidInputError, match="embeddings must be numbers, in rows of one width"):
            edgebert.semantic_search(wrong, corpus)


def test_embeddings_in_fewer_bytes() -> None:
    rng = np.random.default_rng(1)
    rows = rng.standard_normal((40, 20)).astype(np.float32)  # 20 bits leave 4 of 3 bytes over
    rows[3] = 0.0
    rows[5] *= 2.66e-43 / np.abs(rows[5]).max()  # 190 of the smallest numbers, whose scale is one of these
    codes = edgebert.quantize_embeddings(rows, "int8")
    assert codes.dtype == np.int8
    scales = embedding.find_scales(rows)
    assert (np.abs(codes[np.arange(40) > 5]).max(axis=1) == 127).all()
    is_normal = np.arange(40) != 5
    assert (np.abs(codes * scales[:, None].astype(np.float64) - rows) <= scales[:, None] * 0.5001)[is_normal].all()
    assert not codes[3].any() and (np.sign(codes[5]) == np.sign(rows[5])).all() and np.abs(codes[5]).max() == 127
    np.testing.assert_array_equal(edgebert.quantize_embeddings(rows[:, None], "int8")[:, 0], codes)

    bits = edgebert.quantize_embeddings(rows, "binary")
    assert (bits.dtype, bits.shape) == (np.uint8, (40, 3))
    for row, packed in zip(rows, bits, strict=True):
        places = [bool(packed[i // 8] & (128 >> i % 8)) for i in range(20)]
        assert places == (row > 0).tolist()
    signs = np.where(rows > 0, np.float32(1), np.float32(-1))
    np.testing.assert_allclose(edgebert.similarity(rows, bits), edgebert.similarity(rows, signs), atol=1e-6)
    np.testing.assert_allclose(edgebert.similarity(bits, rows), edgebert.similarity(signs, rows), atol=1e-6)
    hamming = np.array([[int((a != b).sum()) for b in signs] for a in signs])
    np.testing.assert_allclose(edgebert.similarity(bits, bits), 1 - 2 * hamming / 24, atol=1e-6)
    assert [hits[0]["corpus_id"] for hits in edgebert.semantic_search(rows, rows.astype(np.float16))][6:] == [
        *range(6, 40)
    ]
    with pytest.raises(InvalidInputError, match="dtype must be one of f32, f16, int8, binary, got 'int4'"):
        edgebert.quantize_embeddings(rows, "int4")
    with pytest.raises(InvalidInputError, match="embeddings of one width"):
        edgebert.similarity(rows, bits[:, :2])
