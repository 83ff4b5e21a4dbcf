"""Do results move? The same bits for a text alone, in any batch, order, padding and thread count, on real text.

For every model file: the native backend with each instruction set this CPU has forced in turn, and the numpy backend.
Every output of the file is compared bit for bit with that of the text alone on one thread. At the end the native
instruction sets that promise equal bits are compared with one another. Exit status 1 if anything moved.
"""

from __future__ import annotations

import argparse
import gzip
import hashlib
import itertools
import json
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

import edgebert
from benchmarks import describe_run, write_result
from edgebert.batch import PackedBatch

EQUAL_ISAS = ("avx2", "avx_vnni", "avx512_vnni")
# Cases by backend and thread count; all of them for one thread of native, enough for the others to finish in minutes.
THREAD_CASES = {2: ("alone", "batches of 32, shuffled", "one batch, reversed"), 3: ("batches of 32, shuffled",)}
NUMPY_CASES = ("batches of 32, shuffled", "one batch, reversed")


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
    batch = tokenize(path, texts)
    variants: dict[str, Any] = {}
    digests: dict[str, list[bytes]] = {}
    for isa in usable_isas():
        os.environ["EDGEBERT_FORCE_ISA"] = isa
        variants[f"native {isa}"], digests[isa] = check_variant(path, "native", texts, batch)
    os.environ.pop("EDGEBERT_FORCE_ISA", None)
    if with_numpy:
        variants["numpy"], _ = check_variant(path, "numpy", texts, batch)
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
    reason = edgebert.available_backends()["native"]
    if reason is not None:
        raise SystemExit(f"the native backend is not available: {reason}")
    from edgebert.backends import native

    return list(native.usable_isas())


def tokenize(path: Path, texts: Sequence[str]) -> PackedBatch:
    """The texts' token ids, and after them one text as long as the model allows."""
    model = edgebert.load(path)
    if model.tokenizer is None:
        raise SystemExit(f"{path} has no tokenizer inside: export a model that has one")
    batch, _ = model.tokenizer.tokenize(texts)
    rows = [batch.input_ids[a:b] for a, b in itertools.pairwise(batch.cu_seqlens)]
    return PackedBatch.from_lists([*rows, np.resize(batch.input_ids, model.spec.usable_positions)])


def check_variant(
    path: Path, backend: str, texts: Sequence[str], batch: PackedBatch
) -> tuple[dict[str, Any], list[bytes]]:
    """One backend (and instruction set): texts that moved, by case, and the digest of each text's bits."""
    model = edgebert.load(path, backend=backend, threads=1)
    alone = [digest_texts(model, batch.take([i]))[0] for i in range(batch.num_sequences)]
    cases = [case for case in make_cases(batch) if backend != "numpy" or case[0] in NUMPY_CASES]
    moved = {name: count_moved(model, batch, alone, parts) for name, parts in cases}
    if backend == "native":
        for threads, names in THREAD_CASES.items():
            threaded = edgebert.load(path, backend=backend, threads=threads)
            for name, parts in cases:
                if name in names:
                    moved[f"{name}, {threads} threads"] = count_moved(threaded, batch, alone, parts)
    if model.spec.task == "embedding":
        single = np.stack([model.encode(text) for text in texts])
        moved["encode, all at once"] = int((single.view(np.uint32) != model.encode(texts).view(np.uint32)).any(1).sum())
    total = hashlib.sha256(b"".join(alone)).hexdigest()
    return {"detail": model.backend.detail, "bits_sha256": total, "moved": moved}, alone


def make_cases(batch: PackedBatch) -> Iterator[tuple[str, list[list[int]]]]:
    """(name, batches): each batch as the indices of its texts; -1 is the longest text possible."""
    order = list(range(batch.num_sequences - 1))
    shuffled = np.random.default_rng(0).permutation(order).tolist()
    by_length = np.argsort(batch.lengths[:-1], kind="stable").tolist()
    yield "alone", _chunks(order, 1)
    yield "pairs", _chunks(order, 2)
    yield "batches of 7", _chunks(order, 7)
    yield "batches of 32, shuffled", _chunks(shuffled, 32)
    yield "batches of 32, sorted by length", _chunks(by_length, 32)
    yield "one batch, reversed", [order[::-1]]
    yield "batches of 32 beside the longest text possible", [[-1, *part] for part in _chunks(order, 32)]


def count_moved(
    model: edgebert.Model, batch: PackedBatch, alone: Sequence[bytes], parts: Sequence[Sequence[int]]
) -> int:
    """Texts whose bits differ from those in `alone`."""
    return sum(
        digest != alone[i]
        for part in parts
        for i, digest in zip(part, digest_texts(model, batch.take(part)), strict=True)
    )


def digest_texts(model: edgebert.Model, batch: PackedBatch) -> list[bytes]:
    """SHA-256 of each text's rows of every output of the file, run as one batch."""
    spec = model.spec
    outputs = model.forward(batch, outputs=spec.outputs)
    digests = []
    for i in range(batch.num_sequences):
        digest = hashlib.sha256()
        for name in spec.outputs:
            per_token, _ = spec.output_width(name)
            first, last = (batch.cu_seqlens[i], batch.cu_seqlens[i + 1]) if per_token else (i, i + 1)
            digest.update(outputs[name][first:last].tobytes())
        digests.append(digest.digest())
    return digests


def _chunks(order: Sequence[int], size: int) -> list[list[int]]:
    return [list(order[i : i + size]) for i in range(0, len(order), size)]


if __name__ == "__main__":
    raise SystemExit(main())
