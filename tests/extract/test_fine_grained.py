from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

import numpy as np
import pytest
from diffssl.extract import DataError, fine_grained
from diffssl.extract.sources import DataSet, load_data
from scipy.io import savemat

Write = Callable[[Path, Iterable[str]], None]
Official = Callable[[str], Path]


def cells(*texts: str) -> np.ndarray:
    """A MATLAB cell array of texts, as a column."""
    array = np.empty((len(texts), 1), dtype=object)
    array[:, 0] = texts
    return array


def cars(*rows: tuple[str, int]) -> np.ndarray:
    """MATLAB structs as in Stanford's devkit."""
    kinds = [("bbox_x1", object), ("class", object), ("fname", object)]
    return np.array([[(30, number, file) for file, number in rows]], dtype=kinds)


def make_cub(root: Path, write: Write) -> None:
    files = ["001.Black_footed_Albatross/a_1.jpg", "001.Black_footed_Albatross/a_2.jpg", "002.Laysan_Albatross/b_1.jpg"]
    write(root / "images", files)
    (root / "images.txt").write_text("".join(f"{i} {file}\n" for i, file in enumerate(files, start=1)))
    (root / "image_class_labels.txt").write_text("1 1\n2 1\n3 2\n")
    (root / "train_test_split.txt").write_text("1 0\n2 1\n3 1\n")
    (root / "classes.txt").write_text("1 001.Black_footed_Albatross\n2 002.Laysan_Albatross\n")


def make_nabirds(root: Path, write: Write) -> None:
    files = {"0000139e-21dc": "0817/0000139e21dc.jpg", "000d9fc-4e02": "0860/000d9fc4e02.jpg", "00a-1": "0009/00a1.jpg"}
    write(root / "images", files.values())
    (root / "images.txt").write_text("".join(f"{key} {file}\n" for key, file in files.items()))
    (root / "image_class_labels.txt").write_text("".join(f"{key} {int(file[:4])}\n" for key, file in files.items()))
    (root / "train_test_split.txt").write_text("0000139e-21dc 1\n000d9fc-4e02 0\n00a-1 1\n")
    (root / "classes.txt").write_text("0 Birds\n9 Ducks, Geese\n817 American Black Duck\n860 Oak Titmouse (Adult)\n")


def make_dogs(root: Path, write: Write) -> None:
    train, test = ["n1-Chihuahua/n1_10.jpg", "n2-Maltese_dog/n2_4.jpg"], ["n1-Chihuahua/n1_2.jpg"]
    write(root / "Images", train + test)
    savemat(root / "train_list.mat", {"file_list": cells(*train), "labels": [[1], [2]]})
    savemat(root / "test_list.mat", {"file_list": cells(*test), "labels": [[1]]})


def make_cars(root: Path, write: Write) -> None:
    write(root, ["cars_train/00001.jpg", "cars_train/00002.jpg", "cars_test/00001.jpg"])
    (root / "devkit").mkdir()
    savemat(root / "devkit/cars_meta.mat", {"class_names": cells("Acura RL Sedan 2012", "Ram C/V Minivan 2012").T})
    savemat(root / "devkit/cars_train_annos.mat", {"annotations": cars(("00001.jpg", 2), ("00002.jpg", 1))})
    savemat(root / "cars_test_annos_withlabels.mat", {"annotations": cars(("00001.jpg", 2))})


def make_aircraft(root: Path, write: Write) -> None:
    rows = {"train": "1025794 707-320\n1340192 F/A-18\n", "val": "0056978 707-320\n", "test": "1236289 Cessna 172\n"}
    (root / "data").mkdir(parents=True)
    for split, text in rows.items():
        (root / f"data/images_variant_{split}.txt").write_text(text)
        write(root / "data/images", [f"{line.split()[0]}.jpg" for line in text.splitlines()])


def make_flowers(root: Path, write: Write) -> None:
    write(root / "jpg", [f"image_{i:05d}.jpg" for i in range(1, 5)])
    savemat(root / "imagelabels.mat", {"labels": [[77, 102, 77, 3]]})
    savemat(root / "setid.mat", {"trnid": [[4, 1]], "valid": [[2]], "tstid": [[3]]})


MAKERS = {
    "cub": make_cub,
    "nabirds": make_nabirds,
    "dogs": make_dogs,
    "cars": make_cars,
    "aircraft": make_aircraft,
    "flowers": make_flowers,
}

