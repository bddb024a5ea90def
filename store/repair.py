"""Forgetting what is damaged, so that the same extraction computes exactly that anew.

Nothing here recomputes or guesses features: damaged row blocks lose their commits, damaged documents and tables are removed,
and whatever is the same in every store is written anew. Every step leaves the store no worse, so a kill does no harm.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from itertools import groupby

import numpy as np
from numpy.typing import NDArray

from .documents import document_fault, store_documents
from .errors import CorruptStore
from .feature_store import FeatureStore
from .forget import forget, keep_limits
from .header import RESTORE_ROOT
from .key import ThumbnailKey
from .layout import ROOT, group_document, split_document
from .progress import progress_bar
from .rows import ids_digest, row_order
from .verify import Damage, committed_shards, lost_splits, storage_failed, verify

_COLUMNS = ("label", "id")


@dataclass
class Repair:
    """What a repair did.

    Attributes:
        forgotten: row blocks, commits, documents and tables that the extraction makes anew.
        mended: documents that were written anew at once.
        failed: what could not be read because the storage failed; it was left alone.
        commands: command lines that make anew what was forgotten, as far as the store knows them.
    """

    forgotten: int = 0
    mended: int = 0
    failed: list[Damage] = field(default_factory=list)
    commands: set[str] = field(default_factory=set)


def repair(path: str, bad: bool = False, say: Callable[[str], object] = print) -> Repair:
    """Forget everything that ``verify`` finds damaged. Writes nothing if nothing is.

    Args:
        path: of the store.
        bad: also forget row blocks in which samples were left out, since their images were replaced.
        say: called with a line for each thing.

    Raises:
        StoreNotFound, UnsupportedFormat: see :meth:`FeatureStore.open`.
        CorruptStore: the root is damaged, which nothing can replace.
    """
    done = Repair()
    store = FeatureStore.open(path, tolerant=True)
    fault = document_fault(store.storage, ROOT, group_document())
    if fault is not None:
        raise CorruptStore(store.path, f"{ROOT}: {fault}; {RESTORE_ROOT}")
    splits = lost_splits(store)
    for split in splits:
        _mend_split(store, split, done, say)
    if splits:
        store = FeatureStore.open(path, tolerant=True)
    with progress_bar(len(committed_shards(store)), " shards", "verify") as bar:
        found = list(verify(store, bar.update))
    done.failed = [damage for damage in found if damage.failed]
    for damage in done.failed:
        say(f"left alone: {damage}")
    found = [damage for damage in found if not damage.failed]
    done.commands |= _commands(store, found)
    _forget_files(store, [damage for damage in found if damage.file is not None], done, say)
    blocks = [damage for damage in found if damage.file is None] + (list(_left_out_blocks(store)) if bad else [])
    _forget_blocks(store, blocks, done, say)
    return done


def _mend_split(store: FeatureStore, split: str, done: Repair, say: Callable[[str], object]) -> None:
    """Write a split's document anew from its ids, or, without them, forget all that was said of rows nobody knows."""
    document = f"{split}/{ROOT}"
    ids = _sound_ids(store, split)
    if ids is not None:
        store.storage.remove(document)
        store.storage.create(document, split_document(ids_digest(ids), len(ids)))
        done.mended += 1
        say(f"written anew: {document}, from the ids of its rows")
        return
    commits = store.journal.names(split)
    done.commands |= {commit.command for _, commit in store.journal.each(split) if commit.command is not None}
    columns = [file for column in _COLUMNS for file in _column_files(store, split, column)]
    folders = {"rows", "features", "images", ThumbnailKey.array}
    for key in store.folders(split):  # their documents have the old number of rows
        block, pool, _ = key.path.split("/")
        folders |= {f"features/{block}", f"features/{block}/{pool}", f"features/{key.path}"}
    documents = [f"{split}/{folder}/{ROOT}" for folder in sorted(folders)]
    # The commits last: as long as there are some, no extraction makes the split anew, and the next repair finds the rest.
    for name in [*documents, *columns, document, *commits]:
        store.storage.remove(name)
    done.forgotten += 1
    say(f"forgotten: {split}, all {len(commits)} commits: neither {document} nor {split}/rows/id says which samples it has")


