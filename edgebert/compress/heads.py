"""A checkpoint with the head that the task and its labels ask for: its own where it fits, else a new one."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from edgebert.artifact.names import weight_tensors
from edgebert.artifact.spec import EncoderSpec
from edgebert.checkpoints.families import FAMILY_TABLES
from edgebert.checkpoints.loading import Checkpoint, load_checkpoint
from edgebert.compress.data import Dataset
from edgebert.errors import UnsupportedModelError
from edgebert.quant import F32

_INITIAL_STD = 0.02  # of new linears, as BERT begins (arXiv 1810.04805; `initializer_range` of its configs)
DEFAULT_LENGTH = 512
_NEW_HEADS = ("text-classification", "token-classification", "question-answering")


def load_for_task(source: str | Path, dataset: Dataset, *, seed: int = 0, family: str | None = None) -> Checkpoint:
    """Load a checkpoint and give it the head that the dataset's task and labels ask for.

    A head of the same task with the same labels is kept. Else a new classifier is drawn; the dense layer before it is
    BERT's pooler where the checkpoint has one, as in transformers.

    Args:
        source: as `load_checkpoint` takes it.
        dataset: whose task, labels and problem type the model is for.
        seed: of what is drawn.
        family: as `load_checkpoint` takes it.

    Raises:
        ModelFormatError: no such source, or files missing or damaged.
        UnsupportedModelError: a model outside what EdgeBERT supports.
    """
    task = dataset.task
    if task not in _NEW_HEADS:
        return load_checkpoint(source, task, family)
    try:
        checkpoint = load_checkpoint(source, task, family)
        fits = task == "question-answering" or sorted(checkpoint.spec.labels) == sorted(dataset.labels)
        if fits and (task != "text-classification" or checkpoint.spec.problem_type == dataset.problem_type):
            return checkpoint
    except UnsupportedModelError:  # the source has no such head
        pass
    try:
        body = load_checkpoint(source, "embedding:pooler", family)
    except UnsupportedModelError:  # nor a pooler
        body = load_checkpoint(source, "embedding:none", family)
    head: dict[str, Any] = {"pooling": "none", "dense_size": 0, "dense_activation": "identity"}
    if task == "text-classification":
        activation = FAMILY_TABLES[body.spec.family].dense_activation
        head = {"pooling": "cls", "dense_size": body.spec.hidden_size, "dense_activation": activation}
        head["problem_type"] = dataset.problem_type
    spec = body.spec.replace(
        task=task,
        labels=dataset.labels,
        normalize=False,
        prompts={},
        default_prompt_name=None,
        max_length=min(DEFAULT_LENGTH, body.spec.usable_positions),  # an embedding model's own may be shorter
        **head,
    )
    return replace(body, spec=spec, tensors=draw_tensors(spec, body.tensors, seed))


def draw_tensors(spec: EncoderSpec, given: Mapping[str, F32], seed: int) -> dict[str, F32]:
    """The tensors of a spec: those given, and for the others what BERT begins with."""
    rng = np.random.default_rng(seed)
    tensors = {}
    for name, (_, shape) in weight_tensors(spec).items():
        if name in given:
            tensors[name] = given[name]
        elif name.endswith(".bias"):
            tensors[name] = np.zeros(shape, np.float32)
        elif name.endswith("layer_norm.weight"):
            tensors[name] = np.ones(shape, np.float32)
        else:
            tensors[name] = (_INITIAL_STD * rng.standard_normal(shape)).astype(np.float32)
    return tensors
