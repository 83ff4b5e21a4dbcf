"""What int8 costs in accuracy: int8 files against the fp32 file of the same embedding model, on scored sentence pairs.

For every int8 file and backend: the cosine of each sentence's embedding to fp32's (mean and smallest), how many
sentences keep the same nearest neighbour among all sentences, and Spearman's correlation of the pairs' cosines with
their scores beside that of fp32. With the checkpoint, also how far the fp32 file is from transformers.
"""

from __future__ import annotations

import argparse
import gzip
import json
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.stats import spearmanr

import edgebert
from benchmarks import describe_run, write_result
from edgebert.checkpoints.loading import load_checkpoint
from edgebert.exporting.reference import run_transformers

F32 = NDArray[np.float32]
_NUM_COMPARED = 64  # sentences, with transformers


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.accuracy", description=__doc__.splitlines()[0])
    parser.add_argument("--fp32", type=Path, required=True, help="the fp32 file, an embedding model")
    parser.add_argument("--int8", type=Path, nargs="+", required=True, help="int8 files of the same model")
    parser.add_argument(
        "--sentences", type=Path, required=True, help="JSON lines with text_a, text_b and score, *.jsonl or *.jsonl.gz"
    )
    parser.add_argument("--checkpoint", type=Path, help="its folder: compare fp32's hidden states with transformers")
    parser.add_argument("--backend", nargs="+", default=["auto"], help="backends that run the int8 files")
    parser.add_argument("--out", type=Path, help="also write JSON here")
    args = parser.parse_args()

    pairs = read_pairs(args.sentences)
    sentences = list(dict.fromkeys(text for a, b, _ in pairs for text in (a, b)))
    fp32_model = edgebert.load(args.fp32, backend=args.backend[0])
    fp32 = fp32_model.encode(sentences)
    fp32_spearman = score_pairs(pairs, sentences, fp32)
    result: dict[str, Any] = {
        **describe_run("benchmarks.accuracy"),
        "pairs": len(pairs),
        "sentences": len(sentences),
        "fp32": {"file": args.fp32.name, "backend": fp32_model.backend.detail, "spearman": fp32_spearman},
        "int8": [],
    }
    if args.checkpoint is not None:
        result["fp32"]["error_to_transformers"] = error = compare_with_transformers(
            fp32_model, args.checkpoint, sentences[:: max(1, len(sentences) // _NUM_COMPARED)][:_NUM_COMPARED]
        )
        print(f"hidden states of {_NUM_COMPARED} sentences: at most {error:.3g} of the largest from transformers'")
    print(f"{'file':30} {'backend':12} {'cosine mean':>11} {'min':>8} {'neighbour':>9} {'Spearman':>9} {'to fp32':>9}")
    print(f"{args.fp32.name:30} {fp32_model.backend.name:12} {'':30} {fp32_spearman:9.5f}")
    for path in args.int8:
        for backend in args.backend:
            model = edgebert.load(path, backend=backend)
            int8 = model.encode(sentences)
            row = {
                "file": path.name,
                "backend": model.backend.detail,
                **compare_embeddings(int8, fp32),
                "spearman": score_pairs(pairs, sentences, int8),
            }
            row["spearman_to_fp32"] = row["spearman"] - fp32_spearman
            result["int8"].append(row)
            print(
                f"{path.name:30} {model.backend.name:12} {row['cosine_mean']:11.5f} {row['cosine_min']:8.5f} "
                f"{row['same_nearest_neighbour']:9.2%} {row['spearman']:9.5f} {row['spearman_to_fp32']:+9.5f}"
            )
    if args.out is not None:
        write_result(args.out, result)
    return 0


def compare_with_transformers(model: edgebert.Model, folder: Path, sentences: list[str]) -> float:
    """Largest difference of a hidden state from transformers', over the largest hidden state."""
    assert model.tokenizer is not None
    batch, _ = model.tokenizer.tokenize(sentences)
    expected = run_transformers(load_checkpoint(folder), batch)["last_hidden_state"]
    found = model.forward(batch, ["last_hidden_state"])["last_hidden_state"]
    return float(np.abs(found - expected).max() / np.abs(expected).max())


def read_pairs(path: Path) -> list[tuple[str, str, float]]:
    """(text_a, text_b, score) of every line."""
    with gzip.open(path, "rt", encoding="utf-8") if path.suffix == ".gz" else path.open(encoding="utf-8") as lines:
        rows = [json.loads(line) for line in lines]
    return [(row["text_a"], row["text_b"], float(row["score"])) for row in rows]


def compare_embeddings(a: F32, b: F32) -> dict[str, float]:
    """Rows of `a` against the same rows of `b`: cosines, and equal nearest neighbours."""
    cosines = (unit_rows(a) * unit_rows(b)).sum(axis=1)
    same = nearest_neighbours(a) == nearest_neighbours(b)
    return {
        "cosine_mean": float(cosines.mean()),
        "cosine_min": float(cosines.min()),
        "same_nearest_neighbour": float(same.mean()),
    }


def unit_rows(x: F32) -> NDArray[np.float64]:
    """Rows divided by their norm, f64: a file may leave its embeddings as they are."""
    unit: NDArray[np.float64] = x / np.linalg.norm(x.astype(np.float64), axis=1, keepdims=True)
    return unit


def nearest_neighbours(x: F32) -> NDArray[np.int64]:
    """Of each row the other row with the largest cosine."""
    unit = unit_rows(x)
    similarity = unit @ unit.T
    np.fill_diagonal(similarity, -np.inf)
    return similarity.argmax(axis=1)


def score_pairs(pairs: list[tuple[str, str, float]], sentences: list[str], embeddings: F32) -> float:
    """Spearman's correlation of the pairs' cosines with their scores."""
    row = {text: i for i, text in enumerate(sentences)}
    unit = unit_rows(embeddings)
    cosines = [float(unit[row[a]] @ unit[row[b]]) for a, b, _ in pairs]
    return float(spearmanr(cosines, [score for _, _, score in pairs]).statistic)


if __name__ == "__main__":
    raise SystemExit(main())
