"""Batches of features on a device, for training loops outside this project."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from ..store import Batch, FeatureKey, FeatureStore

if TYPE_CHECKING:
    import torch
    from torch import Tensor

_BUFFER_BYTES = 1 << 28  # of rows that are shuffled together


@dataclass(frozen=True)
class DeviceBatch:
    """Rows of some settings, aligned.

    Attributes:
        features: per setting, (n, C, p, p) float32 on the device.
        labels: (n,) int64 class numbers on the device, -1 for none.
        rows: (n,) int64 row numbers in the split, on the CPU.
    """

    features: list[Tensor]
    labels: Tensor
    rows: Tensor


class FeatureLoader:
    """Iterates over a split, an epoch each time, with bounded memory; the next buffer is read while one is used.

    Rows that were left out of any of the settings do not come. An epoch visits the row blocks in a new order and shuffles
    within a buffer of them; since rows are in random order on disk, that is a good shuffle.

    Args:
        store: to read from.
        keys: settings.
        split: name of the split.
        batch_size: rows of a batch; the last one of an epoch may be smaller.
        device: torch device or its name.
        shuffle: else rows come in the order of the store.
        seed: of the order, together with the number of the epoch.
        rows: the first so many rows; None for all that the extraction was asked for.

    Raises:
        UnknownFeatures, IncompleteFeatures: the store lacks some of it.
    """

    def __init__(
        self,
        store: FeatureStore,
        keys: Sequence[FeatureKey],
        split: str,
        batch_size: int = 256,
        device: torch.device | str = "cpu",
        shuffle: bool = True,
        seed: int = 0,
        rows: int | None = None,
    ) -> None:
        import torch  # takes seconds, so not before it is needed

        if batch_size < 1:
            raise ValueError(f"batch_size must be at least 1, got {batch_size}")
        self._store, self._keys, self._split = store, list(keys), split
        self._batch_size, self._device, self._shuffle, self._seed = batch_size, torch.device(device), shuffle, seed
        self._rows = range(store.wanted_rows(self._keys, split) if rows is None else min(rows, store.n_rows(split)))
        store.require(self._keys, split, self._rows)
        self._epoch = 0

    def __len__(self) -> int:
        """Batches of an epoch."""
        bad = {row for key in self._keys for row in self._store.journal.left_out(self._split, key) if row in self._rows}
        return -(-(len(self._rows) - len(bad)) // self._batch_size)

    def __iter__(self) -> Iterator[DeviceBatch]:
        """One epoch."""
        rng = np.random.default_rng([self._seed, self._epoch])
        self._epoch += 1
        left: Batch | None = None
        for buffer in self._buffers(rng):
            whole = buffer if left is None else _joined([left, buffer])
            order = rng.permutation(len(whole.rows)) if self._shuffle else np.arange(len(whole.rows))
            full = len(order) - len(order) % self._batch_size
            for start in range(0, full, self._batch_size):
                yield self._on_device(whole, order[start : start + self._batch_size])
            left = _taken(whole, order[full:])
        if left is not None and len(left.rows):
            yield self._on_device(left, np.arange(len(left.rows)))

    def _buffers(self, rng: np.random.Generator) -> Iterator[Batch]:
        """Row blocks joined to buffers, the next one read meanwhile."""
        height = self._store.header.row_block
        blocks = np.arange(-(-len(self._rows) // height))
        blocks = rng.permutation(blocks) if self._shuffle else blocks
        row_bytes = sum(
            self._store.layout(key, self._split).dtype.itemsize * int(np.prod(self._store.layout(key, self._split).row_shape))
            for key in self._keys
        )
        count = max(1, _BUFFER_BYTES // (row_bytes * height))
        groups = [blocks[start : start + count].tolist() for start in range(0, len(blocks), count)]

        def read(group: list[int]) -> Batch:
            return _joined([self._store.read_batch(self._keys, self._split, block, self._rows) for block in group])

        with ThreadPoolExecutor(1, thread_name_prefix="diffssl-read") as pool:
            ahead = [pool.submit(read, group) for group in groups[:1]]
            for following in [*groups[1:], None]:
                done = ahead.pop() if ahead else None
                ahead = [] if following is None else [pool.submit(read, following)]
                if done is not None:
                    yield done.result()

    def _on_device(self, batch: Batch, places: np.ndarray[tuple[int], np.dtype[np.int64]]) -> DeviceBatch:
        import torch

        def on(tensor: Tensor) -> Tensor:
            pinned = tensor.pin_memory() if self._device.type == "cuda" else tensor
            return pinned.to(self._device, non_blocking=True)

        # Half precision crosses the bus, and becomes single on the device.
        features = [on(torch.from_numpy(values[places])).float() for values in batch.features]
        labels = on(torch.from_numpy(batch.labels[places].astype(np.int64)))
        return DeviceBatch(features, labels, torch.from_numpy(batch.rows[places]))


def _joined(batches: Sequence[Batch]) -> Batch:
    features = [np.concatenate(parts) for parts in zip(*(batch.features for batch in batches), strict=True)]
    rows, labels = (np.concatenate([getattr(batch, name) for batch in batches]) for name in ("rows", "labels"))
    return Batch(rows, labels, features)


def _taken(batch: Batch, places: np.ndarray[tuple[int], np.dtype[np.int64]]) -> Batch:
    return Batch(batch.rows[places], batch.labels[places], [values[places] for values in batch.features])
