"""`edgebert bench`: every runtime answers what the file answers, of any task, and a result is whole and comparable."""

import copy
import dataclasses
import importlib.util
import json
from collections.abc import Callable
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from artifacts import random_batch, random_spec
from checkpoints import make_checkpoint
from conftest import BACKENDS, ISAS, WORDS

from edgebert.artifact.writer import build_model
from edgebert.backends.registry import load_backend
from edgebert.bench import tables
from edgebert.bench.answers import answer_outputs, answer_rows, pool_outputs
from edgebert.bench.harness import Timing
from edgebert.bench.page import write_report
from edgebert.bench.peers import FILE_PEERS, make_peer
from edgebert.bench.peers.base import ModelFiles
from edgebert.bench.provenance import Rapl, find_spinning, find_warnings
from edgebert.bench.roof import count_operations
from edgebert.bench.run import RESULT_VERSION, Bench, Options, describe_timing
from edgebert.bench.session import PeerSession
from edgebert.bench.workloads import Model, Workload
from edgebert.checkpoints.loading import load_checkpoint
from edgebert.cli import main
from edgebert.errors import EdgeBertError, InvalidInputError, UnsupportedModelError
from edgebert.exporting.check import compare_rows

MakeFile = Callable[..., Path]
SCHEMA = json.loads(resources.files("edgebert.bench").joinpath("result.schema.json").read_text(encoding="utf-8"))
TASKS = [
    {"task": "embedding"},
    {"task": "embedding", "pooling": "none"},
    {"task": "text-classification"},
    {"task": "token-classification"},
    {"task": "question-answering"},
    {"task": "fill-mask", "vocab_size": 200},
    {"task": "pretraining"},
]
ROWS = [[2, 5, 3], [2, 4, 6, 7, 9, 3], [2], [2, 8, 8, 3]]


def validate(result: Any) -> None:
    """The result is plain JSON in the form that the schema gives."""
    jsonschema = pytest.importorskip("jsonschema")
    plain = json.loads(json.dumps(result, allow_nan=False))
    assert plain == result
    jsonschema.Draft202012Validator(SCHEMA).validate(plain)


def nothing(text: str) -> None:
    del text


# Answers


@pytest.mark.parametrize("int8", [False, True], ids=["fp32", "int8"])
@pytest.mark.parametrize("arguments", TASKS, ids=lambda arguments: "-".join(map(str, arguments.values())))
def test_runtimes_over_a_file_answer_what_the_oracle_answers(
    arguments: dict[str, Any], int8: bool, make_file: MakeFile, tmp_path: Path
) -> None:
    path = make_file(int8=int8, **arguments)
    oracle = PeerSession(make_peer("edgebert/numpy", ModelFiles(path, tmp_path)))
    oracle.load(1, {})
    expected = [np.array(row, np.float32) for row in oracle.bind("work", ROWS, 1)]
    for name in ("edgebert/native", "edgebert/onnxruntime", "onnxruntime", "onnxruntime/int8"):
        backend = name.rpartition("/")[2].replace("int8", "onnxruntime")
        if backend not in BACKENDS or (name.endswith("int8") and (int8 or not importlib.util.find_spec("onnx"))):
            continue
        session = PeerSession(make_peer(name, ModelFiles(path, tmp_path)))
        session.build(ROWS)
        session.load(1, session.settings(1, "latency")[0])
        answers = [np.array(row, np.float32) for row in session.bind("work", ROWS, 3)]
        assert [row.shape for row in answers] == [row.shape for row in expected]
        limit = 0.8 if name.endswith("int8") else 0.998 if int8 else 0.99999
        assert compare_rows(answers, expected).min() > limit, name


