"""Listing a folder and a tar of as many images as ImageNet-1k, from the disk and as it was kept; the second run of a command.

    python benchmarks/again.py [--files 200000] [--rows 1281167]

The images are empty files, and the store's numbers are no features: nothing here decodes or computes. Times are of fresh
processes, those of the second run of the whole command with imports; files are in the page cache.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tarfile
import tempfile
import time
from pathlib import Path

import numpy as np
from diffssl.extract import ExtractSpec
from diffssl.extract.job import prepare
from diffssl.extract.plan import keys_of
from diffssl.store import UnitWriter, add_arrays, add_split, create

OPTIONS = ["--blocks", "1", "--timesteps", "10,90"]
LIST = """
import sys, time
from diffssl.extract.sources import load_data
started = time.perf_counter()
load_data(sys.argv[1:2], relist=len(sys.argv) > 2)
print(time.perf_counter() - started)
"""
EXTRACT = "import sys; from diffssl.extract.cli import main; main()"
LONG_AGO = 1_600_000_000


def names(rows: int) -> list[str]:
    return [f"n{i % 1000:08d}/n{i % 1000:08d}_{i}.JPEG" for i in range(rows)]


def make_folder(path: Path, rows: int) -> Path:
    for name in names(min(rows, 1000)):
        (path / name).parent.mkdir(parents=True)
    for name in names(rows):
        os.close(os.open(path / name, os.O_CREAT | os.O_WRONLY))
    for folder in (path, *path.iterdir()):
        os.utime(folder, (LONG_AGO, LONG_AGO))
    return path


def make_tar(path: Path, rows: int) -> Path:
    with path.open("wb") as file:
        for name in names(rows):
            file.write(tarfile.TarInfo(name).tobuf(tarfile.USTAR_FORMAT))
        file.write(bytes(2 * 512))
    os.utime(path, (LONG_AGO, LONG_AGO))
    return path


def make_store(path: Path, data: Path) -> None:
    """The store of a command, complete, with zeros for features."""
    spec = ExtractSpec(blocks={1: set()}, timesteps=[10, 90], data=(str(data),), store=path, device="cpu")
    job = prepare(spec)
    store = create(path, job.header)
    for name, split in job.data.splits.items():
        keys = keys_of(name, job.keys)
        add_split(store, name, split.ids, split.labels)
        add_arrays(store, name, keys, {key: {} for key in keys})
        size = store.header.row_block
        for block in range(-(-len(split.ids) // size)):
            ids = split.ids[block * size : (block + 1) * size].tolist()
            for key in keys:
                writer = UnitWriter(store, name, block, [key], ids)
                writer.write({key: np.zeros((len(ids), *store.layout(key, name).row_shape), store.header.dtype)}, {})
                writer.commit(None, None, {})


def listed(data: Path, *more: str) -> float:
    program = [sys.executable, "-c", LIST, str(data), *more]
    return float(subprocess.run(program, check=True, capture_output=True, text=True).stdout)


def extracted(data: Path, store: Path) -> tuple[float, str]:
    """Seconds of the whole command, and its last line."""
    command = [sys.executable, "-c", EXTRACT, *OPTIONS, "--data", str(data), "--store", str(store), "--device", "cpu"]
    started = time.perf_counter()
    run = subprocess.run(command, check=True, capture_output=True, text=True)
    return time.perf_counter() - started, run.stdout.splitlines()[-1]


def main(files: int, rows: int) -> None:
    with tempfile.TemporaryDirectory() as place:
        root = Path(place)
        os.environ["DIFFSSL_CACHE"] = str(root / "cache")
        for kind, data in (
            (f"folder of {files}", make_folder(root / "images", files)),
            (f"tar of {rows}", make_tar(root / "images.tar", rows)),
        ):
            cold = min(listed(data, "relist") for _ in range(2))
            kept = min(listed(data) for _ in range(3))
            print(f"{kind:<20} listed in {cold:6.2f} s, kept listing read in {kept:5.2f} s ({cold / kept:.1f} times as fast)")
        store = root / "feats.zarr"
        make_store(store, root / "images.tar")
        for _ in range(3):
            seconds, line = extracted(root / "images.tar", store)
            print(f"second run           {seconds:6.2f} s: {line}", flush=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--files", type=int, default=200_000)
    parser.add_argument("--rows", type=int, default=1_281_167)
    options = parser.parse_args()
    main(options.files, options.rows)
