"""Storage: one contract, asked of a folder and of a bucket of a real S3 server; and a store in that bucket."""

from __future__ import annotations

import os
import pickle
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import dask.config
import numpy as np
import obstore.fsspec
import obstore.store
import pytest
import zarr
import zarr.storage
from diffssl.store import (
    CorruptStore,
    FeatureKey,
    FeatureStore,
    Identity,
    IdentityMismatch,
    StoreError,
    StoreHeader,
    StoreNotFound,
    connection,
    create,
    object_storage,
)
from diffssl.store.choice import Choice
from diffssl.store.cli import main
from diffssl.store.contract import Storage
from diffssl.store.drop import drop, plan_drop
from diffssl.store.object_storage import ObjectStorage
from diffssl.store.repair import repair
from diffssl.store.storage import LocalStorage
from diffssl.store.verify import verify
from numpy.typing import NDArray

Build = Callable[..., FeatureStore]
S3 = Any  # of tests/conftest.py

KEY = FeatureKey(2, 90, 2)
SHARD = "train/features/b2/p2/t90/c.1.0.0.0"


@pytest.fixture
def bucket(s3: S3) -> ObjectStorage:
    return ObjectStorage(f"{s3.bucket()}/deep/feats.zarr")


@pytest.fixture(params=["folder", "bucket"])
def storage(request: pytest.FixtureRequest, tmp_path: Path) -> Storage:
    if request.param == "folder":
        return LocalStorage(tmp_path / "feats.zarr")
    found: Storage = request.getfixturevalue("bucket")
    return found


def views(*sizes: int) -> tuple[list[bytearray], list[memoryview]]:
    buffers = [bytearray(b"." * size) for size in sizes]
    return buffers, [memoryview(buffer) for buffer in buffers]


