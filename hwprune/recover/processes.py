"""Several processes that train one network: as torchrun starts them, or one alone.

Gradients are averaged by DistributedDataParallel. Every process draws from the same loader, each
its own share of the batches; all stop together where one of them cannot go on.
"""

from __future__ import annotations

import gc
import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from hwprune.errors import HwpruneError

Loader = Iterable[Any] | Callable[[int], Iterable[Any]]


@dataclass(frozen=True)
class Processes:
    """This process (`rank`, from 0) among `size`."""

    rank: int = 0
    size: int = 1

    def share(self, loader: Loader) -> Callable[[int], Iterator[Any]]:
        """Every `size`-th batch of a loader, from this process's first on; by epoch."""

        def batches(epoch: int) -> Iterator[Any]:
            drawn = loader(epoch) if callable(loader) else loader
            return islice(iter(drawn), self.rank, None, self.size)

        return batches

    def wrap(self, module: nn.Module) -> nn.Module:
        """The module with gradients averaged over all processes."""
        if self.size == 1:
            return module
        device = next(module.parameters()).device
        ids = [device] if device.type == "cuda" else None
        return DistributedDataParallel(module, device_ids=ids)

    def agree(self, error: HwpruneError | None = None) -> None:
        """Raise the error here; where another process has one, say so in all the others."""
        if self.size > 1:
            failed = torch.tensor([0 if error is None else 1])
            device = "cuda" if dist.get_backend() == "nccl" else "cpu"
            failed = failed.to(device)
            dist.all_reduce(failed, dist.ReduceOp.MAX)
            if error is None and int(failed):
                raise HwpruneError("another process of this training could not go on")
        if error is not None:
            raise error

    def all_finite(self, finite: bool) -> bool:
        """Whether it is so in every process."""
        if self.size == 1:
            return finite
        device = "cuda" if dist.get_backend() == "nccl" else "cpu"
        value = torch.tensor([1 if finite else 0], device=device)
        dist.all_reduce(value, dist.ReduceOp.MIN)
        return bool(int(value))

    def wait(self) -> None:
        """Until all processes are here."""
        if self.size > 1:
            dist.barrier()


@contextmanager
def distributed() -> Iterator[Processes]:
    """The processes that torchrun started; outside it, this one alone."""
    if "RANK" not in os.environ or "WORLD_SIZE" not in os.environ:
        yield Processes()
        return
    cuda = torch.cuda.is_available()
    if cuda:
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))
    dist.init_process_group("nccl" if cuda else "gloo")
    try:
        yield Processes(dist.get_rank(), dist.get_world_size())
    finally:
        gc.collect()  # reducers of networks that are done go before the group they belong to
        dist.destroy_process_group()
