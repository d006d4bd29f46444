"""One compilation on several processes: a step's samples are shared out, gradients are summed, files are rank 0's."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

import torch
import torch.distributed as dist

from ..errors import InputError, LCCError, MismatchError


class HasTokens(Protocol):
    """What is shared out: something that costs about as much as it has tokens."""

    @property
    def input_ids(self) -> Sequence[int]:
        """Token ids."""


T = TypeVar("T")
Item = TypeVar("Item", bound=HasTokens)


@dataclass(frozen=True)
class Ranks:
    """The processes that make the same ``lcc.compile`` call together; one alone is the usual case."""

    rank: int = 0
    count: int = 1

    @classmethod
    def of_group(cls) -> Ranks:
        """The processes of torch.distributed's default group.

        Raises:
            InputError: there is no such group.
        """
        if not (dist.is_available() and dist.is_initialized()):
            raise InputError("distributed=True needs torch.distributed: start it with accelerate launch or torchrun")
        return cls(dist.get_rank(), dist.get_world_size())

    @property
    def main(self) -> bool:
        """Whether this process writes files and shows progress."""
        return self.rank == 0

    def from_main(self, make: Callable[[], T], together: bool = False) -> T:
        """What ``make`` returns on rank 0; its errors are raised on every rank.

        Args:
            together: call it on every rank, because it runs a model whose weights are sharded over them.
        """
        if self.count == 1:
            return make()
        box: list[Any] = [None, None]
        if self.main or together:
            try:
                box[0] = make()
            except LCCError as error:
                box[1] = error
        dist.broadcast_object_list(box)
        if box[1] is not None:
            raise box[1]
        return box[0]

    def first(self, value: T) -> T:
        """Rank 0's value, on every rank."""
        return self.from_main(lambda: value)

    def least(self, value: int | None) -> int | None:
        """The least of all ranks' values; None if any has none."""
        values: list[int | None] = [value] * self.count
        if self.count > 1:
            dist.all_gather_object(values, value)
        known = [one for one in values if one is not None]
        return min(known) if len(known) == len(values) else None

    def require_same(self, value: dict[str, Any]) -> None:
        """Check that every rank was asked for the same.

        Raises:
            MismatchError: naming what differs from rank 0.
        """
        first = self.first(value)
        own = [name for name in value if first.get(name) != value[name]]
        gathered: list[Any] = [own] * self.count
        if self.count > 1:
            dist.all_gather_object(gathered, own)
        differing = sorted({name for names in gathered for name in names})
        if differing:
            raise MismatchError(f"the processes compile different things ({', '.join(differing)}): give all the same")

    def share(self, items: Sequence[Item]) -> list[Item]:
        """This rank's items: each longest one left goes to the rank with the fewest tokens.

        Raises:
            InputError: fewer items than ranks.
        """
        if len(items) < self.count:
            raise InputError(f"{self.count} processes share {len(items)} samples a step: start fewer, or raise batch")
        loads, owner = [0] * self.count, [0] * len(items)
        for index in sorted(range(len(items)), key=lambda index: -len(items[index].input_ids)):
            owner[index] = loads.index(min(loads))
            loads[owner[index]] += len(items[index].input_ids)
        return [item for item, rank in zip(items, owner, strict=True) if rank == self.rank]

    def sum(self, tensors: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        """Sums over all ranks, the same bits on each; one all-reduce."""
        if self.count == 1:
            return list(tensors)
        dtype = max((tensor.dtype for tensor in tensors), key=lambda dtype: dtype.itemsize)
        flat = torch.cat([tensor.reshape(-1).to(dtype) for tensor in tensors])
        dist.all_reduce(flat)
        sizes = [tensor.numel() for tensor in tensors]
        return [part.view_as(tensor).to(tensor) for part, tensor in zip(flat.split(sizes), tensors, strict=True)]


ALONE = Ranks()
