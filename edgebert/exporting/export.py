"""Export: a checkpoint becomes one checked model file, or a folder in the Hugging Face layout, or nothing at all."""

from __future__ import annotations

import contextlib
import importlib.util
import json
import os
import tempfile
from collections.abc import Collection, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from edgebert import __version__
from edgebert.artifact.integrity import add_metadata
from edgebert.artifact.reader import read_artifact
from edgebert.artifact.writer import build_model
from edgebert.backends.numpy_backend import NumpyBackend
from edgebert.batch import PackedBatch
from edgebert.checkpoints.loading import Checkpoint, load_checkpoint
from edgebert.checkpoints.onnx_loading import find_onnx, load_onnx
from edgebert.checkpoints.with_transformers import has_transformers
from edgebert.errors import InvalidInputError, ModelFormatError, UnsupportedModelError, require
from edgebert.exporting.check import check, check_tokenizer, compare_fp32, encode_probe, probe_batch
from edgebert.exporting.folder import write_folder
from edgebert.exporting.quantize import quantize
from edgebert.exporting.reference import Reference, check_original, make_encoder, pytorch_reference, run_transformers
from edgebert.files import read_path, read_texts
from edgebert.tasks import name_task
from edgebert.tasks.base import warn
from edgebert.tokenizer import Text, Tokenizer, check_ids

CALIBRATION_FILE = Path(__file__).parents[1] / "data" / "calibration.txt"
CALIBRATION_LENGTH = 128  # tokens of a calibration text at most
CALIBRATION_TOKENS = 4096  # of one batch
_RANDOM_TEXTS = 64  # stand in where there is no tokenizer


def export(
    source: str | os.PathLike[str],
    output: str | os.PathLike[str],
    *,
    int8: bool = False,
    portable: bool = False,
    int8_attention: bool = False,
    int8_weights: bool = False,
    single_text: bool = False,
    calibrate: str | os.PathLike[str] | None = None,
    task: str | None = None,
    family: str | None = None,
    tokenizer: str | os.PathLike[str] | None = None,
) -> dict[str, Any]:
    """Export a checkpoint, or an ONNX file of another exporter.

    Nothing is left behind and nothing replaced unless it passes the gate.

    Args:
        source: a Hugging Face folder, the name of an installed model package, a hub name, an ONNX file, or a folder
            with one and no other weights.
        output: a file whose name ends in `.onnx`, or a folder for the Hugging Face layout.
        int8: int8 weights and activations in the layers, int8 embedding tables.
        portable: with int8, weights in ±63: right also where a runtime adds u8*s8 products in 16 bits.
        int8_attention: with int8, also attention's two products in int8: faster on long texts, at a small cost in
            accuracy there. Not with portable.
        int8_weights: int8, and the graph dequantizes its weights and multiplies in f32: for runtimes that cannot
            multiply integers, or not fast. EdgeBERT's own backends give the bits of an `int8` file. Not with portable
            or int8_attention.
        single_text: the graph does not take token types, every token is of the first: for converters that try a graph
            on ids of their own making. Not for heads that read pairs.
        calibrate: with int8, a file with one text a line; None takes the built-in sentences.
        task: one of spec.TASKS, or "sparse-embedding"; None takes what the checkpoint says.
        family: one of families.FAMILY_TABLES; None takes what the checkpoint says.
        tokenizer: with an ONNX file, the folder of its tokenizer and config.json; None looks beside the file.

    Returns:
        The report, as stored in the file: what agreed, the worst figures, how it was quantized.

    Raises:
        ModelFormatError: the source is missing or damaged; as GateError, the gate has not passed.
        UnsupportedModelError: a model outside what EdgeBERT supports, or too large for one file.
        InvalidInputError: the output cannot be written, or the calibration file cannot be used.
        BackendUnavailableError: a package that export needs is not installed.
    """
    int8 = int8 or int8_weights
    if (portable or int8_attention or calibrate is not None) and not int8:
        raise InvalidInputError("portable, int8-attention and calibrate belong to int8: add --int8, or leave them out")
    texts = read_texts(read_path("calibrate", calibrate)) if calibrate is not None else None
    _check_target(Path(os.path.abspath(read_path("output", output))))
    task = task and name_task(task)
    foreign = find_onnx(read_path("source", source))
    if tokenizer is not None and foreign is None:
        raise InvalidInputError("tokenizer belongs to an ONNX file: a checkpoint brings its own, leave it out")
    reference = None
    if foreign is not None:
        require("export", "onnx", "tokenizers")
        checkpoint, original = load_onnx(
            foreign, task, family, None if tokenizer is None else read_path("tokenizer", tokenizer)
        )
        reference = check_original(checkpoint, original)
    else:
        checkpoint = load_checkpoint(source if isinstance(source, str) else Path(source), task, family)
        if importlib.util.find_spec("torch") and has_transformers():
            reference = pytorch_reference(run_transformers)
    if single_text:
        checkpoint = drop_token_types(checkpoint)
    if checkpoint.tokenizer_json is None:
        warn(f"{source} has no tokenizer: the file will take token ids; for texts, save the tokenizer there too")
    return export_checkpoint(
        checkpoint,
        output,
        int8=int8,
        portable=portable,
        int8_attention=int8_attention,
        int8_weights=int8_weights,
        texts=texts,
        reference=reference,
        checks_text=True,
    )


