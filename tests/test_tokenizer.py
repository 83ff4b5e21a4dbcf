"""Tokenizer: rows and truncation as the tokenizers library and transformers make them, and what it refuses."""

from __future__ import annotations

import itertools
import json
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import tokenizers
from conftest import BACKENDS, WORDS

import edgebert
from edgebert.backends import native
from edgebert.errors import (
    BackendUnavailableError,
    EdgeBertError,
    InvalidInputError,
    ModelFormatError,
    UnsupportedModelError,
)
from edgebert.tokenizer import Tokenizer

CLS, SEP = WORDS.index("[CLS]"), WORDS.index("[SEP]")


@pytest.fixture(scope="module")
def tokenizer(tokenizer_json: str) -> Tokenizer:
    return Tokenizer(tokenizer_json, max_length=16, usable_positions=40, num_token_types=2)


def roberta_json() -> str:
    """A byte-level tokenizer whose pairs have two separators between and one type."""
    from tokenizers import models, pre_tokenizers, processors

    letters = pre_tokenizers.ByteLevel.alphabet()
    vocabulary = {token: i for i, token in enumerate(["<s>", "</s>", *sorted(letters)])}
    library = tokenizers.Tokenizer(models.BPE(vocabulary, []))
    library.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    library.post_processor = processors.RobertaProcessing(("</s>", 1), ("<s>", 0))
    return str(library.to_str())


@pytest.mark.parametrize("side", ["right", "left"])
@pytest.mark.parametrize("kind", ["bert", "roberta"])
@pytest.mark.parametrize("limit", [4, 5, 6, 7, 10, 11, 16])
def test_truncates_as_the_library(tokenizer_json: str, kind: str, limit: int, side: str) -> None:
    library = tokenizers.Tokenizer.from_str(tokenizer_json if kind == "bert" else roberta_json())
    library.enable_truncation(limit, strategy="longest_first", direction=side)
    ours = Tokenizer(library.to_str(), 16, 40, num_token_types=2)
    sizes = range(0, 14)
    pairs = [("a " * n, "b " * m) for n, m in itertools.product(sizes, sizes)]
    batch, is_truncated = ours.tokenize([first for first, _ in pairs[:: len(sizes)]], limit)
    expected = [library.encode(first) for first, _ in pairs[:: len(sizes)]]
    assert batch.input_ids.tolist() == [token for encoding in expected for token in encoding.ids]
    assert is_truncated.tolist() == [bool(encoding.overflowing) for encoding in expected]

    batch, is_truncated = ours.tokenize(pairs, limit)
    expected = [library.encode(*pair) for pair in pairs]
    assert batch.input_ids.tolist() == [token for encoding in expected for token in encoding.ids]
    assert batch.token_type_ids.tolist() == [kind for encoding in expected for kind in encoding.type_ids]
    assert is_truncated.tolist() == [bool(encoding.overflowing) for encoding in expected]


def test_truncates_as_transformers(tokenizer: Tokenizer, tokenizer_json: str) -> None:
    transformers = pytest.importorskip("transformers")
    fast = transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizers.Tokenizer.from_str(tokenizer_json))
    pairs = [("the router restarts", "slow"), ("water the roses at the root . " * 4, "it is very good"), ("", "off")]
    options = {"truncation": True, "max_length": 16, "return_token_type_ids": True}
    expected = fast([a for a, _ in pairs], [b for _, b in pairs], **options)
    batch, is_truncated = tokenizer.tokenize(pairs)
    assert batch.input_ids.tolist() == sum(expected["input_ids"], [])
    assert batch.token_type_ids.tolist() == sum(expected["token_type_ids"], [])
    assert is_truncated.tolist() == [False, True, False]


def test_empty_text_gives_the_special_tokens(tokenizer: Tokenizer) -> None:
    batch, _ = tokenizer.tokenize(["", ("", "")])
    assert batch.input_ids.tolist() == [CLS, SEP, CLS, SEP, SEP]


def test_no_texts(tokenizer: Tokenizer) -> None:
    batch, is_truncated = tokenizer.tokenize([])
    assert batch.num_sequences == 0
    assert is_truncated.shape == (0,)


def test_pairs_may_be_lists_and_texts_any_iterable(tokenizer: Tokenizer) -> None:
    expected = tokenizer.tokenize([("a", "b"), "c"])[0].input_ids.tolist()
    assert tokenizer.tokenize(iter([["a", "b"], np.str_("c")]))[0].input_ids.tolist() == expected


def test_types_are_zero_for_a_model_without_them(tokenizer_json: str) -> None:
    for num_token_types in (0, 1):
        batch, _ = Tokenizer(tokenizer_json, 16, 40, num_token_types).tokenize([("a", "b")])
        assert not batch.token_type_ids.any()


