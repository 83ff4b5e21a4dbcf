"""A compression run: stages from checkpoint to checkpoint, a file of each, and the best one within the budget."""

from __future__ import annotations

import functools
import hashlib
import json
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from edgebert import __version__
from edgebert.artifact.integrity import add_metadata
from edgebert.artifact.spec import EncoderSpec
from edgebert.backends.base import Outputs
from edgebert.batch import PackedBatch
from edgebert.checkpoints.loading import Checkpoint
from edgebert.compress import prune, vocabulary
from edgebert.compress.data import ROLES, Dataset, hold_out, load_dataset, read_rows
from edgebert.compress.distill import distil, narrow_student, spread_layers
from edgebert.compress.encode import Examples, encode, load_tokenizer
from edgebert.compress.evaluate import Evaluation, TorchBackend, evaluate, with_neighbours
from edgebert.compress.exits import add_exits, calibrate, check_rows, independent_rows, observe
from edgebert.compress.finetune import TaskLoss, batches_by_length, find_device, make_batch, train
from edgebert.compress.heads import load_for_task
from edgebert.compress.judge import Loss, RowScores, group_rows, judge_loss
from edgebert.compress.latency import LatencyTable
from edgebert.compress.measure import describe_shape, evaluate_file, measure_speeds
from edgebert.compress.page import write_report
from edgebert.compress.planner import Bytes, Candidate, Limits, choose, list_candidates, prune_until, spent_share
from edgebert.compress.qat import QuantizedEncoder, settle
from edgebert.compress.recipe import Distillation, Exits, Pruning, QuantizationAware, Recipe, Training
from edgebert.compress.stages import Stage, StageStore
from edgebert.compress.torch_encoder import TorchEncoder
from edgebert.errors import EdgeBertError, InvalidInputError, require
from edgebert.exporting.export import calibration_batches, export_checkpoint
from edgebert.exporting.reference import pytorch_reference
from edgebert.files import check_target, hash_file, write_whole, writing_whole
from edgebert.tokenizer import Text, check_ids

CALIBRATION_TEXTS = 256
PRUNING_EXAMPLES = 2048  # that choose and tune what stays
PRUNING_BATCH = 32
WORST = 20  # examples in the report
LATENCY_TRIES = 3
DROP_STEPS = 5  # of pruning within a drop, from all operations to the share asked for
FALLBACK_DROP, FALLBACK_FLOPS = 1.0, 0.25  # if no model fits: points that may be lost, operations that stay
SPEED_MARGIN = 1.02  # aimed at beyond a budget of speed: the last measurement differs by some noise
ROWS_FILE = "rows.npy"  # of a stage: what each judging row adds to its metric
REPORT_BYTES = 16_384  # kept free under a budget of size for the report in the file


@dataclass(frozen=True)
class Result:
    """What a run gave.

    Attributes:
        output: the file.
        folders: of the stages, each with its fp32 file `model.onnx`.
        report: that of the `.json` file beside the output, without the worst examples.
    """

    output: Path
    folders: list[Path]
    report: dict[str, Any]

    @property
    def verdict(self) -> str:
        """The worst of the budgets' verdicts: "met" (also without a budget), "not shown" or "not met"."""
        found = [budget["verdict"] for budget in self.report["budgets"].values()]
        return next((verdict for verdict in ("not met", "not shown") if verdict in found), "met")

    @property
    def met(self) -> bool:
        """Whether every budget was met."""
        return self.verdict == "met"


def run(recipe: Recipe, progress: Callable[[str], None] = lambda text: None) -> Result:
    """Fine-tune, distil, prune and quantize a model as the recipe says.

    The file is written even if it misses a budget. Finished stages are kept in `recipe.work_folder`: a run that was
    killed continues after the last one. The report goes beside the file, as `.json` and as a page, `.html`, both with
    the worst examples.

    Args:
        recipe: what to do.
        progress: called with a line of text at each step.

    Raises:
        InvalidInputError: data or settings that cannot be used.
        ModelFormatError, UnsupportedModelError: the model cannot be read or compressed.
        GateError: an export did not pass the gate.
        EdgeBertError: a training that failed, or a package that is missing.
    """
    require("report", "jinja2", "matplotlib")
    was_deterministic = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        return _Run(recipe, progress).run()
    finally:
        torch.use_deterministic_algorithms(was_deterministic)