def export_checkpoint(
    checkpoint: Checkpoint,
    output: str | os.PathLike[str],
    *,
    int8: bool = False,
    portable: bool = False,
    int8_attention: bool = False,
    int8_weights: bool = False,
    texts: Sequence[Text] | None = None,
    keep_f32: Collection[str] = (),
    reference: Reference | None = None,
    checks_text: bool = False,
) -> dict[str, Any]:
    """Export a checkpoint that is in memory, as `export` does one from a source.

    Args:
        checkpoint: f32.
        output, int8, portable, int8_attention, int8_weights: as of `export`.
        texts: with int8, texts or pairs to calibrate on; None takes the built-in sentences.
        keep_f32: with int8, linears that stay f32, by canonical name.
        reference: what the checkpoint itself gives; the oracle must agree with it.
        checks_text: compare the tokenizer with the one in the checkpoint's folder.

    Returns:
        The report.

    Raises:
        As `export`.
    """
    require("export", "onnx", "tokenizers")
    if portable and int8_attention:
        raise InvalidInputError("attention's codes cannot be portable: leave out --portable or --int8-attention")
    if int8_weights and (portable or int8_attention):
        raise InvalidInputError(
            "a graph with int8 weights alone has no integer product: leave out --portable and --int8-attention"
        )
    target = Path(os.path.abspath(output))
    _check_target(target)
    spec, tensors, quantization = checkpoint.spec, checkpoint.tensors, None
    text_report = {}
    if checks_text and checkpoint.tokenizer_json is not None:
        tokenizer = Tokenizer.for_spec(checkpoint.tokenizer_json, spec)
        text_report = {"tokenizer": check_tokenizer(tokenizer, spec, *make_encoder(checkpoint))}
    batch = probe_batch(spec, checkpoint.tokenizer_json)
    outputs = NumpyBackend(spec.replace(exits=()), tensors).run(batch, spec.outputs)
    fp32 = {} if reference is None else {reference.name: reference.run(checkpoint, batch)}
    conversion = compare_fp32(spec, {"numpy": outputs, **fp32})
    if int8 or int8_weights:
        fp32 = {"numpy": outputs}
        spec = spec.replace(attention_dtype="s8" if int8_attention else "f32")
        spec, tensors, quantization = quantize(
            spec,
            tensors,
            calibration_batches(checkpoint, texts),
            portable=portable,
            keep_f32=keep_f32,
            smooth=checkpoint.smooth or None,
        )
        spec = spec.replace(is_weight_only=int8_weights)
        outputs = NumpyBackend(spec.replace(exits=()), tensors).run(batch, spec.outputs)
    metadata = {"edgebert.probe": encode_probe(batch, outputs, spec)}
    if checkpoint.tokenizer_json is not None:
        metadata["edgebert.tokenizer"] = checkpoint.tokenizer_json
    model = build_model(spec, tensors, metadata)
    with _scratch_folder(target) as scratch:
        path = scratch / "model.onnx"
        path.write_bytes(model)
        del model
        report = {"edgebert": __version__, **check(path, fp32), **text_report}
        if reference is not None:
            report["runtimes"][reference.name] = reference.detail
            report.update(reference.found)
        if beyond := _find_tokens_without_row(checkpoint):
            report["tokens_without_row"] = beyond
        if quantization is not None:
            if reference is not None:
                report[f"fp32_max_relative_error_to_{reference.name}"] = conversion
            report["quantization"] = quantization
        add_metadata(path, {"edgebert.report": json.dumps(report, ensure_ascii=False)})
        if _is_file_target(target):
            os.replace(path, target)
        else:
            folder = scratch / "folder"
            write_folder(folder, path, spec, tensors, checkpoint)
            _move_folder(folder, target)
    return report