class TestContract:
    def test_create_writes_once(self, storage: Storage) -> None:
        assert storage.create("train/zarr.json", b"first")
        assert not storage.create("train/zarr.json", b"second")
        assert storage.read("train/zarr.json") == b"first"
        assert storage.usage() == (5, 1)

    def test_create_has_one_winner_among_threads(self, storage: Storage) -> None:
        n_threads = 8
        barrier = threading.Barrier(n_threads)

        def create(trial: int, thread: int) -> bool:
            barrier.wait()
            return storage.create(f"deep/down/{trial}", bytes([thread]) * 1000)

        with ThreadPoolExecutor(n_threads) as pool:
            for trial in range(6):
                won = list(pool.map(create, [trial] * n_threads, range(n_threads)))
                assert won.count(True) == 1
                assert storage.read(f"deep/down/{trial}") == bytes([won.index(True)]) * 1000
        assert storage.usage() == (6000, 6)

    def test_check_create_leaves_nothing(self, storage: Storage) -> None:
        storage.check_create()
        assert storage.usage() == (0, 0)

    def test_replace_is_whole_at_any_moment(self, storage: Storage) -> None:
        storage.replace({"shard": [b"0" * 10_000]})

        def write() -> None:
            for i in range(20):
                storage.replace({"shard": [b"%d" % (i % 10)] * 10_000})

        seen = set()
        with ThreadPoolExecutor(1) as pool:
            writing = pool.submit(write)
            while not writing.done():
                content = storage.read("shard")
                seen.add((len(content), len(set(content))))
            writing.result()
        assert seen == {(10_000, 1)}
        assert storage.usage() == (10_000, 1)

    def test_replace_joins_the_parts_of_many_files(self, storage: Storage) -> None:
        features = np.arange(3000, dtype=np.float16)
        shard = features.data.cast("B")
        files: dict[str, list[bytes | memoryview]] = {f"a/{i}": [b"one", shard, b"", b"%d" % i] for i in range(20)}
        files["empty"] = []
        storage.replace(files)
        storage.sync_folders(files)
        for name, parts in files.items():
            assert storage.read(name) == b"".join(parts)
            assert storage.size(name) == sum(len(part) for part in parts)

    def test_a_failed_write_leaves_nothing(self, storage: Storage) -> None:
        storage.replace({"shard": [b"good"]})
        with pytest.raises(TypeError):
            storage.replace({"shard": [b"part", "not bytes"]})  # type: ignore[list-item]
        with pytest.raises(TypeError):
            storage.create("other", "not bytes")  # type: ignore[arg-type]
        assert storage.read("shard") == b"good"
        assert storage.usage() == (4, 1)

    def test_what_is_not_there(self, storage: Storage) -> None:
        assert not storage.exists("x")
        assert storage.names("") == storage.folders("") == storage.names("journal") == []
        assert storage.usage() == (0, 0)
        (view,) = views(1)[1]
        for ask in (
            lambda: storage.read("x"),
            lambda: storage.size("x"),
            lambda: storage.read_into("x", 0, [view]),
            lambda: storage.read_into("x", 0, []),
            lambda: storage.read_pieces("x", [(0, view)]),
        ):
            with pytest.raises(FileNotFoundError):
                ask()

    def test_names_and_folders(self, storage: Storage) -> None:
        for name in ("zarr.json", "train/zarr.json", "train/rows/zarr.json", "train/rows/id/c/0", "test/zarr.json", "tes"):
            storage.create(name, b"{}")
        assert sorted(storage.names("")) == ["tes", "zarr.json"]
        assert sorted(set(storage.folders("")) - {"journal"}) == ["test", "train"]
        assert (storage.names("train"), storage.folders("train")) == (["zarr.json"], ["rows"])
        assert (storage.names("train/rows/id"), storage.folders("train/rows/id")) == ([], ["c"])
        assert storage.names("tr") == storage.folders("tr") == []

    def test_names_are_kept_as_they_are(self, storage: Storage) -> None:
        names = ["a b", "é", "100%", "h#h", "q?", "a+b", "x=y&z", "%20"]
        for name in names:
            assert storage.create(f"{name}/zarr.json", name.encode())
        assert sorted(set(storage.folders("")) - {"journal"}) == sorted(names)
        assert [storage.read(f"{name}/zarr.json").decode() for name in names] == names
        assert [storage.names(name) for name in names] == [["zarr.json"]] * len(names)

    @pytest.mark.parametrize(("offset", "got"), [(0, 12), (5, 7), (11, 1), (12, 0), (50, 0)])
    def test_read_into_stops_at_the_end(self, storage: Storage, offset: int, got: int) -> None:
        data = b"abcdefghijkl"
        storage.create("data", data)
        buffers, into = views(4, 4, 4, 4, 4)
        assert storage.read_into("data", offset, into) == got
        assert b"".join(buffers) == data[offset:] + b"." * (20 - got)

    def test_read_into_many_buffers(self, storage: Storage) -> None:
        data = os.urandom(4000)
        storage.create("data", data)
        buffers, into = views(*(i % 4 for i in range(2400)))
        assert storage.read_into("data", 100, into) == 3600
        assert b"".join(buffers) == data[100:3700]

    def test_read_into_nothing_of_an_empty_file(self, storage: Storage) -> None:
        storage.create("empty", b"")
        assert storage.read_into("empty", 0, []) == storage.read_into("empty", 0, views(3)[1]) == 0

    def test_read_pieces(self, storage: Storage) -> None:
        storage.create("data", b"abcdefghijkl")
        buffers, into = views(3, 3, 3, 3)
        storage.read_pieces("data", list(zip((6, 0, 11, 50), into, strict=True)))
        assert [bytes(buffer) for buffer in buffers] == [b"ghi", b"abc", b"l..", b"..."]


