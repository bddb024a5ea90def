"""One HDF5 file with settings of a store: for other programs, for archives, and to be imported again.

The tree, its names and attributes are those of the store; see ``docs/store-format.md``. There is nothing of variable
length in the file (strings have a fixed length, padded with zero bytes), because the heap that HDF5 keeps such things in
has no checksums and its readers hang or crash on damage. Everything else is covered by HDF5's own checksums.
"""

from __future__ import annotations

import json
import os
import shutil
import uuid
from bisect import bisect_left
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from .describe import human_bytes
from .errors import StorageFull, StoreError
from .feature_store import FeatureStore
from .header import read_document
from .identity import canonical_json
from .journal import Commit
from .key import ArrayKey, ThumbnailKey
from .layout import CHUNK_BYTES, JOURNAL, ROOT
from .progress import progress_bar
from .rows import LeftOut
from .shard import encode_shard, shard_file_bytes

EXPORT = "diffssl_export"  # attribute of the root: number of the format of the file
EXPORT_FORMAT = 1
README = """Features of a frozen diffusion model, exported from a diffssl feature store by 'diffssl-store export'.

/<split>/rows/id        names of the samples, one a row, UTF-8 padded with zero bytes
/<split>/rows/label     index into "classes" of the root's attribute "diffssl", -1 for none
/<split>/features/bB/pP/tT   (row, channel, y, x): output of block B pooled to P x P, at noise timestep T; _dD: noise draw D
/<split>/images/thumbnail    (row, y, x, colour): small pictures of the images, if there are any
/journal/<split>        JSON lines: which rows are there, with checksums, and which samples could not be decoded

Row i of every array is sample i. Rows that were not extracted, and samples that could not be decoded, are NaN.
Attributes named "diffssl" are JSON. 'diffssl-store import' makes a store of this file again.
"""


def export_hdf5(
    store: FeatureStore, target: Path | str, keys: Mapping[str, Sequence[ArrayKey]], *, force: bool = False
) -> None:
    """Write settings of a store to one HDF5 file, which appears whole or not at all. Memory holds one shard.

    Args:
        store: to read.
        target: the file.
        keys: split -> settings, and thumbnails; a split without either is exported with its rows.
        force: replace a file that is there.

    Raises:
        UnknownFeatures, IncompleteFeatures: a setting does not have all rows that it was asked for.
        CorruptStore: something of it is damaged.
        StorageFull: the disk cannot hold the file.
        StoreError: there is a file already, or no folder for it.
    """
    target = Path(target)
    _check_target(target, force)
    for split, own in keys.items():
        for key in own:
            store.require([key], split, range(store.wanted_rows([key], split)))
    _check_space(store, target, keys)
    temporary = target.with_name(f"{target.name}.tmp-{uuid.uuid4().hex[:8]}")
    try:
        # Version 1.10 of the format has a checksum on every piece of metadata.
        with h5py.File(temporary, "w-", libver=("v110", "v110"), locking=False) as file:
            _write_file(file, store, keys)
        _sync(temporary)
        _check_target(target, force)
        temporary.replace(target)
        _sync(target.absolute().parent)
    finally:
        temporary.unlink(missing_ok=True)


def put_text(attributes: h5py.AttributeManager, name: str, text: str) -> None:
    """Write an attribute of text, of fixed length."""
    raw = text.encode()
    attributes.create(name, np.array(raw, dtype=h5py.string_dtype("utf-8", max(1, len(raw)))))


def _check_target(target: Path, force: bool) -> None:
    if target.exists() and not force:
        raise StoreError(target, "there is a file already; choose another name, or replace it with --force")
    if not target.absolute().parent.is_dir():
        raise StoreError(target, f"there is no folder {target.parent}; make it first")


def _check_space(store: FeatureStore, target: Path, keys: Mapping[str, Sequence[ArrayKey]]) -> None:
    needed = sum(
        shard_file_bytes(store.layout(key, split), shard)
        for split, own in keys.items()
        for key in own
        for shard in _shards(store, split, key)
    )
    free = shutil.disk_usage(target.absolute().parent).free
    if needed > free:
        raise StorageFull(target, f"{human_bytes(needed)} will be written and {human_bytes(free)} are free; use another disk")


