"""The native tokenizer: kernels/text/ behind the C API, one call a batch, with the tokenizers library's own results."""

from __future__ import annotations

import ctypes
from array import array
from collections.abc import Callable, Sequence
from functools import cache, lru_cache
from itertools import accumulate, chain
from typing import Any

import numpy as np

from edgebert.backends import native
from edgebert.backends.native import F32
from edgebert.errors import InvalidInputError
from edgebert.tokenizer.base import BaseTokenizer, Text, Tokens, check_unicode

OFFSET_UNITS = {None: 0, False: 0, "bytes": 1, "characters": 2, True: 2, "utf16": 3}  # enum eb_offset_unit
SIDES = {None: 0, "right": 1, "left": 2}  # enum eb_side
TRUNCATED, WINDOWS = 1, 2  # enum eb_long_texts


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
            "long_texts",
            "stride",
            "lowers_stride",
            "cuts_last_text",
            "side",
            "no_special_tokens",
            "offset_unit",
            "num_threads",
        )
    )


class _Tokens(ctypes.Structure):
    _fields_ = (
        *((name, ctypes.c_int32) for name in ("num_sequences", "num_rows", "total_tokens")),
        *((name, ctypes.c_void_p) for name in ("input_ids", "token_type_ids", "cu_seqlens", "offsets", "word_ids")),
        *((name, ctypes.c_void_p) for name in ("rows", "last_texts", "owned", "is_truncated")),
    )


_TokensPointer = ctypes.POINTER(_Tokens)


class _Info(ctypes.Structure):
    _fields_ = (
        *(
            (name, ctypes.c_int32)
            for name in ("vocab_size", "max_id", "unknown_id", "side", "has_pair_types", "marks_subwords")
        ),
        ("num_special_tokens", ctypes.c_int32),
        ("special_ids", ctypes.POINTER(ctypes.c_int32)),
        ("special_tokens", ctypes.POINTER(ctypes.c_char_p)),
    )


class _Call:
    """The structs of one call of eb_tokenize with one text."""

    def __init__(self) -> None:
        self.bounds = (ctypes.c_int64 * 2)()
        self.texts = _Texts(None, ctypes.addressof(self.bounds), None, 1)
        self.texts_address = ctypes.addressof(self.texts)
        self.tokens = _TokensPointer()


