"""Which ``zarr.json`` documents a store must have, what is in them, and which of them are missing or damaged."""

from __future__ import annotations

import json
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor

from .contract import Storage
from .feature_store import FeatureStore
from .key import ArrayKey, FeatureKey, ThumbnailKey
from .layout import (
    JOURNAL,
    ROOT,
    feature_document,
    group_document,
    journal_document,
    split_document,
    thumbnail_document,
)

_READERS = 16  # hides the latency of a network file system


def store_documents(store: FeatureStore) -> dict[str, bytes]:
    """Every document a store must have -> its bytes, but for the attributes of the root and of arrays.

    Arrays whose document is not there are among them only if they have commits.
    """
    wanted = {ROOT: group_document(), f"{JOURNAL}/{ROOT}": journal_document()}
    blocks = {block.number for block in store.header.blocks}
    for split in store.splits:
        wanted[f"{split}/{ROOT}"] = split_document(store.data_id(split), store.n_rows(split))
        wanted |= {f"{split}/{folder}/{ROOT}": group_document() for folder in ("rows", "features")}
        wanted |= array_documents(store, split, [key for key in store.arrays(split) if key.block in blocks])
        key = store.thumbnail(split)
        if key is not None or store.storage.exists(f"{split}/{ThumbnailKey.array}/{ROOT}"):
            wanted |= thumbnail_documents(store, split, key or ThumbnailKey(1))  # nobody can know the size: it is a fault
    return wanted


def thumbnail_documents(store: FeatureStore, split: str, key: ThumbnailKey) -> dict[str, bytes]:
    """Documents of a split's thumbnails and of the group above them -> their bytes."""
    group = key.array.rsplit("/", 1)[0]
    return {
        f"{split}/{group}/{ROOT}": group_document(),
        f"{split}/{key.array}/{ROOT}": thumbnail_document(store.layout(key, split)),
    }


def array_documents(store: FeatureStore, split: str, keys: Iterable[FeatureKey]) -> dict[str, bytes]:
    """Documents of feature arrays and of the groups above them -> their bytes, attributes apart."""
    wanted = {}
    for key in keys:
        array = f"{split}/{key.array}"
        for group in (array.rsplit("/", 2)[0], array.rsplit("/", 1)[0]):
            wanted[f"{group}/{ROOT}"] = group_document()
        wanted[f"{array}/{ROOT}"] = feature_document(store.layout(key, split), {})
    return wanted


def missing_documents(store: FeatureStore, split: str, keys: Iterable[ArrayKey]) -> list[str]:
    """Documents of arrays and of the groups above them that are not there."""
    keys = list(keys)
    names = list(array_documents(store, split, [key for key in keys if isinstance(key, FeatureKey)]))
    names += [name for key in keys if isinstance(key, ThumbnailKey) for name in thumbnail_documents(store, split, key)]
    with ThreadPoolExecutor(_READERS) as pool:
        there = pool.map(store.storage.exists, names)
        return [name for name, exists in zip(names, there, strict=True) if not exists]


def damaged_documents(store: FeatureStore) -> list[tuple[str, str | OSError]]:
    """(document, what is wrong with it) of the documents a store must have; an ``OSError`` where the storage fails."""
    wanted = store_documents(store)

    def check(name: str) -> str | OSError | None:
        try:
            return document_fault(store.storage, name, wanted[name])
        except OSError as error:
            return error

    with ThreadPoolExecutor(_READERS) as pool:
        faults = list(pool.map(check, wanted))
    return [(name, fault) for name, fault in zip(wanted, faults, strict=True) if fault is not None]


def document_fault(storage: Storage, name: str, wanted: bytes) -> str | None:
    """What is wrong with a document, in words; its attributes and what others added to it do not matter.

    Args:
        storage: where it is.
        name: of the document.
        wanted: what it must say.

    Raises:
        OSError: where the storage fails.
    """
    try:
        document = json.loads(storage.read(name))
    except FileNotFoundError:
        return "the document is missing"
    except ValueError as error:
        return f"the document cannot be read ({error})"
    if not isinstance(document, dict):
        return "the document is no mapping"
    for field, value in json.loads(wanted).items():
        if field == "attributes":
            if not isinstance(document.get(field, {}), dict):
                return "its attributes are no mapping"
        elif document.get(field) != value:
            return f"its {field} is {document.get(field)!r} instead of {value!r}"
    return None
