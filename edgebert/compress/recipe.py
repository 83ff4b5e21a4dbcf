"""The recipe: all settings of a compression run, frozen and checked, to and from TOML."""

from __future__ import annotations

import dataclasses
import math
import os
import re
import tomllib
import types
import typing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import tomli_w

from edgebert.artifact.spec import PROBLEM_TYPES
from edgebert.compress.data import ROLES, TASKS
from edgebert.errors import InvalidInputError
from edgebert.files import read_path
from edgebert.tasks import name_task

PRECISIONS = ("auto", "f32", "bf16")


def _check(name: str, value: object, is_right: bool, expected: str) -> None:
    if not is_right:
        raise InvalidInputError(f"recipe: {name} must be {expected}, got {value!r}")


def _from_table(kind: Any, table: dict[str, Any], path: str) -> Any:
    hints = typing.get_type_hints(kind)
    if unknown := sorted(set(table) - set(hints)):
        raise InvalidInputError(f"{path} has no {', '.join(unknown)}; it has {', '.join(hints)}")
    needed = [f.name for f in dataclasses.fields(kind) if f.default is f.default_factory is dataclasses.MISSING]
    if missing := [name for name in needed if name not in table]:
        raise InvalidInputError(f"{path} lacks {', '.join(missing)}: give each as an argument or in the recipe's file")
    return kind(**{name: _convert(hints[name], value, f"{path}.{name}") for name, value in table.items()})


_PLURALS = {int: "integers", str: "texts"}


def _convert(hint: Any, value: Any, path: str) -> Any:
    """The value as the type hint asks for it."""
    options = [option for option in typing.get_args(hint) if option is not types.NoneType]
    if isinstance(hint, types.UnionType):
        if value is None or (value is False and dataclasses.is_dataclass(options[0])):
            return None
        hint = options[0]
    if dataclasses.is_dataclass(hint):
        if dataclasses.is_dataclass(value):
            return value
        if value is True:
            return _from_table(hint, {}, path)
        if not isinstance(value, dict):
            raise InvalidInputError(f"{path} must be a table, true or false, got {value!r:.100}")
        return _from_table(hint, value, path)
    if hint is float and isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) < 2**1023:
        return float(value)
    if typing.get_origin(hint) is tuple:
        kind = typing.get_args(hint)[0]
        if not isinstance(value, (list, tuple)) or not all(type(item) is kind for item in value):
            raise InvalidInputError(f"{path} must be a list of {_PLURALS[kind]}, got {value!r:.100}")
        return tuple(value)
    expected = typing.get_origin(hint) or hint
    if expected is str and isinstance(value, os.PathLike):
        return os.fspath(value)
    if type(value) is not expected:
        raise InvalidInputError(f"{path} must be of type {expected.__name__}, got {value!r:.100}")
    if expected is dict and not all(isinstance(text, str) for text in (*value, *value.values())):
        raise InvalidInputError(f"{path} must name texts by texts, got {value!r:.100}")
    return value


class _Settings:
    """Settings whose fields are of the types that their annotations say, then within the bounds of `_check_bounds`."""

    def __post_init__(self) -> None:
        hints = typing.get_type_hints(type(self))
        for name, hint in hints.items():
            object.__setattr__(self, name, _convert(hint, getattr(self, name), f"recipe: {name}"))
        self._check_bounds()

    def _check_bounds(self) -> None:
        raise NotImplementedError


@dataclass(frozen=True)
class Training(_Settings):
    """How a model is trained. Rates are high for a language model because the models are small."""

    epochs: int = 6
    batch_size: int = 32
    learning_rate: float = 2e-4
    warmup: float = 0.1  # share of the steps
    weight_decay: float = 0.01
    max_grad_norm: float = 1.0
    dropout: float = 0.1  # also of the attention weights
    patience: int = 2  # epochs without a better score before training stops
    max_length: int | None = None  # tokens; None: the model's limit
    precision: str = "auto"  # "auto" is bf16 where the device multiplies it, else f32

    def _check_bounds(self) -> None:
        for name in ("epochs", "batch_size", "patience"):
            _check(name, getattr(self, name), getattr(self, name) >= 1, "a positive integer")
        for name in ("learning_rate", "max_grad_norm"):
            _check(name, getattr(self, name), 0 < getattr(self, name) < math.inf, "a positive number")
        for name in ("warmup", "weight_decay", "dropout"):
            _check(name, getattr(self, name), 0 <= getattr(self, name) < 1, "a number in [0, 1)")
        _check("max_length", self.max_length, self.max_length is None or self.max_length >= 4, "at least 4 tokens")
        _check("precision", self.precision, self.precision in PRECISIONS, f"one of {', '.join(PRECISIONS)}")


