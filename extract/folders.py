"""Images in folders: class folders, or a flat folder with a CSV of labels."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from os.path import isfile, join
from pathlib import Path

from .archive import refuse_compressed
from .errors import DataError
from .images import SUFFIXES
from .labels import label_table
from .listing import SPLITS, Listing, only_images

_COMPRESSED = (".tar.gz", ".tgz", ".tar.bz2", ".tbz2", ".tar.xz", ".tar.zst")
_ASKED = 1000  # files that a thread asks for at a time
_THREADS = 16


def split_folders(root: Path) -> dict[str, Path]:
    """Folders train, val and test of a root, if they are splits and not classes: a class folder holds no folders itself.

    Raises:
        DataError: one of them is there as a compressed tar, which would be passed over.
    """
    for path in (root / f"{name}{suffix}" for name in SPLITS for suffix in _COMPRESSED):
        if path.is_file():
            refuse_compressed(path)
    folders = {entry.name for entry in _visible_folders(root)}
    splits = {name: root / name for name in SPLITS if name in folders}
    nested = any(_visible_folders(folder) for folder in splits.values())
    return splits if nested or splits.keys() == folders else {}


def check_nothing_outside(root: Path, splits: Mapping[str, Path]) -> None:
    """Raise ``DataError`` if a root has images that are in none of its splits."""
    for entry in sorted(root.iterdir()):
        stray = None if entry.name in splits or entry.name.startswith(".") else _first_image(entry)
        if stray is not None:
            raise DataError(
                f"{root}: has images outside its {', '.join(splits)} (such as {stray}); move them, or name the splits that "
                f"you want, as --data {next(iter(splits))}={next(iter(splits.values()))}"
            )


def _first_image(path: Path) -> Path | None:
    """An image at or below a path; None also for a folder that cannot be listed, which nobody meant to give."""
    if not path.is_dir():
        return path if path.name.lower().endswith(SUFFIXES) else None
    try:
        return next((path / name for name in _walk(path) if name.lower().endswith(SUFFIXES)), None)
    except (PermissionError, DataError):
        return None


def list_folder(path: Path, labels: Path | None) -> Listing:
    """A folder of class folders, or a flat folder of images. Raises ``DataError``."""
    images, notes = only_images(sorted(_walk(path)))
    flat = [name for name in images if "/" not in name]
    if flat and len(flat) < len(images):
        raise DataError(
            f"{path}: has images beside class folders (such as {flat[0]!r}, {len(flat)} in all); move them into a class"
        )
    if flat:
        own = path / "labels.csv"
        names, more = label_table(labels or (own if own.exists() else None), images)
        notes += more
    elif labels:
        raise DataError(f"{path}: labels come from its class folders; --labels is for a flat folder of images")
    else:
        names = [name.split("/", 1)[0] for name in images]
    return Listing(images, names, lambda i: (path / images[i]).read_bytes(), notes)


def missing_files(root: Path, names: Sequence[str]) -> list[int]:
    """Places of the names below ``root`` that are no files; asked in threads, since a shared disk answers slowly."""

    def missing(start: int) -> list[int]:
        places = range(start, min(start + _ASKED, len(names)))
        return [i for i in places if not isfile(join(root, names[i]))]  # noqa: PTH113, PTH118  # a Path each is slow

    with ThreadPoolExecutor(_THREADS, thread_name_prefix="diffssl-list") as pool:
        return [i for places in pool.map(missing, range(0, len(names), _ASKED)) for i in places]


def _visible_folders(path: Path) -> list[os.DirEntry[str]]:
    with os.scandir(path) as entries:
        return [entry for entry in entries if not entry.name.startswith(".") and entry.is_dir()]


def _walk(top: Path) -> Iterator[str]:
    """Names of all files below ``top``, relative, with "/"; hidden ones left alone, links followed."""
    pending = [("", frozenset({_inode(top)}))]
    while pending:
        folder, above = pending.pop()
        with os.scandir(top / folder) as entries:
            for entry in entries:
                name = f"{folder}/{entry.name}" if folder else entry.name
                if entry.name.startswith("."):
                    continue
                if entry.is_dir():
                    inode = _inode(top / name)
                    if inode in above:
                        raise DataError(f"{top}: {name!r} is a link to a folder that it lies in; remove the link")
                    pending.append((name, above | {inode}))
                else:
                    yield name


def _inode(path: Path) -> tuple[int, int]:
    status = path.stat()
    return status.st_dev, status.st_ino
