"""Training the torch heads against plain torch, and rates against each other."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from itertools import islice
from typing import Any

import numpy as np
import pytest
import torch
from diffssl.probe.data import SettingData
from diffssl.probe.heads import StackedMLP
from diffssl.probe.train import TrainOptions, Trial, score_head, train_head
from diffssl.store import FeatureKey, FeatureStore
from numpy.typing import NDArray
from torch import nn

MakeStore = Callable[..., FeatureStore]

KEY = FeatureKey(1, 10, 1)
ROWS = {"train": np.arange(20, 250)}
DECAY = 0.01
RATES = [1e-3, 1e-2, 1e-1]
CPU = torch.device("cpu")
LINEAR = TrainOptions(hidden=(), steps=25, batch_size=32, device=CPU)
MLP = dataclasses.replace(LINEAR, hidden=(16, 12))
HEADS = pytest.mark.parametrize("options", [LINEAR, MLP], ids=["linear", "mlp"])


@pytest.fixture
def data(make_store: MakeStore) -> SettingData:
    return SettingData(make_store({"train": 250, "test": 130}), KEY)


def train(data: SettingData, options: TrainOptions, rates: list[float] | None = None, seed: int = 0) -> StackedMLP:
    trials = [Trial(rate, DECAY) for rate in rates or RATES]
    return train_head(data, ROWS, data.moments(ROWS), 4, trials, options, seed)


def by_hand(data: SettingData, options: TrainOptions, rate: float, seed: int) -> nn.Sequential:
    """The same in plain torch: AdamW, cosine to zero, mean cross-entropy, the same start and batches."""
    widths = (data.dimension, *options.hidden, 4)
    start = StackedMLP(1, widths, torch.Generator().manual_seed(seed))
    layers: list[nn.Module] = []
    for weight, bias in zip(start.weights, start.biases, strict=True):
        linear = nn.Linear(weight.shape[1], weight.shape[2])
        with torch.no_grad():
            linear.weight.copy_(weight[0].T)
            linear.bias.copy_(bias[0, 0])
        layers += [linear, nn.ReLU()]
    model = nn.Sequential(*layers[:-1])
    optimiser = torch.optim.AdamW(model.parameters(), lr=rate, weight_decay=DECAY)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimiser, lambda step: 0.5 * (1 + math.cos(math.pi * step / options.steps)))
    batches = data.shuffled(ROWS, data.moments(ROWS), options.batch_size, np.random.default_rng(seed))
    for features, labels in islice(batches, options.steps):
        loss = nn.functional.cross_entropy(model(torch.from_numpy(features)), torch.from_numpy(labels))
        optimiser.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimiser.step()
        schedule.step()
    return model


@HEADS
def test_every_rate_is_trained_as_plain_torch_would(data: SettingData, options: TrainOptions) -> None:
    head = train(data, options, seed=3)
    for copy, rate in enumerate(RATES):
        linears = [layer for layer in by_hand(data, options, rate, 3) if isinstance(layer, nn.Linear)]
        for weight, bias, linear in zip(head.weights, head.biases, linears, strict=True):
            torch.testing.assert_close(weight[copy].T, linear.weight, rtol=1e-3, atol=1e-4)
            torch.testing.assert_close(bias[copy, 0], linear.bias, rtol=1e-3, atol=1e-4)


@HEADS
def test_a_rate_alone_is_that_rate_among_others(data: SettingData, options: TrainOptions) -> None:
    together = train(data, options)
    for copy, rate in enumerate(RATES):
        for parameter, alone in zip(together.parameters(), train(data, options, [rate]).parameters(), strict=True):
            torch.testing.assert_close(parameter[copy : copy + 1], alone, rtol=1e-3, atol=1e-4)
    weights = next(iter(together.parameters()))
    assert (weights[0] - weights[1]).abs().max() > 1e-2  # which would not be so if the rates were one


@HEADS
def test_the_same_seed_gives_the_same_weights_bit_for_bit(data: SettingData, options: TrainOptions) -> None:
    torch.manual_seed(5)
    np.random.seed(5)  # noqa: NPY002  (global generators must not matter)
    one = train(data, options)
    torch.manual_seed(6)
    np.random.seed(6)  # noqa: NPY002
    for parameter, same in zip(one.parameters(), train(data, options).parameters(), strict=True):
        assert torch.equal(parameter, same)


@HEADS
def test_another_seed_gives_other_weights(data: SettingData, options: TrainOptions) -> None:
    for parameter, other in zip(train(data, options).parameters(), train(data, options, seed=1).parameters(), strict=True):
        assert not torch.equal(parameter, other)


@HEADS
def test_rows_that_are_not_asked_for_do_not_matter(make_store: MakeStore, options: TrainOptions) -> None:
    """Rows outside of the role are poisoned; the weights stay as they were."""
    weights = []
    for poison in (0.0, 1e4):

        def features(_key: FeatureKey, _split: str, labels: NDArray[np.int32], poison: float = poison) -> NDArray[Any]:
            values = np.random.default_rng(0).normal(size=(len(labels), 8, 1, 1))
            values[:20] += poison
            return values

        store = make_store({"train": 250}, features=features, name=f"{poison}.zarr")
        weights.append(list(train(SettingData(store, KEY), options).parameters()))
    for clean, poisoned in zip(*weights, strict=True):
        assert torch.equal(clean, poisoned)


@HEADS
def test_separable_classes_are_learnt(make_store: MakeStore, options: TrainOptions) -> None:
    data = SettingData(make_store({"train": 250, "test": 130}, separation=12.0), KEY)
    options = dataclasses.replace(options, steps=100)
    head = train(data, options)
    moments = data.moments(ROWS)
    logits, labels = score_head(head, data, {"test": np.arange(130)}, moments, CPU)
    assert (logits[1].argmax(axis=1) == labels).mean() > 0.97
    untrained = StackedMLP(3, (8, *options.hidden, 4), torch.Generator().manual_seed(0))
    logits, labels = score_head(untrained, data, {"test": np.arange(130)}, moments, CPU)
    assert (logits[1].argmax(axis=1) == labels).mean() < 0.8


@HEADS
def test_scores_are_those_of_the_rows_in_order(data: SettingData, options: TrainOptions) -> None:
    head = train(data, options)
    moments = data.moments(ROWS)
    rows = {"test": np.array([3, 5, 63, 64, 100, 129]), "train": np.array([0, 200])}
    logits, labels = score_head(head, data, rows, moments, CPU)
    features, expected = data.load(rows, moments)
    assert logits.shape == (3, 8, 4)
    assert labels.tolist() == expected.tolist()
    with torch.no_grad():
        whole = head(torch.from_numpy(features.astype(np.float32)))
    np.testing.assert_allclose(logits, whole.numpy(), rtol=1e-4, atol=1e-5)
