"""The processes that share the rows of a fit: what they say to one another."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.distributed as dist

from dcfast import ops

# What a group is an instance of; of nothing where torch was built without them.
ProcessGroup: type = dist.ProcessGroup if dist.is_available() else type(None)


class Ranks:
    """The processes of a group, each with rows of its own; this one alone where there is no group.

    All methods are collective: every rank calls them in the same order. They give every rank the same answer.

    Parameters
    ----------
    group : ProcessGroup, bool or None
        True is the default group of torch.distributed; None and False mean no group.

    Raises
    ------
    ValueError
        If there is no such group, or this process does not belong to it.
    """

    def __init__(self, group: Any = None) -> None:
        self.group: Any = None
        self.size, self.rank = 1, 0
        if group is None or group is False:
            return
        if not dist.is_available() or not dist.is_initialized():
            raise ValueError("process_group: torch.distributed has no group; call init_process_group first")
        self.group = dist.group.WORLD if group is True else group
        self.size, self.rank = dist.get_world_size(self.group), dist.get_rank(self.group)
        if self.rank < 0:
            raise ValueError("process_group: this process is not one of the group")
        # NCCL reads the memory of GPUs alone, Gloo that of the host.
        nccl = "nccl" in dist.get_backend(self.group)
        self.device = torch.device("cuda", torch.cuda.current_device()) if nccl else torch.device("cpu")

    def _reduce(self, tensor: torch.Tensor, how: Any) -> torch.Tensor:
        if self.size == 1:
            return tensor
        shared = tensor.to(self.device, copy=True).contiguous()
        dist.all_reduce(shared, how, group=self.group)
        return shared.to(tensor.device)

    def sum(self, tensor: torch.Tensor) -> torch.Tensor:
        """The sum of every rank's tensor, of integers."""
        return self._reduce(tensor, dist.ReduceOp.SUM)

    def minimum(self, tensor: torch.Tensor) -> torch.Tensor:
        """The least of every rank's tensor, element by element."""
        return self._reduce(tensor, dist.ReduceOp.MIN)

    def maximum(self, tensor: torch.Tensor) -> torch.Tensor:
        """The greatest of every rank's tensor, element by element."""
        return self._reduce(tensor, dist.ReduceOp.MAX)

    def stack(self, tensor: torch.Tensor) -> torch.Tensor:
        """Every rank's tensor, all of one shape, in the order of the ranks: (ranks, ...)."""
        if self.size == 1:
            return tensor[None]
        own = tensor.to(self.device).contiguous()
        parts = [torch.empty_like(own) for _ in range(self.size)]
        dist.all_gather(parts, own, group=self.group)
        return torch.stack(parts).to(tensor.device)

    def objects(self, value: Any) -> list[Any]:
        """Every rank's object, in the order of the ranks."""
        if self.size == 1:
            return [value]
        values = [None] * self.size
        dist.all_gather_object(values, value, group=self.group)
        return values

    def agree(self, what: str, value: Any) -> None:
        """Raise ValueError unless the value is the same on every rank."""
        values = self.objects(value)
        if any(other != value for other in values):
            raise ValueError(f"the ranks' {what} differ: {values}")

    def first(self, tensor: torch.Tensor) -> torch.Tensor:
        """The first rank's tensor, of the shape and dtype of the others'."""
        if self.size == 1:
            return tensor
        shared = tensor.to(self.device).contiguous()
        dist.broadcast(shared, dist.get_global_rank(self.group, 0), group=self.group)
        return shared.to(tensor.device)

    def from_first(self, function: Callable[[], Any]) -> Any:
        """What `function` returns on the first rank, which alone calls it."""
        values = [None]
        with self.together():
            if self.rank == 0:
                values = [function()]
        if self.size > 1:
            dist.broadcast_object_list(values, dist.get_global_rank(self.group, 0), group=self.group)
        return values[0]

    def in_turn(self, step: Callable[[Any], Any], start: Any, end: Callable[[Any], Any]) -> Any:
        """What `end` makes of `start` after every rank's own `step`, one rank after the other."""
        if self.size == 1:
            return end(step(start))
        values, last = [start], self.size - 1
        if self.rank > 0:
            dist.recv_object_list(values, dist.get_global_rank(self.group, self.rank - 1), self.group, self.device)
        values = [step(values[0])]
        if self.rank < last:
            dist.send_object_list(values, dist.get_global_rank(self.group, self.rank + 1), self.group, self.device)
        else:
            values = [end(values[0])]
        dist.broadcast_object_list(values, dist.get_global_rank(self.group, last), self.group, self.device)
        return values[0]

    def to_first(self, value: Any) -> list[Any]:
        """Every rank's object, on the first rank; an empty list on the others."""
        if self.size == 1:
            return [value]
        values = [None] * self.size if self.rank == 0 else None
        dist.gather_object(value, values, dist.get_global_rank(self.group, 0), group=self.group)
        return values or []

    def exact_sum(self, values: torch.Tensor) -> torch.Tensor:
        """`ops.exact_sum` over the values (..., N) of all ranks, which may differ in N."""
        if self.size == 1:
            return ops.exact_sum(values)
        # Each rank hands over its sum and what rounding left of it, until nothing is left on any: few doubles whose
        # sum is exactly that of all values.
        terms = []
        while True:
            part = ops.exact_sum(values)
            terms.append(self.stack(part))
            if not bool((terms[-1].isfinite() & (terms[-1] != 0)).any()):
                return ops.exact_sum(torch.cat(terms).movedim(0, -1).contiguous())
            left = torch.where(part.isfinite(), -part, 0.0)
            values = torch.cat([values, left[..., None]], -1)

    @contextlib.contextmanager
    def together(self) -> Iterator[None]:
        """Work that each rank does for itself: what one raises, all raise, so that none waits for another."""
        if self.size == 1:
            yield
            return
        error = None
        try:
            yield
        except BaseException as raised:  # an interrupt too: the others must hear of it
            error = raised
        failed = torch.tensor([error is not None], dtype=torch.int64, device="cpu")
        if not int(self.sum(failed)):
            return
        errors = self.objects(None if error is None else _portable(error))
        if error is not None:
            raise error
        rank = next(rank for rank, other in enumerate(errors) if other is not None)
        errors[rank].add_note(f"raised on rank {rank}")
        raise errors[rank]


def _portable(error: BaseException) -> BaseException:
    """The exception without what it holds of this process."""
    try:
        return type(error)(*map(str, error.args))
    except Exception:
        return RuntimeError(f"{type(error).__name__}: {error}")