class TestBucket:
    @pytest.mark.parametrize("length", [500, 499, 300, 200, 150, 10])
    def test_a_large_read_is_several_ranges(
        self, bucket: ObjectStorage, s3: S3, monkeypatch: pytest.MonkeyPatch, length: int
    ) -> None:
        monkeypatch.setattr(object_storage, "_RANGE_BYTES", 100)
        data = os.urandom(length)
        bucket.create("data", data)
        buffers, into = views(60, 60, 100, 0, 170, 30, 70)  # ranges of 120, 100, 170 and 100
        before = len(s3.requests)
        assert bucket.read_into("data", 10, into) == length - 10
        assert sum(request.startswith("GET") for request in s3.requests[before:]) == 4
        assert b"".join(buffers) == data[10:] + b"." * (500 - length)

    def test_it_is_named_by_its_url(self, s3: S3) -> None:
        url = f"{s3.bucket()}/deep/feats.zarr"
        assert str(ObjectStorage(url)) == str(ObjectStorage(f"{url}/")) == url
        assert ObjectStorage(f"{url}/").create("a", b"1")
        assert list(s3.objects(url)) == ["a"]

    def test_a_bucket_itself_is_a_place(self, s3: S3) -> None:
        root = ObjectStorage(s3.bucket())
        assert root.create("a/b", b"1")
        assert (root.folders(""), root.names("a"), root.read("a/b")) == (["a"], ["b"], b"1")

    def test_there_is_no_limit_and_nothing_temporary(self, bucket: ObjectStorage) -> None:
        assert bucket.free_bytes() is None  # type: ignore[func-returns-value]
        assert bucket.remove_stale() == 0

    def test_what_marks_a_folder_is_no_file(self, bucket: ObjectStorage, s3: S3) -> None:
        """Consoles make an empty object for a folder."""
        for folder in ("", "train/"):
            s3.put(f"{bucket}/{folder}", b"")
        bucket.create("train/zarr.json", b"{}")
        assert (bucket.names(""), bucket.folders("")) == ([], ["train"])
        assert (bucket.names("train"), bucket.folders("train")) == (["zarr.json"], [])

    def test_long_lists_come_in_pages(self, bucket: ObjectStorage, s3: S3, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("MOTO_S3_DEFAULT_MAX_KEYS", "3")
        bucket.replace({f"a/{i:02d}": [b"xy"] for i in range(10)} | {f"b{i}/x": [b""] for i in range(7)})
        before = len(s3.requests)
        assert bucket.names("a") == [f"{i:02d}" for i in range(10)]
        assert len(s3.requests) - before == 4
        assert bucket.folders("") == ["a", *(f"b{i}" for i in range(7))]
        assert bucket.usage() == (20, 17)

    def test_a_busy_service_is_asked_again(self, bucket: ObjectStorage, s3: S3) -> None:
        for ask in (lambda: bucket.replace({"a": [b"1"]}), lambda: bucket.read("a"), lambda: bucket.create("b", b"2")):
            s3.busy = 1
            ask()
            assert s3.busy == 0
        assert s3.objects(str(bucket)) == {"a": b"1", "b": b"2"}

    def test_a_service_that_ignores_conditions_is_found_out(self, bucket: ObjectStorage, s3: S3) -> None:
        s3.ignores_conditions = True
        with pytest.raises(StoreError, match=r"feats.zarr: the storage ignores the condition of a put .* copy it here"):
            bucket.check_create()
        assert s3.objects(str(bucket)) == {}

    def test_it_pickles_as_its_url(self, bucket: ObjectStorage, monkeypatch: pytest.MonkeyPatch) -> None:
        bucket.create("a", b"1")
        monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "never-in-a-pickle")
        pickled = pickle.dumps(ObjectStorage(str(bucket)))
        assert b"never-in-a-pickle" not in pickled
        assert pickle.loads(pickled).read("a") == b"1"  # noqa: S301


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory, build: Build) -> FeatureStore:
    """One split, one setting: three shards."""
    return build(tmp_path_factory.mktemp("tiny") / "feats.zarr", splits={"train": 10}, keys=[KEY])


def copy(store: FeatureStore, s3: S3) -> FeatureStore:
    """A store of one's own in a new bucket, to damage or to extend."""
    return FeatureStore.open(s3.upload(Path(store.path), f"{s3.bucket()}/feats.zarr"))


def damage(store: FeatureStore) -> list[str]:
    return [str(found) for found in verify(FeatureStore.open(store.path))]


