"""`edgebert serve`: what clients of each interface are answered, with what bits, and what bad requests do."""

from __future__ import annotations

import base64
import contextlib
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from artifacts import random_artifact
from conftest import WORDS

import edgebert
from edgebert import cli

for package in ("httptools", "orjson", "prometheus_client", "starlette", "uvicorn"):
    pytest.importorskip(package)
httpx = pytest.importorskip("httpx2")

WAIT = 120.0  # for what a loaded machine does in the end
TASKS = {
    "embedder": {},
    "classifier": {"task": "text-classification"},
    "ranker": {"task": "text-classification", "num_labels": 1},
    "tagger": {"task": "token-classification"},
    "reader": {"task": "question-answering"},
    "masked": {"task": "fill-mask"},
    "pairs": {"task": "next-sentence"},
    "splade": {"pooling": "none", "normalize": False, "sparse_pooling": "max"},
}


class Server:
    """A server in a process of its own."""

    def __init__(self, arguments: list[str], log: Path) -> None:
        self.log = log
        with log.open("wb") as file:
            self.process = subprocess.Popen(
                [sys.executable, "-P", "-m", "edgebert", "serve", "--port", "0", *arguments], stdout=file, stderr=file
            )
        self.url = self.wait_for("serving on ").split()[0]
        self.client = httpx.Client(base_url=self.url, timeout=WAIT)
        self.wait(lambda: self.is_answering("/health"))

    def wait(self, is_done: Callable[[], Any]) -> Any:
        """Until something is so."""
        end = time.monotonic() + WAIT
        while not (found := is_done()):
            assert self.process.poll() is None and time.monotonic() < end, self.log.read_text()
            time.sleep(0.02)
        return found

    def wait_for(self, words: str) -> str:
        """What stands behind `words` in the log, once it does."""

        def find() -> str:
            assert self.process.poll() is None, self.log.read_text()
            _, found, rest = self.log.read_text().partition(words)
            return rest if found and "\n" in rest else ""

        return str(self.wait(find))

    def is_answering(self, path: str) -> bool:
        try:
            return bool(self.client.get(path).status_code == 200)
        except httpx.TransportError:
            return False

    def post(self, path: str, data: Any, status: int = 200, **options: Any) -> Any:
        """The answer's JSON."""
        body = data if isinstance(data, bytes) else json.dumps(data).encode()
        response = self.client.post(path, content=body, **options)
        assert response.status_code == status, response.text
        return response.json()

    def end(self) -> None:
        self.client.close()
        if self.process.poll() is None:
            self.process.terminate()

    def wait_for_its_end(self) -> None:
        try:
            assert self.process.wait(WAIT) is not None
        finally:
            self.process.kill()


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory, tokenizer_json: str) -> dict[str, str]:
    folder = tmp_path_factory.mktemp("models")
    for name, arguments in TASKS.items():
        random_artifact(folder / f"{name}.onnx", tokenizer_json=tokenizer_json, **arguments)  # type: ignore[arg-type]
    return {name: str(folder / f"{name}.onnx") for name in TASKS}


@pytest.fixture(scope="module")
def models(files: dict[str, str]) -> dict[str, edgebert.Model]:
    return {name: edgebert.load(path) for name, path in files.items()}


@pytest.fixture(scope="module")
def start(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[..., Server]]:
    """A function that starts a server and waits until it answers."""
    started: list[Server] = []

    def make(*arguments: object) -> Server:
        started.append(Server([str(word) for word in arguments], tmp_path_factory.mktemp("server") / "log"))
        return started[-1]

    yield make
    for server in started:
        server.end()
    for server in started:
        server.wait_for_its_end()


@pytest.fixture(scope="module")
def server(start: Callable[..., Server], files: dict[str, str]) -> Server:
    """One with a model for each task, and small limits."""
    limits = ("--max-body", 1 << 20, "--max-texts", 300, "--max-tokens", 4000, "--batch-tokens", 256, "--access-log")
    return start(*files.values(), *limits)


def make_texts(count: int, longest: int = 30, seed: int = 0) -> list[str]:
    rng = np.random.default_rng(seed)
    return [" ".join(rng.choice(WORDS[4:60], rng.integers(1, longest))) for _ in range(count)]


# The interfaces


def test_openai_embeddings(server: Server, models: dict[str, edgebert.Model]) -> None:
    texts = make_texts(3)
    expected = models["embedder"].encode(texts)
    answer = server.post("/v1/embeddings", {"model": "embedder", "input": texts})
    assert answer["object"] == "list" and answer["model"] == "embedder"
    assert [item["index"] for item in answer["data"]] == [0, 1, 2]
    np.testing.assert_array_equal(np.float32([item["embedding"] for item in answer["data"]]), expected)
    tokenizer = models["embedder"].tokenizer
    assert tokenizer
    rows = [row.input_ids.tolist() for row in tokenizer.make_rows(texts)[0]]
    assert answer["usage"] == {"prompt_tokens": sum(map(len, rows)), "total_tokens": sum(map(len, rows))}
    for given in (texts[0], [texts[0]], rows[0], rows[:1]):
        data = {"model": "embedder", "input": given, "encoding_format": "base64", "user": "x"}
        [item] = server.post("/v1/embeddings", data)["data"]
        np.testing.assert_array_equal(np.frombuffer(base64.b64decode(item["embedding"]), "<f4"), expected[0])
    [item] = server.post("/v1/embeddings", {"model": "embedder", "input": texts[0], "dimensions": 5})["data"]
    shorter = models["embedder"].encode(texts[:1], truncate_dim=5, normalize_embeddings=True)
    np.testing.assert_array_equal(np.float32([item["embedding"]]), shorter)
    listed = server.client.get("/v1/models").json()["data"]
    assert [model["id"] for model in listed] == list(TASKS)
    assert server.client.get("/v1/models/ranker").json()["id"] == "ranker"


