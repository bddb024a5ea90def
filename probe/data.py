"""Rows of one or several settings as float32 vectors, streamed by row block, standardised, from memory if they fit."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import cycle, islice
from threading import Lock
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..store import FeatureKey, FeatureStore
from .errors import ProbeError
from .protocol import RowSet, size
from .targets import Targets

MEMORY_BYTES = 1 << 30  # of raw features that are kept instead of read again, and of float32 ones on the device
_BUFFER_BYTES = 1 << 26  # of rows that are shuffled together; on disk they are in random order already

Copy = tuple[int, int]  # (draw, crop)
Piece = tuple[str, NDArray[np.int64]]  # split, and rows of one row block


@dataclass(frozen=True)
class Moments:
    """Exact mean and standard deviation of each feature, or of each number to predict.

    Attributes:
        mean: (D,) float64.
        scale: (D,) float64 standard deviation, 1 where a feature is constant.
    """

    mean: NDArray[np.float64]
    scale: NDArray[np.float64]

    @classmethod
    def none(cls, dimension: int) -> Moments:
        """Moments that change nothing, for recipes without standardisation."""
        return cls(np.zeros(dimension), np.ones(dimension))

    @cached_property
    def changes(self) -> bool:
        """Whether standardising with them changes anything."""
        return bool(self.mean.any() or (self.scale != 1).any())

    def on(self, device: torch.device) -> Callable[[Tensor], Tensor]:
        """A function that standardises (n, D) of float16 or float32 on a device, to new float32."""
        if not self.changes:
            return Tensor.float
        mean, scale = (torch.from_numpy(own.astype(np.float32)).to(device) for own in (self.mean, self.scale))
        return lambda values: values.to(torch.float32, copy=True).sub_(mean).div_(scale)

    def undone(self, values: NDArray[np.floating]) -> NDArray[np.floating]:
        """(..., D) float64 in the units that they had before they were standardised."""
        original: NDArray[np.floating] = values * self.scale + self.mean
        return original


@dataclass(frozen=True)
class Buffer:
    """Rows that are shuffled together: ``finish(features[index])`` and ``targets[index]``.

    Attributes:
        features: (N, D) on the device; more rows than those of the buffer where all rows stay there.
        targets: (N, ...) on the device.
        index: (n,) int64 places of the buffer's rows.
        finish: makes standardised float32 of rows. Of a batch it works in the caches, of a whole buffer it would not.
    """

    features: Tensor
    targets: Tensor
    index: Tensor
    finish: Callable[[Tensor], Tensor]

    def rows(self, places: Tensor) -> tuple[Tensor, Tensor]:
        """Features, not finished, and targets of some places."""
        return self.features.index_select(0, places), self.targets.index_select(0, places)  # faster than [places]


class ProbeData:
    """The rows of one or several settings, side by side.

    Args:
        store: to read from.
        keys: the settings; the features of a row are theirs, one after the other.
        targets: what is to be predicted.
        copies: split -> the (draw, crop) that each epoch takes turns with; None for those of the keys alone. Which copy of a
            row an epoch sees is a function of its row block and the number of the epoch.
        memory: bytes of raw row blocks to keep.
    """

    def __init__(
        self,
        store: FeatureStore,
        keys: Sequence[FeatureKey],
        targets: Targets,
        copies: Mapping[str, Sequence[Copy]] | None = None,
        memory: int = MEMORY_BYTES,
    ) -> None:
        self.keys = list(keys)
        self.targets = targets
        self._store = store
        self.copies_by_split = copies
        self._memory = memory
        self._room = memory
        self._kept: dict[tuple[str, int, Copy | None], NDArray[Any]] = {}
        self._keeping = Lock()  # a thread reads ahead

    @property
    def shapes(self) -> list[tuple[int, int, int]]:
        """(C, p, p) of each setting."""
        split = self._store.splits[0]
        return [self._store.layout(key, split).row_shape for key in self.keys]

    @property
    def _dtype(self) -> np.dtype[Any]:
        """Of features as they are stored."""
        return self._store.layout(self.keys[0], self._store.splits[0]).dtype

    @property
    def dimension(self) -> int:
        """Features of a row, D."""
        return sum(int(np.prod(shape)) for shape in self.shapes)

    def copies(self, split: str) -> Sequence[Copy | None]:
        """The copies of a split's rows; [None] for those of the keys alone."""
        return [None] if self.copies_by_split is None else self.copies_by_split[split]

    def scored_copies(self, split: str) -> Sequence[Copy | None]:
        """The copies that are scored: the noise draws of the canonical crop; [None] for those of the keys alone."""
        return [copy for copy in self.copies(split) if copy is None or copy[1] == 0]

    def pieces(self, rows: RowSet) -> list[Piece]:
        """Rows grouped by row block, in order."""
        height = self._store.header.row_block
        return [
            (split, piece)
            for split, numbers in rows.items()
            for piece in np.split(numbers, np.flatnonzero(np.diff(numbers // height)) + 1)
            if len(piece)
        ]

    def piece(self, split: str, rows: NDArray[np.int64], copy: Copy | None = None) -> NDArray[Any]:
        """Raw (n, D) features, as stored, of rows of one row block; ``copy`` None for the split's first."""
        copy = copy or self.copies(split)[0]
        block = int(rows[0]) // self._store.header.row_block
        start = block * self._store.header.row_block
        values = self._kept.get((split, block, copy))
        if values is None:
            whole = slice(start, start + self._store.header.row_block)  # whichever rows of it are asked for next
            values = self._read(split, whole, copy)
            with self._keeping:
                if values.nbytes <= self._room and (split, block, copy) not in self._kept:
                    self._room -= values.nbytes
                    self._kept[split, block, copy] = values
        return values[rows - start]

    def moments(self, rows: RowSet) -> Moments:
        """Exact mean and deviation of all copies of rows, streamed: two passes, so that nothing cancels."""
        count = 0
        total = np.zeros(self.dimension)
        for split, numbers, copy in self._walk(rows, every=True):
            values = self.piece(split, numbers, copy)
            total += values.sum(axis=0, dtype=np.float64)
            count += len(values)
        mean = total / count
        squares = np.zeros(self.dimension)
        for split, numbers, copy in self._walk(rows, every=True):
            values = self.piece(split, numbers, copy)
            squares += np.square(values.astype(np.float64) - mean).sum(axis=0)
        scale = np.sqrt(squares / count)
        scale[scale == 0] = 1.0
        return Moments(mean, scale)

    def fits_in_memory(self, rows: RowSet) -> bool:
        """Whether rows and a working copy of them, in float64, are less than half of the machine's memory."""
        return 2 * 2 * 8 * self._copied(rows) * self.dimension <= os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")

    def _copied(self, rows: RowSet) -> int:
        return sum(len(numbers) * len(self.copies(split)) for split, numbers in rows.items())

    def load(self, rows: RowSet, moments: Moments, every: bool = False) -> tuple[NDArray[np.float64], NDArray[Any]]:
        """All rows at once: (n, D) float64 standardised, and (n, ...) targets; with ``every``, all copies of each row.

        Raises:
            ProbeError: they do not fit in memory.
        """
        if not self.fits_in_memory(rows):
            raise ProbeError(
                f"{self}: {size(rows)} rows of {self.dimension} features do not fit in memory at once; "
                "use a head that streams, such as linear, a smaller pool, or --limit"
            )
        parts = [(self.piece(split, own, copy), self._targets(split, own)) for split, own, copy in self._walk(rows, every)]
        features = np.concatenate([values for values, _ in parts]).astype(np.float64)
        features -= moments.mean
        features /= moments.scale
        return features, np.concatenate([own for _, own in parts])

    def in_order(
        self, rows: RowSet, moments: Moments, copy: Copy | None = None, every: bool = False
    ) -> Iterator[tuple[NDArray[np.float32], NDArray[Any]]]:
        """(n, D) float32 standardised features and (n, ...) targets, row block by row block, the next one read meanwhile.

        Args:
            rows: in this order.
            moments: to standardise with.
            copy: which one; None for the split's first.
            every: all copies of each row block instead, one after the other.
        """

        def read(piece: tuple[str, NDArray[np.int64], Copy | None]) -> tuple[NDArray[np.float32], NDArray[Any]]:
            split, numbers, own = piece
            return _standardise(self.piece(split, numbers, copy or own), moments), self._targets(split, numbers)

        with ThreadPoolExecutor(1, thread_name_prefix="diffssl-read") as pool:
            pieces = self._walk(rows, every)
            ahead = [pool.submit(read, piece) for piece in islice(pieces, 1)]
            while ahead:
                done = ahead.pop()
                ahead += [pool.submit(read, piece) for piece in islice(pieces, 1)]
                yield done.result()

    def buffers(self, rows: RowSet, moments: Moments, rng: np.random.Generator, device: torch.device) -> Iterator[Buffer]:
        """Rows over and over, an epoch after the other, in buffers whose rows are to be shuffled.

        Rows are in random order on disk. An epoch visits the row blocks in a new order, and a buffer holds some of them, so
        memory is bounded. What comes depends on ``rng`` alone, not on what is kept in memory: rows that fit stay on the device.
        A buffer is good until the next is asked for.
        """
        pieces = self.pieces(rows)
        n_copies = [len(self.copies(split)) for split, _ in pieces]
        most = max(1, _BUFFER_BYTES // (4 * self.dimension))
        plans = _plans([len(numbers) for _, numbers in pieces], n_copies, most, rng)
        if 4 * self.dimension * sum(len(piece[1]) * n for piece, n in zip(pieces, n_copies, strict=True)) <= self._memory:
            yield from self._resident(pieces, plans, moments, device)
            return

        lengths = [len(numbers) for _, numbers in pieces]
        height = min(max(most, *lengths), sum(lengths))
        # Two memories in turn, since to be given new memory takes longer than to fill it.
        memories = cycle([np.empty((height, self.dimension), self._dtype) for _ in range(2)])
        finish = moments.on(device)

        def assemble(plan: list[tuple[int, int]]) -> Buffer:
            memory, n, targets = next(memories), 0, []
            for place, turn in plan:
                values, own = self._part(pieces[place], turn)
                memory[n : n + len(values)] = values
                n += len(values)
                targets.append(own)
            index = torch.arange(n, device=device)
            return Buffer(_on(memory[:n], device), _on(np.concatenate(targets), device), index, finish)

        with ThreadPoolExecutor(1, thread_name_prefix="diffssl-read") as pool:
            ahead = pool.submit(assemble, next(plans))
            while True:
                done, ahead = ahead.result(), pool.submit(assemble, next(plans))
                yield done

    def _resident(
        self, pieces: Sequence[Piece], plans: Iterator[list[tuple[int, int]]], moments: Moments, device: torch.device
    ) -> Iterator[Buffer]:
        """Buffers that are places in rows which are all on the device, standardised once."""
        places: dict[tuple[int, int], tuple[int, int]] = {}
        parts, targets = [], []
        start, standardise = 0, moments.on(device)
        for place, (split, numbers) in enumerate(pieces):
            for turn in range(len(self.copies(split))):
                values, own = self._part((split, numbers), turn)
                parts.append(standardise(_on(values, device)))
                targets.append(own)
                places[place, turn] = (start, start + len(numbers))
                start += len(numbers)
        features, answers = torch.cat(parts), _on(np.concatenate(targets), device)
        del parts
        for plan in plans:
            index = np.concatenate([np.arange(*places[one]) for one in plan])
            yield Buffer(features, answers, _on(index, device), Tensor.float)

    def _part(self, piece: Piece, turn: int) -> tuple[NDArray[Any], NDArray[Any]]:
        split, numbers = piece
        return self.piece(split, numbers, self.copies(split)[turn]), self._targets(split, numbers)

    def _walk(self, rows: RowSet, every: bool) -> Iterator[tuple[str, NDArray[np.int64], Copy | None]]:
        """Pieces in order, with the first or every copy."""
        for split, numbers in self.pieces(rows):
            for copy in self.copies(split)[: None if every else 1]:
                yield split, numbers, copy

    def _targets(self, split: str, rows: NDArray[np.int64]) -> NDArray[Any]:
        values: NDArray[Any] = self.targets.values[split][rows]
        return values

    def _read(self, split: str, rows: slice, copy: Copy | None) -> NDArray[Any]:
        keys = self.keys if copy is None else [replace(key, draw=copy[0], crop=copy[1]) for key in self.keys]
        parts = [self._store.read(key, split, rows) for key in keys]
        flat = [values.reshape(len(values), -1) for values in parts]
        return flat[0] if len(flat) == 1 else np.concatenate(flat, axis=1)

    def __str__(self) -> str:
        """The settings in words."""
        return "; ".join(map(str, self.keys))


class Batches:
    """Cuts buffers into batches of one size, in an order of its own; what is left of one goes before the next.

    Args:
        batch_size: rows of every batch.
        rng: of the order.
    """

    def __init__(self, batch_size: int, rng: np.random.Generator) -> None:
        self._batch_size = batch_size
        self._rng = rng
        self._left: tuple[Tensor, Tensor] | None = None

    def cut(self, buffer: Buffer) -> Iterator[tuple[Tensor, Tensor]]:
        """(batch_size, D) standardised float32 features and (batch_size, ...) targets."""
        index = buffer.index[_on(self._rng.permutation(len(buffer.index)), buffer.index.device)]
        if self._left is not None:
            features, targets = self._left
            wanted = index[: self._batch_size - len(targets)]
            more, answers = buffer.rows(wanted)
            features, targets = torch.cat([features, more]), torch.cat([targets, answers])
            index = index[len(wanted) :]
            self._left = None
            if len(targets) < self._batch_size:
                self._left = features, targets
                return
            yield buffer.finish(features), targets
        whole = len(index) - len(index) % self._batch_size
        for places in torch.split(index[:whole], self._batch_size) if whole else ():
            features, targets = buffer.rows(places)
            yield buffer.finish(features), targets
        if whole < len(index):
            self._left = buffer.rows(index[whole:])


def _plans(
    lengths: Sequence[int], n_copies: Sequence[int], most: int, rng: np.random.Generator
) -> Iterator[list[tuple[int, int]]]:
    """Endless buffers as (piece, turn) pairs: pieces in a new order each epoch, at most ``most`` rows, at least one piece."""
    epoch = 0
    while True:
        plan: list[tuple[int, int]] = []
        count = 0
        for place in rng.permutation(len(lengths)).tolist():
            if plan and count + lengths[place] > most:
                yield plan
                plan, count = [], 0
            plan.append((place, (place + epoch) % n_copies[place]))
            count += lengths[place]
        yield plan
        epoch += 1


def _standardise(values: NDArray[Any], moments: Moments) -> NDArray[np.float32]:
    result = values.astype(np.float32)
    if moments.changes:
        result -= moments.mean.astype(np.float32)
        result /= moments.scale.astype(np.float32)
    return result


def _on(values: NDArray[Any], device: torch.device) -> Tensor:
    tensor = torch.from_numpy(values)
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor.to(device)
