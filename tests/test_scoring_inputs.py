"""Awkward inputs to batch scoring: no good text goes without its answer, and what cannot be done is refused at once."""

import csv
import gzip
import io
import json
import math
import random
import re
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import edgebert
from edgebert.errors import EdgeBertError, InvalidInputError

pa = pytest.importorskip("pyarrow")
pq = pytest.importorskip("pyarrow.parquet")
pytest.importorskip("tqdm")

from test_scoring import files_below  # noqa: E402

from edgebert.scoring import runner  # noqa: E402
from edgebert.scoring.output import Output  # noqa: E402
from edgebert.scoring.scorer import Scorer  # noqa: E402

TEXTS = ["the router is slow", "restart the modem", "", "water ü 中"]
NBEST = [[{"text": "a b", "score": -1.5}, {"text": "b a", "score": -0.5}], [{"text": "c", "score": 0.0}]]


def lines(*rows: Any) -> bytes:
    """JSON lines; of rows that are dicts without a text, with the next of TEXTS."""
    texts = iter(TEXTS)
    rows = tuple({"text": next(texts)} | row if isinstance(row, dict) and "text" not in row else row for row in rows)
    return "".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows).encode()


def column(*values: Any) -> bytes:
    """JSON lines with values of another column."""
    return lines(*({"x": value} for value in values))


def raw(*values: str) -> bytes:
    """JSON lines with values of another column as JSON."""
    return lines(*(f'{{"text": {json.dumps(text)}, "x": {value}}}' for text, value in zip(TEXTS, values, strict=False)))


def parquet(names: Any = ("text",), *columns: Any, **options: Any) -> bytes:
    """A Parquet file."""
    stream = io.BytesIO()
    pq.write_table(pa.Table.from_arrays([pa.array(values) for values in columns], names=list(names)), stream, **options)
    return stream.getvalue()


def typed(kind: Any, texts: Any = TEXTS[:2]) -> bytes:
    """Parquet with texts of a type."""
    return parquet(["text"], pa.array(texts, kind))


def beside(kind: Any, *values: Any) -> bytes:
    """Parquet with another column."""
    return parquet(["text", "x"], TEXTS[: len(values)], pa.array(values, kind))


def required() -> bytes:
    """Parquet with a column that may not be null."""
    schema = pa.schema([pa.field("text", pa.string()), pa.field("x", pa.int64(), False)])
    stream = io.BytesIO()
    pq.write_table(pa.table([["a b"], [1]], schema), stream)
    return stream.getvalue()


def flipped() -> bytes:
    """Parquet with sums of its pages, and a bit of a text flipped."""
    whole = parquet(["text"], ["the router"] * 9, compression="none", write_page_checksum=True)
    return whole.replace(b"the router", b"the rooter", 1)


def zstd(data: bytes, *options: str) -> bytes:
    return subprocess.run(["zstd", "-c", *options], input=data, capture_output=True, check=True).stdout


PLAIN = column(1, 2)
MEMBER = gzip.compress(PLAIN)
SKIPPED = b"\x50\x2a\x4d\x18\x04\0\0\0abcd"  # a frame of zstd that holds no data
NOT_UTF8 = pa.StringArray.from_buffers(2, pa.py_buffer(np.array([0, 1, 2], np.int32)), pa.py_buffer(b"\xe9\xff"))
MAP = pa.map_(pa.string(), pa.list_(pa.struct({"a": pa.float64()})))
HYPOTHESES = [{"text": "a b", "score": -1.5}, {"text": "b a", "score": -0.5}]
HYPOTHESIS = pa.struct({"text": pa.string(), "score": pa.float64()})
SCORES = [("a", 9**999), ("\ud800", 1), ("a b", 1)]
NBEST = {"task": "rescoring"}
NBESTS = [HYPOTHESES, HYPOTHESES[::-1]]
TWO = TEXTS[:2]
ONE = TEXTS[:1]

