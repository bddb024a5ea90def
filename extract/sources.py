"""Where images come from, listed into splits; ``docs/data.md`` says what each source becomes.

Listing finds every image's id and class name; reading gives the bytes of one file. The id is ``class/file`` below the
split's folder, the same for class folders and for a tar of them.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ..store import NO_LABEL, row_order
from ..store.location import is_bucket_url
from .bucket_tars import matching_objects, split_tars
from .digits import DIGITS, list_digits
from .errors import DataError
from .fine_grained import COUNTS, list_fine_grained
from .folders import check_nothing_outside, list_folder, split_folders
from .headers import refuse_compressed
from .hugging_face import list_hugging_face
from .images import SUFFIXES
from .kept import FEWEST, Source, keep, recall
from .listing import SPLITS, Listing, is_split_name, named_split
from .manifest import list_manifest
from .patterns import is_pattern, matching_files, refuse_mixed_splits
from .readers import Pieces, WholeFiles
from .stamps import Stamp
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


def load_data(sources: Sequence[str], labels: Path | None = None, only: Sequence[str] = (), relist: bool = False) -> DataSet:
    """List images, or take the listing that was kept of them.

    Args:
        sources: ``digits``; a folder or an uncompressed tar; a pattern of tars; a manifest; or ``split=`` one of these,
            several times.
        labels: CSV with a line ``file,label`` per image of a flat folder.
        only: files of ids, see :func:`diffssl.extract.subsets.restrict`; everything by default.
        relist: list again what was kept.

    Raises:
        DataError: with what is wrong and the way out.
        StoreError: images in a bucket, which does not answer.
    """
    listings: dict[str, Listing] = {}
    notes: list[str] = []
    for source in sources:
        found, line = _listed(source, labels, relist)
        notes += [f"{source}: {line}"] if line else []
        twice = found.keys() & listings.keys()
        if twice:
            raise DataError(f"the split {min(twice)!r} is given twice, by {' and '.join(sources)}")
        listings |= found
    if ALL in listings and len(listings) > 1:
        named = ", ".join(sorted(listings.keys() - {ALL}))
        raise DataError(f"one of {', '.join(sources)} has no splits, beside {named} of the others; name it, as --data test=…")
    return _assemble(restrict(listings, only), notes)


def is_absolute(source: str) -> bool:
    """Whether a source means the same from any working folder."""
    _, rest = named_split(source)
    _, path = _kind(rest)
    return rest == DIGITS or rest.startswith("torchvision:") or is_bucket_url(path) or Path(path).is_absolute()


def _listed(source: str, labels: Path | None, relist: bool) -> tuple[dict[str, Listing], str]:
    """The splits of a source, and a line about where they were kept."""
    started = time.time_ns()
    name, rest = named_split(source)
    kind, path = _kind(rest)
    full = path if is_bucket_url(path) or rest == DIGITS else str(Path(path).absolute())
    place = Source(
        "=".join([*([name] if name else []), f"{kind}:{full}" if kind else full]),
        None if labels is None else str(labels.absolute()),
        _tars_of(path) if kind in ("", *_TARS) else [],
    )
    kept, line = (None, "") if relist else recall(place)
    if kept is not None:
        return kept, line
    seen: dict[str, Stamp] = {}
    found = _splits(rest, labels, seen)
    found = found if name is None else _named(name, found, rest)
    if sum(len(listing.ids) for listing in found.values()) >= FEWEST:
        found = {split: _in_order(listing) for split, listing in found.items()}
    return found, "; ".join(filter(None, [line, keep(place, found, seen, started)]))


def _kind(source: str) -> tuple[str, str]:
    """What is written before a source, and the rest."""
    kind, colon, rest = source.partition(":")
    return (kind, rest) if colon and kind in _KINDS and not Path(source).exists() else ("", source)


def _in_order(listing: Listing) -> Listing:
    """The same images in row order, if they can be kept so."""
    proper = all(map(_is_utf8, listing.ids)) and len(set(listing.ids)) == len(listing.ids)
    if not proper or not isinstance(listing.read, WholeFiles | Pieces):
        return listing
    order = row_order(listing.ids)
    ids = [listing.ids[i] for i in order]
    read = listing.read
    same = isinstance(read, WholeFiles) and read.names == listing.ids
    ordered = WholeFiles(read.root, ids) if same and isinstance(read, WholeFiles) else read.take(order)
    return replace(listing, ids=ids, class_names=[listing.class_names[i] for i in order], read=ordered, in_order=True)


def _assemble(listings: Mapping[str, Listing], notes: list[str]) -> DataSet:
    named = {split: set(listing.class_names) - {None} for split, listing in listings.items()}
    classes = sorted({name for own in named.values() for name in own if name is not None})
    index: dict[str | None, int] = {name: number for number, name in enumerate(classes)} | {None: NO_LABEL}
    splits: dict[str, SplitData] = {}
    for split, listing in listings.items():
        if not split.isascii() or not is_split_name(split) or split == "journal":
            raise DataError(f"{split!r} cannot be the name of a split; use letters, digits, - and _")
        if not listing.in_order:
            _check_ids(split, listing.ids)
        labels = np.array([index[name] for name in listing.class_names], dtype=np.int32)
        ids = np.array(listing.ids, dtype=object)
        if listing.in_order:
            splits[split] = SplitData(ids, labels, listing.read)
        else:
            order = row_order(listing.ids)
            splits[split] = SplitData(ids[order], labels[order], _in_row_order(listing.read, order))
        notes += [f"{split}: {note}" for note in listing.notes]
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


def _splits(source: str, labels: Path | None, seen: dict[str, Stamp]) -> dict[str, Listing]:
    """The splits of one source, without a name given before it."""
    path = Path(source)
    kind, rest = _kind(source)
    if path.is_dir():
        return _splits_of_folder(path, labels, seen)
    if labels and (path.exists() or source == DIGITS or kind or is_pattern(source) or is_bucket_url(source)):
        raise DataError(f"{source}: has labels of its own or none; --labels {labels} is for a flat folder of images")
    if path.exists():
        return _splits_of_file(path, seen)
    if source == DIGITS:
        return {ALL: list_digits()}
    if kind:
        return _KINDS[kind](rest)
    if is_pattern(source):
        return {ALL: list_tars(_tars_of(source), source)}
    if is_bucket_url(source):
        return _splits_in_bucket(source)
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


def _splits_of_folder(root: Path, labels: Path | None, seen: dict[str, Stamp]) -> dict[str, Listing]:
    folders = split_folders(root, seen)
    tars = {name: root / f"{name}.tar" for name in SPLITS if (root / f"{name}.tar").is_file()}
    both = tars.keys() & folders.keys()
    if both:
        raise DataError(f"{root}: has both {min(both)}/ and {min(both)}.tar; name one, as --data {min(both)}=…")
    splits = dict(sorted({**tars, **folders}.items()))
    if not splits:
        return {ALL: list_folder(root, labels, seen)}
    check_nothing_outside(root, splits, seen)
    if labels:
        raise DataError(f"{root}: has splits; --labels is for a flat folder of images, as --data train=… --labels …")
    return {
        name: list_tars([str(path)], str(path)) if name in tars else list_folder(path, None, seen)
        for name, path in splits.items()
    }


def _splits_of_file(path: Path, seen: dict[str, Stamp]) -> dict[str, Listing]:
    refuse_compressed(str(path))
    if path.suffix == ".jsonl":
        return list_manifest(path, seen)
    if path.suffix != ".tar":
        raise DataError(f"{path}: is neither a folder nor a .tar, nor a manifest (.jsonl)")
    return list_tar_splits(str(path))


def _splits_in_bucket(url: str) -> dict[str, Listing]:
    if url.endswith(".tar"):
        return list_tar_splits(url)
    return {name: list_tars([tar], tar) for name, tar in split_tars(url).items()}


def _tars(kind: str) -> Callable[[str], dict[str, Listing]]:
    return lambda source: {ALL: list_tars(_tars_of(source) or [source], source, kind)}


def _tars_of(source: str) -> list[str]:
    """The tars that a pattern, or a prefix of a bucket, names now; none for what names itself."""
    if is_pattern(source):
        tars = matching_objects(source) if is_bucket_url(source) else [str(path) for path in matching_files(source)]
        refuse_mixed_splits(source, tars)
        return tars
    if not is_bucket_url(source) or source.endswith(".tar"):
        return []
    refuse_compressed(source)
    return list(split_tars(source).values())


# What is written before a source to say what it is.
_TARS = (SAMPLES, FOLDERS)
_KINDS: Mapping[str, Callable[[str], dict[str, Listing]]] = {
    **{kind: _tars(kind) for kind in _TARS},
    "hf": list_hugging_face,
    "torchvision": list_torchvision,
    **{name: partial(list_fine_grained, name) for name in COUNTS},
}
