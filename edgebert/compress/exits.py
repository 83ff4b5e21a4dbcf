"""Exits: heads after the layers, at which a text that is sure leaves, and from which margin on it may.

That is chosen as Learn then Test has it (Angelopoulos, Bates et al., arXiv 2110.01052, sections 2 and 4), on rows that
nothing else was chosen or trained with. The risk is the share of texts whose answer differs from the one that all
layers of the same file give. Thresholds are tested from the safest down, in an order that was fixed before (fixed
sequence testing): that the risk is larger than allowed has an exact p-value, the binomial distribution's, and the first
threshold for which it is not refuted ends the sequence. The one before keeps the risk, but for 1 - confidence of all
calibrations.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import stats

import edgebert
from edgebert.artifact.integrity import add_metadata
from edgebert.artifact.reader import read_artifact
from edgebert.artifact.spec import EncoderSpec, ExitSpec
from edgebert.checkpoints.loading import Checkpoint
from edgebert.compress.data import Dataset
from edgebert.compress.heads import draw_tensors
from edgebert.compress.judge import group_rows
from edgebert.errors import InvalidInputError
from edgebert.quant import F32
from edgebert.runner import BATCH_TOKENS

THRESHOLDS = np.arange(24 * 8, -1, -1, dtype=np.float32) / 8  # that are tested, the safest first


@dataclass(frozen=True)
class Observation:
    """What a file's exits say of some texts.

    Attributes:
        after: int [exits], how many layers are before each; then that of all layers.
        margins: f32 [exits, n], of each text the smallest.
        differs: bool [exits, n], whether the answer there is another than at full depth.
    """

    after: NDArray[np.int64]
    margins: F32
    differs: NDArray[np.bool_]

    def take(self, indices: NDArray[np.int64]) -> Observation:
        """The texts at `indices`."""
        return replace(self, margins=self.margins[:, indices], differs=self.differs[:, indices])

    def leave(self, threshold: float) -> NDArray[np.int64]:
        """The place in `after` at which each text leaves, int64 [n]."""
        is_sure = np.vstack([self.margins >= np.float32(threshold), np.ones(self.margins.shape[1], bool)])
        places: NDArray[np.int64] = is_sure.argmax(axis=0)
        return places

    def count_differing(self, threshold: float) -> int:
        """Texts that leave with another answer than they would get at full depth."""
        never = np.zeros(self.differs.shape[1], bool)
        return int(np.vstack([self.differs, never])[self.leave(threshold), np.arange(len(never))].sum())

    def describe(self, threshold: float | None) -> dict[str, Any]:
        """For the report: the share of texts that leaves at each depth, the mean depth, the share that differs."""
        left = self.leave(math.inf if threshold is None else threshold)
        shares = np.bincount(left, minlength=len(self.after)) / len(left)
        differ = 0 if threshold is None else self.count_differing(threshold)
        return {
            "texts": len(left),
            "shares": dict(zip(map(str, self.after.tolist()), shares.tolist(), strict=True)),
            "mean_depth": float(self.after @ shares),
            "differ": differ / len(left),
        }


def add_exits(checkpoint: Checkpoint, seed: int) -> Checkpoint:
    """A checkpoint with an exit after each layer but the last, untrained, at which nothing leaves yet.

    Raises:
        InvalidInputError: it can have no exits.
    """
    spec, depths = checkpoint.spec, len(checkpoint.spec.layer_order)
    if (reason := spec.why_no_exits) is not None:
        raise InvalidInputError(f"the model can have no exits, {reason}: leave out --exits")
    if depths < 2:
        raise InvalidInputError(f"the model has {depths} layer, exits need two or more: leave out --exits")
    spec = spec.replace(exits=tuple(ExitSpec(after) for after in range(1, depths)))
    return replace(checkpoint, spec=spec, tensors=draw_tensors(spec, checkpoint.tensors, seed))


def check_rows(dataset: Dataset, risk: float, confidence: float) -> None:
    """Refuse to calibrate on rows that are too few to promise anything.

    Raises:
        InvalidInputError: they are.
    """
    count, needed = len(independent_rows(dataset)), rows_needed(risk, confidence)
    if count < needed:
        raise InvalidInputError(
            f"no threshold of exits can be promised with {count} rows that share no text, held out of "
            f"{dataset.source}: a risk of {risk:g} with a confidence of {confidence:g} needs {needed}, so about "
            f"{5 * needed} rows in all, of which two tenths are held out for this. Give more, or a larger --exit-risk"
        )


def rows_needed(risk: float, confidence: float) -> int:
    """With fewer rows not even a threshold at which no answer differs keeps the risk with that confidence."""
    return math.ceil(math.log(1 - confidence) / math.log(1 - risk))


def calibrate(path: Path, dataset: Dataset, risk: float, confidence: float, max_length: int | None) -> float | None:
    """Choose the margin from which on texts leave, and write it into a file.

    Args:
        path: the file, with exits; changed.
        dataset: rows that nothing else was chosen or trained with.
        risk: the share of texts whose answers may differ from those of full depth.
        confidence: that it is no larger.
        max_length: tokens a row has at most; None takes the model's limit.

    Returns:
        The threshold; None where none keeps the risk: nothing leaves then.
    """
    observed = observe(path, dataset, max_length).take(independent_rows(dataset))
    threshold = choose_threshold(observed, risk, confidence)
    _set_thresholds(path, [threshold] * (len(observed.after) - 1))
    return threshold


def choose_threshold(observed: Observation, risk: float, confidence: float) -> float | None:
    """The smallest threshold that is shown to keep the risk, of independent texts; None: there is none."""
    differing = [observed.count_differing(threshold) for threshold in THRESHOLDS]
    p_values = stats.binom.cdf(differing, observed.margins.shape[1], risk)
    is_refuted = np.append(p_values <= 1 - confidence, False)
    num_refuted = int(is_refuted.argmin())  # before the first that is not
    return float(THRESHOLDS[num_refuted - 1]) if num_refuted else None


def observe(path: Path, dataset: Dataset, max_length: int | None) -> Observation:
    """What a file's exits say of the texts of a dataset; its thresholds are as they were when this is done."""
    spec = read_artifact(path).spec
    whole = _run(path, dataset, max_length, full_depth=True)
    margins, differs = [], []
    try:
        for i in range(len(spec.exits)):  # all leave here
            _set_thresholds(path, [0.0 if i == j else None for j in range(len(spec.exits))])
            logits = _run(path, dataset, max_length)
            margins.append([spec.margins(rows).min() for rows in logits])
            differs.append([(_answers(spec, a) != _answers(spec, b)).any() for a, b in zip(logits, whole, strict=True)])
    finally:
        _set_thresholds(path, [each.threshold for each in spec.exits])
    after = np.array([*(each.after for each in spec.exits), len(spec.layer_order)])
    return Observation(after, np.array(margins, np.float32), np.array(differs, bool))


