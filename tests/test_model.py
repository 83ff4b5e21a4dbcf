"""Model: texts to rows and answers on every backend, against transformers and against the rows of `forward`."""

from __future__ import annotations

import copy
import os
import pickle
import re
import sys
import warnings
from collections.abc import Callable, Iterator
from itertools import zip_longest
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np
import pytest
from artifacts import random_spec, random_tensors
from conftest import BACKENDS, WORDS

import edgebert
from edgebert import cli, runner
from edgebert.artifact import reader
from edgebert.artifact.writer import build_model
from edgebert.batch import PackedBatch
from edgebert.errors import InvalidInputError, ModelFormatError
from edgebert.tasks import TASKS, find_task, text_classification
from edgebert.tokenizer import Row, Tokenizer

TEXTS = [
    "the router restarts .",
    "",
    "water the roses at the root and turn off the modem",
    "slow",
    "not good , very bad !",
]
CLS, SEP = WORDS.index("[CLS]"), WORDS.index("[SEP]")


def cosine(a: np.ndarray, b: np.ndarray) -> float:
    return float((a * b).sum() / np.linalg.norm(a) / np.linalg.norm(b))


@pytest.mark.parametrize("int8", [False, True], ids=["f32", "int8"])
def test_encode_keeps_the_order_of_the_texts(backend: str, make_file: Callable[..., Path], int8: bool) -> None:
    model = edgebert.load(make_file(int8=int8), backend)
    rows = model.encode(TEXTS)
    assert rows.shape == (5, 24)
    assert rows.dtype == np.float32
    batch, _ = model.tokenizer.tokenize(TEXTS)
    expected = model.forward(batch)["sentence_embedding"]
    for row, other in zip(rows, expected, strict=True):
        assert cosine(row, other) >= (0.998 if int8 else 1 - 1e-6)
    if backend != "onnxruntime":
        np.testing.assert_array_equal(rows, expected)
        np.testing.assert_array_equal(rows, [model.encode(text) for text in TEXTS])
        np.testing.assert_array_equal(rows[::-1], model.encode(TEXTS[::-1], batch_tokens=1))
    np.testing.assert_array_equal(model(TEXTS), rows)


def test_encode_shapes(backend: str, make_file: Callable[..., Path]) -> None:
    model = edgebert.load(make_file(dense_size=9), backend)
    assert model.encode("a b").shape == (9,)
    assert model.encode(["a b"]).shape == (1, 9)
    assert model.encode([]).shape == (0, 9)
    assert model.encode([]).dtype == np.float32
    specials = model.forward(PackedBatch.from_lists([[CLS, SEP]]))["sentence_embedding"]
    np.testing.assert_array_equal(model.encode([""]), specials)


def test_truncated_texts_are_counted_once(make_file: Callable[..., Path]) -> None:
    model = edgebert.load(make_file(), "numpy")
    texts = ["a", "a b c d e", "b", "b " * 200]
    with pytest.warns(UserWarning, match="2 of 4 texts were truncated to 5 tokens") as caught:
        rows = model.encode(texts, max_length=5)
    assert len(caught) == 1
    assert caught[0].filename == __file__
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        same, is_truncated = model.encode(texts, max_length=5, return_truncated=True)
        assert model.encode("b " * 200, return_truncated=True)[1]
        assert not model.encode("b", return_truncated=True)[1]
        model.encode(texts[:2])
    assert is_truncated.tolist() == [False, True, False, True]
    assert is_truncated.dtype == np.bool_
    np.testing.assert_array_equal(rows, same)
    np.testing.assert_array_equal(rows[1], model.encode("a b c"))
    with pytest.warns(UserWarning, match="1 of 1 texts were truncated to 80 tokens"):
        model("b " * 200)


