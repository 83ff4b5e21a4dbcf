"""A checkpoint with the head that the task and its labels ask for: its own where it fits, else a new one."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from edgebert.artifact.names import weight_tensors
from edgebert.artifact.spec import EncoderSpec
from edgebert.checkpoints.families import FAMILY_TABLES
from edgebert.checkpoints.loading import Checkpoint, dense_head, load_checkpoint
from edgebert.compress.data import Dataset
from edgebert.errors import InvalidInputError, UnsupportedModelError
from edgebert.quant import F32

_INITIAL_STD = 0.02  # of new linears, as BERT begins (arXiv 1810.04805; `initializer_range` of its configs)
DEFAULT_LENGTH = 512
_NEW_HEADS = ("text-classification", "token-classification", "question-answering")


def load_for_task(
    source: str | Path,
    dataset: Dataset,
    *,
    seed: int = 0,
    family: str | None = None,
    label_map: Mapping[str, str] | None = None,
    must_keep: bool = False,
    say: Callable[[str], None] = lambda text: None,
) -> tuple[Checkpoint, dict[str, str]]:
    """Load a checkpoint and give it the head that the dataset's task and labels ask for.

    The checkpoint's head is kept if it is for the same task and `match_labels` finds the data's labels in it; its names
    for them stay. Otherwise a new classifier is drawn; the dense layer before it is BERT's pooler where the checkpoint
    has one, as in transformers.

    Args:
        source: as `load_checkpoint` takes it.
        dataset: whose task, labels and problem type the model is for.
        seed: of what is drawn.
        family: as `load_checkpoint` takes it.
        label_map: as `match_labels` takes it.
        must_keep: refuse to draw a new classifier, because nothing would train it.
        say: called with a line if labels are renamed or a new head is drawn.

    Returns:
        (the checkpoint, the head's name for each label of the data).

    Raises:
        ModelFormatError: no such source, or files missing or damaged.
        UnsupportedModelError: a model outside what EdgeBERT supports.
        InvalidInputError: a new classifier is needed and `must_keep`; a `label_map` that does not fit.
    """
    task = dataset.task
    if task not in _NEW_HEADS:
        return load_checkpoint(source, task, family), {}
    try:
        checkpoint = load_checkpoint(source, task, family)
    except UnsupportedModelError:
        reason = f"the checkpoint has no head for {task}"
    else:
        spec = checkpoint.spec
        names = match_labels(spec, dataset, label_map)
        if task == "text-classification" and spec.problem_type != dataset.problem_type:
            reason = f"the checkpoint's head is for {spec.problem_type}, the data for {dataset.problem_type}"
        elif names is not None:
            if others := [f"{ours} is {theirs}" for ours, theirs in names.items() if ours != theirs]:
                say(f"the data's labels under the checkpoint's names: {_listed(others)}")
            return checkpoint, names
        else:
            reason = (
                f"the checkpoint's labels are {_listed(spec.labels)}, the data's {_listed(dataset.labels)}; "
                "--label-map DATA=CHECKPOINT says which is which"
            )
    if label_map:
        raise InvalidInputError(f"a label map is for a trained head, but {reason}: leave it out")
    if must_keep:
        raise InvalidInputError(f"without fine-tuning the head must be a trained one, but {reason}: or fine-tune it")
    say(f"the head begins anew: {reason}")
    try:
        body = load_checkpoint(source, "embedding:pooler", family)
    except UnsupportedModelError:  # nor a pooler
        body = load_checkpoint(source, "embedding:none", family)
    head: dict[str, Any] = {"pooling": "none", "dense_size": 0, "dense_activation": "identity"}
    head |= dense_head(body.config, FAMILY_TABLES[body.spec.family], task)
    if task == "text-classification":
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
    checkpoint = replace(body, spec=spec, tensors=draw_tensors(spec, body.tensors, seed))
    return checkpoint, {label: label for label in dataset.labels}


def match_labels(
    spec: EncoderSpec, dataset: Dataset, label_map: Mapping[str, str] | None = None
) -> dict[str, str] | None:
    """The head's name for each label of the data; None if some label has no match.

    Labels match if they are equal, or differ only in case; a number matches `LABEL_` and that number; `label_map` says
    the rest. The head may have more labels than the data. The single label of a score matches any other.

    Args:
        spec: the head's.
        dataset: the data.
        label_map: the data's label -> the head's, for those that differ.

    Raises:
        InvalidInputError: `label_map` names a label that the data or the head lacks, or one label twice.
    """
    if label_map:
        names = {label: label_map.get(label, label) for label in dataset.labels}
        unknown = [*(label_map.keys() - names.keys()), *(set(label_map.values()) - set(spec.labels))]
        if unknown or len(set(names.values())) < len(names):
            pairs = _listed(f"{ours}={theirs}" for ours, theirs in label_map.items())
            raise InvalidInputError(
                f"the label map {pairs} does not fit: the data's labels are {_listed(dataset.labels)}, the "
                f"checkpoint's {_listed(spec.labels)}; give each of the data's one of the checkpoint's"
            )
        return names if set(names.values()) <= set(spec.labels) else None
    if len(dataset.labels) == len(spec.labels) == 1 or not dataset.labels:  # scores; answers
        return dict(zip(dataset.labels, spec.labels, strict=False))
    folded = {label.casefold(): label for label in spec.labels}
    for named in (
        {label: label for label in spec.labels},
        {label: folded.get(label.casefold()) for label in dataset.labels} if len(folded) == len(spec.labels) else {},
        {label.removeprefix("LABEL_"): label for label in spec.labels},
    ):
        names = {label: name for label in dataset.labels if (name := named.get(label)) is not None}
        if len(set(names.values())) == len(dataset.labels):
            return names
    return None


def _listed(labels: Iterable[str]) -> str:
    """Some of them, for a message."""
    labels = list(labels)
    return ", ".join(labels[:10]) + (f", … ({len(labels)})" if len(labels) > 10 else "")


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
