"""The metric of each task, from a model's outputs: a written file's where it counts, PyTorch's while it trains."""

from __future__ import annotations

import re
import string
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import stats

from edgebert.artifact.spec import EncoderSpec
from edgebert.backends.base import Outputs
from edgebert.batch import PackedBatch
from edgebert.checkpoints.loading import Checkpoint
from edgebert.compress.data import Answer, Dataset
from edgebert.compress.encode import IGNORED, Examples, find_special_tokens
from edgebert.compress.torch_encoder import TorchEncoder
from edgebert.quant import F32

MAX_ANSWER_TOKENS = 30
_BATCH_TOKENS = 4096
_MASK_EVERY = 8

Run = Callable[[PackedBatch], Outputs]  # a packed batch to the outputs of the spec, packed: see Model.forward


@dataclass(frozen=True)
class Mistake:
    """An example that went wrong, for the report: `badness` orders them."""

    badness: float
    text: str
    expected: str
    found: str


@dataclass(frozen=True)
class Evaluation:
    """Metrics in [0, 1], correlations in [-1, 1]; the first is the one that counts. And the worst examples first."""

    metrics: dict[str, float]
    mistakes: list[Mistake]

    @property
    def score(self) -> float:
        """The metric that counts."""
        return next(iter(self.metrics.values()))


def run_torch(model: TorchEncoder) -> Run:
    """Outputs of a model in training, without dropout."""
    device = next(model.parameters()).device

    def run(batch: PackedBatch) -> Outputs:
        padded = batch.pad(model.spec.pad_token_id)
        ids, mask, types = (torch.from_numpy(array).to(device) for array in padded)
        with torch.no_grad():
            outputs = model.eval()(ids, mask, types)
        return {
            name: outputs[name][mask.bool()].float().cpu().numpy()
            if model.spec.output_width(name)[0]
            else outputs[name].float().cpu().numpy()
            for name in model.spec.outputs
        }

    return run


def _run_sorted(spec: EncoderSpec, batch: PackedBatch, run: Run) -> Outputs:
    order = np.argsort(-batch.lengths, kind="stable")
    ordered = batch.take(order)
    parts = [run(ordered.take(range(first, last))) for first, last in ordered.split(_BATCH_TOKENS)]
    outputs = {}
    for name in spec.outputs:
        rows = np.concatenate([part[name] for part in parts])
        back = np.empty_like(rows)
        if spec.output_width(name)[0]:
            back[_token_rows(batch, order)] = rows
        else:
            back[order] = rows
        outputs[name] = back
    return outputs


def _token_rows(batch: PackedBatch, order: NDArray[np.int64]) -> NDArray[np.int64]:
    """Row of each token of `batch.take(order)` in `batch`."""
    return np.concatenate([np.arange(batch.cu_seqlens[i], batch.cu_seqlens[i + 1]) for i in order])


def evaluate(checkpoint: Checkpoint, dataset: Dataset, examples: Examples, run: Run) -> Evaluation:
    """The metrics of a model on a dataset.

    Text classification: accuracy and macro F1; of several labels at once micro F1; of scores Spearman's and Pearson's
    correlation. Token classification: F1 of entities as seqeval counts them. Question answering: exact match and F1 of
    words, as SQuAD normalises them (arXiv 1606.05250, section 6.1). Embeddings: correlation of cosine and score, or how
    often a text's partner is the nearest of all partners. Fill-mask: how many of the masked tokens, every eighth, are
    guessed.

    Args:
        checkpoint: the model's spec and tokenizer.
        dataset: what is expected.
        examples: the dataset, encoded with the model's tokenizer.
        run: the model.
    """
    spec = checkpoint.spec
    if spec.task == "fill-mask":
        return _evaluate_fill_mask(dataset, examples, run, *find_special_tokens(checkpoint))
    outputs = _run_sorted(spec, examples.batch, run)
    if spec.task == "embedding":
        return _evaluate_embedding(dataset, outputs["sentence_embedding"])
    if spec.task == "question-answering":
        return _evaluate_answers(dataset, examples, outputs)
    if spec.task == "token-classification":
        return _evaluate_tags(spec, dataset, examples, outputs["logits"])
    return _evaluate_labels(spec, dataset, outputs["logits"])


def _worst(mistakes: list[Mistake]) -> list[Mistake]:
    return sorted(mistakes, key=lambda mistake: -mistake.badness)


def _show(item: Any) -> str:
    return item if isinstance(item, str) else " | ".join(item)


