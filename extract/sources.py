"""Where images come from: folders, tar archives and the bundled digits, listed into splits.

Listing finds every image's id and class name; reading gives the bytes of one file. The id is ``class/file`` below the
split's folder, the same for class folders and for a tar of them.
"""

from __future__ import annotations

import io
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ..store import NO_LABEL, row_order
from .errors import DataError
from .folders import check_nothing_outside, list_folder, split_folders
from .images import SUFFIXES
from .listing import SPLITS, Listing, is_split_name, named_split
from .subsets import restrict
from .tars import list_tar, list_tar_splits, refuse_compressed

DIGITS = "digits"
ALL = "all"
_SHOWN = 3


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


def load_data(sources: Sequence[str], labels: Path | None = None, only: Sequence[str] = ()) -> DataSet:
    """List images.

    Args:
        sources: ``digits``; a folder or an uncompressed tar; or ``split=`` one of these, several times.
        labels: CSV with a line ``file,label`` per image of a flat folder.
        only: files of ids, see :func:`diffssl.extract.subsets.restrict`; everything by default.

    Raises:
        DataError: with what is wrong and the way out.
    """
    listings: dict[str, Listing] = {}
    if labels and all(source == DIGITS and not Path(source).exists() for source in sources):
        raise DataError(f"--labels {labels} is for a flat folder of images; the digits have labels of their own")
    for source in sources:
        name, rest = named_split(source)
        found = _all_splits(source, labels) if name is None else {name: _one_split(Path(rest), labels)}
        twice = found.keys() & listings.keys()
        if twice:
            raise DataError(f"the split {min(twice)!r} is given twice, by {' and '.join(sources)}")
        listings |= found
    return _assemble(restrict(listings, only))


def _assemble(listings: Mapping[str, Listing]) -> DataSet:
    classes = sorted({name for listing in listings.values() for name in listing.class_names if name is not None})
    index = {name: number for number, name in enumerate(classes)}
    splits: dict[str, SplitData] = {}
    notes: list[str] = []
    for split, listing in listings.items():
        if not split.isascii() or not is_split_name(split) or split == "journal":
            raise DataError(f"{split!r} cannot be the name of a split; use letters, digits, - and _")
        _check_ids(split, listing.ids)
        order = row_order(listing.ids)
        names = [listing.class_names[i] for i in order]
        labels = np.array([NO_LABEL if name is None else index[name] for name in names], dtype=np.int32)
        ids = np.array([listing.ids[i] for i in order], dtype=object)
        splits[split] = SplitData(ids, labels, _in_row_order(listing.read, order))
        notes += [f"{split}: {note}" for note in listing.notes]
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
        splits = _splits_of_root(path)
        if splits and labels:
            raise DataError(f"{path}: has splits; --labels is for a flat folder of images, as --data train=… --labels …")
        if splits:
            return {name: _one_split(part, None) for name, part in splits.items()}
    elif path.suffix == ".tar" and path.is_file() and not labels:
        return list_tar_splits(path)
    return {ALL: _one_split(path, labels)}


def _splits_of_root(root: Path) -> dict[str, Path]:
    tars = {name: root / f"{name}.tar" for name in SPLITS if (root / f"{name}.tar").is_file()}
    folders = split_folders(root)
    both = tars.keys() & folders.keys()
    if both:
        raise DataError(f"{root}: has both {min(both)}/ and {min(both)}.tar; name one, as --data {min(both)}=…")
    splits = dict(sorted({**tars, **folders}.items()))
    if splits:
        check_nothing_outside(root, splits)
    return splits


def _one_split(path: Path, labels: Path | None) -> Listing:
    if path.is_dir():
        return list_folder(path, labels)
    if not path.exists():
        raise DataError(f"{path}: there is no such folder or tar; --data takes a folder, a .tar, {DIGITS!r}, or split=one")
    refuse_compressed(path)
    if path.suffix != ".tar":
        raise DataError(f"{path}: is neither a folder nor a .tar")
    if labels:
        raise DataError(f"{path}: labels come from the class folders in the tar; --labels is for a flat folder of images")
    return list_tar(path)


def _digits() -> Listing:
    """scikit-learn's 1,797 handwritten digits of 8x8 pixels, as PNG."""
    from sklearn.datasets import load_digits

    data = load_digits()
    images = np.round(data.images * (255 / 16)).astype(np.uint8)
    names = [str(int(digit)) for digit in data.target]

    contents = [_png(image) for image in images]
    return Listing([f"{name}/{i:04d}" for i, name in enumerate(names)], names, contents.__getitem__)


def _png(image: NDArray[np.uint8]) -> bytes:
    content = io.BytesIO()
    Image.fromarray(image).save(content, format="PNG")
    return content.getvalue()
