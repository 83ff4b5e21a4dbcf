"""What embeddings lose in fewer bytes: neighbours and similarities, against float32.

    python -m benchmarks.embedding_dtypes int8.onnx dev.jsonl.gz train.jsonl.gz --out FILE

The rows of the first file are pairs (text_a, text_b) with a score: their cosines are ranked against it. The texts of
that file are also searched among those of all files: which of the ten nearest others by float32 are found again.
"""

from __future__ import annotations

import argparse
import gzip
import json
from pathlib import Path
from typing import Any

import numpy as np
from scipy import stats

import edgebert
from benchmarks import describe_run, write_result
from edgebert.tasks.embedding import DTYPES

TOP = 10
WIDE = 4 * TOP  # that bits choose, for f32 or int8 to order


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.embedding_dtypes", description=__doc__.splitlines()[0])
    parser.add_argument("model", type=Path)
    parser.add_argument("files", nargs="+", type=Path, help="pairs: JSON lines, gzipped, with text_a, text_b and score")
    parser.add_argument("--out", type=Path, help="also write JSON here")
    args = parser.parse_args()

    model = edgebert.load(args.model)
    pairs = [read_pairs(path) for path in args.files]
    texts = list(dict.fromkeys(text for file in pairs for row in file for text in (row["text_a"], row["text_b"])))
    place = {text: i for i, text in enumerate(texts)}
    first, second = (np.array([place[row[side]] for row in pairs[0]]) for side in ("text_a", "text_b"))
    queries = np.unique(np.concatenate([first, second]))
    scores = [row["score"] for row in pairs[0]]
    rows = model.encode(texts)
    expected = find_neighbours(rows, rows, queries, TOP)
    result: dict[str, Any] = {
        **describe_run("benchmarks.embedding_dtypes"),
        "backend": model.backend.detail,
        "width": rows.shape[1],
        "texts": len(texts),
        "queries": len(queries),
        "pairs": len(scores),
        "rows": [],
    }

    def add(name: str, size: int, found: np.ndarray, cosines: Any) -> None:
        recall = np.mean([len({*a} & {*b}) / TOP for a, b in zip(expected.tolist(), found.tolist(), strict=True)])
        spearman = float(stats.spearmanr(cosines, scores).statistic)
        row = {"dtype": name, "bytes": size, "recall_at_10": float(recall), "spearman": spearman}
        result["rows"].append(row)
        print(*row.values(), flush=True)

    for dtype in DTYPES:
        codes = edgebert.quantize_embeddings(rows, dtype)
        pairs_of = [edgebert.similarity(codes[a], codes[b])[0, 0] for a, b in zip(first, second, strict=True)]
        add(dtype, codes[0].nbytes, find_neighbours(codes, codes, queries, TOP), pairs_of)
    pairs_of = [edgebert.similarity(rows[a], codes[b])[0, 0] for a, b in zip(first, second, strict=True)]
    add("binary, f32 queries", codes[0].nbytes, find_neighbours(rows, codes, queries, TOP), pairs_of)
    wide = find_neighbours(codes, codes, queries, WIDE)
    int8 = edgebert.quantize_embeddings(rows, "int8")
    ordered = [
        near[np.argsort(-edgebert.similarity(int8[query], int8[near])[0], kind="stable")[:TOP]]
        for query, near in zip(queries, wide, strict=True)
    ]
    pairs_of = [edgebert.similarity(int8[a], int8[b])[0, 0] for a, b in zip(first, second, strict=True)]
    add(f"{WIDE} by binary, ordered by int8", codes[0].nbytes + int8[0].nbytes, np.stack(ordered), pairs_of)
    write_result(args.out, result)
    return 0


def read_pairs(path: Path) -> list[dict[str, Any]]:
    with gzip.open(path, "rt", encoding="utf-8") as lines:
        return [json.loads(line) for line in lines]


def find_neighbours(rows: np.ndarray, corpus: np.ndarray, queries: np.ndarray, top: int) -> np.ndarray:
    """Indices of the texts nearest to each query, itself left out, [queries, top]."""
    found = edgebert.semantic_search(rows[queries], corpus, top_k=top + 1)
    others = [
        [hit["corpus_id"] for hit in hits if hit["corpus_id"] != query]
        for query, hits in zip(queries, found, strict=True)
    ]
    return np.array([near[:top] for near in others])


if __name__ == "__main__":
    raise SystemExit(main())
