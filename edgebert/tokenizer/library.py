"""The tokenizers library, for files that the native tokenizer refuses and installations without it."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Sequence
from functools import cache
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from edgebert.errors import EdgeBertError, InvalidInputError, ModelFormatError
from edgebert.tokenizer.base import BaseTokenizer, Text, Tokens, check_unicode

if TYPE_CHECKING:
    from tokenizers import Encoding

_CHUNK_CHARACTERS = 1 << 20  # encodings are far larger than the ids kept of them: hold those of this many characters


class _Layout(NamedTuple):
    """Where special tokens stand: ids and types before the first text, between the texts and after the last."""

    special_ids: list[list[int]]  # one list more than there are texts
    special_types: list[list[int]]
    text_types: list[int]

    @property
    def num_special(self) -> int:
        return sum(map(len, self.special_ids))


class LibraryTokenizer(BaseTokenizer):
    """A tokenizer of the tokenizers library; rows are cut as the native tokenizer cuts them."""

    def __init__(self, tokenizer_json: str, reason: EdgeBertError) -> None:
        """Args: the library's JSON, and why it is not the native tokenizer's.

        Raises:
            EdgeBertError: the reason, where the library is not installed.
            ModelFormatError: the JSON is not a tokenizer's.
        """
        try:
            import tokenizers
        except ImportError:
            raise type(reason)(f"{reason}; texts can be read with `pip install tokenizers`") from None
        try:
            self._tokenizer = tokenizers.Tokenizer.from_str(tokenizer_json)
        except Exception as error:  # the library raises nothing narrower
            raise ModelFormatError(f"the file's tokenizer cannot be read ({error}): re-export the model") from None
        # Truncation is done here: the library's keeps every cut-off piece, which for long pairs are very many.
        truncation = self._tokenizer.truncation
        self._cuts_left = truncation is not None and truncation["direction"] == "left"
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()
        self.detail = f"the tokenizers library {tokenizers.__version__} ({reason})"
        added = self._tokenizer.get_added_tokens_decoder()
        self.special_tokens = [token.content for token in added.values() if token.special]
        self.max_id = max(self._tokenizer.get_vocab().values(), default=-1)
        unknown = getattr(self._tokenizer.model, "unk_token", None)
        self.unknown_id = self.find_id(unknown or "[UNK]", "[UNK]", "<unk>")
        if json.loads(tokenizer_json)["model"].get("unk_id") is not None:  # which the library does not tell
            self.unknown_id = json.loads(tokenizer_json)["model"]["unk_id"]
        self.marks_subwords = bool(getattr(self._tokenizer.model, "continuing_subword_prefix", None))
        self._layouts = [self._find_layout(num_texts) for num_texts in (1, 2)]
        self.has_pair_types = any(self._layouts[1].text_types)

    def find_id(self, *names: str) -> int | None:
        """The id of the first of these tokens that was added or that the vocabulary has."""
        return next((i for i in map(self._tokenizer.token_to_id, names) if i is not None), None)

    def id_to_token(self, token_id: int) -> str:
        """The token of an id; empty if there is none."""
        return self._tokenizer.id_to_token(token_id) or ""

    def decode(self, ids: Sequence[int], skip_special_tokens: bool = False) -> str:
        """Token ids as text."""
        return str(self._tokenizer.decode(list(ids), skip_special_tokens=skip_special_tokens))

    def join_tokens(self, tokens: list[str]) -> str:
        """Tokens as text, the way the decoder writes it."""
        decoder = self._tokenizer.decoder
        return " ".join(tokens) if decoder is None else str(decoder.decode(tokens))

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
        """See the base class."""
        ids: list[int] = []
        types: list[int] = []
        spans: list[tuple[int, int]] = []
        words: list[int] = []
        bounds, rows, last_texts, owned = [0], [], [], []
        is_truncated = np.zeros(len(texts), np.bool_)

        def add_special(layout: _Layout, place: int) -> None:
            ids.extend(layout.special_ids[place])
            types.extend(layout.special_types[place])
            spans.extend([(0, 0)] * len(layout.special_ids[place]))
            words.extend([-1] * len(layout.special_ids[place]))

        if max_length:
            self._check_limits(max_length, stride, lowers_stride, special_tokens)
        kind = "text" if all(isinstance(text, str) for text in texts) else "row"
        for row, encodings in self._encode_parts(texts, offsets):
            layout = self._layouts[len(encodings) - 1]
            if not special_tokens:
                layout = _Layout([[]] * (len(encodings) + 1), [[]] * (len(encodings) + 1), layout.text_types)
            room = (max_length or 2**31) - layout.num_special
            if room < 0:
                raise InvalidInputError(
                    f"{kind} {row}: max_length {max_length} has no room for the {layout.num_special} special tokens "
                    "of a pair: raise it"
                )
            sizes = [len(encoding.ids) for encoding in encodings]
            if cuts_last_text or stride is not None:
                windows = self._find_windows(f"{kind} {row}", sizes, room, max_length, stride, lowers_stride)
                is_truncated[row] = stride is None and sum(sizes) > room
            else:
                kept = [self._cut(*pair) for pair in zip(sizes, _longest_first(sizes, room), strict=True)]
                windows = [(kept, (0, kept[-1][1] - kept[-1][0]))]
                is_truncated[row] = sum(sizes) > room
            for ranges, own in windows:
                add_special(layout, 0)
                for i, (encoding, (begin, end)) in enumerate(zip(encodings, ranges, strict=True)):
                    last_text = len(ids) - bounds[-1], end - begin
                    ids += encoding.ids[begin:end]
                    types += [layout.text_types[i]] * (end - begin)
                    if offsets:
                        spans += encoding.offsets[begin:end]
                        words += [-1 if word is None else word for word in encoding.word_ids[begin:end]]
                    add_special(layout, i + 1)
                bounds.append(len(ids))
                rows.append(row)
                last_texts.append(last_text)
                owned.append(own)
        tokens = Tokens(np.array(ids, np.int32), np.array(types, np.int32), np.array(bounds, np.int32), is_truncated)
        if offsets:
            places = np.array(spans, np.int32).reshape(-1, 2)
            tokens = tokens._replace(offsets=places, word_ids=np.array(words, np.int32))
        if offsets or stride is not None:
            columns = [np.array(pairs, np.int32).reshape(-1, 2) for pairs in (last_texts, owned)]
            tokens = tokens._replace(rows=np.array(rows, np.int32), last_texts=columns[0], owned=columns[1])
        return tokens

    def _check_limits(self, max_length: int, stride: int | None, lowers_stride: bool, special_tokens: bool) -> None:
        num_special = self._layouts[0].num_special if special_tokens else 0
        room = max_length - num_special
        if room < 0:
            raise InvalidInputError(
                f"max_length {max_length} has no room for the {num_special} special tokens of a text: raise it"
            )
        if stride is not None and not lowers_stride and stride >= room:
            raise InvalidInputError(
                f"stride is {stride}, and max_length {max_length} leaves {room} tokens to a window, special tokens "
                "taken off: raise max_length or lower stride"
            )

    def _cut(self, size: int, kept: int) -> tuple[int, int]:
        """The range of a text's tokens that truncation keeps."""
        return (size - kept, size) if self._cuts_left else (0, kept)

    def _find_windows(
        self, row: str, sizes: list[int], room: int, max_length: int, stride: int | None, lowers_stride: bool
    ) -> list[tuple[list[tuple[int, int]], tuple[int, int]]]:
        """Of each window the ranges of the texts' tokens, and which of the last's it owns.

        The last window is short, or where truncation is on the left, the first.
        """
        *before, size = sizes
        room -= sum(before)
        shared = stride or 0
        if lowers_stride and shared >= room:
            shared = max(room, 0) // 2
        step = room - shared
        if size > room and step < 1:
            also = f" and the first text of {row}" if before else ""
            raise InvalidInputError(
                f"{row}: max_length {max_length} leaves {max(room, 0)} tokens to a window, special tokens{also} "
                f"taken off, and stride is {stride or 0}: raise max_length or lower stride"
            )
        if size <= room or stride is None:
            spans = [self._cut(size, min(room, size))]
        else:
            spans = [(begin, min(begin + room, size)) for begin in range(0, size - room + step, step)]
            if self._cuts_left:
                spans = [(size - end, size - begin) for begin, end in reversed(spans)]
        windows = []
        for i, (begin, end) in enumerate(spans):
            # what two windows share is owned half by each
            owned_from = (spans[i - 1][1] + begin + 1) // 2 if i > 0 else begin
            owned_to = (end + spans[i + 1][0] + 1) // 2 if i + 1 < len(spans) else end
            ranges = [*((0, count) for count in before), (begin, end)]
            windows.append((ranges, (owned_from - begin, owned_to - begin)))
        return windows

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

    def _encode_parts(self, texts: Sequence[Text], offsets: bool) -> Iterator[tuple[int, list[Encoding]]]:
        """(row, encodings without special tokens of its one or two texts), in order."""
        pending: list[list[str]] = []
        characters = first = 0
        for row, text in enumerate(texts):
            parts = [text] if isinstance(text, str) else list(text)
            pending.append(parts)
            characters += sum(map(len, parts))
            if characters >= _CHUNK_CHARACTERS or row == len(texts) - 1:
                encodings = iter(self._encode(texts, pending, offsets))
                for i, pending_parts in enumerate(pending, first):
                    yield i, [next(encodings) for _ in pending_parts]
                pending, characters, first = [], 0, row + 1

    def _encode(self, texts: Sequence[Text], rows: list[list[str]], offsets: bool) -> list[Encoding]:
        _watch_forks()
        encode = self._tokenizer.encode_batch if offsets else self._tokenizer.encode_batch_fast
        try:
            return encode([part for parts in rows for part in parts], add_special_tokens=False)
        except Exception as failure:  # the library raises nothing narrower
            check_unicode(texts)
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


def _longest_first(sizes: list[int], room: int) -> list[int]:
    """Tokens to keep of each text, as transformers' truncation "longest_first": the longer gives way first.

    When both are longer than half of the room, both get half; the spare token of an odd room goes to the longer text,
    on a tie to the second.
    """
    if sum(sizes) <= room:
        return sizes
    if len(sizes) == 1:
        return [room]
    short, long = sorted(sizes)
    if short > room // 2:
        short = room // 2
    long = room - short
    return [long, short] if sizes[0] > sizes[1] else [short, long]
