from __future__ import annotations

import json
import pickle
import re
import shutil
import subprocess
import sys
import threading
import tracemalloc
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import dask.array
import numpy as np
import pytest
import zarr
from diffssl.store import (
    CorruptStore,
    FeatureKey,
    FeatureStore,
    IncompleteFeatures,
    StoreHeader,
    StoreNotFound,
    UnknownFeatures,
    UnsupportedFormat,
    add_arrays,
    add_split,
    common_keys,
    create,
)
from diffssl.store import layout as layout_module
from diffssl.store.journal import Commit
from diffssl.store.layout import block_range
from diffssl.store.rows import ids_digest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

Build = Callable[..., FeatureStore]
Expected = Callable[[FeatureStore, FeatureKey, str], NDArray[Any]]
Ids = Callable[[str, int], NDArray[np.object_]]
Labels = Callable[[int], NDArray[np.int32]]
CommitUnit = Callable[..., Commit]

KEY = FeatureKey(2, 90, 2)
SHARD = "train/features/b2/p2/t90/c.1.0.0.0"  # rows 4 to 7

STRANGER = """
import sys
import numpy as np, zarr, xarray as xr
path = sys.argv[1]
root = zarr.open_group(path, mode="r")
print(*sorted(name for name, _ in root.members(max_depth=None)))
print(root.attrs["diffssl"]["format"], root.attrs["diffssl"]["classes"])
print(root["train/rows/id"][0], root["train/rows/label"][:].tolist(), root["train/rows/label"].dtype)
print(root["train/features/b2/p2/t90"][:].sum(dtype=np.float64))
data = xr.open_zarr(path, group="train/features/b2/p2", consolidated=False)
print(*sorted(data.variables), data["t90"].dims, data["t90"].dtype, data["t90"].attrs["alpha"])
print(data["t90"].values.sum(dtype=np.float64))
rows = xr.open_zarr(path, group="train/rows", consolidated=False)
print(rows["id"].values[0], rows["label"].values.tolist())
assert not [name for name in sys.modules if name.startswith("diffssl")]
"""


def edit(path: Path, change: Callable[[dict[str, Any]], object]) -> None:
    document = json.loads(path.read_text())
    change(document)
    path.write_text(json.dumps(document))


def computed(array: dask.array.Array) -> NDArray[Any]:
    return np.asarray(array.compute())  # type: ignore[no-untyped-call]


def flipped(good: bytes, at: int) -> bytes:
    return good[:at] + bytes([good[at] ^ 1]) + good[at + 1 :]