class NativeTokenizer(BaseTokenizer):
    """A tokenizer of the native library; a call releases the GIL.

    Attributes:
        vocab_size: different tokens, added ones included.
        side: "left" or "right", where the JSON has truncation take tokens off.
    """

    detail = "native"

    def __init__(self, tokenizer_json: str | bytes, threads: int = 1) -> None:
        """Args: the tokenizers library's JSON; of many texts, how many threads take them, 0 for the CPUs usable here.

        Raises:
            ModelFormatError: it is damaged.
            UnsupportedModelError: it asks for something that the native tokenizer does not do to the letter.
            BackendUnavailableError: the native library is missing.
        """
        self._library = _open_library(native.load_library()._name)
        self._threads = threads
        self._names: dict[int, str] = {}  # of ids asked for, which are asked for again
        self._idle_calls: list[_Call] = []
        data = tokenizer_json.encode() if isinstance(tokenizer_json, str) else tokenizer_json
        self._tokenizer = ctypes.c_void_p()
        native.check(self._library, self._library.eb_tokenizer_load(data, len(data), ctypes.byref(self._tokenizer)))
        info = _Info()
        native.check(self._library, self._library.eb_tokenizer_describe(self._tokenizer, ctypes.byref(info)))
        self.vocab_size: int = info.vocab_size
        self.max_id = info.max_id
        self.side = "left" if info.side == SIDES["left"] else "right"
        self.unknown_id = info.unknown_id if info.unknown_id >= 0 else None
        self.has_pair_types, self.marks_subwords = bool(info.has_pair_types), bool(info.marks_subwords)
        self.special_tokens = [token.decode() for token in info.special_tokens[: info.num_special_tokens]]

    def __del__(self) -> None:
        if getattr(self, "_tokenizer", None):
            self._library.eb_tokenizer_free(self._tokenizer)

    def run_text(self, text: str, max_length: int, backend: native.NativeBackend, output: str) -> F32 | None:
        """An output of sequences of one text, f32 [1, width]; the engine reads the tokens where the tokenizer put them.

        None for a text that `tokenize` or the engine refuses, and for one of so many tokens that some may be cut off.
        """
        try:
            data = text.encode()
        except UnicodeEncodeError:
            return None
        try:
            call = self._idle_calls.pop()  # no lock: a child forked while it is held could never take it
        except IndexError:
            call = _Call()
        call.texts.data, call.bounds[1] = data, len(data)
        options = _options(max_length, TRUNCATED, 0, 0, 0, 0, 0, 0, 1)
        tokens, library = call.tokens, self._library
        if library.eb_tokenize(self._tokenizer, call.texts_address, ctypes.byref(options), ctypes.byref(tokens)):
            return None
        found = tokens.contents
        result = None
        if found.total_tokens < max_length:
            result = backend.run_sequence(found.input_ids, found.token_type_ids, found.cu_seqlens, output)
        library.eb_tokens_free(tokens)
        self._idle_calls.append(call)
        return result

    def find_id(self, *names: str) -> int | None:
        """The id of the first of these tokens that was added or that the vocabulary has."""
        # a name in C ends at a NUL: those that hold one are not looked up
        ids = (int(self._library.eb_tokenizer_find(self._tokenizer, n.encode())) for n in names if "\0" not in n)
        return next((i for i in ids if i >= 0), None)

    def id_to_token(self, token_id: int) -> str:
        """The token of an id; empty if there is none."""
        token = self._names.get(token_id)
        if token is None:
            try:
                token = self._read(self._library.eb_tokenizer_token, token_id)
            except InvalidInputError:
                token = ""
            self._names[token_id] = token
        return token

    def decode(self, ids: Sequence[int], skip_special_tokens: bool = False) -> str:
        """Token ids as text."""
        array = np.array(ids, np.int32)
        return self._read(self._library.eb_detokenize, array.ctypes.data, len(array), skip_special_tokens)

    def join_tokens(self, tokens: list[str]) -> str:
        """Tokens as text, the way the decoder writes it."""
        data, bounds = _encode(tokens)
        texts = _Texts(data, _address(bounds), None, len(tokens))
        return self._read(self._library.eb_join_tokens, ctypes.byref(texts))

    def _read(self, function: Callable[..., int], *arguments: Any) -> str:
        """The text that a function of the C API writes."""
        capacity, size = 256, ctypes.c_size_t()
        while True:
            text = ctypes.create_string_buffer(capacity)
            native.check(self._library, function(self._tokenizer, *arguments, text, capacity, ctypes.byref(size)))
            if size.value < capacity:
                return ctypes.string_at(text, size.value).decode()
            capacity = size.value + 1

    def tokenize(
        self,
        texts: Sequence[Text],
        *,
        max_length: int = 0,
        stride: int | None = None,
        lowers_stride: bool = False,
        cuts_last_text: bool = False,
        special_tokens: bool = True,
        offsets: bool | str | None = None,
        side: str | None = None,
        threads: int | None = None,
    ) -> Tokens:
        """As the base class has it, and more.

        Args:
            texts: each a str, or a pair of two.
            max_length: tokens a sequence has at most, special tokens included; 0 for no limit.
            stride: tokens that a window of the last text has in common with the one before it; None for no windows.
            lowers_stride: where the first of a pair leaves windows no room for `stride`, they share half of the room.
            cuts_last_text: shorten the last of a pair alone, not first the longer.
            special_tokens: whether rows have them.
            offsets: also "characters", "utf16" or "bytes", the unit they are in.
            side: "right" or "left", where tokens are cut off; None for the one that the JSON names.
            threads: None for as many as the tokenizer was made with.

        Raises:
            InvalidInputError: a text that is not valid Unicode, or a limit that leaves no room.
        """
        row_bounds = None
        if all(map(str.__instancecheck__, texts)):
            flat: Sequence[str] = texts  # type: ignore[assignment]
        else:
            rows = [(text,) if isinstance(text, str) else text for text in texts]
            flat = list(chain.from_iterable(rows))
            row_bounds = _bounds(rows, "i")
        try:
            data, text_bounds = _encode(flat)
        except UnicodeEncodeError:
            check_unicode(texts)
            raise
        batch = _Texts(data, _address(text_bounds), None if row_bounds is None else _address(row_bounds), len(texts))
        options = _options(
            max_length,
            TRUNCATED if stride is None else WINDOWS,
            stride or 0,
            lowers_stride,
            cuts_last_text,
            SIDES[side],
            not special_tokens,
            OFFSET_UNITS[offsets],
            self._threads if threads is None else threads,
        )
        tokens = _TokensPointer()
        native.check(
            self._library,
            self._library.eb_tokenize(
                self._tokenizer, ctypes.byref(batch), ctypes.byref(options), ctypes.byref(tokens)
            ),
        )
        try:
            return _take(tokens.contents, bool(offsets), bool(offsets) or stride is not None)
        finally:
            self._library.eb_tokens_free(tokens)