def test_the_limit_that_is_told_is_the_tasks_own(
    tmp_path: Path, tokenizer_json: str, capsys: pytest.CaptureFixture[str]
) -> None:
    head = {"pooling": "none", "normalize": False, "token_size": 12, "query_length": 9, "markers": {"query": 4}}
    colbert = write_file(tmp_path / "colbert.onnx", tokenizer_json, **head)
    reader = write_file(tmp_path / "reader.onnx", tokenizer_json, task="question-answering", num_positions=500)
    long = "b " * 600

    def find_warning(file: Path, *arguments: Any, **options: Any) -> str:
        with pytest.warns(UserWarning, match="truncated") as caught:
            edgebert.load(file, "numpy")(*arguments, **options)
        return str(caught[0].message)

    for options, limit in (({}, 80), ({"is_query": True}, 9), ({"is_query": True, "max_length": 6}, 6)):
        told = find_warning(colbert, ["a", long], **options)
        assert told == f"1 of 2 texts were truncated to {limit} tokens: return_truncated=True says which"
    told = find_warning(reader, question="a", context=long, truncation=True)
    assert "truncated to 384 tokens" in told and "stride=N" in told
    assert cli.main(["run", str(colbert), long, "--option", "is_query=true"]) == 0
    assert "1 of 1 texts were truncated to 9 tokens\n" in capsys.readouterr().err
    for length in (0, -1, 81, "9", True, 2.0):
        with pytest.raises(InvalidInputError, match="max_length must be"):
            edgebert.load(colbert, "numpy")(["a"], max_length=length)


@pytest.mark.parametrize("default", [None, "query"])
@pytest.mark.parametrize("num_token_types", [1, 2])
def test_a_text_alone_is_answered_as_among_others(
    backend: str, tmp_path: Path, tokenizer_json: str, default: str | None, num_token_types: int
) -> None:
    changes = {"prompts": {"query": "query : "}, "default_prompt_name": default, "num_token_types": num_token_types}
    model = edgebert.load(write_file(tmp_path / "model.onnx", tokenizer_json, **changes), backend)

    def answer(texts: Any) -> tuple[Any, list[str]]:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            try:
                return model(texts, task="embedding"), [str(warning.message) for warning in caught]
            except InvalidInputError as error:
                return str(error), []

    for text in [*TEXTS, "b " * 200, "b " * 78, "b " * 77, "a\0b", "naïve ナイーブ", "a\ud800", TEXTS[2] + "\0" * 50]:
        for given in (text, [text], (text,)):
            expected = answer(given)
            with warnings.catch_warnings(record=True) as caught:
                warnings.simplefilter("always")
                try:
                    found = model.encode(given), [str(warning.message) for warning in caught]
                except InvalidInputError as error:
                    found = str(error), []
            assert found[1] == expected[1]
            np.testing.assert_array_equal(found[0], expected[0], strict=True)
            if not isinstance(found[0], str):
                assert found[0].flags.writeable
    model.tokenizer.max_length = 4
    with pytest.warns(UserWarning, match="1 of 1 texts were truncated to 4 tokens"):
        np.testing.assert_array_equal(model.encode(TEXTS[2]), model.encode([TEXTS[2]], max_length=4)[0])


@pytest.mark.skipif("native" not in BACKENDS, reason="the short way is the native library's")
def test_a_text_alone_goes_a_short_way(make_file: Callable[..., Path]) -> None:
    model = edgebert.load(make_file(), "native")
    model.encode("a")
    passed = []

    def note(frame: FrameType, event: str, _: object) -> None:
        if event == "call" and "edgebert" in frame.f_globals["__name__"]:
            passed.append(frame.f_code.co_name)

    sys.setprofile(note)
    try:
        model.encode(["the router restarts ."])
    finally:
        sys.setprofile(None)
    assert 0 < len(passed) <= 6, passed


_SHAPE = ("task", "num_labels", "num_token_types", "num_positions", "token_size", "pooling", "normalize")


def write_file(path: Path, tokenizer_json: str, **changes: Any) -> Path:
    """A random embedding file with some fields of the spec changed."""
    spec = random_spec(**{key: changes.pop(key) for key in _SHAPE if key in changes}).replace(**changes)
    path.write_bytes(build_model(spec, random_tensors(spec), {"edgebert.tokenizer": tokenizer_json}))
    return path


def test_prompts(tmp_path: Path, tokenizer_json: str) -> None:
    prompts = {"query": "query : ", "passage": "passage : "}
    path = write_file(tmp_path / "model.onnx", tokenizer_json, prompts=prompts)
    model = edgebert.load(path, "numpy")
    plain = model.encode("a b")
    query = model.encode("query : a b")
    assert not np.array_equal(plain, query)
    np.testing.assert_array_equal(model.encode("a b", prompt_name="query"), query)
    np.testing.assert_array_equal(model.encode(["a b"], prompt="query : ")[0], query)
    np.testing.assert_array_equal(model.encode("a b", prompt="query : ", prompt_name="passage"), query)
    with pytest.raises(InvalidInputError, match="unknown prompt_name 'document': this file has passage, query"):
        model.encode("a", prompt_name="document")
    with pytest.raises(InvalidInputError, match="prompt must be a str"):
        model.encode("a", prompt=3)  # type: ignore[call-overload]

    default = edgebert.load(write_file(path, tokenizer_json, prompts=prompts, default_prompt_name="query"), "numpy")
    np.testing.assert_array_equal(default.encode("a b"), query)
    np.testing.assert_array_equal(default.encode("a b", prompt=""), plain)


