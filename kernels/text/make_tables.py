"""Writes unicode_tables.inc: what tokenizers 0.23.3 takes each code point for, found by asking it, one at a time.

    python kernels/text/make_tables.py > kernels/text/unicode_tables.inc

Unicode's own tables would not do: the library mixes tables of several ages. Nothing here knows the standard; each
property is read off what a normalizer or pre-tokenizer does with strings made for it. It takes some minutes.
"""

from __future__ import annotations

import struct
import sys
from collections.abc import Callable, Iterable
from itertools import pairwise

import tokenizers
from tokenizers import normalizers, pre_tokenizers

VERSION = "0.23.3"
CODE_POINTS = [*range(0xD800), *range(0xE000, 0x110000)]
HANGUL = range(0xAC00, 0xD7A4)  # composed and decomposed by arithmetic
BLOCK = 128  # code points a block of the two-stage table; with it BITS and GRAPHEME the twins of those in unicode.cc

# Bits of a code point's class; the twin of enum CharClass in unicode.h. Above them: 4 bits of grapheme class, 8 of ccc.
BITS = [
    *("space", "control", "clean_space", "cjk", "punctuation", "numeric", "word", "letter", "number", "regex_space"),
    *("nonspacing", "mark", "has_lower", "has_decomposition"),
    *("pictographic", "conjunct_consonant", "conjunct_linker", "conjunct_extend"),
]
GRAPHEME = ["other", "extend", "zwj", "spacing", "prepend", "control", "cr", "lf", "l", "v", "t", "lv", "lvt"]


def charsmap(key: str, value: str) -> normalizers.Precompiled:
    """A Precompiled normalizer that replaces one string: a chain of double-array units, one block a byte."""
    data = key.encode()
    units = [0] * (256 * (len(data) + 2))
    units[0] = 256 << 10
    for i, byte in enumerate(data):
        at = 256 * (i + 1) ^ byte
        is_last = i == len(data) - 1
        units[at] = byte | is_last << 8 | (at ^ 256 * (i + 2)) << 10
    units[256 * (len(data) + 1)] = 1 << 31
    trie = struct.pack(f"<{len(units)}I", *units)
    return normalizers.Precompiled(struct.pack("<I", len(trie)) + trie + value.encode() + b"\0")


def keeps_mark(before: str, key: str) -> Callable[[str], bool]:
    """Whether no grapheme boundary lies between `before` with its argument filled in and `key`.

    A grapheme of less than six bytes is replaced as a whole by what its shortest prefix in the map stands for: with
    a boundary, `key` and the mark after it are one such grapheme, and the mark is lost.
    """
    normalizer = charsmap(key, "b")
    return lambda c: normalizer.normalize_str(before.format(c) + key + "\u0301").endswith("\u0301")


def ask_combining_classes() -> dict[int, int]:
    """Ranks of canonical combining classes, from 1: which of two marks NFD puts first is all that they mean."""
    nfd = normalizers.NFD()
    low, high = "\u0334", "\u0345"  # of the lowest class and of the highest

    def is_swapped(a: str, b: str) -> bool:
        return nfd.normalize_str(f"x{a}{b}") == f"x{b}{a}"

    marks = [chr(c) for c in CODE_POINTS if is_swapped(chr(c), low) or is_swapped(high, chr(c))] + [low, high]
    marks = [c for c in dict.fromkeys(marks) if nfd.normalize_str(c) == c]
    classes: list[str] = []  # one mark of each, in order
    members: dict[str, list[str]] = {}
    for mark in marks:
        first, last = 0, len(classes)
        while first < last:
            middle = (first + last) // 2
            if is_swapped(mark, classes[middle]):
                first = middle + 1
            elif is_swapped(classes[middle], mark):
                last = middle
            else:
                members[classes[middle]].append(mark)
                break
        else:
            classes.insert(first, mark)
            members[mark] = [mark]
    return {ord(mark): rank for rank, name in enumerate(classes, 1) for mark in members[name]}


def ask_classes(lower: dict[int, str], decomposed: set[int]) -> dict[int, int]:
    """Class bits of every code point."""
    combining = ask_combining_classes()
    clean = normalizers.BertNormalizer(True, False, False, False)
    cjk = normalizers.BertNormalizer(False, True, False, False)
    accents = normalizers.BertNormalizer(False, False, True, False)
    marks = normalizers.StripAccents()
    words = pre_tokenizers.Whitespace()
    spaces = pre_tokenizers.WhitespaceSplit()
    punctuation = pre_tokenizers.Punctuation()
    digits = pre_tokenizers.Digits(False)
    pieces = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)

    def count(pre_tokenizer: pre_tokenizers.PreTokenizer, text: str) -> int:
        return len(pre_tokenizer.pre_tokenize_str(text))

    joins_a = charsmap("a", "b")
    ends = keeps_mark("{}", "\u0300")
    prepends = keeps_mark("{}", "a")
    extends = keeps_mark("©{}\u200d", "©")
    pictographic = keeps_mark("{}\u200d", "©")
    joins_l, joins_v, joins_t = (keeps_mark("{}", key) for key in "\u1100\u1161\u11a8")
    consonant, linker, conjunct = (keeps_mark(f"{before}", "क") for before in ("{}\u094d", "क{}", "क{}\u094d"))

    def grapheme(c: str) -> str:
        if c in "\r\n":
            return "cr" if c == "\r" else "lf"
        if c == "\u200d":
            return "zwj"
        if joins_a.normalize_str("a" + c) == "b":
            return "extend" if extends(c) else "spacing"
        if not ends(c):
            return "control"
        if prepends(c):
            return "prepend"
        if joins_l(c):
            return "l"
        if joins_v(c):
            return "lv" if ord(c) in HANGUL else "v"
        if joins_t(c):
            return "lvt" if ord(c) in HANGUL else "t"
        return "other"

    def ask(code: int) -> int:
        c = chr(code)
        cleaned = clean.normalize_str(c)
        found = {
            "space": not spaces.pre_tokenize_str(c),
            "control": not cleaned,
            "clean_space": cleaned == " ",
            "cjk": len(cjk.normalize_str(c)) == 3,
            "punctuation": count(punctuation, f"a{c}b") == 3,
            "numeric": count(digits, f"a{c}b") == 3,
            "word": count(words, f"a{c}") == 1 and bool(words.pre_tokenize_str(c)),
            "letter": count(pieces, f"a{c}") == 1,
            "number": count(pieces, f"1{c}") == 1,
            "nonspacing": not accents.normalize_str(c),
            "mark": not marks.normalize_str(c),
            "has_lower": code in lower,
            "has_decomposition": code in decomposed,
            "pictographic": pictographic(c),
            "conjunct_consonant": consonant(c),
            "conjunct_linker": linker(c),
            "conjunct_extend": conjunct(c),
        }
        found["regex_space"] = not found["letter"] and not found["number"] and count(pieces, f"!{c}") == 2
        assert bool(words.pre_tokenize_str(c)) != found["space"], f"two ideas of a space: {code:04x}"
        assert cleaned in ("", " ", c)
        bits = sum(1 << i for i, name in enumerate(BITS) if found[name])
        return bits | GRAPHEME.index(grapheme(c)) << len(BITS) | combining.get(code, 0) << (len(BITS) + 4)

    return {code: ask(code) for code in CODE_POINTS}


