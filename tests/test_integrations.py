"""Model files inside other libraries, against these libraries with the original model; skipped where one is absent."""

from __future__ import annotations

import asyncio
import dataclasses
import importlib
import json
import logging
import pickle
import re
import shutil
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import edgebert
from edgebert.errors import BackendUnavailableError, EdgeBertError, InvalidInputError

pytest.importorskip("torch")
pytest.importorskip("transformers")
import torch
import transformers
from artifacts import random_spec, random_tensors
from checkpoints import add_sentence_modules
from pipelines import assert_same_answers, make_pipeline_parts

from edgebert.artifact.writer import build_model
from edgebert.checkpoints.loading import load_checkpoint
from edgebert.integrations import LIBRARIES, need_library, take_model
from edgebert.integrations.padding import pack

ROOT = Path(__file__).resolve().parent.parent
PAGE = (ROOT / "docs" / "integrations.md").read_text(encoding="utf-8")
TEXTS = [
    "the router is off .",
    "water the roses",
    "a",
    "turn the modem on and off and on again , and then the router",
    "",
]
PAIRS = [("the router is off ?", text) for text in TEXTS[:4]]
TOLERANCE = 2e-6  # of float32 sums of 24 terms or so, added up in another order


def make_sentence_parts(folder: Path, tokenizer_json: str, **options: Any) -> Path:
    """A folder that sentence-transformers loads, mean pooling and scaling to length 1; model.onnx in it is ours."""
    make_pipeline_parts(folder, tokenizer_json, "embedding")
    add_sentence_modules(
        folder,
        {"word_embedding_dimension": 24, "pooling_mode_mean_tokens": True},
        normalize=True,
        sentence_bert_config={"max_seq_length": 16, "do_lower_case": False},
        **options,
    )
    checkpoint = load_checkpoint(folder)
    path = folder.parent / "model.onnx"
    path.write_bytes(
        build_model(checkpoint.spec, checkpoint.tensors, {"edgebert.tokenizer": checkpoint.tokenizer_json or ""})
    )
    (folder / "model.onnx").unlink()
    return path


@pytest.fixture(scope="module")
def sentence_parts(tmp_path_factory: pytest.TempPathFactory, tokenizer_json: str) -> tuple[Any, Any]:
    """SentenceTransformers: (the original, ours)."""
    pytest.importorskip("sentence_transformers")
    from sentence_transformers import SentenceTransformer

    from edgebert.integrations import sentence_transformers as ours

    folder = tmp_path_factory.mktemp("sentences") / "original"
    folder.mkdir()
    prompts = {"prompts": {"query": "the router ", "document": ""}, "default_prompt_name": None}
    path = make_sentence_parts(folder, tokenizer_json, config_sentence_transformers=prompts)
    return SentenceTransformer(str(folder), device="cpu"), ours.load(path)