EXPECTED = {
    "cub": {
        "train": {
            "001.Black_footed_Albatross/a_2.jpg": "001.Black_footed_Albatross",
            "002.Laysan_Albatross/b_1.jpg": "002.Laysan_Albatross",
        },
        "test": {"001.Black_footed_Albatross/a_1.jpg": "001.Black_footed_Albatross"},
    },
    "nabirds": {
        "train": {"0817/0000139e21dc.jpg": "0817 American Black Duck", "0009/00a1.jpg": "0009 Ducks, Geese"},
        "test": {"0860/000d9fc4e02.jpg": "0860 Oak Titmouse (Adult)"},
    },
    "dogs": {
        "train": {"n1-Chihuahua/n1_10.jpg": "n1-Chihuahua", "n2-Maltese_dog/n2_4.jpg": "n2-Maltese_dog"},
        "test": {"n1-Chihuahua/n1_2.jpg": "n1-Chihuahua"},
    },
    "cars": {
        "train": {
            "cars_train/00001.jpg": "Ram C/V Minivan 2012",
            "cars_train/00002.jpg": "Acura RL Sedan 2012",
        },
        "test": {"cars_test/00001.jpg": "Ram C/V Minivan 2012"},
    },
    "aircraft": {
        "train": {"1025794.jpg": "707-320", "1340192.jpg": "F/A-18"},
        "val": {"0056978.jpg": "707-320"},
        "test": {"1236289.jpg": "Cessna 172"},
    },
    "flowers": {
        "train": {"image_00004.jpg": "00003", "image_00001.jpg": "00077"},
        "val": {"image_00002.jpg": "00102"},
        "test": {"image_00003.jpg": "00077"},
    },
}

IMAGES = {"cub": "images", "nabirds": "images", "dogs": "Images", "cars": "", "aircraft": "data/images", "flowers": "jpg"}

each_set = pytest.mark.parametrize("name", MAKERS)


@pytest.fixture
def tree(tmp_path: Path, write_images: Write) -> Official:
    """A small tree in the format of an official one."""

    def make(name: str) -> Path:
        (tmp_path / name).mkdir()
        MAKERS[name](tmp_path / name, write_images)
        return tmp_path / name

    return make


@pytest.fixture
def small(tree: Official, monkeypatch: pytest.MonkeyPatch) -> Official:
    """The same, where the small numbers are the official ones."""

    def make(name: str) -> Path:
        monkeypatch.setitem(fine_grained.COUNTS, name, {split: len(files) for split, files in EXPECTED[name].items()})
        return tree(name)

    return make


def listed(data: DataSet) -> dict[str, dict[str, str]]:
    return {
        name: {sample: data.classes[label] for sample, label in zip(split.ids, split.labels, strict=True)}
        for name, split in data.splits.items()
    }


def test_all_sets_are_tested() -> None:
    assert MAKERS.keys() == EXPECTED.keys() == fine_grained.COUNTS.keys()


@each_set
def test_official_splits(small: Official, name: str) -> None:
    root = small(name)
    data = load_data([f"{name}:{root}"])
    assert listed(data) == EXPECTED[name]
    for split in data.splits.values():
        for row, sample in enumerate(split.ids):
            assert split.read(row) == (root / IMAGES[name] / sample).read_bytes()
    assert all(f"{split}: the official split, from {root}" in data.notes for split in data.splits)
    assert any("labels are integers" in note for note in data.notes) == (name == "flowers")


@each_set
def test_official_numbers(tree: Official, name: str) -> None:
    root = tree(name)
    expected, got = fine_grained.COUNTS[name]["train"], len(EXPECTED[name]["train"])
    with pytest.raises(DataError, match=f"{name}:.*official train split has {expected} images, the files here name {got}"):
        load_data([f"{name}:{root}"])


def test_the_numbers_of_the_papers() -> None:
    totals = {name: sum(splits.values()) for name, splits in fine_grained.COUNTS.items()}
    assert totals == {"cub": 11788, "nabirds": 48562, "dogs": 20580, "cars": 16185, "aircraft": 10000, "flowers": 8189}


@each_set
def test_images_that_are_missing(small: Official, name: str) -> None:
    root = small(name)
    first = next(iter(EXPECTED[name]["test"]))
    (root / IMAGES[name] / first).unlink()
    with pytest.raises(DataError, match=f"1 of 1 images of test are not in .*, such as {first}"):
        load_data([f"{name}:{root}"])


