"""Images in folders: class folders, or a flat folder with a CSV of labels.

``seen`` gets the stamps of all that was looked at, before it was looked at: what makes another listing changes one of them.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from os.path import isfile, join
from pathlib import Path
from typing import NoReturn

from tqdm import tqdm

from ..store.progress import progress_bar
from .errors import DataError
from .headers import refuse_compressed
from .images import SUFFIXES
from .labels import label_table
from .listing import SPLITS, Listing, only_images
from .readers import WholeFiles
from .stamps import Stamp, local_stamp

_COMPRESSED = (".tar.gz", ".tgz", ".tar.bz2", ".tbz2", ".tar.xz", ".tar.zst")
_ASKED = 1000  # files that a thread asks for at a time
_THREADS = 16


def split_folders(root: Path, seen: dict[str, Stamp]) -> dict[str, Path]:
    """Folders train, val and test of a root, if they are splits and not classes: a class folder holds no folders itself.

    Raises:
        DataError: one of them is there as a compressed tar, which would be passed over.
    """
    for path in (root / f"{name}{suffix}" for name in SPLITS for suffix in _COMPRESSED):
        if path.is_file():
            refuse_compressed(str(path))
    folders = {entry.name for entry in _visible_folders(root, seen)}
    splits = {name: root / name for name in SPLITS if name in folders}
    nested = any(_visible_folders(folder, seen) for folder in splits.values())
    return splits if nested or splits.keys() == folders else {}


def check_nothing_outside(root: Path, splits: Mapping[str, Path], seen: dict[str, Stamp]) -> None:
    """Raise ``DataError`` if a root has images that are in none of its splits."""
    for entry in sorted(root.iterdir()):
        stray = None if entry.name in splits or entry.name.startswith(".") else _first_image(entry, seen)
        if stray is not None:
            raise DataError(
                f"{root}: has images outside its {', '.join(splits)} (such as {stray}); move them, or name the splits that "
                f"you want, as --data {next(iter(splits))}={next(iter(splits.values()))}"
            )


def _first_image(path: Path, seen: dict[str, Stamp]) -> Path | None:
    """An image at or below a path; None also for a folder that cannot be listed, which nobody meant to give."""
    if not path.is_dir():
        return path if path.name.lower().endswith(SUFFIXES) else None
    try:
        return next((path / name for name in _walk(path, seen) if name.lower().endswith(SUFFIXES)), None)
    except (PermissionError, DataError):
        return None


def list_folder(path: Path, labels: Path | None, seen: dict[str, Stamp]) -> Listing:
    """A folder of class folders, or a flat folder of images. Raises ``DataError``."""
    with progress_bar(None, " files", "list", delay=2) as bar:
        images, notes = only_images(sorted(_counted(_walk(path, seen), bar)))
    flat = [name for name in images if "/" not in name]
    if flat and len(flat) < len(images):
        raise DataError(
            f"{path}: has images beside class folders (such as {flat[0]!r}, {len(flat)} in all); move them into a class"
        )
    if flat:
        own = path / "labels.csv"
        table = labels or (own if own.exists() else None)
        if table is not None and table.exists():
            seen[str(table)] = local_stamp(table.stat())
        names, more = label_table(table, images)
        notes += more
    elif labels:
        raise DataError(f"{path}: labels come from its class folders; --labels is for a flat folder of images")
    else:
        names = [name.split("/", 1)[0] for name in images]
    return Listing(images, names, WholeFiles(path, images), notes)


def _counted(names: Iterator[str], bar: tqdm[NoReturn]) -> Iterator[str]:
    """The same names, counted by a bar, some at a time."""
    for number, name in enumerate(names, start=1):
        if number % _ASKED == 0:
            bar.update(_ASKED)
        yield name


def missing_files(root: Path, names: Sequence[str]) -> list[int]:
    """Places of the names below ``root`` that are no files; asked in threads, since a shared disk answers slowly."""

    def missing(start: int) -> list[int]:
        places = range(start, min(start + _ASKED, len(names)))
        return [i for i in places if not isfile(join(root, names[i]))]  # noqa: PTH113, PTH118  # a Path each is slow

    found: list[int] = []
    with (
        progress_bar(len(names), " files", "look for", delay=2) as bar,
        ThreadPoolExecutor(_THREADS, thread_name_prefix="diffssl-list") as pool,
    ):
        for places in pool.map(missing, range(0, len(names), _ASKED)):
            found += places
            bar.update(_ASKED)
    return found


def _visible_folders(path: Path, seen: dict[str, Stamp]) -> list[os.DirEntry[str]]:
    _look_at(path, seen)
    with os.scandir(path) as entries:
        return [entry for entry in entries if not entry.name.startswith(".") and entry.is_dir()]


def _walk(top: Path, seen: dict[str, Stamp]) -> Iterator[str]:
    """Names of all files below ``top``, relative, with "/"; hidden ones left alone, links followed."""
    pending = [("", frozenset({_look_at(top, seen)}))]
    while pending:
        folder, above = pending.pop()
        with os.scandir(top / folder) as entries:
            for entry in entries:
                name = f"{folder}/{entry.name}" if folder else entry.name
                if entry.name.startswith("."):
                    continue
                if entry.is_dir():
                    inode = _look_at(top / name, seen)
                    if inode in above:
                        raise DataError(f"{top}: {name!r} is a link to a folder that it lies in; remove the link")
                    pending.append((name, above | {inode}))
                else:
                    yield name


def _look_at(folder: Path, seen: dict[str, Stamp]) -> tuple[int, int]:
    """Device and inode of a folder that will be listed; of several looks at one, the first counts."""
    status = folder.stat()
    seen.setdefault(str(folder), local_stamp(status))
    return status.st_dev, status.st_ino
