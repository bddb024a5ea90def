"""Where images come from: folders, tar archives and the bundled digits, listed into splits.

Listing finds every image's id and class name; reading gives the bytes of one file. The id is ``class/file`` below the
split's folder, the same for a folder and for a tar of it.
"""

from __future__ import annotations

import io
import os
import tarfile
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePosixPath

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ..store import NO_LABEL, row_order
from .errors import DataError
from .images import SUFFIXES
from .labels import label_table

DIGITS = "digits"
ALL = "all"
SPLITS = ("train", "val", "test")
_SHOWN = 3


@dataclass(frozen=True)
class Listing:
    """The images of one split, in any order.

    Attributes:
        ids: sample ids.
        class_names: class name of each, or None.
        read: reads the bytes of the i-th image. Raises ``OSError``.
        notes: what people should know about how the images were listed.
    """

    ids: Sequence[str]
    class_names: Sequence[str | None]
    read: Callable[[int], bytes]
    notes: Sequence[str] = ()


@dataclass(frozen=True)
class SplitData:
    """One split in row order.

    Attributes:
        ids: (n,) sample ids.
        labels: (n,) int32 index into the classes of the whole data set, -1 for none.
        read: reads the bytes of the image of a row. Raises ``OSError``.
    """

    ids: NDArray[np.object_]
    labels: NDArray[np.int32]
    read: Callable[[int], bytes]


@dataclass(frozen=True)
class DataSet:
    """All splits of the images, with labels from one list of classes.

    Attributes:
        splits: by name.
        classes: sorted names, the union over all splits; empty without labels.
        notes: what people should know about how the images were listed.
    """

    splits: Mapping[str, SplitData]
    classes: list[str]
    notes: list[str] = field(default_factory=list)

    def with_classes(self, classes: Sequence[str]) -> DataSet:
        """The same images with labels that index another list of classes, which must have all names of this one."""
        number = {name: i for i, name in enumerate(classes)}
        places = np.array([number[name] for name in self.classes] + [NO_LABEL], dtype=np.int32)  # -1 finds the last
        splits = {name: replace(split, labels=places[split.labels]) for name, split in self.splits.items()}
        return DataSet(splits, list(classes), self.notes)


def load_data(sources: Sequence[str], labels: Path | None = None) -> DataSet:
    """List images.

    Args:
        sources: ``digits``; a folder or an uncompressed tar; or ``split=`` one of these, several times.
        labels: CSV with a line ``file,label`` per image of a flat folder.

    Raises:
        DataError: with what is wrong and the way out.
    """
    listings: dict[str, Listing] = {}
    if labels and all(source == DIGITS and not Path(source).exists() for source in sources):
        raise DataError(f"--labels {labels} is for a flat folder of images; the digits have labels of their own")
    for source in sources:
        name, equals, rest = source.partition("=")
        named = equals and name.replace("-", "").replace("_", "").isalnum() and not Path(source).exists()
        found = {name: _one_split(Path(rest), labels)} if named else _all_splits(source, labels)
        twice = found.keys() & listings.keys()
        if twice:
            raise DataError(f"the split {min(twice)!r} is given twice, by {' and '.join(sources)}")
        listings |= found
    return _assemble(listings)


def _assemble(listings: Mapping[str, Listing]) -> DataSet:
    classes = sorted({name for listing in listings.values() for name in listing.class_names if name is not None})
    index = {name: number for number, name in enumerate(classes)}
    splits: dict[str, SplitData] = {}
    notes: list[str] = []
    for name, listing in listings.items():
        if not name.isascii() or name in ("journal", ""):
            raise DataError(f"{name!r} cannot be the name of a split; use letters, digits, - and _")
        _check_ids(name, listing.ids)
        order = row_order(listing.ids)
        ids = np.array([listing.ids[i] for i in order], dtype=object)
        labels = [index.get(listing.class_names[i] or "", NO_LABEL) for i in order]
        splits[name] = SplitData(ids, np.array(labels, dtype=np.int32), _in_row_order(listing.read, order))
        notes += [f"{name}: {note}" for note in listing.notes]
    return DataSet(splits, classes, notes)


