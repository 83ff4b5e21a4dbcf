"""The metric of each task, computed from a model's answers: those of a file, or of a PyTorch model in training."""

from __future__ import annotations

import re
import string
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import stats

from edgebert.artifact.spec import EncoderSpec
from edgebert.backends.base import Backend, Outputs
from edgebert.batch import PackedBatch
from edgebert.compress.data import Answer, Dataset
from edgebert.compress.encode import first_pieces
from edgebert.compress.judge import RowScores, score
from edgebert.compress.torch_encoder import TorchEncoder
from edgebert.errors import InvalidInputError
from edgebert.quant import F32
from edgebert.runner import answer, run_rows
from edgebert.tasks import fill_mask
from edgebert.tasks.base import make_rows
from edgebert.tasks.embedding import semantic_search
from edgebert.tokenizer import Tokenizer

FOUND = 10  # that a query's metrics look at
NEIGHBOURS = 10  # of a text, that another model is to find again
_MASK_EVERY = 8


@dataclass(frozen=True)
class Mistake:
    """An example that went wrong, for the report: `badness` orders them."""

    badness: float
    text: str
    expected: str
    found: str


@dataclass(frozen=True)
class Evaluation:
    """What was found.

    Attributes:
        metrics: in [0, 1], correlations in [-1, 1]; the first is the score.
        rows: what each row adds to the score.
        mistakes: the worst first.
    """

    metrics: dict[str, float]
    rows: RowScores
    mistakes: list[Mistake]

    @property
    def score(self) -> float:
        """The first metric."""
        return next(iter(self.metrics.values()))


class TorchBackend(Backend):
    """A model in training, without dropout."""

    name = "torch"

    def __init__(self, model: TorchEncoder) -> None:
        self.spec = model.spec
        self.device = self.detail = str(next(model.parameters()).device)
        self._model = model

    def _run(self, batch: PackedBatch, outputs: Sequence[str]) -> Outputs:
        ids, mask, types = (torch.from_numpy(array).to(self.device) for array in batch.pad(self.spec.pad_token_id))
        with torch.no_grad():
            found = self._model.eval()(ids, mask, types)
        return {
            name: (found[name][mask.bool()] if self.spec.output_width(name)[0] else found[name]).float().cpu().numpy()
            for name in outputs
        }


def evaluate(
    backend: Backend, tokenizer: Tokenizer, dataset: Dataset, max_length: int | None = None, width: int | None = None
) -> Evaluation:
    """The metrics of a model on a dataset, from the same answers as `Model` gives.

    Text classification: accuracy and macro F1; of several labels at once micro F1; of scores Spearman's and Pearson's
    correlation. Token classification: F1 of entities as seqeval counts them. Question answering: exact match and F1 of
    words, as SQuAD normalises them (arXiv 1606.05250, section 6.1). Embeddings: correlation of cosine and score, or how
    often a text's partner is the nearest of all partners, or of texts alone how many of the nearest others by another
    model (`with_neighbours`) are nearest here, or of queries nDCG and recall of the first ten found. Fill-mask: how
    many of the masked tokens, every eighth, are guessed.

    Args:
        backend: the model.
        tokenizer: the model's.
        dataset: what is asked, and expected.
        max_length: tokens a row has at most, special tokens included; None takes the model's limit.
        width: of embeddings, leading dimensions to look at; None for all.

    Raises:
        InvalidInputError: as the task.
    """
    spec = backend.spec
    limit = min(max_length or spec.max_length, spec.max_length)
    if dataset.task == "fill-mask":
        return _evaluate_fill_mask(backend, tokenizer, dataset, limit)
    ask = partial(answer, backend, tokenizer, dataset.task, max_length=limit)
    if dataset.has_pairs:
        texts = [part for pair in dataset.inputs for part in pair]
        return _evaluate_embedding(dataset, np.asarray(ask(texts, truncate_dim=width)[0]))
    if dataset.has_queries:
        corpus = list(dict.fromkeys([*(text for _, texts in dataset.inputs for text in texts), *dataset.corpus]))
        rows = np.asarray(ask([*dataset.texts(), *corpus], truncate_dim=width)[0])
        return _evaluate_queries(dataset, corpus, rows)
    if dataset.task == "embedding":
        return _evaluate_neighbours(dataset, np.asarray(ask(dataset.inputs, truncate_dim=width)[0]))
    if dataset.task == "question-answering":
        inputs = [{"question": question, "context": context} for question, context in dataset.inputs]
        return _evaluate_answers(dataset, [best["answer"] for [best] in ask(inputs)[0]])
    if dataset.task == "token-classification":
        return _evaluate_tags(spec, dataset, ask(dataset.texts(), ignore_labels=())[0])
    return _evaluate_labels(spec, dataset, ask(dataset.inputs, top_k=None)[0])


