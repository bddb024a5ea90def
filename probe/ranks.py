"""Several processes that train one head together, as torchrun starts them: each takes its share of every batch."""

from __future__ import annotations

import os
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta

import torch
import torch.distributed as dist
from torch import Tensor, nn

from ..store import digest
from .errors import ProbeError

# Rank 0 writes results while the others wait. torchrun ends them all when one fails, so nobody waits in vain for so long.
_PATIENCE = timedelta(hours=2)
_BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)


@dataclass(frozen=True)
class Ranks:
    """Where this process stands among those that train together; by default it is alone.

    All ranks must call the methods that talk (:meth:`start`, :meth:`add_gradients`, :meth:`agreed`, :meth:`known_to_first`)
    in the same order. Alone, they do nothing.

    Attributes:
        rank: of this process; 0 alone writes.
        world: number of processes.
        local: how many of them are on this machine.
        device: of this process; None alone, for whichever is asked for.
    """

    rank: int = 0
    world: int = 1
    local: int = 1
    device: torch.device | None = None

    @property
    def first(self) -> bool:
        """Whether this process writes the results."""
        return self.rank == 0

    @property
    def alone(self) -> bool:
        """Whether there are no others."""
        return self.world == 1

    def share(self, rows: int) -> slice:
        """Which of the rows of a batch are this rank's; the shares of all are the batch, and differ by one row at most."""
        return slice(self.rank * rows // self.world, (self.rank + 1) * rows // self.world)

    def start(self, head: nn.Module, batch_size: int) -> None:
        """Give a head the weights that it has on rank 0.

        Raises:
            ProbeError: it cannot be trained in shares, for a reason that all ranks see alike.
        """
        if self.alone:
            return
        if batch_size < self.world:
            raise ProbeError(f"{self.world} ranks cannot share batches of {batch_size} rows; start fewer")
        if any(isinstance(module, _BATCH_NORMS) for module in head.modules()):
            raise ProbeError("batch normalisation wants whole batches, and ranks have shares; fit this head without torchrun")
        for value in head.state_dict().values():
            sent = value.contiguous()
            dist.broadcast(sent, 0)
            value.copy_(sent)

    def add_gradients(self, head: nn.Module) -> None:
        """Make each gradient the sum over ranks; a parameter without one gets zeros, on all ranks alike."""
        if self.alone:
            return
        pending = []
        for parameter in head.parameters():
            gradient = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad.contiguous()
            parameter.grad = gradient
            pending.append(dist.all_reduce(gradient, async_op=True))
        for one in pending:
            one.wait()

    def agreed(self, values: Tensor) -> Tensor:
        """The values that rank 0 has, so that what is decided by them is decided alike. They must be of one shape."""
        if self.alone:
            return values
        own = values.to(self.device, copy=True)
        dist.broadcast(own, 0)
        return own.to(values.device)

    def known_to_first(self, wanted: Sequence[str], known: Collection[str]) -> set[str]:
        """Which of the wanted keys rank 0 knows: the fits that no rank makes.

        Raises:
            ProbeError: rank 0 wants other fits, because it sees another store.
        """
        there = [key in known for key in wanted]
        if not self.alone:
            seen = torch.tensor(list(bytes.fromhex(digest(list(wanted)))))
            if not torch.equal(self.agreed(seen), seen):
                raise ProbeError(
                    f"rank {self.rank} sees other rows or settings in the store than rank 0; all ranks must read the same "
                    "store, which nothing is added to meanwhile"
                )
            there = self.agreed(torch.tensor(there)).tolist()
        return {key for key, one in zip(wanted, there, strict=True) if one}


ALONE = Ranks()


def under_torchrun() -> bool:
    """Whether torchrun started this process beside others."""
    return "TORCHELASTIC_RUN_ID" in os.environ and int(os.environ["WORLD_SIZE"]) > 1


@contextmanager
def joined(device: str) -> Iterator[Ranks]:
    """Meet the other processes that torchrun started, over NCCL on GPUs, one a process, and over Gloo on CPUs.

    Args:
        device: ``auto``, ``cuda`` or ``cpu``.

    Raises:
        ProbeError: another device, or there are fewer GPUs than processes on this machine.
    """
    rank, world, own, local = (int(os.environ[name]) for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE"))
    if device not in ("auto", "cuda", "cpu"):
        raise ProbeError(f"--device {device}: under torchrun each process takes the GPU of its number; leave it out, or cpu")
    place = torch.device("cpu")
    if device == "cuda" or (device == "auto" and torch.cuda.is_available()):
        if own >= torch.cuda.device_count():
            raise ProbeError(
                f"{local} processes on this machine, which has {torch.cuda.device_count()} GPUs; "
                "start one a GPU with --nproc-per-node, or use --device cpu"
            )
        place = torch.device("cuda", own)
        torch.cuda.set_device(place)
    dist.init_process_group("gloo" if place.type == "cpu" else "nccl", timeout=_PATIENCE)
    yield Ranks(rank, world, local, place)
    dist.destroy_process_group()  # not where something failed: that waits for the others, who wait for this rank
