"""One extraction, resolved: what was asked for, compared with images, model and store; and carrying it out."""

from __future__ import annotations

import os
import platform
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, Any

import numpy as np

from ..store import (
    FeatureKey,
    FeatureStore,
    IdentityMismatch,
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
from ..store.header import read_header
from ..store.location import open_storage
from .choose import describe_choice, pick_model
from .model import Model
from .plan import Plan, keys_of, make_plan
from .settings import check_settings, condition_of, make_header, timesteps_of
from .sources import DIGITS, DataSet, load_data
from .spec import ExtractSpec

if TYPE_CHECKING:
    from .backbone import Backbone
    from .pipeline import Timings

Echo = Callable[[str], object]


@dataclass(frozen=True)
class Job:
    """A spec resolved against images, model and store: everything but the backbone itself."""

    spec: ExtractSpec
    data: DataSet
    model: Model
    header: StoreHeader
    store: FeatureStore | None
    keys: Sequence[FeatureKey]
    plan: Plan


def prepare(spec: ExtractSpec, echo: Echo = print, *, fetch: bool = True) -> Job:
    """Resolve a spec and compare it with the store, changing nothing.

    The weights of a published model are downloaded, unless ``fetch`` is false: a plan needs none. Imports torch only for
    a store that does not exist yet.

    Raises:
        DiffsslError: the images, the model or the store cannot be used as asked.
    """
    try:
        there = read_header(open_storage(spec.store))
    except StoreNotFound:
        there = None
    echo(_announcement(spec, there))
    model = pick_model(spec, there)
    timesteps = timesteps_of(spec, model)
    data = load_data(spec.data, spec.labels, spec.only, spec.relist)
    spec = replace(spec, relist=False)  # whoever prepares the job again, here or on another machine, takes what was kept now
    for note in data.notes:
        echo(note)
    condition_of(spec, model, there)  # before two gigabytes come
    if fetch:
        model.fetch(echo)
    header = make_header(spec, model, data, there)
    if there is not None:
        check_header(spec.store, there, header)
    data = data.with_classes(header.classes)
    check_settings(spec, header, model)
    for line in merged_pools(header.blocks, spec.blocks, spec.pools):
        echo(line)
    keys = expand(header.blocks, spec.blocks, timesteps, spec.pools, range(spec.draws), range(spec.crops))
    store = None
    if there is not None:
        store = FeatureStore.open(spec.store)
        for name in sorted(data.splits.keys() & store.splits):
            check_split(store, name, data.splits[name].ids)
    rows = {name: len(split.ids) for name, split in data.splits.items()}
    return Job(spec, data, model, header, store, keys, make_plan(header, rows, keys, spec.limit, store, spec.part))


def load_backbone(job: Job) -> Backbone:
    """The job's model on its device. Raises ``ExtractError``."""
    from .settings import pick_device, torch_dtype

    fields = job.header.identity.fields
    device, dtype = pick_device(job.spec.device), torch_dtype(fields["compute_dtype"])
    return job.model.load(device, dtype, fields["condition"], job.header.memory_format)


def open_store(job: Job, backbone: Backbone) -> FeatureStore:
    """The job's store with all splits and arrays, made as far as they are not there. Raises ``StoreError``."""
    header = replace(job.header, versions=_versions(str(backbone.device)))
    store = create(job.spec.store, header)
    store.storage.remove_stale()
    clean = header.identity.fields["noise"]["scheme"] == "none"
    attributes = {key: _attributes(key, header, None if clean else backbone) for key in job.keys}
    for name, split in job.data.splits.items():
        add_split(store, name, split.ids, split.labels)
        add_arrays(store, name, keys_of(name, job.keys), attributes)
    return store


def begin(job: Job) -> tuple[Job, FeatureStore, Backbone]:
    """Load the job's backbone and open its store.

    Where another process made the store after the job was prepared, what was not asked for is taken from that store, as
    if it had been there: the job that is returned may have other row blocks, batches or dtypes.

    Raises:
        DiffsslError: the backbone or the store cannot be used as asked.
    """
    backbone = load_backbone(job)
    try:
        return job, open_store(job, backbone), backbone
    except IdentityMismatch:
        if job.store is not None:
            raise
    job = prepare(job.spec, lambda _: None)
    backbone = load_backbone(job)
    return job, open_store(job, backbone), backbone


def compute(job: Job, store: FeatureStore, backbone: Backbone, progress: Callable[[int], object]) -> Timings:
    """Carry out the job's plan; return where the time went. ``progress`` is called with the images of each forward pass."""
    from .pipeline import Pipeline

    versions = _versions(str(backbone.device))
    seed = job.header.identity.fields["noise"].get("seed")
    threads = max(2, min(16, os.cpu_count() or 2))

    def commit(writer: UnitWriter) -> None:
        writer.commit(job.spec.limit, job.spec.command, versions)

    pipeline = Pipeline(store, job.data.splits, backbone, seed, threads, commit, progress)
    pipeline.run(job.plan.work)
    return pipeline.timings


def _announcement(spec: ExtractSpec, there: StoreHeader | None) -> str:
    """First line of output: model, images and store, and which of them are defaults."""
    data = ", ".join(spec.data)
    data = "handwritten digits (bundled; --data for yours)" if data == DIGITS else data
    return f"model {describe_choice(spec, there)}, images {data}, store {spec.store}"


def _attributes(key: FeatureKey, header: StoreHeader, noised_by: Backbone | None) -> dict[str, Any]:
    """What people should know about an array; JSON has no infinity, so log-SNR is null where alpha or sigma is 0."""
    block = next(block for block in header.blocks if block.number == key.block)
    alpha, sigma = (1.0, 0.0) if noised_by is None or key.timestep is None else noised_by.schedule(key.timestep)
    return {
        "block_kind": block.kind,
        "channels": block.channels,
        "map_size": block.size,
        "cumulative_gflop": block.gflop,
        "timestep": key.timestep,
        "alpha": alpha,
        "sigma": sigma,
        "log_snr": 2 * float(np.log(alpha / sigma)) if alpha and sigma else None,
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
