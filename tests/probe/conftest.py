"""Fixtures of probing: a store of real features."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any
from zlib import crc32

import numpy as np
import pytest
from diffssl.probe import ProbeSpec
from diffssl.probe.study import probe
from diffssl.store import FeatureKey, FeatureStore
from numpy.typing import NDArray
from sklearn.datasets import load_digits

MakeStore = Callable[..., FeatureStore]

# Enough for the small stores of the tests.
FAST = {"learning_rates": [0.01], "weight_decays": [0.0], "batch_size": 64, "device": "cpu", "threads": 1}


@pytest.fixture
def digits(make_store: MakeStore) -> FeatureStore:
    """scikit-learn's handwritten digits, their 64 pixels as features."""
    pixels, target = load_digits(return_X_y=True)
    ids = [f"{label}/{number:04d}" for number, label in enumerate(target)]
    numbers = {one: number for number, one in enumerate(ids)}
    splits = {"train": ids[:900], "test": ids[900:]}
    order: dict[str, NDArray[np.object_]] = {}

    def features(_key: FeatureKey, split: str, _labels: NDArray[np.int32]) -> NDArray[Any]:
        rows = [numbers[one] for one in order[split]]
        return np.asarray(pixels[rows]).reshape(-1, 64, 1, 1)

    bare = make_store(splits, channels=64, name="order.zarr")
    order.update({split: bare.ids(split) for split in splits})
    return make_store(splits, channels=64, features=features)


@pytest.fixture
def make_maps(make_store: MakeStore) -> MakeStore:
    """Stores whose classes differ in the mean of each channel, the same in all settings, at every place of the map."""

    def features(key: FeatureKey, split: str, labels: NDArray[np.int32]) -> NDArray[Any]:
        means = np.random.default_rng(0).normal(size=(16, 8, 1, 1))
        noise = np.random.default_rng([len(labels), crc32(f"{key.path} {split}".encode())])
        side = key.pool if isinstance(key.pool, int) else 1
        values: NDArray[Any] = 1.2 * means[labels] + noise.normal(size=(len(labels), 8, side, side))
        return values

    def make(keys: Sequence[FeatureKey], **options: Any) -> FeatureStore:
        return make_store(**{"rows": {"train": 240, "test": 120}, "keys": keys, "features": features, **options})

    return make


@pytest.fixture
def fits() -> Callable[..., list[dict[str, Any]]]:
    """A function that probes a store with heads, with commas, in few steps, and gives the results."""

    def run(store: FeatureStore, heads: str, **options: Any) -> list[dict[str, Any]]:
        names = heads.split(",")
        sizes: dict[str, Any] = {}
        if {"cnn", "attention", "difformer"} & set(names):
            sizes["width"] = 16
        if {"attention", "difformer"} & set(names):
            sizes["depth"] = 1
        if {"logreg", "knn", "ridge"} >= set(names):
            return probe(ProbeSpec(store.path, names, **{"device": "cpu", "threads": 1, **options}), lambda _: None)
        return probe(ProbeSpec(store.path, names, **{**FAST, "steps": 40, **sizes, **options}), lambda _: None)

    return run