# by name: the files of the input, one file or a folder; then the text of each row in order, None for those that have an
# error, or what a refusal says; then options
AWKWARD: dict[str, tuple[Any, ...]] = {
    # types that change
    "integers, then a float": ({"i.jsonl": column(5, 6, 7, 5.5)}, TEXTS),
    "a number, then text": ({"i.jsonl": column(5, 1.5, "six", None)}, TEXTS),
    "an object, then a list": ({"i.jsonl": column({"a": 1}, [1, {"b": None}], 5, "x")}, TEXTS),
    "true, then numbers": ({"i.jsonl": column(True, 1, 0.5, False)}, TEXTS),
    "lists of several types": ({"i.jsonl": column([1], ["a"], [[2.5]], [])}, TEXTS),
    "lists that get deeper": ({"i.jsonl": column([[1]], [[2.5], []], [], None)}, TEXTS),
    "nulls first": ({"i.jsonl": column(None, None, None, [1, None])}, TEXTS),
    "only nulls": ({"i.jsonl": column(None, None)}, TWO),
    "fields that appear late": ({"i.jsonl": lines({}, {"a": 1}, {"b": {"c": 1}}, {"d": "x", "a": None})}, TEXTS),
    "objects with fields of their own": ({"i.jsonl": column({"a": 1}, {"b": [1]}, {}, {"a": "x"})}, TEXTS),
    "64 bits without a sign": ({"i.jsonl": column(1, 2**63, 2**64 - 1)}, TEXTS[:3]),
    "integers beyond 64 bits": ({"i.jsonl": column(1, 2**64, -(2**80))}, TEXTS[:3]),
    "an integer of 5000 digits": ({"i.jsonl": raw("1", "7" * 5000)}, TWO),
    "integers that f64 does not hold": ({"i.jsonl": column(0.5, 2**53 + 1)}, TWO),
    "numbers that JSON does not have": ({"i.jsonl": raw("1e400", "NaN", "-Infinity", "-0.0")}, TEXTS),
    "lists of such numbers": ({"i.jsonl": raw("[1e400]", "[NaN, 1]", '{"a": [NaN]}')}, TEXTS[:3]),
    "lone surrogates": ({"i.jsonl": column("\ud800", ["\udfff"], {"\ud800": "\ud800"}, "é")}, TEXTS),
    "lists of lone surrogates": ({"i.jsonl": column(["\ud800"], ["a"])}, TWO),
    "bytes that are not UTF-8": ({"i.jsonl": PLAIN.replace(b": 1", b': "\xe9"')}, TWO),
    "a field name that is not UTF-8": ({"i.jsonl": PLAIN.replace(b'"x": 2', b'"\xe9": 2')}, [TEXTS[0], None]),
    "deep lists": ({"i.jsonl": raw(*("[" * n + "]" * n for n in (1, 90, 300, 5000)))}, [*TWO, None, None]),
    "a field twice in a line": ({"i.jsonl": b'{"text": "b", "x": 1, "text": "a b", "x": "y"}\n'}, ["a b"]),
    "files of other types": ({"a.jsonl": column(1), "b.jsonl": column("x")}, ONE * 2),
    "files of other fields": ({"a.csv": b"text,a\na b,1\n", "b.csv": b"b,text\n2,c\n"}, ["a b", "c"]),
    "partitions of some files": ({"a.jsonl": column(1), "year=2026/b.jsonl": column(2)}, ONE * 2),
    "names with a dot, and without a letter": ({"i.parquet": parquet(["text", "a.b", ""], TWO, [1, 2], [3, 4])}, TWO),
    # names twice, names taken, columns that are not there
    "twice in Parquet": ({"i.parquet": parquet(["text", "x", "x"], TWO, [1, 2], [3, 4])}, "column twice, 'x'"),
    "twice in CSV": ({"i.csv": b"text,x,x\na,1,2\n"}, "names a column twice, 'x'"),
    "twice in the second file": ({"a.csv": b"text\na\n", "b.csv": b"text,,\na,1,2\n"}, "b.csv names .* twice, ''"),
    "a result's name, late": ({"i.jsonl": lines({}, {}, {"truncated": 1})}, "a column 'truncated' already"),
    "a result's name, of a folder": ({"error=1/i.jsonl": PLAIN}, "a column 'error' already"),
    "not in the second file": ({"a.jsonl": PLAIN, "b.jsonl": b'{"txt": ""}\n'}, "'text' in .*b.jsonl, only txt: did"),
    "not in the second CSV": ({"a.csv": b"text\na\n", "b.csv": b"body\na\n"}, "no column 'text' in .*b.csv"),
    "not in the second Parquet": ({"a.parquet": typed(pa.string()), "b.parquet": parquet(["x"], [1])}, "in .*b.par"),
    "a header that is not UTF-8": ({"i.csv": b"text,\xe9\na,b\n"}, "header of .*i.csv is not in UTF-8"),
    "a header that is not CSV": ({"i.csv": b'"te"xt,a\na,b\n'}, "header of .*i.csv is not CSV"),
    "a nested column": ({"i.jsonl": lines({"a": {"b": "c"}})}, "inside of 'a' has to be made", {"columns": ["a.b"]}),
    "too many fields": ({"i.jsonl": lines({f"f{i}": i for i in range(10_000)}, {"late": 1})}, TWO),
    # columns that are no text
    "numbers": ({"i.jsonl": lines({"text": 1}, {"text": None})}, "the first: text is of type int, not text"),
    "objects": ({"i.jsonl": lines({"text": {"text": "a"}})}, "the first: text is of type dict, not text"),
    "nothing but nulls": ({"i.jsonl": lines({"text": None}, {"text": None})}, "the first: text is null"),
    "nothing but nulls in Parquet": ({"i.parquet": typed(pa.string(), [None])}, "the first: text is null"),
    "nulls without a type": ({"i.parquet": typed(pa.null(), [None])}, "of type null, not text"),
    "numbers in Parquet": ({"i.parquet": typed(pa.float64(), [1.5])}, "of type double, not text"),
    "bytes in Parquet": ({"i.parquet": typed(pa.binary())}, "of type binary, not text"),
    "lists in Parquet": ({"i.parquet": typed(pa.list_(pa.string()), [["a"]])}, "of type list<.*, not text"),
    "structs in Parquet": ({"i.parquet": typed(pa.struct({"a": pa.string()}), [{}])}, "type struct<.*, not text"),
    "no mask to fill": ({"i.jsonl": PLAIN}, r"the first: text has no \[MASK\]", {"task": "fill-mask"}),
    # types of Parquet
    "large_string": ({"i.parquet": typed(pa.large_string())}, TWO),
    "string_view": ({"i.parquet": typed(pa.string_view())}, TWO),
    "dictionary": ({"i.parquet": typed(pa.dictionary(pa.int32(), pa.string()), ["a", "c", None])}, ["a", "c", None]),
    "types of text": (
        {
            "a.parquet": typed(pa.string()),
            "b.parquet": typed(pa.large_string()),
            "c.parquet": typed(pa.dictionary(pa.int8(), pa.string())),
            "d.parquet": typed(pa.string_view()),
            "e.parquet": typed(pa.null(), [None]),
        },
        [*TWO * 4, None],
    ),
    "types of numbers": (
        {f"{kind}.parquet": beside(kind, 1, None) for kind in (pa.int32(), pa.int64(), pa.float64())},
        TWO * 3,
    ),
    "no type at first": ({"a.parquet": beside(pa.null(), None), "b.parquet": beside(pa.date32(), 1)}, ONE * 2),
    "not in the first file": ({"a.parquet": typed(pa.string()), "b.parquet": beside(pa.int8(), 1)}, TWO + ONE),
    "never null in one file": ({"a.parquet": typed(pa.string()), "b.parquet": required()}, [*TWO, "a b"]),
    "no common type": ({"a.parquet": beside(pa.int64(), 1), "b.parquet": beside(pa.string(), "x")}, "b.parquet do not"),
    "bytes and text": ({"a.parquet": beside(pa.string(), "x"), "b.parquet": beside(pa.binary(), b"x")}, "do not fit"),
    "values of no common type": (
        {"a.parquet": beside(pa.int64(), 2**53 + 1), "b.parquet": beside(pa.float64(), 0.5)},
        "column 'x' of .*a.parquet does not fit double.*: make it of one type",
    ),
    "times that Python does not have": ({"i.parquet": beside(pa.timestamp("ns", "UTC"), 1, None)}, TWO),
    "times far away": ({"i.parquet": beside(pa.timestamp("s"), 2**43, 0)}, TWO),
    "decimals": ({"i.parquet": beside(pa.decimal128(20, 2), 1, None)}, TWO),
    "maps of lists of structs": ({"i.parquet": beside(MAP, [("k", [{"a": math.nan}])], None)}, TWO),
    "lists that are not UTF-8": (
        {"i.parquet": parquet(["text", "x"], ONE, pa.ListArray.from_arrays([0, 2], NOT_UTF8))},
        ONE,
    ),
    "no text in UTF-8": ({"i.parquet": parquet(["text"], NOT_UTF8)}, "the first: text is not valid Unicode"),
    "some texts in UTF-8": (
        {"i.parquet": parquet(["text"], pa.concat_arrays([NOT_UTF8, pa.array(ONE)]))},
        [None, None, *ONE],
    ),
    # n-best lists
    "list": ({"i.parquet": typed(pa.list_(HYPOTHESIS), NBESTS)}, NBESTS, NBEST),
    "large_list": ({"i.parquet": typed(pa.large_list(HYPOTHESIS), NBESTS)}, NBESTS, NBEST),
    "fixed_size_list": ({"i.parquet": typed(pa.list_(HYPOTHESIS, 2), NBESTS)}, NBESTS, NBEST),
    "list_view": ({"i.parquet": typed(pa.list_view(HYPOTHESIS), NBESTS)}, NBESTS, NBEST),
    "large_list_view": ({"i.parquet": typed(pa.large_list_view(HYPOTHESIS), NBESTS)}, NBESTS, NBEST),
    "types of lists": (
        {"a.parquet": typed(pa.list_(HYPOTHESIS), NBESTS), "b.parquet": typed(pa.large_list(HYPOTHESIS), NBESTS)},
        NBESTS * 2,
        NBEST,
    ),
    "lists of texts": ({"i.parquet": typed(pa.list_(pa.string()), [["a"]])}, "text or lists of {text, score}", NBEST),
    "lists and a sentence": ({"i.jsonl": lines({"text": HYPOTHESES}, {"text": "a b"})}, [HYPOTHESES, "a b"], NBEST),
    "scores that are none": (
        {"i.jsonl": lines(*({"text": [{"text": text, "score": n}]} for text, n in SCORES))},
        [None, None, [{"text": "a b", "score": 1}]],
        NBEST,
    ),
    # compressed files
    "gzip, zeros at its end": ({"i.jsonl.gz": MEMBER + bytes(512)}, TWO),
    "gzip, members and zeros": ({"i.jsonl.gz": MEMBER + bytes(9) + MEMBER}, TWO * 2),
    "gzip without its end": ({"i.jsonl.gz": MEMBER[:-1]}, r"after row \d: .*: get it whole again"),
    "gzip with another sum": ({"i.jsonl.gz": MEMBER[:-8] + bytes(8)}, r"after row \d: CRC check failed"),
    "gzip and something else": ({"i.jsonl.gz": MEMBER + b"more"}, r"after row \d: Not a gzipped file"),
    "gzip, the second file damaged": ({"a.jsonl": PLAIN, "b.jsonl.gz": MEMBER[:40]}, "b.jsonl.gz cannot be read"),
    "no gzip": ({"i.jsonl.gz": PLAIN}, "after row 0: Not a gzipped file"),
    "no bytes": ({"i.jsonl.gz": b""}, []),
    "zstd --long=27": ({"i.jsonl.zst": lambda: zstd(PLAIN, "--long=27")}, TWO),
    "zstd --long=31": ({"i.jsonl.zst": lambda: zstd(PLAIN, "-22", "--ultra", "--long=31")}, "without --long"),
    "zstd, frames": ({"i.jsonl.zst": lambda: zstd(PLAIN) + SKIPPED + zstd(PLAIN)}, TWO * 2),
    "zstd without its end": ({"i.jsonl.zst": lambda: zstd(PLAIN)[:-1]}, r"after row \d: Truncated .*: get it whole"),
    # damaged ends
    "no newline at the end": ({"i.jsonl": PLAIN.rstrip(b"\n")}, TWO),
    "a cut line": ({"i.jsonl": PLAIN[:-9]}, [*ONE, None]),
    "a cut letter": ({"i.jsonl": b'{"text": "a b"}\n{"text": "\xc3'}, ["a b", None]),
    "zeros at the end": ({"i.jsonl": PLAIN + bytes(100)}, [*TWO, None]),
    "a quote that stays open": ({"i.csv": b'text,x\na b,1\nc,"2\nd,3\n'}, ["a b", None]),
    "Parquet without its end": ({"i.parquet": typed(pa.string())[:-9]}, "not a readable Parquet file"),
    "Parquet without a byte": ({"i.parquet": b""}, "not a readable Parquet file"),
    "Parquet, a flipped bit": ({"i.parquet": flipped()}, "cannot be read after row 0: .*CRC"),
    "Parquet, the second damaged": ({"a.parquet": typed(pa.string()), "b.parquet": b"PAR1"}, "b.parquet is not a read"),
    "no JSON in the second file": ({"a.jsonl": PLAIN, "b.jsonl": "x\n".encode("utf-16")}, "b.jsonl is not JSON lines"),
}  # fmt: skip


