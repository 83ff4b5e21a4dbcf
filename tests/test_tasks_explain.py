"""Explanations: against a loop that masks each word by hand in transformers, and of a model whose one word is known."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from artifacts import random_spec, random_tensors
from conftest import WORDS

import edgebert
from edgebert import cli
from edgebert.artifact.writer import build_model
from edgebert.batch import PackedBatch
from edgebert.errors import InvalidInputError
from edgebert.scoring.scorer import Scorer
from edgebert.tasks import explain
from edgebert.tasks.faithfulness import DEPTHS, measure, order_words

pipelines = pytest.importorskip("pipelines")
import torch  # noqa: E402  # with the pipelines

TEXTS = [
    "the router restarted .",
    "a",
    "",
    "中文 is straße 😀 unknownword !",
    "the modem is not slow and turned off " * 9,
]
PAIRS = [("is it off ?", "the router is off"), ("roses " * 30, "water at the root"), ("a", "")]
MASK = WORDS.index("[MASK]")


def mask_by_hand(parts: tuple[Any, Any, Path], texts: Any, score: Callable[[Any, Any], float]) -> dict[str, Any]:
    """The answer without what is explained, from transformers, one copy at a time; `score` takes outputs, encoding."""
    model, tokenizer, _ = parts
    pair = [texts] if isinstance(texts, str) else list(texts)
    lists = [[text] for text in pair]  # of single texts an empty second one would be dropped
    encoding = tokenizer(*lists, truncation=True, max_length=32, return_tensors="pt", return_offsets_mapping=True)
    offsets = encoding.pop("offset_mapping")[0].tolist()
    places: dict[tuple[int, int], list[int]] = {}
    for i, (side, word) in enumerate(zip(encoding.sequence_ids(0), encoding.word_ids(0), strict=True)):
        if side is not None:
            places.setdefault((side, word), []).append(i)

    def run(masked: list[int]) -> float:
        ids = encoding["input_ids"].clone()
        ids[0, masked] = MASK
        with torch.no_grad():
            return score(model(**{**encoding, "input_ids": ids}), encoding)

    whole = run([])
    return {
        "score": whole,
        "base": run([i for own in places.values() for i in own]),
        "words": [
            {
                "word": pair[side][offsets[own[0]][0] : offsets[own[-1]][1]],
                **({"side": ("text", "text_pair")[side]} if len(pair) > 1 else {}),
                "start": offsets[own[0]][0],
                "end": offsets[own[-1]][1],
                "contribution": whole - run(own),
            }
            for (side, _), own in sorted(places.items())
        ],
    }


def assert_same(found: dict[str, Any], expected: dict[str, Any]) -> None:
    """All of `expected`, numbers within 1e-5."""
    assert found["score"] == pytest.approx(expected["score"], abs=1e-5)
    assert found["base"] == pytest.approx(expected["base"], abs=1e-5)
    assert [list(word) for word in found["words"]] == [list(word) for word in expected["words"]]
    for word, other in zip(found["words"], expected["words"], strict=True):
        assert word == {**other, "contribution": pytest.approx(other["contribution"], abs=1e-5)}


@pytest.fixture(scope="module")
def make_parts(tmp_path_factory: pytest.TempPathFactory, tokenizer_json: str) -> Callable[..., tuple[Any, Any, Path]]:
    """A function that makes a tiny random model of a task, its tokenizer and its model file, each once."""
    made: dict[str, tuple[Any, Any, Path]] = {}

    def make(task: str, **config: Any) -> tuple[Any, Any, Path]:
        key = f"{task} {config}"
        if key not in made:
            made[key] = pipelines.make_pipeline_parts(tmp_path_factory.mktemp("parts"), tokenizer_json, task, **config)
        return made[key]

    return make


@pytest.mark.parametrize(
    "config",
    [
        {"num_labels": 3},
        {"num_labels": 3, "problem_type": "multi_label_classification"},
        {"num_labels": 1},
        {"num_labels": 1, "problem_type": "regression"},
    ],
    ids=str,
)
def test_labels_as_masked_by_hand(backend: str, make_parts: Callable[..., Any], config: dict[str, Any]) -> None:
    parts = make_parts("text-classification", **config)
    model = edgebert.load(parts[2], backend)
    answers, is_truncated = model.explain([*TEXTS, *PAIRS], return_truncated=True)
    assert is_truncated.tolist() == [False] * 4 + [True] + [False, True, False]
    function = {3: lambda x: x.softmax(-1), 1: torch.sigmoid}[config["num_labels"]]
    if "problem_type" in config:
        function = torch.sigmoid if config["num_labels"] == 3 else lambda x: x
    for item, answer in zip([*TEXTS, *PAIRS], answers, strict=True):
        label = model.spec.labels.index(answer["label"])
        expected = mask_by_hand(parts, item, lambda out, _, label=label: float(function(out.logits)[0, label]))
        assert_same(answer, expected)
        best = model([item], max_length=32, top_k=1, return_truncated=True)[0][0][0]
        assert answer["label"] == best["label"]
        assert answer["score"] == pytest.approx(best["score"], rel=1e-6)
    if config["num_labels"] == 3:
        for label in range(3):
            found = model.explain(TEXTS[0], label=f"LABEL_{label}", function_to_apply="none")
            assert found["label"] == f"LABEL_{label}"
            assert_same(found, mask_by_hand(parts, TEXTS[0], lambda out, _, label=label: float(out.logits[0, label])))


def test_tags_as_masked_by_hand(backend: str, make_parts: Callable[..., Any]) -> None:
    parts = make_parts("token-classification", id2label={0: "O", 1: "B-X", 2: "I-X"}, num_labels=3)
    model = edgebert.load(parts[2], backend)
    for text in (TEXTS[0], TEXTS[3], "a"):
        tokens, _ = model([text], ignore_labels=[], aggregation_strategy="first", return_truncated=True)
        assert tokens
        found = model.explain(text)

        def score(out: Any, encoding: Any, start: int = found["start"], label: str = found["label"]) -> float:
            place = encoding.char_to_token(0, start)
            return float(out.logits.softmax(-1)[0, place, model.spec.labels.index(label)])

        assert found["word"] == text[found["start"] : found["end"]]
        assert_same(found, mask_by_hand(parts, text, score))
        word = found["words"][-1]
        asked = model.explain(text, target=[word["start"], word["end"]], label="I-X")
        assert {key: asked[key] for key in ("label", "word", "start", "end")} == {
            "label": "I-X", "word": word["word"], "start": word["start"], "end": word["end"],
        }  # fmt: skip
        assert_same(asked, mask_by_hand(parts, text, partial(score, start=word["start"], label="I-X")))
    of_two = model.explain(TEXTS[0], target=(0, 5), label="O")
    each = [model.explain(TEXTS[0], target=target, label="O") for target in ((0, 3), (4, 10))]
    assert of_two["word"] == "the router"
    assert of_two["score"] == pytest.approx(sum(one["score"] for one in each) / 2)
    assert model.explain("")["words"] == []


def test_the_surest_tag_but_o_is_explained(make_parts: Callable[..., Any]) -> None:
    model = edgebert.load(make_parts("token-classification", id2label={0: "O", 1: "B-X", 2: "I-X"}, num_labels=3)[2])
    for text in ("the router is off and a modem is on", "water the roses at the root !"):
        found = model.explain(text)
        tagged = model(text, aggregation_strategy="first", ignore_labels=[])
        scores = {word["start"]: model.explain(text, target=(word["start"], word["end"])) for word in found["words"]}
        sure = [one for one in scores.values() if one["label"] != "O"] or list(scores.values())
        assert found == max(sure, key=lambda one: one["score"])
        assert tagged


def test_answers_as_masked_by_hand(backend: str, make_parts: Callable[..., Any]) -> None:
    parts = make_parts("question-answering")
    model = edgebert.load(parts[2], backend)
    question, context = "is it off ?", "the router restarted and the modem is off ."
    best = model(question=question, context=context)
    found = model.explain({"question": question, "context": context})
    assert {key: best[key] for key in ("answer", "start", "end")} == {
        key: found[key] for key in ("answer", "start", "end")
    }
    assert found["score"] >= best["score"] - 1e-6  # the answer's words may begin in other pieces, too
    pieceless = {"question": question, "context": "router and modem restart off at the root !"}
    assert model.explain(pieceless)["score"] == pytest.approx(model(pieceless)["score"], rel=1e-5)
    for target in ((found["start"], found["end"]), (4, 20)):

        def score(out: Any, encoding: Any, target: tuple[int, int] = target) -> float:
            sides = encoding.sequence_ids(0)
            is_kept = torch.tensor([i == 0 or side == 1 for i, side in enumerate(sides)])
            start, end = (x[0].masked_fill(~is_kept, -1e9).softmax(-1) for x in (out.start_logits, out.end_logits))
            words = [encoding.char_to_word(0, place, sequence_index=1) for place in (target[0], target[1] - 1)]
            firsts, lasts = (
                [i for i, side in enumerate(sides) if side == 1 and encoding.word_ids(0)[i] == word] for word in words
            )
            return float(sum(start[i] * end[j] for i in firsts for j in lasts if i <= j))

        asked = model.explain([(question, context)], target=target)[0]
        expected = mask_by_hand(parts, (question, context), score)
        for word in expected["words"]:
            word["side"] = {"text": "question", "text_pair": "context"}[word["side"]]
        assert_same(asked, expected)
    assert model.explain({"question": question, "context": " "})["score"] == 0.0


def test_next_sentences_as_masked_by_hand(backend: str, make_parts: Callable[..., Any]) -> None:
    for task in ("next-sentence", "pretraining"):
        parts = make_parts(task)
        model = edgebert.load(parts[2], backend)
        for pair in PAIRS[:2]:
            [answer], _ = model.explain([pair], return_truncated=True)
            label = model.spec.labels.index(answer["label"])
            output = "logits" if task == "next-sentence" else "seq_relationship_logits"

            def score(out: Any, _: Any, output: str = output, label: int = label) -> float:
                return float(out[output].softmax(-1)[0, label])

            assert_same(answer, mask_by_hand(parts, pair, score))
        with pytest.raises(InvalidInputError, match="input 1: expected a pair of texts, got one text"):
            model.explain([PAIRS[0], "a"])


def write_file(path: Path, tokenizer_json: str, tensors: dict[str, Any] | None = None, **arguments: Any) -> Path:
    changes = {key: arguments.pop(key) for key in ("prompts", "default_prompt_name") if key in arguments}
    spec = random_spec(**arguments).replace(**changes)
    path.write_bytes(
        build_model(spec, {**random_tensors(spec), **(tensors or {})}, {"edgebert.tokenizer": tokenizer_json})
    )
    return path


def test_similarity_as_masked_by_hand(backend: str, tmp_path: Path, tokenizer_json: str) -> None:
    prompts = {"prompts": {"query": "query : "}, "default_prompt_name": "query"}
    model = edgebert.load(write_file(tmp_path / "model.onnx", tokenizer_json, **prompts), backend)
    pair = ["the router restarted", "turn off the modem"]
    tokens = [model.tokenizer.tokenize_whole([f"query : {text}"]) for text in pair]

    def cosine(masked: tuple[int, int] | None) -> float:
        """With (side, word) masked; words 0 and 1 are the prompt's."""
        rows = []
        for side, of_text in enumerate(tokens):
            ids = of_text.input_ids.copy()
            if masked is not None and masked[0] == side:
                ids[of_text.word_ids == masked[1]] = MASK
            rows.append(model.forward(PackedBatch.from_lists([ids]), ["sentence_embedding"])["sentence_embedding"][0])
        a, b = (row.astype(np.float64) for row in rows)
        return float(a @ b / np.linalg.norm(a) / np.linalg.norm(b))

    found = model.explain({"text": pair[0], "text_pair": pair[1]})
    assert found["score"] == pytest.approx(cosine(None), abs=1e-6)
    words = [(side, word) for side, text in enumerate(pair) for word in range(2, 2 + len(text.split()))]
    assert [word["word"] for word in found["words"]] == " ".join(pair).split()
    assert [word["side"] for word in found["words"]] == ["text"] * 3 + ["text_pair"] * 4
    assert [pair[word["side"] == "text_pair"][word["start"] : word["end"]] for word in found["words"]] == " ".join(
        pair
    ).split()
    for word, place in zip(found["words"], words, strict=True):
        assert word["contribution"] == pytest.approx(cosine(None) - cosine(place), abs=1e-5)
    assert model.explain([tuple(pair)]) == [found]
    with pytest.raises(InvalidInputError, match="input 0: expected a pair of texts, whose similarity is explained"):
        model.explain("a")


