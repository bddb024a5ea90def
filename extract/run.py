"""One extraction from beginning to end: list, compare with the store, load the backbone, compute, commit."""

from __future__ import annotations

import time
from dataclasses import replace
from typing import TYPE_CHECKING

from ..store import FeatureStore, StorageFull, add_split
from ..store.describe import human_bytes
from ..store.journal import Commit
from ..store.location import open_storage
from ..store.progress import progress_bar
from .errors import TooManyBadSamples
from .job import Echo, Job, begin, compute, prepare
from .plan import Plan, describe_plan, human_tflop
from .spec import ExtractSpec

if TYPE_CHECKING:
    from .timings import Timings

_LABEL = "extract (images x timesteps)"


def show_plan(job: Job, measure: bool, echo: Echo = print, workers: int = 1) -> None:
    """Print what a run would compute and write; with ``measure``, time one batch and say what it means for the workers."""
    for name, split in job.data.splits.items():
        echo(f"split {name:<6}{len(split.ids)} images, {len(job.data.classes)} classes")
    for line in describe_plan(job.plan, job.header, job.keys, open_storage(job.spec.store).free_bytes(), job.thumbnails):
        echo(line)
    each = -(-len(job.plan.work) // workers)  # row blocks of the worker that has most
    share = each / max(1, len(job.plan.work))
    if workers > 1:
        most = human_tflop(share * job.plan.gflop)
        echo(f"workers     {len(job.plan.work)} row blocks for {workers}: at most {each} each, {most}")
    if measure and job.plan.forwards:
        from .measure import seconds_per_forward

        seconds = seconds_per_forward(job)
        longest = seconds * job.plan.forwards * share
        echo(f"time        {seconds * 1000:.4g} ms a forward pass of one image here, {_clock(longest)} in all")


def extract(spec: ExtractSpec, echo: Echo = print, *, workers: int | None = None, dask: str | None = None) -> FeatureStore:
    """Extract features into a store, computing only what it does not have yet.

    Args:
        spec: what to extract.
        echo: called with each line for people.
        workers: so many processes on this machine, one a GPU where there are GPUs; None for this process alone.
        dask: address of a running Dask cluster that computes instead.

    Returns:
        The store, complete for what was asked.

    Raises:
        DiffsslError: see ``extract/errors.py`` and ``store/errors.py``; everything committed until then is kept.
    """
    job = prepare(replace(spec, sharing=workers or spec.sharing), echo)
    if job.plan.work or job.store is None:
        store = _compute(job, echo, workers, dask)
    else:
        store = job.store
        lost = job.lost_documents(store)
        if lost:
            begin(job)
            echo(f"{len(lost)} documents were missing and are there again, such as {lost[0]}")
        else:
            share = f" of part {spec.part[0]}/{spec.part[1]}" if spec.part[1] > 1 else ""
            echo(f"nothing to do: {spec.store} has all {job.plan.units} units{share}")
    _compare_rows(job, store, echo)
    _raise_limit(job, store)
    _report_bad(job, store, echo)
    return store


def _compute(job: Job, echo: Echo, workers: int | None, dask: str | None) -> FeatureStore:
    needed, free = job.plan.bytes, open_storage(job.spec.store).free_bytes()
    if free is not None and needed > free:
        raise StorageFull(
            job.spec.store,
            f"{human_bytes(needed)} will be written and {human_bytes(free)} are free; use another disk, or fewer settings",
        )
    done, units = job.plan.done, job.plan.units
    line = f"{job.plan.images} images, {_amount(job.plan)}; {done} of {units} units are there"
    if workers is None and dask is None:
        job, store, backbone = begin(job)
        echo(line)
        with progress_bar(job.plan.steps, " images", _LABEL) as bar:
            started = time.perf_counter()
            timings = compute(job, store, backbone, bar.update)
    else:
        echo(line)
        started = time.perf_counter()
        timings = _on_cluster(job, echo, workers, dask)
        store = FeatureStore.open(job.spec.store)
    seconds = time.perf_counter() - started
    rate = (job.plan.forwards or job.plan.thumbnails) / seconds
    echo(f"{_amount(job.plan)} in {_clock(seconds)} ({rate:.4g} images/s): {timings}")
    return store


def _amount(plan: Plan) -> str:
    """What a run computes, in words."""
    if not plan.thumbnails:
        return f"{plan.forwards} forward passes"
    return (f"{plan.forwards} forward passes and " if plan.forwards else "") + f"{plan.thumbnails} thumbnails"


def _on_cluster(job: Job, echo: Echo, workers: int | None, dask: str | None) -> Timings:
    """Compute in processes of this machine or of a running Dask cluster."""
    from ..store.cluster import connect, local_cluster
    from .cluster import compute_on_cluster, for_other_folders
    from .settings import count_gpus

    if dask is not None:
        job = replace(job, spec=for_other_folders(job.spec))
    cluster = local_cluster(workers, count_gpus(job.spec.device)) if workers else connect(str(dask))
    with cluster as client, progress_bar(job.plan.steps, " images", _LABEL) as bar:
        return compute_on_cluster(job, client, bar.update, echo)


def _compare_rows(job: Job, store: FeatureStore, echo: Echo) -> None:
    """Check ids, and say where labels differ from the store's."""
    for name, split in job.data.splits.items():
        different = add_split(store, name, split.ids, split.labels)
        if different:
            echo(f"{name}: {different} labels differ from the store's, which are kept (labels are not identity)")


def _raise_limit(job: Job, store: FeatureStore) -> None:
    """Record that more rows of a row block that is complete are wanted now."""
    for name, split in job.data.splits.items():
        wanted = min(len(split.ids), job.spec.limit or len(split.ids))
        for key in job.arrays(name):
            first = store.journal.row_blocks(name, key).get(0)
            if first is not None and store.wanted_rows([key], name) < wanted:  # else the part that commits it says so
                checksums = [sorted(shard)[0] for shard in first]
                left_out = {row: bad for row, bad in store.journal.left_out(name, key).items() if row < store.header.row_block}
                store.journal.write(
                    Commit(name, 0, key.timestep, {key.path: checksums}, left_out, job.spec.limit, job.spec.command)
                )


def _report_bad(job: Job, store: FeatureStore, echo: Echo) -> None:
    bad = {
        (name, row): sample
        for name in job.data.splits
        for key in job.arrays(name)
        for row, sample in store.journal.left_out(name, key).items()
        if row < store.wanted_rows([key], name)
    }
    if not bad:
        return
    images = sum(min(len(split.ids), job.spec.limit or len(split.ids)) for split in job.data.splits.values())
    allowed = max(1, images // 1000) if job.spec.max_bad is None else job.spec.max_bad
    (name, _), first = next(iter(bad.items()))
    line = f"{len(bad)} of {images} images could not be decoded and are left out, such as {name} {first.id!r} ({first.reason})"
    if len(bad) > allowed:
        raise TooManyBadSamples(
            f"{line}; --max-bad allows {allowed}. Everything else is committed; "
            f"'diffssl-store info {job.spec.store}' lists them"
        )
    echo(line)


def _clock(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}"
