"""One extraction from beginning to end: list, compare with the store, load the backbone, compute, commit."""

from __future__ import annotations

import os
import platform
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import numpy as np
from tqdm import tqdm

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
from ..store.create import check_header
from ..store.feature_store import read_header
from ..store.journal import Commit
from ..store.storage import LocalStorage
from .errors import TooManyBadSamples
from .plan import Plan, describe_plan, make_plan
from .settings import check_settings, make_header, pick_model
from .sources import DIGITS, DataSet, load_data
from .spec import ExtractSpec
from .zoo import BUNDLED, ModelSource

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
    echo(_announcement(spec))
    data = load_data(spec.data, spec.labels)
    for note in data.notes:
        echo(note)
    try:
        there = read_header(LocalStorage(spec.store))
    except StoreNotFound:
        there = None
    model = pick_model(spec, there)
    header = make_header(spec, model, data, there)
    if there is not None:
        check_header(spec.store, there, header)
    check_settings(spec, header, model)
    for line in merged_pools(header.blocks, spec.blocks, spec.pools):
        echo(line)
    keys = expand(header.blocks, spec.blocks, spec.timesteps, spec.pools, range(spec.draws))
    store = FeatureStore.open(spec.store) if there is not None else None
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
    store = _compute(job, echo) if job.plan.work else job.store
    assert store is not None
    _compare_rows(job, store, echo)
    if not job.plan.work:
        echo(f"nothing to do: {spec.store} has all {job.plan.units} units")
    _raise_limit(job, store)
    _report_bad(job, store, echo)
    return store


def _compute(job: Job, echo: Echo) -> FeatureStore:
    from .adm import load_adm
    from .pipeline import Pipeline
    from .settings import pick_device, torch_dtype

    spec, plan = job.spec, job.plan
    storage = LocalStorage(spec.store)
    if plan.bytes > storage.free_bytes():
        needed, free = plan.bytes / 1e9, storage.free_bytes() / 1e9
        raise StorageFull(
            spec.store, f"{needed:.3g} GB will be written and {free:.3g} GB are free; use another disk, or fewer settings"
        )
    device = pick_device(spec.device)
    fields = job.header.identity.fields
    condition = None if fields["condition"] == "none" and not job.model.config["class_cond"] else fields["condition"]
    backbone = load_adm(job.model, device, condition, torch_dtype(fields["compute_dtype"]))
    header = replace(job.header, versions=_versions(str(device)))
    store = create(spec.store, header)
    storage.remove_stale()
    attributes = {key: _attributes(key, header, backbone.schedule(key.timestep or 0), fields["noise"]) for key in job.keys}
    for name, split in job.data.splits.items():
        add_split(store, name, split.ids, split.labels)
        add_arrays(store, name, job.keys, attributes)
    echo(f"{plan.images} images, {plan.forwards} forward passes on {device}; {plan.done} of {plan.units} units are there")
    started = time.perf_counter()
    with tqdm(total=plan.forwards, unit=" images", desc="extract (images x timesteps)", smoothing=0.05, disable=None) as bar:

        def commit(writer: UnitWriter) -> None:
            writer.commit(spec.limit, spec.command, header.versions)

        seed = fields["noise"].get("seed")
        threads = max(2, min(16, os.cpu_count() or 2))
        pipeline = Pipeline(store, job.data.splits, backbone, seed, threads, commit, bar.update)
        pipeline.run(plan.work)
    seconds = time.perf_counter() - started
    echo(f"{plan.forwards} forward passes in {_clock(seconds)} ({plan.forwards / seconds:.4g} images/s): {pipeline.timings}")
    return store


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


def _announcement(spec: ExtractSpec) -> str:
    """First line of output: model, images and store, and which of them are defaults."""
    model = str(spec.checkpoint) if spec.checkpoint else spec.model or f"{BUNDLED} (bundled; --model for another)"
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
