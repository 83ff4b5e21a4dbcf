"""The interface of Hugging Face's Text Embeddings Inference."""

from __future__ import annotations

from typing import Any

import numpy as np

import edgebert
from edgebert.batch import PackedBatch
from edgebert.errors import InvalidInputError
from edgebert.serve.batcher import Answer, Work
from edgebert.serve.calls import Call
from edgebert.serve.errors import RequestError
from edgebert.serve.models import Served, all_tokens_work, ids_work, task_work
from edgebert.tasks.base import Outputs, Prepared
from edgebert.tasks.embedding import find_prompt
from edgebert.tokenizer import check_ids


async def embed(call: Call) -> Any:
    """POST /embed: an embedding a text, always a list of them."""
    served = _find(call, "embedding")
    given = call.take("inputs", str, list)
    if given == []:
        raise RequestError(400, "empty", "'inputs' is empty: at least one text was expected")
    rows = call.take_ids("inputs", given)
    texts = call.take_texts("inputs", given) if rows is None else []
    return np.ascontiguousarray((await _embed(call, served, texts, rows, call.data)).value)


async def _embed(
    call: Call, served: Served, texts: list[str], rows: list[list[int]] | None, data: dict[str, Any]
) -> Answer:
    """Embeddings of texts, or of rows of token ids, with the options in `data`."""
    options: dict[str, Any] = {"normalize_embeddings": call.take("normalize", bool, default=True, data=data)}
    if served.model.spec.normalize:
        options["normalize_embeddings"] = False  # the file does it: its own bits
    if (dimensions := call.take("dimensions", int, default=None, data=data)) is not None:
        width = served.model.spec.output_width("sentence_embedding")[1]
        if dimensions != width:
            options |= {"truncate_dim": dimensions, "normalize_embeddings": True}
            call.words["truncate_dim"] = "dimensions"
    is_long_allowed = _read_truncation(call, data)
    if rows is not None:
        return await call.run(served, ids_work(served, rows, options, is_long_allowed), len(rows))
    if (prompt_name := call.take("prompt_name", str, default=None, data=data)) is not None:
        options["prompt_name"] = prompt_name
    call.check_count(len(texts))
    return await call.run(served, *task_work(served, "embedding", (texts,), options, is_long_allowed, unlists=False))


async def embed_all(call: Call) -> Any:
    """POST /embed_all: the hidden states of every token, special tokens included."""
    served = _find(call, "embed-all")
    texts = _take_texts(call, "inputs")
    answer = await call.run(served, all_tokens_work(served, texts, _read_truncation(call, call.data)), len(texts))
    return answer.value


async def embed_sparse(call: Call) -> Any:
    """POST /embed_sparse: the weights of each text by token id, always a list of lists."""
    if not any("sparse-embedding" in one.tasks for one in call.context.models):
        raise RequestError(424, "no_sparse_head", "no model here has a head for sparse embeddings: use /embed")
    served = _find(call, "sparse-embedding")
    texts = _take_texts(call, "inputs")
    options: dict[str, Any] = {"return_arrays": True}
    if (prompt_name := call.take("prompt_name", str, default=None)) is not None:
        options["prompt_name"] = prompt_name
    allowed = _read_truncation(call, call.data)
    work, num_texts = task_work(served, "sparse-embedding", (texts,), options, allowed, unlists=False)
    answer = await call.run(served, work, num_texts)
    return [
        [{"index": i, "value": w} for i, w in zip(ids.tolist(), weights.tolist(), strict=True)]
        for ids, weights in answer.value
    ]


async def rerank(call: Call) -> Any:
    """POST /rerank: texts in the order of their scores for a query."""
    served = _find(call, "reranking")
    query = call.take("query", str)
    texts = _take_texts(call, "texts")
    options: dict[str, Any] = {"return_documents": call.take("return_text", bool, default=False)}
    if call.take("raw_scores", bool, default=False):
        options["function_to_apply"] = "none"
    if len(served.model.spec.labels) > 1:
        options["label"] = call.take("label", str, default=None)
    allowed = _read_truncation(call, call.data)
    answer = await call.run(served, *task_work(served, "reranking", (query, texts), options, allowed, unlists=False))
    return [
        {"index": found["corpus_id"], "score": found["score"]} | ({"text": found["text"]} if "text" in found else {})
        for found in answer.value
    ]


