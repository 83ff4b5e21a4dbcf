"""Texts to token ids: the file's own tokenizer, truncating as transformers truncates, with checked input."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from edgebert.artifact.spec import EncoderSpec
from edgebert.backends.base import Backend
from edgebert.backends.native import F32, NativeBackend
from edgebert.batch import I32, PackedBatch
from edgebert.errors import BackendUnavailableError, InvalidInputError, UnsupportedModelError
from edgebert.tokenizer.base import BaseTokenizer, Text, Tokens, check_text
from edgebert.tokenizer.native import NativeTokenizer

__all__ = ["Row", "Text", "Tokenizer", "check_id", "check_ids", "check_stride", "check_text"]

_NO_OFFSETS = np.zeros((0, 2), np.int32)
_NO_WORDS = np.zeros(0, np.int32)


class Row(NamedTuple):
    """Tokens that run together: a text or pair, or a window of one, with its special tokens.

    Attributes:
        text: index of the text or pair in the caller's list.
        window: which of its windows this is, from 0.
        input_ids: int32 [length].
        token_type_ids: int32 [length].
        first: the token at which those of the last text begin.
        offsets: int32 [k, 2], where each of those begins and ends in the caller's string, in characters; none where
            they were not asked for.
        word_ids: int32 [k], the word each belongs to, as the tokenizer splits words; -1 for none.
        all_offsets: int32 [length, 2], the offsets of all tokens, those of the first of a pair too; 0 and 0 for special
            ones; none where they were not asked for.
        all_word_ids: int32 [length], the words of all tokens; -1 for special ones.
        owned: which of the k tokens no other window of the text has more text around; every token is owned once.
        output_tokens: int32 [m], ascending: the row's tokens whose token outputs are wanted; None: all of them.
        note: what a task wants back with the outputs.
    """

    text: int
    window: int
    input_ids: I32
    token_type_ids: I32
    first: int = 0
    offsets: I32 = _NO_OFFSETS
    word_ids: I32 = _NO_WORDS
    all_offsets: I32 = _NO_OFFSETS
    all_word_ids: I32 = _NO_WORDS
    owned: range = range(0)
    output_tokens: I32 | None = None
    note: Any = None

    @property
    def tokens(self) -> slice:
        """The row's tokens that are the last text's."""
        return slice(self.first, self.first + len(self.offsets))


class Tokenizer:
    """A tokenizer with a length limit. It holds no state between calls and may be used from several threads.

    Attributes:
        max_length: tokens a row has at most, special tokens included, unless a call says otherwise.
        mask_id: the id that stands for a token to be filled in; None if there is none.
    """

    def __init__(
        self,
        tokenizer_json: str,
        max_length: int,
        usable_positions: int,
        num_token_types: int,
        mask_token: str | None = None,
        threads: int = 0,
    ) -> None:
        """Args: the tokenizers library's JSON, the spec's fields of those names, and threads, 0 for all CPUs usable.

        Raises:
            ModelFormatError: the JSON is not a tokenizer's.
            UnsupportedModelError: the native tokenizer refuses it, and the tokenizers library is not installed.
            BackendUnavailableError: neither the native library nor the tokenizers library is installed.
        """
        self._tokenizer = _make_tokenizer(tokenizer_json, threads)
        self.max_length = max_length
        self._usable_positions = usable_positions
        self._num_token_types = num_token_types
        framed = self._tokenizer.tokenize(["", ("", "")])
        self._may_be_empty = bool((np.diff(framed.cu_seqlens) == 0).any())
        self.mask_id = self.find_id(mask_token or "[MASK]", mask_token or "<mask>")

    @classmethod
    def for_spec(cls, tokenizer_json: str, spec: EncoderSpec, threads: int = 0) -> Tokenizer:
        """The tokenizer of a file with this spec."""
        return cls(
            tokenizer_json, spec.max_length, spec.usable_positions, spec.num_token_types, spec.mask_token, threads
        )

    @property
    def detail(self) -> str:
        """One line for people: what tokenizes, and why if it is not the native tokenizer."""
        return self._tokenizer.detail

    @property
    def special_tokens(self) -> list[str]:
        """The special tokens, as texts may hold them."""
        return self._tokenizer.special_tokens

    @property
    def max_id(self) -> int:
        """The highest id of all."""
        return self._tokenizer.max_id

    @property
    def unknown_id(self) -> int | None:
        """The id for what the vocabulary cannot spell; None if there is none."""
        return self._tokenizer.unknown_id

    @property
    def has_pair_types(self) -> bool:
        """Whether the second text of a pair has a type of its own."""
        return self._tokenizer.has_pair_types

    @property
    def marks_subwords(self) -> bool:
        """Whether a token inside a word carries a mark, as WordPiece's `##`."""
        return self._tokenizer.marks_subwords

    def find_id(self, *names: str) -> int | None:
        """The id of the first of these tokens that the vocabulary has."""
        return self._tokenizer.find_id(*names)

    def find_pieces(self, text: str) -> list[int]:
        """The ids of a text's tokens, without special tokens."""
        ids: list[int] = self._tokenizer.tokenize([text], special_tokens=False).input_ids.tolist()
        return ids

    def id_to_token(self, token_id: int) -> str:
        """The token of an id, as it stands in the vocabulary."""
        return self._tokenizer.id_to_token(token_id)

    def decode(self, ids: Sequence[int], skip_special_tokens: bool = False) -> str:
        """Token ids as text.

        Raises:
            UnsupportedModelError: the file's decoder is not one that the native tokenizer reproduces.
        """
        return self._tokenizer.decode(ids, skip_special_tokens)

    def join_tokens(self, tokens: list[str]) -> str:
        """Tokens as text, the way the tokenizer's decoder writes it.

        Raises:
            UnsupportedModelError: as `decode`.
        """
        return self._tokenizer.join_tokens(tokens)

    def tokenize(self, texts: Iterable[Text], max_length: int | None = None) -> tuple[PackedBatch, NDArray[np.bool_]]:
        """The rows of `make_rows`, packed, and which of them were truncated, bool [n]."""
        tokens = self._tokenize(texts, max_length)
        return PackedBatch(tokens.input_ids, tokens.token_type_ids, tokens.cu_seqlens), tokens.is_truncated

    def run_text(self, text: str, backend: Backend, output: str) -> F32 | None:
        """An output of sequences of one text, f32 [1, width], where two calls of the native library give it.

        None where more is to be done or said than that, as for another backend, or for a text that is not usable or
        may be too long: for `make_rows` and `Backend.run`, which give the same.
        """
        if not isinstance(self._tokenizer, NativeTokenizer) or not isinstance(backend, NativeBackend):
            return None
        return self._tokenizer.run_text(text, self.max_length, backend, output)

    def make_rows(self, texts: Iterable[Text], max_length: int | None = None) -> tuple[list[Row], NDArray[np.bool_]]:
        """A row a text or pair, each truncated to the limit; of a pair the longer text gives way first.

        Args:
            texts: each a str, or a pair of two as a tuple or list.
            max_length: tokens a row has at most, special tokens included; None takes the file's own limit.

        Returns:
            (rows, without offsets; bool [n]: which were truncated).

        Raises:
            InvalidInputError: what is not text, named by its index; a text that gives no tokens; a limit out of range.
        """
        ids, types, cu_seqlens, is_truncated, *_ = self._tokenize(texts, max_length)
        if len(is_truncated) == 1:
            return [Row(0, 0, ids, types)], is_truncated
        bounds = pairwise(cu_seqlens.tolist())
        return [Row(i, 0, ids[a:b], types[a:b]) for i, (a, b) in enumerate(bounds)], is_truncated

    def make_windows(
        self,
        texts: Iterable[Text],
        max_length: int | None = None,
        stride: int | None = None,
        lowers_stride: bool = False,
        cuts_longer: bool = False,
    ) -> tuple[list[Row], NDArray[np.bool_]]:
        """Rows with offsets; of what is too long, the last text is cut into windows.

        Args:
            texts: each a str, or a pair of two as a tuple or list; the first of a pair stands whole in every window.
            max_length: tokens a row has at most, special tokens included; None takes the file's own limit.
            stride: tokens that a window has in common with the one before it; None keeps the first window alone.
            lowers_stride: where the first of a pair leaves windows no room for `stride`, they share half of the room.
            cuts_longer: without a stride, of a pair the longer text gives way first, as in `make_rows`.

        Returns:
            (rows, those of a text in their order; bool [n]: which texts were truncated, none with a stride).

        Raises:
            InvalidInputError: as `make_rows`; a stride, or the first of a pair, that leaves windows no room to move on.
        """
        if stride is not None:
            check_stride("stride", stride)
        cuts_last_text = stride is not None or not cuts_longer
        tokens = self._tokenize(
            texts, max_length, stride=stride, lowers_stride=lowers_stride, cuts_last_text=cuts_last_text, offsets=True
        )
        offsets, word_ids, *columns = [array for array in tokens[4:] if array is not None]  # all: offsets are asked for
        rows: list[Row] = []
        for (a, b), text, (first, count), own in zip(
            pairwise(tokens.cu_seqlens.tolist()), *(column.tolist() for column in columns), strict=True
        ):
            window = rows[-1].window + 1 if rows and rows[-1].text == text else 0
            last = slice(a + first, a + first + count)
            ids, types = tokens.input_ids[a:b], tokens.token_type_ids[a:b]
            of_all = offsets[a:b], word_ids[a:b]
            rows.append(Row(text, window, ids, types, first, offsets[last], word_ids[last], *of_all, range(*own)))
        return rows, tokens.is_truncated

    def tokenize_whole(self, texts: Iterable[Text], special_tokens: bool = True) -> Tokens:
        """The tokens of texts and pairs, however many, with offsets and word ids.

        Raises:
            InvalidInputError: what is not text, named by its index.
        """
        return self._tokenizer.tokenize(_read_texts(texts), special_tokens=special_tokens, offsets=True)

    def _tokenize(self, texts: Iterable[Text], max_length: int | None, **options: Any) -> Tokens:
        """The tokens of checked texts, at least one a row, with the model's types."""
        limit = self._check_limit(max_length)
        rows = _read_texts(texts)
        tokens = self._tokenizer.tokenize(rows, max_length=limit, **options)
        if self._may_be_empty and (empty := np.diff(tokens.cu_seqlens) == 0).any():
            text = int(empty.argmax() if tokens.rows is None else tokens.rows[empty.argmax()])
            raise InvalidInputError(f"text {text} gives no tokens: the tokenizer adds none of its own, leave it out")
        if self._num_token_types < 2:
            tokens.token_type_ids.fill(0)
        return tokens

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