class _Run:
    """One run; the methods are its steps, in order."""

    def __init__(self, recipe: Recipe, progress: Callable[[str], None]) -> None:
        self.recipe, self.progress = recipe, progress
        self.output = Path(recipe.output)
        for suffix in (".onnx", ".json", ".html"):
            check_target(self.output.with_suffix(suffix))
        if recipe.work_folder.is_file():
            raise InvalidInputError(f"{recipe.work_folder} is a file: name a folder for finished stages with --work")
        self.train, self.choice, self.calibration, self.eval, *self.others = self._load_data()
        self.unlabelled = self._load_unlabelled()
        self.messages: list[str] = []
        self.base, names = load_for_task(
            recipe.model,
            self.train,
            seed=recipe.seed,
            family=recipe.family,
            label_map=recipe.label_map,
            must_keep=recipe.finetune is None,
            say=self._say,
        )
        self.train, self.choice, self.calibration, self.eval, *self.others = (
            data.rename(names, self.base.spec.labels)
            for data in (self.train, self.choice, self.calibration, self.eval, *self.others)
        )
        if recipe.exits is not None:
            add_exits(self.base, recipe.seed)  # tells before the work whether it can be done
        if self.train.task == "embedding":
            self._prepare_embedding()
        self._tell_of_single_classes()
        files = [hash_file(path) for path in (recipe.train, recipe.eval, recipe.unlabelled) if path]
        sizes = sorted((str(name), path.stat().st_size) for name, path in self.base.source_files.items())
        counts = len(self.train), len(self.choice), len(self.eval)
        settings = (
            *(recipe.task, files, counts, recipe.columns, recipe.problem_type, recipe.seed, recipe.label_map),
            recipe.matryoshka,
        )
        self.store = StageStore(recipe.work_folder, (__version__, recipe.model, sizes, *settings), self.base)
        scores = [target for target in self.train.targets if isinstance(target, float)]
        self.score_range = (min(scores), max(scores)) if scores else (0.0, 1.0)

    def _load_data(self) -> list[Dataset]:
        """Rows that train, that choose (epochs, candidates, precision), that calibrate exits, that judge; then others.

        No row does two of these. The others are the files that are judged besides.
        """
        recipe = self.recipe
        options: dict[str, Any] = {"columns": recipe.columns, "problem_type": recipe.problem_type}
        dataset = load_dataset(recipe.train, recipe.task, **options)
        if dataset.has_queries:
            raise InvalidInputError(f"{recipe.train} has lists of texts to find, which only judge (--eval)")
        parts = hold_out(dataset, (1, *[2] * (recipe.exits is not None), *[2] * (recipe.eval is None)))
        if recipe.exits is None:
            parts.insert(2, dataset.take([]))
        else:
            check_rows(parts[2], recipe.exits.risk, recipe.confidence)
        labels = parts[0].labels or None
        files = [path for path in (recipe.eval, *recipe.also_eval) if path is not None]
        return parts + [load_dataset(path, recipe.task, labels=labels, **options) for path in files]

    def _prepare_embedding(self) -> None:
        """Queries search the unlabelled texts too; texts alone are judged by the neighbours that the model finds.

        Raises:
            InvalidInputError: data that the stages cannot learn from, too few texts, or too many dimensions.
        """
        recipe = self.recipe
        width = self.base.spec.output_width("sentence_embedding")[1]
        if max(recipe.matryoshka, default=0) >= width:
            raise InvalidInputError(f"matryoshka {max(recipe.matryoshka)}: choose less than all {width} dimensions")
        learns = recipe.finetune is not None or recipe.prune is not None or recipe.budget.prunes
        for data in (self.train, self.eval, *self.others):
            if learns and isinstance(data.inputs[0], str):
                raise InvalidInputError(
                    f"{data.source} has texts alone, without a column for text_pair ({', '.join(ROLES['text_pair'])}). "
                    "From texts alone a student learns, and is judged (--no-finetune --layers N); fine-tuning and "
                    "pruning need pairs: name their column (--column text_pair=NAME)"
                )
        backend, tokenizer = TorchBackend(TorchEncoder(self.base.spec, self.base.tensors)), load_tokenizer(self.base)

        def prepare(data: Dataset) -> Dataset:
            if data.has_queries:
                return replace(data, corpus=tuple(self.unlabelled))
            return data if data.has_pairs else with_neighbours(data, backend, tokenizer)

        self.choice, self.eval, *self.others = map(prepare, (self.choice, self.eval, *self.others))

    def _tell_of_single_classes(self) -> None:
        """Say which rows that judge could be answered without a look at them."""
        if self.recipe.task != "text-classification":
            return
        for data in (self.eval, *self.others):
            if len(found := {*data.targets}) == 1:
                self._say(
                    f"the {len(data)} rows of {data.source} that judge have one class only, {found.pop()!r}: a model "
                    "that always answers it loses nothing there"
                )

    def _load_unlabelled(self) -> list[str]:
        if self.recipe.unlabelled is None:
            return []
        rows = read_rows(Path(self.recipe.unlabelled))
        names = (self.recipe.columns.get("text", "text"), *ROLES["text"])
        column = next((name for name in names if name in rows[0]), names[0])
        texts = [text for row in rows if isinstance(text := row.get(column), str) and text.strip()]
        if not texts:
            raise InvalidInputError(f"{self.recipe.unlabelled} has no column {column!r} with texts: name it so")
        if self.recipe.task in ("question-answering", "token-classification"):
            raise InvalidInputError(f"{self.recipe.task} takes no unlabelled texts: leave them out")
        return texts

    def run(self) -> Result:
        recipe = self.recipe
        self._stage("start", None, lambda _: (self.base, {}))
        if recipe.trim:
            self._trim()
        if recipe.finetune is not None:
            self._finetune(recipe.finetune)
        teacher = self.store.stages[-1]
        if recipe.distill is not None:
            self._distill(recipe.distill)
        self._prune(teacher)
        if recipe.exits is not None:
            self._learn_exits(recipe.exits)
        if recipe.qat is not None:
            self._learn_int8(recipe.qat)
        return self._finish(teacher)

    # Stages

    def _stage(self, name: str, settings: object, make: Callable[[Path], tuple[Checkpoint, dict[str, Any]]]) -> Stage:
        """Run a stage, export its fp32 file and measure that."""

        def make_and_measure(folder: Path) -> tuple[Checkpoint, dict[str, Any]]:
            started, cpu_started = time.perf_counter(), time.process_time()
            checkpoint, record = make(folder / "state.pt")
            record["seconds"] = time.perf_counter() - started
            record["cpu_seconds"] = time.process_time() - cpu_started
            path = folder / "model.onnx"
            export_checkpoint(checkpoint, path, reference=pytorch_reference(_run_pytorch))
            (folder / "state.pt").unlink(missing_ok=True)
            measured, evaluation = self._measure(path, checkpoint)
            np.save(folder / ROWS_FILE, evaluation.rows.values)
            return checkpoint, record | measured

        self.progress(name)
        return self.store.run(name, settings, make_and_measure)

    def _measure(self, path: Path, checkpoint: Checkpoint) -> tuple[dict[str, Any], Evaluation]:
        evaluation = evaluate_file(path, self.eval, self._max_length())
        record = {
            "metrics": evaluation.metrics,
            "bytes": path.stat().st_size,
            **describe_shape(checkpoint),
        }
        return record, evaluation

    def _max_length(self) -> int | None:
        return self.recipe.finetune.max_length if self.recipe.finetune else None

    def _vocabulary_texts(self) -> list[Text]:
        return [*self.train.texts(), *self.unlabelled]

    def _trim(self) -> None:
        def make(_: Path) -> tuple[Checkpoint, dict[str, Any]]:
            checkpoint = vocabulary.trim(self.store.stages[-1].checkpoint, self._vocabulary_texts())
            unknown = vocabulary.unknown_share(str(checkpoint.tokenizer_json), self.eval.texts())
            return checkpoint, {"unknown_share": unknown}

        self._stage("trim", None, make)

    def _finetune(self, training: Training) -> None:
        def make(state_file: Path) -> tuple[Checkpoint, dict[str, Any]]:
            checkpoint = self.store.stages[-1].checkpoint
            examples = encode(self.train, checkpoint, training.max_length)
            dropout = training.dropout
            model = TorchEncoder(checkpoint.spec, checkpoint.tensors, dropout=dropout, attention_dropout=dropout)
            progress = train(
                model,
                examples,
                TaskLoss(checkpoint, self.score_range, self.recipe.matryoshka),
                training,
                seed=self.recipe.seed,
                evaluate=self._scorer(checkpoint),
                state_file=state_file,
                name="finetune",
            )
            return replace(checkpoint, tensors=model.tensors()), {"encoding": examples.counts, **vars(progress)}

        self._tell_early_stop(self._stage("finetune", training, make), training)

    def _tell_early_stop(self, stage: Stage, training: Training) -> None:
        if (done := len(stage.record["losses"])) < training.epochs:
            epochs = f"{done} of {training.epochs} epochs"
            self._say(f"{stage.name}: stopped after {epochs}, since the last {training.patience} were no better")

    def _scorer(self, checkpoint: Checkpoint) -> Callable[[TorchEncoder], float]:
        """The metric of a model in training, on the rows that choose."""
        tokenizer, limit = load_tokenizer(checkpoint), self._max_length()
        return lambda model: evaluate(TorchBackend(model), tokenizer, self.choice, limit).score

    def _choice_score(self, stage: Stage) -> float:
        """The metric of a stage's file on the rows that choose."""

        def measure() -> str:
            return str(evaluate_file(stage.model, self.choice, self._max_length()).score)

        return float(self._measure_once("choice", stage.folder.name, measure))

    def _distill(self, settings: Distillation) -> None:
        teacher = self.store.stages[-1].checkpoint

        def make(state_file: Path) -> tuple[Checkpoint, dict[str, Any]]:
            return self._distil_into(self._make_student(teacher, settings), teacher, settings, state_file, "distill")

        self._tell_early_stop(self._stage("distill", settings, make), settings.training)

    def _make_student(self, teacher: Checkpoint, settings: Distillation) -> Checkpoint:
        if settings.student is not None:
            return load_for_task(settings.student, self.train, seed=self.recipe.seed)[0]
        if settings.hidden_size is not None:
            return narrow_student(teacher, settings.hidden_size, settings.num_layers)
        layers = settings.layers or spread_layers(teacher.spec.num_layers, settings.num_layers)
        return prune.take_layers(teacher, layers)

    def _distil_into(
        self,
        student: Checkpoint,
        teacher: Checkpoint,
        settings: Distillation,
        state_file: Path,
        name: str,
        build: Callable[..., TorchEncoder] = TorchEncoder,
        chooses_epoch: bool = True,
    ) -> tuple[Checkpoint, dict[str, Any]]:
        checkpoint, progress = distil(
            teacher,
            student,
            self._distillation_examples(student, settings.training.max_length),
            settings,
            score_range=self.score_range,
            widths=self.recipe.matryoshka,
            seed=self.recipe.seed,
            evaluate=self._scorer(student) if chooses_epoch else None,
            state_file=state_file,
            name=name,
            build=build,
        )
        return checkpoint, vars(progress)

    def _distillation_examples(self, checkpoint: Checkpoint, max_length: int | None) -> Examples:
        """The training data, then the unlabelled texts, without targets."""
        examples = encode(self.train, checkpoint, max_length)
        if not self.unlabelled:
            return examples
        count = len(self.unlabelled) // examples.width * examples.width
        tokenizer = load_tokenizer(checkpoint)
        more, _ = tokenizer.tokenize(self.unlabelled[:count], max_length)
        check_ids(more, range(count), tokenizer, checkpoint.spec)
        return examples.join(more)

    def _prune(self, teacher: Stage) -> None:
        settings = self.recipe.prune
        whole = self.store.stages[-1].checkpoint
        if settings is not None and settings.within_drop:
            self._prune_within_drop(teacher, settings.flops)
        elif settings is not None and settings.flops < 1:
            costs = prune.Flops.of(whole.spec)
            for step in range(1, settings.steps + 1):
                share = 1 - (1 - settings.flops) * step / settings.steps
                self._prune_to(costs, share * costs.predict(whole.spec))
                if step < settings.steps:
                    self._retrain(whole, settings)
        self._plan(teacher)
        if settings is not None and settings.retrain and self.store.stages[-1].checkpoint.spec != whole.spec:
            self._retrain(whole, settings)

    def _retrain(self, whole: Checkpoint, settings: Pruning) -> None:
        """Train the pruned model to answer as the whole one does."""
        pruned = self.store.stages[-1].checkpoint
        distillation = Distillation(temperature=settings.temperature, training=settings.training)

        def make(state_file: Path) -> tuple[Checkpoint, dict[str, Any]]:
            is_trimmed = pruned.tokenizer_json != whole.tokenizer_json
            teacher = vocabulary.trim(whole, self._vocabulary_texts()) if is_trimmed else whole
            return self._distil_into(pruned, teacher, distillation, state_file, "retrain")

        self._tell_early_stop(self._stage("retrain", distillation, make), settings.training)

    def _prune_within_drop(self, teacher: Stage, flops: float) -> None:
        drop = self.recipe.budget.drop or 0.0

        def make(_: Path) -> tuple[Checkpoint, dict[str, Any]]:
            whole = self.store.stages[-1].checkpoint
            candidate = Candidate(whole, self._measure_importance(whole), whole.spec.num_layers)
            return self._prune_until(candidate, flops, self._choice_score(teacher) - drop / 100)

        self._stage("prune", (flops, drop), make)

    def _prune_until(self, candidate: Candidate, flops: float, lowest: float) -> tuple[Checkpoint, dict[str, Any]]:
        shares = np.linspace(1.0, flops, 1 + DROP_STEPS)[1:].tolist()
        return prune_until(candidate, prune.Flops.of(candidate.parent.spec), shares, self._score_trained, lowest)

    def _score_trained(self, checkpoint: Checkpoint) -> float:
        """The metric of a checkpoint as PyTorch computes it."""
        return self._scorer(checkpoint)(TorchEncoder(checkpoint.spec, checkpoint.tensors).to(find_device()))

    def _prune_to(self, costs: prune.Costs, limit: float) -> None:
        def make(_: Path) -> tuple[Checkpoint, dict[str, Any]]:
            checkpoint = self.store.stages[-1].checkpoint
            return prune.prune(checkpoint, self._measure_importance(checkpoint), limit, costs), {}

        self._stage("prune", (costs, limit), make)

    def _measure_importance(self, checkpoint: Checkpoint) -> prune.Importance:
        """How much each unit of a checkpoint matters, measured on a part of the training data."""
        examples = encode(self.train, checkpoint, self._max_length())
        chosen = np.random.default_rng(self.recipe.seed).permutation(len(examples))[:PRUNING_EXAMPLES]
        examples = examples.take(sorted(chosen.tolist()))
        batches = [
            make_batch(examples, indices, checkpoint.spec.pad_token_id, find_device())
            for indices in batches_by_length(examples.lengths, PRUNING_BATCH, self.recipe.seed)
        ]
        bar = tqdm(batches, desc="importance", unit="batch", mininterval=1.0)
        return prune.measure_importance(checkpoint, bar, TaskLoss(checkpoint, self.score_range, self.recipe.matryoshka))

    def _plan(self, teacher: Stage) -> None:
        """Bring the model within the budgets of time and size: try candidates, and go on with the best one.

        If none fits, the model is pruned only as far as the metric's drop allows, so that it stays useful.
        """
        recipe, budget = self.recipe, self.recipe.budget
        drop = FALLBACK_DROP if budget.drop is None else budget.drop
        whole = self.store.stages[-1].checkpoint
        seconds = self._seconds_allowed(teacher)
        table = None if seconds is None else self._latency_table(whole.spec)

        def limits_of(checkpoint: Checkpoint, latency: float | None = seconds) -> Limits:
            limits: Limits = []
            if table is not None and latency is not None:
                limits.append((table, latency))
            if budget.size is not None:
                overhead = self._overhead_bytes(checkpoint)
                limits.append((Bytes(checkpoint.spec, recipe.int8, overhead), budget.size))
            return limits

        if spent_share(whole.spec, limits_of(whole)) <= 1:
            return

        def make(_: Path) -> tuple[Checkpoint, dict[str, Any]]:
            trimmed = None if budget.size is None or recipe.trim else self._trimmed(whole)
            candidates = list_candidates(whole, trimmed, self._measure_importance)
            best, pruned, record = choose(candidates, limits_of, self._score_trained)
            if record["spent_share"] > 1:
                record["closest"] = record["chosen"]
                whole_depth = [one for one in candidates if one.num_layers == whole.spec.num_layers]
                lowest = self._choice_score(teacher) - drop / 100
                pruned, tried = self._prune_until(whole_depth[-1], FALLBACK_FLOPS, lowest)
                return pruned, record | tried | {"candidates": record["candidates"] + tried["candidates"]}
            tries: list[dict[str, float]] = []
            if table is not None and seconds is not None:
                pruned, tries = self._meet_latency(
                    pruned, seconds, teacher, table, lambda latency: best.prune(limits_of(best.parent, latency))
                )
            return pruned, record | {"tries": tries}

        limits = budget.latency, budget.speed, budget.size, recipe.int8
        stage = self._stage("plan", (limits, drop, table.workload if table is not None else None), make)
        if (share := stage.record["spent_share"]) > 1:
            self._say(
                f"plan: nothing fits the budget, the closest ({stage.record['closest']}) takes {share:.3g} times as "
                f"much: the model is pruned only as far as the metric stays within {drop:g} points"
            )

    def _seconds_allowed(self, teacher: Stage) -> float | None:
        """How long a call may take by the budgets of latency and speed."""
        budget = self.recipe.budget
        return (
            budget.latency if budget.speed is None else self._teacher_seconds(teacher) / (budget.speed * SPEED_MARGIN)
        )

    def _meet_latency(
        self,
        pruned: Checkpoint,
        limit: float,
        teacher: Stage,
        table: LatencyTable,
        prune_to: Callable[[float], Checkpoint],
    ) -> tuple[Checkpoint, list[dict[str, float]]]:
        """Measure the pruned file, correct the table's estimate by it and prune again, until the budget is met."""
        target = limit
        tries: list[dict[str, float]] = []
        while True:
            measured = self._measure_latency(pruned, teacher)
            tries.append({"predicted": table.predict(pruned.spec), "measured": measured})
            if measured <= limit or len(tries) == LATENCY_TRIES:
                return pruned, tries
            target *= limit / measured
            pruned = prune_to(target)

    def _trimmed(self, checkpoint: Checkpoint) -> Checkpoint | None:
        try:
            return vocabulary.trim(checkpoint, self._vocabulary_texts())
        except EdgeBertError as error:
            self._say(f"plan: {error}")
            return None

    def _latency_table(self, spec: EncoderSpec) -> LatencyTable:
        budget = self.recipe.budget
        workload = {"tokens": budget.tokens, "batch": budget.batch, "threads": budget.threads, "int8": self.recipe.int8}

        def measure() -> str:
            self.progress("measuring the latency of layer shapes")
            return LatencyTable.measure(spec, **workload).to_json()  # type: ignore[arg-type]

        return LatencyTable.from_json(self._measure_once("latency", (workload, spec), measure))

    def _measure_latency(self, checkpoint: Checkpoint, teacher: Stage) -> float:
        """Seconds of a call to the checkpoint's file; for a budget of speed, timed in turns with the teacher's."""
        budget = self.recipe.budget

        def measure(path: Path) -> float:
            if budget.speed is None:
                return float(measure_speeds([path], budget)[0]["latency_p50"])
            of_teacher, of_file = (speed["latency_p50"] for speed in measure_speeds([teacher.model, path], budget))
            return float(self._teacher_seconds(teacher) * of_file / of_teacher)

        return self._measure_file("seconds", (budget.speed is None, *self._workload()), checkpoint, measure)

    def _teacher_seconds(self, teacher: Stage) -> float:
        """Seconds of a call to the file that a budget of speed compares with."""

        def measure() -> str:
            return str(measure_speeds([teacher.model], self.recipe.budget)[0]["latency_p50"])

        return float(self._measure_once("teacher", (teacher.folder.name, *self._workload()), measure))

    def _workload(self) -> tuple[int, int, int]:
        budget = self.recipe.budget
        return budget.tokens, budget.batch, budget.threads

    def _overhead_bytes(self, checkpoint: Checkpoint) -> int:
        """Bytes of a checkpoint's file besides its tensors: its tokenizer, and what the last stage's file has else."""
        last, costs = self.store.stages[-1].checkpoint, Bytes(checkpoint.spec, self.recipe.int8)
        rest = self._measure_file(
            "overhead", (), last, lambda path: path.stat().st_size - costs.predict(last.spec) + REPORT_BYTES
        )
        tokenizers = [len((source.tokenizer_json or "").encode()) for source in (checkpoint, last)]
        return int(rest) + tokenizers[0] - tokenizers[1]

    def _measure_file(self, name: str, key: object, checkpoint: Checkpoint, measure: Callable[[Path], float]) -> float:
        """Export the checkpoint, measure its file and remove it."""
        recipe, path = self.recipe, self.recipe.work_folder / "candidate.onnx"

        def export_and_measure() -> str:
            try:
                export_checkpoint(checkpoint, path, int8=recipe.int8, portable=recipe.portable)
                return str(measure(path))
            finally:
                path.unlink(missing_ok=True)

        key = key, recipe.int8, recipe.portable, checkpoint.spec
        return float(self._measure_once(name, key, export_and_measure))

    def _measure_once(self, name: str, key: object, measure: Callable[[], str]) -> str:
        """The result of `measure`, kept in the work folder: a run that is resumed must decide as it did before."""
        path = self.recipe.work_folder / f"{name}-{hashlib.sha256(repr(key).encode()).hexdigest()[:12]}.json"
        if not path.exists():
            write_whole(path, measure() + "\n")
        return path.read_text(encoding="utf-8")

    def _learn_exits(self, settings: Exits) -> None:
        """Train a head after each layer, and the layers with them, to answer as the model as it is does at its end."""
        whole = self.store.stages[-1].checkpoint
        distillation = Distillation(
            temperature=settings.temperature, hidden_weight=0.0, training=settings.training
        )  # hidden states have to change

        def make(state_file: Path) -> tuple[Checkpoint, dict[str, Any]]:
            student = add_exits(whole, self.recipe.seed)
            # the metric, which is that of the last layer, would choose the epoch before the first
            return self._distil_into(student, whole, distillation, state_file, "exits", chooses_epoch=False)

        self._stage("exits", distillation, make)

    def _learn_int8(self, settings: QuantizationAware) -> None:
        """Quantization-aware training, distilled from the model as it is."""
        whole = self.store.stages[-1].checkpoint
        distillation = Distillation(temperature=settings.temperature, training=settings.training)

        def make(state_file: Path) -> tuple[Checkpoint, dict[str, Any]]:
            student = settle(whole, calibration_batches(whole, self._calibration_texts()))
            build = functools.partial(QuantizedEncoder, smooth=student.smooth, portable=self.recipe.portable)
            return self._distil_into(student, whole, distillation, state_file, "qat", build)

        self._tell_early_stop(self._stage("qat", (distillation, self.recipe.portable), make), settings.training)

    def _say(self, text: str) -> None:
        self.messages.append(text)
        self.progress(text)

    # The file

    def _finish(self, teacher: Stage) -> Result:
        recipe, stages = self.recipe, self.store.stages
        draft = recipe.work_folder / "final.onnx"
        quantization = self._export_within_drop(draft, teacher)
        exits = None if recipe.exits is None else self._open_exits(draft, recipe.exits)
        record, evaluation = self._measure(draft, stages[-1].checkpoint)
        self.progress("timing the files in turns")
        *speeds, record["speed"] = measure_speeds([*(stage.model for stage in stages), draft], recipe.budget)
        is_correlation, of_teacher = evaluation.rows.is_correlation, stages.index(teacher)
        rows = [RowScores(np.load(stage.folder / ROWS_FILE), is_correlation) for stage in stages]
        losses = [self._judge(rows[of_teacher], other, self.eval) for other in (*rows, evaluation.rows)]
        budgets = self._check_budgets(record, losses[-1], speeds[of_teacher]["latency_p50"])
        summary = {
            "edgebert": __version__,
            "recipe": recipe.to_toml(),
            "labels": len(self.train.labels),
            "rows": {"train": len(self.train), "choice": len(self.choice), "eval": len(self.eval)},
            "stages": [
                {"name": stage.name, **stage.record, "speed": speed}
                | ({"loss": loss.to_dict()} if i > of_teacher else {})
                for i, (stage, speed, loss) in enumerate(zip(stages, speeds, losses, strict=False))
            ],
            "reference": teacher.name,
            "final": {"name": "int8" if recipe.int8 else "fp32", **record, "loss": losses[-1].to_dict()},
            "also": [self._judge_file(teacher.model, draft, dataset) for dataset in self.others],
            "widths": [self._judge_width(draft, width, rows[of_teacher]) for width in recipe.matryoshka],
            "quantization": quantization,
            "exits": exits,
            "budgets": budgets,
            "messages": self.messages,
        }
        self._write(draft, summary, [vars(mistake) for mistake in evaluation.mistakes[:WORST]])
        return Result(self.output, [stage.folder for stage in stages], summary)

    def _open_exits(self, path: Path, settings: Exits) -> dict[str, Any]:
        """Say in the file from which margin on texts leave; what comes of it is measured on the rows that judge."""
        self.progress("calibrating exits")
        risk, confidence, count = settings.risk, self.recipe.confidence, len(independent_rows(self.calibration))
        threshold = calibrate(path, self.calibration, risk, confidence, self._max_length())
        if threshold is None:
            self._say(
                f"exits: no threshold keeps the risk of {risk:g} on {count} rows with a confidence of "
                f"{confidence:g}: every text goes through all layers. Try a larger --exit-risk, more rows or epochs"
            )
        return {
            "risk": risk,
            "confidence": confidence,
            "rows": count,
            "threshold": threshold,
            **observe(path, self.eval, self._max_length()).describe(threshold),
        }

    def _judge(self, teacher: RowScores, other: RowScores, dataset: Dataset) -> Loss:
        groups = group_rows(dataset.parts())
        return judge_loss(teacher, other, groups, self.recipe.confidence, self.recipe.seed)

    def _judge_file(self, teacher: Path, path: Path, dataset: Dataset) -> dict[str, Any]:
        """What was lost on other text than the task's."""
        before, after = (evaluate_file(one, dataset, self._max_length()) for one in (teacher, path))
        loss = self._judge(before.rows, after.rows, dataset)
        return {
            "file": Path(dataset.source).name,
            "rows": len(dataset),
            "reference": before.score,
            "score": after.score,
            "loss": loss.to_dict(),
        }

    def _judge_width(self, path: Path, width: int, teacher: RowScores) -> dict[str, Any]:
        """What is lost with the leading dimensions alone, against the teacher's whole embeddings."""
        found = evaluate_file(path, self.eval, self._max_length(), width)
        return {"width": width, "score": found.score, "loss": self._judge(teacher, found.rows, self.eval).to_dict()}

    def _export_within_drop(self, path: Path, teacher: Stage) -> Any:
        """Export the last stage. While int8 loses more of the metric than the budget allows, keep more linears in f32.

        Those with the largest error come first. Returns what quantization did, None in fp32.
        """
        last, drop = self.store.stages[-1], self.recipe.budget.drop
        quantization = self._export(last.checkpoint, path, ())
        if drop is None or quantization is None:
            return quantization
        lowest = self._choice_score(teacher) - drop / 100
        if self._choice_score(last) < lowest:
            return quantization
        errors = {name: linear["error"] for name, linear in quantization["linears"].items()}
        worst_first = sorted(errors, key=lambda name: -errors[name])
        count = 1
        while evaluate_file(path, self.choice, self._max_length()).score < lowest and count < len(errors):
            self._say(f"the metric fell by more than the budget: {count} linears stay f32")
            quantization = self._export(last.checkpoint, path, tuple(worst_first[:count]))
            count *= 2
        return quantization

    def _write(self, draft: Path, summary: dict[str, Any], worst: list[dict[str, Any]]) -> None:
        """Write the output with its report inside, without users' texts, and the whole report beside it."""
        stored = {key: value for key, value in summary.items() if key not in ("recipe", "quantization")}
        add_metadata(draft, {"edgebert.compression": json.dumps(stored, ensure_ascii=False)})
        report = json.dumps({**summary, "worst": worst}, ensure_ascii=False, indent=1)
        write_whole(self.output.with_suffix(".json"), report + "\n")
        write_report(self.output.with_suffix(".html"), summary, worst)
        with writing_whole(self.output) as partial:
            shutil.copyfile(draft, partial)

    def _export(self, checkpoint: Checkpoint, path: Path, keep_f32: tuple[str, ...]) -> Any:
        self.progress("int8" if self.recipe.int8 else "fp32")
        report = export_checkpoint(
            checkpoint,
            path,
            int8=self.recipe.int8,
            portable=self.recipe.portable,
            texts=self._calibration_texts(),
            keep_f32=keep_f32,
            reference=pytorch_reference(_run_pytorch),
        )
        return report.get("quantization")

    def _calibration_texts(self) -> list[Text]:
        texts = self.train.texts()
        chosen = np.random.default_rng(self.recipe.seed).permutation(len(texts))[:CALIBRATION_TEXTS]
        picked = [texts[i] for i in sorted(chosen.tolist())]
        return [part for pair in picked for part in pair] if self.train.has_pairs else picked

    def _check_budgets(self, record: dict[str, Any], loss: Loss, teacher_seconds: float) -> dict[str, dict[str, Any]]:
        """Of each budget: its limit, what was found, and whether it is "met", "not met" or "not shown"."""
        budget, seconds = self.recipe.budget, record["speed"]["latency_p50"]
        found = {
            "drop": loss.estimate,
            "size": record["bytes"],
            "latency": seconds,
            "speed": teacher_seconds / seconds,
        }
        budgets: dict[str, dict[str, Any]] = {}
        for name, value in found.items():
            limit = getattr(budget, name)
            if limit is None:
                continue
            budgets[name] = {"limit": limit, "found": value}
            if name == "drop":
                budgets[name] |= {"verdict": loss.verdict(limit), **loss.to_dict(), "more_rows": loss.more_rows(limit)}
            else:
                is_met = value >= limit if name == "speed" else value <= limit
                budgets[name]["verdict"] = "met" if is_met else "not met"
            if budgets[name]["verdict"] == "not met":
                budgets[name]["advice"] = advise(name, self.recipe)
        return budgets


