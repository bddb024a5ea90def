"""One shard file: chunks of rows, each followed by its CRC32C, and an index at the end.

The bytes are those of Zarr's ``sharding_indexed`` codec over ``bytes`` and ``crc32c``. They are written and read here, not
by zarr, because a commit needs their checksum, a reader needs to compare it with the commit, and features then go from
disk to their place in the caller's array in one copy.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import google_crc32c
import numpy as np
from numpy.typing import NDArray

from .contract import Storage
from .layout import ArrayLayout

_CRC = 4
_ABSENT = np.iinfo(np.uint64).max


class DamagedShard(Exception):
    """A shard's bytes are not what was committed; the reader that knows path and setting raises ``CorruptStore``."""


def crc32c(data: object) -> int:
    """CRC32C (Castagnoli) of contiguous read-only bytes or of a contiguous array."""
    return int(google_crc32c.value(data))


def encode_shard(values: NDArray[Any], layout: ArrayLayout) -> tuple[list[bytes | memoryview], str]:
    """Encode the rows of one shard.

    Args:
        values: (n, C, p, p) contiguous array in the layout's dtype, with n at most ``layout.shard_rows``.
        layout: of the array the shard belongs to.

    Returns:
        The parts of the file in order (views of ``values`` where possible) and the shard's checksum.
    """
    size = layout.chunk_rows
    n_chunks = -(-len(values) // size)
    parts: list[bytes | memoryview] = []
    crcs: list[bytes] = []
    for i in range(n_chunks):
        chunk = values[i * size : (i + 1) * size]
        if len(chunk) < size:  # the end of the split: the rest of its last chunk is fill
            padded = np.full((size, *layout.row_shape), layout.fill_value, dtype=layout.dtype)
            padded[: len(chunk)] = chunk
            chunk = padded
        crcs.append(crc32c(chunk).to_bytes(_CRC, "little"))
        parts += [chunk.data.cast("B"), crcs[-1]]
    parts.append(_index(n_chunks, layout))
    return parts, _checksum(crcs)


def read_shard(
    storage: Storage, name: str, layout: ArrayLayout, shard: int, rows: range, out: NDArray[Any], committed: set[str]
) -> None:
    """Read rows of one shard into ``out``, checking every chunk that is touched.

    Any read checks the index, the length, and that the journal knows the shard by the checksums of all its chunks.

    Args:
        storage: where the shard is.
        name: file of the shard.
        layout: of the array.
        shard: number of the shard.
        rows: rows wanted, counted from the shard's first.
        out: (len(rows), C, p, p) contiguous array to fill.
        committed: checksums that the shard may have by the journal.

    Raises:
        DamagedShard: with what is wrong, in words.
        OSError: where the file system fails.
    """
    size = layout.chunk_rows
    chunk_bytes = size * layout.row_bytes + _CRC
    first, last = rows.start // size, -(-rows.stop // size)
    n_chunks = -(-len(layout.shard_range(shard)) // size)
    targets = [_Target(chunk, rows, out, layout) for chunk in range(first, last)]
    crcs = np.empty((n_chunks, _CRC), dtype=np.uint8)
    index = _index(n_chunks, layout)
    tail = np.empty(len(index) + 1, dtype=np.uint8)  # one byte more, to see where the file ends
    buffers: list[memoryview] = []
    for target in targets:
        buffers += [target.chunk.data.cast("B"), crcs[target.number].data]
    wanted = n_chunks * chunk_bytes + len(index)
    others = [((chunk + 1) * chunk_bytes - _CRC, crcs[chunk].data) for chunk in (*range(first), *range(last, n_chunks))]
    try:
        if not others:  # the whole shard is one read
            got = storage.read_into(name, 0, [*buffers, tail.data])
        else:
            got = first * chunk_bytes + storage.read_into(name, first * chunk_bytes, buffers)
            storage.read_pieces(name, others)
            if got == last * chunk_bytes:
                got = n_chunks * chunk_bytes + storage.read_into(name, n_chunks * chunk_bytes, [tail.data])
    except FileNotFoundError:
        raise DamagedShard("the file is missing") from None
    if got != wanted:
        raise DamagedShard(f"the file is {'cut short' if got < wanted else 'too long'}: {wanted} bytes wanted, {got} there")
    for target in targets:
        if crc32c(target.chunk) != int.from_bytes(crcs[target.number].tobytes(), "little"):
            raise DamagedShard(f"chunk {target.number} does not have its checksum")
        target.deliver()
    if tail[:-1].tobytes() != index:
        raise DamagedShard("its index is damaged")
    checksum = _checksum([crc.tobytes() for crc in crcs])
    if checksum not in committed:
        raise DamagedShard(f"its checksum {checksum} is in no commit (they have {', '.join(sorted(committed))})")


def shard_file_bytes(layout: ArrayLayout, shard: int) -> int:
    """Bytes of the file of a shard."""
    n_chunks = -(-len(layout.shard_range(shard)) // layout.chunk_rows)
    return n_chunks * (layout.chunk_rows * layout.row_bytes + _CRC) + _index_bytes(layout)


class _Target:
    """Where a chunk is read to: its place in ``out``, or a chunk of its own where only a part of it is wanted."""

    def __init__(self, number: int, rows: range, out: NDArray[Any], layout: ArrayLayout) -> None:
        size = layout.chunk_rows
        start, stop = max(rows.start, number * size), min(rows.stop, (number + 1) * size)
        self.number = number
        self._place = out[start - rows.start : stop - rows.start]
        self._part = slice(start - number * size, stop - number * size)
        self._direct = stop - start == size
        self.chunk = self._place if self._direct else np.empty((size, *layout.row_shape), dtype=layout.dtype)

    def deliver(self) -> None:
        """Copy the wanted part to its place, unless it is there."""
        if not self._direct:
            np.copyto(self._place, self.chunk[self._part])


def _checksum(crcs: Sequence[bytes]) -> str:
    """Checksum of a shard as commits hold it: CRC32C over the CRC32Cs of its chunks, so that reading computes it."""
    return f"{crc32c(b''.join(crcs)):08x}"


def _index_bytes(layout: ArrayLayout) -> int:
    return 16 * (layout.shard_rows // layout.chunk_rows) + _CRC


def _index(n_chunks: int, layout: ArrayLayout) -> bytes:
    """Shard index: (offset, bytes) of each chunk as little-endian uint64, and a CRC32C; absent chunks are all ones."""
    chunk_bytes = layout.chunk_rows * layout.row_bytes + _CRC
    index = np.full((layout.shard_rows // layout.chunk_rows, 2), _ABSENT, dtype="<u8")
    index[:n_chunks, 0] = np.arange(n_chunks) * chunk_bytes
    index[:n_chunks, 1] = chunk_bytes
    raw = index.tobytes()
    return raw + crc32c(raw).to_bytes(_CRC, "little")
