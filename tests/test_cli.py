"""The command line: what it prints, and that errors are one line and an exit status."""

from __future__ import annotations

import io
import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

import edgebert
from edgebert import cli, doctor
from edgebert.printing import print_report


def run(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, str, str]:
    status = cli.main([str(argument) for argument in arguments])
    captured = capsys.readouterr()
    return status, captured.out, captured.err


def feed(monkeypatch: pytest.MonkeyPatch, data: bytes) -> None:
    monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=io.BytesIO(data)))


def test_run_embeds(make_file: Callable[..., Path], capsys: pytest.CaptureFixture[str], backend: str) -> None:
    path = make_file()
    status, out, err = run(capsys, "run", path, "a b", "über", "--backend", backend, "--threads", 1, "--verbose")
    assert status == 0
    model = edgebert.load(path, backend, threads=1)
    assert model.tokenizer
    assert err == f"backend: {model.backend.detail}\ntokenizer: {model.tokenizer.detail}\n"
    lines = [json.loads(line) for line in out.splitlines()]
    assert [line["text"] for line in lines] == ["a b", "über"]
    rows = edgebert.load(path, backend).encode(["a b", "über"])
    np.testing.assert_array_equal(np.float32([line["embedding"] for line in lines]), rows)


@pytest.mark.parametrize("arguments", [[], ["-"]])
def test_run_reads_lines(
    make_file: Callable[..., Path],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    arguments: list[str],
) -> None:
    path = make_file(task="text-classification")
    feed(monkeypatch, "a b\r\n\nüber".encode())
    status, out, _ = run(capsys, "run", path, *arguments, "--backend", "numpy")
    assert status == 0
    texts = ["a b", "", "über"]
    answers = edgebert.load(path, "numpy")(texts)
    assert [json.loads(line) for line in out.splitlines()] == [
        {"text": text, **answer} for text, answer in zip(texts, answers, strict=True)
    ]


