"""One fit: choose on held-out rows, fit again with what was chosen, score the test rows once."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from diffssl.probe import C_GRID, ProbeSpec, Protocol, make_protocol
from diffssl.probe.data import Moments, SettingData
from diffssl.probe.fit import Fit, fit_logreg, fit_torch_head
from diffssl.probe.protocol import RowSet
from diffssl.store import FeatureKey, FeatureStore
from numpy.typing import NDArray

MakeStore = Callable[..., FeatureStore]

KEY = FeatureKey(1, 10, 1)
HEADS = pytest.mark.parametrize("head", ["linear", "mlp", "logreg"])
REFIT = pytest.mark.parametrize("refit", [True, False])


class Watched(SettingData):
    """Records which rows are asked for, in order."""

    def __init__(self, store: FeatureStore, key: FeatureKey) -> None:
        super().__init__(store, key)
        self.asked: list[RowSet] = []

    def load(self, rows: RowSet, moments: Moments) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
        self.asked.append(rows)
        return super().load(rows, moments)

    def in_order(self, rows: RowSet, moments: Moments) -> Iterator[tuple[NDArray[np.float32], NDArray[np.int64]]]:
        self.asked.append(rows)
        return super().in_order(rows, moments)

    def shuffled(
        self, rows: RowSet, moments: Moments, batch_size: int, rng: np.random.Generator
    ) -> Iterator[tuple[NDArray[np.float32], NDArray[np.int64]]]:
        self.asked.append(rows)
        return super().shuffled(rows, moments, batch_size, rng)


def fit(
    data: SettingData, protocol: Protocol, head: str, *, refit: bool = True, rates: tuple[float, ...] = (1e-4, 0.03)
) -> Fit:
    moments = data.moments(protocol.moments)
    if head == "logreg":
        return fit_logreg(data, moments, protocol, 4, refit)
    spec = ProbeSpec(
        Path("none"), [head], refit=refit, steps=60, hidden=(16,), learning_rates=rates, weight_decays=[0.0], device="cpu"
    )
    return fit_torch_head(data, moments, protocol, 4, spec, head, 0)


@HEADS
@REFIT
def test_test_rows_are_asked_for_once_and_last(make_store: MakeStore, head: str, refit: bool) -> None:
    store = make_store({"train": 200, "test": 130})
    protocol = make_protocol(store, [KEY], None, refit)
    data = Watched(store, KEY)
    fit(data, protocol, head, refit=refit)
    expected = [protocol.fit, protocol.select, *([protocol.refit] if refit else []), protocol.test]
    assert [id(rows) for rows in data.asked] == [id(rows) for rows in expected]


@HEADS
@REFIT
def test_scores_are_of_all_test_rows_in_order(make_store: MakeStore, head: str, refit: bool) -> None:
    store = make_store({"train": 200, "test": 130}, separation=5.0)
    fitted = fit(SettingData(store, KEY), make_protocol(store, [KEY], None, refit), head, refit=refit)
    assert fitted.scores.shape == (130, 4)
    assert fitted.labels.tolist() == store.labels("test").tolist()
    assert (fitted.scores.argmax(axis=1) == fitted.labels).mean() > 0.9


@pytest.mark.parametrize("head", ["linear", "mlp"])
def test_the_rate_with_the_best_held_out_accuracy_is_chosen(make_store: MakeStore, head: str) -> None:
    store = make_store({"train": 300, "test": 130}, separation=4.0)
    protocol = make_protocol(store, [KEY], None)
    rates = (1e-7, 0.02, 1e38)
    chosen = fit(SettingData(store, KEY), protocol, head, rates=rates).chosen
    grid = chosen["val_top1_grid"]
    assert len(grid) == 3
    assert chosen["learning_rate"] == 0.02
    assert chosen["val_top1"] == grid[1] == max(grid)
    assert grid[1] > max(grid[0], grid[2])
    assert chosen["at_edge"] is False


@pytest.mark.parametrize("head", ["linear", "mlp"])
def test_a_rate_that_diverges_is_not_chosen(make_store: MakeStore, head: str) -> None:
    store = make_store({"train": 300, "test": 130}, separation=4.0)
    chosen = fit(SettingData(store, KEY), make_protocol(store, [KEY], None), head, rates=(1e38, 0.02)).chosen
    assert chosen["learning_rate"] == 0.02
    assert chosen["val_top1_grid"][0] < 0.5


@pytest.mark.parametrize(
    ("rates", "at_edge"), [((1e-7, 0.02), True), ((0.02, 1e-7), True), ((1e-7, 0.02, 1e38), False), ((0.02,), False)], ids=str
)
def test_a_choice_at_the_edge_of_its_grid_is_flagged(make_store: MakeStore, rates: tuple[float, ...], at_edge: bool) -> None:
    store = make_store({"train": 300, "test": 130}, separation=4.0)
    chosen = fit(SettingData(store, KEY), make_protocol(store, [KEY], None), "linear", rates=rates).chosen
    assert chosen["learning_rate"] == 0.02
    assert chosen["at_edge"] is at_edge


def test_c_is_chosen_by_held_out_accuracy(make_store: MakeStore) -> None:
    store = make_store({"train": 200, "test": 130})
    chosen = fit(SettingData(store, KEY), make_protocol(store, [KEY], None), "logreg").chosen
    grid = chosen["val_top1_grid"]
    assert len(grid) == len(C_GRID) == len(chosen["converged_grid"])
    assert chosen["val_top1"] == max(grid) > min(grid)
    assert chosen["C"] == C_GRID[grid.index(max(grid))]
    assert chosen["at_edge"] is (chosen["C"] in (C_GRID[0], C_GRID[-1]))
    assert chosen["converged"] is True


@HEADS
def test_held_out_rows_are_trained_on_only_in_the_refit(make_store: MakeStore, head: str) -> None:
    """The labels of the val split are shifted by one: only a fit that has seen them confuses the classes."""

    def shifted(split: str, labels: NDArray[np.int32]) -> NDArray[np.int32]:
        return (labels + 1) % 4 if split == "val" else labels

    store = make_store({"train": 100, "val": 400, "test": 130}, separation=8.0, relabel=shifted)
    accuracy = {}
    for refit in (True, False):
        fitted = fit(SettingData(store, KEY), make_protocol(store, [KEY], None, refit), head, refit=refit, rates=(0.03,))
        accuracy[refit] = (fitted.scores.argmax(axis=1) == fitted.labels).mean()
    assert accuracy[False] > 0.9
    assert accuracy[True] < 0.5