class TestSentenceTransformers:
    @pytest.mark.parametrize(
        "options",
        [
            {},
            {"batch_size": 2},
            {"prompt_name": "query"},
            {"prompt": "water "},
            {"truncate_dim": 8},
            {"truncate_dim": 8, "normalize_embeddings": True},
            {"precision": "binary"},
            {"convert_to_tensor": True},
        ],
        ids=str,
    )
    def test_encode_gives_the_originals_embeddings(
        self, sentence_parts: tuple[Any, Any], options: dict[str, Any]
    ) -> None:
        original, ours = sentence_parts
        expected, found = (model.encode(TEXTS, **options) for model in sentence_parts)
        assert type(found) is type(expected) and found.shape == expected.shape and found.dtype == expected.dtype
        np.testing.assert_allclose(np.asarray(found), np.asarray(expected), atol=TOLERANCE, rtol=0)

    def test_queries_documents_tokens_and_similarity(self, sentence_parts: tuple[Any, Any]) -> None:
        original, ours = sentence_parts
        for name in ("encode_query", "encode_document"):
            expected, found = (getattr(model, name)(TEXTS[0]) for model in sentence_parts)
            np.testing.assert_allclose(found, expected, atol=TOLERANCE, rtol=0)
        assert not np.allclose(ours.encode_query(TEXTS[0]), ours.encode(TEXTS[0]))
        expected, found = (model.encode(TEXTS[:4], output_value="token_embeddings") for model in sentence_parts)
        for a, b in zip(found, expected, strict=True):
            np.testing.assert_allclose(a, b, atol=1e-5, rtol=0)
        everything = ours.encode(TEXTS[0], output_value=None)
        assert {"input_ids", "attention_mask", "token_embeddings", "sentence_embedding"} <= set(everything)
        rows = ours.encode(TEXTS)
        np.testing.assert_allclose(ours.similarity(rows, rows), original.similarity(rows, rows), atol=TOLERANCE)
        assert ours.get_embedding_dimension() == original.get_embedding_dimension() == 24
        assert ours.max_seq_length == original.max_seq_length == 16

    def test_a_text_has_the_same_bits_in_any_batch(self, sentence_parts: tuple[Any, Any]) -> None:
        ours = sentence_parts[1]
        alone = np.stack([ours.encode(text) for text in TEXTS])
        assert np.array_equal(ours.encode(TEXTS), alone)
        assert np.array_equal(ours.encode(TEXTS, batch_size=2), alone)
        assert np.array_equal(ours[0].model.encode(TEXTS), alone)

    def test_max_seq_length_truncates(self, sentence_parts: tuple[Any, Any]) -> None:
        original, ours = sentence_parts
        for model in sentence_parts:
            model.max_seq_length = 6
        try:
            expected, found = (model.encode(TEXTS) for model in sentence_parts)
        finally:
            for model in sentence_parts:
                model.max_seq_length = 16
        np.testing.assert_allclose(found, expected, atol=TOLERANCE, rtol=0)
        assert not np.allclose(found[3], ours.encode(TEXTS[3]))

    def test_saved_folders_and_pickles_load(self, sentence_parts: tuple[Any, Any], tmp_path: Path) -> None:
        from sentence_transformers import SentenceTransformer

        ours = sentence_parts[1]
        expected = ours.encode(TEXTS, prompt_name="query")
        ours.max_seq_length = 6
        cut = ours.encode(TEXTS, prompt_name="query")
        ours.save(str(tmp_path / "saved"))
        ours.save(str(tmp_path / "saved"))  # over itself
        ours.max_seq_length = 16
        loaded = SentenceTransformer(str(tmp_path / "saved"), trust_remote_code=True, model_kwargs={"threads": 1})
        assert np.array_equal(loaded.encode(TEXTS, prompt_name="query"), cut)
        loaded.save(str(tmp_path / "saved"))
        assert loaded[0].model.arguments[3] == 1
        assert edgebert.load(tmp_path / "saved").task == "embedding"
        assert np.array_equal(pickle.loads(pickle.dumps(ours)).encode(TEXTS, prompt_name="query"), expected)
        (tmp_path / "saved" / "model.onnx").unlink()
        with pytest.raises(InvalidInputError, match="holds no model.onnx"):
            SentenceTransformer(str(tmp_path / "saved"), trust_remote_code=True)

    def test_a_pool_of_processes_gives_the_same_bits(self, sentence_parts: tuple[Any, Any]) -> None:
        ours = sentence_parts[1]
        pool = ours.start_multi_process_pool(["cpu", "cpu"])
        try:
            found = ours.encode(TEXTS * 5, pool=pool, chunk_size=3)
        finally:
            ours.stop_multi_process_pool(pool)
        assert np.array_equal(found, ours.encode(TEXTS * 5))

    def test_evaluators_measure_the_same(self, sentence_parts: tuple[Any, Any]) -> None:
        from sentence_transformers.sentence_transformer.evaluation import (
            EmbeddingSimilarityEvaluator,
            InformationRetrievalEvaluator,
        )

        similarity = EmbeddingSimilarityEvaluator(TEXTS[:4], TEXTS[1:], [0.1, 0.4, 0.2, 0.9], write_csv=False)
        queries, corpus = {"q": "is the router on ?"}, {str(i): text for i, text in enumerate(TEXTS[:4])}
        retrieval = InformationRetrievalEvaluator(queries, corpus, {"q": {"3"}}, write_csv=False)
        for evaluator in (similarity, retrieval):
            expected, found = (evaluator(model) for model in sentence_parts)
            assert found == pytest.approx(expected, abs=1e-6)

    def test_a_file_without_pooling_stands_for_transformer_alone(self, make_file: Callable[..., Path]) -> None:
        pytest.importorskip("sentence_transformers")
        from sentence_transformers import SentenceTransformer
        from sentence_transformers.sentence_transformer.modules import Pooling

        from edgebert.integrations.sentence_transformers import EdgeBertModule

        module = EdgeBertModule(make_file(pooling="none", normalize=False))
        model = SentenceTransformer(modules=[module, Pooling(module.get_embedding_dimension(), "mean")], device="cpu")
        expected = edgebert.load(make_file("pooled.onnx", normalize=False)).encode(TEXTS)
        np.testing.assert_allclose(model.encode(TEXTS), expected, atol=TOLERANCE, rtol=0)

    def test_what_does_not_fit_is_refused(self, make_file: Callable[..., Path]) -> None:
        pytest.importorskip("sentence_transformers")
        from edgebert.integrations.sentence_transformers import EdgeBertCrossEncoder, EdgeBertModule, load

        with pytest.raises(InvalidInputError, match="its head is token-classification"):
            EdgeBertModule(make_file(task="token-classification"))
        with pytest.raises(InvalidInputError, match="its head is text-classification"):
            load(make_file(task="text-classification"))
        with pytest.raises(InvalidInputError, match="its head is embedding"):
            EdgeBertCrossEncoder(make_file())
        with pytest.raises(InvalidInputError, match="no tokenizer"):
            load(make_file(tokenizer_json=None))
        with pytest.raises(InvalidInputError, match="threads: this model is loaded already"):
            EdgeBertModule(edgebert.load(make_file()), threads=2)
        with pytest.raises(InvalidInputError, match="does not take processing_kwargs"):
            load(make_file()).encode(TEXTS, processing_kwargs={"text": {"max_length": 4}})

    @pytest.mark.parametrize("activation", [None, "torch.nn.modules.linear.Identity"])
    @pytest.mark.parametrize("num_labels", [1, 3])
    def test_a_cross_encoder_gives_the_originals_scores(
        self, tmp_path: Path, tokenizer_json: str, num_labels: int, activation: str | None
    ) -> None:
        pytest.importorskip("sentence_transformers")
        from sentence_transformers import CrossEncoder

        from edgebert.integrations.sentence_transformers import EdgeBertCrossEncoder

        config = {"sentence_transformers": {"activation_fn": activation}} if activation else {}
        make_pipeline_parts(tmp_path, tokenizer_json, "text-classification", num_labels=num_labels, **config)
        original = CrossEncoder(str(tmp_path), device="cpu")
        ours = EdgeBertCrossEncoder(tmp_path / "model.onnx")
        for options in ({}, {"apply_softmax": True}, {"activation_fn": torch.nn.Tanh()}, {"convert_to_tensor": True}):
            expected, found = (model.predict(PAIRS, **options) for model in (original, ours))
            assert type(found) is type(expected) and found.shape == expected.shape
            np.testing.assert_allclose(np.asarray(found), np.asarray(expected), atol=1e-5, rtol=1e-5)
        assert ours.predict(PAIRS[0]) == pytest.approx(original.predict(PAIRS[0]), rel=1e-5)
        if num_labels == 1:
            expected, found = (model.rank(PAIRS[0][0], TEXTS[:4], return_documents=True) for model in (original, ours))
            assert [entry["corpus_id"] for entry in found] == [entry["corpus_id"] for entry in expected]
            assert [entry["text"] for entry in found] == [entry["text"] for entry in expected]
        ours.save(str(tmp_path / "saved"))
        loaded = CrossEncoder(str(tmp_path / "saved"), trust_remote_code=True)
        assert np.array_equal(loaded.predict(PAIRS), ours.predict(PAIRS))