class TestOpening:
    def test_what_a_store_says_of_itself(self, small: FeatureStore, header: StoreHeader, keys: list[FeatureKey]) -> None:
        opened = FeatureStore.open(small.path)
        assert opened.header == StoreHeader.from_json(header.to_json())
        assert opened.identity == header.identity
        assert opened.feature_id == header.identity.feature_id
        assert opened.classes == ["cat", "dog"]
        assert opened.splits == ["test", "train"]
        assert opened.keys("train") == sorted(keys, key=lambda key: key.order)
        assert (opened.n_rows("train"), opened.n_rows("test")) == (10, 6)
        assert opened.path == str(opened.storage) == small.path

    def test_rows(self, small: FeatureStore, ids: Ids, labels: Labels) -> None:
        rows = small.rows("train")
        assert len(rows) == 10
        assert rows.ids.tolist() == ids("train", 10).tolist()
        assert rows.labels.tolist() == labels(10).tolist() == small.labels("train").tolist()
        assert rows.labels.dtype == np.int32
        assert rows.left_out == {}
        assert small.data_id("train") == ids_digest(ids("train", 10))

    def test_there_is_none(self, tmp_path: Path) -> None:
        with pytest.raises(StoreNotFound, match=f"^{tmp_path}/none.zarr: there is no feature store here"):
            FeatureStore.open(tmp_path / "none.zarr")

    def test_another_zarr_group(self, tmp_path: Path) -> None:
        zarr.create_group(tmp_path / "other.zarr", attributes={"title": "other"})
        with pytest.raises(StoreNotFound, match="a Zarr group, but not a feature store"):
            FeatureStore.open(tmp_path / "other.zarr")

    def test_a_newer_format_is_refused_by_name(self, store: FeatureStore) -> None:
        edit(Path(store.path) / "zarr.json", lambda document: document["attributes"]["diffssl"].update(format=2))
        with pytest.raises(UnsupportedFormat, match="the store has format 2, this diffssl reads 1; upgrade diffssl"):
            FeatureStore.open(store.path)

    def test_unknown_attributes_are_ignored(self, store: FeatureStore, expected: Expected) -> None:
        for name in ("zarr.json", "train/zarr.json"):
            edit(Path(store.path) / name, lambda document: document["attributes"]["diffssl"].update(later={"more": 1}))
            edit(Path(store.path) / name, lambda document: document["attributes"].update(title="mine"))
        edit(
            Path(store.path) / "zarr.json",
            lambda document: [block.update(later=1) for block in document["attributes"]["diffssl"]["blocks"]],
        )
        opened = FeatureStore.open(store.path)
        assert opened.header == store.header
        np.testing.assert_array_equal(opened.read(KEY, "train"), expected(store, KEY, "train"))

    @pytest.mark.parametrize("name", ["zarr.json", "train/zarr.json"])
    @pytest.mark.parametrize("content", [b"", b"{", b"\xff\xfe", b"[]"])
    def test_a_damaged_document_is_corrupt(self, store: FeatureStore, name: str, content: bytes) -> None:
        (Path(store.path) / name).write_bytes(content)
        with pytest.raises(CorruptStore, match=f"{name} is"):
            FeatureStore.open(store.path)

    @pytest.mark.parametrize("field", ["identity", "classes", "blocks", "row_block", "dtype"])
    def test_a_root_without_a_field_is_corrupt(self, store: FeatureStore, field: str) -> None:
        edit(Path(store.path) / "zarr.json", lambda document: document["attributes"]["diffssl"].pop(field))
        with pytest.raises(CorruptStore, match=f"zarr.json is damaged .*{field}.*restore it"):
            FeatureStore.open(store.path)

    @pytest.mark.parametrize(("field", "value"), [("dtype", "gloat16"), ("blocks", 7), ("blocks", [7]), ("identity", "none")])
    def test_a_root_with_nonsense_is_corrupt(self, store: FeatureStore, field: str, value: Any) -> None:
        edit(Path(store.path) / "zarr.json", lambda document: document["attributes"]["diffssl"].update({field: value}))
        with pytest.raises(CorruptStore, match=r"zarr\.json is damaged"):
            FeatureStore.open(store.path)

    def test_an_identity_that_is_not_the_feature_id_is_corrupt(self, store: FeatureStore) -> None:
        """The root says twice whose features these are, so that a damaged digit does not make them another's."""
        edit(
            Path(store.path) / "zarr.json",
            lambda document: document["attributes"]["diffssl"]["identity"]["noise"].update(seed=1),
        )
        with pytest.raises(CorruptStore, match=r"zarr\.json is damaged"):
            FeatureStore.open(store.path)

    @pytest.mark.parametrize("field", ["data_id", "rows"])
    def test_a_split_without_a_field_is_corrupt(self, store: FeatureStore, field: str) -> None:
        edit(Path(store.path) / "train/zarr.json", lambda document: document["attributes"]["diffssl"].pop(field))
        with pytest.raises(CorruptStore, match=r"train/zarr\.json"):
            FeatureStore.open(store.path)

    def test_a_store_without_labels_is_a_store(
        self, tmp_path: Path, header: StoreHeader, ids: Ids, expected: Expected, commit_unit: CommitUnit
    ) -> None:
        store = create(tmp_path / "feats.zarr", replace(header, classes=()))
        add_split(store, "all", ids("all", 3), np.full(3, -1, dtype=np.int32))
        add_arrays(store, "all", [KEY], {KEY: {}})
        commit_unit(store, "all", 0, {KEY: expected(store, KEY, "all")})
        assert store.classes == []
        assert store.labels("all").tolist() == [-1, -1, -1]
        np.testing.assert_array_equal(store.read(KEY, "all"), expected(store, KEY, "all"))
        x, y = store.xy(KEY, "all")
        assert (x.shape, y.shape) == ((0, 20), (0,))

    def test_refresh_sees_what_others_commit(
        self, tmp_path: Path, build: Build, expected: Expected, keys: list[FeatureKey]
    ) -> None:
        build(tmp_path / "feats.zarr", splits={"train": 10}, row_blocks=[0])
        reader = FeatureStore.open(tmp_path / "feats.zarr")
        build(tmp_path / "feats.zarr")
        assert reader.splits == ["train"]
        assert reader.missing(keys, "train") == [1, 2]
        reader.refresh()
        assert reader.splits == ["test", "train"]
        assert reader.missing(keys, "train") == []
        np.testing.assert_array_equal(reader.read(KEY, "test"), expected(reader, KEY, "test"))


class TestUnknown:
    @pytest.mark.parametrize("call", ["n_rows", "keys", "data_id", "ids", "labels", "rows"])
    def test_split(self, small: FeatureStore, call: str) -> None:
        with pytest.raises(UnknownFeatures, match="there is no split 'val'; the store has: test, train"):
            getattr(small, call)("val")

    def test_split_of_a_read(self, small: FeatureStore) -> None:
        for call in (small.read, small.xy, small.lazy):
            with pytest.raises(UnknownFeatures, match="there is no split 'val'"):
                call(KEY, "val")
        with pytest.raises(UnknownFeatures, match="there is no split 'val'"):
            next(small.stream([KEY], "val"))

    def test_split_of_an_empty_store(self, tmp_path: Path, header: StoreHeader) -> None:
        with pytest.raises(UnknownFeatures, match="there is no split 'train'; the store has: none yet"):
            create(tmp_path / "feats.zarr", header).read(KEY, "train")

    def test_setting(self, small: FeatureStore) -> None:
        text = re.escape(
            "train has no features of block 2, timestep 50, pool 2; it has: blocks 1 x timesteps 10 x pools 1; "
            "blocks 2 x timesteps 10,90 x pools 2"
        )
        wrong = FeatureKey(2, 50, 2)
        with pytest.raises(UnknownFeatures, match=text):
            small.read(wrong, "train")
        with pytest.raises(UnknownFeatures, match=text):
            next(small.stream([KEY, wrong], "train"))
        with pytest.raises(UnknownFeatures, match=text):
            small.lazy(wrong, "train")

    def test_setting_of_a_split_without_commits(self, tmp_path: Path, build: Build) -> None:
        store = build(tmp_path / "feats.zarr", row_blocks=[])
        with pytest.raises(UnknownFeatures, match=r"train has no features of .*; it has: none yet"):
            store.read(KEY, "train")

    def test_block(self, small: FeatureStore) -> None:
        with pytest.raises(UnknownFeatures, match="the backbone has no block 3; its blocks are 1,2"):
            small.layout(FeatureKey(3, 90, 1), "train")


