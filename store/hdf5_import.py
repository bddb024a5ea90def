"""Making a store of a file that ``hdf5.py`` wrote, or extending one by what it lacks."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from .create import add_arrays, add_split, add_thumbnails, check_header, check_split, check_thumbnails, create
from .describe import human_bytes
from .errors import CorruptStore, StorageFull, StoreError, StoreNotFound, UnsupportedFormat
from .feature_store import FeatureStore
from .forget import record_limit
from .hdf5 import EXPORT, EXPORT_FORMAT
from .header import StoreHeader, parse_header
from .journal import Commit, larger
from .key import ArrayKey, FeatureKey, ThumbnailKey, array_key
from .layout import JOURNAL, ArrayLayout, block_range
from .progress import progress_bar
from .rows import NO_LABEL, ids_digest
from .shard import encode_shard, shard_file_bytes
from .writer import UnitWriter

_AGAIN = "copy or export it again"


@dataclass(frozen=True)
class ExportedSplit:
    """What a file says of one split.

    Attributes:
        ids: (n,) sample ids in row order.
        labels: (n,) int32.
        commits: of the exported arrays.
    """

    ids: NDArray[np.object_]
    labels: NDArray[np.int32]
    commits: Sequence[Commit]

    @property
    def arrays(self) -> list[ArrayKey]:
        """Settings in the file, sorted, then thumbnails."""
        found = {array_key(path) for commit in self.commits for path in commit.arrays}
        settings = sorted((key for key in found if isinstance(key, FeatureKey)), key=lambda key: key.order)
        return [*settings, *(key for key in found if isinstance(key, ThumbnailKey))]

    @property
    def keys(self) -> list[FeatureKey]:
        """Settings in the file, sorted."""
        return [key for key in self.arrays if isinstance(key, FeatureKey)]

    @property
    def thumbnail(self) -> ThumbnailKey | None:
        """Thumbnails in the file, if there are any."""
        return next((key for key in self.arrays if isinstance(key, ThumbnailKey)), None)

    def wanted(self, key: ArrayKey) -> int | None:
        """The first so many rows of a setting that were asked for; None for all."""
        limit: int | None = 0
        for commit in self.commits:
            limit = larger(limit, commit.limit) if key.path in commit.arrays else limit
        return limit


class ExportedFile:
    """A file that ``export_hdf5`` wrote, open for reading. What cannot be read is a ``CorruptStore``."""

    def __init__(self, path: Path, file: h5py.File) -> None:
        self.path = path
        self._file = file
        with self._reading("the root"):
            number = file.attrs.get(EXPORT)
            text = file.attrs.get("diffssl")
        if number is None or text is None:
            raise StoreError(path, "this HDF5 file was not written by 'diffssl-store export'")
        if number > EXPORT_FORMAT:
            raise UnsupportedFormat(path, f"the file has format {number}, this diffssl reads {EXPORT_FORMAT}; upgrade diffssl")
        with self._reading("the root"):
            self.header: StoreHeader = parse_header(str(path), json.loads(text))
            self.splits = {name: self._split(name) for name in file if name != JOURNAL}

    def attributes(self, split: str, key: FeatureKey) -> dict[str, Any]:
        """Attributes of an array, as the store had them."""
        with self._reading(f"{split}/{key.array}"):
            attributes: dict[str, Any] = json.loads(self._file[f"{split}/{key.array}"].attrs["diffssl"])
            return attributes

    def check_array(self, split: str, key: ArrayKey, layout: ArrayLayout) -> None:
        """Raise ``CorruptStore`` unless an array is there, in the shape and dtype of its layout."""
        name = f"{split}/{key.array}"
        with self._reading(name):
            found = self._file[name].shape, self._file[name].dtype
        wanted = (layout.rows, *layout.row_shape), layout.dtype
        if found != wanted:
            raise CorruptStore(self.path, f"{name} is {found[1]} {found[0]}, expected {wanted[1]} {wanted[0]}; {_AGAIN}")

    def values(self, split: str, key: ArrayKey, rows: range) -> NDArray[Any]:
        """(n, C, p, p) features, or (n, N, N, 3) thumbnails, of consecutive rows."""
        with self._reading(f"rows {rows.start} to {rows.stop - 1} of {split}, {key},"):
            values: NDArray[Any] = self._file[f"{split}/{key.array}"][rows.start : rows.stop]
            return values

    def _split(self, name: str) -> ExportedSplit:
        group = self._file[name]
        own = json.loads(group.attrs["diffssl"])
        names = [
            raw.decode() for start in range(0, own["rows"], 1 << 16) for raw in group["rows/id"][start : start + (1 << 16)]
        ]
        ids: NDArray[np.object_] = np.array(names, dtype=object)
        labels = group["rows/label"][:].astype(np.int32)
        if (len(ids), ids_digest(ids)) != (own["rows"], own["data_id"]):
            raise CorruptStore(self.path, f"{name}/rows/id does not have the digest of the split; {_AGAIN}")
        if labels.shape != ids.shape or not ((labels >= NO_LABEL) & (labels < len(self.header.classes))).all():
            raise CorruptStore(self.path, f"{name}/rows/label has labels that no class has, or too few; {_AGAIN}")
        lines = self._file[f"{JOURNAL}/{name}"][:].tobytes().splitlines()
        commits = [Commit.from_json(json.loads(line)) for line in lines]
        if any(commit.split != name for commit in commits):
            raise CorruptStore(self.path, f"{JOURNAL}/{name} has commits of another split; {_AGAIN}")
        return ExportedSplit(ids, labels, commits)

    @contextlib.contextmanager
    def _reading(self, what: str) -> Iterator[None]:
        try:
            yield
        except (OSError, KeyError, ValueError, TypeError, AttributeError, RuntimeError) as error:
            raise CorruptStore(self.path, f"{what} cannot be read ({error}); {_AGAIN}") from error


@dataclass(frozen=True)
class _Unit:
    """One commit of the file, and which of its arrays the store lacks."""

    commit: Commit
    keys: Sequence[ArrayKey]


def import_hdf5(source: Path | str, path: Path | str, say: Callable[[str], object] = print) -> int:
    """Write the settings of a file into a store, which is made if it is not there. Memory holds two shards.

    Row block by row block, through commits: killed and run again, it goes on. What the store has is not touched.

    Args:
        source: the file.
        path: of the store.
        say: called with a line for what people should know.

    Returns:
        How many commits were written; 0 if the store had everything.

    Raises:
        StoreError: the file is not an export, or it is cut (``CorruptStore``), or newer (``UnsupportedFormat``).
        IdentityMismatch: the store belongs to something else.
        StorageFull: the disk cannot hold what the store lacks.
    """
    source = Path(source)
    with _open_hdf5(source) as file:
        units = _units(file, _existing(file, path))
        store = create(path, file.header)
        _check_space(file, store, units)
        store.storage.remove_stale()
        for name, split in file.splits.items():
            different = add_split(store, name, split.ids, split.labels)
            if different:
                say(f"{name}: {different} labels differ from the store's, which are kept (labels are not identity)")
            add_arrays(store, name, split.keys, {key: file.attributes(name, key) for key in split.keys})
            if split.thumbnail is not None:
                add_thumbnails(store, name, split.thumbnail)
        if units:
            total = sum(len(unit.commit.arrays[key.path]) for unit in units for key in unit.keys)
            with progress_bar(total, " shards", "import") as bar:
                for unit in units:
                    _write_unit(file, store, unit, bar.update)
        for name, split in file.splits.items():
            _raise_limits(store, name, split)
    return len(units)


@contextlib.contextmanager
def _open_hdf5(path: Path) -> Iterator[ExportedFile]:
    if not path.exists():
        raise StoreNotFound(path, "there is no such file")
    try:
        file = h5py.File(path, "r", locking=False)
    except OSError as error:
        raise StoreError(path, f"this is no HDF5 file that is whole ({error}); {_AGAIN}") from error
    with file:
        yield ExportedFile(path, file)


def _existing(file: ExportedFile, path: Path | str) -> FeatureStore | None:
    """The store to extend, if there is one. Raises ``IdentityMismatch``; and ``CorruptStore`` for an array of another shape."""
    for name, split in file.splits.items():
        for key in split.arrays:
            file.check_array(name, key, file.header.layout(key, len(split.ids)))
    try:
        store = FeatureStore.open(path)
    except StoreNotFound:
        return None  # or something else, which ``create`` refuses
    check_header(path, store.header, file.header)
    for name in file.splits.keys() & set(store.splits):
        check_split(store, name, file.splits[name].ids)
    for split in file.splits.values():
        if split.thumbnail is not None:
            check_thumbnails(store, split.thumbnail)
    return store


def _units(file: ExportedFile, store: FeatureStore | None) -> list[_Unit]:
    units = []
    for name, split in file.splits.items():
        committed = {key: store.journal.row_blocks(name, key) if store is not None else {} for key in split.arrays}
        for commit in split.commits:
            keys = [key for key in map(array_key, commit.arrays) if commit.row_block not in committed[key]]
            units += [_Unit(commit, keys)] if keys else []
    return units


def _check_space(file: ExportedFile, store: FeatureStore, units: Sequence[_Unit]) -> None:
    needed = 0
    for unit in units:
        for key in unit.keys:
            layout = store.header.layout(key, len(file.splits[unit.commit.split].ids))
            needed += sum(shard_file_bytes(layout, shard) for shard in layout.shards_of(unit.commit.row_block))
    free = store.storage.free_bytes()
    if free is not None and needed > free:
        raise StorageFull(
            store.path, f"{human_bytes(needed)} will be written and {human_bytes(free)} are free; use another disk"
        )


def _write_unit(file: ExportedFile, store: FeatureStore, unit: _Unit, progress: Callable[[int], object]) -> None:
    """Commit what a store lacks of a unit, if its values are those that were exported."""
    commit = unit.commit
    split, block = commit.split, commit.row_block
    ids = file.splits[split].ids
    rows = block_range(len(ids), store.header.row_block, block)
    writer = UnitWriter(store, split, block, unit.keys, ids[rows.start : rows.stop].tolist())
    for key in unit.keys:
        layout = store.layout(key, split)
        shards, checksums = layout.shards_of(block), commit.arrays[key.path]
        if len(shards) != len(checksums):
            raise CorruptStore(file.path, f"row block {block} of {split}, {key}, has {len(checksums)} checksums; {_AGAIN}")
        for shard, checksum in zip(shards, checksums, strict=True):
            values = file.values(split, key, layout.shard_range(shard))
            if encode_shard(values, layout)[1] != checksum:
                raise CorruptStore(file.path, f"row block {block} of {split}, {key}, is not as it was exported; {_AGAIN}")
            writer.write({key: values}, commit.left_out)
            progress(1)
    writer.commit(commit.limit, commit.command, commit.versions)


def _raise_limits(store: FeatureStore, name: str, split: ExportedSplit) -> None:
    """Let as many rows of an array be wanted as in the file, where the store had its row blocks with a lower limit."""
    for key in split.arrays:
        here = store.journal.wanted(name, key)
        limit = larger(here, split.wanted(key))
        if limit != here:
            record_limit(store, name, key, min(store.journal.row_blocks(name, key)), limit)
