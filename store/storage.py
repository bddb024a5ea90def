"""Files of a store on a local or network file system: whole, atomic and durable, or not there.

Everything the store writes goes through the two calls :meth:`LocalStorage.create` (create if absent) and
:meth:`LocalStorage.replace`. Both write to a temporary name in ``journal/`` first, where zarr does not look.
"""

from __future__ import annotations

import contextlib
import errno
import os
import time
import uuid
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import zarr
from numpy.typing import NDArray
from zarr.storage import LocalStore

from .errors import StorageFull

T = TypeVar("T")

NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)

_TEMPORARY = "tmp-"
_STALE_SECONDS = 24 * 3600.0
_WRITERS = 4
_MAX_BUFFERS = 512  # of one preadv; Linux allows 1024


class LocalStorage:
    """A folder that holds one store."""

    def __init__(self, root: Path | str) -> None:
        self.root = Path(root)

    def read(self, name: str) -> bytes:
        """Whole content. Raises ``FileNotFoundError``."""
        return (self.root / name).read_bytes()

    def read_into(self, name: str, offset: int, buffers: Sequence[memoryview]) -> int:
        """Fill the buffers from ``offset`` on and return how many bytes were read: fewer at the end of the file."""
        descriptor = os.open(self.root / name, os.O_RDONLY)
        total = 0
        try:
            for start in range(0, len(buffers), _MAX_BUFFERS):
                part = buffers[start : start + _MAX_BUFFERS]
                wanted = sum(buffer.nbytes for buffer in part)
                got = _read_fully(descriptor, part, offset + total, wanted)
                total += got
                if got < wanted:
                    break
        finally:
            os.close(descriptor)
        return total

    def read_pieces(self, name: str, pieces: Sequence[tuple[int, memoryview]]) -> None:
        """Fill each buffer from its own offset; what lies beyond the end of the file stays as it was."""
        descriptor = os.open(self.root / name, os.O_RDONLY)
        try:
            for offset, buffer in pieces:
                _read_fully(descriptor, [buffer], offset, buffer.nbytes)
        finally:
            os.close(descriptor)

    def read_array(self, name: str) -> NDArray[Any]:
        """All values of a Zarr array that fits in memory. Raises whatever zarr does where it is damaged or missing."""
        array = zarr.open_array(LocalStore(self.root, read_only=True), path=name, mode="r")
        return np.asarray(array[:])

    def create(self, name: str, data: bytes) -> bool:
        """Write a file if there is none of this name; True if it is now ours, False if somebody was first.

        Raises:
            StorageFull: there is no room for it.
        """
        if self.exists(name):
            return False
        temporary, target = self._temporary(), self.root / name
        try:
            with self._room():
                _fill(temporary, [data])
                _sync(temporary)
                _make_folder_if_needed(lambda: os.link(temporary, target), target)
        except FileExistsError:
            return False
        finally:
            temporary.unlink(missing_ok=True)
        _sync(target.parent)
        return True

    def check_create(self) -> None:
        """Do nothing: a hard link cannot take the place of a file."""

    def replace(self, files: Mapping[str, Sequence[bytes | memoryview]]) -> None:
        """Write files, replacing those of the same names. The caller syncs their folders (:meth:`sync_folders`).

        All are written before the first is synced: a journalling file system then syncs them at once.

        Raises:
            StorageFull: there is no room for them all.
        """
        temporaries = [self._temporary() for _ in files]
        try:
            with self._room():
                _side_by_side(_fill, temporaries, files.values())
                _side_by_side(_sync, temporaries)
                for temporary, name in zip(temporaries, files, strict=True):
                    _move(temporary, self.root / name)
        except BaseException:
            for temporary in temporaries:
                temporary.unlink(missing_ok=True)
            raise

    def sync_folders(self, names: Iterable[str]) -> None:
        """Make the directory entries of files survive a power failure."""
        _side_by_side(_sync, sorted({(self.root / name).parent for name in names}))

    def remove(self, name: str) -> None:
        """Remove a file; fine if there is none of this name."""
        (self.root / name).unlink(missing_ok=True)

    def prune(self, folder: str) -> None:
        """Remove a folder and those above it as far as they are empty, never the root; storage without folders does nothing."""
        path = self.root / folder
        while path != self.root:
            try:
                path.rmdir()
            except FileNotFoundError:
                pass
            except OSError as error:
                if error.errno in (errno.ENOTEMPTY, errno.EEXIST):
                    return
                raise
            path = path.parent

    def exists(self, name: str) -> bool:
        """Whether there is a file of this name."""
        return (self.root / name).exists()

    def size(self, name: str) -> int:
        """Bytes of a file. Raises ``FileNotFoundError``."""
        return (self.root / name).stat().st_size

    def names(self, folder: str) -> list[str]:
        """Names of the files in ``folder`` (not below it), without the folder; none if there is no folder."""
        try:
            with os.scandir(self.root / folder) as entries:
                return [entry.name for entry in entries if entry.is_file()]
        except FileNotFoundError:
            return []

    def folders(self, folder: str) -> list[str]:
        """Names of the folders in ``folder``, without the folder; none if there is no folder."""
        try:
            with os.scandir(self.root / folder) as entries:
                return [entry.name for entry in entries if entry.is_dir()]
        except FileNotFoundError:
            return []

    def usage(self) -> tuple[int, int]:
        """(bytes, files) of everything below the folder."""
        size = files = 0
        for folder, _, names in os.walk(self.root):
            for name in names:
                with contextlib.suppress(FileNotFoundError):  # the temporary file of a writer
                    size += os.stat(os.path.join(folder, name)).st_size  # noqa: PTH116, PTH118
                    files += 1
        return size, files

    def remove_stale(self) -> int:
        """Remove temporary files that a killed writer left behind more than a day ago; return how many."""
        removed = 0
        for name in self.names("journal"):
            path = self.root / "journal" / name
            with contextlib.suppress(FileNotFoundError):
                if name.startswith(_TEMPORARY) and time.time() - path.stat().st_mtime > _STALE_SECONDS:
                    path.unlink()
                    removed += 1
        return removed

    def free_bytes(self) -> int:
        """Bytes that can still be written where the store is, or will be."""
        folder = self.root.absolute()
        while not folder.exists():
            folder = folder.parent
        status = os.statvfs(folder)
        return status.f_bavail * status.f_frsize

    @contextlib.contextmanager
    def _room(self) -> Iterator[None]:
        """Say what to do where the disk, a quota or a limit of the size of files ends a write."""
        try:
            yield
        except OSError as error:
            if error.errno not in NO_ROOM:
                raise
            what = f"{os.strerror(error.errno)}: nothing more can be written; everything that is committed is kept"
            raise StorageFull(self.root, f"{what}. Make room, and run the same command again to go on") from error

    def _temporary(self) -> Path:
        return self.root / "journal" / f"{_TEMPORARY}{uuid.uuid4().hex}"

    def __str__(self) -> str:
        """The folder, as the user named it."""
        return str(self.root)


