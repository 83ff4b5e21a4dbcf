"""Do results move? The same bits for a text alone, in any batch, order, padding and thread count, on real text.

For every model file: the native backend with each instruction set this CPU has forced in turn, and the numpy backend.
Every output of the file is compared bit for bit with that of the text alone on one thread. At the end the native
instruction sets that promise equal bits are compared with one another. Exit status 1 if anything moved.
"""

from __future__ import annotations

import argparse
import gzip
import hashlib
import json
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

import edgebert
from benchmarks import describe_run, write_result

EQUAL_ISAS = ("avx2", "avx_vnni", "avx512_vnni")
THREADS = (2, 3)
NUMPY_CASES = ("batches of 32, shuffled", "one batch, reversed")  # slow, and one sequence at a time anyway
Texts = list[list[int]]  # token ids of each text


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.invariance", description=__doc__.splitlines()[0])
    parser.add_argument("model", type=Path, nargs="+", help="an exported file with its tokenizer inside")
    parser.add_argument("--sentences", type=Path, required=True, help="JSON lines, *.jsonl or *.jsonl.gz")
    parser.add_argument("--count", type=int, default=1000, help="texts taken: the first different ones (default: 1000)")
    parser.add_argument("--skip-numpy", action="store_true", help="leave out the numpy backend, which is slow")
    parser.add_argument("--out", type=Path, help="write JSON here instead of printing it")
    args = parser.parse_args()

    texts = read_texts(args.sentences, args.count)
    result: dict[str, Any] = {**describe_run("benchmarks.invariance"), "texts": len(texts), "models": {}}
    for model in args.model:
        result["models"][model.name] = check_model(model, texts, not args.skip_numpy)
    result["moved"] = sum(report["moved"] for report in result["models"].values())
    write_result(args.out, result)
    print(f"{len(texts)} texts, {len(args.model)} files: {result['moved'] or 'nothing'} moved")
    return 1 if result["moved"] else 0


def read_texts(path: Path, count: int) -> list[str]:
    """The first `count` different strings under keys that start with "text"."""
    found: dict[str, None] = {}
    with gzip.open(path, "rt", encoding="utf-8") if path.suffix == ".gz" else path.open(encoding="utf-8") as lines:
        for line in lines:
            for key, value in json.loads(line).items():
                if key.startswith("text") and isinstance(value, str) and len(found) < count:
                    found[value] = None
    if len(found) < count:
        raise SystemExit(f"{path}: only {len(found)} different texts, {count} asked for: use a smaller --count")
    return list(found)


def check_model(path: Path, texts: Sequence[str], with_numpy: bool) -> dict[str, Any]:
    """All variants of one file: {"moved": number of texts or variants that moved, "variants": {...}, ...}."""
    rows = tokenize(path, texts)
    variants: dict[str, Any] = {}
    digests: dict[str, list[bytes]] = {}
    for isa in usable_isas():
        os.environ["EDGEBERT_FORCE_ISA"] = isa
        variants[f"native {isa}"], digests[isa] = check_variant(path, "native", texts, rows)
    os.environ.pop("EDGEBERT_FORCE_ISA", None)
    if with_numpy:
        variants["numpy"], _ = check_variant(path, "numpy", texts, rows)
    moved = sum(case for variant in variants.values() for case in variant["moved"].values())
    equal = [isa for isa in EQUAL_ISAS if isa in digests]
    differing = sum(len(set(column)) > 1 for column in zip(*(digests[isa] for isa in equal), strict=True))
    return {
        "moved": moved + differing,
        "isas_compared": equal,
        "texts_that_differ_between_isas": differing,
        "variants": variants,
    }


def usable_isas() -> list[str]:
    """Instruction sets that this build has and this CPU can run."""
    from edgebert.backends import native

    return native.usable_isas()


