"""What a server is told when it starts."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Models, addresses and limits.

    Attributes:
        models: (name, path) of each.
        backend: as for `edgebert.load`, and
        device: as there, and
        threads: as there.
        host: to listen on, and
        port: 0 for any free one.
        workers: processes, each with the models.
        batch_tokens: tokens of one forward pass.
        max_body_bytes: of a request.
        max_texts: texts, pairs or documents of a request.
        max_tokens: of a request.
        max_waiting: requests that wait for one model.
        max_held_bytes: of the bodies of all requests that are being received or answered.
        timeout: seconds until a request is answered, from its first byte.
        drain: seconds after SIGTERM in which open connections may bring further requests.
        auto_truncate: truncate texts where a client of the TEI routes does not say.
        keys_file: API keys, one a line; None: everybody may ask.
        cors: origins whose pages may ask.
        access_log: write a line of JSON for each request to standard output.
        ssl_certfile: for TLS, and
        ssl_keyfile: its key.
    """

    models: tuple[tuple[str, str], ...]
    backend: str = "auto"
    device: str = "cpu"
    threads: int | None = None
    host: str = "127.0.0.1"
    port: int = 8080
    workers: int = 1
    batch_tokens: int = 4096
    max_body_bytes: int = 8 << 20
    max_texts: int = 2048
    max_tokens: int = 300_000
    max_waiting: int = 512
    max_held_bytes: int = 64 << 20
    timeout: float = 60.0
    drain: float = 5.0
    auto_truncate: bool = False
    keys_file: str | None = None
    cors: tuple[str, ...] = ()
    access_log: bool = False
    ssl_certfile: str | None = None
    ssl_keyfile: str | None = None