def test_long_texts_are_told(server: Server, models: dict[str, edgebert.Model]) -> None:
    long = "a " * 200
    data = {"model": "embedder", "input": ["b", long]}
    error = server.post("/v1/embeddings", data, 400)["error"]
    assert error["code"] == "context_length_exceeded" and "input[1] has more than 80 tokens" in error["message"]
    answer = server.post("/v1/embeddings", {**data, "truncate_prompt_tokens": -1})
    assert answer["truncated"] == [1] and answer["usage"]["total_tokens"] == 83
    assert server.post("/v1/embeddings", {**data, "truncate_prompt_tokens": 7})["usage"]["total_tokens"] == 10
    assert server.post("/embed", {"inputs": long}, 413)["error_type"] == "Validation"
    response = server.client.post("/embed", json={"inputs": ["b", long], "truncate": True})
    assert response.headers["x-truncated-inputs"] == "1"
    with pytest.warns(UserWarning, match="truncated"):
        expected = models["embedder"].encode(["b", long])
    np.testing.assert_array_equal(np.float32(response.json()), expected)
    response = server.client.post("/models/embedder/embedding", json={"inputs": ["b", long]})
    assert response.status_code == 200 and response.headers["x-truncated-inputs"] == "1"
    server.post("/models/embedder/embedding", {"inputs": long, "parameters": {"truncate": False}}, 413)


def test_tei_routes(server: Server, models: dict[str, edgebert.Model]) -> None:
    texts = make_texts(4, seed=1)
    rows = models["embedder"].encode(texts)
    np.testing.assert_array_equal(np.float32(server.post("/embed", {"inputs": texts})), rows)
    np.testing.assert_array_equal(np.float32(server.post("/embed", {"inputs": texts[0]})), rows[:1])
    np.testing.assert_array_equal(np.float32(server.post("/", {"inputs": texts[0]})), rows[:1])
    tokenizer = models["embedder"].tokenizer
    assert tokenizer
    batch, _ = tokenizer.tokenize(texts)
    hidden = models["embedder"].forward(batch)["last_hidden_state"]
    of_tokens = server.post("/embed_all", {"inputs": texts})
    np.testing.assert_array_equal(np.concatenate([np.float32(part) for part in of_tokens]), hidden)
    similar = server.post("/similarity", {"inputs": {"source_sentence": texts[0], "sentences": texts[1:]}})
    np.testing.assert_array_equal(np.float32(similar), edgebert.similarity(rows[:1], rows[1:])[0])
    data = {"query": "router slow", "texts": texts}  # the first of one label answers
    ranked = models["ranker"].rank("router slow", texts)
    expected = [{"index": found["corpus_id"], "score": found["score"]} for found in ranked]
    assert server.post("/rerank", data) == expected
    raw = server.post("/rerank", {**data, "raw_scores": True, "return_text": True})
    assert [(item["index"], item["text"]) for item in raw] == [(i["index"], texts[i["index"]]) for i in expected]
    assert [item["score"] for item in raw] != [item["score"] for item in expected]
    by_label = server.post("/rerank", {**data, "model": "classifier", "label": "LABEL_1"})
    ranked = models["classifier"].rank("router slow", texts, label="LABEL_1")
    assert [item["index"] for item in by_label] == [found["corpus_id"] for found in ranked]
    labels = models["classifier"](texts, top_k=None)
    assert server.post("/predict", {"inputs": [[text] for text in texts]}) == labels
    assert server.post("/predict", {"inputs": texts[0]}) == labels[0]
    pair = models["classifier"]([(texts[0], texts[1])], top_k=None)
    assert server.post("/predict", {"inputs": texts[:2]}) == pair[0]
    assert server.post("/predict", {"inputs": [texts[:2]]}) == pair
    tokens = server.post("/tokenize", {"inputs": "the restarts slow"})[0]
    assert [token["special"] for token in tokens] == [True, False, False, False, True]
    assert [(token["text"], token["start"], token["stop"]) for token in tokens[1:3]] == [
        ("the", 0, 3),
        ("restarts", 4, 12),
    ]
    assert len(server.post("/tokenize", {"inputs": ["the"], "add_special_tokens": False})[0]) == 1
    assert server.post("/decode", {"ids": [[token["id"] for token in tokens]]}) == ["the restarts slow"]
    sparse = models["splade"](texts, return_arrays=True)
    assert server.post("/embed_sparse", {"inputs": texts}) == [
        [{"index": i, "value": w} for i, w in zip(ids.tolist(), weights.tolist(), strict=True)]
        for ids, weights in sparse
    ]
    info = server.client.get("/info").json()
    assert info["model_id"] == "embedder" and info["max_client_batch_size"] == 300
    assert info["model_type"] == {"embedding": {"pooling": "mean"}}


