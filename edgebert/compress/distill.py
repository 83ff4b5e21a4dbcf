"""Distillation: a student learns to give its teacher's outputs and, layer by layer, its hidden states."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from edgebert.artifact.names import linear_name, weight_tensors
from edgebert.artifact.spec import EncoderSpec
from edgebert.checkpoints.loading import Checkpoint
from edgebert.compress.encode import Examples
from edgebert.compress.finetune import Batch, Progress, TaskLoss, find_device, leading, train
from edgebert.compress.prune import Units, remove_units, take_layers
from edgebert.compress.recipe import Distillation
from edgebert.compress.torch_encoder import TorchEncoder
from edgebert.errors import InvalidInputError
from edgebert.quant import F32


def distil(
    teacher: Checkpoint,
    student: Checkpoint,
    examples: Examples,
    settings: Distillation,
    *,
    score_range: tuple[float, float] = (0.0, 1.0),
    widths: tuple[int, ...] = (),
    seed: int = 0,
    evaluate: Callable[[TorchEncoder], float] | None = None,
    state_file: Path | None = None,
    name: str = "distillation",
    build: Callable[..., TorchEncoder] = TorchEncoder,
) -> tuple[Checkpoint, Progress]:
    """Train a student to answer as its teacher does.

    The loss is a weighted sum of: the task's own loss, where an example has a target; the soft labels (Hinton et al.,
    arXiv 1503.02531, section 2: divergence at a temperature, times its square), or the distance of embeddings,
    of their leading dimensions too; the mean squared distance of hidden states relative to the teacher's size, the
    student's layers paired with the teacher's and projected where widths differ (TinyBERT, arXiv 1909.10351, equation
    8); and the last layers' relations among queries, keys and values (MiniLMv2, arXiv 2012.15828, section 3). A student
    with exits learns the first two at each of them as at its end, from the teacher's last layer (Zhang et al., arXiv
    1905.08094).

    Args:
        teacher: not changed.
        student: of the same task, labels and tokenizer; not changed.
        examples: a target is None where there is none: unlabelled text.
        settings: weights, temperature and training.
        score_range: as of `finetune.TaskLoss`, and
        widths: as there.
        seed, evaluate, state_file, name: as of `finetune.train`.
        build: makes the student from a spec, tensors and dropouts, as `TorchEncoder` does.

    Returns:
        (the trained student, how it went).

    Raises:
        InvalidInputError: teacher and student differ in task, labels or tokenizer.
    """
    _check_pair(teacher, student)
    guide = TorchEncoder(teacher.spec, teacher.tensors).to(find_device()).eval().requires_grad_(False)
    dropout = settings.training.dropout
    model = build(student.spec, student.tensors, dropout=dropout, attention_dropout=dropout)
    projection = None
    if settings.hidden_weight and student.spec.hidden_size != teacher.spec.hidden_size:
        torch.manual_seed(seed)
        projection = nn.Linear(student.spec.hidden_size, teacher.spec.hidden_size, bias=False)
    loss_of = _Loss(guide, TaskLoss(student, score_range, widths), settings, projection)
    progress = train(
        model,
        examples,
        loss_of,
        settings.training,
        seed=seed,
        evaluate=evaluate,
        extra=projection,
        state_file=state_file,
        name=name,
    )
    return replace(student, tensors=model.tensors()), progress


def spread_layers(num_teacher: int, num_student: int) -> tuple[int, ...]:
    """Teacher layers, from 0, evenly spread, the last one among them: 6 to 3 gives 1, 3, 5."""
    return tuple(math.ceil((i + 1) * num_teacher / num_student) - 1 for i in range(num_student))


def narrow_student(teacher: Checkpoint, hidden_size: int, num_layers: int) -> Checkpoint:
    """A narrower student: layers of the teacher, evenly spread, on the principal axes of its words.

    Everything that reads or writes hidden states is projected onto the axes. In their basis a LayerNorm's weight is a
    full matrix: its diagonal is kept, scaled up because a narrower row is shorter. The heads and neurons with the
    largest weights stay, in the same ratio to the hidden size as before.

    Raises:
        InvalidInputError: a hidden size above the teacher's, or one that its heads do not divide.
    """
    wide, head_dim = teacher.spec.hidden_size, teacher.spec.layers[0].head_dim
    if not 0 < hidden_size <= wide or hidden_size % head_dim:
        raise InvalidInputError(
            f"a student cannot have the hidden size {hidden_size}: choose a multiple of {head_dim}, the size of a "
            f"head, up to {wide}"
        )
    small = take_layers(teacher, spread_layers(teacher.spec.num_layers, num_layers))
    kept = [_largest_units(small, i, Fraction(hidden_size, wide)) for i in range(num_layers)]
    spec, tensors = remove_units(small.spec, small.tensors, kept)
    words = tensors["embeddings.word.weight"].astype(np.float64)
    if spec.embedding_size != wide:
        words = words @ tensors["embeddings.projection.weight"]
    lengths, axes = np.linalg.eigh(words.T @ words)
    axes = axes[:, ::-1][:, :hidden_size]
    stretch = math.sqrt(lengths[::-1][:hidden_size].sum() / lengths.sum() * wide / hidden_size)
    embedding_size = hidden_size if spec.embedding_size == wide else spec.embedding_size
    narrow = spec.replace(hidden_size=hidden_size, embedding_size=embedding_size)
    projected = {}
    for name, (_, shape) in weight_tensors(narrow).items():
        tensor = tensors[name].astype(np.float64)
        for axis in [axis for axis in range(len(shape)) if shape[axis] != tensor.shape[axis]]:
            is_norm = name.endswith("layer_norm.weight")
            tensor = np.moveaxis(np.tensordot(tensor, stretch * axes**2 if is_norm else axes, (axis, 0)), -1, axis)
        projected[name] = np.ascontiguousarray(tensor, np.float32)
    return replace(small, spec=narrow, tensors=projected)


def _largest_units(checkpoint: Checkpoint, i: int, share: Fraction) -> Units:
    """Indices of that share of layer i's heads and neurons: those whose weights, in times out, are largest."""
    spec, layer = checkpoint.spec, checkpoint.spec.layers[i]

    def weight(name: str, *shape: int) -> F32:
        return checkpoint.tensors.get(f"{linear_name(i, name)}.weight", np.zeros(0, np.float32)).reshape(shape)

    qkv = weight("qkv", spec.hidden_size, 3, layer.num_heads, layer.head_dim)
    outputs = weight("attention_output", layer.num_heads, layer.head_dim, spec.hidden_size)
    up = weight("ffn_up", spec.hidden_size * (1 + spec.is_gated), layer.intermediate_size)  # a gate's rows count too
    down = weight("ffn_down", layer.intermediate_size, spec.hidden_size)
    heads = np.linalg.norm(qkv[:, 2], axis=(0, 2)) * np.linalg.norm(outputs, axis=(1, 2))
    neurons = np.linalg.norm(up, axis=0) * np.linalg.norm(down, axis=1)
    kept = [np.argsort(-size, kind="stable")[: math.ceil(share * len(size))] for size in (heads, neurons)]
    return Units(*map(np.sort, kept))


