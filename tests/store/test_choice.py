from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from diffssl.store import FeatureKey, FeatureStore, UnknownFeatures
from diffssl.store.choice import Choice, choose, matching

# Block 1 has a map of 4x4, block 2 one of 2x2.
A, B, C, D = FeatureKey(1, 10, 1), FeatureKey(1, 10, 4), FeatureKey(2, 10, 2), FeatureKey(2, 90, 2)
THERE = {"test": [A, B, C], "train": [A, B, C, D]}

CHOICES: list[tuple[dict[str, Any], dict[str, list[FeatureKey]]]] = [
    ({}, THERE),
    ({"splits": ["train"]}, {"train": [A, B, C, D]}),
    ({"splits": ["train", "test", "train"]}, THERE),
    ({"blocks": {2: set()}}, {"test": [C], "train": [C, D]}),
    ({"timesteps": [90]}, {"test": [], "train": [D]}),
    ({"pools": [2]}, {"test": [C], "train": [C, D]}),
    ({"pools": ["full"]}, {"test": [B, C], "train": [B, C, D]}),
    ({"pools": [1, "full"]}, THERE),
    ({"blocks": {1: {4}, 2: set()}, "pools": [2], "splits": ["test"]}, {"test": [B, C]}),
    ({"blocks": {1: {"full"}, 2: {"full"}}, "timesteps": [10]}, {"test": [B, C], "train": [B, C]}),
]

UNKNOWN: list[tuple[dict[str, Any], str]] = [
    ({"splits": ["val"]}, r"there is no split 'val'; the store has: test, train"),
    ({"blocks": {1: set(), 3: set()}}, r"there is no block 3 .*in test, train; there are: blocks 1 x .*; blocks 2 x "),
    ({"timesteps": [10, 11]}, "there is no timestep 11 in test, train"),
    ({"timesteps": [11], "crops": [0], "draws": [0]}, "there is no timestep 11 in test, train"),
    ({"pools": [1, 3]}, "there is no pool 3 "),  # taken as it is stored: nothing that is larger than a map means the map
    ({"pools": [8]}, "there is no pool 8 "),
    ({"blocks": {1: {2}}}, "there is no pool 2 of block 1 in"),
    ({"blocks": {1: {2, 4}}}, "there is no pool 2 of block 1 "),
    ({"blocks": {1: {1}, 2: ("full", 1)}}, "there is no pool 1 of block 2 "),
    ({"blocks": {1: set()}, "timesteps": [90]}, "there is no block 1 with the rest of the selection in test, train"),
    ({"splits": ["test"], "timesteps": [90]}, "there is no timestep 90 in test; there are: "),
]


@pytest.mark.parametrize(("choice", "chosen"), CHOICES, ids=str)
def test_choose(small: FeatureStore, choice: dict[str, Any], chosen: dict[str, list[FeatureKey]]) -> None:
    assert choose(small, Choice(**choice), THERE) == chosen
    assert matching(small, Choice(**choice), THERE) == chosen


@pytest.mark.parametrize(("choice", "text"), UNKNOWN, ids=str)
def test_what_is_not_there_is_named_with_what_is(small: FeatureStore, choice: dict[str, Any], text: str) -> None:
    with pytest.raises(UnknownFeatures, match=text):
        choose(small, Choice(**choice), THERE)


def test_nothing_of_a_name(small: FeatureStore) -> None:
    assert matching(small, Choice(blocks={3: set()}), THERE) == {"test": [], "train": []}


def test_draws_and_crops_are_chosen_by_number(small: FeatureStore) -> None:
    further = replace(B, draw=1), replace(B, crop=2)
    there = {"train": [B, *further]}
    assert matching(small, Choice(draws=[1]), there) == {"train": [further[0]]}
    assert choose(small, Choice(crops=[0], draws=[0]), there) == {"train": [B]}
    with pytest.raises(UnknownFeatures, match="there is no draw 3 "):
        choose(small, Choice(draws=[3]), there)