@pytest.mark.parametrize(
    ("name", "task", "data", "inputs", "options"),
    [
        ("embedder", "feature-extraction", {"inputs": "a b"}, ("a b",), {}),
        ("classifier", "text-classification", {"inputs": ["a", "b c"]}, (["a", "b c"],), {}),
        ("classifier", "sentiment-analysis", {"inputs": ["a"], "parameters": {"top_k": 2}}, (["a"],), {"top_k": 2}),
        (
            "classifier",
            "text-classification",
            {"inputs": {"text": "a", "text_pair": "b"}},
            ({"text": "a", "text_pair": "b"},),
            {},
        ),
        ("ranker", "reranking", {"query": "a", "documents": ["b", "c"]}, ("a", ["b", "c"]), {}),
        ("tagger", "ner", {"inputs": "a router über"}, ("a router über",), {}),
        (
            "tagger",
            "token-classification",
            {"inputs": ["a b", "c"], "parameters": {"aggregation_strategy": "first"}},
            (["a b", "c"],),
            {"aggregation_strategy": "first"},
        ),
        (
            "reader",
            "question-answering",
            {"inputs": {"question": "a", "context": "the router restarts"}},
            ({"question": "a", "context": "the router restarts"},),
            {},
        ),
        ("masked", "fill-mask", {"inputs": "the [MASK] is slow"}, ("the [MASK] is slow",), {}),
        ("masked", "rescoring", {"inputs": ["the router", "a b c"]}, (["the router", "a b c"],), {}),
        ("pairs", "next-sentence", {"inputs": [["a", "b"]]}, ([("a", "b")],), {}),
        ("classifier", "explain", {"inputs": "the router"}, ("the router",), {}),
        (
            "embedder",
            "explain",
            {"inputs": {"text": "a b", "text_pair": "c"}, "parameters": {"span_length": 2}},
            ({"text": "a b", "text_pair": "c"},),
            {"span_length": 2},
        ),
    ],
)
def test_tasks_answer_what_the_model_answers(
    server: Server,
    models: dict[str, edgebert.Model],
    name: str,
    task: str,
    data: dict[str, Any],
    inputs: tuple[Any, ...],
    options: dict[str, Any],
) -> None:
    names = {
        "feature-extraction": "embedding",
        "ner": "token-classification",
        "sentiment-analysis": "text-classification",
    }
    expected = models[name](*inputs, task=names.get(task, task), **options)
    answer = server.post(f"/models/{name}/{task}", data)
    if isinstance(expected, np.ndarray):
        np.testing.assert_array_equal(np.float32(answer), expected)
    else:
        assert answer == json.loads(json.dumps(expected))


def test_cohere_rerank(server: Server, models: dict[str, edgebert.Model]) -> None:
    texts = make_texts(4, seed=2)
    data = {"model": "ranker", "query": "a", "documents": [texts[0], {"text": texts[1]}, *texts[2:]], "top_n": 3}
    answer = server.post("/v1/rerank", {**data, "return_documents": True})
    ranked = models["ranker"].rank("a", texts, top_k=3)
    assert [(item["index"], item["relevance_score"]) for item in answer["results"]] == [
        (found["corpus_id"], found["score"]) for found in ranked
    ]
    assert answer["results"][0]["document"] == {"text": texts[ranked[0]["corpus_id"]]}
    assert "message" in server.post("/v1/rerank", {**data, "documents": []}, 400)


def test_the_same_bits_whatever_travels_in_the_batch(server: Server, models: dict[str, edgebert.Model]) -> None:
    texts = make_texts(120, 60, seed=3)
    expected = models["embedder"].encode(texts)
    tags = models["tagger"](texts[:40])
    labels = models["classifier"](texts[:40], top_k=None)

    def embed(part: slice) -> None:
        found = server.post("/embed", {"inputs": texts[part]})
        np.testing.assert_array_equal(np.float32(found), expected[part])

    def tag(i: int) -> None:
        assert server.post("/models/tagger/ner", {"inputs": texts[i]}) == tags[i]

    def classify(i: int) -> None:
        assert server.post("/predict", {"inputs": texts[i], "model": "classifier"}) == labels[i]

    with ThreadPoolExecutor(16) as pool:
        work = [pool.submit(embed, slice(i, i + 1)) for i in range(120)]
        work += [pool.submit(embed, slice(i, i + 60)) for i in (0, 30, 60)]  # more than a batch
        work += [pool.submit(tag, i) for i in range(40)] + [pool.submit(classify, i) for i in range(40)]
        for future in work:
            future.result()


# Limits and faults


@pytest.mark.parametrize("route", ["/v1/embeddings", "/embed", "/v1/rerank", "/models/embedder/embedding"])
@pytest.mark.parametrize(
    ("body", "words"),
    [
        (b"{", "not JSON"),
        (b"", "not JSON"),
        (b"[]", "must be a JSON object, got a list"),
        (b'{"input": NaN}', "not JSON"),
        (b'{"input": "\\ud800"}', "not JSON"),
        (b'{"input": "\xff"}', "not JSON"),
        (b"[" * 5000, "not JSON"),
        (b"{}", "lacks"),
    ],
)
def test_broken_bodies(server: Server, route: str, body: bytes, words: str) -> None:
    response = server.client.post(route, content=body)
    assert response.status_code in (400, 422)
    answer = response.json()
    error = answer.get("error", answer)
    assert words in (error if isinstance(error, str) else error["message"])


