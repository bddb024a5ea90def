"""What is left to compute, and what it costs, before anything is computed. No torch here."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from ..store import FeatureKey, FeatureStore, StoreHeader, ThumbnailKey
from ..store.describe import human_bytes
from ..store.key import ArrayKey
from ..store.layout import block_range
from ..store.shard import shard_file_bytes
from .sources import ALL

_TRAINING = ("train", ALL)
_DOCUMENT_BYTES = 2048  # of a zarr.json, and about that of a commit
_ByStep = dict[int | None, list[FeatureKey]]


@dataclass(frozen=True)
class Work:
    """What is missing of one crop of one row block: settings by timestep, None for an encoder without; and thumbnails."""

    split: str
    row_block: int
    rows: range
    keys: Mapping[int | None, Sequence[FeatureKey]]
    crop: int = 0
    thumbnails: ThumbnailKey | None = None

    @property
    def units(self) -> int:
        """Commits: one for each timestep, and one for thumbnails."""
        return len(self.keys) + (self.thumbnails is not None)

    @property
    def steps(self) -> int:
        """What progress counts: forward passes of one image, and thumbnails."""
        return self.forwards + (len(self.rows) if self.thumbnails is not None else 0)

    @property
    def forwards(self) -> int:
        """Forward passes of one image: one for each (timestep, draw)."""
        return len(self.rows) * sum(len({key.draw for key in keys}) for keys in self.keys.values())


@dataclass(frozen=True)
class Plan:
    """What a run will compute and write.

    Attributes:
        work: in the order it will be done.
        forwards: forward passes of one image.
        gflop: of all forward passes, padding of short batches included.
        arrays: arrays that will get rows.
        bytes: on disk, of what will be written.
        files: that will be written.
        done, units: (row block, timestep) pairs that are there, and in all, of each crop; and row blocks of thumbnails.
    """

    work: list[Work]
    forwards: int
    gflop: float
    arrays: int
    bytes: int
    files: int
    done: int
    units: int

    @property
    def images(self) -> int:
        """Images that will be decoded, each crop of each."""
        return sum(len(work.rows) for work in self.work)

    @property
    def thumbnails(self) -> int:
        """Thumbnails that will be written."""
        return sum(len(work.rows) for work in self.work if work.thumbnails is not None)

    @property
    def steps(self) -> int:
        """What progress counts."""
        return sum(work.steps for work in self.work)


def make_plan(
    header: StoreHeader,
    rows: Mapping[str, int],
    keys: Sequence[FeatureKey],
    limit: int | None,
    store: FeatureStore | None,
    part: tuple[int, int] = (0, 1),
    thumbnails: ThumbnailKey | None = None,
) -> Plan:
    """Compare what is wanted with what is committed.

    Args:
        header: of the store, or of the one that would be created.
        rows: rows of each split.
        keys: settings wanted of every split.
        limit: only the first so many rows of every split.
        store: the store, if there is one.
        part: (I, N): only every N-th row block from the I-th on, counted over all splits whatever is there already, so
            that a part is the same row blocks whenever it is run.
        thumbnails: wanted of every split, None for none.
    """
    first, step = part
    row_blocks = [(split, block) for split, n in rows.items() for block in range(-(-min(n, limit or n) // header.row_block))]
    by_crop = {split: _by_crop(keys_of(split, keys), thumbnails) for split in rows}
    wanted = [
        Work(split, block, block_range(rows[split], header.row_block, block), _by_step(own), crop, None if crop else thumbnails)
        for split, block in row_blocks[first::step]
        for crop, own in by_crop[split].items()
    ]
    left = [item for item in (_missing(store, work) for work in wanted) if item.units]
    n_bytes, files, arrays = _written(left, header, rows)
    units = sum(work.units for work in wanted)
    return Plan(
        work=left,
        forwards=sum(item.forwards for item in left),
        gflop=sum(_gflop(item, header) for item in left),
        arrays=arrays,
        bytes=n_bytes,
        files=files,
        done=units - sum(item.units for item in left),
        units=units,
    )


def _gflop(item: Work, header: StoreHeader) -> float:
    """GFLOP of a piece of work, padding of short batches included."""
    gflop = {block.number: block.gflop for block in header.blocks}
    padded = -(-len(item.rows) // header.batch_size) * header.batch_size
    deepest: dict[tuple[int | None, int], int] = {}
    for step, keys in item.keys.items():
        for key in keys:
            deepest[step, key.draw] = max(key.block, deepest.get((step, key.draw), 0))
    return sum(padded * gflop[block] for block in deepest.values())


def _written(work: Sequence[Work], header: StoreHeader, rows: Mapping[str, int]) -> tuple[int, int, int]:
    """(bytes, files, arrays) that will be written: shards, a commit a unit, a document an array."""
    n_bytes = files = 0
    arrays: set[tuple[str, str]] = set()
    for item in work:
        written: list[ArrayKey] = [key for keys in item.keys.values() for key in keys]
        written += [] if item.thumbnails is None else [item.thumbnails]
        for key in written:
            layout = header.layout(key, rows[item.split])
            shards = layout.shards_of(item.row_block)
            n_bytes += sum(shard_file_bytes(layout, shard) for shard in shards)
            files += len(shards)
            arrays.add((item.split, key.path))
    documents = len(arrays) + sum(item.units for item in work)
    return n_bytes + documents * _DOCUMENT_BYTES, files + documents, len(arrays)


def still_missing(store: FeatureStore, work: Work) -> Work:
    """What is missing of a row block now, when other writers may have committed some of it."""
    store.refresh()
    return _missing(store, work)


def describe_plan(
    plan: Plan, header: StoreHeader, keys: Sequence[FeatureKey], free_bytes: int | None, thumbnails: ThumbnailKey | None = None
) -> list[str]:
    """The plan in words. ``free_bytes``: of the storage, None where there is no limit to know of."""
    free = "a bucket" if free_bytes is None else f"{human_bytes(free_bytes)} free"
    free += ", too little" if free_bytes is not None and free_bytes < plan.bytes else ""
    numbers = {block.number: block for block in header.blocks}
    deepest = numbers[max(key.block for key in keys)] if keys else None
    settings = (
        "none"
        if deepest is None
        else (
            f"{len(keys)} a split, deepest block {deepest.number}: {deepest.gflop:.4g} GFLOP an image, "
            f"{deepest.share:.1%} of the full forward pass"
        )
    )
    pictures = f", {plan.thumbnails} thumbnails" if thumbnails is not None else ""
    return [
        f"settings    {settings}" + ("" if thumbnails is None else f"; {thumbnails}"),
        f"there       {plan.done} of {plan.units} units (row block of {header.row_block} rows x timestep"
        + (")" if thumbnails is None else ", or its thumbnails)"),
        f"to compute  {plan.images} images, {plan.forwards} forward passes in batches of {header.batch_size}, "
        f"{human_tflop(plan.gflop)}{pictures}",
        f"to write    {plan.arrays} arrays, {human_bytes(plan.bytes)} in {plan.files} files ({free})",
    ]


def human_tflop(gflop: float) -> str:
    """GFLOP as TFLOP, never with an exponent: people divide it by what their GPUs achieve."""
    tflop = gflop / 1000
    return f"{tflop:,.0f} TFLOP" if tflop >= 1000 else f"{tflop:.4g} TFLOP"


def keys_of(split: str, keys: Sequence[FeatureKey]) -> list[FeatureKey]:
    """The settings that a split gets: training crops are for the rows that probes train on."""
    return [key for key in keys if key.crop == 0 or split in _TRAINING]


def _by_crop(keys: Sequence[FeatureKey], thumbnails: ThumbnailKey | None) -> dict[int, list[FeatureKey]]:
    crops = {key.crop for key in keys} | ({0} if thumbnails is not None else set())
    return {crop: [key for key in keys if key.crop == crop] for crop in sorted(crops)}


def _by_step(keys: Iterable[FeatureKey]) -> _ByStep:
    by_step: _ByStep = {}
    for key in sorted(keys, key=lambda key: -1 if key.timestep is None else key.timestep):
        by_step.setdefault(key.timestep, []).append(key)
    return by_step


def _missing(store: FeatureStore | None, work: Work) -> Work:
    """What of some work is not committed."""
    if store is None:
        return work

    def lacks(key: ArrayKey) -> bool:
        return work.row_block not in store.journal.row_blocks(work.split, key)

    keys = _by_step(key for step_keys in work.keys.values() for key in step_keys if lacks(key))
    return replace(work, keys=keys, thumbnails=work.thumbnails if work.thumbnails and lacks(work.thumbnails) else None)
