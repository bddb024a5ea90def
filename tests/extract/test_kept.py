from __future__ import annotations

import io
import os
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from diffssl.extract import DataError
from diffssl.extract.sources import DataSet, load_data

LONG_AGO = 1_600_000_000
N = 120  # what is enough here

Outcome = tuple[int, str, str]


@pytest.fixture(autouse=True)
def kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where listings are kept."""
    monkeypatch.setenv("DIFFSSL_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("diffssl.extract.kept.FEWEST", N)
    monkeypatch.setattr("diffssl.extract.sources.FEWEST", N)
    return tmp_path / "cache" / "listings"


def settle(root: Path) -> None:
    """Make files and folders as old as those that are usually listed."""
    for path in (root, *root.iterdir()) if root.is_dir() else (root,):
        os.utime(path, (LONG_AGO, LONG_AGO))


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Class folders with just enough images to be kept. Tests leave it as it is."""
    root = tmp_path_factory.mktemp("images")
    for name in ("cat", "dog"):
        (root / name).mkdir()
    for i in range(N):
        (root / f"{'cat' if i % 2 else 'dog'}/{i}.png").write_bytes(str(i).encode())
    settle(root)
    return root


@pytest.fixture
def own(tmp_path: Path, images: Path) -> Path:
    """The same images in a folder of one's own, to be changed."""
    root = tmp_path / "own"
    for folder in images.iterdir():
        (root / folder.name).mkdir(parents=True)
        for path in folder.iterdir():
            os.link(path, root / folder.name / path.name)
    settle(root)
    return root


def write_tar(path: Path, labels: bool = False, n: int = N) -> Path:
    with tarfile.open(path, "w") as archive:
        for i in range(n):
            files = {f"{i}.png": str(i).encode(), f"{i}.cls": b"7"} if labels else {f"c{i % 3}/{i}.png": str(i).encode()}
            for name, content in files.items():
                member = tarfile.TarInfo(name)
                member.size = len(content)
                archive.addfile(member, io.BytesIO(content))
    settle(path)
    return path


def same(one: DataSet, two: DataSet) -> bool:
    """Whether two data sets have the same splits, ids, labels, classes and bytes; notes about keeping apart."""
    assert one.classes == two.classes
    assert list(one.splits) == list(two.splits)
    for name, split in one.splits.items():
        assert split.ids.tolist() == two.splits[name].ids.tolist()
        assert split.labels.dtype == two.splits[name].labels.dtype == np.int32
        assert split.labels.tolist() == two.splits[name].labels.tolist()
        for row in range(0, len(split.ids), 7):
            assert split.read(row) == two.splits[name].read(row)
    return True


def load(source: Path | str, **options: Any) -> tuple[DataSet, str]:
    """A data set, and what was said about keeping."""
    data = load_data([str(source)], **options)
    return data, " ".join(note for note in data.notes if "list" in note)


