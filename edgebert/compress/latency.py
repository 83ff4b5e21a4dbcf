"""How long layers of given shapes take on this device: measured through the native backend, kept on disk.

A table belongs to one workload: a sequence length, a batch size and a number of threads. A model's latency is a
constant for everything but its layers, plus a term for each layer, interpolated between the shapes that were measured.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from edgebert import quant
from edgebert.artifact.names import weight_tensors
from edgebert.artifact.spec import LINEARS, EncoderSpec, LayerSpec
from edgebert.artifact.writer import build_model
from edgebert.backends import cpus, native
from edgebert.batch import PackedBatch
from edgebert.errors import InvalidInputError
from edgebert.files import hash_file, write_whole
from edgebert.turns import time_in_turns

MAX_LAYERS = 6  # of a file that is measured: enough to overflow the caches as the whole model does
ROUNDS = 8
_TURN_S = 0.02  # of calls in one turn, about
_SMOOTHED = ("qkv", "ffn_up")  # what quantize() smooths in every layer
_TABLE_ROWS = 4096  # of the word table at most: looking up rows costs the same in a larger one


@dataclass(frozen=True)
class LatencyTable:
    """Seconds of a call, by the shape of the layers.

    Attributes:
        workload: what was measured where: tokens, batch, threads, dtypes, sizes, CPU, ISA and build.
        constant: seconds of a model without layers: embeddings, pooling, head, and the call itself.
        num_heads: counts of heads measured, ascending.
        intermediate_sizes: widths measured, ascending.
        seconds: of one layer, for each of num_heads one row with an entry for each of intermediate_sizes.
    """

    workload: dict[str, Any]
    constant: float
    num_heads: tuple[int, ...]
    intermediate_sizes: tuple[int, ...]
    seconds: tuple[tuple[float, ...], ...]

    @classmethod
    def measure(
        cls,
        spec: EncoderSpec,
        *,
        tokens: int = 128,
        batch: int = 1,
        threads: int | None = 1,
        int8: bool = True,
        use_cache: bool = True,
    ) -> LatencyTable:
        """Measure on this device, or take what an earlier measurement left in the cache.

        Args:
            spec: f32; its sizes, its largest layer and its head are those of the table.
            tokens: of each sequence.
            batch: sequences in a call.
            threads: None for the CPUs that this process may use.
            int8: whether linears and tables will be int8.
            use_cache: read and write the cache, `$XDG_CACHE_HOME/edgebert/latency` or `~/.cache/edgebert/latency`.

        Raises:
            InvalidInputError: a workload that the model cannot take.
            BackendUnavailableError: the native library is missing.
        """
        if not 0 < tokens <= spec.usable_positions or batch < 1:
            raise InvalidInputError(
                f"the latency of {batch} sequences of {tokens} tokens cannot be measured: the model takes sequences of "
                f"1 to {spec.usable_positions} tokens, at least one: choose others"
            )
        plain = _as_measured(spec, int8)
        count = min(spec.num_layers, MAX_LAYERS)
        workload = _describe(plain.replace(layers=plain.layers * count), tokens, batch, threads)
        path = _cache_folder() / f"{hashlib.sha256(json.dumps(workload).encode()).hexdigest()[:32]}.json"
        if use_cache and (found := _read_cache(path, workload)) is not None:
            return found
        largest = plain.layers[0]
        heads = _steps(largest.num_heads, 1)
        widths = _steps(largest.intermediate_size, 64)
        shapes = [(h, n) for h in heads for n in widths]
        specs = [plain.replace(layers=())]
        specs += [plain.replace(layers=(_shaped(largest, *shape),) * count) for shape in shapes]
        constant, *totals = _time_models(specs, tokens, batch, threads)
        seconds = np.maximum((np.array(totals) - constant) / count, 0.0).reshape(len(heads), len(widths))
        table = cls(workload, constant, heads, widths, tuple(tuple(row) for row in seconds.tolist()))
        if use_cache:
            path.parent.mkdir(parents=True, exist_ok=True)
            write_whole(path, table.to_json())
        return table

    def layer(self, num_heads: int, intermediate_size: int) -> float:
        """Seconds of one layer of that shape, interpolated in both sizes; beyond the table, its edge."""
        by_heads = [np.interp(intermediate_size, self.intermediate_sizes, row) for row in self.seconds]
        return float(np.interp(num_heads, self.num_heads, by_heads))

    def predict(self, spec: EncoderSpec) -> float:
        """Seconds of a call to a model with the layers of `spec`, its other sizes those of the table."""
        layers = (layer.repeats * self.layer(layer.num_heads, layer.intermediate_size) for layer in spec.layers)
        return self.constant + sum(layers)

    def to_json(self) -> str:
        """The table as JSON."""
        return json.dumps(dataclasses.asdict(self))

    @classmethod
    def from_json(cls, text: str) -> LatencyTable:
        """Read back what `to_json` gave.

        Raises:
            InvalidInputError: it is something else.
        """
        try:
            raw = json.loads(text)
            seconds = tuple(tuple(map(float, row)) for row in raw["seconds"])
            table = cls(**raw | {name: tuple(map(int, raw[name])) for name in ("num_heads", "intermediate_sizes")})
            table = replace(table, seconds=seconds)
            if np.array(seconds).shape != (len(table.num_heads), len(table.intermediate_sizes)):
                raise ValueError("its sizes do not fit")
        except (ValueError, TypeError, KeyError) as error:
            raise InvalidInputError(f"not a latency table ({error}): measure again") from None
        return table


def measure_model(spec: EncoderSpec, tokens: int = 128, batch: int = 1, threads: int | None = 1) -> float:
    """Seconds of a call to a model of exactly this spec, with random weights."""
    return _time_models([spec], tokens, batch, threads)[0]


# What is measured


def _as_measured(spec: EncoderSpec, int8: bool) -> EncoderSpec:
    """The spec with one layer as large as its largest, the dtypes of the file to be, and a small word table."""
    largest = _shaped(
        replace(spec.layers[0], has_attention_norm=True),
        max(layer.num_heads for layer in spec.layers),
        max(layer.intermediate_size for layer in spec.layers),
    )
    if int8:
        dtypes: dict[str, Any] = dict.fromkeys(LINEARS, "s8")
        largest = replace(largest, **dtypes, smoothed=_SMOOTHED)
    rows = spec.vocab_size if spec.has_decoder else min(spec.vocab_size, _TABLE_ROWS)
    return spec.replace(
        layers=(largest,),
        embedding_dtype="s8" if int8 else "f32",
        vocab_size=rows,
        pad_token_id=min(spec.pad_token_id, rows - 1),
        prompts={},
        default_prompt_name=None,
    )


def _shaped(layer: LayerSpec, num_heads: int, intermediate_size: int) -> LayerSpec:
    smoothed = tuple(name for name in layer.smoothed if (num_heads if name in LINEARS[:2] else intermediate_size))
    return replace(layer, num_heads=num_heads, intermediate_size=intermediate_size, smoothed=smoothed, repeats=1)


def _steps(largest: int, step: int) -> tuple[int, ...]:
    """None, a quarter, a half, three quarters and all of a size, in multiples of `step` but for all of it."""
    shares = (0.25, 0.5, 0.75)
    return tuple(sorted({0, largest} | {n for s in shares if 0 < (n := round(s * largest / step) * step) < largest}))


def _describe(spec: EncoderSpec, tokens: int, batch: int, threads: int | None) -> dict[str, Any]:
    library = native.load_library()
    return {
        "tokens": tokens,
        "batch": batch,
        "threads": threads or native.default_threads(),
        "cpu": cpus.cpu_name(),
        "isa": os.environ.get("EDGEBERT_FORCE_ISA") or native.usable_isas()[0],
        "build": hash_file(library._name),
        "spec": json.loads(spec.to_json()),
    }


def _random_tensors(spec: EncoderSpec) -> dict[str, Any]:
    """Weights that no time depends on, for every tensor of the spec."""
    rng = np.random.default_rng(0)
    tensors: dict[str, Any] = {}
    for name, (dtype, shape) in weight_tensors(spec).items():
        if dtype == "s8":
            tensors[name] = rng.integers(-quant.WEIGHT_LIMIT, quant.WEIGHT_LIMIT, shape, np.int8, endpoint=True)
        elif dtype == "f32":
            tensors[name] = (0.01 + 0.02 * rng.random(shape, np.float32)).astype(np.float32)
    for name, (dtype, _) in weight_tensors(spec).items():
        if dtype == "s32":
            is_decoder = name == "mlm.colsum"
            codes = tensors["embeddings.word.weight"].T if is_decoder else tensors[name.replace("colsum", "weight")]
            tensors[name] = quant.column_sums(codes)
    return tensors


def _time_models(specs: Sequence[EncoderSpec], tokens: int, batch: int, threads: int | None) -> list[float]:
    """Seconds of a call to a model of each spec: the lower quartile of the medians of its turns.

    The models take turns, so that all see the same machine; the lower quartile leaves out turns that another process
    slowed down. With one thread CPU time is measured, which on a quiet machine is the same.
    """
    models = [native.load(build_model(spec, _random_tensors(spec), {}), threads=threads) for spec in specs]
    clock = time.thread_time if models[0].threads == 1 else time.perf_counter
    rng = np.random.default_rng(0)
    ids = rng.integers(0, min(spec.vocab_size for spec in specs), (batch, tokens))
    packed = PackedBatch.from_lists(ids.tolist())

    calls = [partial(model.run, packed, model.spec.outputs[-1:]) for model in models]
    pilots = time_in_turns(calls, rounds=1, counts=3, warm_up=False, clock=clock)
    counts = [max(1, round(_TURN_S / seconds.min())) for seconds in pilots]
    found = time_in_turns(calls, rounds=ROUNDS, counts=counts, clock=clock)
    return [float(np.quantile(np.median(seconds, axis=1), 0.25)) for seconds in found]


# The cache


def _cache_folder() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "edgebert" / "latency"


def _read_cache(path: Path, workload: dict[str, Any]) -> LatencyTable | None:
    try:
        table = LatencyTable.from_json(path.read_text(encoding="utf-8"))
    except (OSError, InvalidInputError):
        return None
    return table if table.workload == workload else None