def test_answers_of_a_wide_output_are_thinned(make_file: MakeFile) -> None:
    spec = random_spec(task="fill-mask", vocab_size=300)
    batch = random_batch(spec, [3, 1])
    logits = load_backend(make_file(task="fill-mask", vocab_size=300), "numpy").run(batch, ["logits"])
    rows = answer_rows(spec, batch, logits)
    assert [len(row) for row in rows] == [3 * 128, 128]
    assert rows[1][0] == logits["logits"][3, 0] and rows[1][-1] == logits["logits"][3, 299]
    assert answer_outputs(random_spec()) == ("sentence_embedding",)
    assert answer_outputs(random_spec(task="question-answering")) == ("start_logits", "end_logits")


@pytest.mark.parametrize(
    ("family", "task"),
    [
        ("bert", "embedding"),
        ("roberta", "text-classification"),
        ("distilbert", "token-classification"),
        ("bert", "question-answering"),
        ("bert", "pretraining"),
    ],
)
def test_torch_answers_what_the_file_answers(family: str, task: str, tmp_path: Path) -> None:
    folder, path = tmp_path / "source", tmp_path / "model.onnx"
    make_checkpoint(folder, family, task)
    checkpoint = load_checkpoint(folder, task)
    path.write_bytes(build_model(checkpoint.spec, checkpoint.tensors, {}))
    model = Model(path, "model")
    for name, limit in (("torch", 0.99999), ("torch/int8", 0.9)):
        session = PeerSession(make_peer(name, ModelFiles(folder, tmp_path, path)))
        session.load(1, {})
        answers = [np.array(row, np.float32) for row in session.bind("work", model.check_rows(), 5)]
        assert compare_rows(answers, model.answers(None)).min() > limit


def test_rows_of_a_workload(make_file: MakeFile, tmp_path: Path) -> None:
    model = Model(make_file(num_positions=80), "model")
    rows = model.rows(Workload("40", 3))
    assert [len(row) for row in rows] == [40] * 3 and len(set(map(tuple, rows))) > 1
    assert {row[0] for row in rows} == {WORDS.index("[CLS]")} and {row[-1] for row in rows} == {WORDS.index("[SEP]")}
    with pytest.raises(InvalidInputError, match="81 tokens: the model has 80 positions"):
        model.rows(Workload("81", 1))
    texts = tmp_path / "texts.txt"
    texts.write_text("the router\n\n" + "restart the router \n" * 600, encoding="utf-8")
    found = model.rows(Workload(f"text:{texts}", 8))
    assert len(found) == 256 and len(found[0]) == 4
    (tmp_path / "none.txt").write_text("\n", encoding="utf-8")
    (tmp_path / "latin.txt").write_bytes(b"\xff")
    for name, words in (("none", "has no texts"), ("latin", "cannot be read as UTF-8"), ("no", "cannot be read")):
        with pytest.raises(InvalidInputError, match=words):
            model.rows(Workload(f"text:{tmp_path / name}.txt", 1))
    bare = Model(make_file("bare.onnx", tokenizer_json=None), "bare")
    assert [len(row) for row in bare.rows(Workload("7", 2))] == [7, 7] and len(bare.check_rows()) == 24
    with pytest.raises(InvalidInputError, match="has no tokenizer"):
        bare.rows(Workload(f"text:{texts}", 1))


# Numbers


def test_timing_becomes_percentiles_and_rates() -> None:
    rows = [[1] * 4, [1] * 2, [1] * 2]
    timing = Timing(np.arange(1.0, 101.0) / 1e3, 0.25)
    found = describe_timing(timing, rows, 3, is_packed=False)
    assert (found["p50_ms"], found["p90_ms"], found["p99_ms"], found["min_ms"]) == (50.5, 90.1, 99.01, 1.0)
    assert found["p50_low_ms"] < 50.5 < found["p50_high_ms"] and found["idle_cpu"] == 0.25
    assert found["fill"] == round(8 / 12, 4)
    assert found["texts_per_s"] == round(3 / 0.0505, 2) and found["tokens_per_s"] == round(8 / 0.0505, 1)
    assert describe_timing(timing, rows, 3, is_packed=True)["fill"] == 1.0
    # sorted by length and two at a time: 4 + 2, and 2
    assert describe_timing(timing, rows, 2, is_packed=False)["fill"] == 0.8


