"""Texts in, answers out through the C API: the bits of Python's tasks, and bad calls that end in an error."""

from __future__ import annotations

import random
import threading
from collections.abc import Callable
from ctypes import byref
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from artifacts import random_spec, random_tensors
from conftest import BACKENDS, WORDS

import edgebert
from edgebert.artifact.writer import build_model
from edgebert.tasks.base import exp, sigmoid, softmax, tanh

pytestmark = pytest.mark.skipif("native" not in BACKENDS, reason="the native library is not built")
if "native" in BACKENDS:
    from c_api import CANCELLED, STRATEGIES, CError, CModel, Embeddings, Text, check

INVALID_INPUT, UNSUPPORTED = 1, 3
LABELS = ("O", "B-LOC", "I-LOC", "B-PER", "I-PER", "MISC", "B-x-y")
QUESTION_WORDS = ["is it off ?", "the router ?", "中 turn ?", "ÜBER Σ straße"]


def make_texts(count: int, seed: int = 0, most: int = 60) -> list[str]:
    """Words of the tokenizer's and others, with odd blanks, accents, marks and characters of four bytes among them."""
    generator = random.Random(seed)
    words = [
        *WORDS[4:-1],
        "unknownword",
        "e\u0301",
        "U\u0308ber",
        "😀",
        "ΣΑΣ",
        "İx",
        "RoUter",
        "restarting",
        "a-b",
        "\t",
    ]
    return [
        generator.choice([" ", " ", "  "]).join(generator.choices(words, k=generator.choice([0, 1, 3, 9, most])))
        for _ in range(count)
    ]


TEXTS = ["", " ", *make_texts(70)]


@pytest.fixture
def make(tmp_path: Path, tokenizer_json: str) -> Callable[..., Path]:
    """A function that writes a random model; arguments in `changes` are fields of the spec."""

    def write(
        task: str, changes: dict[str, Any] | None = None, tokenizer: str | None = tokenizer_json, **arguments: Any
    ) -> Path:
        spec = random_spec(task=task, num_positions=48, **arguments).replace(**(changes or {}))
        path = tmp_path / f"{task}.onnx"
        tensors = random_tensors(spec)
        if "head.out.weight" in tensors:
            tensors["head.out.weight"] *= 4  # so that scores differ
        metadata = {} if tokenizer is None else {"edgebert.tokenizer": tokenizer}
        path.write_bytes(build_model(spec, tensors, metadata))
        return path

    return write


def load(path: Path) -> edgebert.Model:
    return edgebert.load(path, "native", threads=1)


def without_words(answers: Any) -> Any:
    """Entities and answers without the text that their places say."""
    return [[{k: v for k, v in one.items() if k not in ("word", "answer")} for one in found] for found in answers]


