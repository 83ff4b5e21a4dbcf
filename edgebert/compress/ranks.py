"""Training in several processes, a device each: `torchrun --nproc-per-node 2 -m edgebert compress …`.

The first process leads: it runs the command, writes and prints, as if it were alone. The others only help with its
trainings (`run_everywhere`). There each runs a share of a batch's rows (`run_share`), and all get all of the outputs:
so a loss is that of one process, also where it compares the rows of a batch or has a mean over tokens.
"""

from __future__ import annotations

import io
import os
from collections.abc import Callable, Mapping
from datetime import timedelta
from functools import partial
from typing import Any, TypeVar

import torch
from torch import Tensor, distributed, nn

from edgebert.compress.torch_encoder import TorchEncoder
from edgebert.errors import EdgeBertError, InvalidInputError

T = TypeVar("T")

_PATIENCE = timedelta(days=7)  # that helpers wait for the next training


def lead(run: Callable[[], T]) -> T | None:
    """`run` in the first process that torchrun has started, or in the only one; None in the others, once it is done.

    Raises:
        InvalidInputError: more processes on this machine than it has GPUs.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        return run()
    backend, place = "gloo", int(os.environ["LOCAL_RANK"])
    if torch.cuda.is_available():
        if place >= torch.cuda.device_count():
            count = f"{torch.cuda.device_count()} GPUs"
            raise InvalidInputError(f"process {place + 1} has no GPU, there are {count}: start as many as GPUs")
        torch.cuda.set_device(place)
        backend = "cpu:gloo,cuda:nccl"
    distributed.init_process_group(backend, timeout=_PATIENCE)
    result = None
    if is_leader():
        result = run()
        _tell(None)
    else:
        _help()
    distributed.destroy_process_group()
    return result


def is_leader() -> bool:
    """Whether this process is the first one, or the only one."""
    return _count() == 1 or distributed.get_rank() == 0


def run_everywhere(function: Callable[..., T], shared: Mapping[str, Any], own: Mapping[str, Any]) -> T:
    """Call a function in all processes at once; called by the first.

    Args:
        function: of a module, so that the others find it.
        shared: arguments that all get; they must be picklable.
        own: arguments that the first alone gets.

    Returns:
        What the first process's call has returned.
    """
    if _count() > 1:
        _tell((function, shared))
    return function(**shared, **own)


def ask_leader(function: Callable[[], float]) -> float:
    """What the function returns in the first process, where alone it is called."""
    found = [function() if is_leader() else 0.0]
    if _count() > 1:
        distributed.broadcast_object_list(found, device=torch.device("cpu"))
    return found[0]


def share_step(loss_of: Callable[..., Tensor], model: nn.Module, extra: nn.Module | None) -> Callable[..., Tensor]:
    """`loss_of` of the model and a batch, whose gradients are the mean of all processes'.

    Args:
        loss_of: called with the model and a batch.
        model: what is trained.
        extra: parameters of the loss that are trained as well.
    """
    if _count() == 1:
        return partial(loss_of, model)
    step: Callable[..., Tensor] = nn.parallel.DistributedDataParallel(
        _Step(loss_of, model, extra), find_unused_parameters=True
    )
    return step


class _Step(nn.Module):
    """A loss as the module that DistributedDataParallel wants."""

    def __init__(self, loss_of: Callable[..., Tensor], model: nn.Module, extra: nn.Module | None) -> None:
        super().__init__()
        self.loss_of, self.model, self.extra = loss_of, model, extra

    def forward(self, batch: Any) -> Tensor:
        return self.loss_of(self.model, batch)


def run_share(model: TorchEncoder, *rows: Tensor, **options: Any) -> Any:
    """`model(*rows, **options)`, of which each process runs a share.

    The shares' dropout differs; what else is random is the same in all processes.

    Args:
        model: run on these.
        rows: tensors of equally many rows.
        options: tensors among them are shared out, too.
    """
    count, rank = _count(), 0 if _count() == 1 else distributed.get_rank()
    num_rows = len(rows[0])
    if num_rows < count or count == 1:
        return model(*rows, **options)
    mine = slice(num_rows * rank // count, num_rows * (rank + 1) // count)
    rows = tuple(part[mine] for part in rows)
    options = {name: value[mine] if isinstance(value, Tensor) else value for name, value in options.items()}
    if not (model.training and (model.dropout or model.attention_dropout)):
        return _gather(model(*rows, **options))
    seed = int(torch.randint(1 << 62, ()))
    with torch.random.fork_rng([rows[0].device] if rows[0].is_cuda else []):
        torch.manual_seed(seed + rank)
        found = model(*rows, **options)
    return _gather(found)


def _gather(found: Any) -> Any:
    """All processes' rows of the tensors in dicts and lists; None stays."""
    if isinstance(found, dict):
        return {name: _gather(value) for name, value in found.items()}
    if isinstance(found, (list, tuple)):
        return [_gather(value) for value in found]
    return found if found is None else _Gather.apply(found)  # type: ignore[no-untyped-call]


class _Gather(torch.autograd.Function):
    """The rows of all processes, in their order.

    Each process computes the whole loss, so the gradient of its rows comes out as many times as there are processes;
    the mean that DistributedDataParallel takes of parameters' gradients makes that once.
    """

    @staticmethod
    def forward(ctx: Any, rows: Tensor) -> Tensor:
        """[n, …] to [the sum of all n, …]."""
        count, rank = distributed.get_world_size(), distributed.get_rank()
        size = torch.tensor([len(rows)], device=rows.device)
        found = [torch.empty_like(size) for _ in range(count)]
        distributed.all_gather(found, size)
        sizes = [int(each) for each in found]
        padded = rows.new_zeros(max(sizes), *rows.shape[1:])
        padded[: len(rows)] = rows
        parts = [torch.empty_like(padded) for _ in range(count)]
        distributed.all_gather(parts, padded)
        first = sum(sizes[:rank])
        ctx.mine = slice(first, first + len(rows))
        return torch.cat([part[:size] for part, size in zip(parts, sizes, strict=True)])

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        """The sum of the gradients in all processes, of this one's rows."""
        total = gradients[0].float().contiguous()
        distributed.all_reduce(total)
        mine: Tensor = total[ctx.mine].to(gradients[0].dtype)
        return mine


def _count() -> int:
    """Processes that train together."""
    return distributed.get_world_size() if distributed.is_available() and distributed.is_initialized() else 1


def _tell(job: Any) -> None:
    """Send a function and its arguments to the other processes, or None: that there is nothing more to do."""
    buffer = io.BytesIO()
    torch.save(job, buffer)
    distributed.broadcast_object_list([buffer.getvalue()], device=torch.device("cpu"))


def _help() -> None:
    """Do what the first process tells, until there is nothing more."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    while True:
        message: list[Any] = [None]
        try:
            distributed.broadcast_object_list(message, device=torch.device("cpu"))
        except RuntimeError as error:  # the connection is closed: the first process has ended, and says why
            raise SystemExit(1) from error
        job = torch.load(io.BytesIO(message[0]), map_location=device, weights_only=False)
        if job is None:
            return
        function, shared = job
        try:
            function(**shared)
        except EdgeBertError as error:
            raise SystemExit(1) from error  # the first process says why