KEYWORD = WORDS.index("slow")


@pytest.fixture(params=["f32", "int8"])
def planted(request: pytest.FixtureRequest, tmp_path: Path, tokenizer_json: str) -> Path:
    """A classifier that tells "slow" from all else, and nothing else: all other tokens have one embedding."""
    spec = random_spec(task="text-classification", int8=request.param == "int8")
    tensors = random_tensors(spec)
    table = tensors["embeddings.word.weight"]
    table[np.arange(len(table)) != KEYWORD] = table[MASK]
    if "embeddings.word.scale" in tensors:
        tensors["embeddings.word.scale"][:] = tensors["embeddings.word.scale"][MASK]
    tensors["head.out.weight"] *= 4
    path = tmp_path / "planted.onnx"
    path.write_bytes(build_model(spec, tensors, {"edgebert.tokenizer": tokenizer_json}))
    return path


def test_a_planted_word_is_the_explanation(backend: str, planted: Path) -> None:
    model = edgebert.load(planted, backend)
    text, without = "the modem is slow and bad", "the modem is fast and bad"
    for label in model.spec.labels:
        with_word, plain = (
            next(one["score"] for one in model([each], top_k=None)[0] if one["label"] == label)
            for each in (text, without)
        )
        found = model.explain(text, label=label, span_length=2)
        assert {word["word"] for word in found["words"] if abs(word["contribution"]) > 1e-6} == {"slow"}
        assert found["words"][3]["contribution"] == pytest.approx(with_word - plain, abs=1e-5)
        assert found["base"] == pytest.approx(plain, abs=1e-5)
        assert [span["span"] for span in found["spans"] if abs(span["contribution"]) > 1e-6] == ["is slow", "slow and"]
    rising = max(model.spec.labels, key=lambda label: model.explain(text, label=label)["words"][3]["contribution"])
    faithful = model.explain([text], label=rising, faithfulness=True)[0]["faithfulness"]
    lost = model.explain(text, label=rising)["words"][3]["contribution"]
    # 6 words: the depths are 1, 1, 2 and 3 words; the best word goes first, and stays last
    assert faithful["comprehensiveness"] == pytest.approx(lost, abs=1e-5)
    assert faithful["sufficiency"] == pytest.approx(0, abs=1e-5)
    assert faithful["deletion"] == pytest.approx(lost, abs=1e-5)
    assert 0 < faithful["random"]["deletion"] < lost
    assert faithful["random"]["sufficiency"] > 0