def _answers(spec: EncoderSpec, logits: F32) -> NDArray[Any]:
    if spec.problem_type == "multi_label_classification" or len(spec.labels) == 1:
        return np.asarray(logits > 0)
    return np.asarray(logits.argmax(axis=1))


def _run(path: Path, dataset: Dataset, max_length: int | None, full_depth: bool = False) -> list[F32]:
    """The logits of each text, f32 [1 or its tokens, labels]."""
    model = edgebert.load(path, full_depth=full_depth)
    assert model.tokenizer is not None  # see `load_tokenizer`
    limit = min(max_length or model.spec.max_length, model.spec.max_length)
    batch, _ = model.tokenizer.tokenize(dataset.texts(), limit)
    order = np.argsort(batch.lengths, kind="stable")
    ordered = batch.take(order)
    found: list[F32] = []
    for first, last in ordered.split(BATCH_TOKENS):
        part = ordered.take(range(first, last))
        logits = model.backend.run(part, ["logits"])["logits"]
        cuts = part.cu_seqlens[1:-1] if len(logits) == part.total_tokens else range(1, part.num_sequences)
        found += np.split(logits, cuts)
    return [found[i] for i in np.argsort(order, kind="stable")]


def independent_rows(dataset: Dataset) -> NDArray[np.int64]:
    """One row of each group that shares a text: the others are not independent of it."""
    return np.unique(group_rows(dataset.parts()), return_index=True)[1].astype(np.int64)


def _set_thresholds(path: Path, thresholds: list[float | None]) -> None:
    spec = read_artifact(path, verify=False).spec
    exits = tuple(replace(each, threshold=threshold) for each, threshold in zip(spec.exits, thresholds, strict=True))
    add_metadata(path, {"edgebert.spec": spec.replace(exits=exits).to_json()})
