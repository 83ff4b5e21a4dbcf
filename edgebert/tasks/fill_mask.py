"""Fill-mask: texts with masked tokens in, what may stand there out."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import numpy as np

from edgebert.errors import InvalidInputError
from edgebert.runner import check_id
from edgebert.tasks.inputs import F32, I64, check_count, read_texts, softmax, warn

if TYPE_CHECKING:
    from edgebert.batch import PackedBatch
    from edgebert.runner import TextRunner
    from edgebert.tokenizer import Window

Prediction = dict[str, Any]


def answer(
    runner: TextRunner, texts: str | Iterable[str], *, top_k: int = 5, targets: str | Iterable[str] | None = None
) -> Any:
    """The likeliest tokens for each mask.

    Args:
        runner: the file and the options all tasks have.
        texts: a text or several, each with the tokenizer's mask token ("[MASK]", "<mask>") once or more.
        top_k: how many tokens, likeliest first.
        targets: choose among these alone, with the scores they have among all tokens; of one that is not in the
            vocabulary its first token stands for it, with a warning.

    Returns:
        For a text with one mask a list of {"score", "token", "token_str", "sequence"}, with several masks a list of
        such lists, in the order of the masks; for several texts a list of that. Of a text in windows, `sequence` is
        the mask's window.

    Raises:
        InvalidInputError: an input or option that is not usable; a text without a mask, or whose mask was cut off.
    """
    check_count("top_k", top_k)
    is_single, items = read_texts(texts)
    target_ids = None if targets is None else _find_targets(runner, targets)
    batch, windows = runner.tokenize(items)
    masks = _find_masks(runner, batch, windows)
    num_masks = np.bincount([text for _, text in masks], minlength=len(items))
    if not num_masks.all():
        text = int(num_masks.argmin())
        cut = ", it is in what was cut off: use stride=…" if runner.is_truncated[text] else ""
        raise InvalidInputError(f"text {text} has no {runner.tokenizer.id_to_token(runner.mask_id)}{cut}")
    found: list[list[tuple[int, float]]] = [[] for _ in masks]
    for indices, logits in runner.run_tokens(batch, runner.spec.outputs[0], [token for token, _ in masks]):
        for i, scores in zip(indices, softmax(logits), strict=True):
            found[i] = _find_best(scores, top_k, target_ids)
    answers: list[list[list[Prediction]]] = [[] for _ in items]
    for (token, text), best in zip(masks, found, strict=True):
        row = int(np.searchsorted(batch.cu_seqlens, token, side="right")) - 1
        first, last = batch.cu_seqlens[row : row + 2]
        before, after = batch.input_ids[first:token].tolist(), batch.input_ids[token + 1 : last].tolist()
        predictions = []
        for token_id, score in best:
            ids = [i for i in [*before, token_id, *after] if i != runner.spec.pad_token_id]
            # special tokens stay where they would take other masks with them
            sequence = runner.tokenizer.decode(ids, skip_special_tokens=bool(num_masks[text] == 1))
            token_str = runner.tokenizer.decode([token_id])
            predictions.append({"score": score, "token": token_id, "token_str": token_str, "sequence": sequence})
        answers[text].append(predictions)
    shaped = [masked[0] if len(masked) == 1 else masked for masked in answers]
    return shaped[0] if is_single or len(shaped) == 1 else shaped


def _find_masks(runner: TextRunner, batch: PackedBatch, windows: list[Window]) -> list[tuple[int, int]]:
    """(token of the batch, text) of each mask; of one in several windows, where it has most around it."""
    masks = []
    for begin, window in zip(batch.cu_seqlens[:-1].tolist(), windows, strict=True):
        owned = np.arange(window.owned.start, window.owned.stop) + begin + window.first
        masks += [(token, window.text) for token in owned[batch.input_ids[owned] == runner.mask_id].tolist()]
    return masks


def _find_best(scores: F32, top_k: int, target_ids: I64 | None) -> list[tuple[int, float]]:
    """(token id, score) of the `top_k` best among all, or among the targets."""
    ids = np.arange(len(scores)) if target_ids is None else target_ids
    if len(ids) > top_k:
        ids = ids[np.argpartition(-scores[ids], top_k - 1)[:top_k]]
    ids = ids[np.argsort(-scores[ids], kind="stable")]
    return list(zip(ids.tolist(), scores[ids].tolist(), strict=True))


def _find_targets(runner: TextRunner, targets: str | Iterable[str]) -> I64:
    tokenizer = runner.tokenizer
    _, words = read_texts(targets)
    ids = []
    for word in words:
        token_id = tokenizer.find_id(word)
        if token_id is None:
            pieces = tokenizer.find_pieces(word)
            if not pieces:
                raise InvalidInputError(f"target {word!r} gives no token")
            token_id = pieces[0]
            warn(f"target {word!r} is not in the vocabulary: {tokenizer.id_to_token(token_id)!r} stands for it")
        check_id(token_id, f"target {word!r}", tokenizer, runner.spec)
        ids.append(token_id)
    if not ids:
        raise InvalidInputError("expected a target at least, got none")
    return np.unique(np.array(ids, np.int64))
