from __future__ import annotations

import gzip
import io
import os
import tarfile
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
import pytest
from diffssl.extract import DataError
from diffssl.extract.images import decode
from diffssl.extract.sources import DataSet, load_data
from diffssl.store import row_order
from PIL import Image
from sklearn.datasets import load_digits

Write = Callable[[Path, Iterable[str]], None]
MakeTar = Callable[..., Path]

SPLITS = ["train/cat/1.png", "train/cat/2.jpg", "train/dog/1.png", "val/dog/3.png", "test/cat/4.png", "test/emu/5.png"]


def listed(data: DataSet) -> dict[str, dict[str, str | None]]:
    """Split -> id -> name of the class."""
    return {
        name: {
            sample: data.classes[label] if label >= 0 else None for sample, label in zip(split.ids, split.labels, strict=True)
        }
        for name, split in data.splits.items()
    }


def contents(data: DataSet) -> dict[tuple[str, str], bytes]:
    return {(name, sample): split.read(i) for name, split in data.splits.items() for i, sample in enumerate(split.ids)}


def load(*sources: Path | str, labels: Path | None = None) -> DataSet:
    return load_data([str(source) for source in sources], labels)


# --- folders


def test_class_folders(tmp_path: Path, write_images: Write) -> None:
    names = ["cat/1.png", "cat/2.jpg", "dog/1.png", "dog/deep/er/3.WEBP", "emu/4.tiff", "emu/ä ö.bmp"]
    write_images(tmp_path, names)
    data = load(tmp_path)
    assert listed(data) == {"all": {name: name.split("/")[0] for name in names}}
    assert data.classes == ["cat", "dog", "emu"]
    assert data.notes == []
    for (_, sample), content in contents(data).items():
        assert content == (tmp_path / sample).read_bytes()


def test_rows_are_in_hash_order(tmp_path: Path, write_images: Write) -> None:
    names = [f"{'ab'[i % 2]}/{i}.png" for i in range(40)]
    write_images(tmp_path, names)
    split = load(tmp_path).splits["all"]
    assert split.ids.tolist() == [names[i] for i in row_order(names)]
    assert split.ids.tolist() != sorted(names)
    assert split.ids.dtype == object
    assert split.labels.dtype == np.int32
    assert split.labels.tolist() == ["ab".index(name[0]) for name in split.ids]


def test_splits_are_folders(tmp_path: Path, write_images: Write) -> None:
    write_images(tmp_path, SPLITS)
    data = load(tmp_path)
    expected: dict[str, dict[str, str | None]] = {"train": {}, "val": {}, "test": {}}
    for name in SPLITS:
        split, sample = name.split("/", 1)
        expected[split][sample] = sample.split("/")[0]
    assert listed(data) == expected


def test_labels_come_from_the_classes_of_all_splits(tmp_path: Path, write_images: Write) -> None:
    """A class that a split lacks shifts nobody's label."""
    write_images(tmp_path, SPLITS)
    data = load(tmp_path)
    assert data.classes == ["cat", "dog", "emu"]
    assert sorted(set(data.splits["train"].labels.tolist())) == [0, 1]
    assert data.splits["val"].labels.tolist() == [1]
    assert sorted(data.splits["test"].labels.tolist()) == [0, 2]


def test_a_class_called_train_is_a_class(tmp_path: Path, write_images: Write) -> None:
    write_images(tmp_path, ["train/1.png", "train/2.png", "plane/3.png", "test/4.png"])
    assert listed(load(tmp_path)) == {
        "all": {"train/1.png": "train", "train/2.png": "train", "plane/3.png": "plane", "test/4.png": "test"}
    }


def test_a_class_called_train_with_hidden_folders_is_a_class(tmp_path: Path, write_images: Write) -> None:
    """What a file manager leaves behind decides nothing."""
    write_images(tmp_path, ["train/1.png", "train/.thumbnails/1.png", "plane/3.png"])
    assert listed(load(tmp_path)) == {"all": {"train/1.png": "train", "plane/3.png": "plane"}}


def test_splits_without_classes(tmp_path: Path, write_images: Write) -> None:
    write_images(tmp_path, ["train/1.png", "test/2.png"])
    data = load(tmp_path)
    assert listed(data) == {"train": {"1.png": None}, "test": {"2.png": None}}
    assert data.classes == []
    assert all("no labels" in note for note in data.notes)


