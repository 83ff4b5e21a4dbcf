"""Texts to token ids: the file's own tokenizer, truncating as transformers truncates, with checked input."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from numpy.typing import NDArray

from edgebert.batch import PackedBatch
from edgebert.errors import InvalidInputError, ModelFormatError

if TYPE_CHECKING:
    from tokenizers import Encoding

Text = str | Sequence[str]  # one text, or a pair of two

_CHUNK_CHARACTERS = 1 << 20  # encodings are far larger than the ids kept of them: hold those of this many characters


class _Layout(NamedTuple):
    """Where special tokens stand: ids and types before the first text, between the texts and after the last."""

    special_ids: list[list[int]]  # one list more than there are texts
    special_types: list[list[int]]
    text_types: list[int]

    @property
    def num_special(self) -> int:
        return sum(map(len, self.special_ids))

    def assemble(self, texts: list[list[int]]) -> tuple[list[int], list[int]]:
        ids, types = list(self.special_ids[0]), list(self.special_types[0])
        for i, text in enumerate(texts):
            ids += text + self.special_ids[i + 1]
            types += [self.text_types[i]] * len(text) + self.special_types[i + 1]
        return ids, types


class Tokenizer:
    """A tokenizer with a length limit. It holds no state between calls and may be used from several threads.

    Attributes:
        max_length: tokens a row has at most, special tokens included, unless a call says otherwise.
    """

    def __init__(self, tokenizer_json: str, max_length: int, usable_positions: int, num_token_types: int) -> None:
        """Args: the tokenizers library's JSON, and the spec's fields of those names.

        Raises:
            ModelFormatError: the JSON is not a tokenizer's.
        """
        import tokenizers

        try:
            self._tokenizer = tokenizers.Tokenizer.from_str(tokenizer_json)
        except Exception as error:  # the library raises nothing narrower
            raise ModelFormatError(f"the file's tokenizer cannot be read ({error}): re-export the model") from None
        # Truncation is done here: the library's keeps every cut-off piece, which for long pairs are very many.
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()
        self.max_length = max_length
        self._usable_positions = usable_positions
        self._num_token_types = num_token_types
        self._layouts = [self._find_layout(num_texts) for num_texts in (1, 2)]

    def tokenize(self, texts: Iterable[Text], max_length: int | None = None) -> tuple[PackedBatch, NDArray[np.bool_]]:
        """Pack texts and pairs, each truncated to the limit; of a pair the longer text gives way first.

        Args:
            texts: each a str, or a pair of two as a tuple or list.
            max_length: tokens a row has at most, special tokens included; None takes the file's own limit.

        Returns:
            (batch, bool [n]: which rows were truncated).

        Raises:
            InvalidInputError: what is not text, named by its index; a text that gives no tokens; a limit out of range.
        """
        limit = self._check_limit(max_length)
        if isinstance(texts, (str, bytes, dict)) or not isinstance(texts, Iterable):
            raise InvalidInputError(f"expected a list of texts, got {type(texts).__name__}")
        texts = list(texts)
        all_ids: list[NDArray[np.int32]] = []
        all_types: list[NDArray[np.int32]] = []
        is_truncated = np.zeros(len(texts), np.bool_)
        for row, parts in self._tokenize_parts(texts):
            layout = self._layouts[len(parts) - 1]
            room = limit - layout.num_special
            if room < 0:
                raise InvalidInputError(
                    f"max_length {limit} has no room for the {layout.num_special} special tokens of row {row}: raise it"
                )
            if sum(map(len, parts)) > room:
                is_truncated[row] = True
                keep = _longest_first([len(part) for part in parts], room)
                parts = [part[:size] for part, size in zip(parts, keep, strict=True)]
            ids, types = layout.assemble(parts)
            if not ids:
                raise InvalidInputError(f"text {row} gives no tokens: the tokenizer adds none of its own, leave it out")
            all_ids.append(np.array(ids, np.int32))
            all_types.append(np.array(types, np.int32))
        has_types = self._num_token_types >= 2
        return PackedBatch.from_lists(all_ids, all_types if has_types else None), is_truncated

    def _check_limit(self, max_length: int | None) -> int:
        if max_length is None:
            return self.max_length
        if (
            not isinstance(max_length, int)
            or isinstance(max_length, bool)
            or not 0 < max_length <= self._usable_positions
        ):
            raise InvalidInputError(
                f"max_length must be an integer from 1 to {self._usable_positions}, the model's positions, "
                f"got {max_length!r}"
            )
        return max_length

    def _find_layout(self, num_texts: int) -> _Layout:
        """Read the places of special tokens off a row of short texts."""
        encoding = self._tokenizer.encode("a", "a" if num_texts == 2 else None)
        layout = _Layout([[]], [[]], [])
        previous = None
        for token, kind, text in zip(encoding.ids, encoding.type_ids, encoding.sequence_ids, strict=True):
            if text is None:
                layout.special_ids[-1].append(token)
                layout.special_types[-1].append(kind)
            elif text != previous:
                layout.text_types.append(kind)
                layout.special_ids.append([])
                layout.special_types.append([])
            previous = previous if text is None else text
        if len(layout.text_types) != num_texts:
            raise ModelFormatError(
                "the file's tokenizer gives no token for 'a': it cannot be used, bring token ids instead"
            )
        return layout

    def _tokenize_parts(self, texts: list[Text]) -> Iterator[tuple[int, list[list[int]]]]:
        """(row, token ids without special tokens of its one or two texts), in order."""
        pending: list[list[str]] = []
        characters = first = 0
        for row, text in enumerate(texts):
            parts = _split_pair(row, text)
            pending.append(parts)
            characters += sum(map(len, parts))
            if characters >= _CHUNK_CHARACTERS or row == len(texts) - 1:
                encodings = iter(self._encode(pending, first))
                for offset, pending_parts in enumerate(pending):
                    yield first + offset, [next(encodings).ids for _ in pending_parts]
                pending, characters, first = [], 0, row + 1

    def _encode(self, rows: list[list[str]], first: int) -> list[Encoding]:
        flat = [part for parts in rows for part in parts]
        try:
            return self._tokenizer.encode_batch_fast(flat, add_special_tokens=False)
        except (TypeError, UnicodeEncodeError):
            for row, parts in enumerate(rows, first):
                try:
                    "".join(parts).encode()
                except UnicodeEncodeError as error:
                    raise InvalidInputError(
                        f"text {row} is not valid Unicode ({error.reason} at character {error.start}): "
                        "decode it with errors='replace'"
                    ) from None
            raise


def _split_pair(row: int, text: Text) -> list[str]:
    if isinstance(text, str):
        return [text]
    if isinstance(text, (tuple, list)) and len(text) == 2 and all(isinstance(part, str) for part in text):
        return list(text)
    raise InvalidInputError(f"text {row} must be a str or a pair of two, got {_describe(text)}")


def _describe(value: object) -> str:
    if isinstance(value, (tuple, list)):
        return f"{type(value).__name__} of {', '.join(type(part).__name__ for part in value) or 'nothing'}"
    return type(value).__name__


def _longest_first(sizes: list[int], room: int) -> list[int]:
    """Tokens to keep of each text, as transformers' truncation "longest_first": the longer gives way first.

    When both are longer than half of the room, both get half; the spare token of an odd room goes to the longer text,
    on a tie to the second.
    """
    if len(sizes) == 1:
        return [room]
    short, long = sorted(sizes)
    if short > room // 2:
        short = room // 2
    long = room - short
    return [long, short] if sizes[0] > sizes[1] else [short, long]
