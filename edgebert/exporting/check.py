"""The gate: a model file passes when all runtimes installed here, two at least, give the same outputs.

Limits. fp32: max|a - b| <= 1e-5 max|b| for each output. int8: rounding flips cascade, so two runtimes are held to a
cosine of 0.998 for each sequence, and to the same distance from the fp32 model. A weight-only file is two models with
the same weights: its graph has f32 activations, engines compute in int8. Each is held to these limits among its own
runs: ONNX Runtime, which may quantize activations in its own way, with the oracle on the dequantized weights.
"""

from __future__ import annotations

import itertools
import json
import math
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from edgebert.artifact.integrity import check_content
from edgebert.artifact.reader import Artifact, read_artifact
from edgebert.artifact.spec import EncoderSpec
from edgebert.backends.base import Outputs
from edgebert.backends.numpy_backend import NumpyBackend
from edgebert.backends.registry import available_backends, load_backend
from edgebert.batch import PackedBatch
from edgebert.errors import InvalidInputError, ModelFormatError
from edgebert.exporting.quantize import dequantize
from edgebert.quant import F32
from edgebert.tokenizer import Text, Tokenizer

FP32_TOLERANCE = 1e-5
INT8_COSINE = 0.998
# Distances to the fp32 model (1 - cosine, mean over the sequences) count as the same if they differ by less than this,
# half of what two runtimes may be apart.
INT8_DISTANCE = (1.0 - INT8_COSINE) / 2
INT8_COSINE_TO_FP32 = (
    0.9  # mean; below it int8 computes something else than the model, and that runtimes agree proves nothing
)
PROBE_COLUMNS = 1024  # the stored probe keeps the first columns of an output that is wider (a vocabulary's logits)

_NUM_STORED = 3  # sequences of the probe that are stored in the file, so the first texts are short
_TEXTS = (
    "The ferry leaves at noon.",
    "Wie spät ist es?",
    "yes",
    "A small model that fits in the cache of a cheap processor answers before a large one has been woken up.",
    "Order no. 4711-B: 3 × 250 g, 12.50 € each; total 37,50 €!",
    ("How long does the crossing take?", "About forty minutes when the sea is calm."),
)
# What tokenizers differ about; {special} stands for each of the tokenizer's special tokens in turn.
_AWKWARD_TEXTS = (
    "",
    " ",
    "The Ferry LEAVES at noon",
    "Café déjà vu, naïve Ångström e\u0301",
    "  two   blanks\t a tab\na line ",
    "don't DON'T it's well-known (really!) 100%",
    "{special} before{special}between {special}, after",
    "日本語のルータを再起動する 東京タワー",
    "مرحبا بالعالم हिन्दी ไทย 한국어 Ελλάδα Москва",
    "a\u200bb\u00a0c\u00add \ufb01ne \u2460 \u2167 👩\u200d👧",
    "A sentence that is far too long for one row of the model, " * 12,
    ("Short?", "Yes."),
    ("Short?", "A second text that does not fit, and is cut. " * 20),
    ("A first text that does not fit, and is cut. " * 20, "Yes."),
    ("Both of these are too long, the first one. " * 20, "And the second one, which is. " * 20),
    ("The Café", ""),
)
_CUT_LENGTH = 64  # tokens that texts are cut to besides the file's own limit, which many texts do not reach
_LENGTHS = (5, 3, 1, 33, 17, 2)  # of the sequences of random ids that stand in where there is no tokenizer
_FEW_VALUES = 16  # a cosine over fewer values is chance: such rows are compared as one vector


class GateError(ModelFormatError):
    """Runtimes disagree about a model file, or there are too few to tell."""