def test_batches_change_nothing(backend: str, make_parts: Callable[..., Any]) -> None:
    inputs = {
        "text-classification": [*TEXTS, *PAIRS],
        "token-classification": TEXTS,
        "question-answering": [{"question": "is it off ?", "context": text} for text in TEXTS if text],
        "next-sentence": PAIRS,
    }
    for task, items in inputs.items():
        model = edgebert.load(make_parts(task)[2], backend)
        options = {"span_length": 2, "faithfulness": task == "text-classification", "return_truncated": True}
        together, _ = model.explain(items, **options)
        if backend == "onnxruntime":  # it pads
            continue
        for batch_tokens in (1, 60) if backend != "numpy" else (60,):  # it runs one sequence at a time
            assert model.explain(items, batch_tokens=batch_tokens, **options)[0] == together
        assert [model.explain([item], **options)[0][0] for item in items] == together
        assert model.explain(items[::-1], **options)[0] == together[::-1]


def test_windows_are_explained_together(make_parts: Callable[..., Any]) -> None:
    model = edgebert.load(make_parts("text-classification", num_labels=3)[2], "numpy")
    text = "the router restarted , the modem is not slow . " * 4
    found = model.explain(text, stride=10)
    rows, _ = model.tokenizer.make_windows([text], None, 10)
    assert len(rows) == 2
    label = model.spec.labels.index(found["label"])

    def score(span: tuple[int, int] | None) -> float:
        total = np.zeros(3, np.float32)
        for row in rows:
            ids = row.input_ids.copy()
            for place, (start, end) in enumerate(row.offsets.tolist(), row.first):
                if span is not None and span[0] <= start and end <= span[1]:
                    ids[place] = MASK
            total += model.forward(PackedBatch.from_lists([ids]))["logits"][0]
        mean = (total / len(rows)).astype(np.float64)
        return float(np.exp(mean[label]) / np.exp(mean).sum())

    assert [word["word"] for word in found["words"]] == text.split()
    assert found["score"] == pytest.approx(score(None), abs=1e-6)
    assert found["score"] == pytest.approx(model([text], stride=10, top_k=1)[0][0]["score"], abs=1e-6)
    for word in found["words"]:
        lost = score(None) - score((word["start"], word["end"]))
        assert word["contribution"] == pytest.approx(lost, abs=1e-6)
    reader = edgebert.load(make_parts("question-answering")[2], "numpy")
    long = {"question": "is it off ?", "context": text * 2}
    found, best = reader.explain(long), reader(long)
    assert found["answer"] == best["answer"]
    assert len(found["words"]) == 4 + 8 * 10


