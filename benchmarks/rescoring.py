"""Rescoring an n-best list: masked copies packed together, against one masked copy at a time, here and in transformers.

Checked first: pseudo-log-likelihoods against transformers', a score over its size within 1e-4. Times are CPU seconds of
one thread, the ways taking turns, told for each copy; all ways but the packed one are timed on the copies of some
hypotheses. One at a time here computes the vocabulary's logits for the mask alone, and once, as models do, for every
token.
Memory is the peak of a process of its own after lists of growing length.
"""

from __future__ import annotations

import argparse
import gzip
import json
import multiprocessing
import random
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

import edgebert
from benchmarks import describe_run, write_result
from edgebert.batch import PackedBatch
from edgebert.bench.session import peak_mb
from edgebert.turns import time_in_turns

Copy = tuple[list[int], int]  # token ids with a mask, and its place

TOLERANCE = 1e-4
ROUNDS = 3
SAMPLE = 4  # hypotheses that are scored one masked copy at a time


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.rescoring", description=__doc__.splitlines()[0])
    parser.add_argument("files", type=Path, nargs="+", help="files with a masked-LM head, the fp32 one first")
    parser.add_argument("--checkpoint", type=Path, required=True, help="their checkpoint, for transformers")
    parser.add_argument("--texts", type=Path, required=True, help="sentences, one a line, *.txt.gz")
    parser.add_argument("--hypotheses", type=int, default=100, help="in a list (default: 100)")
    parser.add_argument("--out", type=Path, help="also write JSON here")
    args = parser.parse_args()

    with gzip.open(args.texts, "rt", encoding="utf-8") as lines:
        n_best = make_n_best([line.strip() for line in lines], args.hypotheses)
    score_copies, log_likelihood = load_transformers(args.checkpoint)
    rows = []
    for path in args.files:
        model = edgebert.load(path, threads=1)
        sample = [hypothesis["text"] for hypothesis in n_best["hypotheses"][:SAMPLE]]
        found = [answer["score"] for answer in model.rescore(sample)]
        difference = max(abs(a - b) / abs(b) for a, b in zip(found, map(log_likelihood, sample), strict=True))
        if path == args.files[0] and difference > TOLERANCE:
            raise SystemExit(f"{path}: a score differs from transformers' by {difference:.1e} of its size")
        by_sentence = [mask(model, text) for text in sample]
        copies = [copy for copies in by_sentence for copy in copies]
        singles = [[copy] for copy in copies]
        num_copies = sum(h["num_tokens"] for h in model.rescore(n_best)["hypotheses"])
        ways: dict[str, tuple[Callable[[], Any], int]] = {
            "packed": (partial(model.rescore, n_best), num_copies),
            "one at a time": (partial(run_each, partial(run_copy, model), copies), len(copies)),
            "one at a time, logits of every token": (partial(run_each, partial(run_whole, model), copies), len(copies)),
            "transformers, one at a time": (partial(run_each, score_copies, singles), len(copies)),
            "transformers, a sentence at a time": (partial(run_each, score_copies, by_sentence), len(copies)),
        }
        samples = time_in_turns(
            [run for run, _ in ways.values()], rounds=ROUNDS, warm_up=False, clock=time.process_time
        )
        milliseconds = {
            name: 1e3 * float(np.median(seconds)) / count
            for (name, (_, count)), seconds in zip(ways.items(), samples, strict=True)
        }
        row = {
            "file": path.name,
            "backend": model.backend.detail,
            "hypotheses": args.hypotheses,
            "masked_copies": num_copies,
            "relative_difference_to_transformers": difference,
            "milliseconds_a_copy": milliseconds,
            "times_faster_than": {
                name: round(value / milliseconds["packed"], 2)
                for name, value in milliseconds.items()
                if name != "packed"
            },
            "peak_megabytes_after_lists_of": {},
        }
        with multiprocessing.get_context("spawn").Pool(1) as pool:
            sizes = [factor * args.hypotheses for factor in (1, 2, 4)]
            peaks = pool.apply(measure_peaks, (path, [h["text"] for h in n_best["hypotheses"]], sizes))
            row["peak_megabytes_after_lists_of"] = {str(size): peak for size, peak in zip(sizes, peaks, strict=True)}
        print(json.dumps(row, indent=1))
        rows.append(row)
    if args.out:
        write_result(args.out, {**describe_run("benchmarks.rescoring"), "rows": rows})
    return 0