@pytest.fixture
def no_walking(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The folders that are listed and the archives that are read, from now on."""
    looked: list[str] = []
    for name, module in (("scandir", os), ("pread", os)):
        real = getattr(module, name)

        def counted(*arguments: Any, real: Callable[..., Any] = real, name: str = name) -> Any:
            looked.append(name)
            return real(*arguments)

        monkeypatch.setattr(module, name, counted)
    return looked


def test_a_second_run_does_not_walk_the_folder(images: Path, no_walking: list[str]) -> None:
    first, said = load(images)
    assert (said, no_walking) == ("", ["scandir"] * 4)  # the root twice: for splits, and for images
    no_walking.clear()
    second, said = load(images)
    assert no_walking == []
    assert same(first, second)
    assert f"{images}: listing kept from 20" in said
    assert f"{N} images; --relist lists again" in said


def test_a_second_run_does_not_read_the_headers_of_tars(tmp_path: Path, no_walking: list[str]) -> None:
    half = N // 2
    write_tar(tmp_path / "x-0.tar", labels=True, n=half)
    write_tar(tmp_path / "x-1.tar", labels=True, n=half)
    source = f"train={tmp_path}/x-*.tar"
    first, said = load(source)
    assert said == ""
    assert no_walking
    no_walking.clear()
    second = load_data([source])
    assert "pread" not in no_walking
    assert same(first, second)
    assert second.notes[1:] == first.notes
    assert second.splits["train"].ids[0].startswith("x-")  # keys repeat over shards
    write_tar(tmp_path / "x-2.tar", labels=True, n=3)
    third, said = load(source)
    assert "what the pattern names changed since the listing of" in said
    assert len(third.splits["train"].ids) == N + 3


def test_a_second_run_does_not_read_a_manifest(images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lines = [f'{{"path": "{path}", "id": "{path.name}", "label": {i % 5}}}\n' for i, path in enumerate(images.glob("*/*"))]
    manifest = tmp_path / "list.jsonl"
    manifest.write_text("".join(lines))
    settle(manifest)
    first, _ = load(manifest)
    monkeypatch.setattr("diffssl.extract.sources.list_manifest", None)
    second, said = load(manifest)
    assert same(first, second)
    assert "listing kept" in said
    monkeypatch.undo()


def test_splits_of_one_root(tmp_path: Path, own: Path) -> None:
    root = tmp_path / "root"
    root.mkdir()
    own.rename(root / "train")
    write_tar(root / "test.tar", n=10)
    settle(root)
    first, _ = load(root)
    second, said = load(root)
    assert set(first.splits) == {"train", "test"}
    assert "listing kept" in said
    assert same(first, second)
    named, said = load(f"test={root}")  # another listing, and a small one
    assert said == ""
    assert len(named.splits["test"].ids) == 10


Change = Callable[[Path], object]
CHANGES: dict[str, Change] = {
    "an image more": lambda root: (root / "cat/new.png").touch(),
    "an image less": lambda root: (root / "cat/1.png").unlink(),
    "another name": lambda root: (root / "dog/2.png").rename(root / "dog/two.png"),
    "a class more": lambda root: (root / "emu").mkdir(),
    "a class of another name": lambda root: (root / "dog").rename(root / "wolf"),
    "a folder in a class": lambda root: (root / "dog/more").mkdir(),
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_changed_folder_is_listed_again(own: Path, change: str) -> None:
    load(own)
    CHANGES[change](own)
    _, said = load(own)
    assert f"{own}" in said
    assert "changed since the listing of 20" in said
    assert "listed again" in said
    fresh, _ = load(own, relist=True)
    assert same(load(own)[0], fresh)


def test_relist(own: Path) -> None:
    """Sees what cannot be seen by the times: here, the times of a folder are set back."""
    first, _ = load(own)
    (own / "cat/1.png").rename(own / "cat/one.png")
    settle(own)
    hidden, said = load(own)
    assert "--relist lists again" in said
    assert hidden.splits["all"].ids.tolist() == first.splits["all"].ids.tolist()
    row = hidden.splits["all"].ids.tolist().index("cat/1.png")
    with pytest.raises(FileNotFoundError, match=r"1\.png"):  # and is never another image
        hidden.splits["all"].read(row)
    seen, said = load(own, relist=True)
    assert said == ""
    assert "cat/one.png" in seen.splits["all"].ids
    assert "cat/one.png" in load(own)[0].splits["all"].ids


def test_a_tar_that_changed(tmp_path: Path) -> None:
    path = write_tar(tmp_path / "x.tar")
    load(path)
    data, said = load(path)
    assert "listing kept" in said
    write_tar(path, n=N + 5)
    os.utime(path, (LONG_AGO, LONG_AGO + 1))
    with pytest.raises(OSError, match=r"x\.tar: was replaced or changed after it was listed"):
        data.splits["all"].read(0)
    _, said = load(path)
    assert "x.tar changed since the listing of" in said
    assert f"{N + 5} images" in load(path)[1]


def test_an_archive_that_is_gone_is_an_error(tmp_path: Path) -> None:
    path = write_tar(tmp_path / "x.tar")
    load(path)
    path.unlink()
    with pytest.raises(DataError, match="there is no such folder or tar"):
        load(path)


def test_few_images_are_not_kept(tmp_path: Path, kept: Path) -> None:
    write_tar(tmp_path / "x.tar", n=N - 1)
    load(tmp_path / "x.tar")
    assert not kept.exists()


def test_what_has_just_changed_is_not_kept(own: Path, kept: Path) -> None:
    """A second change in the same tick of the clock would not be seen."""
    (own / "cat/new.png").touch()
    _, said = load(own)
    assert f"the listing is not kept, since {own / 'cat'} has just changed" in said
    assert not kept.exists()


def test_labels_of_a_flat_folder(tmp_path: Path) -> None:
    root = tmp_path / "flat"
    root.mkdir()
    for i in range(N):
        (root / f"{i}.png").touch()
    table = root / "labels.csv"
    table.write_text("file,label\n1.png,one\n")
    settle(root)
    first, _ = load(root)
    assert same(load(root)[0], first)
    table.write_text("file,label\n1.png,two\n")
    second, said = load(root)
    assert second.classes == ["two"]
    assert "labels.csv changed" in said
    other = tmp_path / "other.csv"
    other.write_text("file,label\n1.png,three\n")
    assert load(root, labels=other)[0].classes == ["three"]


def test_a_part_of_what_was_kept(images: Path, tmp_path: Path) -> None:
    (tmp_path / "part.txt").write_text("dog/0.png\ncat/17.png\n")
    first, _ = load(images, only=[str(tmp_path / "part.txt")])
    second, said = load(images, only=[str(tmp_path / "part.txt")])
    assert "listing kept" in said
    assert same(first, second)
    assert set(second.splits["all"].ids) == {"dog/0.png", "cat/17.png"}
    assert {second.splits["all"].read(i) for i in range(2)} == {b"0", b"17"}


DAMAGE: dict[str, Callable[[bytes], bytes]] = {
    "empty": lambda _: b"",
    "no zip": lambda _: b"x" * 1000,
    "cut": lambda data: data[: len(data) // 2],
    "a flipped byte of the ids": lambda data: data.replace(b"cat/1.png", b"cat/2.png", 1),
    "a flipped byte of the description": lambda data: data.replace(b'"listed"', b'"Listed"', 1),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_file_lists_again(images: Path, kept: Path, damage: str) -> None:
    first, _ = load(images)
    (path,) = kept.iterdir()
    good = path.read_bytes()
    path.write_bytes(DAMAGE[damage](good))
    assert path.read_bytes() != good
    second, said = load(images)
    assert f"the kept listing {path} is damaged (" in said
    assert "listed again" in said
    assert same(first, second)
    assert "listing kept" in load(images)[1]


def test_what_does_not_fit_lists_again(images: Path, kept: Path) -> None:
    load(images)
    (path,) = kept.iterdir()
    with np.load(path) as arrays:
        content = dict(arrays)
    for name, value in (
        ("about", np.frombuffer(b"[1]", dtype=np.uint8)),
        ("0/labels", content["0/labels"] + 5),
        ("0/labels", content["0/labels"][1:]),
        ("0/ids", content["0/ids"][:100]),
        ("0/ids", np.array([{"an": "object"}], dtype=object)),
    ):
        np.savez(path, **{**content, name: value})
        assert "is damaged" in load(images)[1]


def test_another_version_lists_again(images: Path, kept: Path) -> None:
    load(images)
    (path,) = kept.iterdir()
    with np.load(path) as arrays:
        content = dict(arrays)
    about = content["about"].tobytes().replace(b'"format": 1', b'"format": 2')
    np.savez(path, **{**content, "about": np.frombuffer(about, dtype=np.uint8)})
    assert "is of another version: listed again" in load(images)[1]


def test_a_cache_that_cannot_be_written(images: Path, tmp_path: Path, kept: Path) -> None:
    (tmp_path / "cache").touch()
    _, said = load(images)
    assert "the listing cannot be kept (" in said
    assert not kept.exists()


def test_the_command(images: Path, run_main: Callable[..., Outcome], tmp_path: Path) -> None:
    options = ("--blocks", "1", "--timesteps", "10", "--data", str(images), "--store", str(tmp_path / "x.zarr"), "--plan")
    assert "listing kept" not in run_main(*options)[1]
    assert "listing kept" in run_main(*options)[1]
    assert "listing kept" not in run_main(*options, "--relist")[1]
