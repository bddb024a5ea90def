"""The same samples in several settings and stores: which rows, which settings, and maps averaged down."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import pytest
import torch
from diffssl.analysis.stored_rows import NothingInCommon, averaged, draws_of, select
from diffssl.store import FeatureKey, FeatureStore, IncompleteFeatures, UnknownFeatures
from diffssl.store.choice import Choice

MakeStore = Callable[..., FeatureStore]

A, B, C = FeatureKey(1, 10, 4), FeatureKey(2, 10, 2), FeatureKey(3, 90, 1)
ALL = Choice()


def ids(numbers: Sequence[int]) -> list[str]:
    return [f"c{i % 4}/{i:04d}.png" for i in numbers]


@pytest.mark.parametrize(("p", "side"), [(4, 4), (4, 2), (7, 3), (8, 5), (5, 1)])
def test_maps_are_averaged_as_torch_does(p: int, side: int) -> None:
    maps = np.random.default_rng(p).normal(size=(3, 2, p, p))
    expected = torch.nn.functional.adaptive_avg_pool2d(torch.from_numpy(maps), side).numpy()
    np.testing.assert_allclose(averaged(maps, side), expected, atol=1e-12)


def test_all_rows_of_all_settings_by_default(make_store: MakeStore) -> None:
    store = make_store({"train": 150}, [A, B])
    selected = select([store], [ALL], None, None)
    assert [one.key for one in selected.settings] == [A, B]
    assert [one.shape for one in selected.settings] == [(150, 128), (150, 32)]
    np.testing.assert_array_equal(selected.settings[0][:], store.read(A, "train").reshape(150, -1))
    np.testing.assert_array_equal(selected.settings[0][70:90], store.read(A, "train", slice(70, 90)).reshape(20, -1))
    assert selected.settings[0][5:5].shape == (0, 128)
    assert selected.settings[1].nbytes == 150 * 32 * 2
    np.testing.assert_array_equal(selected.labels, store.labels("train"))
    assert selected.notes == ["2 settings, split train, all 150 rows"]


def test_the_first_rows_are_a_random_sample(make_store: MakeStore) -> None:
    selected = select([make_store({"train": 150}, [A])], [ALL], None, 40)
    assert selected.settings[0].rows.tolist() == list(range(40))
    assert selected.notes == ["1 setting, split train, the first 40 of 150 rows, a random sample"]


def test_a_row_left_out_of_one_setting_is_left_out_of_all(make_store: MakeStore) -> None:
    names = ids(range(100))
    store = make_store({"train": names}, [A, B], left_out={A: names[:3], B: names[2:5]})
    selected = select([store], [ALL], None, None)
    assert [one.shape[0] for one in selected.settings] == [95, 95]
    assert not set(store.ids("train")[selected.settings[0].rows]) & set(names[:5])
    assert all(np.isfinite(one[:]).all() for one in selected.settings)
    assert selected.notes[0].endswith("rows that could not be decoded for one of the settings, left out of all: 5")
    alone = select([store], [Choice(blocks={1: set()})], None, None)
    assert len(alone.labels) == 97


def test_rows_of_stores_are_matched_by_their_ids(make_store: MakeStore) -> None:
    """Store one has samples 0 to 119, the other every third of 60 to 239; the first of those is damaged there."""
    one = make_store({"train": ids(range(120))}, [A, B], name="one.zarr")
    other = make_store({"train": ids(range(60, 240, 3))}, [C], name="other.zarr", left_out={C: ids([60])}, seed=1)
    selected = select([one, other], [ALL, ALL], None, None)
    names = [setting.store.ids("train")[setting.rows].tolist() for setting in selected.settings]
    assert names[0] == names[1] == names[2]
    assert sorted(names[0]) == sorted(ids(range(63, 120, 3)))
    expected = one.read(A, "train")[selected.settings[0].rows].reshape(19, -1)
    np.testing.assert_array_equal(selected.settings[0][:], expected)
    np.testing.assert_array_equal(selected.settings[0][3:9], expected[3:9])
    np.testing.assert_array_equal(selected.labels, one.labels("train")[selected.settings[0].rows])
    assert selected.notes == [
        f"{other.path}: rows that could not be decoded for one of the settings, left out of all: 1",
        f"{one.path}: rows that are not in every store, dropped: 101 of 120",
        f"{other.path}: rows that are not in every store, dropped: 40 of 59",
        "3 settings of 2 stores, split train, all 19 rows",
    ]


def test_each_store_has_its_own_choice_and_an_encoder_no_timesteps(make_store: MakeStore) -> None:
    encoder = FeatureKey(2, None, 1)
    one = make_store({"train": 60}, [A, B, C], name="one.zarr")
    other = make_store({"train": 60}, [encoder], name="other.zarr")
    choices = [Choice(blocks={1: set(), 2: set()}, timesteps=[10]), Choice(timesteps=[10])]
    assert [setting.key for setting in select([one, other], choices, None, None).settings] == [A, B, encoder]


def test_draws_are_all_taken_and_further_crops_are_not(make_store: MakeStore) -> None:
    keys = [FeatureKey(1, 10, 1), FeatureKey(1, 10, 1, draw=1), FeatureKey(1, 90, 1), FeatureKey(1, 10, 1, crop=1)]
    store = make_store({"train": 60}, keys)
    selected = select([store], [ALL], None, None)
    assert [one.key for one in selected.settings] == keys[:3]
    assert draws_of(selected.settings) == {(store.path, keys[0]): [0, 1], (store.path, keys[2]): [2]}
    assert [one.key for one in select([store], [Choice(draws=[1])], None, None).settings] == [keys[1]]


@pytest.mark.parametrize(
    ("splits", "meant"), [(["all"], "all"), (["train", "val", "test"], "val"), (["train", "test"], "test")], ids=str
)
def test_the_split_that_is_meant(make_store: MakeStore, splits: list[str], meant: str) -> None:
    store = make_store(dict.fromkeys(splits, 60), [A])
    assert select([store], [ALL], None, None).settings[0].split == meant
    assert select([store], [ALL], splits[0], None).settings[0].split == splits[0]


def test_splits_that_are_not_common_or_not_clear_are_told(make_store: MakeStore) -> None:
    one, other = make_store({"a": 60, "b": 60}, [A], name="one.zarr"), make_store({"c": 60}, [A], name="other.zarr")
    for stores in ([one], [one, other]):
        with pytest.raises(NothingInCommon, match=r"--split.*one\.zarr has a, b"):
            select(stores, [ALL] * len(stores), None, None)
    with pytest.raises(UnknownFeatures, match=r"there is no split 'd'"):
        select([one], [ALL], "d", None)


def test_stores_of_other_samples_have_nothing_in_common(make_store: MakeStore) -> None:
    stores = [make_store({"train": ids(range(start, start + 50))}, [A], name=f"{start}.zarr") for start in (0, 50)]
    with pytest.raises(NothingInCommon, match=r"no row of train is in all of .*0\.zarr, .*50\.zarr"):
        select(stores, [ALL, ALL], None, None)


def test_settings_that_are_not_there_are_told(make_store: MakeStore) -> None:
    store = make_store({"train": 60}, [A])
    with pytest.raises(UnknownFeatures, match="there is no block 2"):
        select([store], [Choice(blocks={2: set()})], None, None)


def test_rows_that_are_not_committed_are_told_before_any_is_read(make_store: MakeStore) -> None:
    store = make_store({"train": 200}, [A], only_blocks=[0, 2])
    assert select([store], [ALL], None, 64).settings[0].shape == (64, 128)
    with pytest.raises(IncompleteFeatures):
        select([store], [ALL], None, 65)


def test_a_pilot_is_as_many_rows_as_were_asked_for(make_store: MakeStore) -> None:
    assert select([make_store({"train": 200}, [A], limit=100)], [ALL], None, None).settings[0].shape == (100, 128)


@pytest.mark.parametrize(
    ("features", "widths", "note"),
    [
        (128, [128, 32, 8], None),
        (100, [72, 32, 8], "maps of 4x4 averaged to 3x3, 72 numbers, in blocks 1"),
        (31, [8, 8, 8], "maps of 2x2 averaged to 1x1, 8 numbers, in blocks 2"),
        (7, [8, 8, 8], "8 channels are more than 7 numbers, and stay, in blocks 1-3"),
    ],
    ids=str,
)
def test_maps_are_averaged_to_what_fits(make_store: MakeStore, features: int, widths: list[int], note: str | None) -> None:
    store = make_store({"train": 70}, [A, B, C])
    selected = select([store], [ALL], None, None, features)
    assert [one.shape[1] for one in selected.settings] == widths
    assert [one[:].shape[1] for one in selected.settings] == widths
    assert (note is None and len(selected.notes) == 1) or any(one.endswith(str(note)) for one in selected.notes)
    for one in selected.settings:
        assert one[:].nbytes == one.nbytes
    side = int((widths[0] // 8) ** 0.5)
    maps = averaged(store.read(A, "train"), side).reshape(70, -1)
    np.testing.assert_allclose(selected.settings[0][:], maps, atol=1e-12)
