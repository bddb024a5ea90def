"""Zarr v3 documents of a store, and how large its row blocks, shards and chunks are.

The documents are written out here, not by zarr's own calls, so that every writer of any zarr version prepares the same
bytes beforehand and creates each document once, by create-if-absent. The tests open them with zarr and xarray.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import DTypeLike

FORMAT = 1
ROOT = "zarr.json"
JOURNAL = "journal"

MIN_ROW_BLOCK = 64
MAX_ROW_BLOCK = 2048
LARGEST_ROW_BLOCK = 16384  # only to keep the number of files down
MAX_FILES = 200_000  # of a grid where it allows; scratch file systems have quotas of about a million
MAX_OPEN_BYTES = 2 * 10**9  # of the open shards of one unit, in a writer's memory
ROW_BLOCKS_A_WORKER = 4
MAX_SHARD_BYTES = 128 * 10**6
CHUNK_BYTES = 1 << 20


def default_row_block(rows: int, limit: int | None = None) -> int:
    """Rows of a row block for splits of up to ``rows`` rows: a power of two near rows/64, from 64 to 2048.

    A smaller split has about eight row blocks of 64 to 256 rows: each is a file to create and sync for every setting.
    A pilot (``limit``) computes whole row blocks; so that it computes at most an eighth too
    much, its row blocks are smaller, down to 64 rows.
    """
    wanted = max(rows / 64, min(256, rows / 8))
    if limit is not None:
        wanted = min(wanted, limit / 8)
    return min(MAX_ROW_BLOCK, max(MIN_ROW_BLOCK, 1 << int(math.log2(max(wanted, 1)))))


def fit_row_block(row_block: int, rows: int, workers: int, settings: int, unit_row_bytes: int) -> int:
    """Change a default row block for many workers and large grids.

    It is halved until each worker has at least four row blocks, down to 64 rows; or doubled while the grid has more than
    200,000 files, as long as each worker keeps four row blocks and a unit's open shards stay under 2 GB.

    Args:
        row_block: to start from.
        rows: of all splits.
        workers: processes that will share the work.
        settings: arrays of one split.
        unit_row_bytes: bytes of a row over all settings of a timestep.
    """
    few = ROW_BLOCKS_A_WORKER * workers
    while row_block > MIN_ROW_BLOCK and rows / row_block < few:
        row_block //= 2
    while (
        settings * rows / row_block > MAX_FILES
        and row_block < LARGEST_ROW_BLOCK
        and rows / (2 * row_block) >= few
        and 2 * row_block * unit_row_bytes <= MAX_OPEN_BYTES
    ):
        row_block *= 2
    return row_block


@dataclass(frozen=True)
class ArrayLayout:
    """Shape of one array of features, or of thumbnails, on disk.

    Attributes:
        rows: rows of the split.
        row_shape: (channels, height, width) of one row; (height, width, 3) of a thumbnail.
        dtype: ``float16`` or ``float32``; ``uint8`` of thumbnails.
        row_block: rows of one row block; a power of two.
    """

    rows: int
    row_shape: tuple[int, int, int]
    dtype: np.dtype[Any]
    row_block: int

    @property
    def fill_value(self) -> float:
        """What a row without data reads as: NaN; 0 where there is no NaN."""
        return math.nan if self.dtype.kind == "f" else 0

    @property
    def row_bytes(self) -> int:
        """Bytes of one row."""
        return math.prod(self.row_shape) * self.dtype.itemsize

    @property
    def shard_rows(self) -> int:
        """Rows of one shard: the row block, halved until a shard stays under 128 MB."""
        rows = self.row_block
        while rows > 1 and rows * self.row_bytes > MAX_SHARD_BYTES:
            rows //= 2
        return rows

    @property
    def chunk_rows(self) -> int:
        """Rows of one chunk: the shard, halved until a chunk is at most 1 MiB."""
        rows = self.shard_rows
        while rows > 1 and rows * self.row_bytes > CHUNK_BYTES:
            rows //= 2
        return rows

    @property
    def row_blocks(self) -> int:
        """Number of row blocks of the split."""
        return -(-self.rows // self.row_block)

    def shards_of(self, row_block: int) -> range:
        """Numbers of the shards that hold the rows of a row block."""
        per_block = self.row_block // self.shard_rows
        total = -(-self.rows // self.shard_rows)
        return range(row_block * per_block, min((row_block + 1) * per_block, total))

    def shard_range(self, shard: int) -> range:
        """Rows of a shard; the last one may be short."""
        return range(shard * self.shard_rows, min((shard + 1) * self.shard_rows, self.rows))

    @staticmethod
    def shard_name(array: str, shard: int) -> str:
        """File of a shard, one file and no folders each: inodes are what quotas count."""
        return f"{array}/c.{shard}.0.0.0"


def block_range(rows: int, row_block_size: int, row_block: int) -> range:
    """Rows of a row block; the last one may be short."""
    return range(row_block * row_block_size, min((row_block + 1) * row_block_size, rows))


def group_document(attributes: Mapping[str, Any] | None = None) -> bytes:
    """``zarr.json`` of a group."""
    return _encode({"zarr_format": 3, "node_type": "group", "attributes": dict(attributes or {})})


def split_document(data_id: str, rows: int) -> bytes:
    """``zarr.json`` of a split's group."""
    return group_document({"diffssl": {"data_id": data_id, "rows": rows}})


