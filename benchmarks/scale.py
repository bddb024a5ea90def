"""A store of as many rows as ImageNet-1k: time and memory to open it, to see its status, to verify and to stream it.

    python benchmarks/scale.py [--rows 10000,100000,1281167] [--workers 4]

Each store is written by that many processes at once, each making its own row blocks, as parts of an extraction do;
the numbers in it are not features. Times are of whole commands in fresh processes; files are in the page cache.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
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
    row_order,
)
from diffssl.store.layout import default_row_block

CHANNELS = 64
KEYS = [FeatureKey(1, timestep, 1) for timestep in (10, 50, 90)]
ACTIONS = {
    "open": "len(FeatureStore.open(path).keys('all'))",
    "status": "progress_table(FeatureStore.open(path))",
    "verify": "[print(damage) for damage in verify(FeatureStore.open(path))]",
    "stream": "store = FeatureStore.open(path); [None for _ in store.stream(store.keys('all'), 'all')]",
}
PROGRAM = """
import sys, time
from pathlib import Path
started = time.perf_counter()
from diffssl.store import FeatureStore
from diffssl.store.describe import progress_table
from diffssl.store.verify import verify
path = sys.argv[1]
imported = time.perf_counter()
{action}
seconds = time.perf_counter() - imported
peak = next(int(line.split()[1]) for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
print(seconds, peak / 1024)
"""


def make_store(path: Path, rows: int) -> FeatureStore:
    block = Block(1, "Res", CHANNELS, 1, 1.0, 1.0)
    identity = Identity({"what": "benchmark"})
    header = StoreHeader(identity, [], default_row_block(rows), 64, "float16", "contiguous", [block], "none")
    store = create(path, header)
    names = [f"n{i % 1000:08d}/n{i % 1000:08d}_{i}.JPEG" for i in range(rows)]
    ids = np.array([names[i] for i in row_order(names)], dtype=object)
    add_split(store, "all", ids, np.full(rows, -1, dtype=np.int32))
    add_arrays(store, "all", KEYS, {key: {} for key in KEYS})
    return store


def write_part(path: str, part: int, parts: int) -> None:
    store = FeatureStore.open(path)
    rng = np.random.default_rng(part)
    size = store.header.row_block
    values = rng.standard_normal((size, CHANNELS, 1, 1), dtype=np.float32).astype(np.float16)
    n_rows = store.n_rows("all")
    for block in range(part, -(-n_rows // size), parts):
        n = min(size, n_rows - block * size)
        for key in KEYS:
            writer = UnitWriter(store, "all", block, [key], [""] * n)
            writer.write({key: values[:n]}, {})
            writer.commit(None, None, {})


def measure(path: Path, action: str) -> tuple[float, float]:
    """Seconds without imports, and peak resident megabytes with them."""
    program = [sys.executable, "-c", PROGRAM.format(action=action), str(path)]
    seconds, peak = subprocess.run(program, check=True, capture_output=True, text=True).stdout.split()
    return float(seconds), float(peak)


def main(sizes: list[int], workers: int) -> None:
    print(f"stores of {len(KEYS)} settings of {CHANNELS} channels, written by {workers} processes at once")
    print("rows       row blocks  write s  " + "  ".join(f"{name + ' s':>8}{'MiB':>6}" for name in ACTIONS), flush=True)
    with tempfile.TemporaryDirectory() as folder:
        for rows in sizes:
            path = Path(folder) / f"{rows}.zarr"
            started = time.perf_counter()
            store = make_store(path, rows)
            command = [sys.executable, __file__, "--write", str(path), str(workers)]
            processes = [subprocess.Popen([*command, str(part)]) for part in range(workers)]
            assert [process.wait() for process in processes] == [0] * workers
            written = time.perf_counter() - started
            found = [measure(path, action) for action in ACTIONS.values()]
            blocks = -(-rows // store.header.row_block)
            numbers = "  ".join(f"{seconds:>8.2f}{peak:>6.0f}" for seconds, peak in found)
            print(f"{rows:<11}{blocks:>10}{written:>9.1f}  {numbers}", flush=True)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--write"]:
        write_part(sys.argv[2], int(sys.argv[4]), int(sys.argv[3]))
    else:
        parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
        parser.add_argument("--rows", default="10000,100000,1281167")
        parser.add_argument("--workers", type=int, default=4)
        options = parser.parse_args()
        main([int(rows) for rows in options.rows.split(",")], options.workers)