def make_n_best(sentences: list[str], count: int) -> dict[str, Any]:
    """Variants of one sentence of 14 to 18 words with a word or a few exchanged, dropped or added; random scores."""
    rng = random.Random(0)
    words = sorted({word for sentence in sentences for word in sentence.split()})
    base = next(sentence for sentence in sentences if 14 <= len(sentence.split()) <= 18).split()
    hypotheses = []
    for _ in range(count):
        variant = list(base)
        for _ in range(rng.choice((0, 1, 1, 2, 3))):
            place, kind = rng.randrange(len(variant)), rng.random()
            variant[place : place + (kind < 0.85)] = [] if 0.7 <= kind < 0.85 else [rng.choice(words)]
        hypotheses.append({"text": " ".join(variant), "score": -20 * rng.random()})
    return {"hypotheses": hypotheses}


def mask(model: edgebert.Model, text: str) -> list[Copy]:
    """(token ids with a mask, its place) for each token of a text."""
    assert model.tokenizer and model.tokenizer.mask_id is not None
    ids: list[int] = model.tokenizer.tokenize([text])[0].input_ids.tolist()
    return [([*ids[:i], model.tokenizer.mask_id, *ids[i + 1 :]], i) for i in range(1, len(ids) - 1)]


def run_copy(model: edgebert.Model, copy: Copy) -> np.ndarray:
    """The masked token's log probabilities, from a batch of one copy whose mask alone gets logits."""
    ids, place = copy
    batch = replace(PackedBatch.from_lists([ids]), output_tokens=np.array([place], np.int32))
    return log_softmax(model.forward(batch, model.spec.outputs[:1])[model.spec.outputs[0]][0])


def run_whole(model: edgebert.Model, copy: Copy) -> np.ndarray:
    """The same from a batch of one copy whose every token gets logits."""
    ids, place = copy
    return log_softmax(
        model.forward(PackedBatch.from_lists([ids]), model.spec.outputs[:1])[model.spec.outputs[0]][place]
    )


def log_softmax(logits: np.ndarray) -> np.ndarray:
    logits = logits - logits.max()
    log_probabilities: np.ndarray = logits - np.log(np.exp(logits).sum())
    return log_probabilities


def measure_peaks(path: Path, texts: list[str], sizes: list[int]) -> list[int]:
    """Of this process, in megabytes, after a list of each size."""
    model = edgebert.load(path, threads=1)
    peaks = []
    for size in sizes:
        model.rescore(make_n_best(texts, size))
        peaks.append(round(peak_mb()))
    return peaks


def load_transformers(checkpoint: Path) -> tuple[Callable[[list[Copy]], Any], Callable[[str], float]]:
    """(log probabilities of the masks of copies of one length, the pseudo-log-likelihood of a text), on one thread."""
    import torch
    import transformers

    torch.set_num_threads(1)
    torch.set_grad_enabled(False)
    model = transformers.AutoModelForMaskedLM.from_pretrained(checkpoint).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(checkpoint)

    def score_copies(copies: list[Copy]) -> Any:
        ids, places = zip(*copies, strict=True)
        return model(torch.tensor(ids)).logits[range(len(ids)), list(places)].log_softmax(-1)

    def log_likelihood(text: str) -> float:
        ids = tokenizer(text).input_ids
        places = range(1, len(ids) - 1)
        copies = [([*ids[:i], tokenizer.mask_token_id, *ids[i + 1 :]], i) for i in places]
        return sum(float(score_copies([copy])[0, ids[copy[1]]]) for copy in copies)

    return score_copies, log_likelihood


def run_each(run: Callable[[Any], Any], items: list[Any]) -> None:
    for item in items:
        run(item)


if __name__ == "__main__":
    raise SystemExit(main())