@pytest.mark.parametrize("stray", ["extra/cat/9.png", "9.png"])
def test_images_outside_the_splits_are_not_dropped_in_silence(tmp_path: Path, write_images: Write, stray: str) -> None:
    """As for a tar of the same root: nobody wants a part of the images left out without a word."""
    write_images(tmp_path, [*SPLITS, stray])
    with pytest.raises(DataError, match=r"outside|beside"):
        load(tmp_path)


def test_a_neighbour_of_the_splits_that_cannot_be_listed_does_not_matter(tmp_path: Path, write_images: Write) -> None:
    write_images(tmp_path, SPLITS)
    (tmp_path / "lost+found").mkdir()
    (tmp_path / "lost+found/loop").symlink_to("..")
    assert set(load(tmp_path).splits) == {"train", "val", "test"}


def test_named_splits(tmp_path: Path, write_images: Write, make_tar: MakeTar) -> None:
    write_images(tmp_path / "a", ["cat/1.png", "dog/2.png"])
    write_images(tmp_path / "b", ["dog/3.png"])
    tar = make_tar(tmp_path / "b.tar", tmp_path / "b", ["dog/3.png"])
    data = load(f"train={tmp_path / 'a'}", f"my-test_2={tar}")
    assert listed(data) == {"train": {"cat/1.png": "cat", "dog/2.png": "dog"}, "my-test_2": {"dog/3.png": "dog"}}


def test_a_split_of_a_source_that_has_several(tmp_path: Path, write_images: Write, make_tar: MakeTar) -> None:
    """By its name; a root of splits is never taken for class folders called train and test."""
    write_images(tmp_path / "root", SPLITS)
    tar = make_tar(tmp_path / "root.tar", tmp_path / "root", SPLITS)
    for root in (tmp_path / "root", tar):
        assert listed(load(f"val={root}")) == {"val": {"dog/3.png": "dog"}}
        assert listed(load(f"test={root}", f"train={root}")) == {name: listed(load(root))[name] for name in ("test", "train")}
        with pytest.raises(DataError, match="has the splits test, train, val of its own, and none that is called 'dev'"):
            load(f"dev={root}")


def test_the_only_split_of_a_source_by_another_name(tmp_path: Path, write_images: Write, make_tar: MakeTar) -> None:
    write_images(tmp_path, ["test/cat/1.png"])
    tar = make_tar(tmp_path / "x.tar", tmp_path, ["test/cat/1.png"])
    data = load(f"val={tar}")
    assert listed(data) == {"val": {"cat/1.png": "cat"}}
    assert f"val: is the split 'test' of {tar}, the only one there" in data.notes
    assert listed(load("test=digits")).keys() == {"test"}


def test_splits_without_a_class_in_common(tmp_path: Path, write_images: Write) -> None:
    """Such as names in one and numbers in the other."""
    write_images(tmp_path, ["a/n01/1.png", "b/0/1.png", "c/n01/1.png", "d/1.png"])
    data = load(*(f"{split}={tmp_path / name}" for split, name in zip(("train", "val", "test", "more"), "abcd", strict=True)))
    assert [note for note in data.notes if "in common" in note] == ["val: has no class in common with train"]


