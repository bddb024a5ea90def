from __future__ import annotations

import itertools
import json
from itertools import chain

import numpy as np
import pytest
import zarr
from diffssl.store.layout import (
    ArrayLayout,
    block_range,
    default_row_block,
    feature_document,
    fit_row_block,
    group_document,
    journal_document,
    store_dtype,
)
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import DTypeLike
from zarr.core.buffer import default_buffer_prototype
from zarr.storage import MemoryStore

PROTOTYPE = default_buffer_prototype()
LAYOUTS = st.builds(
    ArrayLayout,
    rows=st.integers(1, 10**6),
    row_shape=st.tuples(st.integers(1, 2048), st.integers(1, 256), st.integers(1, 256)),
    dtype=st.sampled_from([store_dtype("float16"), store_dtype("float32")]),
    row_block=st.sampled_from([64, 128, 256, 512, 1024, 2048]),
)


@pytest.mark.parametrize(
    ("rows", "limit", "row_block"),
    [
        (0, None, 64),
        (1023, None, 64),
        (1797, None, 128),
        (2048, None, 256),
        (32767, None, 256),
        (32768, None, 512),
        (50000, None, 512),
        (1281167, None, 2048),
        (1281167, 10000, 1024),
        (50000, 2000, 128),
        (50000, 100, 64),
        (50000, 10**9, 512),
    ],
)
def test_default_row_block(rows: int, limit: int | None, row_block: int) -> None:
    assert default_row_block(rows, limit) == row_block


@given(st.integers(0, 10**8), st.none() | st.integers(1, 10**8))
def test_default_row_block_is_a_power_of_two(rows: int, limit: int | None) -> None:
    size = default_row_block(rows, limit)
    assert 64 <= size <= 2048
    assert size & (size - 1) == 0


@pytest.mark.parametrize(
    ("row_shape", "dtype", "row_block", "shard_rows", "chunk_rows"),
    [
        ((1024, 1, 1), "float16", 2048, 2048, 512),
        ((1024, 2, 2), "float16", 512, 512, 128),
        ((512, 64, 64), "float16", 2048, 16, 1),
        ((256, 256, 256), "float16", 64, 2, 1),
        ((256, 256, 256), "float32", 64, 1, 1),
        ((1024, 256, 256), "float32", 64, 1, 1),
        ((5, 2, 2), "float32", 64, 64, 64),
        ((1000, 1, 1), "float16", 2048, 2048, 512),
    ],
)
def test_shards_and_chunks_golden(
    row_shape: tuple[int, int, int], dtype: str, row_block: int, shard_rows: int, chunk_rows: int
) -> None:
    """Readers compute these sizes anew, so they belong to the format: another value makes existing stores unreadable."""
    layout = ArrayLayout(10**6, row_shape, store_dtype(dtype), row_block)
    assert (layout.shard_rows, layout.chunk_rows) == (shard_rows, chunk_rows)


@given(LAYOUTS)
def test_sizes_divide_and_stay_small(layout: ArrayLayout) -> None:
    assert layout.row_block % layout.shard_rows == 0
    assert layout.shard_rows % layout.chunk_rows == 0
    assert layout.shard_rows == 1 or layout.shard_rows * layout.row_bytes <= 128 * 10**6
    assert layout.chunk_rows == 1 or layout.chunk_rows * layout.row_bytes <= 2**20


@given(st.integers(1, 5000), st.sampled_from([(7, 1, 1), (512, 64, 64), (256, 256, 256)]), st.sampled_from([64, 256]))
def test_row_blocks_and_shards_cover_every_row_once(rows: int, row_shape: tuple[int, int, int], row_block: int) -> None:
    layout = ArrayLayout(rows, row_shape, store_dtype("float16"), row_block)
    blocks = range(layout.row_blocks)
    assert list(chain.from_iterable(block_range(rows, row_block, block) for block in blocks)) == list(range(rows))
    for block in blocks:
        shards = layout.shards_of(block)
        held = list(chain.from_iterable(layout.shard_range(shard) for shard in shards))
        assert held == list(block_range(rows, row_block, block))
        assert all(len(layout.shard_range(shard)) for shard in shards)