@pytest.mark.parametrize("bad", [None, b"bytes", 3, ("a", "b"), ["a"], {"text": "a"}])
def test_encode_refuses_what_is_not_text_by_index(make_file: Callable[..., Path], bad: object) -> None:
    model = edgebert.load(make_file(), "numpy")
    with pytest.raises(InvalidInputError, match="text 1 must be a str"):
        model.encode(["a", bad])  # type: ignore[list-item]
    if not isinstance(bad, (tuple, list)):
        with pytest.raises(InvalidInputError, match="expected a text or a list of texts"):
            model.encode(bad)  # type: ignore[arg-type]


def test_refuses_bad_options(make_file: Callable[..., Path]) -> None:
    model = edgebert.load(make_file(), "numpy")
    with pytest.raises(InvalidInputError, match="text 1 is not valid Unicode"):
        model.encode(["a", "\ud800"])
    with pytest.raises(InvalidInputError, match="batch_tokens"):
        model.encode("a", batch_tokens=0)
    with pytest.raises(InvalidInputError, match="max_length"):
        model.encode("a", max_length=81)
    with pytest.raises(InvalidInputError, match="forward takes a PackedBatch, got list"):
        model.forward([[1, 2]])  # type: ignore[arg-type]


NEW = len(WORDS)
LACKS = (
    rf"the tokenizer gives '<new>' the id {NEW}, and the model has the ids 0 to {NEW - 1} alone: leave that token out"
)


@pytest.mark.parametrize(
    ("task", "call", "where"),
    [
        ("embedding", lambda model: model.encode(["a", "a <new> b"]), "text 1"),
        ("embedding", lambda model: model.encode(["a " * 99, "a", "<new>"], stride=2), "text 2"),
        ("text-classification", lambda model: model({"text": "a", "text_pair": "<new>"}), "text 0"),
        ("text-classification", lambda model: model.rank("a", ["b", "<new>"], label="LABEL_0"), "text 1"),
        ("token-classification", lambda model: model(["a", "b", "b <new>"]), "text 2"),
        ("question-answering", lambda model: model(question="a <new>", context="b"), "text 0"),
        ("fill-mask", lambda model: model(["[MASK]", "<new> [MASK]"]), "text 1"),
        ("fill-mask", lambda model: model("[MASK]", targets=["a", "<new>"]), "target '<new>'"),
        ("fill-mask", lambda model: model.rescore(["a", "<new>"]), "text 1"),
    ],
)
def test_a_token_that_the_model_has_no_row_for_is_named(
    task: str, call: Callable[[Any], Any], where: str, make_file: Callable[..., Path], wider_tokenizer_json: str
) -> None:
    model = edgebert.load(make_file(task=task, vocab_size=NEW, tokenizer_json=wider_tokenizer_json), "numpy")
    with pytest.raises(InvalidInputError, match=f"^{where}: {LACKS}"):
        call(model)
    wider = edgebert.load(make_file(task=task, vocab_size=NEW + 1, tokenizer_json=wider_tokenizer_json), "numpy")
    call(wider)


def test_a_mask_token_that_the_model_has_no_row_for_is_named(
    make_file: Callable[..., Path], tokenizer_json: str
) -> None:
    assert WORDS[-1] == "[MASK]"
    model = edgebert.load(make_file(task="fill-mask", vocab_size=NEW - 1, tokenizer_json=tokenizer_json), "numpy")
    with pytest.raises(InvalidInputError, match=r"^the mask token: the tokenizer gives '\[MASK\]' the id"):
        model.rescore("a")


def test_a_file_without_tokenizer_takes_ids(make_file: Callable[..., Path]) -> None:
    model = edgebert.load(make_file(tokenizer_json=None), "numpy")
    assert model.tokenizer is None
    with pytest.raises(InvalidInputError, match=r"no tokenizer.*forward\(PackedBatch"):
        model.encode("a")
    assert model.forward(PackedBatch.from_lists([[1, 2], [3]]))["sentence_embedding"].shape == (2, 24)