def test_a_tag_is_that_of_the_window_with_most_text_around(make_parts: Callable[..., Any]) -> None:
    model = edgebert.load(make_parts("token-classification", num_labels=3)[2], "numpy")
    text = "the router is off and a modem on " * 5
    rows, _ = model.tokenizer.make_windows([text], None, 20)
    places = {}  # of each token the window that owns it
    for row in rows:
        for i in row.owned:
            places[int(row.offsets[i, 0])] = row, row.first + i
    assert len(rows) == 2 and len(places) == 40
    for start in (11 * 4, 100, 120):
        start = text.index(" ", start) + 1
        end = text.index(" ", start)
        found = model.explain(text, stride=20, target=(start, end), label="LABEL_1")
        row, place = places[start]
        logits = model.forward(PackedBatch.from_lists([row.input_ids]))["logits"][place].astype(np.float64)
        assert found["score"] == pytest.approx(float(np.exp(logits[1]) / np.exp(logits).sum()), abs=1e-6)


def unigram(words: list[tuple[str, float]], has_pre_tokenizer: bool = True) -> str:
    """A tokenizer as XLM-R's: words begin with ▁, and blanks alone divide them; or nothing does."""
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers

    tokenizer = Tokenizer(models.Unigram([("<unk>", -9.0), *words], unk_id=0))
    if has_pre_tokenizer:
        tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    else:
        tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokenizer.add_special_tokens(["<mask>"])
    return str(tokenizer.to_str())