@pytest.mark.parametrize(
    ("route", "data"),
    [
        ("/v1/embeddings", {"model": "embedder", "input": 1}),
        ("/v1/embeddings", {"model": "embedder", "input": []}),
        ("/v1/embeddings", {"model": "embedder", "input": ["a", 1]}),
        ("/v1/embeddings", {"model": "embedder", "input": [[]]}),
        ("/v1/embeddings", {"model": "embedder", "input": [5, 10**30]}),
        ("/v1/embeddings", {"model": "embedder", "input": [5, -1]}),
        ("/v1/embeddings", {"model": "embedder", "input": [99999999]}),
        ("/v1/embeddings", {"model": "embedder", "input": [True]}),
        ("/v1/embeddings", {"model": "embedder", "input": "a", "dimensions": 0}),
        ("/v1/embeddings", {"model": "embedder", "input": "a", "dimensions": 1000}),
        ("/v1/embeddings", {"model": "embedder", "input": "a", "encoding_format": "hex"}),
        ("/v1/embeddings", {"model": "embedder", "input": "a", "truncate_prompt_tokens": 0}),
        ("/v1/embeddings", {"model": "ranker", "input": "a"}),
        ("/embed", {"inputs": {"a": "b"}}),
        ("/embed_all", {"inputs": "a", "model": "tagger"}),
        ("/embed", {"inputs": "a", "normalize": "yes"}),
        ("/embed", {"inputs": "a", "prompt_name": "none such"}),
        ("/embed", {"inputs": "a", "truncation_direction": "Left"}),
        ("/rerank", {"query": "a", "texts": ["b"], "model": "classifier"}),
        ("/predict", {"inputs": ["a", "b", "c"]}),
        ("/predict", {"inputs": [["a", "b", "c"]]}),
        ("/tokenize", {"inputs": [None]}),
        ("/decode", {"ids": ["a"]}),
        ("/decode", {"ids": [10**9]}),
        ("/models/tagger/ner", {"inputs": "a", "parameters": {"ignore_labels": 5}}),
        ("/models/tagger/ner", {"inputs": "a", "parameters": {"aggregation_strategy": {}}}),
        ("/models/classifier/text-classification", {"inputs": "a", "parameters": {"function_to_apply": []}}),
        ("/models/classifier/text-classification", {"inputs": "a", "parameters": {"nothing": 1}}),
        ("/models/classifier/text-classification", {"inputs": "a", "parameters": {"batch_tokens": 1}}),
        ("/models/reader/question-answering", {"inputs": {"question": "a"}}),
        ("/models/masked/fill-mask", {"inputs": "no mask"}),
        ("/models/masked/fill-mask", {"inputs": "[MASK]", "parameters": {"targets": 5}}),
        ("/models/masked/fill-mask", {"inputs": "[MASK]", "parameters": {"targets": [5]}}),
        ("/models/masked/rescoring", {"inputs": "a", "parameters": {"weight": "x"}}),
        ("/models/embedder/ner", {"inputs": "a"}),
    ],
)
def test_wrong_values_are_refused_with_a_reason(server: Server, route: str, data: Any) -> None:
    response = server.client.post(route, content=json.dumps(data))
    assert response.status_code in (400, 413, 422), response.text
    answer = response.json()["error"]
    assert len(answer if isinstance(answer, str) else answer["message"]) > 15


LONG = "a " * 200


@pytest.mark.parametrize(
    ("route", "data", "words"),
    [
        ("/v1/embeddings", {"input": "a", "dimensions": 500}, "dimensions is 500, the embeddings have"),
        ("/v1/embeddings", {"input": "a", "dimensions": -1}, "dimensions must be a positive integer"),
        ("/v1/embeddings", {"input": "a", "truncate_prompt_tokens": 500}, "truncate_prompt_tokens must be an integer"),
        ("/v1/embeddings", {"input": "a", "truncate_prompt_tokens": 1}, "truncate_prompt_tokens 1 has no room"),
        ("/v1/embeddings", {"input": LONG}, 'input has more than 80 tokens.*"truncate_prompt_tokens": -1'),
        ("/v1/embeddings", {"input": ["a", LONG]}, r"input\[1\] has more than 80 tokens"),
        ("/v1/embeddings", {"input": [[5], [10**6]]}, r"input\[1\]: token ids must be"),
        ("/v1/embeddings", {"input": [10**6]}, "input: token ids must be"),
        ("/embed", {"inputs": "a", "dimensions": 500}, "dimensions is 500"),
        ("/embed", {"inputs": ["a", LONG]}, r'inputs\[1\] has more than 80 tokens.*"truncate": true'),
        ("/embed", {"inputs": [[5], [10**6]]}, r"inputs\[1\]: token ids must be"),
        ("/embed", {"inputs": ["a", 5]}, r"inputs\[1\] must be a string, got an integer"),
        ("/embed_all", {"inputs": ["a", LONG]}, r"inputs\[1\] has more than 80 tokens"),
        ("/predict", {"inputs": [["a"], [LONG]], "model": "classifier"}, r"inputs\[1\] has more than 80 tokens"),
        ("/predict", {"inputs": ["a", LONG], "model": "classifier"}, "inputs has more than 80 tokens"),
        ("/rerank", {"query": "a", "texts": ["b", LONG]}, r"texts\[1\] has more than 80 tokens"),
        (
            "/rerank",
            {"query": "a", "texts": ["b"], "model": "classifier", "label": "x"},
            "label must be one of LABEL_0",
        ),
        ("/rerank", {"query": "a", "texts": ["b"], "model": "classifier"}, "label must be one of .*got null"),
        ("/v1/rerank", {"query": "a", "documents": ["b"], "top_n": 0}, "top_n must be a positive integer"),
        (
            "/v1/rerank",
            {"query": "a", "documents": ["b"], "max_tokens_per_doc": 0},
            "max_tokens_per_doc must be an int",
        ),
        (
            "/v1/rerank",
            {"query": "a", "documents": ["b"], "max_tokens_per_doc": 2},
            r"max_tokens_per_doc 2 has no room",
        ),
        ("/similarity", {"inputs": {"source_sentence": LONG, "sentences": ["b"]}}, "source_sentence has more than 80"),
        (
            "/similarity",
            {"inputs": {"source_sentence": "a", "sentences": ["b", LONG]}},
            r"sentences\[1\] has more than",
        ),
        ("/models/embedder/embedding", {"inputs": "a", "dimensions": 500}, "dimensions is 500"),
        ("/models/embedder/embedding", {"inputs": "a", "parameters": {"truncate_dim": 500}}, "truncate_dim is 500"),
        ("/models/embedder/embedding", {"inputs": {"a": "b"}}, "'inputs' must be a string or a list, got an object"),
        ("/models/embedder/embedding", {"inputs": ["a", None]}, r"inputs\[1\] must be a string, got null"),
        (
            "/models/tagger/ner",
            {"inputs": "a", "parameters": {"nothing": 1}},
            "has no parameter 'nothing': it has max_",
        ),
        (
            "/models/classifier/text-classification",
            {"inputs": "a", "parameters": {"top_k": 0}},
            "integer or null, got 0",
        ),
        ("/models/classifier/text-classification", {"inputs": ["a", ["b"]]}, r"inputs\[1\] must be a string or a pair"),
        ("/models/classifier/text-classification", {"inputs": [{"text": 5}]}, r"inputs\[0\] must be a string"),
        ("/models/reader/question-answering", {"inputs": {"question": "a", "context": ""}}, "inputs: context must be"),
        (
            "/models/reader/question-answering",
            {"inputs": {"question": "a", "context": LONG}, "parameters": {"max_seq_len": 3}},
            "max_seq_len 3 ",
        ),
        (
            "/models/reader/question-answering",
            {"inputs": {"question": LONG, "context": "a"}},
            "^inputs: max_length .* the first text of inputs taken off",
        ),
        ("/models/masked/fill-mask", {"inputs": ["[MASK]", "b"]}, r"inputs\[1\] has no \[MASK\]"),
        ("/models/masked/rescoring", {"inputs": ["a", 5]}, r"inputs\[1\]: expected a sentence .*got integer"),
        ("/models/pairs/next-sentence", {"inputs": ["a"]}, r"inputs\[0\]: expected a pair of texts"),
        ("/models/pairs/next-sentence", {"inputs": "text 1"}, "inputs: expected a pair"),
        ("/models/embedder/embedding", {"inputs": "a", "parameters": {"prompt_name": "text 1 None"}}, "'text 1 None'"),
    ],
)
def test_messages_have_the_requests_words(server: Server, route: str, data: dict[str, Any], words: str) -> None:
    data = {"model": "ranker" if "rerank" in route else "embedder", **data} if route != "/predict" else data
    if route.startswith("/models/"):
        data.pop("model")
    response = server.client.post(route, json=data)
    assert 400 <= response.status_code < 500
    answer = response.json()
    told = answer.get("error", answer)
    message = told if isinstance(told, str) else told["message"]
    assert re.search(words, message), message
    assert not re.search(r"\b(text \d|input \d|str|NoneType|None)\b", re.sub(r"'[^']*'", "", message)), message