def write_input(folder: Path, files: dict[str, Any]) -> Path:
    """The files of a case; the path to score."""
    for name, data in files.items():
        if callable(data) and not shutil.which("zstd"):
            pytest.skip("zstd is not installed")
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data() if callable(data) else data)
    return folder if len(files) > 1 or "/" in name else path


def read_answers(path: Path, key: str) -> list[tuple[Any, Any]]:
    """(answer, error) of each row."""
    if path.suffix == ".parquet":
        rows = pq.read_table(path, columns=[key, "error"]).to_pylist()
    elif path.suffix == ".csv":
        text = path.read_bytes().decode(errors="surrogateescape")
        rows = list(csv.DictReader(io.StringIO(text, newline=""), strict=True))
    else:
        rows = [json.loads(line, parse_constant=pytest.fail) for line in path.read_bytes().decode().splitlines()]
    answers = [row[key] or None for row in rows]
    decoded = [json.loads(answer) if isinstance(answer, str) else answer for answer in answers]
    return [(answer, row["error"] or None) for answer, row in zip(decoded, rows, strict=True)]


@pytest.mark.parametrize("to", ["out.parquet", "out.jsonl", "out.csv"])
@pytest.mark.parametrize("name", AWKWARD)
def test_awkward_inputs(
    make_file: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, to: str
) -> None:
    files, expected, *options = AWKWARD[name]
    arguments = {**dict(*options), "rows_per_part": 2}
    task = arguments.get("task")
    model = make_file(task="fill-mask" if task else "embedding")
    source, output = write_input(tmp_path / "in", files), tmp_path / to
    windows: list[Any] = []
    real = runner.make_part
    monkeypatch.setattr(runner, "make_part", lambda window, *rest: windows.append(window) or real(window, *rest))
    if name == "too many fields" and to != "out.jsonl":
        expected = "more than 10000 different fields"
    if isinstance(expected, str):
        with pytest.raises(EdgeBertError, match=expected) as raised:
            edgebert.score(model, source, output, **arguments)
        assert "\n" not in str(raised.value) and str(raised.value).isprintable()
        assert not windows and not list(tmp_path.glob("out*"))
        return
    summary = edgebert.score(model, source, output, **arguments)
    found = read_answers(output, "answer" if task else "embedding")
    assert (len(found), sum(text is None for text in expected)) == (summary["rows"], summary["errors"])
    good = [text for text in expected if text is not None]
    inputs = [{"hypotheses": text} if isinstance(text, list) else text for text in good]
    answers = iter(edgebert.load(model)(inputs, **({"task": task} if task else {})) if good else [])
    for text, (answer, error) in zip(expected, found, strict=True):
        assert (text is None) == (answer is None) == (error is not None)
        if text is not None:
            np.testing.assert_equal(answer if task else np.array(answer, np.float32), next(answers))


