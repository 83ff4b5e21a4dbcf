"""One file a task: `answer(runner, inputs, **options)` gives what transformers' pipeline of that task returns."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from importlib import import_module
from typing import Any

# What a file can answer, by the task of its head; `model(…)` answers the first unless told another.
TASKS_OF_HEAD: dict[str, tuple[str, ...]] = {
    "embedding": ("embedding",),
    "text-classification": ("text-classification", "reranking"),
    "token-classification": ("token-classification",),
    "question-answering": ("question-answering",),
    "fill-mask": ("fill-mask", "rescoring"),
    "next-sentence": ("next-sentence",),
    "pretraining": ("fill-mask", "rescoring", "next-sentence"),
}
UNLISTED = ("question-answering", "fill-mask")  # transformers answers a list of one without the list
# How each task is called, for messages.
INPUTS = {
    "embedding": "texts",
    "text-classification": "texts",
    "reranking": "query, documents",
    "token-classification": "texts",
    "question-answering": "question=…, context=…",
    "fill-mask": "texts",
    "rescoring": "sentences",
    "next-sentence": "pairs",
}


@cache
def find_answer(task: str) -> Callable[..., Any]:
    """The `answer` function of a task."""
    answer: Callable[..., Any] = import_module(f"edgebert.tasks.{task.replace('-', '_')}").answer
    return answer