class TestTransformers:
    NAMES = {
        "embedding": "FeatureExtraction",
        "text-classification": "SequenceClassification",
        "token-classification": "TokenClassification",
        "question-answering": "QuestionAnswering",
        "fill-mask": "MaskedLM",
        "next-sentence": "NextSentencePrediction",
        "pretraining": "PreTraining",
    }

    def make(self, folder: Path, tokenizer_json: str, head: str, **config: Any) -> tuple[Any, Any, Any]:
        """(the original, its tokenizer, ours)."""
        from edgebert.integrations import transformers as ours

        original, tokenizer, _ = make_pipeline_parts(folder, tokenizer_json, head, **config)
        return original, tokenizer, getattr(ours, f"EdgeBertModelFor{self.NAMES[head]}").from_pretrained(folder)

    @pytest.mark.parametrize("head", NAMES)
    @pytest.mark.parametrize("side", ["right", "left"])
    def test_rows_of_a_tokenizer_give_the_originals_outputs(
        self, tmp_path: Path, tokenizer_json: str, head: str, side: str
    ) -> None:
        original, tokenizer, ours = self.make(tmp_path, tokenizer_json, head)
        tokenizer.padding_side = side
        texts = [list(pair) for pair in PAIRS]
        rows = tokenizer(texts, padding=True, truncation=True, return_tensors="pt")
        found = ours(**rows)
        assert isinstance(found, transformers.utils.ModelOutput)
        as_arrays = ours(**tokenizer(texts, padding=True, truncation=True, return_tensors="np"))
        for i, text in enumerate(texts):
            with torch.no_grad():
                expected = original(**tokenizer([text], truncation=True, return_tensors="pt"))
            where = rows["attention_mask"][i].bool()
            for name, values in found.items():
                assert isinstance(values, torch.Tensor) and isinstance(as_arrays[name], np.ndarray)
                assert np.array_equal(as_arrays[name], values.numpy())
                one = expected[name][0]
                is_token = values.shape[1:2] == where.shape and one.shape[0] == where.sum()
                mine = values[i][where] if is_token else values[i]
                assert mine.shape == one.shape
                torch.testing.assert_close(mine, one, atol=1e-5, rtol=1e-5)

    @pytest.mark.parametrize(
        ("task", "head", "inputs", "options"),
        [
            ("text-classification", "text-classification", TEXTS[:4], {"top_k": None}),
            ("token-classification", "token-classification", TEXTS[:4], {"aggregation_strategy": "first"}),
            ("fill-mask", "fill-mask", ["the [MASK] is off .", "water the [MASK]"], {"top_k": 3}),
            ("question-answering", "question-answering", {"question": "is it off ?", "context": TEXTS[0]}, {}),
            ("zero-shot-classification", "text-classification", TEXTS[0], {"candidate_labels": ["water", "router"]}),
            ("feature-extraction", "embedding", TEXTS[:2], {}),
        ],
    )
    @pytest.mark.parametrize("batch_size", [1, 3])
    def test_pipelines_answer_as_with_the_original(
        self, tmp_path: Path, tokenizer_json: str, caplog: Any, task: str, head: str, inputs: Any, options: Any,
        batch_size: int,
    ) -> None:  # fmt: skip
        from transformers.pipelines import PIPELINE_REGISTRY

        if task not in PIPELINE_REGISTRY.get_supported_tasks():
            pytest.skip(f"transformers {transformers.__version__} has no pipeline {task}")
        labels = {0: "ENTAILMENT", 1: "NEUTRAL"} if task.startswith("zero") else {0: "O", 1: "B-X", 2: "I-X"}
        labels = {0: "start", 1: "end"} if head == "question-answering" else labels
        names = {"id2label": labels, "label2id": {name: i for i, name in labels.items()}}
        original, tokenizer, ours = self.make(tmp_path, tokenizer_json, head, **names)
        transformers.utils.logging.enable_propagation()
        with caplog.at_level(logging.WARNING):
            asked = transformers.pipeline(task, model=ours, tokenizer=tokenizer, batch_size=batch_size)
            found = asked(inputs, **options)
        transformers.utils.logging.disable_propagation()
        assert "not supported" not in caplog.text and task.split("-")[0] and repr(asked)
        expected = transformers.pipeline(task, model=original, tokenizer=tokenizer)(inputs, **options)
        if task == "feature-extraction":
            for a, b in zip(found, expected, strict=True):
                np.testing.assert_allclose(np.asarray(a)[0, : len(b[0])], np.asarray(b)[0], atol=1e-5)
        elif task.startswith("zero"):
            assert found["labels"] == expected["labels"]
            assert found["scores"] == pytest.approx(expected["scores"], abs=1e-5)
        else:
            assert_same_answers(json.loads(json.dumps(found, default=float)), expected)

    def test_saved_folders_files_and_pickles_load(self, tmp_path: Path, tokenizer_json: str) -> None:
        from edgebert.integrations.transformers import EdgeBertModelForSequenceClassification as Ours

        labels = {0: "bad", 1: "good"}
        _, tokenizer, ours = self.make(tmp_path, tokenizer_json, "text-classification", id2label=labels)
        rows = tokenizer(TEXTS, padding=True, truncation=True, return_tensors="pt")
        expected = ours(**rows).logits
        ours.save_pretrained(tmp_path / "saved")
        shutil.copy(tmp_path / "model.onnx", tmp_path / "saved" / "alone.onnx")
        for loaded in (
            Ours.from_pretrained(tmp_path / "saved", threads=1),
            Ours.from_pretrained(tmp_path / "saved", file_name="alone.onnx"),
            pickle.loads(pickle.dumps(ours)),
        ):
            assert torch.equal(loaded(**rows).logits, expected)
            assert loaded.config.id2label == labels and loaded.config.model_type == "bert"
            assert loaded.config.hidden_size == 24 and loaded.config.num_labels == 2

    def test_what_does_not_fit_is_refused(self, tmp_path: Path, tokenizer_json: str) -> None:
        from edgebert.integrations.transformers import EdgeBertModelForMaskedLM

        _, tokenizer, ours = self.make(tmp_path, tokenizer_json, "text-classification")
        with pytest.raises(
            InvalidInputError, match="expected a file for fill-mask.*use EdgeBertModelForSequenceClassifi"
        ):
            EdgeBertModelForMaskedLM.from_pretrained(tmp_path)
        rows = tokenizer(TEXTS, padding=True, truncation=True, return_tensors="pt")
        with pytest.raises(InvalidInputError, match="does not take labels"):
            ours(**rows, labels=torch.zeros(5, dtype=torch.long))
        with pytest.raises(InvalidInputError, match="must be"):
            ours()
        with pytest.raises(EdgeBertError, match="id"):
            ours(input_ids=torch.tensor([[999]]))
        (tmp_path / "config.json").rename(tmp_path / "no.json")
        with pytest.raises(InvalidInputError, match="has no config.json"):
            type(ours).from_pretrained(tmp_path)
        (tmp_path / "no.json").rename(tmp_path / "config.json")
        transformers.AutoModelForSequenceClassification.from_pretrained(tmp_path)  # still finds its own classes


