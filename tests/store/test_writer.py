from __future__ import annotations

import errno
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr
from diffssl.store import (
    DiffsslError,
    FeatureKey,
    FeatureStore,
    LeftOut,
    NotFinite,
    StoreHeader,
    UnitWriter,
    add_arrays,
    add_split,
    create,
)
from diffssl.store import layout as layout_module
from diffssl.store.journal import Commit
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

Build = Callable[..., FeatureStore]
Expected = Callable[[FeatureStore, FeatureKey, str], NDArray[Any]]
Ids = Callable[[str, int], NDArray[np.object_]]
Labels = Callable[[int], NDArray[np.int32]]
CommitUnit = Callable[..., Commit]

KEY = FeatureKey(2, 90, 2)


@pytest.fixture
def empty(tmp_path: Path, build: Build) -> FeatureStore:
    """Splits and arrays, but nothing committed."""
    return build(tmp_path / "feats.zarr", row_blocks=[])


def unit(store: FeatureStore, row_block: int = 0, keys: list[FeatureKey] | None = None) -> UnitWriter:
    size = store.header.row_block
    names = store.ids("train")[row_block * size : (row_block + 1) * size].tolist()
    return UnitWriter(store, "train", row_block, keys or [KEY], names)


def features_on_disk(store: FeatureStore) -> dict[str, bytes]:
    files = sorted(Path(store.path).rglob("c.*.0.0.0"))
    return {path.relative_to(Path(store.path)).as_posix(): path.read_bytes() for path in files}


def test_a_unit_is_there_after_its_commit(empty: FeatureStore, expected: Expected) -> None:
    values = expected(empty, KEY, "train")[:4]
    writer = unit(empty)
    writer.write({KEY: values[:3]}, {})
    writer.write({KEY: values[3:]}, {})
    assert FeatureStore.open(empty.path).missing([KEY], "train") == [0, 1, 2]
    commit = writer.commit(5, "diffssl-extract", {"torch": "2"})
    assert FeatureStore.open(empty.path).missing([KEY], "train") == [1, 2]
    np.testing.assert_array_equal(FeatureStore.open(empty.path).read(KEY, "train", slice(4)), values)
    assert empty.missing([KEY], "train") == [1, 2]
    assert (commit.split, commit.row_block, commit.timestep) == ("train", 0, 90)
    assert (commit.limit, commit.command, commit.versions) == (5, "diffssl-extract", {"torch": "2"})
    assert list(commit.arrays) == ["b2/p2/t90"]
    assert (Path(empty.path) / commit.name).exists()


def test_the_last_row_block_is_short(empty: FeatureStore, expected: Expected) -> None:
    values = expected(empty, KEY, "train")[8:]
    writer = unit(empty, row_block=2)
    writer.write({KEY: values}, {})
    writer.commit(None, None, {})
    np.testing.assert_array_equal(empty.read(KEY, "train", slice(8, 10)), values)


def test_several_settings_of_a_timestep(empty: FeatureStore, expected: Expected) -> None:
    keys = [FeatureKey(1, 10, 1), FeatureKey(2, 10, 2)]
    writer = unit(empty, keys=keys)
    for key in keys:  # draws and blocks of one batch may come one after the other
        writer.write({key: expected(empty, key, "train")[:4]}, {})
    commit = writer.commit(None, None, {})
    assert sorted(commit.arrays) == ["b1/p1/t10", "b2/p2/t10"]
    for key in keys:
        np.testing.assert_array_equal(empty.read(key, "train", slice(4)), expected(empty, key, "train")[:4])