def test_a_folder_with_an_equals_sign(tmp_path: Path, write_images: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    write_images(tmp_path / "t=5", ["cat/1.png"])
    monkeypatch.chdir(tmp_path)
    assert listed(load("t=5")) == {"all": {"cat/1.png": "cat"}}
    assert listed(load("train=t=5")) == {"train": {"cat/1.png": "cat"}}


def test_a_split_is_given_once(tmp_path: Path, write_images: Write) -> None:
    write_images(tmp_path, ["cat/1.png"])
    with pytest.raises(DataError, match="'train' is given twice"):
        load(f"train={tmp_path}", f"train={tmp_path}")
    with pytest.raises(DataError, match="'all' is given twice"):
        load(tmp_path, tmp_path)


@pytest.mark.parametrize("name", ["journal", "tråin"])
def test_names_that_no_split_can_have(tmp_path: Path, write_images: Write, name: str) -> None:
    write_images(tmp_path, ["cat/1.png"])
    with pytest.raises(DataError, match=f"'{name}' cannot be the name of a split"):
        load(f"{name}={tmp_path}")


def test_loose_images_beside_class_folders_are_refused(tmp_path: Path, write_images: Write) -> None:
    write_images(tmp_path, ["cat/1.png", "2.png", "3.png"])
    with pytest.raises(DataError, match=r"beside class folders.*'2\.png', 2 in all"):
        load(tmp_path)


def test_other_files_are_counted(tmp_path: Path, write_images: Write) -> None:
    write_images(tmp_path, ["cat/1.png"])
    for name in ("README", "cat/notes.txt", "cat/more.txt", "cat/2.gif", ".DS_Store", "cat/.hidden.png"):
        (tmp_path / name).write_text("x")
    data = load(tmp_path)
    assert listed(data) == {"all": {"cat/1.png": "cat"}}
    assert sorted(data.notes) == [
        "all: 1 files (.gif) are not images and are ignored",
        "all: 1 files (no suffix) are not images and are ignored",
        "all: 2 files (.txt) are not images and are ignored",
    ]


def test_linked_images_and_classes(tmp_path: Path, write_images: Write) -> None:
    """Subsets of ImageNet are folders of links."""
    write_images(tmp_path / "full", ["cat/1.png", "dog/2.png"])
    (tmp_path / "part/cat").mkdir(parents=True)
    (tmp_path / "part/cat/one.png").symlink_to(tmp_path / "full/cat/1.png")
    data = load(tmp_path / "part")
    assert listed(data) == {"all": {"cat/one.png": "cat"}}
    assert contents(data)["all", "cat/one.png"] == (tmp_path / "full/cat/1.png").read_bytes()


def test_a_folder_that_links_to_itself(tmp_path: Path, write_images: Write) -> None:
    """Each image is there once, or the folder is refused; a traceback or forty copies of an image are neither."""
    write_images(tmp_path, ["cat/1.png"])
    (tmp_path / "cat/up").symlink_to("..")
    found: object
    try:
        found = listed(load(tmp_path))
    except DataError as error:
        found = "up" in str(error)
    assert found in ({"all": {"cat/1.png": "cat"}}, True)


@pytest.mark.parametrize("name", ["..", "a b", "<b>x", "%2e%2e", "'; DROP TABLE", "C:\\x", "-rf", "nan", "日本"])
def test_odd_class_names_do_no_harm(tmp_path: Path, write_images: Write, name: str) -> None:
    write_images(tmp_path / "x", ["1.png", "2.png"])
    if name != "..":
        write_images(tmp_path / "folder", [f"{name}/1.png", "dog/2.png"])
        assert listed(load(tmp_path / "folder"))["all"] == {f"{name}/1.png": name, "dog/2.png": "dog"}
    with tarfile.open(tmp_path / "x.tar", "w") as archive:
        archive.add(tmp_path / "x/1.png", arcname=f"{name}/1.png")
        archive.add(tmp_path / "x/2.png", arcname="dog/2.png")
    before = sorted(tmp_path.rglob("*"))
    data = load(tmp_path / "x.tar")
    assert listed(data)["all"] == {f"{name}/1.png": name, "dog/2.png": "dog"}
    assert contents(data)["all", f"{name}/1.png"] == (tmp_path / "x/1.png").read_bytes()
    assert sorted(tmp_path.rglob("*")) == before


def test_names_that_are_not_utf8(tmp_path: Path, write_images: Write, make_tar: MakeTar) -> None:
    write_images(tmp_path / "x", ["cat/1.png", "cat/2.png"])
    bad = os.fsencode(tmp_path / "x/cat") + b"/\xe9t\xe9.png"
    os.rename(os.fsencode(tmp_path / "x/cat/2.png"), bad)  # noqa: PTH104
    with pytest.raises(DataError, match=r"1 file names are not UTF-8.*rename") as caught:
        load(tmp_path / "x")
    str(caught.value).encode()  # it can be printed
    tar = make_tar(tmp_path / "x.tar", tmp_path / "x", ["cat/1.png", os.fsdecode(b"cat/\xe9t\xe9.png")])
    with pytest.raises(DataError, match="not UTF-8"):
        load(tar)


def test_a_class_that_is_not_utf8(tmp_path: Path, write_images: Write) -> None:
    write_images(tmp_path, ["cat/1.png"])
    os.rename(os.fsencode(tmp_path / "cat"), os.fsencode(tmp_path) + b"/c\xe2t")  # noqa: PTH104
    with pytest.raises(DataError, match="not UTF-8"):
        load(tmp_path)


# --- flat folders


def test_flat_folder_without_labels(tmp_path: Path, write_images: Write) -> None:
    write_images(tmp_path, ["1.png", "2.jpg"])
    data = load(tmp_path)
    assert listed(data) == {"all": {"1.png": None, "2.jpg": None}}
    assert data.splits["all"].labels.tolist() == [-1, -1]
    assert data.classes == []
    assert "no labels" in data.notes[0]


def test_flat_folder_with_its_own_table(tmp_path: Path, write_images: Write) -> None:
    write_images(tmp_path, ["1.png", "2.jpg", "3.png"])
    (tmp_path / "labels.csv").write_text("file,label\n1.png,dog\n2.jpg,cat\n3.png,dog\n")
    data = load(tmp_path)
    assert listed(data) == {"all": {"1.png": "dog", "2.jpg": "cat", "3.png": "dog"}}
    assert data.classes == ["cat", "dog"]
    assert not [note for note in data.notes if "not images" in note]


def test_labels_given_on_the_command_line_win(tmp_path: Path, write_images: Write) -> None:
    write_images(tmp_path / "x", ["1.png"])
    (tmp_path / "x/labels.csv").write_text("file,label\n1.png,dog\n")
    (tmp_path / "mine.csv").write_text("file,label\n1.png,cat\n")
    assert listed(load(tmp_path / "x", labels=tmp_path / "mine.csv")) == {"all": {"1.png": "cat"}}
    assert listed(load(f"train={tmp_path / 'x'}", labels=tmp_path / "mine.csv")) == {"train": {"1.png": "cat"}}


def test_an_image_without_a_label_gets_none(tmp_path: Path, write_images: Write) -> None:
    write_images(tmp_path, ["1.png", "2.png"])
    (tmp_path / "labels.csv").write_text("file,label\n1.png,cat\n")
    data = load(tmp_path)
    assert listed(data) == {"all": {"1.png": "cat", "2.png": None}}
    assert any("1 of 2 images have no label" in note for note in data.notes)


def test_an_image_without_a_label_does_not_get_that_of_an_empty_cell(tmp_path: Path, write_images: Write) -> None:
    write_images(tmp_path, ["1.png", "2.png", "3.png"])
    (tmp_path / "labels.csv").write_text("file,label\n1.png,cat\n2.png,\n")
    found: object
    try:
        found = listed(load(tmp_path))["all"]["3.png"]
    except DataError as error:
        found = str(error)
    assert found is None or "line 3" in str(found)


def test_labels_for_class_folders_are_refused(tmp_path: Path, write_images: Write) -> None:
    write_images(tmp_path, ["cat/1.png"])
    (tmp_path / "mine.csv").write_text("file,label\ncat/1.png,dog\n")
    with pytest.raises(DataError, match="--labels is for a flat folder"):
        load(tmp_path, labels=tmp_path / "mine.csv")


@pytest.mark.parametrize("source", ["digits", "x.tar", "root"])
def test_labels_are_never_ignored_in_silence(tmp_path: Path, write_images: Write, make_tar: MakeTar, source: str) -> None:
    """Where a table cannot apply, whoever gave one is told."""
    write_images(tmp_path / "root", SPLITS)
    make_tar(tmp_path / "x.tar", tmp_path / "root/train", ["cat/1.png"])
    (tmp_path / "mine.csv").write_text("file,label\n1.png,cat\n")
    with pytest.raises(DataError, match="--labels"):
        load("digits" if source == "digits" else tmp_path / source, labels=tmp_path / "mine.csv")


# --- tars


@pytest.mark.parametrize("prefix", ["", "./", "top/", "./top/"])
def test_a_tar_has_the_ids_of_its_folder(tmp_path: Path, write_images: Write, make_tar: MakeTar, prefix: str) -> None:
    names = [f"{'ab'[i % 2]}/{i:02d}.png" for i in range(20)] + ["b/deeper/x.png"]
    write_images(tmp_path / "x", names)
    tar = make_tar(tmp_path / "x.tar", tmp_path / "x", names[::-1], prefix)
    if prefix.endswith("top/"):  # one folder above all class folders: every image is two folders deep
        names = names[:-1]
        tar = make_tar(tmp_path / "x.tar", tmp_path / "x", names[::-1], prefix)
        (tmp_path / "x/b/deeper/x.png").unlink()
    folder, archive = load(tmp_path / "x"), load(tar)
    assert listed(archive) == listed(folder)
    assert archive.splits["all"].ids.tolist() == folder.splits["all"].ids.tolist()
    assert contents(archive) == contents(folder)
    assert bool(archive.notes) == prefix.endswith("top/")


def test_order_in_the_tar_does_not_matter(tmp_path: Path, write_images: Write, make_tar: MakeTar) -> None:
    names = [f"a/{i}.png" for i in range(30)]
    write_images(tmp_path / "x", names)
    one = load(make_tar(tmp_path / "1.tar", tmp_path / "x", names))
    two = load(make_tar(tmp_path / "2.tar", tmp_path / "x", sorted(names, reverse=True)))
    assert one.splits["all"].ids.tolist() == two.splits["all"].ids.tolist()
    assert contents(one) == contents(two)


def test_a_folder_of_tars(tmp_path: Path, write_images: Write, make_tar: MakeTar) -> None:
    write_images(tmp_path / "root", SPLITS)
    (tmp_path / "tars").mkdir()
    for split in ("train", "val", "test"):
        names = [name.removeprefix(f"{split}/") for name in SPLITS if name.startswith(split)]
        make_tar(tmp_path / f"tars/{split}.tar", tmp_path / "root" / split, names)
    folder, tars = load(tmp_path / "root"), load(tmp_path / "tars")
    assert listed(tars) == listed(folder)
    assert tars.classes == folder.classes
    assert contents(tars) == contents(folder)


def test_tars_that_hold_their_own_folder(tmp_path: Path, write_images: Write, make_tar: MakeTar) -> None:
    """``tar cf train.tar train/``, as most people make them."""
    write_images(tmp_path / "root", SPLITS)
    (tmp_path / "tars").mkdir()
    for split in ("train", "val", "test"):
        make_tar(tmp_path / f"tars/{split}.tar", tmp_path / "root", [name for name in SPLITS if name.startswith(split)])
    assert listed(load(tmp_path / "tars")) == listed(load(tmp_path / "root"))


def test_one_tar_of_all_splits(tmp_path: Path, write_images: Write, make_tar: MakeTar) -> None:
    write_images(tmp_path / "root", SPLITS)
    tar = make_tar(tmp_path / "root.tar", tmp_path / "root", SPLITS, "./")
    assert listed(load(tar)) == listed(load(tmp_path / "root"))
    assert contents(load(tar)) == contents(load(tmp_path / "root"))


def test_one_tar_of_all_splits_below_its_own_folder(tmp_path: Path, write_images: Write, make_tar: MakeTar) -> None:
    """``tar cf root.tar root/``: the splits are not classes called train and test."""
    write_images(tmp_path / "root", SPLITS)
    tar = make_tar(tmp_path / "root.tar", tmp_path, [f"root/{name}" for name in SPLITS])
    assert listed(load(tar)) == listed(load(tmp_path / "root"))


def test_a_tar_with_images_outside_its_splits(tmp_path: Path, write_images: Write, make_tar: MakeTar) -> None:
    write_images(tmp_path / "root", [*SPLITS, "extra/cat/9.png"])
    with pytest.raises(DataError, match=r"outside its folders train, val and test.*extra/cat/9\.png"):
        load(make_tar(tmp_path / "root.tar", tmp_path / "root", [*SPLITS, "extra/cat/9.png"]))


def test_hidden_files_and_folders_of_a_tar(tmp_path: Path, write_images: Write, make_tar: MakeTar) -> None:
    """Left alone, as in a folder: ids must not depend on which of the two it is."""
    names = ["cat/1.png", "cat/._1.png", "cat/.thumbnails/1.png", ".cache/2.png"]
    write_images(tmp_path / "x", names)
    assert listed(load(tmp_path / "x")) == {"all": {"cat/1.png": "cat"}}
    assert listed(load(make_tar(tmp_path / "x.tar", tmp_path / "x", names))) == {"all": {"cat/1.png": "cat"}}


def test_a_class_called_train_in_a_tar(tmp_path: Path, write_images: Write, make_tar: MakeTar) -> None:
    names = ["train/1.png", "plane/3.png"]
    write_images(tmp_path / "x", names)
    assert listed(load(make_tar(tmp_path / "x.tar", tmp_path / "x", names))) == listed(load(tmp_path / "x"))


def test_a_flat_tar_has_no_labels(tmp_path: Path, write_images: Write, make_tar: MakeTar) -> None:
    write_images(tmp_path / "x", ["1.png", "2.png"])
    data = load(make_tar(tmp_path / "x.tar", tmp_path / "x", ["1.png", "2.png"], "./"))
    assert listed(data) == {"all": {"1.png": None, "2.png": None}}


def test_loose_images_beside_class_folders_of_a_tar(tmp_path: Path, write_images: Write, make_tar: MakeTar) -> None:
    write_images(tmp_path / "x", ["1.png", "cat/2.png"])
    with pytest.raises(DataError, match="beside class folders"):
        load(make_tar(tmp_path / "x.tar", tmp_path / "x", ["1.png", "cat/2.png"]))


def test_an_image_twice_in_a_tar(tmp_path: Path, write_images: Write, make_tar: MakeTar) -> None:
    """``tar --append`` keeps the old entry; which of the two is meant nobody can say."""
    write_images(tmp_path / "x", ["cat/1.png", "cat/2.png"])
    with pytest.raises(DataError, match=r"1 ids are there more than once, such as 'cat/1\.png'"):
        load(make_tar(tmp_path / "x.tar", tmp_path / "x", ["cat/1.png", "cat/2.png", "cat/1.png"]))


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE])
def test_links_and_special_files_in_a_tar_are_refused(tmp_path: Path, write_images: Write, kind: bytes) -> None:
    write_images(tmp_path / "x", ["cat/1.png"])
    with tarfile.open(tmp_path / "x.tar", "w") as archive:
        archive.add(tmp_path / "x/cat/1.png", arcname="cat/1.png")
        member = tarfile.TarInfo("cat/2.png")
        member.type, member.linkname = kind, "/etc/passwd"
        archive.addfile(member)
    with pytest.raises(DataError, match=r"cat/2\.png.*link or a special file"):
        load(tmp_path / "x.tar")