class TestSklearn:
    API_CHECKS = (
        "check_do_not_raise_errors_in_init_or_set_params",
        "check_estimator_cloneable",
        "check_estimator_repr",
        "check_estimator_tags_renamed",
        "check_get_params_invariance",
        "check_no_attributes_set_in_init",
        "check_set_params",
        "check_valid_tag_types",
    )

    @pytest.mark.parametrize("check", API_CHECKS)
    def test_the_estimator_checks_that_apply(self, check: str, make_file: Callable[..., Path]) -> None:
        checks = pytest.importorskip("sklearn.utils.estimator_checks")
        from edgebert.integrations.sklearn import EdgeBertClassifier, EdgeBertVectorizer

        for made in (
            EdgeBertVectorizer(make_file()),
            EdgeBertClassifier(make_file("b.onnx", task="text-classification")),
        ):
            getattr(checks, check)(type(made).__name__, made)

    def test_a_vectorizer_in_a_pipeline(self, make_file: Callable[..., Path]) -> None:
        pytest.importorskip("sklearn")
        from joblib import Parallel, delayed
        from sklearn.base import clone
        from sklearn.linear_model import LogisticRegression
        from sklearn.model_selection import GridSearchCV, cross_val_score
        from sklearn.pipeline import make_pipeline

        from edgebert.integrations.sklearn import EdgeBertVectorizer

        path = make_file()
        vectorizer = EdgeBertVectorizer(str(path), truncate_dim=8)
        expected = edgebert.load(path).encode(TEXTS, truncate_dim=8)
        for given in (TEXTS, np.array(TEXTS), np.array(TEXTS, object), (text for text in TEXTS)):
            assert np.array_equal(clone(vectorizer).fit_transform(given), expected)
        assert len(vectorizer.get_feature_names_out()) == 8
        assert np.array_equal(vectorizer.set_params(truncate_dim=4).transform(TEXTS), expected[:, :4])
        texts, labels = [f"{text} {i} ." for i in range(6) for text in TEXTS[:2]], ["off", "water"] * 6
        pipeline = make_pipeline(EdgeBertVectorizer(path), LogisticRegression())
        assert cross_val_score(pipeline, texts, labels, cv=3).tolist() == [1.0, 1.0, 1.0]
        search = GridSearchCV(pipeline, {"edgebertvectorizer__normalize_embeddings": [True, False]}, cv=2, n_jobs=2)
        fitted = search.fit(texts, labels).best_estimator_
        assert np.array_equal(pickle.loads(pickle.dumps(fitted)).predict_proba(texts), fitted.predict_proba(texts))
        parts = Parallel(n_jobs=2)(delayed(vectorizer.transform)([text]) for text in TEXTS)
        assert np.array_equal(np.concatenate(parts), expected[:, :4])

    def test_a_classifier_gives_the_files_labels(self, make_file: Callable[..., Path]) -> None:
        pytest.importorskip("sklearn")
        from sklearn.model_selection import cross_val_score

        from edgebert.integrations.sklearn import EdgeBertClassifier

        path = make_file(task="text-classification")
        classifier, model = EdgeBertClassifier(path), edgebert.load(path)
        answers = model(TEXTS, top_k=None)
        best = [found[0]["label"] for found in answers]
        assert classifier.predict(TEXTS).tolist() == best
        assert classifier.classes_.tolist() == ["LABEL_0", "LABEL_1", "LABEL_2"]
        scores = classifier.fit(TEXTS, best).predict_proba(TEXTS)
        for row, found in zip(scores, answers, strict=True):
            by_label = {entry["label"]: entry["score"] for entry in found}
            assert [by_label[label] for label in classifier.classes_] == row.tolist()
        assert classifier.score(TEXTS, best) == 1.0
        assert cross_val_score(classifier, TEXTS * 2, best * 2, cv=2).tolist() == [1.0, 1.0]

    def test_what_does_not_fit_is_refused(self, make_file: Callable[..., Path]) -> None:
        pytest.importorskip("sklearn")
        from edgebert.integrations.sklearn import EdgeBertClassifier, EdgeBertVectorizer

        with pytest.raises(InvalidInputError, match="its head is embedding"):
            EdgeBertClassifier(make_file()).fit(TEXTS)
        with pytest.raises(InvalidInputError, match="its head is text-classification"):
            EdgeBertVectorizer(make_file(task="text-classification")).fit(TEXTS)
        with pytest.raises(InvalidInputError, match="y has .*good.*the file's labels are LABEL_0, LABEL_1, LABEL_2"):
            EdgeBertClassifier(make_file(task="text-classification")).fit(TEXTS, ["good"] * 5)
        with pytest.raises(InvalidInputError, match="gives a score"):
            EdgeBertClassifier(make_file(task="text-classification", num_labels=1)).predict(TEXTS)
        with pytest.raises(InvalidInputError, match="text 1 must be a str"):
            EdgeBertVectorizer(make_file()).transform(["a", None])


