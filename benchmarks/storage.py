"""Reading and writing features: against h5py and zarr, over sizes of chunks and shards, over codecs, over rows.

    python benchmarks/storage.py [--megabytes 256] [--repeats 5]

Needs the extra ``bench`` (zarrs, numcodecs' Blosc). Files are in the page cache, so these are costs of the software.
"""

from __future__ import annotations

import argparse
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import h5py
import numpy as np
import zarr
from diffssl.extract import ExtractSpec, extract
from diffssl.store import (
    Block,
    FeatureKey,
    FeatureStore,
    Identity,
    StoreHeader,
    UnitWriter,
    add_arrays,
    add_split,
    create,
)
from diffssl.store import layout as layout_module
from diffssl.store.layout import ArrayLayout
from numcodecs import Blosc, Zstd
from numpy.typing import NDArray

CHANNELS = 1024


def make_store(path: Path, rows: int, pool: int, row_block: int) -> tuple[FeatureStore, FeatureKey]:
    block = Block(1, "Res", CHANNELS, 16, 1.0, 1.0)
    header = StoreHeader(Identity({"what": "benchmark"}), [], row_block, 64, "float16", "contiguous", [block], "none")
    store = create(path, header)
    ids = np.array([f"{i:08d}" for i in range(rows)], dtype=object)
    add_split(store, "all", ids, np.full(rows, -1, dtype=np.int32))
    key = FeatureKey(1, 10, pool)
    add_arrays(store, "all", [key], {key: {}})
    return store, key