@dataclass(frozen=True)
class Distillation(_Settings):
    """How a student learns from the fine-tuned teacher, and how it begins.

    The student is the checkpoint `student` where one is given; else the teacher's layers at `layers` (indices from 0),
    or `num_layers` of them, evenly spread, where `hidden_size` is given on so many of its principal axes.
    """

    num_layers: int = 3
    layers: tuple[int, ...] = ()
    hidden_size: int | None = None
    student: str | None = None
    temperature: float = 2.0
    label_weight: float = 0.5  # of the task's own loss
    soft_weight: float = 1.0  # of the teacher's soft labels, or of its embeddings
    hidden_weight: float = 1.0  # of hidden states, layer by layer
    relation_weight: float = 0.0  # of the last layer's self-attention relations (MiniLM)
    training: Training = Training(epochs=8)

    def _check_bounds(self) -> None:
        _check("num_layers", self.num_layers, self.num_layers >= 1, "a positive integer")
        _check("temperature", self.temperature, 0 < self.temperature < math.inf, "a positive number")
        weights = (
            self.label_weight,
            self.soft_weight,
            self.hidden_weight,
            self.relation_weight,
        )
        _check("weights", weights, all(0 <= w < math.inf for w in weights) and sum(weights) > 0, "0 or more, not all 0")
        _check("layers", self.layers, all(i >= 0 for i in self.layers), "indices from 0")
        _check("hidden_size", self.hidden_size, self.hidden_size is None or self.hidden_size >= 1, "a positive integer")
        given = [name for name in ("student", "hidden_size", "layers") if getattr(self, name)]
        _check("student", given, len(given) <= 1, "one of student, hidden_size and layers")


@dataclass(frozen=True)
class Pruning(_Settings):
    """How much of the encoder's arithmetic stays, and whether what is left is trained again."""

    flops: float = 0.5  # share of the encoder's floating-point operations that stays
    within_drop: bool = False  # stop earlier, before the metric falls by more than budget.drop
    retrain: bool = False  # distilled from the model before pruning
    steps: int = 1  # in which `flops` is reached; retrained after each
    temperature: float = 2.0
    training: Training = Training(epochs=2, learning_rate=1e-4)

    def _check_bounds(self) -> None:
        _check("flops", self.flops, 0 < self.flops <= 1, "a number in (0, 1]")
        is_gradual = self.steps > 1 and self.retrain and not self.within_drop
        _check("steps", self.steps, self.steps == 1 or is_gradual, "1, or more with retrain and without within_drop")
        _check("temperature", self.temperature, 0 < self.temperature < math.inf, "a positive number")


@dataclass(frozen=True)
class QuantizationAware(_Settings):
    """How a model learns to be int8: with the codes in its products, distilled from itself in f32."""

    temperature: float = 2.0
    training: Training = Training(epochs=2, learning_rate=5e-5)

    def _check_bounds(self) -> None:
        _check("temperature", self.temperature, 0 < self.temperature < math.inf, "a positive number")


@dataclass(frozen=True)
class Exits(_Settings):
    """Heads after all layers but the last, trained with them, distilled from the whole model: texts leave when sure.

    `risk` is the share of texts whose answer may differ from the one that all layers give, with Recipe.confidence.
    """

    risk: float = 0.01
    temperature: float = 2.0
    training: Training = Training(epochs=3, learning_rate=1e-4)

    def _check_bounds(self) -> None:
        _check("exits.risk", self.risk, 0 < self.risk < 1, "a number in (0, 1)")
        _check("temperature", self.temperature, 0 < self.temperature < math.inf, "a positive number")


