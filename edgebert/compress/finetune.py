"""Training: the loop that fine-tuning, distillation and retraining share, and the loss of each task."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional
from tqdm import tqdm

from edgebert.artifact.spec import EncoderSpec
from edgebert.checkpoints.loading import Checkpoint
from edgebert.compress.encode import IGNORED, Examples, find_special_tokens
from edgebert.compress.ranks import ask_leader, is_leader, run_everywhere, run_share, share_step
from edgebert.compress.recipe import Training
from edgebert.compress.torch_encoder import TorchEncoder
from edgebert.errors import EdgeBertError
from edgebert.files import writing_whole

CONTRASTIVE_SCALE = 20.0  # of cosines in the contrastive loss: a temperature of 0.05
EXIT_RATE = 30.0  # times the learning rate, of the heads of exits: they begin with nothing, all else is trained
MASKED, MASK_KEPT, MASK_RANDOM = 0.15, 0.1, 0.1  # BERT (arXiv 1810.04805), section 3.1
_BUCKET = 50  # batches that are sorted by length together
_SAVE_EVERY = 200  # steps between two saves of the training state


class Batch(NamedTuple):
    """Padded tensors of some examples, on the model's device."""

    input_ids: Tensor  # int64 [B * width, S]
    attention_mask: Tensor  # int64 [B * width, S]
    token_type_ids: Tensor  # int64 [B * width, S]
    targets: list[Any]  # as those of Examples
    indices: list[int]
    is_shared: bool = False  # by all processes of a training: each runs some of the rows

    def run(self, model: TorchEncoder, **options: Any) -> dict[str, Any]:
        """The model's outputs for this batch."""
        run: Callable[..., dict[str, Any]] = partial(run_share, model) if self.is_shared else model
        return run(self.input_ids, self.attention_mask, self.token_type_ids, **options)


LossOf = Callable[[TorchEncoder, Batch], Tensor]


@dataclass
class Progress:
    """How a training went: each epoch's mean loss and score, the score before, the epoch that was kept (-1: none)."""

    losses: list[float]
    scores: list[float]
    start_score: float | None = None
    best_epoch: int = -1


def train(
    model: TorchEncoder,
    examples: Examples,
    loss_of: LossOf,
    training: Training,
    *,
    seed: int = 0,
    evaluate: Callable[[TorchEncoder], float] | None = None,
    extra: nn.Module | None = None,
    state_file: Path | None = None,
    name: str = "training",
) -> Progress:
    """Train a model in place: AdamW, warm-up and linear decay, length-bucketed batches, the best epoch kept.

    On the GPU where there is one. Where torchrun has started several processes, each takes a part of every batch.
    The same arguments give the same weights, also when the training was killed and goes on from `state_file`.

    Args:
        model: trained in place.
        examples: what to train on.
        loss_of: the loss of a batch, a scalar.
        training: epochs, rates, early stopping and so on.
        seed: of the order of examples, of dropout and of masks.
        evaluate: called at the start and after each epoch; the best weights are kept, those of the start among them,
            and training stops when the score has not grown for `training.patience` epochs. None keeps the last.
        extra: parameters of the loss that are trained as well.
        state_file: where to keep the state; removed by the caller.
        name: of the progress bar.

    Raises:
        EdgeBertError: the loss is not finite any more.
    """
    saved = None
    if state_file is not None and state_file.exists():
        saved = torch.load(state_file, map_location=find_device(), weights_only=True)
    shared = {
        "model": model,
        "examples": examples,
        "loss_of": loss_of,
        "training": training,
        "seed": seed,
        "is_evaluated": evaluate is not None,
        "extra": extra,
        "saved": saved,
        "name": name,
    }
    return run_everywhere(_train, shared, {"evaluate": evaluate, "state_file": state_file})


