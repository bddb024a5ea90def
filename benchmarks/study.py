"""A study of a grid as the papers' code does it, against extracting once and probing from the store.

    python benchmarks/study.py --data /data/cifar10 [--images 320] [--epochs 28]

The reference arm is one run a setting: in every epoch every image is decoded, noised anew and passed through all blocks
of the U-Net (guided_diffusion's own modules), and the pooled features of one block are used once, by a linear head (SGD,
its rate times 0.1 every 7 epochs, a test every 7 epochs). Their rate of 1e-2 is for the 280,000 steps of ImageNet; a
hundred steps want a larger one. The other arm is ``extract`` of all settings, and the same head with the same start,
order and recipe trained from the store. Both have the same images and threads, and list and load for themselves. Beside
them: diffssl's own ``linear`` by its protocol. Each reference run is followed by a whole run of the other arm, into a
store of its own, so that a drifting machine hits both alike.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median

import numpy as np
import torch
import torch.nn.functional as F
from diffssl.extract import ExtractSpec, extract
from diffssl.extract.adm import ADM, build_unet
from diffssl.extract.images import decode
from diffssl.extract.sources import DataSet, load_data
from diffssl.extract.weights import load_state, read_state
from diffssl.extract.zoo import find_model
from diffssl.probe import ProbeSpec
from diffssl.probe.metrics import classification_metrics, hits
from diffssl.probe.study import probe
from diffssl.store import FeatureKey, FeatureStore
from numpy.typing import NDArray
from torch import Tensor, nn

BATCH = 32
TEST_EVERY = 7  # epochs; the learning rate falls as often
RESAMPLES = 2000
SPLITS = ("train", "test")

Features = Callable[[str, NDArray[np.int64]], Tensor]  # (split, rows) -> (n, dimension)


@dataclass(frozen=True)
class Study:
    """What both arms have in common."""

    data: str
    images: int
    blocks: list[int]
    timesteps: list[int]
    pool: int
    epochs: int
    rate: float


class Reference:
    """One run of the papers' code: the features of one setting, by a full forward pass each time they are asked for."""

    def __init__(self, data: DataSet, key: FeatureKey) -> None:
        source = find_model(None, None, None)
        self._model = build_unet(source.config)
        load_state(source.weights, self._model, read_state(source.weights))
        self._model.requires_grad_(False).eval()
        self._adm = ADM(self._model, source.config)  # of which the schedule is used
        self._data, self._key = data, key
        self._noise = torch.Generator().manual_seed(0)
        self._kept: Tensor | None = None
        modules = [*self._model.input_blocks, self._model.middle_block, *self._model.output_blocks]
        modules[key.block - 1].register_forward_hook(self._keep)

    def _keep(self, _module: nn.Module, _inputs: object, output: Tensor) -> None:
        self._kept = output

    @torch.no_grad()
    def __call__(self, split: str, rows: NDArray[np.int64]) -> Tensor:
        data = self._data.splits[split]
        pixels = np.stack([decode(data.read(row), self._adm.image_size) for row in rows])
        x_0 = torch.from_numpy(pixels).permute(0, 3, 1, 2).float() / 127.5 - 1
        timestep = self._key.timestep or 0
        x_t = self._adm.diffuse(x_0, torch.randn(x_0.shape, generator=self._noise), timestep)
        self._model(x_t, torch.full((len(rows),), timestep))
        assert self._kept is not None
        return F.adaptive_avg_pool2d(self._kept, int(self._key.pool)).flatten(1)


def train_head(
    features: Features, labels: dict[str, Tensor], classes: int, dimension: int, study: Study
) -> NDArray[np.float32]:
    """Train a linear head by the papers' recipe; return its (n, classes) scores of the test split after the last epoch."""
    generator = torch.Generator().manual_seed(0)
    head = nn.Linear(dimension, classes)
    for parameter in head.parameters():
        nn.init.uniform_(parameter, -(dimension**-0.5), dimension**-0.5, generator=generator)
    optimiser = torch.optim.SGD(head.parameters(), lr=study.rate)
    schedule = torch.optim.lr_scheduler.StepLR(optimiser, TEST_EVERY, 0.1)
    for epoch in range(1, study.epochs + 1):
        for rows in batches(torch.randperm(len(labels["train"]), generator=generator).numpy()):
            loss = F.cross_entropy(head(features("train", rows)), labels["train"][torch.from_numpy(rows)])
            optimiser.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimiser.step()
        schedule.step()
        if epoch % TEST_EVERY == 0 or epoch == study.epochs:
            with torch.no_grad():
                scores = [head(features("test", rows)) for rows in batches(np.arange(len(labels["test"])))]
    return np.asarray(torch.cat(scores).numpy())


def batches(rows: NDArray[np.int64]) -> Iterator[NDArray[np.int64]]:
    return (rows[start : start + BATCH] for start in range(0, len(rows), BATCH))


