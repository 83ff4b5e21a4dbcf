"""Fill-mask, rescoring and next sentence: against transformers' pipeline, and its model classes where it has none."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import edgebert
from edgebert import runner
from edgebert.errors import InvalidInputError
from edgebert.tasks import rescoring

pipelines = pytest.importorskip("pipelines")

ONE_MASK = ["the [MASK] restarts .", "[MASK]", "中文 [MASK] straße😀 unknownword [PAD] a"]
SENTENCES = ["the router restarts .", "a", "", "中文 is [MASK] bad 😀 !", "the router restarted .", "roses " * 20]


@pytest.fixture(scope="module", params=["fill-mask", "pretraining"])
def masked(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, tokenizer_json: str
) -> tuple[Any, Any, Path]:
    """A tiny random model, its tokenizer and its model file."""
    return pipelines.make_pipeline_parts(tmp_path_factory.mktemp("masked"), tokenizer_json, request.param)


@pytest.fixture(scope="module")
def filler(tmp_path_factory: pytest.TempPathFactory, tokenizer_json: str) -> tuple[Any, Path]:
    """transformers' fill-mask pipeline of a tiny random model, and its model file."""
    model, tokenizer, path = pipelines.make_pipeline_parts(
        tmp_path_factory.mktemp("filler"), tokenizer_json, "fill-mask"
    )
    return pipelines.transformers.pipeline("fill-mask", model=model, tokenizer=tokenizer, device="cpu"), path


@pytest.mark.parametrize(
    "inputs", [ONE_MASK, ONE_MASK[0], ONE_MASK[:1], "[MASK] the [MASK]", ["a [MASK] [MASK] .", "very [MASK]"]]
)
def test_fills_as_the_pipeline(backend: str, filler: tuple[Any, Path], inputs: Any) -> None:
    pipeline, path = filler
    model = edgebert.load(path, backend)
    for options in ({}, {"top_k": 1}, {"top_k": 40}, {"targets": ["slow", "fast", "slow"]}, {"targets": "off"}):
        pipelines.assert_same_answers(model(inputs, **options), pipeline(inputs, **options))


def test_a_target_of_several_tokens(filler: tuple[Any, Path]) -> None:
    pipeline, path = filler
    with pytest.warns(UserWarning, match="target 'turned' is not in the vocabulary: 'turn' stands for it") as caught:
        found = edgebert.load(path, "numpy")(ONE_MASK[0], targets=["turned", "slow"])
    assert caught[0].filename == __file__
    pipelines.assert_same_answers(found, pipeline(ONE_MASK[0], targets=["turned", "slow"]))


def test_masks_of_a_long_text(filler: tuple[Any, Path]) -> None:
    model = edgebert.load(filler[1], "numpy")
    words = ("a [MASK] c d e " * 20).split()
    found = model(" ".join(words), stride=10)
    windows = [range(begin, begin + 30) for begin in (0, 20, 40, 60)] + [range(80, 100)]

    def room(window: range, place: int) -> int:  # to the nearest edge at which text was cut off
        return min(
            [place - window.start if window.start else 100, window.stop - 1 - place if window.stop < 100 else 100]
        )

    for i, predictions in enumerate(found):
        place = 5 * i + 1
        window = max((w for w in windows if place in w), key=lambda w: room(w, place))
        assert room(window, place) >= 5
        alone = model(" ".join(words[window.start : window.stop]))
        pipelines.assert_same_answers(predictions, alone[[p for p in window if p % 5 == 1].index(place)])
    with pytest.raises(InvalidInputError, match=r"text 1 has no \[MASK\], it is in what was cut off: use stride"):
        model(["[MASK]", "a " * 40 + "[MASK]"])


def expected_pll(masked: tuple[Any, Any, Path], text: str, num_tokens: int = 30) -> tuple[float, int]:
    """One masked copy at a time."""
    import torch

    model, tokenizer, _ = masked
    ids = tokenizer(text, truncation=True, max_length=num_tokens + 2, return_tensors="pt").input_ids
    total = 0.0
    for place in range(1, ids.shape[1] - 1):
        copy = ids.clone()
        copy[0, place] = tokenizer.mask_token_id
        with torch.no_grad():
            total += float(model(copy)[0][0, place].log_softmax(-1)[ids[0, place]])
    return total, ids.shape[1] - 2