def _evaluate_labels(spec: EncoderSpec, dataset: Dataset, logits: F32) -> Evaluation:
    if spec.problem_type == "regression":
        return _correlate(dataset, logits[:, 0])
    labels = np.array(spec.labels)
    if spec.problem_type == "multi_label_classification":
        chosen = [frozenset(labels[row > 0]) for row in logits]
        wanted = [frozenset(target) for target in dataset.targets]
        both = sum(len(a & b) for a, b in zip(chosen, wanted, strict=True))
        metrics = {
            "micro_f1": _f1(both, sum(map(len, chosen)), sum(map(len, wanted))),
            "accuracy": float(np.mean([a == b for a, b in zip(chosen, wanted, strict=True)])),
        }
        mistakes = [
            Mistake(len(a ^ b), _show(item), ", ".join(sorted(b)), ", ".join(sorted(a)))
            for item, a, b in zip(dataset.inputs, chosen, wanted, strict=True)
            if a != b
        ]
        return Evaluation(metrics, _worst(mistakes))
    found = labels[logits.argmax(axis=1)]
    expected = np.array(dataset.targets)
    classes = [label for label in spec.labels if (expected == label).any()]
    scores = [
        _f1(int(((found == c) & (expected == c)).sum()), int((found == c).sum()), int((expected == c).sum()))
        for c in classes
    ]
    log_odds = logits - logits.max(axis=1, keepdims=True)
    index = {label: i for i, label in enumerate(spec.labels)}
    mistakes = [
        Mistake(float(-log_odds[i, index[expected[i]]]), _show(dataset.inputs[i]), str(expected[i]), str(found[i]))
        for i in np.flatnonzero(found != expected)
    ]
    metrics = {"accuracy": float((found == expected).mean()), "macro_f1": float(np.mean(scores))}
    return Evaluation(metrics, _worst(mistakes))


def _f1(both: int, found: int, expected: int) -> float:
    return 2 * both / (found + expected) if found + expected else 0.0


def _correlate(dataset: Dataset, found: NDArray[Any]) -> Evaluation:
    expected = np.array(dataset.targets, np.float64)
    metrics = {
        "spearman": float(stats.spearmanr(found, expected).statistic),
        "pearson": float(stats.pearsonr(found, expected).statistic),
    }
    distance = np.abs(stats.rankdata(found) - stats.rankdata(expected)) / len(expected)
    mistakes = [
        Mistake(float(distance[i]), _show(dataset.inputs[i]), f"{expected[i]:.3g}", f"{found[i]:.3g}")
        for i in range(len(expected))
    ]
    return Evaluation({name: value if np.isfinite(value) else 0.0 for name, value in metrics.items()}, _worst(mistakes))


def _evaluate_embedding(dataset: Dataset, rows: F32) -> Evaluation:
    unit = rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-12)
    first, second = unit[0::2], unit[1::2]
    if dataset.problem_type == "regression":
        return _correlate(dataset, (first * second).sum(axis=1))
    similarity = first @ second.T
    partner = similarity.diagonal()
    ranks = (similarity > partner[:, None]).sum(axis=1)
    nearest = similarity.argmax(axis=1)
    mistakes = [
        Mistake(float(ranks[i]), dataset.inputs[i][0], dataset.inputs[i][1], dataset.inputs[nearest[i]][1])
        for i in np.flatnonzero(ranks)
    ]
    metrics = {"recall_at_1": float((ranks == 0).mean()), "mrr": float((1.0 / (1.0 + ranks)).mean())}
    return Evaluation(metrics, _worst(mistakes))


def _evaluate_fill_mask(
    dataset: Dataset, examples: Examples, run: Run, mask_token_id: int, special_ids: list[int]
) -> Evaluation:
    right = asked = 0
    mistakes = []
    for i, text in enumerate(dataset.inputs):
        batch = examples.batch.take([i])
        places = np.flatnonzero(~np.isin(batch.input_ids, special_ids))[::_MASK_EVERY]
        if not len(places):
            continue
        ids = batch.input_ids.copy()
        ids[places] = mask_token_id
        found = run(replace(batch, input_ids=ids))["logits"][places].argmax(axis=1)
        hits = int((found == batch.input_ids[places]).sum())
        right, asked = right + hits, asked + len(places)
        mistakes.append(Mistake(1 - hits / len(places), text, f"{len(places)} masked tokens", f"{hits} of them"))
    return Evaluation({"masked_accuracy": right / max(1, asked)}, _worst(mistakes))


# Token classification


def find_entities(tags: Sequence[str]) -> set[tuple[str, int, int]]:
    """(type, first word, last word) of the entities in BIO or IOBES tags, as seqeval's default mode reads them.

    A tag without a prefix is a type of its own: neighbours that share it are an entity. I- after another type, or after
    O, begins an entity.
    """
    entities, start, previous, kind = set(), 0, "O", ""
    for i, tag in enumerate([*tags, "O"]):
        prefix, _, name = tag.partition("-") if tag != "O" else ("O", "", "")
        if tag != "O" and not name:
            prefix, name = "I", tag
        ends = previous in ("E", "S") or prefix in ("B", "S", "O") or name != kind
        if previous != "O" and ends:
            entities.add((kind, start, i - 1))
        if prefix != "O" and (previous == "O" or ends):
            start = i
        previous, kind = prefix, name
    return entities


