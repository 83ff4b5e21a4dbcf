"""What all calls have in common: key, body, limits, errors in the interface's shape, request id, log and metrics."""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import itertools
import os
import re
import secrets
import sys
import time
import traceback
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import orjson
from starlette.types import Receive, Scope, Send

from edgebert.errors import EdgeBertError, InvalidInputError
from edgebert.serve.batcher import Answer, Work
from edgebert.serve.errors import ClientGoneError, RequestError
from edgebert.serve.metrics import Metrics
from edgebert.serve.models import Models, Served
from edgebert.serve.settings import Settings

Headers = list[tuple[bytes, bytes]]
Fields = dict[bytes, bytes]  # of a request
Shape = Callable[[int, str, str], tuple[int, Any]]  # (status, code, message) -> (the interface's status, its JSON)

JSON = b"application/json"
_REQUIRED: Any = object()
_ID = re.compile(rb"[\x21-\x7e]{1,128}")
_MAX_TOLD = 64  # truncated inputs that a header names
# Of a message: what is quoted, an input by its number, a word.
_PARTS = re.compile(r"""(?<!\w)'(?:[^'\\]|\\.)*'|"(?:[^"\\]|\\.)*"|\b(?:text|input|pair|row) (\d+)\b|\w+""")
_JSON_WORDS = {
    "str": "string",
    "dict": "object",
    "tuple": "list",
    "int": "integer",
    "float": "number",
    "bool": "boolean",
    "NoneType": "null",
    "None": "null",
    "True": "true",
    "False": "false",
}