@pytest.mark.parametrize("int8", [False, True])
def test_embeddings(make: Callable[..., Path], int8: bool) -> None:
    prompts = {"prompts": {"query": "passage : ", "none": ""}, "default_prompt_name": "query"}
    path = make("embedding", prompts, int8=int8)
    model, session, windows = load(path), CModel(path), CModel(path, long_texts=2, stride=5, max_length=17)
    for texts in (TEXTS, TEXTS[:1], TEXTS[5:6], []):
        expected, is_truncated = model.encode(texts, return_truncated=True)
        assert session.embed(texts).tobytes() == expected.tobytes()
        assert session.is_truncated == is_truncated.tolist()
        expected, is_truncated = model.encode(texts, stride=5, max_length=17, return_truncated=True)
        assert windows.embed(texts).tobytes() == expected.tobytes()
        assert windows.is_truncated == is_truncated.tolist()
    for options, python in (
        ({"prompt_name": b"none"}, {"prompt_name": "none"}),
        ({"prompt": "über ".encode(), "prompt_name": b"none"}, {"prompt": "über "}),
        ({"prompt": b""}, {"prompt": ""}),
        ({"width": 5, "normalize": 1}, {"truncate_dim": 5, "normalize_embeddings": True}),
        ({"width": 7}, {"truncate_dim": 7}),
    ):
        assert session.embed(TEXTS, **options).tobytes() == model.encode(TEXTS, max_length=48, **python).tobytes()
        assert (
            windows.embed(TEXTS, **options).tobytes()
            == model.encode(TEXTS, max_length=17, stride=5, **python).tobytes()
        )


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"problem_type": "multi_label_classification"},
        {"problem_type": "regression"},
        {"labels": ("yes",), "rank_function": "none"},
        {"labels": ("yes",)},
        {"rank_function": "softmax"},
    ],
    ids=str,
)
def test_classes_and_ranks(make: Callable[..., Path], changes: dict[str, Any]) -> None:
    path = make("text-classification", changes, num_labels=len(changes.get("labels", LABELS)))
    model = load(path)
    pairs = make_texts(len(TEXTS), seed=1)
    mixed = list(zip(TEXTS, pairs, strict=True))
    query = "the router ? " * 3
    names = model.spec.labels
    for limits, stride, session in (
        ({}, None, CModel(path, batch_tokens=40)),
        ({"max_length": 40, "stride": 3}, 3, CModel(path, max_length=40, long_texts=2, stride=3)),
    ):
        for function in (None, "none", "sigmoid", "tanh", "softmax"):
            told = {"function_to_apply": function, **limits}
            assert session.classify(TEXTS, function=function) == model.answer_each(TEXTS, top_k=None, **told)[0]
            if stride is None:
                assert session.classify(TEXTS, pairs, top_k=2, function=function) == [
                    found if isinstance(found, list) else [found]
                    for found in model.answer_each(mixed, top_k=2, **told)[0]
                ]
            for label in names if len(names) > 1 else [None]:
                options = {"label": label, "top_k": 50, "function_to_apply": function, **limits}
                expected = model.rank(query, TEXTS, **options)
                assert session.rank(query, TEXTS, label=label, top_k=50, function=function) == expected
    assert session.rank(query, [], label=names[0]) == []


def make_tokenizers(wordpiece: str) -> dict[str, str]:
    """One that marks subwords, one that marks words with blanks before them, and one of bytes."""
    import tokenizers
    from tokenizers import models, pre_tokenizers, processors, trainers

    made = {"wordpiece": wordpiece}
    for name, model, trainer in (
        ("unigram", models.Unigram(), trainers.UnigramTrainer),
        ("bytes", models.BPE(), trainers.BpeTrainer),
    ):
        tokenizer = tokenizers.Tokenizer(model)
        is_bytes = name == "bytes"
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel() if is_bytes else pre_tokenizers.Metaspace()
        options: dict[str, Any] = (
            {"initial_alphabet": pre_tokenizers.ByteLevel.alphabet()} if is_bytes else {"unk_token": "<unk>"}
        )
        special = ["<unk>", "<s>", "</s>"]
        tokenizer.train_from_iterator(
            make_texts(200, seed=9), trainer(vocab_size=300, special_tokens=special, show_progress=False, **options)
        )
        tokenizer.post_processor = processors.TemplateProcessing(
            single="<s> $A </s>", pair="<s> $A </s> $B </s>", special_tokens=[("<s>", 1), ("</s>", 2)]
        )
        made[name] = tokenizer.to_str()
    return made


