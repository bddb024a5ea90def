"""Uncompressed tar archives: listed by the headers, read in place by offset, never unpacked."""

from __future__ import annotations

import os
import tarfile
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from threading import Lock

import numpy as np
from numpy.typing import NDArray

from .errors import DataError

_UNCOMPRESS = {".gz": "gunzip", ".tgz": "gunzip", ".bz2": "bunzip2", ".tbz2": "bunzip2", ".xz": "unxz", ".zst": "unzstd"}


@dataclass(frozen=True)
class Members:
    """The files of one archive, in its order; hidden ones left alone.

    Attributes:
        names: (n,) as in the archive, a leading ``./`` aside.
        spans: (n, 2) int64, where the bytes of each are: offset and size.
    """

    names: list[str]
    spans: NDArray[np.int64]


def refuse_compressed(path: Path) -> None:
    """Raise ``DataError`` for an archive that cannot be read in place."""
    tool = _UNCOMPRESS.get(path.suffix)
    if tool:
        raise DataError(
            f"{path}: compressed archives cannot be read in place; uncompress it once ({tool} {path}) and give the .tar"
        )


def read_headers(path: Path) -> Members:
    """List an archive. Raises ``DataError`` if it is damaged, or has links or special files."""
    names: list[str] = []
    spans: list[tuple[int, int]] = []
    try:
        with tarfile.open(path, mode="r:") as archive:
            while (member := archive.next()) is not None:
                archive.members.clear()  # type: ignore[attr-defined]  # a kilobyte a member, kept until the end
                name = member.name.removeprefix("./")
                if member.isdir() or _hidden(name):
                    continue
                if not member.isreg() or member.issparse():
                    raise DataError(f"{path}: {name!r} is a link or a special file; archive the images themselves")
                names.append(name)
                spans.append((member.offset_data, member.size))
    except (tarfile.TarError, EOFError) as error:
        raise DataError(f"{path}: is not an uncompressed tar, or is damaged ({error})") from error
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error})") from error
    return Members(names, np.array(spans, dtype=np.int64).reshape(-1, 2))


def _hidden(name: str) -> bool:
    return any(part.startswith(".") and part not in (".", "..") for part in name.split("/"))


@dataclass
class _Open:
    """An open file, and how many threads read it now."""

    descriptor: int
    users: int = 0


class OpenFiles:
    """Reads pieces of many files from many threads, with few of them open.

    Args:
        paths: of the files, which are then known by their place in this list.
        limit: of open files; more are open only while more threads than this read different ones.
    """

    def __init__(self, paths: Sequence[Path], limit: int = 128) -> None:
        self._paths = list(paths)
        self._limit = limit
        self._lock = Lock()
        self._open: OrderedDict[int, _Open] = OrderedDict()  # least recently used first
        self._seen: dict[int, tuple[int, ...]] = {}

    def __del__(self) -> None:
        for file in self._open.values():
            os.close(file.descriptor)

    def remember(self, number: int) -> None:
        """Open a file, so that a later change of it is noticed. Raises ``DataError`` if it cannot be opened."""
        try:
            with self._borrow(number):
                pass
        except OSError as error:
            raise DataError(f"{self._paths[number]}: cannot be read ({error})") from error

    def read(self, number: int, offset: int, size: int) -> bytes:
        """Read ``size`` bytes of a file. Raises ``OSError``, also if the file has changed since it was first opened."""
        with self._borrow(number) as descriptor:
            content = os.pread(descriptor, size, offset)  # has no position, so one descriptor serves all threads
        if len(content) != size:
            raise OSError(f"{self._paths[number]}: was cut short ({len(content)} of {size} bytes at {offset})")
        return content

    @contextmanager
    def _borrow(self, number: int) -> Iterator[int]:
        with self._lock:
            file = self._open.get(number) or self._opened(number)
            self._open[number] = file
            self._open.move_to_end(number)
            file.users += 1
            self._close_idle()
        try:
            yield file.descriptor
        finally:
            with self._lock:
                file.users -= 1

    def _opened(self, number: int) -> _Open:
        descriptor = os.open(self._paths[number], os.O_RDONLY)
        status = os.fstat(descriptor)
        now = (status.st_ino, status.st_size, status.st_mtime_ns)
        if self._seen.setdefault(number, now) != now:
            os.close(descriptor)
            raise OSError(f"{self._paths[number]}: was replaced or changed after it was listed")
        return _Open(descriptor)

    def _close_idle(self) -> None:
        idle = [number for number, file in self._open.items() if not file.users]
        for number in idle[: max(0, len(self._open) - self._limit)]:
            os.close(self._open.pop(number).descriptor)
