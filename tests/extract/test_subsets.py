from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
import pytest
from diffssl.extract import DataError, ExtractSpec
from diffssl.extract.sources import DataSet, load_data
from diffssl.store import FeatureKey, FeatureStore, IdentityMismatch, row_order

Write = Callable[[Path, Iterable[str]], None]
RunExtract = Callable[[ExtractSpec], tuple[FeatureStore, list[str]]]

TRAIN = ["cat/n01_1.JPEG", "cat/n01_2.JPEG", "dog/n02_1.JPEG", "dog/n02_2.JPEG", "dog/n02_3.JPEG"]
TEST = ["cat/t_1.JPEG", "emu/t_2.JPEG"]


@pytest.fixture
def root(tmp_path: Path, write_images: Write) -> Path:
    """Two splits, in ImageNet's way."""
    write_images(tmp_path / "images", [*(f"train/{name}" for name in TRAIN), *(f"test/{name}" for name in TEST)])
    return tmp_path / "images"


@pytest.fixture
def listing(tmp_path: Path) -> Callable[..., Path]:
    """A file of lines."""

    def write(*lines: str, name: str = "part.txt", end: str = "\n") -> Path:
        path = tmp_path / name
        path.write_bytes("".join(line + end for line in lines).encode())
        return path

    return write


def load(source: Path, *only: Path | str) -> DataSet:
    return load_data([str(source)], None, [str(text) for text in only])


def ids(data: DataSet, split: str = "train") -> set[str]:
    return set(data.splits[split].ids)


@pytest.mark.parametrize("of", [str, lambda name: name.split("/")[1]], ids=["ids", "file names"])
@pytest.mark.parametrize("suffix", [True, False])
def test_lines_are_ids_or_file_names(root: Path, listing: Callable[..., Path], of: Callable[[str], str], suffix: bool) -> None:
    chosen = [TRAIN[3], TRAIN[0]]
    lines = [of(name) if suffix else of(name).removesuffix(".JPEG") for name in chosen]
    data = load(root, f"train={listing(*lines)}")
    split = data.splits["train"]
    assert split.ids.tolist() == [sorted(chosen)[i] for i in row_order(sorted(chosen))]
    assert [data.classes[label] for label in split.labels] == [name.split("/")[0] for name in split.ids]
    assert [split.read(i) for i in range(2)] == [(root / "train" / name).read_bytes() for name in split.ids]
    assert ids(data, "test") == set(TEST)
    (note,) = [note for note in data.notes if "--only" in note]
    kind = ("id" if of is str else "file name") + ("" if suffix else " without suffix")
    assert note.startswith("train: --only train=")
    assert note.endswith(f": 2 of 5 images, each named by its {kind}")


def test_classes_are_those_of_the_images_that_are_left(root: Path, listing: Callable[..., Path]) -> None:
    """As if the other images were not there."""
    data = load(root, f"train={listing(TRAIN[4])}", f"test={listing(TEST[1], name='two.txt')}")
    assert data.classes == ["dog", "emu"]
    assert (data.splits["train"].labels.tolist(), data.splits["test"].labels.tolist()) == ([0], [1])


def test_a_file_for_all_splits(root: Path, listing: Callable[..., Path]) -> None:
    data = load(root, listing(TRAIN[1], TEST[0]))
    assert (ids(data), ids(data, "test")) == ({TRAIN[1]}, {TEST[0]})


def test_a_file_for_all_splits_that_empties_one_is_refused(root: Path, listing: Callable[..., Path]) -> None:
    with pytest.raises(DataError, match=r"leaves no image of the split 'test'.*--only split=FILE"):
        load(root, listing(TRAIN[1]))


def test_the_order_and_the_ends_of_lines_do_not_matter(root: Path, listing: Callable[..., Path]) -> None:
    one = load(root, f"train={listing(*TRAIN[:4])}").splits["train"]
    two = load(root, f"train={listing(chr(0xFEFF) + TRAIN[3], '', *TRAIN[:3], name='2', end=chr(13) + chr(10))}").splits[
        "train"
    ]
    assert one.ids.tolist() == two.ids.tolist()


def test_repeated_lines_are_said(root: Path, listing: Callable[..., Path]) -> None:
    data = load(root, f"train={listing(TRAIN[0], TRAIN[1], TRAIN[0])}")
    assert ids(data) == set(TRAIN[:2])
    assert data.notes[0].endswith("; 1 lines are there more than once")


def test_lines_that_are_nowhere_are_counted_and_shown(root: Path, listing: Callable[..., Path]) -> None:
    lines = ["n01_1.JPEG", "n09_1.JPEG", "n09_2.JPEG", "n09_3.JPEG", "n09_4.JPEG"]
    with pytest.raises(DataError, match=r"4 of 5 lines are no file name in train, such as 'n09_1") as caught:
        load(root, f"train={listing(*lines)}")
    assert "n09_3" in str(caught.value)
    assert "n09_4" not in str(caught.value)
    assert "cat/n01_1.JPEG" in str(caught.value)  # what an id of this data looks like