@pytest.mark.parametrize("kind", ["wordpiece", "unigram", "bytes"])
def test_token_labels(make: Callable[..., Path], tokenizer_json: str, kind: str) -> None:
    tokenizer = make_tokenizers(tokenizer_json)[kind]
    path = make(
        "token-classification", {"labels": LABELS}, tokenizer, num_labels=len(LABELS), vocab_size=400, num_token_types=2
    )
    model = load(path)
    whole, windows = CModel(path, offset_unit=2), CModel(path, offset_unit=2, max_length=16, long_texts=2, stride=6)
    num_entities = 0
    for strategy in STRATEGIES:
        for ignored in (None, [], ["LOC", "B-LOC", "MISC", "x-y"]):
            options: dict[str, Any] = {"aggregation_strategy": strategy}
            options |= {} if ignored is None else {"ignore_labels": ignored}
            expected, is_truncated = model.answer_each(TEXTS, **options)
            assert whole.label(TEXTS, strategy, ignored) == without_words(expected)
            assert whole.is_truncated == is_truncated.tolist()
            if strategy == "none":
                continue
            expected, _ = model.answer_each(TEXTS, stride=6, max_length=16, **options)
            assert windows.label(TEXTS, strategy, ignored) == without_words(expected)
            num_entities += sum(map(len, expected))
    assert num_entities > 500
    found = {
        unit: CModel(path, offset_unit=i).label(TEXTS, "first") for i, unit in enumerate(("bytes", "_", "", "utf16"))
    }
    for text, *entities in zip(TEXTS, found[""], found["bytes"], found["utf16"], strict=True):
        for characters, of_bytes, of_utf16 in zip(*entities, strict=True):
            covered = text[characters["start"] : characters["end"]]
            assert text.encode()[of_bytes["start"] : of_bytes["end"]] == covered.encode()
            units = text.encode("utf-16-le")[2 * of_utf16["start"] : 2 * of_utf16["end"]]
            assert units == covered.encode("utf-16-le")


def test_answers(make: Callable[..., Path]) -> None:
    path = make("question-answering")
    model = load(path)
    contexts = [text for text in TEXTS if text] + [" ", "ΑΣ αΣ ας ασ İ i̇ a A" * 3]
    questions = [QUESTION_WORDS[i % len(QUESTION_WORDS)] for i in range(len(contexts))]
    short = len(questions)
    # questions that leave windows fewer tokens than the default stride
    questions += ["the router " * n for n in (10, 14, 21)]
    contexts += ["it is very slow , not good ! " * 9] * 3
    every_input = [{"question": q, "context": c} for q, c in zip(questions, contexts, strict=True)]
    for settings, python in (
        ({}, {}),
        ({"max_length": 47}, {"max_seq_len": 47}),
        ({"max_length": 24, "long_texts": 2, "stride": 3}, {"max_seq_len": 24, "doc_stride": 3}),
        ({"long_texts": 1}, {"truncation": True}),
    ):
        session = CModel(path, offset_unit=2, **settings)
        inputs = every_input[:short] if "stride" in settings else every_input
        for options, told in (
            ({}, {}),
            ({"top_k": 3, "max_answer_tokens": 4}, {"top_k": 3, "max_answer_len": 4}),
            ({"top_k": 20, "keeps_tokens": 1}, {"top_k": 20, "align_to_words": False}),
            ({"top_k": 4, "allows_no_answer": 1}, {"top_k": 4, "handle_impossible_answer": True}),
        ):
            expected, is_truncated = model.answer_each(inputs, **python, **told)
            expected = [found if isinstance(found, list) else [found] for found in expected]
            n = len(inputs)
            assert session.answer(questions[:n], contexts[:n], **options) == without_words(expected)
            assert session.is_truncated == is_truncated.tolist()
    units = CModel(path).answer(questions, contexts)
    for context, [told], [python_answer] in zip(
        contexts, units, CModel(path, offset_unit=2).answer(questions, contexts), strict=True
    ):
        covered = context[python_answer["start"] : python_answer["end"]]
        assert context.encode()[told["start"] : told["end"]].decode() == covered


