"""OpenAI's interface: POST /v1/embeddings, GET /v1/models."""

from __future__ import annotations

import base64
from typing import Any

from edgebert.serve.batcher import Work
from edgebert.serve.calls import Call
from edgebert.serve.errors import RequestError
from edgebert.serve.models import Served, ids_work, task_work


async def embeddings(call: Call) -> Any:
    """Embeddings of strings or token ids, as lists of numbers or as float32 in base64."""
    served = call.context.models.find(call.take("model", str), "embedding")
    encoding = call.take("encoding_format", str, default="float")
    if encoding not in ("float", "base64"):
        raise RequestError(400, "invalid_value", f"'encoding_format' must be float or base64, got {encoding!r:.100}")
    work, num_texts = _read_input(call, served)
    answer = await call.run(served, work, num_texts)
    rows = answer.value
    vectors = [base64.b64encode(row.tobytes()).decode() for row in rows] if encoding == "base64" else rows
    usage = {"prompt_tokens": answer.num_tokens, "total_tokens": answer.num_tokens}
    told = {"truncated": answer.truncated} if answer.truncated else {}
    return {
        "object": "list",
        "data": [{"object": "embedding", "index": i, "embedding": vector} for i, vector in enumerate(vectors)],
        "model": served.name,
        "usage": usage,
        **told,
    }


def _read_input(call: Call, served: Served) -> tuple[Work, int]:
    spec = served.model.spec
    given = call.take("input", str, list)
    options: dict[str, Any] = {}
    width = spec.output_width("sentence_embedding")[1]
    dimensions = call.take("dimensions", int, default=width)
    if dimensions != width:
        options |= {"truncate_dim": dimensions, "normalize_embeddings": True}
    cut = call.take("truncate_prompt_tokens", int, default=None)
    if cut is not None and cut != -1:
        options["max_length"] = cut
    is_long_allowed = cut is not None
    call.words |= {
        "truncate_dim": "dimensions",
        "max_length": "truncate_prompt_tokens",
        "truncation": '"truncate_prompt_tokens": -1',
    }
    if given == []:
        raise RequestError(400, "invalid_value", "'input' is empty: at least one text was expected")
    if (rows := call.take_ids("input", given)) is not None:
        return ids_work(served, rows, options, is_long_allowed), len(rows)
    texts = call.take_texts("input", given)
    call.check_count(len(texts))
    return task_work(served, "embedding", (texts,), options, is_long_allowed, unlists=False)


async def list_models(call: Call) -> Any:
    """All models."""
    return {"object": "list", "data": [_describe(served) for served in call.context.models]}


async def show_model(call: Call) -> Any:
    """One model."""
    return _describe(call.context.models.find(call.path["model"]))


def _describe(served: Served) -> dict[str, Any]:
    return {
        "id": served.name,
        "object": "model",
        "created": served.created,
        "owned_by": "edgebert",
        "tasks": served.tasks,
        "max_model_len": served.model.spec.max_length,
    }


def shape(status: int, code: str, message: str) -> tuple[int, Any]:
    """Errors as OpenAI writes them; a text that is too long is a bad request there."""
    if code == "too_long":
        status, code = 400, "context_length_exceeded"
    kinds = {401: "authentication_error", 429: "rate_limit_error"}
    kind = kinds.get(status, "server_error" if status >= 500 else "invalid_request_error")
    return status, {"error": {"message": message, "type": kind, "param": None, "code": code}}