def _worst(mistakes: list[Mistake]) -> list[Mistake]:
    return sorted(mistakes, key=lambda mistake: -mistake.badness)


def _show(item: Any) -> str:
    return item if isinstance(item, str) else " | ".join(item)


def _evaluate_labels(spec: EncoderSpec, dataset: Dataset, answers: Sequence[list[dict[str, Any]]]) -> Evaluation:
    if spec.problem_type == "regression":
        return _correlate(dataset, np.array([best["score"] for [best] in answers]))
    if spec.problem_type == "multi_label_classification":
        chosen = [frozenset(entry["label"] for entry in row if entry["score"] > 0.5) for row in answers]
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
        shares = [(2 * len(a & b), len(a) + len(b)) for a, b in zip(chosen, wanted, strict=True)]
        return Evaluation(metrics, _row_scores(shares), _worst(mistakes))
    found, expected = np.array([row[0]["label"] for row in answers]), np.array(dataset.targets)
    classes = [label for label in spec.labels if (expected == label).any()]
    scores = [
        _f1(int(((found == c) & (expected == c)).sum()), int((found == c).sum()), int((expected == c).sum()))
        for c in classes
    ]
    mistakes = []
    for i in np.flatnonzero(found != expected).tolist():
        of_label = {entry["label"]: entry["score"] for entry in answers[i]}
        badness = of_label[found[i]] - of_label[expected[i]]
        mistakes.append(Mistake(badness, _show(dataset.inputs[i]), str(expected[i]), str(found[i])))
    metrics = {"accuracy": float((found == expected).mean()), "macro_f1": float(np.mean(scores))}
    return Evaluation(metrics, _right_rows(found == expected), _worst(mistakes))


def _right_rows(is_right: Any) -> RowScores:
    """Of a metric that is the share of right rows."""
    return _row_scores([(right, 1.0) for right in is_right])


def _row_scores(shares: Sequence[tuple[float, float]]) -> RowScores:
    return RowScores(np.array(shares, np.float64))


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
    finite = {name: value if np.isfinite(value) else 0.0 for name, value in metrics.items()}
    rows = np.stack([np.asarray(found, np.float64), expected], axis=1)
    return Evaluation(finite, RowScores(rows, is_correlation=True), _worst(mistakes))


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
    return Evaluation(metrics, _right_rows(ranks == 0), _worst(mistakes))


def _evaluate_queries(dataset: Dataset, corpus: list[str], rows: F32) -> Evaluation:
    """nDCG (Järvelin and Kekäläinen 2002, with gains of 0 and 1) and recall of the first FOUND."""
    gains = 1 / np.log2(np.arange(2, FOUND + 2))
    found = semantic_search(rows[: len(dataset)], rows[len(dataset) :], FOUND)
    ndcg, recall, mistakes = [], [], []
    for (query, wanted), hits in zip(dataset.inputs, found, strict=True):
        is_wanted = np.array([corpus[hit["corpus_id"]] in wanted for hit in hits])
        ndcg.append(float(gains[: len(hits)] @ is_wanted / gains[: len(wanted)].sum()))
        recall.append(float(is_wanted.sum() / len(wanted)))
        if not is_wanted[0]:
            mistakes.append(Mistake(1 - ndcg[-1], query, wanted[0], corpus[hits[0]["corpus_id"]]))
    metrics = {f"ndcg_at_{FOUND}": float(np.mean(ndcg)), f"recall_at_{FOUND}": float(np.mean(recall))}
    return Evaluation(metrics, _row_scores([(each, 1.0) for each in ndcg]), _worst(mistakes))


def with_neighbours(dataset: Dataset, backend: Backend, tokenizer: Tokenizer, max_length: int | None = None) -> Dataset:
    """Texts alone with the NEIGHBOURS nearest others of each by a model's embeddings as targets.

    Raises:
        InvalidInputError: too few texts.
    """
    if len(dataset) <= NEIGHBOURS:
        raise InvalidInputError(
            f"{dataset.source}: {len(dataset)} texts to judge by have no {NEIGHBOURS} nearest others: give more"
        )
    limit = min(max_length or backend.spec.max_length, backend.spec.max_length)
    rows = np.asarray(answer(backend, tokenizer, "embedding", dataset.inputs, max_length=limit)[0])
    return replace(dataset, targets=list(map(tuple, find_nearest(rows, NEIGHBOURS).tolist())))


def find_nearest(rows: F32, count: int) -> NDArray[np.int64]:
    """The rows of largest cosine with each, itself left out, nearest first: f32 [n, width] to int64 [n, count]."""
    hits = semantic_search(rows, rows, count + 1)
    others = [[hit["corpus_id"] for hit in found if hit["corpus_id"] != i] for i, found in enumerate(hits)]
    return np.array([found[:count] for found in others], np.int64)