@lru_cache
def _options(*values: int) -> _Options:
    return _Options(*values)


def _take(found: _Tokens, has_offsets: bool, has_windows: bool) -> Tokens:
    """A copy of what the library gave, which is one block of memory."""
    n, total, num_rows = found.num_sequences, found.total_tokens, found.num_rows
    size = total * (5 if has_offsets else 2) + 6 * n + 1
    block = bytearray(ctypes.string_at(found.input_ids, 4 * size + num_rows))
    numbers = np.frombuffer(block, np.int32, size)
    is_truncated = np.frombuffer(block, np.bool_, num_rows, 4 * size)
    ends = 2 * total + n + 1
    whole = numbers[:total], numbers[total : 2 * total], numbers[2 * total : ends], is_truncated
    if not has_windows:
        return Tokens(*whole)
    offsets = word_ids = None
    if has_offsets:
        offsets = numbers[ends : ends + 2 * total].reshape(-1, 2)
        word_ids = numbers[ends + 2 * total : ends + 3 * total]
    rows = numbers[size - 5 * n : size - 4 * n]
    last_texts, owned = (numbers[size - k * n : size - (k - 2) * n].reshape(-1, 2) for k in (4, 2))
    return Tokens(*whole, offsets, word_ids, rows, last_texts, owned)


def _encode(texts: Sequence[str]) -> tuple[bytes, array[int]]:
    """Texts end to end in UTF-8, and where each begins, int64 [n + 1]."""
    joined = "".join(texts)
    if joined.isascii():
        bounds = array("q", (0, len(joined))) if len(texts) == 1 else _bounds(texts, "q")
        return joined.encode(), bounds
    encoded = [text.encode() for text in texts]
    return b"".join(encoded), _bounds(encoded, "q")


def _bounds(parts: Sequence[Any], code: str) -> array[int]:
    """Where each part begins if they lie end to end, and where the last ends: integers of an array's type code."""
    return array(code, accumulate(map(len, parts), initial=0))  # less to set up than NumPy's, and no slower


def _address(numbers: array[int]) -> int:
    return numbers.buffer_info()[0]


@cache
def _open_library(path: str) -> ctypes.CDLL:
    """The library once more, with functions of its own: declared here, where no other thread is calling them yet."""
    library = ctypes.CDLL(path)
    _declare(library)
    return library


def _declare(library: ctypes.CDLL) -> None:
    c_char_p, c_int32, c_size_t, c_void_p = ctypes.c_char_p, ctypes.c_int32, ctypes.c_size_t, ctypes.c_void_p
    text = (c_char_p, c_size_t, ctypes.POINTER(c_size_t))
    for name, result, arguments in (
        ("eb_last_error", c_char_p, ()),
        ("eb_tokenizer_load", ctypes.c_int, (c_char_p, c_size_t, ctypes.POINTER(c_void_p))),
        ("eb_tokenizer_free", None, (c_void_p,)),
        ("eb_tokenizer_find", c_int32, (c_void_p, c_char_p)),
        ("eb_tokenizer_describe", ctypes.c_int, (c_void_p, ctypes.POINTER(_Info))),
        ("eb_tokenizer_token", ctypes.c_int, (c_void_p, c_int32, *text)),
        ("eb_detokenize", ctypes.c_int, (c_void_p, c_void_p, c_int32, c_int32, *text)),
        ("eb_join_tokens", ctypes.c_int, (c_void_p, c_void_p, *text)),
        (
            "eb_tokenize",
            ctypes.c_int,
            (c_void_p, c_void_p, c_void_p, ctypes.POINTER(_TokensPointer)),
        ),
        ("eb_tokens_free", None, (_TokensPointer,)),
    ):
        function = getattr(library, name)
        function.restype = result
        function.argtypes = arguments