def same(one: FeatureStore, other: FeatureStore) -> None:
    """Raise unless all that readers give is equal, value for value."""
    assert (one.header, one.splits, one.classes) == (other.header, other.splits, other.classes)
    for split in one.splits:
        assert one.keys(split) == other.keys(split)
        assert one.arrays(split) == other.arrays(split)
        table, theirs = one.rows(split), other.rows(split)
        assert (table.ids.tolist(), table.labels.tolist(), table.left_out) == (
            theirs.ids.tolist(),
            theirs.labels.tolist(),
            theirs.left_out,
        )
        for key in one.keys(split):
            equal(one.read(key, split), other.read(key, split))
            equal(one.read(key, split, slice(3, 6)), other.read(key, split, slice(3, 6)))
            equal(*(np.asarray(store.lazy(key, split)) for store in (one, other)))
            (x, y), (their_x, their_y) = one.xy(key, split), other.xy(key, split)
            equal(x, their_x)
            equal(y, their_y)
        for ours, its in zip(*(store.stream(store.keys(split), split) for store in (one, other)), strict=True):
            equal(ours.rows, its.rows)
            equal(ours.labels, its.labels)
            for values, theirs in zip(ours.features, its.features, strict=True):
                equal(values, theirs)


def equal(one: NDArray[Any], other: NDArray[Any]) -> None:
    assert one.dtype == other.dtype
    np.testing.assert_array_equal(one, other)


