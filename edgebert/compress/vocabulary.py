"""The embedding table cut down to the pieces that a corpus uses, and the tokenizer rewritten to match.

Texts of the corpus are tokenized into the same pieces as before. Every single character stays, so other texts can still
be spelled, in smaller pieces where a word is gone. Sources: WordPiece (BERT, arXiv 1810.04805), byte-pair
encoding (arXiv 1508.07909), Unigram (arXiv 1804.10959), as the `tokenizers` package implements them.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from edgebert.checkpoints.loading import Checkpoint
from edgebert.errors import InvalidInputError, UnsupportedModelError
from edgebert.tokenizer import Text

if TYPE_CHECKING:
    import tokenizers

I32 = NDArray[np.int32]

_CHUNK = 1000  # texts tokenized together: encodings are far larger than the ids kept of them
_VOCABULARY_FILES = ("tokenizer.json", "vocab.txt", "vocab.json", "merges.txt", "sentencepiece.bpe.model")


def trim(checkpoint: Checkpoint, texts: Iterable[Text]) -> Checkpoint:
    """Keep only the pieces that the texts use; special and added tokens, single characters and bytes always stay.

    Kept pieces keep their order, so the new id of a piece is its rank among those kept. Smaller pieces that a kept one
    is merged from stay too.

    Args:
        checkpoint: with a tokenizer; it is not changed.
        texts: like those that the model will see; each a str or a pair of two. Each is also tokenized after each of
            the model's prompts.

    Returns:
        A checkpoint with fewer rows in the word table (and in a masked-language-model head's bias), `spec.vocab_size`
        the number of rows, ids in spec and config rewritten, without the source's vocabulary files.

    Raises:
        InvalidInputError: no text.
        UnsupportedModelError: there is no tokenizer, one of another kind, or one that cannot be rewritten faithfully.
    """
    import tokenizers

    if checkpoint.tokenizer_json is None:
        raise UnsupportedModelError("the checkpoint has no tokenizer, its vocabulary cannot be trimmed: leave it whole")
    source = json.loads(checkpoint.tokenizer_json)
    spec, model = checkpoint.spec, source["model"]
    if model["type"] not in ("WordPiece", "BPE", "Unigram"):
        raise UnsupportedModelError(
            f"a {model['type']} vocabulary cannot be trimmed, only WordPiece, BPE and Unigram: leave it whole"
        )
    plain = list(_plain_texts(texts, ["", *spec.prompts.values()]))
    if not plain:
        raise InvalidInputError("no text to trim the vocabulary to: give texts like those the model will see")
    whole = tokenizers.Tokenizer.from_str(checkpoint.tokenizer_json)
    before = _encode(whole, plain)
    pieces = dict(_pieces(model))
    ids_in_config = {key: value for key, value in checkpoint.config.items() if _is_token_id(key, value)}
    keep = set(np.unique(before).tolist())
    keep |= {id for piece, id in pieces.items() if _is_single(piece, model)}
    keep |= {token["id"] for token in source["added_tokens"]}
    keep |= {spec.pad_token_id, *ids_in_config.values(), *_template_ids(source["post_processor"])}
    keep |= set(range(spec.position_offset))  # RoBERTa counts positions from its pad token's id
    if model["type"] == "Unigram":
        scores = [score for _, score in model["vocab"]]
        keep |= {int(np.argmin(scores))}  # the least score sets the price of an unknown character
        keep |= {model["unk_id"]} - {None}
    else:
        keep |= {pieces[model["unk_token"]]} if model.get("unk_token") in pieces else set()
    if model["type"] == "BPE":
        keep |= _merged_from(model, {piece for piece, id in pieces.items() if id in keep}, pieces)
    kept = sorted(keep)
    if kept[-1] >= spec.vocab_size:
        raise UnsupportedModelError(
            f"the tokenizer has the id {kept[-1]}, the word table has {spec.vocab_size} rows: the checkpoint is damaged"
        )
    new_id = {id: i for i, id in enumerate(kept)}

    tokenizer_json = json.dumps(_rewrite(source, new_id), ensure_ascii=False, separators=(",", ":"))
    trimmed = tokenizers.Tokenizer.from_str(tokenizer_json)
    _check_ids(whole, trimmed, new_id)
    if not np.array_equal(np.searchsorted(kept, before), _encode(trimmed, plain)):
        raise UnsupportedModelError("the trimmed tokenizer gives other pieces than the whole one: leave it whole")
    rows = ("embeddings.word.weight", "mlm.bias")
    return replace(
        checkpoint,
        spec=spec.replace(vocab_size=len(kept), pad_token_id=new_id[spec.pad_token_id]),
        tensors={name: tensor[kept] if name in rows else tensor for name, tensor in checkpoint.tensors.items()},
        tokenizer_json=tokenizer_json,
        config=checkpoint.config
        | {"vocab_size": len(kept)}
        | {key: new_id[value] for key, value in ids_in_config.items()},
        source_files={
            name: path for name, path in checkpoint.source_files.items() if path.name not in _VOCABULARY_FILES
        },
    )


def unknown_share(tokenizer_json: str, texts: Iterable[Text]) -> float:
    """Share of the texts' pieces, special tokens left out, that are the unknown token."""
    import tokenizers

    ids = _encode(tokenizers.Tokenizer.from_str(tokenizer_json), list(_plain_texts(texts, [""])))
    model = json.loads(tokenizer_json)["model"]
    unknown = model["unk_id"] if model["type"] == "Unigram" else dict(_pieces(model)).get(model.get("unk_token"))
    return float(np.mean(ids == unknown)) if len(ids) and unknown is not None else 0.0


def _plain_texts(texts: Iterable[Text], prompts: list[str]) -> Iterator[str]:
    for text in texts:
        for part in [text] if isinstance(text, str) else text:
            yield from (prompt + part for prompt in prompts)


def _encode(tokenizer: tokenizers.Tokenizer, texts: list[str]) -> I32:
    """Ids of all texts end to end, without special tokens."""
    ids: list[I32] = [np.zeros(0, np.int32)]
    for first in range(0, len(texts), _CHUNK):
        encodings = tokenizer.encode_batch_fast(texts[first : first + _CHUNK], add_special_tokens=False)
        ids += [np.array(encoding.ids, np.int32) for encoding in encodings]
    return np.concatenate(ids)


def _pieces(model: Mapping[str, Any]) -> Iterable[tuple[str, int]]:
    """(piece, id) of the tokenizer's model, added tokens left out."""
    if model["type"] == "Unigram":
        return [(piece, id) for id, (piece, _) in enumerate(model["vocab"])]
    return list(model["vocab"].items())


def _is_single(piece: str, model: Mapping[str, Any]) -> bool:
    """Whether a piece is one character or byte, marks of a word's start, middle or end left out."""
    prefix, suffix = model.get("continuing_subword_prefix") or "", model.get("end_of_word_suffix") or ""
    bare = piece.removeprefix(prefix).removesuffix(suffix)
    return len(bare) <= 1 or (len(piece) == 6 and piece.startswith("<0x") and piece.endswith(">"))


def _is_token_id(key: str, value: object) -> bool:
    return key.endswith("_token_id") and isinstance(value, int) and not isinstance(value, bool) and value >= 0


def _template_ids(processor: Mapping[str, Any] | None) -> Iterator[int]:
    """Ids of the special tokens that a post-processor puts around texts."""
    if processor is None:
        return
    for part in processor.get("processors", []):
        yield from _template_ids(part)
    for token in (processor.get("special_tokens") or {}).values():
        yield from token["ids"]
    yield from (processor[name][1] for name in ("sep", "cls") if name in processor)


def _merged_from(model: Mapping[str, Any], kept: set[str], pieces: Mapping[str, int]) -> set[int]:
    """Ids of the pieces that byte-pair encoding goes through on its way to each of the kept ones.

    A piece of a word is merged as it would be alone: a merge across its edge would have swallowed it.
    """
    ranks = {_merge_pair(merge): rank for rank, merge in enumerate(model["merges"])}
    prefix, suffix = model.get("continuing_subword_prefix") or "", model.get("end_of_word_suffix") or ""
    found: set[int] = set()
    for piece in kept:
        parts = _characters(piece, prefix, suffix)
        while len(parts) > 1:
            pairs = list(zip(parts, parts[1:], strict=False))
            best = min(range(len(pairs)), key=lambda i: ranks.get(pairs[i], len(ranks)))
            if pairs[best] not in ranks:
                break
            parts[best : best + 2] = [_merged(*pairs[best], prefix)]
            found.add(pieces[parts[best]])
    return found


def _characters(piece: str, prefix: str, suffix: str) -> list[str]:
    """A piece as byte-pair encoding starts with it: characters, each with the marks it has alone."""
    is_middle, is_end = bool(prefix) and piece.startswith(prefix), bool(suffix) and piece.endswith(suffix)
    bare = piece.removeprefix(prefix).removesuffix(suffix)
    parts = [prefix * (is_middle or i > 0) + character for i, character in enumerate(bare)]
    if parts and is_end:
        parts[-1] += suffix
    return parts


def _merge_pair(merge: str | list[str]) -> tuple[str, str]:
    left, right = merge.split(" ") if isinstance(merge, str) else merge
    return left, right


def _merged(left: str, right: str, prefix: str) -> str:
    return left + right.removeprefix(prefix)


def _rewrite(source: Mapping[str, Any], new_id: Mapping[int, int]) -> dict[str, Any]:
    """The tokenizer's JSON with only the ids in `new_id`, renumbered."""
    model = dict(source["model"])
    if model["type"] == "Unigram":
        model["vocab"] = [entry for id, entry in enumerate(model["vocab"]) if id in new_id]
        if model["unk_id"] is not None:
            model["unk_id"] = new_id[model["unk_id"]]
    else:
        model["vocab"] = {piece: new_id[id] for piece, id in model["vocab"].items() if id in new_id}
    if model["type"] == "BPE":
        prefix = model.get("continuing_subword_prefix") or ""

        def is_kept(merge: str | list[str]) -> bool:
            left, right = _merge_pair(merge)
            return all(piece in model["vocab"] for piece in (left, right, _merged(left, right, prefix)))

        model["merges"] = [merge for merge in model["merges"] if is_kept(merge)]
    return {
        **source,
        "model": model,
        "added_tokens": [token | {"id": new_id[token["id"]]} for token in source["added_tokens"]],
        "post_processor": _rewrite_template(source["post_processor"], new_id),
    }


def _rewrite_template(processor: Mapping[str, Any] | None, new_id: Mapping[int, int]) -> dict[str, Any] | None:
    if processor is None:
        return None
    new = dict(processor)
    if "processors" in new:
        new["processors"] = [_rewrite_template(part, new_id) for part in new["processors"]]
    if new.get("special_tokens"):
        new["special_tokens"] = {
            name: token | {"ids": [new_id[id] for id in token["ids"]]} for name, token in new["special_tokens"].items()
        }
    for name in ("sep", "cls"):
        if name in new:
            new[name] = [new[name][0], new_id[new[name][1]]]
    return new


def _check_ids(whole: tokenizers.Tokenizer, trimmed: tokenizers.Tokenizer, new_id: Mapping[int, int]) -> None:
    """The tokenizers package must have read the new JSON as it was meant: the kept tokens, each with its new id."""
    expected = {token: new_id[id] for token, id in whole.get_vocab().items() if id in new_id}
    found = trimmed.get_vocab()
    if found != expected:
        odd = sorted(token for token in found.keys() | expected.keys() if found.get(token) != expected.get(token))
        raise UnsupportedModelError(
            f"the trimmed tokenizer would number {len(odd)} tokens otherwise, {odd[0]!r} for one: leave it whole"
        )
