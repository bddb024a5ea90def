"""Making a store and its splits and arrays: each document written once, by create-if-absent.

Any number of processes may do this at the same time on the same path. Whoever is second compares what is there with
what it wanted to write: equal means go on, different is refused.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import zarr
from numpy.typing import NDArray
from zarr.codecs import Crc32cCodec, ZstdCodec
from zarr.storage import MemoryStore

from .documents import document_fault, thumbnail_documents
from .errors import CorruptStore, IdentityMismatch, StoreError
from .feature_store import FeatureStore
from .header import RESTORE, StoreHeader, read_header
from .identity import Identity
from .key import FeatureKey, ThumbnailKey
from .layout import JOURNAL, ROOT, feature_document, group_document, journal_document, split_document
from .location import open_storage
from .rows import ids_digest

_ROWS_PER_CHUNK = 1 << 16


def create(path: Path | str, header: StoreHeader) -> FeatureStore:
    """Create a store, or open the one that is there if it has the same header.

    Raises:
        IdentityMismatch: the store that is there has another one; the differing fields are listed.
        StoreError: the folder is in use by something else, or the storage cannot keep what a store needs.
    """
    storage = open_storage(path)
    if not storage.exists(ROOT):
        try:
            strangers = [name for name in storage.names("") + storage.folders("") if name not in (JOURNAL, ROOT)]
        except NotADirectoryError:
            raise StoreError(path, "a file is in the way; choose another --store") from None
        if strangers and not storage.exists(ROOT):
            raise StoreError(path, f"the folder is not empty and not a feature store (it has {strangers[0]!r})")
        storage.check_create()
        storage.create(ROOT, group_document({"diffssl": header.to_json()}))
    check_header(path, read_header(storage), header)
    storage.create(f"{JOURNAL}/{ROOT}", journal_document())
    return FeatureStore.open(path)


def check_header(path: Path | str, there: StoreHeader, wanted: StoreHeader) -> None:
    """Raise ``IdentityMismatch`` if a store's header is not the wanted one, versions and model name apart."""
    differences = there.identity.differences(wanted.identity)
    plain = ("classes", "row_block", "batch_size", "dtype", "memory_format")
    differences += Identity({name: _plain(getattr(there, name)) for name in plain}).differences(
        Identity({name: _plain(getattr(wanted, name)) for name in plain})
    )
    if differences:
        raise IdentityMismatch(path, "the store was made with other settings; use them, or choose another --store", differences)


def add_split(store: FeatureStore, split: str, ids: NDArray[np.object_], labels: NDArray[np.int32]) -> int:
    """Add a split, or compare with the one that is there.

    Args:
        store: to add to.
        split: its name.
        ids: (n,) sample ids in row order.
        labels: (n,) int32 indices into the store's classes, -1 for none.

    Returns:
        How many labels differ from those the store already has (labels are not identity; the store's are kept).

    Raises:
        IdentityMismatch: the store has this split with other ids.
        CorruptStore: the store has lost the document of this split.
    """
    if ids.shape != labels.shape:
        raise ValueError(f"there must be one label an id, got {ids.shape} ids and {labels.shape} labels")
    document = f"{split}/{ROOT}"
    # Of other samples, the commits would be taken for theirs. Asked twice: another writer may have just made the split.
    if not store.storage.exists(document) and store.journal.names(split) and not store.storage.exists(document):
        raise CorruptStore(
            store.path, f"{split} has commits, but {document}, which says of which samples, is missing; {RESTORE}"
        )
    data_id = ids_digest(ids)
    store.storage.create(document, split_document(data_id, len(ids)))
    store.refresh()
    _check_data_id(store, split, data_id, len(ids))
    if not all(store.storage.exists(f"{split}/{name}") for name in _row_names(len(ids))):  # to make them takes seconds
        for name, content in _row_files(ids, labels):
            store.storage.create(f"{split}/{name}", content)
    store.storage.create(f"{split}/features/{ROOT}", group_document())
    return int((store.labels(split) != labels).sum())