def test_other_files_of_a_tar_are_counted(tmp_path: Path, write_images: Write, make_tar: MakeTar) -> None:
    write_images(tmp_path / "x", ["cat/1.png"])
    (tmp_path / "x/cat/notes.txt").write_text("x")
    data = load(make_tar(tmp_path / "x.tar", tmp_path / "x", ["cat/1.png", "cat/notes.txt"]))
    assert data.notes == ["all: 1 files (.txt) are not images and are ignored"]


@pytest.mark.parametrize("format", [tarfile.GNU_FORMAT, tarfile.PAX_FORMAT, tarfile.USTAR_FORMAT])
def test_kinds_of_tars(tmp_path: Path, write_images: Write, format: int) -> None:
    name = f"chat/{'x' * 80}/{'y' * 90}.png" if format == tarfile.USTAR_FORMAT else f"chât/{'é' * 60}/{'y' * 200}.png"
    write_images(tmp_path / "x", ["1.png"])
    with tarfile.open(tmp_path / "x.tar", "w", format=format) as archive:
        archive.add(tmp_path / "x/1.png", arcname=name)
        archive.add(tmp_path / "x/1.png", arcname="dog/1.png")
    data = load(tmp_path / "x.tar")
    assert set(data.splits["all"].ids) == {name, "dog/1.png"}
    assert set(contents(data).values()) == {(tmp_path / "x/1.png").read_bytes()}


