"""Load on `edgebert serve` and on other servers of the same model: texts a second, latencies and memory, in turns.

Servers run on one half of the CPUs and the client on the other, over the loopback interface. All are started and
checked first: EdgeBERT's answers have the bits of `model.encode`, the others' point the same way. Then they take turns.
infinity-emb and sentence-transformers (behind a plain Starlette application) run in a Python of their own, which
`--peers-python` names; without it they are left out.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

import edgebert
from benchmarks import ROOT, describe_run, write_result

SETTINGS = ((1, 1), (8, 1), (64, 1), (1, 32), (8, 32))  # (requests at a time, texts of each)
TOKENS = 16
BODIES = 512  # different requests
WORDS = (
    *("the", "of", "and", "to", "in", "is", "was", "for", "on", "that", "by", "with", "as", "are", "from", "at", "his"),
    *("water", "river", "house", "city", "music", "school", "church", "family", "group", "company", "light", "night"),
    *("red", "green", "small", "large", "old", "new", "had", "also", "but", "not", "one", "their", "were", "which"),
)
STARTUP_SECONDS = 180.0
SENTENCE_TRANSFORMERS = """
import sys
import anyio, torch, uvicorn
from sentence_transformers import SentenceTransformer
from starlette.applications import Starlette
from starlette.responses import JSONResponse
from starlette.routing import Route
torch.set_num_threads(int(sys.argv[3]))
model = SentenceTransformer(sys.argv[1], device="cpu")
async def embed(request):
    texts = (await request.json())["input"]
    rows = await anyio.to_thread.run_sync(model.encode, texts)
    return JSONResponse({"data": [{"embedding": row} for row in rows.tolist()]})
