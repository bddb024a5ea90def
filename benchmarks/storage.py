"""Reading and writing features: against h5py, .npy, a file an image and zarr; over sizes of chunks and shards; codecs; memory.

    python benchmarks/storage.py [--megabytes 256] [--repeats 5]

Needs the extra ``bench`` (zarrs, numcodecs' Blosc). Files are in the page cache, so these are costs of the software.
"""

from __future__ import annotations

import argparse
import os
import resource
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Callable, Mapping
from dataclasses import dataclass
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
FILES = 4096  # at most, where every image has one: a thousand files take seconds


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


@dataclass(frozen=True)
class Arm:
    """One way to keep an array: a name for people, what writes and reads all of it, and of how many rows at most."""

    name: str
    write: Callable[[Path, NDArray[Any]], object]
    read: Callable[[Path], NDArray[Any]]
    rows: int | None = None


def sync(*paths: Path) -> None:
    """What diffssl does: ask the disk to have files and their folders; files are synced when all are written."""
    for path in paths:
        descriptor = os.open(path, os.O_RDONLY)
        os.fsync(descriptor)
        os.close(descriptor)


def write_npy(synced: bool, path: Path, values: NDArray[Any]) -> None:
    np.save(path, values)
    if synced:
        sync(path, path.parent)


def write_images(synced: bool, path: Path, values: NDArray[Any]) -> None:
    """A file for every image, as features are often kept."""
    path.mkdir()
    for row, own in enumerate(values):
        np.save(path / f"{row:08d}.npy", own)
    if synced:
        sync(*path.iterdir(), path)


def read_images(path: Path) -> NDArray[Any]:
    return np.stack([np.load(file) for file in sorted(path.iterdir())])


def write_h5(chunk: int, path: Path, values: NDArray[Any]) -> None:
    with h5py.File(path, "w") as file:
        file.create_dataset("x", data=values, chunks=(chunk, *values.shape[1:]), fletcher32=True)


def read_h5(path: Path) -> NDArray[Any]:
    with h5py.File(path) as file:
        return np.asarray(file["x"][:])


def read_diffssl(path: Path) -> NDArray[Any]:
    store = FeatureStore.open(path)
    return store.read(store.keys("all")[0], "all")


def read_zarr(pipeline: str, key: FeatureKey, path: Path) -> NDArray[Any]:
    with zarr.config.set({"codec_pipeline.path": pipeline}):
        return np.asarray(zarr.open_array(path, path=f"all/features/{key.path}", mode="r")[:])


def against_others(folder: Path, megabytes: int, repeats: int) -> None:
    print(f"\na whole array of {megabytes} MB, float16, {CHANNELS} channels; MB/s, and seconds a byte against diffssl's")
    print("pool  rows/chunk  way                        read   ratio   write   ratio")
    for pool in (1, 2, 16):
        rows = megabytes * 10**6 // (2 * CHANNELS * pool * pool)
        values = np.random.default_rng(0).standard_normal((rows, CHANNELS, pool, pool), dtype=np.float32).astype(np.float16)
        row_block = layout_module.default_row_block(rows)
        key, chunk = FeatureKey(1, 10, pool), ArrayLayout(rows, values.shape[1:], values.dtype, row_block).chunk_rows
        arms = [
            Arm("diffssl (synced)", partial(write_store, row_block=row_block), read_diffssl),
            Arm("h5py, fletcher32", partial(write_h5, chunk), read_h5),
            Arm(".npy", partial(write_npy, False), np.load),
            Arm(".npy, synced", partial(write_npy, True), np.load),
            Arm("file an image", partial(write_images, False), read_images, FILES),
            Arm("file an image, synced", partial(write_images, True), read_images, FILES),
        ]
        pipelines = {"zarr": "zarr.core.codec_pipeline.BatchedCodecPipeline", "zarrs": "zarrs.ZarrsCodecPipeline"}
        readers = [
            Arm(f"{name}, diffssl's store", arms[0].write, partial(read_zarr, pipeline, key))
            for name, pipeline in pipelines.items()
        ]
        paths = {arm.name: folder / f"{pool}-{number}.npy" for number, arm in enumerate(arms)}
        for arm in arms:
            arm.write(paths[arm.name], values[: arm.rows])
            assert np.array_equal(arm.read(paths[arm.name]), values[: arm.rows])
        paths |= {arm.name: paths[arms[0].name] for arm in readers}
        unique = [arm for arm in arms + readers if "synced" not in arm.name or arm is arms[0]]
        read = seconds_in_turn(repeats, **{arm.name: partial(arm.read, paths[arm.name]) for arm in unique})
        # Apart from reading, which would else wait for what the disk still has to write.
        with tempfile.TemporaryDirectory(dir=folder) as other:
            write = seconds_in_turn(repeats, **{arm.name: partial(rewrite, arm, Path(other), values) for arm in arms})
        for arm in arms + readers:
            columns = "".join(speed(times, arm, arms[0], values) for times in (read, write))
            print(f"{pool:>4}{chunk:>12}  {arm.name:<23}{columns}", flush=True)


def rewrite(arm: Arm, folder: Path, values: NDArray[Any]) -> None:
    """Write to a new place, which stays until all is measured: deleting is not what is timed."""
    arm.write(folder / f"{uuid.uuid4().hex}.npy", values[: arm.rows])


def speed(times: Mapping[str, list[float]], arm: Arm, first: Arm, values: NDArray[Any]) -> str:
    """Columns of MB/s, and of the median over rounds of the ratio of seconds a byte to those of the first arm."""
    if arm.name not in times:
        return f"{'':>8}{'':>8}"
    share = len(values[: arm.rows]) / len(values)
    ratio = median(a / b for a, b in zip(times[arm.name], times[first.name], strict=True)) / share
    return f"{share * values.nbytes / 1e6 / median(times[arm.name]):>8.4g}{ratio:>8.3g}"


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
        against_others(Path(name), options.megabytes, options.repeats)
        sizes(Path(name), options.megabytes, options.repeats)
        codecs(Path(name))
