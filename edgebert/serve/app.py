"""The application: every route, and what happens at start and stop."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator
from importlib import resources
from typing import Any

from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send

from edgebert.serve import openai, plain, tei
from edgebert.serve.calls import JSON, Call, Context, Endpoint, Handler, Shape, dump, plain_shape
from edgebert.serve.openapi import describe
from edgebert.serve.settings import Settings
from edgebert.serve.signals import Signals

_POLICY = (
    b"default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; connect-src 'self'; img-src data:"
)


def make_app(settings: Settings) -> ASGIApp:
    """The application of one process, with its models loaded.

    Raises:
        EdgeBertError: a model cannot be loaded, or the file of keys cannot be read.
    """
    context = Context(settings)
    loaded = context.models.read()

    posts: dict[str, ASGIApp] = {}

    def post(path: str, handler: Handler, shape: Shape = tei.shape) -> Route:
        endpoint = Endpoint(context, path, handler, shape)
        if "{" not in path:
            posts[path] = endpoint
        return Route(path, endpoint, methods=["POST"])

    def get(path: str, handler: Handler, shape: Shape = plain_shape, is_open: bool = False) -> Route:
        return Route(path, Endpoint(context, path, handler, shape, has_body=False, is_open=is_open), methods=["GET"])

    routes = [
        post("/v1/embeddings", openai.embeddings, openai.shape),
        post("/embed", tei.embed),
        post("/rerank", tei.rerank),
        post("/predict", tei.predict),
        post("/models/{model}/{task}", plain.run_task, plain_shape),
        post("/v1/rerank", plain.rerank, plain.cohere_shape),
        post("/v2/rerank", plain.rerank, plain.cohere_shape),
        post("/embed_all", tei.embed_all),
        post("/embed_sparse", tei.embed_sparse),
        post("/similarity", tei.similarity),
        post("/tokenize", tei.tokenize),
        post("/decode", tei.decode),
        post("/", plain.run_default, plain_shape),
        get("/", _show_page, is_open=True),
        get("/health", _check_health, is_open=True),
        get("/live", _check_life, is_open=True),
        get("/info", tei.info),
        get("/metrics", _show_metrics),
        get("/openapi.json", _show_openapi),
        get("/v1/models", openai.list_models, openai.shape),
        get("/v1/models/{model}", openai.show_model, openai.shape),
    ]

    @contextlib.asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        context.models.put(loaded)
        loaded.clear()
        with Signals(context):
            yield
        context.models.close()

    app = Starlette(
        routes=routes,
        lifespan=lifespan,
        exception_handlers={404: _not_found, 405: _not_allowed},
        middleware=[
            Middleware(
                CORSMiddleware,
                allow_origins=list(settings.cors),
                allow_methods=["GET", "POST"],
                allow_headers=["authorization", "content-type", "x-request-id"],
                expose_headers=["x-request-id", "x-truncated-inputs", "retry-after"],
            )
        ]
        if settings.cors
        else [],
    )

    async def answer(scope: Scope, receive: Receive, send: Send) -> None:
        """What is asked most is found at once: Starlette tries its routes in turn."""
        endpoint = posts.get(scope["path"]) if scope["type"] == "http" and scope["method"] == "POST" else None
        await (endpoint or app)(scope, receive, send)

    return app if settings.cors else answer


async def _check_health(call: Call) -> Any:
    """Whether requests are welcome: not once the server stops; before models are loaded it does not listen."""
    context = call.context
    if context.is_stopping:
        return 503, JSON, {"status": "stopping"}
    return 200, JSON, {"status": "ready"}


async def _check_life(call: Call) -> Any:
    return {"status": "alive"}


async def _show_metrics(call: Call) -> Any:
    for served in call.context.models:
        call.context.metrics.waiting.labels(served.name).set(served.batcher.num_waiting)
    return 200, b"text/plain; version=0.0.4; charset=utf-8", call.context.metrics.render()


async def _show_openapi(call: Call) -> Any:
    return describe(call.context)


async def _show_page(call: Call) -> Any:
    call.headers.append((b"content-security-policy", _POLICY))
    page = resources.files("edgebert.serve").joinpath("page.html").read_bytes()
    return 200, b"text/html; charset=utf-8", page


async def _not_found(request: Request, error: Exception) -> Response:
    return _refuse(404, "unknown_route", "there is no such route: GET /openapi.json lists them")


async def _not_allowed(request: Request, error: Exception) -> Response:
    allowed = getattr(error, "headers", None) or {}
    message = f"this route does not take {request.method}, but {allowed.get('Allow', 'another method')}"
    return _refuse(405, "wrong_method", message, allowed)


def _refuse(status: int, code: str, message: str, headers: Any = None) -> Response:
    # clients of OpenAI read error.message, others error
    return Response(dump({"error": {"message": message, "code": code}}), status, headers, "application/json")