def utf16(text: str) -> list[int]:
    """UTF-16 units of a text."""
    data = text.encode("utf-16-le")
    return list(struct.unpack(f"<{len(data) // 2}H", data))


def print_array(name: str, kind: str, values: Iterable[int]) -> None:
    """Print values as a C++ array."""
    print(f"constexpr {kind} {name}[] = {{")
    line = "   "
    for value in values:
        text = f" {value},"
        if len(line) + len(text) > 120:
            print(line)
            line = "   "
        line += text
    print(f"{line}\n}};")


def runs(mapping: dict[int, int]) -> list[tuple[int, int, int, int]]:
    """(first, last, step, difference) for code points in steps of 1 or 2 that move by the same difference."""
    found: list[tuple[int, int, int, int]] = []
    for code, to in sorted(mapping.items()):
        if found:
            first, last, step, difference = found[-1]
            if difference == to - code and code - last in ((1, 2) if first == last else (step,)):
                found[-1] = (first, code, code - last, difference)
                continue
        found.append((code, code, 1, to - code))
    return found


def main() -> int:
    """Ask, and print the tables."""
    if tokenizers.__version__ != VERSION:
        sys.exit(f"expected tokenizers {VERSION}, found {tokenizers.__version__}: install it, or say which in VERSION")
    lowercase, nfc, nfd, nfkd = normalizers.Lowercase(), normalizers.NFC(), normalizers.NFD(), normalizers.NFKD()
    lower = {c: to for c in CODE_POINTS if (to := lowercase.normalize_str(chr(c))) != chr(c)}
    special = {c: to for c, to in lower.items() if len(to) != 1}
    assert special == {0x130: "i\u0307"}
    canonical = {c: to for c in CODE_POINTS if c not in HANGUL and (to := nfd.normalize_str(chr(c))) != chr(c)}
    compatible = {c: to for c in CODE_POINTS if c not in HANGUL and (to := nfkd.normalize_str(chr(c))) != chr(c)}
    decomposed = {*canonical, *compatible}

    composed = []
    for c, to in canonical.items():
        first = nfc.normalize_str(to[:-1])
        if nfc.normalize_str(chr(c)) == chr(c) and len(to) > 1:
            assert len(first) == 1 and nfc.normalize_str(first + to[-1]) == chr(c)
            composed.append((ord(first), ord(to[-1]), c))

    print(f"// What tokenizers {VERSION} takes each code point for. Written by make_tables.py: do not edit.")
    print("// clang-format off")
    classes = ask_classes(lower, decomposed)
    kinds = {bits: i for i, bits in enumerate(dict.fromkeys(classes.values()))}
    assert len(kinds) <= 256
    blocks: dict[tuple[int, ...], int] = {}
    stage1 = []
    for start in range(0, 0x110000, BLOCK):
        block = tuple(kinds[classes.get(c, classes[0xE000])] for c in range(start, start + BLOCK))
        stage1.append(blocks.setdefault(block, len(blocks)))
    print_array("kClassBits", "uint32_t", kinds)
    print_array("kClassBlocks", "uint16_t", stage1)
    print_array("kClasses", "uint8_t", [kind for block in blocks for kind in block])

    print("constexpr CaseRun kLowerRuns[] = {")
    for first, last, step, difference in runs({c: ord(to) for c, to in lower.items() if c not in special}):
        print(f"    {{{first}, {last}, {step}, {difference}}},")
    print("};")

    pool: list[int] = []
    print("constexpr Decomposition kDecompositions[] = {  // canonical units, then others if the compatible differ")
    for c in sorted(decomposed):
        first, second = utf16(canonical.get(c, "")), utf16(compatible[c])
        print(f"    {{{c}, {len(pool)}, {len(first)}, {0 if second == first else len(second)}}},")
        pool += first + (second if second != first else [])
    print("};")
    assert len(pool) < 1 << 16
    print_array("kDecompositionUnits", "uint16_t", pool)
    print("constexpr Composition kCompositions[] = {")
    for first, second, c in sorted(composed):
        print(f"    {{{first}, {second}, {c}}},")
    print("};")
    assert all(a < b for a, b in pairwise(sorted(composed)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
