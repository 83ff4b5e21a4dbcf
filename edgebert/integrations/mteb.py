"""Model files as encoders of MTEB."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgebert.integrations import DOCUMENT, QUERY, Source, encode, need_library, take_model

need_library(__name__)

from mteb.models.abs_encoder import AbsEncoder
from mteb.models.model_meta import ModelMeta, ScoringFunction
from mteb.types import PromptType


class EdgeBertEncoder(AbsEncoder):
    """An encoder of an embedding file, queries and documents each with the file's prompt for them."""

    def __init__(self, model: Source, name: str = "edgebert/model", revision: str = "1", **options: Any) -> None:
        """Args: a model file or what `edgebert.load` returned, what the results are filed under, `Model.encode`'s."""
        self.edgebert, self.options = take_model(model, {}, "embedding"), options
        spec = self.edgebert.spec
        self.mteb_model_meta = ModelMeta.create_empty(
            {
                "name": name,
                "revision": revision,
                "max_tokens": spec.max_length,
                "embed_dim": options.get("truncate_dim") or spec.output_width("sentence_embedding")[1],
                "similarity_fn_name": ScoringFunction.COSINE,
                "framework": ["ONNX"],
                "use_instructions": bool(spec.prompts),
            }
        )

    def encode(self, inputs: Any, *, prompt_type: PromptType | None = None, **_: Any) -> NDArray[np.float32]:
        """Embeddings f32 [n, width] of the texts of batches, all of them computed together."""
        texts = [text for batch in inputs for text in batch["text"]]
        prompts = QUERY if prompt_type == PromptType.query else DOCUMENT if prompt_type else ()
        return encode(self.edgebert, texts, prompts, **self.options)