def _side_by_side(function: Callable[..., object], *arguments: Collection[Any]) -> None:
    """Call a function for each item, so that one call waits for the disk beside another; without threads for one item."""
    if len(arguments[0]) < 2:
        list(map(function, *arguments))
        return
    with ThreadPoolExecutor(_WRITERS) as pool:
        list(pool.map(function, *arguments))


def _fill(path: Path, parts: Sequence[bytes | memoryview]) -> None:
    with _make_folder_if_needed(lambda: path.open("xb"), path) as file:
        file.writelines(parts)


def _sync(path: Path) -> None:
    """Bring a file or folder to disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _move(path: Path, target: Path) -> None:
    _make_folder_if_needed(lambda: path.replace(target), target)


def _make_folder_if_needed(action: Callable[[], T], path: Path) -> T:
    """Do something to a path, and if its folder is not there, make it and do it again: it nearly always is."""
    try:
        return action()
    except FileNotFoundError:
        path.parent.mkdir(parents=True, exist_ok=True)
        return action()


def _read_fully(descriptor: int, buffers: Sequence[memoryview], offset: int, wanted: int) -> int:
    """``preadv`` that goes on after a short read (a signal, a network file system); fewer bytes only at the end."""
    got = os.preadv(descriptor, buffers, offset)
    while 0 < got < wanted:
        skip = got
        rest: list[memoryview] = []
        for buffer in buffers:
            rest += [buffer[skip:]] if skip < buffer.nbytes else []
            skip = max(0, skip - buffer.nbytes)
        more = os.preadv(descriptor, rest, offset + got)
        if more == 0:
            break
        got += more
    return got
