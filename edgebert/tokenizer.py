"""Texts to token ids: the file's own tokenizer, truncating as transformers truncates, with checked input."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from functools import cache
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from edgebert.artifact.spec import EncoderSpec
from edgebert.batch import I32, PackedBatch
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

    @property
    def last_text(self) -> int:
        """Special tokens before the last text."""
        return self.num_special - len(self.special_ids[-1])

    def assemble(self, texts: list[list[int]]) -> tuple[list[int], list[int]]:
        ids, types = list(self.special_ids[0]), list(self.special_types[0])
        for i, text in enumerate(texts):
            ids += text + self.special_ids[i + 1]
            types += [self.text_types[i]] * len(text) + self.special_types[i + 1]
        return ids, types


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
        unknown_id: the id for what the vocabulary cannot spell; None if there is none.
        mask_id: the id that stands for a token to be filled in; None if there is none.
    """

    def __init__(
        self,
        tokenizer_json: str,
        max_length: int,
        usable_positions: int,
        num_token_types: int,
        mask_token: str | None = None,
    ) -> None:
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
        truncation = self._tokenizer.truncation
        self._cuts_left = truncation is not None and truncation["direction"] == "left"
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()
        self.max_length = max_length
        self._usable_positions = usable_positions
        self._num_token_types = num_token_types
        unknown = getattr(self._tokenizer.model, "unk_token", None)  # a Unigram model has an id, which it hides
        self.unknown_id = self.find_id(unknown or "[UNK]", "[UNK]", "<unk>")
        self.mask_id = self.find_id(mask_token or "[MASK]", mask_token or "<mask>")
        self._layouts = [self._find_layout(num_texts) for num_texts in (1, 2)]

    @classmethod
    def for_spec(cls, tokenizer_json: str, spec: EncoderSpec) -> Tokenizer:
        """The tokenizer of a file with this spec."""
        return cls(tokenizer_json, spec.max_length, spec.usable_positions, spec.num_token_types, spec.mask_token)

    @property
    def special_tokens(self) -> list[str]:
        """The special tokens, as texts may hold them."""
        return [token.content for token in self._tokenizer.get_added_tokens_decoder().values() if token.special]

    @property
    def gives_types(self) -> bool:
        """Whether the second text of a pair has a type of its own."""
        return any(self._layouts[1].text_types)

    @property
    def marks_subwords(self) -> bool:
        """Whether a token inside a word carries a mark, as WordPiece's `##`."""
        return bool(getattr(self._tokenizer.model, "continuing_subword_prefix", None))

    def find_id(self, *names: str) -> int | None:
        """The id of the first of these tokens that the vocabulary has."""
        return next((i for i in map(self._tokenizer.token_to_id, names) if i is not None), None)

    def find_pieces(self, text: str) -> list[int]:
        """The ids of a text's tokens, without special tokens."""
        return self._encode([[text]], 0, offsets=False)[0].ids

    def id_to_token(self, token_id: int) -> str:
        """The token of an id, as it stands in the vocabulary."""
        return self._tokenizer.id_to_token(token_id) or ""

    def decode(self, ids: Sequence[int], skip_special_tokens: bool = False) -> str:
        """Token ids as text."""
        return str(self._tokenizer.decode(ids, skip_special_tokens=skip_special_tokens))

    def join_tokens(self, tokens: list[str]) -> str:
        """Tokens as text, the way the tokenizer's decoder writes it."""
        decoder = self._tokenizer.decoder
        return " ".join(tokens) if decoder is None else decoder.decode(tokens)

    def tokenize(self, texts: Iterable[Text], max_length: int | None = None) -> tuple[PackedBatch, NDArray[np.bool_]]:
        """The rows of `make_rows`, packed, and which of them were truncated, bool [n]."""
        rows, is_truncated = self.make_rows(texts, max_length)
        return PackedBatch.from_lists(
            [row.input_ids for row in rows], [row.token_type_ids for row in rows]
        ), is_truncated

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
        limit = self._check_limit(max_length)
        texts = _read_texts(texts)
        rows: list[Row] = []
        is_truncated = np.zeros(len(texts), np.bool_)
        for i, encodings in self._encode_parts(texts):
            parts = [encoding.ids for encoding in encodings]
            layout = self._layouts[len(parts) - 1]
            room = self._find_room(i, layout, limit)
            if sum(map(len, parts)) > room:
                is_truncated[i] = True
                keep = _longest_first([len(part) for part in parts], room)
                parts = [self._cut(part, size) for part, size in zip(parts, keep, strict=True)]
            rows.append(Row(i, 0, *self._assemble(i, layout, parts)))
        return rows, is_truncated

    def make_windows(
        self, texts: Iterable[Text], max_length: int | None = None, stride: int | None = None
    ) -> tuple[list[Row], NDArray[np.bool_]]:
        """Rows with offsets; of what is too long, the last text is cut into windows.

        Args:
            texts: each a str, or a pair of two as a tuple or list; the first of a pair stands whole in every window.
            max_length: tokens a row has at most, special tokens included; None takes the file's own limit.
            stride: tokens that a window has in common with the one before it; None keeps the first window alone.

        Returns:
            (rows, those of a text in their order; bool [n]: which texts were truncated, none with a stride).

        Raises:
            InvalidInputError: as `make_rows`; a stride, or the first of a pair, that leaves no room to move on.
        """
        limit = self._check_limit(max_length)
        texts = _read_texts(texts)
        if stride is not None and (not isinstance(stride, int) or isinstance(stride, bool) or stride < 0):
            raise InvalidInputError(f"stride must be an integer of at least 0, got {stride!r}")
        rows: list[Row] = []
        is_truncated = np.zeros(len(texts), np.bool_)
        for text, encodings in self._encode_parts(texts, offsets=True):
            *before, last = encodings
            layout = self._layouts[len(before)]
            head = [encoding.ids for encoding in before]
            room = self._find_room(text, layout, limit) - sum(map(len, head))
            step = room if stride is None else room - stride
            if len(last.ids) > room and step < 1:
                raise InvalidInputError(
                    f"text {text}: {limit} tokens leave {max(room, 0)} to a window, special tokens"
                    f"{' and the first text of the pair' if before else ''} taken off, and stride is {stride or 0}: "
                    "raise max_length or lower stride"
                )
            offsets = np.array(last.offsets, np.int32).reshape(-1, 2)
            word_ids = np.array([-1 if word is None else word for word in last.word_ids], np.int32)
            first = layout.last_text + sum(map(len, head))
            spans = self._find_windows(len(last.ids), room, stride)
            is_truncated[text] = stride is None and room < len(last.ids)
            for i, (begin, end) in enumerate(spans):
                ids, types = self._assemble(text, layout, [*head, last.ids[begin:end]])
                # what two windows share is owned half by each
                owned_from = (spans[i - 1][1] + begin + 1) // 2 if i > 0 else begin
                owned_to = (end + spans[i + 1][0] + 1) // 2 if i + 1 < len(spans) else end
                owned = range(owned_from - begin, owned_to - begin)
                rows.append(Row(text, i, ids, types, first, offsets[begin:end], word_ids[begin:end], owned))
        return rows, is_truncated

    def _cut(self, tokens: list[int], size: int) -> list[int]:
        """The `size` tokens that truncation keeps."""
        return tokens[len(tokens) - size :] if self._cuts_left else tokens[:size]

    def _find_windows(self, size: int, room: int, stride: int | None) -> list[tuple[int, int]]:
        """Bounds of the windows of a text of `size` tokens, in their order; one where it fits or is truncated.

        The last window is short, or where truncation is on the left, the first.
        """
        if size <= room or stride is None:
            windows = [(0, min(room, size))]
        else:
            steps = range(0, size - room + (room - stride), room - stride)
            windows = [(begin, min(begin + room, size)) for begin in steps]
        return [(size - end, size - begin) for begin, end in reversed(windows)] if self._cuts_left else windows

    def _assemble(self, text: int, layout: _Layout, parts: list[list[int]]) -> tuple[I32, I32]:
        """(input_ids, token_type_ids) of a row of these tokens."""
        ids, types = layout.assemble(parts)
        if not ids:
            raise InvalidInputError(f"text {text} gives no tokens: the tokenizer adds none of its own, leave it out")
        input_ids = np.array(ids, np.int32)
        return input_ids, np.array(types, np.int32) if self._num_token_types >= 2 else np.zeros_like(input_ids)

    def _find_room(self, row: int, layout: _Layout, limit: int) -> int:
        """Tokens that the limit leaves to the texts themselves."""
        room = limit - layout.num_special
        if room < 0:
            raise InvalidInputError(
                f"max_length {limit} has no room for the {layout.num_special} special tokens of row {row}: raise it"
            )
        return room

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
        try:
            encoding = self._tokenizer.encode("a", "a" if num_texts == 2 else None)
        except Exception as error:  # the library raises nothing narrower
            raise ModelFormatError(f"the file's tokenizer cannot be used ({error}): bring token ids instead") from None
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

    def _encode_parts(self, texts: list[Text], offsets: bool = False) -> Iterator[tuple[int, list[Encoding]]]:
        """(row, encodings without special tokens of its one or two texts), in order."""
        pending: list[list[str]] = []
        characters = first = 0
        for row, text in enumerate(texts):
            parts = _split_pair(row, text)
            pending.append(parts)
            characters += sum(map(len, parts))
            if characters >= _CHUNK_CHARACTERS or row == len(texts) - 1:
                encodings = iter(self._encode(pending, first, offsets))
                for i, pending_parts in enumerate(pending, first):
                    yield i, [next(encodings) for _ in pending_parts]
                pending, characters, first = [], 0, row + 1

    def _encode(self, rows: list[list[str]], first: int, offsets: bool) -> list[Encoding]:
        _watch_forks()
        encode = self._tokenizer.encode_batch if offsets else self._tokenizer.encode_batch_fast
        flat = [part for parts in rows for part in parts]
        try:
            return encode(flat, add_special_tokens=False)
        except Exception as failure:  # the library raises nothing narrower
            for row, parts in enumerate(rows, first):
                try:
                    "".join(parts).encode()
                except UnicodeEncodeError as error:
                    raise InvalidInputError(
                        f"text {row} is not valid Unicode ({error.reason} at character {error.start}): "
                        "decode it with errors='replace'"
                    ) from None
            raise InvalidInputError(f"the file's tokenizer cannot read these texts: {failure}") from None


@cache
def _watch_forks() -> None:
    """From now on, forbid a forked child to tokenize on the library's threads, which are not there and waited for.

    Without TOKENIZERS_PARALLELISM the library sees to it itself.
    """

    def forbid() -> None:
        if "TOKENIZERS_PARALLELISM" in os.environ:
            os.environ["TOKENIZERS_PARALLELISM"] = "false"

    if hasattr(os, "register_at_fork"):
        os.register_at_fork(after_in_child=forbid)


def _read_texts(texts: Iterable[Text]) -> list[Text]:
    if isinstance(texts, (str, bytes, dict)) or not isinstance(texts, Iterable):
        raise InvalidInputError(f"expected a list of texts, got {type(texts).__name__}")
    return list(texts)


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