@pytest.mark.parametrize("batch_tokens", [1, 50, 4096])
def test_scores_as_one_masked_copy_at_a_time(
    backend: str, masked: tuple[Any, Any, Path], batch_tokens: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = edgebert.load(masked[2], backend)
    found = model.rescore(SENTENCES, batch_tokens=batch_tokens)
    for text, answer in zip(SENTENCES, found, strict=True):
        pll, num_tokens = expected_pll(masked, text)
        assert answer == {"score": pytest.approx(pll, rel=1e-5, abs=1e-5), "num_tokens": num_tokens}
    monkeypatch.setattr(rescoring, "CHUNK_COPIES", 7)
    monkeypatch.setattr(runner, "MAX_LOGITS", 1000)
    again = model.rescore(SENTENCES)
    assert [answer["num_tokens"] for answer in again] == [answer["num_tokens"] for answer in found]
    if backend != "onnxruntime":
        assert again == found
        assert [model.rescore(text) for text in SENTENCES] == found


def test_every_token_of_a_long_sentence_is_scored_once(masked: tuple[Any, Any, Path]) -> None:
    model = edgebert.load(masked[2], "numpy")
    text = "the router is off and the modem is on . " * 9
    for stride in (0, 7, 20):
        assert model.rescore(text, stride=stride)["num_tokens"] == 90
    assert model.rescore([text], return_truncated=True)[1].tolist() == [True]
    assert model.rescore(text, return_truncated=True)[0]["num_tokens"] == 30


def test_equal_copies_run_once(masked: tuple[Any, Any, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    model = edgebert.load(masked[2], "numpy")
    ran = []
    run = type(model.backend)._run
    monkeypatch.setattr(type(model.backend), "_run", lambda *args: ran.append(args[1].num_sequences) or run(*args))
    texts = ["the router is off", "the modem is off", "the router is on"]
    found = model.rescore(texts)
    assert sum(ran) == 3 * 4 - 2
    assert found == [model.rescore(text) for text in texts]


def test_n_best_lists(masked: tuple[Any, Any, Path]) -> None:
    model = edgebert.load(masked[2], "numpy")
    hypotheses = [{"text": text, "score": -2.0 * i, "tag": i} for i, text in enumerate(SENTENCES)]
    n_best = {"id": "x", "hypotheses": hypotheses}
    plls = [answer["score"] for answer in model.rescore(SENTENCES)]
    for weight in (0, 0.3, 50):
        found = model.rescore(n_best, weight=weight)
        totals = [-2.0 * i + weight * pll for i, pll in enumerate(plls)]
        assert found["id"] == "x"
        assert [entry["tag"] for entry in found["hypotheses"]] == np.argsort(-np.array(totals), kind="stable").tolist()
        for entry in found["hypotheses"]:
            assert entry["total_score"] == pytest.approx(totals[entry["tag"]])
            assert entry["pll"] == plls[entry["tag"]]
    assert model.rescore([n_best, "a"], weight=0.3) == [model.rescore(n_best, weight=0.3), model.rescore("a")]
    assert model.rescore({"hypotheses": []}) == {"hypotheses": []}
    json.dumps(found)


@pytest.mark.parametrize(
    ("call", "inputs", "options", "message"),
    [
        ("fill-mask", "a", {}, r"text 0 has no \[MASK\]$"),
        ("fill-mask", "[MASK]", {"top_k": 0}, "top_k must be a positive integer"),
        ("fill-mask", "[MASK]", {"targets": []}, "expected a target at least"),
        ("fill-mask", "[MASK]", {"targets": [" "]}, "target ' ' gives no token"),
        ("fill-mask", None, {}, "expected a text or a list"),
        ("rescoring", 3, {}, "expected sentences or n-best lists, got int"),
        ("rescoring", [["a"]], {}, 'input 0: expected a sentence or {"hypotheses".*got list'),
        ("rescoring", {"nbest": []}, {}, 'input 0: expected a sentence or {"hypotheses".*got nbest'),
        ("rescoring", {"hypotheses": [{"text": "a"}]}, {}, "input 0, hypothesis 0: its first-pass score must be"),
        ("rescoring", {"hypotheses": [{"text": "a", "score": "1"}]}, {}, "score must be a number, got '1'"),
        ("rescoring", {"hypotheses": [{"score": 1}]}, {}, 'input 0, hypothesis 0: expected {"text", "score"}'),
        ("rescoring", "a", {"weight": None}, "weight must be a number, got None"),
    ],
)
def test_refuses(make_file: Callable[..., Path], call: str, inputs: Any, options: dict, message: str) -> None:
    model = edgebert.load(make_file(task="fill-mask"), "numpy")
    with pytest.raises(InvalidInputError, match=message):
        model(inputs, task=call, **options)


def test_a_tokenizer_without_mask(make_file: Callable[..., Path], tokenizer_json: str) -> None:
    path = make_file(task="fill-mask", tokenizer_json=tokenizer_json.replace("[MASK]", "[GAP]"))
    with pytest.raises(InvalidInputError, match=r"has no mask token, neither \[MASK\] nor <mask>"):
        edgebert.load(path, "numpy").rescore("a")


PAIRS = [("the router restarts .", "is it off ?"), ("", "a"), ("roses " * 40, "中文 " * 40)]


@pytest.mark.parametrize("task", ["next-sentence", "pretraining"])
def test_next_sentence_as_the_model(
    backend: str, task: str, tmp_path_factory: pytest.TempPathFactory, tokenizer_json: str
) -> None:
    import torch

    hf, tokenizer, path = pipelines.make_pipeline_parts(tmp_path_factory.mktemp("pairs"), tokenizer_json, task)
    model = edgebert.load(path, backend)
    found, is_truncated = model(PAIRS, task="next-sentence", top_k=None, return_truncated=True)
    assert is_truncated.tolist() == [False, False, True]
    for (first, second), answers in zip(PAIRS, found, strict=True):
        inputs = tokenizer(first, second, truncation="longest_first", return_tensors="pt")
        with torch.no_grad():
            logits = hf(**inputs)[-1][0]
        expected = dict(zip(("is_next", "not_next"), logits.softmax(-1).tolist(), strict=True))
        assert {answer["label"]: answer["score"] for answer in answers} == pytest.approx(expected, abs=1e-5)
        assert answers[0]["score"] >= answers[1]["score"]
    as_dict = {"text": PAIRS[0][0], "text_pair": PAIRS[0][1]}
    assert model(as_dict, task="next-sentence") == model(PAIRS[:1], task="next-sentence")[0]
    assert model([as_dict], task="next-sentence") == model(PAIRS[:1], task="next-sentence")


def test_next_sentence_takes_pairs(make_file: Callable[..., Path]) -> None:
    model = edgebert.load(make_file(task="next-sentence"), "numpy")
    for inputs in ("a", ["a", "b"], [{"text": "a"}]):
        with pytest.raises(InvalidInputError, match="input 0: expected a pair of texts, got one text"):
            model(inputs)