def offline(study: Study, path: Path) -> tuple[FeatureStore, dict[FeatureKey, NDArray[np.float32]]]:
    """Extract the grid, then train the same head on every setting from the store."""
    grid: dict[int, set[int | str]] = {block: {study.pool} for block in study.blocks}
    spec = ExtractSpec(grid, study.timesteps, data=(study.data,), store=path, limit=study.images)
    store = extract(spec, lambda _: None)
    scores = {}
    for key in store.keys("train"):
        tables, labels = {}, {}
        for split in SPLITS:
            x, y = store.xy(key, split)
            tables[split], labels[split] = torch.from_numpy(x), torch.from_numpy(y)

        def features(split: str, rows: NDArray[np.int64], tables: dict[str, Tensor] = tables) -> Tensor:
            return tables[split][torch.from_numpy(rows)]

        scores[key] = train_head(features, labels, len(store.classes), tables["train"].shape[1], study)
    return store, scores


def accuracy(scores: NDArray[np.float32], labels: NDArray[np.int64]) -> str:
    found = classification_metrics(scores, labels, np.random.default_rng(0))
    return f"{100 * found['top1']:.1f} [{100 * found['top1_low']:.1f}, {100 * found['top1_high']:.1f}]"


def difference(
    ours: dict[FeatureKey, NDArray[np.float32]], theirs: dict[FeatureKey, NDArray[np.float32]], labels: NDArray[np.int64]
) -> str:
    """Mean over settings of the difference of accuracies, in points, with a paired bootstrap over test images."""
    right = [np.mean([hits(scores, labels, 1) for scores in arm.values()], axis=0) for arm in (ours, theirs)]
    values = right[0] - right[1]
    rng = np.random.default_rng(0)
    means = [values[rng.integers(len(values), size=len(values))].mean() for _ in range(RESAMPLES)]
    low, high = np.quantile(means, [0.025, 0.975])
    return f"{100 * values.mean():+.1f} [{100 * low:+.1f}, {100 * high:+.1f}]"


def reference(study: Study, key: FeatureKey) -> NDArray[np.float32]:
    """One run of the papers' code."""
    data = load_data((study.data,))
    labels = {split: torch.from_numpy(data.splits[split].labels[: study.images]).long() for split in SPLITS}
    features = Reference(data, key)
    dimension = features("test", np.arange(1)).shape[1]
    return train_head(features, labels, len(data.classes), dimension, study)


def main(study: Study, folder: Path) -> None:
    store, _ = offline(replace(study, images=32, epochs=1), folder / "warm.zarr")
    pools = {block: store.header.blocks[block - 1].pool(study.pool) for block in study.blocks}
    keys = [FeatureKey(block, timestep, pools[block]) for block in study.blocks for timestep in study.timesteps]
    theirs: dict[FeatureKey, NDArray[np.float32]] = {}
    seconds, others = [], []
    for number, key in enumerate(keys):
        started = time.perf_counter()
        theirs[key] = reference(study, key)
        middle = time.perf_counter()
        store, ours = offline(study, folder / f"{number}.zarr")
        seconds.append(middle - started)
        others.append(time.perf_counter() - middle)
        print(f"  reference, {key}: {seconds[-1]:.1f} s; all of diffssl: {others[-1]:.1f} s", flush=True)
    started = time.perf_counter()
    results = probe(ProbeSpec(store.path, ["linear"]), lambda _: None)
    probed = time.perf_counter() - started
    tests = len(range(TEST_EVERY, study.epochs, TEST_EVERY)) + 1
    full = len(keys) * study.images * (study.epochs + tests)
    print(
        f"{study.images} training and as many test images, {study.epochs} epochs, {torch.get_num_threads()} threads: "
        f"{full} full passes against {2 * study.images * len(study.timesteps)} to block {max(study.blocks)} "
        f"({store.header.blocks[max(study.blocks) - 1].share:.1%} of a full one)"
    )
    print("| block | timestep | pool | reference [95 %] | same head from the store [95 %] | diffssl's linear [95 %] |")
    print("| --- | --- | --- | --- | --- | --- |")
    y = store.labels("test")[: study.images].astype(np.int64)
    for key in keys:
        own = next(r for r in results if (r["block"], r["timestep"], r["pool"]) == (key.block, key.timestep, key.pool))
        top, low, high = (100 * own[f"test_top1{end}"] for end in ("", "_low", "_high"))
        print(
            f"| {key.block} | {key.timestep} | {key.pool} | {accuracy(theirs[key], y)} | {accuracy(ours[key], y)} "
            f"| {top:.1f} [{low:.1f}, {high:.1f}] |"
        )
    print(f"same head from the store - reference, mean over settings: {difference(ours, theirs, y)} points")
    print(f"reference {sum(seconds):.0f} s, diffssl {median(others):.1f} s: ratio {sum(seconds) / median(others):.1f}")
    print(f"ratio by pairs: {len(keys) * median(a / b for a, b in zip(seconds, others, strict=True)):.1f}")
    print(f"diffssl's linear on all settings (15 candidates each): {probed:.1f} s more")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True, help="as of diffssl-extract, with the splits train and test")
    parser.add_argument("--images", type=int, default=320, help="of each split")
    parser.add_argument("--blocks", default="18,24")
    parser.add_argument("--timesteps", default="10,90")
    parser.add_argument("--pool", type=int, default=2)
    parser.add_argument("--epochs", type=int, default=7)
    parser.add_argument("--rate", type=float, default=0.3)
    options = parser.parse_args()
    blocks, timesteps = ([int(n) for n in text.split(",")] for text in (options.blocks, options.timesteps))
    with tempfile.TemporaryDirectory() as name:
        study = Study(options.data, options.images, blocks, timesteps, options.pool, options.epochs, options.rate)
        main(study, Path(name))
