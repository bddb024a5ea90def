from __future__ import annotations

import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr
from diffssl.store import layout as layout_module
from diffssl.store.layout import ArrayLayout, feature_document, store_dtype
from diffssl.store.shard import DamagedShard, crc32c, encode_shard, read_shard, shard_file_bytes
from diffssl.store.storage import LocalStorage
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

NAME = "t90/c.0.0.0.0"


def random_values(layout: ArrayLayout, rows: int, seed: int = 0) -> NDArray[Any]:
    values: NDArray[Any] = np.random.default_rng(seed).standard_normal((rows, *layout.row_shape)).astype(layout.dtype)
    return values


def write_shard(folder: Path, layout: ArrayLayout, values: NDArray[Any]) -> tuple[LocalStorage, Path, set[str]]:
    """An array of one shard, with its document; (storage, file, committed checksums)."""
    storage = LocalStorage(folder)
    storage.create("t90/zarr.json", feature_document(layout, {}))
    parts, checksum = encode_shard(values, layout)
    storage.replace({NAME: parts})
    return storage, folder / NAME, {checksum}


@pytest.fixture
def three_chunks(monkeypatch: pytest.MonkeyPatch) -> ArrayLayout:
    """A shard of five rows in chunks of two; the last chunk is half fill, and the shard has room for one more."""
    monkeypatch.setattr(layout_module, "CHUNK_BYTES", 2 * 12)
    layout = ArrayLayout(5, (3, 1, 2), store_dtype("float16"), 8)
    assert layout.chunk_rows == 2
    return layout


def test_crc32c_check_value() -> None:
    """The value that every description of CRC32C (Castagnoli) gives for these nine digits."""
    assert crc32c(b"123456789") == 0xE3069283
    assert crc32c(np.frombuffer(b"123456789", dtype=np.uint8)) == 0xE3069283


def test_bytes_by_the_specification(three_chunks: ArrayLayout) -> None:
    """Written out by hand from the text of the zarr v3 codecs ``sharding_indexed``, ``bytes`` and ``crc32c``."""
    values = random_values(three_chunks, 5)
    padded = np.full((6, 3, 1, 2), np.nan, "<f2")
    padded[:5] = values
    chunks = [padded[i : i + 2].tobytes() for i in (0, 2, 4)]
    crcs = [struct.pack("<I", crc32c(chunk)) for chunk in chunks]
    index = struct.pack("<8Q", 0, 28, 28, 28, 56, 28, 2**64 - 1, 2**64 - 1)
    parts, checksum = encode_shard(values, three_chunks)
    assert b"".join(parts) == b"".join(map(bytes.__add__, chunks, crcs)) + index + struct.pack("<I", crc32c(index))
    assert checksum == f"{crc32c(b''.join(crcs)):08x}"
    assert shard_file_bytes(three_chunks, 0) == sum(len(part) for part in parts)


@settings(max_examples=30)
@given(
    rows=st.integers(1, 20),
    row_shape=st.tuples(st.integers(1, 4), st.integers(1, 3), st.integers(1, 3)),
    dtype=st.sampled_from(["float16", "float32"]),
    chunk_bytes=st.sampled_from([1, 40, 150, 10**6]),
)
def test_zarr_reads_it_and_writes_the_same(
    tmp_path_factory: pytest.TempPathFactory, rows: int, row_shape: tuple[int, int, int], dtype: str, chunk_bytes: int
) -> None:
    folder = tmp_path_factory.mktemp("shard")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(layout_module, "CHUNK_BYTES", chunk_bytes)
        layout = ArrayLayout(rows, row_shape, store_dtype(dtype), 32)
        values = random_values(layout, rows)
        _, ours, committed = write_shard(folder / "ours", layout, values)
        np.testing.assert_array_equal(np.asarray(zarr.open_array(folder / "ours" / "t90", mode="r")[:]), values)

        storage = LocalStorage(folder / "theirs")
        storage.create("t90/zarr.json", feature_document(layout, {}))
        zarr.open_array(folder / "theirs" / "t90", mode="r+")[:] = values
        assert storage.read(NAME) == ours.read_bytes()
        out = np.empty_like(values)
        read_shard(storage, NAME, layout, 0, range(rows), out, committed)
        np.testing.assert_array_equal(out, values)


def test_every_range_of_rows(tmp_path: Path, three_chunks: ArrayLayout) -> None:
    values = random_values(three_chunks, 5)
    storage, _, committed = write_shard(tmp_path, three_chunks, values)
    for start in range(5):
        for stop in range(start + 1, 6):
            out = np.full_like(values[start:stop], 77)
            read_shard(storage, NAME, three_chunks, 0, range(start, stop), out, committed)
            np.testing.assert_array_equal(out, values[start:stop])


