"""Logistic regression against a plain scikit-learn script on the same arrays."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from diffssl.probe import C_GRID, ProbeSpec, Protocol, make_protocol
from diffssl.probe.logreg import accuracy_path, fit_regression
from diffssl.probe.protocol import used_splits
from diffssl.probe.study import probe
from diffssl.probe.targets import store_targets
from diffssl.store import FeatureKey, FeatureStore
from numpy.typing import NDArray
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler

MakeStore = Callable[..., FeatureStore]

KEY = FeatureKey(1, 10, 1)


def assign(store: FeatureStore, key: FeatureKey, refit: bool = True) -> Protocol:
    splits = used_splits(store)
    return make_protocol(store, {split: [key] for split in splits}, store_targets(store, splits), None, refit)


def run(store: FeatureStore, **options: Any) -> dict[str, Any]:
    (result,) = probe(ProbeSpec(Path(store.path), ["logreg"], **options), lambda _: None)
    return result


def script(store: FeatureStore, key: FeatureKey, protocol: Protocol, c: float) -> float:
    """What a notebook would do: arrays by ``xy``, StandardScaler, LogisticRegression, accuracy."""
    arrays = {split: store.xy(key, split) for split in protocol.splits}

    def take(rows: Any) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
        x = np.concatenate([arrays[split][0][numbers] for split, numbers in rows.items()]).astype(np.float64)
        return x, np.concatenate([arrays[split][1][numbers] for split, numbers in rows.items()])

    scaler = StandardScaler().fit(take(protocol.moments)[0])
    x, y = take(protocol.refit)
    model = LogisticRegression(C=c, max_iter=1000).fit(scaler.transform(x), y)
    x, y = take(protocol.test)
    return float(model.score(scaler.transform(x), y))


def test_digits_are_as_accurate_as_by_a_plain_script(digits: FeatureStore) -> None:
    result = run(digits)
    assert result["test_top1"] == script(digits, KEY, assign(digits, KEY), result["C"])
    assert 0.85 < result["test_top1"] < 1


@pytest.mark.parametrize(
    "splits", [{"train": 400, "test": 300}, {"train": 300, "val": 150, "test": 300}, {"all": 600}], ids=str
)
@pytest.mark.parametrize("refit", [True, False])
@pytest.mark.parametrize("dtype", ["float16", "float32"])
def test_gaussian_classes_are_as_accurate_as_by_a_plain_script(
    make_store: MakeStore, splits: dict[str, int], refit: bool, dtype: str
) -> None:
    def features(_key: FeatureKey, _split: str, labels: NDArray[np.int32]) -> NDArray[Any]:
        rng = np.random.default_rng(len(labels))
        means = np.random.default_rng(0).normal(size=(5, 24, 2, 2))
        values: NDArray[Any] = 30 + 5 * (0.15 * means[labels] + rng.normal(size=(len(labels), 24, 2, 2)))
        return values

    key = FeatureKey(1, 10, 2)
    store = make_store(splits, [key], classes=5, channels=24, features=features, dtype=dtype)
    result = run(store, refit=refit)
    assert result["test_top1"] == script(store, key, assign(store, key, refit), result["C"])
    assert 0.3 < result["test_top1"] < 0.95


def test_the_path_finds_what_cold_fits_find(digits: FeatureStore) -> None:
    """A warm start stops elsewhere within the solver's tolerance, which may move single rows."""
    protocol = assign(digits, KEY)
    x, y = digits.xy(KEY, "train")
    x = StandardScaler().fit_transform(x.astype(np.float64))
    fit, select = protocol.fit["train"], protocol.select["train"]
    accuracies, converged = accuracy_path(x[fit], y[fit], x[select], y[select], C_GRID)
    cold = []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for c in C_GRID:
            model = LogisticRegression(C=c, max_iter=1000).fit(x[fit], y[fit])
            cold.append(float(model.score(x[select], y[select])))
    row = 1 / len(select)
    assert np.abs(np.array(accuracies) - cold).max() <= 4.5 * row
    assert cold[int(np.argmax(accuracies))] >= max(cold) - 2.5 * row
    assert all(converged[:6])
    assert min(accuracies) < max(accuracies) - 20 * row  # so that a wrong choice would show