def check_split(store: FeatureStore, split: str, ids: NDArray[np.object_]) -> None:
    """Raise ``IdentityMismatch`` if a split of the store has other (n,) sample ids, in row order."""
    _check_data_id(store, split, ids_digest(ids), len(ids))


def _check_data_id(store: FeatureStore, split: str, data_id: str, n_rows: int) -> None:
    if (store.data_id(split), store.n_rows(split)) != (data_id, n_rows):
        raise IdentityMismatch(
            store.path,
            f"the store has other samples in its split {split!r}; choose another --store for other data",
            [("data_id", store.data_id(split), data_id), ("rows", store.n_rows(split), n_rows)],
        )


def add_arrays(
    store: FeatureStore, split: str, keys: Iterable[FeatureKey], attributes: Mapping[FeatureKey, Mapping[str, Any]]
) -> None:
    """Create the documents of feature arrays and of the groups above them.

    Args:
        store: to add to.
        split: an existing split.
        keys: settings.
        attributes: per setting, what people should know about it (schedule, block).
    """
    groups: set[str] = set()
    for key in keys:
        array = f"{split}/{key.array}"
        for group in (array.rsplit("/", 2)[0], array.rsplit("/", 1)[0]):
            if group not in groups:
                store.storage.create(f"{group}/{ROOT}", group_document())
                groups.add(group)
        store.storage.create(f"{array}/{ROOT}", feature_document(store.layout(key, split), attributes[key]))


def check_thumbnails(store: FeatureStore, key: ThumbnailKey) -> None:
    """Raise ``IdentityMismatch`` if a split of the store has thumbnails of another size."""
    for split in store.splits:
        there = store.thumbnail(split)
        if there is not None and there != key:
            raise IdentityMismatch(
                store.path,
                f"{split} has thumbnails of another size; ask for --thumbnails {there.side}, or remove them with "
                f"'diffssl-store drop {store.path} --thumbnails' first",
                [("thumbnails", there.side, key.side)],
            )


def add_thumbnails(store: FeatureStore, split: str, key: ThumbnailKey) -> None:
    """Create the documents of a split's thumbnails.

    Raises:
        IdentityMismatch: the store has thumbnails of another size.
        CorruptStore: the split has a document of theirs that is damaged.
    """
    check_thumbnails(store, key)
    for document, wanted in thumbnail_documents(store, split, key).items():
        if not store.storage.create(document, wanted):
            check_thumbnails(store, key)  # another writer may have been first
            fault = document_fault(store.storage, document, wanted)
            if fault is not None:
                raise CorruptStore(store.path, f"{document}: {fault}; {RESTORE}")


def _row_names(n_rows: int) -> list[str]:
    """Names of :func:`_row_files`."""
    files = [ROOT, *(f"c/{chunk}" for chunk in range(-(-n_rows // _ROWS_PER_CHUNK)))]
    return [f"rows/{ROOT}", *(f"rows/{name}/{file}" for name in ("id", "label") for file in files)]


def _row_files(ids: NDArray[np.object_], labels: NDArray[np.int32]) -> list[tuple[str, bytes]]:
    """The files of a split's ``rows`` group, as zarr itself writes them, documents last."""
    files: dict[str, Any] = {}
    memory = MemoryStore(files)
    zarr.create_group(memory, path="rows")
    compressors = (ZstdCodec(level=3), Crc32cCodec())
    for name, values, dtype in (("rows/id", ids, str), ("rows/label", labels, np.int32)):
        array = zarr.create_array(
            memory,
            name=name,
            shape=(len(values),),
            chunks=(min(_ROWS_PER_CHUNK, max(1, len(values))),),
            dtype=dtype,
            compressors=compressors,
            fill_value="" if dtype is str else -2,
            dimension_names=["row"],
            config={"write_empty_chunks": True},
        )
        array[:] = values
    contents = [(name, buffer.to_bytes()) for name, buffer in files.items() if name.startswith("rows/")]
    return sorted(contents, key=lambda item: item[0].endswith(ROOT))


def _plain(value: object) -> object:
    return list(value) if isinstance(value, (list, tuple)) else value