PIECES = [
    ("▁the", -2.0),
    ("▁rou", -2.0),
    ("ter", -2.0),
    ("▁", -3.0),
    ("中", -3.0),
    ("文", -3.0),
    ("ไท", -3.0),
    ("ย", -3.0),
    ("e", -4.0),
]


@pytest.mark.parametrize(
    ("tokenizer", "text", "words"),
    [
        (unigram(PIECES), "the router", ["the", "router"]),
        (unigram(PIECES), "the 中文 router", ["the", "中", "文", "router"]),
        (unigram(PIECES), "ไทย", ["ไท", "ย"]),
        (unigram(PIECES), "  the  ", ["the"]),
        (unigram(PIECES, has_pre_tokenizer=False), "the router 中文", ["the", "router", "中", "文"]),
        (None, "the restarts-restarted ! 中文", ["the", "restarts", "-", "restarted", "!", "中", "文"]),
        (None, "[SEP] a [MASK]", ["[SEP]", "a", "[MASK]"]),
    ],
)
def test_words(
    make_file: Callable[..., Path], tokenizer_json: str, tokenizer: str | None, text: str, words: list[str]
) -> None:
    path = make_file(task="text-classification", tokenizer_json=tokenizer or tokenizer_json)
    found = edgebert.load(path, "numpy").explain(text)
    assert [word["word"] for word in found["words"]] == words
    assert [text[word["start"] : word["end"]] for word in found["words"]] == words