@settings(max_examples=40)
@given(
    n_rows=st.integers(1, 20),
    batches=st.lists(st.integers(1, 8), min_size=1, max_size=4),
    shard_rows=st.sampled_from([1, 2, 4, 8]),
)
def test_any_batches_into_any_shards(
    tmp_path_factory: pytest.TempPathFactory,
    header: StoreHeader,
    ids: Ids,
    labels: Labels,
    expected: Expected,
    n_rows: int,
    batches: list[int],
    shard_rows: int,
) -> None:
    """Row blocks of eight rows in one to eight shards, written in batches of any sizes."""
    path = tmp_path_factory.mktemp("any") / "feats.zarr"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(layout_module, "MAX_SHARD_BYTES", 40 * shard_rows)
        store = create(path, replace(header, row_block=8))
        add_split(store, "train", ids("train", n_rows), labels(n_rows))
        add_arrays(store, "train", [KEY], {KEY: {}})
        assert store.layout(KEY, "train").shard_rows == shard_rows
        values = expected(store, KEY, "train")
        for block in range(-(-n_rows // 8)):
            rows = values[block * 8 : block * 8 + 8]
            writer, done = unit(store, block), 0
            while done < len(rows):
                size = batches[done % len(batches)]
                writer.write({KEY: rows[done : done + size]}, {})
                done += size
            writer.commit(None, None, {})
        np.testing.assert_array_equal(FeatureStore.open(path).read(KEY, "train"), values)
        np.testing.assert_array_equal(np.asarray(zarr.open_array(path / "train/features/b2/p2/t90", mode="r")[:]), values)
        assert len(features_on_disk(store)) == -(-n_rows // shard_rows)


def test_several_shards_in_one_batch(
    tmp_path: Path, header: StoreHeader, build: Build, expected: Expected, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Full maps of a 256-pixel model have two rows to a shard, and batches are larger."""
    monkeypatch.setattr(layout_module, "MAX_SHARD_BYTES", 2 * 40)
    store = build(tmp_path / "feats.zarr", header=replace(header, row_block=32), splits={"train": 64}, keys=[KEY])
    assert store.layout(KEY, "train").shard_rows == 2
    np.testing.assert_array_equal(store.read(KEY, "train"), expected(store, KEY, "train"))
    assert len(features_on_disk(store)) == 32


class TestLeftOut:
    def test_rows_are_nan_and_listed(self, empty: FeatureStore, expected: Expected) -> None:
        values = expected(empty, KEY, "train")[:4].copy()
        bad = LeftOut(empty.ids("train")[2], "truncated")
        values[2] = np.inf  # whatever the slot of an unreadable image holds
        writer = unit(empty)
        writer.write({KEY: values[:1]}, {})
        writer.write({KEY: values[1:]}, {2: bad})
        assert writer.commit(None, None, {}).left_out == {2: bad}
        values[2] = np.nan
        for store in (empty, FeatureStore.open(empty.path)):
            np.testing.assert_array_equal(store.read(KEY, "train", slice(4)), values)
            assert store.rows("train").left_out == {2: bad}
        array = zarr.open_array(Path(empty.path) / "train/features/b2/p2/t90", mode="r")
        np.testing.assert_array_equal(np.asarray(array[:4]), values)

    def test_rows_of_a_later_row_block_are_counted_from_the_split(self, empty: FeatureStore, expected: Expected) -> None:
        bad = LeftOut(empty.ids("train")[5], "truncated")
        writer = unit(empty, row_block=1)
        writer.write({KEY: expected(empty, KEY, "train")[4:8]}, {5: bad})
        writer.commit(None, None, {})
        found = np.isnan(empty.read(KEY, "train", slice(4, 8))).all(axis=(1, 2, 3))
        assert found.tolist() == [False, True, False, False]

    def test_a_row_beside_it_is_still_checked(self, empty: FeatureStore, expected: Expected) -> None:
        values = expected(empty, KEY, "train")[:4].copy()
        values[2:] = np.nan
        with pytest.raises(NotFinite, match=empty.ids("train")[3]):
            unit(empty).write({KEY: values}, {2: LeftOut(empty.ids("train")[2], "truncated")})

    def test_the_callers_array_is_left_alone(self, empty: FeatureStore, expected: Expected) -> None:
        values = expected(empty, KEY, "train")[:4].copy()
        unit(empty).write({KEY: values}, {2: LeftOut("x", "truncated")})
        np.testing.assert_array_equal(values, expected(empty, KEY, "train")[:4])


class TestFailure:
    """A unit of which a part was lost is never committed, whatever is still in the queue of its writer."""

    @pytest.fixture
    def writer(self, empty: FeatureStore, monkeypatch: pytest.MonkeyPatch) -> UnitWriter:
        monkeypatch.setattr(layout_module, "MAX_SHARD_BYTES", 2 * empty.layout(KEY, "train").row_bytes)  # two shards
        return unit(empty)

    def test_not_finite(self, empty: FeatureStore, expected: Expected, writer: UnitWriter) -> None:
        values = expected(empty, KEY, "train")[:4].copy()
        values[1, 0, 0, 0] = np.nan
        with pytest.raises(NotFinite):
            writer.write({KEY: values[:2]}, {})
        self.stays_failed(empty, writer, values[2:])

    def test_full_disk(
        self, empty: FeatureStore, expected: Expected, writer: UnitWriter, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def full(*_: object) -> None:
            raise OSError(errno.ENOSPC, "No space left on device")

        values = expected(empty, KEY, "train")[:4]
        monkeypatch.setattr(empty.storage, "replace", full)
        with pytest.raises(OSError, match="No space left"):
            writer.write({KEY: values[:2]}, {})
        monkeypatch.undo()
        self.stays_failed(empty, writer, values[2:])

    def stays_failed(self, store: FeatureStore, writer: UnitWriter, rest: NDArray[Any]) -> None:
        with pytest.raises(ValueError, match="a unit that failed"):
            writer.write({KEY: rest}, {})
        with pytest.raises(ValueError, match="a unit that failed"):
            writer.commit(None, None, {})
        assert FeatureStore.open(store.path).missing([KEY], "train", 4) == [0]


class TestNotFinite:
    @pytest.mark.parametrize(
        ("dtype", "value", "text"),
        [
            ("float16", np.nan, "is NaN; nothing of its row block was kept; the network makes it: check its weights"),
            (
                "float16",
                np.inf,
                r"is inf \(beyond what float16 can hold\); .*; a new store with --store-dtype float32 holds it",
            ),
            ("float16", -np.inf, r"is -inf \(beyond what float16 can hold\); .* --store-dtype float32 holds it"),
            ("float32", np.nan, "is NaN; nothing of its row block was kept; the network makes it: check its weights"),
            ("float32", np.inf, r"is inf \(beyond what float32 can hold\); nothing of its row block was kept$"),
        ],
    )
    def test_is_refused_by_name(
        self, tmp_path: Path, header: StoreHeader, build: Build, expected: Expected, dtype: str, value: float, text: str
    ) -> None:
        store = build(tmp_path / "feats.zarr", header=replace(header, dtype=dtype), row_blocks=[])
        values = expected(store, KEY, "train")[4:8].copy()
        values[2, 4, 1, 1] = value
        name = store.ids("train")[6]
        text = f"the feature of sample '{name}' at block 2, timestep 90, pool 2 {text}"
        writer = unit(store, row_block=1)
        writer.write({KEY: values[:1]}, {})
        with pytest.raises(NotFinite, match=text) as caught:
            writer.write({KEY: values[1:]}, {})
        assert (caught.value.key, caught.value.sample_id) == (KEY, name)
        assert isinstance(caught.value, DiffsslError)
        assert FeatureStore.open(store.path).missing([KEY], "train") == [0, 1, 2]
        assert features_on_disk(store) == {}

    @pytest.mark.parametrize("dtype", ["float16", "float32"])
    def test_the_largest_values_are_finite(
        self, tmp_path: Path, header: StoreHeader, build: Build, commit_unit: CommitUnit, dtype: str
    ) -> None:
        store = build(tmp_path / "feats.zarr", header=replace(header, dtype=dtype), row_blocks=[])
        values = np.full((4, 5, 2, 2), np.finfo(dtype).max, dtype=dtype)
        values[1] *= -1
        commit_unit(store, "train", 0, {KEY: values})
        np.testing.assert_array_equal(store.read(KEY, "train", slice(4)), values)


class TestWrongCalls:
    def test_a_unit_has_one_timestep(self, empty: FeatureStore) -> None:
        with pytest.raises(ValueError, match=r"a unit has the settings of one timestep, got \['10', '90'\]"):
            unit(empty, keys=[KEY, FeatureKey(2, 10, 2)])
        with pytest.raises(ValueError, match="one timestep"):
            UnitWriter(empty, "train", 0, [], [])

    @pytest.mark.parametrize("n_rows", [0, 1, 3])
    def test_too_few_rows(self, empty: FeatureStore, expected: Expected, n_rows: int) -> None:
        writer = unit(empty)
        writer.write({KEY: expected(empty, KEY, "train")[:n_rows]}, {})
        with pytest.raises(ValueError, match=f"block 2, timestep 90, pool 2: a unit of 4 rows got {n_rows}"):
            writer.commit(None, None, {})
        assert FeatureStore.open(empty.path).missing([KEY], "train") == [0, 1, 2]

    def test_too_few_rows_leave_what_is_there(self, store: FeatureStore, expected: Expected) -> None:
        """The unit is committed already; a wrong call must not overwrite its shard."""
        before = features_on_disk(store)
        writer = unit(store)
        writer.write({KEY: np.zeros((2, 5, 2, 2), np.float16)}, {})
        with pytest.raises(ValueError, match="a unit of 4 rows got 2"):
            writer.commit(None, None, {})
        assert features_on_disk(store) == before
        np.testing.assert_array_equal(store.read(KEY, "train"), expected(store, KEY, "train"))

    @pytest.mark.parametrize(("row_block", "n_rows"), [(0, 4), (2, 2)])
    @pytest.mark.parametrize("more", [1, 2, 4])
    def test_too_many_rows(self, empty: FeatureStore, row_block: int, n_rows: int, more: int) -> None:
        values = np.zeros((n_rows + more, 5, 2, 2), np.float16)
        text = f"block 2, timestep 90, pool 2: a unit of {n_rows} rows got {n_rows + more}"
        with pytest.raises(ValueError, match=text):
            unit(empty, row_block).write({KEY: values}, {})
        writer = unit(empty, row_block)
        writer.write({KEY: values[:n_rows]}, {})
        with pytest.raises(ValueError, match=text):
            writer.write({KEY: values[n_rows:]}, {})

    @pytest.mark.parametrize(
        "shape", [(4, 5, 1, 1), (4, 1, 2, 2), (4, 5, 2), (1, 1, 1, 1), (4, 20), (4, 5, 3, 3), (4, 2, 2, 5)]
    )
    def test_another_shape(self, empty: FeatureStore, shape: tuple[int, ...]) -> None:
        """Nothing is broadcast: features of one pool never end up, repeated, in the array of another."""
        with pytest.raises(ValueError, match="shape"):
            unit(empty).write({KEY: np.ones(shape, np.float16)}, {})

    @pytest.mark.parametrize("dtype", [np.float32, np.float64, np.int16])
    def test_another_dtype(self, empty: FeatureStore, dtype: type) -> None:
        """Nothing is rounded behind the caller's back."""
        with pytest.raises(TypeError, match=np.dtype(dtype).name):
            unit(empty).write({KEY: np.ones((4, 5, 2, 2), dtype)}, {})


def test_shards_and_folders_are_synced_before_the_commit(
    empty: FeatureStore, expected: Expected, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = Path(empty.path)
    synced: list[str] = []
    linked: list[tuple[str, list[str]]] = []
    link = os.link

    def fsync(descriptor: int) -> None:
        path = os.readlink(f"/proc/self/fd/{descriptor}")  # noqa: PTH115
        synced.append(Path(path).relative_to(root).as_posix().partition("-")[0])

    def recorded_link(source: Path, target: Path) -> None:
        before = list(synced)
        link(source, target)
        linked.append((target.relative_to(root).as_posix(), before))

    writer = unit(empty)
    monkeypatch.setattr(os, "fsync", fsync)
    monkeypatch.setattr(os, "link", recorded_link)
    writer.write({KEY: expected(empty, KEY, "train")[:4]}, {})
    commit = writer.commit(None, None, {})
    # The shard under its temporary name, the folder it was moved to, and the commit under its temporary name.
    assert linked == [(commit.name, ["journal/tmp", "train/features/b2/p2/t90", "journal/tmp"])]
    assert synced[-1] == "journal/train"
