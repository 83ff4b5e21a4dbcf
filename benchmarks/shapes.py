"""What is measured: the models, the lengths, and a stream of texts as long as real ones.

Rows of token ids are the project's own demo sentences, laid end to end and cut to length, so that every row of a length
is ordinary English to the model.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from edgebert.demo import SENTENCES_FILE
from edgebert.exporting.export import CALIBRATION_FILE

LENGTHS = (16, 32, 128, 512)
CLS, SEP = 101, 102  # of BERT's uncased vocabulary, which both models have

# Tokens of a sentence, special tokens included -> how many of the 3,000 sentences of the STS Benchmark's development
# set have so many (all-MiniLM-L6-v2's tokenizer); 16.2 in the mean.
LENGTH_HISTOGRAM = {
    5: 1, 6: 10, 7: 69, 8: 176, 9: 308, 10: 248, 11: 234, 12: 190, 13: 173, 14: 148, 15: 120, 16: 133, 17: 93, 18: 111,
    19: 112, 20: 100, 21: 111, 22: 77, 23: 81, 24: 70, 25: 59, 26: 65, 27: 41, 28: 32, 29: 36, 30: 29, 31: 30, 32: 18,
    33: 24, 34: 21, 35: 15, 36: 19, 37: 13, 38: 11, 39: 4, 40: 6, 41: 4, 42: 2, 43: 1, 44: 2, 45: 1, 48: 1, 53: 1,
}  # fmt: skip

# The same of a question with its passage: 3,753 of SQuAD v1.1's training questions, rounded up to sixteens, what
# is longer cut to 384 (32 of them).
SQUAD_HISTOGRAM = {
    96: 11, 112: 156, 128: 514, 144: 639, 160: 571, 176: 440, 192: 363, 208: 269, 224: 233, 240: 138, 256: 92, 272: 62,
    288: 67, 304: 57, 320: 36, 336: 33, 352: 18, 368: 9, 384: 45,
}  # fmt: skip


@dataclass(frozen=True)
class Shape:
    """A model's sizes.

    Attributes:
        name: for people and in results.
        weights: where they come from, in words.
        stream: texts of the batch-scoring workload; fewer for a slower model.
    """

    name: str
    num_layers: int
    hidden_size: int
    num_heads: int
    intermediate_size: int
    weights: str
    stream: int

    def count_operations(self, lengths: Sequence[int]) -> int:
        """Multiplications and additions of the matrix products of texts of these lengths; nothing for padding."""
        hidden, tokens = self.hidden_size, sum(lengths)
        linears = tokens * (4 * hidden * hidden + 2 * hidden * self.intermediate_size)
        attention = 2 * hidden * sum(length * length for length in lengths)
        return 2 * self.num_layers * (linears + attention)


MINILM = Shape("minilm-l6", 6, 384, 12, 1536, "all-MiniLM-L6-v2", 256)
BERT_BASE = Shape("bert-base", 12, 768, 12, 3072, "random, of BERT-base's shape", 32)
SHAPES = (MINILM, BERT_BASE)
BERT_LARGE = Shape("bert-large", 24, 1024, 16, 4096, "random, of BERT-large's shape", 16)


def draw_lengths(count: int, seed: int = 0, histogram: dict[int, int] = LENGTH_HISTOGRAM) -> list[int]:
    """Lengths of `count` texts drawn from a histogram."""
    lengths, weights = np.array(list(histogram)), np.array(list(histogram.values()))
    return np.random.default_rng(seed).choice(lengths, count, p=weights / weights.sum()).tolist()  # type: ignore[no-any-return]


class Texts:
    """Rows of token ids made from the project's own sentences.

    Args:
        tokenizer_file: a tokenizer.json with BERT's uncased vocabulary.
    """

    def __init__(self, tokenizer_file: Path) -> None:
        from tokenizers import Tokenizer

        tokenizer = Tokenizer.from_file(str(tokenizer_file))
        tokenizer.no_padding()
        tokenizer.no_truncation()
        self.sentences, self.calibration = (
            [encoding.ids for encoding in tokenizer.encode_batch(path.read_text(encoding="utf-8").splitlines())]
            for path in (SENTENCES_FILE, CALIBRATION_FILE)
        )
        self._words = [token for row in self.sentences for token in row[1:-1]]

    def cut(self, lengths: Sequence[int]) -> list[list[int]]:
        """Rows of exactly these lengths, each going on where the one before it ended."""
        rows, at = [], 0
        for length in lengths:
            words = np.take(self._words, range(at, at + length - 2), mode="wrap").tolist()
            rows.append([CLS, *words, SEP])
            at += length - 2
        return rows


def make_source(shape: Shape, minilm: Path, folder: Path) -> Path:
    """The Hugging Face folder of a model: MiniLM's own, or a random model of that shape made in `folder` (needs torch).

    The random one takes tokenizer and pooling of MiniLM. Its weights are drawn three times as wide as a BERT's first
    ones, so that its embeddings tell texts apart.
    """
    if shape is MINILM:
        return minilm
    target = folder / "source"
    if target.exists():
        return target
    import torch
    from transformers import BertConfig, BertModel

    torch.manual_seed(0)
    config = BertConfig(
        num_hidden_layers=shape.num_layers,
        hidden_size=shape.hidden_size,
        num_attention_heads=shape.num_heads,
        intermediate_size=shape.intermediate_size,
        initializer_range=0.06,
        position_embedding_type="absolute",  # CTranslate2's converter asks for it
    )
    draft = folder / "draft-source"
    shutil.rmtree(draft, ignore_errors=True)
    BertModel(config).save_pretrained(draft)
    for name in ("tokenizer.json", "tokenizer_config.json", "modules.json", "sentence_bert_config.json"):
        if (minilm / name).exists():
            shutil.copy(minilm / name, draft / name)
    for name, values in {"1_Pooling": {"word_embedding_dimension": shape.hidden_size}, "2_Normalize": {}}.items():
        (draft / name).mkdir()
        pooling: dict[str, Any] = {**values, "pooling_mode_mean_tokens": True} if values else {}
        (draft / name / "config.json").write_text(json.dumps(pooling), encoding="utf-8")
    draft.rename(target)
    return target