async def predict(call: Call) -> Any:
    """POST /predict: every label and its score, of a text, a pair, or a list of lists of one or two texts."""
    served = _find(call, "text-classification")
    given = call.take("inputs", str, list)
    is_single = isinstance(given, str) or (bool(given) and all(isinstance(text, str) for text in given))
    items = [given if isinstance(given, list) else [given]] if is_single else given
    for i, item in enumerate(items):
        if isinstance(item, str):
            continue
        if not isinstance(item, list) or len(item) not in (1, 2) or not all(isinstance(text, str) for text in item):
            raise RequestError(
                400,
                "wrong_type",
                f"'inputs'{'' if is_single else f'[{i}]'} must be a string, a list of one, or a pair of two; a list "
                "of texts is [[first], [second], …]",
            )
    if not items:
        raise RequestError(400, "empty", "'inputs' is empty: at least one text was expected")
    texts = [item if isinstance(item, str) else item[0] if len(item) == 1 else tuple(item) for item in items]
    options: dict[str, Any] = {"top_k": None}
    if call.take("raw_scores", bool, default=False):
        options["function_to_apply"] = "none"
    allowed = _read_truncation(call, call.data)
    call.name_inputs("inputs", None if is_single else given)
    call.check_count(len(texts))
    work, num_texts = task_work(served, "text-classification", (texts,), options, allowed, unlists=False)
    answer = await call.run(served, work, num_texts)
    return answer.value[0] if is_single else answer.value


async def similarity(call: Call) -> Any:
    """POST /similarity: the cosines of a sentence with others."""
    served = _find(call, "embedding")
    inputs = call.take("inputs", dict)
    source = call.take("source_sentence", str, data=inputs)
    sentences = call.take_texts("sentences", call.take("sentences", list, data=inputs))
    if not sentences:
        raise RequestError(400, "empty", "'sentences' is empty: at least one was expected")
    call.name_input = lambda i: f"sentences[{i - 1}]" if i else "source_sentence"
    data = call.take("parameters", dict, default={})
    answer = await _embed(call, served, [source, *sentences], None, {**call.data, **data})
    return edgebert.similarity(answer.value[:1], answer.value[1:])[0]


