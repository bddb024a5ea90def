"""Images in uncompressed tars: listed by the headers, read in place by offset, never unpacked."""

from __future__ import annotations

import os
import tarfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import numpy as np

from .errors import DataError
from .images import SUFFIXES
from .listing import SPLITS, Listing, only_images

_UNCOMPRESS = {".gz": "gunzip", ".tgz": "gunzip", ".bz2": "bunzip2", ".tbz2": "bunzip2", ".xz": "unxz", ".zst": "unzstd"}


@dataclass(frozen=True)
class _Member:
    """An image of a tar: its name in the split, and where its bytes are."""

    name: str
    offset: int
    size: int


def refuse_compressed(path: Path) -> None:
    """Raise ``DataError`` for an archive that cannot be read in place."""
    tool = _UNCOMPRESS.get(path.suffix)
    if tool:
        raise DataError(
            f"{path}: compressed archives cannot be read in place; uncompress it once ({tool} {path}) and give the .tar"
        )


def list_tar(path: Path) -> Listing:
    """A tar that is one split. Raises ``DataError``."""
    members, notes = _members(path)
    members, more = _without_common_folder(path, members)
    return _listing(path, members, notes + more)


def list_tar_splits(path: Path) -> dict[str, Listing]:
    """Splits inside one tar: top folders named train, val, test; else the one split "all". Raises ``DataError``."""
    members, notes = _members(path)
    if members[0].name.split("/", 1)[0] not in SPLITS:
        members, more = _without_common_folder(path, members)
        notes += more
    by_split: dict[str, list[_Member]] = {}
    stray: list[str] = []
    for member in members:
        top, _, rest = member.name.partition("/")
        if top in SPLITS and "/" in rest:
            by_split.setdefault(top, []).append(_Member(rest, member.offset, member.size))
        else:
            stray.append(member.name)
    if not by_split:
        return {"all": _listing(path, members, notes)}
    if stray:
        raise DataError(f"{path}: has images outside its folders train, val and test (such as {stray[0]!r})")
    return {split: _listing(path, own, notes) for split, own in sorted(by_split.items())}


def _members(path: Path) -> tuple[list[_Member], list[str]]:
    """The images of a tar, and notes about what else is in it."""
    found: list[_Member] = []
    others: list[str] = []
    try:
        with tarfile.open(path, mode="r:") as archive:
            for member in archive:
                name = member.name.removeprefix("./")
                if member.isdir() or _hidden(name):
                    continue
                if not member.isreg() or member.issparse():
                    raise DataError(f"{path}: {name!r} is a link or a special file; archive the images themselves")
                if name.lower().endswith(SUFFIXES):
                    found.append(_Member(name, member.offset_data, member.size))
                else:
                    others.append(name)
    except (tarfile.TarError, EOFError) as error:
        raise DataError(f"{path}: is not an uncompressed tar, or is damaged ({error})") from error
    if not found:
        raise DataError(f"{path}: no images found; known suffixes are {', '.join(SUFFIXES)}")
    return found, only_images(others)[1]


def _hidden(name: str) -> bool:
    return any(part.startswith(".") and part not in (".", "..") for part in PurePosixPath(name).parts)


def _without_common_folder(path: Path, members: list[_Member]) -> tuple[list[_Member], list[str]]:
    """Members named below the one folder above all class folders, if there is one, and a note that says so.

    ``train/airplane/1.jpg`` becomes ``airplane/1.jpg``, so that a tar of a folder has the ids of the folder.
    """
    tops = {member.name.split("/", 1)[0] for member in members}
    if len(tops) > 1 or any(member.name.count("/") < 2 for member in members):
        return members, []
    (top,) = tops
    below = [_Member(member.name.split("/", 1)[1], member.offset, member.size) for member in members]
    return below, [f"ids are the names below {top}/ in {path.name}"]


def _listing(path: Path, members: Sequence[_Member], notes: Sequence[str]) -> Listing:
    names = [member.name for member in members]
    flat = [name for name in names if "/" not in name]
    if flat and len(flat) < len(names):
        raise DataError(f"{path}: has images beside class folders (such as {flat[0]!r}, {len(flat)} in all)")
    if flat:
        notes = [*notes, "no labels: they come from class folders in the tar, never from a table in it"]
    classes: list[str | None] = [None if flat else name.split("/", 1)[0] for name in names]
    spans = np.array([(member.offset, member.size) for member in members], dtype=np.int64)
    descriptor = os.open(path, os.O_RDONLY)  # one for all threads: pread has no position

    def read(i: int) -> bytes:
        offset, size = int(spans[i, 0]), int(spans[i, 1])
        content = os.pread(descriptor, size, offset)
        if len(content) != size:
            raise OSError(f"{path}: {names[i]} was cut short ({len(content)} of {size} bytes)")
        return content

    return Listing(names, classes, read, notes)