def _sound_ids(store: FeatureStore, split: str) -> NDArray[np.object_] | None:
    """(n,) ids of a split without document, if they are whole: in the order that only whole ids have."""
    try:
        ids: NDArray[np.object_] = store.column(split, "id").astype(object)
    except CorruptStore as error:
        if storage_failed(error):
            raise
        return None
    names = ids.tolist()
    whole = "" not in names and len(set(names)) == len(names) and row_order(names) == list(range(len(names)))
    return ids if whole else None


def _commands(store: FeatureStore, found: Iterable[Damage]) -> set[str]:
    """Command lines that wrote the documents, tables and commits that are damaged, as far as they are known."""
    commands: set[str] = set()
    for damage in found:
        if damage.split in store.splits and damage.file is not None and not _is_constant(damage):
            keys = store.journal.arrays(damage.split) if damage.key is None else [damage.key]
            known = {store.journal.command(damage.split, key) for key in keys}
            commands |= {command for command in known if command is not None}
    return commands


def _forget_files(store: FeatureStore, found: Iterable[Damage], done: Repair, say: Callable[[str], object]) -> None:
    """Remove commits, documents and tables; write documents that are the same in every store."""
    wanted = store_documents(store)
    for damage in found:
        name = str(damage.file)
        if _is_constant(damage):
            store.storage.remove(name)
            store.storage.create(name, wanted[name])
            done.mended += 1
            say(f"written anew: {damage}")
            continue
        table, _, column = name.rpartition("/")
        for file in _column_files(store, str(damage.split), column) if table == f"{damage.split}/rows" else [name]:
            store.storage.remove(file)
        done.forgotten += 1
        say(f"forgotten: {damage}")


def _forget_blocks(store: FeatureStore, found: Iterable[Damage], done: Repair, say: Callable[[str], object]) -> None:
    """Take row blocks out of the commits, and say which."""
    blocks: dict[tuple[str, str, int], Damage] = {}
    for damage in found:
        assert damage.split is not None
        assert damage.key is not None
        assert damage.row_block is not None
        blocks.setdefault((damage.split, damage.key.path, damage.row_block), damage)
    gone: dict[str, dict[str, set[int]]] = {}
    for split, path, block in blocks:
        gone.setdefault(split, {}).setdefault(path, set()).add(block)
    for split, own in gone.items():
        keep_limits(store, split, own)
        done.commands |= {command for command in forget(store, split, own) if command is not None}
    for damage in blocks.values():
        done.forgotten += 1
        say(f"forgotten: {damage}")


def _left_out_blocks(store: FeatureStore) -> Iterator[Damage]:
    size = store.header.row_block
    for split in store.splits:
        for key in store.journal.arrays(split):
            left_out = store.journal.left_out(split, key)
            for block, rows in groupby(sorted(left_out), lambda row: row // size):
                own = list(rows)
                first = left_out[own[0]]
                reason = f"left out {len(own)}, such as {first.id!r} ({first.reason})"
                yield Damage(split, key, block, reason)


def _is_constant(damage: Damage) -> bool:
    """Whether a damaged file is a document that needs no extraction: that of a group or of the journal."""
    of_thumbnails = damage.file == f"{damage.split}/{ThumbnailKey.array}/{ROOT}"
    return damage.key is None and str(damage.file).endswith(f"/{ROOT}") and not of_thumbnails


def _column_files(store: FeatureStore, split: str, column: str) -> list[str]:
    """Files of a column of the rows; the document first, without which no reader takes the rest for whole."""
    folder = f"{split}/rows/{column}"
    return [f"{folder}/{ROOT}", *(f"{folder}/c/{name}" for name in store.storage.names(f"{folder}/c"))]
