"""Fill-mask: texts with masked tokens in, what may stand there out."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from edgebert.artifact.spec import EncoderSpec
from edgebert.errors import InvalidInputError
from edgebert.tasks import base
from edgebert.tasks.base import F32, I64, Outputs, Prepared, check_count, check_texts, make_rows, softmax, warn
from edgebert.tokenizer import Row, Tokenizer, check_id, check_text

Prediction = dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class Options(base.Options):
    """What may stand for a mask.

    Attributes:
        top_k: how many tokens, likeliest first; None for 5.
        targets: choose among these alone, with the scores they have among all tokens; of one that is not in the
            vocabulary its first token stands for it, with a warning.

    Raises:
        InvalidInputError: a bad `top_k`, or targets that are not texts.
    """

    top_k: int | None = 5
    targets: str | Iterable[str] | None = None

    def __post_init__(self) -> None:
        if self.top_k is not None:
            check_count("top_k", self.top_k)
        if self.targets is not None and not isinstance(self.targets, Iterable):
            raise InvalidInputError(f"targets must be a text or a list of texts, got {type(self.targets).__name__}")


def prepare(texts: Sequence[str], tokenizer: Tokenizer, options: Options) -> Prepared:
    """Rows of texts, each with the tokenizer's mask token ("[MASK]", "<mask>") once or more.

    Raises:
        InvalidInputError: a text that is not usable, has no mask, or whose mask was cut off.
    """
    check_texts(texts)
    mask_id = find_mask(tokenizer, options.spec)
    rows, is_truncated = make_rows(texts, tokenizer, options, has_offsets=True)
    masked = [row._replace(output_tokens=masks) for row in rows if len(masks := _find_masks(row, mask_id))]
    if missing := set(range(len(texts))).difference(row.text for row in masked):
        text = min(missing)
        cut = ", it is in what was cut off: use stride=…" if is_truncated[text] else ""
        raise InvalidInputError(f"text {text} has no {tokenizer.id_to_token(mask_id)}{cut}")
    return Prepared(masked, options.spec.outputs[:1], is_truncated)


def decode(
    texts: Sequence[str], outputs: Outputs, tokenizer: Tokenizer, options: Options
) -> list[list[list[Prediction]]]:
    """The likeliest tokens for each mask.

    Returns:
        Of each text, for each of its masks in turn, a list of {"score", "token", "token_str", "sequence"}. Of a text
        in windows, `sequence` is the mask's window.

    Raises:
        InvalidInputError: targets that are not usable.
    """
    target_ids = None if options.targets is None else _find_targets(tokenizer, options)
    found: list[tuple[Row, int, list[tuple[int, float]]]] = []
    num_masks = [0] * len(texts)
    for row, values in outputs:
        assert row.output_tokens is not None  # see `prepare`
        num_masks[row.text] += len(row.output_tokens)
        scores = softmax(values[options.spec.outputs[0]])
        for place, of_mask in zip(row.output_tokens.tolist(), scores, strict=True):
            found.append((row, place, _find_best(of_mask, options.top_k or 5, target_ids)))
    answers: list[list[list[Prediction]]] = [[] for _ in texts]
    for row, place, best in sorted(found, key=lambda one: (*one[0][:2], one[1])):
        predictions = []
        for token_id, score in best:
            ids = [*row.input_ids[:place].tolist(), token_id, *row.input_ids[place + 1 :].tolist()]
            ids = [i for i in ids if i != options.spec.pad_token_id]
            # special tokens stay where they would take other masks with them
            sequence = tokenizer.decode(ids, skip_special_tokens=num_masks[row.text] == 1)
            token_str = tokenizer.decode([token_id])
            predictions.append({"score": score, "token": token_id, "token_str": token_str, "sequence": sequence})
        answers[row.text].append(predictions)
    return answers


def find_mask(tokenizer: Tokenizer, spec: EncoderSpec) -> int:
    """The id of the tokenizer's mask token.

    Raises:
        InvalidInputError: it has none, or the model has no row for it.
    """
    if tokenizer.mask_id is None:
        raise InvalidInputError("the file's tokenizer has no mask token, neither [MASK] nor <mask>")
    check_id(tokenizer.mask_id, "the mask token", tokenizer, spec)
    return tokenizer.mask_id


def _find_masks(row: Row, mask_id: int) -> base.I32:
    """The row's masks; of one in several windows, where it has most around it."""
    owned = np.arange(row.owned.start, row.owned.stop, dtype=np.int32) + row.first
    masks: base.I32 = owned[row.input_ids[owned] == mask_id].astype(np.int32)
    return masks


def _find_best(scores: F32, top_k: int, target_ids: I64 | None) -> list[tuple[int, float]]:
    """(token id, score) of the `top_k` best among all, or among the targets."""
    ids = np.arange(len(scores)) if target_ids is None else target_ids
    if len(ids) > top_k:  # those of equal scores stay until they are in the order of their ids
        ids = ids[~(scores[ids] < np.partition(scores[ids], len(ids) - top_k)[len(ids) - top_k])]
    ids = ids[np.argsort(-scores[ids], kind="stable")][:top_k]
    return list(zip(ids.tolist(), scores[ids].tolist(), strict=True))


def _find_targets(tokenizer: Tokenizer, options: Options) -> I64:
    words = [options.targets] if isinstance(options.targets, str) else list(options.targets or ())
    check_texts(words)
    ids = []
    for word in words:
        check_text("targets", word)
        token_id = tokenizer.find_id(word)
        if token_id is None:
            pieces = tokenizer.find_pieces(word)
            if not pieces:
                raise InvalidInputError(f"target {word!r} gives no token")
            token_id = pieces[0]
            warn(f"target {word!r} is not in the vocabulary: {tokenizer.id_to_token(token_id)!r} stands for it")
        check_id(token_id, f"target {word!r}", tokenizer, options.spec)
        ids.append(token_id)
    if not ids:
        raise InvalidInputError("expected a target at least, got none")
    return np.unique(np.array(ids, np.int64))
