"""The exceptions EdgeBERT raises; every message says what was expected, what was found and what to do."""

import importlib.util


class EdgeBertError(Exception):
    """Base class of every error raised by EdgeBERT on purpose."""


class ModelFormatError(EdgeBertError):
    """A model file is missing, damaged, changed after export, or not one that EdgeBERT wrote."""


class UnsupportedModelError(EdgeBertError):
    """A checkpoint or file is well formed but outside what EdgeBERT supports."""


class InvalidInputError(EdgeBertError, ValueError):
    """Texts, token ids or arguments of a call are not usable."""


class BackendUnavailableError(EdgeBertError):
    """A backend, instruction set or device was asked for that this build or this machine lacks."""


def require(extra: str, *packages: str) -> None:
    """See that packages are installed.

    Raises:
        BackendUnavailableError: one is not; the message names the extra that brings it.
    """
    missing = [name for name in packages if importlib.util.find_spec(name) is None]
    if missing:
        are = "is" if len(missing) == 1 else "are"
        raise BackendUnavailableError(f"{', '.join(missing)} {are} not installed: pip install 'edgebert[{extra}]'")
