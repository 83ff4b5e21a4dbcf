"""Rescoring: how likely a masked language model finds sentences, and n-best lists ranked with that.

The score of a sentence is its pseudo-log-likelihood (Salazar et al., "Masked Language Model Scoring",
arXiv 1910.14659, section 2): PLL(w) = sum over its tokens t of log P(w_t | w with w_t masked), special tokens left out.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable
from itertools import pairwise
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from edgebert.batch import I32, PackedBatch
from edgebert.errors import InvalidInputError
from edgebert.tasks.inputs import F32, I64

if TYPE_CHECKING:
    from edgebert.runner import TextRunner
    from edgebert.tokenizer import Window

CHUNK_COPIES = 1 << 14  # masked copies that are made, and compared with each other, at a time


def answer(runner: TextRunner, inputs: Any, *, weight: float = 1.0) -> Any:
    """Pseudo-log-likelihoods, and n-best lists reordered by them.

    Each token of a sentence is masked in a copy of its own. Copies are packed under the token budget, equal ones
    (hypotheses that differ in one token have such) run once, and no more of them exist at a time than a few batches.

    Args:
        runner: the file and the options all tasks have.
        inputs: a sentence, {"hypotheses": [{"text": …, "score": …}, …]} with the scores of a first pass (log
            probabilities, greater is better), or several of either.
        weight: what the pseudo-log-likelihood counts for beside a first-pass score of 1.

    Returns:
        For a sentence {"score": its pseudo-log-likelihood, "num_tokens": over how many tokens}. For an n-best list the
        same dict, its hypotheses in the new order, the best first, each with "pll", "num_tokens" and
        "total_score" = score + weight * pll added. For several inputs a list.

    Raises:
        InvalidInputError: an input or option that is not usable, or a hypothesis without a score.
    """
    if isinstance(weight, bool) or not isinstance(weight, (int, float)) or not abs(weight) <= sys.float_info.max:
        raise InvalidInputError(f"weight must be a number, got {weight!r}")
    is_single = isinstance(inputs, (str, dict))
    if not is_single and (isinstance(inputs, bytes) or not isinstance(inputs, Iterable)):
        raise InvalidInputError(f"expected sentences or n-best lists, got {type(inputs).__name__}")
    items = [inputs] if is_single else list(inputs)
    sentences = [_read_item(i, item) for i, item in enumerate(items)]
    scores = _score(runner, [text for texts in sentences for text in texts])
    parts = [slice(*bounds) for bounds in pairwise(np.cumsum([0, *map(len, sentences)]).tolist())]
    runner.is_truncated = np.array([runner.is_truncated[part].any() for part in parts], np.bool_)
    answers = [_describe(item, scores[part], weight) for item, part in zip(items, parts, strict=True)]
    return answers[0] if is_single else answers


def _read_item(i: int, item: Any) -> list[str]:
    """The sentences of one input, checked."""
    if isinstance(item, str):
        return [item]
    if not isinstance(item, dict) or not isinstance(item.get("hypotheses"), list):
        found = ", ".join(map(str, item)) if isinstance(item, dict) else type(item).__name__
        raise InvalidInputError(
            f'input {i}: expected a sentence or {{"hypotheses": [{{"text", "score"}}]}}, got {found}'
        )
    for j, hypothesis in enumerate(item["hypotheses"]):
        where = f"input {i}, hypothesis {j}"
        if not isinstance(hypothesis, dict) or not isinstance(hypothesis.get("text"), str):
            raise InvalidInputError(f'{where}: expected {{"text", "score"}} with a text, got {hypothesis!r:.100}')
        score = hypothesis.get("score")
        if isinstance(score, bool) or not isinstance(score, (int, float)) or not abs(score) <= sys.float_info.max:
            raise InvalidInputError(
                f"{where}: its first-pass score must be a number, got {score!r:.100}; to score texts alone, give them "
                "as sentences"
            )
    return [hypothesis["text"] for hypothesis in item["hypotheses"]]


def _describe(item: Any, scores: list[tuple[float, int]], weight: float) -> dict[str, Any]:
    """The answer to one input, from (pseudo-log-likelihood, number of tokens) of each of its sentences."""
    if isinstance(item, str):
        [(score, num_tokens)] = scores
        return {"score": score, "num_tokens": num_tokens}
    hypotheses = [
        {**hypothesis, "pll": pll, "num_tokens": num_tokens, "total_score": hypothesis["score"] + weight * pll}
        for hypothesis, (pll, num_tokens) in zip(item["hypotheses"], scores, strict=True)
    ]
    return {**item, "hypotheses": sorted(hypotheses, key=lambda hypothesis: -hypothesis["total_score"])}


def _score(runner: TextRunner, texts: list[str]) -> list[tuple[float, int]]:
    """(pseudo-log-likelihood, how many tokens it is a sum over) of each text."""
    batch, windows = runner.tokenize(texts)
    plls, counts = np.zeros(len(texts)), np.zeros(len(texts), np.int64)
    first = 0
    while first < len(windows):
        last, num_copies = first, 0
        while last < len(windows) and (last == first or num_copies + len(windows[last].owned) <= CHUNK_COPIES):
            num_copies += len(windows[last].owned)
            last += 1
        masked = _mask_each_token(batch, windows, range(first, last), runner.mask_id)
        # added up in the order of a text's tokens, so that the sum does not depend on the batches
        np.add.at(plls, masked.texts, _log_probabilities(runner, masked))
        np.add.at(counts, masked.texts, 1)
        first = last
    return list(zip(plls.tolist(), counts.tolist(), strict=True))


class _Masked(NamedTuple):
    """Distinct masked copies of rows, and the tokens that were masked: `copies[i]` is the copy that masks token i."""

    batch: PackedBatch
    masks: I64  # where each copy has its mask, in the packed batch
    copies: I64
    texts: I64
    targets: I64  # the token that the mask stands for


def _mask_each_token(batch: PackedBatch, windows: list[Window], rows: range, mask_id: int) -> _Masked:
    distinct: dict[tuple[bytes, int], int] = {}
    ids: list[I32] = []
    types: list[I32] = []
    tokens: list[tuple[int, int, int]] = []
    for row in rows:
        first, last = batch.cu_seqlens[row : row + 2]
        masked, window = batch.input_ids[first:last].copy(), windows[row]
        for place in range(window.first + window.owned.start, window.first + window.owned.stop):
            target, masked[place] = int(masked[place]), mask_id
            copy = distinct.setdefault((masked.tobytes(), place), len(ids))
            if copy == len(ids):
                ids.append(masked.copy())
                types.append(batch.token_type_ids[first:last])
            tokens.append((copy, window.text, target))
            masked[place] = target
    packed = PackedBatch.from_lists(ids, types)
    places = np.array([place for _, place in distinct], np.int64)
    copies, texts, targets = np.array(tokens, np.int64).reshape(-1, 3).T
    return _Masked(packed, packed.cu_seqlens[:-1] + places, copies, texts, targets)


def _log_probabilities(runner: TextRunner, masked: _Masked) -> F32:
    """log P of each masked token, f32 [tokens]."""
    found = np.empty(len(masked.copies), np.float32)
    by_copy = np.argsort(masked.copies, kind="stable")
    bounds = np.searchsorted(masked.copies[by_copy], np.arange(len(masked.masks) + 1))
    for copies, logits in runner.run_tokens(masked.batch, runner.spec.outputs[0], masked.masks):
        for copy, row in zip(copies, logits, strict=True):  # in place, and a row at a time: it stays in the cache
            tokens = by_copy[bounds[copy] : bounds[copy + 1]]
            row -= row.max()
            found[tokens] = row[masked.targets[tokens]]
            found[tokens] -= np.log(np.exp(row, out=row).sum())
    return found