def test_a_tar_larger_than_its_list_of_names(tmp_path: Path) -> None:
    """Images are read by offset: no byte of one is in another, whatever their sizes."""
    rng = np.random.default_rng(0)
    blobs = {f"c/{i}.png": rng.bytes(int(rng.integers(0, 3000))) for i in range(200)}
    with tarfile.open(tmp_path / "x.tar", "w") as archive:
        for name, blob in blobs.items():
            member = tarfile.TarInfo(name)
            member.size = len(blob)
            archive.addfile(member, io.BytesIO(blob))
    assert {sample: content for (_, sample), content in contents(load(tmp_path / "x.tar")).items()} == blobs


def test_a_tar_that_was_cut_after_it_was_listed(tmp_path: Path, write_images: Write, make_tar: MakeTar) -> None:
    write_images(tmp_path / "x", ["cat/1.png", "cat/2.png"])
    tar = make_tar(tmp_path / "x.tar", tmp_path / "x", ["cat/1.png", "cat/2.png"])
    split = load(tar).splits["all"]
    os.truncate(tar, 600)
    with pytest.raises(OSError, match="cut short"):
        split.read(0)


@pytest.mark.parametrize("suffix", [".tar.gz", ".tgz"])
def test_compressed_tars_are_refused_with_the_way_out(
    tmp_path: Path, write_images: Write, make_tar: MakeTar, suffix: str
) -> None:
    write_images(tmp_path / "x", ["cat/1.png"])
    tar = make_tar(tmp_path / f"x{suffix}", tmp_path / "x", ["cat/1.png"], mode="w:gz")
    for source in (str(tar), f"train={tar}"):
        with pytest.raises(DataError, match=f"gunzip {tar}"):
            load(source)


