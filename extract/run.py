"""One extraction from beginning to end: list, compare with the store, load the backbone, compute, commit."""

from __future__ import annotations

import os
import platform
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, Any

import numpy as np

from ..store import (
    FeatureKey,
    FeatureStore,
    StorageFull,
    StoreHeader,
    StoreNotFound,
    UnitWriter,
    add_arrays,
    add_split,
    create,
    expand,
    merged_pools,
)
from ..store.create import check_header, check_split
from ..store.describe import human_bytes
from ..store.documents import missing_documents
from ..store.header import read_header
from ..store.journal import Commit
from ..store.progress import progress_bar
from ..store.storage import LocalStorage
from .errors import TooManyBadSamples
from .plan import Plan, describe_plan, make_plan
from .settings import check_settings, make_header, pick_model
from .sources import DIGITS, DataSet, load_data
from .spec import ExtractSpec
from .zoo import BUNDLED, ModelSource

if TYPE_CHECKING:
    from .adm import ADM
    from .pipeline import Timings

Echo = Callable[[str], object]


@dataclass(frozen=True)
class Job:
    """A spec resolved against images, model and store: everything but the backbone itself."""

    spec: ExtractSpec
    data: DataSet
    model: ModelSource
    header: StoreHeader
    store: FeatureStore | None
    keys: Sequence[FeatureKey]
    plan: Plan


def prepare(spec: ExtractSpec, echo: Echo = print) -> Job:
    """Resolve a spec and compare it with the store, changing nothing.

    Imports torch only for a store that does not exist yet.

    Raises:
        DiffsslError: the images, the model or the store cannot be used as asked.
    """
    try:
        there = read_header(LocalStorage(spec.store))
    except StoreNotFound:
        there = None
    echo(_announcement(spec, there))
    data = load_data(spec.data, spec.labels)
    for note in data.notes:
        echo(note)
    model = pick_model(spec, there)
    header = make_header(spec, model, data, there)
    if there is not None:
        check_header(spec.store, there, header)
    data = data.with_classes(header.classes)
    check_settings(spec, header, model)
    for line in merged_pools(header.blocks, spec.blocks, spec.pools):
        echo(line)
    keys = expand(header.blocks, spec.blocks, spec.timesteps, spec.pools, range(spec.draws))
    store = None
    if there is not None:
        store = FeatureStore.open(spec.store)
        for name in sorted(data.splits.keys() & store.splits):
            check_split(store, name, data.splits[name].ids)
    rows = {name: len(split.ids) for name, split in data.splits.items()}
    return Job(spec, data, model, header, store, keys, make_plan(header, rows, keys, spec.limit, store))


def show_plan(job: Job, measure: bool, echo: Echo = print) -> None:
    """Print what a run would compute and write; with ``measure``, time one batch and say what it means."""
    for name, split in job.data.splits.items():
        echo(f"split {name:<6}{len(split.ids)} images, {len(job.data.classes)} classes")
    for line in describe_plan(job.plan, job.header, job.keys, LocalStorage(job.spec.store).free_bytes()):
        echo(line)
    if measure and job.plan.work:
        from .measure import seconds_per_forward

        seconds = seconds_per_forward(job)
        echo(f"time        {seconds * 1000:.4g} ms a forward pass of one image, {_clock(seconds * job.plan.forwards)} in all")


def extract(spec: ExtractSpec, echo: Echo = print) -> FeatureStore:
    """Extract features into a store, computing only what it does not have yet.

    Returns:
        The store, complete for what was asked.

    Raises:
        DiffsslError: see ``extract/errors.py`` and ``store/errors.py``; everything committed until then is kept.
    """
    job = prepare(spec, echo)
    documents = [] if job.plan.work or job.store is None else _missing_documents(job, job.store)
    store = _compute(job, echo) if job.plan.work or documents else job.store
    assert store is not None
    _compare_rows(job, store, echo)
    if documents:
        echo(f"{len(documents)} documents were missing and are there again, such as {documents[0]}")
    elif not job.plan.work:
        echo(f"nothing to do: {spec.store} has all {job.plan.units} units")
    _raise_limit(job, store)
    _report_bad(job, store, echo)
    return store


def _compute(job: Job, echo: Echo) -> FeatureStore:
    needed, free = job.plan.bytes, LocalStorage(job.spec.store).free_bytes()
    if needed > free:
        raise StorageFull(
            job.spec.store,
            f"{human_bytes(needed)} will be written and {human_bytes(free)} are free; use another disk, or fewer settings",
        )
    backbone = load_backbone(job)
    store = open_store(job, backbone)
    done, units = job.plan.done, job.plan.units
    echo(f"{job.plan.images} images, {job.plan.forwards} forward passes; {done} of {units} units are there")
    started = time.perf_counter()
    timings = compute(job, store, backbone)
    seconds = time.perf_counter() - started
    rate = job.plan.forwards / seconds
    echo(f"{job.plan.forwards} forward passes in {_clock(seconds)} ({rate:.4g} images/s): {timings}")
    return store


