"""What the source itself gives, tokenizer and outputs, which the gate compares ours with."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from importlib.metadata import version
from typing import Any, NamedTuple

import numpy as np

from edgebert.backends.base import Outputs
from edgebert.backends.numpy_backend import NumpyBackend
from edgebert.batch import PackedBatch
from edgebert.checkpoints.loading import Checkpoint
from edgebert.checkpoints.onnx_loading import Original
from edgebert.checkpoints.with_transformers import has_transformers, load_tokenizer, make_config, quiet
from edgebert.exporting.check import Encoded, GateError, compare_fp32, compare_int8
from edgebert.tokenizer import Text

# Task -> the class of transformers, without the family's prefix, and what it calls the file's outputs, in order.
TRANSFORMERS_CLASSES = {
    "embedding": ("AutoModel", ("last_hidden_state",)),
    "text-classification": ("AutoModelForSequenceClassification", ("logits",)),
    "token-classification": ("AutoModelForTokenClassification", ("logits",)),
    "question-answering": ("AutoModelForQuestionAnswering", ("start_logits", "end_logits")),
    "fill-mask": ("AutoModelForMaskedLM", ("logits",)),
    "next-sentence": ("AutoModelForNextSentencePrediction", ("logits",)),
    "pretraining": ("AutoModelForPreTraining", ("prediction_logits", "seq_relationship_logits")),
}

_LENGTHS = ((1, 9, 4), (33, 2, 17, 64), (13,))  # tokens of the random batches that an ONNX file is compared on


class Reference(NamedTuple):
    """What computes a source's outputs, without EdgeBERT.

    name: its name in reports and messages.
    detail: what it is, and in which version.
    run: gives the outputs for a batch, as `Backend.run`; it may lack some.
    found: what else the report says about it.
    """

    name: str
    detail: str
    run: Callable[[Checkpoint, PackedBatch], Outputs]
    found: dict[str, Any] = {}  # noqa: RUF012


def pytorch_reference(run: Callable[[Checkpoint, PackedBatch], Outputs]) -> Reference:
    """PyTorch as the reference."""
    packages = [name for name in ("torch", "transformers") if importlib.util.find_spec(name)]
    return Reference("pytorch", ", ".join(f"{name} {version(name)}" for name in packages), run)


def check_original(checkpoint: Checkpoint, original: Original) -> Reference:
    """Compare what was recognised in an ONNX file with the file itself, on random batches, padded ones among them.

    Returns:
        The file as the reference; of a file in int8 or half precision its float32 graph, whose distance to the file
        as it stands is in `found`.

    Raises:
        GateError: an output differs.
    """
    spec = checkpoint.spec
    ours = NumpyBackend(spec, checkpoint.tensors)
    rng = np.random.default_rng(2)
    cosines: list[dict[str, float]] = []
    for lengths in _LENGTHS:
        sizes = [min(length, spec.max_length) for length in lengths]
        batch = PackedBatch.from_lists(
            [rng.integers(0, spec.vocab_size, size).tolist() for size in sizes],
            [np.sort(rng.integers(0, max(1, spec.num_token_types), size)).tolist() for size in sizes],
        )
        runs = {"numpy": ours.run(batch, spec.outputs), "original": original.run(spec, batch)}
        compare_fp32(spec, runs)
        if original.quantized is not None:
            quantized = original.run(spec, batch, quantized=True)
            cosines.append(compare_int8(spec, batch, runs["numpy"], quantized))
    found = {name: min(cosine[name] for cosine in cosines) for name in original.names} if cosines else {}
    return Reference(
        "original",
        original.detail,
        lambda _, batch: original.run(spec, batch),
        {"mean_cosine_to_quantized_original": found} if found else {},
    )


def run_transformers(checkpoint: Checkpoint, batch: PackedBatch) -> Outputs:
    """What transformers gives for the checkpoint's folder, one sequence at a time, in the shapes of `Backend.run`.

    Of an embedding model these are the hidden states: pooling is not part of transformers' model. Of one with sparse
    embeddings they are made here, of the logits.

    Raises:
        GateError: transformers cannot load or run the folder.
    """
    import torch
    import transformers

    spec = checkpoint.spec
    class_name, names = TRANSFORMERS_CLASSES[spec.task]
    folds = spec.sparse_pooling != "none"
    if folds:
        class_name, names = "AutoModelForMaskedLM", ("logits",)
    try:
        with quiet(transformers):
            model = getattr(transformers, class_name).from_pretrained(
                checkpoint.folder,
                config=make_config(spec.family, checkpoint.config),
                dtype=torch.float32,
                attn_implementation="eager",
                local_files_only=True,
            )
    except Exception as error:  # its errors share no base
        raise GateError(
            f"transformers {transformers.__version__} cannot load the source to compare: {error}"
        ) from error
    model.eval()
    ours_by_place = ("sparse_embedding",) if folds else spec.outputs
    rows: dict[str, list[Any]] = {name: [] for name in ours_by_place[: len(names)]}
    for i in range(batch.num_sequences):
        ids, mask, types = (torch.from_numpy(part) for part in batch.take([i]).pad())
        inputs = {"input_ids": ids, "attention_mask": mask} | (
            {"token_type_ids": types} if spec.has_token_types else {}
        )
        try:
            with torch.no_grad():
                outputs = model(**inputs)
        except Exception as error:  # a config that only running it finds wrong
            raise GateError(
                f"transformers {transformers.__version__} cannot run the source to compare: {error}"
            ) from error
        for ours, theirs in zip(rows, names, strict=True):
            value = outputs[theirs]
            if folds:  # as SpladePooling of sentence-transformers
                for _ in range(spec.num_sparse_logs):
                    value = torch.log1p(torch.relu(value))
                value = value.amax(1) if spec.sparse_pooling == "max" else value.sum(1)
            value = value.numpy()
            rows[ours].append(value[0] if spec.output_width(ours)[0] else value)
    return {name: np.concatenate(parts).astype(np.float32) for name, parts in rows.items()}


def make_encoder(checkpoint: Checkpoint) -> tuple[str, Callable[[Text, int], Encoded]]:
    """The checkpoint's own tokenizer, as the gate runs it: transformers', or else the tokenizers library's.

    Returns:
        (its name and version, a function that encodes a text or pair, cut to a limit of tokens).
    """
    lowercases = checkpoint.lowercases

    def split(text: Text) -> tuple[str, str | None]:
        parts = [part.lower() if lowercases else part for part in ([text] if isinstance(text, str) else text)]
        return parts[0], parts[1] if len(parts) > 1 else None

    def encode_with_transformers(text: Text, limit: int) -> Encoded:
        # as a batch: of a single pair, transformers drops a second text that is empty
        batch = [None if part is None else [part] for part in split(text)]
        rows = loaded(*batch, truncation=True, max_length=limit, return_offsets_mapping=True)
        [ids], [offsets] = rows["input_ids"], rows["offset_mapping"]
        [types] = rows.get("token_type_ids") or [[0] * len(ids)]
        return Encoded(ids, types, _text_offsets(text, offsets, rows.sequence_ids(0)))

    def encode_with_library(text: Text, limit: int) -> Encoded:
        library.enable_truncation(limit, direction=direction)
        row = library.encode(*split(text))
        return Encoded(row.ids, row.type_ids, _text_offsets(text, row.offsets, row.sequence_ids))

    if has_transformers() and not checkpoint.has_plain_tokenizer:
        import transformers

        loaded = load_tokenizer(checkpoint.folder, checkpoint.spec.family, checkpoint.config)
        return f"transformers {transformers.__version__}", encode_with_transformers
    import tokenizers

    library = tokenizers.Tokenizer.from_str(str(checkpoint.tokenizer_json))
    direction = (library.truncation or {}).get("direction", "right")
    return f"tokenizers {tokenizers.__version__}", encode_with_library


def _text_offsets(text: Text, offsets: list[tuple[int, int]], texts: list[int | None]) -> list[tuple[int, int]]:
    """The offsets of a single text's tokens; none for a pair."""
    return [pair for pair, i in zip(offsets, texts, strict=True) if i is not None] if isinstance(text, str) else []
