"""Token classification against transformers' pipeline, and its offsets in awkward text."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import edgebert
from edgebert.errors import InvalidInputError

pipelines = pytest.importorskip("pipelines")

STRATEGIES = ["none", "simple", "first", "average", "max"]
LABELS = ["O", "B-LOC", "I-LOC", "B-PER", "I-PER", "MISC"]
TEXTS = [
    "the router restarted .",
    "  U\u0308ber straße,\tthe zebra 中文\n😀 is b\u0301ad !",
    "",
    "unknownword",
    "ab " * 5 + "restarting turned, the roses? off and on",
]
LONG = [" ".join(TEXTS) + " roses turning at the root, restarts " * n for n in (0, 1, 3)]


@pytest.fixture(scope="module")
def tagger(tmp_path_factory: pytest.TempPathFactory, tokenizer_json: str) -> tuple[Any, Path]:
    """transformers' pipeline of a tiny random tagger, and its model file."""
    model, tokenizer, path = pipelines.make_pipeline_parts(
        tmp_path_factory.mktemp("tagger"), tokenizer_json, "token-classification", id2label=dict(enumerate(LABELS))
    )
    return pipelines.transformers.pipeline("ner", model=model, tokenizer=tokenizer, device="cpu"), path


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_tags_as_the_pipeline(backend: str, tagger: tuple[Any, Path], strategy: str) -> None:
    pipeline, path = tagger
    model = edgebert.load(path, backend)
    for inputs in (TEXTS, TEXTS[1], TEXTS[:1]):
        for ignored in (["O"], [], ["LOC", "B-LOC", "MISC"]):
            options = {"aggregation_strategy": strategy, "ignore_labels": ignored}
            pipelines.assert_same_answers(model(inputs, **options), pipeline(inputs, **options))


@pytest.mark.parametrize("strategy", STRATEGIES[1:])
@pytest.mark.parametrize("stride", [0, 1, 11, 29])
def test_long_texts_in_windows_as_the_pipeline(tagger: tuple[Any, Path], strategy: str, stride: int) -> None:
    pipeline, path = tagger
    options = {"aggregation_strategy": strategy, "stride": stride, "ignore_labels": []}
    found, is_truncated = edgebert.load(path, "numpy")(LONG, return_truncated=True, **options)
    pipelines.assert_same_answers(found, pipeline(LONG, **options))
    assert not is_truncated.any()


def test_truncation_is_said(tagger: tuple[Any, Path]) -> None:
    pipeline, path = tagger
    model = edgebert.load(path, "numpy")
    with pytest.warns(UserWarning, match="2 of 3 texts were truncated to 32 tokens") as caught:
        found = model(["a", *LONG[1:]])
    assert caught[0].filename == __file__
    pipelines.assert_same_answers(found, pipeline(["a", *LONG[1:]]))
    assert model(["a", LONG[1]], return_truncated=True)[1].tolist() == [False, True]


def test_offsets_are_the_callers(make_file: Callable[..., Path]) -> None:
    model = edgebert.load(make_file(task="token-classification"), "numpy")
    text = "U\u0308ber  die Straße😀bad 中文."
    covered = [text[token["start"] : token["end"]] for token in model(text)]
    assert covered == ["U\u0308ber", "die", "Straße😀bad", "中", "文", "."]


@pytest.mark.parametrize(
    ("inputs", "options", "message"),
    [
        (["a", None], {}, "text 1 must be a str, got NoneType"),
        ({"text": "a"}, {}, "expected a text or a list of texts, got dict"),
        ("a", {"aggregation_strategy": "sum"}, "aggregation_strategy must be one of none, simple, first, average, max"),
        ("a", {"stride": 4}, "stride needs an aggregation_strategy that joins"),
        ("a", {"stride": -1, "aggregation_strategy": "max"}, "stride must be an integer of at least 0"),
        (
            "a " * 90,
            {"stride": 78, "aggregation_strategy": "max"},
            "leaves 78 tokens to a window, .*: raise",
        ),
        ("a", {"ignore_labels": "O"}, "ignore_labels must be a list of labels, got 'O'"),
        ("a", {"ignore_labels": [[]]}, r"ignore_labels has \[\], which is no label of this file"),
        (
            "a",
            {"ignore_labels": ["O", "LOC"]},
            "'LOC', which is no label of this file: it has LABEL_0",
        ),
        ("a", {"top_k": 3}, "unexpected keyword argument 'top_k'; it takes texts, aggregation_strategy, ignore_labels"),
    ],
)
def test_refuses(make_file: Callable[..., Path], inputs: Any, options: dict, message: str) -> None:
    model = edgebert.load(make_file(task="token-classification"), "numpy")
    with pytest.raises(InvalidInputError, match=message):
        model(inputs, **options)