def test_a_compressed_tar_among_the_splits_of_a_folder_is_not_passed_over(
    tmp_path: Path, write_images: Write, make_tar: MakeTar
) -> None:
    write_images(tmp_path / "x", ["cat/1.png"])
    (tmp_path / "root").mkdir()
    make_tar(tmp_path / "root" / "train.tar", tmp_path / "x", ["cat/1.png"])
    test = make_tar(tmp_path / "root" / "test.tar.gz", tmp_path / "x", ["cat/1.png"], mode="w:gz")
    with pytest.raises(DataError, match=f"gunzip {test}"):
        load(tmp_path / "root")
    (tmp_path / "root" / "train.tar").unlink()
    with pytest.raises(DataError, match=f"gunzip {test}"):
        load(tmp_path / "root")
    test.unlink()
    write_images(tmp_path / "root", ["train/cat/1.png"])
    (tmp_path / "root" / "train.log.gz").touch()
    assert list(load(tmp_path / "root").splits) == ["train"]


@pytest.mark.parametrize(("suffix", "mode"), [(".tar.bz2", "w:bz2"), (".tar.xz", "w:xz")])
def test_the_way_out_fits_the_compression(
    tmp_path: Path, write_images: Write, make_tar: MakeTar, suffix: str, mode: str
) -> None:
    """gunzip does not open these."""
    write_images(tmp_path / "x", ["cat/1.png"])
    with pytest.raises(DataError, match="compressed") as caught:
        load(make_tar(tmp_path / f"x{suffix}", tmp_path / "x", ["cat/1.png"], mode=mode))
    assert "gunzip" not in str(caught.value)


