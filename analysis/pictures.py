"""Feature maps as pictures: their first three principal components as red, green and blue.

What a map has at a place in every image (a U-Net's padding shows far into its maps) is subtracted first: it would be all
that deep blocks' pictures show.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ..store import DiffsslError, FeatureKey, FeatureStore
from .pieces import read_pieces, read_rows

FIT_ROWS = 1000
SMALLEST_MAP = 4
_PERCENTILES = (1, 99)
_MOST_POSITIONS = 1 << 20  # of which percentiles are taken


class NoPicture(DiffsslError):
    """A store has nothing that could be drawn as asked."""


@dataclass(frozen=True)
class MapColours:
    """How the maps of one setting become colours.

    Attributes:
        mean: (C, H, W) mean map of the rows it was fitted on.
        components: (3, C) principal axes, the first has the largest variance. The entry of largest magnitude of each is
            positive, so that a picture is the same whenever it is made. Zero where there are fewer than three.
        low: (3,) 1st percentile of what positions have on each axis, which is dark.
        high: (3,) 99th percentile, which is bright.
    """

    mean: NDArray[np.float64]
    components: NDArray[np.float64]
    low: NDArray[np.float64]
    high: NDArray[np.float64]

    def paint(self, maps: NDArray[np.floating]) -> NDArray[np.uint8]:
        """Colours of maps.

        Args:
            maps: (n, C, H, W).

        Returns:
            (n, H, W, 3) uint8; an axis on which all positions are equal is half bright.
        """
        n, _, height, width = maps.shape
        values = _positions(maps - self.mean) @ self.components.T
        spread = self.high - self.low
        scaled = np.where(spread > 0, (values - self.low) / np.where(spread > 0, spread, 1), 0.5)
        colours: NDArray[np.uint8] = np.rint(255 * np.clip(scaled, 0, 1)).astype(np.uint8)
        return colours.reshape(n, height, width, 3)


def fit_colours(store: FeatureStore, key: FeatureKey, split: str, rows: range) -> MapColours:
    """Fit principal components over all positions of the maps of some rows, in two passes with bounded memory.

    Args:
        store: to read.
        key: setting.
        split: name of the split.
        rows: to fit on.

    Raises:
        NoPicture: the setting has vectors and no maps, or all rows were left out.
        UnknownFeatures, IncompleteFeatures, CorruptStore: as ``FeatureStore.read``.
    """
    if not has_picture(key):
        raise NoPicture(f"{key} has no picture: it has no map of at least 2x2 positions")
    shape = store.layout(key, split).row_shape
    total, products, count = np.zeros(shape), np.zeros((shape[0], shape[0])), 0
    for _, maps in read_pieces(store, key, split, rows):
        positions = _positions(maps)
        total += maps.sum(axis=0, dtype=np.float64)
        products += positions.T @ positions
        count += len(maps)
    if not count:
        raise NoPicture(f"{split}, {key}: all of the {len(rows)} rows to fit colours on were left out")
    mean = total / count
    means = _positions(mean[None])
    components = _principal_axes(products / count - means.T @ means)
    values = _sample(store, key, split, rows, mean, components)
    low, high = np.percentile(values, _PERCENTILES, axis=0)
    return MapColours(mean, components, low, high)


def pca_images(
    store: FeatureStore, keys: Sequence[FeatureKey], split: str, rows: Sequence[int], fit_rows: int = FIT_ROWS
) -> dict[FeatureKey, NDArray[np.uint8]]:
    """Feature maps of some rows as pictures, each setting with colours of its own, fitted on the first rows of the split.

    Colours of two settings have nothing to do with each other; in one setting, positions of equal colour have similar
    features, in one image and from image to image.

    Args:
        store: to read.
        keys: settings with maps of at least 2x2.
        split: name of the split.
        rows: whose maps to paint.
        fit_rows: the first so many rows (a random sample of the split) are fitted on.

    Returns:
        Each setting -> (n, H, W, 3) uint8.

    Raises:
        NoPicture: a setting has no maps, or a row was left out.
        UnknownFeatures, IncompleteFeatures, CorruptStore: as ``FeatureStore.read``.
    """
    check_rows(store, keys, split, rows)
    pictures = {}
    for key in keys:
        colours = fit_colours(store, key, split, range(min(fit_rows, store.wanted_rows([key], split))))
        pictures[key] = colours.paint(read_rows(store, key, split, list(rows)))
    return pictures


def has_picture(key: FeatureKey) -> bool:
    """Whether a setting has maps with several positions."""
    return isinstance(key.pool, int) and key.pool > 1


def check_rows(store: FeatureStore, keys: Sequence[FeatureKey], split: str, rows: Sequence[int]) -> None:
    """Raise ``NoPicture`` if a row was left out of a setting."""
    for key in keys:
        left_out = store.journal.left_out(split, key)
        bad = next((left_out[row] for row in rows if row in left_out), None)
        if bad is not None:
            raise NoPicture(f"{split} {bad.id!r} has no features at {key}: it could not be decoded ({bad.reason})")


def _sample(
    store: FeatureStore,
    key: FeatureKey,
    split: str,
    rows: range,
    mean: NDArray[np.float64],
    components: NDArray[np.float64],
) -> NDArray[np.float64]:
    """(n, 3) values on the axes of the positions of the first rows, about a million at most."""
    found, count = [], 0
    for _, maps in read_pieces(store, key, split, rows):
        found.append(_positions(maps - mean) @ components.T)
        count += len(found[-1])
        if count >= _MOST_POSITIONS:
            break
    return np.concatenate(found)


def _positions(maps: NDArray[np.floating]) -> NDArray[np.float64]:
    """(n, C, H, W) -> (n * H * W, C) float64."""
    return maps.transpose(0, 2, 3, 1).reshape(-1, maps.shape[1]).astype(np.float64)


def _principal_axes(covariance: NDArray[np.float64]) -> NDArray[np.float64]:
    """(C, C) -> (3, C), with the sign of each fixed."""
    _, vectors = np.linalg.eigh(covariance)
    axes = np.zeros((3, len(covariance)))
    own = vectors.T[::-1][:3]
    largest = own[np.arange(len(own)), np.abs(own).argmax(axis=1)]
    axes[: len(own)] = own * np.sign(largest)[:, None]
    return axes