class TestStore:
    def test_it_has_the_bytes_of_one_in_a_folder(self, tmp_path: Path, s3: S3, build: Build, keys: list[FeatureKey]) -> None:
        how: dict[str, Any] = {"splits": {"train": 10}, "keys": keys[1:], "left_out": {("train", 90): [5, 9]}}
        local = build(tmp_path / "feats.zarr", **how)
        remote = build(f"{s3.bucket()}/deep/feats.zarr", **how)
        files = {path.relative_to(local.path).as_posix(): path for path in Path(local.path).rglob("*") if path.is_file()}
        assert s3.objects(remote.path) == {name: path.read_bytes() for name, path in files.items()}
        same(FeatureStore.open(remote.path), local)
        assert remote.storage.usage() == local.storage.usage()
        assert damage(remote) == []

    def test_there_is_none(self, s3: S3) -> None:
        url = f"{s3.bucket()}/feats.zarr"
        with pytest.raises(StoreNotFound, match=f"^{url}: there is no feature store here; diffssl-extract makes one$"):
            FeatureStore.open(url)
        assert s3.objects(url) == {}

    @pytest.mark.usefixtures("s3")
    def test_a_bucket_that_is_not_there_is_not_a_store_that_is_not_there(self, header: StoreHeader) -> None:
        url = "s3://no-such-bucket/feats.zarr"
        asks: list[Callable[[], object]] = [lambda: FeatureStore.open(url), lambda: create(url, header)]
        for ask in asks:
            with pytest.raises(StoreError, match=rf"^{url}: there is no such bucket \(.*\); create it") as caught:
                ask()
            assert not isinstance(caught.value, StoreNotFound)

    def test_a_place_with_something_else_in_it_is_refused(self, s3: S3, header: StoreHeader) -> None:
        url = f"{s3.bucket()}/feats.zarr"
        s3.put(f"{url}/", b"")  # a console's folder is nothing
        s3.put(f"{url}/notes/mine.txt", b"mine")
        with pytest.raises(StoreError, match=r"the folder is not empty and not a feature store \(it has 'notes'\)"):
            create(url, header)
        s3.delete(f"{url}/notes/mine.txt")
        assert create(url, header).splits == []

    def test_a_service_that_ignores_conditions_gets_no_store(self, s3: S3, header: StoreHeader) -> None:
        url = f"{s3.bucket()}/feats.zarr"
        s3.ignores_conditions = True
        with pytest.raises(StoreError, match="the storage ignores the condition of a put"):
            create(url, header)
        assert s3.objects(url) == {}

    def test_opening_writes_nothing(self, tiny: FeatureStore, s3: S3) -> None:
        url = copy(tiny, s3).path
        before = len(s3.requests)
        opened = FeatureStore.open(url)
        same(opened, tiny)
        assert {request.partition(" ")[0] for request in s3.requests[before:]} <= {"GET", "HEAD"}

    def test_a_shard_that_is_read_whole_is_one_request(self, tiny: FeatureStore, s3: S3) -> None:
        remote = copy(tiny, s3)
        before = len(s3.requests)
        equal(remote.read(KEY, "train", slice(4, 8)), tiny.read(KEY, "train", slice(4, 8)))
        (request,) = s3.requests[before:]
        assert request.endswith(SHARD)

    def test_it_is_completed_and_extended(self, tmp_path: Path, s3: S3, build: Build, keys: list[FeatureKey]) -> None:
        url = f"{s3.bucket()}/feats.zarr"
        splits = {"test": 6}
        opened = build(url, splits=splits, keys=keys[:1], row_blocks=[1])
        assert opened.missing(keys[:1], "test") == [0]
        build(url, splits=splits, keys=keys[:1], row_blocks=[0])
        assert build(url, splits=splits, keys=keys[:2], row_blocks=[]).arrays("test") == keys[:2]
        build(url, splits=splits, keys=keys[:2])
        opened.refresh()
        same(opened, build(tmp_path / "feats.zarr", splits=splits, keys=keys[:2]))
        assert damage(opened) == []

    def test_racing_creators_make_one_store(self, s3: S3, header: StoreHeader) -> None:
        url = f"{s3.bucket()}/feats.zarr"
        headers = [replace(header, identity=Identity({"weights": name})) for name in ("ours", "theirs")]
        barrier = threading.Barrier(6)

        def make(number: int) -> str:
            barrier.wait()
            try:
                return str(create(url, headers[number % 2]).identity.fields["weights"])
            except IdentityMismatch as error:
                return str(error.differences)

        with ThreadPoolExecutor(6) as pool:
            ends = list(pool.map(make, range(6)))
        winner = FeatureStore.open(url).identity.fields["weights"]
        won = ["ours", "theirs"].index(winner)
        assert ends[won::2] == [winner] * 3
        assert ends[1 - won :: 2] == [str([("weights", winner, ["theirs", "ours"][won])])] * 3
        assert sorted(s3.objects(url)) == ["journal/zarr.json", "zarr.json"]

    def test_racing_writers_write_the_same(self, tmp_path: Path, s3: S3, build: Build) -> None:
        url = f"{s3.bucket()}/feats.zarr"
        with ThreadPoolExecutor(3) as pool:
            list(pool.map(lambda _: build(url, splits={"test": 6}, keys=[KEY]), range(3)))
        same(FeatureStore.open(url), build(tmp_path / "feats.zarr", splits={"test": 6}, keys=[KEY]))
        assert damage(FeatureStore.open(url)) == []

    def test_workers_of_dask_get_it_by_its_url(self, tiny: FeatureStore, s3: S3) -> None:
        remote = copy(tiny, s3)
        with dask.config.set(scheduler="processes", num_workers=1):
            equal(np.asarray(remote.lazy(KEY, "train")), tiny.read(KEY, "train"))

    def test_strangers_read_it(self, tiny: FeatureStore, s3: S3) -> None:
        remote = copy(tiny, s3)
        plain = zarr.storage.ObjectStore(obstore.store.from_url(remote.path), read_only=True)
        system = obstore.fsspec.FsspecStore("s3", asynchronous=True)
        path = remote.path.removeprefix("s3://")
        for theirs in (plain, zarr.storage.FsspecStore(system, path=path, read_only=True)):
            root = zarr.open_group(theirs, mode="r")
            for key in tiny.keys("train"):
                equal(np.asarray(root[f"train/features/{key.path}"][:]), tiny.read(key, "train"))  # type: ignore[index]
            assert np.asarray(root["train/rows/id"][:]).tolist() == tiny.ids("train").tolist()  # type: ignore[index]