def _missing_documents(job: Job, store: FeatureStore) -> list[str]:
    """Documents that the store has lost of the wanted arrays, all of whose row blocks are committed."""
    return [document for name in job.data.splits for document in missing_documents(store, name, job.keys)]


def load_backbone(job: Job) -> ADM:
    """The job's model on its device. Raises ``ExtractError``."""
    from .adm import load_adm
    from .settings import pick_device, torch_dtype

    fields = job.header.identity.fields
    condition = fields["condition"] if job.model.config["class_cond"] else None
    return load_adm(job.model, pick_device(job.spec.device), condition, torch_dtype(fields["compute_dtype"]))


def open_store(job: Job, backbone: ADM) -> FeatureStore:
    """The job's store with all splits and arrays, made as far as they are not there. Raises ``StoreError``."""
    header = replace(job.header, versions=_versions(str(backbone.device)))
    store = create(job.spec.store, header)
    store.storage.remove_stale()
    noise = header.identity.fields["noise"]
    attributes = {key: _attributes(key, header, backbone.schedule(key.timestep or 0), noise) for key in job.keys}
    for name, split in job.data.splits.items():
        add_split(store, name, split.ids, split.labels)
        add_arrays(store, name, job.keys, attributes)
    return store


def compute(job: Job, store: FeatureStore, backbone: ADM) -> Timings:
    """Carry out the job's plan, with a progress bar; return where the time went."""
    from .pipeline import Pipeline

    versions = _versions(str(backbone.device))
    seed = job.header.identity.fields["noise"].get("seed")
    threads = max(2, min(16, os.cpu_count() or 2))
    label = "extract (images x timesteps)"
    with progress_bar(job.plan.forwards, " images", label) as bar:

        def commit(writer: UnitWriter) -> None:
            writer.commit(job.spec.limit, job.spec.command, versions)

        pipeline = Pipeline(store, job.data.splits, backbone, seed, threads, commit, bar.update)
        pipeline.run(job.plan.work)
    return pipeline.timings


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
        for key in job.keys:
            if store.wanted_rows([key], name) < wanted:
                checksums = [sorted(shard)[0] for shard in store.journal.row_blocks(name, key)[0]]
                left_out = {row: bad for row, bad in store.journal.left_out(name, key).items() if row < store.header.row_block}
                store.journal.write(
                    Commit(name, 0, key.timestep, {key.path: checksums}, left_out, job.spec.limit, job.spec.command)
                )


def _report_bad(job: Job, store: FeatureStore, echo: Echo) -> None:
    bad = {
        (name, row): sample
        for name in job.data.splits
        for key in job.keys
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


def _announcement(spec: ExtractSpec, there: StoreHeader | None) -> str:
    """First line of output: model, images and store, and which of them are defaults."""
    default = f"{BUNDLED} (bundled; --model for another)" if there is None else f"{there.model} (the store's)"
    model = str(spec.checkpoint or spec.model or default)
    data = ", ".join(spec.data)
    data = "handwritten digits (bundled; --data for yours)" if data == DIGITS else data
    return f"model {model}, images {data}, store {spec.store}"


def _attributes(
    key: FeatureKey, header: StoreHeader, schedule: tuple[float, float], noise: Mapping[str, Any]
) -> dict[str, Any]:
    """What people should know about an array; JSON has no infinity, so log-SNR is null where sigma is 0."""
    block = next(block for block in header.blocks if block.number == key.block)
    alpha, sigma = schedule if noise["scheme"] != "none" else (1.0, 0.0)
    return {
        "block_kind": block.kind,
        "channels": block.channels,
        "map_size": block.size,
        "cumulative_gflop": block.gflop,
        "timestep": key.timestep,
        "alpha": alpha,
        "sigma": sigma,
        "log_snr": 2 * float(np.log(alpha / sigma)) if sigma else None,
    }


def _versions(device: str) -> dict[str, str]:
    import torch

    try:
        own = version("diffssl")
    except PackageNotFoundError:
        own = "not installed"
    name = torch.cuda.get_device_name(device) if device.startswith("cuda") else platform.machine()
    return {
        "diffssl": own,
        "python": platform.python_version(),
        "numpy": np.__version__,
        "torch": torch.__version__,
        "device": f"{device} ({name})",
    }


def _clock(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}"