def _evaluate_neighbours(dataset: Dataset, rows: F32) -> Evaluation:
    nearest = find_nearest(rows, NEIGHBOURS).tolist()
    shares = [(len({*a} & {*b}) / NEIGHBOURS, 1.0) for a, b in zip(nearest, dataset.targets, strict=True)]
    mistakes = [
        Mistake(1 - shares[i][0], dataset.inputs[i], dataset.inputs[dataset.targets[i][0]], dataset.inputs[found[0]])
        for i, found in enumerate(nearest)
        if shares[i][0] < 1
    ]
    kept = _row_scores(shares)
    return Evaluation({f"neighbours_at_{NEIGHBOURS}": score(kept)}, kept, _worst(mistakes))


def _evaluate_fill_mask(backend: Backend, tokenizer: Tokenizer, dataset: Dataset, limit: int) -> Evaluation:
    options = fill_mask.Options(spec=backend.spec, max_length=limit, top_k=1)
    mask_id = fill_mask.find_mask(tokenizer, backend.spec)
    special_ids = [i for i in map(tokenizer.find_id, tokenizer.special_tokens) if i is not None]
    masked, originals = [], {}
    for row in make_rows(dataset.inputs, tokenizer, options)[0]:
        places = np.flatnonzero(~np.isin(row.input_ids, special_ids))[::_MASK_EVERY].astype(np.int32)
        if len(places):
            ids = row.input_ids.copy()
            ids[places] = mask_id
            masked.append(row._replace(input_ids=ids, output_tokens=places))
            originals[row.text] = row.input_ids[places].tolist()
    outputs = run_rows(backend, masked, backend.spec.outputs[:1])
    answers = fill_mask.decode(dataset.inputs, outputs, tokenizer, options)
    shares, mistakes = np.zeros((len(dataset), 2)), []
    for i, tokens in originals.items():
        hits = sum(best["token"] == token for [best], token in zip(answers[i], tokens, strict=True))
        shares[i] = hits, len(tokens)
        mistakes.append(
            Mistake(1 - hits / len(tokens), dataset.inputs[i], f"{len(tokens)} masked tokens", f"{hits} of them")
        )
    right, asked = shares.sum(axis=0).tolist()
    return Evaluation({"masked_accuracy": right / max(1, asked)}, RowScores(shares), _worst(mistakes))


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


def _evaluate_tags(spec: EncoderSpec, dataset: Dataset, answers: Sequence[list[dict[str, Any]]]) -> Evaluation:
    of_entities, of_tags, mistakes = [], [], []
    for item, tags, tokens in zip(dataset.inputs, dataset.targets, answers, strict=True):
        pieces = first_pieces(item, [(token["start"], token["end"]) for token in tokens])
        # words cut off by the length limit, and those without a token, have no answer
        labels = [tokens[piece]["entity"] if piece >= 0 else "O" for piece in pieces]
        found, expected = find_entities(labels), find_entities(tags)
        of_entities.append((2 * len(found & expected), len(found) + len(expected)))
        of_tags.append((sum(a == b for a, b in zip(labels, tags, strict=True)), len(tags)))
        if found != expected:
            show = [
                ", ".join(f"{' '.join(item[a : b + 1])}: {kind}" for kind, a, b in sorted(spans, key=lambda s: s[1]))
                for spans in (expected, found)
            ]
            mistakes.append(Mistake(len(found ^ expected), " ".join(item), *show))
    entities, tagged = _row_scores(of_entities), _row_scores(of_tags)
    metrics = {"entity_f1": score(entities), "tag_accuracy": score(tagged)}
    if not any("-" in label for label in spec.labels):  # part-of-speech tags, say: there are no entities to count
        del metrics["entity_f1"]
        return Evaluation(metrics, tagged, _worst(mistakes))
    return Evaluation(metrics, entities, _worst(mistakes))


# Question answering


def _evaluate_answers(dataset: Dataset, found: list[str]) -> Evaluation:
    exact, overlap, mistakes = [], [], []
    for (question, _), answers, text in zip(dataset.inputs, dataset.targets, found, strict=True):
        exact.append(max((float(_normalize(text) == _normalize(a.text)) for a in answers), default=float(not text)))
        overlap.append(max((word_f1(text, answer) for answer in answers), default=float(not text)))
        if not exact[-1]:
            mistakes.append(Mistake(1.0 - overlap[-1], question, " | ".join(answer.text for answer in answers), text))
    metrics = {"exact_match": float(np.mean(exact)), "f1": float(np.mean(overlap))}
    return Evaluation(metrics, _right_rows(exact), _worst(mistakes))


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
