"""Files of a store on object storage: S3 and the services that speak as it does, Google Cloud Storage, Azure.

An object appears whole or not at all, and is durable once its upload is answered: no temporary names, no renames, nothing
to sync. Create-if-absent is a conditional put.
"""

from __future__ import annotations

import contextlib
import uuid
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import obstore
import zarr
from numpy.typing import NDArray
from obstore.exceptions import AlreadyExistsError, BaseError
from zarr.storage import ObjectStore

from .connection import checked, connect, translated
from .errors import StoreError
from .layout import JOURNAL

_PARALLEL = 8  # requests of one call
_RANGE_BYTES = 1 << 23  # of one request: 100 MB on loopback in ranges came twice as fast as in one


class ObjectStorage:
    """A prefix of a bucket that holds one store.

    Pickles as its URL: whoever unpickles it connects anew, with the credentials of its own environment.
    """

    def __init__(self, url: str) -> None:
        self.url = checked(url)
        self._store = connect(self.url)
        self._uploads = connect(self.url, upload=True)

    def read(self, name: str) -> bytes:
        """Whole content. Raises ``FileNotFoundError``."""
        with translated(self.url, name):
            return obstore.get(self._store, name).bytes().to_bytes()

    def read_into(self, name: str, offset: int, buffers: Sequence[memoryview]) -> int:
        """Fill the buffers from ``offset`` on and return how many bytes were read: fewer at the end of the object.

        A large read is several ranges side by side; if the object is replaced meanwhile, they are of two objects.
        """
        ranges = _ranges(offset, buffers)
        if len(ranges) == 1:
            return self._read_range(name, *ranges[0])
        with ThreadPoolExecutor(_PARALLEL) as pool:
            read = list(pool.map(lambda one: self._read_range(name, *one), ranges))
        total = 0
        for (_, part), got in zip(ranges, read, strict=True):
            total += got
            if got < sum(buffer.nbytes for buffer in part):
                break
        return total

    def read_pieces(self, name: str, pieces: Sequence[tuple[int, memoryview]]) -> None:
        """Fill each buffer from its own offset; what lies beyond the end of the object stays as it was."""
        with ThreadPoolExecutor(2 * _PARALLEL) as pool:
            list(pool.map(lambda piece: self._read_range(name, piece[0], [piece[1]]), pieces))

    def read_array(self, name: str) -> NDArray[Any]:
        """All values of a Zarr array that fits in memory. Raises whatever zarr does where it is damaged or missing."""
        with translated(self.url, name):
            array = zarr.open_array(ObjectStore(self._store, read_only=True), path=name, mode="r")
            return np.asarray(array[:])

    def create(self, name: str, data: bytes) -> bool:
        """Write an object if there is none of this name; True if it is ours, False if one was there.

        False too if it is ours after all, but the storage's first answer was lost.
        """
        return not self.exists(name) and self._put_if_absent(name, data)

    def check_create(self) -> None:
        """Raise ``StoreError`` if the storage ignores the condition of a put, as some that speak S3 do."""
        name = f"{JOURNAL}/tmp-{uuid.uuid4().hex}"
        self._put_if_absent(name, b"a test of conditional puts; may be removed")
        try:
            ignored = self._put_if_absent(name, b"an object that should not be here; may be removed")
        finally:
            with translated(self.url, name):
                obstore.delete(self._store, name)
        if ignored:
            raise StoreError(
                self.url,
                "the storage ignores the condition of a put (If-None-Match: *), without which writers would overwrite each "
                "other's work unseen; upgrade the service if a newer version knows it, use another one, or make the store in "
                "a folder and copy it here",
            )

    def replace(self, files: Mapping[str, Sequence[bytes | memoryview]]) -> None:
        """Write objects from their parts, several at a time, replacing those of the same names. Nothing is copied."""

        def put(name: str, parts: Sequence[bytes | memoryview]) -> None:
            with translated(self.url, name):
                obstore.put(self._uploads, name, list(parts), use_multipart=False)

        with ThreadPoolExecutor(_PARALLEL) as pool:
            list(pool.map(put, files.keys(), files.values()))

    def sync_folders(self, names: Iterable[str]) -> None:
        """Do nothing: an object is durable once its upload was answered."""

    def remove(self, name: str) -> None:
        """Remove an object; fine if there is none of this name."""
        with contextlib.suppress(FileNotFoundError), translated(self.url, name):
            obstore.delete(self._store, name)

    def prune(self, folder: str) -> None:
        """Do nothing: there are no folders."""

    def exists(self, name: str) -> bool:
        """Whether there is an object of this name."""
        try:
            self.size(name)
        except FileNotFoundError:
            return False
        return True

    def size(self, name: str) -> int:
        """Bytes of an object. Raises ``FileNotFoundError``."""
        with translated(self.url, name):
            return obstore.head(self._store, name)["size"]

    def names(self, folder: str) -> list[str]:
        """Names of the objects in ``folder`` (not below it), without the folder; none if there is no folder."""
        with translated(self.url, folder):
            paths = [found["path"] for found in obstore.list_with_delimiter(self._store, folder)["objects"]]
        return _within(folder, paths)

    def folders(self, folder: str) -> list[str]:
        """Names of the folders in ``folder``, without the folder; none if there is no folder."""
        with translated(self.url, folder):
            paths = obstore.list_with_delimiter(self._store, folder)["common_prefixes"]
        return _within(folder, paths)

    def usage(self) -> tuple[int, int]:
        """(bytes, objects) of everything below the URL."""
        size = objects = 0
        with translated(self.url):
            for page in obstore.list(self._store, chunk_size=1000):
                size += sum(found["size"] for found in page)
                objects += len(page)
        return size, objects

    def remove_stale(self) -> int:
        """Do nothing and return 0: there are no temporary objects."""
        return 0

    def free_bytes(self) -> None:
        """None: a bucket has no limit to know of."""

    def _read_range(self, name: str, offset: int, buffers: Sequence[memoryview]) -> int:
        wanted = sum(buffer.nbytes for buffer in buffers)
        if not wanted:
            self.size(name)  # raises as any read does
            return 0
        with translated(self.url, name):
            try:
                content = memoryview(obstore.get_range(self._store, name, start=offset, length=wanted))
            except BaseError:
                # Services refuse a range wholly beyond the end, each in words of its own; the size is the same everywhere.
                if offset < obstore.head(self._store, name)["size"]:
                    raise
                return 0
        at = 0
        for buffer in buffers:
            part = content[at : at + buffer.nbytes]
            buffer[: len(part)] = part
            at += len(part)
        return at

    def _put_if_absent(self, name: str, data: bytes) -> bool:
        """Whether the storage took the object, as it does if there is none of this name."""
        with translated(self.url, name):
            try:
                obstore.put(self._store, name, [data], mode="create", use_multipart=False)
            except AlreadyExistsError:
                return False
        return True

    def __reduce__(self) -> tuple[type[ObjectStorage], tuple[str]]:
        return ObjectStorage, (self.url,)

    def __str__(self) -> str:
        """The URL, as the user named it."""
        return self.url


def _ranges(offset: int, buffers: Sequence[memoryview]) -> list[tuple[int, list[memoryview]]]:
    """Consecutive buffers cut into ranges of whole buffers, each with its offset."""
    ranges: list[tuple[int, list[memoryview]]] = [(offset, [])]
    end = offset
    for buffer in buffers:
        start, part = ranges[-1]
        if end - start >= _RANGE_BYTES:
            part = []
            ranges.append((end, part))
        part.append(buffer)
        end += buffer.nbytes
    return ranges


def _within(folder: str, paths: Iterable[str]) -> list[str]:
    """Names in a folder; the empty object that some tools make to mark the folder itself is none."""
    start = f"{folder}/" if folder else ""
    return [path.removeprefix(start) for path in paths if path.startswith(start) and path != start]