@pytest.mark.parametrize(
    ("arguments", "fitting"),
    [
        ({"task": "question-answering"}, "use model(question=…, context=…) or model(inputs, task='explain') or f"),
        ({"task": "text-classification"}, "use model(texts) or model(query, documents, task='reranking') or m"),
        (
            {"pooling": "none", "normalize": False},
            "outputs last_hidden_state. It answers none: use forward(PackedBatch)",
        ),
    ],
)
def test_encode_says_which_calls_fit(make_file: Callable[..., Path], arguments: dict, fitting: str) -> None:
    model = edgebert.load(make_file(**arguments), "numpy")
    with pytest.raises(InvalidInputError, match=rf"embedding does not fit this file: .*{re.escape(fitting)}"):
        model.encode("a")


def test_answer_each_is_always_a_list(make_file: Callable[..., Path]) -> None:
    pair = {"question": "a", "context": "b c d"}
    for head, inputs, options in (
        ("question-answering", [pair, pair], {"top_k": 2}),
        ("fill-mask", ["[MASK] a", "[MASK] b [MASK]"], {}),
        ("text-classification", ["a", "b"], {}),
        ("token-classification", ["a", "b"], {}),
        ("embedding", ["a", "b"], {}),
    ):
        model = edgebert.load(make_file(task=head), "numpy")
        answers, is_truncated = model.answer_each(inputs, **options)
        assert len(answers) == 2
        assert is_truncated.tolist() == [False, False]
        for item, answer in zip(inputs, answers, strict=True):
            ((alone,), _) = model.answer_each([item], **options)
            np.testing.assert_equal(alone, answer)


CALLERS = {
    "embedding": [(["a b", "the router " * 60], {"stride": 7}), (["slow"], {"prompt": "query : "})],
    "token-classification": [(TEXTS, {}), (TEXTS[::-1], {"aggregation_strategy": "max", "stride": 3})],
    "question-answering": [
        ([{"question": "is it off ?", "context": "the modem is off . " * 40}], {"top_k": 3}),
        ([{"question": "a", "context": "b c d"}], {"handle_impossible_answer": True}),
    ],
    "fill-mask": [(["the [MASK] restarts .", "[MASK] [MASK]"], {}), (["roses " * 99 + "[MASK]"], {"stride": 9})],
    "rescoring": [(["the router is on", ""], {}), (["the router is off", "the router is on"], {})],
    "next-sentence": [([("a", "b")], {}), ([("roses " * 99, "water"), ("a", "c")], {"top_k": None})],
    "explain": [([("a", "b c")], {"span_length": 2}), ([("roses " * 99, "water"), ("a", "c")], {"stride": 5})],
}


@pytest.mark.parametrize("task", CALLERS)
def test_rows_of_several_callers_share_batches(backend: str, make_file: Callable[..., Path], task: str) -> None:
    head = TASKS[task].heads[0]
    model = edgebert.load(make_file(task=head), backend)
    assert model.tokenizer is not None
    module, tokenizer = find_task(task), model.tokenizer
    calls = [(inputs, module.Options(spec=model.spec, **options)) for inputs, options in CALLERS[task]]
    prepared = [module.prepare(inputs, tokenizer, options) for inputs, options in calls]
    rows = [list(each.rows) for each in prepared]
    caller_of = {id(row): caller for caller, made in enumerate(rows) for row in made}
    found: list[list[Any]] = [[] for _ in calls]
    for row, values in runner.run_rows(
        model.backend, [row for made in zip_longest(*rows) for row in made if row], prepared[0].outputs
    ):
        found[caller_of[id(row)]].append((row, values))
    for (inputs, options), outputs, (_, given) in zip(calls, found, CALLERS[task], strict=True):
        together = module.decode(inputs, outputs, tokenizer, options)
        alone, _ = runner.answer(model.backend, tokenizer, task, inputs, **given)
        if backend == "onnxruntime":  # it pads
            assert len(together) == len(alone)
        else:
            np.testing.assert_equal(together, alone)