def _check_pair(teacher: Checkpoint, student: Checkpoint) -> None:
    if teacher.tokenizer_json != student.tokenizer_json:
        raise InvalidInputError(
            "teacher and student have different tokenizers, their tokens cannot be compared: take a student with the "
            "teacher's vocabulary, for instance some of its layers"
        )
    for name in ("task", "labels", "problem_type"):
        one, other = getattr(teacher.spec, name), getattr(student.spec, name)
        if one != other:
            raise InvalidInputError(f"the student's {name} must be the teacher's {one!r}, got {other!r}")


@dataclass
class _Loss:
    """The loss of a student on a batch."""

    guide: TorchEncoder
    task_loss: TaskLoss
    settings: Distillation
    projection: nn.Module | None

    def __call__(self, model: TorchEncoder, batch: Batch) -> Tensor:
        settings = self.settings
        batch, options = self.task_loss.prepare(batch)
        options["keep_hidden"] = settings.hidden_weight > 0 or settings.relation_weight > 0
        with torch.no_grad():
            told = batch.run(self.guide, **options)
        found = batch.run(model, **options)
        loss = torch.zeros((), device=batch.input_ids.device)
        for answers in (found, *({"logits": logits} for logits in found.get("exits", ()))):
            if settings.label_weight:
                loss = loss + settings.label_weight * self._label_loss(model.spec, answers, batch)
            if settings.soft_weight:
                loss = loss + settings.soft_weight * soft_loss(
                    model.spec, answers, told, batch, settings.temperature, self.task_loss.widths
                )
        mask = batch.attention_mask.bool()
        if settings.hidden_weight:
            loss = loss + settings.hidden_weight * self._hidden_loss(found, told, mask)
        if settings.relation_weight:
            loss = loss + settings.relation_weight * relation_loss(found["qkv"][-1], told["qkv"][-1], mask)
        return loss

    def _label_loss(self, spec: EncoderSpec, found: dict[str, Any], batch: Batch) -> Tensor:
        """The task's own loss of the examples that have a target."""
        labelled = [i for i, target in enumerate(batch.targets) if target is not None]
        if len(labelled) == len(batch.targets):
            return self.task_loss.measure(found, batch)
        if not labelled:
            return torch.zeros((), device=batch.input_ids.device)
        width = len(batch.input_ids) // len(batch.targets)
        rows = [i * width + part for i in labelled for part in range(width)]
        part = batch._replace(
            input_ids=batch.input_ids[rows],
            attention_mask=batch.attention_mask[rows],
            targets=[batch.targets[i] for i in labelled],
        )
        return self.task_loss.measure({name: found[name][rows] for name in spec.outputs}, part)

    def _hidden_loss(self, found: dict[str, Any], told: dict[str, Any], mask: Tensor) -> Tensor:
        """Of each layer the squared distance to its teacher's over the teacher's square, over real tokens; the mean."""
        ours, theirs = found["hidden_states"], told["hidden_states"]
        losses = []
        for i, layer in enumerate(spread_layers(len(theirs) - 1, len(ours) - 1)):
            x, target = ours[i + 1][mask], theirs[layer + 1][mask].float()
            x = x.float() if self.projection is None else self.projection(x).float()
            losses.append(functional.mse_loss(x, target) / target.square().mean())
        return torch.stack(losses).mean()