class TestReading:
    def test_everything(self, small: FeatureStore, expected: Expected) -> None:
        for split in small.splits:
            for key in small.keys(split):
                features = small.read(key, split)
                assert features.dtype == np.float16
                np.testing.assert_array_equal(features, expected(small, key, split))

    @settings(max_examples=60)
    @given(start=st.none() | st.integers(-12, 12), stop=st.none() | st.integers(-12, 12), step=st.sampled_from([None, 1]))
    def test_any_slice_of_rows(
        self, small: FeatureStore, expected: Expected, start: int | None, stop: int | None, step: int | None
    ) -> None:
        rows = slice(start, stop, step)
        np.testing.assert_array_equal(small.read(KEY, "train", rows), expected(small, KEY, "train")[rows])
        streamed = list(small.stream([KEY], "train", rows))
        numbers = [row for batch in streamed for row in batch.rows.tolist()]
        assert numbers == list(range(10))[rows]
        if numbers:
            values = np.concatenate([batch.features[0] for batch in streamed])
            np.testing.assert_array_equal(values, expected(small, KEY, "train")[rows])

    @pytest.mark.parametrize("step", [2, -1])
    def test_rows_with_a_step_are_refused(self, small: FeatureStore, step: int) -> None:
        with pytest.raises(ValueError, match=f"rows must be consecutive, got a step of {step}"):
            small.read(KEY, "train", slice(None, None, step))

    def test_float32(self, tmp_path: Path, header: StoreHeader, build: Build, expected: Expected) -> None:
        store = build(tmp_path / "feats.zarr", header=replace(header, dtype="float32"))
        features = store.read(KEY, "train")
        assert features.dtype == np.float32
        np.testing.assert_array_equal(features, expected(store, KEY, "train"))

    def test_class_tokens_of_an_encoder_without_timesteps(self, tmp_path: Path, build: Build, expected: Expected) -> None:
        token = FeatureKey(2, None, "cls")
        store = build(tmp_path / "feats.zarr", keys=[token])
        assert FeatureStore.open(store.path).keys("train") == [token]
        assert store.read(token, "train").shape == (10, 5, 1, 1)
        np.testing.assert_array_equal(store.read(token, "train"), expected(store, token, "train"))

    def test_xy_leaves_out_rows_without_label(self, small: FeatureStore, expected: Expected, labels: Labels) -> None:
        x, y = small.xy(KEY, "train")
        keep = labels(10) != -1
        assert (x.dtype.name, y.dtype.name) == ("float32", "int64")
        np.testing.assert_array_equal(x, expected(small, KEY, "train")[keep].reshape(-1, 20).astype(np.float32))
        assert y.tolist() == [0, 1, 0, 1, 0, 1]

    def test_common_keys(self, tmp_path: Path, build: Build, keys: list[FeatureKey]) -> None:
        build(tmp_path / "feats.zarr", splits={"train": 10})
        store = build(tmp_path / "feats.zarr", splits={"test": 6}, keys=keys[1:])
        assert common_keys(store, ["train", "test"]) == keys[1:]
        assert common_keys(store, ["train"]) == keys
        assert common_keys(store, []) == []


