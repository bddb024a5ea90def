"""Tars in a bucket, through a real S3 API on loopback."""

from __future__ import annotations

import io
import os
import tarfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
from diffssl.extract import DataError, ExtractSpec
from diffssl.extract.bucket_tars import matching_objects, split_tars
from diffssl.extract.sources import load_data
from diffssl.store import FeatureStore, StoreError

RunExtract = Callable[[ExtractSpec], tuple[FeatureStore, list[str]]]


def tar_of(files: Mapping[str, bytes]) -> bytes:
    raw = io.BytesIO()
    with tarfile.open(fileobj=raw, mode="w") as archive:
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return raw.getvalue()


def put(s3: Any, url: str, files: Mapping[str, bytes]) -> str:
    s3.put(url, tar_of(files))
    return url


def listed(*sources: str) -> dict[str, dict[str, tuple[str | None, bytes]]]:
    """Split -> id -> class name and bytes."""
    data = load_data(sources)
    return {
        name: {
            sample: (data.classes[label] if label >= 0 else None, split.read(i))
            for i, (sample, label) in enumerate(zip(split.ids, split.labels, strict=True))
        }
        for name, split in data.splits.items()
    }


def test_class_folders(s3: Any) -> None:
    big = os.urandom(3 << 20)  # more than is read at a time
    url = put(s3, f"{s3.bucket()}/deep/train.tar", {"cat/1.png": b"one", "dog/2.png": big, "dog/3.png": b"three"})
    expected = {"cat/1.png": ("cat", b"one"), "dog/2.png": ("dog", big), "dog/3.png": ("dog", b"three")}
    assert listed(url) == {"all": expected}
    assert listed(f"train={url}", f"test=tar:{url}") == {"train": expected, "test": expected}


def test_headers_come_many_at_a_time(s3: Any) -> None:
    url = put(s3, f"{s3.bucket()}/x.tar", {f"c{i % 3}/{i}.png": b"x" * 600 for i in range(600)})
    before = len(s3.requests)
    data = load_data([url])
    assert len(data.splits["all"].ids) == 600
    assert len(s3.requests) - before <= 3  # of one megabyte: its stamp, and its bytes


def test_shards(s3: Any) -> None:
    bucket = s3.bucket()
    for shard in range(3):
        files = {f"{shard}_{i}.png": f"{shard}{i}".encode() for i in range(4)}
        put(s3, f"{bucket}/w/train-{shard:03d}.tar", files | {f"{shard}_{i}.cls": b"%d" % i for i in range(4)})
    put(s3, f"{bucket}/w/val-000.tar", {"9.png": b"9", "9.cls": b"1"})
    expected = {f"{shard}_{i}": (f"{i:05d}", f"{shard}{i}".encode()) for shard in range(3) for i in range(4)}
    for pattern in ("train-{000..002}.tar", "train-*.tar", "train-00[0-2].tar"):
        assert listed(f"train={bucket}/w/{pattern}")["train"] == expected
    assert listed(f"wds:{bucket}/w/train-*.tar")["all"] == expected
    with pytest.raises(DataError, match="matches files of train and val"):
        load_data([f"{bucket}/w/*.tar"])
    with pytest.raises(DataError, match=r"no object for 2 of its 5 names, such as .*train-003\.tar"):
        load_data([f"{bucket}/w/train-{{000..004}}.tar"])
    with pytest.raises(DataError, match="only the last part of a name"):
        matching_objects(f"{bucket}/*/train-000.tar")


def test_keys_that_repeat_over_shards(s3: Any) -> None:
    bucket = s3.bucket()
    for shard in "ab":
        put(s3, f"{bucket}/w/{shard}.tar", {"1.png": shard.encode(), "1.cls": b"0"})
    assert set(listed(f"{bucket}/w/*.tar")["all"]) == {"a/1", "b/1"}


def test_a_prefix_of_splits(s3: Any) -> None:
    bucket = s3.bucket()
    for name in ("train", "test", "other"):
        put(s3, f"{bucket}/cifar/{name}.tar", {f"{name}/cat/{name}.png": name.encode()})
    assert split_tars(f"{bucket}/cifar/") == {name: f"{bucket}/cifar/{name}.tar" for name in ("test", "train")}
    expected = {name: {f"cat/{name}.png": ("cat", name.encode())} for name in ("test", "train")}
    assert listed(f"{bucket}/cifar") == expected
    assert listed(f"test={bucket}/cifar") == {"test": expected["test"]}
    with pytest.raises(DataError, match=r"there is no train\.tar, val\.tar or test\.tar"):
        load_data([f"{bucket}/nothing"])


