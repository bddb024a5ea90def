"""Of which settings and images of a store a picture is made, where not all is said."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar

import numpy as np

from ..store import FeatureKey, FeatureStore
from ..store.choice import Choice, choose
from .pictures import SMALLEST_MAP, NoPicture, check_rows

_Value = TypeVar("_Value")


def pick_split(store: FeatureStore, split: str | None) -> str:
    """The split that was named, else ``test`` where there is one, else the first."""
    if split is not None:
        store.n_rows(split)  # raises where it is unknown, and names those that there are
        return split
    if not store.splits:
        raise NoPicture(f"{store.path} has no images yet; run diffssl-extract first")
    return "test" if "test" in store.splits else store.splits[0]


def pick_maps(
    store: FeatureStore, split: str, choice: Choice, blocks: int, timesteps: int
) -> tuple[list[FeatureKey], list[str]]:
    """Settings to paint: for each block and timestep the largest map, of draw 0 and crop 0.

    Args:
        store: to choose from.
        split: name of the split.
        choice: what was said; maps below 4x4 are left out unless pools are among it.
        blocks: where none are named, so many evenly over those that there are.
        timesteps: as ``blocks``.

    Returns:
        The settings, and what should be said about what was left out.

    Raises:
        NoPicture: none has a map.
        UnknownFeatures: something that is named is not there.
    """
    least = SMALLEST_MAP if choice.pools is None else 2
    keys = _chosen(store, split, choice)
    drawable = [key for key in keys if isinstance(key.pool, int) and key.pool >= least]
    if not drawable:
        raise NoPicture(
            f"{store.path}: {split} has no maps of at least {least}x{least} among {len(keys)} settings, and a vector has no "
            "picture; extract maps with --pools full"
        )
    largest = _one_pool(drawable, max)
    kept, notes = _thin(largest, blocks if choice.blocks is None else None, timesteps if choice.timesteps is None else None)
    gone = {key.block for key in keys} - {key.block for key in drawable}
    if gone and choice.blocks is not None:
        notes.append(f"without block {', '.join(map(str, sorted(gone)))}: no map of at least {least}x{least} is stored")
    return kept, notes


def pick_vectors(store: FeatureStore, split: str, choice: Choice, settings: int) -> tuple[list[FeatureKey], list[str]]:
    """Settings to compare images by: for each block and timestep the smallest pool; raises and returns as :func:`pick_maps`.

    Args:
        store: to choose from.
        split: name of the split.
        choice: what was said.
        settings: where no blocks are named, so many blocks; where no timesteps are named, one.
    """
    smallest = _one_pool(_chosen(store, split, choice), min)
    if not smallest:
        raise NoPicture(f"{store.path}: {split} has no features to compare images by; run diffssl-extract first")
    return _thin(smallest, settings if choice.blocks is None else None, 1 if choice.timesteps is None else None)


def pick_rows(store: FeatureStore, split: str, ids: Sequence[str], n: int, keys: Sequence[FeatureKey]) -> list[int]:
    """Rows of the images that were named, else the first that have features at all settings.

    Raises:
        NoPicture: there is no such image, or it could not be decoded.
        CorruptStore: the ids are damaged.
    """
    if not ids:
        wanted = store.wanted_rows(keys, split)
        bad = {row for key in keys for row in store.journal.left_out(split, key)}
        return [row for row in range(min(wanted, n + len(bad))) if row not in bad][:n]
    row_of = {name: row for row, name in enumerate(store.ids(split).tolist())}
    unknown = [name for name in ids if name not in row_of]
    if unknown:
        known = ", ".join(repr(name) for name in list(row_of)[:3])
        raise NoPicture(f"{split} of {store.path} has no image {unknown[0]!r}; it has {known}, …")
    rows = [row_of[name] for name in ids]
    check_rows(store, keys, split, rows)
    return rows


def _chosen(store: FeatureStore, split: str, choice: Choice) -> list[FeatureKey]:
    return [key for key in choose(store, choice, {split: store.keys(split)})[split] if key.draw == 0 and key.crop == 0]


def _one_pool(keys: Sequence[FeatureKey], best: Callable[..., FeatureKey]) -> list[FeatureKey]:
    """One setting a block and timestep; a class token counts as the largest, so that it is taken where nothing else is."""
    cells: dict[tuple[int, int | None], list[FeatureKey]] = {}
    for key in keys:
        cells.setdefault((key.block, key.timestep), []).append(key)
    return [best(own, key=lambda key: key.pool if isinstance(key.pool, int) else 1 << 30) for own in cells.values()]


def _thin(keys: Sequence[FeatureKey], blocks: int | None, timesteps: int | None) -> tuple[list[FeatureKey], list[str]]:
    """At most so many blocks and timesteps, evenly over all; None for all."""
    notes = []
    kept = list(keys)
    for most, name in ((blocks, "block"), (timesteps, "timestep")):
        values = sorted({getattr(key, name) for key in kept}, key=lambda value: -1 if value is None else value)
        if most is not None and most < len(values):
            shown = evenly(values, most)
            kept = [key for key in kept if getattr(key, name) in shown]
            listed = ", ".join(map(str, shown))
            notes.append(f"{name}{'s' if most > 1 else ''} {listed} of {len(values)}; --{name}s names others")
    return sorted(kept, key=lambda key: key.order), notes


def evenly(values: Sequence[_Value], most: int) -> list[_Value]:
    """So many of the values, at even distances, the first and the last among them; of one, the middle."""
    places = np.linspace(0, len(values) - 1, most) if most > 1 else [(len(values) - 1) // 2]
    return [values[round(float(place))] for place in places]