class TestIncomplete:
    """Rows 4 to 7 of ten are not committed; their shards may be there or not."""

    @pytest.fixture
    def partial(self, tmp_path: Path, build: Build) -> FeatureStore:
        return build(tmp_path / "feats.zarr", row_blocks=[0, 2])

    def test_missing(self, partial: FeatureStore, keys: list[FeatureKey]) -> None:
        assert partial.missing(keys, "train") == [1]
        assert partial.missing(keys, "train", rows=4) == []
        assert partial.missing(keys, "train", rows=5) == [1]
        assert partial.missing(keys, "train", rows=99) == [1]
        assert partial.missing([FeatureKey(2, 50, 2)], "train") == [0, 1, 2]
        assert partial.missing([*keys, FeatureKey(2, 50, 2)], "train") == [0, 1, 2]

    @pytest.mark.parametrize(
        ("rows", "count"),
        [
            (slice(None), "4 of 10 rows"),
            (slice(0, 8), "4 of 8 rows"),
            (slice(5, 7), "2 of 2 rows"),
            (slice(2, 5), "1 of 3 rows"),
        ],
    )
    def test_reading_says_how_many_and_what_completes_them(self, partial: FeatureStore, rows: slice, count: str) -> None:
        text = (
            f"^{partial.path}: {count} of train, block 2, timestep 90, pool 2, are not committed yet. Complete them with:\n"
            f"  diffssl-extract --blocks 1,2 --timesteps 10,90 --store {partial.path}\n.*rows=slice\\(4\\)"
        )
        with pytest.raises(IncompleteFeatures, match=text):
            partial.read(KEY, "train", rows)
        with pytest.raises(IncompleteFeatures, match=text):
            next(partial.stream([KEY], "train", rows))

    def test_every_reader_refuses(self, partial: FeatureStore) -> None:
        for call in (partial.read, partial.xy, partial.lazy):
            with pytest.raises(IncompleteFeatures, match="4 of 10 rows"):
                call(KEY, "train")

    def test_one_incomplete_setting_among_several(self, tmp_path: Path, build: Build, keys: list[FeatureKey]) -> None:
        build(tmp_path / "feats.zarr", keys=keys[:2])
        store = build(tmp_path / "feats.zarr", keys=keys[2:], row_blocks=[0, 2])
        assert len(store.read(keys[0], "train")) == 10
        with pytest.raises(IncompleteFeatures, match="block 2, timestep 90, pool 2"):
            next(store.stream(keys, "train"))

    def test_committed_rows_can_be_asked_for(self, partial: FeatureStore, expected: Expected) -> None:
        for rows in (slice(4), slice(8, None), slice(1, 3), slice(4, 4)):
            np.testing.assert_array_equal(partial.read(KEY, "train", rows), expected(partial, KEY, "train")[rows])

    def test_a_shard_without_commit_is_not_there(self, store: FeatureStore) -> None:
        """Files and values never mark a row block as present."""
        for commit in (Path(store.path) / "journal/train").glob("000001-t90-*.json"):
            commit.unlink()
        assert (Path(store.path) / SHARD).exists()
        opened = FeatureStore.open(store.path)
        assert opened.missing([KEY], "train") == [1]
        with pytest.raises(IncompleteFeatures, match="4 of 10 rows"):
            opened.read(KEY, "train")

    def test_a_store_that_does_not_know_the_command(
        self, tmp_path: Path, build: Build, commit_unit: CommitUnit, expected: Expected
    ) -> None:
        store = build(tmp_path / "feats.zarr", row_blocks=[])
        commit_unit(store, "train", 0, {KEY: expected(store, KEY, "train")[:4]}, command=None)
        with pytest.raises(IncompleteFeatures, match=r"6 of 10 rows.*\n  diffssl-extract, with the options that made it"):
            store.read(KEY, "train")


class TestPilot:
    """Five of ten rows were asked for: two row blocks of four are there."""

    @pytest.fixture
    def pilot(self, tmp_path: Path, build: Build) -> FeatureStore:
        return build(tmp_path / "feats.zarr", limit=5)

    def test_reads_what_was_asked_for(self, pilot: FeatureStore, expected: Expected, keys: list[FeatureKey]) -> None:
        first = expected(pilot, KEY, "train")[:5]
        assert pilot.wanted_rows([KEY], "train") == pilot.wanted_rows(keys, "train") == 5
        assert pilot.wanted_rows([KEY], "test") == 5
        np.testing.assert_array_equal(pilot.read(KEY, "train"), first)
        np.testing.assert_array_equal(computed(pilot.lazy(KEY, "train")), first)
        batches = list(pilot.stream([KEY], "train"))
        assert [batch.rows.tolist() for batch in batches] == [[0, 1, 2, 3], [4]]
        np.testing.assert_array_equal(np.concatenate([batch.features[0] for batch in batches]), first)
        assert len(pilot.xy(KEY, "train")[0]) == 3
        assert len(pilot.rows("train")) == 10

    def test_more_rows_than_were_asked_for(self, pilot: FeatureStore, expected: Expected) -> None:
        np.testing.assert_array_equal(pilot.read(KEY, "train", slice(8)), expected(pilot, KEY, "train")[:8])
        with pytest.raises(IncompleteFeatures, match="2 of 10 rows"):
            pilot.read(KEY, "train", slice(0, None))

    def test_wanted_rows_over_settings_is_the_smallest(self, pilot: FeatureStore, build: Build, keys: list[FeatureKey]) -> None:
        store = build(Path(pilot.path), keys=keys[:1])
        assert store.wanted_rows(keys[:1], "train") == 10
        assert store.wanted_rows(keys, "train") == 5
        assert store.wanted_rows([FeatureKey(2, 50, 2)], "train") == 0
        assert store.wanted_rows([], "train") == 10
        assert [len(batch.rows) for batch in store.stream(keys, "train")] == [4, 1]

    def test_extended_to_the_whole(self, pilot: FeatureStore, build: Build, expected: Expected) -> None:
        store = build(Path(pilot.path))
        assert store.wanted_rows([KEY], "train") == 10
        np.testing.assert_array_equal(store.read(KEY, "train"), expected(store, KEY, "train"))


