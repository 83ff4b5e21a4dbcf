"""Batch scoring: every row comes out once and in order, from and to every format, and bad input costs only itself."""

import csv
import io
import json
import os
import pickle
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import WORDS

import edgebert
from edgebert import cli
from edgebert.errors import BackendUnavailableError, EdgeBertError, InvalidInputError

pa = pytest.importorskip("pyarrow")
pq = pytest.importorskip("pyarrow.parquet")
pytest.importorskip("tqdm")

from edgebert.scoring import readers, runner  # noqa: E402
from edgebert.scoring.output import Output  # noqa: E402
from edgebert.scoring.runner import score  # noqa: E402
from edgebert.scoring.scorer import Scorer  # noqa: E402


def make_texts(count: int, seed: int = 0) -> list[str]:
    rng = np.random.default_rng(seed)
    return [" ".join(rng.choice(WORDS[4:], rng.integers(1, 12))) for _ in range(count)]


def make_rows(count: int) -> list[dict[str, Any]]:
    return [{"id": i, "text": text, "note": f"é{i}"} for i, text in enumerate(make_texts(count))]


def write_rows(path: Path, rows: list[dict[str, Any]]) -> Path:
    """Rows in the format that the name says."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".parquet":
        pq.write_table(pa.Table.from_pylist(rows), path, row_group_size=7)
        return path
    text = io.StringIO(newline="")
    if delimiter := delimiter_of(path):
        writer = csv.DictWriter(text, list(rows[0]), delimiter=delimiter)
        writer.writeheader()
        writer.writerows(rows)
    else:
        text.write("".join(json.dumps(row) + "\n" for row in rows))
    codec = readers.CODECS.get(path.suffix)
    with pa.output_stream(path, compression=codec) as stream:
        stream.write(text.getvalue().encode())
    return path


def delimiter_of(path: Path) -> str | None:
    return {".csv": ",", ".tsv": "\t"}.get(path.suffixes[0].lower() if path.suffixes else "")


def read_rows(path: Path) -> list[dict[str, Any]]:
    """Rows of an output; embeddings as f32 arrays."""
    if path.is_dir() or path.suffix == ".parquet":
        rows = pq.read_table(path).to_pylist()
    else:
        codec = readers.CODECS.get(path.suffix)
        with pa.input_stream(path, compression=codec) as stream:
            text = stream.read().decode(errors="replace")  # CSV that was not UTF-8 passes as it was
        if delimiter := delimiter_of(path):
            records = csv.DictReader(io.StringIO(text), delimiter=delimiter)
            rows = [{k: v or None for k, v in row.items()} for row in records]
            for row in rows:
                row |= {k: json.loads(row[k] or "null") for k in ("embedding", "truncated") if k in row}
        else:
            rows = [json.loads(line) for line in text.splitlines()]
    for row in rows:
        if row["embedding"] is not None:
            row["embedding"] = np.array(row["embedding"], np.float32)
    return list(rows)


@pytest.mark.parametrize("name", ["in.parquet", "in.jsonl", "in.csv", "in.jsonl.gz", "in.csv.zst", "IN.TSV"])
@pytest.mark.parametrize("to", ["out.parquet", "out.jsonl", "out.csv", "out.csv.gz", "out.tsv", "out.jsonl.zst", "out"])
def test_every_row_once_in_order_from_and_to_every_format(
    make_file: Callable[..., Path], tmp_path: Path, name: str, to: str
) -> None:
    model, rows = make_file(int8=True), make_rows(53)
    summary = score(model, write_rows(tmp_path / name, rows), tmp_path / to, rows_per_part=10)
    assert (summary["rows"], summary["errors"], summary["truncated"]) == (53, 0, 0)
    expected = edgebert.load(model).encode([row["text"] for row in rows])
    found = read_rows(tmp_path / to)
    assert [int(row["id"]) for row in found] == list(range(53))
    assert [row["text"] for row in found] == [row["text"] for row in rows]
    assert [row["note"] for row in found] == [row["note"] for row in rows]
    assert all(row["error"] is None and row["truncated"] is False for row in found)
    np.testing.assert_array_equal(np.stack([row["embedding"] for row in found]), expected)
    assert not list(tmp_path.glob("*.parts")) and not list(tmp_path.rglob("*.tmp"))


def test_lines_of_text(make_file: Callable[..., Path], tmp_path: Path) -> None:
    model, texts = make_file(), ["the red roses", " a, b\tc ", '"d']
    (tmp_path / "in.txt").write_bytes("\r\n\r\n".join(texts).encode("utf-8-sig"))
    score(model, tmp_path / "in.txt", tmp_path / "out.jsonl")
    found = read_rows(tmp_path / "out.jsonl")
    assert [row["text"] for row in found] == texts
    np.testing.assert_array_equal([row["embedding"] for row in found], edgebert.load(model).encode(texts))
    with pytest.raises(InvalidInputError, match=r"end it in .*\.tsv, the last ones"):
        score(model, tmp_path / "in.txt", tmp_path / "out.txt")


def test_types_of_results(make_file: Callable[..., Path], tmp_path: Path) -> None:
    model, source = make_file(), write_rows(tmp_path / "in.parquet", make_rows(20))
    score(model, source, tmp_path / "f32.parquet", columns=["text"])
    score(model, source, tmp_path / "f16.parquet", dtype="f16", prefix="m_")
    schema = pq.read_schema(tmp_path / "f32.parquet")
    assert schema.field("id").type == pa.int64()  # other columns keep their types
    assert schema.field("embedding").type == pa.list_(pa.float32(), 24)
    half = pq.read_table(tmp_path / "f16.parquet")
    assert half.schema.field("m_embedding").type == pa.list_(pa.float16(), 24)
    assert half.column_names == ["id", "text", "note", "m_embedding", "m_truncated", "m_error"]
    full = pq.read_table(tmp_path / "f32.parquet")["embedding"].combine_chunks().flatten().to_numpy()
    np.testing.assert_array_equal(half["m_embedding"].combine_chunks().flatten().to_numpy(), full.astype(np.float16))


@pytest.mark.parametrize("name", ["out.parquet", "out.jsonl", "out.csv"])
def test_embeddings_in_fewer_bytes(make_file: Callable[..., Path], tmp_path: Path, name: str) -> None:
    model, rows = make_file(), make_rows(20)
    rows[7]["text"] = None
    source = write_rows(tmp_path / "in.jsonl", rows)
    texts = [row["text"] for row in rows if row["text"]]
    embeddings = edgebert.load(model).encode(texts)
    for dtype, width in (("int8", 24), ("binary", 3)):
        output = tmp_path / f"{dtype}-{name}"
        score(model, source, output, dtype=dtype, rows_per_part=6)
        found = read_rows(output)
        assert [row["embedding"] is None for row in found] == [i == 7 for i in range(20)]
        codes = np.array([row["embedding"] for row in found if row["embedding"] is not None])
        np.testing.assert_array_equal(codes, edgebert.quantize_embeddings(embeddings, dtype))
        if name == "out.parquet":
            arrow = {"int8": pa.int8(), "binary": pa.uint8()}[dtype]
            assert pq.read_schema(output).field("embedding").type == pa.list_(arrow, width)
        if dtype == "int8":
            scales = np.array([float(row["embedding_scale"]) for row in found if row["embedding_scale"] is not None])
            np.testing.assert_allclose(codes * scales[:, None], embeddings, atol=float(scales.max()) * 0.5001)
        else:
            assert "embedding_scale" not in found[0]


def test_vectors_of_tokens_in_fewer_bytes(make_file: Callable[..., Path], tmp_path: Path) -> None:
    model = make_file(pooling="none", token_size=16, normalize_tokens=False)
    expected = edgebert.load(model)(["the red roses", "a"], task="multi-vector")
    scorer = Scorer(model, task="multi-vector", dtype="int8")
    source = write_rows(tmp_path / "in.jsonl", [{"text": "the red roses"}, {"text": "a"}])
    score(model, source, tmp_path / "out.parquet", task="multi-vector", dtype="int8")
    found = pq.read_table(tmp_path / "out.parquet").to_pylist()
    assert scorer.results == {"embeddings": "vectors", "embedding_scales": "numbers"}
    for row, vectors in zip(found, expected, strict=True):
        np.testing.assert_array_equal(row["embeddings"], edgebert.quantize_embeddings(vectors, "int8"))
        scales = np.array(row["embedding_scales"])[:, None]
        np.testing.assert_allclose(row["embeddings"] * scales, vectors, atol=float(scales.max()) * 0.5001)


def test_classification_of_texts_and_pairs(make_file: Callable[..., Path], tmp_path: Path) -> None:
    model = make_file(task="text-classification")
    loaded, rows = edgebert.load(model), make_rows(15)
    source = write_rows(tmp_path / "in.jsonl", rows)
    score(model, source, tmp_path / "out.jsonl", rows_per_part=4)
    found = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    assert [{k: row[k] for k in ("label", "score")} for row in found] == loaded([row["text"] for row in rows])
    score(model, source, tmp_path / "pairs.parquet", columns=["text", "note"])
    pairs = [{"text": row["text"], "text_pair": row["note"]} for row in rows]
    table = pq.read_table(tmp_path / "pairs.parquet", columns=["label", "score"])
    assert table.to_pylist() == loaded(pairs)
    score(model, source, tmp_path / "top.parquet", options={"top_k": 2})
    answers = [json.loads(text) for text in pq.read_table(tmp_path / "top.parquet")["answer"].to_pylist()]
    assert answers == loaded([row["text"] for row in rows], top_k=2)


def test_scores_of_all_labels(make_file: Callable[..., Path], tmp_path: Path) -> None:
    model = make_file(task="text-classification", num_labels=5)
    loaded, rows = edgebert.load(model), make_rows(15)
    source = write_rows(tmp_path / "in.jsonl", rows)
    found = loaded([row["text"] for row in rows], top_k=None)
    middle = sorted(one["score"] for labels in found for one in labels)[len(found)]
    score(model, source, tmp_path / "scores.parquet", scores=True, prefix="m_", rows_per_part=4)
    table = pq.read_table(tmp_path / "scores.parquet")
    names = ["m_label", "m_score", *(f"m_score_{label}" for label in loaded.spec.labels)]
    assert table.schema.names == ["id", "text", "note", *names, "m_truncated", "m_error"]
    for row, labels in zip(table.to_pylist(), found, strict=True):
        assert {row["m_label"]: row["m_score"]} == {labels[0]["label"]: labels[0]["score"]}
        assert {one["label"]: row[f"m_score_{one['label']}"] for one in labels} == {
            one["label"]: one["score"] for one in labels
        }
    command = ["score", str(model), str(source), "-o", str(tmp_path / "some.jsonl"), "--threshold", str(middle)]
    assert cli.main([*command, "--scores"]) == 0
    some = [json.loads(line) for line in (tmp_path / "some.jsonl").read_text().splitlines()]
    expected = [[one["label"] for one in labels if one["score"] >= middle] for labels in found]
    assert [row["labels"] for row in some] == expected and 0 < sum(map(len, expected)) < sum(map(len, found))
    assert not {"label", "score"} & some[0].keys() and f"score_{loaded.spec.labels[0]}" in some[0]
    with pytest.raises(InvalidInputError, match="score has no option 'embedding_dtype'; besides .*, dtype, "):
        edgebert.score(model, source, tmp_path / "odd.jsonl", embedding_dtype="f16")
    with pytest.raises(InvalidInputError, match="leave top_k out"):
        Scorer(model, scores=True, options={"top_k": 2})
    with pytest.raises(InvalidInputError, match="for classifiers, this file's task is embedding"):
        Scorer(make_file("other.onnx"), threshold=0.5)
    for function, least, most in ((None, 0, 1), ("sigmoid", 0, 1), ("tanh", -1, 1), ("none", -np.inf, np.inf)):
        options = {"function_to_apply": function}
        for threshold in (least - 0.3, most + 0.3, np.nan):
            if not np.isinf(threshold):
                with pytest.raises(
                    InvalidInputError, match=f"threshold must be from {least} to {most}, as this file's"
                ):
                    Scorer(model, threshold=threshold, options=options)
        Scorer(model, threshold=max(least, -1e30), options=options)
    with pytest.raises(InvalidInputError, match="threshold must be from 0 to 1"):
        Scorer(make_file("next.onnx", task="next-sentence"), ["a", "b"], threshold=1.3)


def test_token_classification_gives_json(make_file: Callable[..., Path], tmp_path: Path) -> None:
    model = make_file(task="token-classification")
    rows = make_rows(6)
    score(model, write_rows(tmp_path / "in.csv", rows), tmp_path / "out.jsonl", task="token-classification")
    found = [json.loads(line)["answer"] for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    assert found == json.loads(json.dumps(edgebert.load(model)([row["text"] for row in rows])))


def test_questions_masks_and_n_best_lists(make_file: Callable[..., Path], tmp_path: Path) -> None:
    def answers(model: Path, rows: list[dict[str, Any]], *columns: str, **options: Any) -> list[Any]:
        source = write_rows(tmp_path / "in.jsonl", rows)
        output = tmp_path / "out.jsonl"
        runner.score(model, source, output, columns=columns, rows_per_part=2, **options)
        found = [json.loads(line) for line in output.read_text().splitlines()]
        output.unlink()
        return [row["answer"] if row["error"] is None else row["error"] for row in found]

    questions = [{"question": "is it slow ?", "context": text} for text in make_texts(3)]
    model = make_file("qa.onnx", task="question-answering")
    assert answers(model, questions, "question", "context") == edgebert.load(model)(questions)
    model = make_file("mlm.onnx", task="fill-mask")
    nbest = [[{"text": text, "score": -1.5} for text in make_texts(3, seed)] for seed in range(2)]
    rows = [{"nbest": hypotheses} for hypotheses in [*nbest, [{"text": "a"}]]]
    found = answers(model, rows, "nbest", task="rescoring")
    rescored = edgebert.load(model)([{"hypotheses": hypotheses} for hypotheses in nbest], task="rescoring")
    assert found[:2] == rescored and "its first-pass score must be a number" in found[2]


def test_partitioned_folder(make_file: Callable[..., Path], tmp_path: Path) -> None:
    model, rows = make_file(), make_rows(30)
    for year, part in (("2025", rows[:12]), ("2026", rows[12:])):
        write_rows(tmp_path / "in" / f"year={year}" / "lang=a%20b" / "a.parquet", part)
    (tmp_path / "in" / "_SUCCESS").touch()
    score(model, tmp_path / "in", tmp_path / "out", rows_per_part=5)
    assert sorted({path.parent.name for path in (tmp_path / "out").rglob("*.parquet")}) == ["lang=a%20b"]
    table = pq.read_table(tmp_path / "out")  # the folders' names are columns again
    assert table["id"].to_pylist() == list(range(30))
    assert set(map(str, table["year"].to_pylist()[:12])) == {"2025"}
    score(model, tmp_path / "in", tmp_path / "out.jsonl")
    found = read_rows(tmp_path / "out.jsonl")
    assert [(row["year"], row["lang"]) for row in found] == [("2025", "a b")] * 12 + [("2026", "a b")] * 18


def test_files_of_a_folder_with_other_columns(make_file: Callable[..., Path], tmp_path: Path) -> None:
    rows = make_rows(4)
    write_rows(tmp_path / "in" / "a.parquet", rows)
    write_rows(tmp_path / "in" / "b.parquet", [{"more": 1.5, "text": "a"}])
    score(make_file(), tmp_path / "in", tmp_path / "out.parquet")
    table = pq.read_table(tmp_path / "out.parquet")
    assert table["more"].to_pylist() == [None] * 4 + [1.5]
    assert table["id"].to_pylist() == [0, 1, 2, 3, None]
    write_rows(tmp_path / "in" / "c.parquet", [{"id": "x", "text": "a"}])
    with pytest.raises(InvalidInputError, match=r"columns of .*c.parquet do not fit those of the files before"):
        score(make_file(), tmp_path / "in", tmp_path / "other.parquet")


BAD_LINES = [
    b'{"id": 0, "text": "a b"}',
    b'{"id": 1, "text": null}',
    b'{"id": 2, "text": 17}',
    b'{"id": 3, "text": "broken',
    b"[4]",
    b"",
    b'{"id": 5, "text": "lone \\ud800"}',
    b'{"id": 6, "text": "latin \xe9"}',
    b'{"id": 7}',
    b'{"id": 8, "text": ""}',
    b'{"id": 10, "text": "c"}',
]
BAD_IDS = [1, 2, None, None, 5, 6, 7]


@pytest.mark.parametrize("to", ["out.jsonl", "out.csv", "out.parquet"])
def test_bad_rows_stay_with_their_error(make_file: Callable[..., Path], tmp_path: Path, to: str) -> None:
    source = tmp_path / "in.jsonl"
    source.write_bytes(b"\n".join(BAD_LINES))
    summary = score(make_file(), source, tmp_path / to, rows_per_part=3)
    found = read_rows(tmp_path / to)
    assert len(found) == summary["rows"] == 10
    bad = [row.get("id") and int(row["id"]) for row in found if row["error"]]
    assert bad == BAD_IDS
    assert summary["errors"] == len(bad)
    told = " ".join(row["error"] or "" for row in found)
    for message in ("text is null", "type int, not text", "line 4 is not JSON", "line 5 is not a JSON object"):
        assert message in told
    assert told.count("not valid Unicode") == 2
    good = edgebert.load(make_file()).encode(["a b", "", "c"])
    np.testing.assert_array_equal([found[i]["embedding"] for i in (0, 8, 9)], good)


def test_bad_rows_in_a_file_of_their_own(make_file: Callable[..., Path], tmp_path: Path) -> None:
    source = tmp_path / "in.jsonl"
    source.write_bytes(b"\n".join(BAD_LINES))
    for to in ("out.jsonl", "out.parquet", "out"):
        bad_path = tmp_path / "bad" / f"{to}.jsonl"
        summary = score(make_file(), source, tmp_path / to, rows_per_part=3, errors=bad_path)
        bad = [json.loads(line) for line in bad_path.read_bytes().splitlines()]
        found = read_rows(tmp_path / to)
        assert len(bad) == summary["errors"] and len(found) + len(bad) == summary["rows"] == 10
        assert all("error" not in row and row["embedding"] is not None for row in found)
        assert {row["file"] for row in bad} == {"in.jsonl"}
        assert [row["row"] for row in bad[:3]] == [1, 2, 3]
        assert bad[1]["values"] == {"id": 2, "text": 17}
    assert not list((tmp_path / "out").glob("_errors*"))


def test_bad_csv(make_file: Callable[..., Path], tmp_path: Path) -> None:
    source = tmp_path / "in.csv"
    source.write_bytes(b'\xef\xbb\xbfid,text\n1,a\n2,"x"y\n3,too,many\n4\n5,\xe9\n\n6,"two\nlines"\n7,"open\n')
    score(make_file(), source, tmp_path / "out.csv")
    lines = (tmp_path / "out.csv").read_bytes()
    assert b"\n5,\xe9," in lines  # what was not UTF-8 passes as it was
    records = csv.DictReader(io.StringIO(lines.decode(errors="replace")))
    errors = [(row["id"], row["error"]) for row in records]
    assert [key for key, _ in errors] == ["1", "", "3", "4", "5", "6", ""]
    for (_, error), expected in zip(
        errors,
        ["", "line 3 is not CSV", "3 fields, the header 2", "1 fields", "Unicode", "", "is not CSV"],
        strict=True,
    ):
        assert expected in error if expected else error == ""


def test_broken_utf8_in_parquet(make_file: Callable[..., Path], tmp_path: Path) -> None:
    offsets = pa.py_buffer(np.array([0, 1, 3, 4], np.int32).tobytes())
    texts = pa.StringArray.from_buffers(3, offsets, pa.py_buffer(b"a\xe9\xe9b"))
    pq.write_table(pa.table({"text": texts}), tmp_path / "in.parquet")
    for to in ("out.parquet", "out.jsonl"):
        score(make_file(), tmp_path / "in.parquet", tmp_path / to)
    errors = [row["error"] for row in read_rows(tmp_path / "out.jsonl")]
    assert errors[0] is errors[2] is None and "not valid Unicode" in errors[1]
    assert pq.read_table(tmp_path / "out.parquet", columns=["error"])["error"].to_pylist() == errors


def test_too_long(make_file: Callable[..., Path], tmp_path: Path) -> None:
    source = write_rows(tmp_path / "in.jsonl", [{"text": "a"}, {"text": "a " * 100}, {"text": "b"}])
    assert score(make_file(), source, tmp_path / "cut.jsonl")["truncated"] == 1
    assert [row["truncated"] for row in read_rows(tmp_path / "cut.jsonl")] == [False, True, False]
    summary = score(make_file(), source, tmp_path / "not.jsonl", too_long="error")
    assert (summary["rows"], summary["errors"]) == (3, 1)
    found = read_rows(tmp_path / "not.jsonl")
    assert found[1]["embedding"] is None and "more than 80 tokens" in found[1]["error"]


def test_a_row_that_only_the_model_refuses(make_file: Callable[..., Path]) -> None:
    scorer = Scorer(make_file())
    run = scorer._run

    def refuse(inputs: list[Any]) -> Any:
        if "bad" in inputs:
            raise InvalidInputError(f"bad is bad, {len(inputs)}")
        return run(inputs)

    scorer._run = refuse  # type: ignore[method-assign]
    results = scorer({"text": ["a", "b", "bad", "c", "bad"]})
    assert results["error"] == [None, None, "bad is bad, 1", None, "bad is bad, 1"]
    assert [row is None for row in results["embedding"]] == [False, False, True, False, True]


def test_the_scorer_can_be_pickled_and_takes_any_columns(make_file: Callable[..., Path]) -> None:
    scorer = Scorer(make_file(), ["body"], dtype="f16")
    copy = pickle.loads(pickle.dumps(scorer))
    texts = np.array(["a", None, "b c", float("nan")], object)
    first, second = scorer({"body": texts}), copy({"body": list(texts), "id": [1, 2, 3, 4]})
    assert first["error"] == second["error"] == [None, "body is null", None, "body is null"]
    np.testing.assert_array_equal(first["embedding"][2], second["embedding"][2])
    assert first["embedding"][0].dtype == np.float16


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"columns": ["txet"]}, "there is no column 'txet' in .*, only id, text, note: did you mean 'text'"),
        ({"columns": ["zzzzz"]}, "choose one of these"),
        ({"columns": "text"}, "columns must be a list"),
        ({"prefix": "x_", "dtype": "f64"}, "dtype must be one of f32, f16, int8, binary"),
        ({"too_long": "stop"}, "too_long must be one of"),
        ({"task": "fill-mask"}, "fill-mask does not fit this file"),
        ({"task": "explain", "dtype": "int8"}, "dtype is of embeddings, and this file's task is explain"),
        ({"options": {"top_k": 3}}, "top_k"),
        ({"rows_per_part": 0}, "rows_per_part must be a positive integer"),
        ({"engine": "dask"}, "engine must be local or ray"),
        ({"engine": "ray", "resume": True}, "cannot be resumed"),
        ({"engine": "ray", "overwrite": True}, "cannot be resumed or overwritten"),
    ],
)
@pytest.mark.parametrize("name", ["in.jsonl", "in.parquet"])
def test_bad_options(
    make_file: Callable[..., Path], tmp_path: Path, arguments: dict[str, Any], message: str, name: str
) -> None:
    source = write_rows(tmp_path / name, make_rows(3))
    with pytest.raises(InvalidInputError, match=message):
        score(make_file(), source, tmp_path / "out.parquet", **arguments)
    assert not list(tmp_path.glob("out*"))


def test_bad_sources(make_file: Callable[..., Path], tmp_path: Path) -> None:
    model = make_file()

    def fails(source: Path, message: str, to: str = "out.parquet") -> None:
        with pytest.raises(EdgeBertError, match=message) as raised:
            score(model, source, tmp_path / to)
        assert "\n" not in str(raised.value)
        assert not list(tmp_path.glob("out*"))

    fails(tmp_path / "none.jsonl", "none.jsonl does not exist")
    (tmp_path / "empty").mkdir()
    fails(tmp_path / "empty", "holds no files")
    (tmp_path / "in.xml").touch()
    fails(tmp_path / "in.xml", "of no known format")
    source = write_rows(tmp_path / "in.jsonl", make_rows(3))
    fails(source, "does not say what to write", "out.xml")
    write_rows(tmp_path / "mixed" / "a.jsonl", make_rows(3))
    write_rows(tmp_path / "mixed" / "b.csv", make_rows(3))
    fails(tmp_path / "mixed", "several formats, csv, jsonl")
    with pytest.raises(InvalidInputError, match="inside of the input"):
        score(model, tmp_path / "mixed", tmp_path / "mixed" / "out.jsonl")
    (tmp_path / "utf16.jsonl").write_text('{"text": "a"}\n' * 3, encoding="utf-16")
    fails(tmp_path / "utf16.jsonl", "is not JSON lines, an object a line, in UTF-8: none of its 4 rows")
    (tmp_path / "array.json").write_text('[{"text": "a"},\n{"text": "b"}]')
    fails(tmp_path / "array.json", r"is not JSON lines, an object a line, in UTF-8: .*line 1 is not JSON")
    write_rows(tmp_path / "numbers.parquet", [{"text": 1}])
    fails(tmp_path / "numbers.parquet", "column 'text' of .* is of type int64, not text")
    whole = write_rows(tmp_path / "in.parquet", make_rows(50)).read_bytes()
    (tmp_path / "cut.parquet").write_bytes(whole[:-40])
    fails(tmp_path / "cut.parquet", "cut.parquet is not a readable Parquet file")
    (tmp_path / "torn.parquet").write_bytes(whole[:200] + bytes(len(whole) // 3) + whole[200 + len(whole) // 3 :])
    fails(tmp_path / "torn.parquet", "torn.parquet cannot be read after row 0")
    (tmp_path / "not.jsonl.gz").write_bytes(b"hello")
    fails(tmp_path / "not.jsonl.gz", "cannot be read after row 0")
    write_rows(tmp_path / "taken.jsonl", [{"text": "a", "embedding": 1}])
    fails(tmp_path / "taken.jsonl", r"has a column 'embedding' already.*prefix \(--prefix\)")
    write_rows(tmp_path / "taken.parquet", [{"text": "a", "error": "x"}])
    fails(tmp_path / "taken.parquet", "has a column 'error' already")
    (tmp_path / "twice.csv").write_text("text,text\na,b\n")
    fails(tmp_path / "twice.csv", "names a column twice")


def test_no_rows(make_file: Callable[..., Path], tmp_path: Path) -> None:
    (tmp_path / "in.jsonl").touch()
    pq.write_table(pa.table({"text": pa.array([], pa.string())}), tmp_path / "in.parquet")
    (tmp_path / "in.csv").write_text("text\n")
    for name in ("in.jsonl", "in.parquet", "in.csv"):
        for to in ("out.parquet", "out.jsonl", "out"):
            assert score(make_file(), tmp_path / name, tmp_path / f"{name[3:]}-{to}")["rows"] == 0
    assert pq.read_schema(tmp_path / "parquet-out.parquet").names == ["text", "embedding", "truncated", "error"]


def test_windows_are_cut_by_size_too(
    make_file: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(readers, "WINDOW_BYTES", 1000)
    monkeypatch.setattr(readers, "PARQUET_ROWS", 4)
    rows = make_rows(100)
    for name in ("in.jsonl", "in.parquet", "in.csv"):
        source = readers.Source(write_rows(tmp_path / name, rows), 1000)
        windows = list(source.read(source.files[0]))
        assert len(windows) > 2
        assert [row["text"] for window in windows for row in window.to_dicts()] == [row["text"] for row in rows]
        assert [window.first_row for window in windows[:2]] == [0, len(windows[0].rows)]


def test_a_line_that_would_fill_the_memory(
    make_file: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(readers, "LINE_BYTES", 100)
    source = write_rows(tmp_path / "in.jsonl", [{"text": "a"}, {"text": "b" * 350}, {"text": "c"}])
    score(make_file(), source, tmp_path / "out.jsonl")
    errors = [row["error"] for row in read_rows(tmp_path / "out.jsonl")]
    assert errors == [None, "line 2 is longer than 100 bytes", None]


def test_command(make_file: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = write_rows(tmp_path / "in.jsonl", make_rows(9))
    command = ["score", str(make_file()), str(source), "-o", str(tmp_path / "out.parquet")]
    assert cli.main(command) == 0
    assert "9 rows (0 with an error, 0 truncated)" in capsys.readouterr().err
    assert cli.main(command) == 1
    assert "is there already: choose another name" in capsys.readouterr().err
    assert cli.main([*command, "--resume", "--quiet"]) == 0
    assert capsys.readouterr().err == ""
    for options, message in (
        (["--option", "stride"], "--option takes NAME=VALUE"),
        (["--column", "txt"], "did you mean 'text'"),
    ):
        assert cli.main([*command[:-1], str(tmp_path / "new.parquet"), *options]) == 1
        err = capsys.readouterr().err
        assert message in err and err.count("\n") == 1


def test_what_is_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(BackendUnavailableError, match=r"pyarrow is not installed: pip install 'edgebert\[score\]'"):
        score("model.onnx", "in.jsonl", "out.jsonl")


# Interruptions


class Crash(BaseException):
    """Stands for a process that ends here and now."""


def files_below(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("overwrites", [False, True])
@pytest.mark.parametrize("to", ["out.parquet", "out.jsonl.gz", "out"])
def test_a_crash_at_any_moment_changes_nothing(
    make_file: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, to: str, overwrites: bool
) -> None:
    """The process ends before or after each sync and rename, again and again, until the job has come to its end.

    Where it replaces an output, that one is there until then, with its manifest.
    """
    model = make_file(int8=True)
    source = tmp_path / "in.jsonl"
    source.write_bytes(b"\n".join([*BAD_LINES, *(json.dumps(row).encode() for row in make_rows(30))]))
    arguments: dict[str, Any] = {"rows_per_part": 9, "resume": True, "overwrite": overwrites}

    def run(folder: Path, **options: Any) -> None:
        score(model, source, folder / to, errors=folder / "bad.jsonl", **{**arguments, **options})

    monkeypatch.chdir(tmp_path)
    (tmp_path / "whole").mkdir()
    monkeypatch.setattr(runner, "_describe_job", lambda *_: {"job": 1})  # the errors' path differs
    run(tmp_path / "whole")
    whole, old = files_below(tmp_path / "whole"), {}
    if overwrites:
        with monkeypatch.context() as patch:
            patch.setattr(runner, "_describe_job", lambda *_: {"job": 0})
            (tmp_path / "old").mkdir()
            run(tmp_path / "old", rows_per_part=20, prefix="old_")
        old = files_below(tmp_path / "old")
        assert all(old[name] != whole[name] for name in old.keys() & whole.keys() - {"bad.jsonl"})
    scorer = Scorer(model)
    monkeypatch.setattr(runner, "Scorer", lambda *_: scorer)  # loaded once
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)  # no power is cut here
    steps = 0
    for before in (True, False):
        for name in ("replace", "fsync"):
            folder = tmp_path / f"{name}-{before}"
            shutil.copytree(tmp_path / "old", folder) if overwrites else folder.mkdir()
            real = getattr(os, name)

            def crash(*args: Any, real: Any = real, before: bool = before) -> None:
                if not before:
                    real(*args)
                raise Crash

            for limit in range(100):  # each attempt comes one step further than its like, and then crashes
                calls = iter(range(limit % 3 + 1))

                def step(*args: Any, calls: Any = calls, real: Any = real, crash: Any = crash) -> None:
                    next(calls, None) is None and crash(*args)
                    real(*args)

                monkeypatch.setattr(os, name, step)
                try:
                    run(folder)
                except Crash:
                    steps += 1
                    check_replacing(files_below(folder), old, whole)
                else:
                    break
                finally:
                    monkeypatch.setattr(os, name, real)
            else:
                run(folder)
            assert files_below(folder) == whole
    assert steps > 20


def check_replacing(found: dict[str, bytes], old: dict[str, bytes], whole: dict[str, bytes]) -> None:
    """Each file of the old output is as it was, or replaced by its new one; of a folder all of them, or none."""
    is_folder = any(name.startswith("out/") for name in old)
    moved = {name.replace(".out.old/", "out/", 1) for name in found if name.startswith(".out.old/")}
    if is_folder and (moved or found.get("out/_manifest.json") != old["out/_manifest.json"]):
        old = {name: content for name, content in old.items() if not name.startswith("out/")}
        kept = {name: found.get(name, found.get(name.replace("out/", "out.parts/", 1))) for name in whole}
        assert all(kept[name] == whole[name] for name in whole if name.startswith("out/"))
    for name, content in old.items():
        assert found[name] == content or found[name] == whole.get(name), name


def test_kill_and_resume(make_file: Callable[..., Path], tmp_path: Path) -> None:
    """A real process, really killed."""
    model, source = make_file(int8=True), write_rows(tmp_path / "in.jsonl", make_rows(1200))
    score(model, source, tmp_path / "whole.parquet", rows_per_part=20)
    output = tmp_path / "out.parquet"
    command = [sys.executable, "-P", "-m", "edgebert", "score", str(model), str(source), "-o", str(output), "--resume"]
    command += ["--rows-per-part", "20", "--quiet"]
    environment = {**os.environ, "PYTHONPATH": str(Path(edgebert.__file__).parents[1])}
    kills = 0
    for wanted in (1, 20, 40):
        with subprocess.Popen(command, env=environment) as process:
            while process.poll() is None and len(list(tmp_path.glob("out.parquet.parts/part-*"))) < wanted:
                time.sleep(0.005)
            kills += process.poll() is None
            process.kill()
    assert kills
    summary = score(model, source, output, rows_per_part=20, resume=True)
    assert summary["rows"] == 1200
    assert output.read_bytes() == (tmp_path / "whole.parquet").read_bytes()


def test_a_manifest_that_does_not_fit(make_file: Callable[..., Path], tmp_path: Path) -> None:
    model, source = make_file(), write_rows(tmp_path / "in.jsonl", make_rows(30))
    output = tmp_path / "out.jsonl"

    def resume(message: str, **options: Any) -> None:
        with pytest.raises(InvalidInputError, match=message):
            score(options.pop("model", model), source, output, resume=True, rows_per_part=10, **options)

    score(model, source, output, rows_per_part=10)
    whole = output.read_bytes()
    assert score(model, source, output, rows_per_part=10, resume=True)["rows"] == 30  # nothing to do
    resume("it cannot be resumed .dtype was 'f32', is 'f16'.", dtype="f16")
    resume("it cannot be resumed .columns was", columns=["note"])
    resume("it cannot be resumed .model was", model=make_file("other.onnx", hidden=32))
    resume("it cannot be resumed .backend was", backend="numpy" if Scorer(model).backend == "native" else "onnxruntime")
    rows = source.read_text()
    source.write_text(rows + rows)
    resume("it cannot be resumed .input was")
    manifest = tmp_path / "out.jsonl.manifest.json"
    manifest.write_text("{}")
    resume("is not the manifest of a scoring job")
    assert output.read_bytes() == whole
    manifest.unlink()
    resume("out.jsonl exists already")


def test_resuming_without_an_option_that_was_given_names_it(make_file: Callable[..., Path], tmp_path: Path) -> None:
    model, source = make_file(task="text-classification"), write_rows(tmp_path / "in.jsonl", make_rows(3))
    score(model, source, tmp_path / "out.jsonl", scores=True)
    with pytest.raises(InvalidInputError, match="it cannot be resumed .scores was True, is None."):
        score(model, source, tmp_path / "out.jsonl", resume=True)


def test_parts_are_in_order_however_many(tmp_path: Path) -> None:
    names = [f"part-{file:05}-{window:05}.jsonl" for file, window in ((0, 9), (0, 99999), (0, 100000), (100000, 0))]
    (tmp_path / "out.jsonl.parts").mkdir()
    for name in names:
        (tmp_path / "out.jsonl.parts" / name).touch()
    assert [path.name for path in Output(tmp_path / "out.jsonl")._find_parts()] == names


def test_outputs_that_are_in_the_way(make_file: Callable[..., Path], tmp_path: Path) -> None:
    model, source = make_file(), write_rows(tmp_path / "in.jsonl", make_rows(30))
    (tmp_path / "out.jsonl").write_text("mine")
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine").touch()
    (tmp_path / "bad.jsonl").write_text("mine")
    (tmp_path / "file").touch()
    (tmp_path / "folder.jsonl").mkdir()
    for to, options in (("out.jsonl", {}), ("out", {}), ("new.jsonl", {"errors": tmp_path / "bad.jsonl"})):
        with pytest.raises(InvalidInputError, match="exists already: choose another name, or replace it"):
            score(model, source, tmp_path / to, **options)
    for to, options, words in (
        ("folder.jsonl", {}, "folder.jsonl is a folder, where a file is to be written"),
        ("folder.jsonl", {"overwrite": True}, "folder.jsonl is a folder, where a file is to be written"),
        ("new.jsonl", {"errors": tmp_path / "out"}, "out is a folder, where a file is to be written"),
        ("file", {}, "file is a file, and a name without a suffix is a folder's"),
        ("new", {"errors": tmp_path / "new" / "bad.jsonl"}, "cannot hold the bad rows too"),
    ):
        with pytest.raises(InvalidInputError, match=words):
            score(model, source, tmp_path / to, **options)
    assert (tmp_path / "out.jsonl").read_text() == "mine" == (tmp_path / "bad.jsonl").read_text()
    with pytest.raises(InvalidInputError, match="cannot hold the bad rows too"):
        score(model, source, tmp_path / "new.jsonl", errors=tmp_path / "." / "new.jsonl")
    score(model, source, tmp_path / "new.jsonl")
    (tmp_path / "new.jsonl").unlink()  # with the output gone, its manifest is in nobody's way
    assert score(model, source, tmp_path / "new.jsonl")["rows"] == 30


@pytest.mark.parametrize("to", ["out.jsonl", "out"])
def test_overwriting(make_file: Callable[..., Path], tmp_path: Path, to: str) -> None:
    model, source = make_file(), write_rows(tmp_path / "in.jsonl", make_rows(30))
    output, expected = tmp_path / to, tmp_path / f"expected-{to}"
    score(model, source, output, errors=tmp_path / "bad.jsonl", rows_per_part=10)
    with pytest.raises(InvalidInputError, match=r"is there already: .*resume \(--resume\).*overwrite \(--overwrite\)"):
        score(model, source, output, errors=tmp_path / "bad.jsonl", dtype="f16")
    command = ["score", str(model), str(source), "-o", str(output), "--rows-per-part", "20", "--prefix", "new_"]
    assert cli.main([*command, "--overwrite", "--errors", str(tmp_path / "bad.jsonl"), "--quiet"]) == 0
    score(model, source, expected, prefix="new_", rows_per_part=20, errors=tmp_path / "other.jsonl")
    files = [[path.name for path in sorted(one.rglob("part-*"))] for one in (output, expected)]
    assert files[0] == files[1]
    assert output.is_dir() or output.read_bytes() == expected.read_bytes()
    changed = {"prefix": "newer_", "rows_per_part": 20, "overwrite": True, "resume": True}
    score(model, source, output, errors=tmp_path / "bad.jsonl", **changed)  # of another job: anew
    found = pq.read_table(output).column_names if output.is_dir() else json.loads(output.read_text().splitlines()[0])
    assert "newer_embedding" in found
    assert not list(tmp_path.glob("*.parts")) and not list(tmp_path.glob(".*"))


@pytest.mark.parametrize("to", ["out.jsonl", "out"])
def test_an_interrupted_overwrite_keeps_the_old_output_and_goes_on(
    make_file: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, to: str
) -> None:
    model, source, commit = make_file(), write_rows(tmp_path / "in.jsonl", make_rows(30)), Output.commit

    def run(folder: str, prefix: str = "", **options: Any) -> None:
        score(model, source, tmp_path / folder / to, rows_per_part=10, prefix=prefix, **options)

    def interrupt(**options: Any) -> None:
        with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
            patch.setattr(Output, "commit", stop)
            run("a", **options)

    def stop(self: Output, *args: Any) -> None:
        if self.state["parts"] == 2:
            raise KeyboardInterrupt
        commit(self, *args)

    run("a")
    run("new", "new_")
    run("other", "other_")
    old = files_below(tmp_path / "a")
    interrupt(prefix="new_", overwrite=True)
    assert old.items() <= files_below(tmp_path / "a").items()
    for options, message in (
        ({"prefix": "new_"}, "was begun, 20 rows are done"),
        ({"resume": True}, "is of another job"),
        ({"prefix": "other_", "resume": True}, "is of another job"),
    ):
        with pytest.raises(InvalidInputError, match=message):
            run("a", **options)
    assert old.items() <= files_below(tmp_path / "a").items()
    run("a", "new_", resume=True)
    assert files_below(tmp_path / "a") == files_below(tmp_path / "new")
    interrupt(overwrite=True)
    interrupt(prefix="other_", overwrite=True, resume=True)  # of another job: anew
    run("a", "other_", overwrite=True, resume=True)
    assert files_below(tmp_path / "a") == files_below(tmp_path / "other")


def test_nothing_else_is_overwritten(make_file: Callable[..., Path], tmp_path: Path) -> None:
    model, source = make_file(), write_rows(tmp_path / "in" / "rows.jsonl", make_rows(30))
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "file").touch()
    before = source.read_bytes()
    for output, message in (
        (source, "would take the place of"),
        (source.parent, "would take the place of"),
        (tmp_path / "mine", "not of an earlier output: remove it yourself"),
    ):
        with pytest.raises(InvalidInputError, match=message):
            score(model, source, output, overwrite=True)
    with pytest.raises(InvalidInputError, match="would take the place of"):
        score(model, source, tmp_path / "out.jsonl", errors=source, overwrite=True)
    score(model, source, tmp_path / "out.jsonl")
    whole = (tmp_path / "out.jsonl").read_bytes()
    with pytest.raises(InvalidInputError, match="no column 'none'"):
        score(model, source, tmp_path / "out.jsonl", columns=["none"], overwrite=True)
    assert (tmp_path / "out.jsonl").read_bytes() == whole and source.read_bytes() == before
    assert (tmp_path / "mine" / "file").exists()


def test_an_interruption_says_how_to_go_on(
    make_file: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupt(*arguments: Any) -> None:
        raise KeyboardInterrupt

    source = write_rows(tmp_path / "in.jsonl", make_rows(9))
    command = ["score", str(make_file()), str(source), "-o", str(tmp_path / "out.jsonl"), "--quiet"]
    with monkeypatch.context() as patch:
        patch.setattr(runner, "make_part", interrupt)
        assert cli.main(command) == 130
    assert capsys.readouterr().err == "edgebert: interrupted; the same command with --resume goes on\n"
    assert cli.main([*command, "--resume"]) == 0


FULL_DISK = """
import resource, sys
from edgebert import cli
resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[1]),) * 2)
sys.exit(cli.main(sys.argv[2:]))
"""


@pytest.mark.parametrize("to", ["out.parquet", "out.jsonl", "out.csv.gz"])
def test_full_disk(make_file: Callable[..., Path], tmp_path: Path, to: str) -> None:
    """No file may grow over a limit that the parts keep and the whole does not; then there is room again."""
    model, source = make_file(int8=True), write_rows(tmp_path / "in.jsonl", make_rows(2000))
    score(model, source, tmp_path / f"whole-{to}", rows_per_part=200)
    command = ["score", str(model), str(source), "-o", str(tmp_path / to), "--rows-per-part", "200", "--quiet"]
    environment = {**os.environ, "PYTHONPATH": str(Path(edgebert.__file__).parents[1])}
    for limit in (2000, (tmp_path / f"whole-{to}").stat().st_size // 2):
        done = subprocess.run(
            [sys.executable, "-P", "-c", FULL_DISK, str(limit), *command, "--resume"],
            env=environment, capture_output=True, text=True, timeout=300, check=False,
        )  # fmt: skip
        assert done.returncode == 1
        assert "no room to write" in done.stderr and "make room, then resume the job" in done.stderr
        assert done.stderr.count("\n") == 1, done.stderr
        assert not (tmp_path / to).exists() and not list(tmp_path.rglob("*.tmp"))
    assert cli.main([*command, "--resume"]) == 0
    assert (tmp_path / to).read_bytes() == (tmp_path / f"whole-{to}").read_bytes()


def test_one_process_at_a_time(make_file: Callable[..., Path], tmp_path: Path) -> None:
    import fcntl

    (tmp_path / "out.jsonl.parts").mkdir()
    folder = os.open(tmp_path / "out.jsonl.parts", os.O_RDONLY)
    try:
        fcntl.flock(folder, fcntl.LOCK_EX)
        with pytest.raises(InvalidInputError, match="is being written by another process"):
            score(make_file(), write_rows(tmp_path / "in.jsonl", make_rows(3)), tmp_path / "out.jsonl")
    finally:
        os.close(folder)
