r"""Batch scoring: a big file at bounded memory, killed jobs that resume, and rows a second against two usual loops.

    python -m benchmarks.scoring MODEL TEXTS... --work DIR --rows 1000000 --kill-rows 100000 --peer-rows 20000 \
        --onnxruntime INT8_FILE --sentence-transformers FOLDER --out benchmarks/results/scoring.json

TEXTS are JSON lines or plain text, gzipped or not, whose sentences are repeated as often as rows are asked for; a part
with 0 rows is left out. Every job is a process of its own, so that memory and CPU time are its alone. Against peers,
seconds count from the loaded model to the closed output file.
"""

from __future__ import annotations

import argparse
import gzip
import itertools
import json
import os
import random
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import ROOT, write_result
from edgebert.artifact.reader import read_artifact
from edgebert.backends.cpus import usable_cpus
from edgebert.bench.provenance import Recorder
from edgebert.bench.session import version_of

SAMPLE_SECONDS = 0.1
BATCH = 32  # sentence-transformers' own
ROUNDS = 3
MAX_LENGTH = 256
COSINE_LIMIT = 0.96  # of a peer's rows to ours; its int8 is coarser


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.scoring", description=__doc__)
    parser.add_argument("model", help="an exported embedding file")
    parser.add_argument("texts", type=Path, nargs="*")
    parser.add_argument("--work", type=Path, help="a folder for inputs and outputs")
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--kill-rows", type=int, default=100_000)
    parser.add_argument("--kills", type=int, default=5)
    parser.add_argument("--peer-rows", type=int, default=20_000)
    parser.add_argument(
        "--onnxruntime", help="the same model, quantized by ONNX Runtime; last_hidden_state comes first"
    )
    parser.add_argument("--sentence-transformers", help="the same model as a folder")
    parser.add_argument("--python", default=sys.executable, help="the Python that has sentence-transformers")
    parser.add_argument(
        "--loop", help=argparse.SUPPRESS
    )  # this process is a peer: which, and then its input and output
    parser.add_argument(
        "--out", type=Path, help="write JSON here instead of printing it; what is there already is kept"
    )
    args = parser.parse_args()
    if args.loop:
        return run_loop(args.loop, args.model, *args.texts)

    recorder = Recorder(ROOT)
    args.work.mkdir(parents=True, exist_ok=True)
    sentences = read_sentences(args.texts)
    result: dict[str, Any] = {}
    if args.rows:
        result["big_file"] = measure_big_file(args, sentences)
    if args.kill_rows:
        result["kills"] = measure_kills(args, sentences)
    if args.peer_rows:
        result["peers"] = measure_peers(args, sentences)
    packages = {name: version_of(name) for name in ("numpy", "tokenizers", "pyarrow", "onnxruntime", "torch")}
    described = recorder.describe(["python", "-m", "benchmarks.scoring", *sys.argv[1:]], packages)
    parts = {"big_file": args.rows, "kills": args.kill_rows, "peers": args.peer_rows}
    for name in (name for name, rows in parts.items() if rows):
        result[name]["run"] = described
    before = json.loads(args.out.read_text()) if args.out and args.out.exists() else {}
    write_result(args.out, before | result)
    return 0


def measure_big_file(args: argparse.Namespace, sentences: list[str]) -> dict[str, Any]:
    """Rows a second, peak memory, and how busy the CPUs were with it, as seen from outside the process."""
    source, output = args.work / f"big-{args.rows}.parquet", args.work / "big-out.parquet"
    write_input(source, sentences, args.rows)
    remove_output(output)
    command = [*score_command(args.model, source, output), "--quiet"]
    started, before = time.monotonic(), children_seconds()
    with subprocess.Popen(command) as process:
        samples = list(sample_threads(process))
    seconds = time.monotonic() - started
    used = children_seconds() - before
    check_output(args.model, source, output)
    cpus = usable_cpus()
    return {
        "rows": args.rows,
        "tokens_mean": round(mean_tokens(args.model, sentences), 2),
        "seconds": round(seconds, 1),
        "rows_per_second": round(args.rows / seconds),
        "peak_rss_mb": round(max(rss for _, rss in samples) / 1e6),
        "threads_wanting_a_cpu": round(statistics.fmean(min(wanting, cpus) for wanting, _ in samples) / cpus, 4),
        "cpu_time_share": round(used / seconds / cpus, 4),
        "rows_per_cpu_second": round(args.rows / used),
        "output_bytes": output.stat().st_size,
    }