def drop_token_types(checkpoint: Checkpoint) -> Checkpoint:
    """The checkpoint with the first token type alone, which is then no input.

    Raises:
        UnsupportedModelError: its head reads pairs, whose texts the types tell apart.
    """
    spec = checkpoint.spec
    if not spec.has_token_types:
        return checkpoint
    if spec.task in ("question-answering", "next-sentence", "pretraining") or spec.rank_function is not None:
        raise UnsupportedModelError(
            f"this {spec.task} head reads pairs, and token types tell their texts apart: leave out --single-text"
        )
    table = "embeddings.token_type.weight"
    tensors = checkpoint.tensors | {table: checkpoint.tensors[table][:1]}
    return replace(checkpoint, spec=spec.replace(num_token_types=1), tensors=tensors)


def _find_tokens_without_row(checkpoint: Checkpoint) -> list[str]:
    """The first ten tokens of the tokenizer that the model has no row for, then "…" if there are more.

    Texts with such a token are refused.
    """
    if checkpoint.tokenizer_json is None:
        return []
    import tokenizers

    ids = tokenizers.Tokenizer.from_str(checkpoint.tokenizer_json).get_vocab(with_added_tokens=True)
    beyond = sorted((i, token) for token, i in ids.items() if i >= checkpoint.spec.vocab_size)
    return [token for _, token in beyond[:10]] + ["…"] * (len(beyond) > 10)


# Calibration


def calibration_batches(checkpoint: Checkpoint, texts: Sequence[Text] | None) -> list[PackedBatch]:
    """The texts, or the built-in sentences (random ids where there is no tokenizer), as `quantize` takes them.

    Raises:
        InvalidInputError: texts for a checkpoint without a tokenizer, or every text has a token that the model lacks.
    """
    spec = checkpoint.spec
    length = min(CALIBRATION_LENGTH, spec.max_length)
    if checkpoint.tokenizer_json is not None:
        tokenizer = Tokenizer.for_spec(checkpoint.tokenizer_json, spec)
        batch, _ = tokenizer.tokenize(texts or read_texts(CALIBRATION_FILE), max_length=length)
        # without the texts that the model will refuse
        usable = np.flatnonzero(np.maximum.reduceat(batch.input_ids, batch.cu_seqlens[:-1]) < spec.vocab_size)
        if not usable.size:
            check_ids(batch, range(batch.num_sequences), tokenizer, spec)
        batch = batch.take(usable)
    elif texts is not None:
        raise InvalidInputError("the checkpoint has no tokenizer, calibration texts cannot be used: leave them out")
    else:
        rng = np.random.default_rng(0)
        batch = PackedBatch.from_lists(
            [rng.integers(0, spec.vocab_size, rng.integers(1, length + 1)).tolist() for _ in range(_RANDOM_TEXTS)]
        )
    return [batch.take(range(first, last)) for first, last in batch.split(CALIBRATION_TOKENS)]


# Where it goes


def _is_file_target(target: Path) -> bool:
    return target.suffix == ".onnx" and not target.is_dir()


def _check_target(target: Path) -> None:
    """Refuse a target that could not be written, or whose files would be lost, before any work is done."""
    if not target.parent.is_dir():
        raise InvalidInputError(f"folder {target.parent} does not exist: create it first")
    if _is_file_target(target) or not target.exists():
        return
    if not target.is_dir():
        raise InvalidInputError(f"{target} is a file: give a name that ends in .onnx, or a folder")
    if any(target.iterdir()):
        try:
            read_artifact(target)
        except ModelFormatError:
            raise InvalidInputError(
                f"folder {target} is not empty and holds no earlier export: give a new one, or a name ending in .onnx"
            ) from None


@contextlib.contextmanager
def _scratch_folder(target: Path) -> Iterator[Path]:
    """A hidden folder beside the target, on the same file system, removed whatever happens."""
    try:
        scratch = tempfile.TemporaryDirectory(prefix=".edgebert-", dir=target.parent)
    except OSError as error:
        raise InvalidInputError(f"cannot write to {target.parent} ({error.strerror}): choose another output") from None
    with scratch:
        yield Path(scratch.name)


def _move_folder(folder: Path, target: Path) -> None:
    """Put `folder` in place: renamed as a whole, or file by file over an earlier export, the model last.

    An earlier model that has no successor of its name goes.
    """
    if not target.exists() or not any(target.iterdir()):
        os.replace(folder, target)
        return
    files = sorted((path for path in folder.rglob("*") if path.is_file()), key=lambda path: path.suffix == ".onnx")
    for path in files:
        destination = target / path.relative_to(folder)
        destination.parent.mkdir(parents=True, exist_ok=True)
        os.replace(path, destination)
    moved = {path.relative_to(folder) for path in files}
    for name in {Path("onnx/model.onnx"), Path("onnx/model_quantized.onnx")} - moved:
        (target / name).unlink(missing_ok=True)
