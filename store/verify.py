"""Reading everything that a store must have, and naming what is damaged."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np

from .documents import damaged_documents
from .errors import CorruptStore
from .feature_store import FeatureStore
from .key import ArrayKey, FeatureKey, ThumbnailKey
from .layout import JOURNAL, ROOT
from .shard import DamagedShard, read_shard

_READERS = 4


@dataclass(frozen=True)
class Damage:
    """A row block that cannot be read as it was committed, or another file that is damaged or missing.

    Attributes:
        split: name of the split; None for what belongs to none.
        key: setting or thumbnails of the row block, or of the array whose document it is; None for other files.
        row_block: number of the row block; None for other files.
        reason: what is wrong, in words.
        file: document, commit or column of the rows; None for a row block.
        failed: the storage failed: the file may be sound, but could not be read.
    """

    split: str | None
    key: ArrayKey | None
    row_block: int | None
    reason: str
    file: str | None = None
    failed: bool = False

    def __str__(self) -> str:
        """One line for people."""
        where = f"{self.split}: row block {self.row_block}, {self.key}" if self.file is None else self.file
        return f"{where}: {self.reason}"


def committed_shards(store: FeatureStore) -> list[tuple[str, ArrayKey, int, int]]:
    """(split, setting or thumbnails, row block, shard) of everything that is committed."""
    return [
        (split, key, block, shard)
        for split in store.splits
        for key in store.journal.arrays(split)
        for block in sorted(store.journal.row_blocks(split, key))
        for shard in store.layout(key, split).shards_of(block)
    ]


def verify(store: FeatureStore, progress: Callable[[int], object] = lambda _: None) -> Iterator[Damage]:
    """Read every document, every commit, every table of rows and every committed chunk; yield what is damaged or missing.

    Memory holds a few shards. Commits that cannot be read are yielded of a store that was opened as ``tolerant``; others
    do not open with them. ``progress`` is called with the number of shards done since the last call.
    """
    yield from _lost_splits(store)
    for name, error in store.unreadable.items():
        if not name.endswith(f"/{ROOT}"):
            yield Damage(name.split("/")[1], None, None, _why(error), name)
    for name, fault in damaged_documents(store):
        yield Damage(*_owner(store, name), None, str(fault), name, isinstance(fault, OSError))
    for split in store.splits:
        for column, read in (("id", store.ids), ("label", store.labels)):
            try:
                read(split)
            except CorruptStore as error:
                yield Damage(split, None, None, _why(error), f"{split}/rows/{column}", storage_failed(error))
    yield from _damaged_shards(store, progress)


def lost_splits(store: FeatureStore) -> list[str]:
    """Splits that have commits or ids, but no document that says so."""
    storage = store.storage
    names = set(storage.folders("")) | set(storage.folders(JOURNAL))
    return [
        name
        for name in sorted(names - {JOURNAL, *store.splits})
        if store.journal.names(name)
        or f"{name}/{ROOT}" in store.unreadable
        or (storage.exists(f"{name}/rows/id/{ROOT}") and not storage.exists(f"{name}/{ROOT}"))
    ]


def storage_failed(error: CorruptStore) -> bool:
    """Whether the reason of an error may be the storage and not what is on it."""
    return isinstance(error.__cause__, OSError) and not isinstance(error.__cause__, FileNotFoundError)


def _lost_splits(store: FeatureStore) -> Iterator[Damage]:
    for split in lost_splits(store):
        document = f"{split}/{ROOT}"
        if document in store.unreadable:
            reason = _why(store.unreadable[document])
        elif store.storage.exists(document):
            reason = "the document does not say that it is a split, but it has commits"
        else:
            reason = "the document is missing, and with it which samples the split has"
        yield Damage(split, None, None, reason, document)


def _damaged_shards(store: FeatureStore, progress: Callable[[int], object]) -> Iterator[Damage]:
    def check(item: tuple[str, ArrayKey, int, int]) -> Damage | None:
        split, key, block, shard = item
        layout = store.layout(key, split)
        name = layout.shard_name(f"{split}/{key.array}", shard)
        try:
            rows = range(len(layout.shard_range(shard)))
            values = np.empty((len(rows), *layout.row_shape), dtype=layout.dtype)
            read_shard(store.storage, name, layout, shard, rows, values, store.committed(key, split, shard))
        except (DamagedShard, CorruptStore, OSError) as error:
            return Damage(split, key, block, f"{error} ({name})", failed=isinstance(error, OSError))
        return None

    items = committed_shards(store)
    with ThreadPoolExecutor(_READERS) as pool:
        for start in range(0, len(items), 1024):
            part = items[start : start + 1024]
            yield from (damage for damage in pool.map(check, part) if damage is not None)
            progress(len(part))


def _owner(store: FeatureStore, document: str) -> tuple[str | None, ArrayKey | None]:
    """Split and array that a document belongs to."""
    split, _, rest = document.removesuffix(ROOT).rstrip("/").partition("/")
    if split in ("", JOURNAL):
        return None, None
    if rest.rstrip("/") == ThumbnailKey.array:
        return split, store.thumbnail(split)
    path = rest.removeprefix("features/")
    return split, FeatureKey.from_path(path) if path.count("/") == 2 else None


def _why(error: CorruptStore) -> str:
    return f"it cannot be read ({error.__cause__})" if error.__cause__ else str(error)
