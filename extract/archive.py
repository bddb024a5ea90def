"""Archives that are read in place by offset, never unpacked: local files, few of them open, and objects in a bucket."""

from __future__ import annotations

import os
from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from threading import Lock
from typing import Protocol

from ..store.location import is_bucket_url, open_bucket
from .errors import DataError
from .stamps import Stamp, local_stamp, split_url, stamps_of


class Archives(Protocol):
    """Several archives, known by their place in a list, that any number of threads read from."""

    @property
    def paths(self) -> Sequence[str]:
        """Paths or URLs of the archives."""
        ...

    @property
    def stamps(self) -> Mapping[str, Stamp]:
        """By path, as they were listed; of an archive that has another one now nothing is read."""
        ...

    @property
    def read_ahead(self) -> int:
        """Bytes worth reading at a time by who reads on from there."""
        ...

    def size(self, number: int) -> int:
        """Bytes of an archive, as it was listed."""
        ...

    def read(self, number: int, offset: int, size: int) -> bytes:
        """Read ``size`` bytes of an archive. Raises ``OSError``, also if it has changed since it was listed."""
        ...


def open_archives(paths: Sequence[str], stamps: Mapping[str, Stamp] | None = None) -> Archives:
    """Archives in folders, or in one bucket.

    Args:
        paths: or URLs.
        stamps: of archives that were listed before; as they are now by default.

    Raises:
        DataError: one is not there.
        StoreError: the object storage does not answer.
    """
    if stamps is None:
        try:
            stamps = stamps_of(paths)
        except OSError as error:
            raise DataError(f"{error.filename}: cannot be read ({error})") from error
    return Objects(paths, stamps) if is_bucket_url(paths[0]) else OpenFiles(paths, stamps)


@dataclass
class _Open:
    """An open file, and how many threads read it now."""

    descriptor: int
    users: int = 0


class OpenFiles:
    """Reads pieces of many files from many threads, with few of them open.

    Args:
        paths: of the files.
        stamps: of the files, when they were listed.
        limit: of open files; more are open only while more threads than this read different ones.
    """

    read_ahead = 1 << 13  # the system reads ahead by itself

    def __init__(self, paths: Sequence[str], stamps: Mapping[str, Stamp], limit: int = 128) -> None:
        self.paths = list(paths)
        self.stamps = stamps
        self._limit = limit
        self._lock = Lock()
        self._open: OrderedDict[int, _Open] = OrderedDict()  # least recently used first

    def __del__(self) -> None:
        for file in self._open.values():
            os.close(file.descriptor)

    def size(self, number: int) -> int:
        """Bytes of a file, as it was listed."""
        return int(self.stamps[self.paths[number]][1])

    def read(self, number: int, offset: int, size: int) -> bytes:
        """Read ``size`` bytes of a file. Raises ``OSError``, also if it has changed since it was listed."""
        with self._borrow(number) as descriptor:
            content = os.pread(descriptor, size, offset)  # has no position, so one descriptor serves all threads
        if len(content) != size:
            raise OSError(f"{self.paths[number]}: was cut short ({len(content)} of {size} bytes at {offset})")
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
        path = self.paths[number]
        descriptor = os.open(path, os.O_RDONLY)
        if local_stamp(os.fstat(descriptor)) != self.stamps[path]:
            os.close(descriptor)
            raise _changed(path)
        return _Open(descriptor)

    def _close_idle(self) -> None:
        idle = [number for number, file in self._open.items() if not file.users]
        for number in idle[: max(0, len(self._open) - self._limit)]:
            os.close(self._open.pop(number).descriptor)


class Objects:
    """Reads pieces of objects of one bucket, a request each.

    Args:
        paths: their URLs.
        stamps: of the objects, when they were listed.
    """

    read_ahead = 1 << 20  # about what comes in the time that a request takes anyway

    def __init__(self, paths: Sequence[str], stamps: Mapping[str, Stamp]) -> None:
        self.paths = list(paths)
        self.stamps = stamps
        self._bucket = open_bucket(paths[0])

    def size(self, number: int) -> int:
        """Bytes of an object, as it was listed."""
        return int(self.stamps[self.paths[number]][1])

    def read(self, number: int, offset: int, size: int) -> bytes:
        """Read ``size`` bytes of an object.

        Raises:
            OSError: it is not there, or has changed since it was listed.
            StoreError: the storage does not give it.
        """
        path = self.paths[number]
        content, tag = self._bucket.read(split_url(path)[1], offset, size)
        if tag != self.stamps[path]:
            raise _changed(path)
        if len(content) != size:
            raise OSError(f"{path}: was cut short ({len(content)} of {size} bytes at {offset})")
        return content


def _changed(path: str) -> OSError:
    return OSError(f"{path}: was replaced or changed after it was listed")
