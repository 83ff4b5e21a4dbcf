"""Explanations: do the words named carry the score, and what do masked copies cost?

Faithfulness, on sentences of a labelled set: the words are masked one after the other, in the order of an explanation
and in random orders. The area between the two curves is what the score loses on average sooner; with comprehensiveness
and sufficiency (see `edgebert/tasks/faithfulness.py`), each with its standard error over the sentences. Beside single
words stand two other ways to find contributions: means over runs of one, two and three words, and Shapley values from
permutations, as many as `--permutations` says, with the copies that each takes for a word.

Cost: explaining one text, against one text of the same number of tokens in all: in one row, and for a longer one in
windows.
"""

from __future__ import annotations

import argparse
import gzip
import json
import random
from collections.abc import Callable, Sequence
from itertools import cycle, islice
from pathlib import Path
from typing import Any

import numpy as np

import edgebert
from benchmarks import describe_run, write_result
from edgebert.runner import answer
from edgebert.tasks.faithfulness import measure
from edgebert.turns import time_in_turns

Orders = list[list[list[int]]]  # of the words of each sentence

RANDOM_ORDERS = 5
ROUNDS = 7
FIGURES = ("comprehensiveness", "sufficiency", "deletion")


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.explain", description=__doc__.splitlines()[0])
    parser.add_argument("file", type=Path, help="a text classifier")
    parser.add_argument("--data", type=Path, required=True, help='sentences, *.jsonl.gz with "text"')
    parser.add_argument("--sentences", type=int, default=200, help="how many (default: 200)")
    parser.add_argument("--permutations", type=int, default=10, help="of Shapley values (default: 10)")
    parser.add_argument("--copies", type=int, default=100, help="masked copies of the longer text (default: 100)")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--no-times", action="store_true", help="only the curves")
    parser.add_argument("--out", type=Path, help="also write JSON here")
    args = parser.parse_args()

    run = describe_run("benchmarks.explain")
    model = edgebert.load(args.file, threads=args.threads)
    with gzip.open(args.data, "rt", encoding="utf-8") as lines:
        texts = [json.loads(line)["text"] for line in lines][: args.sentences]
    found = {
        "sentences": len(texts),
        "faithfulness": measure_ways(model, texts, args.permutations),
        **({} if args.no_times else {"cost": measure_cost(model, texts, args.copies)}),
    }
    print(json.dumps(found, indent=1))
    if args.out:
        write_result(args.out, {**run, "file": args.file.name, "backend": model.backend.detail, **found})
    return 0


def measure_ways(model: edgebert.Model, texts: list[str], num_permutations: int) -> dict[str, Any]:
    """Of each way to find contributions its figures, those of random orders, and the differences."""
    by_runs = [model.explain(texts, span_length=length) for length in (1, 2, 3)]
    counts = [len(one["words"]) for one in by_runs[0]]
    ways: dict[str, tuple[list[np.ndarray], float]] = {
        "words": ([contributions(one) for one in by_runs[0]], 1.0),
        "runs of 1 to 3 words": ([np.mean([*map(spread, same)], axis=0) for same in zip(*by_runs, strict=True)], 3.0),
        f"Shapley, {num_permutations} permutations": (
            find_shapley_values(model, texts, counts, num_permutations),
            float(num_permutations),
        ),
    }
    generator = random.Random(1)
    shuffled = [[generator.sample(range(n), n) for _ in range(RANDOM_ORDERS)] for n in counts]
    result = {}
    for name, (values, copies_a_word) in ways.items():
        best = [np.argsort(-of_text, kind="stable").tolist() for of_text in values]
        orders = [[order, order[::-1], *others] for order, others in zip(best, shuffled, strict=True)]
        figures = [measure(curves) for curves in run_curves(model, texts, orders)]
        row: dict[str, Any] = {"copies_a_word": copies_a_word}
        for figure in FIGURES:
            own = [one[figure] for one in figures]
            by_chance = [one["random"][figure] for one in figures]
            row[figure] = describe(own)
            row[f"{figure}, random"] = describe(by_chance)
            row[f"{figure}, difference"] = describe(np.subtract(own, by_chance))
        result[name] = row
    return result


def contributions(one: dict[str, Any]) -> np.ndarray:
    return np.array([word["contribution"] for word in one["words"]])


def spread(one: dict[str, Any]) -> np.ndarray:
    """For each word the mean over the runs that it is in, each counted for a word's share."""
    words, spans = one["words"], one.get("spans") or one["words"]
    values = [
        [
            span["contribution"] / sum(span["start"] <= other["start"] < span["end"] for other in words)
            for span in spans
            if span["start"] <= word["start"] < span["end"]
        ]
        for word in words
    ]
    return np.array([np.mean(of_word) for of_word in values])


def find_shapley_values(model: edgebert.Model, texts: list[str], counts: list[int], size: int) -> list[np.ndarray]:
    """Of each word the mean of what the score loses when it goes after those before it in a random order."""
    generator = random.Random(2)
    orders = [[generator.sample(range(n), n) for _ in range(size)] for n in counts]
    values = []
    for of_text, curves, n in zip(orders, run_curves(model, texts, orders), counts, strict=True):
        total = np.zeros(n)
        for order, curve in zip(of_text, curves, strict=True):
            total[order] -= np.diff(curve)
        values.append(total / size)
    return values


def run_curves(model: edgebert.Model, texts: list[str], orders: Orders) -> list[list[list[float]]]:
    assert model.tokenizer
    curves, _ = answer(model.backend, model.tokenizer, "faithfulness", texts, orders=orders)
    return list(curves)


def describe(values: Sequence[float] | np.ndarray) -> dict[str, float]:
    return {
        "mean": float(np.mean(values)),
        "standard_error": float(np.std(values, ddof=1) / np.sqrt(len(values))),
    }


def measure_cost(model: edgebert.Model, texts: list[str], num_copies: int) -> list[dict[str, Any]]:
    """Explanations against one text of as many tokens as their rows have together."""
    words = [word for text in texts for word in text.split() if len(find_ids(model, word)) == 1]
    special = len(find_ids_with_special(model, ""))
    longest = model.spec.max_length
    short = int(longest**0.5) - special  # rows for each word, all masked, and none: their tokens fit into one row
    rows = []
    for num_words in (short, num_copies - 2):
        text = " ".join(islice(cycle(words), num_words))
        tokens = (num_words + 2) * (num_words + special)
        one = " ".join(islice(cycle(words), tokens - special))
        is_whole = tokens <= longest
        calls: list[Callable[[], Any]] = [
            lambda text=text: model.explain(text),  # type: ignore[misc]
            lambda one=one, is_whole=is_whole: model(one, stride=None if is_whole else 0),  # type: ignore[misc]
        ]
        assert len(calls[0]()["words"]) == num_words
        explained, alone = (float(np.median(taken)) for taken in time_in_turns(calls, rounds=ROUNDS))
        rows.append(
            {
                "copies": num_words + 2,
                "tokens_a_copy": num_words + special,
                "tokens": tokens,
                "one_text_in_windows": not is_whole,
                "milliseconds": {"explain": 1e3 * explained, "one text": 1e3 * alone},
                "times_one_text": explained / alone,
            }
        )
    return rows


def find_ids(model: edgebert.Model, text: str) -> list[int]:
    assert model.tokenizer
    return model.tokenizer.find_pieces(text)


def find_ids_with_special(model: edgebert.Model, text: str) -> list[int]:
    assert model.tokenizer
    ids: list[int] = model.tokenizer.tokenize([text])[0].input_ids.tolist()
    return ids


if __name__ == "__main__":
    raise SystemExit(main())