app = Starlette(routes=[Route("/v1/embeddings", embed, methods=["POST"])])
uvicorn.run(app, port=int(sys.argv[2]), log_level="error")
"""


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.serving", description=__doc__.splitlines()[0])
    parser.add_argument("model", type=Path, help="an exported embedding file with its tokenizer inside")
    parser.add_argument("--checkpoint", type=Path, help="the folder it was made from, for the other servers")
    parser.add_argument("--peers-python", type=Path, help="a Python with infinity-emb and sentence-transformers")
    parser.add_argument("--infinity-engine", default="torch", choices=("torch", "optimum"), help="(default: torch)")
    parser.add_argument("--seconds", type=float, default=4.0, help="of a turn (default: 4)")
    parser.add_argument("--rounds", type=int, default=5, help="turns of each (default: 5)")
    parser.add_argument(
        "--soak", type=int, default=0, metavar="N", help="then N requests of a text to EdgeBERT, for its memory"
    )
    parser.add_argument("--quick", action="store_true", help="one turn of a second")
    parser.add_argument("--out", type=Path, help="write JSON here instead of printing it")
    args = parser.parse_args()
    seconds, rounds = (1.0, 1) if args.quick else (args.seconds, args.rounds)

    cpus = sorted(os.sched_getaffinity(0))
    half = max(1, len(cpus) // 2)
    server_cpus, client_cpus = cpus[:half], cpus[half:] or cpus
    result = describe_run("benchmarks.serving") | {"server_cpus": server_cpus, "client_cpus": client_cpus}
    result |= {"tokens": TOKENS, "seconds_of_a_turn": seconds, "rounds": rounds}
    bare = measure_bare(args.model, server_cpus, args.quick)
    os.sched_setaffinity(0, client_cpus)
    model = edgebert.load(args.model, threads=1)
    texts = make_texts(model, max(count for _, count in SETTINGS))
    commands = list_servers(args, len(server_cpus))
    servers = []
    try:
        for name, command in commands.items():
            servers.append(Server(name, command, server_cpus))
        for server in servers:
            server.wait()
            check(server, model, texts)
        table: dict[str, dict[str, Any]] = {server.name: {} for server in servers}
        for concurrency, count in SETTINGS:
            taken: dict[str, list[tuple[int, list[float], float]]] = {server.name: [] for server in servers}
            bodies = [json.dumps({"model": "model", "input": texts[i][:count]}).encode() for i in range(BODIES)]
            for _ in range(rounds):
                for server in servers:
                    run(server, bodies, concurrency, seconds / 4)  # warm
                    taken[server.name].append(run(server, bodies, concurrency, seconds))
            for server in servers:
                times = np.concatenate([latencies for _, latencies, _ in taken[server.name]]) * 1e3
                table[server.name][f"{concurrency} x {count}"] = {
                    "texts_per_second": float(np.median([n * count / wall for n, _, wall in taken[server.name]])),
                    "p50_ms": float(np.percentile(times, 50)),
                    "p99_ms": float(np.percentile(times, 99)),
                    "requests": len(times),
                }
        if args.soak:
            bodies = [json.dumps({"model": "model", "input": given[0]}).encode() for given in texts]
            before = servers[0].read_bytes("VmRSS")
            run(servers[0], bodies, 8, float("inf"), args.soak)
            after = servers[0].read_bytes("VmRSS")
            result["soak"] = {"requests": args.soak, "mb_before": before / 1e6, "mb_after": after / 1e6}
            result["soak"]["load_average"] = os.getloadavg()
        for server in servers:
            table[server.name]["peak_mb"] = server.read_bytes("VmHWM") / 1e6
    finally:
        for server in servers:
            server.stop()
    write_result(args.out, result | {"bare": bare, "servers": table})


def make_texts(model: edgebert.Model, count: int) -> list[list[str]]:
    """BODIES lists of `count` different texts of TOKENS tokens."""
    assert model.tokenizer is not None
    single = [word for word in WORDS if len(model.tokenizer.find_pieces(word)) == 1]
    rng = np.random.default_rng(0)
    texts = [[" ".join(rng.choice(single, TOKENS - 2)) for _ in range(count)] for _ in range(BODIES)]
    rows, _ = model.tokenizer.make_rows(texts[0])
    assert {len(row.input_ids) for row in rows} == {TOKENS}
    return texts


def list_servers(args: argparse.Namespace, threads: int) -> dict[str, list[str]]:
    """Command lines by name; {port} is to be filled in."""
    ours = [sys.executable, "-m", "edgebert", "serve", f"model={args.model.resolve()}", "--port", "{port}"]
    commands = {"edgebert": ours, "edgebert, onnxruntime": [*ours, "--backend", "onnxruntime"]}
    if args.peers_python and args.checkpoint:
        folder, python = str(args.checkpoint.resolve()), str(args.peers_python.absolute())
        commands["infinity-emb"] = [
            *(str(Path(python).with_name("infinity_emb")), "v2", "--model-id", folder, "--served-model-name", "model"),
            *("--engine", args.infinity_engine, "--device", "cpu", "--port", "{port}", "--url-prefix", "/v1"),
            "--no-bettertransformer",
        ]
        commands["sentence-transformers"] = [python, "-c", SENTENCE_TRANSFORMERS, folder, "{port}", str(threads)]
    return commands


class Server:
    """A server on CPUs of its own."""

    def __init__(self, name: str, command: Sequence[str], cpus: Sequence[int]) -> None:
        self.name = name
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.log = tempfile.TemporaryFile("w+")  # noqa: SIM115
        environment = {**os.environ, "OMP_NUM_THREADS": str(len(cpus)), "HF_HUB_OFFLINE": "1", "DO_NOT_TRACK": "1"}
        self.process = subprocess.Popen(
            [word.replace("{port}", str(self.port)) if "{port}" in word else word for word in command],
            cwd=ROOT,
            env=environment,
            stdout=self.log,
            stderr=self.log,
            preexec_fn=lambda: os.sched_setaffinity(0, cpus),
        )

    def wait(self) -> None:
        """Until it listens."""
        end = time.monotonic() + STARTUP_SECONDS
        while True:
            try:
                socket.create_connection(("127.0.0.1", self.port)).close()
                return
            except OSError:
                if self.process.poll() is not None or time.monotonic() > end:
                    self.log.seek(0)
                    raise SystemExit(f"{self.name} did not start:\n{self.log.read()}") from None
                time.sleep(0.1)

    def read_bytes(self, field: str) -> int:
        """Memory of its process and its children: VmRSS now, VmHWM at most."""
        total, pids = 0, [self.process.pid]
        while pids:
            pid = pids.pop()
            lines = Path(f"/proc/{pid}/status").read_text().splitlines()
            total += next(int(line.split()[1]) * 1024 for line in lines if line.startswith(field))
            pids += map(int, Path(f"/proc/{pid}/task/{pid}/children").read_text().split())
        return total

    def stop(self) -> None:
        """End it."""
        self.process.send_signal(signal.SIGTERM)
        try:
            self.process.wait(20)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()


def check(server: Server, model: edgebert.Model, texts: list[list[str]]) -> None:
    """Stop unless the server answers right."""
    for given in (texts[0][:1], texts[1]):
        body = json.dumps({"model": "model", "input": given}).encode()
        answer = json.loads(asyncio.run(ask_once(server.port, body)))
        rows = np.float32([item["embedding"] for item in answer["data"]])
        expected = model.encode(given)
        cosines = (rows * expected).sum(1) / np.linalg.norm(rows, axis=1)
        is_right = (rows == expected).all() if server.name == "edgebert" else cosines.min() > 0.97
        if not is_right:
            raise SystemExit(f"{server.name} answers other vectors: cosines from {cosines.min()}")


def head(port: int, body: bytes) -> bytes:
    return (
        f"POST /v1/embeddings HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nContent-Type: application/json\r\n"
        f"Content-Length: {len(body)}\r\n\r\n"
    ).encode() + body


async def receive(reader: asyncio.StreamReader) -> bytes:
    """The body of an answer.

    Raises:
        SystemExit: it is not one of status 200.
    """
    fields = (await reader.readuntil(b"\r\n\r\n")).lower()
    length = int(fields.partition(b"content-length:")[2].partition(b"\r\n")[0])
    body = await reader.readexactly(length)
    if b" 200 " not in fields[:16]:
        raise SystemExit(f"a request was answered {fields.decode()}{body.decode()}")
    return body


async def ask_once(port: int, body: bytes) -> bytes:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(head(port, body))
    answer = await receive(reader)
    writer.close()
    return answer


def run(
    server: Server, bodies: list[bytes], concurrency: int, seconds: float, most: float = float("inf")
) -> tuple[int, list[float], float]:
    """Ask over connections, one request at a time on each: (requests, seconds of each, seconds in all)."""
    requests = [head(server.port, body) for body in bodies]
    latencies: list[float] = []

    async def client(first: int, end: float) -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", server.port, limit=1 << 22)
        i = first
        while (begun := time.perf_counter()) < end and len(latencies) < most:
            writer.write(requests[i % BODIES])
            await receive(reader)
            latencies.append(time.perf_counter() - begun)
            i += concurrency
        writer.close()

    async def all_clients() -> float:
        begun = time.perf_counter()
        await asyncio.gather(*(client(i, begun + seconds) for i in range(concurrency)))
        return time.perf_counter() - begun

    wall = asyncio.run(all_clients())
    return len(latencies), latencies, wall


BARE = """
import sys, time
import numpy as np
import edgebert
from benchmarks.serving import make_texts
count = int(sys.argv[2])
model = edgebert.load(sys.argv[1])
texts = [texts[0] for texts in make_texts(model, 1)]
times = []
for i in range(count):
    begun = time.perf_counter()
    model.encode(texts[i % len(texts)])
    times.append(time.perf_counter() - begun)
many = [texts[i % len(texts)] for i in range(count * 4)]
model.encode(many[:64])
begun = time.perf_counter()
model.encode(many)
print(float(np.percentile(times[count // 4:], 50)) * 1e3, len(many) / (time.perf_counter() - begun))
"""


def measure_bare(path: Path, cpus: Sequence[int], is_quick: bool) -> dict[str, float]:
    """What `model.encode` alone does on the servers' CPUs: p50 of one text, and texts a second of a long list."""
    command = [sys.executable, "-c", BARE, str(path.resolve()), "400" if is_quick else "4000"]
    output = subprocess.run(
        command, cwd=ROOT, check=True, capture_output=True, text=True, preexec_fn=lambda: os.sched_setaffinity(0, cpus)
    ).stdout
    p50, speed = map(float, output.split())
    return {"encode_p50_ms": p50, "encode_texts_per_second": speed}


if __name__ == "__main__":
    main()
