"""Taking arrays and row blocks out of the commits of a store, so that a kill at any moment leaves it no worse."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Collection, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from itertools import islice

from .feature_store import FeatureStore
from .identity import canonical_json
from .journal import Commit, larger
from .key import ArrayKey, array_key
from .layout import JOURNAL, ROOT, block_range

_WRITERS = 16  # one waits for the disk beside another
_PART = 256


# Path of a setting or of thumbnails, as in commits -> row blocks to forget, None for all.
Gone = Mapping[str, Collection[int] | None]


def forget(
    store: FeatureStore,
    split: str,
    gone: Gone,
    progress: Callable[[int], object] = lambda _: None,
) -> set[str | None]:
    """Rewrite the commits of a split without what is forgotten; a commit that has nothing left is removed.

    What is left of a commit is written before the commit is removed. Readers that opened the store before keep what
    they know. The shards stay; without a commit they mean nothing.

    Args:
        store: whose commits are all readable.
        split: name of the split.
        gone: what to forget.
        progress: called with the number of commits looked at since the last call.

    Returns:
        Command lines of the commits that were changed; None for one without.
    """
    commands: set[str | None] = set()

    def rewrite(item: tuple[str, Commit]) -> None:
        name, commit = item
        kept = {path: sums for path, sums in commit.arrays.items() if not _is_gone(gone, path, commit.row_block)}
        if len(kept) == len(commit.arrays):
            return
        commands.add(commit.command)
        if kept:
            rest = replace(commit, arrays=kept)
            store.storage.create(rest.name, canonical_json(rest.to_json()))
        store.storage.remove(name)

    commits = store.journal.each(split)
    with ThreadPoolExecutor(_WRITERS) as pool:
        while part := list(islice(commits, _PART)):
            list(pool.map(rewrite, part))
            progress(len(part))
    if commands:
        with contextlib.suppress(FileNotFoundError):  # nothing is left in it, and somebody removed it meanwhile
            store.storage.sync_folders([f"{JOURNAL}/{split}/{ROOT}"])
    return commands


def keep_limits(store: FeatureStore, split: str, gone: Gone) -> None:
    """Let what is about to be forgotten not lower how many rows of an array are wanted.

    Else, where only the forgotten row blocks were asked for without a limit, readers would take the rest for all.

    Args:
        store: to look after.
        split: name of the split.
        gone: what is about to be forgotten.
    """
    left: dict[str, int | None] = {}
    for _, commit in store.journal.each(split):
        for path in gone.keys() & commit.arrays.keys():
            if not _is_gone(gone, path, commit.row_block):
                left[path] = larger(left.get(path, 0), commit.limit)
    for path in sorted(left):
        key = array_key(path)
        wanted = store.journal.wanted(split, key)
        if left[path] != wanted:
            blocks = [block for block in store.journal.row_blocks(split, key) if not _is_gone(gone, path, block)]
            record_limit(store, split, key, min(blocks), wanted)


def _is_gone(gone: Gone, path: str, row_block: int) -> bool:
    blocks = gone.get(path, ())
    return blocks is None or row_block in blocks


def record_limit(store: FeatureStore, split: str, key: ArrayKey, row_block: int, limit: int | None) -> None:
    """Commit a row block of an array once more, to say that the first ``limit`` rows of the array are wanted (None: all)."""
    rows = block_range(store.n_rows(split), store.header.row_block, row_block)
    left_out = {row: bad for row, bad in store.journal.left_out(split, key).items() if row in rows}
    checksums = [min(known) for known in store.journal.row_blocks(split, key)[row_block]]
    arrays = {key.path: checksums}
    command = store.journal.command(split, key)
    store.journal.write(Commit(split, row_block, key.timestep, arrays, left_out, limit, command))
