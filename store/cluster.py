"""Processes to share work among: of this machine, or of a running Dask cluster. Dask schedules; it never writes an array."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import version

from distributed import Client, Nanny, Scheduler, SpecCluster

from .errors import ClusterError

_CONNECT_SECONDS = 20
_GPU = "GPU"  # the resource by which workers declare that they have one


@contextmanager
def local_cluster(workers: int, gpus: int) -> Iterator[Client]:
    """A cluster of processes on this machine, each with a GPU of its own, or with its share of the cores.

    Args:
        workers: how many.
        gpus: GPUs to share out; 0 for none.
    """
    names = _gpu_names(gpus)
    cores = str(max(1, (os.cpu_count() or 1) // workers))
    nannies = {
        i: {
            "cls": Nanny,
            "options": {
                "nthreads": 1,
                "memory_limit": 0,  # memory is bounded by the work itself; a nanny that guesses would kill at random
                "env": {"CUDA_VISIBLE_DEVICES": names[i % len(names)]} if names else {"OMP_NUM_THREADS": cores},
                "silence_logs": logging.ERROR,
            },
        }
        for i in range(workers)
    }
    scheduler = {"cls": Scheduler, "options": {"dashboard": False, "dashboard_address": "127.0.0.1:0", "host": "127.0.0.1"}}
    with SpecCluster(workers=nannies, scheduler=scheduler, silence_logs=logging.ERROR) as cluster, Client(cluster) as client:
        yield client


@contextmanager
def connect(address: str) -> Iterator[Client]:
    """A running cluster. Raises ``ClusterError`` where there is none, it has no workers, or they have another diffssl."""
    try:
        client = Client(address, timeout=_CONNECT_SECONDS)
    except (OSError, ValueError, TimeoutError) as error:
        raise ClusterError(
            f"there is no Dask scheduler at {address} ({error}); start one with 'dask scheduler', "
            "and workers with 'dask worker'"
        ) from error
    with client:
        try:
            found = client.run(version, "diffssl")
        except ImportError as error:
            raise ClusterError(f"the workers at {address} have no diffssl ({error}); install it where they run") from error
        if not found:
            raise ClusterError(f"the Dask cluster at {address} has no workers; start some with 'dask worker {address}'")
        others = {where: theirs for where, theirs in found.items() if theirs != version("diffssl")}
        if others:
            where, theirs = next(iter(others.items()))
            raise ClusterError(
                f"{len(others)} of {len(found)} workers have another diffssl, such as {theirs} at {where}; "
                f"here it is {version('diffssl')}"
            )
        yield client


def resources_of(client: Client) -> dict[str, int] | None:
    """What a task asks for: a GPU, where any worker declares that it has one."""
    workers = client.scheduler_info(n_workers=-1)["workers"].values()
    return {_GPU: 1} if any(_GPU in worker["resources"] for worker in workers) else None


def _gpu_names(count: int) -> list[str]:
    """Names of the GPUs that this process may use, as CUDA_VISIBLE_DEVICES has them."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    return [] if count == 0 else visible.split(",") if visible else [str(i) for i in range(count)]
