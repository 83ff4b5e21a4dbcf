"""Sentence embeddings: texts with a prompt before them."""

from __future__ import annotations

from collections.abc import Iterable

from edgebert.artifact.spec import EncoderSpec
from edgebert.errors import InvalidInputError
from edgebert.tokenizer import Text


def find_prompt(spec: EncoderSpec, prompt_name: str | None, prompt: str | None) -> str:
    """The text to put before every text: `prompt`, else the prompt of that name, else the file's default, else ''.

    Raises:
        InvalidInputError: the file has no prompt of that name.
    """
    if prompt is not None:
        if not isinstance(prompt, str):
            raise InvalidInputError(f"prompt must be a str, got {type(prompt).__name__}")
        return prompt
    name = spec.default_prompt_name if prompt_name is None else prompt_name
    if name is None:
        return ""
    if name not in spec.prompts:
        known = ", ".join(sorted(spec.prompts)) or "none"
        raise InvalidInputError(f"unknown prompt_name {name!r}: this file has {known}")
    return spec.prompts[name]


def read_inputs(texts: str | Iterable[str], prompt: str) -> tuple[bool, list[Text]]:
    """(whether `texts` is a single str, the texts with the prompt before each).

    Raises:
        InvalidInputError: a text that is not a str, named by its index.
    """
    if isinstance(texts, str):
        return True, [prompt + texts]
    if isinstance(texts, (bytes, dict)) or not isinstance(texts, Iterable):
        raise InvalidInputError(f"expected a text or a list of texts, got {type(texts).__name__}")
    items: list[Text] = []
    for i, text in enumerate(texts):
        if not isinstance(text, str):
            raise InvalidInputError(f"text {i} must be a str, got {type(text).__name__}")
        items.append(prompt + text)
    return False, items
