"""Rows of one setting as float32 vectors, streamed by row block, standardised, from memory if they fit."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..store import FeatureKey, FeatureStore
from .errors import ProbeError
from .protocol import RowSet

MEMORY_BYTES = 1 << 30  # of raw features that are kept instead of read again
_BUFFER_BYTES = 1 << 28  # of rows that are shuffled together


@dataclass(frozen=True)
class Moments:
    """Exact mean and standard deviation of each feature.

    Attributes:
        mean: (D,) float64.
        scale: (D,) float64 standard deviation, 1 where a feature is constant.
    """

    mean: NDArray[np.float64]
    scale: NDArray[np.float64]


class SettingData:
    """The rows of one setting.

    Args:
        store: to read from.
        key: the setting.
        memory: bytes of raw row blocks to keep.
    """

    def __init__(self, store: FeatureStore, key: FeatureKey, memory: int = MEMORY_BYTES) -> None:
        self._store = store
        self._key = key
        self._room = memory
        self._kept: dict[tuple[str, int], NDArray[Any]] = {}

    @property
    def dimension(self) -> int:
        """Features of a row."""
        return int(np.prod(self._store.layout(self._key, self._store.splits[0]).row_shape))

    def pieces(self, rows: RowSet) -> list[tuple[str, NDArray[np.int64]]]:
        """Rows grouped by row block, in order."""
        size = self._store.header.row_block
        return [
            (split, piece)
            for split, numbers in rows.items()
            for piece in np.split(numbers, np.flatnonzero(np.diff(numbers // size)) + 1)
            if len(piece)
        ]

    def piece(self, split: str, rows: NDArray[np.int64]) -> tuple[NDArray[Any], NDArray[np.int64]]:
        """Raw (n, D) features as stored, and (n,) labels, of rows of one row block."""
        block = int(rows[0]) // self._store.header.row_block
        start = block * self._store.header.row_block
        values = self._kept.get((split, block))
        if values is None:
            whole = slice(start, start + self._store.header.row_block)  # whichever rows of it are asked for next
            values = self._store.read(self._key, split, whole)
            values = values.reshape(len(values), -1)
            if values.nbytes <= self._room:
                self._room -= values.nbytes
                self._kept[split, block] = values
        return values[rows - start], self._store.labels(split)[rows].astype(np.int64)

    def moments(self, rows: RowSet) -> Moments:
        """Exact mean and deviation of rows, streamed: two passes, so that nothing cancels."""
        count = 0
        total = np.zeros(self.dimension)
        for split, piece in self.pieces(rows):
            values = self.piece(split, piece)[0]
            total += values.sum(axis=0, dtype=np.float64)
            count += len(values)
        mean = total / count
        squares = np.zeros(self.dimension)
        for split, piece in self.pieces(rows):
            squares += np.square(self.piece(split, piece)[0].astype(np.float64) - mean).sum(axis=0)
        scale = np.sqrt(squares / count)
        scale[scale == 0] = 1.0
        return Moments(mean, scale)

    def load(self, rows: RowSet, moments: Moments) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
        """All rows at once: (n, D) float64 standardised, and (n,) labels. Raises ``ProbeError`` if they do not fit."""
        needed = 2 * 8 * sum(len(numbers) for numbers in rows.values()) * self.dimension
        memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
        if needed > memory:
            raise ProbeError(
                f"{self._key}: logreg needs {needed / 1e9:.3g} GB for its rows, and the machine has {memory / 1e9:.3g} GB; "
                "use --head linear, which streams, a smaller pool, or --limit"
            )
        parts = [self.piece(split, piece) for split, piece in self.pieces(rows)]
        features = np.concatenate([values for values, _ in parts]).astype(np.float64)
        features -= moments.mean
        features /= moments.scale
        return features, np.concatenate([labels for _, labels in parts])

    def in_order(self, rows: RowSet, moments: Moments) -> Iterator[tuple[NDArray[np.float32], NDArray[np.int64]]]:
        """(n, D) float32 standardised features and (n,) labels, row block by row block."""
        for split, piece in self.pieces(rows):
            values, labels = self.piece(split, piece)
            yield _standardise(values, moments), labels

    def shuffled(
        self, rows: RowSet, moments: Moments, batch_size: int, rng: np.random.Generator
    ) -> Iterator[tuple[NDArray[np.float32], NDArray[np.int64]]]:
        """Endless batches of exactly ``batch_size`` rows (all rows, if they are fewer).

        Rows are in random order on disk. An epoch visits the row blocks in a new order and shuffles within a buffer of
        them, so memory is bounded, and which batches come does not depend on what is kept in memory.
        """
        pieces = self.pieces(rows)
        batch_size = min(batch_size, sum(len(piece) for _, piece in pieces))
        most = max(1, _BUFFER_BYTES // (4 * self.dimension))
        features = np.empty((0, self.dimension), dtype=np.float32)
        labels = np.empty(0, dtype=np.int64)
        while True:
            for group in _groups([pieces[i] for i in rng.permutation(len(pieces))], most):
                parts = [self.piece(split, piece) for split, piece in group]
                new = np.concatenate([_standardise(values, moments) for values, _ in parts])
                order = rng.permutation(len(new))
                features = np.concatenate([features, new[order]])
                labels = np.concatenate([labels, np.concatenate([part for _, part in parts])[order]])
                whole = len(labels) - len(labels) % batch_size
                for start in range(0, whole, batch_size):
                    yield features[start : start + batch_size], labels[start : start + batch_size]
                features, labels = features[whole:], labels[whole:]


def _standardise(values: NDArray[Any], moments: Moments) -> NDArray[np.float32]:
    result = values.astype(np.float32)
    result -= moments.mean.astype(np.float32)
    result /= moments.scale.astype(np.float32)
    return result


def _groups(pieces: list[tuple[str, NDArray[np.int64]]], most: int) -> Iterator[list[tuple[str, NDArray[np.int64]]]]:
    """Consecutive pieces with at most so many rows together, at least one piece each."""
    group: list[tuple[str, NDArray[np.int64]]] = []
    count = 0
    for piece in pieces:
        if group and count + len(piece[1]) > most:
            yield group
            group, count = [], 0
        group.append(piece)
        count += len(piece[1])
    if group:
        yield group