def test_a_compressed_tar_under_another_name(tmp_path: Path, write_images: Write, make_tar: MakeTar) -> None:
    write_images(tmp_path / "x", ["cat/1.png"])
    tar = make_tar(tmp_path / "plain.tar", tmp_path / "x", ["cat/1.png"])
    tar.write_bytes(gzip.compress(tar.read_bytes()))
    with pytest.raises(DataError, match="not an uncompressed tar"):
        load(tar)


@pytest.mark.parametrize("content", [b"", b"not a tar at all", b"\0" * 10240])
def test_files_that_are_no_tars(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "x.tar").write_bytes(content)
    with pytest.raises(DataError, match=r"x\.tar"):
        load(tmp_path / "x.tar")


def test_a_truncated_tar(tmp_path: Path, write_images: Write, make_tar: MakeTar) -> None:
    write_images(tmp_path / "x", ["cat/1.png", "cat/2.png"])
    tar = make_tar(tmp_path / "x.tar", tmp_path / "x", ["cat/1.png", "cat/2.png"])
    with tarfile.open(tar) as archive:
        second = archive.getmembers()[1]
    os.truncate(tar, second.offset_data + second.size // 2)
    with pytest.raises(DataError, match="damaged"):
        load(tar)


def test_a_folder_and_a_tar_of_one_split(tmp_path: Path, write_images: Write, make_tar: MakeTar) -> None:
    write_images(tmp_path, ["train/cat/1.png", "test/cat/2.png"])
    make_tar(tmp_path / "train.tar", tmp_path, ["train/cat/1.png"])
    with pytest.raises(DataError, match=r"both train/ and train\.tar"):
        load(tmp_path)


# --- nothing there


@pytest.mark.parametrize("source", ["nowhere", "nowhere.tar", "train=nowhere", "digit"])
def test_sources_that_are_not_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, source: str) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(DataError, match=r"no such folder or tar.*'digits'"):
        load(source)