def test_shard_name() -> None:
    assert ArrayLayout.shard_name("train/features/b24/p2/t90", 17) == "train/features/b24/p2/t90/c.17.0.0.0"


@pytest.mark.parametrize("name", ["float16", "float32"])
def test_feature_document_is_what_zarr_reads(name: str) -> None:
    layout = ArrayLayout(100, (5, 2, 3), store_dtype(name), 64)
    files = {"t90/zarr.json": PROTOTYPE.buffer.from_bytes(feature_document(layout, {"alpha": 0.5}))}
    array = zarr.open_array(MemoryStore(files), path="t90", mode="r")
    assert array.shape == (100, 5, 2, 3)
    assert array.dtype == np.dtype(name)
    assert array.shards == (64, 5, 2, 3)
    assert array.chunks == (64, 5, 2, 3)
    assert np.isnan(array.fill_value)
    assert dict(array.attrs) == {"alpha": 0.5}
    assert array.metadata.dimension_names == ("row", "channel", "y", "x")  # type: ignore[union-attr]


def test_documents_are_what_zarr_reads() -> None:
    files = {
        "zarr.json": PROTOTYPE.buffer.from_bytes(group_document({"diffssl": {"format": 1}})),
        "journal/zarr.json": PROTOTYPE.buffer.from_bytes(journal_document()),
    }
    root = zarr.open_group(MemoryStore(files), mode="r")
    assert dict(root.attrs) == {"diffssl": {"format": 1}}
    journal = root["journal"]
    assert isinstance(journal, zarr.Array)
    assert journal.size == 0


def test_documents_refuse_nan() -> None:
    """JSON has no NaN: other readers could not open the group."""
    with pytest.raises(ValueError, match="JSON"):
        group_document({"log_snr": float("nan")})
    assert json.loads(group_document()) == {"zarr_format": 3, "node_type": "group", "attributes": {}}


@pytest.mark.parametrize("name", ["float16", "<f2", np.float16])
def test_store_dtype_is_little_endian(name: DTypeLike) -> None:
    assert store_dtype(name) == np.dtype("<f2")


@pytest.mark.parametrize("name", ["float64", "int16", "bool", ">f2"])
def test_store_dtype_refuses_others(name: str) -> None:
    with pytest.raises(ValueError, match=f"float16 or float32, got {name}"):
        store_dtype(name)


IMAGENET = 1_281_167 + 50_000


@pytest.mark.parametrize(
    ("row_block", "rows", "workers", "settings", "unit_row_bytes", "fitted"),
    [
        (2048, IMAGENET, 1, 182, 26 * 2048, 2048),  # 118,000 files: nothing to change
        (2048, IMAGENET, 8, 1110, 111 * 2048, 8192),  # 721,000 files become 180,000
        (2048, IMAGENET, 64, 1110, 111 * 2048, 4096),  # one more doubling would leave three row blocks a worker
        (2048, IMAGENET, 256, 1110, 111 * 2048, 1024),  # four a worker go before the number of files
        (2048, IMAGENET, 8, 1110, 37 * 2**19, 2048),  # 2 GB of open shards: files or not
        (256, 1797, 4, 8, 4096, 64),  # never below 64, though that leaves 28 row blocks
        (64, 100, 64, 8, 4096, 64),
    ],
)
def test_row_blocks_fit_workers_and_grid(
    row_block: int, rows: int, workers: int, settings: int, unit_row_bytes: int, fitted: int
) -> None:
    assert fit_row_block(row_block, rows, workers, settings, unit_row_bytes) == fitted


def test_fitted_row_blocks_keep_their_promises() -> None:
    for rows, workers, settings in itertools.product((10**4, 10**5, 10**6, 10**7), (1, 8, 64), (1, 100, 2000)):
        row_block = fit_row_block(default_row_block(rows), rows, workers, settings, 2048)
        assert row_block & (row_block - 1) == 0
        assert rows / row_block >= 4 * workers or row_block == 64
        if settings * rows / row_block > 200_000:  # then nothing is left to give
            assert row_block == 16384 or rows / (2 * row_block) < 4 * workers
