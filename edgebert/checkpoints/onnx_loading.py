"""ONNX files of other exporters in: the graph gives spec and weights, files beside it tokenizer, labels and limits."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from edgebert.artifact.names import weight_tensors
from edgebert.artifact.spec import EncoderSpec
from edgebert.backends.base import Outputs
from edgebert.batch import PackedBatch, unpad
from edgebert.checkpoints.embedding_heads import read_head
from edgebert.checkpoints.families import FAMILY_TABLES
from edgebert.checkpoints.files import find_weights, read_object
from edgebert.checkpoints.loading import (
    HIDDEN_ACTS,
    NEXT_SENTENCE_LABELS,
    Checkpoint,
    assume_mean,
    choose_task,
    finish_checkpoint,
    read_config,
    read_labels,
    read_modules,
    read_problem_type,
    read_prompts,
    read_rank_function,
)
from edgebert.checkpoints.onnx_file import OnnxProgram, read_model
from edgebert.checkpoints.onnx_float import make_float
from edgebert.checkpoints.onnx_graph import Output, Recognised, recognise
from edgebert.errors import ModelFormatError, UnsupportedModelError
from edgebert.quant import F32

# Kinds of outputs that a task takes -> the file's outputs made of each; the first task that has all is the default.
_TASK_OUTPUTS: dict[str, tuple[tuple[str, str], ...]] = {
    "pretraining": (("words", "prediction_logits"), ("labels", "seq_relationship_logits")),
    "fill-mask": (("words", "logits"),),
    "question-answering": (("start", "start_logits"), ("end", "end_logits")),
    "token-classification": (("tokens", "logits"),),
    "text-classification": (("labels", "logits"),),
    "next-sentence": (("labels", "logits"),),
}
_TEXT_FILES = ("config.json", "tokenizer.json", "tokenizer_config.json", "vocab.txt")


@dataclass(frozen=True)
class Original:
    """The ONNX file that a checkpoint was read from, run by ONNX Runtime.

    Attributes:
        program: its graph, in float32.
        quantized: its graph as it stands, where that is another: int8 or half precision.
        names: outputs of ours -> the file's, and the column of it, None for all. The others it does not have.
    """

    program: OnnxProgram
    quantized: OnnxProgram | None
    names: Mapping[str, tuple[str, int | None]]

    @property
    def detail(self) -> str:
        """What runs it."""
        import onnxruntime

        return f"{self.program.path.name} in onnxruntime {onnxruntime.__version__}"

    def run(self, spec: EncoderSpec, batch: PackedBatch, quantized: bool = False) -> Outputs:
        """As `Backend.run`, of the outputs that the file has; padded where lengths differ."""
        program = self.quantized if quantized and self.quantized is not None else self.program
        if "attention_mask" not in program.roles.values() and batch.num_sequences > 1:
            parts = [self.run(spec, batch.take([i]), quantized) for i in range(batch.num_sequences)]
            return {name: np.concatenate([part[name] for part in parts]) for name in self.names}
        values = program.run(batch, list(dict.fromkeys(name for name, _ in self.names.values())))
        mask = batch.pad()[1]
        outputs = {}
        for ours, (theirs, column) in self.names.items():
            value = values[theirs].astype(np.float32)
            if spec.output_width(ours)[0]:
                value = unpad(value[:, : mask.shape[1]], mask)
            outputs[ours] = value if column is None else np.ascontiguousarray(value[:, column])
        return outputs


class _Head(NamedTuple):
    fields: dict[str, Any]
    tensors: dict[str, F32]
    names: dict[str, tuple[str, int | None]]


def find_onnx(path: Path) -> Path | None:
    """The ONNX file that a path names: itself, or the one in a folder without a checkpoint's weights; None: neither.

    Raises:
        ModelFormatError: the folder has several.
    """
    if path.is_dir():
        if any(find_weights(folder) for folder in (path, path / "0_Transformer")):
            return None
        for folder in (path, path / "onnx"):
            files = sorted(folder.glob("*.onnx"))
            if folder / "model.onnx" in files:
                return folder / "model.onnx"
            if len(files) > 1:
                raise ModelFormatError(
                    f"{folder} has {len(files)} ONNX files, give the path of one: {', '.join(f.name for f in files)}"
                )
            if files:
                return files[0]
        return None
    return path if path.suffix == ".onnx" else None


def load_onnx(
    path: Path, task: str | None = None, family: str | None = None, texts: Path | None = None
) -> tuple[Checkpoint, Original]:
    """Read an ONNX file of another exporter.

    Args:
        path: the file.
        task, family: as of `load_checkpoint`; None takes what the file's outputs and config.json say.
        texts: the folder of tokenizer and config.json; None takes the file's own, or the one above if its name is
            `onnx`. Without any the model takes token ids.

    Returns:
        The checkpoint, which is a proposal until the second, its original, gives the same outputs.

    Raises:
        ModelFormatError: files are missing or damaged.
        UnsupportedModelError: the graph is not that of a model that EdgeBERT supports.
        BackendUnavailableError: onnx or ONNX Runtime is not installed.
    """
    model = read_model(path)
    stored = {entry.key: entry.value for entry in model.metadata_props}
    own = EncoderSpec.from_json(stored["edgebert.spec"]) if "edgebert.spec" in stored else None
    if own is not None and own.is_int8:
        raise UnsupportedModelError(
            f"{path} is an int8 file of EdgeBERT's, which another tool may have rewritten: export its checkpoint again"
        )
    in_float, is_changed = make_float(model)
    program = OnnxProgram(in_float, path)
    recognised = recognise(program)
    quantized = OnnxProgram(model, path) if is_changed else None
    if own is not None and texts is None:
        checkpoint, names = _load_own(path, recognised, own, task)
        checkpoint.tokenizer_json = stored.get("edgebert.tokenizer")
        return checkpoint, Original(program, quantized, names)
    root = _find_texts(path, texts)
    modules = read_modules(root)
    folder = root / modules[0][1] if modules else root
    config = read_config(folder / "config.json") if (folder / "config.json").is_file() else {}
    family = family or _choose_family(config, recognised.sizes)
    if family not in FAMILY_TABLES:
        raise UnsupportedModelError(f"model family {family!r} is not supported; supported: {', '.join(FAMILY_TABLES)}")
    task, pooling = _choose_task(path, recognised, config, family, task)
    head = _make_head(path, recognised, task, pooling, root, modules)
    sizes = recognised.sizes
    pads = sizes["position_offset"] - 1 if sizes["has_padding_position"] else _pad_token_id(folder, config)
    spec = EncoderSpec(
        **{**sizes, "family": family, "task": task, "pad_token_id": min(pads, sizes["vocab_size"] - 1)}
        | {"max_length": _usable_length(program, sizes)}
        | _text_fields(config, task, head.tensors, root, modules)
        | head.fields
    )
    tensors = recognised.tensors | head.tensors
    canonical = {name: np.ascontiguousarray(tensors[name], np.float32) for name in weight_tensors(spec)}
    is_plain = (folder / "tokenizer.json").is_file() and not (folder / "tokenizer_config.json").is_file()
    checkpoint = finish_checkpoint(spec, canonical, _whole_config(config, spec), root, folder, modules, is_plain)
    return checkpoint, Original(program, quantized, head.names)


def _load_own(
    path: Path, recognised: Recognised, stored: EncoderSpec, task: str | None
) -> tuple[Checkpoint, dict[str, tuple[str, int | None]]]:
    """(checkpoint, its outputs in the file) of a file of ours that another tool rewrote.

    Its spec says what no graph does, labels and limits; sizes and weights are the graph's. Exits belong to the weights
    as they were, and are left out.
    """
    task, pooling = _choose_task(path, recognised, {}, stored.family, task or stored.task)
    head = _make_head(path, recognised, task, pooling, path.parent, [])
    spec = stored.replace(
        **{**recognised.sizes, "task": task, "normalize": False, "dense_size": 0, **head.fields},
        embedding_dtype="f32",
        attention_dtype="f32",
        portable=False,
        exits=(),
    )
    tensors = recognised.tensors | head.tensors
    canonical = {name: np.ascontiguousarray(tensors[name], np.float32) for name in weight_tensors(spec)}
    config = _whole_config({}, spec)
    return Checkpoint(spec, canonical, None, config, {}, path.parent, has_plain_tokenizer=True), head.names


def _find_texts(path: Path, texts: Path | None) -> Path:
    if texts is not None:
        if not texts.is_dir():
            raise ModelFormatError(f"{texts} is not a folder: give the one with tokenizer.json and config.json")
        return texts
    folder = path.absolute().parent
    has_files = any((folder / name).is_file() for name in _TEXT_FILES)
    return folder.parent if folder.name == "onnx" and not has_files else folder


def _choose_family(config: dict[str, Any], sizes: Mapping[str, Any]) -> str:
    """The family that config.json names, or one whose code has these sizes: they only differ in their tokenizers."""
    if config.get("model_type") is not None:
        return str(config["model_type"])
    if sizes["embedding_size"] != sizes["hidden_size"]:
        return "electra"
    if sizes["has_padding_position"]:
        return "roberta"
    return "bert" if sizes["num_token_types"] else "distilbert"


def _by_kind(recognised: Recognised) -> dict[str, str]:
    """The name of the first output of each kind."""
    names: dict[str, str] = {}
    for name, output in recognised.outputs.items():
        names.setdefault(output.kind, name)
    return names


def _choose_task(
    path: Path, recognised: Recognised, config: dict[str, Any], family: str, task: str | None
) -> tuple[str, str | None]:
    """(task, pooling asked for): what is asked for, or else what the outputs are."""
    kinds = _by_kind(recognised)
    possible = [name for name, parts in _TASK_OUTPUTS.items() if all(kind in kinds for kind, _ in parts)]
    if _count_labels(recognised, "tokens") == 2 and "question-answering" not in possible:
        possible.append("question-answering")  # both columns in one output
    if _count_labels(recognised, "labels") != 2:
        possible = [name for name in possible if name not in ("next-sentence", "pretraining")]
    if {"hidden", "sentence"} & kinds.keys():
        possible.append("embedding")
    if task is None:
        stated = None
        if config.get("architectures") and not set(possible) <= {"embedding"}:
            stated, _ = choose_task(config, FAMILY_TABLES[family], None, has_modules=False)
        return (stated if stated in possible else possible[0]), None
    task, pooling = choose_task(config, FAMILY_TABLES[family], task, has_modules=False)
    if task not in possible:
        raise UnsupportedModelError(
            f"{path}: task {task} was asked for, and its outputs {', '.join(recognised.outputs)} are those of "
            f"{' or '.join(possible)}"
        )
    return task, pooling


def _count_labels(recognised: Recognised, kind: str) -> int:
    name = _by_kind(recognised).get(kind)
    return 0 if name is None else recognised.outputs[name].tensors["head.out.bias"].size


def _make_head(
    path: Path, recognised: Recognised, task: str, pooling: str | None, root: Path, modules: list[tuple[str, str]]
) -> _Head:
    kinds = _by_kind(recognised)
    if task == "embedding":
        return _embedding_head(path, recognised, pooling, root, modules)
    if task == "question-answering" and "start" not in kinds:
        both = kinds["tokens"]
        return _Head({}, recognised.outputs[both].tensors, {"start_logits": (both, 0), "end_logits": (both, 1)})
    head = _Head({}, {}, {})
    for kind, ours in _TASK_OUTPUTS[task]:
        output = recognised.outputs[kinds[kind]]
        head.fields.update(output.fields)
        head.tensors.update(output.tensors)
        head.names[ours] = kinds[kind], None
    if head.fields.get("pooling", "cls") != "cls":
        raise UnsupportedModelError(
            f"{path}: its labels are read from the mean of the tokens; supported: from the first token"
        )
    return head


def _embedding_head(
    path: Path, recognised: Recognised, pooling: str | None, root: Path, modules: list[tuple[str, str]]
) -> _Head:
    """Pooling as asked for, or as an output of the file has it, or as modules.json says, or the mean."""
    kinds = _by_kind(recognised)
    names: dict[str, tuple[str, int | None]] = {}
    if "hidden" in kinds:
        names["last_hidden_state"] = kinds["hidden"], None
    sentences = {name: output for name, output in recognised.outputs.items() if output.kind == "sentence"}
    poolers = [name for name, output in sentences.items() if _is_pooler(output)]
    others = [name for name in sentences if name not in poolers]
    if pooling == "pooler" and not poolers:
        raise UnsupportedModelError(
            f"{path}: no output of it is BERT's pooler; ask for embedding:mean or embedding:cls"
        )
    if pooling in ("none", "mean", "cls"):
        return _Head({"pooling": pooling}, {}, names)
    # what BERT's own export has beside the hidden states is seldom meant as an embedding
    if chosen := others or (poolers if pooling == "pooler" or not names else []):
        output = sentences[chosen[0]]
        return _Head(output.fields, output.tensors, {**names, "sentence_embedding": (chosen[0], None)})
    if modules:
        fields, tensors = read_head(root, modules)
        if {"token_size", "sparse_pooling", "has_token_weights"} & fields.keys():
            raise UnsupportedModelError(
                f"{path}: beside it lie the modules of sparse or token embeddings, which are read from checkpoints: "
                "export that, or ask for --task embedding:none"
            )
        return _Head(fields, dict(tensors), names)
    return _Head({"pooling": assume_mean(path)}, {}, names)


def _is_pooler(output: Output) -> bool:
    fields = output.fields
    if (fields["pooling"], fields.get("dense_activation"), fields["normalize"]) != ("cls", "tanh", False):
        return False
    inputs, outputs = output.tensors["head.dense.weight"].shape
    return bool(inputs == outputs)


def _text_fields(
    config: dict[str, Any], task: str, tensors: Mapping[str, F32], root: Path, modules: list[tuple[str, str]]
) -> dict[str, Any]:
    """Fields of the spec that config.json and modules.json give: labels, what scores are made of, prompts."""
    if task in ("next-sentence", "pretraining"):
        return {"labels": NEXT_SENTENCE_LABELS}
    if task not in ("text-classification", "token-classification"):
        return read_prompts(root, task)
    count = tensors["head.out.bias"].size
    if config.get("id2label") is None:
        config = {**config, "num_labels": count}
    labels = read_labels(config)
    if len(labels) != count:
        raise ModelFormatError(f"config.json names {len(labels)} labels, the ONNX file has {count}: give the right one")
    if task == "token-classification":
        return {"labels": labels}
    return {
        "labels": labels,
        "problem_type": read_problem_type(config, count),
        "rank_function": read_rank_function(config, root, modules),
    }


def _pad_token_id(folder: Path, config: dict[str, Any]) -> int:
    stated = config.get("pad_token_id")
    if stated is None:
        padding = read_object(folder / "tokenizer.json", {}).get("padding")
        stated = padding.get("pad_id") if isinstance(padding, dict) else None
    return stated if isinstance(stated, int) and stated >= 0 else 0


def _usable_length(program: OnnxProgram, sizes: Mapping[str, Any]) -> int:
    usable = int(sizes["num_positions"] - sizes["position_offset"])
    return min(usable, program.fixed_shape()[1] or usable)


def _whole_config(config: dict[str, Any], spec: EncoderSpec) -> dict[str, Any]:
    """config.json with the sizes in it, under the names of the family: a folder may be made from it."""
    activation = next(name for name, ours in HIDDEN_ACTS.items() if ours == spec.activation)
    sizes = {
        "vocab_size": spec.vocab_size,
        "hidden_size": spec.hidden_size,
        "embedding_size": spec.embedding_size,
        "num_hidden_layers": spec.num_layers,
        "num_attention_heads": spec.layers[0].num_heads,
        "intermediate_size": spec.layers[0].intermediate_size,
        "max_position_embeddings": spec.num_positions,
        "type_vocab_size": spec.num_token_types,
        "layer_norm_eps": spec.layer_norm_eps,
        "hidden_act": activation,
        "pad_token_id": spec.pad_token_id,
    }
    names = FAMILY_TABLES[spec.family].config
    return {names.get(key, key): value for key, value in sizes.items()} | config
