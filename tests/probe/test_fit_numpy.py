"""Heads without randomness by the protocol. What is common to all heads is in ``test_fit.py``."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from diffssl.probe import make_protocol
from diffssl.probe.data import ProbeData
from diffssl.probe.fit import Material
from diffssl.probe.fit_numpy import FITTERS
from diffssl.probe.targets import store_targets
from diffssl.store import FeatureKey, FeatureStore

MakeStore = Callable[..., FeatureStore]

CPU = torch.device("cpu")
DRAWS = [FeatureKey(1, 10, 1, draw) for draw in range(2)]
COPIES = {split: [(0, 0), (1, 0)] for split in ("train", "test")}


def material_of(store: FeatureStore, mixed: bool) -> Material:
    targets = store_targets(store, store.splits)
    data = ProbeData(store, DRAWS[:1], targets, COPIES if mixed else None)
    protocol = make_protocol(store, dict.fromkeys(store.splits, DRAWS), targets, None)
    return Material(data, data, data.moments(protocol.moments), protocol, 1, True)


@pytest.mark.parametrize("grid", [[0.1], [1e-3, 0.1, 10.0]], ids=["one", "three"])
def test_c_is_chosen_from_the_grid_in_the_options(make_store: MakeStore, grid: list[float]) -> None:
    store = make_store({"train": 200, "test": 130}, DRAWS)
    chosen = FITTERS["logreg"](material_of(store, False), {"C": grid}, CPU).chosen
    assert chosen["C"] in grid
    assert len(chosen["val_top1_grid"]) == len(grid)
    assert chosen["solver"] == "scikit-learn"


def test_all_draws_are_trained_on_and_each_is_scored(make_store: MakeStore) -> None:
    store = make_store({"train": 200, "test": 130}, DRAWS)
    mixed, alone = (FITTERS["logreg"](material_of(store, own), {"C": [0.1]}, CPU) for own in (True, False))
    assert [scores.shape for scores in mixed.scores] == [(130, 4), (130, 4)]
    assert [scores.shape for scores in alone.scores] == [(130, 4)]
    material = material_of(store, True)
    for draw, scores in zip(DRAWS, mixed.scores, strict=True):
        features = (store.xy(draw, "test")[0] - material.moments.mean) / material.moments.scale
        np.testing.assert_allclose(scores, features @ mixed.weights["weight"] + mixed.weights["bias"], atol=1e-5)
    assert not np.allclose(mixed.scores[0], alone.scores[0], atol=1e-3)
    assert mixed.labels.tolist() == alone.labels.tolist() == store.labels("test").tolist()