def advise(name: str, recipe: Recipe) -> str:
    """What may bring a budget within reach that was not met, of what the recipe does not use yet."""
    is_pruned = recipe.prune is not None or recipe.budget.prunes
    is_trained = recipe.prune is not None and recipe.prune.retrain
    lacks_texts = not recipe.unlabelled and recipe.task not in ("question-answering", "token-classification")
    students = recipe.distill
    if name == "drop":
        ways = {
            "--retrain (trains what pruning left)": is_pruned and not is_trained,
            "more --layers": students is not None,
            "--unlabelled FILE (more texts to learn from)": students is not None and lacks_texts,
            "--qat (training for int8)": recipe.int8 and recipe.qat is None,
            "more --epochs": recipe.finetune is not None or students is not None,
        }
        last = "allow more points"
    else:
        ways = {
            "--trim (fewer word pieces)": name == "size" and not recipe.trim,
            "--layers N (a student of N layers)": students is None,
            "fewer --layers": students is not None and students.num_layers > 1,
            "--hidden-size N (narrower)": students is not None and students.hidden_size is None,
            "--retrain (so that more can be pruned within the drop)": not is_trained,
        }
        last = "a budget that asks for less"
    return f"try {', '.join([*(way for way, helps in ways.items() if helps), 'or ' + last])}"


def _run_pytorch(checkpoint: Checkpoint, batch: PackedBatch) -> Outputs:
    """The checkpoint in PyTorch, one sequence at a time, as `Backend.run`."""
    backend, outputs = TorchBackend(TorchEncoder(checkpoint.spec, checkpoint.tensors)), checkpoint.spec.outputs
    parts = [backend.run(batch.take([i]), outputs) for i in range(batch.num_sequences)]
    return {name: np.concatenate([part[name] for part in parts]) for name in outputs}
