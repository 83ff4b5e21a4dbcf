"""POST /models/NAME/TASK, with the pipelines' answers, and Cohere's POST /v1/rerank."""

from __future__ import annotations

import uuid
from typing import Any

import numpy as np

from edgebert.serve import tei
from edgebert.serve.calls import Call
from edgebert.serve.errors import RequestError
from edgebert.serve.models import Served, find_options, task_work
from edgebert.tasks import TASKS

NAMES = {  # other names of tasks, those of Hugging Face's pipelines among them
    "feature-extraction": "embedding",
    "sentiment-analysis": "text-classification",
    "ner": "token-classification",
}


async def run_task(call: Call) -> Any:
    """What `model(…)` answers to {"inputs": …, "parameters": {…}}."""
    task = NAMES.get(call.path["task"], call.path["task"])
    if task not in TASKS:
        known = ", ".join((*TASKS, *NAMES))
        raise RequestError(404, "unknown_task", f"there is no task {task!r:.100}; there are {known}")
    return await _answer(call, call.context.models.find(call.path["model"], task), task)


async def run_default(call: Call) -> Any:
    """POST /: what the first model is for."""
    served = call.context.models.find(call.take("model", str, default=None))
    if served.tasks[0] == "embedding":
        return await tei.embed(call)
    return await _answer(call, served, served.tasks[0])


async def _answer(call: Call, served: Served, task: str) -> Any:
    options = dict(call.take("parameters", dict, default={}))
    inputs: tuple[Any, ...]
    if task == "reranking":
        data = call.take("inputs", dict, default=call.data)
        texts = call.take_texts("documents", call.take("documents", list, data=data))
        inputs = call.take("query", str, data=data), texts
    else:
        given = call.take("inputs", *TASKS[task].single, list)
        inputs = (given,)
        call.name_inputs("inputs", given)
        if task == "embedding":
            # of Hugging Face's clients
            for name in ("normalize", "prompt_name", "truncate", "truncation_direction", "dimensions"):
                if name in call.data:
                    options[name] = call.data[name]
            options = _read_embedding_options(call, options)
    allowed = options.pop("truncate", True)  # as in pipelines here
    if not isinstance(allowed, bool):
        raise RequestError(400, "wrong_type", "'truncate' must be a boolean")
    known = find_options(task)
    if unknown := [name for name in options if name not in known]:
        raise RequestError(
            400, "unknown_field", f"{task} has no parameter {unknown[0]!r:.100}: it has {', '.join(known)} and truncate"
        )
    call.words["truncation"] = '"truncate": true'
    if task == "question-answering":  # pipelines' names, which go before our own
        call.words |= {
            ours: name
            for name, ours in {"max_seq_len": "max_length", "doc_stride": "stride"}.items()
            if name in options
        }
    call.check_count(len(inputs[-1]) if isinstance(inputs[-1], list) else 1)
    work, num_texts = task_work(served, task, inputs, options, allowed, unlists=True)
    answer = await call.run(served, work, num_texts)
    if task == "embedding":
        return np.ascontiguousarray(answer.value)
    # of a text alone Hugging Face's clients expect the labels in one list more than pipelines give
    return [answer.value] if task == "text-classification" and isinstance(inputs[0], str) else answer.value


def _read_embedding_options(call: Call, options: dict[str, Any]) -> dict[str, Any]:
    names = {"normalize": "normalize_embeddings", "dimensions": "truncate_dim"}
    call.words |= {ours: name for name, ours in names.items() if name in options}
    read = {names.get(name, name): value for name, value in options.items() if value is not None}
    if str(read.pop("truncation_direction", "right")).lower() != "right":
        raise RequestError(400, "invalid_value", "texts are truncated as the model's file says")
    return read


async def rerank(call: Call) -> Any:
    """POST /v1/rerank: documents in the order of their scores for a query, as Cohere answers."""
    served = call.context.models.find(call.take("model", str, default=None), "reranking")
    documents = call.take_texts("documents", call.take("documents", list), keyword="text")
    if not documents:
        raise RequestError(400, "invalid_value", "'documents' is empty: at least one was expected")
    options: dict[str, Any] = {"top_k": call.take("top_n", int, default=None)}
    if (longest := call.take("max_tokens_per_doc", int, default=None)) is not None:
        longest = min(longest, served.model.spec.max_length)
        options["max_length"] = longest
    returns = call.take("return_documents", bool, default=False)
    if len(served.model.spec.labels) > 1:
        options["label"] = call.take("label", str, default=None)
    call.words |= {"top_k": "top_n", "max_length": "max_tokens_per_doc"}
    call.check_count(len(documents))
    work, num_texts = task_work(
        served, "reranking", (call.take("query", str), documents), options, is_long_allowed=True, unlists=False
    )
    answer = await call.run(served, work, num_texts)
    told = {"truncated": answer.truncated} if answer.truncated else {}
    return {
        "id": str(uuid.uuid4()),
        "results": [
            {"index": found["corpus_id"], "relevance_score": found["score"]}
            | ({"document": {"text": documents[found["corpus_id"]]}} if returns else {})
            for found in answer.value
        ],
        "meta": {"api_version": {"version": "1"}, "billed_units": {"search_units": 1}},
        **told,
    }


def cohere_shape(status: int, code: str, message: str) -> tuple[int, Any]:
    """Errors as Cohere writes them."""
    return status, {"message": message, "code": code}
