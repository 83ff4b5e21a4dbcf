"""Multi-vector embeddings: a vector a token, compared by late interaction (Khattab and Zaharia, arXiv 2004.12832)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from edgebert.artifact.spec import EncoderSpec
from edgebert.errors import InvalidInputError
from edgebert.tasks import base
from edgebert.tasks.base import F32, Bools, Outputs, Prepared, check_texts, make_rows, normalize, read_numbers
from edgebert.tasks.embedding import find_prompt
from edgebert.tokenizer import Row, Tokenizer

MAX_PRODUCTS = 1 << 24  # of query tokens with document tokens that are held at a time


@dataclass(frozen=True, kw_only=True)
class Options(base.Options):
    """How texts are embedded.

    Attributes:
        is_query: the texts are queries, which the file may mark, cut and fill up in their own way; else documents.
        prompt_name: name of one of the file's prompts, put before every text; None: that of the role, if there is one.
        prompt: a prompt of the caller's own, instead of one by name.
        truncate_dim: keep this many leading dimensions, scaled to length 1 again where the file does that.

    Raises:
        InvalidInputError: a prompt name, limit or width that is not usable, or a stride.
    """

    is_query: bool = False
    prompt_name: str | None = None
    prompt: str | None = None
    truncate_dim: int | None = None

    def __post_init__(self) -> None:
        find_prompt(self.spec, self.prompt_name, self.prompt)
        base.check_max_length("max_length", self.max_length, self.spec)
        if self.stride is not None:
            raise InvalidInputError("token embeddings are not made of windows: leave stride out, or give parts")
        width = self.spec.output_width("token_embeddings")[1]
        if self.truncate_dim is not None and base.check_count("truncate_dim", self.truncate_dim) > width:
            raise InvalidInputError(f"truncate_dim is {self.truncate_dim}, the embeddings have {width} dimensions")


def find_limit(spec: EncoderSpec, tokenizer: Tokenizer, options: Mapping[str, Any]) -> int:
    """Tokens that a row has at most, marker and special tokens included."""
    own = spec.query_length if options.get("is_query") else 0
    limit: int = options.get("max_length") or own or tokenizer.max_length
    return limit


def prepare(texts: Sequence[str], tokenizer: Tokenizer, options: Options) -> Prepared:
    """Rows of texts, each with its role's prompt and marker; of queries also with what fills them up.

    Raises:
        InvalidInputError: a text that is not usable.
    """
    check_texts(texts)
    spec, role = options.spec, "query" if options.is_query else "document"
    limit = find_limit(spec, tokenizer, vars(options))
    marker = spec.markers.get(role)
    # the marker is one of the tokens that the limit counts
    limits = replace(options, max_length=max(1, limit - 1) if marker is not None else limit)
    before = _find_prompt(options)
    rows, is_truncated = make_rows([before + text for text in texts], tokenizer, limits)
    made = [_mark(row, marker, limit) for row in rows]
    if options.is_query and spec.expansion_length:
        made = [_expand(row, min(spec.expansion_length, limit), spec.expansion_id) for row in made]
    return Prepared([_choose(row, options) for row in made], ("token_embeddings",), is_truncated)


def decode(texts: Sequence[str], outputs: Outputs, tokenizer: Tokenizer, options: Options) -> list[F32]:
    """The vectors of each text, f32 [tokens, width]: of all its tokens, but for those that the file leaves out."""
    width = options.truncate_dim
    found: list[F32] = [np.zeros((0, 0), np.float32)] * len(texts)
    for row, values in outputs:
        vectors = values["token_embeddings"]
        if width is not None:
            vectors = vectors[:, :width]
            vectors = normalize(vectors) if options.spec.normalize_tokens and len(vectors) else vectors
        found[row.text] = np.array(vectors)
    return found


def _find_prompt(options: Options) -> str:
    if options.prompt is None and options.prompt_name is None:
        # sentence-transformers' names of each role's prompt
        names = ("query",) if options.is_query else ("document", "passage", "corpus")
        prompts = options.spec.prompts
        named = next((name for name in names if name in prompts), None)
        return find_prompt(options.spec, named, None)
    return find_prompt(options.spec, options.prompt_name, options.prompt)


def _mark(row: Row, marker: int | None, limit: int) -> Row:
    if marker is None:
        return row
    ids = np.insert(row.input_ids, 1, marker).astype(np.int32)[:limit]
    return row._replace(input_ids=ids, token_type_ids=np.insert(row.token_type_ids, 1, 0).astype(np.int32)[:limit])


def _expand(row: Row, length: int, token: int) -> Row:
    missing = max(0, length - len(row.input_ids))
    ids = np.append(row.input_ids, np.full(missing, token, np.int32))
    return row._replace(input_ids=ids, token_type_ids=np.append(row.token_type_ids, np.zeros(missing, np.int32)))


def _choose(row: Row, options: Options) -> Row:
    """The row with the tokens whose embeddings count."""
    spec = options.spec
    counts: Bools = np.ones(len(row.input_ids), np.bool_)
    if spec.drops_first_token:
        counts[0] = False
    if not options.is_query and spec.skipped_ids:
        counts &= ~np.isin(row.input_ids, spec.skipped_ids)
    return row if counts.all() else row._replace(output_tokens=np.flatnonzero(counts).astype(np.int32))


def maxsim(queries: Sequence[F32] | F32, documents: Sequence[F32] | F32) -> F32:
    """Late interaction: of each token of a query the largest dot product with a document's tokens, added up.

    Args:
        queries: f32 [tokens, width] each; one alone counts as a list of one.
        documents: f32 [tokens, width] each, of any number of tokens; one alone counts as a list of one.

    Returns:
        f32 [queries, documents]; 0 for one without tokens.

    Raises:
        InvalidInputError: not matrices of one width.
    """
    (asked, query_ends), (packed, ends) = _pack("queries", queries), _pack("documents", documents)
    scores = np.zeros((len(query_ends), len(ends)), np.float32)
    if not len(asked) or not len(packed):
        return scores
    if asked.shape[1] != packed.shape[1]:
        raise InvalidInputError(f"queries have {asked.shape[1]} values a token, documents {packed.shape[1]}")
    filled = np.flatnonzero(np.diff(ends, prepend=0))
    starts = (ends - np.diff(ends, prepend=0))[filled]
    begin = 0
    for i, end in enumerate(query_ends.tolist()):
        # blocks of whole documents, so that the products of a long corpus are not all held
        per_block = max(1, MAX_PRODUCTS // max(1, end - begin))
        first = 0
        while end > begin and first < len(filled):
            last = max(first + 1, int(np.searchsorted(ends[filled], starts[first] + per_block, side="right")))
            part = slice(int(starts[first]), int(ends[filled[last - 1]]))
            products = asked[begin:end] @ packed[part].T
            best = np.maximum.reduceat(products, starts[first:last] - starts[first], axis=1)
            scores[i, filled[first:last]] = best.sum(axis=0)
            first = last
        begin = end
    return scores


def _pack(name: str, texts: Sequence[F32] | F32) -> tuple[F32, base.I64]:
    """(the rows of all texts, int64 [n]: where each ends)."""
    ndim = getattr(texts, "ndim", 1)
    if isinstance(texts, (str, bytes, dict)) or not isinstance(texts, Iterable) or ndim == 0:
        raise InvalidInputError(f"{name} must be a list of matrices, [tokens, width] each, got {type(texts).__name__}")
    parts = [read_numbers(f"{name}[{i}]", part) for i, part in enumerate([texts] if ndim == 2 else texts)]
    for i, part in enumerate(parts):
        if part.ndim != 2:
            raise InvalidInputError(f"{name}[{i}] must be a matrix, [tokens, width], got the shape {[*part.shape]}")
    if len(widths := {part.shape[1] for part in parts if part.size}) > 1:
        raise InvalidInputError(f"{name} must be matrices of one width, got {', '.join(map(str, sorted(widths)))}")
    ends = np.cumsum([len(part) if part.size else 0 for part in parts], dtype=np.int64)
    filled = [part for part in parts if part.size]
    return np.concatenate(filled) if filled else np.zeros((0, 0), np.float32), ends