def test_a_folder_without_images(tmp_path: Path) -> None:
    (tmp_path / "cat").mkdir()
    (tmp_path / "cat/1.gif").write_bytes(b"GIF89a")
    with pytest.raises(DataError, match=r"no images found; known suffixes are \.jpg"):
        load(tmp_path)


def test_a_file_that_is_neither(tmp_path: Path) -> None:
    (tmp_path / "x.zip").write_bytes(b"PK")
    with pytest.raises(DataError, match=r"neither a folder nor a \.tar"):
        load(tmp_path / "x.zip")


# --- data sets


def test_labels_by_another_list_of_classes(tmp_path: Path, write_images: Write) -> None:
    """A store made from more classes has its own numbers for them; no label stays no label."""
    write_images(tmp_path, ["x/cat/1.png", "x/emu/2.png", "y/3.png"])
    data = load(f"train={tmp_path / 'x'}", f"test={tmp_path / 'y'}")
    moved = data.with_classes(["ant", "cat", "dog", "emu"])
    assert listed(moved) == listed(data)
    assert moved.splits["train"].labels.dtype == np.int32
    by_id = dict(zip(moved.splits["train"].ids, moved.splits["train"].labels.tolist(), strict=True))
    assert by_id == {"cat/1.png": 1, "emu/2.png": 3}
    assert moved.splits["test"].labels.tolist() == [-1]
    assert data.splits["train"].labels.max() == 1
    assert listed(data.with_classes(data.classes)) == listed(data)


def test_digits() -> None:
    data = load("digits")
    ((name, split),) = data.splits.items()
    assert name == "all"
    assert len(split.ids) == 1797
    assert data.classes == [str(digit) for digit in range(10)]
    digits = load_digits()
    for row in (0, 1, 500, 1796):
        digit, number = split.ids[row].split("/")
        assert data.classes[split.labels[row]] == digit == str(digits.target[int(number)])
        image = np.asarray(Image.open(io.BytesIO(split.read(row))))
        np.testing.assert_allclose(image, digits.images[int(number)] * 255 / 16, atol=0.51)
        assert decode(split.read(row), 32).shape == (32, 32, 3)
    assert sorted(split.ids) == sorted(f"{digit}/{i:04d}" for i, digit in enumerate(digits.target))


def test_a_folder_called_digits_is_a_folder(tmp_path: Path, write_images: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    write_images(tmp_path / "digits", ["one/1.png"])
    monkeypatch.chdir(tmp_path)
    assert listed(load("digits")) == {"all": {"one/1.png": "one"}}


def test_cifar10() -> None:
    """The archives of the study, where they are: 60,000 real photographs in two tars."""
    root = Path(__file__).parents[2]
    folder = Path(os.environ.get("DIFFSSL_TEST_CIFAR10", root / "../shared/data/cifar10"))
    if not (folder / "train.tar").is_file():
        pytest.skip(f"CIFAR-10 IS NOT HERE: no {folder / 'train.tar'}; set DIFFSSL_TEST_CIFAR10 to the folder of its tars")
    data = load(folder)
    names = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]
    assert data.classes == names
    assert {name: len(split.ids) for name, split in data.splits.items()} == {"train": 50_000, "test": 10_000}
    for split in data.splits.values():
        assert np.bincount(split.labels).tolist() == [len(split.ids) // 10] * 10
        for row in (0, 1, len(split.ids) - 1):
            assert split.ids[row].split("/")[0] == names[split.labels[row]]
            assert decode(split.read(row), 32).std() > 5


def test_a_source_without_splits_beside_named_ones_is_refused(tmp_path: Path) -> None:
    for name in ("a", "b"):
        Image.new("RGB", (4, 4)).save(folder_of(tmp_path / name) / "0.png")
    with pytest.raises(DataError, match=r"one of train=.*a, .*b has no splits, beside train of the others; name it"):
        load_data([f"train={tmp_path / 'a'}", str(tmp_path / "b")])


def folder_of(path: Path) -> Path:
    (path / "cat").mkdir(parents=True)
    return path / "cat"