def test_errors_have_teis_types(server: Server) -> None:
    for data, status, kind in (
        ({}, 422, "Validation"),
        ({"inputs": 5}, 422, "Validation"),
        ({"inputs": "a", "prompt_name": "none"}, 422, "Validation"),
        ({"inputs": []}, 400, "Empty"),
        ({"inputs": LONG}, 413, "Validation"),
    ):
        assert server.post("/embed", data, status)["error_type"] == kind


def test_what_is_too_much_is_refused_and_the_next_is_answered(server: Server) -> None:
    assert server.post("/embed", {"inputs": ["a"] * 100_000}, 413)["error_type"] == "Validation"
    assert "300" in server.post("/v1/embeddings", {"model": "embedder", "input": ["a"] * 301}, 413)["error"]["message"]
    many = {"model": "embedder", "input": ["a b c d e " * 12] * 100}
    assert server.post("/v1/embeddings", many, 413)["error"]["code"] == "too_many_tokens"
    masks = server.post("/models/masked/rescoring", {"inputs": ["a b c d e " * 14] * 5}, 413)
    assert masks["code"] == "too_many_tokens"  # its rows are made as they are taken
    million = {"inputs": "a " * 400_000, "truncate": True}
    assert len(server.post("/embed", million)) == 1
    assert server.post("/v1/embeddings", b'{"input": "' + b"a" * (5 << 20) + b'"}', 413)["error"]["code"] == "too_large"
    assert server.post("/embed", {"inputs": "a"})


def test_unknown_models_tasks_routes_and_methods(server: Server) -> None:
    error = server.post("/v1/embeddings", {"model": "gpt", "input": "a"}, 404)["error"]
    assert error["code"] == "model_not_found" and "embedder (embedding" in error["message"]
    assert server.post("/models/embedder/cooking", {"inputs": "a"}, 404)["code"] == "unknown_task"
    assert server.post("/nowhere", {}, 404)["error"]["code"] == "unknown_route"
    response = server.client.get("/embed")
    assert response.status_code == 405 and response.headers["allow"] == "POST"


