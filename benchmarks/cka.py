"""CKA of all pairs of many settings in bounded memory, against a plain loop over pairs.

    OMP_NUM_THREADS=1 python benchmarks/cka.py [--settings 100] [--rows 10000] [--width 512] [--held 1024]

A store of random features that share something is written to a temporary folder (2 bytes a number). diffssl streams
from it, in a fresh process whose peak memory is VmHWM. The plain loop is the usual formula ||X'Y||^2 / (||X'X|| ||Y'Y||)
on centred float64 features that are in memory already, each ||X'X|| computed once: it has no reading to do and no
intervals to make. It is timed on a sample of pairs, half of them before diffssl and half after, and multiplied up. Seconds
are of the processor, so that other jobs on the machine count little; values of the sampled pairs are compared.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import fmean

import numpy as np
from diffssl.store import Block, FeatureKey, FeatureStore, Identity, StoreHeader, UnitWriter, add_arrays, add_split, create
from diffssl.store.layout import default_row_block
from numpy.typing import NDArray

STEPS = 10  # timesteps of a block
PROGRAM = """
import sys, time
from pathlib import Path
import numpy as np
from diffssl.analysis.similarity import similarity
from diffssl.analysis.stored_rows import select
from diffssl.store import FeatureStore
from diffssl.store.choice import Choice
started, processor = time.perf_counter(), time.process_time()
selected = select([FeatureStore.open(sys.argv[1])], [Choice()], None, None)
found = similarity(selected, "biased", int(sys.argv[3]) << 20)
np.save(sys.argv[2], found.value)
peak = Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0]
print(time.process_time() - processor, time.perf_counter() - started, int(peak) / 1024)
"""


def key_of(number: int) -> FeatureKey:
    return FeatureKey(1 + number // STEPS, 10 * (number % STEPS), 1)


def make_store(path: Path, settings: int, rows: int, width: int) -> FeatureStore:
    blocks = [Block(number, "Res", width, 1, 1.0, 1.0) for number in range(1, -(-settings // STEPS) + 1)]
    header = StoreHeader(
        Identity({"what": "benchmark"}), [], default_row_block(rows), 64, "float16", "contiguous", blocks, "none"
    )
    store = create(path, header)
    add_split(store, "all", np.array([f"{i:08d}" for i in range(rows)], dtype=object), np.full(rows, -1, dtype=np.int32))
    keys = [key_of(number) for number in range(settings)]
    add_arrays(store, "all", keys, {key: {} for key in keys})
    rng = np.random.default_rng(0)
    mixing = rng.standard_normal((settings, 32, width), dtype=np.float32)
    size = header.row_block
    for block in range(-(-rows // size)):
        n = min(size, rows - block * size)
        hidden = rng.standard_normal((n, 32), dtype=np.float32)
        noise = rng.standard_normal((n, width), dtype=np.float32)
        for step in range(min(STEPS, settings)):
            own = range(step, settings, STEPS)
            writer = UnitWriter(store, "all", block, [keys[i] for i in own], [""] * n)
            writer.write({keys[i]: (hidden @ mixing[i] + 3 * noise).astype(np.float16)[:, :, None, None] for i in own}, {})
            writer.commit(None, None, {})
    return FeatureStore.open(path)


def centred(store: FeatureStore, number: int) -> NDArray[np.float64]:
    x = store.read(key_of(number), "all").reshape(store.n_rows("all"), -1).astype(np.float64)
    return np.asarray(x - x.mean(axis=0))


def plain(store: FeatureStore, pairs: list[tuple[int, int]]) -> tuple[list[float], list[float], list[float]]:
    """Seconds of X'Y of each pair, seconds of X'X, and CKA of each pair."""
    crossed, own, values = [], [], []
    for a, b in pairs:
        x, y = centred(store, a), centred(store, b)
        started = time.process_time()
        norms = np.linalg.norm(x.T @ x) * np.linalg.norm(y.T @ y)
        between = time.process_time()
        values.append(float(np.linalg.norm(x.T @ y) ** 2 / norms))
        crossed.append(time.process_time() - between)
        own.append((between - started) / 2)
    return crossed, own, values


def main(settings: int, rows: int, width: int, sample: int, held: int) -> None:
    rng = np.random.default_rng(1)
    all_pairs = [(a, b) for a in range(settings) for b in range(a + 1, settings)]
    pairs = [all_pairs[i] for i in rng.choice(len(all_pairs), min(sample, len(all_pairs)), replace=False)]
    with tempfile.TemporaryDirectory() as folder:
        path, result = Path(folder) / "feats.zarr", Path(folder) / "cka.npy"
        store = make_store(path, settings, rows, width)
        plain(store, pairs[:1])
        before = plain(store, pairs[: len(pairs) // 2])
        program = [sys.executable, "-c", PROGRAM, str(path), str(result), str(held)]
        processor, wall, peak = map(
            float, subprocess.run(program, check=True, stdout=subprocess.PIPE, text=True).stdout.split()
        )
        after = plain(store, pairs[len(pairs) // 2 :])
        crossed, own, values = (one + other for one, other in zip(before, after, strict=True))
        found = np.load(result)
    loop = fmean(crossed) * len(all_pairs) + fmean(own) * settings
    difference = max(abs(found[pair] - value) for pair, value in zip(pairs, values, strict=True))
    print(
        f"{settings} settings x {rows} rows x {width} numbers, {2e-6 * settings * rows * width:.0f} MB: {len(all_pairs)} pairs"
    )
    print(f"diffssl     {processor:8.1f} s of the processor, {wall:.1f} s by the clock, peak {peak:.0f} MiB, with intervals")
    alone = 8e-6 * settings * rows * width
    print(f"plain loop  {loop:8.1f} s of the processor, from {len(pairs)} pairs; its features alone {alone:.0f} MB")
    print(f"plain loop / diffssl {loop / processor:.2f}; largest difference of the sampled pairs {difference:.1e}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--settings", type=int, default=100)
    parser.add_argument("--rows", type=int, default=10_000)
    parser.add_argument("--width", type=int, default=512, help="numbers a row of one setting")
    parser.add_argument("--pairs", type=int, default=24, help="that the plain loop is timed on")
    parser.add_argument(
        "--held", type=int, default=1024, help="MiB of features that diffssl may keep; 0: all are read for every tile"
    )
    options = parser.parse_args()
    main(options.settings, options.rows, options.width, options.pairs, options.held)
