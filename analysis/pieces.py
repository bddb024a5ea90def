"""Reading a setting piece by piece: memory does not grow with rows, nor with the size of maps and row blocks."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from ..store import FeatureKey, FeatureStore

_BYTES = 1 << 24  # of a piece as it is stored


def read_pieces(
    store: FeatureStore, key: FeatureKey, split: str, rows: range
) -> Iterator[tuple[NDArray[np.int64], NDArray[np.float32]]]:
    """Yield (row numbers (n,), features (n, C, p, p) float32) in row order, without rows that were left out.

    A piece has at most 16 MiB as it is stored, or one row. Raises as ``FeatureStore.read``.
    """
    layout = store.layout(key, split)
    step = layout.row_block  # a power of two, as are its halves: a piece never crosses a row block
    while step > 1 and step * layout.row_bytes > _BYTES:
        step //= 2
    for start in range(rows.start - rows.start % step, rows.stop, step):
        piece = range(max(start, rows.start), min(start + step, rows.stop))
        batch = store.read_batch([key], split, start // layout.row_block, piece)
        if len(batch.rows):
            yield batch.rows, batch.features[0].astype(np.float32)


def read_rows(store: FeatureStore, key: FeatureKey, split: str, rows: list[int]) -> NDArray[np.float32]:
    """(n, C, p, p) float32 features of some rows, in the order given. Raises as ``FeatureStore.read``."""
    return np.concatenate([store.read(key, split, slice(row, row + 1)) for row in rows]).astype(np.float32)
