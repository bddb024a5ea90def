"""Where images come from, listed into splits; ``docs/data.md`` says what each source becomes.

Listing finds every image's id and class name; reading gives the bytes of one file. The id is ``class/file`` below the
split's folder, the same for class folders and for a tar of them.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ..store import NO_LABEL, row_order
from .archive import refuse_compressed
from .digits import DIGITS, list_digits
from .errors import DataError
from .fine_grained import COUNTS, list_fine_grained
from .folders import check_nothing_outside, list_folder, split_folders
from .hugging_face import list_hugging_face
from .images import SUFFIXES
from .listing import SPLITS, Listing, is_split_name, named_split
from .manifest import list_manifest
from .patterns import is_pattern, matching_files, refuse_mixed_splits
from .subsets import restrict
from .tars import FOLDERS, SAMPLES, list_tar_splits, list_tars
from .torchvision_sets import list_torchvision

__all__ = ["DIGITS", "DataSet", "SplitData", "load_data"]

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
        sources: ``digits``; a folder or an uncompressed tar; a pattern of tars; a manifest; or ``split=`` one of these,
            several times.
        labels: CSV with a line ``file,label`` per image of a flat folder.
        only: files of ids, see :func:`diffssl.extract.subsets.restrict`; everything by default.

    Raises:
        DataError: with what is wrong and the way out.
    """
    listings: dict[str, Listing] = {}
    for source in sources:
        name, rest = named_split(source)
        found = _splits(rest, labels)
        found = found if name is None else _named(name, found, rest)
        twice = found.keys() & listings.keys()
        if twice:
            raise DataError(f"the split {min(twice)!r} is given twice, by {' and '.join(sources)}")
        listings |= found
    return _assemble(restrict(listings, only))


def is_absolute(source: str) -> bool:
    """Whether a source means the same from any working folder."""
    _, rest = named_split(source)
    kind, _, tail = rest.partition(":")
    return rest == DIGITS or kind == "torchvision" or Path(tail if kind in _KINDS else rest).is_absolute()


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
    named = {split: set(listing.class_names) - {None} for split, listing in listings.items()}
    for split, own in named.items():
        if own and named.get("train") and not own & named["train"]:
            notes.append(f"{split}: has no class in common with train")
    unprintable = [name for name in classes if not _is_utf8(name)]
    if unprintable:
        raise DataError(f"{len(unprintable)} class names are not UTF-8, such as {unprintable[0]!a}; rename them")
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
    if len(set(ids)) < len(ids):
        twice = [name for name, count in Counter(ids).items() if count > 1]
        raise DataError(f"{split}: {len(twice)} ids are there more than once, such as {twice[0]!r}; ids must be unique")


def _is_utf8(name: str) -> bool:
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True


def _splits(source: str, labels: Path | None) -> dict[str, Listing]:
    """The splits of one source, without a name given before it."""
    path = Path(source)
    kind, colon, rest = source.partition(":")
    if path.is_dir():
        return _splits_of_folder(path, labels)
    if labels and (path.exists() or source == DIGITS or kind in _KINDS or is_pattern(source)):
        raise DataError(f"{source}: has labels of its own or none; --labels {labels} is for a flat folder of images")
    if path.exists():
        return _splits_of_file(path)
    if source == DIGITS:
        return {ALL: list_digits()}
    if colon and kind in _KINDS:
        return _KINDS[kind](rest)
    if is_pattern(source):
        return {ALL: list_tars(_matching_tars(source), source)}
    kinds = ", ".join(f"{name}:…" for name in _KINDS)
    raise DataError(
        f"{path}: there is no such folder or tar; --data takes a folder, a .tar, a pattern of them (train-{{000..146}}.tar), a "
        f".jsonl, {DIGITS!r}, {kinds}, or split=one"
    )


def _named(split: str, found: Mapping[str, Listing], source: str) -> dict[str, Listing]:
    """The part of a source that is to be called ``split``: all of it, or the one of its splits that has the name."""
    if split in found:
        return {split: found[split]}
    if len(found) > 1:
        raise DataError(f"{source}: has the splits {', '.join(found)} of its own, and none that is called {split!r}")
    ((own, listing),) = found.items()
    notes = [] if own == ALL else [f"is the split {own!r} of {source}, the only one there"]
    return {split: replace(listing, notes=[*notes, *listing.notes])}


def _splits_of_folder(root: Path, labels: Path | None) -> dict[str, Listing]:
    tars = {name: root / f"{name}.tar" for name in SPLITS if (root / f"{name}.tar").is_file()}
    folders = split_folders(root)
    both = tars.keys() & folders.keys()
    if both:
        raise DataError(f"{root}: has both {min(both)}/ and {min(both)}.tar; name one, as --data {min(both)}=…")
    splits = dict(sorted({**tars, **folders}.items()))
    if not splits:
        return {ALL: list_folder(root, labels)}
    check_nothing_outside(root, splits)
    if labels:
        raise DataError(f"{root}: has splits; --labels is for a flat folder of images, as --data train=… --labels …")
    return {name: list_tars([path], str(path)) if name in tars else list_folder(path, None) for name, path in splits.items()}


def _splits_of_file(path: Path) -> dict[str, Listing]:
    refuse_compressed(path)
    if path.suffix == ".jsonl":
        return list_manifest(path)
    if path.suffix != ".tar":
        raise DataError(f"{path}: is neither a folder nor a .tar, nor a manifest (.jsonl)")
    return list_tar_splits(path)


def _tars(kind: str) -> Callable[[str], dict[str, Listing]]:
    def splits(source: str) -> dict[str, Listing]:
        paths = _matching_tars(source) if is_pattern(source) else [Path(source)]
        return {ALL: list_tars(paths, source, kind)}

    return splits


def _matching_tars(pattern: str) -> list[Path]:
    paths = matching_files(pattern)
    refuse_mixed_splits(pattern, paths)
    return paths


# What is written before a source to say what it is.
_KINDS: Mapping[str, Callable[[str], dict[str, Listing]]] = {
    SAMPLES: _tars(SAMPLES),
    FOLDERS: _tars(FOLDERS),
    "hf": list_hugging_face,
    "torchvision": list_torchvision,
    **{name: partial(list_fine_grained, name) for name in COUNTS},
}