SECTIONS = re.findall(r"^## ([\w -]+): `pip install '\.\[([\w-]+)\]'`.*?^```python\n(.*?)^```", PAGE, re.M | re.S)


def test_the_page_has_every_library_and_extra() -> None:
    assert {name for name, *_ in LIBRARIES.values()} == {extra for _, extra, _ in SECTIONS}
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["optional-dependencies"]
    for name, first, last in LIBRARIES.values():
        assert f"{name}>={first},<{last}" in extras[name]


@pytest.mark.parametrize(("name", "extra", "code"), SECTIONS, ids=[section[0] for section in SECTIONS])
def test_the_pages_examples_run(
    name: str,
    extra: str,
    code: str,
    make_file: Callable[..., Path],
    tokenizer_json: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    module = next(module for module, (library, *_) in LIBRARIES.items() if library == extra)
    try:
        need_library(module)
    except BackendUnavailableError as reason:
        pytest.skip(str(reason))
    make_file("embedding.onnx", num_positions=64)
    make_file("pairs.onnx", task="text-classification", num_labels=1)
    make_file("tagger.onnx", task="token-classification")
    if "classifier" in code:
        (tmp_path / "classifier").mkdir()
        make_pipeline_parts(tmp_path / "classifier", tokenizer_json, "text-classification", num_labels=3)
    monkeypatch.chdir(tmp_path)
    exec(compile(code, f"integrations.md, {name}", "exec"), {"__name__": "__main__"})
    assert capsys.readouterr().out


@pytest.fixture
def prompted(tmp_path: Path, tokenizer_json: str) -> Path:
    """An embedding file with prompts."""
    prompts = {"query": "the router ", "passage": "water "}
    spec = dataclasses.replace(random_spec(), prompts=prompts)
    path = tmp_path / "prompted.onnx"
    path.write_bytes(build_model(spec, random_tensors(spec), {"edgebert.tokenizer": tokenizer_json}))
    return path


def expected_rows(path: Path) -> tuple[Any, Any]:
    """(that of TEXTS[0] as a query; those of TEXTS as documents)."""
    model = edgebert.load(path)
    return model.encode(TEXTS[0], prompt_name="query"), model.encode(TEXTS, prompt_name="passage")


def expected_ranks(path: Path) -> list[tuple[int, float]]:
    return [(entry["corpus_id"], entry["score"]) for entry in edgebert.load(path).rank(PAIRS[0][0], TEXTS)]


def test_langchain(prompted: Path, make_file: Callable[..., Path]) -> None:
    pytest.importorskip("langchain_core")
    from langchain_core.documents import Document
    from langchain_core.vectorstores import InMemoryVectorStore

    from edgebert.integrations.langchain import EdgeBertEmbeddings, EdgeBertReranker

    query, documents = expected_rows(prompted)
    ours = EdgeBertEmbeddings(prompted)
    assert ours.embed_query(TEXTS[0]) == query.tolist() == asyncio.run(ours.aembed_query(TEXTS[0]))
    assert ours.embed_documents(TEXTS) == documents.tolist() == asyncio.run(ours.aembed_documents(TEXTS))
    assert len(EdgeBertEmbeddings(prompted, truncate_dim=8).embed_query("a")) == 8
    found = InMemoryVectorStore.from_texts(TEXTS, ours).similarity_search(TEXTS[0], k=1)
    assert found[0].page_content == TEXTS[int(np.argmax(documents @ query))]
    path = make_file(task="text-classification", num_labels=1)
    given = [Document(text, metadata={"i": i}) for i, text in enumerate(TEXTS)]
    reranker = pickle.loads(pickle.dumps(EdgeBertReranker(path, top_n=4)))
    for found in (
        reranker.compress_documents(given, PAIRS[0][0]),
        asyncio.run(reranker.acompress_documents(given, PAIRS[0][0])),
    ):
        scored = [(document.metadata["i"], document.metadata["relevance_score"]) for document in found]
        assert scored == expected_ranks(path)[:4]
    assert "relevance_score" not in given[0].metadata
    with pytest.raises(InvalidInputError, match="its head is text-classification"):
        EdgeBertEmbeddings(path)
    with pytest.raises(InvalidInputError, match="its head is embedding"):
        EdgeBertReranker(prompted)


def test_llama_index(prompted: Path, make_file: Callable[..., Path]) -> None:
    pytest.importorskip("llama_index.core")
    from llama_index.core.schema import NodeWithScore, TextNode

    from edgebert.integrations.llama_index import EdgeBertEmbedding, EdgeBertRerank

    query, documents = expected_rows(prompted)
    ours = EdgeBertEmbedding(prompted, embed_batch_size=2)
    assert ours.get_query_embedding(TEXTS[0]) == query.tolist() == asyncio.run(ours.aget_query_embedding(TEXTS[0]))
    assert ours.get_text_embedding(TEXTS[1]) == documents[1].tolist()
    assert ours.get_text_embedding_batch(TEXTS) == documents.tolist()
    assert asyncio.run(ours.aget_text_embedding_batch(TEXTS)) == documents.tolist()
    assert [node.embedding for node in ours([TextNode(text=text) for text in TEXTS])] == documents.tolist()
    path = make_file(task="text-classification", num_labels=1)
    nodes = [NodeWithScore(node=TextNode(text=text, id_=str(i)), score=0.0) for i, text in enumerate(TEXTS)]
    reranker = EdgeBertRerank(path, top_n=4)
    for found in (
        reranker.postprocess_nodes(nodes, query_str=PAIRS[0][0]),
        asyncio.run(reranker.apostprocess_nodes(nodes, query_str=PAIRS[0][0])),
    ):
        assert [(int(node.node.node_id), node.score) for node in found] == expected_ranks(path)[:4]
    with pytest.raises(InvalidInputError, match="needs the query"):
        reranker.postprocess_nodes(nodes)
    with pytest.raises(InvalidInputError, match="its head is text-classification"):
        EdgeBertEmbedding(path)


def test_haystack(prompted: Path, make_file: Callable[..., Path]) -> None:
    pytest.importorskip("haystack")
    from haystack import Document, Pipeline

    from edgebert.integrations.haystack import EdgeBertDocumentEmbedder, EdgeBertRanker, EdgeBertTextEmbedder

    query, rows = expected_rows(prompted)
    path = make_file(task="text-classification", num_labels=1)
    documents = [Document(content=text, id=str(i)) for i, text in enumerate(TEXTS)]
    text_embedder, embedder = EdgeBertTextEmbedder(str(prompted)), EdgeBertDocumentEmbedder(str(prompted))
    ranker = EdgeBertRanker(str(path), top_k=4)
    assert text_embedder.run(TEXTS[0])["embedding"] == query.tolist()
    assert asyncio.run(text_embedder.run_async(TEXTS[0]))["embedding"] == query.tolist()
    for found in (embedder.run(documents), asyncio.run(embedder.run_async(documents))):
        assert [document.embedding for document in found["documents"]] == rows.tolist()
    assert documents[0].embedding is None
    for found in (ranker.run(PAIRS[0][0], documents), asyncio.run(ranker.run_async(PAIRS[0][0], documents))):
        assert [(int(document.id), document.score) for document in found["documents"]] == expected_ranks(path)[:4]
    pipeline = Pipeline()
    pipeline.add_component("embedder", embedder)
    pipeline.add_component("ranker", ranker)
    pipeline.connect("embedder.documents", "ranker.documents")
    inputs = {"embedder": {"documents": documents}, "ranker": {"query": PAIRS[0][0]}}
    loaded = Pipeline.loads(pipeline.dumps(), allowed_modules=["edgebert.integrations.haystack"])
    answer = loaded.run(inputs)["ranker"]["documents"]
    assert [(int(document.id), document.score) for document in answer] == expected_ranks(path)[:4]
    assert answer[0].embedding == rows[int(answer[0].id)].tolist()
    with pytest.raises(InvalidInputError, match="its head is text-classification"):
        EdgeBertTextEmbedder(str(path)).warm_up()


def test_polars(make_file: Callable[..., Path]) -> None:
    pl = pytest.importorskip("polars")
    from edgebert.integrations.polars import classify, embed

    path, classifier = make_file(), make_file("classifier.onnx", task="text-classification")
    expected, labels = edgebert.load(path).encode(TEXTS), edgebert.load(classifier)(TEXTS)
    for given, kept in ((TEXTS, range(5)), ([None, *TEXTS[:2], None, *TEXTS[2:], None], (1, 2, 4, 5, 6)), ([None], ())):
        frame = pl.DataFrame({"text": given}, schema={"text": pl.String})
        for frames in (frame, frame.lazy()):
            found = (
                frames.with_columns(
                    row=embed("text", path),
                    short=embed(pl.col("text"), path, truncate_dim=8),
                    label=classify("text", classifier),
                )
                .lazy()
                .collect()
            )
            assert found["row"].dtype == pl.Array(pl.Float32, 24) and found["short"].dtype == pl.Array(pl.Float32, 8)
            assert [i for i, row in enumerate(found["row"]) if row is not None] == list(kept)
            assert [row.to_list() for row in found["row"].drop_nulls()] == expected[: len(kept)].tolist()
            assert found["label"].to_list() == [
                labels[list(kept).index(i)] if i in kept else None for i in range(len(given))
            ]
    assert pl.DataFrame({"text": TEXTS}).select(embed("text", path)).columns == ["text"]
    with pytest.raises(InvalidInputError, match="its head is text-classification"):
        embed("text", classifier)


def test_duckdb(make_file: Callable[..., Path]) -> None:
    duckdb = pytest.importorskip("duckdb")
    from edgebert.integrations.duckdb import register

    path, classifier = make_file(), make_file("classifier.onnx", task="text-classification")
    connection = duckdb.connect()
    expected = register(connection, path).encode(TEXTS)
    labels = register(connection, classifier, "topic")(TEXTS)
    register(connection, path, "short", truncate_dim=8)
    connection.execute("CREATE TABLE texts (i INTEGER, text VARCHAR)")
    connection.executemany("INSERT INTO texts VALUES (?, ?)", [*enumerate(TEXTS), (5, None)])
    query = "SELECT embed(text), topic(text), short(text), typeof(embed(text)) FROM texts ORDER BY i"
    rows, topics, short, types = zip(*connection.sql(query).fetchall(), strict=True)
    assert np.array_equal(np.array(rows[:5], np.float32), expected) and rows[5] is None and set(types) == {"FLOAT[24]"}
    assert [topic["label"] for topic in topics[:5]] == [entry["label"] for entry in labels] and topics[5] is None
    assert np.float32(topics[0]["score"]) == np.float32(labels[0]["score"])
    assert np.array_equal(np.array(short[:5], np.float32), expected[:, :8])
    many = "SELECT count(*) FROM (SELECT embed(text) AS row FROM texts, range(1000)) WHERE row[1] IS NOT NULL"
    assert connection.sql(many).fetchall() == [(5000,)]
    with pytest.raises(InvalidInputError, match="its head is token-classification"):
        register(connection, make_file("tagger.onnx", task="token-classification"))


def test_spacy(make_file: Callable[..., Path]) -> None:
    spacy = pytest.importorskip("spacy")
    import edgebert.integrations.spacy  # noqa: F401

    tagger, path = make_file(task="token-classification"), make_file("embedding.onnx")
    texts = [*TEXTS[:4], "the route-r  is\noff. Water!"]
    expected = edgebert.load(tagger)(texts, aggregation_strategy="first")
    rows = edgebert.load(path).encode(texts)
    nlp = spacy.blank("en")
    nlp.add_pipe("edgebert_entities", config={"model": str(tagger), "load": {"threads": 1}})
    nlp.add_pipe("edgebert_vectors", config={"model": str(path)})
    found = list(nlp.pipe(texts))
    assert any(entities for entities in expected)
    for doc, text, entities, row in zip(found, texts, expected, rows, strict=True):
        assert doc._.edgebert_entities == entities
        of_label = {(entity["start"], entity["end"], entity["entity_group"]) for entity in entities}
        whole = {(token.idx, token.idx + len(token)) for token in doc}
        starts, ends = {start for start, _ in whole}, {end for _, end in whole}
        aligned = {entity for entity in of_label if entity[0] in starts and entity[1] in ends}
        mine = {(span.start_char, span.end_char, span.label_) for span in doc.ents}
        assert aligned <= mine or len(mine) < len(of_label)
        assert all(any(a < end and start < b for start, end, _ in of_label) for a, b, _ in mine)
        assert np.array_equal(doc.vector, row)
        one = nlp(text)
        assert [span.text for span in one.ents] == [span.text for span in doc.ents]
    assert found[0].similarity(found[1]) == pytest.approx(float(rows[0] @ rows[1]), abs=1e-5)
    saved = tagger.parent / "saved"
    nlp.to_disk(saved)
    assert np.array_equal(spacy.load(saved)(texts[0]).vector, rows[0])
    with pytest.raises(InvalidInputError, match="its head is embedding"):
        spacy.blank("en").add_pipe("edgebert_entities", config={"model": str(path)})


def test_mteb(prompted: Path, make_file: Callable[..., Path]) -> None:
    mteb = pytest.importorskip("mteb")
    from mteb.models import EncoderProtocol
    from mteb.types import PromptType

    from edgebert.integrations.mteb import EdgeBertEncoder

    model, ours = edgebert.load(prompted), EdgeBertEncoder(prompted, name="somebody/model")
    assert isinstance(ours, EncoderProtocol) and ours.mteb_model_meta.name == "somebody/model"
    batches = [{"text": TEXTS[:2]}, {"text": TEXTS[2:]}]
    for prompt_type, name in ((None, None), (PromptType.query, "query"), (PromptType.document, "passage")):
        found = ours.encode(batches, prompt_type=prompt_type)
        assert np.array_equal(found, model.encode(TEXTS, prompt_name=name))
    assert np.allclose(ours.similarity(found, found), found @ found.T, atol=1e-6)
    assert mteb
    with pytest.raises(InvalidInputError, match="its head is text-classification"):
        EdgeBertEncoder(make_file(task="text-classification"))


def test_mteb_evaluates(prompted: Path) -> None:
    mteb = pytest.importorskip("mteb")
    from mteb_tasks import make_classification, make_retrieval, make_similarity
    from scipy.stats import spearmanr

    from edgebert.integrations.mteb import EdgeBertEncoder

    model = edgebert.load(prompted)
    texts = [f"{text} {word}" for text in TEXTS[:3] for word in ("now", "again", "the router")]
    pairs, scores = list(zip(texts, texts[::-1], strict=True)), [0.5 * i for i in range(9)]
    labelled = [(f"{text} {i} .", label) for i in range(12) for label, text in enumerate(TEXTS[:2])]
    queries, corpus = (
        model.encode(part, prompt_name=name) for part, name in ((TEXTS[:3], "query"), (texts, "passage"))
    )
    found = edgebert.similarity(queries, corpus)
    places = np.argsort(-found, kind="stable")
    gaps = -np.diff(np.take_along_axis(found, places, 1), prepend=2, append=-2)
    ranks = np.minimum(gaps[:, :-1], gaps[:, 1:]).argmax(1)  # whose places rounding cannot change
    relevant = places[range(3), ranks].tolist()
    tasks = [
        make_similarity(pairs, scores),
        make_classification(labelled[:16], labelled[16:]),
        make_retrieval(TEXTS[:3], texts, relevant),
    ]
    found = mteb.evaluate(EdgeBertEncoder(prompted, name="somebody/model"), tasks, cache=None, co2_tracker=False)
    similar, classified, retrieved = (result.scores["test"][0] for result in found.task_results)
    rows = model.encode(texts)
    cosines = [float(edgebert.similarity(a[None], b[None])[0, 0]) for a, b in zip(rows, rows[::-1], strict=True)]
    assert similar["main_score"] == pytest.approx(spearmanr(cosines, scores)[0], abs=1e-6)
    assert classified["main_score"] == 1.0
    assert retrieved["main_score"] == pytest.approx(np.mean(1 / np.log2(ranks + 2)), abs=1e-5)


def test_padding_is_taken_off_and_gaps_are_refused() -> None:
    batch, mask = pack([[0, 5, 6], [7, 0, 0]], [[0, 1, 1], [1, 0, 0]], [[0, 1, 1], [0, 0, 0]])
    assert batch.input_ids.tolist() == [5, 6, 7] and batch.token_type_ids.tolist() == [1, 1, 0]
    assert batch.cu_seqlens.tolist() == [0, 2, 3] and mask.sum() == 3
    for rows, name in (([1, 0, 1], "in 2 parts"), ([0, 0, 0], "in 0 parts")):
        with pytest.raises(InvalidInputError, match=name):
            pack([[5, 6, 7]], [rows])
    with pytest.raises(InvalidInputError, match=r"got \[1, 2\], \[1, 3\] and \[1, 2\]"):
        pack([[5, 6]], [[1, 1, 1]])


OTHER_HEADS = {  # module -> (what is called with a file, its head, what the message names)
    "duckdb": [(lambda ours, path: ours.register(None, path), "token-classification", "edgebert.load")],
    "haystack": [
        (lambda ours, path: ours.EdgeBertRanker(str(path)).warm_up(), "embedding", "EdgeBertDocumentEmbedder"),
        (lambda ours, path: ours.EdgeBertTextEmbedder(str(path)).warm_up(), "text-classification", "EdgeBertRanker"),
    ],
    "langchain": [
        (lambda ours, path: ours.EdgeBertEmbeddings(path), "text-classification", "EdgeBertReranker"),
        (lambda ours, path: ours.EdgeBertReranker(path), "embedding", "EdgeBertEmbeddings"),
    ],
    "llama_index": [
        (lambda ours, path: ours.EdgeBertEmbedding(path), "text-classification", "EdgeBertRerank"),
        (lambda ours, path: ours.EdgeBertRerank(path), "embedding", "EdgeBertEmbedding"),
    ],
    "mteb": [(lambda ours, path: ours.EdgeBertEncoder(path), "fill-mask", "edgebert.load")],
    "polars": [
        (lambda ours, path: ours.embed("text", path), "text-classification", "classify"),
        (lambda ours, path: ours.classify("text", path), "embedding", "embed"),
    ],
    "sentence_transformers": [
        (lambda ours, path: ours.load(path), "text-classification", "EdgeBertCrossEncoder"),
        (lambda ours, path: ours.EdgeBertCrossEncoder(path), "embedding", "load"),
        (lambda ours, path: ours.EdgeBertModule(path), "question-answering", "edgebert.load"),
    ],
    "sklearn": [
        (lambda ours, path: ours.EdgeBertVectorizer(path).fit([]), "text-classification", "EdgeBertClassifier"),
        (lambda ours, path: ours.EdgeBertClassifier(path).fit([]), "embedding", "EdgeBertVectorizer"),
    ],
    "spacy": [
        (lambda ours, path: ours.EdgeBertVectors(path, {}, {}), "token-classification", "edgebert_entities"),
        (lambda ours, path: ours.EdgeBertEntities(path, {}, "expand", {}), "embedding", "edgebert_vectors"),
    ],
    "transformers": [
        (
            lambda ours, path: ours.EdgeBertModelForMaskedLM.from_pretrained(path.parent, file_name=path.name),
            "text-classification",
            "EdgeBertModelForSequenceClassification",
        )
    ],
}


@pytest.mark.parametrize("module", sorted(LIBRARIES))
def test_a_file_of_another_head_is_told_what_takes_it(module: str, make_file: Callable[..., Path]) -> None:
    try:
        need_library(module)
    except BackendUnavailableError as reason:
        pytest.skip(str(reason))
    ours = importlib.import_module(f"edgebert.integrations.{module}")
    for call, head, name in OTHER_HEADS[module]:
        with pytest.raises(InvalidInputError, match=f"its head is {head}: use .*{name}"):
            call(ours, make_file("other.onnx", task=head))
        assert name == "edgebert.load" or module == "spacy" or hasattr(ours, name)


def test_a_file_that_does_not_pool_is_told_how_it_is_exported(make_file: Callable[..., Path]) -> None:
    with pytest.raises(InvalidInputError, match="embedding:mean or :cls"):
        take_model(make_file(pooling="none", normalize=False), {}, "embedding")


@pytest.mark.parametrize("module", sorted(LIBRARIES))
@pytest.mark.parametrize("version", [None, "0.0.1", "99.0"])
def test_a_library_that_is_absent_or_does_not_fit_is_named(
    module: str, version: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    import importlib.metadata

    def find(name: str) -> str:
        if version is None:
            raise importlib.metadata.PackageNotFoundError(name)
        return version

    monkeypatch.setattr(importlib.metadata, "version", find)
    name, first, last = LIBRARIES[module]
    with pytest.raises(BackendUnavailableError) as error:
        need_library(f"edgebert.integrations.{module}")
    assert str(error.value).endswith(
        f"{module} needs {name} from release {first} to before {last}, found {version or 'none'}: "
        f"pip install 'edgebert[{name}]'"
    )