def measure_kills(args: argparse.Namespace, sentences: list[str]) -> dict[str, Any]:
    """A job killed at random moments and resumed each time: is its output, to the byte, that of a job left alone?"""
    source, whole, output = (args.work / f"kill-{name}.parquet" for name in ("in", "whole", "out"))
    write_input(source, sentences, args.kill_rows)
    remove_output(whole)
    remove_output(output)
    options = ["--quiet", "--resume", "--rows-per-part", "2048"]
    subprocess.run([*score_command(args.model, source, whole), *options], check=True)
    command = [*score_command(args.model, source, output), *options]
    chance = random.Random(0)
    kills: list[dict[str, float]] = []
    for moment in sorted(chance.uniform(0, 0.95) for _ in range(args.kills)):
        with subprocess.Popen(command) as process:
            while process.poll() is None and rows_done(output) < moment * args.kill_rows:
                time.sleep(0.001)
            time.sleep(chance.uniform(0, 0.5))  # a moment that has nothing to do with when a part is committed
            process.kill()
        kills.append({"asked_at": round(moment * args.kill_rows), "rows_done": rows_done(output)})
    subprocess.run(command, check=True)
    is_identical = whole.read_bytes() == output.read_bytes()
    return {"rows": args.kill_rows, "kills": kills, "byte_identical": is_identical}


def rows_done(output: Path) -> int:
    """Rows that a job has committed."""
    manifest = output.with_name(f"{output.name}.manifest.json")
    return int(json.loads(manifest.read_text())["rows"]) if manifest.exists() else 0


def measure_peers(args: argparse.Namespace, sentences: list[str]) -> dict[str, Any]:
    """Rows a second of each loop over the same file, in turns."""
    source = args.work / f"peers-{args.peer_rows}.parquet"
    write_input(source, sentences, args.peer_rows)
    loops = {"edgebert": (sys.executable, args.model)}
    if args.onnxruntime:
        loops["onnxruntime-int8"] = loops["onnxruntime-int8-sorted"] = (sys.executable, args.onnxruntime)
    if args.sentence_transformers:
        loops["sentence-transformers"] = (args.python, args.sentence_transformers)
    rates: dict[str, list[tuple[float, float]]] = {name: [] for name in loops}
    for _ in range(ROUNDS):
        for name, (python, model) in loops.items():
            output = args.work / f"peers-{name}.parquet"
            remove_output(output)
            command = [python, "-m", "benchmarks.scoring", "--loop", name, model, str(source), str(output), args.model]
            done = subprocess.run(command, check=True, capture_output=True, text=True, cwd=ROOT)
            seconds, used = map(float, done.stdout.splitlines()[-1].split())
            rates[name].append((args.peer_rows / seconds, args.peer_rows / used))
    ours = read_embeddings(args.work / "peers-edgebert.parquet")
    report: dict[str, Any] = {"rows": args.peer_rows, "batch": BATCH, "loops": {}}
    for name, values in rates.items():
        rows = read_embeddings(args.work / f"peers-{name}.parquet")
        cosine = float((rows * ours).sum(axis=1).min())
        if cosine < COSINE_LIMIT:
            raise SystemExit(f"{name} gives other rows: cosine {cosine:.4f}")
        report["loops"][name] = {
            "rows_per_second": [round(rate, 1) for rate, _ in values],
            "rows_per_cpu_second": [round(rate, 1) for _, rate in values],  # what other load changes less
            "cosine_min": round(cosine, 4),
        }
    report["edgebert_over"] = {
        kind: {
            name: round(statistics.median(report["loops"]["edgebert"][kind]) / statistics.median(found[kind]), 2)
            for name, found in report["loops"].items()
        }
        for kind in ("rows_per_second", "rows_per_cpu_second")
    }
    return report


def run_loop(name: str, model: str, source: Path, output: Path, ours: Path) -> int:
    """One loop over the file; prints its seconds, and those of its CPU time. `ours` has the tokenizer."""
    import pyarrow as pa
    from pyarrow import parquet

    if name == "edgebert":
        from edgebert.scoring.runner import score

        used = time.process_time()
        print(score(model, source, output)["seconds"], time.process_time() - used)
        return 0
    if name == "sentence-transformers":
        from sentence_transformers import SentenceTransformer

        loaded = SentenceTransformer(model, device="cpu")
        loaded.max_seq_length = MAX_LENGTH

        def encode(texts: list[str]) -> Any:
            return loaded.encode(texts, batch_size=BATCH, show_progress_bar=False)
    else:
        encode = onnxruntime_loop(model, read_artifact(ours).tokenizer_json, is_sorted=name.endswith("-sorted"))
    encode(["one text", "to warm up"])
    started, used = time.perf_counter(), time.process_time()
    table = parquet.read_table(source)
    rows = np.ascontiguousarray(encode(table["text"].to_pylist()))
    vectors = pa.FixedSizeListArray.from_arrays(pa.array(rows.ravel()), rows.shape[1])
    parquet.write_table(table.append_column("embedding", vectors), output)
    print(time.perf_counter() - started, time.process_time() - used)
    return 0