def check(
    path_or_bytes: str | os.PathLike[str] | bytes, reference: Mapping[str, Outputs] | None = None
) -> dict[str, Any]:
    """Run a model file's probe on every runtime installed here and compare them all.

    Args:
        path_or_bytes: the file.
        reference: outputs of the fp32 model on `probe_batch`, by the name of what computed them. An fp32 file must
            agree with them; an int8 file must be equally far from the first of them on every runtime.

    Returns:
        The record: what agreed, in which version, on how many sequences, and each output's worst figure.

    Raises:
        ModelFormatError: the file cannot be read, or its content has another hash than it says; as GateError, the gate
            has not passed.
    """
    artifact = read_artifact(path_or_bytes).at_full_depth()  # as the graph is
    if "edgebert.content_hash" in artifact.metadata:
        check_content(artifact)
    spec = artifact.spec
    batch, stored = _batch_to_run(artifact)
    runs: dict[str, Outputs] = {}
    details: dict[str, str] = {}
    for name, reason in available_backends().items():
        if reason is None:
            backend = load_backend(artifact, name)
            runs[name], details[name] = backend.run(batch, spec.outputs), backend.detail
    if reference and not spec.is_int8:
        runs.update(reference)
    if len(runs) < 2:
        raise GateError(
            f"only {', '.join(runs)} can run the file here, agreement takes two: install edgebert[ort], "
            "or a build with the native library"
        )
    report: dict[str, Any] = {
        "agreed": list(runs),
        "runtimes": details,
        "num_sequences": batch.num_sequences,
        "num_tokens": batch.total_tokens,
    }
    if spec.is_int8:
        in_graph = {"onnxruntime": runs.pop("onnxruntime")} if spec.is_weight_only and "onnxruntime" in runs else {}
        report |= _check_group(spec, batch, runs, reference)
        if in_graph:
            in_graph["numpy, dequantized"] = NumpyBackend(*dequantize(spec, artifact.tensors)).run(batch, spec.outputs)
            report["graph"] = _check_group(spec, batch, in_graph, reference)
    else:
        report["max_relative_error"] = compare_fp32(spec, runs)
    if stored is not None:
        _check_stored(spec, batch.take(range(_NUM_STORED)), stored, runs["numpy"])
    return report


class Encoded(NamedTuple):
    """A text or pair as a row of tokens.

    Attributes:
        input_ids: the row's.
        token_type_ids: the row's; zeros where a tokenizer gives none.
        offsets: (begin, end) in characters, for each token of a text; none for a pair.
    """

    input_ids: list[int]
    token_type_ids: list[int]
    offsets: list[tuple[int, int]]


def check_tokenizer(
    tokenizer: Tokenizer, spec: EncoderSpec, name: str, encode: Callable[[Text, int], Encoded]
) -> dict[str, Any]:
    """Compare a file's tokenizer with the checkpoint's own, on texts that tokenizers differ about.

    Args:
        tokenizer: the file's.
        spec: the file's.
        name: of what `encode` runs.
        encode: encodes a text or pair, cut to a limit of tokens, with the checkpoint's own tokenizer.

    Returns:
        The record: what it agrees with, and on how many texts.

    Raises:
        GateError: it differs; the message has the first text that shows it.
    """
    count = 0
    for text in [*_TEXTS, *_AWKWARD_TEXTS]:
        if isinstance(text, str) and "{special}" in text:
            text = " ".join(text.replace("{special}", token) for token in tokenizer.special_tokens)
        for limit in sorted({spec.max_length, min(spec.max_length, _CUT_LENGTH)}):
            try:
                ours = _encode(tokenizer, text, limit)
            except InvalidInputError:  # no token, or no room for any
                continue
            theirs = encode(text, limit)
            for field in Encoded._fields:
                a, b = getattr(ours, field), getattr(theirs, field)
                if a != b and (field != "token_type_ids" or spec.has_token_types):
                    raise GateError(
                        f"the file's tokenizer and {name} differ in {field} of {text!r:.200}, cut to {limit} tokens: "
                        f"{_around(a, b)} and {_around(b, a)}"
                    )
            count += 1
    return {"agreed": name, "num_texts": count}


def _encode(tokenizer: Tokenizer, text: Text, limit: int) -> Encoded:
    batch, _ = tokenizer.tokenize([text], limit)
    offsets: list[tuple[int, int]] = []
    if isinstance(text, str):  # a pair's are those of its texts
        [row], _ = tokenizer.make_windows([text], limit)
        offsets = [(begin, end) for begin, end in row.offsets.tolist()]
    return Encoded(batch.input_ids.tolist(), batch.token_type_ids.tolist(), offsets)


def _around(a: list[Any], b: list[Any]) -> str:
    """What `a` has where it first differs from `b`."""
    first = next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))
    return f"{a[first : first + 5]} from token {first} of {len(a)}"


