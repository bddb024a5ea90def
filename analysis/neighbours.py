"""Which images a setting takes for alike: nearest neighbours by cosine similarity."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from ..store import FeatureKey, FeatureStore
from .pictures import NoPicture, check_rows
from .pieces import read_pieces, read_rows

_CONSTANT = 1e-10  # of the mean: a deviation below is rounding
_DIGITS = 9  # similarities that agree to so many digits are ties; a product's last bits depend on how rows were cut


def nearest(
    store: FeatureStore, key: FeatureKey, split: str, query_rows: Sequence[int], k: int
) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """The rows of a split that are most similar to given ones, in two passes with bounded memory.

    Features are averaged over the positions of a map, standardised with the mean and deviation of all rows (a channel that
    never changes counts nothing), and compared by the cosine of their angle. A row is no neighbour of itself.

    Args:
        store: to read.
        key: setting.
        split: name of the split, in all rows of which that were extracted neighbours are looked for.
        query_rows: (q) row numbers.
        k: neighbours of each.

    Returns:
        (q, k) int64 row numbers, the most similar first, ties by row number; and their (q, k) similarities in [-1, 1].

    Raises:
        ValueError: ``k`` is below 1.
        NoPicture: there are not so many other rows, or a query was left out.
        UnknownFeatures, IncompleteFeatures, CorruptStore: as ``FeatureStore.read``.
    """
    rows = range(store.wanted_rows([key], split))
    there = len(rows) - sum(row in rows for row in store.journal.left_out(split, key))
    if k < 1:
        raise ValueError(f"k must be at least 1, got {k}")
    if k >= there:
        raise NoPicture(f"{split} has {there} rows with features at {key}, so an image has no {k} neighbours; ask for fewer")
    check_rows(store, [key], split, query_rows)
    mean, scale = _moments(store, key, split, rows)
    queries = _directions(_pooled(read_rows(store, key, split, list(query_rows))), mean, scale)
    own = np.array(query_rows)[:, None]
    found = np.zeros((len(queries), 0), dtype=np.int64)
    similar = np.zeros((len(queries), 0))
    for numbers, values in _vectors(store, key, split, rows):
        these = np.round(queries @ _directions(values, mean, scale).T, _DIGITS)
        these[own == numbers] = -np.inf
        found = np.hstack([found, np.broadcast_to(numbers, these.shape)])
        similar = np.hstack([similar, these])
        # Stable, and what was found before has the smaller row numbers: ties stay in row order.
        order = np.argsort(-similar, axis=1, kind="stable")[:, :k]
        found, similar = np.take_along_axis(found, order, 1), np.take_along_axis(similar, order, 1)
    return found, similar


def _vectors(
    store: FeatureStore, key: FeatureKey, split: str, rows: range
) -> Iterator[tuple[NDArray[np.int64], NDArray[np.float64]]]:
    return ((numbers, _pooled(maps)) for numbers, maps in read_pieces(store, key, split, rows))


def _pooled(maps: NDArray[np.float32]) -> NDArray[np.float64]:
    """(n, C, p, p) -> (n, C) means over positions."""
    pooled: NDArray[np.float64] = maps.mean(axis=(2, 3), dtype=np.float64)
    return pooled


def _moments(store: FeatureStore, key: FeatureKey, split: str, rows: range) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """(C,) mean and deviation of all rows; infinite for a channel that never changes, so that it counts nothing."""
    channels = store.layout(key, split).row_shape[0]
    mean, squares, count = np.zeros(channels), np.zeros(channels), 0
    for _, values in _vectors(store, key, split, rows):  # merged piece by piece, so that no small spread is lost
        own = values.mean(axis=0)
        total = count + len(values)
        squares = squares + ((values - own) ** 2).sum(axis=0) + (own - mean) ** 2 * (count * len(values) / total)
        mean, count = mean + (own - mean) * (len(values) / total), total
    deviation = np.sqrt(squares / count)
    return mean, np.where(deviation > _CONSTANT * np.abs(mean), deviation, np.inf)


def _directions(values: NDArray[np.float64], mean: NDArray[np.float64], scale: NDArray[np.float64]) -> NDArray[np.float64]:
    """Standardised vectors of length 1; zero stays zero."""
    standardised = (values - mean) / scale
    norms = np.linalg.norm(standardised, axis=1, keepdims=True)
    directions: NDArray[np.float64] = standardised / np.where(norms > 0, norms, 1)
    return directions
