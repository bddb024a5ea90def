from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from diffssl.analysis.page import Pictures
from diffssl.analysis.picture_sections import neighbours_section, pictures_section
from diffssl.analysis.pictures import NoPicture
from diffssl.store import FeatureKey, FeatureStore, UnknownFeatures

Build = Callable[..., FeatureStore]

KEYS = [FeatureKey(block, timestep, pool) for block in (1, 2) for timestep in (10, 90) for pool in (1, 4)]


def test_maps_and_neighbours_stand_beside_their_images(make_store: Build, add_pictures: Callable[..., Any]) -> None:
    store = make_store({"test": 60}, KEYS, separation=20)
    kept = add_pictures(store.path, "test")
    store = FeatureStore.open(store.path)
    (maps,) = pictures_section(store).parts
    assert isinstance(maps, Pictures)
    assert len(maps.columns) == 3, "the image and two blocks"
    assert [name for name, _ in maps.rows[:2]] == ["t 10", "t 90"]
    first = maps.rows[0][1]
    assert first[0] is not None
    assert np.array_equal(first[0].pixels, kept[0])
    assert {picture.pixels.shape for picture in first[1:] if picture is not None} == {(4, 4, 3)}
    (near,) = neighbours_section(store, KEYS[0]).parts
    assert isinstance(near, Pictures)
    framed = [picture.framed for _, line in near.rows for picture in line[1:] if picture is not None]
    assert sum(framed) > 0.9 * len(framed), "classes are far apart"
    assert near.rows[0][1][0] is not None
    assert not near.rows[0][1][0].framed


def test_stores_without_maps_or_thumbnails_say_so(make_store: Build) -> None:
    with pytest.raises(NoPicture, match="--pools full"):
        pictures_section(make_store({"test": 60}, KEYS[::2]))
    with pytest.raises(UnknownFeatures, match="--thumbnails 64"):
        neighbours_section(make_store({"test": 60}, KEYS, name="other.zarr"), KEYS[0])