# values of a column of JSON lines; the type it has in Parquet, and the values there if they are others
COLUMNS: list[tuple[Any, ...]] = [
    ([1, None, -(2**63)], "int64"),
    ([2**64 - 1, 0], "uint64"),
    ([2**64, -1], "string", ["18446744073709551616", "-1"]),
    ([2**53, 0.5, -0.0], "double"),
    ([2**53 + 1, 0.5], "string", ["9007199254740993", "0.5"]),
    ([True, None], "bool"),
    ([True, 1], "string", ["true", "1"]),
    (["5", 5, 5.0, None, {"a": "é"}, [None]], "string", ["5", "5", "5.0", None, '{"a": "é"}', "[null]"]),
    ([{"a": 1}], "string", ['{"a": 1}']),
    ([[1], [2.5], [], None], "list<double>"),
    ([[["a"]], [[None], []]], "list<list<string>>"),
    ([[1], ["a"]], "string", ["[1]", '["a"]']),
    ([[2**64], [1]], "string", ["[18446744073709551616]", "[1]"]),
    ([[{"a": 1}]], "string", ['[{"a": 1}]']),
    ([[], None], "string", ["[]", None]),
    ([None], "string"),
]


@pytest.mark.parametrize("case", COLUMNS, ids=lambda case: json.dumps(case[0]))
def test_types_of_columns(make_file: Callable[..., Path], tmp_path: Path, case: tuple[Any, ...]) -> None:
    values, kind, *others = case
    source = tmp_path / "in.jsonl"
    source.write_bytes(lines(*({"text": "a", "x": value} for value in values)))
    edgebert.score(make_file(), source, tmp_path / "out.parquet", rows_per_part=1)
    edgebert.score(make_file(), source, tmp_path / "out.jsonl", rows_per_part=1)
    table = pq.read_table(tmp_path / "out.parquet", columns=["x"])
    assert re.sub("(element|item): ", "", str(table.schema.field("x").type)) == kind
    assert table["x"].to_pylist() == (others[0] if others else values)
    assert [json.loads(line)["x"] for line in (tmp_path / "out.jsonl").read_text().splitlines()] == values


