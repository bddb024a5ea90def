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
    ThumbnailKey,
    UnitWriter,
    add_arrays,
    add_split,
    add_thumbnails,
    create,
    expand,
    merged_pools,
)
from ..store.create import check_header, check_split, check_thumbnails
from ..store.documents import missing_documents
from ..store.header import read_header
from ..store.key import ArrayKey
from ..store.location import open_storage
from .allocator import keep_freed_memory
from .choose import describe_choice, pick_model
from .errors import ExtractError
from .loading import Loader
from .model import Model
from .plan import Plan, keys_of, make_plan
from .settings import check_settings, condition_of, make_header, timesteps_of
from .sources import DIGITS, DataSet, load_data
from .spec import ExtractSpec
from .thumbnails import run_without_backbone
from .timings import Timings

if TYPE_CHECKING:
    from .backbone import Backbone

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
    thumbnails: ThumbnailKey | None = None

    def arrays(self, split: str) -> list[ArrayKey]:
        """What is wanted of a split."""
        return [*keys_of(split, self.keys), *([] if self.thumbnails is None else [self.thumbnails])]

    def lost_documents(self, store: FeatureStore) -> list[str]:
        """Documents of wanted arrays that the store does not have."""
        return [name for split in self.data.splits for name in missing_documents(store, split, self.arrays(split))]


def prepare(spec: ExtractSpec, echo: Echo = print, *, fetch: bool = True) -> Job:
    """Resolve a spec and compare it with the store, changing nothing.

    The weights of a published model are downloaded, unless ``fetch`` is false: a plan needs none, nor do thumbnails alone.
    Imports torch only for a store that does not exist yet.

    Raises:
        DiffsslError: the images, the model or the store cannot be used as asked.
    """
    try:
        there = read_header(open_storage(spec.store))
    except StoreNotFound:
        there = None
    if there is None and not spec.blocks:
        raise ExtractError(f"{spec.store}: there is no store to add thumbnails to; make one with --blocks and --timesteps")
    echo(_announcement(spec, there))
    model = pick_model(spec, there)
    timesteps = timesteps_of(spec, model)
    data = load_data(spec.data, spec.labels, spec.only, spec.relist)
    spec = replace(spec, relist=False)  # whoever prepares the job again, here or on another machine, takes what was kept now
    for note in data.notes:
        echo(note)
    condition_of(spec, model, there)  # before two gigabytes come
    if fetch and spec.blocks:
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
    thumbnails = _thumbnails(spec, model, store, echo)
    rows = {name: len(split.ids) for name, split in data.splits.items()}
    plan = make_plan(header, rows, keys, spec.limit, store, spec.part, thumbnails)
    return Job(spec, data, model, header, store, keys, plan, thumbnails)


def load_backbone(job: Job) -> Backbone:
    """The job's model on its device. Raises ``ExtractError``."""
    from .settings import pick_device, torch_dtype

    fields = job.header.identity.fields
    device, dtype = pick_device(job.spec.device), torch_dtype(fields["compute_dtype"])
    return job.model.load(device, dtype, fields["condition"], job.header.memory_format)


def open_store(job: Job, backbone: Backbone | None) -> FeatureStore:
    """The job's store with all splits and arrays, made as far as they are not there. Raises ``StoreError``.

    Without a backbone, arrays of features are not made: they are there.
    """
    header = replace(job.header, versions=_versions(backbone))
    store = create(job.spec.store, header)
    store.storage.remove_stale()
    for name, split in job.data.splits.items():
        add_split(store, name, split.ids, split.labels)
        if job.thumbnails is not None:
            add_thumbnails(store, name, job.thumbnails)
    if backbone is not None:
        clean = header.identity.fields["noise"]["scheme"] == "none"
        attributes = {key: _attributes(key, header, None if clean else backbone) for key in job.keys}
        for name in job.data.splits:
            add_arrays(store, name, keys_of(name, job.keys), attributes)
    return store


def begin(job: Job) -> tuple[Job, FeatureStore, Backbone | None]:
    """Load the job's backbone, unless all features are there, and open its store.

    Where another process made the store after the job was prepared, what was not asked for is taken from that store, as
    if it had been there: the job that is returned may have other row blocks, batches or dtypes.

    Raises:
        DiffsslError: the backbone or the store cannot be used as asked.
    """
    backbone = load_backbone(job) if _needs_backbone(job) else None
    try:
        return job, open_store(job, backbone), backbone
    except IdentityMismatch:
        if job.store is not None:
            raise
    job = prepare(job.spec, lambda _: None)
    backbone = load_backbone(job)
    return job, open_store(job, backbone), backbone


def compute(job: Job, store: FeatureStore, backbone: Backbone | None, progress: Callable[[int], object]) -> Timings:
    """Carry out the job's plan; return where the time went.

    On a CPU, the process keeps memory that is freed from now on (:func:`~diffssl.extract.allocator.keep_freed_memory`).

    Args:
        job: what to do.
        store: opened for it.
        backbone: as :func:`begin` gave it: None where only thumbnails are missing.
        progress: called with the images of each forward pass, and with the number of thumbnails.
    """
    versions = _versions(backbone)
    seed = job.header.identity.fields["noise"].get("seed")
    threads = max(2, min(16, os.cpu_count() or 2))

    def commit(writer: UnitWriter) -> None:
        writer.commit(job.spec.limit, job.spec.command, versions)

    if backbone is None:
        loader = Loader(job.model.image_size, job.header.batch_size, threads, job.model.resize)
        return run_without_backbone(store, job.data.splits, loader, job.plan.work, commit, progress)
    from .pipeline import Pipeline

    if backbone.device.type == "cpu":
        keep_freed_memory()
    pipeline = Pipeline(store, job.data.splits, backbone, seed, threads, commit, progress)
    pipeline.run(job.plan.work)
    return pipeline.timings


def _announcement(spec: ExtractSpec, there: StoreHeader | None) -> str:
    """First line of output: model, images and store, and which of them are defaults."""
    data = ", ".join(spec.data)
    data = "handwritten digits (bundled; --data for yours)" if data == DIGITS else data
    return f"model {describe_choice(spec, there)}, images {data}, store {spec.store}"


def _thumbnails(spec: ExtractSpec, model: Model, store: FeatureStore | None, echo: Echo) -> ThumbnailKey | None:
    """The thumbnails that are wanted, never larger than what the model sees. Raises ``IdentityMismatch``."""
    if spec.thumbnails is None:
        return None
    key = ThumbnailKey(min(spec.thumbnails, model.image_size))
    if key.side < spec.thumbnails:
        echo(f"thumbnails have {key.side}x{key.side} pixels, as the images that {model.name} sees")
    if store is not None:
        check_thumbnails(store, key)
    return key


def _needs_backbone(job: Job) -> bool:
    """Whether features are to be computed, or their arrays to be made."""
    return job.plan.forwards > 0 or job.store is None or any("/features/" in name for name in job.lost_documents(job.store))


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


def _versions(backbone: Backbone | None) -> dict[str, str]:
    """Versions and device of what is written by this process; thumbnails need no torch."""
    try:
        own = version("diffssl")
    except PackageNotFoundError:
        own = "not installed"
    versions = {"diffssl": own, "python": platform.python_version(), "numpy": np.__version__}
    if backbone is None:
        return {**versions, "device": f"cpu ({platform.machine()})"}
    import torch

    device = str(backbone.device)
    name = torch.cuda.get_device_name(device) if device.startswith("cuda") else platform.machine()
    return {**versions, "torch": torch.__version__, "device": f"{device} ({name})"}