def test_ignores_the_truncation_and_padding_stored_in_the_json(tokenizer_json: str) -> None:
    library = tokenizers.Tokenizer.from_str(tokenizer_json)
    library.enable_truncation(3)
    library.enable_padding(length=12)
    batch, is_truncated = Tokenizer(library.to_str(), 16, 40, 2).tokenize(["a b c d e"])
    assert batch.total_tokens == 7
    assert not is_truncated.any()


def test_a_megabyte_of_text(tokenizer: Tokenizer) -> None:
    long = "restart the router . " * 50_000
    batch, is_truncated = tokenizer.tokenize(["a", long, (long, long), "b"])
    assert batch.lengths.tolist() == [3, 16, 16, 3]
    assert is_truncated.tolist() == [False, True, True, False]


def test_threads_with_different_limits_do_not_disturb_each_other(tokenizer: Tokenizer) -> None:
    with ThreadPoolExecutor(4) as pool:
        limits = [3, 9, 16] * 40
        lengths = list(pool.map(lambda limit: tokenizer.tokenize(["a " * 30], limit)[0].total_tokens, limits))
    assert lengths == limits


@pytest.mark.skipif("native" not in BACKENDS, reason="no native library")
def test_a_new_tokenizer_leaves_what_other_threads_are_calling(tokenizer_json: str) -> None:
    """A call reads its function's types: without a GIL, they would be freed under it where they are set again."""
    from edgebert.tokenizer.native import NativeTokenizer

    function = NativeTokenizer(tokenizer_json)._library.eb_tokenize
    types = function.argtypes
    NativeTokenizer(tokenizer_json)
    assert function.argtypes is types


@pytest.mark.parametrize(
    "bad", [None, b"bytes", 3, 1.5, ("a",), ("a", "b", "c"), ("a", None), ["a", b"b"], {"text": "a"}]
)
def test_refuses_what_is_not_text_by_index(tokenizer: Tokenizer, bad: object) -> None:
    with pytest.raises(InvalidInputError, match="text 2 must be a str or a pair"):
        tokenizer.tokenize(["a", "b", bad])  # type: ignore[list-item]


@pytest.mark.parametrize("bad", ["x\ud800", ("ok", "\udfff")])
def test_refuses_lone_surrogates_by_index(tokenizer: Tokenizer, bad: object) -> None:
    with pytest.raises(InvalidInputError, match="text 1 is not valid Unicode"):
        tokenizer.tokenize(["a", bad])  # type: ignore[list-item]


@pytest.mark.parametrize("bad", ["a", b"a", None, 3, {"text": "a"}])
def test_refuses_what_is_no_list(tokenizer: Tokenizer, bad: object) -> None:
    with pytest.raises(InvalidInputError, match="expected a list of texts"):
        tokenizer.tokenize(bad)  # type: ignore[arg-type]


@pytest.mark.parametrize("limit", [0, -1, 41, True, 3.0, "8"])
def test_refuses_limits_out_of_range(tokenizer: Tokenizer, limit: object) -> None:
    with pytest.raises(InvalidInputError, match="max_length must be an integer from 1 to 40"):
        tokenizer.tokenize(["a"], limit)  # type: ignore[arg-type]


def test_refuses_a_limit_without_room_for_special_tokens(tokenizer: Tokenizer) -> None:
    assert tokenizer.tokenize(["a b"], 2)[0].input_ids.tolist() == [CLS, SEP]
    with pytest.raises(InvalidInputError, match="row 1: max_length 2 has no room for the 3 special tokens of a pair"):
        tokenizer.tokenize(["a", ("a", "b")], 2)


def test_refuses_a_row_without_tokens(tokenizer_json: str) -> None:
    library = tokenizers.Tokenizer.from_str(tokenizer_json)
    library.post_processor = None
    bare = Tokenizer(library.to_str(), 16, 40, 2)
    assert bare.tokenize(["a b"])[0].total_tokens == 2
    with pytest.raises(InvalidInputError, match="text 1 gives no tokens"):
        bare.tokenize(["a", " "])


@pytest.mark.parametrize("content", ["", "{}", "nonsense"])
def test_refuses_json_that_is_no_tokenizer(content: str) -> None:
    with pytest.raises(ModelFormatError, match="tokenizer.*re-export"):
        Tokenizer(content, 16, 40, 2)


# The tokenizers library, where the native tokenizer cannot be had


