"""The papers' fine-grained data sets from their official folders, with their official splits.

Ids are the images' paths as the official lists have them. Files of MATLAB are read by scipy, which unpickles nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from .errors import DataError
from .folders import missing_files
from .labels import class_names
from .listing import Listing

# Images of each official split.
COUNTS: dict[str, dict[str, int]] = {
    "cub": {"train": 5994, "test": 5794},
    "nabirds": {"train": 23929, "test": 24633},
    "dogs": {"train": 12000, "test": 8580},
    "cars": {"train": 8144, "test": 8041},
    "aircraft": {"train": 3334, "val": 3333, "test": 3333},
    "flowers": {"train": 1020, "val": 1020, "test": 6149},
}
_SHOWN = 3

# Files of a split below the folder of the images, and the class of each.
_Split = tuple[Sequence[str], Sequence[int | str]]


def list_fine_grained(name: str, path: str) -> dict[str, Listing]:
    """The official splits of a data set.

    Args:
        name: one of ``COUNTS``.
        path: of its official folder.

    Raises:
        DataError: an official file is missing or damaged, or the splits have not the official number of images.
    """
    where = f"{name}:{path}"
    images, splits = _READERS[name](Path(path), where)
    listings: dict[str, Listing] = {}
    for split, expected in COUNTS[name].items():
        files, classes = splits[split]
        if len(files) != expected:
            raise DataError(
                f"{where}: the official {split} split has {expected} images, the files here name {len(files)}; unpack the "
                "official archive again, or use class folders for a data set of your own"
            )
        missing = missing_files(images, files)
        if missing:
            shown = ", ".join(files[i] for i in missing[:_SHOWN])
            raise DataError(f"{where}: {len(missing)} of {expected} images of {split} are not in {images}, such as {shown}")
        names, notes = class_names(list(classes), where)
        listings[split] = Listing(files, names, _reader(images, files), [f"the official split, from {path}", *notes])
    return listings


def _reader(images: Path, files: Sequence[str]) -> Callable[[int], bytes]:
    return lambda i: (images / files[i]).read_bytes()


def _cub(root: Path, where: str) -> tuple[Path, dict[str, _Split]]:
    """CUB-200-2011; a class is called as in classes.txt, ``001.Black_footed_Albatross``."""
    return _birds(root, where, lambda _, name: name)


def _nabirds(root: Path, where: str) -> tuple[Path, dict[str, _Split]]:
    """NABirds; a class is called by its number too, ``0817 American Black Duck``: classes.txt also has groups of classes."""
    return _birds(root, where, lambda number, name: f"{number.zfill(4)} {name}")


def _birds(root: Path, where: str, called: Callable[[str, str], str]) -> tuple[Path, dict[str, _Split]]:
    files, classes, training = (
        _table(root / name, where) for name in ("images.txt", "image_class_labels.txt", "train_test_split.txt")
    )
    names = _table(root / "classes.txt", where)
    if not files.keys() == classes.keys() == training.keys() or not set(classes.values()) <= names.keys():
        raise DataError(f"{where}: its four lists (images.txt, …) do not name the same images and classes")
    if not set(training.values()) <= {"0", "1"}:
        raise DataError(f"{where}: train_test_split.txt has {max(training.values())!r}, where 1 is for train and 0 for test")
    splits: dict[str, _Split] = {}
    for split, flag in (("train", "1"), ("test", "0")):
        own = [image for image in files if training[image] == flag]
        splits[split] = [files[image] for image in own], [called(classes[image], names[classes[image]]) for image in own]
    return root / "images", splits


def _dogs(root: Path, where: str) -> tuple[Path, dict[str, _Split]]:
    """Stanford Dogs; a class is called as its folder, ``n02085620-Chihuahua``."""
    splits: dict[str, _Split] = {}
    for split in ("train", "test"):
        files = [str(file) for file in _mat(root / f"{split}_list.mat", "file_list", where)]
        splits[split] = files, [file.split("/", 1)[0] for file in files]
    return root / "Images", splits


def _cars(root: Path, where: str) -> tuple[Path, dict[str, _Split]]:
    """Stanford Cars; images of both splits have the same names, so their folders are part of the ids."""
    names = [str(name) for name in _mat(root / "devkit/cars_meta.mat", "class_names", where)]
    test = "cars_test_annos_withlabels.mat"  # of later date than the devkit: beside it or in it
    tables = {"train": root / "devkit/cars_train_annos.mat", "test": root / test}
    if (root / "devkit" / test).exists() and not tables["test"].exists():
        tables["test"] = root / "devkit" / test
    splits: dict[str, _Split] = {}
    for split, table in tables.items():
        rows = _mat(table, "annotations", where)
        if not {"fname", "class"} <= set(rows.dtype.names or ()):
            raise DataError(f"{where}: {table} has no 'fname' and 'class' for each image; {test} is a download of its own")
        numbers = [int(number) for number in rows["class"]]
        if not all(1 <= number <= len(names) for number in numbers):
            raise DataError(f"{where}: {table} has the class {max(numbers)}, and cars_meta.mat the classes 1 to {len(names)}")
        splits[split] = [f"cars_{split}/{file}" for file in rows["fname"]], [names[number - 1] for number in numbers]
    return root, splits


def _aircraft(root: Path, where: str) -> tuple[Path, dict[str, _Split]]:
    """FGVC-Aircraft 2013b; classes are the 100 variants."""
    data = root / "data" if (root / "data").is_dir() else root
    splits: dict[str, _Split] = {}
    for split in ("train", "val", "test"):
        variants = _table(data / f"images_variant_{split}.txt", where)
        splits[split] = [f"{image}.jpg" for image in variants], list(variants.values())
    return data / "images", splits


def _flowers(root: Path, where: str) -> tuple[Path, dict[str, _Split]]:
    """Oxford 102 Flowers; its classes have numbers, 1 to 102, and no names."""
    labels = [int(label) for label in _mat(root / "imagelabels.mat", "labels", where)]
    splits: dict[str, _Split] = {}
    for split, field in (("train", "trnid"), ("val", "valid"), ("test", "tstid")):
        numbers = [int(number) for number in _mat(root / "setid.mat", field, where)]
        if not all(1 <= number <= len(labels) for number in numbers):
            raise DataError(f"{where}: setid.mat has the image {max(numbers)}, and imagelabels.mat {len(labels)} labels")
        splits[split] = [f"image_{number:05d}.jpg" for number in numbers], [labels[number - 1] for number in numbers]
    return root / "jpg", splits


_READERS: Mapping[str, Callable[[Path, str], tuple[Path, dict[str, _Split]]]] = {
    "cub": _cub,
    "nabirds": _nabirds,
    "dogs": _dogs,
    "cars": _cars,
    "aircraft": _aircraft,
    "flowers": _flowers,
}


def _table(path: Path, where: str) -> dict[str, str]:
    """The lines of a file: the first word and the rest of each."""
    table: dict[str, str] = {}
    try:
        with path.open(encoding="utf-8") as file:
            for number, line in enumerate(file, start=1):
                word, _, rest = line.strip().partition(" ")
                if not line.strip():
                    continue
                if not rest or word in table:
                    raise DataError(f"{path}, line {number}: expected a new word and what belongs to it, got {line.strip()!r}")
                table[word] = rest
    except (OSError, UnicodeDecodeError) as error:
        raise _unreadable(path, where, error) from error
    return table


def _mat(path: Path, field: str, where: str) -> Any:
    """(n,) array, of a variable of a MATLAB file."""
    from scipy.io import loadmat

    try:
        with path.open("rb") as file:
            return np.atleast_1d(loadmat(file, squeeze_me=True)[field])
    except Exception as error:  # whatever scipy stumbles over in a damaged file
        raise _unreadable(path, where, error) from error


def _unreadable(path: Path, where: str, error: Exception) -> DataError:
    return DataError(f"{where}: {path} cannot be read ({type(error).__name__}: {error}); give the data set's official folder")