def _make_tokenizer(tokenizer_json: str, threads: int) -> BaseTokenizer:
    try:
        return NativeTokenizer(tokenizer_json, threads)
    except (UnsupportedModelError, BackendUnavailableError) as reason:
        from edgebert.tokenizer.library import LibraryTokenizer

        return LibraryTokenizer(tokenizer_json, reason)


def _read_texts(texts: Iterable[Text]) -> list[Text]:
    if isinstance(texts, (str, bytes, dict)) or not isinstance(texts, Iterable):
        raise InvalidInputError(f"expected a list of texts, got {type(texts).__name__}")
    rows = list(texts)
    for i, text in enumerate(rows):
        if isinstance(text, str):
            continue
        if not isinstance(text, (tuple, list)) or len(text) != 2 or not all(isinstance(part, str) for part in text):
            raise InvalidInputError(f"text {i} must be a str or a pair of two, got {_describe(text)}")
    return rows


def _describe(value: object) -> str:
    if isinstance(value, (tuple, list)):
        return f"{type(value).__name__} of {', '.join(type(part).__name__ for part in value) or 'nothing'}"
    return type(value).__name__


def check_stride(name: str, value: object) -> None:
    """Raise InvalidInputError for what is no count of tokens that windows can have in common."""
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value < 2**31:
        raise InvalidInputError(f"{name} must be an integer of at least 0, and less than 2**31, got {value!r}")


def check_id(token_id: int, where: str, tokenizer: Tokenizer, spec: EncoderSpec) -> None:
    """Refuse a token that the model has no row for: one that was added to the tokenizer, but not to the model.

    Raises:
        InvalidInputError: it is such a token; names it, and `where` it was found.
    """
    if token_id >= spec.vocab_size:
        raise InvalidInputError(
            f"{where}: the tokenizer gives {tokenizer.id_to_token(token_id)!r} the id {token_id}, and the model "
            f"has the ids 0 to {spec.vocab_size - 1} alone: leave that token out, or give the model a row for it "
            "(resize_token_embeddings in transformers), train it, and export it again"
        )


def check_ids(
    batch: PackedBatch, text_of_row: Sequence[int] | NDArray[np.int64], tokenizer: Tokenizer, spec: EncoderSpec
) -> None:
    """`check_id` of every token of a batch; `text_of_row` says of each of its rows which text it is from."""
    if batch.input_ids.max(initial=0) >= spec.vocab_size:
        token = int(np.argmax(batch.input_ids >= spec.vocab_size))
        row = int(np.searchsorted(batch.cu_seqlens, token, side="right")) - 1
        check_id(int(batch.input_ids[token]), f"text {text_of_row[row]}", tokenizer, spec)