def _train(
    model: TorchEncoder,
    examples: Examples,
    loss_of: LossOf,
    training: Training,
    seed: int,
    is_evaluated: bool,
    extra: nn.Module | None,
    saved: dict[str, Any] | None,
    name: str,
    evaluate: Callable[[TorchEncoder], float] | None = None,
    state_file: Path | None = None,
) -> Progress:
    """`train` in one of the processes; only the first one has `evaluate` and `state_file`."""
    torch.manual_seed(seed)
    device = find_device()
    model.to(device)
    modules = nn.ModuleList([model] if extra is None else [model, extra.to(device)])
    parameters = list(modules.parameters())
    exits = [each for name, each in model.named_parameters() if name.startswith("exit/")]
    others = [parameter for parameter in parameters if all(parameter is not each for each in exits)]
    matrices = [parameter for parameter in others if parameter.ndim > 1]
    vectors = [parameter for parameter in others if parameter.ndim <= 1]  # biases and LayerNorms do not decay
    optimizer = torch.optim.AdamW(
        [
            {"params": matrices, "weight_decay": training.weight_decay},
            {"params": vectors, "weight_decay": 0.0},
            *([{"params": exits, "weight_decay": 0.0, "lr": EXIT_RATE * training.learning_rate}] if exits else []),
        ],
        lr=training.learning_rate,
        fused=True,
    )
    steps_an_epoch = math.ceil(len(examples) / training.batch_size)
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, _schedule(training, steps_an_epoch * training.epochs))
    progress, best = Progress([], []), {key: value.clone() for key, value in model.state_dict().items()}
    start, total = 0, 0.0

    def state() -> dict[str, Any]:
        return {
            "modules": modules.state_dict(),
            "optimizer": optimizer.state_dict(),
            "scheduler": scheduler.state_dict(),
            "random": [torch.get_rng_state(), *torch.cuda.get_rng_state_all()],
            "progress": vars(progress),
            "best": best,
            "steps": steps,
            "total": total,
        }

    steps = 0
    if saved is not None:
        modules.load_state_dict(saved["modules"])
        optimizer.load_state_dict(saved["optimizer"])
        scheduler.load_state_dict(saved["scheduler"])
        on_cpu, *on_cuda = (random.cpu() for random in saved["random"])
        torch.set_rng_state(on_cpu)
        torch.cuda.set_rng_state_all(on_cuda)
        progress, best, start, total = Progress(**saved["progress"]), saved["best"], saved["steps"], saved["total"]
    steps = start

    def measure() -> float:
        assert evaluate is not None  # in the first process
        return evaluate(model.eval())

    if is_evaluated and progress.start_score is None:
        progress.start_score = ask_leader(measure)
    step = share_step(loss_of, model, extra)
    autocast = torch.autocast(device.type, torch.bfloat16) if uses_bf16(training.precision, device) else nullcontext()
    num_steps = steps_an_epoch * training.epochs
    bar = tqdm(total=num_steps, initial=start, desc=name, unit="batch", mininterval=1.0, disable=not is_leader())
    with bar:
        for epoch in range(start // steps_an_epoch, training.epochs):
            if _has_stopped(progress, training):
                break
            model.train()
            order = batches_by_length(examples.lengths, training.batch_size, seed + epoch)
            for indices in order[steps % steps_an_epoch :]:
                batch = make_batch(examples, indices, model.spec.pad_token_id, device)._replace(is_shared=True)
                with autocast:
                    loss = step(batch)
                loss.backward()  # type: ignore[no-untyped-call]
                nn.utils.clip_grad_norm_(parameters, training.max_grad_norm)
                optimizer.step()
                optimizer.zero_grad()
                scheduler.step()
                steps += 1
                total += float(loss.detach())
                bar.update()
                if not math.isfinite(total):
                    raise EdgeBertError(f"{name}: the loss is not finite after {steps} steps: lower the learning rate")
                if state_file is not None and steps % _SAVE_EVERY == 0 and steps % steps_an_epoch:
                    _save(state(), state_file)
            progress.losses.append(total / steps_an_epoch)
            total = 0.0
            if not is_evaluated:
                best, progress.best_epoch = model.state_dict(), epoch
            else:
                score = ask_leader(measure)
                if score > max(s for s in (progress.start_score, *progress.scores) if s is not None):
                    best = {key: value.clone() for key, value in model.state_dict().items()}
                    progress.best_epoch = epoch
                progress.scores.append(score)
                bar.set_postfix(loss=f"{progress.losses[-1]:.3f}", score=f"{score:.4f}")
            if state_file is not None:
                _save(state(), state_file)
    model.load_state_dict(best)
    model.eval()
    return progress


def find_device() -> torch.device:
    """CUDA where there is a GPU, else the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def uses_bf16(precision: str, device: torch.device) -> bool:
    """Whether products run in bf16: if asked for, or for "auto" if the device has instructions for it."""
    if precision != "auto":
        return precision == "bf16"
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported())
    return bool(torch.cpu._is_avx512_bf16_supported())  # the public API cannot tell


def batches_by_length(lengths: NDArray[np.int32], batch_size: int, seed: int) -> list[list[int]]:
    """Indices in batches of examples of like length: shuffled, sorted in stretches of some batches, shuffled again."""
    rng = np.random.default_rng(seed)
    order = rng.permutation(len(lengths))
    stretch = batch_size * _BUCKET
    batches: list[list[int]] = []
    for first in range(0, len(order), stretch):
        part = order[first : first + stretch]
        part = part[np.argsort(lengths[part], kind="stable")]
        batches += [part[i : i + batch_size].tolist() for i in range(0, len(part), batch_size)]
    return [batches[i] for i in rng.permutation(len(batches))]


def make_batch(examples: Examples, indices: list[int], pad_token_id: int, device: torch.device) -> Batch:
    """The examples at `indices`, padded."""
    taken = examples.take(indices)
    ids, mask, types = (torch.from_numpy(part).to(device) for part in taken.batch.pad(pad_token_id))
    return Batch(ids, mask, types, taken.targets, indices)


def _schedule(training: Training, num_steps: int) -> Callable[[int], float]:
    """Linear from 0 to 1 over the warm-up, then linear down to 0."""
    warmup = round(training.warmup * num_steps)

    def factor(step: int) -> float:
        if step < warmup:
            return step / warmup
        return max(0.0, (num_steps - step) / max(1, num_steps - warmup))

    return factor


def _has_stopped(progress: Progress, training: Training) -> bool:
    return bool(progress.scores) and len(progress.scores) - 1 - progress.best_epoch >= training.patience


def _save(state: Mapping[str, Any], path: Path) -> None:
    try:
        with writing_whole(path) as draft:
            torch.save(state, draft)
    except (OSError, RuntimeError) as error:
        raise EdgeBertError(f"cannot save the training state to {path} ({error}): free some space") from None


# Losses


@dataclass(frozen=True)
class TaskLoss:
    """The loss that fine-tunes a model on its task's targets; called with a model and a batch.

    Text classification: cross entropy; for several labels at once binary cross entropy; for scores the squared error.
    Token classification and question answering: cross entropy over tags, and over the places of first and last token.
    Embeddings: the squared error between the cosine and the score (Sentence-BERT, arXiv 1908.10084, section 3), or,
    without scores, cross entropy of each pair against the others of the batch (multiple negatives ranking, arXiv
    1705.00652, section 4.4). Fill-mask: cross entropy of masked tokens (BERT, arXiv 1810.04805, section 3.1).

    Attributes:
        checkpoint: the model's spec and tokenizer.
        score_range: of embedding scores: (the one that is cosine 0, the one that is cosine 1).
        widths: of embeddings: how many leading dimensions are to be good alone, besides all of them; the loss is the
            mean (Matryoshka, arXiv 2205.13147, section 3).
    """

    checkpoint: Checkpoint
    score_range: tuple[float, float] = (0.0, 1.0)
    widths: tuple[int, ...] = ()

    def __call__(self, model: TorchEncoder, batch: Batch) -> Tensor:
        """The loss of a batch, a scalar."""
        batch, options = self.prepare(batch)
        return self.measure(batch.run(model, **options), batch)

    def prepare(self, batch: Batch) -> tuple[Batch, dict[str, Any]]:
        """The batch to run, and with which options: for fill-mask tokens are masked, anew each time."""
        if self.checkpoint.spec.task != "fill-mask":
            return batch, {}
        return mask_tokens(self.checkpoint.spec, batch, *find_special_tokens(self.checkpoint))

    def measure(self, outputs: dict[str, Tensor], batch: Batch) -> Tensor:
        """The loss of the outputs of a prepared batch."""
        spec, device = self.checkpoint.spec, batch.input_ids.device
        if not batch.targets:  # no token happened to be masked
            return outputs["logits"].sum() * 0.0
        if spec.task == "token-classification":
            logits = outputs["logits"].float()
            tags = torch.full(logits.shape[:2], IGNORED)
            for row, target in zip(tags, batch.targets, strict=True):
                row[: len(target)] = torch.from_numpy(target)
            return functional.cross_entropy(logits.flatten(0, 1), tags.flatten().to(device), ignore_index=IGNORED)
        wanted = torch.from_numpy(np.stack(batch.targets)).to(device)
        if spec.task == "embedding":
            rows = outputs["sentence_embedding"]
            losses = [_embedding_loss(part, wanted, self.score_range) for part in leading(rows, self.widths)]
            return torch.stack(losses).mean()
        if spec.task == "question-answering":
            losses = []
            for name, places in zip(spec.outputs, wanted.unbind(1), strict=True):
                logits = outputs[name].float().masked_fill(batch.attention_mask == 0, -1e4)
                losses.append(functional.cross_entropy(logits, places))
            return torch.stack(losses).mean()
        logits = outputs["logits"].float()
        if spec.problem_type == "regression":
            return functional.mse_loss(logits[:, 0], wanted)
        if spec.problem_type == "multi_label_classification":
            return functional.binary_cross_entropy_with_logits(logits, wanted)
        return functional.cross_entropy(logits, wanted)


def leading(rows: Tensor, widths: Sequence[int]) -> list[Tensor]:
    """Rows, and the leading dimensions of them alone, by each of the widths."""
    return [rows, *(rows[:, :width] for width in widths)]


def _embedding_loss(rows: Tensor, scores: Tensor, score_range: tuple[float, float]) -> Tensor:
    rows = functional.normalize(rows.float(), dim=-1)
    first, second = rows[0::2], rows[1::2]
    if scores.isnan().any():
        similarity = first @ second.T * CONTRASTIVE_SCALE
        return functional.cross_entropy(similarity, torch.arange(len(first), device=rows.device))
    low, high = score_range
    return functional.mse_loss((first * second).sum(1), (scores - low) / (high - low))


def mask_tokens(
    spec: EncoderSpec, batch: Batch, mask_token_id: int, special_ids: list[int]
) -> tuple[Batch, dict[str, Any]]:
    """Choose 15 % of the tokens; of these 80 % become [MASK], 10 % a random token, 10 % stay as they are.

    Returns:
        (the batch with its tokens masked, its targets the ids of those chosen; options that ask for these alone).
    """
    ids = batch.input_ids
    chance, what = torch.rand(2, *ids.shape).to(ids.device)
    random_ids = torch.randint(spec.vocab_size, ids.shape).to(ids.device)
    is_ordinary = (batch.attention_mask == 1) & ~torch.isin(ids, torch.tensor(special_ids, device=ids.device))
    is_asked = (chance < MASKED) & is_ordinary
    fed = torch.where(is_asked & (what >= MASK_KEPT), random_ids, ids)
    fed = torch.where(is_asked & (what >= MASK_KEPT + MASK_RANDOM), mask_token_id, fed)
    return batch._replace(input_ids=fed, targets=list(ids[is_asked].cpu().numpy())), {"only": is_asked}