class TestLeftOut:
    """Row 5 is left out of one timestep of train, row 9 of the other."""

    @pytest.fixture
    def holed(self, tmp_path: Path, build: Build) -> FeatureStore:
        return FeatureStore.open(build(tmp_path / "feats.zarr", left_out={("train", 10): [5], ("train", 90): [9]}).path)

    def test_rows_lists_them(self, holed: FeatureStore) -> None:
        left_out = holed.rows("train").left_out
        assert list(left_out) == [5, 9]
        assert (left_out[5].id, left_out[5].reason) == (holed.ids("train")[5], "cannot identify image file")
        assert holed.rows("test").left_out == {}

    def test_read_has_nan_in_exactly_these(self, holed: FeatureStore, expected: Expected) -> None:
        for timestep, row in ((10, 5), (90, 9)):
            key = FeatureKey(2, timestep, 2)
            values = expected(holed, key, "train")
            values[row] = np.nan
            np.testing.assert_array_equal(holed.read(key, "train"), values)
            np.testing.assert_array_equal(holed.read(key, "train", slice(row, row + 1)), values[row : row + 1])

    def test_xy_leaves_out_those_of_the_setting(self, holed: FeatureStore, expected: Expected, labels: Labels) -> None:
        x, y = holed.xy(FeatureKey(2, 10, 2), "train")
        keep = [row for row in range(10) if labels(10)[row] != -1 and row != 5]
        assert y.tolist() == labels(10)[keep].tolist()
        np.testing.assert_array_equal(x, expected(holed, FeatureKey(2, 10, 2), "train")[keep].reshape(len(keep), 20))

    def test_stream_leaves_a_row_out_of_all_settings(
        self, holed: FeatureStore, expected: Expected, labels: Labels, keys: list[FeatureKey]
    ) -> None:
        batches = list(holed.stream(keys, "train"))
        assert [batch.rows.tolist() for batch in batches] == [[0, 1, 2, 3], [4, 6, 7], [8]]
        for batch in batches:
            assert batch.labels.tolist() == labels(10)[batch.rows].tolist()
            for key, values in zip(keys, batch.features, strict=True):
                np.testing.assert_array_equal(values, expected(holed, key, "train")[batch.rows])

    def test_stream_of_one_setting_keeps_what_others_miss(self, holed: FeatureStore) -> None:
        rows = [batch.rows.tolist() for batch in holed.stream([KEY], "train")]
        assert rows == [[0, 1, 2, 3], [4, 5, 6, 7], [8]]


class TestStream:
    def test_stops_reading_ahead_when_it_is_left(self, small: FeatureStore, keys: list[FeatureKey]) -> None:
        before = threading.active_count()
        batches = small.stream(keys, "train")
        assert next(batches).rows.tolist() == [0, 1, 2, 3]
        batches.close()  # type: ignore[attr-defined]
        assert threading.active_count() == before

    def test_memory_does_not_grow_with_the_rows(
        self, tmp_path: Path, header: StoreHeader, build: Build, keys: list[FeatureKey]
    ) -> None:
        wide = replace(header, row_block=64, blocks=[replace(block, channels=512) for block in header.blocks])
        store = build(tmp_path / "feats.zarr", header=wide, splits={"one": 256, "ten": 2560}, keys=keys[1:])
        block_bytes = 2 * 64 * 512 * 4 * 2
        list(store.stream(keys[1:], "one"))  # what is imported and kept once
        peaks = []
        for split, n_blocks in (("one", 4), ("ten", 40)):
            tracemalloc.start()
            seen = sum(1 for _ in store.stream(keys[1:], split))
            peaks.append(tracemalloc.get_traced_memory()[1])
            tracemalloc.stop()
            assert seen == n_blocks
        assert peaks[0] > block_bytes  # it is measured at all
        assert peaks[1] < peaks[0] + block_bytes
        assert peaks[1] < 5 * block_bytes


class TestLazy:
    def test_chunks_are_shards(self, small: FeatureStore) -> None:
        array = small.lazy(KEY, "train")
        assert array.chunks == ((4, 4, 2), (5,), (2,), (2,))
        assert array.dtype == np.float16
        np.testing.assert_array_equal(computed(array), small.read(KEY, "train"))

    @pytest.mark.parametrize(
        "index",
        [
            slice(2, 9),
            slice(None, None, 2),
            slice(None, None, -1),
            3,
            -1,
            [1, 5, 8],
            [5, 1],
            np.arange(10) % 3 == 0,
            (slice(3, 5), 1),
            (slice(None), slice(1, 3), 0),
            (7, slice(None), 1, 1),
            None,
        ],
    )
    def test_indexing(self, small: FeatureStore, expected: Expected, index: Any) -> None:
        np.testing.assert_array_equal(computed(small.lazy(KEY, "train")[index]), expected(small, KEY, "train")[index])

    def test_computing_in_processes(self, small: FeatureStore) -> None:
        array = pickle.loads(pickle.dumps(small.lazy(KEY, "train")))  # noqa: S301
        np.testing.assert_array_equal(computed(array.mean(axis=(2, 3))), small.read(KEY, "train").mean(axis=(2, 3)))

    def test_damage_is_found_when_it_is_read(self, store: FeatureStore) -> None:
        array = store.lazy(KEY, "train")
        file = Path(store.path) / SHARD
        file.write_bytes(flipped(file.read_bytes(), 0))
        with pytest.raises(CorruptStore, match=r"row block 1 of train, block 2, timestep 90, pool 2"):
            computed(array)


