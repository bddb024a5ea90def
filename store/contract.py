"""Storage: what a store asks of the place that holds its files, whatever kind of place it is."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Protocol

from numpy.typing import NDArray


class Storage(Protocol):
    """A place that holds one store: a folder (``LocalStorage``) or a prefix of a bucket (``ObjectStorage``).

    Names are relative to the place and use "/". Any number of threads and processes may call any of these at the same
    time. ``str(storage)`` is the place, as the user named it. A file that is not there is a ``FileNotFoundError``; a local
    disk that fails raises ``OSError``, object storage that fails or refuses ``StoreError``.
    """

    def read(self, name: str) -> bytes:
        """Whole content. Raises ``FileNotFoundError``."""

    def read_into(self, name: str, offset: int, buffers: Sequence[memoryview]) -> int:
        """Fill buffers of bytes from ``offset`` on and return how many bytes were read: fewer at the end of the file."""

    def read_pieces(self, name: str, pieces: Sequence[tuple[int, memoryview]]) -> None:
        """Fill each buffer of bytes from its own offset; what lies beyond the end of the file stays as it was."""

    def read_array(self, name: str) -> NDArray[Any]:
        """All values of a Zarr array that fits in memory. Raises whatever zarr does where it is damaged or missing."""

    def create(self, name: str, data: bytes) -> bool:
        """Write a file, whole and durable, if there is none of this name; True if it is ours, False if one was there."""

    def check_create(self) -> None:
        """Raise ``StoreError`` if :meth:`create` could not keep its promise here. Asked once, when a store is made."""

    def replace(self, files: Mapping[str, Sequence[bytes | memoryview]]) -> None:
        """Write files from their parts, each whole or not at all, in place of those of the same names.

        They are durable after :meth:`sync_folders`.
        """

    def sync_folders(self, names: Iterable[str]) -> None:
        """Make files that were replaced survive a power failure."""

    def remove(self, name: str) -> None:
        """Remove a file; fine if there is none of this name."""

    def prune(self, folder: str) -> None:
        """Remove a folder and those above it as far as they are empty; storage without folders does nothing."""

    def exists(self, name: str) -> bool:
        """Whether there is a file of this name."""

    def size(self, name: str) -> int:
        """Bytes of a file. Raises ``FileNotFoundError``."""

    def names(self, folder: str) -> list[str]:
        """Names of the files in ``folder`` (not below it), without the folder; none if there is no folder."""

    def folders(self, folder: str) -> list[str]:
        """Names of the folders in ``folder``, without the folder; none if there is no folder."""

    def usage(self) -> tuple[int, int]:
        """(bytes, files) of everything there is."""

    def remove_stale(self) -> int:
        """Remove temporary files that a killed writer left behind long ago; return how many."""

    def free_bytes(self) -> int | None:
        """Bytes that can still be written; None where there is no limit to know of."""
