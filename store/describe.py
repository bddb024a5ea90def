"""A store in words, for ``diffssl-store info`` and ``status``."""

from __future__ import annotations

import math
from collections.abc import Sequence

from .feature_store import FeatureStore
from .key import ArrayKey, grids
from .layout import block_range

_SHOWN = 10


def describe(store: FeatureStore) -> list[str]:
    """Lines about identity, splits, settings, rows left out, and what the store takes on disk."""
    header = store.header
    size, files = store.storage.usage()
    lines = [
        f"store       {store.path}",
        f"model       {header.model}",
        f"feature_id  {store.feature_id}",
        *(f"  {name}: {value}" for name, value in header.identity.fields.items()),
        f"created by  {', '.join(f'{name} {version}' for name, version in header.versions.items())}",
        f"classes     {len(header.classes)}{': ' if header.classes else ''}{_some(header.classes)}",
        f"layout      {header.dtype}, row blocks of {header.row_block}, batches of {header.batch_size}",
        f"on disk     {human_bytes(size)} in {files} files, {store.journal.commits()} commits",
    ]
    for split in store.splits:
        arrays = store.journal.arrays(split)
        thumbnail = store.journal.thumbnail(split)
        lines += [
            f"split {split}: {store.n_rows(split)} rows, data_id {store.data_id(split)}",
            *(f"  {grid}" for grid in grids(store.keys(split))),
            *([] if thumbnail is None else [f"  {thumbnail}"]),
        ]
        left_out = {row: bad for key in arrays for row, bad in store.journal.left_out(split, key).items()}
        if left_out:
            lines.append(f"  {len(left_out)} samples could not be decoded and are left out:")
            lines += [f"    {bad.id}: {bad.reason}" for bad in list(left_out.values())[:_SHOWN]]
            lines += [f"    and {len(left_out) - _SHOWN} more"] if len(left_out) > _SHOWN else []
    return lines


def progress_table(store: FeatureStore) -> tuple[list[str], bool]:
    """Lines with the committed rows of each array, and whether every array has all rows it was asked for."""
    lines = []
    complete = True
    for split in store.splits:
        total = store.n_rows(split)
        lines.append(f"{split}: {total} rows")
        for key in _arrays(store, split):
            blocks = store.journal.row_blocks(split, key)
            rows = sum(len(block_range(total, store.header.row_block, block)) for block in blocks)
            wanted, absent = _absent(store, split, key)
            complete &= not absent
            state = f"{len(absent)} row blocks missing" if absent else "complete"
            state += f" to --limit {wanted}" if wanted < total else ""
            lines.append(f"  {key.path:<16} {rows:>9} of {total} rows {rows / max(total, 1):>7.1%}  {state}")
    return lines, complete


def not_committed(store: FeatureStore) -> list[str]:
    """A line for each row block of an array that was asked for and is not committed: not yet, or not any more."""
    return [
        f"{split}: row block {block}, {key}"
        for split in store.splits
        for key in _arrays(store, split)
        for block in _absent(store, split, key)[1]
    ]


def human_bytes(number: float) -> str:
    """A number of bytes in kB, MB, GB or TB (powers of 1000)."""
    power = min(4, int(math.log10(max(number, 1)) // 3))
    return f"{number / 1000**power:.{1 if power else 0}f} {['B', 'kB', 'MB', 'GB', 'TB'][power]}"


def _arrays(store: FeatureStore, split: str) -> list[ArrayKey]:
    """Everything that was begun, with commits or not."""
    thumbnail = store.thumbnail(split)
    return [*store.arrays(split), *([] if thumbnail is None else [thumbnail])]


def _absent(store: FeatureStore, split: str, key: ArrayKey) -> tuple[int, list[int]]:
    """How many rows of an array were asked for, and the row blocks of these that are not committed."""
    begun = bool(store.journal.row_blocks(split, key))
    wanted = store.wanted_rows([key], split) if begun else store.n_rows(split)
    return wanted, store.missing([key], split, wanted)


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:_SHOWN]) + (", …" if len(names) > _SHOWN else "")
