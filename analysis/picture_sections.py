"""Sections of the report that show images: what blocks see, and which images a setting takes for alike."""

from __future__ import annotations

from collections.abc import Sequence

from ..store import FeatureKey, FeatureStore
from ..store.choice import Choice
from .page import Picture, Pictures, Section, Words
from .scope import pick_maps, pick_rows, pick_split
from .sheets import Cell, Sheet, map_sheet, neighbour_sheet

_BLOCKS = 7
_TIMESTEPS = 3
_IMAGES = 4
_NEIGHBOURS = 8


def pictures_section(store: FeatureStore) -> Section:
    """Feature maps as colours, over blocks and timesteps.

    Raises:
        NoPicture: the store has no maps.
        UnknownFeatures: it has no thumbnails.
    """
    split = pick_split(store, None)
    keys, notes = pick_maps(store, split, Choice(), _BLOCKS, _TIMESTEPS)
    shown = [Words(f"{note} to diffssl-analyze pictures") for note in notes]
    return _section("Pictures", map_sheet(store, keys, split, pick_rows(store, split, [], _IMAGES, keys)), shown)


def neighbours_section(store: FeatureStore, key: FeatureKey) -> Section:
    """The images that are nearest to some images in one setting. Raises ``UnknownFeatures``: there are no thumbnails."""
    split = pick_split(store, None)
    rows = pick_rows(store, split, [], _IMAGES, [key])
    return _section("Neighbours", neighbour_sheet(store, [key], split, rows, _NEIGHBOURS))


def _section(name: str, sheet: Sheet, notes: Sequence[Words] = ()) -> Section:
    rows: list[tuple[str, list[Picture | None]]] = [
        (line, [_picture(strip.image), *(None if cell is None else _picture(cell) for cell in cells)])
        for strip in sheet.strips
        for line, cells in strip.lines.items()
    ]
    return Section(name, [*notes, Pictures(sheet.title, ["image", *sheet.columns], rows)], sheet.legend)


def _picture(cell: Cell) -> Picture:
    return Picture(cell.caption, cell.picture, bool(cell.same))