class Context:
    """What the calls of one process share."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.metrics = Metrics()
        self.models = Models(settings, self.metrics)
        self.keys = Keys(settings.keys_file)
        self.held_bytes = 0
        start = secrets.token_hex(8)
        self.ids = (f"{start}{number:08x}".encode() for number in itertools.count())
        self.is_stopping = False  # a signal to stop has come


class Keys:
    """API keys out of a file, which is read again when it changes."""

    def __init__(self, path: str | None) -> None:
        self._path = path
        self._hashes: list[bytes] = []
        self._stamp: object = None
        self._looked = 0.0
        if path is not None:
            self._read(path)

    def check(self, headers: Fields) -> None:
        """Raise RequestError unless a request has one of the keys, if there are any to have."""
        if self._path is None:
            return
        if time.monotonic() - self._looked > 1.0:
            self._read(self._path)
        given = headers.get(b"authorization", b"")
        scheme, _, key = given.partition(b" ")
        digest = hashlib.sha256(key.strip()).digest()
        # every key is compared, in a time that does not tell how much of it was right
        found = [hmac.compare_digest(digest, known) for known in self._hashes]
        if scheme.lower() != b"bearer" or not any(found):
            raise RequestError(401, "unauthorized", "the request has no valid key: send Authorization: Bearer KEY")

    def _read(self, path: str) -> None:
        self._looked = time.monotonic()
        try:
            status = os.stat(path)
            stamp = status.st_mtime_ns, status.st_size, status.st_ino
            if stamp == self._stamp:
                return
            lines = [line.strip() for line in Path(path).read_text(encoding="utf-8-sig").splitlines()]
        except (OSError, UnicodeDecodeError) as error:
            if self._stamp is None:
                raise InvalidInputError(
                    f"the API keys in {path} cannot be read ({error}): give a text file with a key a line"
                ) from None
            return  # while it is being replaced; the keys before stay
        keys = [line for line in lines if line and not line.startswith("#")]
        if not keys and self._stamp is None:
            raise InvalidInputError(f"{path} holds no API key, so that nobody could ask: give one a line")
        self._stamp = stamp
        self._hashes = [hashlib.sha256(key.encode()).digest() for key in keys]


class Call:
    """One request, and what is known about it.

    Attributes:
        context: of the server.
        path: parameters in the path.
        query: the query string.
        data: the body, a JSON object; empty where the route takes none.
        headers: of the answer.
        words: the request's names of options, by the model's, for messages.
        name_input: the request's name of input i.
    """

    def __init__(self, context: Context, scope: Scope, receive: Receive) -> None:
        self.context, self._receive = context, receive
        self.path: dict[str, str] = scope.get("path_params", {})
        self.data: dict[str, Any] = {}
        self.headers: Headers = []
        self.words: dict[str, str] = {}
        self.name_input: Callable[[int], str] = "input {}".format
        self.num_texts = self.num_tokens = self.num_truncated = 0
        self._deadline = asyncio.get_running_loop().time() + context.settings.timeout
        self._body = b""
        self._held = 0

    async def read(self, headers: Fields) -> None:
        """Read the body as a JSON object.

        Raises:
            RequestError: it is too large, too slow, or something else.
            ClientGoneError: it does not come to an end.
        """
        settings = self.context.settings
        size = int(length) if (length := headers.get(b"content-length", b"")).isdigit() else 0
        is_large = size > settings.max_body_bytes
        if not (is_large and headers.get(b"expect", b"").lower() == b"100-continue"):
            try:
                async with asyncio.timeout_at(self._deadline):
                    is_large = await self._receive_body(is_large)
            except TimeoutError:
                raise RequestError(408, "timeout", f"the body did not arrive within {settings.timeout:g} s") from None
        if is_large:
            raise RequestError(
                413,
                "too_large",
                f"the body has more than {settings.max_body_bytes} bytes, which is the most this server takes: send "
                "it in parts",
            )
        try:
            data = orjson.loads(self._body)
        except orjson.JSONDecodeError as error:
            raise RequestError(400, "invalid_json", f"the body is not JSON: {error.msg}") from None
        if not isinstance(data, dict):
            raise RequestError(400, "invalid_json", f"the body must be a JSON object, got {_name(data)}")
        self.data = data

    async def _receive_body(self, is_large: bool) -> bool:
        """Read to the end, so that the client has sent everything when it is answered; keep it if it is not large."""
        parts: list[bytes] = []
        size = 0
        while True:
            message = await self._receive()
            if message["type"] == "http.disconnect":
                raise ClientGoneError("the client hung up")
            part = message.get("body", b"")
            size += len(part)
            is_large = is_large or size > self.context.settings.max_body_bytes
            if is_large:
                parts.clear()
                self.release()
            elif part:
                self._hold(len(part))
                parts.append(part)
            if not message.get("more_body", False):
                self._body = b"".join(parts)
                return is_large

    def _hold(self, size: int) -> None:
        if self.context.held_bytes + size > self.context.settings.max_held_bytes:
            raise RequestError(429, "overloaded", "the server holds too many bytes of requests: try again later", 1)
        self._held += size
        self.context.held_bytes += size

    def release(self) -> None:
        """Count the body no longer."""
        self.context.held_bytes -= self._held
        self._held = 0

    def take(self, name: str, *kinds: type, default: Any = _REQUIRED, data: dict[str, Any] | None = None) -> Any:
        """A field of the body, or of an object in it.

        Raises:
            RequestError: it is missing or of another kind; null counts as missing.
        """
        value = (self.data if data is None else data).get(name)
        if value is None:
            if default is _REQUIRED:
                raise RequestError(400, "missing_field", f"the request lacks {name!r}, which is {_names(kinds)}")
            return default
        if not isinstance(value, kinds) or (isinstance(value, bool) and bool not in kinds):
            raise RequestError(400, "wrong_type", f"{name!r} must be {_names(kinds)}, got {_name(value)}")
        return value

    def take_texts(self, name: str, value: Any, keyword: str | None = None) -> list[str]:
        """A list of strings, of one string a list of it.

        Raises:
            RequestError: something else.
        """
        texts = [value] if isinstance(value, str) else value
        if not isinstance(texts, list):
            raise RequestError(400, "wrong_type", f"{name!r} must be a string or a list of strings, got {_name(value)}")
        self.name_inputs(name, value)
        if keyword:
            texts = [text.get(keyword) if isinstance(text, dict) else text for text in texts]
        for i, text in enumerate(texts):
            if not isinstance(text, str):
                raise RequestError(400, "wrong_type", f"{name}[{i}] must be a string, got {_name(text)}")
        return texts

    def take_ids(self, name: str, value: Any) -> list[list[int]] | None:
        """Rows of token ids, of one row a list of it; None for what is something else."""
        if not isinstance(value, list):
            return None
        is_one = all(type(item) is int for item in value)
        rows = [value] if is_one else value
        if not all(isinstance(row, list) and all(type(item) is int for item in row) for row in rows):
            return None
        self.name_inputs(name, None if is_one else value)
        self.check_count(len(rows))
        return rows

    def name_inputs(self, name: str, value: Any) -> None:
        """In messages, call what is in `value` by the field it stands in."""
        self.name_input = f"{name}[{{}}]".format if isinstance(value, list) else lambda i: name

    def describe(self, error: EdgeBertError) -> str:
        """An error's message in the words of the request: its fields and JSON's types, but for what is quoted."""

        def rename(found: re.Match[str]) -> str:
            if found[1]:
                return self.name_input(int(found[1]))
            return self.words.get(found[0]) or _JSON_WORDS.get(found[0], found[0])

        return _PARTS.sub(rename, str(error))

    def check_count(self, num_texts: int) -> None:
        """Raise RequestError for more texts than a request may have."""
        if num_texts > self.context.settings.max_texts:
            raise RequestError(
                413,
                "too_many_texts",
                f"the request has {num_texts} texts, this server takes {self.context.settings.max_texts} at most: send "
                "it in parts",
            )
        self.num_texts = num_texts

    async def run(self, served: Served, work: Work, num_texts: int) -> Answer:
        """The model's answer.

        Raises:
            EdgeBertError: as `Batcher.run`.
        """
        self.check_count(num_texts)
        answer = await served.batcher.run(work, self._is_gone, self._deadline)
        self.num_tokens += answer.num_tokens
        if answer.truncated:
            self.num_truncated += len(answer.truncated)
            told = [*map(str, answer.truncated[:_MAX_TOLD]), *(["..."] if len(answer.truncated) > _MAX_TOLD else [])]
            self.headers.append((b"x-truncated-inputs", ",".join(told).encode()))
        return answer

    async def _is_gone(self) -> None:
        while (await self._receive())["type"] != "http.disconnect":
            pass
        raise ClientGoneError("the client hung up")


Handler = Callable[[Call], Awaitable[Any]]


class Endpoint:
    """A route as an ASGI application: everything around its handler."""

    def __init__(
        self, context: Context, route: str, handler: Handler, shape: Shape, has_body: bool = True, is_open: bool = False
    ) -> None:
        """Args: what calls share; the route's name; what answers; how errors look; if there is a body; if no key."""
        self._context, self._route, self._handler, self._shape = context, route, handler, shape
        self._has_body, self._is_open = has_body, is_open
        self._seconds = context.metrics.seconds.labels(route)
        self._statuses: dict[int, Any] = {}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request."""
        started = time.perf_counter()
        context, headers = self._context, dict(scope["headers"])
        call = Call(context, scope, receive)
        given = headers.get(b"x-request-id", b"")
        request_id = given if given and _ID.fullmatch(given) else next(context.ids)
        status, body, kind, code = 200, b"", JSON, ""
        try:
            if not self._is_open:
                context.keys.check(headers)
            if self._has_body:
                await call.read(headers)
            answer = await self._handler(call)
            if isinstance(answer, tuple):
                status, kind, answer = answer
            body = answer if isinstance(answer, bytes) else dump(answer)
        except ClientGoneError:
            status, code = 499, "client_gone"  # as nginx counts them
        except RequestError as error:
            code = error.code
            status, body = self._describe(error.status, code, call.describe(error))
            if error.retry_after is not None:
                call.headers.append((b"retry-after", str(error.retry_after).encode()))
        except EdgeBertError as error:
            code = "invalid_input"
            status, body = self._describe(400, code, call.describe(error))
        except Exception as error:
            code = "internal"
            where = "".join(traceback.format_tb(error.__traceback__))  # not the message, which may hold a text
            print(f"edgebert: request {request_id.decode()} failed: {type(error).__name__}\n{where}", file=sys.stderr)
            message = f"the server failed, and has logged why under the request id {request_id.decode()}"
            status, body = self._describe(500, code, message)
        finally:
            call.release()
        if status != 499:
            sent: Headers = [
                (b"content-type", kind),
                (b"content-length", str(len(body)).encode()),
                (b"x-request-id", request_id),
                *call.headers,
            ]
            if context.is_stopping or code in ("too_large", "timeout", "overloaded"):
                sent.append((b"connection", b"close"))
            await send({"type": "http.response.start", "status": status, "headers": sent})
            await send({"type": "http.response.body", "body": body})
        self._count(call, status, code, time.perf_counter() - started)
        if context.settings.access_log:
            self._log(call, scope, request_id, status, len(body), time.perf_counter() - started)

    def _describe(self, status: int, code: str, message: str) -> tuple[int, bytes]:
        status, answer = self._shape(status, code, message)
        return status, dump(answer)

    def _count(self, call: Call, status: int, code: str, seconds: float) -> None:
        metrics = self._context.metrics
        self._seconds.observe(seconds)
        if status not in self._statuses:
            self._statuses[status] = metrics.requests.labels(self._route, str(status))
        self._statuses[status].inc()
        if code:
            metrics.errors.labels(code).inc()
        if call.num_tokens:
            metrics.texts.inc(call.num_texts)
            metrics.tokens.inc(call.num_tokens)
            metrics.truncated.inc(call.num_truncated)

    def _log(self, call: Call, scope: Scope, request_id: bytes, status: int, size: int, seconds: float) -> None:
        """A line without texts: of the path the route, as the rest may be anything."""
        line = {
            "time": time.time(),
            "id": request_id.decode(),
            "client": scope["client"][0] if scope.get("client") else None,
            "method": scope["method"],
            "route": self._route,
            "status": status,
            "seconds": round(seconds, 6),
            "texts": call.num_texts,
            "tokens": call.num_tokens,
            "truncated": call.num_truncated,
            "bytes": size,
        }
        sys.stdout.buffer.write(orjson.dumps(line) + b"\n")
        sys.stdout.buffer.flush()


def dump(value: Any) -> bytes:
    """JSON; arrays are lists."""
    data: bytes = orjson.dumps(value, option=orjson.OPT_SERIALIZE_NUMPY)
    return data


def plain_shape(status: int, code: str, message: str) -> tuple[int, Any]:
    """Errors as Hugging Face's endpoints write them."""
    return status, {"error": message, "code": code}


_NAMES = {str: "a string", list: "a list", dict: "an object", bool: "a boolean", int: "an integer", float: "a number"}


def _names(kinds: tuple[type, ...]) -> str:
    return " or ".join(_NAMES[kind] for kind in kinds)


def _name(value: Any) -> str:
    return "null" if value is None else _NAMES[type(value)]