@dataclass(frozen=True)
class Budget(_Settings):
    """What the file must keep to; each None is no limit.

    Attributes:
        drop: points (hundredths) that the metric may fall below the fine-tuned fp32 model's; see Recipe.confidence.
        size: bytes of the file.
        latency: seconds of one call, with `tokens` tokens a text, `batch` texts and `threads` threads.
        speed: how many times as fast as the fine-tuned fp32 model's file such a call has to be; without `latency`.
    """

    drop: float | None = None
    size: int | None = None
    latency: float | None = None
    speed: float | None = None
    tokens: int = 128
    threads: int = 1
    batch: int = 1

    def _check_bounds(self) -> None:
        _check("drop", self.drop, self.drop is None or 0 <= self.drop < math.inf, "a number, 0 or more")
        for name in ("size", "latency", "speed"):
            value = getattr(self, name)
            _check(name, value, value is None or 0 < value < math.inf, "a positive number")
        _check("speed", self.speed, self.speed is None or self.latency is None, "left out beside latency")
        for name in ("tokens", "threads", "batch"):
            _check(name, getattr(self, name), getattr(self, name) >= 1, "a positive integer")

    @property
    def prunes(self) -> bool:
        """Whether a model that does not fit is pruned until it does: for its bytes or its time."""
        return any(limit is not None for limit in (self.size, self.latency, self.speed))

    @classmethod
    def parse(cls, texts: typing.Sequence[str]) -> Budget:
        """Budgets as the command line gives them: `drop=1.0`, `size=10MB`, `latency=2ms@128,threads=1`, `speed=3x@128`.

        Raises:
            InvalidInputError: anything else.
        """
        found: dict[str, Any] = {}
        if not isinstance(texts, (list, tuple)) or not all(isinstance(text, str) for text in texts):
            raise InvalidInputError(f"budgets must be a list of texts such as 'drop=1.0', got {texts!r:.100}")
        for text in texts:
            for part in text.split(","):
                name, _, value = (side.strip() for side in part.partition("="))
                reader = _BUDGET_READERS.get(name)
                read = None if reader is None else reader(value)
                if read is None:
                    raise InvalidInputError(
                        f"budget {part!r} is not understood; expected drop=1.0 (points), size=10MB, "
                        "speed=3x@128,threads=1,batch=1 or latency=2ms@128,threads=1,batch=1"
                    )
                found |= read
        return cls(**found)


_NUMBER = r"(\d{1,15}(?:\.\d{0,15})?|\.\d{1,15})"
_COUNT = r"\d{1,9}"


def _read_size(value: str) -> dict[str, Any] | None:
    match = re.fullmatch(_NUMBER + r"\s*(B|kB|KB|MB|GB)", value)
    units = {"B": 1, "kB": 1e3, "KB": 1e3, "MB": 1e6, "GB": 1e9}
    return {"size": int(float(match[1]) * units[match[2]])} if match else None


def _read_latency(value: str) -> dict[str, Any] | None:
    match = re.fullmatch(rf"{_NUMBER}\s*(s|ms|us)(?:@({_COUNT}))?", value)
    if not match:
        return None
    seconds = float(match[1]) * {"s": 1.0, "ms": 1e-3, "us": 1e-6}[match[2]]
    return {"latency": seconds} | ({"tokens": int(match[3])} if match[3] else {})


def _read_speed(value: str) -> dict[str, Any] | None:
    match = re.fullmatch(rf"{_NUMBER}\s*x(?:@({_COUNT}))?", value)
    return {"speed": float(match[1])} | ({"tokens": int(match[2])} if match[2] else {}) if match else None


def _read_count(name: str) -> typing.Callable[[str], dict[str, Any] | None]:
    return lambda value: {name: int(value)} if re.fullmatch(_COUNT, value) else None


_BUDGET_READERS: dict[str, typing.Callable[[str], dict[str, Any] | None]] = {
    "drop": lambda value: {"drop": float(value)} if re.fullmatch(_NUMBER, value) else None,
    "size": _read_size,
    "latency": _read_latency,
    "speed": _read_speed,
    "threads": _read_count("threads"),
    "batch": _read_count("batch"),
}


