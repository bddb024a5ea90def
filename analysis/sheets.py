"""Pictures of a store put together: for each image a strip of lines, in the same columns. What is drawn, not how."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ..store import NO_LABEL, FeatureKey, FeatureStore
from .neighbours import nearest
from .pictures import FIT_ROWS, pca_images


@dataclass(frozen=True)
class Cell:
    """One small picture.

    Attributes:
        picture: (H, W, 3) uint8.
        caption: below it.
        same: whether its class is that of the image of the strip; None where that means nothing.
    """

    picture: NDArray[np.uint8]
    caption: str = ""
    same: bool | None = None


@dataclass(frozen=True)
class Strip:
    """One image and lines of pictures that belong to it.

    Attributes:
        image: the image itself.
        lines: name -> a cell a column, None where there is nothing.
    """

    image: Cell
    lines: Mapping[str, Sequence[Cell | None]]


@dataclass(frozen=True)
class Sheet:
    """Strips below each other.

    Attributes:
        title: what it is.
        legend: how to read it.
        columns: what is above each column.
        strips: one an image.
    """

    title: str
    legend: str
    columns: Sequence[str]
    strips: Sequence[Strip]


def map_sheet(
    store: FeatureStore, keys: Sequence[FeatureKey], split: str, rows: Sequence[int], fit_rows: int = FIT_ROWS
) -> Sheet:
    """Feature maps as colours: blocks side by side, timesteps below each other.

    Raises as :func:`~diffssl.analysis.pictures.pca_images` and ``FeatureStore.thumbnails``.
    """
    images = _images(store, split, rows)
    pictures = pca_images(store, keys, split, rows, fit_rows)
    blocks = sorted({key.block for key in keys})
    steps = sorted({key.timestep for key in keys}, key=lambda step: -1 if step is None else step)
    at = {(key.block, key.timestep): pictures[key] for key in keys}
    side = {key.block: key.pool for key in keys}
    strips = []
    for i in range(len(rows)):
        cells = {
            _step_name(step): [Cell(at[block, step][i]) if (block, step) in at else None for block in blocks] for step in steps
        }
        strips.append(Strip(images[i], cells))
    by_number = {block.number: block for block in store.header.blocks}
    columns = []
    for number in blocks:
        size = by_number[number].size
        pooled = f" of {size}x{size}" if side[number] != size else ""
        columns.append(f"block {number}\n{by_number[number].kind}\n{side[number]}x{side[number]}{pooled}")
    fitted = max(min(fit_rows, store.wanted_rows([key], split)) for key in keys)
    return Sheet(
        f"What each block sees: {store.header.model}, {split}",
        "Colours: the first three principal components of a block's map less its mean map (red, green, blue), fitted per block "
        f"and timestep on {fitted} images. Equal colours are similar features within a column and timestep; across, they mean "
        "nothing.",
        columns,
        strips,
    )


def neighbour_sheet(store: FeatureStore, keys: Sequence[FeatureKey], split: str, rows: Sequence[int], k: int) -> Sheet:
    """Nearest neighbours of images: the most similar first, settings below each other.

    Raises as :func:`~diffssl.analysis.neighbours.nearest` and ``FeatureStore.thumbnails``.
    """
    images = _images(store, split, rows)
    found = {key: nearest(store, key, split, rows, k) for key in keys}
    labels = store.labels(split)
    seen: dict[int, Cell] = {}
    strips = []
    hits: dict[FeatureKey, list[bool]] = {key: [] for key in keys}
    for i, row in enumerate(rows):
        lines: dict[str, list[Cell | None]] = {}
        for key, (numbers, similar) in found.items():
            line: list[Cell | None] = []
            for number, value in zip(numbers[i].tolist(), similar[i].tolist(), strict=True):
                if number not in seen:
                    (seen[number],) = _images(store, split, [number])
                known = NO_LABEL not in (labels[row], labels[number])
                same = bool(labels[row] == labels[number]) if known else None
                hits[key] += [] if same is None else [same]
                line.append(Cell(seen[number].picture, f"{seen[number].caption}\n{value:.2f}".strip(), same))
            lines[_setting_name(key)] = line
        strips.append(Strip(images[i], lines))
    shares = "; ".join(f"{_short_name(key)}: {np.mean(own):.0%}" for key, own in hits.items() if own)
    framed = f" Green frame: the class of the image at the left. Their share: {shares}." if shares else ""
    return Sheet(
        f"Nearest neighbours: {store.header.model}, {split}",
        "Below each: class, and cosine similarity of standardised features averaged over the map, among "
        f"{store.wanted_rows(keys, split)} images.{framed}",
        [f"{rank}." for rank in range(1, k + 1)],
        strips,
    )


def _images(store: FeatureStore, split: str, rows: Sequence[int]) -> list[Cell]:
    labels, classes = store.labels(split), store.classes
    names = [classes[labels[row]] if labels[row] != NO_LABEL else "" for row in rows]
    return [Cell(store.thumbnails(split, slice(row, row + 1))[0], name) for row, name in zip(rows, names, strict=True)]


def _step_name(step: int | None) -> str:
    return "" if step is None else f"t {step}"


def _setting_name(key: FeatureKey) -> str:
    return _short_name(key).replace(", ", "\n") + f"\npool {key.pool}"


def _short_name(key: FeatureKey) -> str:
    return f"block {key.block}" + ("" if key.timestep is None else f", t {key.timestep}")
