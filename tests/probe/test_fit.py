"""One fit: choose on held-out rows, fit again with what was chosen, score the test rows once."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffssl.probe import C_GRID, ProbeSpec, Protocol, make_protocol
from diffssl.probe.data import Buffer, Copy, Moments, ProbeData
from diffssl.probe.fit import Fit, Material, Request, fit_torch_heads
from diffssl.probe.fit_numpy import FITTERS
from diffssl.probe.protocol import RowSet, used_splits
from diffssl.probe.targets import Targets, store_targets
from diffssl.store import FeatureKey, FeatureStore
from numpy.typing import NDArray

MakeStore = Callable[..., FeatureStore]

KEY = FeatureKey(1, 10, 1)
CPU = torch.device("cpu")
HEADS = pytest.mark.parametrize("head", ["linear", "mlp", "logreg"])
REFIT = pytest.mark.parametrize("refit", [True, False])


class Watched(ProbeData):
    """Records which rows are asked for, in order."""

    asked: list[RowSet]

    def load(self, rows: RowSet, moments: Moments, every: bool = False) -> tuple[NDArray[np.float64], NDArray[Any]]:
        self.asked.append(rows)
        return super().load(rows, moments, every)

    def in_order(
        self, rows: RowSet, moments: Moments, copy: Copy | None = None, every: bool = False
    ) -> Iterator[tuple[NDArray[np.float32], NDArray[Any]]]:
        self.asked.append(rows)
        return super().in_order(rows, moments, copy, every)

    def buffers(self, rows: RowSet, moments: Moments, rng: np.random.Generator, device: torch.device) -> Iterator[Buffer]:
        self.asked.append(rows)
        return super().buffers(rows, moments, rng, device)


def data_of(store: FeatureStore) -> Watched:
    data = Watched(store, [KEY], store_targets(store, used_splits(store)))
    data.asked = []
    return data


def assign(store: FeatureStore, refit: bool = True) -> Protocol:
    splits = used_splits(store)
    return make_protocol(store, {split: [KEY] for split in splits}, store_targets(store, splits), None, refit)


def material_of(data: ProbeData, protocol: Protocol, refit: bool = True) -> Material:
    return Material(data, data, data.moments(protocol.moments), protocol, 1, refit)


def options_of(head: str, **changes: Any) -> dict[str, Any]:
    more = {} if head == "logreg" else {"steps": 60, "weight_decays": [0.0]} | ({"hidden": (16,)} if head == "mlp" else {})
    return ProbeSpec(Path("none"), [head], **{**more, **changes}).head_options(head)


def fit(
    data: ProbeData, protocol: Protocol, head: str, *, refit: bool = True, rates: tuple[float, ...] = (1e-4, 0.03), **extra: Any
) -> Fit:
    material = material_of(data, protocol, refit)
    if head == "logreg":
        return FITTERS[head](material, options_of(head), CPU)
    request = Request(head, options_of(head, learning_rates=rates) | extra, 0)
    return fit_torch_heads(material, [request], CPU, 1)[0]


@HEADS
@REFIT
def test_test_rows_are_asked_for_once_and_last(make_store: MakeStore, head: str, refit: bool) -> None:
    store = make_store({"train": 200, "test": 130})
    protocol = assign(store, refit)
    data = data_of(store)
    fit(data, protocol, head, refit=refit)
    expected = [protocol.fit, protocol.select, *([protocol.refit] if refit else []), protocol.test]
    assert [id(rows) for rows in data.asked] == [id(rows) for rows in expected]


@HEADS
@REFIT
def test_scores_are_of_all_test_rows_in_order(make_store: MakeStore, head: str, refit: bool) -> None:
    store = make_store({"train": 200, "test": 130}, separation=5.0)
    fitted = fit(data_of(store), assign(store, refit), head, refit=refit)
    (scores,) = fitted.scores
    assert scores.shape == (130, 4)
    assert fitted.labels.tolist() == store.labels("test").tolist()
    assert (fitted.scores[0].argmax(axis=1) == fitted.labels).mean() > 0.9


@pytest.mark.parametrize("head", ["linear", "mlp"])
def test_the_rate_with_the_best_held_out_accuracy_is_chosen(make_store: MakeStore, head: str) -> None:
    store = make_store({"train": 300, "test": 130}, separation=4.0)
    protocol = assign(store)
    rates = (1e-7, 0.02, 1e38)
    chosen = fit(data_of(store), protocol, head, rates=rates).chosen
    grid = chosen["val_top1_grid"]
    assert len(grid) == 3
    assert chosen["learning_rate"] == 0.02
    assert chosen["val_top1"] == grid[1] == max(grid)
    assert grid[1] > max(grid[0], grid[2])
    assert chosen["at_edge"] is False


@pytest.mark.parametrize("head", ["linear", "mlp"])
def test_a_rate_that_diverges_is_not_chosen(make_store: MakeStore, head: str) -> None:
    store = make_store({"train": 300, "test": 130}, separation=4.0)
    chosen = fit(data_of(store), assign(store), head, rates=(1e38, 0.02)).chosen
    assert chosen["learning_rate"] == 0.02
    assert chosen["val_top1_grid"][0] < 0.5


@pytest.mark.parametrize(
    ("rates", "at_edge"),
    [((1e-7, 0.02), True), ((0.02, 1e-7), True), ((1e-7, 0.02, 1e38), False), ((0.02,), False)],
    ids=["first", "last", "middle", "only"],
)
def test_a_choice_at_the_edge_of_its_grid_is_flagged(make_store: MakeStore, rates: tuple[float, ...], at_edge: bool) -> None:
    store = make_store({"train": 300, "test": 130}, separation=4.0)
    chosen = fit(data_of(store), assign(store), "linear", rates=rates).chosen
    assert chosen["learning_rate"] == 0.02
    assert chosen["at_edge"] is at_edge


def test_c_is_chosen_by_held_out_accuracy(make_store: MakeStore) -> None:
    store = make_store({"train": 200, "test": 130})
    chosen = fit(data_of(store), assign(store), "logreg").chosen
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
        fitted = fit(data_of(store), assign(store, refit), head, refit=refit, rates=(0.03,))
        accuracy[refit] = (fitted.scores[0].argmax(axis=1) == fitted.labels).mean()
    assert accuracy[False] > 0.9
    assert accuracy[True] < 0.5


# Heads together


def test_heads_that_are_fitted_together_are_those_that_are_fitted_alone(make_store: MakeStore) -> None:
    store = make_store({"train": 200, "test": 130})
    material = material_of(data_of(store), assign(store))
    requests = [Request(head, options_of(head), seed) for head in ("linear", "mlp") for seed in (3, 4)]
    together = fit_torch_heads(material, requests, CPU, 7)
    for request, fitted in zip(requests, together, strict=True):
        (alone,) = fit_torch_heads(material, [request], CPU, 7)
        assert alone.chosen == fitted.chosen
        assert np.array_equal(alone.scores[0], fitted.scores[0])
        assert all(np.array_equal(value, fitted.weights[name]) for name, value in alone.weights.items())
    assert not np.array_equal(together[0].scores[0], together[1].scores[0])


@REFIT
def test_training_that_ended_early_is_repeated_for_as_many_steps(make_store: MakeStore, refit: bool) -> None:
    """Labels that mean nothing: the held-out loss is best at the beginning."""

    def shuffled(split: str, labels: NDArray[np.int32]) -> NDArray[np.int32]:
        return np.random.default_rng(len(split)).permutation(labels)

    store = make_store({"train": 200, "val": 100, "test": 130}, relabel=shuffled)
    early: dict[str, Any] = {"evaluate_every": 5, "patience": 2, "steps": 100}
    chosen = fit(data_of(store), assign(store, refit), "mlp", refit=refit, rates=(0.03,), **early).chosen
    assert chosen["steps_used"] in range(5, 100, 5)
    assert "steps_used" not in fit(data_of(store), assign(store, refit), "mlp", refit=refit, rates=(0.03,)).chosen


def test_the_best_of_the_grid_on_test_is_told_apart_from_the_choice(make_store: MakeStore) -> None:
    store = make_store({"train": 200, "test": 130}, separation=3.0)
    material = material_of(data_of(store), assign(store), refit=False)
    options = options_of("linear", learning_rates=(1e-5, 1e-3, 0.03))
    with_test, without = (
        fit_torch_heads(material, [Request("linear", options, 0, report_best_on_test=report)], CPU, 1)[0]
        for report in (True, False)
    )
    top1 = (with_test.scores[0].argmax(axis=1) == with_test.labels).mean()
    assert with_test.chosen["best_of_grid_on_test_top1"] >= top1 > 0.5
    assert {name: value for name, value in with_test.chosen.items() if name != "best_of_grid_on_test_top1"} == without.chosen
    assert np.array_equal(with_test.scores[0], without.scores[0])


# What comes of a fit


@HEADS
def test_weights_give_the_scores(make_store: MakeStore, head: str) -> None:
    store = make_store({"train": 200, "test": 130})
    data, protocol = data_of(store), assign(store)
    fitted = fit(data, protocol, head)
    assert all(isinstance(value, np.ndarray) for value in fitted.weights.values())
    features = data.load(protocol.test, data.moments(protocol.moments))[0]
    if head == "logreg":
        found = features @ fitted.weights["weight"] + fitted.weights["bias"]
    else:
        layers = [(fitted.weights[f"weights.{i}"][0], fitted.weights[f"biases.{i}"][0]) for i in range(1 + (head == "mlp"))]
        found = features @ layers[0][0] + layers[0][1]
        for weight, bias in layers[1:]:
            found = np.maximum(found, 0) @ weight + bias
    np.testing.assert_allclose(found, fitted.scores[0], rtol=1e-3, atol=1e-4)


@HEADS
def test_scores_are_log_odds(make_store: MakeStore, head: str) -> None:
    store = make_store({"train": 200, "test": 130})
    fitted = fit(data_of(store), assign(store), head)
    probabilities = fitted.probabilities
    assert probabilities is not None
    np.testing.assert_allclose(probabilities.sum(axis=1), 1, rtol=1e-5)
    assert (probabilities.argmax(axis=1) == fitted.scores[0].argmax(axis=1)).all()
    assert Fit({}, fitted.scores, fitted.labels, log_odds=False).probabilities is None
    assert Fit({}, fitted.scores, np.zeros((130, 4))).probabilities is None


def numbers_data(store: FeatureStore, scale: float = 1.0, offset: float = 0.0, weights: Any = None) -> ProbeData:
    """Two numbers that are linear in the features."""
    weights = np.random.default_rng(0).normal(size=(8, 2)) if weights is None else weights
    values = {split: (scale * (store.xy(KEY, split)[0] @ weights) + offset).astype(np.float32) for split in used_splits(store)}
    return ProbeData(store, [KEY], Targets("regress", ["a", "b"], values, "file"))


def numbers_protocol(store: FeatureStore, data: ProbeData) -> Protocol:
    return make_protocol(store, {"train": [KEY], "test": [KEY]}, data.targets, None)


@pytest.mark.parametrize("head", ["linear", "mlp"])
@pytest.mark.parametrize(("scale", "offset"), [(1.0, 0.0), (1e4, 1e6), (1e-3, 5.0)])
def test_numbers_are_learnt_whatever_their_scale(make_store: MakeStore, head: str, scale: float, offset: float) -> None:
    store = make_store({"train": 400, "test": 130})
    data = numbers_data(store, scale, offset)
    fitted = fit(data, numbers_protocol(store, data), head, steps=200)
    assert fitted.chosen["val_r2"] == max(fitted.chosen["val_r2_grid"]) > 0.9
    error = ((fitted.scores[0] - fitted.labels) ** 2).mean(axis=0) / fitted.labels.var(axis=0)
    assert error.max() < 0.1
    assert fitted.probabilities is None


@REFIT
def test_a_scale_of_the_numbers_is_one_of_the_predictions(make_store: MakeStore, refit: bool) -> None:
    """By powers of two, which nothing rounds: bit for bit."""
    store = make_store({"train": 200, "test": 130})
    one, other = (
        fit(data, numbers_protocol(store, data), "linear", refit=refit)
        for data in (numbers_data(store), numbers_data(store, 2.0**10))
    )
    assert np.array_equal(2.0**10 * one.scores[0], other.scores[0])
    assert one.chosen == other.chosen
    for name, value in one.weights.items():
        assert np.array_equal(value, other.weights[name])


def test_the_scale_of_the_numbers_is_that_of_the_training_rows(make_store: MakeStore) -> None:
    """What is not known is left out; a number that never changes, or is never known, has no deviation."""
    store = make_store({"train": 200, "test": 130})
    values = {
        split: np.random.default_rng(0).normal(size=(store.n_rows(split), 4)).astype(np.float32) for split in store.splits
    }
    values["train"][:50, 0] = np.nan
    values["train"][:, 1] = 0.1
    values["train"][:, 2] = np.nan
    values["test"] += 1000
    data = ProbeData(store, [KEY], Targets("regress", list("abcd"), values, "file"))
    answers = material_of(data, numbers_protocol(store, data)).answers
    assert answers is not None
    expected = values["train"][50:, 0].astype(np.float64)
    np.testing.assert_allclose((answers.mean[0], answers.scale[0]), (expected.mean(), expected.std()), rtol=1e-6)
    assert (answers.mean[1], answers.scale[1]) == (np.float32(0.1), 1)
    assert (answers.mean[2], answers.scale[2]) == (0, 1)
    assert np.array_equal(answers.mean, answers.mean.astype(np.float32))
    assert material_of(data_of(store), assign(store)).answers is None


def test_a_number_that_never_changes_is_predicted(make_store: MakeStore) -> None:
    store = make_store({"train": 400, "test": 130})
    weights = np.random.default_rng(0).normal(size=(8, 2)) * [1, 0]
    data = numbers_data(store, 1.0, 7.0, weights)
    fitted = fit(data, numbers_protocol(store, data), "linear", steps=200)
    assert np.abs(fitted.scores[0][:, 1] - 7).max() < 0.1
    assert np.abs(fitted.scores[0][:, 0] - fitted.labels[:, 0]).max() < 1