def test_without_a_mask_token_the_unknown_one_hides(make_file: Callable[..., Path], tokenizer_json: str) -> None:
    parsed = json.loads(tokenizer_json)
    parsed["added_tokens"] = [token for token in parsed["added_tokens"] if token["content"] != "[MASK]"]
    parsed["model"]["vocab"]["[HIDE]"] = parsed["model"]["vocab"].pop("[MASK]")
    model = edgebert.load(make_file(task="text-classification", tokenizer_json=json.dumps(parsed)), "numpy")
    assert model.tokenizer.mask_id is None
    found = model.explain("a router", label="LABEL_1")
    [[hidden]] = [[one for one in model("a unknownword", top_k=None) if one["label"] == "LABEL_1"]]
    assert found["words"][1]["contribution"] == pytest.approx(found["score"] - hidden["score"], abs=1e-6)


@pytest.mark.parametrize(
    ("task", "options", "message"),
    [
        ("text-classification", {"label": "good"}, "label must be one of LABEL_0, LABEL_1, LABEL_2, got 'good'"),
        ("embedding", {"label": "good"}, "label must be left out: a file with this head has none, got 'good'"),
        ("text-classification", {"target": [0, 1]}, "target is for taggers and readers"),
        ("token-classification", {"target": [3]}, r"target must be \[start, end\], .* got \[3\]"),
        ("token-classification", {"target": [3, 3]}, "start < end, got"),
        ("token-classification", {"target": [30, 31]}, "input 0: target 30 to 31 has no word of the text"),
        ("text-classification", {"span_length": 0}, "span_length must be a positive integer, got 0"),
        ("text-classification", {"function_to_apply": "log"}, "function_to_apply must be one of"),
        ("token-classification", {"function_to_apply": "none"}, "function_to_apply is for text classifiers"),
        ("text-classification", {"top_k": 1}, "it takes label, target, span_length, function_to_apply"),
        ("fill-mask", {}, "explain does not fit this file: its head is fill-mask"),
    ],
)
def test_refusals(make_file: Callable[..., Path], task: str, options: dict[str, Any], message: str) -> None:
    model = edgebert.load(make_file(task=task), "numpy")
    with pytest.raises(InvalidInputError, match=message):
        model.explain([("a", "b")] if task == "embedding" else "a b", **options)


def test_runs_of_words() -> None:
    words = [explain.Word(side, i, i + 1, {}) for side, count in ((0, 3), (1, 1)) for i in range(count)]
    assert [list(run) for run in explain.find_runs(words, 2)] == [[0, 1], [1, 2], [3]]
    assert [list(run) for run in explain.find_runs(words[:3], 5)] == [[0, 1, 2]]
    assert explain.find_runs([], 2) == []


def test_faithfulness_of_known_curves() -> None:
    answer = {"words": [{"contribution": value} for value in (0.1, 0.4, -0.2, 0.0)]}
    orders = order_words(answer)
    assert orders[:2] == [[1, 0, 3, 2], [2, 3, 0, 1]]
    assert all(sorted(order) == [0, 1, 2, 3] for order in orders) and orders == order_words(answer)
    best, worst = [1.0, 0.5, 0.4, 0.3, 0.2], [1.0, 0.9, 0.8, 0.7, 0.2]
    found = measure([best, worst, worst, best])
    assert DEPTHS == (0.05, 0.1, 0.2, 0.5)  # of 4 words: 1, 1, 1, 2
    assert found["comprehensiveness"] == pytest.approx((0.5 * 3 + 0.6) / 4)
    assert found["sufficiency"] == pytest.approx((0.3 * 3 + 0.2) / 4)
    assert found["deletion"] == pytest.approx(2.6 / 4)
    assert found["random"]["comprehensiveness"] == pytest.approx((0.1 * 3 + 0.2 + 0.5 * 3 + 0.6) / 8)
    assert measure([[1.0]] * 7)["deletion"] == 0.0


