"""Trimming the vocabulary: the corpus keeps its pieces, other text its characters, the tables their rows."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from artifacts import random_spec, random_tensors

tokenizers = pytest.importorskip("tokenizers")

from tokenizers import decoders, models, normalizers, pre_tokenizers, processors, trainers  # noqa: E402

from edgebert.artifact.names import weight_tensors  # noqa: E402
from edgebert.backends.numpy_backend import NumpyBackend  # noqa: E402
from edgebert.batch import PackedBatch  # noqa: E402
from edgebert.checkpoints.loading import Checkpoint  # noqa: E402
from edgebert.compress.vocabulary import trim, unknown_share  # noqa: E402
from edgebert.errors import InvalidInputError, UnsupportedModelError  # noqa: E402

DATA = Path(__file__).parents[1] / "edgebert" / "data"
SPECIAL = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
CORPUS = ["The ferry leaves at noon; the ferries leave later.", ("Is the water warm?", "It is not."), "naïve café 中文"]
OTHER = ["Unseen wording everywhere: zebra quartz!", "the", "", "a  b\tc"]


def make_tokenizer(kind: str, texts: list[str]) -> str:
    """A tokenizer of some 800 pieces with an added token that its model does not have."""
    start: dict[str, Any] = {"vocab_size": 800, "special_tokens": SPECIAL, "show_progress": False}
    if kind == "wordpiece":
        tokenizer = tokenizers.Tokenizer(models.WordPiece({}, unk_token="<unk>"))
        tokenizer.normalizer = normalizers.BertNormalizer()
        tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
        trainer = trainers.WordPieceTrainer(**start)
    elif kind == "unigram":
        tokenizer = tokenizers.Tokenizer(models.Unigram())
        tokenizer.normalizer = normalizers.NFKC()
        tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
        trainer = trainers.UnigramTrainer(unk_token="<unk>", **start)
    elif kind == "byte-level":
        tokenizer = tokenizers.Tokenizer(models.BPE())
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        tokenizer.decoder = decoders.ByteLevel()
        trainer = trainers.BpeTrainer(initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), **start)
    else:
        tokenizer = tokenizers.Tokenizer(models.BPE(unk_token="<unk>", end_of_word_suffix="</w>"))
        tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
        trainer = trainers.BpeTrainer(end_of_word_suffix="</w>", **start)
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.add_special_tokens(["<extra>"])
    sep, cls = (("</s>", 2), ("<s>", 0))
    if kind == "byte-level":
        tokenizer.post_processor = processors.RobertaProcessing(sep, cls)
    elif kind == "wordpiece":
        tokenizer.post_processor = processors.Sequence([processors.BertProcessing(sep, cls)])
    else:
        tokenizer.post_processor = processors.TemplateProcessing(
            single="<s> $A </s>", pair="<s> $A </s> $B </s>", special_tokens=[sep, cls]
        )
    return str(tokenizer.to_str())


@pytest.fixture(scope="module")
def texts() -> list[str]:
    lines = (DATA / "calibration.txt").read_text(encoding="utf-8").splitlines()
    return [*lines, *(part for text in CORPUS for part in ([text] if isinstance(text, str) else text))]


@pytest.fixture(scope="module", params=["wordpiece", "unigram", "byte-level", "end-of-word"])
def tokenizer_json(request: pytest.FixtureRequest, texts: list[str]) -> str:
    return make_tokenizer(request.param, texts)


def make_checkpoint(tokenizer_json: str | None, task: str = "embedding", **changes: Any) -> Checkpoint:
    size = tokenizers.Tokenizer.from_str(tokenizer_json).get_vocab_size() if tokenizer_json else 50
    spec = random_spec(task=task, vocab_size=size + 7, layers=((2, 8, 16),)).replace(pad_token_id=1, **changes)
    config = {"vocab_size": spec.vocab_size, "pad_token_id": 1, "bos_token_id": 0, "hidden_size": 24}
    files = {name: Path(name) for name in ("tokenizer.json", "tokenizer_config.json", "vocab.txt")}
    return Checkpoint(spec, random_tensors(spec), tokenizer_json, config, files, Path())


def encode(checkpoint: Checkpoint, texts: list[Any]) -> list[Any]:
    return list(tokenizers.Tokenizer.from_str(checkpoint.tokenizer_json).encode_batch(texts))


def test_corpus_keeps_its_pieces_and_their_rows(tokenizer_json: str) -> None:
    whole = make_checkpoint(tokenizer_json)
    small = trim(whole, CORPUS)
    assert small.spec.vocab_size < 0.6 * whole.spec.vocab_size
    assert small.spec == whole.spec.replace(vocab_size=small.spec.vocab_size)  # the pad token comes early, and stays
    assert {n: t.shape for n, t in small.tensors.items()} == {n: s for n, (_, s) in weight_tensors(small.spec).items()}
    assert small.config == whole.config | {"vocab_size": small.spec.vocab_size}
    assert list(small.source_files) == ["tokenizer_config.json"]
    rows = "embeddings.word.weight"
    for before, after in zip(encode(whole, CORPUS), encode(small, CORPUS), strict=True):
        assert after.tokens == before.tokens
        assert after.offsets == before.offsets
        assert after.type_ids == before.type_ids
        assert np.array_equal(small.tensors[rows][after.ids], whole.tensors[rows][before.ids])
    ids = sorted(tokenizers.Tokenizer.from_str(small.tokenizer_json).get_vocab().values())
    assert ids == list(range(small.spec.vocab_size))


def test_order_of_kept_pieces(tokenizer_json: str) -> None:
    whole = make_checkpoint(tokenizer_json)
    old, new = (
        tokenizers.Tokenizer.from_str(text).get_vocab() for text in (tokenizer_json, trim(whole, CORPUS).tokenizer_json)
    )
    assert sorted(new, key=new.__getitem__) == sorted(new, key=old.__getitem__)
    assert {*SPECIAL, "<extra>"} <= new.keys()


def test_other_text_is_spelled(tokenizer_json: str) -> None:
    whole = make_checkpoint(tokenizer_json)
    small = trim(whole, CORPUS)
    for before, after in zip(encode(whole, OTHER), encode(small, OTHER), strict=True):
        spelled = ["".join(encoding.tokens).replace("##", "") for encoding in (before, after)]
        assert spelled[0] == spelled[1]
        assert after.tokens.count("<unk>") == before.tokens.count("<unk>")
    assert trim(small, OTHER).spec.vocab_size <= small.spec.vocab_size  # a trimmed checkpoint is a checkpoint
    snow = unknown_share(small.tokenizer_json or "", ["☃"])
    assert snow == unknown_share(tokenizer_json, ["☃"])


def test_prompts_are_part_of_the_corpus(tokenizer_json: str) -> None:
    whole = make_checkpoint(tokenizer_json, prompts={"query": "question: "})
    small = trim(whole, CORPUS)
    texts = ["question: " + text for text in CORPUS if isinstance(text, str)]
    assert [e.tokens for e in encode(small, texts)] == [e.tokens for e in encode(whole, texts)]


def test_masked_language_model_keeps_the_logits_of_kept_pieces(tokenizer_json: str) -> None:
    whole = make_checkpoint(tokenizer_json, task="fill-mask")
    small = trim(whole, CORPUS)
    logits = []
    for checkpoint in (whole, small):
        batch = PackedBatch.from_lists([encoding.ids for encoding in encode(checkpoint, CORPUS)])
        logits.append(NumpyBackend(checkpoint.spec, checkpoint.tensors).run(batch, ["logits"])["logits"])
    old, new = (tokenizers.Tokenizer.from_str(c.tokenizer_json).get_vocab() for c in (whole, small))
    kept = [old[token] for token in sorted(new, key=new.__getitem__)]
    assert np.allclose(logits[1], logits[0][:, kept], rtol=1e-5, atol=1e-5)


def test_positions_that_count_from_the_pad_token(tokenizer_json: str) -> None:
    spec = make_checkpoint(tokenizer_json).spec
    whole = replace(
        make_checkpoint(tokenizer_json), spec=spec.replace(position_offset=6, pad_token_id=5, max_length=70)
    )
    assert trim(whole, CORPUS).spec.pad_token_id == 5


def test_merges_written_as_strings(texts: list[str]) -> None:
    source = json.loads(make_tokenizer("byte-level", texts))
    pairs = trim(make_checkpoint(json.dumps(source)), CORPUS).tokenizer_json
    source["model"]["merges"] = [" ".join(pair) for pair in source["model"]["merges"]]
    strings = trim(make_checkpoint(json.dumps(source)), CORPUS).tokenizer_json
    read: Callable[[str | None], Any] = lambda text: json.loads(  # noqa: E731
        tokenizers.Tokenizer.from_str(text).to_str()
    )
    assert read(pairs) == read(strings)


def test_refused(tokenizer_json: str) -> None:
    whole = make_checkpoint(tokenizer_json)
    with pytest.raises(InvalidInputError, match="no text"):
        trim(whole, [])
    with pytest.raises(UnsupportedModelError, match="no tokenizer"):
        trim(make_checkpoint(None), CORPUS)
    source = json.loads(tokenizer_json)
    source["model"] = {"type": "WordLevel", "vocab": {"<unk>": 0}, "unk_token": "<unk>"}
    with pytest.raises(UnsupportedModelError, match="WordLevel"):
        trim(replace(whole, tokenizer_json=json.dumps(source)), CORPUS)
    with pytest.raises(UnsupportedModelError, match="the word table has 100 rows"):
        trim(replace(whole, spec=whole.spec.replace(vocab_size=100)), CORPUS)
