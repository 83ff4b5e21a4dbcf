"""A model file as a module of sentence-transformers, and as a CrossEncoder."""

from __future__ import annotations

from typing import Any

from edgebert.errors import InvalidInputError
from edgebert.integrations import Source, copy_file, need_library, take_model
from edgebert.integrations.padding import run_padded
from edgebert.tokenizer import Tokenizer

need_library(__name__)

import torch
from sentence_transformers import CrossEncoder, SentenceTransformer
from sentence_transformers.base.modules import InputModule
from torch import nn

NAMES = {"embedding": "load", "text-classification": "EdgeBertCrossEncoder"}


class EdgeBertModule(InputModule):
    """In place of `Transformer` and `Pooling`: texts in, sentence and token embeddings out, or a classifier's scores.

    It computes where the file was loaded, whatever device the model around it is on, and is not trained.

    Attributes:
        model: the loaded file, of an embedding or text-classification head.
        max_seq_length: tokens a text has at most; what is longer is truncated.
    """

    config_file_name = "edgebert.json"
    config_keys = ["max_seq_length"]

    def __init__(self, model: Source, max_seq_length: int | None = None, **options: Any) -> None:
        """Args: a model file or what `edgebert.load` returned, its limit or another, options of `edgebert.load`."""
        super().__init__()
        self.model = take_model(model, NAMES, *NAMES, pools=False, **options)
        self.max_seq_length = max_seq_length or self.tokenizer.max_length

    @property
    def tokenizer(self) -> Tokenizer:
        """The file's own."""
        assert self.model.tokenizer is not None  # take_model has looked
        return self.model.tokenizer

    def preprocess(self, inputs: list[Any], prompt: str | None = None, **options: Any) -> dict[str, torch.Tensor]:
        """Padded int64 rows of texts and pairs, each with the prompt before it; no other option but `task`."""
        if unknown := {key for key, value in options.items() if value is not None} - {"task"}:
            raise InvalidInputError(f"an EdgeBertModule does not take {', '.join(unknown)}: leave it out")
        before = prompt or ""
        texts = [before + text if isinstance(text, str) else (before + text[0], *text[1:]) for text in inputs]
        batch, _ = self.tokenizer.tokenize(texts, self.max_seq_length)
        ids, mask, types = map(torch.from_numpy, batch.pad(self.model.spec.pad_token_id))
        return {"input_ids": ids, "attention_mask": mask, "token_type_ids": types}

    def forward(self, features: dict[str, Any], **_: Any) -> dict[str, Any]:
        """Put `token_embeddings` and `sentence_embedding`, or `scores`, beside the features."""
        ids = features["input_ids"]
        rows = (features.get(name) for name in ("input_ids", "attention_mask", "token_type_ids"))
        called = {"last_hidden_state": "token_embeddings", "logits": "scores"}
        found = {called.get(name, name): values for name, values in run_padded(self.model, rows).items()}
        return features | {name: torch.from_numpy(values).to(ids.device) for name, values in found.items()}

    def get_embedding_dimension(self) -> int:
        """Width of the embeddings."""
        return self.model.spec.output_width(self.model.spec.outputs[-1])[1]

    def save(self, output_path: str, *_: Any, **__: Any) -> None:
        """Copy the file into a folder, which sentence-transformers loads with `trust_remote_code=True`."""
        copy_file(self.model, output_path)
        self.save_config(output_path)

    @classmethod
    def load(
        cls, model_name_or_path: str, subfolder: str = "", model_kwargs: dict[str, Any] | None = None, **options: Any
    ) -> EdgeBertModule:
        """The module of a saved folder; `model_kwargs` are arguments of this class, for instance `threads`."""
        names = ("token", "cache_folder", "revision", "local_files_only")
        where = {"subfolder": subfolder} | {name: options[name] for name in names if name in options}
        path = cls.load_file_path(model_name_or_path, "model.onnx", **where)
        if path is None:
            raise InvalidInputError(f"{model_name_or_path} holds no model.onnx: save the model again")
        return cls(path, **cls.load_config(model_name_or_path, **where) | (model_kwargs or {}))


class EdgeBertCrossEncoder(CrossEncoder):
    """A `CrossEncoder` of a text-classification file, with the activation that its checkpoint states."""

    def __init__(
        self, model: Source, *, max_length: int | None = None, activation_fn: Any = None, **options: Any
    ) -> None:
        """Args: a model file or what `edgebert.load` returned, and options of `CrossEncoder`."""
        loaded = take_model(model, NAMES, "text-classification")
        name = loaded.spec.rank_function or ("sigmoid" if len(loaded.spec.labels) == 1 else "none")
        activations = {"none": nn.Identity(), "sigmoid": nn.Sigmoid(), "tanh": nn.Tanh(), "softmax": nn.Softmax(dim=1)}
        super().__init__(modules=[EdgeBertModule(loaded, max_length)], **options)
        self.activation_fn = activation_fn or activations[name]

    @property
    def num_labels(self) -> int:
        """How many scores a pair has."""
        return len(self[0].model.spec.labels)


def load(model: Source, max_seq_length: int | None = None, **options: Any) -> SentenceTransformer:
    """A SentenceTransformer of an embedding file, with the file's prompts.

    Args:
        model: a model file, or what `edgebert.load` returned.
        max_seq_length: as for `EdgeBertModule`.
        **options: of `SentenceTransformer`.

    Raises:
        EdgeBertError: as `edgebert.load`; InvalidInputError where the head is not an embedding's.
    """
    loaded = take_model(model, NAMES, "embedding")
    texts = {"prompts": dict(loaded.spec.prompts), "default_prompt_name": loaded.spec.default_prompt_name}
    return SentenceTransformer(modules=[EdgeBertModule(loaded, max_seq_length)], **texts | options)