def test_every_flipped_byte_is_found(tmp_path: Path, three_chunks: ArrayLayout) -> None:
    values = random_values(three_chunks, 5)
    storage, file, committed = write_shard(tmp_path, three_chunks, values)
    good = file.read_bytes()
    payload = 3 * 28
    assert len(good) == payload + 4 * 16 + 4
    for at in range(len(good)):
        file.write_bytes(good[:at] + bytes([good[at] ^ 1]) + good[at + 1 :])
        reason = f"chunk {at // 28} does not have its checksum" if at < payload else "its index is damaged"
        with pytest.raises(DamagedShard, match=reason):
            read_shard(storage, NAME, three_chunks, 0, range(5), np.empty_like(values), committed)


def test_every_flipped_byte_of_a_part_is_found(tmp_path: Path, three_chunks: ArrayLayout) -> None:
    """Row 3 alone, the second of its chunk: damage to the chunk's other row is damage too."""
    values = random_values(three_chunks, 5)
    storage, file, committed = write_shard(tmp_path, three_chunks, values)
    good = file.read_bytes()
    for at in range(28, 56):
        file.write_bytes(good[:at] + bytes([good[at] ^ 1]) + good[at + 1 :])
        with pytest.raises(DamagedShard, match="chunk 1 does not have its checksum"):
            read_shard(storage, NAME, three_chunks, 0, range(3, 4), np.empty_like(values[:1]), committed)


def test_every_other_length_is_found(tmp_path: Path, three_chunks: ArrayLayout) -> None:
    values = random_values(three_chunks, 5)
    storage, file, committed = write_shard(tmp_path, three_chunks, values)
    good = file.read_bytes()
    for length in range(len(good)):
        file.write_bytes(good[:length])
        with pytest.raises(DamagedShard, match=f"cut short: 152 bytes wanted, {length} there"):
            read_shard(storage, NAME, three_chunks, 0, range(5), np.empty_like(values), committed)
        if length < 56:
            with pytest.raises(DamagedShard, match="cut short"):
                read_shard(storage, NAME, three_chunks, 0, range(3, 4), np.empty_like(values[:1]), committed)
    file.write_bytes(good + b"\0")
    with pytest.raises(DamagedShard, match="too long: 152 bytes wanted"):
        read_shard(storage, NAME, three_chunks, 0, range(5), np.empty_like(values), committed)


def test_a_missing_file_is_found(tmp_path: Path, three_chunks: ArrayLayout) -> None:
    values = random_values(three_chunks, 5)
    storage, file, committed = write_shard(tmp_path, three_chunks, values)
    file.unlink()
    for stop in (2, 5):
        with pytest.raises(DamagedShard, match="the file is missing"):
            read_shard(storage, NAME, three_chunks, 0, range(stop), values[:stop], committed)


@pytest.mark.parametrize("rows", [range(5), range(2), range(3, 4)])
def test_right_chunks_of_another_shard_are_found(tmp_path: Path, three_chunks: ArrayLayout, rows: range) -> None:
    """All CRCs are right, but this is not what was committed."""
    storage, _, committed = write_shard(tmp_path, three_chunks, random_values(three_chunks, 5))
    parts, other = encode_shard(random_values(three_chunks, 5, seed=1), three_chunks)
    storage.replace({NAME: parts})
    out = np.empty((len(rows), 3, 1, 2), "<f2")
    with pytest.raises(DamagedShard, match=f"its checksum {other} is in no commit .*{committed.copy().pop()}"):
        read_shard(storage, NAME, three_chunks, 0, rows, out, committed)
    read_shard(storage, NAME, three_chunks, 0, rows, out, committed | {other})
    np.testing.assert_array_equal(out, random_values(three_chunks, 5, seed=1)[rows.start : rows.stop])


@pytest.mark.parametrize("rows", [range(5), range(2)])
def test_two_chunks_in_each_others_place_are_found(tmp_path: Path, three_chunks: ArrayLayout, rows: range) -> None:
    storage, file, committed = write_shard(tmp_path, three_chunks, random_values(three_chunks, 5))
    good = file.read_bytes()
    file.write_bytes(good[28:56] + good[:28] + good[56:])
    with pytest.raises(DamagedShard, match="is in no commit"):
        read_shard(storage, NAME, three_chunks, 0, rows, np.empty((len(rows), 3, 1, 2), "<f2"), committed)
