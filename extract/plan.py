"""What is left to compute, and what it costs, before anything is computed. No torch here."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from ..store import FeatureKey, FeatureStore, StoreHeader
from ..store.describe import human_bytes
from ..store.layout import block_range
from ..store.shard import shard_file_bytes
from .sources import ALL

_TRAINING = ("train", ALL)
_DOCUMENT_BYTES = 2048  # of a zarr.json, and about that of a commit
_ByStep = dict[int | None, list[FeatureKey]]


@dataclass(frozen=True)
class Work:
    """What is missing of one crop of one row block: settings by timestep, None for an encoder without."""

    split: str
    row_block: int
    rows: range
    keys: Mapping[int | None, Sequence[FeatureKey]]
    crop: int = 0

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
        done, units: (row block, timestep) pairs that are there, and in all; of each crop.
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


def make_plan(
    header: StoreHeader,
    rows: Mapping[str, int],
    keys: Sequence[FeatureKey],
    limit: int | None,
    store: FeatureStore | None,
    part: tuple[int, int] = (0, 1),
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
    """
    first, step = part
    row_blocks = [(split, block) for split, n in rows.items() for block in range(-(-min(n, limit or n) // header.row_block))]
    by_crop = {split: _by_crop(keys_of(split, keys)) for split in rows}
    work = [
        Work(split, block, block_range(rows[split], header.row_block, block), _missing(store, split, block, own), crop)
        for split, block in row_blocks[first::step]
        for crop, own in by_crop[split].items()
    ]
    steps = {key.timestep for key in keys}
    left = [item for item in work if item.keys]
    n_bytes, files, arrays = _written(left, header, rows)
    done = len(work) * len(steps) - sum(len(item.keys) for item in left)
    return Plan(
        work=left,
        forwards=sum(item.forwards for item in left),
        gflop=sum(_gflop(item, header) for item in left),
        arrays=arrays,
        bytes=n_bytes,
        files=files,
        done=done,
        units=len(work) * len(steps),
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
        for key in (key for keys in item.keys.values() for key in keys):
            layout = header.layout(key, rows[item.split])
            shards = layout.shards_of(item.row_block)
            n_bytes += sum(shard_file_bytes(layout, shard) for shard in shards)
            files += len(shards)
            arrays.add((item.split, key.path))
    documents = len(arrays) + sum(len(item.keys) for item in work)
    return n_bytes + documents * _DOCUMENT_BYTES, files + documents, len(arrays)


def still_missing(store: FeatureStore, work: Work) -> Work:
    """What is missing of a row block now, when other writers may have committed some of it."""
    store.refresh()
    keys = [key for step_keys in work.keys.values() for key in step_keys]
    return replace(work, keys=_missing(store, work.split, work.row_block, keys))


def describe_plan(plan: Plan, header: StoreHeader, keys: Sequence[FeatureKey], free_bytes: int | None) -> list[str]:
    """The plan in words. ``free_bytes``: of the storage, None where there is no limit to know of."""
    free = "a bucket" if free_bytes is None else f"{human_bytes(free_bytes)} free"
    free += ", too little" if free_bytes is not None and free_bytes < plan.bytes else ""
    deepest = max(keys, key=lambda key: key.block).block
    block = next(block for block in header.blocks if block.number == deepest)
    return [
        f"settings    {len(keys)} a split, deepest block {deepest}: {block.gflop:.4g} GFLOP an image, "
        f"{block.share:.1%} of the full forward pass",
        f"there       {plan.done} of {plan.units} units (row block of {header.row_block} rows x timestep)",
        f"to compute  {plan.images} images, {plan.forwards} forward passes in batches of {header.batch_size}, "
        f"{human_tflop(plan.gflop)}",
        f"to write    {plan.arrays} arrays, {human_bytes(plan.bytes)} in {plan.files} files ({free})",
    ]


def human_tflop(gflop: float) -> str:
    """GFLOP as TFLOP, never with an exponent: people divide it by what their GPUs achieve."""
    tflop = gflop / 1000
    return f"{tflop:,.0f} TFLOP" if tflop >= 1000 else f"{tflop:.4g} TFLOP"


def keys_of(split: str, keys: Sequence[FeatureKey]) -> list[FeatureKey]:
    """The settings that a split gets: training crops are for the rows that probes train on."""
    return [key for key in keys if key.crop == 0 or split in _TRAINING]


def _by_crop(keys: Sequence[FeatureKey]) -> dict[int, list[FeatureKey]]:
    return {crop: [key for key in keys if key.crop == crop] for crop in sorted({key.crop for key in keys})}


def _missing(store: FeatureStore | None, split: str, row_block: int, keys: Sequence[FeatureKey]) -> _ByStep:
    by_step: _ByStep = {}
    for key in sorted(keys, key=lambda key: -1 if key.timestep is None else key.timestep):
        if store is None or row_block not in store.journal.row_blocks(split, key):
            by_step.setdefault(key.timestep, []).append(key)
    return by_step
