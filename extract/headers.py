"""What is in an uncompressed tar, by its headers."""

from __future__ import annotations

import io
import tarfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from .archive import Archives
from .errors import DataError

_UNCOMPRESS = {".gz": "gunzip", ".tgz": "gunzip", ".bz2": "bunzip2", ".tbz2": "bunzip2", ".xz": "unxz", ".zst": "unzstd"}
_BLOCK = 512  # of a tar
_REPORT = 1000  # files


@dataclass(frozen=True)
class Members:
    """The files of one archive, in its order; hidden ones left alone.

    Attributes:
        names: (n,) as in the archive, a leading ``./`` aside.
        spans: (n, 2) int64, where the bytes of each are: offset and size.
        contents: place -> bytes, of the small files that were asked for.
    """

    names: list[str]
    spans: NDArray[np.int64]
    contents: Mapping[int, bytes]


def refuse_compressed(path: str) -> None:
    """Raise ``DataError`` for an archive that cannot be read in place."""
    tool = next((tool for suffix, tool in _UNCOMPRESS.items() if path.endswith(suffix)), None)
    if tool:
        raise DataError(
            f"{path}: compressed archives cannot be read in place; uncompress it once ({tool} {path}) and give the .tar"
        )


def read_headers(
    archives: Archives, number: int, wanted: Mapping[str, int], progress: Callable[[int], object] = lambda _: None
) -> Members:
    """List an archive.

    Args:
        archives: to read from.
        number: of the archive among them.
        wanted: suffix -> most bytes, of small files to be read too.
        progress: called with the bytes of the archive that were passed, now and then.

    Raises:
        DataError: it is damaged, or has links or special files.
        StoreError: the object storage does not give it.
    """
    path = archives.paths[number]
    names: list[str] = []
    spans: list[tuple[int, int]] = []
    contents: dict[int, bytes] = {}
    passed = 0
    try:
        with io.BufferedReader(_Archive(archives, number), archives.read_ahead) as file:
            walk = _Walk(file, path)
            while (member := walk.next()) is not None:
                name, offset, size = member
                if _hidden(name):
                    continue
                suffix = name[name.rfind(".") :].lower()
                if size <= wanted.get(suffix, -1):
                    file.seek(offset)
                    contents[len(names)] = file.read(size)
                names.append(name)
                spans.append((offset, size))
                if len(names) % _REPORT == 0:
                    progress(offset - passed)
                    passed = offset
    except (tarfile.TarError, EOFError) as error:
        raise DataError(f"{path}: is not an uncompressed tar, or is damaged ({error})") from error
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error})") from error
    progress(archives.size(number) - passed)
    return Members(names, np.array(spans, dtype=np.int64).reshape(-1, 2), contents)


class _Walk:
    """From header to header. Plain ones, of nearly all files, are read here, four times as fast; all others by tarfile."""

    def __init__(self, file: io.BufferedReader[_Archive], path: str) -> None:
        self._file = file
        self._path = path
        self._archive = tarfile.open(fileobj=file, mode="r:")  # noqa: SIM115  # holds nothing but the file
        self._at = 0

    def next(self) -> tuple[str, int, int] | None:
        """(name, offset, size) of the next file; None at the end."""
        while True:
            plain = self._plain()
            if plain is not None:
                return plain
            self._file.seek(0)  # anywhere else, so that tarfile looks whether the archive ends before the next header
            self._archive.firstmember = None  # type: ignore[attr-defined]  # tarfile has read it already
            self._archive.offset = self._at
            member = self._archive.next()
            if member is None:
                self._check_end()
                return None
            self._archive.members.clear()  # type: ignore[attr-defined]  # a kilobyte a member, kept until the end
            self._at = self._archive.offset
            name = member.name.removeprefix("./")
            if member.isdir():
                continue
            if _hidden(name) or (member.isreg() and not member.issparse()):
                return name, member.offset_data, member.size
            raise DataError(f"{self._path}: {name!r} is a link or a special file; archive the images themselves")

    def _check_end(self) -> None:
        """Raise ``tarfile.ReadError`` unless the archive ends here: tarfile takes a damaged header for the end."""
        self._file.seek(self._at)
        if any(self._file.read(_BLOCK)):
            raise tarfile.ReadError(f"bad header at byte {self._at}")

    def _plain(self) -> tuple[str, int, int] | None:
        """A regular file whose header says all; None for whatever else comes, damage and the end among it."""
        self._file.seek(self._at)
        header = self._file.read(_BLOCK)
        size, sum_of_bytes = header[124:135], header[148:156].strip(b" \0")
        if (
            len(header) < _BLOCK
            or header[156:157] != b"0"
            or header[257:262] != b"ustar"
            or header[135] not in b" \0"
            or not (size.isdigit() and sum_of_bytes.isdigit())
            or self._archive.pax_headers  # global ones, which change what headers mean
        ):
            return None
        try:
            unlike = int(sum_of_bytes, 8) != sum(header) - sum(header[148:156]) + 8 * ord(" ")
            n_bytes = int(size, 8)
        except ValueError:
            return None
        if unlike:
            return None
        raw, prefix = header[:100].partition(b"\0")[0], header[345:500].partition(b"\0")[0]
        name = (prefix + b"/" + raw if prefix else raw).decode("utf-8", "surrogateescape")
        offset = self._at + _BLOCK
        self._at = offset + -(-n_bytes // _BLOCK) * _BLOCK
        return name.removeprefix("./"), offset, n_bytes


class _Archive(io.RawIOBase):
    """An archive as a file."""

    def __init__(self, archives: Archives, number: int) -> None:
        self._archives = archives
        self._number = number
        self._size = archives.size(number)
        self._at = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET, /) -> int:
        start = {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self._size}[whence]
        self._at = start + offset
        return self._at

    def readinto(self, buffer: memoryview, /) -> int:  # type: ignore[override]
        size = max(0, min(len(buffer), self._size - self._at))
        if size:
            buffer[:size] = self._archives.read(self._number, self._at, size)
        self._at += size
        return size


def _hidden(name: str) -> bool:
    return "." in name and any(part.startswith(".") and part not in (".", "..") for part in name.split("/"))