class TestDamage:
    def test_every_flipped_byte_of_a_shard(self, store: FeatureStore) -> None:
        file = Path(store.path) / SHARD
        good = file.read_bytes()
        assert len(good) == 4 * 40 + 4 + 16 + 4  # four rows and their CRC, the index and its CRC
        for at in range(len(good)):
            file.write_bytes(flipped(good, at))
            for rows in (slice(None), slice(5, 6)):
                with pytest.raises(CorruptStore, match=f"row block 1 of train, block 2, timestep 90, pool 2: .*{SHARD}"):
                    store.read(KEY, "train", rows)
        assert len(store.read(KEY, "train", slice(4))) == 4
        assert len(store.read(FeatureKey(2, 10, 2), "train")) == 10

    @pytest.mark.parametrize("length", [0, 1, 39, 40, 160, 164, 183])
    def test_a_truncated_shard(self, store: FeatureStore, length: int) -> None:
        file = Path(store.path) / SHARD
        file.write_bytes(file.read_bytes()[:length])
        with pytest.raises(CorruptStore, match=f"cut short: 184 bytes wanted, {length} there"):
            store.read(KEY, "train")
        with pytest.raises(CorruptStore, match="row block 1"):
            list(store.stream([KEY], "train"))
        assert len(store.read(KEY, "train", slice(4))) == 4

    def test_a_removed_shard(self, store: FeatureStore) -> None:
        (Path(store.path) / SHARD).unlink()
        for rows in (slice(None), slice(7, 9)):
            with pytest.raises(CorruptStore, match=r"row block 1 of train, .*: the file is missing"):
                store.read(KEY, "train", rows)
        with pytest.raises(CorruptStore, match="the file is missing"):
            store.xy(KEY, "train")

    @pytest.mark.parametrize("chunk_bytes", [10**6, 80])  # one chunk a shard, and two
    @pytest.mark.parametrize("other", ["b2/p2/t10/c.1.0.0.0", "b2/p2/t90/c.0.0.0.0"])
    def test_another_shard_in_its_place(
        self, tmp_path: Path, build: Build, monkeypatch: pytest.MonkeyPatch, chunk_bytes: int, other: str
    ) -> None:
        """Its CRCs are right and it has the right size, but it belongs to another setting or row block."""
        monkeypatch.setattr(layout_module, "CHUNK_BYTES", chunk_bytes)
        store = build(tmp_path / "feats.zarr")
        shutil.copy(Path(store.path) / "train/features" / other, Path(store.path) / SHARD)
        for rows in (slice(None), slice(4, 8), slice(4, 6), slice(5, 6)):
            with pytest.raises(CorruptStore, match=r"row block 1 of train, .*its checksum .* is in no commit"):
                store.read(KEY, "train", rows)

    @pytest.mark.parametrize("chunk_bytes", [10**6, 80])
    @pytest.mark.parametrize("written", [slice(5, 6), slice(4, 6), slice(4, 8)])
    def test_a_nan_written_by_others(
        self, tmp_path: Path, build: Build, monkeypatch: pytest.MonkeyPatch, chunk_bytes: int, written: slice
    ) -> None:
        """Plain zarr drops chunks of nothing but NaN, and moves the others up."""
        monkeypatch.setattr(layout_module, "CHUNK_BYTES", chunk_bytes)
        store = build(tmp_path / "feats.zarr")
        zarr.open_array(Path(store.path) / "train/features/b2/p2/t90", mode="r+")[written] = np.nan
        for rows in (slice(None), slice(4, 6), slice(5, 6), slice(3, 7)):
            with pytest.raises(CorruptStore, match=r"train, block 2, timestep 90, pool 2"):
                store.read(KEY, "train", rows)
        with pytest.raises(CorruptStore, match="block 2, timestep 90"):
            list(store.stream([KEY], "train"))
        assert len(store.read(KEY, "train", slice(8, 10))) == 2

    @pytest.mark.parametrize("part", [np.s_[5], np.s_[5, 0, 0, 0]])
    def test_a_nan_beside_a_row_left_out(
        self, tmp_path: Path, build: Build, monkeypatch: pytest.MonkeyPatch, part: Any
    ) -> None:
        """Rows left out are NaN and do not hide others that are."""
        monkeypatch.setattr(layout_module, "CHUNK_BYTES", 80)
        store = build(tmp_path / "feats.zarr", left_out={("train", 90): [4]})
        assert np.isnan(store.read(KEY, "train", slice(4, 6))[0]).all()
        zarr.open_array(Path(store.path) / "train/features/b2/p2/t90", mode="r+")[part] = np.nan
        with pytest.raises(CorruptStore, match="train, block 2, timestep 90, pool 2"):
            store.read(KEY, "train", slice(4, 6))

    @pytest.mark.parametrize("name", ["train/rows/id/c/0", "train/rows/label/c/0"])
    def test_every_flipped_byte_of_the_rows(self, store: FeatureStore, name: str) -> None:
        file = Path(store.path) / name
        good = file.read_bytes()
        for at in range(len(good)):
            file.write_bytes(flipped(good, at))
            with pytest.raises(CorruptStore, match=r"train/rows/(id|label)"):
                FeatureStore.open(store.path).rows("train")

    @pytest.mark.parametrize("name", ["id/c/0", "label/c/0", "id/zarr.json", "label/zarr.json"])
    def test_missing_files_of_the_rows(self, store: FeatureStore, name: str) -> None:
        (Path(store.path) / "train/rows" / name).unlink()
        with pytest.raises(CorruptStore, match=f"train/rows/{name.split('/')[0]}"):
            FeatureStore.open(store.path).rows("train")

    @pytest.mark.parametrize("name", ["id", "label"])
    @pytest.mark.parametrize("content", [b"", b"{", b'{"zarr_format": 3, "node_type": "group"}'])
    def test_damaged_documents_of_the_rows(self, store: FeatureStore, name: str, content: bytes) -> None:
        (Path(store.path) / "train/rows" / name / "zarr.json").write_bytes(content)
        with pytest.raises(CorruptStore, match=f"train/rows/{name}"):
            FeatureStore.open(store.path).rows("train")

    @pytest.mark.parametrize("name", ["id", "label"])
    def test_flipped_bytes_in_documents_of_the_rows(self, store: FeatureStore, name: str) -> None:
        """Whatever zarr makes of them: the right values, or ``CorruptStore``."""
        file = Path(store.path) / "train/rows" / name / "zarr.json"
        good, values = file.read_bytes(), getattr(store, f"{name}s")("train").tolist()
        others = []
        for at in range(0, len(good), 5):
            file.write_bytes(flipped(good, at))
            try:
                found = getattr(FeatureStore.open(store.path), f"{name}s")("train").tolist()
            except CorruptStore as error:
                found = values if f"train/rows/{name}" in str(error) else repr(error)
            except Exception as error:  # noqa: BLE001
                found = repr(error)
            if found != values:
                others.append((good[max(0, at - 9) : at + 9], found))
        assert others == []

    def test_ids_of_another_split(self, store: FeatureStore) -> None:
        array = zarr.open_array(Path(store.path) / "train/rows/id", mode="r+")
        array[0] = "cat/stranger.png"
        with pytest.raises(CorruptStore, match="train/rows/id does not have the digest of the split"):
            store.ids("train")

    def test_a_damaged_commit(self, store: FeatureStore) -> None:
        commit = next((Path(store.path) / "journal/train").glob("000001-t90-*.json"))
        commit.write_bytes(commit.read_bytes()[:-1])
        with pytest.raises(CorruptStore, match=f"the commit journal/train/{commit.name} cannot be read"):
            FeatureStore.open(store.path)


