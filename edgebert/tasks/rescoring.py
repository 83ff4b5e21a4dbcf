"""Rescoring: how likely a masked language model finds sentences, and n-best lists ranked with that.

The score of a sentence is its pseudo-log-likelihood (Salazar et al., "Masked Language Model Scoring",
arXiv 1910.14659, section 2): PLL(w) = sum over its tokens t of log P(w_t | w with w_t masked), special tokens left out.
"""

from __future__ import annotations

import sys
from array import array
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np

from edgebert.errors import InvalidInputError
from edgebert.tasks import base
from edgebert.tasks.base import Outputs, Prepared, make_rows
from edgebert.tasks.fill_mask import find_mask
from edgebert.tokenizer import Row, Tokenizer

CHUNK_COPIES = 1 << 14  # masked copies that are made, and compared with each other, at a time


@dataclass(frozen=True, kw_only=True)
class Options(base.Options):
    """How pseudo-log-likelihoods are computed.

    Attributes:
        weight: what the pseudo-log-likelihood counts for beside a first-pass score of 1.

    Raises:
        InvalidInputError: it is not a number.
    """

    weight: float = 1.0

    def __post_init__(self) -> None:
        if not _is_number(self.weight):
            raise InvalidInputError(f"weight must be a number, got {self.weight!r}")


def prepare(inputs: Sequence[Any], tokenizer: Tokenizer, options: Options) -> Prepared:
    """A row a token: the sentence with that token masked; equal ones (of hypotheses that differ there) are one row.

    They are made as they are taken, CHUNK_COPIES at a time. The note of a row says what its mask stands for:
    (number of the token in the call, sentence, token id) each.

    Args:
        inputs: each a sentence, or {"hypotheses": [{"text": …, "score": …}, …]} with the scores of a first pass (log
            probabilities, greater is better).
        tokenizer: the file's.
        options: of the call.

    Raises:
        InvalidInputError: an input that is not usable, or a hypothesis without a score.
    """
    sentences = [_read_item(i, item) for i, item in enumerate(inputs)]
    mask_id = find_mask(tokenizer, options.spec)
    rows, is_cut = make_rows([text for texts in sentences for text in texts], tokenizer, options, has_offsets=True)
    is_truncated = np.array([is_cut[part].any() for part in _parts(sentences)], np.bool_)
    return Prepared(_mask_each_token(rows, mask_id), options.spec.outputs[:1], is_truncated)


def decode(inputs: Sequence[Any], outputs: Outputs, tokenizer: Tokenizer, options: Options) -> list[dict[str, Any]]:
    """Pseudo-log-likelihoods, and n-best lists reordered by them.

    Returns:
        For a sentence {"score": its pseudo-log-likelihood, "num_tokens": over how many tokens}. For an n-best list the
        same dict, its hypotheses in the new order, the best first, each with "pll", "num_tokens" and
        "total_score" = score + weight * pll added.
    """
    tokens, sentences, log_probabilities = array("q"), array("q"), array("d")  # of every token, 24 bytes
    for row, values in outputs:
        [logits] = values[options.spec.outputs[0]]
        logits -= logits.max()  # in place: it stays in the cache
        chosen = [logits[target] for _, _, target in row.note]
        log_sum = np.log(np.exp(logits, out=logits).sum())
        tokens.extend(token for token, _, _ in row.note)
        sentences.extend(sentence for _, sentence, _ in row.note)
        log_probabilities.extend(float(logit - log_sum) for logit in chosen)
    parts = _parts([_read_item(i, item) for i, item in enumerate(inputs)])
    plls = np.zeros(parts[-1].stop if parts else 0)
    order = np.argsort(tokens)  # so that the sum does not depend on the order they were computed in
    np.add.at(plls, np.asarray(sentences)[order], np.asarray(log_probabilities)[order])
    counts = np.bincount(sentences, minlength=len(plls))
    scores = list(zip(plls.tolist(), counts.tolist(), strict=True))
    return [_describe(item, scores[part], options.weight) for item, part in zip(inputs, parts, strict=True)]


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) <= sys.float_info.max


def _parts(sentences: list[list[str]]) -> list[slice]:
    """Where each input's sentences are among all."""
    return [slice(*bounds) for bounds in pairwise(np.cumsum([0, *map(len, sentences)]).tolist())]


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
        if not _is_number(score):
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


def _mask_each_token(rows: list[Row], mask_id: int) -> Iterator[Row]:
    copies: dict[tuple[bytes, int], Row] = {}
    num_made = num_tokens = 0
    for row in rows:
        if num_made + len(row.owned) > CHUNK_COPIES:
            yield from copies.values()
            copies, num_made = {}, 0
        num_made += len(row.owned)
        masked = row.input_ids.copy()
        for place in range(row.first + row.owned.start, row.first + row.owned.stop):
            target, masked[place] = int(masked[place]), mask_id
            key = masked.tobytes(), place
            if key not in copies:
                copies[key] = row._replace(input_ids=masked.copy(), output_tokens=np.array([place], np.int32), note=[])
            copies[key].note.append((num_tokens, row.text, target))
            masked[place] = target
            num_tokens += 1
    yield from copies.values()