def suffixed_json() -> str:
    """A tokenizer that the native one refuses: its words end in </w>."""
    library = tokenizers.Tokenizer(
        tokenizers.models.BPE(
            {"<unk>": 0, "a": 1, "b": 2, "b</w>": 3}, [], unk_token="<unk>", end_of_word_suffix="</w>"
        )
    )
    library.pre_tokenizer = tokenizers.pre_tokenizers.BertPreTokenizer()
    library.decoder = tokenizers.decoders.BPEDecoder()
    library.enable_truncation(3, direction="left")
    return str(library.to_str())


@pytest.mark.skipif("native" not in BACKENDS, reason="the native library is not built")
def test_what_the_native_tokenizer_refuses_is_the_librarys(tokenizer_json: str) -> None:
    assert Tokenizer(tokenizer_json, 16, 40, 2).detail == "native"
    ours = Tokenizer(suffixed_json(), 3, 40, 2)
    assert "tokenizers library" in ours.detail and "end_of_word_suffix" in ours.detail
    [row], is_truncated = ours.make_rows(["ab aab"])
    assert row.input_ids.tolist() == [1, 1, 3] and is_truncated.tolist() == [True]
    windows, _ = ours.make_windows(["ab aab"], 3, 1)
    assert [window.offsets.tolist() for window in windows] == [[[0, 1], [1, 2], [3, 4]], [[3, 4], [4, 5], [5, 6]]]
    assert ours.decode([1, 3, 1, 3]) == "ab ab" and ours.id_to_token(3) == "b</w>" and ours.unknown_id == 0


def test_without_the_library_a_refused_file_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    content = suffixed_json()
    monkeypatch.setitem(sys.modules, "tokenizers", None)
    with pytest.raises((UnsupportedModelError, BackendUnavailableError), match="pip install tokenizers"):
        Tokenizer(content, 3, 40, 2)


def test_without_the_native_library_the_other_reads_texts(
    make_file: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    path = make_file()
    expected = edgebert.load(path, backend="numpy").encode(["a b", "c"])

    def fail(kind: str = "cpu") -> None:
        raise BackendUnavailableError("it is gone")

    monkeypatch.setattr(native, "load_library", fail)
    model = edgebert.load(path, backend="numpy")
    assert model.tokenizer and "it is gone" in model.tokenizer.detail
    np.testing.assert_array_equal(model.encode(["a b", "c"]), expected)
    monkeypatch.setitem(sys.modules, "tokenizers", None)
    with pytest.raises(BackendUnavailableError, match="it is gone; .*pip install tokenizers"):
        edgebert.load(path, backend="numpy")


@pytest.mark.skipif("native" not in BACKENDS, reason="the native library is not built")
@pytest.mark.parametrize("side", ["Right", "Left"])
def test_the_library_and_the_native_tokenizer_give_the_same_rows(tokenizer_json: str, side: str) -> None:
    from edgebert.tokenizer.library import LibraryTokenizer

    content = json.loads(tokenizer_json)
    content["truncation"] = {"direction": side, "max_length": 9, "strategy": "LongestFirst", "stride": 0}
    ours = Tokenizer(json.dumps(content), 16, 40, 1)
    other = Tokenizer(json.dumps(content), 16, 40, 1)
    other._tokenizer = LibraryTokenizer(json.dumps(content), EdgeBertError("a test"))
    texts = [
        "",
        "a b c d e " * 9,
        "passage über straße",
        ("a b", "c d e " * 9),
        ["router restarts " * 9, "off"],
        ("", ""),
    ]
    pairs = [("a b", "c d e " * 9), ("a", "c " * 9), ("", "c " * 9)]  # which have no room for a stride of 6
    for limit, stride in itertools.product((8, 16), (None, 0, 1, 2, 6)):
        windowed = texts[:4] if stride != 6 else pairs
        made = [
            (one.make_rows(texts, limit), one.make_windows(windowed, limit, stride, stride == 6))
            for one in (ours, other)
        ]
        for (rows, is_truncated), (expected, is_expected) in zip(*made, strict=True):
            np.testing.assert_array_equal(is_truncated, is_expected)
            assert len(rows) == len(expected)
            for row, wanted in zip(rows, expected, strict=True):
                for name in row._fields:
                    np.testing.assert_array_equal(getattr(row, name), getattr(wanted, name), name)
    refused = [(["a"], 1, None), (["a"], 8, 6), ([("a b", "c " * 9)], 8, 3), ([("a b c d e f", "g")], 8, None)]
    for texts, limit, stride in [*refused, ([("a", "b")], 2, None)]:
        messages = []
        for one in (ours, other):
            with pytest.raises(InvalidInputError) as error:
                one.make_windows(texts, limit, stride)
            messages.append(str(error.value))
        assert messages[0] == messages[1]