def _in_row_order(read: Callable[[int], bytes], order: Sequence[int]) -> Callable[[int], bytes]:
    return lambda row: read(order[row])


def _check_ids(split: str, ids: Sequence[str]) -> None:
    if not ids:
        raise DataError(f"{split}: no images found; known suffixes are {', '.join(SUFFIXES)}")
    bad = [name for name in ids if not _is_utf8(name)]
    if bad:
        shown = ", ".join(ascii(name) for name in bad[:_SHOWN])
        raise DataError(f"{split}: {len(bad)} file names are not UTF-8 (such as {shown}); rename them")
    twice = [name for name, count in Counter(ids).items() if count > 1]
    if twice:
        raise DataError(f"{split}: {len(twice)} ids are there more than once, such as {twice[0]!r}; ids must be unique")


def _is_utf8(name: str) -> bool:
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True


def _all_splits(source: str, labels: Path | None) -> dict[str, Listing]:
    """Splits of a source that is not named ``split=``."""
    path = Path(source)
    if source == DIGITS and not path.exists():
        return {ALL: _digits()}
    if path.is_dir():
        tars = {name: path / f"{name}.tar" for name in SPLITS if (path / f"{name}.tar").is_file()}
        folders = _split_folders(path)
        both = tars.keys() & folders.keys()
        if both:
            raise DataError(f"{path}: has both {min(both)}/ and {min(both)}.tar; name one, as --data {min(both)}=…")
        if tars or folders:
            return {name: _one_split(part, None) for name, part in sorted({**tars, **folders}.items())}
    elif path.suffix == ".tar" and path.is_file():
        return _tar_splits(path)
    return {ALL: _one_split(path, labels)}


def _one_split(path: Path, labels: Path | None) -> Listing:
    if path.is_dir():
        return _folder(path, labels)
    if not path.exists():
        raise DataError(f"{path}: there is no such folder or tar; --data takes a folder, a .tar, {DIGITS!r}, or split=one")
    if path.suffix == ".tar":
        (listing,) = _tar_listings(path, lambda _: ALL).values()
        return listing
    if path.suffix in (".gz", ".tgz", ".bz2", ".xz", ".zst"):
        raise DataError(
            f"{path}: compressed archives cannot be read in place; uncompress it once (gunzip {path}) and give the .tar"
        )
    raise DataError(f"{path}: is neither a folder nor a .tar")


def _split_folders(path: Path) -> dict[str, Path]:
    """Folders train, val and test, if they are splits and not classes: a class folder holds no folders itself."""
    folders = [entry.name for entry in path.iterdir() if not entry.name.startswith(".") and entry.is_dir()]
    splits = {name: path / name for name in SPLITS if name in folders}
    nested = any(entry.is_dir() for folder in splits.values() for entry in folder.iterdir())
    return splits if nested or splits.keys() == set(folders) else {}


def _folder(path: Path, labels: Path | None) -> Listing:
    """A folder of class folders, or a flat folder of images."""
    files = sorted(_walk(path))
    images, notes = _only_images(files)
    flat = [name for name in images if "/" not in name]
    if flat and len(flat) < len(images):
        raise DataError(
            f"{path}: has images beside class folders (such as {flat[0]!r}, {len(flat)} in all); move them into a class"
        )
    if flat:
        own = path / "labels.csv"
        table = labels or (own if own.exists() else None)
        names, more = label_table(table, images)
        notes += more
    elif labels:
        raise DataError(f"{path}: labels come from its class folders; --labels is for a flat folder of images")
    else:
        names = [name.split("/", 1)[0] for name in images]
    return Listing(images, names, lambda i: (path / images[i]).read_bytes(), notes)


def _walk(top: Path) -> Iterable[str]:
    """Names of all files below ``top``, relative, with "/"; hidden ones left alone. Links are followed to files only."""
    pending = [""]
    while pending:
        folder = pending.pop()
        with os.scandir(top / folder) as entries:
            for entry in entries:
                name = f"{folder}/{entry.name}" if folder else entry.name
                if entry.name.startswith("."):
                    continue
                if entry.is_dir():
                    pending.append(name)
                else:
                    yield name