class TestTwoWriters:
    """Both commit rows 4 to 7 with different bytes: a shard is good if its checksum is in any commit."""

    def test_either_is_good_and_nothing_else(self, store: FeatureStore, expected: Expected, commit_unit: CommitUnit) -> None:
        reader = FeatureStore.open(store.path)
        file = Path(store.path) / SHARD
        first, first_bytes = expected(store, KEY, "train"), file.read_bytes()
        second = first.copy()
        second[4:8] += np.float16(0.001)
        commit_unit(store, "train", 1, {KEY: second[4:8]})
        assert len(list((Path(store.path) / "journal/train").glob("000001-t90-*.json"))) == 2
        # The reader was opened before the second commit: it looks again before it complains.
        np.testing.assert_array_equal(reader.read(KEY, "train"), second)
        file.write_bytes(first_bytes)
        for opened in (reader, FeatureStore.open(store.path)):
            np.testing.assert_array_equal(opened.read(KEY, "train"), first)
        shutil.copy(Path(store.path) / SHARD.replace("c.1", "c.0"), file)
        with pytest.raises(CorruptStore, match="is in no commit"):
            reader.read(KEY, "train")


class TestStrangers:
    """People open a store without diffssl; warnings are errors."""

    def test_plain_zarr_and_xarray(self, small: FeatureStore, expected: Expected, labels: Labels) -> None:
        done = subprocess.run(
            [sys.executable, "-W", "error", "-c", STRANGER, small.path], capture_output=True, text=True, check=False
        )
        assert (done.returncode, done.stderr) == (0, "")
        total = expected(small, KEY, "train").sum(dtype=np.float64)
        first, listed = small.ids("train")[0], labels(10).tolist()
        tree = ["journal"]
        for split in ("test", "train"):
            tree += [
                split,
                f"{split}/features",
                f"{split}/features/b1",
                f"{split}/features/b1/p1",
                f"{split}/features/b1/p1/t10",
            ]
            tree += [f"{split}/features/b2", f"{split}/features/b2/p2"]
            tree += [f"{split}/features/b2/p2/t10", f"{split}/features/b2/p2/t90"]
            tree += [f"{split}/rows", f"{split}/rows/id", f"{split}/rows/label"]
        assert done.stdout.splitlines() == [
            " ".join(tree),
            "1 ['cat', 'dog']",
            f"{first} {listed} int32",
            str(total),
            "t10 t90 ('row', 'channel', 'y', 'x') float16 0.5",
            str(total),
            f"{first} {listed}",
        ]

    def test_attributes(self, small: FeatureStore) -> None:
        root = zarr.open_group(small.path, mode="r")
        attributes: dict[str, Any] = dict(root.attrs)["diffssl"]  # type: ignore[assignment]
        assert {"format", "feature_id", "identity", "classes", "row_block", "batch_size"} <= attributes.keys()
        assert attributes["feature_id"] == small.feature_id
        assert root["train"].attrs["diffssl"] == {"data_id": small.data_id("train"), "rows": 10}
        assert dict(root["train/features/b2/p2/t90"].attrs) == {"kind": "Res", "alpha": 0.5, "sigma": 0.25}

    def test_there_are_no_files_that_zarr_does_not_know(self, small: FeatureStore) -> None:
        """Every file is a document, a chunk of an array, or inside the journal."""
        root = zarr.open_group(small.path, mode="r")
        arrays = [name for name, node in root.members(max_depth=None) if isinstance(node, zarr.Array)]
        for path in Path(small.path).rglob("*"):
            name = path.relative_to(small.path).as_posix()
            if path.is_file() and path.name != "zarr.json" and not name.startswith("journal/"):
                array = next(array for array in arrays if name.startswith(f"{array}/"))
                assert re.fullmatch(r"c(/0|\.\d+\.0\.0\.0)", name.removeprefix(f"{array}/"))


