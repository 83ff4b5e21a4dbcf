"""transformers, where it is installed: it loads a checkpoint's tokenizer and config as its own classes do."""

from __future__ import annotations

import contextlib
import importlib.util
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from edgebert.errors import UnsupportedModelError


def has_transformers() -> bool:
    """Whether transformers is installed."""
    return importlib.util.find_spec("transformers") is not None


def load_tokenizer(folder: Path, family: str, config: dict[str, Any]) -> Any:
    """The tokenizer that transformers loads for a checkpoint: a PreTrainedTokenizerFast.

    Args:
        folder: the checkpoint's.
        family: one of families.FAMILY_TABLES.
        config: of config.json.

    Raises:
        UnsupportedModelError: transformers cannot load it, or its class does not run on the tokenizers library.
    """
    import transformers

    name = f"transformers {transformers.__version__}"
    try:
        with quiet(transformers):
            tokenizer = transformers.AutoTokenizer.from_pretrained(
                folder, config=make_config(family, config), local_files_only=True
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


def make_config(family: str, config: dict[str, Any]) -> Any:
    """The config as transformers' own class; the family is stated, since a config.json need not say it."""
    import transformers

    return transformers.AutoConfig.for_model(
        family, **{key: value for key, value in config.items() if key != "model_type"}
    )


@contextlib.contextmanager
def quiet(transformers: Any) -> Iterator[None]:
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