def test_pipeline_is_a_model_with_its_task(make_file: Callable[..., Path]) -> None:
    path = make_file(task="token-classification")
    tag = edgebert.pipeline("ner", path, backend="numpy", aggregation_strategy="max")
    assert tag("a b") == edgebert.load(path, "numpy")("a b", aggregation_strategy="max")
    assert tag("a b", aggregation_strategy="none") == edgebert.load(path, "numpy")("a b")
    with pytest.raises(InvalidInputError, match="fill-mask does not fit this file"):
        edgebert.pipeline("fill-mask", path)


def test_the_tasks_of_the_page(
    make_file: Callable[..., Path], monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    page = (Path(__file__).parents[1] / "docs" / "tasks.md").read_text(encoding="utf-8")
    blocks = [block.split("```")[0] for block in page.split("```python\n")[1:]]
    heads = ("tagger", "token-classification"), ("reader", "question-answering"), ("masked", "fill-mask")
    for name, head in (*heads, ("pairs", "text-classification"), ("model", "embedding")):
        make_file(f"{name}.onnx", task=head)
    make_file("splade.onnx", pooling="none", normalize=False, sparse_pooling="max")
    make_file("colbert.onnx", pooling="none", normalize=False, token_size=12)
    make_file("bge-m3.onnx", token_size=12, has_token_weights=True)
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {}
    num_lines = []
    for block in blocks:
        exec(compile(block, "tasks.md", "exec"), names)
        num_lines.append(len(capsys.readouterr().out.splitlines()))
    assert (num_lines[0], num_lines[2:]) == (6, [3, 1])
    assert num_lines[1] >= 2  # arrays may take several


def test_forward_gives_the_outputs_asked_for(backend: str, make_file: Callable[..., Path]) -> None:
    model = edgebert.load(make_file(task="question-answering"), backend)
    batch = PackedBatch.from_lists([[1, 2, 3], [4]])
    everything = model.forward(batch)
    assert {name: value.shape for name, value in everything.items()} == {"start_logits": (4,), "end_logits": (4,)}
    only = model.forward(batch, ["end_logits"])
    assert list(only) == ["end_logits"]
    np.testing.assert_array_equal(only["end_logits"], everything["end_logits"])


def test_load_takes_a_folder(make_file: Callable[..., Path]) -> None:
    path = make_file()
    np.testing.assert_array_equal(
        edgebert.load(path.parent, "numpy").encode("a"), edgebert.load(str(path), "numpy").encode("a")
    )


@pytest.mark.parametrize("copy_model", [copy.copy, copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))])
def test_a_copy_is_loaded_again(
    backend: str,
    make_file: Callable[..., Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    copy_model: Callable[[edgebert.Model], edgebert.Model],
) -> None:
    path = make_file()
    monkeypatch.chdir(tmp_path)
    model = edgebert.load(path.name, backend, threads=1)
    monkeypatch.chdir("/")  # a worker's may be another
    again = copy_model(model)
    assert again.backend is not model.backend
    assert again.backend.detail == model.backend.detail
    np.testing.assert_array_equal(again.encode(TEXTS), model.encode(TEXTS))
    path.unlink()
    with pytest.raises(ModelFormatError, match=re.escape(f"{path} does not exist")):
        copy_model(model)


def test_a_load_reads_the_file_once(
    backend: str, make_file: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    parsed = []
    parse = reader._parse
    monkeypatch.setattr(reader, "_parse", lambda *args: parsed.append(args) or parse(*args))
    edgebert.load(make_file(), backend).encode("a")
    assert len(parsed) == 1


def test_load_says_what_it_loaded(make_file: Callable[..., Path], tmp_path: Path) -> None:
    model = edgebert.load(make_file(), threads=1)
    assert model.task == "embedding"
    assert model.backend.detail in repr(model)
    with pytest.raises(ModelFormatError, match="does not exist"):
        edgebert.load(tmp_path / "missing.onnx")


class BytesPath:
    def __fspath__(self) -> bytes:
        return b"model.onnx"


@pytest.mark.parametrize("bad", [None, b"model.onnx", 3, BytesPath()])
def test_load_takes_paths_alone(backend: str, bad: Any) -> None:
    with pytest.raises(InvalidInputError, match="expected the path of a model file"):
        edgebert.load(bad, backend)


def test_load_says_why_there_is_no_model(backend: str, tmp_path: Path) -> None:
    pointer = "version https://git-lfs.github.com/spec/v1\noid sha256:4d7a2146\nsize 12345\n"
    (tmp_path / "empty").mkdir()
    (tmp_path / "cloned").mkdir()
    (tmp_path / "cloned" / "model.onnx").write_text(pointer)
    (tmp_path / "pointer.onnx").write_text(pointer)
    (tmp_path / "nothing.onnx").touch()
    (tmp_path / "text.onnx").write_text("hello")
    os.mkfifo(tmp_path / "pipe.onnx")
    (tmp_path / "loop.onnx").symlink_to("loop.onnx")
    for name, message in (
        ("empty", "empty/model.onnx does not exist"),
        ("cloned", "cloned/model.onnx: a Git LFS pointer.*`git lfs pull`"),
        ("pointer.onnx", "pointer.onnx: a Git LFS pointer.*`git lfs pull`"),
        ("nothing.onnx", "nothing.onnx is empty"),
        ("text.onnx", "not an ONNX file"),
        ("pipe.onnx", "pipe.onnx is not a regular file"),
        ("loop.onnx", "loop.onnx' cannot be read"),
        ("x" * 5000, "cannot be read .*File name too long"),
        ("\0", "cannot be read"),
    ):
        with pytest.raises(ModelFormatError, match=message):
            edgebert.load(tmp_path / name, backend)


def test_load_says_that_a_file_may_not_be_read(backend: str, make_file: Callable[..., Path]) -> None:
    path = make_file()
    edgebert.load(path, backend)
    user = os.geteuid()
    for what in (path, path.parent):  # of what is in a closed folder one cannot even tell whether it is there
        what.chmod(0)
        try:
            if user == 0:  # who may read everything
                os.seteuid(65534)
            with pytest.raises(ModelFormatError, match="Permission denied"):
                edgebert.load(path, backend)
        finally:
            os.seteuid(user)
            what.chmod(0o700)


def test_refuses_options_of_other_types(make_file: Callable[..., Path]) -> None:
    model = edgebert.load(make_file())
    batch = PackedBatch.from_lists([[1, 2]])
    for task in (3, ["embedding"]):
        with pytest.raises(InvalidInputError, match="unknown task"):
            model("a", task=task)  # type: ignore[arg-type]
    with pytest.raises(InvalidInputError, match="unknown prompt_name"):
        model.encode("a", prompt_name=["query"])
    for outputs in (3, "sentence_embedding"):
        with pytest.raises(InvalidInputError, match="outputs must be a list of names"):
            model.forward(batch, outputs)  # type: ignore[arg-type]
    with pytest.raises(InvalidInputError, match="unknown output 3"):
        model.forward(batch, [3])  # type: ignore[list-item]


def test_options_of_other_libraries_are_answered_with_ours(make_file: Callable[..., Path]) -> None:
    embedder = edgebert.load(make_file(), "numpy")
    for option, answer in (("batch_size", "batch_tokens=…"), ("normalize", "normalize_embeddings=True")):
        with pytest.raises(InvalidInputError, match=f"for {option}: .*{answer}.*; it takes texts"):
            embedder.encode("a", **{option: 8})
    with pytest.raises(InvalidInputError, match="unexpected keyword argument 'bogus'; it takes"):
        embedder.encode("a", bogus=1)
    classifier = edgebert.load(make_file("classes.onnx", task="text-classification"), "numpy")
    with pytest.raises(InvalidInputError, match="return_all_scores: top_k=None"):
        classifier("a", return_all_scores=True)


def test_top_k_may_be_none(make_file: Callable[..., Path]) -> None:
    reader = edgebert.load(make_file(task="question-answering"), "numpy")
    question = {"question": "the router", "context": "turn off the modem and water the roses"}
    assert reader(question, top_k=None) == reader(question)
    filler = edgebert.load(make_file("masks.onnx", task="fill-mask"), "numpy")
    assert filler("the [MASK] restarted", top_k=None) == filler("the [MASK] restarted")
    from edgebert.commands.arguments import read_option

    assert read_option("top_k=None") == ("top_k", None) and read_option("x=none") == ("x", "none")


def test_other_names_of_tasks(make_file: Callable[..., Path]) -> None:
    tagger = edgebert.load(make_file(task="token-classification"), "numpy")
    assert tagger.choose_task("ner") == "token-classification"
    assert tagger("the router", task="ner") == tagger("the router")


def test_threads_may_share_a_model(backend: str, make_file: Callable[..., Path]) -> None:
    from concurrent.futures import ThreadPoolExecutor

    model = edgebert.load(make_file(int8=True), backend)
    expected = [model.encode(text) for text in TEXTS]
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(model.encode, TEXTS * 8))
    for i, row in enumerate(found):
        np.testing.assert_array_equal(row, expected[i % len(TEXTS)])


PROBLEM_TYPES = ["single_label_classification", "multi_label_classification", "regression"]
INPUTS: list[Any] = [
    "the router is slow",
    {"text": "a b", "text_pair": "very bad"},
    ["a", "the roses restarted .", ""],
    [{"text": "a"}, {"text": "the modem", "text_pair": "is off"}],
]


@pytest.fixture(scope="module", params=[(3, kind) for kind in PROBLEM_TYPES] + [(1, None)])
def classifier(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, tokenizer_json: str
) -> Iterator[tuple[Any, Path]]:
    """transformers' pipeline of a tiny random checkpoint, and its model file."""
    pipelines = pytest.importorskip("pipelines")
    num_labels, problem_type = request.param
    model, tokenizer, path = pipelines.make_pipeline_parts(
        tmp_path_factory.mktemp("classifier"),
        tokenizer_json,
        "text-classification",
        num_labels=num_labels,
        problem_type=problem_type,
    )
    yield pipelines.transformers.pipeline("text-classification", model=model, tokenizer=tokenizer, device="cpu"), path


@pytest.mark.parametrize("inputs", INPUTS)
def test_classifies_as_the_pipeline(backend: str, classifier: tuple[Any, Path], inputs: Any) -> None:
    from pipelines import assert_same_answers

    pipeline, path = classifier
    model = edgebert.load(path, backend)
    assert_same_answers(model(inputs), pipeline(inputs))
    for options in ({"top_k": 1}, {"top_k": None}, {"top_k": 2}, {"function_to_apply": "none", "top_k": 2}):
        assert_same_answers(model(inputs, **options), pipeline(inputs, **options))
    for function in ("sigmoid", "softmax", "none"):
        assert_same_answers(model(inputs, function_to_apply=function), pipeline(inputs, function_to_apply=function))


def test_classify_pairs_and_options(make_file: Callable[..., Path]) -> None:
    model = edgebert.load(make_file(task="text-classification"), "numpy")
    as_dicts = model([{"text": "a", "text_pair": "b c"}, "d"])
    assert model([("a", "b c"), "d"]) == model([["a", "b c"], {"text": "d"}]) == as_dicts
    assert model([]) == []
    answers, is_truncated = model(["a", ("b " * 9, "c")], max_length=6, return_truncated=True)
    assert len(answers) == 2
    assert is_truncated.tolist() == [False, True]


@pytest.mark.parametrize(
    ("inputs", "options", "message"),
    [
        ([None], {}, "text 0 must be a str or a pair"),
        (["a", ("a", "b", "c")], {}, "text 1 must be a str or a pair"),
        ([{"text": "a", "pair": "b"}], {}, "text 0: expected a dict with text and text_pair"),
        ({"text_pair": "b"}, {}, "text 0: expected a dict with text and text_pair"),
        ({"text": None}, {}, "text 0 must be a str or a pair"),
        (b"a", {}, "expected a text, a dict or a list"),
        (None, {}, "expected a text, a dict or a list"),
        ("a", {"top_k": 0}, "top_k must be a positive integer or None"),
        ("a", {"top_k": "all"}, "top_k must be a positive integer or None"),
        ("a", {"function_to_apply": "relu"}, "function_to_apply must be one of softmax, sigmoid, none"),
    ],
)
def test_classify_refuses(make_file: Callable[..., Path], inputs: Any, options: dict, message: str) -> None:
    model = edgebert.load(make_file(task="text-classification"), "numpy")
    with pytest.raises(InvalidInputError, match=message):
        model(inputs, **options)


def test_scores_of_extreme_logits_are_finite(tokenizer_json: str) -> None:
    spec = random_spec(task="text-classification", num_labels=2)
    logits = np.float32([-1000, 1000])
    tokenizer = Tokenizer.for_spec(tokenizer_json, spec)
    row = Row(0, 0, np.int32([1]), np.int32([0]))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for function in ("softmax", "sigmoid"):
            options = text_classification.Options(spec=spec, function_to_apply=function, top_k=None)
            [scores] = text_classification.decode(["a"], [(row, {"logits": logits})], tokenizer, options)
            assert [entry["score"] for entry in scores] == [1.0, 0.0]
