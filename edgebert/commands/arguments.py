"""Arguments that commands have in common."""

from __future__ import annotations

import argparse
import json
from typing import Any

from edgebert.backends.registry import BACKENDS
from edgebert.errors import InvalidInputError

_PYTHON_VALUES = {"None": None, "True": True, "False": False}


def add_model_arguments(parser: argparse.ArgumentParser) -> None:
    """What runs a model, and the options of its task."""
    parser.add_argument(
        "--option",
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help="an option of the task, for instance top_k=3 or stride=64",
    )
    parser.add_argument("--backend", default="auto", help=f"auto, {', '.join(BACKENDS)} (default: auto)")
    parser.add_argument("--device", default="cpu", help="cpu, cuda or cuda:n (default: cpu)")
    parser.add_argument("--threads", type=int, help="CPU threads (default: the CPUs this process may use)")


def read_option(text: str) -> tuple[str, Any]:
    """NAME=VALUE, the value as JSON or one of Python's constants, or as it stands where it is neither."""
    name, equals, value = text.partition("=")
    if not equals:
        raise InvalidInputError(f"--option takes NAME=VALUE, got {text!r}")
    if value in _PYTHON_VALUES:
        return name, _PYTHON_VALUES[value]
    try:
        return name, json.loads(value)
    except (ValueError, RecursionError):
        return name, value