def test_each_batch_counts_but_rates_are_of_all() -> None:
    timing = Timing(np.array([0.001, 0.003] * 50), 0.0)
    found = describe_timing(timing, [[1], [1]], 1, is_packed=True)
    assert found["samples"] == 100 and found["min_ms"] == 1.0 and found["p99_ms"] == 3.0
    assert found["texts_per_s"] == 500.0


def test_few_samples_have_no_outer_percentiles() -> None:
    few = describe_timing(Timing(np.ones(9), 0.0), [[1]], 1, True)
    more = describe_timing(Timing(np.ones(99), 0.0), [[1]], 1, True)
    assert few["p90_ms"] is None and few["p99_ms"] is None
    assert more["p90_ms"] == 1000.0 and more["p99_ms"] is None
    one = describe_timing(Timing(np.ones(1), 0.0), [[1]], 1, True)
    assert one["p50_low_ms"] == one["p50_high_ms"] == 1000.0


def test_operations_are_counted_by_layer() -> None:
    spec = random_spec(layers=((2, 8, 40), (0, 8, 0), (1, 5, 7)), hidden=24)
    lengths = [3, 5]
    expected = 0
    for length in lengths:
        for heads, head_dim, ffn in ((2, 8, 40), (1, 5, 7)):
            inner = heads * head_dim
            products = [(length, 24, 3 * inner), (length, inner, 24), (length, 24, ffn), (length, ffn, 24)]
            products += [(length, head_dim, length), (length, length, head_dim)] * heads
            expected += sum(2 * m * k * n for m, k, n in products)
    assert count_operations(spec, lengths) == expected
    first = random_spec(layers=((2, 8, 40), (0, 8, 0), (1, 5, 7)), hidden=24, pooling="cls")
    spared = sum(2 * (length - 1) * (5 * 24 + 24 * 7 + 7 * 24) for length in lengths)  # after the last attention
    assert count_operations(first, lengths) == expected - spared
    tagger = random_spec(task="token-classification", layers=(), hidden=24, num_labels=3)
    assert count_operations(tagger, [4]) == 2 * 4 * 24 * 3
    filler = random_spec(task="fill-mask", layers=(), hidden=24, embedding_size=8, vocab_size=50)
    assert count_operations(filler, [4]) == 2 * 4 * (8 * 24 + 24 * 8 + 8 * 50)


def test_energy_counters(tmp_path: Path) -> None:
    for name, value in (("intel-rapl:0", 5_000_000), ("intel-rapl:0:0", 1), ("intel-rapl:1", 9_000_000)):
        (tmp_path / name).mkdir()
        (tmp_path / name / "energy_uj").write_text(f"{value}\n")
        (tmp_path / name / "max_energy_range_uj").write_text("10000000\n")
    energy = Rapl(tmp_path)
    (tmp_path / "intel-rapl:0" / "energy_uj").write_text("6500000")
    (tmp_path / "intel-rapl:1" / "energy_uj").write_text("500000")  # it has started again
    assert energy.is_readable and energy.take() == pytest.approx(1.5 + 1.5)
    assert energy.take() == 0.0
    assert not Rapl(tmp_path / "none").is_readable


def test_warnings_of_heat_clocks_and_spinning() -> None:
    assert find_warnings(0.0, 0.0, 0, None, hot=0, slowdown=0.05) == []
    hot, slow = find_warnings(0.0, 0.0, 0, None, hot=3, slowdown=0.5)
    assert "slowed down 3 times" in hot and "50% longer" in slow
    assert find_spinning({"a": 0.02, "b": 0.9}) == [
        "b used 90% of a CPU while others had their turn: its threads spin, and could not be stopped"
    ]


# A whole run


