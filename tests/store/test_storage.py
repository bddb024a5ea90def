from __future__ import annotations

import os
import resource
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from diffssl.store import FeatureStore, StorageFull
from diffssl.store.storage import LocalStorage


def files(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


@pytest.fixture
def storage(tmp_path: Path) -> LocalStorage:
    return LocalStorage(tmp_path / "feats.zarr")


def test_create_writes_once(storage: LocalStorage) -> None:
    assert storage.create("train/zarr.json", b"first")
    assert not storage.create("train/zarr.json", b"second")
    assert storage.read("train/zarr.json") == b"first"
    assert files(storage.root) == ["train/zarr.json"]


def test_create_has_one_winner_among_threads(storage: LocalStorage) -> None:
    n_threads = 8
    barrier = threading.Barrier(n_threads)

    def create(trial: int, thread: int) -> bool:
        barrier.wait()
        return storage.create(f"deep/down/{trial}", bytes([thread]) * 1000)

    with ThreadPoolExecutor(n_threads) as pool:
        for trial in range(15):
            won = list(pool.map(create, [trial] * n_threads, range(n_threads)))
            assert won.count(True) == 1
            assert storage.read(f"deep/down/{trial}") == bytes([won.index(True)]) * 1000
    assert files(storage.root) == sorted(f"deep/down/{trial}" for trial in range(15))


def test_replace_is_whole_at_any_moment(storage: LocalStorage) -> None:
    storage.replace({"shard": [b"0" * 10_000]})
    done = threading.Event()

    def write() -> None:
        for i in range(40):
            storage.replace({"shard": [b"%d" % (i % 10)] * 10_000})
        done.set()

    seen = set()
    with ThreadPoolExecutor(1) as pool:
        writing = pool.submit(write)
        while not done.is_set() and not writing.done():
            content = storage.read("shard")
            seen.add((len(content), len(set(content))))
        writing.result()
    assert seen == {(10_000, 1)}
    assert files(storage.root) == ["shard"]


def test_replace_joins_its_parts(storage: LocalStorage) -> None:
    storage.replace({"a/shard": [b"one", memoryview(b"two"), b""]})
    assert storage.read("a/shard") == b"onetwo"
    assert storage.size("a/shard") == 6
    storage.sync_folders(["a/shard"])


def test_a_failed_write_leaves_nothing(storage: LocalStorage) -> None:
    storage.replace({"shard": [b"good"]})
    with pytest.raises(TypeError):
        storage.replace({"shard": [b"part", "not bytes"]})  # type: ignore[list-item]
    with pytest.raises(TypeError):
        storage.create("other", "not bytes")  # type: ignore[arg-type]
    assert storage.read("shard") == b"good"
    assert files(storage.root) == ["shard"]


@pytest.fixture
def small_files() -> Iterator[None]:
    """Files of this process end at 1,000 bytes, as those on a full disk do."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, hard))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.usefixtures("small_files")
def test_a_disk_that_is_full_leaves_what_was_there(storage: LocalStorage) -> None:
    storage.replace({"a": [b"old"]})
    advice = r"nothing more can be written; everything that is committed is kept\. Make room, and run the same command again"
    with pytest.raises(StorageFull, match=advice):
        storage.replace({"a": [b"new"], "b": [bytes(2000)]})
    with pytest.raises(StorageFull, match=advice):
        storage.create("c", bytes(2000))
    assert storage.read("a") == b"old"
    assert storage.names("") == ["a"]
    assert storage.names("journal") == []


def test_remove_and_prune(storage: LocalStorage) -> None:
    for name in ("zarr.json", "a/b/c/shard", "a/b/zarr.json"):
        storage.create(name, b"{}")
    storage.prune("a/b/c")
    assert storage.exists("a/b/c/shard")
    storage.remove("a/b/c/shard")
    storage.remove("a/b/c/shard")
    storage.remove("never/was")
    storage.prune("a/b/c")
    assert storage.folders("a") == ["b"]
    assert storage.folders("a/b") == []
    storage.prune("a/b/c")  # not there, and the folder above is not empty
    storage.remove("a/b/zarr.json")
    storage.prune("a/b/c")
    storage.remove("zarr.json")
    storage.prune("journal")
    assert (storage.names(""), storage.folders("")) == ([], [])
    assert storage.root.is_dir()


def test_what_is_not_there(storage: LocalStorage) -> None:
    assert not storage.exists("x")
    assert storage.names("") == storage.folders("") == storage.names("journal") == []
    with pytest.raises(FileNotFoundError):
        storage.read("x")
    with pytest.raises(FileNotFoundError):
        storage.size("x")
    with pytest.raises(FileNotFoundError):
        storage.read_into("x", 0, [memoryview(bytearray(1))])


def test_names_and_folders(storage: LocalStorage) -> None:
    for name in ("zarr.json", "train/zarr.json", "train/rows/zarr.json", "test/zarr.json"):
        storage.create(name, b"{}")
    assert storage.names("") == ["zarr.json"]
    assert sorted(storage.folders("")) == ["journal", "test", "train"]
    assert storage.folders("train") == ["rows"]
    assert storage.exists("train/zarr.json")
    assert str(storage) == str(storage.root)


def test_read_into_many_buffers(storage: LocalStorage) -> None:
    """More buffers than one ``preadv`` takes, of different sizes, empty ones among them."""
    data = os.urandom(4000)
    storage.create("data", data)
    buffers = [bytearray(i % 4) for i in range(2400)]
    assert storage.read_into("data", 100, [memoryview(buffer) for buffer in buffers]) == 3600
    assert b"".join(buffers) == data[100:3700]


@pytest.mark.parametrize(("offset", "got"), [(0, 12), (5, 7), (11, 1), (12, 0), (50, 0)])
def test_read_into_stops_at_the_end_of_the_file(storage: LocalStorage, offset: int, got: int) -> None:
    data = b"abcdefghijkl"
    storage.create("data", data)
    buffers = [bytearray(b"." * 4) for _ in range(5)]
    assert storage.read_into("data", offset, [memoryview(buffer) for buffer in buffers]) == got
    assert b"".join(buffers) == data[offset:] + b"." * (20 - got)


@pytest.mark.parametrize("most", [1, 3, 4, 7])
def test_read_into_goes_on_after_a_short_read(storage: LocalStorage, monkeypatch: pytest.MonkeyPatch, most: int) -> None:
    """Network file systems may return less than was asked for; here the kernel is asked for at most a few bytes."""
    data = os.urandom(100)
    storage.create("data", data)
    preadv = os.preadv

    def short(descriptor: int, buffers: Sequence[memoryview], offset: int) -> int:
        part, room = [], most
        for buffer in buffers:
            part.append(buffer[:room])
            room -= len(part[-1])
        return preadv(descriptor, part, offset)

    monkeypatch.setattr(os, "preadv", short)
    buffers = [bytearray(size) for size in (5, 1, 0, 30, 2, 12)]
    assert storage.read_into("data", 20, [memoryview(buffer) for buffer in buffers]) == 50
    assert b"".join(buffers) == data[20:70]
    rest = bytearray(200)
    assert storage.read_into("data", 20, [memoryview(rest)]) == 80
    assert rest[:80] == data[20:]


def test_remove_stale_removes_old_temporary_files_only(storage: LocalStorage) -> None:
    names = ["journal/tmp-old", "journal/tmp-new", "journal/zarr.json", "journal/train/000000-t90-00.json", "tmp-elsewhere"]
    for name in names:
        storage.create(name, b"x")
        age = 3600 * (23 if name.endswith("new") else 25)
        os.utime(storage.root / name, (time.time() - age, time.time() - age))
    assert storage.remove_stale() == 1
    assert files(storage.root) == sorted(set(names) - {"journal/tmp-old"})
    assert storage.remove_stale() == 0


def test_free_bytes_of_a_folder_that_is_not_there_yet(storage: LocalStorage) -> None:
    assert not storage.root.exists()
    free = storage.free_bytes()
    status = os.statvfs(storage.root.parent)
    assert 0 < free <= status.f_blocks * status.f_frsize


def test_read_pieces_from_here_and_there(storage: LocalStorage) -> None:
    storage.create("data", b"abcdefghijkl")
    buffers = [bytearray(b"...") for _ in range(4)]
    storage.read_pieces("data", [(at, memoryview(buffer)) for at, buffer in zip((6, 0, 11, 50), buffers, strict=True)])
    assert [bytes(buffer) for buffer in buffers] == [b"ghi", b"abc", b"l..", b"..."]


def test_usage_counts_every_file(small: FeatureStore) -> None:
    found = [path for path in Path(small.path).rglob("*") if path.is_file()]
    assert small.storage.usage() == (sum(path.stat().st_size for path in found), len(found))


def test_usage_while_somebody_writes(storage: LocalStorage) -> None:
    """Temporary files come and go in the journal of a store that is being written."""
    storage.create("zarr.json", b"{}")
    journal = storage.root / "journal"
    journal.mkdir(exist_ok=True)
    stop = threading.Event()

    def write() -> None:
        while not stop.is_set():
            for i in range(20):
                (journal / f"tmp-{i}").write_bytes(b"x")
            for i in range(20):
                (journal / f"tmp-{i}").unlink()

    writer = threading.Thread(target=write)
    writer.start()
    try:
        for _ in range(200):
            assert storage.usage()[0] > 0
    finally:
        stop.set()
        writer.join()