@pytest.mark.parametrize("name", ["x.tar", "x-{0..1}.tar"])
def test_what_is_not_there(s3: Any, name: str) -> None:
    with pytest.raises(DataError, match=r"x.*\.tar"):
        load_data([f"{s3.bucket()}/{name}"])


def test_a_bucket_that_is_not_there(s3: Any) -> None:  # noqa: ARG001  # the environment that leads to the service
    with pytest.raises(StoreError, match="no such bucket"):
        load_data(["s3://nowhere/x-*.tar"])
    with pytest.raises(DataError, match=r"s3://nowhere/x\.tar"):  # services say of both that there is no such object
        load_data(["s3://nowhere/x.tar"])


def test_what_cannot_be_read_in_place(s3: Any) -> None:
    url = f"{s3.bucket()}/x.tar.gz"
    s3.put(url, b"")
    with pytest.raises(DataError, match="compressed archives cannot be read in place"):
        load_data([url])
    put(s3, url.replace(".tar.gz", ".tar"), {"a/1.png": b"one"})
    with pytest.raises(DataError, match="has labels of its own"):
        load_data([url.replace(".tar.gz", ".tar")], Path("labels.csv"))


def test_damage(s3: Any) -> None:
    url = f"{s3.bucket()}/x.tar"
    s3.put(url, tar_of({"a/1.png": b"one", "a/2.png": b"two"})[:1400])
    with pytest.raises(DataError, match=r"x\.tar: is not an uncompressed tar, or is damaged"):
        load_data([url])


def test_a_tar_that_is_replaced_is_never_read_as_the_old_one(s3: Any) -> None:
    url = put(s3, f"{s3.bucket()}/x.tar", {"a/1.png": b"one", "a/2.png": b"two"})
    split = load_data([url]).splits["all"]
    put(s3, url, {"a/1.png": b"eins", "a/2.png": b"zwei"})
    with pytest.raises(OSError, match=r"x\.tar: was replaced or changed after it was listed"):
        split.read(0)
    s3.delete(url)
    with pytest.raises(FileNotFoundError):
        split.read(0)


def test_names_that_lead_out_harm_nothing(s3: Any) -> None:
    url = put(s3, f"{s3.bucket()}/x.tar", {"../1.png": b"one", "2.png": b"two", "2.cls": b"0"})
    with pytest.raises(DataError, match="leads out of the archive"):
        load_data([url])


def test_a_listing_is_kept(s3: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DIFFSSL_CACHE", str(tmp_path))
    monkeypatch.setattr("diffssl.extract.kept.FEWEST", 2)
    monkeypatch.setattr("diffssl.extract.sources.FEWEST", 2)
    url = put(s3, f"{s3.bucket()}/x.tar", {"a/1.png": b"one", "b/2.png": b"two"})
    first = listed(url)
    before = len(s3.requests)
    data = load_data([url])
    assert "listing kept" in data.notes[0]
    assert [request.split()[0] for request in s3.requests[before:]] == ["HEAD"]
    assert listed(url) == first
    put(s3, url, {"a/1.png": b"new", "b/2.png": b"two", "b/3.png": b"three"})
    assert "x.tar changed since the listing of" in load_data([url]).notes[0]
    assert listed(url)["all"]["a/1.png"] == ("a", b"new")


def test_extraction_from_a_bucket_into_a_bucket(
    s3: Any,
    photos: Path,
    make_spec: Callable[..., ExtractSpec],
    run_extract: RunExtract,
    same_values: Callable[[FeatureStore, FeatureStore], None],
) -> None:
    """Is the same store as that of the folder."""
    files = {path.relative_to(photos).as_posix(): path.read_bytes() for path in sorted(photos.glob("*/*"))}
    bucket = s3.bucket()
    url = put(s3, f"{bucket}/photos.tar", files)
    ours, _ = run_extract(make_spec(data=(url,), store=f"{bucket}/feats.zarr"))
    theirs, _ = run_extract(make_spec())
    same_values(ours, theirs)
    _, lines = run_extract(make_spec(data=(url,), store=f"{bucket}/feats.zarr"))
    assert "nothing to do" in lines[-1]
