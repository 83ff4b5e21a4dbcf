"""What the two tokenizers have in common: what they take and what they give."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from edgebert.batch import I32
from edgebert.errors import InvalidInputError

Text = str | Sequence[str]  # one text, or a pair of two


class Tokens(NamedTuple):
    """Packed sequences, one a row or one a window.

    Attributes:
        input_ids: int32 [total_tokens].
        token_type_ids: int32 [total_tokens].
        cu_seqlens: int32 [n + 1].
        is_truncated: bool [texts or pairs], whether tokens were cut off.
        offsets: int32 [total_tokens, 2], where each token stands in its text, 0 and 0 for special tokens; or None.
        word_ids: int32 [total_tokens], the word each belongs to, -1 for special tokens; or None.
        rows: int32 [n], the text or pair that each is of; None, as the next two, if nothing was asked for of offsets
            and windows.
        last_texts: int32 [n, 2], first and count of the tokens that are the last text's.
        owned: int32 [n, 2], begin and end among those of the tokens that no other window shows with more text around.
    """

    input_ids: I32
    token_type_ids: I32
    cu_seqlens: I32
    is_truncated: NDArray[np.bool_]
    offsets: I32 | None = None
    word_ids: I32 | None = None
    rows: I32 | None = None
    last_texts: I32 | None = None
    owned: I32 | None = None


class BaseTokenizer(ABC):
    """A tokenizer of the tokenizers library's JSON. It holds no state between calls, and threads may share it.

    Attributes:
        detail: one line for people: what tokenizes, and why if it is not the native tokenizer.
        special_tokens: the special tokens, as texts may hold them.
        max_id: the highest id of all.
        unknown_id: of the token for what the vocabulary cannot spell; None if there is none.
        has_pair_types: whether the second text of a pair has a type of its own.
        marks_subwords: whether a token that goes on a word carries a mark, as WordPiece's `##`.
    """

    detail: str
    special_tokens: list[str]
    max_id: int
    unknown_id: int | None
    has_pair_types: bool
    marks_subwords: bool

    @abstractmethod
    def tokenize(
        self,
        texts: Sequence[Text],
        *,
        max_length: int = 0,
        stride: int | None = None,
        lowers_stride: bool = False,
        cuts_last_text: bool = False,
        special_tokens: bool = True,
        offsets: bool = False,
    ) -> Tokens:
        """Tokenize texts and pairs, cut off or cut into windows on the side that the JSON names.

        Args:
            texts: each a str, or a pair of two.
            max_length: tokens a sequence has at most, special tokens included; 0 for no limit.
            stride: tokens that a window of the last text has in common with the one before it; None for no windows.
            lowers_stride: where the first of a pair leaves windows no room for `stride`, they share half of the room.
            cuts_last_text: shorten the last of a pair alone, not first the longer; so do windows.
            special_tokens: whether rows have them.
            offsets: whether to give offsets, in characters, and word ids.

        Raises:
            InvalidInputError: a text that is not valid Unicode, or limits that leave no room.
        """

    @abstractmethod
    def find_id(self, *names: str) -> int | None:
        """The id of the first of these tokens that was added or that the vocabulary has."""

    @abstractmethod
    def id_to_token(self, token_id: int) -> str:
        """The token of an id, as it stands in the vocabulary; empty if there is none."""

    @abstractmethod
    def decode(self, ids: Sequence[int], skip_special_tokens: bool = False) -> str:
        """Token ids as text.

        Raises:
            UnsupportedModelError: the JSON's decoder is not one that can be reproduced to the letter.
        """

    @abstractmethod
    def join_tokens(self, tokens: list[str]) -> str:
        """Tokens as text, the way the JSON's decoder writes it.

        Raises:
            UnsupportedModelError: as `decode`.
        """


def check_unicode(texts: Iterable[Text]) -> None:
    """Raise InvalidInputError for a text with lone surrogates, named by its index."""
    for i, text in enumerate(texts):
        for part in [text] if isinstance(text, str) else text:
            check_text(f"text {i}", part)


def check_text(name: str, text: str) -> None:
    """Raise InvalidInputError, with this name, for a text with lone surrogates."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise InvalidInputError(
            f"{name} is not valid Unicode ({error.reason} at character {error.start}): decode it with errors='replace'"
        ) from None