def test_deletion_curves_as_masked_by_hand(make_parts: Callable[..., Any]) -> None:
    parts = make_parts("text-classification", num_labels=3)
    model = edgebert.load(parts[2], "numpy")
    found = model.explain(TEXTS[0], faithfulness=True)
    label = model.spec.labels.index(found["label"])
    encoding = model.tokenizer.tokenize_whole([TEXTS[0]])

    def score(words: set[int]) -> float:
        ids = np.where(np.isin(encoding.word_ids, list(words)), MASK, encoding.input_ids)
        logits = model.forward(PackedBatch.from_lists([ids]))["logits"][0].astype(np.float64)
        return float(np.exp(logits[label]) / np.exp(logits).sum())

    curves = [[score(set(order[:k])) for k in range(len(order) + 1)] for order in order_words(found)]
    expected = measure(curves)
    for name in ("comprehensiveness", "sufficiency", "deletion"):
        assert found["faithfulness"][name] == pytest.approx(expected[name], abs=1e-6)
        assert found["faithfulness"]["random"][name] == pytest.approx(expected["random"][name], abs=1e-6)


def test_files_of_rows_are_explained(make_file: Callable[..., Path]) -> None:
    path = make_file(task="text-classification")
    scorer = Scorer(path, backend="numpy", task="explain", options={"span_length": 2})
    found = scorer({"text": ["the router is slow", ""]})
    model = edgebert.load(path, "numpy")
    assert found["answer"] == [model.explain(text, span_length=2) for text in ("the router is slow", "")]


# On the command line


def run(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, str, str]:
    status = cli.main([*map(str, arguments)])
    captured = capsys.readouterr()
    return status, captured.out, captured.err