def _shards(store: FeatureStore, split: str, key: ArrayKey) -> list[int]:
    """Shards of the row blocks with the wanted rows of a setting; the last row block is exported as it was committed, whole."""
    layout = store.layout(key, split)
    blocks = range(-(-store.wanted_rows([key], split) // layout.row_block))
    return [shard for block in blocks for shard in layout.shards_of(block)]


def _write_file(file: h5py.File, store: FeatureStore, keys: Mapping[str, Sequence[ArrayKey]]) -> None:
    put_text(file.attrs, "README", README)
    put_text(file.attrs, "diffssl", json.dumps(store.header.to_json()))
    file.attrs[EXPORT] = EXPORT_FORMAT
    total = sum(len(_shards(store, split, key)) for split, own in keys.items() for key in own)
    with progress_bar(total, " shards", "export") as bar:
        for split, own in keys.items():
            group = file.create_group(split)
            put_text(group.attrs, "diffssl", json.dumps({"data_id": store.data_id(split), "rows": store.n_rows(split)}))
            _write_rows(group, store, split)
            group.create_group("features")
            checksums = {key: _write_array(group, store, split, key, bar.update) for key in own}
            commits = _commits(store, split, checksums)
            text = b"".join(canonical_json(commit.to_json()) + b"\n" for commit in commits)
            _write_column(file, f"{JOURNAL}/{split}", np.frombuffer(text, dtype=np.uint8))


def _write_rows(group: h5py.Group, store: FeatureStore, split: str) -> None:
    """Ids as text of the length of the longest, which compression makes short again, and labels."""
    ids = [name.encode() for name in store.ids(split)]
    dtype = h5py.string_dtype("utf-8", max([1, *map(len, ids)]))
    data = group.create_dataset("rows/id", (len(ids),), dtype, **_column_options(len(ids), dtype.itemsize))
    step = data.chunks[0] if ids else 1
    for start in range(0, len(ids), step):
        data[start : start + step] = np.array(ids[start : start + step], dtype=dtype)
    _write_column(group, "rows/label", store.labels(split))


def _write_column(group: h5py.Group, name: str, values: NDArray[Any]) -> None:
    group.create_dataset(name, data=values, **_column_options(len(values), values.itemsize))


def _column_options(rows: int, row_bytes: int) -> dict[str, Any]:
    """Chunks of at most 1 MiB with a checksum, compressed; HDF5 has no chunks of an empty column."""
    chunk = min(rows, max(1, CHUNK_BYTES // row_bytes))
    return {"chunks": (chunk,), "compression": "gzip", "fletcher32": True} if rows else {}


def _write_array(
    group: h5py.Group, store: FeatureStore, split: str, key: ArrayKey, progress: Callable[[int], object]
) -> dict[int, list[str]]:
    """Copy an array shard by shard; return the checksums of each row block's shards as they are in the file."""
    layout = store.layout(key, split)
    data = group.create_dataset(
        key.array,
        (layout.rows, *layout.row_shape),
        layout.dtype,
        chunks=(min(layout.chunk_rows, layout.rows), *layout.row_shape),
        fletcher32=True,
        fillvalue=layout.fill_value,
    )
    document = read_document(store.storage, f"{split}/{key.array}/{ROOT}")
    _put_attributes(data, document["dimension_names"], document.get("attributes", {}))
    left_out = sorted(store.journal.left_out(split, key))
    checksums: dict[int, list[str]] = {}
    for shard in _shards(store, split, key):
        rows = layout.shard_range(shard)
        values = store.read(key, split, slice(rows.start, rows.stop))
        own = left_out[bisect_left(left_out, rows.start) : bisect_left(left_out, rows.stop)]
        values[[row - rows.start for row in own]] = layout.fill_value  # a second writer may have decoded one of them
        data[rows.start : rows.stop] = values
        checksums.setdefault(rows.start // layout.row_block, []).append(encode_shard(values, layout)[1])
        progress(1)
    return checksums


def _put_attributes(data: h5py.Dataset, dimensions: Sequence[str], attributes: Mapping[str, Any]) -> None:
    """Attributes of an array as HDF5 has them, for people, and as JSON, for an exact import."""
    names = [name.encode() for name in dimensions]
    data.attrs["dimension_names"] = np.array(names, dtype=h5py.string_dtype("utf-8", 7))
    for name, value in attributes.items():
        if value is None:
            data.attrs[name] = h5py.Empty("f8")
        elif isinstance(value, bool | float) or (isinstance(value, int) and abs(value) < 1 << 63):
            data.attrs[name] = value
        else:
            put_text(data.attrs, name, value if isinstance(value, str) else json.dumps(value))
    put_text(data.attrs, "diffssl", json.dumps(attributes))


def _commits(store: FeatureStore, split: str, checksums: Mapping[ArrayKey, Mapping[int, list[str]]]) -> list[Commit]:
    """The commits of the exported arrays; settings that have all but their checksums in common share one."""
    origins: dict[tuple[str, int], Commit] = {}
    paths = {key.path for key in checksums}
    for _, commit in store.journal.each(split):
        origins |= dict.fromkeys(((path, commit.row_block) for path in paths & commit.arrays.keys()), commit)
    size = store.header.row_block
    commits: dict[tuple[bool, bytes], Commit] = {}
    for key, blocks in checksums.items():
        left_out: dict[int, dict[int, LeftOut]] = {}
        for row, bad in store.journal.left_out(split, key).items():
            left_out.setdefault(row // size, {})[row] = bad
        for block, sums in blocks.items():
            origin = origins[key.path, block]
            limit = store.journal.wanted(split, key)
            commit = replace(origin, arrays={}, left_out=left_out.get(block, {}), limit=limit)
            shared = isinstance(key, ThumbnailKey), canonical_json(commit.to_json())
            known = commits.setdefault(shared, commit)
            commits[shared] = replace(known, arrays={**known.arrays, key.path: sums})
    return sorted(commits.values(), key=lambda commit: (commit.row_block, commit.timestep is not None, commit.timestep))


def _sync(path: Path) -> None:
    """Bring a file or folder to disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