def probe_batch(spec: EncoderSpec, tokenizer_json: str | None) -> PackedBatch:
    """The sequences every file is checked with: short texts and a pair, or random ids where there is no tokenizer.

    Then one of them again with the pad token at its start, inside it and at its end: some families count positions by
    it.
    """
    if tokenizer_json is not None:
        tokenizer = Tokenizer.for_spec(tokenizer_json, spec)
        batch = tokenizer.tokenize(_TEXTS)[0]
        # tokens that a tokenizer has and its model does not are refused in texts; here another stands for them
        np.minimum(batch.input_ids, spec.vocab_size - 1, out=batch.input_ids)
    else:
        rng = np.random.default_rng(0)
        lengths = [min(length, spec.max_length) for length in _LENGTHS]
        types = max(1, spec.num_token_types)
        batch = PackedBatch.from_lists(
            [rng.integers(0, spec.vocab_size, length).tolist() for length in lengths],
            [np.sort(rng.integers(0, types, length)).tolist() for length in lengths],
        )
    padded = batch.take([0])
    padded.input_ids[[0, padded.total_tokens // 2, -1]] = spec.pad_token_id
    return batch.join(padded)


def encode_probe(batch: PackedBatch, outputs: Outputs, spec: EncoderSpec) -> str:
    """`edgebert.probe`: the first sequences of the probe batch, and the oracle's outputs for them, packed.

    {"input_ids": [[…], …], "token_type_ids": [[…], …], "outputs": {name: {"shape": […], "values": […]}}}; of an output
    wider than PROBE_COLUMNS the first columns are kept.
    """
    first = batch.take(range(_NUM_STORED))
    split = first.cu_seqlens[1:-1]
    kept = {name: _stored_part(spec, name, first, values) for name, values in outputs.items()}
    return json.dumps(
        {
            "input_ids": [row.tolist() for row in np.split(first.input_ids, split)],
            "token_type_ids": [row.tolist() for row in np.split(first.token_type_ids, split)],
            "outputs": {
                # nine digits give back every float32
                name: {"shape": list(part.shape), "values": [float(f"{value:.9g}") for value in part.ravel()]}
                for name, part in kept.items()
            },
        },
        separators=(",", ":"),
    )


def _batch_to_run(artifact: Artifact) -> tuple[PackedBatch, dict[str, F32] | None]:
    """The probe batch with the file's own sequences first, and the outputs stored for these, if any."""
    batch = probe_batch(artifact.spec, artifact.tokenizer_json)
    probe = artifact.probe
    if not probe:
        return batch, None
    try:
        own = PackedBatch.from_lists(probe["input_ids"], probe["token_type_ids"])
        stored = {
            name: np.asarray(entry["values"], np.float32).reshape(entry["shape"])
            for name, entry in probe["outputs"].items()
        }
        if own.num_sequences != _NUM_STORED:
            raise ValueError(f"{own.num_sequences} sequences, not {_NUM_STORED}")
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError, InvalidInputError) as error:
        raise ModelFormatError(f"edgebert.probe is damaged ({error!r}): re-export the model") from None
    return own.join(batch.take(range(_NUM_STORED, batch.num_sequences))), stored


def _stored_part(spec: EncoderSpec, name: str, first: PackedBatch, values: F32) -> F32:
    per_token, width = spec.output_width(name)
    rows = values[: first.total_tokens if per_token else first.num_sequences]
    return rows[:, :PROBE_COLUMNS] if width else rows


def _check_stored(spec: EncoderSpec, first: PackedBatch, stored: dict[str, F32], oracle: Outputs) -> None:
    found = {name: _stored_part(spec, name, first, oracle[name]) for name in spec.outputs}
    if any(name not in stored or stored[name].shape != part.shape for name, part in found.items()):
        raise GateError("edgebert.probe does not hold the file's outputs: re-export the model")
    runs = {"numpy": found, "the stored probe": stored}
    if spec.is_int8:
        _check_int8(spec, first, runs)
    else:
        compare_fp32(spec, runs)


def compare_fp32(spec: EncoderSpec, runs: Mapping[str, Outputs]) -> dict[str, float]:
    """The largest max|a - b| / max|b| of any two runs, by output.

    Raises:
        GateError: it exceeds FP32_TOLERANCE.
    """
    worst: dict[str, float] = {}
    for name in spec.outputs:
        for (a_name, a), (b_name, b) in itertools.combinations(_holders(runs, name), 2):
            error = float(np.abs(a - b).max() / (np.abs(b).max() or 1.0))  # a sparse embedding may be all zeros
            if not error <= FP32_TOLERANCE:  # NaN fails too
                raise GateError(
                    f"{name}: {a_name} and {b_name} differ by {error:.2g} of the largest value, "
                    f"at most {FP32_TOLERANCE:g} is allowed"
                )
            worst[name] = max(error, worst.get(name, 0.0))
    return worst


def compare_int8(spec: EncoderSpec, batch: PackedBatch, fp32: Outputs, int8: Outputs) -> dict[str, float]:
    """The mean cosine of a quantized model's outputs to those of its fp32 model, by output.

    Raises:
        GateError: it is below INT8_COSINE_TO_FP32.
    """
    return _check_distance(
        spec, batch, {"the quantized original": int8}, "its float32 graph", {name: fp32[name] for name in int8}
    )


def _check_group(
    spec: EncoderSpec, batch: PackedBatch, runs: Mapping[str, Outputs], reference: Mapping[str, Outputs] | None
) -> dict[str, Any]:
    """The part of the record on runs of one int8 model."""
    report: dict[str, Any] = {"min_cosine": _check_int8(spec, batch, runs)}
    if reference:
        name, fp32 = next(iter(reference.items()))
        report["mean_cosine_to_fp32"] = _check_distance(spec, batch, runs, name, fp32)
    return report


def _check_int8(spec: EncoderSpec, batch: PackedBatch, runs: Mapping[str, Outputs]) -> dict[str, float]:
    """The smallest cosine of any two runs over the sequences, by output."""
    worst: dict[str, float] = {}
    for name in spec.outputs:
        for (a_name, a), (b_name, b) in itertools.combinations(_holders(runs, name), 2):
            cosine = float(_cosines(spec, name, batch, a, b).min())
            if not cosine >= INT8_COSINE:
                raise GateError(
                    f"{name}: {a_name} and {b_name} have a cosine of {cosine:.5f}, at least {INT8_COSINE} is asked for"
                )
            worst[name] = min(cosine, worst.get(name, 1.0))
    return worst


def _check_distance(
    spec: EncoderSpec, batch: PackedBatch, runs: Mapping[str, Outputs], reference: str, fp32: Outputs
) -> dict[str, float]:
    """The mean cosine to the fp32 model, by output: the smallest of the runs'."""
    worst: dict[str, float] = {}
    for name in fp32:
        means = {
            run: float(_cosines(spec, name, batch, values, fp32[name]).mean()) for run, values in _holders(runs, name)
        }
        low, high = min(means, key=means.__getitem__), max(means, key=means.__getitem__)
        if not means[low] >= INT8_COSINE_TO_FP32:
            raise GateError(
                f"{name}: on {low} int8 has a mean cosine of {means[low]:.4f} to fp32 ({reference}), at least "
                f"{INT8_COSINE_TO_FP32} is asked for: calibrate with texts like those it will see, or stay with fp32"
            )
        if not means[high] - means[low] <= INT8_DISTANCE:
            raise GateError(
                f"{name}: the mean cosine to fp32 ({reference}) is {means[low]:.5f} on {low} and {means[high]:.5f} on "
                f"{high}, they may differ by {INT8_DISTANCE:g}"
            )
        worst[name] = means[low]
    return worst


def _holders(runs: Mapping[str, Outputs], name: str) -> Iterator[tuple[str, F32]]:
    """The runs that have the output; a source checkpoint may lack the file's pooled one."""
    return ((run, outputs[name]) for run, outputs in runs.items() if name in outputs)


def _cosines(spec: EncoderSpec, name: str, batch: PackedBatch, a: F32, b: F32) -> NDArray[np.float64]:
    """Cosine of each sequence's values, as of `compare_rows`."""
    per_token, _ = spec.output_width(name)
    cuts = batch.cu_seqlens if per_token else np.arange(batch.num_sequences + 1)
    return compare_rows(*([values[i:j].ravel() for i, j in itertools.pairwise(cuts)] for values in (a, b)))


def compare_rows(a: Sequence[F32], b: Sequence[F32]) -> NDArray[np.float64]:
    """Cosine of each vector of `a` with that of `b`, f64 [n]; where one has few values, of all as one vector, [1]."""
    pairs = [(x.astype(np.float64), y.astype(np.float64)) for x, y in zip(a, b, strict=True)]
    if min(len(x) for x, _ in pairs) < _FEW_VALUES:
        pairs = [(np.concatenate([x for x, _ in pairs]), np.concatenate([y for _, y in pairs]))]
    return np.array([_cosine(x, y) for x, y in pairs])


def _cosine(a: NDArray[np.float64], b: NDArray[np.float64]) -> float:
    """Of two vectors; 1 where both are zeros, as a sparse embedding's may be, and 0 where one is."""
    lengths = math.sqrt((a @ a) * (b @ b))
    return float(a @ b / lengths) if lengths else float(not a.any() and not b.any())