def test_run_of_nothing_prints_nothing(
    make_file: Callable[..., Path], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    feed(monkeypatch, b"")
    assert run(capsys, "run", make_file()) == (0, "", "")


def test_run_json_lines_with_a_mark_and_blank_lines(
    make_file: Callable[..., Path], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    feed(monkeypatch, '\ufeff"a b"\r\n\r\n"c"\n\n'.encode())
    status, out, err = run(capsys, "run", make_file(), "--json", "--backend", "numpy")
    assert (status, err) == (0, "")
    assert [json.loads(line)["text"] for line in out.splitlines()] == ["a b", "c"]


def test_run_pairs_and_columns(make_file: Callable[..., Path], capsys: pytest.CaptureFixture[str]) -> None:
    path = make_file(task="text-classification")
    status, out, _ = run(capsys, "run", path, "a\tb c", "--pairs", "--format", "text", "--backend", "numpy")
    (answer,) = edgebert.load(path, "numpy")([("a", "b c")])
    assert status == 0
    assert out == f"{answer['label']}\t{answer['score']:.6g}\ta\tb c\n"


def test_run_n_best_lists_as_columns(make_file: Callable[..., Path], capsys: pytest.CaptureFixture[str]) -> None:
    path = make_file(task="fill-mask")
    item = {"id": 3, "hypotheses": [{"text": "a b", "score": -9.0}, {"text": "a c", "score": -1.0}]}
    arguments = [json.dumps(item), "--json", "--task", "rescoring", "--format", "text"]
    status, out, _ = run(capsys, "run", path, *arguments, "--backend", "numpy")
    ranked = edgebert.load(path, "numpy").rescore(item)["hypotheses"]
    assert status == 0
    assert [line.split("\t")[0] for line in out.splitlines()] == [hypothesis["text"] for hypothesis in ranked]
    assert all(line.endswith("\t3") and line.count("\t") == 5 for line in out.splitlines())


@pytest.mark.parametrize("head", ["question-answering", "next-sentence"])
def test_run_of_one_text_where_two_are_needed(
    make_file: Callable[..., Path], capsys: pytest.CaptureFixture[str], head: str
) -> None:
    status, out, err = run(capsys, "run", make_file(task=head), "a b")
    assert (status, out) == (1, "")
    assert f"text 0 is one text, {head} takes two: use --pairs" in err


def test_run_warns_about_truncation(make_file: Callable[..., Path], capsys: pytest.CaptureFixture[str]) -> None:
    status, _, err = run(capsys, "run", make_file(), "a b c d", "--max-length", 4)
    assert status == 0
    assert err.startswith("edgebert: warning: 1 of 1 texts were truncated to 4 tokens")
    assert err.count("\n") == 1


TASK_RUNS: list[tuple[str, list[str], list[str]]] = [  # head, arguments, keys of each line
    ("token-classification", ["a b", "über"], ["text", "answers"]),
    (
        "token-classification",
        ["a b " * 60, "--option", "aggregation_strategy=max", "--stride", "9"],
        ["text", "answers"],
    ),
    (
        "question-answering",
        ["is it ?\tthe router is", "--pairs"],
        ["question", "context", "score", "start", "end", "answer"],
    ),
    ("question-answering", ["a\tb c", "--pairs", "--option", "top_k=2"], ["question", "context", "answers"]),
    ("fill-mask", ["the [MASK]", "a [MASK] [MASK]", "--option", "top_k=2"], ["text", "answers"]),
    ("fill-mask", ["a b", "c", "--task", "rescoring"], ["text", "score", "num_tokens"]),
    (
        "pretraining",
        ['{"id": 3, "hypotheses": [{"text": "a b", "score": -1}]}', "--json", "--task", "rescoring"],
        ["id", "hypotheses"],
    ),
    ("next-sentence", ["a\tb", "c d\t", "--pairs"], ["text", "label", "score"]),
    ("text-classification", ['{"text": "a", "text_pair": "b"}', "--json"], ["text", "text_pair", "label", "score"]),
    ("text-classification", ["a", "--option", "top_k=2"], ["text", "answers"]),
    (
        "text-classification",
        ["a", "b", "--task", "reranking", "--option", "query=c d", "--option", "label=LABEL_1"],
        ["text", "corpus_id", "score"],
    ),
    ("embedding", ["a", "--option", "truncate_dim=3"], ["text", "embedding"]),
]


@pytest.mark.parametrize(("head", "arguments", "keys"), TASK_RUNS)
@pytest.mark.parametrize("form", ["json", "text"])
def test_run_answers_every_task(
    make_file: Callable[..., Path],
    capsys: pytest.CaptureFixture[str],
    head: str,
    arguments: list[str],
    keys: list[str],
    form: str,
) -> None:
    path = make_file(task=head)
    status, out, err = run(capsys, "run", path, *arguments, "--backend", "numpy", "--format", form)
    assert (status, err) == (0, "")
    if form == "json":
        for line in out.splitlines():
            assert list(json.loads(line)) == keys
    elif "--task" not in arguments:
        assert all(line.count("\t") for line in out.splitlines())


def test_run_answers_as_the_model(make_file: Callable[..., Path], capsys: pytest.CaptureFixture[str]) -> None:
    path = make_file(task="question-answering")
    question, context = "is it off ?", "the router is off . " * 20
    arguments = (f"{question}\t{context}", "a\tb c d", "--pairs", "--backend", "numpy")
    _, out, err = run(capsys, "run", path, *arguments, "--option", "top_k=2", "--option", "truncation=true")
    assert "1 of 2 texts were truncated to 80 tokens" in err
    lines = [json.loads(line) for line in out.splitlines()]
    inputs = [{"question": question, "context": context}, {"question": "a", "context": "b c d"}]
    answers, _ = edgebert.load(path, "numpy")(inputs, top_k=2, truncation=True, return_truncated=True)
    assert [line["answers"] for line in lines] == answers
    assert [line.get("truncated", False) for line in lines] == [True, False]
    _, out, err = run(capsys, "run", path, *arguments)
    assert err == ""
    assert all("truncated" not in json.loads(line) for line in out.splitlines())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["FILE", "a", "--task", "fill-mask"], ". It answers embedding, explain: use model(texts) or"),
        (
            ["FILE", "a", "--task", "classify"],
            "next-sentence, explain, of which this file answers embedding, explain\n",
        ),
        (["FILE", "a", "--task", ""], "unknown task ''"),
        (["FILE", "a", "--task", "reranking"], "use model(texts) or model(inputs, task='explain') or f"),
        (["FILE", "a", "--option", "top_k=3"], "unexpected keyword argument 'top_k'; it takes texts, prompt_name"),
        (["FILE", "a", "--option", "span_length=2"], "for span_length: it is of task='explain'; it takes texts, "),
        (["FILE", "a", "--task", "explain", "--html", "none/why.html"], "/none does not exist: create it first\n"),
        (["FILE", "a", "--task", "explain", "--html", "."], " is a folder, where a file is to be written: choose "),
        (["FILE", "a", "--option", "top_k"], "--option takes NAME=VALUE, got 'top_k'"),
        (["FILE", "a", "--json"], "text 0 is not JSON"),
        (["FILE", "[" * 100_000, "--json"], "text 0 is not JSON"),
        (["missing.onnx", "a"], "does not exist"),
        (["FILE", "a", "--backend", "tpu"], "unknown backend 'tpu'"),
        (["FILE", "a", "--device", "cuda", "--backend", "numpy"], "not on 'cuda:0'"),
        (["FILE", "a", "--threads", "0"], "threads must be an integer from 1 to 1024"),
        (["FILE", "a", "--max-length", "0"], "max_length must be an integer"),
        (["FILE", "a", "--prompt-name", "query"], "unknown prompt_name 'query': this file has none"),
        (["FILE", "a", "--pairs"], "text 0 has no tab"),
        (["FILE", "x\udcff"], "text 0 is not valid Unicode"),
        (["BARE", "a"], "bare.onnx has no tokenizer, and texts need one: export it from a folder that has one\n"),
    ],
)
def test_errors_are_one_line(
    make_file: Callable[..., Path], capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    files = {"FILE": make_file(), "BARE": make_file("bare.onnx", tokenizer_json=None)}
    status, out, err = run(capsys, "run", *(files.get(word, word) for word in arguments))
    assert (status, out) == (1, "")
    assert err.startswith("edgebert: ")
    assert message in err
    assert err.count("\n") == 1


def test_input_that_is_not_utf8(
    make_file: Callable[..., Path], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    feed(monkeypatch, b"a\n\xff\n")
    status, _, err = run(capsys, "run", make_file())
    assert status == 1
    assert "line 2 of standard input is not UTF-8" in err


def test_interrupt(make_file: Callable[..., Path], monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("edgebert.load", interrupt)
    assert cli.main(["run", str(make_file()), "a"]) == 130


def test_texts_before_and_after_options(make_file: Callable[..., Path], capsys: pytest.CaptureFixture[str]) -> None:
    _, out, _ = run(capsys, "run", make_file(), "a", "--backend", "numpy", "b", "--threads", 1, "c")
    assert [json.loads(line)["text"] for line in out.splitlines()] == ["a", "b", "c"]


def test_wrong_usage_is_status_2(capsys: pytest.CaptureFixture[str]) -> None:
    for arguments in ([], ["nonsense"], ["export", "somewhere"], ["info", "a", "--x"], ["run", "a", "b", "--x", "c"]):
        with pytest.raises(SystemExit) as end:
            cli.main(arguments)
        assert end.value.code == 2


def test_info(make_file: Callable[..., Path], capsys: pytest.CaptureFixture[str]) -> None:
    status, out, _ = run(capsys, "info", make_file(int8=True, layers=((2, 8, 40), (0, 8, 7))))
    assert status == 0
    for expected in ("task: embedding", "weights: int8", "2 layers", "num_heads 0 to 2", "intermediate_size 7 to 40"):
        assert expected in out
    assert "tokenizer: in the file" in out
    assert "pooling: mean, normalized" in out
    _, out, _ = run(capsys, "info", make_file(task="text-classification", num_labels=12, tokenizer_json=None))
    assert "weights: fp32" in out
    assert "LABEL_9, … (12)" in out
    assert "tokenizer: none" in out


def test_info_refuses_a_changed_file(make_file: Callable[..., Path], capsys: pytest.CaptureFixture[str]) -> None:
    path = make_file()
    path.write_bytes(path.read_bytes().replace(b"Softmax", b"Sigmoid", 1))
    status, _, err = run(capsys, "info", path)
    assert status == 1
    assert "changed since export" in err


def test_doctor(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    status, out, _ = run(capsys, "doctor")
    assert status == 0
    for expected in ("CPU", "ISA", "affinity mask", "numpy: available", f"numpy {np.__version__}", "edgebert "):
        assert expected in out
    for name, reason in edgebert.available_backends().items():
        assert f"{name}: {'available' if reason is None else 'not available'}" in out
    monkeypatch.setattr(doctor, "_version", lambda name: "1.0")
    assert "warning: onnxruntime and onnxruntime-gpu are both installed" in doctor.describe_machine()


def test_export_passes_its_options(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []
    monkeypatch.setattr(edgebert, "export", lambda *args, **options: calls.append((args, options)) or {"agreed": True})
    status, out, err = run(capsys, "export", "folder", "-o", "out.onnx", "--int8", "--calibrate", "texts.txt")
    assert status == 0
    assert "folder is quantized" in err and err.count("\n") == 1  # told before the half minute that it takes
    options = {"int8": True, "portable": False, "int8_attention": False, "calibrate": "texts.txt"}
    options |= {"int8_weights": False, "single_text": False}
    options |= {"task": None, "family": None, "tokenizer": None}
    assert calls == [(("folder", "out.onnx"), options)]
    assert out == "agreed: True\nwrote out.onnx\n"


def test_as_a_module_and_into_a_closed_pipe(make_file: Callable[..., Path]) -> None:
    command = [sys.executable, "-m", "edgebert", "run", str(make_file()), "--backend", "numpy"]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(Path(edgebert.__file__).parents[1])])}
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment
    ) as process:
        assert process.stdin and process.stdout and process.stderr
        process.stdin.write(b"a\n" * 2000)
        process.stdin.close()
        process.stdout.readline()
        process.stdout.close()
        assert process.wait(60) == 1
        assert process.stderr.read() == b""
    with open("/dev/full", "wb") as full:
        done = subprocess.run([*command, "a"], stdout=full, stderr=subprocess.PIPE, env=environment, check=False)
    assert done.returncode == 1
    assert done.stderr.startswith(b"edgebert: ") and done.stderr.endswith(b"No space left on device\n")
    assert done.stderr.count(b"\n") == 1


def test_a_report_shows_like_dicts_as_a_table(capsys: pytest.CaptureFixture[str]) -> None:
    print_report(
        {"linears": {"up": {"rounding": "gptq", "error": 0.25}, "attention": {"rounding": "nearest", "error": 2}}}
    )
    print_report({"runtimes": {"native": "two threads"}, "cosine": {"pooled": {"mean": 1.0}, "rows": {"min": 0.5}}})
    assert capsys.readouterr().out.splitlines() == [
        "linears:",
        "             rounding  error",
        "  up             gptq   0.25",
        "  attention   nearest      2",
        "runtimes:",
        "  native: two threads",
        "cosine:",
        "  pooled:",
        "    mean: 1",
        "  rows:",
        "    min: 0.5",
    ]


def test_help_lists_commands_as_they_are_typed(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        cli.main(["--help"])
    listed = re.findall(r"^    ([a-z][a-z -]*?)(?:  |$)", capsys.readouterr().out, re.MULTILINE)
    assert {"bench", "bench compare"} < set(listed)
    for command in listed:
        with pytest.raises(SystemExit) as end:
            cli.main([*command.split(), "--help"])
        assert end.value.code == 0
        assert capsys.readouterr().out.startswith(f"usage: edgebert {command} ")