def test_ids_and_file_names_are_not_mixed(root: Path, listing: Callable[..., Path]) -> None:
    with pytest.raises(DataError, match=r"1 of 3 lines are no id .*such as 'n02_1.JPEG'; all lines must be ids"):
        load(root, f"train={listing(TRAIN[0], TRAIN[1], 'n02_1.JPEG')}")


def test_a_folder_on_a_line_is_never_left_aside(root: Path, listing: Callable[..., Path]) -> None:
    """dog/n01_1.JPEG is not cat/n01_1.JPEG."""
    with pytest.raises(DataError, match="1 of 1 lines"):
        load(root, f"train={listing('dog/n01_1.JPEG')}")


def test_file_names_of_two_images_are_refused(tmp_path: Path, write_images: Write, listing: Callable[..., Path]) -> None:
    write_images(tmp_path / "x", ["cat/1.png", "dog/1.png", "dog/2.png"])
    with pytest.raises(DataError, match=r"1 lines name more than one image of all .*'1\.png' \('cat/1\.png', 'dog/1\.png'\)"):
        load(tmp_path / "x", listing("1.png", "2.png"))
    assert ids(load(tmp_path / "x", listing("2.png")), "all") == {"dog/2.png"}


def test_suffixes_that_differ_are_not_left_aside(tmp_path: Path, write_images: Write, listing: Callable[..., Path]) -> None:
    write_images(tmp_path / "x", ["cat/1.png", "cat/1.jpg", "cat/2.png"])
    with pytest.raises(DataError, match="more than one image"):
        load(tmp_path / "x", listing("1"))
    with pytest.raises(DataError, match="2 of 3 lines are no file name"):
        load(tmp_path / "x", listing("2.png", "2.jpg", "1"))


def test_an_id_that_is_a_file_name_too(tmp_path: Path, write_images: Write, listing: Callable[..., Path]) -> None:
    """Where a line is an id, it means that image and no other, and this is said."""
    write_images(tmp_path, ["1.png", "cat/1.png", "cat/2.png"])
    (tmp_path / "all.jsonl").write_text('{"path": "1.png"}\n{"path": "cat/1.png"}\n{"path": "cat/2.png"}\n')
    data = load(tmp_path / "all.jsonl", listing("1.png"))
    assert ids(data, "all") == {"1.png"}
    assert any("1 of the ids are also the file names of other images, which are not meant" in note for note in data.notes)
    with pytest.raises(DataError, match="more than one image"):
        load(tmp_path / "all.jsonl", listing("1.png", "2.png"))


@pytest.mark.parametrize(
    ("content", "message"),
    [(b"", "names no images"), (b"\n \n", "names no images"), (b"\xe9.png\n", "UTF-8"), (None, "cannot be read")],
)
def test_files_that_name_nothing(root: Path, tmp_path: Path, content: bytes | None, message: str) -> None:
    if content is not None:
        (tmp_path / "part.txt").write_bytes(content)
    with pytest.raises(DataError, match=message) as caught:
        load(root, f"train={tmp_path / 'part.txt'}")
    assert "part.txt" in str(caught.value)


def test_splits_are_restricted_once_and_are_there(root: Path, listing: Callable[..., Path]) -> None:
    part = listing(*TRAIN)
    with pytest.raises(DataError, match="no split 'val'; the splits are test, train"):
        load(root, f"val={part}")
    with pytest.raises(DataError, match=r"the split 'train' is restricted by --only .* already"):
        load(root, f"train={part}", f"train={part}")
    with pytest.raises(DataError, match=r"the split 'train' is restricted"):
        load(root, f"train={part}", part)


def test_the_digits(listing: Callable[..., Path]) -> None:
    assert ids(load_data(["digits"], None, [str(listing("0003", "0004"))]), "all") == {"3/0003", "4/0004"}


def test_an_extraction_of_a_part(
    make_spec: Callable[..., ExtractSpec], run_extract: RunExtract, photos: Path, listing: Callable[..., Path], tmp_path: Path
) -> None:
    """The features are those that the whole data set's store has for these images; the whole is another store's."""
    every = sorted(path.relative_to(photos).as_posix() for path in photos.rglob("*.*"))
    part = listing(*every[::4])
    whole, _ = run_extract(make_spec(store=tmp_path / "whole.zarr", blocks={3: set()}))
    store, lines = run_extract(make_spec(blocks={3: set()}, only=[str(part)]))
    assert f"all: --only {part}: 18 of 72 images, each named by its id" in lines
    assert sorted(store.ids("all")) == every[::4]
    key = FeatureKey(3, 90, 1)
    rows = [whole.ids("all").tolist().index(name) for name in store.ids("all")]
    expected = whole.read(key, "all")[rows].astype(np.float64)
    np.testing.assert_allclose(store.read(key, "all"), expected, rtol=0, atol=np.abs(expected).max() / 1024)
    with pytest.raises(IdentityMismatch, match="other samples in its split 'all'"):
        run_extract(make_spec(blocks={3: set()}))