@dataclass(frozen=True)
class Recipe(_Settings):
    """A compression run.

    Attributes:
        model: a Hugging Face folder, the name of an installed model package, or a hub name.
        task: one of data.TASKS.
        train: the file of task data; see data.load_dataset.
        output: the file to write; its name ends in .onnx.
        eval: a file like `train`, whose rows judge; None holds two tenths of `train` out for that. Another tenth of
            `train` chooses (epochs, candidates), and with `exits` two more say when texts may leave: rows that choose
            never judge.
        also_eval: more such files: the report tells what was lost on them, whatever the budgets are.
        confidence: that the metric in truth fell by no more than is said; see `judge`.
        unlabelled: a file with more texts, without targets, for distillation and for `trim`.
        columns: role -> column, where the names do not say it.
        label_map: the data's label -> the checkpoint's, where the names do not say it.
        problem_type: of text classification; None takes what the data holds.
        family: the model's family; None takes what the checkpoint says.
        work: the folder for finished stages and training states; None puts it beside the output.
        seed: the same one gives the same file.
        finetune, distill, prune, exits, qat: None leaves the stage out; qat is quantization-aware training.
        matryoshka: of embeddings, how many leading dimensions are to be good alone, each a number of them.
        trim: cut the vocabulary to the texts of `train` and `unlabelled`.
        int8: quantize.
        portable: with int8, weights in +-63; see `edgebert.export`.
        budget: what the file must keep to.
    """

    model: str
    task: str
    train: str
    output: str
    eval: str | None = None
    also_eval: tuple[str, ...] = ()
    confidence: float = 0.95
    unlabelled: str | None = None
    columns: dict[str, str] = field(default_factory=dict)
    label_map: dict[str, str] = field(default_factory=dict)
    problem_type: str | None = None
    family: str | None = None
    work: str | None = None
    seed: int = 0
    matryoshka: tuple[int, ...] = ()
    trim: bool = False
    int8: bool = True
    portable: bool = False
    finetune: Training | None = Training()
    distill: Distillation | None = None
    prune: Pruning | None = None
    exits: Exits | None = None
    qat: QuantizationAware | None = None
    budget: Budget = Budget()

    def _check_bounds(self) -> None:
        object.__setattr__(self, "task", name_task(self.task))
        _check("task", self.task, self.task in TASKS, f"one of {', '.join(TASKS)}")
        _check("output", self.output, self.output.endswith(".onnx"), "a file name that ends in .onnx")
        _check("columns", self.columns, set(self.columns) <= set(ROLES), f"roles out of {', '.join(ROLES)}")
        kinds = (None, *PROBLEM_TYPES)
        _check("problem_type", self.problem_type, self.problem_type in kinds, f"one of {', '.join(PROBLEM_TYPES)}")
        _check("seed", self.seed, self.seed >= 0, "an integer, 0 or more")
        _check("confidence", self.confidence, 0.5 <= self.confidence < 1, "a number in [0.5, 1)")
        is_embedding = self.task == "embedding" or not self.matryoshka
        widths = is_embedding and all(width >= 1 for width in self.matryoshka)
        _check("matryoshka", self.matryoshka, widths, "positive integers, of the task embedding")
        _check("portable", self.portable, self.int8 or not self.portable, "false without int8")
        classifies = self.task in ("text-classification", "token-classification")
        if self.exits is not None and not classifies:
            raise InvalidInputError(f"exits are for text and token classification, not for {self.task}: leave them out")
        if self.exits is not None and self.distill is not None and self.distill.student is None:
            num_layers = len(self.distill.layers) or self.distill.num_layers
            _check("num_layers", num_layers, num_layers > 1, "2 or more with exits (--layers)")
        _check("qat", self.qat, self.int8 or self.qat is None, "false without int8")
        within_drop = self.prune is not None and self.prune.within_drop
        _check("within_drop", within_drop, self.budget.drop is not None or not within_drop, "false without budget.drop")

    @property
    def work_folder(self) -> Path:
        """Where finished stages are kept."""
        return Path(self.work) if self.work else Path(self.output).with_suffix(".work")

    def to_toml(self) -> str:
        """The recipe as TOML; what is None is left out, a stage that is left out is false."""
        return tomli_w.dumps(_to_table(self))

    @classmethod
    def from_toml(cls, text: str, **changes: Any) -> Recipe:
        """Read a recipe; `changes` replace or add fields before it is checked.

        Raises:
            InvalidInputError: not TOML, a field that there is none of, or a value out of range.
        """
        if not isinstance(text, str):
            raise InvalidInputError(f"the recipe must be TOML, a text, got {type(text).__name__}")
        try:
            table = tomllib.loads(text)
        except (tomllib.TOMLDecodeError, RecursionError) as error:
            raise InvalidInputError(f"the recipe is not TOML ({error})") from None
        recipe: Recipe = _from_table(cls, table | changes, "recipe")
        return recipe


def read_recipe(path: str | os.PathLike[str], **changes: Any) -> Recipe:
    """Read a recipe's file.

    Raises:
        InvalidInputError: the file cannot be read, or as `Recipe.from_toml`.
    """
    try:
        text = read_path("recipe", path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidInputError(f"recipe {os.fspath(path)!r} cannot be read ({error}): give a TOML file") from None
    return Recipe.from_toml(text, **changes)


def _to_table(value: Any) -> dict[str, Any]:
    table: dict[str, Any] = {}
    for item in dataclasses.fields(value):
        found = getattr(value, item.name)
        if dataclasses.is_dataclass(found):
            table[item.name] = _to_table(found)
        elif found is not None:
            table[item.name] = list(found) if isinstance(found, tuple) else found
        elif item.default is not None:  # a stage that is left out though the default has it
            table[item.name] = False
    return table
