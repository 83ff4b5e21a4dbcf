"""The scorer on Ray and on Spark, where they are installed: the same rows as from this process."""

import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from test_docs import ROOT, _blocks
from test_scoring import BAD_LINES, make_rows, write_rows

import edgebert
from edgebert.scoring.runner import score

pq = pytest.importorskip("pyarrow.parquet")


@pytest.fixture
def ray() -> Iterator[object]:
    """Ray on this machine, its workers importing the package that is under test."""
    module = pytest.importorskip("ray")
    path = os.pathsep.join([str(Path(edgebert.__file__).parents[1]), os.environ.get("PYTHONPATH", "")])
    module.init(num_cpus=2, include_dashboard=False, runtime_env={"env_vars": {"PYTHONPATH": path}})
    yield module
    module.shutdown()


def test_ray(ray: object, make_file: Callable[..., Path], tmp_path: Path) -> None:
    model, rows = make_file(int8=True), make_rows(60)
    write_rows(tmp_path / "in" / "lang=en" / "a.jsonl", rows[:40])
    (tmp_path / "in" / "lang=en" / "b.jsonl").write_bytes(b"\n".join(BAD_LINES))
    write_rows(tmp_path / "in" / "lang=de" / "c.jsonl", rows[40:])
    on_ray = score(model, tmp_path / "in", tmp_path / "ray", engine="ray", rows_per_part=8)
    local = score(model, tmp_path / "in", tmp_path / "local.parquet", rows_per_part=8)
    names = ("rows", "errors", "truncated")
    assert [on_ray[name] for name in names] == [local[name] for name in names]
    found, expected = pq.read_table(tmp_path / "ray"), pq.read_table(tmp_path / "local.parquet")
    assert found.schema.equals(expected.schema)

    def in_order(table: object) -> list[str]:
        return sorted(map(repr, table.to_pylist()))  # type: ignore[attr-defined]

    assert in_order(found) == in_order(expected)


def test_spark_as_on_the_page(make_file: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sql = pytest.importorskip("pyspark.sql")
    pytest.importorskip("pandas")
    [code] = [block for block in _blocks(ROOT / "docs" / "scoring.md", "python") if "mapInPandas" in block]
    make_file("minilm-int8.onnx", int8=True)
    rows = [{**row, "text": None if row["id"] == 3 else row["text"]} for row in make_rows(20)]
    write_rows(tmp_path / "reviews.parquet", rows)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(Path(edgebert.__file__).parents[1]))
    monkeypatch.setenv("PYSPARK_PYTHON", sys.executable)
    session = sql.SparkSession.builder.master("local[1]").config("spark.ui.enabled", "false").getOrCreate()
    try:
        exec(compile(code, "scoring.md", "exec"), {})
    finally:
        session.stop()
    table = pq.read_table(tmp_path / "scored.parquet").to_pylist()
    table.sort(key=lambda row: row["id"])
    assert [row["id"] for row in table] == list(range(20))
    assert [row["id"] for row in table if row["error"]] == [3] and table[3]["embedding"] is None
    expected = edgebert.load("minilm-int8.onnx").encode([row["text"] for row in rows if row["text"]])
    found = [row["embedding"] for row in table if row["embedding"] is not None]
    np.testing.assert_array_equal(np.array(found, np.float32), expected)