def _evaluate_tags(spec: EncoderSpec, dataset: Dataset, examples: Examples, logits: F32) -> Evaluation:
    best = logits.argmax(axis=1)
    cuts = examples.batch.cu_seqlens
    both = num_found = num_expected = right = words = 0
    mistakes = []
    for i, (item, tags) in enumerate(zip(dataset.inputs, dataset.targets, strict=True)):
        pieces = iter(best[cuts[i] : cuts[i + 1]][examples.targets[i] != IGNORED])
        # words cut off by the length limit, and those without a token, have no answer
        answers = [spec.labels[next(pieces)] if has_piece else "O" for has_piece in examples.has_piece[i]]
        found, expected = find_entities(answers), find_entities(tags)
        both, num_found, num_expected = (
            both + len(found & expected),
            num_found + len(found),
            num_expected + len(expected),
        )
        right += sum(a == b for a, b in zip(answers, tags, strict=True))
        words += len(tags)
        if found != expected:
            show = [
                ", ".join(f"{' '.join(item[a : b + 1])}: {kind}" for kind, a, b in sorted(spans, key=lambda s: s[1]))
                for spans in (expected, found)
            ]
            mistakes.append(Mistake(len(found ^ expected), " ".join(item), *show))
    metrics = {"entity_f1": _f1(both, num_found, num_expected), "tag_accuracy": right / words}
    if not any("-" in label for label in spec.labels):  # part-of-speech tags, say: there are no entities to count
        del metrics["entity_f1"]
    return Evaluation(metrics, _worst(mistakes))


# Question answering


def _evaluate_answers(dataset: Dataset, examples: Examples, outputs: Outputs) -> Evaluation:
    best: dict[int, tuple[float, str]] = {}
    cuts = examples.batch.cu_seqlens
    for i, window in enumerate(examples.windows):
        start, end = (outputs[name][cuts[i] : cuts[i + 1]] for name in ("start_logits", "end_logits"))
        context = dataset.inputs[window.example][1]
        score, text = _best_span(start, end, window.offsets, context)
        if score > best.get(window.example, (-np.inf, ""))[0]:
            best[window.example] = (score, text)
    exact, overlap, mistakes = [], [], []
    for i, answers in enumerate(dataset.targets):
        found = best[i][1]
        exact.append(max((float(_normalize(found) == _normalize(a.text)) for a in answers), default=float(not found)))
        overlap.append(max((word_f1(found, answer) for answer in answers), default=float(not found)))
        if not exact[-1]:
            question, expected = dataset.inputs[i][0], " | ".join(answer.text for answer in answers)
            mistakes.append(Mistake(1.0 - overlap[-1], question, expected, found))
    return Evaluation({"exact_match": float(np.mean(exact)), "f1": float(np.mean(overlap))}, _worst(mistakes))


def _best_span(start: F32, end: F32, offsets: NDArray[np.int64], context: str) -> tuple[float, str]:
    """(score, text) of the best span inside the context."""
    inside = np.flatnonzero(offsets[:, 0] >= 0)
    if not len(inside):
        return -np.inf, ""
    scores = start[inside][:, None] + end[inside][None, :]
    scores = np.where(np.triu(np.tril(np.ones_like(scores), MAX_ANSWER_TOKENS - 1)) > 0, scores, -np.inf)
    first, last = np.unravel_index(scores.argmax(), scores.shape)
    return float(scores[first, last]), context[offsets[inside[first], 0] : offsets[inside[last], 1]]


def _normalize(text: str) -> str:
    """Lower case, without punctuation, articles and extra blanks."""
    text = "".join(character for character in text.lower() if character not in string.punctuation)
    return " ".join(re.sub(r"\b(a|an|the)\b", " ", text).split())


# Chinese and Japanese have no blanks: each of their characters counts as a word, as in CMRC 2018 (arXiv 1810.07366).
_IDEOGRAPHS = "\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff"
_WORD = re.compile(rf"[{_IDEOGRAPHS}]|[^\s{_IDEOGRAPHS}]+")


def word_f1(found: str, answer: Answer) -> float:
    """F1 of the words of two answers, each a bag."""
    words, expected = (_WORD.findall(_normalize(text)) for text in (found, answer.text))
    both = sum((Counter(words) & Counter(expected)).values())
    return _f1(both, len(words), len(expected)) if words or expected else 1.0
