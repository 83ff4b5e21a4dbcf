"""BLiMP: every minimal pair ranked by pseudo-log-likelihood, here and by transformers with the same masked LM.

    python -m benchmarks.blimp --work HEADS --data FOLDER --out benchmarks/results/blimp.json

HEADS is the --work of benchmarks.heads. A pair is ranked right where its good sentence has the higher score.
transformers gets the masked copies of one length together, so that it pads nothing.
"""

from __future__ import annotations

import argparse
import gzip
import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

import edgebert
from benchmarks import describe_run, write_result

TOLERANCE = 1e-4  # of a score, over its size
COPIES = 128  # that transformers runs together


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.blimp", description=__doc__.splitlines()[0])
    parser.add_argument(
        "paradigms", nargs="*", metavar="PARADIGM", help="by their uid (default: all); --out keeps others"
    )
    parser.add_argument("--work", type=Path, required=True, help="the folder of benchmarks.heads")
    parser.add_argument("--data", type=Path, required=True, help="a folder of data sets")
    parser.add_argument("--pairs", type=int, help="of each paradigm (default: all)")
    parser.add_argument("--out", type=Path, help="also write JSON here")
    args = parser.parse_args()
    import torch
    import transformers

    torch.set_grad_enabled(False)
    with gzip.open(next((args.data / "blimp").glob("*.jsonl.gz")), "rt", encoding="utf-8") as lines:
        pairs = [json.loads(line) for line in lines]
    folder = args.work / "masked"
    model = edgebert.load(folder)
    reference = transformers.BertForMaskedLM.from_pretrained(folder).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    result = {
        **describe_run("benchmarks.blimp"),
        "backend": model.backend.detail,
        "reference": f"transformers {transformers.__version__}",
        "tolerance": TOLERANCE,
        "rows": [],
    }
    names = args.paradigms or sorted({pair["uid"] for pair in pairs})
    if args.out and args.out.exists():
        rows = json.loads(args.out.read_text(encoding="utf-8"))["rows"]
        result["rows"] = [row for row in rows if row["paradigm"] not in names]
    for name in names:
        mine = [pair for pair in pairs if pair["uid"] == name][: args.pairs]
        sentences = [pair[key] for pair in mine for key in ("good", "bad")]
        started = time.process_time()
        found = np.array([answer["score"] for answer in model.rescore(sentences)])
        middle = time.process_time()
        expected = score_with_transformers(reference, tokenizer, sentences)
        seconds = middle - started, time.process_time() - middle
        ours, theirs = (scores[::2] > scores[1::2] for scores in (found, expected))
        row = {
            "phenomenon": mine[0]["term"],
            "paradigm": name,
            "pairs": len(mine),
            "right": int(ours.sum()),
            "right_in_transformers": int(theirs.sum()),
            "ranked_differently": int((ours != theirs).sum()),
            "max_difference": float((np.abs(found - expected) / np.maximum(1.0, np.abs(expected))).max()),
            "cpu_seconds": dict(zip(("edgebert", "transformers"), (round(value, 2) for value in seconds), strict=True)),
        }
        result["rows"].append(row)
        print(*row.values(), flush=True)
        if args.out:  # after each paradigm: the run is long
            write_result(args.out, result)
    return int(any(row["ranked_differently"] or row["max_difference"] > TOLERANCE for row in result["rows"]))


def score_with_transformers(model: Any, tokenizer: Any, sentences: Sequence[str]) -> np.ndarray:
    """Pseudo-log-likelihoods, f64 [sentences]."""
    import torch

    copies: dict[int, list[tuple[int, int, Any]]] = {}  # by length: (sentence, place of the mask, ids)
    for i, ids in enumerate(tokenizer(list(sentences)).input_ids):
        copies.setdefault(len(ids), []).extend((i, place, ids) for place in range(1, len(ids) - 1))
    scores = np.zeros(len(sentences))
    for same_length in copies.values():
        for first in range(0, len(same_length), COPIES):
            some = same_length[first : first + COPIES]
            owners, places, ids = (list(column) for column in zip(*some, strict=True))
            rows, masked = range(len(some)), torch.tensor(ids)
            targets = masked[rows, places]
            masked[rows, places] = tokenizer.mask_token_id
            hidden = model.bert(masked).last_hidden_state[rows, places]
            logs = model.cls(hidden).log_softmax(-1)[rows, targets]
            np.add.at(scores, owners, logs.double().numpy())
    return scores


if __name__ == "__main__":
    raise SystemExit(main())