@settings(max_examples=25)
@given(
    n_rows=st.integers(1, 21),
    channels=st.integers(1, 4),
    pool=st.integers(1, 3),
    dtype=st.sampled_from(["float16", "float32"]),
    row_block=st.sampled_from([1, 2, 4, 8, 32]),
    chunk_bytes=st.sampled_from([1, 60, 10**6]),
    start=st.integers(0, 21),
    stop=st.integers(0, 21),
)
def test_zarr_xarray_and_diffssl_read_the_same(
    tmp_path_factory: pytest.TempPathFactory,
    header: StoreHeader,
    commit_unit: CommitUnit,
    ids: Ids,
    labels: Labels,
    n_rows: int,
    channels: int,
    pool: int,
    dtype: str,
    row_block: int,
    chunk_bytes: int,
    start: int,
    stop: int,
) -> None:
    import xarray as xr

    path = tmp_path_factory.mktemp("any") / "feats.zarr"
    key = FeatureKey(1, 7, pool)
    any_header = replace(header, dtype=dtype, row_block=row_block, blocks=[replace(header.blocks[0], channels=channels)])
    values = np.random.default_rng(n_rows).standard_normal((n_rows, channels, pool, pool)).astype(dtype)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(layout_module, "CHUNK_BYTES", chunk_bytes)
        store = create(path, any_header)
        add_split(store, "all", ids("all", n_rows), labels(n_rows))
        add_arrays(store, "all", [key], {key: {}})
        for block in range(-(-n_rows // row_block)):
            rows = block_range(n_rows, row_block, block)
            commit_unit(store, "all", block, {key: values[rows.start : rows.stop]})
        store = FeatureStore.open(path)
        np.testing.assert_array_equal(store.read(key, "all"), values)
        np.testing.assert_array_equal(store.read(key, "all", slice(start, stop)), values[start:stop])
        np.testing.assert_array_equal(computed(store.lazy(key, "all")), values)
    array = zarr.open_array(path / "all/features" / key.path, mode="r")
    np.testing.assert_array_equal(np.asarray(array[:]), values)
    np.testing.assert_array_equal(np.asarray(array[start:stop]), values[start:stop])
    with xr.open_zarr(path, group=f"all/features/b1/p{pool}", consolidated=False) as data:
        assert data["t7"].dtype == np.dtype(dtype)
        np.testing.assert_array_equal(data["t7"].values, values)
        np.testing.assert_array_equal(data["t7"][start:stop].values, values[start:stop])


def test_header_round_trip(header: StoreHeader) -> None:
    again = StoreHeader.from_json(json.loads(json.dumps(header.to_json())))
    assert again == replace(header, classes=list(header.classes), blocks=list(header.blocks))


def test_public_names_are_listed_once_and_sorted() -> None:
    import diffssl.store as package

    listed: Sequence[str] = package.__all__
    assert len(set(listed)) == len(listed)
    assert all(hasattr(package, name) for name in listed)
