from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from diffssl.analysis.pictures import NoPicture
from diffssl.analysis.scope import pick_maps, pick_rows, pick_split, pick_vectors
from diffssl.store import FeatureKey, FeatureStore, UnknownFeatures
from diffssl.store.choice import Choice

MakeStore = Callable[..., FeatureStore]

SIZES = (8, 8, 8, 4, 2)  # of five blocks
KEYS = [FeatureKey(block, t, pool) for block in range(1, 6) for t in (10, 50, 90) for pool in (1, SIZES[block - 1])]
KEYS += [FeatureKey(1, 10, 4), FeatureKey(2, 10, 8, 1), FeatureKey(2, 10, 8, 0, 1)]


@pytest.fixture(scope="module")
def cells() -> Callable[[list[FeatureKey]], list[tuple[int, int | None, Any]]]:
    return lambda keys: [(key.block, key.timestep, key.pool) for key in keys]


@pytest.fixture
def store(make_store: MakeStore) -> FeatureStore:
    return make_store({"test": 70, "train": 80}, KEYS, sizes=SIZES, channels=2, left_out={KEYS[3]: ["c02/test-00002.png"]})


@pytest.mark.parametrize(("said", "picked"), [(None, "test"), ("train", "train")])
def test_the_split(store: FeatureStore, said: str | None, picked: str) -> None:
    assert pick_split(store, said) == picked
    with pytest.raises(UnknownFeatures, match="no split 'x'; the store has: test, train"):
        pick_split(store, "x")


def test_the_only_split(make_store: MakeStore) -> None:
    assert pick_split(make_store({"all": 64}), None) == "all"


def test_maps_are_the_largest_of_each_block(store: FeatureStore, cells: Any) -> None:
    keys, notes = pick_maps(store, "test", Choice(timesteps=[90, 10]), 8, 3)
    assert cells(keys) == [(b, t, SIZES[b - 1]) for b in (1, 2, 3, 4) for t in (10, 90)]
    assert notes == []
    assert all((key.draw, key.crop) == (0, 0) for key in keys)


def test_blocks_without_maps_are_named(store: FeatureStore, cells: Any) -> None:
    choice = Choice(blocks={4: set(), 5: set()}, timesteps=[10])
    keys, notes = pick_maps(store, "test", choice, 8, 3)
    assert cells(keys) == [(4, 10, 4)]
    assert notes == ["without block 5: no map of at least 4x4 is stored"]
    keys, _ = pick_maps(store, "test", Choice(blocks={5: set()}, pools=[2], timesteps=[10]), 8, 3)
    assert cells(keys) == [(5, 10, 2)]
    with pytest.raises(NoPicture, match=r"no maps of at least 4x4 among 6 settings, .* extract maps with --pools full"):
        pick_maps(store, "test", Choice(blocks={5: set()}), 8, 3)


def test_a_few_evenly_where_nothing_is_said(store: FeatureStore, cells: Any) -> None:
    keys, notes = pick_maps(store, "test", Choice(), 3, 2)
    assert cells(keys) == [(b, t, SIZES[b - 1]) for b in (1, 3, 4) for t in (10, 90)]
    assert notes == ["blocks 1, 3, 4 of 4; --blocks names others", "timesteps 10, 90 of 3; --timesteps names others"]


def test_vectors_are_the_smallest_of_one_timestep(store: FeatureStore, cells: Any) -> None:
    keys, notes = pick_vectors(store, "test", Choice(), 2)
    assert cells(keys) == [(1, 50, 1), (5, 50, 1)]
    assert notes == ["blocks 1, 5 of 5; --blocks names others", "timestep 50 of 3; --timesteps names others"]
    keys, notes = pick_vectors(store, "test", Choice(blocks={3: {8}}, timesteps=[10, 90]), 2)
    assert (cells(keys), notes) == ([(3, 10, 8), (3, 90, 8)], [])


def test_what_is_not_there_is_said(store: FeatureStore) -> None:
    with pytest.raises(UnknownFeatures, match="there is no block 9"):
        pick_vectors(store, "test", Choice(blocks={9: set()}), 2)


def test_rows(store: FeatureStore) -> None:
    (bad,) = store.journal.left_out("test", KEYS[3])
    ids = store.ids("test").tolist()
    assert pick_rows(store, "test", [ids[7], ids[3]], 6, KEYS) == [7, 3]
    assert pick_rows(store, "test", [], 70, KEYS) == [row for row in range(70) if row != bad]
    assert pick_rows(store, "test", [], 3, [KEYS[0]]) == [0, 1, 2]
    with pytest.raises(NoPicture, match=r"has no image 'dog.png'; it has 'c0\d/test-000\d\d.png', "):
        pick_rows(store, "test", ["dog.png"], 6, KEYS)
    with pytest.raises(NoPicture, match="could not be decoded"):
        pick_rows(store, "test", [ids[bad]], 6, KEYS)