@pytest.fixture
def files(make_file: MakeFile) -> list[Path]:
    return [make_file("small-fp32.onnx"), make_file("small-int8.onnx", int8=True)]


def make_options(files: list[Path], **changes: Any) -> Options:
    backends = [name for name in ("native", "onnxruntime") if name in BACKENDS]
    return dataclasses.replace(Options(files, backends, lengths=["7"], seconds=0.01, is_quick=True), **changes)


@pytest.mark.skipif("onnxruntime" not in BACKENDS or not ISAS, reason="needs native and onnxruntime")
def test_result_is_whole(files: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    texts = tmp_path / "texts.txt"
    texts.write_text("the router\nrestart the router and the modem\nwater\n", encoding="utf-8")
    options = make_options(
        files, backends=["native"], against=["onnxruntime"], lengths=["7", f"text:{texts}"], batch_sizes=[1, 2],
        work=tmp_path / "work", is_quick=False,
    )  # fmt: skip
    result = Bench(options, nothing).run(["edgebert", "bench", "/a/b/small.onnx"])
    validate(result)
    assert not {name for name in result["left_out"] if name.startswith(("edgebert", "onnxruntime"))}
    names = ["edgebert/native small-fp32", "onnxruntime small-fp32", "onnxruntime/int8 small-fp32"]
    names += ["edgebert/native small-int8", "onnxruntime small-int8"]
    assert list(result["contenders"]) == list(result["checks"]) == list(result["cold_start"]) == names
    work = [(one["name"], one["is_busy"]) for one in result["workloads"]]
    assert work == [
        ("7 tokens", False),
        ("7 tokens", True),
        ("7 tokens, 2 at a time", False),
        ("texts of texts.txt", False),
        ("texts of texts.txt, 2 at a time", False),
    ]
    assert all(list(one["rows"]) == names for one in result["workloads"])
    packed, padded = (result["workloads"][-1]["rows"][name] for name in (names[0], names[1]))
    assert packed["texts"] == 3 and packed["samples"] % 2 == 0  # the times of two batches, not of three texts
    assert packed["texts_per_s"] * packed["min_ms"] <= 1510
    assert packed["fill"] == 1.0 > padded["fill"] and packed["tokens"] == padded["tokens"]
    assert result["base"] == "small-fp32" and result["checks"][names[3]]["base_min"] < 1.0
    assert result["provenance"]["command"] == "edgebert bench small.onnx"

    write_report(tmp_path / "page.html", result)
    page = (tmp_path / "page.html").read_text(encoding="utf-8")
    assert page.count("<svg") == 4 and "ONNX Runtime dynamic int8, small-fp32" in page
    (tmp_path / "result.json").write_text(json.dumps(result), encoding="utf-8")
    assert main(["bench", "compare", *[str(tmp_path / "result.json")] * 2]) == 0
    printed = capsys.readouterr().out
    printed, _, rule = printed.partition("change: the second median over the first")
    assert printed.count("1.000x") == 25 and "the same" in printed and "faster" not in printed and "faster" in rule


@pytest.mark.skipif(not ISAS, reason="the native backend is not built")
def test_what_cannot_run_is_left_out_with_the_reason(
    files: list[Path], make_file: MakeFile, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    short = make_file("short.onnx", num_positions=8)
    options = make_options([files[0], short], backends=["native"], against=["openvino"], lengths=["7", "12"])
    found, said = importlib.util.find_spec, list[str]()
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "openvino" else found(name))
    result = Bench(options, said.append).run([])
    validate(result)
    reasons = result["left_out"]
    assert reasons["openvino"] == "openvino is not installed: pip install 'edgebert[bench]'"
    assert said[0] == f"left out: openvino: {reasons['openvino']}"  # before anything runs
    write_report(tmp_path / "page.html", result)
    page = (tmp_path / "page.html").read_text(encoding="utf-8")
    assert page.index("openvino is not installed") < page.index("Every number")
    assert "12 tokens: the model has 8 positions" in reasons["edgebert/native short, 12 tokens"]
    assert list(result["contenders"]) == ["edgebert/native small-fp32", "edgebert/native short"]
    assert [len(one["rows"]) for one in result["workloads"]] == [2, 1]


@pytest.mark.skipif(not ISAS, reason="the native backend is not built")
def test_wrong_answers_are_not_timed(files: list[Path], monkeypatch: pytest.MonkeyPatch) -> None:
    right = Model._answer
    monkeypatch.setattr(Model, "_answer", lambda self, workload: right(self, workload)[::-1])
    with pytest.raises(InvalidInputError, match=r"nothing could be measured: .*cosine with the reference .*not timed"):
        Bench(make_options(files[:1], backends=["native"]), nothing).run([])


def test_runtimes_that_need_a_checkpoint_say_so(files: list[Path]) -> None:
    bench = Bench(make_options(files, against=["torch"]), nothing)
    bench.models = [Model(files[0], "small")]
    bench.base = bench.models[0]
    assert list(bench._find_runtimes(bench.base)) == [] and "--checkpoint FOLDER" in bench.left_out["torch"]


def test_hidden_states_alone_answer_no_other_task() -> None:
    spec = random_spec(task="fill-mask")
    with pytest.raises(UnsupportedModelError, match="this fill-mask file needs more than the hidden states"):
        pool_outputs(spec, random_batch(spec, [3]), np.zeros((3, 24), np.float32))
    spec, batch = random_spec(pooling="cls"), random_batch(random_spec(), [3, 2])
    hidden = np.random.default_rng(0).standard_normal((5, 24)).astype(np.float32)
    rows = pool_outputs(spec, batch, hidden)["sentence_embedding"]
    np.testing.assert_allclose(rows, hidden[[0, 3]] / np.linalg.norm(hidden[[0, 3]], axis=1, keepdims=True), 1e-6)


def test_options_that_do_not_fit(files: list[Path]) -> None:
    for changes, words in (
        ({"threads": [10_000]}, "10000 threads: this process may use"),
        ({"models": [files[0], files[0]]}, "the same file twice"),
        ({"lengths": ["500"]}, "nothing could be measured: .*500 tokens: the model has 80 positions"),
        ({"lengths": ["7", "text:/no/such/file"]}, "/no/such/file cannot be read as UTF-8 text"),
        ({"lengths": ["text:/dev/null"]}, "/dev/null has no texts: give a file with one a line"),
        ({"seconds": -1.0}, "-1 seconds of measuring: give a number above 0"),
        ({"backends": ["bogus"]}, "unknown backend 'bogus': expected some of native"),
    ):
        with pytest.raises(InvalidInputError, match=words):
            Bench(make_options(files, **changes), nothing).run([])


# Two results


def make_result() -> dict[str, Any]:
    def row(p50: float) -> dict[str, Any]:
        return {"p50_ms": p50, "p50_low_ms": 0.95 * p50, "p50_high_ms": 1.05 * p50}

    same = {"cpu": "c", "isa": [], "cpus": 2, "cgroup_quota": None, "governor": None, "platform": "p", "python": "3"}
    return {
        "edgebert_bench": RESULT_VERSION,
        "provenance": {**same, "packages": {"numpy": "2"}, "commit": None, "warnings": [], "clock_change": 0.0},
        "models": {"m": {"sha256": "0"}},
        "contenders": {name: {"title": name.upper(), "model": "m", "is_own": name == "a"} for name in "abc"},
        "workloads": [
            {"name": "7 tokens", "threads": 1, "is_busy": False, "rows": {name: row(2.0) for name in "abc"}},
        ],
    }


def test_results_side_by_side() -> None:
    first, second = make_result(), make_result()
    second["workloads"][0]["rows"]["a"] = {"p50_ms": 1.0, "p50_low_ms": 0.9, "p50_high_ms": 1.1}
    second["workloads"][0]["rows"]["b"] = {"p50_ms": 4.0, "p50_low_ms": 3.9, "p50_high_ms": 4.1}
    [table], doubts = tables.compare_results(first, second)
    assert [(row[0], row[5], row[6]) for row in table.rows] == [
        ("A", "0.500x", "faster"),
        ("C", "1.000x", "the same"),
        ("B", "2.000x", "slower"),
    ]
    assert doubts == []
    # what doubt there is about either run counts: 2.0 here, of 1.9 to 2.1, and there 1.0, at most 1.1 but for the clock
    for run, other, change in ((first, second, 0.8), (second, first, 0.8), (first, second, 0.7)):
        run["provenance"]["clock_change"], other["provenance"]["clock_change"] = change, 0.0
        [table], _ = tables.compare_results(first, second)
        assert table.rows[0][6] == ("the same" if change > 0.73 else "faster")
    first["provenance"]["clock_change"] = 0.0
    second["provenance"] |= {"cpu": "d", "packages": {"numpy": "3"}, "warnings": ["others ran"]}
    second["models"]["m"]["sha256"] = "1"
    _, doubts = tables.compare_results(first, second)
    assert doubts == [
        "cpu differs: c and d", "packages differs: numpy 2 and 3", "m is not the same file", "in the second others ran"
    ]  # fmt: skip
    other = copy.deepcopy(first)
    other["workloads"][0]["name"] = "8 tokens"
    with pytest.raises(InvalidInputError, match="nothing in common|no workload and runtime in common"):
        tables.compare_results(first, other)


def test_results_that_cannot_be_read(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "result.json"
    for text, words in (("{", "cannot be read as JSON"), ("[]", "is not a result"), ('{"edgebert_bench": 99}', "99")):
        path.write_text(text, encoding="utf-8")
        assert main(["bench", "compare", str(path), str(path)]) == 1
        assert words in capsys.readouterr().err
    assert main(["bench", "compare", str(tmp_path / "none.json"), str(path)]) == 1


# The command line


@pytest.mark.skipif(not ISAS, reason="the native backend is not built")
def test_command_writes_what_it_prints(make_file: MakeFile, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = str(make_file(task="question-answering", int8=True))
    page, found = tmp_path / "page.html", tmp_path / "result.json"
    options = ["--length", "5", "--threads", "1", "--seconds", "0.01", "--quick"]
    assert main(["bench", path, *options, "--html", str(page), "--json", str(found)]) == 0
    printed = capsys.readouterr()
    assert "fill: the share" in printed.out and "GOP/s: " in printed.out
    assert "5 tokens, 1 thread\n" in printed.out and "EdgeBERT native" in printed.out and "texts/s" in printed.out
    validate(json.loads(found.read_text(encoding="utf-8")))
    assert "EdgeBERT benchmark: model" in page.read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--against", "onnx"], "unknown runtime 'onnx'"),
        (["--threads", "0"], "--threads takes numbers"),
        (["--batch", "1,x"], "--batch takes numbers"),
        (["--length", "16,-3"], "--length takes numbers"),
        (["--json", "/no/such/folder/x.json"], "does not exist"),
        (["--backends", "cuda"], "unknown backend"),
        (["--checkpoint", "/no/such/folder"], "is not a folder"),
    ],
)
def test_wrong_arguments(
    arguments: list[str], words: str, make_file: MakeFile, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["bench", str(make_file()), *arguments]) == 1
    assert words in capsys.readouterr().err


def test_every_peer_has_a_colour(tmp_path: Path) -> None:
    from edgebert.bench.page import _RUNTIMES

    assert {name.partition("/")[0] for name in FILE_PEERS} == set(_RUNTIMES)
    with pytest.raises(EdgeBertError, match="unknown peer"):
        make_peer("edgebert/cuda", ModelFiles(tmp_path, tmp_path))