@each_set
def test_another_folder(tmp_path: Path, name: str) -> None:
    with pytest.raises(DataError, match=r"cannot be read \(FileNotFoundError.*official folder"):
        load_data([f"{name}:{tmp_path}"])


@pytest.mark.parametrize(
    ("name", "file", "content", "message"),
    [
        ("cub", "train_test_split.txt", "1 0\n2 1\n", "do not name the same images and classes"),
        ("cub", "train_test_split.txt", "1 0\n2 1\n3 2\n", "'2', where 1 is for train"),
        ("cub", "classes.txt", "1 001.Black_footed_Albatross\n", "do not name the same images and classes"),
        ("cub", "images.txt", "1 a.jpg\n1 b.jpg\n", r"images\.txt, line 2: expected a new word"),
        ("cub", "images.txt", "1 a.jpg\n2\n", r"images\.txt, line 2"),
        ("nabirds", "classes.txt", b"9 \xe9\n", r"classes\.txt cannot be read \(UnicodeDecodeError"),
        ("dogs", "train_list.mat", b"MATLAB 5.0 MAT-file" + b"\0" * 200, r"train_list\.mat cannot be read"),
        ("dogs", "test_list.mat", b"", r"test_list\.mat cannot be read"),
        ("cars", "devkit/cars_train_annos.mat", b"x" * 500, "cannot be read"),
        ("cars", "cars_test_annos_withlabels.mat", {"annotations": cars(("00001.jpg", 3))}, "class 3, and .* 1 to 2"),
        ("cars", "cars_test_annos_withlabels.mat", {"annotations": np.ones(3)}, "no 'fname' and 'class'"),
        ("cars", "devkit/cars_meta.mat", {"names": 3}, r"cars_meta\.mat cannot be read \(KeyError: 'class_names'\)"),
        ("flowers", "setid.mat", {"trnid": [[5]], "valid": [[1]], "tstid": [[1]]}, "the image 5, and imagelabels.mat 4 labels"),
    ],
)
def test_official_files_that_are_damaged(
    small: Official, name: str, file: str, content: str | bytes | Mapping[str, object], message: str
) -> None:
    root = small(name)
    if isinstance(content, Mapping):
        savemat(root / file, dict(content))
    else:
        (root / file).write_bytes(content.encode() if isinstance(content, str) else content)
    with pytest.raises(DataError, match=message):
        load_data([f"{name}:{root}"])


def test_where_things_may_lie(small: Official) -> None:
    root = small("cars")
    (root / "cars_test_annos_withlabels.mat").rename(root / "devkit/cars_test_annos_withlabels.mat")
    assert listed(load_data([f"cars:{root}"])) == EXPECTED["cars"]
    root = small("aircraft")
    assert listed(load_data([f"aircraft:{root / 'data'}"])) == EXPECTED["aircraft"]


def test_one_official_split(small: Official) -> None:
    root = small("cub")
    assert listed(load_data([f"test=cub:{root}"])) == {"test": EXPECTED["cub"]["test"]}
    with pytest.raises(DataError, match="has the splits train, test of its own, and none that is called 'val'"):
        load_data([f"val=cub:{root}"])


def test_flowers_in_their_real_number(tmp_path: Path, write_images: Write) -> None:
    """8,189 links to one image, in the official splits' sizes: the numbers of the table are those that load."""
    write_images(tmp_path, ["one.jpg"])
    (tmp_path / "jpg").mkdir()
    for i in range(1, 8190):
        os.link(tmp_path / "one.jpg", tmp_path / f"jpg/image_{i:05d}.jpg")
    labels = np.arange(8189) % 102 + 1
    savemat(tmp_path / "imagelabels.mat", {"labels": labels[None]})
    numbers = np.random.default_rng(0).permutation(8189) + 1
    train, val, test = np.split(numbers, [1020, 2040])
    savemat(tmp_path / "setid.mat", {"trnid": train[None], "valid": val[None], "tstid": test[None]})
    data = load_data([f"flowers:{tmp_path}"])
    assert {name: len(split.ids) for name, split in data.splits.items()} == fine_grained.COUNTS["flowers"]
    assert data.classes == [f"{i:05d}" for i in range(1, 103)]
    split = data.splits["test"]
    for row in (0, 1, 6148):
        assert data.classes[split.labels[row]] == f"{labels[int(split.ids[row][6:11]) - 1]:05d}"
