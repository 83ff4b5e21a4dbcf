"""The native tokenizer: kernels/text/ behind the C API, one call a batch, with the tokenizers library's own results."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from itertools import chain
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from edgebert.backends import native
from edgebert.batch import I32

OFFSET_UNITS = {None: 0, "bytes": 1, "characters": 2, "utf16": 3}  # enum eb_offset_unit


class _Texts(ctypes.Structure):
    _fields_ = (
        ("data", ctypes.c_char_p),
        ("text_bounds", ctypes.c_void_p),
        ("row_bounds", ctypes.c_void_p),
        ("num_rows", ctypes.c_int32),
    )


class _Options(ctypes.Structure):
    _fields_ = tuple(
        (name, ctypes.c_int32)
        for name in (
            "max_length",
            "stride",
            "cuts_last_text",
            "cuts_left",
            "no_special_tokens",
            "offset_unit",
            "num_threads",
        )
    )


class _Tokens(ctypes.Structure):
    _fields_ = (
        ("num_sequences", ctypes.c_int32),
        ("num_rows", ctypes.c_int32),
        *((name, ctypes.c_void_p) for name in ("input_ids", "token_type_ids", "cu_seqlens", "offsets", "word_ids")),
        *((name, ctypes.c_void_p) for name in ("rows", "last_texts", "owned", "is_truncated")),
    )


class Tokens(NamedTuple):
    """Packed sequences, one a row or one a window.

    Attributes:
        input_ids: int32 [total_tokens].
        token_type_ids: int32 [total_tokens].
        cu_seqlens: int32 [n + 1].
        offsets: int32 [total_tokens, 2], where each token stands in its text, 0 and 0 for special tokens; or None.
        word_ids: int32 [total_tokens], the word each belongs to, -1 for special tokens; or None.
        rows: int32 [n], the text or pair that each is of.
        last_texts: int32 [n, 2], first and count of the tokens that are the last text's.
        owned: int32 [n, 2], begin and end among those of the tokens that no other window shows with more text around.
        is_truncated: bool [texts or pairs], whether tokens were cut off.
    """

    input_ids: I32
    token_type_ids: I32
    cu_seqlens: I32
    offsets: I32 | None
    word_ids: I32 | None
    rows: I32
    last_texts: I32
    owned: I32
    is_truncated: NDArray[np.bool_]


class NativeTokenizer:
    """A tokenizer of the native library; it may be used from several threads, and a call releases the GIL."""

    def __init__(self, tokenizer_json: str | bytes) -> None:
        """Args: the tokenizers library's JSON.

        Raises:
            ModelFormatError: it is damaged.
            UnsupportedModelError: it asks for something that the native tokenizer does not do to the letter.
            BackendUnavailableError: the native library is missing.
        """
        self._library = native.load_library()
        _declare(self._library)
        data = tokenizer_json.encode() if isinstance(tokenizer_json, str) else tokenizer_json
        self._tokenizer = ctypes.c_void_p()
        native.check(self._library, self._library.eb_tokenizer_load(data, len(data), ctypes.byref(self._tokenizer)))

    def __del__(self) -> None:
        if getattr(self, "_tokenizer", None):
            self._library.eb_tokenizer_free(self._tokenizer)

    def find_id(self, *names: str) -> int | None:
        """The id of the first of these tokens that was added or that the vocabulary has."""
        ids = (int(self._library.eb_tokenizer_find(self._tokenizer, name.encode())) for name in names)
        return next((i for i in ids if i >= 0), None)

    def tokenize(
        self,
        texts: Sequence[str | Sequence[str]],
        *,
        max_length: int = 0,
        stride: int | None = None,
        cuts_last_text: bool = False,
        cuts_left: bool = False,
        special_tokens: bool = True,
        offsets: str | None = None,
        threads: int = 1,
    ) -> Tokens:
        """Tokenize texts and pairs.

        Args:
            texts: each a str, or a pair of two.
            max_length: tokens a sequence has at most, special tokens included; 0 for no limit.
            stride: tokens that a window of the last text has in common with the one before it; None for no windows.
            cuts_last_text: shorten the last of a pair alone, not first the longer.
            cuts_left: cut off the beginning, not the end.
            special_tokens: whether rows have them.
            offsets: "characters", "utf16" or "bytes", to get offsets and word ids too; None for neither.
            threads: 0 for as many as this process may use.

        Raises:
            InvalidInputError: a limit that leaves no room.
            UnicodeEncodeError: a text has lone surrogates.
        """
        row_bounds = None
        if all(map(str.__instancecheck__, texts)):
            flat: Sequence[str] = texts  # type: ignore[assignment]
        else:
            rows = [(text,) if isinstance(text, str) else text for text in texts]
            flat = list(chain.from_iterable(rows))
            row_bounds = _bounds(rows, np.int32)
        joined = "".join(flat)
        if joined.isascii():
            text_bounds = _bounds(flat, np.int64)
            data = joined.encode()
        else:
            encoded = [text.encode() for text in flat]
            text_bounds = _bounds(encoded, np.int64)
            data = b"".join(encoded)
        bounds = None if row_bounds is None else row_bounds.ctypes.data
        batch = _Texts(data, text_bounds.ctypes.data, bounds, len(texts))
        options = _Options(
            max_length,
            -1 if stride is None else stride,
            cuts_last_text,
            cuts_left,
            not special_tokens,
            OFFSET_UNITS[offsets],
            threads,
        )
        tokens = ctypes.POINTER(_Tokens)()
        status = self._library.eb_tokenize(
            self._tokenizer, ctypes.byref(batch), ctypes.byref(options), ctypes.byref(tokens)
        )
        native.check(self._library, status)
        try:
            found = tokens.contents
            n = found.num_sequences
            cu_seqlens = _copy(found.cu_seqlens, n + 1)
            total = int(cu_seqlens[-1])
            return Tokens(
                _copy(found.input_ids, total),
                _copy(found.token_type_ids, total),
                cu_seqlens,
                _copy(found.offsets, 2 * total).reshape(-1, 2) if offsets else None,
                _copy(found.word_ids, total) if offsets else None,
                _copy(found.rows, n),
                _copy(found.last_texts, 2 * n).reshape(-1, 2),
                _copy(found.owned, 2 * n).reshape(-1, 2),
                np.frombuffer(ctypes.string_at(found.is_truncated, found.num_rows), np.bool_),
            )
        finally:
            self._library.eb_tokens_free(tokens)


def _bounds(parts: Sequence[Any], dtype: type[np.integer[Any]]) -> NDArray[Any]:
    """Where each part begins if they lie end to end, and where the last ends."""
    bounds = np.zeros(len(parts) + 1, dtype)
    np.cumsum(np.fromiter(map(len, parts), dtype, len(parts)), out=bounds[1:])
    return bounds


def _copy(address: int, count: int) -> I32:
    array = np.empty(count, np.int32)
    ctypes.memmove(array.ctypes.data, address, array.nbytes)
    return array


def _declare(library: ctypes.CDLL) -> None:
    pointer = ctypes.POINTER(ctypes.c_void_p)
    for name, result, arguments in (
        ("eb_tokenizer_load", ctypes.c_int, (ctypes.c_char_p, ctypes.c_size_t, pointer)),
        ("eb_tokenizer_free", None, (ctypes.c_void_p,)),
        ("eb_tokenizer_find", ctypes.c_int32, (ctypes.c_void_p, ctypes.c_char_p)),
        (
            "eb_tokenize",
            ctypes.c_int,
            (ctypes.c_void_p, ctypes.c_void_p, ctypes.c_void_p, ctypes.POINTER(ctypes.POINTER(_Tokens))),
        ),
        ("eb_tokens_free", None, (ctypes.POINTER(_Tokens),)),
    ):
        function = getattr(library, name)
        function.restype = result
        function.argtypes = arguments
