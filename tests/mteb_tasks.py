"""Tasks of MTEB on data that is at hand: it loads its own from the hub."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from datasets import Dataset, DatasetDict
from mteb.abstasks import AbsTaskClassification, AbsTaskRetrieval, AbsTaskSTS
from mteb.abstasks.task_metadata import TaskMetadata


def _make(base: type, kind: str, main_score: str, dataset: Any) -> Any:
    metadata = TaskMetadata(
        name=f"Local{kind}",
        description="At hand.",
        dataset={"path": "at/hand", "revision": "1"},
        type=kind,
        eval_langs=["eng-Latn"],
        main_score=main_score,
    )
    task = type(f"Local{kind}", (base,), {"metadata": metadata})()
    task.dataset, task.data_loaded = dataset, True
    return task


def make_similarity(pairs: Sequence[tuple[str, str]], scores: Sequence[float]) -> Any:
    """The rank correlation of cosines with the scores of pairs."""
    first, second = zip(*pairs, strict=True)
    rows = Dataset.from_dict({"sentence1": first, "sentence2": second, "score": scores})
    task = _make(AbsTaskSTS, "STS", "cosine_spearman", {"default": DatasetDict(test=rows)})
    task.min_score, task.max_score = min(scores), max(scores)
    return task


def make_classification(train: Sequence[tuple[str, int]], test: Sequence[tuple[str, int]]) -> Any:
    """The accuracy of a classifier trained on the embeddings of texts with labels."""
    parts = {
        name: Dataset.from_dict(dict(zip(("text", "label"), zip(*rows, strict=True), strict=True)))
        for name, rows in (("train", train), ("test", test))
    }
    return _make(AbsTaskClassification, "Classification", "accuracy", {"default": DatasetDict(**parts)})


def make_retrieval(queries: Sequence[str], corpus: Sequence[str], relevant: Sequence[int]) -> Any:
    """How high the one relevant text of each query stands."""
    parts = {
        "queries": Dataset.from_dict({"id": [f"q{i}" for i in range(len(queries))], "text": queries}),
        "corpus": Dataset.from_dict({"id": [f"d{i}" for i in range(len(corpus))], "text": corpus}),
        "relevant_docs": {f"q{i}": {f"d{j}": 1} for i, j in enumerate(relevant)},
        "top_ranked": None,
    }
    return _make(AbsTaskRetrieval, "Retrieval", "ndcg_at_10", {"default": {"test": parts}})