def test_clients_that_hang_up_or_never_finish(server: Server) -> None:
    host, port = server.url.removeprefix("http://").split(":")
    body = json.dumps({"inputs": make_texts(200, seed=4)}).encode()
    head = f"POST /embed HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\n\r\n".encode()
    slow = [socket.create_connection((host, int(port)), WAIT) for _ in range(20)]
    for i, connection in enumerate(slow):  # stay open
        connection.sendall(head[: 5 + i] if i % 2 else head + body[:9])
    for i in range(60):
        with socket.create_connection((host, int(port)), WAIT) as connection:
            connection.sendall(head + body if i % 2 else head + body[: len(body) // 2])
    assert server.post("/embed", {"inputs": "a b"})
    for connection in slow:
        connection.close()


def test_what_is_on_the_wire(server: Server) -> None:
    host, port = server.url.removeprefix("http://").split(":")
    body = b'{"inputs": "a b"}'
    with socket.create_connection((host, int(port)), WAIT) as connection:
        connection.settimeout(WAIT)

        def ask(head: str, content: bytes = b"") -> bytes:
            connection.sendall(f"{head}\r\nHost: x\r\n\r\n".encode() + content)
            return connection.recv(1 << 16)

        post = f"POST /embed HTTP/1.1\r\nContent-Length: {len(body)}"
        head, _, answer = ask(post, body).partition(b"\r\n\r\n")  # both in one packet
        assert head.startswith(b"HTTP/1.1 200") and len(json.loads(answer)) == 1
        assert ask(f"{post}\r\nExpect: 100-continue") == b"HTTP/1.1 100 Continue\r\n\r\n"
        connection.sendall(body)
        assert connection.recv(1 << 16).partition(b"\r\n\r\n")[2] == answer
        assert ask("HEAD /health HTTP/1.1").startswith(b"HTTP/1.1 200")  # which has no body to wait for
        assert ask(post, body).endswith(answer)


def test_request_ids_metrics_and_logs_without_texts(server: Server) -> None:
    response = server.client.post("/embed", json={"inputs": "water roses"}, headers={"x-request-id": "my-id.1"})
    assert response.headers["x-request-id"] == "my-id.1"
    assert (
        server.client.post("/embed", json={}, headers={"x-request-id": "no good"}).headers["x-request-id"] != "no good"
    )
    lines = server.wait_for('"id":"my-id.1"')
    assert json.loads('{"id":"my-id.1"' + lines.splitlines()[0])["texts"] == 1
    text = server.client.get("/metrics").text
    assert 'edgebert_requests_total{route="/embed",status="200"}' in text
    for name in ("queue_seconds_count", "batch_tokens_sum", "tokens_total", "truncated_texts_total", "errors_total"):
        assert f"edgebert_{name}" in text
    assert "roses" not in server.log.read_text() and "Traceback" not in server.log.read_text()


def test_the_openapi_document_names_every_route(server: Server) -> None:
    document = server.client.get("/openapi.json").json()
    jsonschema = pytest.importorskip("jsonschema")
    for path, operations in document["paths"].items():
        for method, operation in operations.items():
            name = path.replace("{model}", "embedder")
            assert server.client.request(method, name, content=b"{}").status_code != 404
            schema = operation["responses"]["200"]["content"]["application/json"]["schema"]
            jsonschema.Draft202012Validator.check_schema(schema)
    assert {f"/models/{name}/embedding" for name in TASKS} & set(document["paths"]) == {"/models/embedder/embedding"}

    def find(path: str) -> Any:
        body = document["paths"][path]["post"]["requestBody"]["content"]["application/json"]["schema"]
        return body["properties"]["parameters"]["properties"]

    assert find("/models/classifier/explain")["label"] == {"enum": ["LABEL_0", "LABEL_1", "LABEL_2"]}
    assert find("/models/embedder/embedding")["max_length"]["maximum"] == 80
    assert "first" in find("/models/tagger/token-classification")["aggregation_strategy"]["enum"]
    answer = server.post("/v1/embeddings", {"model": "embedder", "input": "a"})
    schema = document["paths"]["/v1/embeddings"]["post"]["responses"]["200"]["content"]["application/json"]["schema"]
    jsonschema.validate(answer, schema)


def test_the_page_asks_nobody_else(server: Server) -> None:
    response = server.client.get("/")
    assert response.headers["content-type"].startswith("text/html")
    assert "default-src 'none'" in response.headers["content-security-policy"]
    assert "://" not in response.text.replace("http://www.w3.org/2000/svg", "")


# Operation


def test_keys_and_cors(start: Callable[..., Server], files: dict[str, str], tmp_path: Path) -> None:
    keys = tmp_path / "keys"
    keys.write_text("# ours\nfirst\nsecond\n")
    server = start(files["embedder"], "--api-keys", keys, "--cors", "http://page.example")
    data = {"model": "embedder", "input": "a"}

    def ask(key: str) -> int:
        response = server.client.post("/v1/embeddings", json=data, headers={"authorization": f"Bearer {key}"})
        return int(response.status_code)

    assert server.post("/v1/embeddings", data, 401)["error"]["type"] == "authentication_error"
    assert [ask(key) for key in ("first", "second", "third", "# ours")] == [200, 200, 401, 401]
    sparse = server.client.post("/embed_sparse", json={"inputs": "a"}, headers={"authorization": "Bearer first"})
    assert (sparse.status_code, sparse.json()["error_type"]) == (424, "Backend")
    assert server.client.get("/metrics").status_code == 401
    assert server.client.get("/health").status_code == 200
    keys.write_text("third\n")
    server.wait(lambda: ask("third") == 200)
    assert ask("first") == 401
    origin = {"origin": "http://page.example", "access-control-request-method": "POST"}
    assert server.client.options("/embed", headers=origin).headers["access-control-allow-origin"] == origin["origin"]
    origin["origin"] = "http://other.example"
    assert "access-control-allow-origin" not in server.client.options("/embed", headers=origin).headers


def test_a_full_queue_and_time_over(start: Callable[..., Server], files: dict[str, str]) -> None:
    server = start(
        files["masked"], "--max-waiting", 1, "--timeout", 1, "--max-tokens", 10**9, "--threads", 1, "--backend", "numpy"
    )
    long = {"inputs": make_texts(1000, 70, seed=5)}
    seen: list[tuple[int, str | None]] = []

    def ask() -> None:
        response = server.client.post("/models/masked/rescoring", json=long)
        seen.append((response.status_code, response.headers.get("retry-after")))

    threads = [threading.Thread(target=ask) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(WAIT)
    assert {status for status, _ in seen} == {429, 504}, seen
    assert all(retry and int(retry) >= 1 for status, retry in seen if status == 429)
    server.wait(lambda: server.client.post("/tokenize", json={"inputs": "a"}).status_code == 200)  # the queue is left


def hammer(server: Server, is_over: Callable[[], bool], start: Callable[[], None]) -> list[str]:
    """Ask, with several connections, until told to stop or the server closes them; what went wrong.

    `start` is called once each connection has been answered.
    """
    wrong: list[str] = []
    barrier = threading.Barrier(8, start)

    def ask() -> None:
        with httpx.Client(base_url=server.url, timeout=WAIT) as client:
            client.post("/embed", json={"inputs": "a"})
            barrier.wait(WAIT)
            while not is_over():
                try:
                    response = client.post("/embed", json={"inputs": "a b"})
                except httpx.TransportError as error:
                    wrong.append(repr(error))
                    return
                if response.status_code != 200:
                    wrong.append(response.text)
                if response.headers.get("connection") == "close":
                    return

    threads = [threading.Thread(target=ask) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(WAIT)
    return wrong


@pytest.mark.skipif(sys.platform == "win32", reason="signals")
@pytest.mark.parametrize("workers", [1, 2])
def test_sigterm_loses_no_request(start: Callable[..., Server], files: dict[str, str], workers: int) -> None:
    server = start(files["embedder"], "--drain", WAIT, "--workers", workers)
    server.client.close()
    assert hammer(server, lambda: False, server.process.terminate) == []
    assert server.process.wait(WAIT) == 0


@pytest.mark.skipif(sys.platform == "win32", reason="signals")
@pytest.mark.parametrize("workers", [1, 2])
def test_sighup_loads_again_and_loses_no_request(
    start: Callable[..., Server], files: dict[str, str], tmp_path: Path, tokenizer_json: str, workers: int
) -> None:
    path = tmp_path / "model.onnx"
    path.write_bytes(Path(files["embedder"]).read_bytes())
    server = start(f"mine={path}", "--workers", workers)
    before = server.post("/embed", {"inputs": "a b"})
    random_artifact(tmp_path / "new.onnx", seed=1, tokenizer_json=tokenizer_json)
    os.replace(tmp_path / "new.onnx", path)
    expected = edgebert.load(path).encode(["a b"]).tolist()
    done = threading.Event()

    def is_new() -> bool:
        found = np.float32(httpx.post(f"{server.url}/embed", json={"inputs": "a b"}, timeout=WAIT).json()).tolist()
        assert found in (expected, np.float32(before).tolist())
        return bool(found == expected)

    def reload() -> None:
        server.process.send_signal(signal.SIGHUP)
        with contextlib.suppress(AssertionError):
            server.wait(lambda: server.log.read_text().count("loaded again") == workers and is_new())
        done.set()

    thread = threading.Thread(target=reload)
    assert hammer(server, done.is_set, thread.start) == []
    thread.join(WAIT)
    assert is_new()
    path.write_bytes(b"damaged")
    server.process.send_signal(signal.SIGHUP)
    server.wait_for("the models stay as they are")
    assert is_new()


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="needs /proc")
def test_a_killed_worker_comes_back(start: Callable[..., Server], files: dict[str, str]) -> None:
    server = start(files["embedder"], "--workers", 2)

    def find_workers() -> set[int]:
        children = Path(f"/proc/{server.process.pid}/task/{server.process.pid}/children").read_text().split()
        names = {int(pid): Path(f"/proc/{pid}/cmdline") for pid in children}
        return {pid for pid, name in names.items() if name.exists() and b"spawn_main" in name.read_bytes()}

    workers = server.wait(lambda: found if len(found := find_workers()) == 2 else None)
    victim = min(workers)
    os.kill(victim, signal.SIGKILL)
    server.wait(lambda: len(find_workers() - {victim}) == 2)
    server.wait(lambda: server.is_answering("/health"))
    assert len(httpx.post(f"{server.url}/embed", json={"inputs": "a b"}, timeout=WAIT).json()) == 1


def test_an_address_that_is_taken_is_told_in_one_line(
    files: dict[str, str], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "certificate.pem").write_text("none")
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = str(other.getsockname()[1])
        for arguments, words in (
            (["--port", port], f"127.0.0.1:{port} cannot be listened on ("),
            (["--port", "0", "--host", "no.such.host.invalid"], "no.such.host.invalid:0 cannot be listened on ("),
            (["--ssl-certfile", str(tmp_path / "none.pem")], "none.pem (["),
            (["--ssl-certfile", str(tmp_path / "certificate.pem")], "certificate.pem (["),
            (["--ssl-keyfile", str(tmp_path / "certificate.pem")], "give --ssl-certfile too"),
        ):
            assert cli.main(["serve", files["embedder"], *arguments]) == 1
            told = capfd.readouterr().err
            assert told.startswith("edgebert: ") and words in told and told.count("\n") == 1, told


def test_what_cannot_be_served(
    files: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "embedder.onnx").write_bytes(b"no model")
    (tmp_path / "keys").write_text("# nobody yet\n\n")
    for arguments, words in (
        ([tmp_path / "embedder.onnx"], "embedder.onnx"),
        ([files["embedder"], tmp_path / "embedder.onnx"], "NAME=FILE"),
        ([files["embedder"], "--timeout", 0], "--timeout must be greater than 0"),
        ([files["embedder"], "--api-keys", tmp_path / "keys"], "keys holds no API key"),
        ([files["embedder"], "--drain", -1], "--drain must be 0 or greater, got -1.0"),
        ([files["embedder"], "--cors", "example.org"], "got 'example.org'"),
        ([files["embedder"], "--host", "a..b"], "a..b:0 cannot be listened on"),
        ([files["embedder"], "--api-keys", tmp_path / "none"], "none cannot be read"),
    ):
        assert cli.main(["serve", "--port", "0", *map(str, arguments)]) == 1
        told = capsys.readouterr().err
        assert words in told
        assert "serving on" not in told
    for name in ("orjson", "starlette"):
        monkeypatch.setitem(sys.modules, name, None)
    find = __import__("importlib.util").util.find_spec
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None if name == "orjson" else find(name))
    assert cli.main(["serve", files["embedder"]]) == 1
    assert "pip install 'edgebert[serve]'" in capsys.readouterr().err


START = """
import os, signal, sys, time
from edgebert import cli
from edgebert.serve import server


def die(settings):
    os.kill(os.getpid(), signal.SIGKILL)


if __name__ == "__main__":
    server.HEALTH_SECONDS = 1e6  # that no failure may wait for
    if sys.argv[1] == "die":
        server._make_app = die
    sys.exit(cli.main(sys.argv[2:]))
elif sys.argv[1] == "hang":  # a worker's imports
    open(f"loading-{os.getpid()}", "x").close()
    time.sleep(1e6)
"""


@pytest.mark.parametrize(
    ("how", "arguments", "words"),
    [
        ("fail", ["broken.onnx"], "edgebert: broken.onnx: "),
        ("fail", ["{embedder}", "--api-keys", "none"], "edgebert: the API keys in none cannot be read"),
        ("fail", ["{embedder}", "--threads", "0"], "edgebert: threads must be "),
        ("fail", ["{embedder}", "--ssl-certfile", "broken.onnx"], "edgebert: no certificate"),
        ("fail", ["{embedder}", "--port", "{taken}"], "edgebert: 127.0.0.1:{taken} cannot be listened on"),
        ("die", ["{embedder}"], "edgebert: a worker was ended by signal 9 before it had its models"),
    ],
)
def test_workers_that_cannot_start_say_so_at_once(
    files: dict[str, str], tmp_path: Path, how: str, arguments: list[str], words: str
) -> None:
    (tmp_path / "broken.onnx").write_bytes(b"no model")
    (tmp_path / "start.py").write_text(START)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        names = {**files, "taken": str(taken.getsockname()[1])}
        given = [word.format_map(names) for word in ["--port", "0", "--workers", "2", *arguments]]
        found = subprocess.run(
            [sys.executable, "-P", "start.py", how, "serve", *given],
            capture_output=True, text=True, timeout=WAIT, cwd=tmp_path, check=False,
        )  # fmt: skip
    assert found.returncode == 1
    assert found.stderr.startswith(words.format_map(names)) and found.stderr.count("\n") == 1, found.stderr


def test_ctrl_c_before_workers_serve_ends_them_without_a_word(files: dict[str, str], tmp_path: Path) -> None:
    (tmp_path / "start.py").write_text(START)
    command = [sys.executable, "-P", "start.py", "hang", "serve", "--port", "0", "--workers", "2", files["embedder"]]
    with subprocess.Popen(
        command, stderr=subprocess.PIPE, text=True, cwd=tmp_path, start_new_session=True
    ) as process:  # a terminal sends it to all processes of the group
        try:
            end = time.monotonic() + WAIT
            while len(list(tmp_path.glob("loading-*"))) < 2:
                assert process.poll() is None and time.monotonic() < end
                time.sleep(0.02)
            os.killpg(process.pid, signal.SIGINT)
            assert process.communicate(timeout=WAIT)[1] == "" and process.returncode == 0
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)


# Real clients


def test_the_client_of_openai(server: Server, models: dict[str, edgebert.Model]) -> None:
    openai = pytest.importorskip("openai")
    client = openai.OpenAI(base_url=f"{server.url}/v1", api_key="x", timeout=WAIT)
    texts = make_texts(3, seed=6)
    found = client.embeddings.create(model="embedder", input=texts)  # in base64, which it asks for by itself
    np.testing.assert_array_equal(np.float32([item.embedding for item in found.data]), models["embedder"].encode(texts))
    assert [model.id for model in client.models.list()] == list(TASKS)
    with pytest.raises(openai.BadRequestError, match="more than 80 tokens"):
        client.embeddings.create(model="embedder", input="a " * 200)
    with pytest.raises(openai.NotFoundError, match="served are"):
        client.embeddings.create(model="none", input="a")


def test_the_client_of_hugging_face(server: Server, models: dict[str, edgebert.Model]) -> None:
    hub = pytest.importorskip("huggingface_hub")
    client = hub.InferenceClient(timeout=WAIT)
    found = client.feature_extraction("a b", model=f"{server.url}/embed")
    np.testing.assert_array_equal(np.float32(found), models["embedder"].encode(["a b"]))
    labels = client.text_classification("a b", model=f"{server.url}/models/classifier/text-classification", top_k=3)
    assert [(item.label, item.score) for item in labels] == [
        (item["label"], item["score"]) for item in models["classifier"]("a b", top_k=3)
    ]
    question = {"question": "router slow", "context": "the router restarts"}
    answer = client.question_answering(**question, model=f"{server.url}/models/reader/question-answering")
    assert answer.answer == models["reader"](**question)["answer"]
