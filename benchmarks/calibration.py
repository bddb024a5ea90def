"""Calibration: on shuffled labels, how often the interval of the best of many settings contains chance.

    OMP_NUM_THREADS=1 python benchmarks/calibration.py [--head ridge] [--settings 100] [--repeats 200]

A store of random features has many settings and balanced classes. Each repeat shuffles the labels of each split, makes the
protocol's roles, and fits, chooses and fits again on every setting as ``diffssl-probe`` does. The setting that is best by its
held-out score is reported, with the 95 % interval of its test accuracy; nothing can be learnt, so the interval should
contain 1 / classes in 95 % of the repeats. Beside it, the same of the setting that is best by its test accuracy, which is
what a table that is sorted by it would report.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from diffssl.probe import classification_metrics, hits, make_protocol
from diffssl.probe.data import ProbeData
from diffssl.probe.fit import Fit, Material
from diffssl.probe.fit_numpy import FITTERS
from diffssl.probe.presets import load_preset
from diffssl.probe.targets import Targets
from diffssl.store import Block, FeatureKey, FeatureStore, Identity, StoreHeader, UnitWriter, add_arrays, add_split, create

CLASSES, CHANNELS = 10, 16
ROWS = {"train": 500, "test": 500}
CPU = torch.device("cpu")


def make_store(path: Path, keys: list[FeatureKey]) -> FeatureStore:
    blocks = [Block(key.block, "Res", CHANNELS, 1, 1.0, 1.0) for key in keys]
    names = [str(i) for i in range(CLASSES)]
    store = create(path, StoreHeader(Identity({"what": "noise"}), names, 512, 64, "float16", "contiguous", blocks, "none"))
    rng = np.random.default_rng(0)
    for split, n in ROWS.items():
        ids = [f"{split}{i:04d}" for i in range(n)]
        add_split(store, split, np.array(ids, dtype=object), np.arange(n, dtype=np.int32) % CLASSES)
        add_arrays(store, split, keys, {key: {} for key in keys})
        values = {key: rng.standard_normal((n, CHANNELS, 1, 1)).astype(np.float16) for key in keys}
        writer = UnitWriter(store, split, 0, keys, ids)
        writer.write(values, {})
        writer.commit(None, None, {})
    return FeatureStore.open(path)


def shuffled(store: FeatureStore, rng: np.random.Generator) -> Targets:
    return Targets("classify", store.classes, {split: rng.permutation(store.labels(split)).astype(np.int64) for split in ROWS})


def repeat(store: FeatureStore, data: list[ProbeData], head: str, rng: np.random.Generator) -> dict[str, bool]:
    """Whether the interval of the setting that is best by each score contains chance."""
    targets = shuffled(store, rng)
    protocol = make_protocol(store, {split: [own.keys[0] for own in data] for split in ROWS}, targets, None)
    fits: list[Fit] = []
    for own in data:
        own.targets = targets
        material = Material(own, own, own.moments(protocol.moments), protocol, 1, True)
        fits.append(FITTERS[head](material, load_preset("default").options(head), CPU))
    by_score = {
        "val": [fit.chosen["val_top1"] for fit in fits],
        "test": [hits(fit.scores[0], fit.labels, 1).mean() for fit in fits],
    }
    contained = {}
    for name, scores in by_score.items():
        best = fits[int(np.argmax(scores))]
        found = classification_metrics(best.scores[0], best.labels, rng)
        contained[name] = bool(found["top1_low"] <= 1 / CLASSES <= found["top1_high"])
    return contained


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--head", choices=sorted(FITTERS), default="ridge")
    parser.add_argument("--settings", type=int, default=100)
    parser.add_argument("--repeats", type=int, default=200)
    options = parser.parse_args()
    torch.set_num_threads(1)
    keys = [FeatureKey(block, 10, 1) for block in range(1, options.settings + 1)]
    started, rng = time.perf_counter(), np.random.default_rng(1)
    with tempfile.TemporaryDirectory() as name:
        store = make_store(Path(name) / "x.zarr", keys)
        data = [ProbeData(store, [key], Targets("classify", store.classes, {})) for key in keys]
        found = []
        for done in range(1, options.repeats + 1):
            found.append(repeat(store, data, options.head, rng))
            if done in (1, 10) or done % 50 == 0:
                parts = {which: sum(one[which] for one in found) for which in ("val", "test")}
                shown = ", ".join(f"best by {which} {n} ({100 * n / done:.1f} %)" for which, n in parts.items())
                print(
                    f"{done} repeats, {time.perf_counter() - started:.0f} s: chance is in the interval of the {shown}",
                    flush=True,
                )


if __name__ == "__main__":
    main()