def _only_images(names: Sequence[str]) -> tuple[list[str], list[str]]:
    images = [name for name in names if name.lower().endswith(SUFFIXES)]
    others = Counter(PurePosixPath(name).suffix or "no suffix" for name in names if not name.lower().endswith(SUFFIXES))
    others.pop(".csv", None)
    notes = [f"{n} files ({suffix}) are not images and are ignored" for suffix, n in sorted(others.items())]
    return images, notes


def _tar_splits(path: Path) -> dict[str, Listing]:
    """Splits inside one tar: top folders named train, val, test; else all."""

    def split_of(name: str) -> str:
        top = name.split("/", 1)[0]
        return top if top in SPLITS and name.count("/") >= 2 else ALL

    listings = _tar_listings(path, split_of)
    if len(listings) > 1 and ALL in listings:
        stray = listings[ALL].ids[0]
        raise DataError(f"{path}: has images outside its folders train, val and test (such as {stray!r})")
    return listings


def _tar_listings(path: Path, split_of: Callable[[str], str]) -> dict[str, Listing]:
    """List a tar by its headers; images are read in place, nothing is unpacked."""
    places: dict[str, list[tuple[str, int, int]]] = {}
    others: list[str] = []
    try:
        with tarfile.open(path, mode="r:") as archive:
            for member in archive:
                name = member.name.removeprefix("./")
                if member.isdir():
                    continue
                if not member.isreg() or member.issparse():
                    raise DataError(f"{path}: {name!r} is a link or a special file; archive the images themselves")
                if PurePosixPath(name).name.startswith("."):
                    continue
                if name.lower().endswith(SUFFIXES):
                    places.setdefault(split_of(name), []).append((name, member.offset_data, member.size))
                else:
                    others.append(name)
    except (tarfile.TarError, EOFError) as error:
        raise DataError(f"{path}: is not an uncompressed tar, or is damaged ({error})") from error
    _, notes = _only_images(others)
    if not places:
        raise DataError(f"{path}: no images found; known suffixes are {', '.join(SUFFIXES)}")
    return {split: _tar_listing(path, files, notes) for split, files in sorted(places.items())}


def _tar_listing(path: Path, files: Sequence[tuple[str, int, int]], notes: Sequence[str]) -> Listing:
    names, top = _below_common_folder([name for name, _, _ in files])
    notes = [*notes, f"ids are the names below {top}/ in {path.name}"] if top else list(notes)
    flat = any("/" not in name for name in names)
    if flat and any("/" in name for name in names):
        raise DataError(f"{path}: has images beside class folders")
    classes: list[str | None] = [None if flat else name.split("/", 1)[0] for name in names]
    spans = np.array([(offset, size) for _, offset, size in files], dtype=np.int64)
    descriptor = os.open(path, os.O_RDONLY)  # one for all threads: pread has no position

    def read(i: int) -> bytes:
        offset, size = int(spans[i, 0]), int(spans[i, 1])
        content = os.pread(descriptor, size, offset)
        if len(content) != size:
            raise OSError(f"{path}: {names[i]} was cut short ({len(content)} of {size} bytes)")
        return content

    return Listing(names, classes, read, notes)


def _below_common_folder(names: Sequence[str]) -> tuple[list[str], str]:
    """Names without the one folder above all class folders, if there is one, and that folder.

    ``train/airplane/1.jpg`` becomes ``airplane/1.jpg``, so that a tar of a folder has the ids of the folder.
    """
    tops = {name.split("/", 1)[0] for name in names}
    if len(tops) == 1 and all(name.count("/") >= 2 for name in names):
        (top,) = tops
        return [name.split("/", 1)[1] for name in names], top
    return list(names), ""


def _digits() -> Listing:
    """scikit-learn's 1,797 handwritten digits of 8x8 pixels, as PNG."""
    from sklearn.datasets import load_digits

    data = load_digits()
    images = np.round(data.images * (255 / 16)).astype(np.uint8)
    names = [str(int(digit)) for digit in data.target]

    def read(i: int) -> bytes:
        content = io.BytesIO()
        Image.fromarray(images[i]).save(content, format="PNG")
        return content.getvalue()

    return Listing([f"{name}/{i:04d}" for i, name in enumerate(names)], names, read)
