"""Probing: many fits in one pass, the path of C, reading from a store, attention heads, memory over rows.

    python benchmarks/probing.py [--rows 8000] [--repeats 3]

Features are synthetic, of 10 classes; every ratio is of medians of runs in turn.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median

import numpy as np
import torch
from diffssl.probe.attention import AttentionHead, Block
from diffssl.probe.data import Batches, Moments, ProbeData
from diffssl.probe.heads import build_head
from diffssl.probe.logistic import fit_path
from diffssl.probe.logreg import fit_regression
from diffssl.probe.presets import load_preset
from diffssl.probe.targets import Targets, store_targets
from diffssl.probe.train import Recipe, Trainer, Trial, train_together
from diffssl.store import Block as StoredBlock
from diffssl.store import (
    FeatureKey,
    FeatureStore,
    Identity,
    StoreHeader,
    UnitWriter,
    add_arrays,
    add_split,
    create,
)
from torch import Tensor

CLASSES = 10
KEY = FeatureKey(1, 10, 1)
CPU = torch.device("cpu")
RATES = np.logspace(-3, 0, 13).tolist()
DECAYS = (0.0, 0.01, 0.1, 1.0)


def make_store(path: Path, rows: int, channels: int, row_block: int = 1024) -> FeatureStore:
    block = StoredBlock(1, "Res", channels, 1, 1.0, 1.0)
    names = [str(i) for i in range(CLASSES)]
    header = StoreHeader(Identity({"what": "benchmark"}), names, row_block, 64, "float16", "contiguous", [block], "none")
    store = create(path, header)
    rng = np.random.default_rng(0)
    labels = rng.integers(CLASSES, size=rows).astype(np.int32)
    means = rng.standard_normal((CLASSES, channels)) * 0.2
    add_split(store, "train", np.array([f"{i:08d}" for i in range(rows)], dtype=object), labels)
    add_arrays(store, "train", [KEY], {KEY: {}})
    for number in range(-(-rows // row_block)):
        own = labels[number * row_block : (number + 1) * row_block]
        values = means[own] + rng.standard_normal((len(own), channels))
        start = number * row_block
        writer = UnitWriter(store, "train", number, [KEY], [f"{i:08d}" for i in range(start, start + len(own))])
        writer.write({KEY: values.astype(np.float16).reshape(-1, channels, 1, 1)}, {})
        writer.commit(None, None, {})
    return FeatureStore.open(path)


def in_turn(repeats: int, **actions: Callable[[], object]) -> dict[str, float]:
    """Median seconds of each action, all in turn."""
    seconds: dict[str, list[float]] = {name: [] for name in actions}
    for _ in range(repeats):
        for name, action in actions.items():
            started = time.perf_counter()
            action()
            seconds[name].append(time.perf_counter() - started)
    return {name: median(values) for name, values in seconds.items()}


def many_fits(data: ProbeData, rows: dict[str, np.ndarray], moments: Moments, repeats: int) -> None:
    options = load_preset("default").options("linear") | {"steps": 300}
    trials = [Trial(rate, decay) for decay in DECAYS for rate in RATES]

    def fit(own: list[Trial]) -> None:
        head = build_head("linear", data.shapes, 1, CLASSES, len(own), options, 0)
        trainer = Trainer(head, own, Recipe.of(options, len(rows["train"])), "classify", 0)
        train_together([trainer], data, rows, moments, 0, CPU)

    def one_after_the_other() -> None:
        for trial in trials:
            fit([trial])

    seconds = in_turn(
        repeats,
        one=lambda: fit(trials[:1]),
        together=lambda: fit(trials),
        in_turn=one_after_the_other,
    )
    print(f"\n{len(trials)} linear fits, {data.dimension} features, 300 steps")
    print(f"  one fit {seconds['one']:.2f} s; all in one pass {seconds['together'] / seconds['one']:.2f} of that; ", end="")
    print(f"one after the other / in one pass {seconds['in_turn'] / seconds['together']:.1f}")
    marginal = (seconds["together"] - seconds["one"]) / (len(trials) - 1) / seconds["one"]
    print(f"  one more fit costs {marginal:.3f} of the first")


def path_of_c(data: ProbeData, rows: dict[str, np.ndarray], moments: Moments, repeats: int) -> None:
    grid = load_preset("default").options("logreg")["C"]
    features, labels = data.load(rows, moments)

    def refit() -> None:
        for c in grid:
            fit_regression(features, labels, c)

    def path() -> None:
        fit_path(lambda: data.in_order(rows, moments), CLASSES, grid)

    seconds = in_turn(repeats, scikit=refit, path=path)
    print(f"\nlogistic regression, {len(grid)} values of C, {len(labels)} x {data.dimension}")
    print(f"  scikit-learn, each from zero {seconds['scikit']:.1f} s; streamed path {seconds['path']:.1f} s; ", end="")
    print(f"ratio {seconds['scikit'] / seconds['path']:.2f}")


def reading(store: FeatureStore, targets: Targets, rows: dict[str, np.ndarray], folder: Path, repeats: int) -> None:
    """An epoch of shuffled batches from the store, checked, against a memory-mapped .npy, unchecked."""
    values, _ = store.xy(KEY, "train")
    np.save(folder / "x.npy", values.astype(np.float16))
    n = len(rows["train"])

    def from_store() -> None:
        data = ProbeData(store, [KEY], targets, memory=0)
        batches = Batches(256, np.random.default_rng(0))
        seen = 0
        for buffer in data.buffers(rows, Moments.none(data.dimension), np.random.default_rng(0), CPU):
            seen += sum(len(batch) for batch, _ in batches.cut(buffer))
            if seen >= n - 256:
                break

    def from_npy() -> None:
        array = np.load(folder / "x.npy", mmap_mode="r")
        order = np.random.default_rng(0).permutation(n)
        for start in range(0, n, 256):
            torch.from_numpy(array[order[start : start + 256]].astype(np.float32))

    seconds = in_turn(repeats, store=from_store, npy=from_npy)
    print(f"\nan epoch of shuffled batches of 256, {n} x {values.shape[1]}, float16, files in the page cache")
    print(f"  store {values.nbytes / 2e6 / seconds['store']:.0f} MB/s, ", end="")
    print(f".npy {values.nbytes / 2e6 / seconds['npy']:.0f} MB/s; ratio {seconds['npy'] / seconds['store']:.2f}")


class WrittenOutBlock(Block):
    """The papers' formulation: the matrix of attention is written out."""

    def forward(self, tokens: Tensor) -> Tensor:
        n, length, width = tokens.shape
        qkv = self.qkv(self.norm1(tokens)).reshape(n, length, 3, self.heads, width // self.heads).permute(2, 0, 3, 1, 4)
        q, k, v = qkv.unbind(0)
        weights = ((q @ k.transpose(-2, -1)) * (width // self.heads) ** -0.5).softmax(dim=-1)
        tokens = tokens + self.proj((weights @ v).transpose(1, 2).reshape(n, length, width))
        return torch.as_tensor(tokens + self.mlp(self.norm2(tokens)))


def attention(repeats: int) -> None:
    torch.manual_seed(0)
    ours = AttentionHead((256, 8, 8), CLASSES, width=256, depth=2)
    theirs = AttentionHead((256, 8, 8), CLASSES, width=256, depth=2)
    theirs.load_state_dict(ours.state_dict())
    for block in theirs.transformer.blocks:
        block.__class__ = WrittenOutBlock
    x, y = torch.randn(64, 256, 8, 8), torch.randint(CLASSES, (64,))
    torch.testing.assert_close(ours([x]), theirs([x]), rtol=1e-4, atol=1e-4)

    def steps(head: AttentionHead) -> None:
        for _ in range(5):
            torch.nn.functional.cross_entropy(head([x]), y).backward()  # type: ignore[no-untyped-call]

    seconds = in_turn(repeats, ours=lambda: steps(ours), theirs=lambda: steps(theirs))
    print("\nattention head of width 256, 2 blocks, 64 tokens, batches of 64, forward and backward")
    print(f"  {5 / seconds['ours']:.2f} steps/s; written-out attention / ours {seconds['theirs'] / seconds['ours']:.2f}")


def memory(folder: Path) -> None:
    """Peak memory of a fresh process that fits a linear head without keeping features."""
    print("\npeak memory of fitting a linear head, 256 features, nothing kept")
    for rows in (20_000, 200_000):
        make_store(folder / f"{rows}.zarr", rows, 256)
        out = subprocess.run(
            [sys.executable, __file__, "--peak", str(folder / f"{rows}.zarr")], capture_output=True, check=True
        )
        print(f"  {rows:>7} rows ({rows * 512 / 1e6:.0f} MB): {out.stdout.decode().strip()} MiB")


def peak(path: str) -> None:
    store = FeatureStore.open(path)
    data = ProbeData(store, [KEY], store_targets(store, ["train"]), memory=0)
    rows = {"train": np.arange(store.n_rows("train"))}
    options = load_preset("default").options("linear") | {"steps": 2 * len(rows["train"]) // 256}
    head = build_head("linear", data.shapes, 1, CLASSES, 1, options, 0)
    trainer = Trainer(head, [Trial(0.1, 0.0)], Recipe.of(options, len(rows["train"])), "classify", 0)
    train_together([trainer], data, rows, data.moments(rows), 0, CPU)
    status = Path("/proc/self/status").read_text()
    print(int(status.split("VmHWM:")[1].split()[0]) // 1024)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=8000)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--peak", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.peak:
        peak(options.peak)
        return
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        store = make_store(folder / "x.zarr", options.rows, 512)
        targets = store_targets(store, ["train"])
        data = ProbeData(store, [KEY], targets)
        rows = {"train": np.arange(options.rows)}
        moments = data.moments(rows)
        many_fits(data, rows, moments, options.repeats)
        path_of_c(data, rows, moments, options.repeats)
        reading(store, targets, rows, folder, options.repeats)
        attention(options.repeats)
        memory(folder)


if __name__ == "__main__":
    main()