def journal_document() -> bytes:
    """``zarr.json`` of the journal: an array of no elements, since zarr leaves files inside an array's folder alone."""
    return _encode(
        {
            "zarr_format": 3,
            "node_type": "array",
            "shape": [0],
            "data_type": "uint8",
            "chunk_grid": {"name": "regular", "configuration": {"chunk_shape": [1]}},
            "chunk_key_encoding": {"name": "default", "configuration": {"separator": "/"}},
            "fill_value": 0,
            "codecs": [{"name": "bytes"}],
            "attributes": {},
            "dimension_names": ["commit"],
        }
    )


def feature_document(layout: ArrayLayout, attributes: Mapping[str, Any]) -> bytes:
    """``zarr.json`` of a feature array: sharded, uncompressed, a CRC32C on every chunk, fill value NaN."""
    return _array_document(layout, attributes, ["row", "channel", "y", "x"])


def thumbnail_document(layout: ArrayLayout) -> bytes:
    """``zarr.json`` of thumbnails: as that of features, fill value 0."""
    return _array_document(layout, {}, ["row", "y", "x", "colour"])


def _array_document(layout: ArrayLayout, attributes: Mapping[str, Any], dimensions: list[str]) -> bytes:
    tail = list(layout.row_shape)
    bytes_and_crc = [{"name": "bytes", "configuration": {"endian": "little"}}, {"name": "crc32c"}]
    sharding = {
        "chunk_shape": [layout.chunk_rows, *tail],
        "codecs": bytes_and_crc if layout.dtype.itemsize > 1 else [{"name": "bytes"}, {"name": "crc32c"}],
        "index_codecs": bytes_and_crc,
        "index_location": "end",
    }
    return _encode(
        {
            "zarr_format": 3,
            "node_type": "array",
            "shape": [layout.rows, *tail],
            "data_type": layout.dtype.name,
            "chunk_grid": {"name": "regular", "configuration": {"chunk_shape": [layout.shard_rows, *tail]}},
            "chunk_key_encoding": {"name": "default", "configuration": {"separator": "."}},
            "fill_value": "NaN" if math.isnan(layout.fill_value) else layout.fill_value,
            "codecs": [{"name": "sharding_indexed", "configuration": sharding}],
            "attributes": dict(attributes),
            "dimension_names": dimensions,
        }
    )


def store_dtype(name: DTypeLike) -> np.dtype[Any]:
    """The dtype of stored features. Raises ``ValueError`` for anything but float16 and float32."""
    dtype = np.dtype(name)
    if dtype not in (np.dtype(np.float16), np.dtype(np.float32)):
        raise ValueError(f"features are stored as float16 or float32, got {dtype}")
    return dtype.newbyteorder("<")


def _encode(document: Mapping[str, Any]) -> bytes:
    return json.dumps(document, indent=1, allow_nan=False).encode()
