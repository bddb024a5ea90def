"""What one frozen noise draw costs: accuracy over noise draws in training, and averaged at test, over timesteps.

    python benchmarks/draws.py --data /data/cifar10 [--train 4000] [--test 2000] [--draws 4]

The reference code draws new noise for every image in every epoch; a store has as many draws as were extracted. Here a
logistic regression is trained on D draws of every training image, as D rows, and a test image is scored by its class
probabilities averaged over E of its draws. Its C is chosen by the log loss of held-out images, all draws of an image on
the same side; by their accuracy the choice swings too much.
Each cell is the mean over all disjoint groups of D draws, and of E draws: those of one draw do not hang on which one.
Intervals are 95 % bootstraps over test images, those of differences paired. The store is kept and used again.
"""

from __future__ import annotations

import argparse
import warnings
from pathlib import Path

import numpy as np
from diffssl.extract import ExtractSpec, extract
from diffssl.store import FeatureKey, FeatureStore, salted_fractions
from numpy.typing import NDArray
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import log_loss

C_GRID = [10.0 ** (power / 2) for power in range(-10, 1)]  # smallest first: each fit of the path starts from the one before
HELD_OUT = 0.25
RESAMPLES = 2000

Features = NDArray[np.float32]
Hits = dict[tuple[int, int], NDArray[np.float64]]


def make_store(path: Path, data: str, rows: dict[str, int], block: int, timesteps: list[int], draws: int) -> FeatureStore:
    for split, limit in rows.items():
        source = (f"{split}={data}",)
        spec = ExtractSpec({block: {1, 2}}, timesteps, data=source, store=path, limit=limit, draws=draws, row_block=256)
        extract(spec)
    return FeatureStore.open(path)


def load(store: FeatureStore, split: str, keys: list[FeatureKey], rows: int) -> tuple[Features, NDArray[np.int32]]:
    """(n, draws, features) of images, the draws of an image side by side, and their (n,) labels."""
    batches = list(store.stream(keys, split, slice(rows)))
    assert sum(len(batch.rows) for batch in batches) == rows, "an image was left out"
    features = [np.stack(batch.features, axis=1).reshape(len(batch.rows), len(keys), -1) for batch in batches]
    return np.concatenate(features).astype(np.float32), np.concatenate([batch.labels for batch in batches])


def standardised(x: Features, by: Features) -> Features:
    mean, deviation = by.mean(axis=(0, 1)), by.std(axis=(0, 1))
    return np.asarray((x - mean) / np.where(deviation > 0, deviation, 1))


def fit(groups: list[Features], y: NDArray[np.int32], held_out: NDArray[np.bool_]) -> tuple[list[LogisticRegression], float]:
    """Logistic regressions on groups of draws, (n, D, features) each, with one C: the best of held-out images, then all."""

    def stacked(x: Features, rows: NDArray[np.bool_]) -> tuple[Features, NDArray[np.int32]]:
        return x[rows].reshape(-1, x.shape[2]), np.repeat(y[rows], x.shape[1])

    losses = np.zeros(len(C_GRID))
    for x in groups:
        model = LogisticRegression(max_iter=300, warm_start=True)
        for i, c in enumerate(C_GRID):
            model.set_params(C=c).fit(*stacked(x, ~held_out))
            x_held, y_held = stacked(x, held_out)
            losses[i] += log_loss(y_held, model.predict_proba(x_held), labels=model.classes_)
    best = C_GRID[int(np.argmin(losses))]
    everything = np.ones(len(y), dtype=bool)
    return [LogisticRegression(C=best, max_iter=1000).fit(*stacked(x, everything)) for x in groups], best


def test_hits(
    train: tuple[Features, NDArray[np.int32]], test: tuple[Features, NDArray[np.int32]], ids: NDArray[np.object_]
) -> Hits:
    """(train draws D, test draws E) -> (n,) share of the groups of draws by which a test image is classified rightly."""
    (x, y), (x_test, y_test) = (standardised(train[0], train[0]), train[1]), (standardised(test[0], train[0]), test[1])
    held_out = salted_fractions(ids, "draws-heldout") < HELD_OUT
    draws = x.shape[1]
    sizes = [size for size in (1, 2, 4, 8) if size <= draws]
    found: Hits = {}
    for size in sizes:
        models, c = fit([x[:, first : first + size] for first in range(0, draws, size)], y, held_out)
        print(f"  {size} draws: C {c:.2g}", flush=True)
        flat = x_test.reshape(-1, x.shape[2])
        scores = [model.predict_proba(flat).reshape(len(x_test), draws, -1) for model in models]
        for averaged in sizes:
            grouped = [own.reshape(len(x_test), draws // averaged, averaged, -1).mean(axis=2) for own in scores]
            right = [models[0].classes_[own.argmax(axis=2)] == y_test[:, None] for own in grouped]
            found[size, averaged] = np.mean(right, axis=(0, 2))
    return found


def interval(values: NDArray[np.float64]) -> str:
    """Mean of (n,) values in per cent, with a 95 % bootstrap interval over rows."""
    rng = np.random.default_rng(0)
    means = [values[rng.integers(len(values), size=len(values))].mean() for _ in range(RESAMPLES)]
    low, high = np.quantile(means, [0.025, 0.975])
    return f"{100 * values.mean():.1f} [{100 * low:.1f}, {100 * high:.1f}]"


def main(options: argparse.Namespace) -> None:
    rows = {"train": options.train, "test": options.test}
    timesteps = [int(step) for step in options.timesteps.split(",")]
    store = make_store(options.store, options.data, rows, options.block, timesteps, options.draws)
    print(f"block {options.block}, pool {options.pool}, {options.train} training and {options.test} test images")
    print("top-1 in per cent; differences are to 1 draw in training and at test")
    print("| timestep | draws in training | at test | top-1 [95 %] | difference [95 %] |")
    print("| --- | --- | --- | --- | --- |", flush=True)
    ids = store.ids("train")[: options.train]
    for timestep in timesteps:
        keys = [FeatureKey(options.block, timestep, options.pool, draw) for draw in range(options.draws)]
        train, test = (load(store, split, keys, n) for split, n in rows.items())
        found = test_hits(train, test, ids)
        for (size, averaged), hits in found.items():
            difference = interval(hits - found[1, 1]) if (size, averaged) != (1, 1) else ""
            print(f"| {timestep} | {size} | {averaged} | {interval(hits)} | {difference} |", flush=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True, help="as of diffssl-extract, with the splits train and test")
    parser.add_argument("--store", type=Path, default=Path("draws.zarr"))
    parser.add_argument("--train", type=int, default=4000)
    parser.add_argument("--test", type=int, default=2000)
    parser.add_argument("--block", type=int, default=24)
    parser.add_argument("--pool", type=int, default=2)
    parser.add_argument("--timesteps", default="10,90,150,300")
    parser.add_argument("--draws", type=int, default=4, choices=[1, 2, 4, 8])
    warnings.simplefilter("ignore", ConvergenceWarning)  # of the path, whose fits only choose C
    main(parser.parse_args())