def tokenize(path: Path, texts: Sequence[str]) -> Texts:
    """Token ids of each text with the tokenizer inside the file, cut to the model's length."""
    from tokenizers import Tokenizer

    from edgebert.artifact.reader import read_artifact

    artifact = read_artifact(path)
    if artifact.tokenizer_json is None:
        raise SystemExit(f"{path} has no tokenizer inside: export a model that has one")
    tokenizer = Tokenizer.from_str(artifact.tokenizer_json)
    tokenizer.enable_truncation(artifact.spec.max_length)
    return [list(row.ids) for row in tokenizer.encode_batch(list(texts))]


def check_variant(path: Path, backend: str, texts: Sequence[str], rows: Texts) -> tuple[dict[str, Any], list[bytes]]:
    """One backend (and instruction set): texts that moved, by case, and the digest of each text's bits."""
    model = edgebert.load(path, backend=backend, threads=1)
    alone = [digest for row in rows for digest in digest_batch(model, [row])]
    cases = [case for case in make_cases(rows) if backend != "numpy" or case[0] in NUMPY_CASES]
    moved = {name: count_moved(model, rows, alone, batches) for name, batches in cases}
    if backend == "native":
        for threads in THREADS:
            threaded = edgebert.load(path, backend=backend, threads=threads)
            for name, batches in cases:
                moved[f"{name}, {threads} threads"] = count_moved(threaded, rows, alone, batches)
    if model.spec.task == "embedding":
        single = np.stack([model.encode(text) for text in texts])
        moved["encode, all at once"] = int((single.view(np.uint32) != model.encode(texts).view(np.uint32)).any(1).sum())
    total = hashlib.sha256(b"".join(alone)).hexdigest()
    return {"detail": model.backend.detail, "bits_sha256": total, "moved": moved}, alone


def make_cases(rows: Texts) -> Iterator[tuple[str, list[list[int]]]]:
    """(name, batches): each batch the indices of its texts; -1 stands for a neighbour as long as the model allows."""
    count = len(rows)
    order = list(range(count))
    shuffled = np.random.default_rng(0).permutation(count).tolist()
    yield "alone again", [[i] for i in order]
    yield "pairs", _chunks(order, 2)
    yield "batches of 7", _chunks(order, 7)
    yield "batches of 32, shuffled", _chunks(shuffled, 32)
    yield "batches of 32, sorted by length", _chunks(sorted(order, key=lambda i: len(rows[i])), 32)
    yield "one batch, reversed", [order[::-1]]
    yield "beside the longest text possible", [[-1, *chunk] for chunk in _chunks(order, 32)]


def count_moved(model: edgebert.Model, rows: Texts, alone: Sequence[bytes], batches: Sequence[Sequence[int]]) -> int:
    """Texts whose bits differ from those in `alone`."""
    longest = [rows[0][i % len(rows[0])] for i in range(model.spec.max_length)]
    moved = 0
    for batch in batches:
        digests = digest_batch(model, [longest if i < 0 else rows[i] for i in batch])
        moved += sum(i >= 0 and digest != alone[i] for i, digest in zip(batch, digests, strict=True))
    return moved


def digest_batch(model: edgebert.Model, rows: Texts) -> list[bytes]:
    """SHA-256 of each text's rows of every output of the file, run as one batch."""
    batch = edgebert.PackedBatch.from_lists(rows)
    names = model.spec.outputs
    outputs = model.forward(batch, outputs=names)
    digests = []
    for i in range(batch.num_sequences):
        digest = hashlib.sha256()
        for name in names:
            per_token, _ = model.spec.output_width(name)
            first, last = (batch.cu_seqlens[i], batch.cu_seqlens[i + 1]) if per_token else (i, i + 1)
            digest.update(np.ascontiguousarray(outputs[name][first:last]).tobytes())
        digests.append(digest.digest())
    return digests


def _chunks(order: Sequence[int], size: int) -> list[list[int]]:
    return [list(order[i : i + size]) for i in range(0, len(order), size)]


if __name__ == "__main__":
    raise SystemExit(main())
