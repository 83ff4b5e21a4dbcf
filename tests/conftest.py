"""Fixtures: the backends and instruction sets usable here, and a small tokenizer."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from artifacts import random_artifact

from edgebert.backends.registry import available_backends

os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")  # tests start subprocesses

BACKENDS = [name for name, reason in available_backends().items() if reason is None]


def usable_isas() -> list[str]:
    """Instruction sets of the native backend that this CPU can run, best first; none where it is not built."""
    if "native" not in BACKENDS:
        return []
    from edgebert.backends import native

    return list(native.usable_isas())


ISAS = usable_isas()

_VOCABULARY = (
    "[PAD] [UNK] [CLS] [SEP] a b c d e the router restart restarts slow fast water roses at root turn modem off and on "
    "is it not very good bad query : passage über straße 中 文 ##s ##ed ##ing . , ! ? [MASK]"
)
WORDS = _VOCABULARY.split()


@pytest.fixture(params=BACKENDS)
def backend(request: pytest.FixtureRequest) -> str:
    """Each backend that is usable here, in turn."""
    name: str = request.param
    return name


@pytest.fixture(params=ISAS or [pytest.param("", marks=pytest.mark.skip(reason="the native backend is not built"))])
def isa(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Each usable instruction set in turn, forced on the native backend."""
    name: str = request.param
    monkeypatch.setenv("EDGEBERT_FORCE_ISA", name)
    return name


@pytest.fixture(scope="session")
def tokenizer_json() -> str:
    """A WordPiece tokenizer over WORDS that frames rows as BERT does."""
    import tokenizers
    from tokenizers import models, normalizers, pre_tokenizers, processors

    vocabulary = {word: i for i, word in enumerate(WORDS)}
    tokenizer = tokenizers.Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer()
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[(word, vocabulary[word]) for word in ("[CLS]", "[SEP]")],
    )
    tokenizer.add_special_tokens(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"])
    return str(tokenizer.to_str())


@pytest.fixture(scope="session")
def wider_tokenizer_json(tokenizer_json: str) -> str:
    """The same with <new>, of the id len(WORDS): a token that was added to the tokenizer alone."""
    import tokenizers

    tokenizer = tokenizers.Tokenizer.from_str(tokenizer_json)
    tokenizer.add_special_tokens(["<new>"])
    return str(tokenizer.to_str())


@pytest.fixture
def make_file(tmp_path: Path, tokenizer_json: str) -> Callable[..., Path]:
    """A function that writes a random model file with a tokenizer; its arguments are those of `random_artifact`."""

    def make(name: str = "model.onnx", **arguments: Any) -> Path:
        path = tmp_path / name
        random_artifact(path, **{"tokenizer_json": tokenizer_json, **arguments})
        return path

    return make