async def tokenize(call: Call) -> Any:
    """POST /tokenize: the tokens of texts, with the characters they stand for."""
    served = _find(call)
    texts = _take_texts(call, "inputs")
    has_special = call.take("add_special_tokens", bool, default=True)
    model, tokenizer = served.model, served.model.tokenizer
    assert tokenizer is not None
    before = ""
    if (prompt_name := call.take("prompt_name", str, default=None)) is not None:
        before = find_prompt(model.spec, prompt_name, None)

    def prepare() -> Prepared:
        return Prepared([], (), np.zeros(len(texts), np.bool_))

    def decode(outputs: Outputs) -> Any:
        tokens = tokenizer.tokenize_whole([before + text for text in texts], has_special)
        batch = PackedBatch(tokens.input_ids, tokens.token_type_ids, tokens.cu_seqlens)
        check_ids(batch, range(len(texts)), tokenizer, model.spec)
        assert tokens.offsets is not None and tokens.word_ids is not None
        answers = []
        for first, last in zip(tokens.cu_seqlens.tolist(), tokens.cu_seqlens[1:].tolist(), strict=False):
            part = slice(first, last)
            answers.append(
                [
                    {
                        "id": token,
                        "text": tokenizer.id_to_token(token),
                        "special": word < 0,
                        "start": None if word < 0 else start,
                        "stop": None if word < 0 else stop,
                    }
                    for token, word, (start, stop) in zip(
                        tokens.input_ids[part].tolist(),
                        tokens.word_ids[part].tolist(),
                        tokens.offsets[part].tolist(),
                        strict=True,
                    )
                ]
            )
        return answers

    return (await call.run(served, Work(prepare, decode, sum(map(len, texts)) // 3), len(texts))).value


async def decode(call: Call) -> Any:
    """POST /decode: token ids as texts."""
    served = _find(call)
    given = call.take("ids", list)
    rows = [given] if all(type(value) is int for value in given) else given
    skips = call.take("skip_special_tokens", bool, default=True)
    tokenizer = served.model.tokenizer
    assert tokenizer is not None
    for i, row in enumerate(rows):
        if not isinstance(row, list) or not all(type(value) is int and 0 <= value <= tokenizer.max_id for value in row):
            raise InvalidInputError(f"ids[{i}] must be a list of token ids from 0 to {tokenizer.max_id}")
    work = Work(
        lambda: Prepared([], (), np.zeros(len(rows), np.bool_)),
        lambda outputs: [tokenizer.decode(row, skips) for row in rows],
        sum(map(len, rows)) // 8,
    )
    return (await call.run(served, work, len(rows))).value


async def info(call: Call) -> Any:
    """GET /info: the first model, as TEI describes it, and all of them."""
    settings = call.context.settings
    served = call.context.models.find(None)
    return {
        "model_id": served.name,
        "model_sha": None,
        "model_dtype": "int8" if served.model.spec.is_int8 else "float32",
        "model_type": _describe_type(served),
        "max_concurrent_requests": settings.max_waiting,
        "max_input_length": served.model.spec.max_length,
        "max_batch_tokens": settings.batch_tokens,
        "max_batch_requests": None,
        "max_client_batch_size": settings.max_texts,
        "auto_truncate": settings.auto_truncate,
        "tokenization_workers": 1,
        "version": edgebert.__version__,
        "sha": None,
        "docker_label": None,
        "models": [
            {
                "name": one.name,
                "tasks": one.tasks,
                "max_input_length": one.model.spec.max_length,
                "backend": one.model.backend.detail,
                "labels": one.model.spec.labels,
            }
            for one in call.context.models
        ],
    }


def _describe_type(served: Served) -> dict[str, Any]:
    spec = served.model.spec
    if spec.task == "embedding":
        return {"embedding": {"pooling": "splade" if spec.outputs[1:] == ("sparse_embedding",) else spec.pooling}}
    ids = {str(i): label for i, label in enumerate(spec.labels)}
    described = {"id2label": ids, "label2id": {label: int(i) for i, label in ids.items()}}
    return {"reranker" if len(ids) == 1 else "classifier": described}


def shape(status: int, code: str, message: str) -> tuple[int, Any]:
    """Errors as TEI writes them."""
    kinds = {424: "Backend", 429: "Overloaded", 500: "Backend", 503: "Unhealthy", 504: "Overloaded"}
    if status == 400 and code not in ("empty", "invalid_json"):
        status = 422
    return status, {"error": message, "error_type": kinds.get(status, "Empty" if code == "empty" else "Validation")}


def _find(call: Call, *tasks: str) -> Served:
    return call.context.models.find(call.take("model", str, default=None), *tasks)


def _take_texts(call: Call, name: str) -> list[str]:
    texts = call.take_texts(name, call.take(name, str, list))
    if not texts:
        raise RequestError(400, "empty", f"{name!r} is empty: at least one text was expected")
    call.check_count(len(texts))
    return texts


def _read_truncation(call: Call, data: dict[str, Any]) -> bool:
    side = call.take("truncation_direction", str, default="Right", data=data)
    if side.lower() != "right":
        raise RequestError(
            400, "invalid_value", "'truncation_direction' must be Right: texts are truncated as the model's file says"
        )
    call.words["truncation"] = '"truncate": true'
    allowed: bool = call.take("truncate", bool, default=call.context.settings.auto_truncate, data=data)
    return allowed
