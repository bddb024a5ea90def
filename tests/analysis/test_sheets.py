from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from diffssl.analysis.neighbours import nearest
from diffssl.analysis.pictures import pca_images
from diffssl.analysis.sheets import map_sheet, neighbour_sheet
from diffssl.store import FeatureKey, FeatureStore, UnknownFeatures
from numpy.typing import NDArray

MakeStore = Callable[..., FeatureStore]
AddPictures = Callable[..., NDArray[np.uint8]]

MAPS = [FeatureKey(1, 10, 4), FeatureKey(1, 90, 4), FeatureKey(2, 90, 2)]


def test_maps_are_beside_their_images(make_store: MakeStore, add_pictures: AddPictures) -> None:
    path = make_store({"all": 70}, MAPS).path
    pictures = add_pictures(path, "all")
    store = FeatureStore.open(path)
    sheet = map_sheet(store, MAPS, "all", [5, 2], fit_rows=50)
    painted = pca_images(store, MAPS, "all", [5, 2], fit_rows=50)
    assert sheet.columns == ["block 1\nRes\n4x4", "block 2\nRes\n2x2 of 4x4"]
    assert "on 50 images" in sheet.legend
    for i, row in enumerate([5, 2]):
        strip = sheet.strips[i]
        np.testing.assert_array_equal(strip.image.picture, pictures[row])
        assert strip.image.caption == store.classes[store.labels("all")[row]]
        assert list(strip.lines) == ["t 10", "t 90"]
        first, nothing = strip.lines["t 10"]
        assert nothing is None
        assert first is not None
        np.testing.assert_array_equal(first.picture, painted[MAPS[0]][i])


def test_neighbours_are_shown_with_their_classes(make_store: MakeStore, add_pictures: AddPictures) -> None:
    keys = [FeatureKey(1, 10, 1), FeatureKey(2, None, 1)]
    ids = [f"c{i % 3}/{i:03d}.png" for i in range(90)] + [f"{i}.png" for i in range(5)]  # the last have no label
    path = make_store({"all": ids}, keys, separation=6).path
    pictures = add_pictures(path, "all", left_out=[3])
    store = FeatureStore.open(path)
    labels = store.labels("all")
    unlabelled = int(np.flatnonzero(labels < 0)[0])
    rows = [0 if labels[0] >= 0 else 1, unlabelled]
    sheet = neighbour_sheet(store, keys, "all", rows, 4)
    assert sheet.columns == ["1.", "2.", "3.", "4."]
    assert list(sheet.strips[0].lines) == ["block 1\nt 10\npool 1", "block 2\npool 1"]
    found, similar = nearest(store, keys[0], "all", rows, 4)
    hits = []
    for i, row in enumerate(rows):
        for cell, number, value in zip(sheet.strips[i].lines["block 1\nt 10\npool 1"], found[i], similar[i], strict=True):
            assert cell is not None
            np.testing.assert_array_equal(cell.picture, pictures[number])
            known = labels[row] >= 0 and labels[number] >= 0
            assert cell.same == (bool(labels[row] == labels[number]) if known else None)
            assert cell.caption.split("\n")[-1] == f"{value:.2f}"
            hits += [cell.same] if cell.same is not None else []
    assert f"block 1, t 10: {np.mean(hits):.0%}" in sheet.legend
    assert sheet.strips[1].image.caption == ""


def test_a_store_without_thumbnails_has_no_sheet(make_store: MakeStore) -> None:
    store = make_store({"all": 70}, MAPS)
    with pytest.raises(UnknownFeatures, match="diffssl-extract --thumbnails 64"):
        map_sheet(store, MAPS, "all", [0])
    with pytest.raises(UnknownFeatures, match="diffssl-extract --thumbnails 64"):
        neighbour_sheet(store, MAPS, "all", [0], 3)