@pytest.mark.parametrize("task", ["fill-mask", "pretraining"])
def test_masks(make: Callable[..., Path], task: str) -> None:
    path = make(task)
    model = load(path)
    texts = [f"{a} [MASK] {b}" for a, b in zip(make_texts(60, 2, 12), make_texts(60, 3, 12), strict=True)]
    texts += ["[MASK] [MASK] the [MASK]", "[MASK]"]
    for top_k in (1, 5, 101, 500):
        expected = model.answer_each(texts, top_k=top_k, task="fill-mask")[0]
        expected = [found if isinstance(found[0], list) else [found] for found in expected]
        told = [[[(one["token"], one["score"]) for one in mask] for mask in found] for found in expected]
        assert CModel(path, batch_tokens=50).fill(texts, top_k) == told
    windows = CModel(path, max_length=12, long_texts=2, stride=4)
    expected = model.answer_each([t * 3 for t in texts], top_k=2, max_length=12, stride=4, task="fill-mask")[0]
    expected = [found if isinstance(found[0], list) else [found] for found in expected]
    assert windows.fill([t * 3 for t in texts], 2) == [
        [[(one["token"], one["score"]) for one in mask] for mask in found] for found in expected
    ]
    with pytest.raises(CError, match="text 1 has no mask token") as error:
        CModel(path).fill(["[MASK]", "the"])
    assert error.value.args[0] == INVALID_INPUT
    with pytest.raises(CError, match="cut off: use EB_LONG_WINDOWS"):
        CModel(path, max_length=8).fill(["the router " * 9 + "[MASK]"])


@pytest.mark.parametrize("task", ["next-sentence", "pretraining"])
def test_next_sentences(make: Callable[..., Path], task: str) -> None:
    path = make(task)
    pairs = make_texts(len(TEXTS), seed=4)
    expected = load(path).answer_each(list(zip(TEXTS, pairs, strict=True)), top_k=2, task="next-sentence")[0]
    assert CModel(path).classify(TEXTS, pairs) == expected
    with pytest.raises(CError, match="takes pairs"):
        CModel(path).classify(TEXTS)


def test_truncation_on_the_left(make: Callable[..., Path], tokenizer_json: str) -> None:
    import tokenizers

    tokenizer = tokenizers.Tokenizer.from_str(tokenizer_json)
    tokenizer.enable_truncation(9, direction="left")
    path = make("embedding", tokenizer=tokenizer.to_str())
    assert CModel(path, max_length=9).embed(TEXTS).tobytes() == load(path).encode(TEXTS, max_length=9).tobytes()
    windows = CModel(path, max_length=9, long_texts=2, stride=3)
    assert windows.embed(TEXTS).tobytes() == load(path).encode(TEXTS, max_length=9, stride=3).tobytes()


def test_many_texts_in_chunks_and_small_batches(make: Callable[..., Path]) -> None:
    path = make("embedding")
    texts = make_texts(2500, seed=7)
    expected = load(path).encode(texts).tobytes()
    for batch_tokens in (0, 1, 100):
        session = CModel(path, batch_tokens=batch_tokens)
        for _ in range(2):  # memory of the call before is no part of the answer
            assert session.embed(texts).tobytes() == expected


def test_sessions_of_several_threads(make: Callable[..., Path]) -> None:
    path = make("embedding", int8=True)
    first = CModel(path, threads=2)
    expected = first.embed(TEXTS).tobytes()
    found: list[bytes] = []

    def ask(session: Any) -> None:
        for _ in range(5):
            found.append(session.embed(TEXTS).tobytes())

    sessions = [CModel(path, model=first.model) for _ in range(4)]
    threads = [threading.Thread(target=ask, args=[session]) for session in sessions]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [expected] * 20
    del sessions


def test_cancelling(make: Callable[..., Path]) -> None:
    path = make("embedding")
    session = CModel(path, batch_tokens=1)
    expected = session.embed(TEXTS).tobytes()
    session.library.eb_session_cancel(session.session, 1)
    for texts in (TEXTS, []):
        with pytest.raises(CError, match="cancelled") as error:
            session.embed(texts)
        assert error.value.args[0] == CANCELLED
    session.library.eb_session_cancel(session.session, 0)
    assert session.embed(TEXTS).tobytes() == expected
    timer = threading.Timer(0.05, session.library.eb_session_cancel, [session.session, 1])
    timer.start()
    with pytest.raises(CError, match="cancelled"):
        session.embed(TEXTS * 3000)  # minutes, if nobody ended it
    session.library.eb_session_cancel(session.session, 0)
    assert session.embed(TEXTS).tobytes() == expected


