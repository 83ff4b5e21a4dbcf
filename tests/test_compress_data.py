"""Task data, its encoding and its metrics: formats, every complaint, alignment with tokens, agreement with seqeval."""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from artifacts import random_spec
from conftest import WORDS

from edgebert.artifact.spec import EncoderSpec
from edgebert.backends.base import Backend, Outputs
from edgebert.batch import PackedBatch
from edgebert.checkpoints.loading import Checkpoint
from edgebert.compress.data import Answer, hold_out, load_dataset
from edgebert.compress.encode import IGNORED, encode, load_tokenizer
from edgebert.compress.evaluate import evaluate, find_entities, word_f1
from edgebert.errors import InvalidInputError

CLASSIFICATION = [{"text": f"text {i}", "label": ("good", "bad")[i % 2]} for i in range(40)]


def write_rows(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def checkpoint_for(tokenizer_json: str, **spec: Any) -> Checkpoint:
    return Checkpoint(random_spec(**spec), {}, tokenizer_json, {}, {}, Path())


class Told(Backend):
    """Gives what it is told to: of a row's ids and an output's name, its logits."""

    name = device = detail = "told"

    def __init__(self, spec: EncoderSpec, tell: Callable[[list[int], str], Any]) -> None:
        self.spec, self._tell = spec, tell

    def _run(self, batch: PackedBatch, outputs: Sequence[str]) -> Outputs:
        rows = [row.tolist() for row in np.split(batch.input_ids, batch.cu_seqlens[1:-1])]
        found = {name: [self._tell(row, name) for row in rows] for name in outputs}
        return {
            name: np.concatenate(values, dtype=np.float32) if self.spec.output_width(name)[0] else np.float32(values)
            for name, values in found.items()
        }


@pytest.mark.parametrize("task", ["text-classification", "token-classification", "question-answering"])
def test_a_token_that_the_model_has_no_row_for_is_named(task: str, wider_tokenizer_json: str, tmp_path: Path) -> None:
    rows: list[dict[str, Any]] = {
        "text-classification": [{"text": text, "label": text} for text in ("a", "a <new>")],
        "token-classification": [{"tokens": text.split(), "tags": text.split()} for text in ("a", "a <new>")],
        "question-answering": [
            {"question": "a", "context": text, "answers": {"text": ["a"], "answer_start": [0]}}
            for text in ("a " * 99, "a <new>")
        ],
    }[task]
    dataset = load_dataset(write_rows(tmp_path / "rows.jsonl", rows), task)
    checkpoint = checkpoint_for(wider_tokenizer_json, task=task, vocab_size=len(WORDS))
    checkpoint.spec = checkpoint.spec.replace(labels=dataset.labels)
    with pytest.raises(InvalidInputError, match=f"text 1: the tokenizer gives '<new>' the id {len(WORDS)}"):
        encode(dataset, checkpoint, max_length=20)


def test_all_formats_give_the_same(tmp_path: Path) -> None:
    import pyarrow
    from pyarrow import parquet

    lines = "".join(json.dumps(row) + "\n" for row in CLASSIFICATION)
    table = [f"{row['text']},{row['label']}" for row in CLASSIFICATION]
    (tmp_path / "a.jsonl").write_text(lines)
    (tmp_path / "a.jsonl.gz").write_bytes(gzip.compress(lines.encode()))
    (tmp_path / "a.csv").write_text("text,label\n" + "\n".join(table) + "\n\n")
    (tmp_path / "a.tsv.gz").write_bytes(gzip.compress(("text\tlabel\n" + "\n".join(table).replace(",", "\t")).encode()))
    parquet.write_table(pyarrow.Table.from_pylist(CLASSIFICATION), tmp_path / "a.parquet")
    with pyarrow.output_stream(tmp_path / "a.ndjson.zst") as stream:
        stream.write(lines.encode())
    loaded = [
        load_dataset(tmp_path / f"a.{kind}", "text-classification")
        for kind in ("jsonl", "jsonl.gz", "csv", "tsv.gz", "ndjson.zst", "parquet")
    ]
    for dataset in loaded:
        assert (dataset.inputs, dataset.targets) == (loaded[0].inputs, loaded[0].targets)
        assert dataset.labels == ("bad", "good")


def test_kinds_of_targets(tmp_path: Path) -> None:
    pair = write_rows(tmp_path / "p.jsonl", [{"sentence1": "a", "sentence2": "b", "score": i} for i in range(3)])
    for task in ("text-classification", "embedding"):
        dataset = load_dataset(pair, task)
        assert dataset.inputs[0] == ("a", "b") and dataset.targets == [0.0, 1.0, 2.0]
        assert dataset.problem_type == "regression"
    several = write_rows(tmp_path / "m.jsonl", [{"text": "a", "labels": ["x", "y"]}, {"text": "b", "labels": []}])
    dataset = load_dataset(several, "text-classification")
    assert dataset.problem_type == "multi_label_classification" and dataset.targets == [("x", "y"), ()]
    named = write_rows(tmp_path / "n.jsonl", [{"review": "a", "stars": "1"}, {"review": "b", "stars": "2"}])
    dataset = load_dataset(named, "text-classification", columns={"text": "review", "label": "stars"})
    assert dataset.labels == ("1", "2")
    squad = {"question": "who", "context": "the cat", "answers": {"text": ["cat"], "answer_start": [4]}}
    dataset = load_dataset(write_rows(tmp_path / "q.jsonl", [squad]), "question-answering")
    assert dataset.targets == [(Answer("cat", 4),)]


BAD: dict[str, tuple[str, str, str]] = {  # name -> (task, file, what the message says)
    "renamed": ("text-classification", '{"body": "a", "label": "x"}', "body"),
    "no-label": ("text-classification", '{"text": "a"}', "label"),
    "empty-text": ("text-classification", '{"text": " ", "label": "x"}', "row 1"),
    "not-text": ("text-classification", '{"text": "a", "label": "x"}\n{"text": 3, "label": "x"}', "row 2"),
    "one-class": ("text-classification", '{"text": "a", "label": "x"}\n{"text": "b", "label": "x"}', "one class"),
    "mixed-labels": ("text-classification", '{"text": "a", "label": "x"}\n{"text": "b", "label": 1}', "row 2"),
    "not-json": ("text-classification", '{"text": "a"', "line 1"),
    "no-rows": ("text-classification", "\n\n", "no rows"),
    "queries": (
        "embedding",
        '{"query": "a", "positives": ["b"]}\n{"query": "a", "positives": []}',
        "row 2.*list of texts",
    ),
    "score": ("embedding", '{"text": "a", "text_pair": "b", "score": "high"}', "number"),
    "tags": ("token-classification", '{"tokens": ["a", "b"], "tags": ["O"]}', "a tag for each"),
    "answer": (
        "question-answering",
        '{"question": "a", "context": "b c", "answers": [{"text": "c", "start": 0}]}',
        "character 0",
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_files_are_named(name: str, tmp_path: Path) -> None:
    task, text, message = BAD[name]
    (tmp_path / "bad.jsonl").write_text(text)
    with pytest.raises(InvalidInputError, match=message) as error:
        load_dataset(tmp_path / "bad.jsonl", task)
    assert "bad.jsonl" in str(error.value)


def test_encodings_columns_and_ends_of_files(tmp_path: Path) -> None:
    (tmp_path / "latin.csv").write_bytes("text,label\na,x\nüber,y\n".encode("latin-1"))
    with pytest.raises(InvalidInputError, match="line 3.*UTF-8"):
        load_dataset(tmp_path / "latin.csv", "text-classification")
    (tmp_path / "half.jsonl").write_text('\n{"tokens": ["a", "\\ud83d"], "tags": ["O", "O"]}\n')
    with pytest.raises(InvalidInputError, match="line 2 is not UTF-8"):
        load_dataset(tmp_path / "half.jsonl", "token-classification")
    (tmp_path / "twice.csv").write_text("text,text\na,b\n")
    with pytest.raises(InvalidInputError, match="names a column twice, 'text'"):
        load_dataset(tmp_path / "twice.csv", "fill-mask")
    with pytest.raises(InvalidInputError, match="is a folder"):
        load_dataset(tmp_path, "fill-mask")
    (tmp_path / "wide.csv").write_text("text,label\na,b,c\n")
    with pytest.raises(InvalidInputError, match="line 2.*3 fields"):
        load_dataset(tmp_path / "wide.csv", "text-classification")
    (tmp_path / "cut.jsonl.gz").write_bytes(gzip.compress(b'{"text": "a"}')[:-9])
    with pytest.raises(InvalidInputError, match="cut.jsonl.gz"):
        load_dataset(tmp_path / "cut.jsonl.gz", "fill-mask")
    path = write_rows(tmp_path / "a.jsonl", CLASSIFICATION)
    with pytest.raises(InvalidInputError, match="no column 'body'"):
        load_dataset(path, "text-classification", columns={"text": "body"})
    with pytest.raises(InvalidInputError, match="lacks: good"):
        load_dataset(path, "text-classification", labels=("bad", "ugly"))
    with pytest.raises(InvalidInputError, match="missing.csv"):
        load_dataset(tmp_path / "missing.csv", "text-classification")


def test_held_out_rows_follow_the_text(tmp_path: Path) -> None:
    rows = CLASSIFICATION * 2
    train, held = hold_out(load_dataset(write_rows(tmp_path / "a.jsonl", rows), "text-classification"))
    assert len(train) + len(held) == len(rows) and not set(train.inputs) & set(held.inputs)
    again, _ = hold_out(load_dataset(write_rows(tmp_path / "b.jsonl", rows[::-1]), "text-classification"))
    assert sorted(again.inputs) == sorted(train.inputs)


def test_the_first_piece_of_a_word_has_its_tag(tmp_path: Path, tokenizer_json: str) -> None:
    rows = [{"tokens": ["the", "restarts!", "router", "\u200b"], "tags": ["O", "B-x", "I-x", "O"]}]
    dataset = load_dataset(write_rows(tmp_path / "a.jsonl", rows), "token-classification")
    checkpoint = checkpoint_for(tokenizer_json, task="token-classification")
    checkpoint.spec = checkpoint.spec.replace(labels=dataset.labels)
    examples = encode(dataset, checkpoint)
    labels = [None if target == IGNORED else dataset.labels[target] for target in examples.targets[0]]
    # [CLS] the restarts ! router [SEP]; the last word has no token
    assert labels == [None, "O", "B-x", None, "I-x", None]
    assert examples.counts["lost_words"] == 1
    short = encode(dataset, checkpoint, max_length=4)
    assert short.counts == {"truncated": 1, "lost_words": 2}


def test_windows_find_the_answer(tmp_path: Path, tokenizer_json: str) -> None:
    context = "the router is slow and the modem is fast . a b c d e the water roses at the root"
    start = context.index("roses")
    rows = [{"question": "query", "context": context, "answers": [{"text": "roses", "start": start}]}]
    dataset = load_dataset(write_rows(tmp_path / "a.jsonl", rows), "question-answering")
    checkpoint = checkpoint_for(tokenizer_json, task="question-answering")
    examples = encode(dataset, checkpoint, max_length=14)
    assert len(examples) > 1 and examples.counts["windowed"] == 1
    for i, (first, last) in enumerate(examples.targets):
        ids = examples.batch.take([i]).input_ids.tolist()
        assert (WORDS.index("roses") in ids) == (first > 0)
        assert first == last == (ids.index(WORDS.index("roses")) if first else 0)

    def right(row: list[int], name: str) -> list[float]:  # a model that knows
        return [5.0 * (token == WORDS.index("roses")) for token in row]

    tokenizer = load_tokenizer(checkpoint)
    found = evaluate(Told(checkpoint.spec, right), tokenizer, dataset, max_length=14)
    assert found.metrics == {"exact_match": 1.0, "f1": 1.0} and not found.mistakes


@pytest.mark.parametrize(
    ("found", "answer", "score"),
    [
        ("the red roses", "red roses!", 1.0),
        ("red roses", "roses", 2 / 3),
        ("光荣和", "光荣和ω-force", 6 / 7),
        ("東京", "東京タワー", 4 / 7),
        ("", "光", 0.0),
    ],
)
def test_answers_overlap_in_words_or_ideographs(found: str, answer: str, score: float) -> None:
    assert word_f1(found, Answer(answer, 0)) == pytest.approx(score)


def test_entities_are_counted_as_seqeval_counts_them() -> None:
    seqeval = pytest.importorskip("seqeval.metrics.sequence_labeling")
    rng = np.random.default_rng(0)
    tags = ["O", "B-a", "I-a", "E-a", "S-a", "B-b", "I-b"]
    for _ in range(300):
        row = rng.choice(tags, rng.integers(1, 9)).tolist()
        assert find_entities(row) == {tuple(entity) for entity in seqeval.get_entities(row)}, row


@pytest.fixture
def classify(tokenizer_json: str) -> Callable[..., Any]:
    def make(problem_type: str, rows: list[dict[str, Any]], logits: Any, path: Path) -> Any:
        dataset = load_dataset(write_rows(path, rows), "text-classification", problem_type=problem_type)
        checkpoint = checkpoint_for(tokenizer_json, task="text-classification")
        checkpoint.spec = checkpoint.spec.replace(labels=dataset.labels, problem_type=problem_type)
        tokenizer = load_tokenizer(checkpoint)
        number = {tuple(row.input_ids.tolist()): row.text for row in tokenizer.make_rows(dataset.texts())[0]}
        return evaluate(Told(checkpoint.spec, lambda row, _: logits[number[tuple(row)]]), tokenizer, dataset)

    return make


def test_classification_metrics(classify: Callable[..., Any], tmp_path: Path) -> None:
    texts = ["a b c", "a", "a b", "d"]
    rows = [{"text": text, "label": label} for text, label in zip(texts, ["x", "y", "y", "z"], strict=True)]
    logits = [[3, 0, 0], [0, 3, 0], [3, 0, 0], [0, 0, 3]]
    found = classify("single_label_classification", rows, logits, tmp_path / "a.jsonl")
    assert found.metrics == {"accuracy": 0.75, "macro_f1": pytest.approx((2 / 3 + 2 / 3 + 1) / 3)}
    assert [(m.text, m.expected, m.found) for m in found.mistakes] == [("a b", "y", "x")]
    rows = [{"text": text, "labels": ["x"] if i else ["x", "y"]} for i, text in enumerate(texts)]
    found = classify("multi_label_classification", rows, [[1, -1]] * 4, tmp_path / "b.jsonl")
    assert found.metrics == {"micro_f1": pytest.approx(2 * 4 / (4 + 5)), "accuracy": 0.75}
    rows = [{"text": text, "score": i} for i, text in enumerate(texts)]
    found = classify("regression", rows, [[1], [2], [3], [9]], tmp_path / "c.jsonl")
    assert found.score == pytest.approx(1.0)
