"""GET /openapi.json: the routes as an OpenAPI document, with the names of the models that are served."""

from __future__ import annotations

from typing import Any

import edgebert
from edgebert.artifact.spec import EncoderSpec
from edgebert.serve.calls import Context
from edgebert.serve.models import find_options
from edgebert.tasks import TASKS
from edgebert.tasks.text_classification import FUNCTIONS
from edgebert.tasks.token_classification import STRATEGIES

Schema = dict[str, Any]

_STRING: Schema = {"type": "string"}
_BOOLEAN: Schema = {"type": "boolean"}
_NUMBER: Schema = {"type": "number"}
_OBJECT: Schema = {"type": "object"}
_COUNT: Schema = {"type": "integer", "minimum": 1}
_IDS: Schema = {"type": "array", "items": {"type": "integer", "minimum": 0}, "minItems": 1}


def _list(items: Schema, least: int = 1) -> Schema:
    return {"type": "array", "items": items, "minItems": least}


def _object(required: dict[str, Schema], optional: dict[str, Schema] | None = None) -> Schema:
    return {"type": "object", "properties": {**required, **(optional or {})}, "required": list(required)}


_KINDS: dict[str, Schema] = {  # by annotation
    "int": _COUNT,
    "bool": _BOOLEAN,
    "float": _NUMBER,
    "str": _STRING,
    "str | Iterable[str]": {"oneOf": [_STRING, _list(_STRING)]},
    "Collection[str]": _list(_STRING, 0),
    "Sequence[int]": {"type": "array", "items": {"type": "integer", "minimum": 0}, "minItems": 2, "maxItems": 2},
}
_TEXTS: Schema = {"oneOf": [_STRING, _list(_STRING)]}
_INPUT: Schema = {"oneOf": [_STRING, _list(_STRING), _IDS, _list(_IDS)]}
_CUT: dict[str, Schema] = {"truncate": _BOOLEAN, "truncation_direction": {"enum": ["Right", "right"]}}
_VECTORS = _list(_list(_NUMBER), 0)
_LABELS = _list(_object({"label": _STRING, "score": _NUMBER}), 0)


def describe(context: Context) -> Schema:
    """The document."""
    name: Schema = {"type": "string", "enum": [served.name for served in context.models]}
    model = {"model": name}
    embed = {"normalize": _BOOLEAN, "prompt_name": _STRING, "dimensions": _COUNT, **_CUT, **model}
    pair = _list(_STRING)
    token = _object({"id": {"type": "integer"}, "text": _STRING, "special": _BOOLEAN})
    ranked = _object({"index": {"type": "integer"}, "score": _NUMBER}, {"text": _STRING})
    found = _object({"index": {"type": "integer"}, "relevance_score": _NUMBER}, {"document": _OBJECT})
    cohere = (
        _object(
            {"query": _STRING, "documents": _list({"oneOf": [_STRING, _object({"text": _STRING})]})},
            {"top_n": _COUNT, "return_documents": _BOOLEAN, "max_tokens_per_doc": _COUNT, "label": _STRING, **model},
        ),
        _object({"id": _STRING, "results": _list(found, 0)}),
    )
    posts: dict[str, tuple[str, Schema, Schema]] = {
        "/v1/embeddings": (
            "Embeddings, as OpenAI gives them",
            _object(
                {"input": _INPUT, "model": name},
                {
                    "encoding_format": {"enum": ["float", "base64"]},
                    "dimensions": _COUNT,
                    "truncate_prompt_tokens": {"type": "integer", "minimum": -1},
                    "user": _STRING,
                },
            ),
            _object({"object": _STRING, "data": _list(_OBJECT), "model": _STRING, "usage": _OBJECT}),
        ),
        "/v1/rerank": ("Documents in the order of a query, as Cohere gives them", *cohere),
        "/v2/rerank": ("The same", *cohere),
        "/embed": ("Embeddings", _object({"inputs": _INPUT}, embed), _VECTORS),
        "/embed_all": (
            "An embedding a token",
            _object({"inputs": _TEXTS}, {**_CUT, **model}),
            _list(_VECTORS, 0),
        ),
        "/embed_sparse": (
            "The weights of each text by token id",
            _object({"inputs": _TEXTS}, {"prompt_name": _STRING, **_CUT, **model}),
            _list(_list(_object({"index": {"type": "integer"}, "value": _NUMBER}), 0), 0),
        ),
        "/rerank": (
            "Texts in the order of a query",
            _object(
                {"query": _STRING, "texts": _list(_STRING)},
                {"raw_scores": _BOOLEAN, "return_text": _BOOLEAN, "label": _STRING, **_CUT, **model},
            ),
            _list(ranked, 0),
        ),
        "/predict": (
            "Labels and scores of a text, a pair, or of a list of them",
            _object({"inputs": {"oneOf": [_STRING, pair, _list(pair)]}}, {"raw_scores": _BOOLEAN, **_CUT, **model}),
            {"anyOf": [_LABELS, _list(_LABELS, 0)]},
        ),
        "/similarity": (
            "Cosines of a sentence with others",
            _object(
                {"inputs": _object({"source_sentence": _STRING, "sentences": _list(_STRING)})},
                {"parameters": _object({}, {"prompt_name": _STRING, **_CUT}), **model},
            ),
            _list(_NUMBER, 0),
        ),
        "/tokenize": (
            "Tokens of texts",
            _object({"inputs": _TEXTS}, {"add_special_tokens": _BOOLEAN, "prompt_name": _STRING, **model}),
            _list(_list(token, 0), 0),
        ),
        "/decode": (
            "Token ids as texts",
            _object({"ids": {"oneOf": [_IDS, _list(_IDS)]}}, {"skip_special_tokens": _BOOLEAN, **model}),
            _list(_STRING, 0),
        ),
        **{
            f"/models/{served.name}/{task}": (f"What {task} answers", _task_input(task, served.model.spec), {})
            for served in context.models
            for task in served.tasks
            if task in TASKS
        },
        "/": (
            "What the first model is for",
            _object({"inputs": {"oneOf": [_STRING, _list({}), _OBJECT]}}, {"parameters": _OBJECT}),
            {},
        ),
    }
    gets: dict[str, tuple[str, Schema]] = {
        "/v1/models": ("The models", _object({"object": _STRING, "data": _list(_OBJECT)})),
        "/v1/models/{model}": ("One model", _object({"id": _STRING, "object": _STRING})),
        "/info": ("The models and limits, as TEI tells them", _object({"model_id": _STRING})),
        "/health": ("Whether requests are welcome", _object({"status": _STRING})),
        "/live": ("Whether the process runs", _object({"status": _STRING})),
    }
    paths: dict[str, Any] = {}
    for path, (summary, given, answered) in posts.items():
        body = {"required": True, "content": {"application/json": {"schema": given}}}
        paths.setdefault(path, {})["post"] = _operation(path, summary, answered, name) | {"requestBody": body}
    for path, (summary, answered) in gets.items():
        paths.setdefault(path, {})["get"] = _operation(path, summary, answered, name)
    document: Schema = {
        "openapi": "3.1.0",
        "info": {"title": "EdgeBERT", "version": edgebert.__version__},
        "paths": paths,
    }
    if context.settings.keys_file:
        document["components"] = {"securitySchemes": {"key": {"type": "http", "scheme": "bearer"}}}
        document["security"] = [{"key": []}]
    return document


