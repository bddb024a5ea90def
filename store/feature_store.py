"""FeatureStore: the features of one data set under one backbone, on disk. See ``docs/store-format.md``."""

from __future__ import annotations

import contextlib
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from .advice import completing, with_thumbnails
from .contract import Storage
from .errors import CorruptStore, IncompleteFeatures, UnknownFeatures
from .header import RESTORE, StoreHeader, own_attributes, read_document, read_header
from .identity import Identity
from .journal import Journal
from .key import ArrayKey, FeatureKey, ThumbnailKey, grids
from .layout import JOURNAL, ROOT, ArrayLayout, block_range
from .location import open_storage
from .rows import NO_LABEL, RowTable, ids_digest
from .selection import format_numbers
from .shard import DamagedShard, read_shard

if TYPE_CHECKING:
    import dask.array

_READERS = 4


@dataclass(frozen=True)
class Batch:
    """Consecutive rows of some settings, aligned.

    Attributes:
        rows: (n,) int64 row numbers in the split; rows left out are not among them.
        labels: (n,) int32.
        features: per setting, (n, C, p, p) as stored.
    """

    rows: NDArray[np.int64]
    labels: NDArray[np.int32]
    features: list[NDArray[Any]]


class FeatureStore:
    """An existing store. Open one with :meth:`open`; ``diffssl.store.create`` makes one.

    Readers never return rows that are not committed or whose checksums are wrong.

    Attributes:
        storage: where its files are.
        header: what was fixed when it was created.
        journal: its commits.
        unreadable: documents of splits and commits that a tolerant store passed over -> what is wrong with them.
    """

    def __init__(self, storage: Storage, header: StoreHeader, tolerant: bool = False) -> None:
        self.storage = storage
        self.header = header
        self.unreadable: dict[str, CorruptStore] = {}
        self.journal = Journal(storage, self.unreadable if tolerant else None)
        self._tolerant = tolerant
        self._labels: dict[str, NDArray[np.int32]] = {}
        self._splits: dict[str, tuple[str, int]] = {}
        self.refresh()

    @classmethod
    def open(cls, path: Path | str, *, tolerant: bool = False) -> FeatureStore:
        """Open a store.

        Args:
            path: a folder, or a string ``s3://bucket/prefix``, ``gs://…`` or ``az://…``.
            tolerant: pass over documents of splits and commits that cannot be read, and list them in :attr:`unreadable`;
                for what looks after a store.

        Raises:
            StoreNotFound: there is none at ``path``.
            UnsupportedFormat: a newer diffssl wrote it.
            CorruptStore: its documents cannot be read.
            StoreError: object storage refuses, or does not answer.
        """
        storage = open_storage(path)
        return cls(storage, read_header(storage), tolerant)

    def refresh(self) -> None:
        """See what was committed since the store was opened, by any process."""
        for name in self.storage.folders(""):
            if name != JOURNAL and name not in self._splits and self.storage.exists(f"{name}/{ROOT}"):
                try:
                    self._add_split(name)
                except CorruptStore as error:
                    if not self._tolerant:
                        raise
                    self.unreadable[f"{name}/{ROOT}"] = error
        self.journal.refresh(self._splits)

    @property
    def path(self) -> str:
        """Where the store is."""
        return str(self.storage)

    @property
    def identity(self) -> Identity:
        """What a feature vector of this store means."""
        return self.header.identity

    @property
    def feature_id(self) -> str:
        """Digest of :attr:`identity`."""
        return self.header.identity.feature_id

    @property
    def classes(self) -> list[str]:
        """Class names; a label is an index into them."""
        return list(self.header.classes)

    @property
    def splits(self) -> list[str]:
        """Names of the splits."""
        return sorted(self._splits)

    def data_id(self, split: str) -> str:
        """Digest of a split's ids in row order."""
        return self._split(split)[0]

    def n_rows(self, split: str) -> int:
        """Rows of a split, committed or not."""
        return self._split(split)[1]

    def keys(self, split: str) -> list[FeatureKey]:
        """Settings of a split, sorted; those with at least one committed row block."""
        self._split(split)
        return self.journal.keys(split)

    def arrays(self, split: str) -> list[FeatureKey]:
        """Settings of a split whose arrays were created, with commits or not, sorted."""
        there = [key for key in self.folders(split) if self.storage.exists(f"{split}/features/{key.path}/{ROOT}")]
        return sorted({*there, *self.keys(split)}, key=lambda key: key.order)

    def folders(self, split: str) -> list[FeatureKey]:
        """Settings of a split that have a folder, whatever is in it, sorted."""
        top = f"{split}/features"
        keys = []
        for block in self.storage.folders(top):
            for pool in self.storage.folders(f"{top}/{block}"):
                for step in self.storage.folders(f"{top}/{block}/{pool}"):
                    with contextlib.suppress(ValueError):  # a folder of somebody else
                        keys.append(FeatureKey.from_path(f"{block}/{pool}/{step}"))
        return sorted(keys, key=lambda key: key.order)

    def thumbnail(self, split: str) -> ThumbnailKey | None:
        """The thumbnails of a split, with commits or not; None if there are none, or their document says no size."""
        committed = self.journal.thumbnail(split)
        if committed is None:
            with contextlib.suppress(CorruptStore, KeyError, IndexError, TypeError, ValueError):
                return ThumbnailKey(read_document(self.storage, f"{split}/{ThumbnailKey.array}/{ROOT}")["shape"][1])
        return committed

    def labels(self, split: str) -> NDArray[np.int32]:
        """(n,) int32 labels of a split in row order, -1 for none. Raises ``CorruptStore``."""
        if split not in self._labels:
            labels = self._row_array(split, "label").astype(np.int32)
            if (labels < NO_LABEL).any():
                raise CorruptStore(self.path, f"{split}/rows/label lacks data; {RESTORE}")
            labels.flags.writeable = False  # the one copy that all readers share
            self._labels[split] = labels
        return self._labels[split]

    def ids(self, split: str) -> NDArray[np.object_]:
        """(n,) sample ids of a split in row order, checked against ``data_id``. Raises ``CorruptStore``."""
        ids = self._row_array(split, "id").astype(object)
        if ids_digest(ids) != self.data_id(split):
            raise CorruptStore(self.path, f"{split}/rows/id does not have the digest of the split; {RESTORE}")
        return ids

    def rows(self, split: str) -> RowTable:
        """Ids, labels and left-out rows of a split; a row is left out if it is in any setting."""
        left_out = {row: bad for key in self.keys(split) for row, bad in self.journal.left_out(split, key).items()}
        return RowTable(self.ids(split), self.labels(split), dict(sorted(left_out.items())))

    def layout(self, key: ArrayKey, split: str) -> ArrayLayout:
        """Shape, dtype and chunking of an array, whether it exists or not."""
        if isinstance(key, FeatureKey) and all(block.number != key.block for block in self.header.blocks):
            known = format_numbers([block.number for block in self.header.blocks])
            raise UnknownFeatures(self.path, f"the backbone has no block {key.block}; its blocks are {known}")
        return self.header.layout(key, self.n_rows(split))

    def wanted_rows(self, keys: Sequence[ArrayKey], split: str) -> int:
        """The first so many rows of a split that the runs which wrote these settings were asked for.

        All rows, unless every run had a ``--limit``. Over several settings, the smallest.
        """
        total = self.n_rows(split)
        limits = [self.journal.wanted(split, key) for key in keys]
        return min([total, *(limit for limit in limits if limit is not None)])

    def missing(self, keys: Sequence[ArrayKey], split: str, rows: int | None = None) -> list[int]:
        """Row blocks of the first ``rows`` rows (default: all) that are not committed for every one of ``keys``."""
        stop = self.n_rows(split) if rows is None else min(rows, self.n_rows(split))
        committed = [self.journal.row_blocks(split, key) for key in keys]
        n_blocks = -(-stop // self.header.row_block)
        return [block for block in range(n_blocks) if any(block not in blocks for blocks in committed)]

    def require(self, keys: Sequence[ArrayKey], split: str, rows: range) -> None:
        """Raise unless the rows are committed for all settings.

        Raises:
            UnknownFeatures: a setting is not in the store.
            IncompleteFeatures: some of its rows are not.
        """
        for key in keys:
            if not self.journal.row_blocks(split, key):
                names = "; ".join(grids(self.keys(split))) or "none yet"
                raise UnknownFeatures(self.path, f"{split} has no features of {key}; it has: {names}")
        size = self.header.row_block
        for key in keys:
            blocks = self.journal.row_blocks(split, key)
            absent = [b for b in range(rows.start // size, -(-rows.stop // size)) if b not in blocks]
            if absent and len(rows):
                raise IncompleteFeatures(self.path, self._incomplete(key, split, rows, absent))

    def read(self, key: ArrayKey, split: str, rows: slice = slice(None)) -> NDArray[Any]:
        """Read features, or, as :meth:`thumbnails` does, thumbnails.

        Args:
            key: setting.
            split: name of the split.
            rows: consecutive rows; all that the extraction was asked for by default.

        Returns:
            (n, C, p, p) as stored (float16 or float32). Rows that were left out are NaN; :meth:`rows` lists them.

        Raises:
            UnknownFeatures, IncompleteFeatures: see :meth:`require`.
            CorruptStore: committed data is damaged, missing or NaN.
        """
        self._split(split)
        wanted = self._range([key], split, rows)
        self.require([key], split, wanted)
        layout = self.layout(key, split)
        out = np.empty((len(wanted), *layout.row_shape), dtype=layout.dtype)
        if not len(wanted):
            return out
        shards = range(wanted.start // layout.shard_rows, -(-wanted.stop // layout.shard_rows))

        def read_one(shard: int) -> None:
            whole = layout.shard_range(shard)
            start, stop = max(wanted.start, whole.start), min(wanted.stop, whole.stop)
            self._read_part(key, split, layout, range(start, stop), out[start - wanted.start : stop - wanted.start])

        if len(shards) == 1:
            read_one(shards[0])
        else:
            with ThreadPoolExecutor(_READERS) as pool:
                list(pool.map(read_one, shards))
        return out

    def thumbnails(self, split: str, rows: slice = slice(None)) -> NDArray[np.uint8]:
        """Small pictures of the images: what the backbone saw at crop 0, made smaller.

        Args:
            split: name of the split.
            rows: consecutive rows; all that the extraction was asked for by default.

        Returns:
            (n, N, N, 3) uint8 RGB; black where an image could not be decoded.

        Raises:
            UnknownFeatures: there are none; with the command that makes them.
            IncompleteFeatures, CorruptStore: as :meth:`read`.
        """
        self._split(split)
        key = self.journal.thumbnail(split)
        if key is None:
            commands = (self.journal.command(split, own) for own in reversed(self.keys(split)))
            command = with_thumbnails(self.path, next(filter(None, commands), None))
            raise UnknownFeatures(self.path, f"{split} has no thumbnails of its images. Make them with:\n  {command}")
        return self.read(key, split, rows)

    def xy(self, key: FeatureKey, split: str) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
        """Features and labels for a notebook or scikit-learn.

        Returns:
            (n, C*p*p) float32 and (n,) int64, without the rows that were left out or have no label.
        """
        features = self.read(key, split)
        labels = self.labels(split)[: len(features)]
        keep = labels != NO_LABEL
        keep[[row for row in self.journal.left_out(split, key) if row < len(keep)]] = False
        n_features = int(np.prod(features.shape[1:]))
        return features[keep].reshape(-1, n_features).astype(np.float32), labels[keep].astype(np.int64)

    def stream(self, keys: Sequence[FeatureKey], split: str, rows: slice = slice(None)) -> Iterator[Batch]:
        """Read several settings side by side, a row block at a time, the next one while this one is used.

        Memory holds two row blocks of the settings, however many rows there are. Rows left out of any of the settings
        are left out of all. Raises as :meth:`read`.
        """
        wanted = self._range(keys, split, rows)
        self.require(keys, split, wanted)
        size = self.header.row_block
        blocks = range(wanted.start // size, -(-wanted.stop // size)) if len(wanted) else range(0)
        ahead: deque[Future[Batch]] = deque()
        with ThreadPoolExecutor(1) as pool:
            for block in blocks:
                ahead.append(pool.submit(self.read_batch, keys, split, block, wanted))
                if len(ahead) > 1:
                    yield ahead.popleft().result()
            while ahead:
                yield ahead.popleft().result()

    def read_batch(self, keys: Sequence[FeatureKey], split: str, row_block: int, rows: range) -> Batch:
        """Read the part of a row block that lies in ``rows``, aligned over settings. Raises as :meth:`read`."""
        block = block_range(self.n_rows(split), self.header.row_block, row_block)
        start, stop = max(block.start, rows.start), min(block.stop, rows.stop)
        features = [self.read(key, split, slice(start, stop)) for key in keys]
        bad = {row for key in keys for row in self.journal.left_out(split, key)}
        numbers = np.arange(start, stop)
        if not bad.isdisjoint(range(start, stop)):
            keep = ~np.isin(numbers, sorted(bad))
            numbers, features = numbers[keep], [values[keep] for values in features]
        return Batch(numbers, self.labels(split)[numbers], features)

    def lazy(self, key: FeatureKey, split: str) -> dask.array.Array:
        """The array of :meth:`read` for Dask, its chunks whole shards, read with the same checks."""
        import dask.array

        n_rows = self.wanted_rows([key], split)
        self.require([key], split, range(n_rows))
        layout = self.layout(key, split)
        source = _Lazy(self, key, split, (n_rows, *layout.row_shape), layout.dtype)
        chunks = (layout.shard_rows, *layout.row_shape)
        array: dask.array.Array = dask.array.from_array(  # type: ignore[no-untyped-call]
            source, chunks=chunks, asarray=False, lock=False, name=False
        )
        return array

    def _read_part(self, key: ArrayKey, split: str, layout: ArrayLayout, rows: range, out: NDArray[Any]) -> None:
        """Read rows of one shard; after a mismatch look once for a commit made meanwhile."""
        shard = rows.start // layout.shard_rows
        start = shard * layout.shard_rows
        name = layout.shard_name(f"{split}/{key.array}", shard)
        within = range(rows.start - start, rows.stop - start)
        try:
            read_shard(self.storage, name, layout, shard, within, out, self.committed(key, split, shard))
        except DamagedShard:
            self.journal.refresh(self._splits)
            try:
                read_shard(self.storage, name, layout, shard, within, out, self.committed(key, split, shard))
            except DamagedShard as error:
                block = rows.start // self.header.row_block
                raise CorruptStore(self.path, f"row block {block} of {split}, {key}: {error} ({name}); {RESTORE}") from None

    def committed(self, key: ArrayKey, split: str, shard: int) -> set[str]:
        """Checksums that a shard may have by the journal; none if its row block is not committed. Raises ``CorruptStore``."""
        layout = self.layout(key, split)
        block = shard * layout.shard_rows // layout.row_block
        shards = self.journal.row_blocks(split, key).get(block)
        numbers = layout.shards_of(block)
        if shards is not None and len(shards) != len(numbers):
            what = f"commits of row block {block} of {split}, {key}, name {len(shards)} shards instead of {len(numbers)}"
            raise CorruptStore(self.path, f"{what}; {RESTORE}")
        return set() if shards is None else shards[shard - numbers.start]

    def _range(self, keys: Sequence[ArrayKey], split: str, rows: slice) -> range:
        if rows.step not in (None, 1):
            raise ValueError(f"rows must be consecutive, got a step of {rows.step}")
        if rows == slice(None):
            return range(self.wanted_rows(keys, split))
        return range(*rows.indices(self.n_rows(split)))

    def _add_split(self, name: str) -> None:
        attributes = own_attributes(self.storage, f"{name}/{ROOT}")
        if attributes is not None:
            try:
                self._splits[name] = (attributes["data_id"], attributes["rows"])
            except KeyError as error:
                raise CorruptStore(self.path, f"{name}/{ROOT} is damaged ({error!r}); {RESTORE}") from error

    def _split(self, split: str) -> tuple[str, int]:
        if split not in self._splits:
            known = ", ".join(self.splits) or "none yet"
            raise UnknownFeatures(self.path, f"there is no split {split!r}; the store has: {known}")
        return self._splits[split]

    def column(self, split: str, name: str) -> NDArray[Any]:
        """(n,) values of ``rows/<name>`` as they are on disk, whether there is such a split or not. Raises ``CorruptStore``."""
        try:
            values = self.storage.read_array(f"{split}/rows/{name}")
        except (ValueError, KeyError, TypeError, AttributeError, OSError, RuntimeError) as error:
            raise CorruptStore(self.path, f"{split}/rows/{name} cannot be read ({error}); {RESTORE}") from error
        return values

    def _row_array(self, split: str, name: str) -> NDArray[Any]:
        n_rows = self.n_rows(split)
        values = self.column(split, name)
        if values.shape != (n_rows,):
            raise CorruptStore(self.path, f"{split}/rows/{name} has shape {values.shape}, expected ({n_rows},)")
        return values

    def _incomplete(self, key: ArrayKey, split: str, rows: range, absent: Sequence[int]) -> str:
        size = self.header.row_block
        count = sum(min((block + 1) * size, rows.stop) - max(block * size, rows.start) for block in absent)
        first = absent[0] * size
        beyond_limit = rows.stop > self.wanted_rows([key], split)
        command = completing(self.path, self.journal.command(split, key), beyond_limit=beyond_limit)
        text = f"{count} of {len(rows)} rows of {split}, {key}, are not committed yet. Complete them with:\n  {command}"
        alone = f"\nor ask for the committed rows alone: the first {first} (--limit {first}, rows=slice({first}))"
        return text + (alone if first else "")


@dataclass(frozen=True)
class _Lazy:
    """What dask.array.from_array needs of an array."""

    store: FeatureStore
    key: FeatureKey
    split: str
    shape: tuple[int, ...]
    dtype: np.dtype[Any]

    @property
    def ndim(self) -> int:
        return len(self.shape)

    def __getitem__(self, index: tuple[Any, ...]) -> NDArray[Any]:
        # dask merges what is done to the array into the index: numbers, steps and lists of rows arrive here
        rows, *rest = index
        numbers = np.arange(self.shape[0])[rows]
        first = int(numbers.min(initial=self.shape[0]))
        values = self.store.read(self.key, self.split, slice(first, int(numbers.max(initial=first - 1)) + 1))
        values = values[numbers - first]
        part: NDArray[Any] = values[tuple(rest)] if numbers.ndim == 0 else values[(slice(None), *rest)]
        return part


def common_keys(store: FeatureStore, splits: Iterable[str]) -> list[FeatureKey]:
    """Settings that every one of the splits has, sorted."""
    lists = [store.keys(split) for split in splits]
    return [key for key in lists[0] if all(key in keys for keys in lists[1:])] if lists else []