def test_run_prints_words(
    make_file: Callable[..., Path], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    path = make_file(task="text-classification")
    command = ("run", path, "the router is slow", "--task", "explain", "--backend", "numpy")
    model = edgebert.load(path, "numpy")
    status, out, _ = run(capsys, *command)
    assert status == 0 and "\x1b" not in out
    assert [line.split()[0] for line in out.splitlines()[1:]] == ["the", "router", "is", "slow"]
    status, out, _ = run(capsys, *command, "--format", "json", "--option", "span_length=2")
    assert json.loads(out) == {"text": "the router is slow", **model.explain("the router is slow", span_length=2)}
    _, out, _ = run(capsys, *command, "--option", "faithfulness=true")
    assert re.search(r"^comprehensiveness: \S+, \S+ at random$", out, re.MULTILINE)
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    monkeypatch.delenv("NO_COLOR", raising=False)
    _, out, _ = run(capsys, *command)
    colored = out.splitlines()[1]
    assert re.sub(r"\x1b\[[\d;]*m", "", colored) == "the router is slow" and colored.count("\x1b[0m") == 4
    monkeypatch.setenv("NO_COLOR", "1")
    assert "\x1b" not in run(capsys, *command)[1]


def test_run_of_pairs_and_questions(make_file: Callable[..., Path], capsys: pytest.CaptureFixture[str]) -> None:
    for task in ("question-answering", "embedding", "next-sentence"):
        command = ("run", make_file(task=task), "--task", "explain", "--backend", "numpy")
        status, out, _ = run(capsys, *command, "is it off ?\tit is off", "--pairs", "--format", "json")
        assert status == 0
        assert len(json.loads(out)["words"]) == 7
        status, _, err = run(capsys, *command, "a")
        assert status == 1 and "two" in err or "pair" in err


def test_run_writes_a_page(make_file: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("jinja2")
    pytest.importorskip("matplotlib")
    path, page = make_file(task="text-classification"), tmp_path / "why.html"
    texts = ["the <b>router</b> is slow", "a\tvery bad"]
    options = ("--task", "explain", "--backend", "numpy", "--html", page, "--option", "faithfulness=true")
    assert run(capsys, "run", path, *texts[1:], "--pairs", *options)[0] == 0
    assert ">text_pair<" in page.read_text(encoding="utf-8")
    assert run(capsys, "run", path, *texts[:1], *options)[0] == 0
    text = page.read_text(encoding="utf-8")
    shown = list(words_of(text))
    found = edgebert.load(path, "numpy").explain(texts[0])["words"]
    assert [word for word, _, _ in shown] == [word["word"].replace("<", "&lt;").replace(">", "&gt;") for word in found]
    for (_, kind, number), word in zip(shown, found, strict=True):
        assert kind == ("plus" if word["contribution"] >= 0 else "minus")
        assert float(number.replace("−", "-")) == pytest.approx(word["contribution"], abs=5.1e-5)
    assert "<b>" not in text and "<script" not in text and "faithfulness" in text
    status, _, err = run(capsys, "run", path, "a", "--html", page)
    assert status == 1 and "the task is text-classification: add --task explain" in err


def words_of(page: str) -> Iterator[tuple[str, str, str]]:
    """(word, class, number) of the coloured words; the number is there to see and to hear."""
    pattern = (
        r'<span class="(plus|minus)" style="--share:[\d.]+" tabindex="0" data-number="([^"]+)">([^<]*)'
        r'<span class="spoken"> ([^<]+)</span></span>'
    )
    for kind, number, word, spoken in re.findall(pattern, page):
        assert number == spoken
        yield word, kind, number


# Attention


@pytest.mark.parametrize("family", ["bert", "mpnet", "modernbert", "albert"])
def test_attention_as_transformers_gives_it(family: str, tmp_path: Path) -> None:
    from checkpoints import make_checkpoint, random_batch

    from edgebert.backends.numpy_backend import NumpyBackend
    from edgebert.checkpoints.loading import load_checkpoint

    model = make_checkpoint(tmp_path, family)
    model.set_attn_implementation("eager")
    checkpoint = load_checkpoint(tmp_path)
    backend = NumpyBackend(checkpoint.spec, checkpoint.tensors)
    batch = random_batch(model)
    for i in (0, 2, 4):
        one = batch.take([i])
        ids, mask, types = (torch.from_numpy(part) for part in one.pad())
        kinds = {"token_type_ids": types} if getattr(model.config, "type_vocab_size", 0) >= 2 else {}
        with torch.no_grad():
            expected = model(input_ids=ids, attention_mask=mask, output_attentions=True, **kinds).attentions
        assert len(expected) == len(checkpoint.spec.layer_order)
        for layer, maps in enumerate(expected):
            found = backend.attention(one, layer)
            assert found.shape == (4, one.total_tokens, one.total_tokens)
            assert np.abs(found - maps[0].numpy()).max() <= 1e-5
            assert np.abs(found.sum(axis=-1) - 1).max() <= 1e-5


def test_attention_with_tokens(make_file: Callable[..., Path], backend: str) -> None:
    path = make_file(int8=True, attention_dtype="s8", layers=((2, 8, 40), (0, 8, 40)))
    model = edgebert.load(path, backend)
    if backend != "numpy":
        with pytest.raises(
            InvalidInputError, match=f"the {backend} backend keeps no .* load the file with backend='numpy'"
        ):
            model.attention("a b", 0)
        return
    tokens, maps = model.attention(("the router", "restarted"), 0)
    assert tokens == ["[CLS]", "the", "router", "[SEP]", "restart", "##ed", "[SEP]"]
    assert maps.shape == (2, 7, 7)
    assert np.abs(maps.sum(axis=-1) - 1).max() <= 1e-5
    assert model.attention("a", 1)[1].shape == (0, 3, 3)  # pruned away
    with pytest.raises(InvalidInputError, match="layer must be an integer from 0 to 1, got 2"):
        model.attention("a", 2)
    with pytest.warns(UserWarning, match="truncated to 4 tokens"):
        assert len(model.attention("a b c d", 0, max_length=4)[0]) == 4