@pytest.mark.parametrize("to", ["out.parquet", "out.jsonl", "out.csv", "out"])
def test_late_types_after_an_interruption(
    make_file: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, to: str
) -> None:
    rows = [{"x": 5}, {"x": 5.5}, {"x": "late", "y": None}, {"y": [1]}]
    for name, part in (("a.jsonl", rows[:2]), ("b.jsonl", rows[2:])):
        (tmp_path / "in").mkdir(exist_ok=True)
        (tmp_path / "in" / name).write_bytes(lines(*part))
    model, commit = make_file(int8=True), Output.commit
    options: dict[str, Any] = {"rows_per_part": 1, "resume": True}
    edgebert.score(model, tmp_path / "in", tmp_path / "whole" / to, **options)
    for done in range(4):

        def stop(self: Output, *args: Any, done: int = done) -> None:
            if self.state["parts"] == done:
                raise KeyboardInterrupt
            commit(self, *args)

        monkeypatch.setattr(Output, "commit", stop)
        with pytest.raises(KeyboardInterrupt):
            edgebert.score(model, tmp_path / "in", tmp_path / "resumed" / to, **options)
        monkeypatch.undo()
    edgebert.score(model, tmp_path / "in", tmp_path / "resumed" / to, **options)
    assert files_below(tmp_path / "resumed") == files_below(tmp_path / "whole")


