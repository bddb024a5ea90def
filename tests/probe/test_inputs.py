"""What fits read: which settings are selected, and how they are put together."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from diffssl.probe import NothingToProbe, ProbeSpec
from diffssl.probe.inputs import FitInput, input_fields, make_inputs, read_keys, select_keys
from diffssl.store import FeatureKey, FeatureStore

MakeStore = Callable[..., FeatureStore]


def spec(store: FeatureStore, **options: Any) -> ProbeSpec:
    return ProbeSpec(Path(store.path), ["linear"], **options)


# Selection


@pytest.fixture
def small_map(make_store: MakeStore) -> FeatureStore:
    """Block 1 has a 4 x 4 map, stored at 1, 2 and 4; block 3 a 2 x 2 map, stored at 1 and 2."""
    keys = [FeatureKey(block, t, pool) for block, pools in ((1, (1, 2, 4)), (3, (1, 2))) for t in (10, 90) for pool in pools]
    return make_store({"train": 100, "test": 60}, keys, sizes=(4, 4, 2))


@pytest.mark.parametrize(
    ("selection", "expected"),
    [
        ({}, {(1, 1), (1, 2), (1, 4), (3, 1), (3, 2)}),
        ({"blocks": {3: set()}}, {(3, 1), (3, 2)}),
        ({"pools": [1]}, {(1, 1), (3, 1)}),
        ({"pools": [4]}, {(1, 4), (3, 2)}),
        ({"pools": [16]}, {(1, 4), (3, 2)}),
        ({"pools": ["full"]}, {(1, 4), (3, 2)}),
        ({"pools": [2, "full"]}, {(1, 2), (1, 4), (3, 2)}),
        ({"blocks": {1: {1}, 3: {"full"}}}, {(1, 1), (3, 2)}),
        ({"blocks": {1: {2}, 3: set()}, "pools": [1]}, {(1, 2), (3, 1)}),
        ({"blocks": {3: {8}}, "pools": [1]}, {(3, 2)}),
    ],
)
@pytest.mark.parametrize("timesteps", [None, [90]], ids=["all", "90"])
def test_selections_resolve_as_extraction_does(
    small_map: FeatureStore, selection: dict[str, Any], expected: set[tuple[int, int]], timesteps: list[int] | None
) -> None:
    chosen = select_keys(small_map, spec(small_map, timesteps=timesteps, **selection))
    assert len(chosen) == len(set(chosen))
    assert set(chosen) == {FeatureKey(block, t, pool) for block, pool in expected for t in timesteps or (10, 90)}


@pytest.mark.parametrize(
    ("selection", "named"),
    [
        ({"blocks": {2: set()}}, "no blocks 2 "),
        ({"blocks": {99: set(), 1: set()}}, "no blocks 99 "),
        ({"blocks": {99: set()}, "pools": [1]}, "no blocks 99 "),
        ({"blocks": {99: {8}}}, "no blocks 99 "),
        ({"timesteps": [10, 50]}, "no timesteps 50 "),
        ({"pools": [3], "blocks": {1: set()}}, "no pools 3 "),
        ({"pools": [1, 3]}, "no pools 3 "),
        ({"blocks": {1: {1, 3}}}, "no pools 3 of block 1 "),
    ],
)
def test_what_the_store_does_not_have_is_named_beside_what_it_has(
    small_map: FeatureStore, selection: dict[str, Any], named: str
) -> None:
    with pytest.raises(NothingToProbe) as caught:
        select_keys(small_map, spec(small_map, **selection))
    told, _, has = str(caught.value).partition("it has")
    assert named in told
    assert "blocks 1 x timesteps 10,90 x pools 1,2,4" in has
    assert "blocks 3 x timesteps 10,90 x pools 1,2" in has


# Putting together


def test_every_setting_is_an_input_of_its_own(small_map: FeatureStore) -> None:
    keys = select_keys(small_map, spec(small_map))
    found = make_inputs(small_map, spec(small_map), "linear", keys)
    assert found == [FitInput((key,)) for key in keys]
    assert (found[0].setting, found[0].timesteps) == (keys[0].path, 1)
    assert found[0].fields() == {"block": 1, "timestep": 10, "pool": 1, "draw": 0, "crop": 0}


def test_settings_side_by_side_are_one_input(small_map: FeatureStore) -> None:
    wanted = spec(small_map, concat=True)
    keys = select_keys(small_map, wanted)
    (one,) = make_inputs(small_map, wanted, "linear", keys)
    assert one == FitInput(tuple(keys))
    assert one.setting == [key.path for key in keys]
    assert one.fields()["block"] == [key.block for key in keys]
    assert one.timesteps == 2


def test_draws_are_put_side_by_side_each_on_its_own(make_store: MakeStore) -> None:
    keys = [FeatureKey(block, 10, 1, draw) for block in (1, 2) for draw in (0, 1)]
    store = make_store({"train": 70, "test": 70}, keys)
    found = make_inputs(store, spec(store, concat=True), "linear", select_keys(store, spec(store)))
    assert [one.keys for one in found] == [tuple(FeatureKey(block, 10, 1, draw) for block in (1, 2)) for draw in (0, 1)]
    assert [one.fields()["draw"] for one in found] == [0, 1]


def test_a_head_that_fuses_gets_all_blocks_of_a_timestep_then_of_the_next(small_map: FeatureStore) -> None:
    wanted = spec(small_map, blocks={1: {4}, 3: {2}})
    (one,) = make_inputs(small_map, wanted, "difformer", select_keys(small_map, wanted))
    assert one.keys == tuple(FeatureKey(block, t, pool) for t in (10, 90) for block, pool in ((1, 4), (3, 2)))
    assert one.timesteps == 2


def test_a_head_that_fuses_refuses_what_is_no_grid(make_store: MakeStore, small_map: FeatureStore) -> None:
    with pytest.raises(NothingToProbe, match=r"--head difformer wants each of its blocks at one pool.*selected are"):
        make_inputs(small_map, spec(small_map), "difformer", select_keys(small_map, spec(small_map)))
    holes = make_store({"train": 70, "test": 70}, [FeatureKey(1, 10, 1), FeatureKey(2, 90, 1)], name="holes.zarr")
    with pytest.raises(NothingToProbe, match="at each of its timesteps"):
        make_inputs(holes, spec(holes), "difformer", select_keys(holes, spec(holes)))


# Copies


@pytest.fixture
def copies(make_store: MakeStore) -> FeatureStore:
    """Block 1 has two draws, and a crop of train; block 2 has one draw."""
    both = [FeatureKey(1, 10, 1), FeatureKey(1, 10, 1, draw=1), FeatureKey(2, 10, 1)]
    make_store({"test": 70}, both)
    return make_store({"train": 70}, [*both, FeatureKey(1, 10, 1, crop=1)])


def test_copies_of_a_setting_are_one_input_and_crops_are_trained_on_alone(copies: FeatureStore) -> None:
    wanted = spec(copies, mix_copies=True)
    one, other = make_inputs(copies, wanted, "linear", select_keys(copies, wanted))
    assert one.keys == (FeatureKey(1, 10, 1),)
    assert one.copies == {"train": ((0, 0), (0, 1), (1, 0)), "test": ((0, 0), (1, 0))}
    assert other.copies == {"train": ((0, 0),), "test": ((0, 0),)}
    assert len({one, other, FitInput(one.keys)}) == 3  # usable as keys of a table
    assert FitInput(one.keys) != one


def test_settings_side_by_side_have_the_copies_of_all(copies: FeatureStore) -> None:
    wanted = spec(copies, mix_copies=True, concat=True)
    (one,) = make_inputs(copies, wanted, "linear", select_keys(copies, wanted))
    assert one.copies == {"train": ((0, 0),), "test": ((0, 0),)}


def test_what_is_read_of_a_split_is_what_its_copies_are(copies: FeatureStore) -> None:
    wanted = spec(copies, mix_copies=True)
    found = read_keys(make_inputs(copies, wanted, "linear", select_keys(copies, wanted)), ["train", "test"])
    draws = [FeatureKey(1, 10, 1), FeatureKey(1, 10, 1, draw=1), FeatureKey(2, 10, 1)]
    assert set(found["test"]) == set(draws)
    assert set(found["train"]) == {*draws, FeatureKey(1, 10, 1, crop=1)}
    assert read_keys([FitInput((draws[1],)), FitInput((draws[1], draws[0]))], ["all"]) == {"all": [draws[0], draws[1]]}


# What an input costs


def test_an_input_costs_the_deepest_block_of_each_timestep_and_the_bytes_of_all(small_map: FeatureStore) -> None:
    """In the small stores a forward pass to block b is 0.1 b GFLOP; 8 channels of float16."""
    alone = input_fields(small_map, FitInput((FeatureKey(1, 10, 2),)))
    assert alone == {"map_size": 4, "log_snr": None, "gflop": pytest.approx(0.1), "bytes": 8 * 4 * 2}
    keys = tuple(FeatureKey(block, t, 1) for t in (10, 90) for block in (1, 3))
    together = input_fields(small_map, FitInput(keys))
    assert together["map_size"] == [4, 2, 4, 2]
    assert together["log_snr"] == [None] * 4
    assert (together["gflop"], together["bytes"]) == (pytest.approx(0.6), 4 * 8 * 2)


def test_mixed_copies_cost_as_many_forward_passes_as_there_are_copies_to_train_on(copies: FeatureStore) -> None:
    wanted = spec(copies, mix_copies=True)
    one, other = make_inputs(copies, wanted, "linear", select_keys(copies, wanted))
    assert input_fields(copies, one)["gflop"] == pytest.approx(0.3)
    assert input_fields(copies, one)["bytes"] == 3 * input_fields(copies, FitInput(one.keys))["bytes"]
    assert input_fields(copies, other)["gflop"] == pytest.approx(0.2)


def test_the_log_snr_is_that_of_the_array(small_map: FeatureStore) -> None:
    path = Path(small_map.path) / "train/features/b1/p1/t10/zarr.json"
    document = json.loads(path.read_text())
    document["attributes"] = {"log_snr": 2.5}
    path.write_text(json.dumps(document))
    assert input_fields(small_map, FitInput((FeatureKey(1, 10, 1),)))["log_snr"] == 2.5
