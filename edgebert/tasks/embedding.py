"""Sentence embeddings: texts with a prompt before them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgebert.artifact.spec import EncoderSpec
from edgebert.errors import InvalidInputError
from edgebert.tasks import base
from edgebert.tasks.base import (
    F32,
    Outputs,
    Prepared,
    check_count,
    check_texts,
    gather_texts,
    make_rows,
    normalize,
    read_numbers,
)
from edgebert.tokenizer import Tokenizer, check_text

Rows = NDArray[Any]  # of embeddings: f32, f16, or codes

MAX_COSINES = 1 << 24  # that a search holds at a time
DTYPES = ("f32", "f16", "int8", "binary")  # that embeddings are stored in


@dataclass(frozen=True, kw_only=True)
class Options(base.Options):
    """How texts are embedded.

    Attributes:
        prompt_name: name of one of the file's prompts, put before every text; the file's default prompt if None.
        prompt: a prompt of the caller's own, instead of one by name.
        normalize_embeddings: scale each to length 1, also where the file does not.
        truncate_dim: keep this many leading dimensions, for models trained so that these can stand alone.

    Raises:
        InvalidInputError: a prompt name or width that is not usable.
    """

    prompt_name: str | None = None
    prompt: str | None = None
    normalize_embeddings: bool = False
    truncate_dim: int | None = None

    def __post_init__(self) -> None:
        find_prompt(self.spec, self.prompt_name, self.prompt)
        width = self.spec.output_width("sentence_embedding")[1]
        if self.truncate_dim is not None and check_count("truncate_dim", self.truncate_dim) > width:
            raise InvalidInputError(f"truncate_dim is {self.truncate_dim}, the embeddings have {width} dimensions")


def prepare(texts: Sequence[str], tokenizer: Tokenizer, options: Options) -> Prepared:
    """Rows of texts, each with the prompt before it.

    Raises:
        InvalidInputError: a text that is not usable.
    """
    before = find_prompt(options.spec, options.prompt_name, options.prompt)
    return prepare_after(before, texts, tokenizer, options, "sentence_embedding")


def prepare_after(
    prompt: str, texts: Sequence[str], tokenizer: Tokenizer, options: base.Options, output: str
) -> Prepared:
    """Rows of texts, each with `prompt` before it, for one output.

    Raises:
        InvalidInputError: a text that is not usable.
    """
    check_texts(texts)
    rows, is_truncated = make_rows([prompt + text for text in texts], tokenizer, options)
    return Prepared(rows, (output,), is_truncated)


def decode(texts: Sequence[str], outputs: Outputs, tokenizer: Tokenizer, options: Options) -> F32:
    """One sentence embedding a text.

    Returns:
        f32 [n, width] in the order of the texts. Of a text in windows it is the mean of theirs, scaled to length 1
        where the file does that.
    """
    rows = gather_texts(len(texts), outputs, "sentence_embedding", options)
    if options.stride is not None and options.spec.normalize:
        rows = normalize(rows)
    if options.truncate_dim is not None:
        rows = rows[:, : options.truncate_dim]
    return normalize(rows) if options.normalize_embeddings else rows


def find_prompt(spec: EncoderSpec, prompt_name: str | None, prompt: str | None) -> str:
    """The text to put before every text: `prompt`, else the prompt of that name, else the file's default, else ''.

    Raises:
        InvalidInputError: the file has no prompt of that name.
    """
    if prompt is not None:
        if not isinstance(prompt, str):
            raise InvalidInputError(f"prompt must be a str, got {type(prompt).__name__}")
        check_text("prompt", prompt)
        return prompt
    name = spec.default_prompt_name if prompt_name is None else prompt_name
    if name is None:
        return ""
    if not isinstance(name, str) or name not in spec.prompts:
        known = ", ".join(sorted(spec.prompts)) or "none"
        raise InvalidInputError(f"unknown prompt_name {name!r}: this file has {known}")
    return spec.prompts[name]


def quantize_embeddings(embeddings: F32, dtype: str) -> NDArray[Any]:
    """Embeddings in fewer bytes; no row depends on another.

    Args:
        embeddings: f32 [..., width].
        dtype: one of DTYPES.

    Returns:
        f32 and f16: the numbers, [..., width]. int8: s8 [..., width], the numbers over the row's `find_scales`, to the
        nearest, half to even. binary: u8 [..., width / 8 rounded up], a bit for each number, 1 where it is above 0, the
        first in the highest place, as sentence-transformers packs "ubinary"; bits left over are 0.

    Raises:
        InvalidInputError: another dtype.
    """
    if dtype not in DTYPES:
        raise InvalidInputError(f"dtype must be one of {', '.join(DTYPES)}, got {dtype!r}")
    rows = np.asarray(embeddings, np.float32)
    if dtype == "binary":
        return np.packbits(rows > 0, axis=-1)
    if dtype == "int8":
        scales = find_scales(rows)[..., None]
        codes = np.rint(np.divide(rows, scales, out=np.zeros_like(rows), where=scales > 0))
        return np.clip(codes, -127, 127).astype(np.int8)
    return rows.astype(np.float16 if dtype == "f16" else np.float32, copy=False)


def find_scales(embeddings: F32) -> F32:
    """What the int8 codes of each row are to be multiplied with: its largest size over 127, [..., width] -> [...]."""
    scales: F32 = np.abs(np.asarray(embeddings, np.float32)).max(axis=-1, initial=0.0) / np.float32(127)
    return scales


def similarity(a: Rows, b: Rows) -> F32:
    """Cosine of every row of `a` with every row of `b`: [n, width] and [m, width] -> f32 [n, m].

    Either may hold codes of `quantize_embeddings`; bits stand for 1 and -1.

    Raises:
        InvalidInputError: not two matrices of one width.
    """
    rows, columns = _read_unit_rows(a, b)
    cosines: F32 = rows @ columns.T
    return cosines


def semantic_search(query_embeddings: Rows, corpus_embeddings: Rows, top_k: int = 10) -> list[list[dict[str, Any]]]:
    """The rows of a corpus most similar to each query, as `semantic_search` of sentence-transformers gives them.

    Args:
        query_embeddings: [n, width], or [width] for one query; like those of the corpus f32, or codes of
            `quantize_embeddings`, of which bits stand for 1 and -1.
        corpus_embeddings: [m, width].
        top_k: how many for each query.

    Returns:
        For each query [{"corpus_id", "score"}, …], best first, the score being the cosine.

    Raises:
        InvalidInputError: not two matrices of one width, or a bad `top_k`.
    """
    check_count("top_k", top_k)
    queries, corpus = _read_unit_rows(query_embeddings, corpus_embeddings)
    step = max(1, MAX_COSINES // max(1, len(corpus)))
    hits = []
    for first in range(0, len(queries), step):
        for cosines in queries[first : first + step] @ corpus.T:
            best = np.argpartition(-cosines, top_k - 1)[:top_k] if top_k < len(cosines) else np.arange(len(cosines))
            best = best[np.lexsort((best, -cosines[best]))]
            hits.append([{"corpus_id": int(i), "score": float(cosines[i])} for i in best])
    return hits


def _read_unit_rows(a: Rows, b: Rows) -> tuple[F32, F32]:
    is_bits = [isinstance(values, np.ndarray) and values.dtype == np.uint8 for values in (a, b)]
    given = [
        np.atleast_2d(values if bits else read_numbers("embeddings", values))
        for values, bits in zip((a, b), is_bits, strict=True)
    ]
    widths = {rows.shape[-1] for rows, bits in zip(given, is_bits, strict=True) if not bits}
    rows, others = (_unpack_bits(rows, min(widths, default=8 * rows.shape[-1])) for rows in given)
    if rows.ndim != 2 or others.ndim != 2 or rows.shape[1] != others.shape[1]:
        raise InvalidInputError(f"expected embeddings of one width, got {list(rows.shape)} and {list(others.shape)}")
    return normalize(rows), normalize(others)


def _unpack_bits(rows: Rows, width: int) -> F32:
    """Rows as f32; of bits, which may be up to 7 more than `width`, 1 and -1."""
    if rows.dtype == np.uint8 and 0 <= 8 * rows.shape[-1] - width < 8:
        rows = np.unpackbits(rows, axis=-1, count=width).astype(np.int8) * 2 - 1
    return rows.astype(np.float32)
