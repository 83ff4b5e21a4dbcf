"""What transformers makes of a checkpoint: its tokenizer and its outputs, which the gate compares ours with."""

from __future__ import annotations

import contextlib
import importlib.util
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from edgebert.artifact.check import Encoded, GateError
from edgebert.backends.base import Outputs
from edgebert.batch import PackedBatch
from edgebert.errors import UnsupportedModelError
from edgebert.tokenizer import Text

if TYPE_CHECKING:
    from edgebert.artifact.checkpoint import Checkpoint

# Task -> the class of transformers, without the family's prefix, and what it calls the file's outputs, in order.
_CLASSES = {
    "embedding": ("AutoModel", ("last_hidden_state",)),
    "text-classification": ("AutoModelForSequenceClassification", ("logits",)),
    "token-classification": ("AutoModelForTokenClassification", ("logits",)),
    "question-answering": ("AutoModelForQuestionAnswering", ("start_logits", "end_logits")),
    "fill-mask": ("AutoModelForMaskedLM", ("logits",)),
    "next-sentence": ("AutoModelForNextSentencePrediction", ("logits",)),
    "pretraining": ("AutoModelForPreTraining", ("prediction_logits", "seq_relationship_logits")),
}


def has_transformers() -> bool:
    """Whether transformers is installed."""
    return importlib.util.find_spec("transformers") is not None


def run_transformers(checkpoint: Checkpoint, batch: PackedBatch) -> Outputs:
    """What transformers gives for the checkpoint's folder, one sequence at a time, in the shapes of `Backend.run`.

    Of an embedding model these are the hidden states: pooling is not part of transformers' model.

    Raises:
        GateError: transformers cannot load the folder.
    """
    import torch
    import transformers

    spec = checkpoint.spec
    class_name, names = _CLASSES[spec.task]
    try:
        with _quiet(transformers):
            model = getattr(transformers, class_name).from_pretrained(
                checkpoint.folder,
                config=_make_config(spec.family, checkpoint.config),
                dtype=torch.float32,
                attn_implementation="eager",
                local_files_only=True,
            )
    except Exception as error:  # its errors share no base
        raise GateError(
            f"transformers {transformers.__version__} cannot load the source to compare: {error}"
        ) from error
    model.eval()
    rows: dict[str, list[Any]] = {name: [] for name in spec.outputs[: len(names)]}
    for i in range(batch.num_sequences):
        ids, mask, types = (torch.from_numpy(part) for part in batch.take([i]).pad())
        inputs = {"input_ids": ids, "attention_mask": mask} | (
            {"token_type_ids": types} if spec.has_token_types else {}
        )
        with torch.no_grad():
            outputs = model(**inputs)
        for ours, theirs in zip(rows, names, strict=True):
            value = outputs[theirs].numpy()
            rows[ours].append(value[0] if spec.output_width(ours)[0] else value)
    return {name: np.concatenate(parts).astype(np.float32) for name, parts in rows.items()}


def load_tokenizer(folder: Path, family: str, config: dict[str, Any]) -> Any:
    """The tokenizer that transformers loads for a checkpoint: a PreTrainedTokenizerFast.

    Args:
        folder: the checkpoint's.
        family: one of spec.FAMILIES.
        config: of config.json.

    Raises:
        UnsupportedModelError: transformers cannot load it, or its class does not run on the tokenizers library.
    """
    import transformers

    name = f"transformers {transformers.__version__}"
    try:
        with _quiet(transformers):
            tokenizer = transformers.AutoTokenizer.from_pretrained(
                folder, config=_make_config(family, config), local_files_only=True
            )
    except Exception as error:  # its errors share no base
        reason = str(error).strip().partition("\n")[0] or type(error).__name__
        raise UnsupportedModelError(
            f"{name} cannot load the tokenizer of {folder} ({reason}): load and save it there with the release that "
            "can, and export again"
        ) from None
    if not tokenizer.is_fast:
        raise UnsupportedModelError(
            f"the tokenizer class {type(tokenizer).__name__} is written in Python, and does not run on the tokenizers "
            "library, which a model file needs: bring token ids instead, from a folder without tokenizer files"
        )
    return tokenizer


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

    if has_transformers():
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


def _make_config(family: str, config: dict[str, Any]) -> Any:
    """The config as transformers' own class; the family is stated, since a config.json need not say it."""
    import transformers

    return transformers.AutoConfig.for_model(
        family, **{key: value for key, value in config.items() if key != "model_type"}
    )


@contextlib.contextmanager
def _quiet(transformers: Any) -> Iterator[None]:
    """Silence what transformers says while loading: the gate finds by itself what is wrong."""
    logging = transformers.utils.logging
    verbosity, has_bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.set_verbosity(verbosity)
        if has_bars:
            logging.enable_progress_bar()