def soft_loss(
    spec: EncoderSpec,
    found: dict[str, Tensor],
    told: dict[str, Tensor],
    batch: Batch,
    temperature: float,
    widths: Sequence[int] = (),
) -> Tensor:
    """How far the student's answers are from the teacher's.

    Classification: KL(teacher / T || student / T) * T^2, of several labels at once for each label; scores: the squared
    error; embeddings: 1 - cosine, or, where widths differ, the squared error of the batch's cosines; the mean over all
    dimensions and the leading ones alone, by each of `widths`.
    """
    if spec.task == "embedding":
        parts = (leading(y["sentence_embedding"].float(), widths) for y in (found, told))
        return torch.stack([_distance(x, target) for x, target in zip(*parts, strict=True)]).mean()
    mask = batch.attention_mask.bool()
    if spec.task == "question-answering":
        pairs = [[y[name].float().masked_fill(~mask, -1e4) for y in (found, told)] for name in spec.outputs]
        return torch.stack([_divergence(x, target, temperature) for x, target in pairs]).mean()
    logits, targets = found["logits"].float(), told["logits"].float()
    if spec.task == "token-classification":
        logits, targets = logits[mask], targets[mask]
    if not len(logits):
        return logits.sum()
    if spec.task == "text-classification" and spec.problem_type == "regression":
        return functional.mse_loss(logits, targets)
    if spec.task == "text-classification" and spec.problem_type == "multi_label_classification":
        # a label and its absence are two classes
        logits, targets = (torch.stack([x, torch.zeros_like(x)], -1).flatten(0, 1) for x in (logits, targets))
    return _divergence(logits, targets, temperature)


def _distance(x: Tensor, target: Tensor) -> Tensor:
    """How far embeddings are from others, [B, width] each: their directions, or of other widths their cosines."""
    x, target = functional.normalize(x, dim=-1), functional.normalize(target, dim=-1)
    if x.shape == target.shape:
        return (1.0 - (x * target).sum(-1)).mean()
    return functional.mse_loss(x @ x.T, target @ target.T)


def _divergence(logits: Tensor, targets: Tensor, temperature: float) -> Tensor:
    """KL(softmax(targets / T) || softmax(logits / T)) * T^2, the mean over rows [n, classes]."""
    ours, theirs = (functional.log_softmax(x / temperature, dim=-1) for x in (logits, targets))
    return functional.kl_div(ours, theirs, log_target=True, reduction="batchmean") * temperature**2


def relation_loss(found: Tensor | None, told: Tensor | None, mask: Tensor) -> Tensor:
    """KL between the relations softmax(A Aᵀ / sqrt(d)) for A the queries, the keys and the values (MiniLMv2).

    Both models' heads are joined and split again into relation heads, as many as both can be split into.

    Args:
        found, told: the student's and the teacher's [B, S, 3, num_heads, head_dim].
        mask: bool [B, S], real tokens.

    Raises:
        InvalidInputError: a last layer without heads.
    """
    if found is None or told is None:
        raise InvalidInputError("relation_weight needs heads in the last layers: set it to 0")
    num_heads = math.gcd(found.shape[-2] * found.shape[-1], told.shape[-2] * told.shape[-1], told.shape[-2])
    relations = []
    for qkv in (found, told):
        heads = qkv.reshape(*qkv.shape[:3], num_heads, -1).float().permute(2, 0, 3, 1, 4)  # [3, B, heads, S, d]
        scores = heads @ heads.transpose(-1, -2) / math.sqrt(heads.shape[-1])
        relations.append(functional.log_softmax(scores.masked_fill(~mask[:, None, None, :], -1e4), dim=-1))
    ours, theirs = (x.permute(1, 3, 0, 2, 4)[mask] for x in relations)  # [tokens, 3, heads, S]
    return functional.kl_div(ours, theirs, log_target=True, reduction="sum") / (ours.numel() / ours.shape[-1])