class TestDamage:
    def test_it_is_named_by_verify(self, tiny: FeatureStore, s3: S3) -> None:
        remote = copy(tiny, s3)
        where, good = f"{remote.path}/{SHARD}", Path(tiny.path, SHARD).read_bytes()
        named = f"train: row block 1, block 2, timestep 90, pool 2: {{}} ({SHARD})"
        for content, reason in [
            (good[:100], "the file is cut short: 184 bytes wanted, 100 there"),
            (b"", "the file is cut short: 184 bytes wanted, 0 there"),
            (good + b"x", "the file is too long: 184 bytes wanted, 185 there"),
            (good[:70] + bytes([good[70] ^ 1]) + good[71:], "chunk 0 does not have its checksum"),
            (good[:-9] + bytes([good[-9] ^ 1]) + good[-8:], "its index is damaged"),
        ]:
            s3.put(where, content)
            assert damage(remote) == [named.format(reason)]
        s3.delete(where)
        assert damage(remote) == [named.format("the file is missing")]
        with pytest.raises(CorruptStore, match=r"row block 1 of train, .*: the file is missing"):
            remote.read(KEY, "train")
        s3.put(where, good)
        assert damage(remote) == []

    @pytest.mark.parametrize("name", ["train/rows/id/c/0", "train/rows/label/c/0", "train/rows/id/zarr.json"])
    def test_damaged_rows_are_named(self, tiny: FeatureStore, s3: S3, name: str) -> None:
        remote = copy(tiny, s3)
        s3.put(f"{remote.path}/{name}", Path(tiny.path, name).read_bytes()[:-1])
        (found,) = damage(remote)
        assert found.startswith("train/rows/")
        s3.delete(f"{remote.path}/{name}")
        (found,) = damage(remote)
        assert found.startswith("train/rows/")

    def test_it_is_forgotten_by_repair(self, tiny: FeatureStore, s3: S3) -> None:
        remote = copy(tiny, s3)
        s3.delete(f"{remote.path}/{SHARD}")
        repair(remote.path, say=lambda _: None)
        opened = FeatureStore.open(remote.path)
        assert opened.missing([KEY], "train") == [1]
        assert damage(opened) == []

    def test_what_is_dropped_is_gone(self, tiny: FeatureStore, s3: S3) -> None:
        remote = copy(tiny, s3)
        drop(remote, plan_drop(remote, Choice(splits=["train"])))
        assert FeatureStore.open(remote.path).keys("train") == []
        assert not [name for name in s3.objects(remote.path) if name.startswith("train/features/b")]

    def test_a_service_that_is_down_is_not_damage(self, tiny: FeatureStore, s3: S3, monkeypatch: pytest.MonkeyPatch) -> None:
        """A wrong verdict would have a researcher compute everything anew."""
        url = copy(tiny, s3).path
        monkeypatch.setattr(connection, "RETRY_SECONDS", 0.2)
        opened = FeatureStore.open(url)
        s3.busy = 10_000
        with pytest.raises(
            StoreError, match=r"^s3://.*/feats.zarr: the storage is down or overloaded \(.* 503 .*\); try again later"
        ) as caught:
            list(verify(opened))
        assert not isinstance(caught.value, CorruptStore)


class TestCommand:
    def test_info_status_verify(
        self, tiny: FeatureStore, s3: S3, program: Callable[..., int], capsys: pytest.CaptureFixture[str]
    ) -> None:
        url = copy(tiny, s3).path
        assert program(main, "info", url) == 0
        assert capsys.readouterr().out.startswith(f"store       {url}\n")
        assert program(main, "status", url) == 0
        assert capsys.readouterr().out.count("complete") == 1
        assert program(main, "verify", url) == 0
        assert capsys.readouterr().out == "3 shards in 3 commits read: no damaged\n"
        s3.delete(f"{url}/{SHARD}")
        assert program(main, "verify", url) == 1
        assert "3 shards in 3 commits read: 1 damaged" in capsys.readouterr().out

    @pytest.mark.usefixtures("s3")
    def test_what_is_wrong_is_one_message(self, program: Callable[..., int], capsys: pytest.CaptureFixture[str]) -> None:
        assert program(main, "info", "s3://no-such-bucket/feats.zarr") == 1
        assert capsys.readouterr().err.startswith("Error: s3://no-such-bucket/feats.zarr: there is no such bucket")
