"""Reading everything that is committed, and naming what is damaged."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np

from .errors import CorruptStore
from .feature_store import FeatureStore
from .key import FeatureKey
from .layout import JOURNAL, ROOT
from .shard import DamagedShard, read_shard

_READERS = 4


@dataclass(frozen=True)
class Damage:
    """A row block that cannot be read as it was committed, or the table of rows (``key`` is then None)."""

    split: str
    key: FeatureKey | None
    row_block: int | None
    reason: str

    def __str__(self) -> str:
        """One line for people."""
        where = f"row block {self.row_block}, {self.key}" if self.key else "rows"
        return f"{self.split}: {where}: {self.reason}"


def committed_shards(store: FeatureStore) -> list[tuple[str, FeatureKey, int, int]]:
    """(split, setting, row block, shard) of everything that is committed."""
    return [
        (split, key, block, shard)
        for split in store.splits
        for key in store.keys(split)
        for block in sorted(store.journal.row_blocks(split, key))
        for shard in store.layout(key, split).shards_of(block)
    ]


def verify(store: FeatureStore, progress: Callable[[int], object] = lambda _: None) -> Iterator[Damage]:
    """Read every committed chunk and every table of rows; yield what is damaged or missing.

    Memory holds a few shards. ``progress`` is called with the number of shards done since the last call.
    """
    for split in sorted(set(store.storage.folders(JOURNAL)) - set(store.splits)):
        yield Damage(split, None, None, f"it has commits, but {split}/{ROOT} does not say so")
    for split in store.splits:
        try:
            store.rows(split)
        except CorruptStore as error:
            yield Damage(split, None, None, str(error))

    def check(item: tuple[str, FeatureKey, int, int]) -> Damage | None:
        split, key, block, shard = item
        layout = store.layout(key, split)
        name = layout.shard_name(f"{split}/features/{key.path}", shard)
        try:
            rows = range(len(layout.shard_range(shard)))
            values = np.empty((len(rows), *layout.row_shape), dtype=layout.dtype)
            read_shard(store.storage, name, layout, shard, rows, values, store.committed(key, split, shard))
        except (DamagedShard, OSError) as error:
            return Damage(split, key, block, f"{error} ({name})")
        return None

    items = committed_shards(store)
    with ThreadPoolExecutor(_READERS) as pool:
        for start in range(0, len(items), 1024):
            part = items[start : start + 1024]
            yield from (damage for damage in pool.map(check, part) if damage is not None)
            progress(len(part))
