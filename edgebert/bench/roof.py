"""The roof: the most operations a second that this machine can do, as measured. A model's speed is compared with it."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from edgebert.artifact.spec import EncoderSpec
from edgebert.errors import BackendUnavailableError, EdgeBertError

Roof = dict[str, Any]


def find_roof() -> Path:
    """The program that measures the roof; it is built and installed with the native library, beside it.

    Raises:
        BackendUnavailableError: it is not there.
    """
    from edgebert.backends import native

    try:
        program = Path(native.load_library()._name).with_name(
            "edgebert_roof.exe" if sys.platform == "win32" else "edgebert_roof"
        )
    except BackendUnavailableError:
        raise BackendUnavailableError(
            "unknown: edgebert_roof measures it, which comes with the native library, and that is not installed"
        ) from None
    if not program.exists():
        raise BackendUnavailableError(f"unknown: {program} measures it and is not there: build it")
    return program


def measure_roof(program: Path, threads: Sequence[int]) -> Roof:
    """Run `edgebert_roof`.

    Args:
        program: its path.
        threads: counts of threads.

    Returns:
        {str(count): {"isas": {isa, best first: {"int8_gops", "fp32_gops"}}, "read": [{"mb", "gb_per_s"}]}}; operations
        are multiplications and additions, on registers alone; "mb" is the size of what is read again and again.

    Raises:
        EdgeBertError: it cannot be run, or what it printed is of no use.
    """
    try:
        done = subprocess.run([program, *map(str, threads)], capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError) as error:
        raise EdgeBertError(f"the roof could not be measured: {error}") from None
    try:
        roof: Roof = json.loads(done.stdout)
    except ValueError as error:  # a rate that is not a number: the clock stood still, or the process did
        raise EdgeBertError(f"the roof could not be measured: {error} in {done.stdout!r}: measure again") from None
    return roof


def take_higher(first: Roof, second: Roof) -> Roof:
    """The higher of each figure of two measurements, before and after a run, so that no share comes out too high."""
    return {
        threads: {
            "isas": {
                isa: {key: max(value, second[threads]["isas"][isa][key]) for key, value in figures.items()}
                for isa, figures in entry["isas"].items()
            },
            "read": [
                {**a, "gb_per_s": max(a["gb_per_s"], b["gb_per_s"])}
                for a, b in zip(entry["read"], second[threads]["read"], strict=True)
            ],
        }
        for threads, entry in first.items()
    }


def count_operations(spec: EncoderSpec, lengths: Sequence[int]) -> int:
    """Multiplications and additions of the matrix products that a model's answers need, for texts of these lengths.

    Padding does not count. Where answers read the first token alone, other tokens do not count after the last
    attention. Heads with one row a text are left out: they are a thousandth of the rest.
    """
    tokens, squares = sum(lengths), sum(length * length for length in lengths)
    hidden = spec.hidden_size
    products = 0 if spec.embedding_size == hidden else tokens * spec.embedding_size * hidden
    answers = [head for head in spec.heads if head.steps]
    reads_first = bool(answers) and all(head.steps[0].op == "pool" and head.steps[0].kind == "cls" for head in answers)
    layers = [spec.layers[i] for i in spec.layer_order]
    for i, layer in enumerate(layers, 1):
        rows = len(lengths) if reads_first and i == len(layers) else tokens
        pairs = sum(n * min(n, 2 * layer.window + 1) for n in lengths) if layer.window else squares
        products += tokens * hidden * 3 * layer.attention_size + 2 * pairs * layer.attention_size
        products += rows * hidden * (layer.attention_size + (2 + spec.is_gated) * layer.intermediate_size)
    weights: dict[str, int] = {}
    for head in answers:
        for before, step in zip((None, *head.steps), head.steps, strict=False):
            if head.is_per_token and step.op in ("linear", "decoder"):
                weights[step.weights] = (before.width if before else hidden) * step.width
    return 2 * (products + tokens * sum(weights.values()))


def roof_of(roof: Roof, threads: int, precision: str, isa: str | None = None) -> float | None:
    """Operations a second / 1e9 that `threads` threads can do in "int8" or "fp32"; None for other precisions.

    `isa`: one instruction set; None for the best.
    """
    isas = roof[str(threads)]["isas"]
    figures = isas[isa] if isa else next(iter(isas.values()))
    value: float | None = figures.get(f"{precision}_gops")
    return value