def onnxruntime_loop(model: str, tokenizer_json: str | None, is_sorted: bool) -> Any:
    """Batches of texts, padded to the longest of each, in the file's order or sorted by length."""
    import onnxruntime
    import tokenizers

    tokenizer = tokenizers.Tokenizer.from_str(tokenizer_json)
    tokenizer.enable_padding()
    tokenizer.enable_truncation(MAX_LENGTH)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = usable_cpus()
    session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    given = {value.name: "int32" if value.type == "tensor(int32)" else "int64" for value in session.get_inputs()}

    def encode(texts: list[str]) -> Any:
        order = sorted(range(len(texts)), key=lambda i: len(texts[i])) if is_sorted else range(len(texts))
        rows: Any = None
        for first in range(0, len(texts), BATCH):
            batch = order[first : first + BATCH]
            encodings = tokenizer.encode_batch([texts[i] for i in batch])
            mask = np.array([encoding.attention_mask for encoding in encodings])
            feed = {
                "input_ids": np.array([encoding.ids for encoding in encodings]),
                "attention_mask": mask,
                "token_type_ids": np.array([encoding.type_ids for encoding in encodings]),
            }
            hidden = session.run(None, {key: feed[key].astype(kind) for key, kind in given.items()})[0]
            pooled = (hidden * mask[:, :, None]).sum(axis=1) / mask.sum(axis=1)[:, None]
            pooled /= np.linalg.norm(pooled, axis=1, keepdims=True)
            rows = np.empty((len(texts), pooled.shape[1]), np.float32) if rows is None else rows
            rows[list(batch)] = pooled
        return rows

    return encode


def read_sentences(paths: list[Path]) -> list[str]:
    """All texts of the files, in order."""
    sentences: list[str] = []
    for path in paths:
        data = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
        for line in data.decode().splitlines():
            row = json.loads(line) if ".jsonl" in path.suffixes else {"text": line}
            sentences += [row[name] for name in ("text", "text_a", "text_b") if row.get(name)]
    return sentences


def write_input(path: Path, sentences: list[str], rows: int) -> None:
    """A Parquet file of numbered texts, the sentences again and again."""
    import pyarrow as pa
    from pyarrow import parquet

    if path.exists() and parquet.read_metadata(path).num_rows == rows:
        return
    texts = list(itertools.islice(itertools.cycle(sentences), rows))
    parquet.write_table(pa.table({"id": pa.array(range(rows)), "text": texts}), path, row_group_size=100_000)


def score_command(model: str, source: Path, output: Path) -> list[str]:
    return [sys.executable, "-m", "edgebert", "score", model, str(source), "-o", str(output)]


def remove_output(path: Path) -> None:
    path.unlink(missing_ok=True)
    path.with_name(f"{path.name}.manifest.json").unlink(missing_ok=True)
    shutil.rmtree(path.with_name(f"{path.name}.parts"), ignore_errors=True)


def sample_threads(process: subprocess.Popen[bytes]) -> Iterator[tuple[int, int]]:
    """(threads that run or wait for a CPU, peak resident bytes so far), until the process ends.

    Other processes take CPU time away, but do not make a thread want the CPU less: what these samples say about the
    process is true on a busy machine, too.
    """
    folder = Path(f"/proc/{process.pid}")
    while process.poll() is None:
        try:
            states = [stat.read_text().rpartition(")")[2].split()[0] for stat in folder.glob("task/*/stat")]
            status = (folder / "status").read_text()
            peak = int(status.partition("VmHWM:")[2].split()[0]) * 1024
        except (OSError, IndexError, ValueError):  # it has ended, or a thread of it
            continue
        yield states.count("R"), peak
        time.sleep(SAMPLE_SECONDS)


def children_seconds() -> float:
    """CPU time of all child processes that have ended."""
    usage = os.times()
    return usage.children_user + usage.children_system


def check_output(model: str, source: Path, output: Path) -> None:
    """Every row is there and in order, and a few embeddings are the model's."""
    from pyarrow import parquet

    import edgebert

    ids = parquet.read_table(output, columns=["id"])["id"].to_numpy()
    np.testing.assert_array_equal(ids, np.arange(parquet.read_metadata(source).num_rows))
    reader = parquet.ParquetFile(output)
    for group in (0, reader.num_row_groups // 2, reader.num_row_groups - 1):
        table = reader.read_row_group(group).slice(0, 50)
        rows = np.stack([np.array(row, np.float32) for row in table["embedding"].to_pylist()])
        np.testing.assert_array_equal(rows, edgebert.load(model).encode(table["text"].to_pylist()))


def read_embeddings(path: Path) -> Any:
    from pyarrow import parquet

    column = parquet.read_table(path, columns=["embedding"])["embedding"].combine_chunks()
    return column.flatten().to_numpy().reshape(len(column), -1)


def mean_tokens(model: str, sentences: list[str]) -> float:
    import edgebert

    tokenizer = edgebert.load(model).tokenizer
    assert tokenizer
    return float(tokenizer.tokenize(sentences)[0].lengths.mean())


if __name__ == "__main__":
    raise SystemExit(main())