def gaussian(classes: list[int], n: int = 120, separation: float = 3.0) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    rng = np.random.default_rng(0)
    labels = np.array(classes)[rng.integers(len(classes), size=n)]
    means = np.random.default_rng(1).normal(size=(10, 5))
    return separation * means[labels] + rng.normal(size=(n, 5)), labels


@pytest.mark.parametrize("classes", [[0, 1], [0, 1, 2], [1, 3], [0, 2, 5], [3]], ids=str)
def test_scores_stand_at_the_place_of_their_class(classes: list[int]) -> None:
    if len(classes) == 1:
        classes = [*classes, 4]
    x, y = gaussian(classes)
    fitted = fit_regression(x, y, 1.0)
    scores = fitted.scores(x, 7)
    assert scores.shape == (120, 7)
    assert scores.argmax(axis=1).tolist() == fitted.model.predict(x).tolist()
    assert (scores.argmax(axis=1) == y).mean() > 0.9
    absent = sorted(set(range(7)) - set(classes))
    assert np.isneginf(scores[:, absent]).all()
    assert np.isfinite(scores[:, classes]).all()


def test_a_class_that_was_not_trained_on_is_never_predicted(make_store: MakeStore) -> None:
    train = [f"c{i % 3}/{i}" for i in range(120)]
    store = make_store({"train": train, "test": [f"c{i % 4}/t{i}" for i in range(80)]}, separation=8.0)
    result = run(store)
    assert result["classes"] == 4
    assert 0.65 < result["test_top1"] <= 0.75


def test_a_fit_is_that_of_a_plain_call() -> None:
    x, y = gaussian([0, 1, 2])
    ours = fit_regression(x, y, 0.37).model
    theirs = LogisticRegression(C=0.37, max_iter=1000).fit(x, y)
    assert np.array_equal(ours.coef_, theirs.coef_)
    assert np.array_equal(ours.intercept_, theirs.intercept_)


@pytest.mark.parametrize("enough", [True, False])
def test_a_solver_that_stopped_early_is_told(monkeypatch: pytest.MonkeyPatch, enough: bool) -> None:
    import diffssl.probe.logreg

    x, y = gaussian([0, 1, 2], separation=0.5)
    if not enough:
        monkeypatch.setattr(diffssl.probe.logreg, "FINAL_ITERATIONS", 2)
        monkeypatch.setattr(diffssl.probe.logreg, "PATH_ITERATIONS", 2)
    assert fit_regression(x, y, 1.0).converged is enough
    assert accuracy_path(x, y, x, y, [1e-2, 1.0])[1] == [enough, enough]


@pytest.mark.parametrize("classes", [[0, 1], [1, 3], [0, 2, 5]], ids=["two", "two of more", "three"])
def test_weights_give_the_scores(classes: list[int]) -> None:
    x, y = gaussian(classes)
    fitted = fit_regression(x, y, 1.0)
    weights = fitted.weights(7)
    np.testing.assert_allclose(x @ weights["weight"] + weights["bias"], fitted.scores(x, 7), rtol=1e-12, atol=1e-12)


def test_copies_of_the_rows_weigh_no_more_than_the_rows() -> None:
    x, y = gaussian([0, 1, 2], separation=0.5)
    alone = fit_regression(x, y, 0.1)
    three = fit_regression(np.tile(x, (3, 1)), np.tile(y, 3), 0.1, 3)
    np.testing.assert_allclose(three.model.coef_, alone.model.coef_, atol=1e-3)
    heavier = fit_regression(np.tile(x, (3, 1)), np.tile(y, 3), 0.1)
    assert np.abs(heavier.model.coef_ - alone.model.coef_).max() > 1e-2
    paths = [accuracy_path(np.tile(x, (n, 1)), np.tile(y, n), x, y, [1e-3, 0.1], n)[0] for n in (1, 3)]
    assert paths[0] == pytest.approx(paths[1], abs=1 / 120)
