"""Sentence embeddings: texts with a prompt before them."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from edgebert.artifact.spec import EncoderSpec
from edgebert.errors import InvalidInputError
from edgebert.tasks.inputs import F32, read_texts

if TYPE_CHECKING:
    from edgebert.runner import TextRunner


def answer(
    runner: TextRunner, texts: str | Iterable[str], *, prompt_name: str | None = None, prompt: str | None = None
) -> F32:
    """One sentence embedding a text.

    Args:
        runner: the file and the options all tasks have.
        texts: a text or several.
        prompt_name: name of one of the file's prompts, put before every text; the file's default prompt if None.
        prompt: a prompt of the caller's own, instead of one by name.

    Returns:
        f32 [n, width] in the order of the texts, f32 [width] for a single str.

    Raises:
        InvalidInputError: a text or prompt name that is not usable.
    """
    before = find_prompt(runner.spec, prompt_name, prompt)
    is_single, items = read_texts(texts)
    rows = runner.run_texts([before + text for text in items], "sentence_embedding")
    return rows[0] if is_single else rows


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