def _task_input(task: str, spec: EncoderSpec) -> Schema:
    """The body of POST /models/NAME/TASK, its parameters out of the task's `Options` and of what the file has."""
    pair = _object({"question": _STRING, "context": _STRING})
    both = {"oneOf": [_object({"text": _STRING, "text_pair": _STRING}), {**_list(_STRING, 2), "maxItems": 2}]}
    hypotheses = _object({"hypotheses": _list(_object({"text": _STRING, "score": _NUMBER}))})
    of_tasks: dict[str, Schema] = {
        "question-answering": pair,
        "text-classification": {"anyOf": [_STRING, both]},
        "next-sentence": both,
        "rescoring": {"oneOf": [_STRING, hypotheses]},
    }
    one = of_tasks.get(task, _STRING)
    if task == "explain":
        one = {"embedding": both, "pretraining": both, **of_tasks}.get(spec.task, _STRING)
    options = {name: _KINDS[kind.removesuffix(" | None")] for name, kind in find_options(task).items()}
    known = {
        "aggregation_strategy": {"enum": [*STRATEGIES]},
        "function_to_apply": {"enum": [*FUNCTIONS]},
        "label": {"enum": [*spec.labels]},
        "prompt_name": {"enum": [*spec.prompts]},
        "max_length": _COUNT | {"maximum": spec.usable_positions},
        "max_seq_len": _COUNT | {"maximum": spec.usable_positions},
    }
    options |= {name: schema for name, schema in known.items() if name in options and schema.get("enum") != []}
    parameters: Schema = {"type": "object", "properties": {**options, "truncate": _BOOLEAN}}
    if task == "reranking":
        return _object({"query": _STRING, "documents": _list(_STRING)}, {"parameters": parameters})
    return _object({"inputs": {"anyOf": [one, _list(one)]}}, {"parameters": parameters})


def _operation(path: str, summary: str, answered: Schema, name: Schema) -> dict[str, Any]:
    is_named = "{model}" in path
    parameters = [{"name": "model", "in": "path", "required": True, "schema": name}] if is_named else []
    content = {"application/json": {"schema": _OBJECT}}
    return {
        "summary": summary,
        "parameters": parameters,
        "responses": {
            "200": {"description": "The answer", "content": {"application/json": {"schema": answered}}},
            "4XX": {"description": "Refused, and why", "content": content},
            "5XX": {"description": "Not answered, and why", "content": content},
        },
    }
