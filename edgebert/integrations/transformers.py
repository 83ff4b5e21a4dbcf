"""Model files as models of transformers: tokenized rows in, its output classes out, so that its pipelines run them."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path
from typing import Any, ClassVar, Self

from edgebert.errors import InvalidInputError
from edgebert.integrations import copy_file, need_library, take_model
from edgebert.integrations.padding import run_padded
from edgebert.model import Model

need_library(__name__)

import torch
from transformers import AutoConfig, PretrainedConfig
from transformers import modeling_outputs as outputs
from transformers.models.auto import modeling_auto
from transformers.models.bert.modeling_bert import BertForPreTrainingOutput

HEADS = {  # and the classes of their outputs
    "FeatureExtraction": ("embedding", outputs.BaseModelOutput),
    "SequenceClassification": ("text-classification", outputs.SequenceClassifierOutput),
    "TokenClassification": ("token-classification", outputs.TokenClassifierOutput),
    "QuestionAnswering": ("question-answering", outputs.QuestionAnsweringModelOutput),
    "MaskedLM": ("fill-mask", outputs.MaskedLMOutput),
    "NextSentencePrediction": ("next-sentence", outputs.NextSentencePredictorOutput),
    "PreTraining": ("pretraining", BertForPreTrainingOutput),
}


class EdgeBertModel(torch.nn.Module):
    """What the classes below share. A text's outputs are those it has alone: padding, on either side, is taken off."""

    head: ClassVar[str]
    output_class: ClassVar[type]
    input_modalities = ("text",)  # pipelines ask for these three
    device, dtype = torch.device("cpu"), torch.float32

    def __init__(self, model: Model, config: PretrainedConfig) -> None:
        super().__init__()
        self.model, self.config = model, config

    def __init_subclass__(cls) -> None:
        suffix = cls.__name__.removeprefix("EdgeBertModelFor")
        cls.head, cls.output_class = HEADS[suffix]
        for name, mapping in vars(modeling_auto).items():  # pipelines log that they do not know what is not in there
            if name.endswith("_MAPPING_NAMES") and mapping.get("bert") == f"BertFor{suffix}":
                mapping["edgebert"] = cls.__name__

    @classmethod
    def from_pretrained(cls, folder: str | Path, *, file_name: str = "model.onnx", **options: Any) -> Self:
        """Load a folder that `edgebert export` wrote: `file_name`, with options of `edgebert.load`, and config.json.

        Raises:
            EdgeBertError: as `edgebert.load`; InvalidInputError where the head is that of another class.
        """
        names = {head: f"EdgeBertModelFor{name}" for name, (head, _) in HEADS.items()}
        model = take_model(Path(folder) / file_name, names, cls.head, reads_texts=False, pools=False, **options)
        if not Path(folder, "config.json").is_file():
            raise InvalidInputError(f"{folder} has no config.json: export the model to a folder instead of a file")
        config = AutoConfig.from_pretrained(folder)
        if labels := model.spec.labels:
            config.id2label, config.label2id = dict(enumerate(labels)), {name: i for i, name in enumerate(labels)}
        return cls(model, config)

    def forward(
        self, input_ids: Any = None, attention_mask: Any = None, token_type_ids: Any = None, **others: Any
    ) -> Any:
        """The output class of the head, of tensors for tensors and of arrays for arrays; zeros where padding was.

        Raises:
            InvalidInputError: no token ids, or what an inference of token ids does not take, `labels` for instance.
        """
        if given := [name for name, value in others.items() if value is not None and name != "return_dict"]:
            raise InvalidInputError(f"{type(self).__name__} does not take {', '.join(given)}: leave it out")
        known = {field.name for field in fields(self.output_class)}
        names = [name for name in self.model.spec.outputs if name in known]
        values: dict[str, Any] = run_padded(self.model, (input_ids, attention_mask, token_type_ids), names)
        if isinstance(input_ids, torch.Tensor):
            values = {name: torch.from_numpy(value).to(input_ids.device) for name, value in values.items()}
        return self.output_class(**values)

    def can_generate(self) -> bool:
        """Whether it writes texts, which pipelines ask: no."""
        return False

    def save_pretrained(self, folder: str | Path, **_: Any) -> None:
        """Copy the file and write the config into a folder."""
        self.config.save_pretrained(folder)
        copy_file(self.model, folder)


class EdgeBertModelForFeatureExtraction(EdgeBertModel):
    """Of an embedding file: `last_hidden_state`."""


class EdgeBertModelForSequenceClassification(EdgeBertModel):
    """Of a text-classification file: `logits`, one row a sequence."""


class EdgeBertModelForTokenClassification(EdgeBertModel):
    """Of a token-classification file: `logits`, one row a token."""


class EdgeBertModelForQuestionAnswering(EdgeBertModel):
    """Of a question-answering file: `start_logits` and `end_logits`."""


class EdgeBertModelForMaskedLM(EdgeBertModel):
    """Of a fill-mask file: `logits`, one row a token."""


class EdgeBertModelForNextSentencePrediction(EdgeBertModel):
    """Of a next-sentence file: `logits`, one row a pair."""


class EdgeBertModelForPreTraining(EdgeBertModel):
    """Of a pretraining file: `prediction_logits` and `seq_relationship_logits`."""