DAMAGED = {
    "i.jsonl": lambda: PLAIN * 4,
    "i.csv": lambda: b"text,x\n" + b'"a b",1\nc,\xc3\xa9\n' * 9,
    "i.jsonl.gz": lambda: gzip.compress(PLAIN) * 2,
    "i.csv.zst": lambda: zstd(b"text,x\n" + b'"a b",1\nc,\xc3\xa9\n' * 9),
    "i.parquet": lambda: parquet(["text", "x"], TEXTS * 3, [[i, None] for i in range(12)], row_group_size=5),
}


@pytest.mark.parametrize("name", DAMAGED)
def test_damaged_anywhere(
    make_file: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """Files that are cut, or of which a bit has flipped, are refused before anything is written, or scored."""
    if name.endswith("zst") and not shutil.which("zstd"):
        pytest.skip("zstd is not installed")
    whole, rng, refused = DAMAGED[name](), random.Random(0), 0
    model = make_file()
    scorer = Scorer(model)
    monkeypatch.setattr(runner, "Scorer", lambda *_: scorer)
    source = tmp_path / name
    for i in range(60):
        place = rng.randrange(len(whole))
        flipped = whole[:place] + bytes([whole[place] ^ 1 << rng.randrange(8)]) + whole[place + 1 :]
        source.write_bytes(whole[:place] if i % 2 else flipped)
        output = tmp_path / f"out{i}.jsonl"
        try:
            summary = edgebert.score(model, source, output, rows_per_part=3)
        except InvalidInputError as error:
            refused += 1
            assert "\n" not in str(error) and not list(tmp_path.glob(f"out{i}*"))
        else:
            found = read_answers(output, "embedding")
            assert len(found) == summary["rows"]
            assert all((answer is None) == (error is not None) for answer, error in found)
    assert refused > 40 if name.endswith(("gz", "zst", "parquet")) else refused < 10


def test_what_a_disk_does(make_file: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "in.jsonl").write_bytes(PLAIN)
    with pytest.raises(EdgeBertError, match=r"has stopped .*in.jsonl.*: Not a directory"):
        edgebert.score(make_file(), tmp_path / "in.jsonl", tmp_path / "in.jsonl" / "out.jsonl")
    with pytest.raises(EdgeBertError, match=r"has stopped .*File name too long"):
        edgebert.score(make_file(), tmp_path / "in.jsonl", tmp_path / f"{'a' * 300}.jsonl")
    (tmp_path / "folder.jsonl").mkdir()
    with pytest.raises(EdgeBertError, match="holds no files"):
        edgebert.score(make_file(), tmp_path / "folder.jsonl", tmp_path / "out.jsonl")
    real = runner._windows_from

    def append_behind(*arguments: Any) -> Iterator[Any]:
        windows = real(*arguments)
        yield next(windows)
        with open(tmp_path / "in.jsonl", "ab") as stream:
            stream.write(b'{"text": "more", "y": 1}\n')
        yield from windows  # at its end the reader looks at the file's size

    monkeypatch.setattr(runner, "_windows_from", append_behind)
    with pytest.raises(InvalidInputError, match=r"in.jsonl has changed while it was read"):
        edgebert.score(make_file(), tmp_path / "in.jsonl", tmp_path / "out.jsonl", rows_per_part=1)
