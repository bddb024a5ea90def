"""Fixtures of probing: a store of real features."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from diffssl.store import FeatureKey, FeatureStore
from numpy.typing import NDArray
from sklearn.datasets import load_digits

MakeStore = Callable[..., FeatureStore]


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