def test_refused_tokenizers_load_for_ids(make: Callable[..., Path], tokenizer_json: str) -> None:
    refused = tokenizer_json.replace('"BertNormalizer"', '"ByteLevel"')
    for tokenizer, message in ((refused, "normalizer"), (None, "no tokenizer"), ("{", "tokenizer")):
        path = make("embedding", tokenizer=tokenizer)
        with pytest.raises(CError, match=message) as error:
            CModel(path)
        assert error.value.args[0] == (2 if tokenizer == "{" else UNSUPPORTED)
        assert edgebert.load(make("embedding"), "native").backend.name == "native"
    with pytest.raises(CError, match="ids_only"):
        CModel(make("embedding"), ids_only=1)


def test_bad_calls(make: Callable[..., Path]) -> None:
    path = make("embedding", {"prompts": {"query": "q"}})
    session = CModel(path)

    def refused(message: str, call: Callable[[], Any]) -> None:
        with pytest.raises(CError, match=message) as error:
            call()
        assert error.value.args[0] == INVALID_INPUT

    refused("text 1 is not valid UTF-8 at byte 2", lambda: session.embed(["a", b"ab\xff"]))
    refused("text 1030 is not valid UTF-8", lambda: session.embed(["a"] * 1030 + [b"\xed\xa0\x80"]))
    refused("unknown prompt_name 'x': this file has query", lambda: session.embed(["a"], prompt_name=b"x"))
    refused("width is 25, the embeddings have 24", lambda: session.embed(["a"], width=25))
    refused("width is -1", lambda: session.embed(["a"], width=-1))
    for call in (
        lambda: session.classify(["a"]),
        lambda: session.rank("a", ["a"]),
        lambda: session.label(["a"]),
        lambda: session.answer(["a"], ["a"]),
        lambda: session.fill(["a"]),
    ):
        refused("does not fit this file: its head is embedding", call)
    refused("max_length is 49, expected 0 to 48", lambda: CModel(path, max_length=49))
    refused("long_texts is 3", lambda: CModel(path, long_texts=3))
    refused("offset_unit is 4", lambda: CModel(path, offset_unit=4))
    refused("stride is -1", lambda: CModel(path, stride=-1))
    for long_texts in (0, 1):
        refused("set long_texts to EB_LONG_WINDOWS", lambda to=long_texts: CModel(path, long_texts=to, stride=5))
    refused("max_length 9 leaves 7 tokens to a window", lambda: CModel(path, max_length=9, long_texts=2, stride=7))
    refused("batch_tokens is -1", lambda: CModel(path, batch_tokens=-1))
    refused("no room for the 2 special tokens of a text", lambda: CModel(path, max_length=1))
    refused("the prompt is not valid UTF-8 at byte 1", lambda: session.embed(["a"], prompt=b"a\xff"))
    refused("text 1 is not valid UTF-8 at byte 2", lambda: session.embed(["a", b"ab\xff"], prompt=b"query "))
    embeddings, huge = Embeddings(), Text(b"a", 1 << 40)
    refused(
        "1099511627776 bytes",
        lambda: check(session.library.eb_embed(session.session, byref(huge), 1, None, byref(embeddings))),
    )
    assert session.embed(["a\0b", "a"]).shape == (2, 24)
    assert session.embed(["the router"]).tobytes() == load(path).encode(["the router"]).tobytes()

    reader_path = make("question-answering")
    reader = CModel(reader_path)
    refused("context 1 is empty", lambda: reader.answer(["a", "a"], ["a", ""]))
    refused("question 0 is empty", lambda: reader.answer([""], ["a"]))
    refused("question 1 is not valid UTF-8 at byte 1", lambda: reader.answer(["a", b"b\xff"], ["a", "a"]))
    refused("context 1 is not valid UTF-8 at byte 0", lambda: reader.answer(["a", "a"], ["a", b"\xff"]))
    refused(
        "question 1: max_length 48 leaves 0 tokens to a window, special tokens and question 1 taken off",
        lambda: reader.answer(["a", "the " * 48], ["a", "the " * 99]),
    )
    refused("no room for the 3 special tokens of a pair", lambda: CModel(reader_path, max_length=2))
    refused("set long_texts to EB_LONG_WINDOWS", lambda: CModel(reader_path, stride=5))
    refused("top_k", lambda: reader.answer(["a"], ["a"], top_k=-1))
    tagger = CModel(make("token-classification"), long_texts=2)
    refused("EB_AGGREGATION_SIMPLE", lambda: tagger.label(["a"]))
    refused(r"ignored\[1\] is 'label_1', which is no label", lambda: tagger.label(["a"], "max", ["O", "label_1"]))
    ranker_path = make("text-classification")
    ranker, label = CModel(ranker_path), "LABEL_0"
    refused("the query is not valid UTF-8 at byte 0", lambda: ranker.rank(b"\xff", ["a", "a"], label=label))
    refused("text 1 is not valid UTF-8 at byte 0", lambda: ranker.rank("a", ["a", b"\xff"], label=label))
    refused("the pair of text 1 is not valid UTF-8", lambda: ranker.classify(["a", "a"], ["a", b"\xff"]))
    narrow = CModel(ranker_path, max_length=9, long_texts=2, stride=2)
    refused(
        "text 1: max_length 9 leaves 2 tokens to a window, special tokens and the query taken off, and stride is 2",
        lambda: narrow.rank("the router is off", ["a", "the router is off"], label=label),
    )
    refused("3 labels, and label is NULL", lambda: ranker.rank("a", ["a"]))
    refused("no label 'x'", lambda: ranker.rank("a", ["a"], label="x"))
    refused("top_k is negative", lambda: ranker.classify(["a"], top_k=-1))