def write_store(path: Path, values: NDArray[Any], row_block: int) -> tuple[FeatureStore, FeatureKey]:
    store, key = make_store(path, len(values), values.shape[-1], row_block)
    for block in range(-(-len(values) // row_block)):
        rows = range(block * row_block, min((block + 1) * row_block, len(values)))
        writer = UnitWriter(store, "all", block, [key], [str(row) for row in rows])
        writer.write({key: values[rows.start : rows.stop]}, {})
        writer.commit(None, None, {})
    return store, key


def seconds_in_turn(repeats: int, **actions: Callable[[], object]) -> dict[str, list[float]]:
    """Seconds of each action, all in turn, after one round that is not counted."""
    seconds: dict[str, list[float]] = {name: [] for name in actions}
    for _ in range(repeats + 1):
        for name, action in actions.items():
            started = time.perf_counter()
            action()
            seconds[name].append(time.perf_counter() - started)
    return {name: values[1:] for name, values in seconds.items()}


def against_h5py(folder: Path, megabytes: int, repeats: int) -> None:
    print(f"\nread a whole array of {megabytes} MB, float16, {CHANNELS} channels; MB/s, and ratio to h5py with fletcher32")
    print("pool  rows/chunk  write diffssl  write h5py   read diffssl  h5py  zarr  zarrs  diffssl/h5py")
    for pool in (1, 2, 16):
        row_bytes = 2 * CHANNELS * pool * pool
        rows = megabytes * 10**6 // row_bytes
        values = np.random.default_rng(0).standard_normal((rows, CHANNELS, pool, pool), dtype=np.float32).astype(np.float16)
        row_block = layout_module.default_row_block(rows)
        store, key = write_store(folder / f"{pool}.zarr", values, row_block)
        chunk = store.layout(key, "all").chunk_rows

        def write_h5(pool: int = pool, chunk: int = chunk, values: NDArray[Any] = values) -> None:
            with h5py.File(folder / f"{pool}.h5", "w") as file:
                file.create_dataset("x", data=values, chunks=(chunk, *values.shape[1:]), fletcher32=True)
                file.flush()

        def read_h5(pool: int = pool) -> NDArray[Any]:
            with h5py.File(folder / f"{pool}.h5") as file:
                return np.asarray(file["x"][:])

        def read_diffssl(path: str = store.path, key: FeatureKey = key) -> NDArray[Any]:
            return FeatureStore.open(path).read(key, "all")

        def read_zarr(pipeline: str, path: str = store.path, key: FeatureKey = key) -> NDArray[Any]:
            with zarr.config.set({"codec_pipeline.path": pipeline}):
                return np.asarray(zarr.open_array(path, path=f"all/features/{key.path}", mode="r")[:])

        def rewrite(values: NDArray[Any] = values, row_block: int = row_block) -> None:
            with tempfile.TemporaryDirectory(dir=folder) as other:
                write_store(Path(other) / "x.zarr", values, row_block)

        write_h5()
        times = seconds_in_turn(
            repeats,
            diffssl=read_diffssl,
            h5py=read_h5,
            zarr=partial(read_zarr, "zarr.core.codec_pipeline.BatchedCodecPipeline"),
            zarrs=partial(read_zarr, "zarrs.ZarrsCodecPipeline"),
        )
        # Apart from reading, which would else wait for what the disk still has to write.
        times |= seconds_in_turn(repeats, write=rewrite, write_h5=write_h5)
        assert np.array_equal(store.read(key, "all"), values)
        speed = {name: values.nbytes / 1e6 / median(seconds) for name, seconds in times.items()}
        ratio = median(b / a for a, b in zip(times["diffssl"], times["h5py"], strict=True))
        print(
            f"{pool:>4}{chunk:>12}{speed['write']:>15.0f}{speed['write_h5']:>12.0f}{speed['diffssl']:>15.0f}"
            f"{speed['h5py']:>6.0f}{speed['zarr']:>6.0f}{speed['zarrs']:>7.0f}{ratio:>14.2f}",
            flush=True,
        )


def sizes(folder: Path, megabytes: int, repeats: int) -> None:
    print("\nsizes: rows of 8 KiB (pool 2); MB/s written (with fsync), read whole, and read in row blocks by stream()")
    print("row block  shard MB  chunk KiB  files   write    read  stream")
    rows = megabytes * 10**6 // 8192
    values = np.random.default_rng(0).standard_normal((rows, CHANNELS, 2, 2), dtype=np.float32).astype(np.float16)
    for row_block in (64, 256, 1024, 4096):
        for chunk_bytes in (1 << 16, 1 << 18, 1 << 20, 1 << 22):
            if chunk_bytes > row_block * 8192:
                continue
            layout_module.CHUNK_BYTES = chunk_bytes
            name = folder / f"sizes-{row_block}-{chunk_bytes}.zarr"
            started = time.perf_counter()
            store, key = write_store(name, values, row_block)
            written = time.perf_counter() - started

            def stream(store: FeatureStore = store, key: FeatureKey = key) -> None:
                for batch in store.stream([key], "all"):
                    assert len(batch.rows)

            times = seconds_in_turn(repeats, read=partial(store.read, key, "all"), stream=stream)
            speed = {kind: values.nbytes / 1e6 / median(seconds) for kind, seconds in times.items()}
            print(
                f"{row_block:>9}{row_block * 8192 / 1e6:>10.1f}{chunk_bytes >> 10:>11}{-(-rows // row_block):>7}"
                f"{values.nbytes / 1e6 / written:>8.0f}{speed['read']:>8.0f}{speed['stream']:>8.0f}",
                flush=True,
            )
    layout_module.CHUNK_BYTES = 1 << 20


def codecs(folder: Path) -> None:
    print("\ncodecs on real features (bundled model, digits, timestep 90), one 1 MiB chunk at a time")
    blocks: dict[int, set[int | str]] = {6: {1, 2, "full"}, 19: {1}, 24: {1, 2}, 30: {1, 2, "full"}}
    store = extract(ExtractSpec(blocks=blocks, timesteps=[90], store=folder / "real.zarr"), lambda _: None)
    choices = {
        "none": None,
        "zstd 1": Zstd(1),
        "zstd 3": Zstd(3),
        "shuffle + zstd 1": Blosc("zstd", 1, Blosc.SHUFFLE),
        "bit shuffle + zstd 1": Blosc("zstd", 1, Blosc.BITSHUFFLE),
        "shuffle + lz4": Blosc("lz4", 5, Blosc.SHUFFLE),
    }
    chunks: list[bytes] = []
    for key in store.keys("all"):
        values = store.read(key, "all")
        step = ArrayLayout(1 << 20, values.shape[1:], values.dtype, 1 << 20).chunk_rows
        chunks += [values[i : i + step].tobytes() for i in range(0, len(values), step)]
    total = sum(map(len, chunks))
    print("codec                  size  encode MB/s  decode MB/s")
    for name, codec in choices.items():
        started = time.perf_counter()
        encoded = [bytearray(chunk) if codec is None else codec.encode(chunk) for chunk in chunks]
        middle = time.perf_counter()
        for chunk in encoded:
            _ = bytearray(chunk) if codec is None else codec.decode(chunk)
        ended = time.perf_counter()
        size = sum(map(len, encoded)) / total
        print(
            f"{name:<22}{size:>5.3f}{total / 1e6 / (middle - started):>13.0f}{total / 1e6 / (ended - middle):>13.0f}",
            flush=True,
        )


def memory(folder: Path) -> None:
    print("\npeak memory of a fresh process that streams an array of 2 KiB rows (row blocks of 256)")
    for rows in (20_000, 200_000):
        path = folder / f"memory-{rows}.zarr"
        values = np.zeros((256, CHANNELS, 1, 1), dtype=np.float16)
        store, key = make_store(path, rows, 1, 256)
        for block in range(-(-rows // 256)):
            n = min(256, rows - block * 256)
            writer = UnitWriter(store, "all", block, [key], [""] * n)
            writer.write({key: values[:n]}, {})
            writer.commit(None, None, {})
        # ru_maxrss would be the peak of this process, which a child inherits.
        code = (
            "from pathlib import Path; from diffssl.store import FeatureStore\n"
            "def peak(): return Path('/proc/self/status').read_text().split('VmHWM:')[1].split()[0]\n"
            f"store = FeatureStore.open({str(path)!r})\n"
            "before = peak()\n"
            "n = sum(len(b.rows) for b in store.stream(store.keys('all'), 'all'))\n"
            "print(n, before, peak())"
        )
        _, before, after = subprocess.run(
            [sys.executable, "-c", code], capture_output=True, check=True, text=True
        ).stdout.split()
        print(
            f"{rows:>8} rows, {rows * 2048 / 1e6:.0f} MB: {int(after) / 1024:.0f} MiB, of which {int(before) / 1024:.0f} before"
        )
    writer_peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(f"(this process, which wrote them all: {writer_peak:.0f} MiB)", flush=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--megabytes", type=int, default=256)
    parser.add_argument("--repeats", type=int, default=5)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        memory(Path(name))
        against_h5py(Path(name), options.megabytes, options.repeats)
        sizes(Path(name), options.megabytes, options.repeats)
        codecs(Path(name))
