"""UnitWriter: the rows of one unit of work, from memory to a commit."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from .errors import DiffsslError
from .feature_store import FeatureStore
from .journal import Commit
from .key import ArrayKey, FeatureKey
from .layout import block_range
from .rows import LeftOut
from .shard import encode_shard

_Key = TypeVar("_Key", bound=ArrayKey)


class NotFinite(DiffsslError):
    """A feature is NaN, or too large for the store's dtype.

    Attributes:
        key: the setting.
        sample_id: the sample.
    """

    def __init__(self, key: FeatureKey, sample_id: str, value: float, dtype: np.dtype[Any]) -> None:
        what = "NaN" if np.isnan(value) else f"{value} (beyond what {dtype} can hold)"
        advice = "; a new store with --store-dtype float32 holds it" if dtype.itemsize == 2 else ""
        if np.isnan(value):
            advice = "; the network makes it: check its weights, or compute in another --dtype, into a new store"
        super().__init__(f"the feature of sample {sample_id!r} at {key} is {what}; nothing of its row block was kept{advice}")
        self.key = key
        self.sample_id = sample_id


class UnitWriter:
    """Collects the features of one (split, row block, timestep), or the thumbnails of a row block, and commits them.

    Memory holds one shard of every setting. Rows arrive in order, once each.

    Args:
        store: with the arrays created.
        split: name of the split.
        row_block: number of the row block.
        keys: settings of one timestep; or the thumbnails alone.
        ids: ids of the row block's rows, to name a sample in an error.
    """

    def __init__(self, store: FeatureStore, split: str, row_block: int, keys: Sequence[ArrayKey], ids: Sequence[str]) -> None:
        timesteps = {key.timestep for key in keys}
        if len(timesteps) != 1:
            raise ValueError(f"a unit has the settings of one timestep, got {sorted(map(str, timesteps))}")
        if len({type(key) for key in keys}) > 1:
            raise ValueError("a unit has settings or thumbnails, got both")
        self._store = store
        self._split = split
        self._row_block = row_block
        self._timestep = timesteps.pop()
        self._ids = ids
        self._layouts = {key: store.layout(key, split) for key in keys}
        self._rows = block_range(store.n_rows(split), store.header.row_block, row_block)
        self._open: dict[ArrayKey, NDArray[Any]] = {}
        self._filled: dict[ArrayKey, int] = dict.fromkeys(keys, 0)
        self._checksums: dict[ArrayKey, list[str]] = {key: [] for key in keys}
        self._written: set[str] = set()
        self._left_out: dict[int, LeftOut] = {}
        self._failed = False

    def write(self, features: Mapping[_Key, NDArray[Any]], left_out: Mapping[int, LeftOut]) -> None:
        """Append the next rows.

        Args:
            features: per setting, (n, C, p, p) in the store's dtype; or (n, N, N, 3) uint8 thumbnails.
            left_out: row number in the split -> sample among these rows whose features mean nothing.

        Raises:
            NotFinite: a feature of another sample is NaN or infinite.
        """
        if self._failed:
            raise ValueError("a unit that failed takes no more rows; compute it anew")
        for key, values in features.items():
            self._check(key, values)
        self._left_out.update(left_out)
        self._failed = True  # until the rows are kept: a part of them must never be committed
        full = [shard for key, values in features.items() for shard in self._append(key, values)]
        self._put(full)
        self._failed = False

    def commit(self, limit: int | None, command: str | None, versions: Mapping[str, str]) -> Commit:
        """Sync what was written to disk, and commit. Arguments: see :class:`Commit`."""
        if self._failed:
            raise ValueError("a unit that failed cannot be committed; compute it anew")
        for key, filled in self._filled.items():
            if filled != len(self._rows):
                raise ValueError(f"{key}: a unit of {len(self._rows)} rows got {filled}")
        self._store.storage.sync_folders(self._written)
        commit = Commit(
            split=self._split,
            row_block=self._row_block,
            timestep=self._timestep,
            arrays={key.path: checksums for key, checksums in self._checksums.items()},
            left_out=self._left_out,
            limit=limit,
            command=command,
            versions=versions,
        )
        self._store.journal.write(commit)
        return commit

    def _check(self, key: ArrayKey, values: NDArray[Any]) -> None:
        """Refuse rows of another shape or dtype, which numpy would broadcast or round, and more rows than there are."""
        layout = self._layouts[key]
        if values.shape[1:] != layout.row_shape:
            raise ValueError(f"{key}: rows of the shape {layout.row_shape} are stored, got {values.shape[1:]}")
        if values.dtype != layout.dtype:
            raise TypeError(f"{key}: features are stored as {layout.dtype.name}, got {values.dtype}")
        filled = self._filled[key] + len(values)
        if filled > len(self._rows):
            raise ValueError(f"{key}: a unit of {len(self._rows)} rows got {filled}")

    def _append(self, key: ArrayKey, values: NDArray[Any]) -> list[tuple[ArrayKey, int, NDArray[Any]]]:
        """Copy rows into the open shard; return the shards that became full."""
        layout = self._layouts[key]
        done = 0
        full = []
        while done < len(values):
            filled = self._filled[key]
            at = filled % layout.shard_rows
            if key not in self._open:
                rows = min(layout.shard_rows, len(self._rows) - filled)
                self._open[key] = np.empty((rows, *layout.row_shape), dtype=layout.dtype)
            shard = self._open[key]
            part = values[done : done + len(shard) - at]
            place = shard[at : at + len(part)]
            np.copyto(place, part, casting="no")
            done += len(part)
            self._filled[key] += len(part)
            if at + len(part) == len(shard):
                self._guard(key, shard, self._rows.start + filled - at)
                full.append((key, layout.shards_of(self._row_block)[filled // layout.shard_rows], self._open.pop(key)))
        return full

    def _guard(self, key: ArrayKey, shard: NDArray[Any], start: int) -> None:
        """Blank the rows of a full shard that were left out; refuse any other row that is not finite."""
        bad = [row - start for row in self._left_out if start <= row < start + len(shard)]
        shard[bad] = 0
        if isinstance(key, FeatureKey) and not _all_finite(shard):
            flat = shard.reshape(len(shard), -1)
            row = int(np.flatnonzero(~np.isfinite(flat).all(axis=1))[0])
            value = float(flat[row][~np.isfinite(flat[row])][0])
            raise NotFinite(key, self._ids[start + row - self._rows.start], value, shard.dtype)
        shard[bad] = self._layouts[key].fill_value

    def _put(self, shards: Sequence[tuple[ArrayKey, int, NDArray[Any]]]) -> None:
        """Encode shards and write them."""
        files: dict[str, list[bytes | memoryview]] = {}
        for key, number, values in shards:
            layout = self._layouts[key]
            parts, checksum = encode_shard(values, layout)
            files[layout.shard_name(f"{self._split}/{key.array}", number)] = parts
            self._checksums[key].append(checksum)
        self._store.storage.replace(files)
        self._written |= files.keys()


def _all_finite(values: NDArray[Any]) -> bool:
    """``np.isfinite(values).all()``; for float16, which numpy tests one by one, by the bits of the exponent."""
    if values.dtype == np.float16:
        return bool(((values.view(np.uint16) & 0x7C00) != 0x7C00).all())
    return bool(np.isfinite(values).all())