def test_questions_to_a_model(make: Callable[..., Path]) -> None:
    session = CModel(make("text-classification", {"labels": LABELS}, num_labels=len(LABELS)))
    c, model = session.library, session.model
    assert c.eb_abi_version() == 1
    assert c.eb_model_task(model) == b"text-classification"
    assert c.eb_model_hidden_size(model) == 24
    assert c.eb_model_max_length(model) == c.eb_model_max_positions(model) == 48
    assert session.labels == list(LABELS)
    assert [c.eb_model_find_label(model, name) for name in (b"B-PER", b"", b"PER")] == [3, -1, -1]
    assert c.eb_model_label(model, len(LABELS)) is None and c.eb_model_label(model, -1) is None
    assert [c.eb_model_output(model, i) for i in range(c.eb_model_num_outputs(model))] == [b"logits"]
    assert c.eb_model_output(model, 1) is None
    assert [c.eb_model_output_width(model, name) for name in (b"logits", b"x")] == [len(LABELS), 0]
    assert c.eb_model_tokenizer(model)


def test_scores_are_right_to_the_last_bit_but_for_ties() -> None:
    x = np.concatenate([np.linspace(-110, 90, 20001), np.linspace(-1, 1, 999)]).astype(np.float32)
    exact = x.astype(np.longdouble)
    half_ulp = np.longdouble(0.501)

    def assert_near(found: np.ndarray, expected: np.ndarray) -> None:
        assert found.dtype == np.float32
        assert (abs(found - expected) <= half_ulp * np.spacing(abs(expected).astype(np.float32))).all()

    assert (abs(exp(x.astype(np.float64)) / np.exp(exact) - 1) < 2.0**-33).all()
    assert_near(sigmoid(x), 1 / (1 + np.exp(-exact)))
    assert_near(tanh(x), np.tanh(exact))
    rows = np.random.default_rng(0).normal(0, 9, (300, 7)).astype(np.float32)
    powers = np.exp(rows.astype(np.longdouble))
    assert_near(softmax(rows), powers / powers.sum(axis=1, keepdims=True))
    assert softmax(rows[0]).shape == (7,)
    assert np.isnan(softmax(np.array([[0.0, np.nan]], np.float32))).all()
