"""The same samples in settings of one store or several, as (n, d) features that are read as they are needed."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..store import DiffsslError, FeatureKey, FeatureStore
from ..store.choice import Choice, choose
from ..store.selection import format_numbers

_READ_BYTES = 1 << 25  # of rows as they are stored, at a time
_PREFERRED = ("val", "test")  # splits, where several could be meant


class NothingInCommon(DiffsslError):
    """The stores have no split or no rows in common, or the selection leaves no settings."""


@dataclass(frozen=True)
class StoredRows:
    """Rows of one setting; ``rows[a:b]`` reads (b - a, d) of them, flat.

    Attributes:
        store: that has them.
        split: of it.
        key: the setting.
        rows: (n,) int64 row numbers, ascending.
        side: of the map that a stored map is averaged to before it is flattened; None for the map as it is stored.
    """

    store: FeatureStore
    split: str
    key: FeatureKey
    rows: NDArray[np.int64]
    side: int | None = None

    @property
    def shape(self) -> tuple[int, int]:
        """(n, d)."""
        channels, height, width = self.store.layout(self.key, self.split).row_shape
        return len(self.rows), channels * (height * width if self.side is None else self.side**2)

    @property
    def nbytes(self) -> int:
        """Bytes of all rows as they are read."""
        dtype = np.dtype(np.float64) if self.side is not None else self.store.layout(self.key, self.split).dtype
        return int(np.prod(self.shape)) * dtype.itemsize

    def __getitem__(self, rows: slice) -> NDArray[Any]:
        """(m, d) as stored, or float64 where maps are averaged. Raises as ``FeatureStore.read``."""
        wanted = self.rows[rows]
        layout = self.store.layout(self.key, self.split)
        most = max(1, _READ_BYTES // (layout.dtype.itemsize * int(np.prod(layout.row_shape))))
        parts: list[NDArray[Any]] = [np.empty((0, self.shape[1]), dtype=layout.dtype)]
        start = 0
        while start < len(wanted):  # rows may be far apart
            stop = int(np.searchsorted(wanted, wanted[start] + most))
            own = wanted[start:stop]
            values = self.store.read(self.key, self.split, slice(int(own[0]), int(own[-1]) + 1))
            values = values if len(values) == len(own) else values[own - own[0]]
            parts.append((values if self.side is None else averaged(values, self.side)).reshape(len(own), -1))
            start = stop
        return np.concatenate(parts[1:] or parts)

    def __str__(self) -> str:
        """Store and setting."""
        return f"{self.store.path}, {self.key}"


@dataclass(frozen=True)
class Selected:
    """What is to be analysed.

    Attributes:
        settings: the rows of each setting; row i of all of them is the same sample.
        labels: (n,) int32 of the rows by the first store, -1 for none.
        notes: what was chosen and what was left out, for people.
    """

    settings: list[StoredRows]
    labels: NDArray[np.int32]
    notes: list[str]


def select(
    stores: Sequence[FeatureStore], choices: Sequence[Choice], split: str | None, n: int | None, features: int | None = None
) -> Selected:
    """Find the rows that all chosen settings of all stores have.

    Rows of several stores are matched by their ids. A row that was left out of any of the settings is left out of all.

    Args:
        stores: one or several.
        choices: of the settings of each; splits and crops in them do not count (crop 0 is taken), nor do timesteps for a
            store of an encoder that has none.
        split: of all stores; None for the one that they have in common, or of several ``val``, else ``test``.
        n: at most so many rows, the first in row order, which are a random sample; None for all.
        features: average each map to the largest side at which it has at most so many numbers; None for maps as stored.

    Raises:
        NothingInCommon: no split, setting or row is left.
        UnknownFeatures: a split or something that is chosen by name is not there.
        IncompleteFeatures: rows are not committed yet.
    """
    name = common_split(stores) if split is None else split
    keys = [_keys(store, choice, name) for store, choice in zip(stores, choices, strict=True)]
    kept, notes = _matched(stores, keys, name)
    whole = len(kept[0])
    kept = [rows[:n] for rows in kept]
    count = sum(map(len, keys))
    what = f"{count} setting{'s' if count > 1 else ''}" + (f" of {len(stores)} stores" if len(stores) > 1 else "")
    size = "all" if len(kept[0]) == whole else f"the first {len(kept[0])} of"
    notes.append(f"{what}, split {name}, {size} {whole} rows" + ("" if size == "all" else ", a random sample"))
    settings = []
    for store, own, rows in zip(stores, keys, kept, strict=True):
        store.require(own, name, range(int(rows[-1]) + 1))
        settings += [StoredRows(store, name, key, rows) for key in own]
    if features is not None:
        settings, more = _bounded(settings, features)
        notes += more
    return Selected(settings, stores[0].labels(name)[kept[0]], notes)


def averaged(maps: NDArray[Any], side: int) -> NDArray[np.float64]:
    """Average (n, C, p, p) maps to (n, C, side, side), as adaptive average pooling does.

    Place i of a side is the mean of places floor(i p / side) to ceil((i + 1) p / side) - 1.
    """
    p = maps.shape[-1]
    weights = np.zeros((side, p))
    for i in range(side):
        weights[i, i * p // side : -(-(i + 1) * p // side)] = 1
    weights /= weights.sum(axis=1, keepdims=True)
    result: NDArray[np.float64] = weights @ maps.astype(np.float64) @ weights.T
    return result


def common_split(stores: Sequence[FeatureStore]) -> str:
    """The one split that all stores have, or of several ``val``, else ``test``. Raises ``NothingInCommon``."""
    common = [name for name in stores[0].splits if all(name in store.splits for store in stores)]
    for name in common if len(common) == 1 else _PREFERRED:
        if name in common:
            return name
    have = "; ".join(f"{store.path} has {', '.join(store.splits) or 'none'}" for store in stores)
    raise NothingInCommon(f"say which split is meant by --split, one that all have: {have}")


def _keys(store: FeatureStore, choice: Choice, split: str) -> list[FeatureKey]:
    there = {name: store.keys(name) for name in store.splits}
    encoder = all(key.timestep is None for key in there.get(split, ()))
    meant = replace(choice, splits=[split], crops=[0], timesteps=None if encoder else choice.timesteps)
    keys = choose(store, meant, there)[split]
    if not keys:
        raise NothingInCommon(f"{store.path} has no settings in {split} that are selected; run diffssl-extract first")
    return keys


def _matched(
    stores: Sequence[FeatureStore], keys: Sequence[Sequence[FeatureKey]], split: str
) -> tuple[list[NDArray[np.int64]], list[str]]:
    """Row numbers in each store of the rows that all have, ascending; and what was dropped."""
    wanted = [store.wanted_rows(own, split) for store, own in zip(stores, keys, strict=True)]
    bad = [
        {row for key in own for row in store.journal.left_out(split, key) if row < stop}
        for store, own, stop in zip(stores, keys, wanted, strict=True)
    ]
    kept = [np.delete(np.arange(stop), sorted(left)) for stop, left in zip(wanted, bad, strict=True)]
    notes = [
        f"{store.path}: rows that could not be decoded for one of the settings, left out of all: {len(left)}"
        for store, left in zip(stores, bad, strict=True)
        if left
    ]
    if len(stores) > 1:
        ids = [store.ids(split)[rows] for store, rows in zip(stores, kept, strict=True)]
        common = set(ids[0]).intersection(*ids[1:])
        kept = [rows[[one in common for one in own]] for rows, own in zip(kept, ids, strict=True)]
        notes += [
            f"{store.path}: rows that are not in every store, dropped: {len(own) - len(common)} of {len(own)}"
            for store, own in zip(stores, ids, strict=True)
            if len(own) > len(common)
        ]
    if not len(kept[0]):
        raise NothingInCommon(
            f"no row of {split} is in all of {', '.join(store.path for store in stores)}; rows go by their ids"
        )
    return kept, notes


def _bounded(settings: Sequence[StoredRows], features: int) -> tuple[list[StoredRows], list[str]]:
    """The settings, their maps averaged to at most so many numbers if need be; and what was done to which blocks."""
    bounded, blocks = [], dict[str, list[int]]()
    for one in settings:
        channels, side, _ = one.store.layout(one.key, one.split).row_shape
        fits = min(side, max(1, math.isqrt(features // channels)))
        bounded.append(one if fits == side else replace(one, side=fits))
        what = []
        if fits < side:
            what.append(
                f"{one.store.path}: maps of {side}x{side} averaged to {fits}x{fits}, {channels * fits**2} numbers, in blocks"
            )
        if channels > features:
            what.append(f"{one.store.path}: {channels} channels are more than {features} numbers, and stay, in blocks")
        for text in what:
            blocks.setdefault(text, []).append(one.key.block)
    return bounded, [f"{text} {format_numbers(numbers)}" for text, numbers in blocks.items()]


def draws_of(settings: Sequence[StoredRows]) -> Mapping[tuple[str, FeatureKey], list[int]]:
    """(path of the store, setting as draw 0) -> which of ``settings`` are draws of it."""
    found: dict[tuple[str, FeatureKey], list[int]] = {}
    for number, one in enumerate(settings):
        found.setdefault((one.store.path, replace(one.key, draw=0)), []).append(number)
    return found
